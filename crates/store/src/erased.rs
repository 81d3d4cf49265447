//! What was erased, and a store that does without it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use adamant_digest::{Digest, Sha512, Verified};
use bytes::Bytes;

use crate::{BlobStore, BoxFuture, ReadBlobError, Reader, Upload, WriteBlobError};

/// What is left of an erased blob: why it is not here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    /// Why, in the words of who asked; `None` if the words are gone themselves.
    pub reason: Option<String>,
    /// Who asked for it.
    pub requested_by: String,
    /// Who approved it.
    pub approved_by: String,
    /// When it was recorded, RFC 3339.
    pub at: String,
    /// Index of the fact in the log.
    pub entry: u64,
    /// The sha512 of the same bytes, if the fact says it.
    pub sha512: Option<Sha512>,
    /// The id of the same bytes in git, if the fact says it.
    pub git_blob: Option<String>,
}

impl std::fmt::Display for Tombstone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { reason, requested_by, approved_by, at, entry, .. } = self;
        write!(f, "was erased at {at} (asked for by {requested_by}, approved by {approved_by}, entry {entry}): ")?;
        f.write_str(reason.as_deref().unwrap_or("the reason was erased, too"))
    }
}

/// Tombstones by digest, as facts say. Cheap to clone; all clones are one list.
#[derive(Debug, Clone, Default)]
pub struct Erased(Arc<RwLock<Tombstones>>);

#[derive(Debug, Default)]
struct Tombstones {
    by_digest: BTreeMap<Digest, Tombstone>,
    second: BTreeMap<Sha512, Digest>,
}

impl Erased {
    /// Adds one; from now on the digest is neither given nor kept.
    pub fn insert(&self, digest: Digest, tombstone: Tombstone) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = tombstone.sha512 {
            all.second.insert(other, digest);
        }
        all.by_digest.insert(digest, tombstone);
    }

    /// Why a digest is not here; `None` if it was not erased.
    pub fn tombstone(&self, digest: Digest) -> Option<Tombstone> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).by_digest.get(&digest).cloned()
    }

    /// Whether a digest was erased.
    pub fn contains(&self, digest: Digest) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).by_digest.contains_key(&digest)
    }

    /// The erased digest of the bytes that hash to `other`.
    pub fn second(&self, other: Sha512) -> Option<Digest> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).second.get(&other).copied()
    }

    /// All erased digests, sorted.
    pub fn digests(&self) -> Vec<Digest> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).by_digest.keys().copied().collect()
    }
}

/// A store in which what was erased is not found and is not kept again, whoever brings it.
#[derive(Clone)]
pub struct WithoutErased {
    inner: Arc<dyn BlobStore>,
    erased: Erased,
}

impl WithoutErased {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn BlobStore>, erased: Erased) -> Self {
        Self { inner, erased }
    }

    /// After a write: what was erased while it arrived, or arrived without a name, goes again. A
    /// crash before that is made good by the next start, which removes what is on record.
    async fn settle(&self, digest: Digest) -> Result<(), WriteBlobError> {
        let refused = self.refuse(digest);
        if refused.is_err() {
            self.inner.remove(digest, None).await?;
        }
        refused
    }

    fn refuse(&self, digest: Digest) -> Result<(), WriteBlobError> {
        let tombstone = self.erased.tombstone(digest).map(Box::new);
        tombstone.map_or(Ok(()), |tombstone| Err(WriteBlobError::Erased { digest, tombstone }))
    }
}

struct GuardedUpload {
    upload: Box<dyn Upload>,
    store: WithoutErased,
}

impl BlobStore for WithoutErased {
    fn put<'a>(&'a self, blob: &'a Verified) -> BoxFuture<'a, Result<(), WriteBlobError>> {
        Box::pin(async move {
            self.refuse(blob.digest())?;
            self.inner.put(blob).await?;
            self.settle(blob.digest()).await
        })
    }

    fn get(&self, digest: Digest) -> BoxFuture<'_, Result<Verified, ReadBlobError>> {
        if self.erased.contains(digest) {
            return Box::pin(std::future::ready(Err(ReadBlobError::NotFound(digest))));
        }
        self.inner.get(digest)
    }

    fn open(&self, digest: Digest) -> BoxFuture<'_, Result<Reader, ReadBlobError>> {
        if self.erased.contains(digest) {
            return Box::pin(std::future::ready(Err(ReadBlobError::NotFound(digest))));
        }
        self.inner.open(digest)
    }

    fn size(&self, digest: Digest) -> BoxFuture<'_, Result<Option<u64>, ReadBlobError>> {
        if self.erased.contains(digest) {
            return Box::pin(std::future::ready(Ok(None)));
        }
        self.inner.size(digest)
    }

    fn upload(&self) -> BoxFuture<'_, Result<Box<dyn Upload>, WriteBlobError>> {
        Box::pin(async move {
            let upload = self.inner.upload().await?;
            Ok(Box::new(GuardedUpload { upload, store: self.clone() }) as Box<dyn Upload>)
        })
    }

    fn list(&self, after: Option<Digest>, limit: usize) -> BoxFuture<'_, Result<Vec<Digest>, ReadBlobError>> {
        self.inner.list(after, limit)
    }

    fn alias(&self, other: Sha512, digest: Digest) -> BoxFuture<'_, Result<(), WriteBlobError>> {
        self.inner.alias(other, digest)
    }

    fn aliased(&self, other: Sha512) -> BoxFuture<'_, std::io::Result<Option<Digest>>> {
        // Its tombstone is found by every name.
        if let Some(digest) = self.erased.second(other) {
            return Box::pin(std::future::ready(Ok(Some(digest))));
        }
        self.inner.aliased(other)
    }

    fn aliases(&self, after: Option<Sha512>, limit: usize) -> BoxFuture<'_, std::io::Result<Vec<Sha512>>> {
        self.inner.aliases(after, limit)
    }

    fn touch(&self, digest: Digest) -> BoxFuture<'_, std::io::Result<Option<u64>>> {
        if self.erased.contains(digest) {
            return Box::pin(std::future::ready(Ok(None)));
        }
        self.inner.touch(digest)
    }

    fn used(&self, digest: Digest) -> BoxFuture<'_, std::io::Result<Option<SystemTime>>> {
        self.inner.used(digest)
    }

    fn remove(&self, digest: Digest, idle_since: Option<SystemTime>) -> BoxFuture<'_, std::io::Result<bool>> {
        self.inner.remove(digest, idle_since)
    }

    fn damaged(&self) -> BoxFuture<'_, Vec<(Digest, Digest)>> {
        self.inner.damaged()
    }

    fn damages(&self) -> u64 {
        self.inner.damages()
    }
}

impl Upload for GuardedUpload {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), WriteBlobError>> {
        self.upload.write(bytes)
    }

    fn len(&self) -> u64 {
        self.upload.len()
    }

    fn finish(self: Box<Self>, expected: Option<Digest>) -> BoxFuture<'static, Result<(Digest, u64), WriteBlobError>> {
        Box::pin(async move {
            let Self { upload, store } = *self;
            expected.map_or(Ok(()), |expected| store.refuse(expected))?;
            let (digest, size) = upload.finish(expected).await?;
            store.settle(digest).await?;
            Ok((digest, size))
        })
    }
}
