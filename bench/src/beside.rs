//! The registry beside CNCF distribution (Debian's `docker-registry`), taking turns in one run: small
//! images, requests by `wrk`, large blobs, processor time and memory.
//!
//! The peer syncs nothing to disk before it answers; we sync bytes, directory entry and fact.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use adamant_digest::Digest;
use anyhow::{Result, ensure};
use serde_json::json;

use crate::http::{Client, MANIFEST, OCTETS};
use crate::process::{installed, ms};
use crate::registry::{self, Load};
use crate::report::{Goal, Report, median};
use crate::serving::Registry;

const PEER: &str = "docker-registry";
/// Images pushed one after the other, and by 16 clients at once.
const ALONE: u32 = 150;
const TOGETHER: u32 = 600;
const CLIENTS: u32 = 16;
/// A large blob, and how often one is pushed and pulled.
const LARGE: usize = 256 << 20;
const ROUNDS: u8 = 3;
/// How long a server is left alone before its memory counts as idle.
const REST: Duration = Duration::from_secs(2);

pub(crate) fn measure(exe: &Path, place: &Path, report: &mut Report) -> Result<()> {
    if !installed(PEER) {
        report.note(format!("{PEER} is not installed: nothing beside our registry"));
        return Ok(());
    }
    let ours = Registry::ours(exe, &place.join("ours"))?;
    let peer = Registry::peer(&place.join("peer"))?;
    std::thread::sleep(REST);
    report
        .row("registry memory, idle", ours.memory_mb("VmRSS")?, "MB")
        .goal(Goal::AtMost(40.0))
        .beside(PEER, peer.memory_mb("VmRSS")?);

    for (what, count, clients) in [("one after the other", ALONE, 1), ("16 at once", TOGETHER, CLIENTS)] {
        let (a, b) = (images(&ours, count, clients)?, images(&peer, count, clients)?);
        report
            .row(format!("small image push, {what}"), a.rate, "images/s")
            .goal(Goal::AtLeast(2.0 * b.rate))
            .beside(PEER, b.rate)
            .note("3 blobs and a manifest; ours is durable, the peer syncs nothing");
        report.row(format!("  processor time, {what}"), a.cpu_ms, "ms/image").beside(PEER, b.cpu_ms);
    }

    let (kept, tag) = ("bench/kept", "v1");
    let (mut manifest, mut blob) = (String::new(), String::new());
    for registry in [&ours, &peer] {
        let image = Image::new(0);
        image.push(&mut registry.client()?, kept, tag)?;
        (manifest, blob) = (image.manifest_digest(), image.blobs[0].0.clone());
    }
    if installed("wrk") {
        for (what, path, goal) in [
            ("manifest GET by tag", format!("manifests/{tag}"), true),
            ("manifest GET by digest", format!("manifests/{manifest}"), true),
            ("1 KiB blob GET", format!("blobs/{blob}"), false),
        ] {
            let (a, b) = (requests(&ours, kept, &path)?, requests(&peer, kept, &path)?);
            let row = report.row(what, a.load.rate, "req/s").beside(PEER, b.load.rate);
            if goal {
                row.goal(Goal::AtLeast(2.0 * b.load.rate));
            }
            report.row(format!("  {what}, p50"), a.load.p50_ms, "ms").beside(PEER, b.load.p50_ms);
            let row = report.row(format!("  {what}, p99"), a.load.p99_ms, "ms").beside(PEER, b.load.p99_ms);
            if goal {
                row.goal(Goal::AtMost(b.load.p99_ms));
            }
            report.row(format!("  {what}, processor time"), a.cpu_us, "µs/request").beside(PEER, b.cpu_us);
        }
    } else {
        report.note("wrk is not installed: no requests beside the peer");
    }

    large(&ours, &peer, report)?;
    report
        .row("registry memory, at most", ours.memory_mb("VmHWM")?, "MB")
        .goal(Goal::AtMost(150.0))
        .beside(PEER, peer.memory_mb("VmHWM")?);
    Ok(())
}

/// An image nobody has pushed before.
struct Image {
    blobs: Vec<(String, Vec<u8>)>,
    manifest: Vec<u8>,
}

impl Image {
    fn new(seed: u64) -> Self {
        let blobs: Vec<_> = [1 << 10, 4 << 10, 16 << 10]
            .iter()
            .map(|&size| {
                let bytes = noise(size, seed);
                (Digest::of(&bytes).to_string(), bytes)
            })
            .collect();
        let describe = |(digest, bytes): &(String, Vec<u8>), kind: &str| json!({"mediaType": kind, "digest": digest, "size": bytes.len()});
        let layers: Vec<_> =
            blobs[1..].iter().map(|blob| describe(blob, "application/vnd.oci.image.layer.v1.tar")).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": describe(&blobs[0], "application/vnd.oci.image.config.v1+json"), "layers": layers,
        });
        Self { blobs, manifest: manifest.to_string().into_bytes() }
    }

    fn manifest_digest(&self) -> String {
        Digest::of(&self.manifest).to_string()
    }

    fn push(&self, client: &mut Client, repository: &str, tag: &str) -> Result<()> {
        for (digest, bytes) in &self.blobs {
            client.send("HEAD", &format!("/v2/{repository}/blobs/{digest}"), OCTETS, b"")?;
            client.push_blob(repository, digest, bytes)?;
        }
        let path = format!("/v2/{repository}/manifests/{tag}");
        client.send("PUT", &path, MANIFEST, &self.manifest)?.expect(201).map(drop)
    }
}

/// Bytes that look like none before, the same for the same seed (xorshift).
fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ size as u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

struct Images {
    rate: f64,
    cpu_ms: f64,
}

fn images(registry: &Registry, count: u32, clients: u32) -> Result<Images> {
    let prepared: Vec<Image> = (0..count).map(|n| Image::new(u64::from(n) + u64::from(clients) * 1_000_000)).collect();
    let next = AtomicU32::new(0);
    let (cpu, begin) = (registry.cpu_s()?, Instant::now());
    std::thread::scope(|scope| {
        let work = || {
            let mut client = registry.client()?;
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some(image) = prepared.get(n as usize) else { return anyhow::Ok(()) };
                image.push(&mut client, &format!("bench/by{clients}"), &format!("t{n}"))?;
            }
        };
        let all: Vec<_> = (0..clients).map(|_| scope.spawn(work)).collect();
        all.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    let cpu = registry.cpu_s()? - cpu;
    Ok(Images { rate: f64::from(count) / seconds, cpu_ms: cpu * 1e3 / f64::from(count) })
}

struct Requests {
    load: Load,
    cpu_us: f64,
}

fn requests(registry: &Registry, name: &str, path: &str) -> Result<Requests> {
    let cpu = registry.cpu_s()?;
    let load = registry::load(&format!("http://{}/v2/{name}/{path}", registry.address))?;
    let cpu_us = (registry.cpu_s()? - cpu) * 1e6 / load.requests;
    Ok(Requests { load, cpu_us })
}

/// 256 MiB pushed and pulled, in turns.
fn large(ours: &Registry, peer: &Registry, report: &mut Report) -> Result<()> {
    let mut bytes = noise(LARGE, 7);
    let mib = f64::from(u32::try_from(LARGE >> 20)?);
    let mut rates = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    let mut cpu = [[0.0; 2]; 2];
    for round in 0..ROUNDS {
        bytes[0] = round;
        let digest = Digest::of(&bytes).to_string();
        for (at, registry) in [ours, peer].into_iter().enumerate() {
            let mut client = registry.client()?;
            let (before, begin) = (registry.cpu_s()?, Instant::now());
            client.push_blob("bench/large", &digest, &bytes)?;
            rates[at][0].push(mib / begin.elapsed().as_secs_f64());
            let (between, begin) = (registry.cpu_s()?, Instant::now());
            let answer = client.send("GET", &format!("/v2/bench/large/blobs/{digest}"), OCTETS, b"")?.expect(200)?;
            ensure!(answer.length == LARGE as u64, "a large blob has {} bytes", answer.length);
            rates[at][1].push(mib / begin.elapsed().as_secs_f64());
            cpu[at][0] += between - before;
            cpu[at][1] += registry.cpu_s()? - between;
        }
    }
    for (n, what, goal) in [(0, "push", 1.5), (1, "pull", 1.0)] {
        let (a, b) = (median(&mut rates[0][n]), median(&mut rates[1][n]));
        report
            .row(format!("256 MiB blob {what} (median)"), a, "MiB/s")
            .goal(Goal::AtLeast(goal * b))
            .beside(PEER, b)
            .note(if n == 0 { "ours synced to disk" } else { "ours hashed while it is sent" });
        let each = |at: usize| cpu[at][n] * 1e3 / f64::from(ROUNDS);
        report.row(format!("  processor time, 256 MiB {what}"), each(0), "ms").beside(PEER, each(1));
    }
    Ok(())
}

/// Time of one request, milliseconds.
pub(crate) fn time(client: &mut Client, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<f64> {
    let begin = Instant::now();
    let answer = client.send(method, path, kind, body)?;
    ensure!(answer.status < 300, "{method} {path}: {}", answer.status);
    Ok(ms(begin.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_differ_and_hold_what_they_name() -> Result<()> {
        let (one, other) = (Image::new(1), Image::new(2));
        assert_ne!(one.manifest_digest(), other.manifest_digest());
        let sizes: Vec<usize> = one.blobs.iter().map(|(_, bytes)| bytes.len()).collect();
        assert_eq!(sizes, [1 << 10, 4 << 10, 16 << 10]);
        let value: serde_json::Value = serde_json::from_slice(&one.manifest)?;
        assert_eq!(value["layers"][1]["digest"], one.blobs[2].0);
        assert_eq!(noise(100, 3), noise(100, 3));
        Ok(())
    }
}
