//! Collecting blobs that nothing names.
//!
//! **What stays.** Every digest that is written anywhere in the statement of any ledger entry is
//! reachable, and so is every digest that is written in a reachable blob of up to [`SCANNED_BYTES`].
//! No format is understood, so no kind of fact, document or manifest can be forgotten. If a manifest
//! or document that a name leads to cannot be read, its content is not known and nothing goes.
//!
//! **What goes** is what is not reachable and was not used for the grace period (`BlobStore::used`:
//! put, found in place by a push, mounted, asked for by `HEAD`, named by a manifest being put).
//!
//! **Why this never races a push.** A run takes the time, then waits for every manifest that is being
//! bound, then reads the head of the ledger. A manifest that was bound before is in the ledger. One
//! that comes later touches what it names after that time and before its fact is written, and the
//! store refuses to remove what was used since ([`BlobStore::remove`], one step). Other servers on
//! the same store, and what keeps blobs before it records them (a build, a lock), do not take part
//! in the waiting: for them the same holds as long as no more than the grace period lies between
//! their last touch of a blob and the fact that names it, so it must be far longer than any push.
//!
//! A run keeps no state on disk. Cut off anywhere, it has removed some blobs that nothing names.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, SystemTime};

use adamant_attest::Statement;
use adamant_attest::predicate::{BindingKind, Predicate};
use adamant_digest::Digest;
use adamant_store::{LedgerError, ReadBlobError};

use crate::Registry;
use crate::mentions::{Mention, mentions};

/// Up to this length, in bytes, a reachable blob is searched for digests: the longest manifest.
pub const SCANNED_BYTES: u64 = 4 << 20;
/// Entries of the ledger and digests of blobs that are read at once.
const PAGE: usize = 500;
/// Most digests that are remembered as reachable between two runs: about 16 MiB.
const REMEMBERED: usize = 250_000;
/// Most blobs that one run looks at: a run holds 33 bytes for each, and twice 32 for a candidate.
const MOST: usize = 4_000_000;

/// What a run found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs in the store.
    pub blobs: u64,
    /// Of those, not used for the grace period and named by nothing: removed, or to be removed by a
    /// run that is not dry.
    pub removed: u64,
    /// Their length in bytes.
    pub bytes: u64,
    /// Blobs that were to be removed, but that somebody used in the meantime.
    pub used_meanwhile: u64,
}

/// Why a run ended early. What was removed until then is gone; all else is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// What a name leads to cannot be read, so what it needs is not known.
    #[error("nothing can be collected: {needed} needs {digest}, and {problem}: push it again to heal it")]
    Unreadable {
        /// Whose content it is.
        needed: String,
        /// The blob.
        digest: Digest,
        /// What is wrong with it.
        problem: String,
    },
    /// More blobs than one run can look at.
    #[error("the store has more than {MOST} blobs, more than a collection can look at")]
    TooMany,
    /// An entry cannot be understood: a newer version of this program may have written it.
    #[error("entry {index} of the ledger cannot be read, so what it needs is not known: {problem}")]
    Entry {
        /// Its index.
        index: u64,
        /// What is wrong.
        problem: String,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The store.
    #[error(transparent)]
    Read(#[from] ReadBlobError),
    /// The store.
    #[error("the store failed: {0}")]
    Io(#[from] std::io::Error),
}

/// What earlier runs found. Reachable once is reachable for ever: no fact is taken back.
#[derive(Debug, Default)]
pub(crate) struct Remembered(HashSet<Digest>);

impl Registry {
    /// Removes the blobs that nothing names and nobody used for `grace`; only counts them if `dry`.
    /// One run at a time. With `idle`, it rests for that long between steps, to leave the disk to others.
    pub async fn collect(&self, grace: Duration, dry: bool, idle: Option<Duration>) -> Result<Collected, CollectError> {
        let mut remembered = self.collecting.lock().await;
        // By the clock of the file system, which stamps the uses.
        let now = SystemTime::now();
        let idle_since = now.checked_sub(grace).unwrap_or(SystemTime::UNIX_EPOCH);
        // Who is binding now is waited for; who comes later uses what it names after this moment.
        drop(self.binding.write().await);

        let mut run = Run { registry: self, idle, all: Vec::new(), marked: Vec::new(), queue: VecDeque::new() };
        let mut candidates = run.list(idle_since, &remembered.0).await?;
        let mut collected = Collected { blobs: run.all.len() as u64, ..Collected::default() };
        if candidates.is_empty() {
            return Ok(collected);
        }
        run.marked = vec![false; run.all.len()];
        run.mark().await?;

        candidates.retain(|digest| !run.is_marked(*digest));
        for digest in candidates {
            let size = match self.blobs.size(digest).await? {
                Some(size) => size,
                // Damaged bytes that lie there go like others.
                None if self.blobs.used(digest).await?.is_some() => 0,
                None => continue,
            };
            if !dry && !self.blobs.remove(digest, Some(idle_since)).await? {
                collected.used_meanwhile += 1;
                continue;
            }
            collected.removed += 1;
            collected.bytes += size;
            if !dry {
                tracing::info!(%digest, size, "collected a blob that nothing names");
            }
            run.pause().await;
        }
        remembered.0 = HashSet::new();
        if run.marked.iter().filter(|marked| **marked).count() <= REMEMBERED {
            remembered.0 = run.all.iter().zip(&run.marked).filter(|(_, m)| **m).map(|(digest, _)| *digest).collect();
        }
        Ok(collected)
    }
}

struct Run<'a> {
    registry: &'a Registry,
    idle: Option<Duration>,
    /// All blobs, sorted. What arrives later is no candidate.
    all: Vec<Digest>,
    /// For each of those, whether something leads to it.
    marked: Vec<bool>,
    /// Marked, not yet searched.
    queue: VecDeque<Digest>,
}

impl Run<'_> {
    /// Lets other work go first.
    async fn pause(&self) {
        match self.idle {
            Some(idle) => tokio::time::sleep(idle).await,
            None => tokio::task::yield_now().await,
        }
    }

    /// Lists the store; gives what may go unless something leads to it.
    async fn list(
        &mut self,
        idle_since: SystemTime,
        remembered: &HashSet<Digest>,
    ) -> Result<Vec<Digest>, CollectError> {
        let blobs = &self.registry.blobs;
        let mut candidates = Vec::new();
        while let page = blobs.list(self.all.last().copied(), PAGE).await?
            && !page.is_empty()
        {
            for digest in &page {
                if !remembered.contains(digest) && blobs.used(*digest).await?.is_some_and(|used| used <= idle_since) {
                    candidates.push(*digest);
                }
            }
            self.all.extend(page);
            if self.all.len() > MOST {
                return Err(CollectError::TooMany);
            }
            self.pause().await;
        }
        Ok(candidates)
    }

    fn is_marked(&self, digest: Digest) -> bool {
        self.all.binary_search(&digest).is_ok_and(|at| self.marked[at])
    }

    /// Marks what all entries lead to.
    async fn mark(&mut self) -> Result<(), CollectError> {
        let size = self.registry.ledger.head().await?.size;
        let mut from = 0;
        while from < size {
            let page = self.registry.ledger.entries(from, PAGE).await?;
            let Some(last) = page.last() else { break };
            from = last.index + 1;
            for entry in page {
                self.search(&entry.statement).await?;
                let unknown = |problem: String| CollectError::Entry { index: entry.index, problem };
                let statement = Statement::parse(&entry.statement).map_err(|e| unknown(e.to_string()))?;
                let predicate = statement.predicate().map_err(|e| unknown(e.to_string()))?;
                for (needed, digest) in leads_to(predicate) {
                    self.must_be_here(needed, digest).await?;
                }
            }
            self.close().await?;
            self.pause().await;
        }
        Ok(())
    }

    /// What a name leads to may have come since the list was made, but it must be there. The mark of a
    /// pointer is the digest of nothing.
    async fn must_be_here(&self, needed: String, digest: Digest) -> Result<(), CollectError> {
        let known = self.all.binary_search(&digest).is_ok();
        if known
            || digest == *crate::POINTER
            || self.registry.blobs.size(digest).await?.is_some()
            || self.registry.erased.contains(digest)
        {
            return Ok(());
        }
        Err(CollectError::Unreadable { needed, digest, problem: "it is missing".to_owned() })
    }

    async fn search(&mut self, bytes: &[u8]) -> Result<(), CollectError> {
        for mention in mentions(bytes) {
            let digest = match mention {
                Mention::Sha256(digest) => digest,
                Mention::Sha512(other) => match self.registry.blobs.aliased(other).await? {
                    Some(digest) => digest,
                    None => continue,
                },
            };
            if let Ok(at) = self.all.binary_search(&digest)
                && !std::mem::replace(&mut self.marked[at], true)
            {
                self.queue.push_back(digest);
            }
        }
        Ok(())
    }

    /// Searches what was marked, and what that leads to.
    async fn close(&mut self) -> Result<(), CollectError> {
        while let Some(digest) = self.queue.pop_front() {
            let blobs = &self.registry.blobs;
            if blobs.size(digest).await?.is_none_or(|size| size > SCANNED_BYTES) {
                continue;
            }
            match blobs.get(digest).await {
                Ok(bytes) => self.search(bytes.bytes()).await?,
                // Taken away by hand, or erased, after it was listed.
                Err(ReadBlobError::NotFound(_)) => {}
                Err(error @ ReadBlobError::Corrupt { .. }) => {
                    let needed = "what a name leads to".to_owned();
                    return Err(CollectError::Unreadable { needed, digest, problem: error.to_string() });
                }
                Err(error) => return Err(error.into()),
            }
            self.pause().await;
        }
        Ok(())
    }
}

/// The blobs that lead on to others and that a fact promises to be here.
fn leads_to(predicate: Predicate) -> Vec<(String, Digest)> {
    match predicate {
        Predicate::Binding(b) => match b.kind {
            BindingKind::Tag | BindingKind::Artifact | BindingKind::Output | BindingKind::Release => {
                vec![(format!("{} {}", b.kind.as_str(), b.name), b.digest)]
            }
            BindingKind::Commit | BindingKind::Lock | BindingKind::Upstream => Vec::new(),
        },
        Predicate::Pointer(p) => vec![(format!("pointer {}", p.name), p.digest)],
        Predicate::Deployment(d) => {
            let name = format!("deployment {} to {}", d.release, d.environment);
            [d.rollout, d.release_digest].map(|digest| (name.clone(), digest)).to_vec()
        }
        _ => Vec::new(),
    }
}
