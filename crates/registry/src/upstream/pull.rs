//! First sight: fetching a manifest with all that it names, and binding it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use adamant_digest::{Digest, Sha512Hasher};
use adamant_oci::{Content, ContentDigest, Descriptor, Manifest, ManifestError, Reference, RepositoryName, Tag, media};
use adamant_store::{BoxFuture, LedgerError, ReadBlobError, WriteBlobError};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Semaphore, watch};

use super::{Entry, UpstreamError, is_dated};
use crate::manifests::Origin;
use crate::{Condition, LocateError, Names, PutManifestError, ReadManifestError, Registry, names};

/// Pulls under way, or failed a moment ago.
const FLIGHTS: usize = 1_000;
/// Pulls that fetch at a time; the others wait for their turn.
const PARALLEL: usize = 8;
/// Blobs of one pull that are fetched at a time.
const BLOBS: usize = 4;
/// Longest time for a pull.
const WHOLE: Duration = Duration::from_hours(2);
/// How long a client is kept waiting for a pull, which goes on without it.
const PATIENCE: Duration = Duration::from_mins(10);
/// How long a failure is the answer for whoever asks next.
const FAILURE_LIFE: Duration = Duration::from_secs(3);
/// Most manifests that one pull fetches.
const MANIFESTS: usize = 1_000;
/// Indexes in indexes.
const DEPTH: usize = 8;

/// Why something could not be pulled through.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No upstream has this name.
    #[error("{0} is below no upstream: `[[upstream]]` in server.toml makes one")]
    NoUpstream(RepositoryName),
    /// The operator does not allow it.
    #[error(
        "`{repository}` of upstream `{upstream}` is not in its `repositories`: the operator of this server may add it"
    )]
    NotAllowed {
        /// Its name there.
        repository: String,
        /// The upstream.
        upstream: String,
    },
    /// A tag that only an update makes, and none did.
    #[error("{repository} has no tag `{tag}`: tags of this form are made by `adamant upstream update` alone")]
    Dated {
        /// The repository.
        repository: RepositoryName,
        /// The tag.
        tag: Tag,
    },
    /// The other registry gave nothing.
    #[error("{repository} has no manifest `{reference}`, and upstream `{upstream}` gives none: {source}")]
    Upstream {
        /// The repository here.
        repository: RepositoryName,
        /// Tag or digest.
        reference: String,
        /// The upstream.
        upstream: String,
        /// Why.
        #[source]
        source: UpstreamError,
    },
    /// It gave something that is not what was asked for, or no manifest.
    #[error("upstream `{upstream}` gives for {repository} `{reference}` what cannot be kept: {cause}")]
    Unfit {
        /// The repository here.
        repository: RepositoryName,
        /// Tag or digest.
        reference: String,
        /// The upstream.
        upstream: String,
        /// What is wrong with it.
        cause: String,
    },
    /// It cannot be kept here.
    #[error(transparent)]
    Put(#[from] PutManifestError),
    /// The store cannot say what it has.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadBlobError),
    /// The store cannot be written.
    #[error(transparent)]
    Write(#[from] WriteBlobError),
    /// What is here cannot be read.
    #[error(transparent)]
    Manifest(#[from] ReadManifestError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Too many pulls at once.
    #[error("too many pulls from upstreams are under way: try again")]
    Busy,
    /// It takes long, and goes on.
    #[error("{0} is still being fetched from its upstream: try again")]
    Slow(String),
    /// It was broken off.
    #[error("fetching {0} was broken off: try again")]
    BrokenOff(String),
}

type Outcome = Option<(Instant, Result<Digest, Arc<PullError>>)>;

/// One pull for all who ask for the same.
pub(crate) struct Flights {
    flights: Mutex<HashMap<String, watch::Receiver<Outcome>>>,
    turns: Semaphore,
}

impl Default for Flights {
    fn default() -> Self {
        Self { flights: Mutex::default(), turns: Semaphore::new(PARALLEL) }
    }
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<Outcome>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the pull is over and says nothing to whoever asks now.
fn is_over(flight: &watch::Receiver<Outcome>) -> bool {
    match &*flight.borrow() {
        Some((_, Ok(_))) => true,
        Some((at, Err(_))) => at.elapsed() > FAILURE_LIFE,
        None => flight.has_changed().is_err(),
    }
}

/// A manifest to be fetched, as messages and facts name it.
pub(super) struct Wanted<'a> {
    pub(super) entry: &'a Arc<Entry>,
    /// Where it comes to.
    pub(super) repository: &'a RepositoryName,
    /// The repository's name there.
    pub(super) remote: &'a str,
    pub(super) reference: &'a Reference,
}

impl Wanted<'_> {
    pub(super) fn absent(&self, source: UpstreamError) -> PullError {
        PullError::Upstream {
            repository: self.repository.clone(),
            reference: self.reference.to_string(),
            upstream: self.entry.config.name.clone(),
            source,
        }
    }

    pub(super) fn unfit(&self, cause: impl std::fmt::Display) -> PullError {
        PullError::Unfit {
            repository: self.repository.clone(),
            reference: self.reference.to_string(),
            upstream: self.entry.config.name.clone(),
            cause: cause.to_string(),
        }
    }
}

/// What one manifest needs: manifests, each after those it names, and blobs by size.
#[derive(Default)]
struct Gathered {
    manifests: Vec<(ContentDigest, Manifest)>,
    blobs: BTreeMap<ContentDigest, u64>,
    bytes: u64,
}

impl Registry {
    /// As [`Registry::resolve`], asking the upstream of the repository for what is not here.
    pub async fn resolve_through(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Digest, Arc<PullError>> {
        match self.resolve(repository, reference).await {
            Err(ReadManifestError::Unknown { .. }) if self.upstreams.of(repository).is_some() => {
                self.pull(repository, reference).await
            }
            other => other.map_err(|error| Arc::new(error.into())),
        }
    }

    async fn pull(&self, repository: &RepositoryName, reference: &Reference) -> Result<Digest, Arc<PullError>> {
        let (entry, remote) = self.allowed(repository)?;
        if let Reference::Tag(tag) = reference
            && is_dated(tag)
        {
            return Err(Arc::new(PullError::Dated { repository: repository.clone(), tag: tag.clone() }));
        }
        let separator = if matches!(reference, Reference::Tag(_)) { ':' } else { '@' };
        let key = format!("{repository}{separator}{reference}");
        let mut flight = {
            let mut flights = self.flights.lock();
            flights.retain(|_, flight| !is_over(flight));
            match flights.get(&key) {
                Some(flight) => flight.clone(),
                None if flights.len() >= FLIGHTS => return Err(Arc::new(PullError::Busy)),
                None => {
                    let flight = self.take_off(entry, repository, remote, reference, &key);
                    flights.insert(key.clone(), flight.clone());
                    flight
                }
            }
        };
        let outcome = match tokio::time::timeout(PATIENCE, flight.wait_for(Option::is_some)).await {
            Err(_) => return Err(Arc::new(PullError::Slow(key))),
            Ok(Ok(outcome)) => outcome.clone(),
            Ok(Err(_)) => None,
        };
        outcome.map_or_else(|| Err(Arc::new(PullError::BrokenOff(key))), |(_, result)| result)
    }

    /// The pull itself is a task of its own: a client that leaves takes nothing from the others.
    fn take_off(
        &self,
        entry: &Arc<Entry>,
        repository: &RepositoryName,
        remote: &str,
        reference: &Reference,
        key: &str,
    ) -> watch::Receiver<Outcome> {
        let (done, flight) = watch::channel(None);
        let (registry, entry, repository) = (self.clone(), entry.clone(), repository.clone());
        let (remote, reference, key) = (remote.to_owned(), reference.clone(), key.to_owned());
        tokio::spawn(async move {
            let wanted = Wanted { entry: &entry, repository: &repository, remote: &remote, reference: &reference };
            let fetched = async {
                let _turn = registry.flights.turns.acquire().await;
                registry.first_sight(&wanted).await
            };
            let result = match tokio::time::timeout(WHOLE, fetched).await {
                Ok(result) => result,
                Err(_) => Err(PullError::BrokenOff(key.clone())),
            };
            match &result {
                Ok(digest) => tracing::info!(name = key, %digest, upstream = entry.config.url, "pulled through"),
                Err(error) => tracing::warn!(name = key, %error, "an upstream gave nothing"),
            }
            let counter = if result.is_ok() { &entry.pulled } else { &entry.failed };
            counter.fetch_add(1, Ordering::Relaxed);
            done.send_replace(Some((Instant::now(), result.map_err(Arc::new))));
        });
        flight
    }

    /// The upstream of a repository, if it may be asked for it.
    pub(super) fn allowed<'a>(&self, repository: &'a RepositoryName) -> Result<(&Arc<Entry>, &'a str), Arc<PullError>> {
        let found = self.upstreams.of(repository);
        let (entry, remote) = found.ok_or_else(|| Arc::new(PullError::NoUpstream(repository.clone())))?;
        if entry.allows(remote) {
            return Ok((entry, remote));
        }
        let (repository, upstream) = (remote.to_owned(), entry.config.name.clone());
        Err(Arc::new(PullError::NotAllowed { repository, upstream }))
    }

    async fn first_sight(&self, wanted: &Wanted<'_>) -> Result<Digest, PullError> {
        // It may have been bound since it was looked for.
        match self.resolve(wanted.repository, wanted.reference).await {
            Err(ReadManifestError::Unknown { .. }) => {}
            other => return Ok(other?),
        }
        let tags = match wanted.reference {
            Reference::Tag(tag) => vec![tag.clone()],
            Reference::Digest(_) => Vec::new(),
        };
        match self.keep(wanted, &tags, &wanted.entry.by(), None).await {
            // A server beside us on the same ledger was faster, and the tag moved in between.
            Err(PullError::Put(PutManifestError::Conflict(conflict))) => Ok(conflict.bound.digest),
            other => other,
        }
    }

    /// Fetches a manifest, if `bytes` are not it already, with all that it names, and binds it.
    pub(super) async fn keep(
        &self,
        wanted: &Wanted<'_>,
        tags: &[Tag],
        by: &str,
        bytes: Option<Vec<u8>>,
    ) -> Result<Digest, PullError> {
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => self.fetch_manifest(wanted).await?,
        };
        let manifest = Manifest::parse(bytes).map_err(|error| wanted.unfit(error))?;
        let mut gathered = Gathered::default();
        self.gather(wanted, &manifest, &mut gathered, 0).await?;
        self.fetch_blobs(wanted, &gathered.blobs).await?;
        let detail = Some(wanted.entry.detail(wanted.remote, wanted.reference));
        let origin = Origin { by, sees_all: true, detail };
        for (named, child) in gathered.manifests {
            let bytes = child.into_bytes().into_bytes();
            self.put_manifest_if(
                wanted.repository,
                Names { tags: &[], digest: Some(&named), condition: &Condition::default() },
                None,
                bytes,
                &origin,
            )
            .await?;
        }
        let named = match wanted.reference {
            Reference::Digest(named) => Some(named),
            Reference::Tag(_) => None,
        };
        let bytes = manifest.into_bytes().into_bytes();
        let put = self
            .put_manifest_if(
                wanted.repository,
                Names { tags, digest: named, condition: &Condition::default() },
                None,
                bytes,
                &origin,
            )
            .await;
        Ok(put
            .map_err(|error| match error {
                PutManifestError::Size { .. } | PutManifestError::Misnamed(_) => wanted.unfit(error),
                other => other.into(),
            })?
            .digest)
    }

    /// The bytes of a manifest that are what they were asked for as.
    pub(super) async fn fetch_manifest(&self, wanted: &Wanted<'_>) -> Result<Vec<u8>, PullError> {
        let source = &wanted.entry.config.source;
        let bytes = source.manifest(wanted.remote, wanted.reference).await.map_err(|error| wanted.absent(error))?;
        if bytes.len() > self.limits.manifest_bytes {
            return Err(wanted.unfit(format!("it is longer than {} bytes", self.limits.manifest_bytes)));
        }
        if let Reference::Digest(named) = wanted.reference {
            crate::manifests::check_named(named, &bytes).map_err(|error| wanted.unfit(error))?;
        }
        Ok(bytes)
    }

    /// Finds out what is missing of what a manifest names, fetching the manifests among it.
    fn gather<'a>(
        &'a self,
        wanted: &'a Wanted<'a>,
        manifest: &'a Manifest,
        gathered: &'a mut Gathered,
        depth: usize,
    ) -> BoxFuture<'a, Result<(), PullError>> {
        Box::pin(async move {
            let (blobs, children): (Vec<&Descriptor>, &[Descriptor]) = match manifest.content() {
                Content::Image { config, layers } => {
                    let kept = layers.iter().filter(|layer| !media::is_non_distributable(&layer.media_type));
                    (std::iter::once(&**config).chain(kept).collect(), &[])
                }
                Content::Index { manifests } => (Vec::new(), manifests),
            };
            for child in children {
                if media::is_manifest(&child.media_type) {
                    self.gather_child(wanted, child, gathered, depth).await?;
                } else {
                    self.gather_blob(wanted, child, gathered).await?;
                }
            }
            for blob in blobs {
                self.gather_blob(wanted, blob, gathered).await?;
            }
            Ok(())
        })
    }

    async fn gather_child(
        &self,
        wanted: &Wanted<'_>,
        child: &Descriptor,
        gathered: &mut Gathered,
        depth: usize,
    ) -> Result<(), PullError> {
        if let ContentDigest::Other(other) = &child.digest {
            return Err(wanted.unfit(other.unsupported()));
        }
        let member = names::member(wanted.repository, &child.digest);
        let bound = self.ledger.binding(adamant_attest::predicate::BindingKind::Tag, &member).await?;
        // Whatever is a member here was whole when it became one.
        if bound.is_some() || gathered.manifests.iter().any(|(named, _)| *named == child.digest) {
            return Ok(());
        }
        if depth >= DEPTH || gathered.manifests.len() >= MANIFESTS {
            return Err(wanted.unfit(format!("it names more than {MANIFESTS} manifests, or nests over {DEPTH} deep")));
        }
        let reference = Reference::Digest(child.digest.clone());
        let below = Wanted { reference: &reference, ..*wanted };
        let bytes = self.fetch_manifest(&below).await?;
        if bytes.len() as u64 != child.size {
            return Err(below.unfit(format!("it has {} bytes, its index says {}", bytes.len(), child.size)));
        }
        let manifest = Manifest::parse(bytes).map_err(|error: ManifestError| below.unfit(error))?;
        self.gather(&below, &manifest, gathered, depth + 1).await?;
        gathered.manifests.push((child.digest.clone(), manifest));
        Ok(())
    }

    async fn gather_blob(
        &self,
        wanted: &Wanted<'_>,
        blob: &Descriptor,
        gathered: &mut Gathered,
    ) -> Result<(), PullError> {
        if let ContentDigest::Other(other) = &blob.digest {
            return Err(wanted.unfit(other.unsupported()));
        }
        let here = match self.locate(&blob.digest).await? {
            Some(digest) => self.count_on(digest).await?,
            None => None,
        };
        if here.is_none() && gathered.blobs.insert(blob.digest.clone(), blob.size).is_none() {
            gathered.bytes = gathered.bytes.saturating_add(blob.size);
        }
        let limit = self.limits.upload_bytes;
        if blob.size > self.limits.blob_bytes || gathered.bytes > limit {
            return Err(wanted
                .unfit(format!("it is larger than {limit} bytes, or a blob of it than {}", self.limits.blob_bytes)));
        }
        Ok(())
    }

    async fn fetch_blobs(&self, wanted: &Wanted<'_>, blobs: &BTreeMap<ContentDigest, u64>) -> Result<(), PullError> {
        let mut fetches: Vec<BoxFuture<'_, Result<Digest, PullError>>> = Vec::with_capacity(blobs.len());
        for (named, size) in blobs {
            fetches.push(Box::pin(self.fetch_blob(wanted, named, *size)));
        }
        futures_util::stream::iter(fetches).buffer_unordered(BLOBS).try_collect::<Vec<_>>().await.map(drop)
    }

    /// Brings one blob here, checked by the digest it is named by.
    pub(super) async fn fetch_blob(
        &self,
        wanted: &Wanted<'_>,
        named: &ContentDigest,
        size: u64,
    ) -> Result<Digest, PullError> {
        let source = &wanted.entry.config.source;
        let digest = source.blob(wanted.remote, named, size).await.map_err(|error| wanted.absent(error))?;
        match named {
            ContentDigest::Sha256(expected) if *expected == digest => {}
            ContentDigest::Sha512(other) => {
                let mut reader = self.blobs.open(digest).await?.bytes;
                let mut hasher = Sha512Hasher::new();
                let mut buffer = vec![0; 64 * 1024];
                loop {
                    let read = reader.read(&mut buffer).await;
                    match read.map_err(|source| ReadBlobError::Io { digest, source })? {
                        0 => break,
                        length => hasher.update(&buffer[..length]),
                    }
                }
                if hasher.finish() != *other {
                    return Err(wanted.unfit(format!("{named} arrives with other bytes")));
                }
                self.blobs.alias(*other, digest).await?;
            }
            ContentDigest::Sha256(_) | ContentDigest::Other(_) => {
                return Err(wanted.unfit(format!("{named} arrives as {digest}")));
            }
        }
        Ok(digest)
    }
}
