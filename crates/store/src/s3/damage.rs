//! Bytes that are wrong, marked: an empty object `damaged/<64 hex digits>-<64 hex digits of what they
//! hash to>`.
//!
//! They are not moved aside: S3 has no rename, and what is right at the time of a removal may have
//! been pushed to another server since it was found wrong. So the wrong bytes stay until the right ones
//! are put over them, and a mark says that nobody may count on them meanwhile, whichever server
//! is asked and after any restart. A mark that comes too late, after somebody healed the blob, costs a
//! push or a read, which take it away again; no mark ever costs bytes.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use adamant_digest::{Digest, DigestMismatch};
use bytes::Bytes;

use super::Inner;
use super::upload::Source;

/// How often is looked for what other servers marked.
const LOOK: Duration = Duration::from_mins(1);
/// Most blobs that are known to be damaged; beyond, one is found again when it is read.
const MOST: usize = 10_000;

/// What is known to be wrong.
#[derive(Debug, Default)]
pub(super) struct Damage {
    known: Mutex<BTreeMap<Digest, Known>>,
    /// Blobs found wrong since this store was opened.
    found: AtomicU64,
    /// When the marks were last listed.
    listed: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    /// What the bytes hash to.
    found: Digest,
    /// Whether the mark is in the bucket.
    marked: bool,
}

fn mark_key(digest: Digest, found: Digest) -> String {
    format!("{}{}", marks_of(digest), found.hex())
}

/// What the marks of one blob begin with: several servers may have found different bytes.
fn marks_of(digest: Digest) -> String {
    format!("damaged/{}-", digest.hex())
}

fn parse(name: &str) -> Option<(Digest, Digest)> {
    let (digest, found) = name.split_once('-')?;
    Some((Digest::from_hex(digest).ok()?, Digest::from_hex(found).ok()?))
}

impl Damage {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn contains(&self, digest: Digest) -> bool {
        self.lock().contains_key(&digest)
    }

    pub(super) fn count(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    /// Remembers it; false if that is how it was known already.
    fn note(&self, mismatch: &DigestMismatch) -> bool {
        let mut known = self.lock();
        let before = known.get(&mismatch.expected).copied();
        if before.is_none() {
            self.found.fetch_add(1, Ordering::Relaxed);
        }
        if before.is_some_and(|before| before.marked && before.found == mismatch.found)
            || (before.is_none() && known.len() >= MOST)
        {
            return false;
        }
        known.insert(mismatch.expected, Known { found: mismatch.found, marked: false });
        true
    }

    /// Brings what is known to what the bucket said. `before` was marked when it was asked.
    fn listed(&self, before: &BTreeMap<Digest, Digest>, listed: &BTreeMap<Digest, Digest>) {
        let mut known = self.lock();
        // What is not among them any more was healed by another server.
        known.retain(|digest, this| !before.contains_key(digest) || listed.contains_key(digest) || !this.marked);
        for (digest, found) in listed {
            if known.len() < MOST {
                known.entry(*digest).or_insert(Known { found: *found, marked: true });
            }
        }
    }

    fn of(&self, marked: bool) -> BTreeMap<Digest, Digest> {
        let known = self.lock();
        known.iter().filter(|(_, this)| this.marked == marked).map(|(digest, this)| (*digest, this.found)).collect()
    }
}

impl Inner {
    /// Says that what was read as `mismatch.expected` is wrong. If the mark cannot be put, this process
    /// knows, and tries again.
    pub(super) async fn mark(&self, mismatch: &DigestMismatch) {
        if self.damage.note(mismatch) {
            self.put_mark(mismatch.expected, mismatch.found).await;
        }
    }

    async fn put_mark(&self, digest: Digest, found: Digest) {
        match self.requests.put(&mark_key(digest, found), &Source::Memory(Bytes::new()), None).await {
            Ok(()) => {
                if let Some(known) = self.damage.lock().get_mut(&digest) {
                    known.marked = true;
                }
            }
            Err(error) => tracing::error!(%digest, %error, "a damaged blob cannot be marked"),
        }
    }

    /// The right bytes are here.
    pub(super) async fn unmark(&self, digest: Digest) -> io::Result<()> {
        let marks = marks_of(digest);
        for found in self.keys(&marks, None, usize::MAX).await? {
            self.requests.delete(&format!("{marks}{found}")).await?;
        }
        if self.damage.lock().remove(&digest).is_some() {
            tracing::info!(%digest, "a damaged blob is whole again");
        }
        Ok(())
    }

    /// Whether nobody may count on the blob. One that another server healed is no longer damaged.
    pub(super) async fn is_damaged(&self, digest: Digest) -> io::Result<bool> {
        let marked = self.damage.lock().get(&digest).map(|known| known.marked);
        if marked == Some(true) && self.keys(&marks_of(digest), None, 1).await?.is_empty() {
            self.damage.lock().remove(&digest);
            return Ok(false);
        }
        Ok(marked.is_some())
    }

    /// What is known to be damaged, after a look at what other servers marked, now and then.
    pub(super) async fn damaged(&self) -> Vec<(Digest, Digest)> {
        let mut listed = self.damage.listed.lock().await;
        if listed.is_none_or(|at| at.elapsed() > LOOK) {
            *listed = Some(Instant::now());
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "what other servers found damaged is looked for later");
            }
        }
        let known = self.damage.lock();
        known.iter().map(|(digest, this)| (*digest, this.found)).collect()
    }

    pub(super) async fn look(&self) -> io::Result<()> {
        for (digest, found) in self.damage.of(false) {
            self.put_mark(digest, found).await;
        }
        let before = self.damage.of(true);
        let names = self.keys("damaged/", None, MOST).await?;
        self.damage.listed(&before, &names.iter().filter_map(|name| parse(name)).collect());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_takes_away_only_what_was_there_before_it() {
        let [healed, stays, meanwhile, theirs, unmarked] = [b"a", b"b", b"c", b"d", b"e"].map(|of| Digest::of(of));
        let wrong = Digest::of(b"wrong");
        let damage = Damage::default();
        for digest in [healed, stays, meanwhile, unmarked] {
            assert!(damage.note(&DigestMismatch { expected: digest, found: wrong }));
        }
        for digest in [healed, stays] {
            damage.lock().get_mut(&digest).unwrap().marked = true;
        }
        let before = damage.of(true);
        damage.lock().get_mut(&meanwhile).unwrap().marked = true;
        damage.listed(&before, &BTreeMap::from([(stays, wrong), (theirs, wrong)]));
        let mut expected = vec![stays, meanwhile, theirs, unmarked];
        expected.sort();
        assert_eq!(damage.lock().keys().copied().collect::<Vec<_>>(), expected);
        assert!(!damage.note(&DigestMismatch { expected: stays, found: wrong }), "one damage is marked once");
        assert_eq!(damage.count(), 4, "what others found is not counted here");
        assert_eq!(parse(&mark_key(stays, wrong)["damaged/".len()..]), Some((stays, wrong)));
        assert_eq!(parse("x"), None);
    }
}
