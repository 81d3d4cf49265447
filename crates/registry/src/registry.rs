//! The registry and its bounds.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use adamant_digest::{Digest, Sha512, Sha512Hasher, Verified};
use adamant_oci::{ContentDigest, UnsupportedAlgorithm};
use adamant_store::{BlobStore, BoxFuture, Erased, Ledger, LedgerError, ReadBlobError, WriteBlobError};

use crate::UpstreamConfig;
use crate::collect::Remembered;
use crate::contents::{Contents, Quota};
use crate::evidence::Verdicts;
use crate::gate::Gate;
use crate::pointers::{Named, Turns};
use crate::pushed_by::PushedBy;
use crate::uploads::{OpenUploadsError, Uploads};
use crate::upstream::{Flights, Upstreams};

/// Whether the repositories below a first name part (`shop` of `shop/web`) belong to somebody who
/// gives release numbers and commit ids as tags there. Those tags are not for clients.
pub type Owned = Arc<dyn Fn(String) -> BoxFuture<'static, Result<bool, LedgerError>> + Send + Sync>;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// What a registry must be told.
#[derive(Clone)]
pub struct Config {
    /// Directory for uploads that are not finished. Made if it is not there; nothing else may
    /// write to it.
    pub uploads: PathBuf,
    /// What it bears.
    pub limits: Limits,
    /// For the age of uploads and the dates of updates.
    pub clock: Clock,
    /// Which repositories have tags that are not for clients; `None`: none.
    pub owned: Option<Owned>,
    /// Names that may move, beside the lists of signatures of older clients.
    pub pointers: Vec<Named>,
    /// What must be signed.
    pub gates: Vec<Gate>,
    /// Other registries that are read through this one.
    pub upstreams: Vec<UpstreamConfig>,
    /// What was erased, for answers that say so. The store must do without it, too.
    pub erased: Erased,
    /// How much repositories may hold. The first that means a repository holds for it.
    pub quotas: Vec<Quota>,
    /// What is kept free of the place where blobs are; `None`: nothing.
    pub reserve: Option<Reserve>,
}

/// Tells how many bytes are free where blobs are kept.
pub type FreeSpace = Arc<dyn Fn() -> std::io::Result<u64> + Send + Sync>;

/// Space that pushes leave free. Pulls go on when it is reached.
#[derive(Clone)]
pub struct Reserve {
    /// In bytes.
    pub bytes: u64,
    /// What is free now. Asked while bytes arrive, so it must not take long.
    pub free: FreeSpace,
}

/// A push would use what is reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{free} bytes are free where the registry keeps its content, and {reserve} are kept in reserve: nothing is taken until there is more space; pulls go on"
)]
pub struct OutOfSpace {
    /// Free bytes.
    pub free: u64,
    /// Bytes in reserve.
    pub reserve: u64,
}

/// What a registry bears. Everything beyond is refused with the limit in the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Longest manifest in bytes. The specification asks for at least 4 MiB.
    pub manifest_bytes: usize,
    /// Longest blob in bytes.
    pub blob_bytes: u64,
    /// Most unfinished uploads at a time.
    pub uploads: usize,
    /// Most bytes of all unfinished uploads.
    pub upload_bytes: u64,
    /// An upload that nobody wrote to for so long may go.
    pub upload_expiry: Duration,
    /// A request body that nothing arrives of for so long is given up.
    pub idle: Duration,
    /// Most names in one page of a listing.
    pub page: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 * 1024 * 1024,
            blob_bytes: 64 * 1024 * 1024 * 1024,
            uploads: 1_000,
            upload_bytes: 128 * 1024 * 1024 * 1024,
            upload_expiry: Duration::from_hours(24),
            idle: Duration::from_mins(1),
            page: 1_000,
        }
    }
}

/// Why a digest leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// Nothing can be named by it here.
    #[error(transparent)]
    Unsupported(#[from] UnsupportedAlgorithm),
    /// The store cannot say.
    #[error("the store cannot look a digest up: {0}")]
    Io(#[from] std::io::Error),
}

/// Bytes were pushed under a name that is not theirs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it was pushed as {expected}, but its bytes are {found}")]
pub struct Misnamed {
    /// What the client said.
    pub expected: ContentDigest,
    /// What the bytes are, by the same algorithm.
    pub found: ContentDigest,
}

/// Checks bytes by the digest that a client named them by, where that is not the store's own.
#[derive(Debug, Default)]
pub(crate) struct Second(Option<(Sha512, Sha512Hasher)>);

impl Second {
    pub(crate) fn of(named: &ContentDigest) -> Self {
        match named {
            ContentDigest::Sha512(other) => Self(Some((*other, Sha512Hasher::new()))),
            ContentDigest::Sha256(_) | ContentDigest::Other(_) => Self(None),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        if let Some((_, hasher)) = &mut self.0 {
            hasher.update(bytes);
        }
    }

    /// At the end: the digest, if there is one to check.
    pub(crate) fn check(self) -> Result<Option<Sha512>, Box<Misnamed>> {
        let Some((expected, hasher)) = self.0 else { return Ok(None) };
        let found = hasher.finish();
        if found == expected {
            Ok(Some(expected))
        } else {
            Err(Box::new(Misnamed { expected: expected.into(), found: found.into() }))
        }
    }
}

/// An OCI registry. Cheap to clone; all clones are one registry.
#[derive(Clone)]
pub struct Registry {
    pub(crate) blobs: Arc<dyn BlobStore>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) uploads: Arc<Uploads>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) owned: Option<Owned>,
    pub(crate) pointers: Arc<[Named]>,
    pub(crate) gates: Arc<[Gate]>,
    pub(crate) verdicts: Arc<Verdicts>,
    pub(crate) clock: Clock,
    pub(crate) quotas: Arc<[Quota]>,
    pub(crate) reserve: Option<Reserve>,
    pub(crate) contents: Arc<Contents>,
    /// Held while a pointer is moved, so that those of one process do not get in each other's way.
    /// What decides is the chain.
    pub(crate) pointing: Arc<Turns>,
    pub(crate) pushed_by: Arc<PushedBy>,
    pub(crate) upstreams: Upstreams,
    pub(crate) flights: Arc<Flights>,
    pub(crate) erased: Erased,
    /// Held for reading while a manifest's content is counted on and its names are bound.
    pub(crate) binding: Arc<tokio::sync::RwLock<()>>,
    /// Held by the collection that runs, with what the last one found.
    pub(crate) collecting: Arc<tokio::sync::Mutex<Remembered>>,
}

impl Registry {
    /// A registry over a store and a ledger. Finds the uploads that were under way when the
    /// last one ended. Blocks on the file system for as long as a directory listing takes.
    pub fn new(blobs: Arc<dyn BlobStore>, ledger: Arc<dyn Ledger>, config: Config) -> Result<Self, OpenUploadsError> {
        let limits = Arc::new(config.limits);
        let uploads = Arc::new(Uploads::open(config.uploads, limits.clone(), config.clock.clone())?);
        Ok(Self {
            blobs,
            ledger,
            uploads,
            limits,
            owned: config.owned,
            pointers: config.pointers.into(),
            gates: config.gates.into(),
            verdicts: Arc::default(),
            clock: config.clock,
            upstreams: Upstreams::new(config.upstreams),
            flights: Arc::default(),
            quotas: config.quotas.into(),
            reserve: config.reserve,
            contents: Arc::default(),
            erased: config.erased,
            pointing: Arc::default(),
            pushed_by: Arc::default(),
            binding: Arc::default(),
            collecting: Arc::default(),
        })
    }

    /// Keeps a blob.
    pub async fn put_blob(&self, blob: &Verified) -> Result<(), WriteBlobError> {
        self.blobs.put(blob).await
    }

    /// The name under which the store has what `named` names; `None` if it has nothing.
    pub async fn locate(&self, named: &ContentDigest) -> Result<Option<Digest>, LocateError> {
        match named {
            ContentDigest::Sha256(digest) => Ok(Some(*digest)),
            ContentDigest::Sha512(other) => Ok(self.blobs.aliased(*other).await?),
            ContentDigest::Other(other) => Err(other.unsupported().into()),
        }
    }

    /// Length of a blob in bytes, for who counts on it from now on; `None` if it is not here or
    /// known to be damaged. What was answered stays for the grace period of a collection.
    pub async fn count_on(&self, digest: Digest) -> Result<Option<u64>, ReadBlobError> {
        self.blobs.touch(digest).await.map_err(|source| ReadBlobError::Io { digest, source })
    }

    /// Removes the uploads that nobody wrote to for [`Limits::upload_expiry`]; returns how
    /// many. To be called now and then.
    pub async fn sweep(&self) -> usize {
        self.uploads.sweep().await
    }

    /// How many uploads are not finished.
    pub fn open_uploads(&self) -> usize {
        self.uploads.count()
    }

    /// Whether a push may use more space. A place that cannot be asked refuses when it is written.
    pub(crate) fn check_space(&self) -> Result<(), OutOfSpace> {
        let Some(Reserve { bytes, free }) = &self.reserve else { return Ok(()) };
        match free() {
            Ok(free) if free < *bytes => Err(OutOfSpace { free, reserve: *bytes }),
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::warn!(%error, "the free space cannot be found out");
                Ok(())
            }
        }
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("limits", &self.limits).finish_non_exhaustive()
    }
}
