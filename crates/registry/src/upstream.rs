//! Other registries, read through this one: `<name>/<repository>` is `<repository>` there.
//!
//! The first sight of a tag binds it, like any push does, for ever. What it names is fetched whole
//! before that, so it can be pulled when the other registry is gone. A tag that moves there is
//! reported (see `watch`), not followed.
//!
//! How bytes come here is not known here: `Upstream` is the seam.

mod heal;
mod pull;
mod watch;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use adamant_digest::Digest;
use adamant_oci::{ContentDigest, Reference, RepositoryName, Tag};
use adamant_store::BoxFuture;
use serde_json::{Value, json};

pub use self::heal::{HealError, Healed};
pub(crate) use self::pull::Flights;
pub use self::pull::PullError;
pub use self::watch::{Checked, Followed, Updated};

/// Another registry. Nothing it gives is believed: manifests are hashed by whoever asked for
/// them, blobs by the implementation.
pub trait Upstream: Send + Sync {
    /// The bytes of a manifest, not checked.
    fn manifest<'a>(
        &'a self,
        repository: &'a str,
        reference: &'a Reference,
    ) -> BoxFuture<'a, Result<Vec<u8>, UpstreamError>>;
    /// The digest of a tag, as the registry says; `None` if it does not say.
    fn digest<'a>(&'a self, repository: &'a str, tag: &'a Tag) -> BoxFuture<'a, Result<Option<Digest>, UpstreamError>>;
    /// Brings a blob of exactly `size` bytes into the store; durable on return. The bytes of a
    /// sha256 are checked; those of another algorithm are for the caller to check.
    fn blob<'a>(
        &'a self,
        repository: &'a str,
        named: &'a ContentDigest,
        size: u64,
    ) -> BoxFuture<'a, Result<Digest, UpstreamError>>;
}

/// Why another registry gave nothing. The texts name the address and the cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// It says that there is no such thing.
    #[error("{0}")]
    Absent(String),
    /// It cannot be reached, refuses, or gives something else.
    #[error("{0}")]
    Failed(String),
}

/// Another registry and what is read through it.
#[derive(Clone)]
pub struct UpstreamConfig {
    /// First part of the repositories here.
    pub name: String,
    /// Its address, for facts and messages.
    pub url: String,
    /// Repositories there that may be read: names, or beginnings that end in `*`.
    pub repositories: Vec<crate::Pattern>,
    /// It has the repositories of this registry by the same names, and is asked for what is
    /// damaged here.
    pub heal: bool,
    /// The way to it.
    pub source: Arc<dyn Upstream>,
}

/// Most moved tags remembered of an upstream; the facts have them all.
const MOVED: usize = 10_000;

/// An upstream with what happened to it since the start.
pub(crate) struct Entry {
    pub(crate) config: UpstreamConfig,
    pulled: AtomicU64,
    failed: AtomicU64,
    /// Tags that were found to have moved, with what they lead to now.
    moved: Mutex<BTreeMap<String, Digest>>,
}

/// How an upstream does, since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamCounts {
    /// Its name.
    pub name: String,
    /// Manifests that were fetched with all they name.
    pub pulled: u64,
    /// Times that it gave nothing, or the wrong thing.
    pub failed: u64,
    /// Tags that led elsewhere when they were last looked at.
    pub moved: usize,
}

impl Entry {
    fn moved(&self) -> MutexGuard<'_, BTreeMap<String, Digest>> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers where a tag leads; `None`: where it is bound to.
    fn note(&self, name: &str, now: Option<Digest>) {
        let mut moved = self.moved();
        match now {
            Some(now) if moved.len() < MOVED || moved.contains_key(name) => drop(moved.insert(name.to_owned(), now)),
            Some(_) => {}
            None => drop(moved.remove(name)),
        }
    }

    fn by(&self) -> String {
        format!("upstream {}", self.config.name)
    }

    /// What the binding says beside the digest.
    fn detail(&self, remote: &str, reference: &Reference) -> Value {
        json!({"upstream": {"url": self.config.url, "repository": remote, "reference": reference.to_string()}})
    }

    fn allows(&self, remote: &str) -> bool {
        self.config.repositories.iter().any(|pattern| pattern.covers(remote))
    }
}

/// All upstreams, by name.
#[derive(Clone, Default)]
pub(crate) struct Upstreams(Arc<BTreeMap<String, Arc<Entry>>>);

impl Upstreams {
    pub(crate) fn new(configs: Vec<UpstreamConfig>) -> Self {
        let entry = |config: UpstreamConfig| {
            let (pulled, failed, moved) = Default::default();
            (config.name.clone(), Arc::new(Entry { config, pulled, failed, moved }))
        };
        Self(Arc::new(configs.into_iter().map(entry).collect()))
    }

    /// The upstream of a repository here, with the repository's name there.
    pub(crate) fn of<'a>(&self, repository: &'a RepositoryName) -> Option<(&Arc<Entry>, &'a str)> {
        let (name, remote) = repository.as_str().split_once('/')?;
        Some((self.0.get(name)?, remote))
    }

    /// The upstream whose name a repository here begins with, even if it is that name alone.
    pub(crate) fn owner(&self, repository: &RepositoryName) -> Option<&Arc<Entry>> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get(repository.as_str().split('/').next()?)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.0.values()
    }
}

impl crate::Registry {
    /// How each upstream does.
    pub fn upstream_counts(&self) -> Vec<UpstreamCounts> {
        let counts = |entry: &Arc<Entry>| UpstreamCounts {
            name: entry.config.name.clone(),
            pulled: entry.pulled.load(Ordering::Relaxed),
            failed: entry.failed.load(Ordering::Relaxed),
            moved: entry.moved().len(),
        };
        self.upstreams.all().map(counts).collect()
    }
}

/// What an update's tags have between the tag and the date.
const SEEN: &str = "-seen-";

/// The `n`th tag, from 1, for what `tag` named on a day (`20261124`); `None` if that is too long.
fn dated(tag: &Tag, day: &str, n: usize) -> Option<Tag> {
    let suffix = if n > 1 { format!(".{n}") } else { String::new() };
    format!("{tag}{SEEN}{day}{suffix}").parse().ok()
}

/// Whether a tag is one that updates make. Such a tag is never asked for elsewhere: it would mean
/// something else there.
fn is_dated(tag: &Tag) -> bool {
    let Some((_, rest)) = tag.as_str().rsplit_once(SEEN) else { return false };
    let (day, n) = rest.split_once('.').unwrap_or((rest, "2"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    day.len() == 8 && digits(day) && digits(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dated_tags_are_made_and_known() {
        let tag: Tag = "1.2-slim".parse().unwrap();
        let text = |n| dated(&tag, "20261124", n).unwrap();
        assert_eq!(text(1).as_str(), "1.2-slim-seen-20261124");
        assert_eq!(text(2).as_str(), "1.2-slim-seen-20261124.2");
        assert!(is_dated(&text(1)) && is_dated(&text(12)));
        assert!(dated(&"x".repeat(114).parse().unwrap(), "20261124", 1).is_some());
        assert_eq!(dated(&"x".repeat(115).parse().unwrap(), "20261124", 1), None);
        for other in ["1", "1-20261124", "1-seen-2026112", "1-seen-20261124.", "1-seen-20261124.x", "1-seen-2026112x"] {
            assert!(!is_dated(&other.parse().unwrap()), "{other}");
        }
    }
}
