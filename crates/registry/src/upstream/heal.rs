//! Damage: getting bytes again from where they came, or from whoever has the same repositories.

use std::sync::Arc;

use adamant_attest::predicate::BindingKind;
use adamant_digest::{Digest, Verified};
use adamant_oci::{Content, ContentDigest, Descriptor, Reference, RepositoryName, media};
use adamant_store::{LedgerError, WriteBlobError};

use super::pull::Wanted;
use super::{Entry, PullError};
use crate::{ReadManifestError, Registry, names};

/// Names looked at in one step of the search.
const PAGE: usize = 1_000;

/// Bytes that are right again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healed {
    /// The upstream they came from.
    pub upstream: String,
    /// The repository here that names them.
    pub repository: RepositoryName,
}

/// Why damage stays.
#[derive(Debug, thiserror::Error)]
pub enum HealError {
    /// No repository that names it has an upstream to ask.
    #[error("no upstream is known to have {0}: push it again")]
    Nowhere(Digest),
    /// All that were asked failed; the last one's reason.
    #[error("{digest} cannot be had again: {source}")]
    Failed {
        /// What is damaged.
        digest: Digest,
        /// Why.
        #[source]
        source: Arc<PullError>,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The store cannot be written.
    #[error(transparent)]
    Write(#[from] WriteBlobError),
}

/// How a repository names a digest.
enum Use {
    Manifest,
    Blob { named: ContentDigest, size: u64 },
}

impl Registry {
    /// Fetches a damaged blob again and puts it in its place. Asked are the upstream that a
    /// repository which names it was pulled from, and those with `heal`. Searches all manifests
    /// that have an upstream to ask, so it is for damage alone.
    pub async fn heal(&self, digest: Digest) -> Result<Healed, HealError> {
        let mut failed = None;
        let mut after = String::new();
        let mirrors: Vec<_> = self.upstreams.all().filter(|entry| entry.config.heal).cloned().collect();
        if self.upstreams.all().next().is_none() {
            return Err(HealError::Nowhere(digest));
        }
        loop {
            let page = self.ledger.bindings(BindingKind::Tag, "", &after, PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            after.clone_from(last);
            for (name, bound) in page.iter().filter(|(name, _)| is_member(name)) {
                let Ok(repository) = names::repository(name).parse::<RepositoryName>() else { continue };
                let sources = self.sources(&repository, &mirrors);
                if sources.is_empty() {
                    continue;
                }
                let used = match self.how(bound.digest, digest).await {
                    // Damage often comes together: what says where the bytes belong is next.
                    Err(_) => {
                        for (entry, remote) in &sources {
                            let member = bound.digest;
                            if self.fetch_again(entry, &repository, remote, member, &Use::Manifest).await.is_ok() {
                                break;
                            }
                        }
                        self.how(bound.digest, digest).await.ok().flatten()
                    }
                    Ok(used) => used,
                };
                let Some(used) = used else { continue };
                for (entry, remote) in sources {
                    match self.fetch_again(&entry, &repository, &remote, digest, &used).await {
                        Ok(()) => {
                            let upstream = entry.config.name.clone();
                            tracing::info!(%digest, upstream, %repository, "damage is healed");
                            return Ok(Healed { upstream, repository });
                        }
                        Err(error) => failed = Some(Arc::new(error)),
                    }
                }
            }
        }
        Err(failed.map_or(HealError::Nowhere(digest), |source| HealError::Failed { digest, source }))
    }

    /// Whom to ask for what a repository names, and by which name.
    fn sources(&self, repository: &RepositoryName, mirrors: &[Arc<Entry>]) -> Vec<(Arc<Entry>, String)> {
        let own = self.upstreams.of(repository).map(|(entry, remote)| (Arc::clone(entry), remote.to_owned()));
        let others = mirrors.iter().map(|entry| (Arc::clone(entry), repository.to_string()));
        own.into_iter().chain(others).collect()
    }

    /// How the manifest `member` uses `digest`, if it does.
    async fn how(&self, member: Digest, digest: Digest) -> Result<Option<Use>, ReadManifestError> {
        if member == digest {
            return Ok(Some(Use::Manifest));
        }
        let manifest = self.manifest(member).await?;
        let blobs: Vec<&Descriptor> = match manifest.content() {
            Content::Image { config, layers } => std::iter::once(&**config).chain(layers).collect(),
            // A child that is a manifest is a member itself.
            Content::Index { manifests } => manifests.iter().filter(|of| !media::is_manifest(&of.media_type)).collect(),
        };
        for descriptor in blobs {
            if self.locate(&descriptor.digest).await.ok().flatten() == Some(digest) {
                return Ok(Some(Use::Blob { named: descriptor.digest.clone(), size: descriptor.size }));
            }
        }
        Ok(None)
    }

    async fn fetch_again(
        &self,
        entry: &Arc<Entry>,
        repository: &RepositoryName,
        remote: &str,
        digest: Digest,
        used: &Use,
    ) -> Result<(), PullError> {
        let reference = Reference::Digest(digest.into());
        let wanted = Wanted { entry, repository, remote, reference: &reference };
        match used {
            Use::Manifest => {
                let bytes = self.fetch_manifest(&wanted).await?;
                Ok(self.put_blob(&Verified::hash(bytes)).await?)
            }
            Use::Blob { named, size } => self.fetch_blob(&wanted, named, *size).await.map(drop),
        }
    }
}

/// Whether a name says that a manifest is in a repository, and is not the name of a referrer.
fn is_member(name: &str) -> bool {
    name.split_once('@').is_some_and(|(_, digest)| !digest.contains('/'))
}
