//! What many names cost: 100,000 tags in one repository, then 10,000 repositories, with the time of a
//! page, of a new tag and of a pull on the way there.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use adamant_digest::Digest;
use anyhow::Result;

use crate::beside::time;
use crate::http::{INDEX, OCTETS};
use crate::report::{Goal, Report, median};
use crate::serving::Registry;

/// Where the curve is looked at.
const TAGS: [u32; 4] = [1_000, 10_000, 50_000, 100_000];
const REPOSITORIES: [u32; 3] = [100, 1_000, 10_000];
/// Tags of one push, at most.
const AT_ONCE: u32 = 50;
const CLIENTS: u32 = 16;
/// Times of which the median is taken.
const LOOKS: u32 = 51;
/// The last point may cost so many times the first, and a quarter of a millisecond.
const FLAT: f64 = 1.5;
const NOISE_MS: f64 = 0.25;

/// The smallest manifest there is.
const EMPTY: &[u8] = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

pub(crate) fn measure(exe: &Path, place: &Path, report: &mut Report) -> Result<()> {
    let registry = Registry::ours(exe, &place.join("curve"))?;
    let digest = Digest::of(EMPTY);
    let mut from = 0;
    let mut curve = Curve::default();
    for count in TAGS {
        let first = from;
        spread(&registry, (count - from).div_ceil(AT_ONCE), |n| {
            let tags: Vec<String> = (0..AT_ONCE).map(|k| format!("tag={}", tag(first + n * AT_ONCE + k))).collect();
            format!("/v2/curve/tags/manifests/{digest}?{}", tags.join("&"))
        })?;
        from = count;
        let list = "/v2/curve/tags/tags/list?n=100";
        let last = format!("{list}&last={}", tag(count - 101));
        curve.look(
            report,
            &registry,
            count,
            "tags",
            list,
            &last,
            |n| format!("/v2/curve/tags/manifests/{}", tag(n * 7919 % count)),
            |n| format!("/v2/curve/tags/manifests/new-{count}-{n}"),
        )?;
    }
    let mut from = 0;
    let mut curve = Curve::default();
    for count in REPOSITORIES {
        let first = from;
        spread(&registry, count - from, |n| format!("/v2/curve/many/{}/manifests/v1", tag(first + n)))?;
        from = count;
        let list = "/v2/_catalog?n=100";
        let last = format!("{list}&last=curve/many/{}", tag(count - 101.min(count)));
        curve.look(
            report,
            &registry,
            count,
            "repositories",
            list,
            &last,
            |n| format!("/v2/curve/many/{}/manifests/v1", tag(n * 7919 % count)),
            |n| format!("/v2/curve/many/{}/manifests/new-{count}", tag(n)),
        )?;
    }
    Ok(())
}

fn tag(n: u32) -> String {
    format!("t{n:06}")
}

/// `count` pushes of the smallest manifest, by some clients at once.
fn spread(registry: &Registry, count: u32, path: impl Fn(u32) -> String + Sync) -> Result<()> {
    let next = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let work = || {
            let mut client = registry.client()?;
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return anyhow::Ok(());
                }
                client.send("PUT", &path(n), INDEX, EMPTY)?.expect(201)?;
            }
        };
        let all: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(work)).collect();
        all.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    })
}

/// The first point of each line, to which the later ones are compared.
#[derive(Default)]
struct Curve(Vec<f64>);

impl Curve {
    #[expect(clippy::too_many_arguments, reason = "the four lines of one curve")]
    fn look(
        &mut self,
        report: &mut Report,
        registry: &Registry,
        count: u32,
        what: &str,
        first: &str,
        last: &str,
        pull: impl Fn(u32) -> String,
        push: impl Fn(u32) -> String,
    ) -> Result<()> {
        let mut client = registry.client()?;
        let mut middle = |method: &str, kind: &str, body: &[u8], path: &dyn Fn(u32) -> String| -> Result<f64> {
            let times: Result<Vec<f64>> = (0..LOOKS).map(|n| time(&mut client, method, &path(n), kind, body)).collect();
            Ok(median(&mut times?))
        };
        let points = [
            ("first page of 100", middle("GET", OCTETS, b"", &|_| first.to_owned())?),
            ("last page of 100", middle("GET", OCTETS, b"", &|_| last.to_owned())?),
            ("GET by tag", middle("GET", INDEX, b"", &pull)?),
            ("a new tag", middle("PUT", INDEX, EMPTY, &push)?),
        ];
        for (n, (line, value)) in points.into_iter().enumerate() {
            let row = report.row(format!("{count} {what}: {line}"), value, "ms");
            match self.0.get(n) {
                Some(start) => drop(row.goal(Goal::AtMost(start * FLAT + NOISE_MS))),
                None => self.0.push(value),
            }
        }
        Ok(())
    }
}
