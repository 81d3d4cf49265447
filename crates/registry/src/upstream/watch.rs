//! Tags that move: looking, reporting, and new names for what they lead to now.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use adamant_attest::predicate::{Binding, BindingKind, Predicate, Role};
use adamant_digest::Digest;
use adamant_oci::{Reference, RepositoryName, Tag};
use adamant_store::{AppendError, Bound, Fact, LedgerError, Subject};

use super::pull::Wanted;
use super::{PullError, dated, is_dated};
use crate::{PutManifestError, Registry, names, pointers};

/// Updates of one tag on one day.
const DAILY: usize = 100;
/// Names looked at in one step of a walk.
const PAGE: usize = 1_000;

/// A tag that was bound at first sight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// The upstream.
    pub upstream: String,
    /// The repository here.
    pub repository: RepositoryName,
    /// The tag.
    pub tag: Tag,
    /// What it is bound to.
    pub bound: Bound,
    /// What it led to there when it was last looked at, if that is something else.
    pub moved: Option<Digest>,
}

/// What a look at the upstream found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// What the tag is bound to here.
    pub bound: Digest,
    /// What it leads to there.
    pub now: Digest,
}

/// What an update made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Updated {
    /// What the tag was bound to all along.
    pub bound: Digest,
    /// What it leads to now.
    pub digest: Digest,
    /// The tag for that here: the tag itself if nothing moved.
    pub tag: Tag,
    /// False if that tag was there already.
    pub new: bool,
}

impl Registry {
    /// Tags below an upstream's name after `after` (a name in the ledger), at most `limit` and those
    /// it was asked for alone, with the name to go on after, if there are more.
    pub async fn followed(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<(Vec<Followed>, Option<String>), LedgerError> {
        let mut found = Vec::new();
        let mut after = after.to_owned();
        loop {
            let page = self.ledger.bindings(BindingKind::Tag, prefix, &after, PAGE).await?;
            let last = page.len() < PAGE;
            for (name, bound) in page {
                after.clone_from(&name);
                if let Some(followed) = self.read_followed(&name, bound) {
                    found.push(followed);
                    if found.len() >= limit {
                        return Ok((found, Some(after)));
                    }
                }
            }
            if last {
                return Ok((found, None));
            }
        }
    }

    fn read_followed(&self, name: &str, bound: Bound) -> Option<Followed> {
        let (repository, tag) = name.split_once(':').filter(|(repository, _)| !repository.contains('@'))?;
        let (repository, tag): (RepositoryName, Tag) = (repository.parse().ok()?, tag.parse().ok()?);
        // A name that moved here before there was this upstream.
        if bound.digest == *pointers::POINTER {
            return None;
        }
        let (entry, _) = self.upstreams.of(&repository)?;
        let moved = entry.moved().get(name).copied();
        Some(Followed { upstream: entry.config.name.clone(), repository, tag, bound, moved })
    }

    /// Whether a tag follows what an upstream says: not one an update made, and no list of signatures.
    pub fn is_checked(tag: &Tag) -> bool {
        !is_dated(tag) && !pointers::is_list(tag)
    }

    /// Looks where a bound tag leads at its upstream now. Another digest is recorded, once, as a
    /// divergence; the binding stays.
    pub async fn check_upstream(&self, repository: &RepositoryName, tag: &Tag) -> Result<Checked, Arc<PullError>> {
        let (entry, remote) = self.allowed(repository)?;
        let name = names::tag(repository, tag);
        let reference = Reference::Tag(tag.clone());
        let bound = self.resolve(repository, &reference).await.map_err(|error| Arc::new(error.into()))?;
        let wanted = Wanted { entry, repository, remote, reference: &reference };
        let stands = self.ledger.binding(BindingKind::Tag, &name).await.map_err(|error| Arc::new(error.into()))?;
        if !Self::is_checked(tag) || stands.is_none_or(|stands| stands.digest != bound) {
            return Err(Arc::new(wanted.unfit("it is no tag that an upstream's first sight bound")));
        }
        let said = entry.config.source.digest(remote, tag).await.map_err(|error| Arc::new(wanted.absent(error)))?;
        if said == Some(bound) {
            entry.note(&name, None);
            return Ok(Checked { bound, now: bound });
        }
        // What goes on record was hashed here.
        let now = Digest::of(&self.fetch_manifest(&wanted).await?);
        if now == bound {
            entry.note(&name, None);
        } else {
            tracing::warn!(name, %bound, %now, upstream = entry.config.url, "a tag has moved at its upstream");
            entry.note(&name, Some(now));
            let binding = Binding {
                kind: BindingKind::Tag,
                name: name.clone(),
                digest: now,
                by: entry.by(),
                detail: entry.detail(remote, &reference),
            };
            let fact = Fact {
                role: Role::Control,
                subject: vec![Subject { name, digest: now }],
                predicate: Predicate::Binding(binding),
                chain: None,
            };
            // The naming law refuses it and records the divergence: that is the report.
            match self.ledger.append(vec![fact]).await {
                Ok(_) | Err(AppendError::Conflict(_)) => {}
                Err(source) => {
                    let name = names::tag(repository, tag);
                    return Err(Arc::new(PutManifestError::Append { name, source }.into()));
                }
            }
        }
        Ok(Checked { bound, now })
    }

    /// Binds what a tag leads to at its upstream now to a new tag with the date. The tag itself
    /// stays what it is.
    pub async fn update_from_upstream(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        by: &str,
    ) -> Result<Updated, Arc<PullError>> {
        let (entry, remote) = self.allowed(repository)?;
        if is_dated(tag) {
            let (repository, tag) = (repository.clone(), tag.clone());
            return Err(Arc::new(PullError::Dated { repository, tag }));
        }
        let reference = Reference::Tag(tag.clone());
        let bound = self.resolve(repository, &reference).await.map_err(|error| Arc::new(error.into()))?;
        let wanted = Wanted { entry, repository, remote, reference: &reference };
        let bytes = self.fetch_manifest(&wanted).await?;
        let digest = Digest::of(&bytes);
        if digest == bound {
            return Ok(Updated { bound, digest, tag: tag.clone(), new: false });
        }
        let day = self.day();
        for n in 1..=DAILY {
            let next =
                dated(tag, &day, n).ok_or_else(|| Arc::new(wanted.unfit("the tag is too long to get a date")))?;
            let name = names::tag(repository, &next);
            match self.ledger.binding(BindingKind::Tag, &name).await.map_err(|error| Arc::new(error.into()))? {
                Some(there) if there.digest == digest => {
                    return Ok(Updated { bound, digest, tag: next, new: false });
                }
                Some(_) => {}
                None => {
                    self.keep(&wanted, std::slice::from_ref(&next), by, Some(bytes)).await?;
                    entry.pulled.fetch_add(1, Ordering::Relaxed);
                    return Ok(Updated { bound, digest, tag: next, new: true });
                }
            }
        }
        Err(Arc::new(wanted.unfit(format!("it moved {DAILY} times today, and each time is kept already"))))
    }

    /// Today, UTC, in eight digits.
    fn day(&self) -> String {
        let seconds = (self.clock)().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let text = i64::try_from(seconds).ok().and_then(adamant_attest::format_time).unwrap_or_default();
        text.chars().take(10).filter(char::is_ascii_digit).collect()
    }
}
