//! Blobs on local files: `<dir>/sha256/<first two hex digits>/<64 hex digits>`, mode 0444.
//!
//! Bytes arrive in `<dir>/tmp`, are hashed on the way, synced, and renamed to their name, whose
//! directory is synced before the write is acknowledged. A rename only ever puts checked bytes
//! under their own digest, so replacing a copy is harmless at any time: readers of a damaged one
//! keep what they have open, and a race of two writers ends with the same bytes.
//!
//! Plain file operations rather than `object_store`: its local files cannot hash while writing,
//! cannot tell a damaged copy from a right one, and cannot say which directory entry is durable.
//!
//! A sha512 is an entry `<dir>/sha512/<first two hex digits>/<128 hex digits>` that holds the sha256
//! of the same bytes.
//!
//! That is the *plain* form. A blob of 1 MiB or more that is like another one is stored as what differs
//! from it (see `pack`): a recipe `<dir>/patched/<xx>/<hex>` says where its bytes lie, in plain blobs and
//! in `<dir>/pieces`. Readers see no difference. Wrong bytes are moved aside (see `quarantine`).
//!
//! When a blob was last used is its file's time of modification (see `remove`).
//!
//! All disk work runs on blocking threads.

mod aliases;
mod blocks;
mod chunks;
mod content;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod likeness;
mod pack;
mod packing;
mod quarantine;
mod reader;
mod reading;
mod recipe;
mod refs;
mod rehome;
mod remove;
mod temp;
mod upload;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::SystemTime;

use adamant_digest::{Digest, DigestMismatch, Sha512, Verified};

use crate::{BlobStore, BoxFuture, ReadBlobError, Reader, Upload, WriteBlobError};
use content::Content;
pub use packing::Packing;
use quarantine::Quarantine;
use recipe::Place;
use temp::Temp;

/// Largest blob [`BlobStore::get`] reads into memory, in bytes; above it, use `open`.
pub const MAX_GET_BYTES: u64 = 256 << 20;

/// Up to this size, in bytes, `open` checks the whole blob before it gives the first byte.
const SMALL_BYTES: u64 = 1 << 20;

/// Bytes compared at a time.
const COMPARE_BYTES: usize = 256 << 10;

/// Blobs below one directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FsBlobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    entries: Mutex<Entries>,
    /// Taken for writing by who removes a name, for reading by who says that it is used.
    names: RwLock<()>,
    /// Who rests on what; `None` until it is asked for.
    refs: Mutex<Option<refs::Refs>>,
    /// Places that are being read.
    open: Mutex<HashMap<Place, Weak<File>>>,
    quarantine: Quarantine,
    /// By which blobs that were right are checked again.
    blocks: blocks::Blocks,
    reading: reading::Reading,
    queue: packing::Queue,
}

/// Which directory entries are known to be durable. A file that is visible may still be lost
/// with the power: put there by a process that died before it synced, or by a writer that is
/// about to. A repeated write may be acknowledged only after its directory was synced.
#[derive(Debug, Default)]
struct Entries {
    /// Shards synced since this store was opened.
    synced: HashSet<u8>,
    /// Renamed, not yet synced.
    unsettled: HashSet<Digest>,
    /// Directories of shards that were made or synced since then, in the other trees.
    made: HashSet<PathBuf>,
    /// Whose sync failed. The system may have dropped what it could not write and say yes the next
    /// time, so that only bytes written anew count.
    doubtful: HashSet<Digest>,
}

impl FsBlobs {
    /// Opens the store below `dir`, making what is missing, and removes what dead uploads left.
    /// Blocking; call it before the server starts or on a blocking thread.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let names = dir.join("sha256");
        let made = !names.is_dir();
        std::fs::create_dir_all(&names)?;
        for shard in 0..=u8::MAX {
            match std::fs::create_dir(names.join(format!("{shard:02x}"))) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        sync_dir(&names)?;
        let temp = dir.join("tmp");
        match std::fs::create_dir(&temp) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        sync_dir(dir)?;
        if let (true, Some(parent)) = (made, dir.parent().filter(|parent| !parent.as_os_str().is_empty())) {
            sync_dir(parent)?;
        }
        temp::sweep(&temp)?;
        Self::over(dir, false)
    }

    /// Opens the store below `dir` to look at it beside the server that owns it: nothing that is found
    /// wrong is moved, and nothing of the past is removed.
    pub fn observe(dir: &Path) -> io::Result<Self> {
        Self::over(dir, true)
    }

    fn over(dir: &Path, observing: bool) -> io::Result<Self> {
        let inner = Inner {
            dir: dir.to_owned(),
            entries: Mutex::default(),
            names: RwLock::default(),
            refs: Mutex::default(),
            open: Mutex::default(),
            quarantine: Quarantine::read(dir, observing)?,
            blocks: blocks::Blocks::default(),
            reading: reading::Reading::default(),
            queue: packing::Queue::default(),
        };
        // The wrong bytes of what was healed stay aside; that is no damage.
        for (digest, _) in inner.quarantine.all() {
            if inner.size(digest)?.is_some() {
                inner.quarantine.forget(digest);
            }
        }
        Ok(Self(Arc::new(inner)))
    }

    /// Files of wrong bytes that were moved aside and are kept, oldest first, with the blob or pieces
    /// they were taken for.
    pub fn aside(&self) -> io::Result<Vec<(PathBuf, Digest)>> {
        quarantine::aside(&self.0.dir)
    }

    /// Where the bytes of `digest` lie, whether they are there or not. For tools that report
    /// or mount a path; reading through it is unchecked.
    pub fn path(&self, digest: Digest) -> PathBuf {
        self.0.path(digest)
    }
}

impl Inner {
    fn path(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        let mut path = self.dir.join("sha256");
        path.push(&hex[..2]);
        path.push(hex);
        path
    }

    fn shard(&self, digest: Digest) -> PathBuf {
        self.dir.join("sha256").join(&digest.hex()[..2])
    }

    /// Opens the plain copy; `None` if there is none.
    fn stored(&self, digest: Digest) -> io::Result<Option<(File, u64)>> {
        let file = match no_follow().open(self.path(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
        }
        Ok(Some((file, meta.len())))
    }

    /// Whether the stored copy holds exactly the bytes that `right` reads. A copy that cannot be
    /// read at all (a directory or link in its place, an I/O error) counts as damaged.
    fn holds(&self, digest: Digest, size: u64, right: &mut dyn Read) -> io::Result<bool> {
        let Ok(Some(mut file)) = self.content(digest) else { return Ok(false) };
        if file.size != size {
            return Ok(false);
        }
        let mut here = vec![0; COMPARE_BYTES.min(usize::try_from(size).unwrap_or(COMPARE_BYTES)).max(1)];
        let mut there = here.clone();
        loop {
            let n = read_full(right, &mut there)?;
            let Ok(found) = read_full(&mut file, &mut here[..n.max(1)]) else { return Ok(false) };
            if found != n || here[..n] != there[..n] {
                return Ok(false);
            }
            if n == 0 {
                return Ok(true);
            }
        }
    }

    /// Makes sure that the entry of a blob found in place is durable.
    fn settle(&self, digest: Digest) -> io::Result<()> {
        let shard = digest.as_bytes()[0];
        {
            let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            if entries.synced.contains(&shard) && !entries.unsettled.contains(&digest) {
                return Ok(());
            }
        }
        // The file too: an earlier run may have been cut off anywhere, and a copy brought here
        // by hand was never synced.
        let synced = self.stored(digest)?.map_or(Ok(()), |(file, _)| file.sync_all());
        let synced = synced.and_then(|()| sync_dir(&self.shard(digest)));
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = synced {
            entries.doubtful.insert(digest);
            return Err(error);
        }
        entries.synced.insert(shard);
        entries.unsettled.remove(&digest);
        Ok(())
    }

    /// Counts on a blob that was found in place, once it is durable, and gives its length; `None` if it
    /// was removed meanwhile, or its sync failed.
    fn reuse(&self, digest: Digest) -> io::Result<Option<u64>> {
        if self.entries.lock().unwrap_or_else(PoisonError::into_inner).doubtful.contains(&digest) {
            return Ok(None);
        }
        let size = remove::touch(self, digest)?;
        if size.is_some() {
            self.settle(digest)?;
        }
        Ok(size)
    }

    /// Gives the checked bytes in `temp` their name, durably.
    fn keep(&self, temp: Temp, digest: Digest) -> io::Result<()> {
        let file = temp.file();
        // The bytes may have arrived long ago.
        remove::stamp(file)?;
        rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(0o444))?;
        file.sync_all()?;
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).unsettled.insert(digest);
        let (path, size) = (self.path(digest), file.metadata()?.len());
        // Whoever moves wrong bytes aside must not take these for them.
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        match temp.rename(&path) {
            // The shard was removed by hand, or something that is not a file lies there.
            Err((temp, error)) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(self.shard(digest))?;
                sync_dir(&self.dir.join("sha256"))?;
                temp.rename(&path).map_err(|(_, error)| error)?;
            }
            other => other.map_err(|(_, error)| error)?,
        }
        drop(names);
        if let Err(error) = sync_dir(&self.shard(digest)) {
            self.entries.lock().unwrap_or_else(PoisonError::into_inner).doubtful.insert(digest);
            return Err(error);
        }
        self.quarantine.heal(digest);
        self.queue.push(digest, size);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.unsettled.remove(&digest);
        entries.doubtful.remove(&digest);
        Ok(())
    }

    /// Makes the directory of a shard, durably, if it is not known to be. One that is there may have
    /// been made by a run that was cut off, or whose sync failed.
    fn make_dir(&self, shard: &Path) -> io::Result<()> {
        let entries = || self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries().made.contains(shard) && shard.try_exists()? {
            return Ok(());
        }
        std::fs::create_dir_all(shard)?;
        for dir in shard.ancestors().skip(1).take(2) {
            sync_dir(dir)?;
        }
        entries().made.insert(shard.to_owned());
        Ok(())
    }

    fn put(&self, bytes: &[u8], digest: Digest) -> io::Result<()> {
        if self.holds(digest, bytes.len() as u64, &mut &*bytes)? && self.reuse(digest)?.is_some() {
            return Ok(());
        }
        let mut temp = Temp::new(&self.dir.join("tmp"))?;
        io::Write::write_all(temp.file_mut(), bytes)?;
        self.keep(temp, digest)
    }

    fn get(&self, digest: Digest) -> Result<Verified, ReadBlobError> {
        let failed = |source| ReadBlobError::Io { digest, source };
        let mut content = self.readable(digest)?;
        let size = content.size;
        if size > MAX_GET_BYTES {
            let text = format!("{size} bytes do not fit into memory, open it as a stream");
            return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, text)));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
        // One byte more than the size: a copy that grows while it is read must not pass.
        (&mut content).take(size + 1).read_to_end(&mut bytes).map_err(failed)?;
        let right = Verified::check(digest, bytes).map_err(|source| self.corrupt(source, &content))?;
        self.quarantine.heal(digest);
        Ok(right)
    }

    /// Opens a blob to read it; an error if it is known to be damaged.
    fn readable(&self, digest: Digest) -> Result<Content, ReadBlobError> {
        let content = self.content(digest).map_err(|source| ReadBlobError::Io { digest, source })?;
        let known = |found| ReadBlobError::Corrupt {
            digest,
            path: self.dir.join("quarantine"),
            source: DigestMismatch { expected: digest, found },
        };
        match (content, self.quarantine.found(digest)) {
            (None, None) => Err(ReadBlobError::NotFound(digest)),
            (None, Some(found)) => Err(known(found)),
            (Some(_), Some(found)) if self.quarantine.holds_in_place(digest) => Err(known(found)),
            (Some(content), _) => Ok(content),
        }
    }

    fn corrupt(&self, source: DigestMismatch, content: &Content) -> ReadBlobError {
        let digest = source.expected;
        let path = self.path(digest);
        tracing::error!(%digest, found = %source.found, path = %path.display(), "blob is damaged");
        self.blame(&source, content);
        ReadBlobError::Corrupt { digest, path, source }
    }

    fn list(&self, after: Option<Digest>, limit: usize) -> io::Result<Vec<Digest>> {
        let mut digests = Vec::new();
        let first = after.map_or(0, |after| after.as_bytes()[0]);
        for shard in first..=u8::MAX {
            if digests.len() >= limit {
                break;
            }
            let mut here = Vec::new();
            self.shard_names("sha256", shard, &mut here)?;
            self.shard_names("patched", shard, &mut here)?;
            here.retain(|digest| Some(*digest) > after);
            here.sort_unstable();
            here.dedup();
            here.truncate(limit - digests.len());
            digests.append(&mut here);
        }
        Ok(digests)
    }
}

impl BlobStore for FsBlobs {
    fn put<'a>(&'a self, blob: &'a Verified) -> BoxFuture<'a, Result<(), WriteBlobError>> {
        let (inner, blob) = (Arc::clone(&self.0), blob.clone());
        Box::pin(async move { Ok(blocking(move || inner.put(blob.bytes(), blob.digest())).await??) })
    }

    fn get(&self, digest: Digest) -> BoxFuture<'_, Result<Verified, ReadBlobError>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            blocking(move || inner.get(digest)).await.map_err(|source| ReadBlobError::Io { digest, source })?
        })
    }

    fn open(&self, digest: Digest) -> BoxFuture<'_, Result<Reader, ReadBlobError>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            blocking(move || reader::open(&inner, digest))
                .await
                .map_err(|source| ReadBlobError::Io { digest, source })?
        })
    }

    fn size(&self, digest: Digest) -> BoxFuture<'_, Result<Option<u64>, ReadBlobError>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            blocking(move || inner.size(digest)).await.flatten().map_err(|source| ReadBlobError::Io { digest, source })
        })
    }

    fn upload(&self) -> BoxFuture<'_, Result<Box<dyn Upload>, WriteBlobError>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let upload = blocking(move || upload::FsUpload::new(inner)).await??;
            Ok(Box::new(upload) as Box<dyn Upload>)
        })
    }

    fn list(&self, after: Option<Digest>, limit: usize) -> BoxFuture<'_, Result<Vec<Digest>, ReadBlobError>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            blocking(move || inner.list(after, limit))
                .await
                .flatten()
                .map_err(|source| ReadBlobError::Io { digest: after.unwrap_or(Digest::from_bytes([0; 32])), source })
        })
    }

    fn alias(&self, other: Sha512, digest: Digest) -> BoxFuture<'_, Result<(), WriteBlobError>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { Ok(blocking(move || aliases::put(&inner, other, digest)).await??) })
    }

    fn aliased(&self, other: Sha512) -> BoxFuture<'_, io::Result<Option<Digest>>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { blocking(move || aliases::get(&inner, other)).await.flatten() })
    }

    fn aliases(&self, after: Option<Sha512>, limit: usize) -> BoxFuture<'_, io::Result<Vec<Sha512>>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { blocking(move || aliases::list(&inner, after, limit)).await.flatten() })
    }

    fn touch(&self, digest: Digest) -> BoxFuture<'_, io::Result<Option<u64>>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { blocking(move || inner.reuse(digest)).await.flatten() })
    }

    fn used(&self, digest: Digest) -> BoxFuture<'_, io::Result<Option<SystemTime>>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { blocking(move || remove::used(&inner, digest)).await.flatten() })
    }

    fn remove(&self, digest: Digest, idle_since: Option<SystemTime>) -> BoxFuture<'_, io::Result<bool>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { blocking(move || remove::remove(&inner, digest, idle_since)).await.flatten() })
    }

    fn damaged(&self) -> BoxFuture<'_, Vec<(Digest, Digest)>> {
        Box::pin(std::future::ready(self.0.quarantine.all()))
    }

    fn damages(&self) -> u64 {
        self.0.quarantine.count()
    }
}

/// Runs disk work on a blocking thread. It runs to its end even if the caller leaves.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

fn no_follow() -> std::fs::OpenOptions {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).custom_flags(
        i32::try_from((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits()).unwrap_or_default(),
    );
    options
}

/// Reads until `buffer` is full or the input ends.
fn read_full(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Whether a regular file lies at `path`. What cannot be looked at is an error, and not a file that is
/// missing: nothing may be given up for it.
fn is_file(path: &Path) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) => Ok(meta.is_file()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[tokio::test]
    async fn what_could_not_be_synced_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let store = FsBlobs::open(dir.path()).unwrap();
        let blob = Verified::hash(b"blob".to_vec());
        let digest = blob.digest();
        let inode = || std::fs::metadata(store.path(digest)).unwrap().ino();
        store.put(&blob).await.unwrap();
        let first = inode();
        store.put(&blob).await.unwrap();
        assert_eq!(inode(), first);

        store.0.entries.lock().unwrap().doubtful.insert(digest);
        assert_eq!(store.touch(digest).await.unwrap(), None, "nobody may count on it");
        store.put(&blob).await.unwrap();
        assert_ne!(inode(), first);
        assert_eq!(store.touch(digest).await.unwrap(), Some(4));
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_taken_for_missing() {
        let dir = tempfile::tempdir().unwrap();
        let store = FsBlobs::open(dir.path()).unwrap();
        let digest = Digest::of(b"blob");
        let place = Place { kind: recipe::Kind::Pieces, digest };
        assert!(!store.0.are_there(&[place]).unwrap());
        assert_eq!(store.0.size(digest).unwrap(), None);
        // No user may look behind a file as if it were a directory, root neither.
        std::fs::write(dir.path().join("pieces"), b"").unwrap();
        assert!(store.0.are_there(&[place]).is_err());
        std::fs::write(dir.path().join("patched"), b"").unwrap();
        assert!(store.0.size(digest).is_err());
        assert!(store.0.content(digest).is_err());
    }
}
