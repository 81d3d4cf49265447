//! Reading all stored bytes again and again, slowly, and recording what is damaged and what is healed.
//!
//! How far a pass came is kept in `scrub` in the data directory, so restarts go on where they were. Which
//! damages are open is what the chain `damage` says against what the store knows: a fact that a crash
//! kept from being recorded is recorded by the next look. Servers that share a store and a ledger see the
//! same damage; the chain decides which of them records it.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use adamant_attest::predicate::{Damage, Predicate, Role};
use adamant_digest::Digest;
use adamant_store::{BlobStore, Chain, Fact, Subject};
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
pub(crate) async fn scrub(platform: Arc<Platform>, stop: impl Future<Output = ()>) {
    let found = std::sync::Mutex::new(BTreeSet::new());
    let mending = Mending::default();
    let rate = platform.config.settings.scrub_bytes_per_second();
    let read = async {
        if rate == 0 {
            std::future::pending::<()>().await;
        }
        loop {
            if let Err(error) = pass(&platform, rate, &found).await {
                tracing::warn!(%error, "scrubbing goes on later");
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = stop => {}
        () = read => {}
        () = record(&platform, &found, &mending) => {}
        () = mend(&platform, &mending) => {}
    }
}

/// Digests that the scrub, not a client's read, found wrong.
type Found = std::sync::Mutex<BTreeSet<Digest>>;

async fn pass(platform: &Platform, rate: u64, found: &Found) -> io::Result<()> {
    let store = &*platform.store;
    let place = platform.config.data.join("scrub");
    let mut after = std::fs::read_to_string(&place).ok().and_then(|text| text.trim().parse::<Digest>().ok());
    let mut kept = Instant::now();
    let mut buffer = vec![0; BLOCK_BYTES];
    loop {
        let page = store.list(after, PAGE).await.map_err(io::Error::other)?;
        let Some(last) = page.last().copied() else { break };
        for digest in page {
            let Ok(mut reader) = store.open(digest).await else {
                note(found, store, digest).await;
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
                        note(found, store, digest).await;
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

async fn note(found: &Found, store: &dyn BlobStore, digest: Digest) {
    if store.damaged().await.iter().any(|(known, _)| *known == digest) {
        found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(digest);
    }
}

/// The place of a pass, as a whole or not at all. Losing it costs reading again.
fn keep(place: &Path, digest: Digest) -> io::Result<()> {
    let temp = place.with_extension("new");
    std::fs::write(&temp, format!("{digest}\n"))?;
    std::fs::rename(temp, place)
}

async fn record(platform: &Platform, by_scrub: &Found, mending: &Mending) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut open = None;
    loop {
        tick.tick().await;
        if let Err(problem) = compare(platform, by_scrub, mending, &mut open).await {
            // Another server may have recorded it: the chain is read again.
            open = None;
            tracing::warn!(%problem, "damage is recorded later");
        }
    }
}

/// What the chain says.
struct Open {
    /// Damages that were found and not healed.
    known: BTreeSet<Digest>,
    /// The number of the next fact.
    next: u64,
}

/// Records what differs between the damages of the ledger and those of the store.
async fn compare(
    platform: &Platform,
    by_scrub: &Found,
    mending: &Mending,
    open: &mut Option<Open>,
) -> Result<(), Problem> {
    let Open { known, next } = match open {
        Some(open) => open,
        None => open.insert(recorded(platform).await?),
    };
    let now = platform.store.damaged().await;
    for (digest, found) in &now {
        if !known.contains(digest) {
            let scrubbed = by_scrub.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains(digest);
            let how = if scrubbed { "scrub" } else { "read" };
            platform.append_one(fact(*digest, "found", how, Some(*found), *next)).await?;
            by_scrub.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(digest);
            known.insert(*digest);
            *next += 1;
        }
    }
    let gone: Vec<Digest> = known.iter().filter(|digest| !now.iter().any(|(now, _)| now == *digest)).copied().collect();
    for digest in gone {
        // One that is gone altogether is neither. What an earlier process found and could not move aside
        // still lies there, and this one does not know it yet.
        if platform.blobs.size(digest).await?.is_some() && is_right(&*platform.store, digest).await {
            let how = if mending.mended(digest) { "mirror" } else { "read" };
            platform.append_one(fact(digest, "healed", how, None, *next)).await?;
            known.remove(&digest);
            *next += 1;
        }
    }
    mending.want(&now.iter().map(|(digest, _)| *digest).filter(|digest| known.contains(digest)).collect());
    Ok(())
}

/// Reads it all.
async fn is_right(store: &dyn BlobStore, digest: Digest) -> bool {
    match store.open(digest).await {
        Ok(mut reader) => tokio::io::copy(&mut reader.bytes, &mut tokio::io::sink()).await.is_ok(),
        Err(_) => false,
    }
}

/// What the ledger has.
async fn recorded(platform: &Platform) -> Result<Open, Problem> {
    let mut open = Open { known: BTreeSet::new(), next: 1 };
    for fact in platform.facts.whole(CHAIN).await? {
        open.next += 1;
        if let Predicate::Damage(damage) = fact.predicate {
            if damage.state == "found" {
                open.known.insert(damage.digest)
            } else {
                open.known.remove(&damage.digest)
            };
        }
    }
    Ok(open)
}

fn fact(digest: Digest, state: &str, how: &str, found: Option<Digest>, number: u64) -> Fact {
    Fact {
        role: Role::Control,
        subject: vec![Subject { name: format!("{digest}"), digest }],
        predicate: Predicate::Damage(Damage { digest, state: state.to_owned(), how: how.to_owned(), found }),
        chain: Some(Chain { name: CHAIN.to_owned(), expect: Some(number) }),
    }
}
