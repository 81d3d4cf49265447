//! What a repository holds: the manifests that are members of it and the blobs they name, with
//! their sizes. It answers two questions: may a blob be read through this repository by somebody
//! who may not read everything, and how many bytes does the repository have.
//!
//! All of it is read from facts and manifests when it is first asked for, kept in memory as far as
//! that is bounded, and brought up to date with the entries that the ledger has got since: nothing
//! here is a second truth, and a restart or another server changes no answer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use adamant_attest::Statement;
use adamant_attest::predicate::{Binding, BindingKind, Predicate};
use adamant_digest::Digest;
use adamant_oci::{Content, ContentDigest, Manifest, RepositoryName, media};
use adamant_store::LedgerError;
use tokio::sync::OwnedMutexGuard;

use crate::{LocateError, Pattern, Registry, names};

/// Digests that are kept in memory, of all repositories together; about 40 bytes each.
const KEPT: usize = 500_000;
/// Repositories that are kept in memory.
const REPOSITORIES: usize = 10_000;
/// If the ledger has grown by more entries than this, the repository is listed anew.
const FOLLOWED: u64 = 2_000;
/// Bindings or entries read at once.
const PAGE: usize = 1_000;
/// Uploads that are remembered at a time until a manifest names them.
const UPLOADED: usize = 100_000;

/// How many bytes the repositories that a pattern means may hold, each of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// Which repositories.
    pub repositories: Pattern,
    /// Most bytes of each.
    pub bytes: u64,
}

/// A repository is to hold more than it may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{repository} may hold {quota} bytes (quota `{pattern}`) and holds {used}: {needed} more do not fit; push less, or ask the operator of the registry for a larger quota"
)]
pub struct OverQuota {
    /// The repository.
    pub repository: RepositoryName,
    /// The pattern of the quota.
    pub pattern: Pattern,
    /// Bytes that it may hold.
    pub quota: u64,
    /// Bytes that it holds.
    pub used: u64,
    /// Bytes that were to be added.
    pub needed: u64,
}

/// Why it is not known what a repository holds.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentsError {
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The store cannot look a digest up.
    #[error(transparent)]
    Locate(#[from] LocateError),
}

/// What is known of all repositories.
#[derive(Default)]
pub(crate) struct Contents {
    repositories: Mutex<HashMap<RepositoryName, Known>>,
    /// Counts the looks at any repository.
    looks: AtomicU64,
    uploaded: Mutex<HashMap<Digest, SystemTime>>,
}

#[derive(Default)]
struct Known {
    held: Arc<tokio::sync::Mutex<Held>>,
    /// Digests in it and when it was last asked for, for whoever makes room.
    digests: usize,
    used: u64,
}

/// What one repository holds.
#[derive(Default)]
pub(crate) struct Held {
    /// Each manifest and blob.
    items: HashMap<Digest, Item>,
    /// Bytes of all items.
    bytes: u64,
    /// Size of the ledger up to which all facts are in it.
    upto: Option<u64>,
}

#[derive(Clone, Copy)]
struct Item {
    /// It was read as a manifest.
    member: bool,
}

impl Held {
    fn add(&mut self, digest: Digest, bytes: u64, member: bool) {
        let item = self.items.entry(digest).or_insert_with(|| {
            self.bytes = self.bytes.saturating_add(bytes);
            Item { member }
        });
        item.member |= member;
    }

    fn is_member(&self, digest: Digest) -> bool {
        self.items.get(&digest).is_some_and(|item| item.member)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Contents {
    /// The place of a repository, made if it is not there. Others go if there are too many.
    fn of(&self, repository: &RepositoryName) -> Arc<tokio::sync::Mutex<Held>> {
        let mut all = lock(&self.repositories);
        let known = all.entry(repository.clone()).or_default();
        known.used = self.looks.fetch_add(1, Ordering::Relaxed);
        Arc::clone(&known.held)
    }

    fn note(&self, repository: &RepositoryName, digests: usize) {
        let mut all = lock(&self.repositories);
        if let Some(known) = all.get_mut(repository) {
            known.digests = digests;
        }
        let mut total: usize = all.values().map(|known| known.digests).sum();
        while (total > KEPT || all.len() > REPOSITORIES) && all.len() > 1 {
            // What somebody holds stays: two of one repository would each count alone.
            let idle = all.iter().filter(|(_, known)| Arc::strong_count(&known.held) == 1);
            let oldest = idle.min_by_key(|(_, known)| known.used).map(|(name, _)| name.clone());
            let Some(gone) = oldest.and_then(|name| all.remove(&name)) else { return };
            total -= gone.digests;
        }
    }

    /// Remembers that somebody uploaded or mounted a blob to a repository.
    pub(crate) fn uploaded(&self, repository: &RepositoryName, digest: Digest, now: SystemTime, life: Duration) {
        let mut uploaded = lock(&self.uploaded);
        if uploaded.len() >= UPLOADED {
            uploaded.retain(|_, at| is_recent(*at, now, life));
            // All of them new: half of them go, which their clients push again.
            let mut half = 0;
            if uploaded.len() >= UPLOADED {
                uploaded.retain(|_, _| {
                    half += 1;
                    half % 2 == 0
                });
            }
        }
        uploaded.insert(key(repository, digest), now);
    }

    fn was_uploaded(&self, repository: &RepositoryName, digest: Digest, now: SystemTime, life: Duration) -> bool {
        lock(&self.uploaded).get(&key(repository, digest)).is_some_and(|at| is_recent(*at, now, life))
    }
}

fn key(repository: &RepositoryName, digest: Digest) -> Digest {
    Digest::of(names::member(repository, &digest.into()).as_bytes())
}

fn is_recent(at: SystemTime, now: SystemTime, life: Duration) -> bool {
    now.duration_since(at).unwrap_or_default() < life
}

/// A quota in force, and what is used of it. Nobody else pushes a manifest to the repository through
/// this process until it is dropped.
pub(crate) struct Counted {
    quota: Quota,
    repository: RepositoryName,
    held: OwnedMutexGuard<Held>,
}

impl Counted {
    /// Bytes that still fit, for an upload whose digest is not known yet.
    pub(crate) fn room(&self) -> Room {
        Room { over: self.over(0), left: self.quota.bytes.saturating_sub(self.held.bytes) }
    }

    fn over(&self, needed: u64) -> OverQuota {
        OverQuota {
            repository: self.repository.clone(),
            pattern: self.quota.repositories.clone(),
            quota: self.quota.bytes,
            used: self.held.bytes,
            needed,
        }
    }

    pub(crate) fn has(&self, digest: Digest) -> bool {
        self.held.items.contains_key(&digest)
    }
}

/// What is left of a quota while bytes arrive.
pub(crate) struct Room {
    over: OverQuota,
    left: u64,
}

impl Room {
    pub(crate) fn check(&self, length: u64) -> Result<(), Box<OverQuota>> {
        if length > self.left { Err(Box::new(OverQuota { needed: length, ..self.over.clone() })) } else { Ok(()) }
    }
}

impl Registry {
    /// Whether somebody who may not read everything may read a blob through `repository`: it is a
    /// manifest of it, a manifest of it names it, or it was uploaded there not long ago.
    pub(crate) async fn reaches(&self, repository: &RepositoryName, digest: Digest) -> Result<bool, ContentsError> {
        if self.contents.was_uploaded(repository, digest, (self.clock)(), self.limits.upload_expiry) {
            return Ok(true);
        }
        let member = names::member(repository, &digest.into());
        if self.ledger.binding(BindingKind::Tag, &member).await?.is_some() {
            return Ok(true);
        }
        let mut held = self.contents.of(repository).lock_owned().await;
        // Nothing leaves a repository, so what is known to be in it needs no look at the ledger.
        if !held.items.contains_key(&digest) {
            self.bring_up_to_date(repository, &mut held).await?;
        }
        Ok(held.items.contains_key(&digest))
    }

    /// The quota that holds for a repository, the first that means it, with what is used of it.
    pub(crate) async fn counted(&self, repository: &RepositoryName) -> Result<Option<Counted>, ContentsError> {
        let quota = self.quotas.iter().find(|quota| quota.repositories.covers(repository.as_str()));
        let Some(quota) = quota.cloned() else { return Ok(None) };
        let mut held = self.contents.of(repository).lock_owned().await;
        self.bring_up_to_date(repository, &mut held).await?;
        Ok(Some(Counted { quota, repository: repository.clone(), held }))
    }

    /// Whether a manifest and what it names, as far as it is new there, fit into a repository.
    pub(crate) async fn fits(&self, counted: &Counted, manifest: &Manifest) -> Result<(), FitError> {
        let mut new: HashMap<Digest, u64> = HashMap::new();
        for (digest, bytes, _) in self.named_by(manifest).await? {
            if !counted.has(digest) {
                new.insert(digest, bytes);
            }
        }
        let needed = new.values().fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
        // What needs nothing fits, even if the quota was made smaller meanwhile.
        if needed > 0 && counted.held.bytes.saturating_add(needed) > counted.quota.bytes {
            return Err(FitError::Over(Box::new(counted.over(needed))));
        }
        Ok(())
    }

    async fn bring_up_to_date(&self, repository: &RepositoryName, held: &mut Held) -> Result<(), ContentsError> {
        let size = self.ledger.head().await?.size;
        match held.upto {
            Some(upto) if upto == size => return Ok(()),
            Some(upto) if upto < size && size - upto <= FOLLOWED => self.follow(repository, held, upto, size).await?,
            _ => self.list(repository, held).await?,
        }
        held.upto = Some(size);
        self.contents.note(repository, held.items.len());
        Ok(())
    }

    /// Adds the members that entries `from` to `to` made.
    async fn follow(
        &self,
        repository: &RepositoryName,
        held: &mut Held,
        mut from: u64,
        to: u64,
    ) -> Result<(), ContentsError> {
        let members = names::members(repository);
        while from < to {
            let entries = self.ledger.entries(from, PAGE).await?;
            let Some(last) = entries.last() else { return Ok(()) };
            from = last.index + 1;
            for entry in entries {
                let predicate =
                    Statement::parse(&entry.statement).ok().and_then(|statement| statement.predicate().ok());
                if let Some(Predicate::Binding(Binding { kind: BindingKind::Tag, name, digest, .. })) = predicate
                    && name.starts_with(&members)
                {
                    self.add_member(held, digest).await?;
                }
            }
        }
        Ok(())
    }

    async fn list(&self, repository: &RepositoryName, held: &mut Held) -> Result<(), ContentsError> {
        let members = names::members(repository);
        let mut after = String::new();
        loop {
            let page = self.ledger.bindings(BindingKind::Tag, &members, &after, PAGE).await?;
            let more = page.len() == PAGE;
            for (name, bound) in page {
                self.add_member(held, bound.digest).await?;
                after = name;
            }
            if !more {
                return Ok(());
            }
        }
    }

    async fn add_member(&self, held: &mut Held, digest: Digest) -> Result<(), ContentsError> {
        if held.is_member(digest) {
            return Ok(());
        }
        // What cannot be read now gives nobody anything; `fsck` finds it.
        match self.manifest(digest).await {
            Ok(manifest) => {
                for (digest, bytes, member) in self.named_by(&manifest).await? {
                    held.add(digest, bytes, member);
                }
            }
            Err(error) => tracing::warn!(%digest, %error, "a manifest cannot be counted"),
        }
        Ok(())
    }

    /// A manifest and what is kept of what it names: digest, bytes, and whether it is a manifest.
    /// Manifests of an index are members themselves. Layers that are not to be distributed were
    /// never checked to be the pusher's, so they are not among it.
    async fn named_by(&self, manifest: &Manifest) -> Result<Vec<(Digest, u64, bool)>, ContentsError> {
        let mut all = vec![(manifest.digest(), manifest.size(), true)];
        let blobs: Vec<_> = match manifest.content() {
            Content::Image { config, layers } => {
                let kept = layers.iter().filter(|layer| !media::is_non_distributable(&layer.media_type));
                std::iter::once(&**config).chain(kept).collect()
            }
            Content::Index { manifests } => {
                manifests.iter().filter(|child| !media::is_manifest(&child.media_type)).collect()
            }
        };
        for descriptor in blobs {
            let digest = match &descriptor.digest {
                ContentDigest::Sha256(digest) => Some(*digest),
                other => self.locate(other).await?,
            };
            all.extend(digest.map(|digest| (digest, descriptor.size, false)));
        }
        Ok(all)
    }
}

/// Why a manifest was not counted in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FitError {
    #[error(transparent)]
    Over(Box<OverQuota>),
    #[error(transparent)]
    Contents(#[from] ContentsError),
}
