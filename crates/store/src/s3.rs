//! Blobs in an S3 bucket: `<prefix>/sha256/<64 hex digits>`, and for a sha512 an object
//! `<prefix>/sha512/<128 hex digits>` that holds the sha256 of the same bytes. Damaged bytes are marked
//! (see `damage`).
//!
//! Nothing here rests on conditional requests, which stores answer differently. A name is a digest
//! and only checked bytes are ever put under it, so two servers that write it at once write the
//! same; which name means which digest is decided in the database alone.
//!
//! A blob arrives in memory, above [`upload::MEMORY_BYTES`] in a nameless local file that goes with
//! its process, and is sent once its digest is known. So nothing half-arrived is ever in the bucket,
//! and no other server has to clean up. Every request has a limit on its waits and a bounded number
//! of tries with growing, jittered pauses; a read that breaks off goes on where it was.

mod damage;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod reader;
mod requests;
mod settings;
mod upload;
mod usage;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use adamant_digest::{Digest, DigestMismatch, Sha512, Verified};
use bytes::Bytes;

use crate::{BlobStore, BoxFuture, MAX_GET_BYTES, ReadBlobError, Reader, Upload, WriteBlobError};
use damage::Damage;
use reader::{Broken, Checked};
use requests::Requests;
pub use settings::{S3Credentials, S3Settings, S3SettingsError};
use upload::Source;

/// Up to this size, in bytes, `open` checks the whole blob before it gives the first byte.
const SMALL_BYTES: u64 = 1 << 20;
/// Most keys S3 lists at a time.
const PAGE: usize = 1_000;
/// `sha256:`, 64 hex digits, a newline.
const ALIAS_BYTES: u64 = 72;

/// Blobs in one bucket. Cheap to clone.
#[derive(Debug, Clone)]
pub struct S3Blobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    requests: Requests,
    /// Where uploads lie until their digest is known.
    spool: PathBuf,
    /// Taken for writing by who removes a name, for reading by who says that it is used.
    names: tokio::sync::RwLock<()>,
    damage: Damage,
}

/// What lies under a name, compared with the right bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// Exactly these.
    Right,
    /// Others, or some that cannot be read.
    Wrong,
    Nothing,
}

impl S3Blobs {
    /// Opens the store and asks the bucket what is damaged, so that a wrong setting is found at the start.
    /// `spool` is a local directory for what is arriving; it is made if it is not there.
    pub async fn open(settings: S3Settings, spool: PathBuf) -> io::Result<Self> {
        let made = spool.clone();
        blocking(move || std::fs::create_dir_all(made)).await??;
        let requests = Requests::new(settings)?;
        let (names, damage) = (tokio::sync::RwLock::default(), Damage::default());
        let store = Self(Arc::new(Inner { requests, spool, names, damage }));
        store.0.look().await?;
        Ok(store)
    }

    /// Where the bytes of `digest` are, whether they are there or not, for people:
    /// `s3://bucket/key`.
    pub fn location(&self, digest: Digest) -> String {
        self.0.requests.location(&blob_key(digest))
    }
}

fn blob_key(digest: Digest) -> String {
    format!("sha256/{}", digest.hex())
}

fn alias_key(other: Sha512) -> String {
    format!("sha512/{}", other.hex())
}

impl Inner {
    async fn corrupt(&self, source: DigestMismatch) -> ReadBlobError {
        self.mark(&source).await;
        let digest = source.expected;
        let path = PathBuf::from(self.requests.location(&blob_key(digest)));
        tracing::error!(%digest, found = %source.found, path = %path.display(), "blob is damaged");
        ReadBlobError::Corrupt { digest, path, source }
    }

    /// Writes the blob unless exactly its bytes are there. Reading them is what tells: sizes and
    /// tags of entities say nothing about damage.
    async fn keep(&self, digest: Digest, source: &Source) -> io::Result<()> {
        let key = blob_key(digest);
        let held = self.held(&key, source).await;
        if held == Held::Right && self.use_now(digest).await?.is_some() {
            if self.damage.contains(digest) {
                self.unmark(digest).await?;
            }
            return Ok(());
        }
        self.requests.put(&key, source, Some(digest)).await?;
        if held == Held::Wrong || self.damage.contains(digest) { self.unmark(digest).await } else { Ok(()) }
    }

    async fn held(&self, key: &str, source: &Source) -> Held {
        let mut found = match self.requests.get(key, 0).await {
            Ok(Some(found)) => found,
            Ok(None) => return Held::Nothing,
            Err(_) => return Held::Wrong,
        };
        if found.content_length() != Some(source.len()) {
            return Held::Wrong;
        }
        let mut at = 0;
        while let Ok(Some(chunk)) = found.chunk().await {
            let length = chunk.len() as u64;
            if at + length > source.len() {
                return Held::Wrong;
            }
            match source.read(at, chunk.len()).await {
                Ok(here) if here == chunk => at += length,
                _ => return Held::Wrong,
            }
        }
        if at == source.len() { Held::Right } else { Held::Wrong }
    }

    async fn get(self: &Arc<Self>, digest: Digest) -> Result<Verified, ReadBlobError> {
        let failed = |source| ReadBlobError::Io { digest, source };
        let checked = self.checked(digest).await?;
        if checked.size() > MAX_GET_BYTES {
            let text = format!("{} bytes do not fit into memory, open it as a stream", checked.size());
            return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, text)));
        }
        self.collect(digest, checked).await
    }

    async fn collect(&self, digest: Digest, mut checked: Checked) -> Result<Verified, ReadBlobError> {
        let mut bytes = Vec::with_capacity(usize::try_from(checked.size()).unwrap_or(0));
        loop {
            match checked.next().await {
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(Broken::Mismatch(source)) => return Err(self.corrupt(source).await),
                Err(Broken::Io(source)) => return Err(ReadBlobError::Io { digest, source }),
            }
        }
        match Verified::check(digest, bytes) {
            Ok(right) => self.healed(digest).await.map(|()| right),
            Err(source) => Err(self.corrupt(source).await),
        }
    }

    /// What was read to its end is right.
    async fn healed(&self, digest: Digest) -> Result<(), ReadBlobError> {
        if !self.damage.contains(digest) {
            return Ok(());
        }
        self.unmark(digest).await.map_err(|source| ReadBlobError::Io { digest, source })
    }

    /// Reads a blob that is known to be damaged to its end: somebody may have healed it.
    async fn check_again(self: &Arc<Self>, digest: Digest) -> Result<(), ReadBlobError> {
        let mut checked = self.checked(digest).await?;
        loop {
            match checked.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return self.healed(digest).await,
                Err(Broken::Mismatch(source)) => return Err(self.corrupt(source).await),
                Err(Broken::Io(source)) => return Err(ReadBlobError::Io { digest, source }),
            }
        }
    }

    async fn size(&self, digest: Digest) -> io::Result<Option<u64>> {
        if self.is_damaged(digest).await? {
            return Ok(None);
        }
        Ok(self.requests.head(&blob_key(digest)).await?.map(|found| found.size))
    }

    async fn checked(self: &Arc<Self>, digest: Digest) -> Result<Checked, ReadBlobError> {
        let failed = |source| ReadBlobError::Io { digest, source };
        let found = self.requests.get(&blob_key(digest), 0).await.map_err(failed)?;
        let response = found.ok_or(ReadBlobError::NotFound(digest))?;
        Checked::new(Arc::clone(self), digest, response).map_err(failed)
    }

    /// What follows `kind` in the names of objects after `after`, at most `limit`, in byte order.
    async fn keys(&self, kind: &str, after: Option<String>, limit: usize) -> io::Result<Vec<String>> {
        let mut keys = Vec::new();
        let mut after = after;
        while keys.len() < limit {
            let page = self.requests.list(kind, after.as_deref(), PAGE.min(limit - keys.len())).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.clone());
            keys.extend(page);
        }
        Ok(keys)
    }

    /// Names that parse, in pages until `limit` are found: others may lie among them.
    async fn names<T: Ord + Copy>(
        &self,
        kind: &str,
        after: Option<T>,
        limit: usize,
        hex: impl Fn(&T) -> String,
        parse: impl Fn(&str) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut names = Vec::new();
        let mut from = after.as_ref().map(hex);
        while names.len() < limit {
            let page = self.keys(kind, from.take(), PAGE.min(limit - names.len())).await?;
            let Some(last) = page.last() else { break };
            from = Some(last.clone());
            names.extend(page.iter().filter_map(|key| parse(key)).filter(|name| Some(*name) > after));
        }
        Ok(names)
    }
}

impl BlobStore for S3Blobs {
    fn put<'a>(&'a self, blob: &'a Verified) -> BoxFuture<'a, Result<(), WriteBlobError>> {
        Box::pin(async move {
            let source = Source::Memory(Bytes::copy_from_slice(blob.bytes()));
            Ok(self.0.keep(blob.digest(), &source).await?)
        })
    }

    fn get(&self, digest: Digest) -> BoxFuture<'_, Result<Verified, ReadBlobError>> {
        Box::pin(self.0.get(digest))
    }

    fn open(&self, digest: Digest) -> BoxFuture<'_, Result<Reader, ReadBlobError>> {
        Box::pin(async move {
            let checked = self.0.checked(digest).await?;
            if checked.size() > SMALL_BYTES {
                if self.0.damage.contains(digest) {
                    drop(checked);
                    self.0.check_again(digest).await?;
                    return Ok(self.0.checked(digest).await?.into_reader());
                }
                return Ok(checked.into_reader());
            }
            Ok(Reader::whole(self.0.collect(digest, checked).await?.into_bytes()))
        })
    }

    fn size(&self, digest: Digest) -> BoxFuture<'_, Result<Option<u64>, ReadBlobError>> {
        Box::pin(async move { self.0.size(digest).await.map_err(|source| ReadBlobError::Io { digest, source }) })
    }

    fn upload(&self) -> BoxFuture<'_, Result<Box<dyn Upload>, WriteBlobError>> {
        let upload = Box::new(upload::S3Upload::new(Arc::clone(&self.0))) as Box<dyn Upload>;
        Box::pin(async move { Ok(upload) })
    }

    fn list(&self, after: Option<Digest>, limit: usize) -> BoxFuture<'_, Result<Vec<Digest>, ReadBlobError>> {
        Box::pin(async move {
            let parse = |name: &str| Digest::from_hex(name).ok();
            let found = self.0.names("sha256/", after, limit, Digest::hex, parse).await;
            found.map_err(|source| ReadBlobError::Io { digest: after.unwrap_or(Digest::from_bytes([0; 32])), source })
        })
    }

    fn alias(&self, other: Sha512, digest: Digest) -> BoxFuture<'_, Result<(), WriteBlobError>> {
        Box::pin(async move { Ok(self.0.alias(other, digest).await?) })
    }

    fn aliased(&self, other: Sha512) -> BoxFuture<'_, io::Result<Option<Digest>>> {
        Box::pin(self.0.aliased(other))
    }

    fn aliases(&self, after: Option<Sha512>, limit: usize) -> BoxFuture<'_, io::Result<Vec<Sha512>>> {
        Box::pin(self.0.names("sha512/", after, limit, Sha512::hex, |name| Sha512::from_hex(name).ok()))
    }

    fn touch(&self, digest: Digest) -> BoxFuture<'_, io::Result<Option<u64>>> {
        Box::pin(self.0.touch(digest))
    }

    fn used(&self, digest: Digest) -> BoxFuture<'_, io::Result<Option<SystemTime>>> {
        Box::pin(self.0.used(digest))
    }

    fn remove(&self, digest: Digest, idle_since: Option<SystemTime>) -> BoxFuture<'_, io::Result<bool>> {
        Box::pin(self.0.remove(digest, idle_since))
    }

    fn damaged(&self) -> BoxFuture<'_, Vec<(Digest, Digest)>> {
        Box::pin(self.0.damaged())
    }

    fn damages(&self) -> u64 {
        self.0.damage.count()
    }
}

/// Runs disk work on a blocking thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}
