//! Reading all stored bytes again and again, slowly, and recording what is damaged and what is healed.
//!
//! How far a pass came is kept in `scrub` in the data directory, so restarts go on where they were. Which
//! damages are open is what the chain `damage` says against what the store knows: a fact that a crash
//! kept from being recorded is recorded by the next look.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use adamant_attest::predicate::{Damage, Predicate, Role};
use adamant_digest::Digest;
use adamant_store::{BlobStore as _, Chain, Fact, FsBlobs, Subject};
use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, MissedTickBehavior};

use crate::error::Problem;
use crate::mend::{Mending, mend};
use crate::platform::Platform;

/// Chain of what was found and healed.
const CHAIN: &str = "damage";
/// How often what the store found is recorded.
const LOOK: Duration = Duration::from_secs(5);
/// From the end of one pass to the next.
const PAUSE: Duration = Duration::from_hours(1);
/// How often the place is kept.
const KEEP: Duration = Duration::from_secs(30);
/// Blobs listed at once.
const PAGE: usize = 256;
/// Bytes read at once.
const BLOCK_BYTES: usize = 256 << 10;

/// Until `stop`: reads, records, and asks upstreams for the right bytes.
pub(crate) async fn scrub(platform: Arc<Platform>, files: FsBlobs, stop: impl Future<Output = ()>) {
    let found = std::sync::Mutex::new(BTreeSet::new());
    let mending = Mending::default();
    let rate = u64::from(platform.config.settings.store.scrub_mb_per_second) * 1_000_000;
    let read = async {
        if rate == 0 {
            std::future::pending::<()>().await;
        }
        loop {
            if let Err(error) = pass(&platform, &files, rate, &found).await {
                tracing::warn!(%error, "scrubbing goes on later");
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = stop => {}
        () = read => {}
        () = record(&platform, &files, &found, &mending) => {}
        () = mend(&platform, &mending) => {}
    }
}

/// Digests that the scrub, not a client's read, found wrong.
type Found = std::sync::Mutex<BTreeSet<Digest>>;

async fn pass(platform: &Platform, files: &FsBlobs, rate: u64, found: &Found) -> io::Result<()> {
    let place = platform.config.data.join("scrub");
    let mut after = std::fs::read_to_string(&place).ok().and_then(|text| text.trim().parse::<Digest>().ok());
    let mut kept = Instant::now();
    let mut buffer = vec![0; BLOCK_BYTES];
    loop {
        let page = files.list(after, PAGE).await.map_err(io::Error::other)?;
        let Some(last) = page.last().copied() else { break };
        for digest in page {
            let Ok(mut reader) = files.open(digest).await.inspect_err(|_| note(found, files, digest)) else {
                continue;
            };
            loop {
                match reader.bytes.read(&mut buffer).await {
                    Ok(0) => break,
                    Ok(n) => {
                        platform.scrubbed.fetch_add(n as u64, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_nanos(n as u64 * 1_000_000_000 / rate)).await;
                    }
                    Err(_) => {
                        note(found, files, digest);
                        break;
                    }
                }
            }
            if kept.elapsed() > KEEP {
                keep(&place, digest)?;
                kept = Instant::now();
            }
        }
        after = Some(last);
    }
    match std::fs::remove_file(&place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn note(found: &Found, files: &FsBlobs, digest: Digest) {
    if files.damaged().iter().any(|(known, _)| *known == digest) {
        found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(digest);
    }
}

/// The place of a pass, as a whole or not at all. Losing it costs reading again.
fn keep(place: &Path, digest: Digest) -> io::Result<()> {
    let temp = place.with_extension("new");
    std::fs::write(&temp, format!("{digest}\n"))?;
    std::fs::rename(temp, place)
}

async fn record(platform: &Platform, files: &FsBlobs, by_scrub: &Found, mending: &Mending) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut open = None;
    loop {
        tick.tick().await;
        if let Err(problem) = compare(platform, files, by_scrub, mending, &mut open).await {
            tracing::warn!(%problem, "damage is recorded later");
        }
    }
}

/// Records what differs between the damages of the ledger and those of the store.
async fn compare(
    platform: &Platform,
    files: &FsBlobs,
    by_scrub: &Found,
    mending: &Mending,
    open: &mut Option<BTreeSet<Digest>>,
) -> Result<(), Problem> {
    let known = match open {
        Some(known) => known,
        None => open.insert(recorded(platform).await?),
    };
    let now = files.damaged();
    for (digest, found) in &now {
        if !known.contains(digest) {
            let scrubbed = by_scrub.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(digest);
            let how = if scrubbed { "scrub" } else { "read" };
            platform.append_one(fact(*digest, "found", how, Some(*found))).await?;
            known.insert(*digest);
        }
    }
    let gone: Vec<Digest> = known.iter().filter(|digest| !now.iter().any(|(now, _)| now == *digest)).copied().collect();
    for digest in gone {
        // One that is gone altogether is neither. What an earlier process found and could not move aside
        // still lies there, and this one does not know it yet.
        if platform.blobs.size(digest).await?.is_some() && is_right(files, digest).await {
            let how = if mending.mended(digest) { "mirror" } else { "read" };
            platform.append_one(fact(digest, "healed", how, None)).await?;
            known.remove(&digest);
        }
    }
    mending.want(&now.iter().map(|(digest, _)| *digest).filter(|digest| known.contains(digest)).collect());
    Ok(())
}

/// Reads it all.
async fn is_right(files: &FsBlobs, digest: Digest) -> bool {
    match files.open(digest).await {
        Ok(mut reader) => tokio::io::copy(&mut reader.bytes, &mut tokio::io::sink()).await.is_ok(),
        Err(_) => false,
    }
}

/// Damages that were found and not healed, as the ledger has them.
async fn recorded(platform: &Platform) -> Result<BTreeSet<Digest>, Problem> {
    let mut open = BTreeSet::new();
    for fact in platform.facts.whole(CHAIN).await? {
        if let Predicate::Damage(damage) = fact.predicate {
            if damage.state == "found" {
                open.insert(damage.digest)
            } else {
                open.remove(&damage.digest)
            };
        }
    }
    Ok(open)
}

fn fact(digest: Digest, state: &str, how: &str, found: Option<Digest>) -> Fact {
    Fact {
        role: Role::Control,
        subject: vec![Subject { name: format!("{digest}"), digest }],
        predicate: Predicate::Damage(Damage { digest, state: state.to_owned(), how: how.to_owned(), found }),
        chain: Some(Chain { name: CHAIN.to_owned(), expect: None }),
    }
}
