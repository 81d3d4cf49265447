//! The contract of the blob store.

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use adamant_digest::{Digest, DigestMismatch, Sha512, Verified};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _};
use tokio_util::io::StreamReader;

use crate::{BoxFuture, Tombstone};

/// Immutable bytes. A name is a digest; nothing is ever overwritten with other bytes.
pub trait BlobStore: Send + Sync {
    /// Keeps `blob`. Returns once bytes and directory entry are durable. Idempotent: a blob
    /// that is there already costs no write; a damaged copy is replaced by the right bytes.
    fn put<'a>(&'a self, blob: &'a Verified) -> BoxFuture<'a, Result<(), WriteBlobError>>;
    /// All bytes of a blob, checked. For blobs up to a few MiB.
    fn get(&self, digest: Digest) -> BoxFuture<'_, Result<Verified, ReadBlobError>>;
    /// A stream over the whole blob that fails before its last byte if the bytes do not hash to
    /// `digest`.
    fn open(&self, digest: Digest) -> BoxFuture<'_, Result<Reader, ReadBlobError>>;
    /// Length in bytes, or `None` if it is not here or known to be damaged. Does not read the content.
    fn size(&self, digest: Digest) -> BoxFuture<'_, Result<Option<u64>, ReadBlobError>>;
    /// Begins a blob of unknown digest and size.
    fn upload(&self) -> BoxFuture<'_, Result<Box<dyn Upload>, WriteBlobError>>;
    /// Digests of blobs greater than `after`, sorted, at most `limit`.
    fn list(&self, after: Option<Digest>, limit: usize) -> BoxFuture<'_, Result<Vec<Digest>, ReadBlobError>>;
    /// Remembers that the bytes of `digest`, which are here, hash to `other` as well; durable on
    /// return. Idempotent. The caller has hashed them: a wrong entry is replaced.
    fn alias(&self, other: Sha512, digest: Digest) -> BoxFuture<'_, Result<(), WriteBlobError>>;
    /// The blob that was remembered for `other`. A pointer, not a promise: who reads by it must
    /// hash what comes.
    fn aliased(&self, other: Sha512) -> BoxFuture<'_, io::Result<Option<Digest>>>;
    /// Sha512 digests greater than `after` that something is remembered for, sorted, at most `limit`.
    fn aliases(&self, after: Option<Sha512>, limit: usize) -> BoxFuture<'_, io::Result<Vec<Sha512>>>;
    /// Says that somebody counts on `digest` from now on, and gives its length in bytes; `None` if it
    /// is not here or known to be damaged. `put` and the `finish` of an upload say so by themselves, also of a blob that they
    /// find in place. May lag behind by an hour after a loss of power.
    fn touch(&self, digest: Digest) -> BoxFuture<'_, io::Result<Option<u64>>>;
    /// When somebody last counted on `digest`, by the clock of the storage; `None` if it is not here.
    fn used(&self, digest: Digest) -> BoxFuture<'_, io::Result<Option<SystemTime>>>;
    /// Removes the bytes of `digest` and its second names; durable on return. Idempotent: true if
    /// nothing is here now. With `idle_since`, a blob that somebody counted on after that moment
    /// stays, and the answer is false: in one process no `put`, `finish` or `touch` that was
    /// acknowledged before or meanwhile loses its blob. Who is reading it reads on to its end.
    fn remove(&self, digest: Digest, idle_since: Option<SystemTime>) -> BoxFuture<'_, io::Result<bool>>;
    /// Blobs that are known to be damaged and were not healed, with what their bytes hash to, in order.
    /// A store remembers them over restarts, and nobody is told that it has them: whoever asks before a
    /// push sends the right bytes.
    fn damaged(&self) -> BoxFuture<'_, Vec<(Digest, Digest)>>;
    /// Blobs found wrong since the store was opened.
    fn damages(&self) -> u64;
}

/// A blob that is still arriving. Dropping it discards what arrived.
pub trait Upload: Send {
    /// The next bytes.
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), WriteBlobError>>;
    /// Bytes so far.
    fn len(&self) -> u64;
    /// Whether nothing arrived yet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Keeps the blob if it hashes to `expected` (any digest if `None`); durable on return.
    fn finish(self: Box<Self>, expected: Option<Digest>) -> BoxFuture<'static, Result<(Digest, u64), WriteBlobError>>;
}

/// A blob being read.
pub struct Reader {
    /// Length in bytes.
    pub size: u64,
    /// The bytes; an error of kind `InvalidData` instead of the last ones if they are wrong.
    pub bytes: StreamReader<BoxStream<'static, io::Result<Bytes>>, Bytes>,
}

impl Reader {
    /// A blob that arrives in chunks. Once it has failed it must go on failing, so that nobody takes a
    /// second try for the end.
    pub fn new(size: u64, chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self { size, bytes: StreamReader::new(chunks.fuse().boxed()) }
    }

    /// A blob in memory, checked by the caller.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::new(bytes.len() as u64, stream::iter([Ok(bytes)]))
    }

    /// The bytes as the store read them, for who copies none of them. Of a reader that nothing was
    /// read from yet.
    pub fn into_chunks(self) -> BoxStream<'static, io::Result<Bytes>> {
        self.bytes.into_inner()
    }
}

/// Why a blob could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadBlobError {
    /// Never stored, or erased.
    #[error("blob {0} is not in the store")]
    NotFound(Digest),
    /// Stored bytes are wrong. Pushing the right ones heals it.
    #[error("blob {digest} is damaged at {}: {source}", path.display())]
    Corrupt {
        /// The name.
        digest: Digest,
        /// Where it lies.
        path: PathBuf,
        /// What was found.
        #[source]
        source: DigestMismatch,
    },
    /// The storage itself.
    #[error("blob {digest}: {source}")]
    Io {
        /// The name.
        digest: Digest,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

/// Why a blob was not kept.
#[derive(Debug, thiserror::Error)]
pub enum WriteBlobError {
    /// The bytes are not what was announced.
    #[error("the bytes are not what was announced: {0}")]
    Mismatch(#[from] DigestMismatch),
    /// It was erased, and is not kept again.
    #[error("{digest} is not kept again: it {tombstone}")]
    Erased {
        /// Its name.
        digest: Digest,
        /// What is left of it.
        tombstone: Box<Tombstone>,
    },
    /// The storage itself, a full disk for example.
    #[error("the store cannot keep the blob: {0}")]
    Io(#[from] io::Error),
}
