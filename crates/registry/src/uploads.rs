//! Uploads that are not finished: one file each, which a restart finds again.
//!
//! The name of the file is the id and a digest of the repository, its length is the offset, and
//! the store hashes it when the upload is finished: there is no other state to lose. The file is
//! not synced: an upload is acknowledged as received, not as kept. The client that sends a blob
//! in one request never makes one.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use adamant_digest::Digest;
use adamant_oci::{ContentDigest, RepositoryName};
use adamant_store::{Upload, WriteBlobError};
use futures_util::TryStreamExt;
use tokio::sync::OwnedMutexGuard;
use tokio_util::io::ReaderStream;

use crate::Registry;
use crate::body::{BodyError, CHUNK, Incoming};
use crate::contents::{OverQuota, Room};
use crate::registry::{Clock, Limits, Misnamed, OutOfSpace, Second};

/// How long a request waits for another one that writes to the same upload: a client that lost
/// its connection is back before the server has noticed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the uploads that were under way cannot be found.
#[derive(Debug, thiserror::Error)]
#[error("the directory of uploads {} cannot be used: {source}", path.display())]
pub struct OpenUploadsError {
    /// The directory.
    pub path: PathBuf,
    /// What happened.
    #[source]
    pub source: io::Error,
}

/// Why an upload did not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error(
        "there is no upload `{0}` in this repository on this server: it was finished, cancelled or has expired, \
         or another server began it; start again"
    )]
    Unknown(String),
    #[error("another request is writing to upload `{0}`: ask for its status and go on from there")]
    Busy(String),
    #[error("{count} uploads are under way, the most that are borne: finish or cancel some")]
    TooMany { count: usize },
    #[error("the uploads under way hold {limit} bytes, the most that are borne: finish or cancel some")]
    Full { limit: u64 },
    #[error("the blob is longer than {limit} bytes, the most that is borne")]
    TooLarge { limit: u64 },
    #[error("the chunk starts at {start}, but the upload has {length} bytes")]
    OutOfOrder { start: u64, length: u64 },
    #[error("the chunk was announced with {declared} bytes and has {found}")]
    WrongLength { declared: u64, found: u64 },
    #[error("the blob is not what was announced: {0}")]
    Misnamed(#[from] Box<Misnamed>),
    #[error(transparent)]
    OverQuota(#[from] Box<OverQuota>),
    #[error(transparent)]
    OutOfSpace(#[from] OutOfSpace),
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error(transparent)]
    Write(#[from] WriteBlobError),
    #[error("the upload cannot be written: {0}")]
    Io(#[from] io::Error),
}

/// What holds while the bytes of one upload arrive.
pub(crate) struct Gate<'a> {
    pub(crate) registry: &'a Registry,
    /// What is left of the repository's quota, if it has one.
    pub(crate) room: Option<Room>,
}

impl Gate<'_> {
    /// Whether an upload may have `length` bytes.
    fn check(&self, length: u64) -> Result<(), UploadError> {
        let limit = self.registry.limits.blob_bytes;
        if length > limit {
            return Err(UploadError::TooLarge { limit });
        }
        self.registry.check_space()?;
        Ok(self.room.as_ref().map_or(Ok(()), |room| room.check(length))?)
    }
}

/// A chunk's place, from `Content-Range`: first byte and number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) start: u64,
    pub(crate) length: u64,
}

pub(crate) struct Uploads {
    directory: PathBuf,
    limits: Arc<Limits>,
    clock: Clock,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
    held: Arc<AtomicU64>,
}

struct Session {
    /// Who began it; `None`: somebody, before the last start of the server.
    owner: Option<Owner>,
    state: Arc<tokio::sync::Mutex<State>>,
}

/// A caller, by what the server knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Owner(Digest);

impl Owner {
    fn of(name: &str) -> Self {
        Self(Digest::of(name.as_bytes()))
    }
}

struct State {
    path: PathBuf,
    length: u64,
    touched: SystemTime,
    /// Removed while somebody waited for the lock.
    ended: bool,
}

/// An upload that this request alone may write to. It travels into blocking writes and back, so
/// that a request which is dropped half-way keeps the lock until its last write is over.
pub(crate) struct Held {
    key: String,
    state: OwnedMutexGuard<State>,
}

impl Held {
    pub(crate) fn length(&self) -> u64 {
        self.state.length
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = File::options().write(true).open(&self.state.path)?;
        file.write_all_at(bytes, self.state.length).inspect_err(|_| {
            // Best effort: what stands behind the length is overwritten by the next chunk.
            drop(file.set_len(self.state.length));
        })?;
        self.state.length += bytes.len() as u64;
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        File::options().write(true).open(&self.state.path)?.set_len(length)?;
        self.state.length = length;
        Ok(())
    }
}

impl Uploads {
    pub(crate) fn open(directory: PathBuf, limits: Arc<Limits>, clock: Clock) -> Result<Self, OpenUploadsError> {
        let (sessions, held) =
            scan(&directory, &limits).map_err(|source| OpenUploadsError { path: directory.clone(), source })?;
        Ok(Self { directory, limits, clock, sessions: Mutex::new(sessions), held: Arc::new(AtomicU64::new(held)) })
    }

    /// Begins an upload of `owner` and returns its id. When all places are taken, whoever has
    /// most of them gives one up for whoever has fewer.
    pub(crate) async fn start(&self, repository: &RepositoryName, owner: &str) -> Result<String, UploadError> {
        if self.count() >= self.limits.uploads {
            self.sweep().await;
            if self.count() >= self.limits.uploads {
                self.make_room(owner).await;
            }
        }
        let id = random_id()?;
        let key = key(repository, &id);
        let path = self.directory.join(&key);
        let state = State { path: path.clone(), length: 0, touched: (self.clock)(), ended: false };
        let state = Arc::new(tokio::sync::Mutex::new(state));
        let held = state.clone().try_lock_owned().map_err(io::Error::other)?;
        {
            let mut sessions = self.sessions();
            if sessions.len() >= self.limits.uploads {
                return Err(UploadError::TooMany { count: self.limits.uploads });
            }
            // Before the file is made: a request that is dropped meanwhile leaves an upload that
            // expires, and never a file that nobody knows.
            sessions.insert(key.clone(), Arc::new(Session { owner: Some(Owner::of(owner)), state }));
        }
        let created = blocking(move || {
            File::options().write(true).create_new(true).open(path)?;
            Ok(held)
        });
        match created.await {
            Ok(_) => Ok(id),
            Err(error) => {
                self.sessions().remove(&key);
                Err(error.into())
            }
        }
    }

    /// Ends the idlest upload of the owner who has most, if that is more than `owner` has.
    async fn make_room(&self, owner: &str) {
        let owner = Some(Owner::of(owner));
        let all: Vec<_> = self.sessions().iter().map(|(key, session)| (key.clone(), session.clone())).collect();
        let mut counts: HashMap<_, usize> = HashMap::new();
        for (_, session) in &all {
            *counts.entry(session.owner).or_default() += 1;
        }
        let own = counts.get(&owner).copied().unwrap_or_default();
        let Some((most, _)) =
            counts.into_iter().filter(|(of, count)| *of != owner && *count > own).max_by_key(|of| of.1)
        else {
            return;
        };
        // Whoever holds the lock is using it.
        let idlest = all
            .into_iter()
            .filter(|(_, session)| session.owner == most)
            .filter_map(|(key, session)| Some(Held { key, state: session.state.clone().try_lock_owned().ok()? }))
            .filter(|held| !held.state.ended)
            .min_by_key(|held| held.state.touched);
        if let Some(held) = idlest {
            tracing::info!(upload = held.key, "an idle upload made room for somebody who has fewer");
            self.remove(held).await;
        }
    }

    /// Takes an upload for this request alone.
    pub(crate) async fn take(&self, repository: &RepositoryName, id: &str) -> Result<Held, UploadError> {
        let unknown = || UploadError::Unknown(id.chars().take(64).collect());
        if id.len() != ID_LENGTH || !id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(unknown());
        }
        let key = key(repository, id);
        let session = self.sessions().get(&key).cloned().ok_or_else(unknown)?;
        let lock = tokio::time::timeout(PATIENCE, session.state.clone().lock_owned()).await;
        let mut state = lock.map_err(|_| UploadError::Busy(id.to_owned()))?;
        if state.ended {
            return Err(unknown());
        }
        state.touched = (self.clock)();
        Ok(Held { key, state })
    }

    /// Appends a body. What arrived before the connection broke stays, so that the client can
    /// go on from there; a chunk of another length than announced leaves nothing.
    pub(crate) async fn append(
        &self,
        mut held: Held,
        chunk: Option<Chunk>,
        body: &mut Incoming,
        gate: &Gate<'_>,
    ) -> Result<Held, UploadError> {
        let start = held.state.length;
        check_start(start, chunk)?;
        while let Some(bytes) = body.chunk().await? {
            let length = bytes.len() as u64;
            if let Some(Chunk { length: declared, .. }) = chunk
                && held.state.length + length > start + declared
            {
                let found = held.state.length + length - start;
                self.truncate(held, start).await?;
                return Err(UploadError::WrongLength { declared, found });
            }
            gate.check(held.state.length + length)?;
            if self.held.fetch_add(length, Ordering::Relaxed) + length > self.limits.upload_bytes {
                self.held.fetch_sub(length, Ordering::Relaxed);
                return Err(UploadError::Full { limit: self.limits.upload_bytes });
            }
            let total = self.held.clone();
            held = blocking(move || {
                held.write(&bytes).inspect_err(|_| {
                    total.fetch_sub(length, Ordering::Relaxed);
                })?;
                Ok(held)
            })
            .await?;
        }
        let found = held.state.length - start;
        if let Some(Chunk { length: declared, .. }) = chunk
            && declared != found
        {
            self.truncate(held, start).await?;
            return Err(UploadError::WrongLength { declared, found });
        }
        held.state.touched = (self.clock)();
        Ok(held)
    }

    async fn truncate(&self, mut held: Held, length: u64) -> Result<(), UploadError> {
        let less = held.state.length - length;
        blocking(move || held.truncate(length)).await?;
        self.held.fetch_sub(less, Ordering::Relaxed);
        Ok(())
    }

    /// Keeps what arrived and the rest in `body` as a blob. On success, and if the bytes are
    /// not what was announced, the upload is gone; otherwise it stays as it was.
    pub(crate) async fn finish(
        &self,
        held: Held,
        chunk: Option<Chunk>,
        body: &mut Incoming,
        expected: &ContentDigest,
        gate: &Gate<'_>,
    ) -> Result<Digest, UploadError> {
        check_start(held.state.length, chunk)?;
        gate.check(held.state.length)?;
        let blobs = &*gate.registry.blobs;
        let mut upload = blobs.upload().await?;
        let mut second = Second::of(expected);
        if held.state.length > 0 {
            let file = tokio::fs::File::open(&held.state.path).await?;
            let mut chunks = ReaderStream::with_capacity(tokio::io::AsyncReadExt::take(file, held.state.length), CHUNK);
            while let Some(bytes) = chunks.try_next().await? {
                second.update(&bytes);
                upload.write(bytes).await?;
            }
        }
        let outcome = receive(upload, second, chunk, body, expected, gate).await;
        let mismatch = UploadError::is_mismatch;
        if outcome.as_ref().map_or_else(mismatch, |_| true) {
            self.remove(held).await;
        }
        outcome
    }

    /// Forgets an upload and its bytes.
    pub(crate) async fn remove(&self, mut held: Held) {
        held.state.ended = true;
        self.held.fetch_sub(std::mem::take(&mut held.state.length), Ordering::Relaxed);
        let path = held.state.path.clone();
        match blocking(move || std::fs::remove_file(path)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // It keeps its place, so that the next sweep tries again; nobody else finds it.
                tracing::warn!(%error, path = %held.state.path.display(), "a finished upload cannot be removed");
            }
            _ => drop(self.sessions().remove(&held.key)),
        }
    }

    pub(crate) async fn sweep(&self) -> usize {
        let now = (self.clock)();
        let all: Vec<_> = self.sessions().iter().map(|(key, session)| (key.clone(), session.clone())).collect();
        let mut removed = 0;
        for (key, session) in all {
            // Whoever holds the lock is using it.
            let Ok(state) = session.state.clone().try_lock_owned() else { continue };
            let age = now.duration_since(state.touched).unwrap_or_default();
            if state.ended || age >= self.limits.upload_expiry {
                self.remove(Held { key, state }).await;
                removed += 1;
            }
        }
        removed
    }

    pub(crate) fn count(&self) -> usize {
        self.sessions().len()
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UploadError {
    /// Whether the bytes are not what was announced.
    fn is_mismatch(&self) -> bool {
        matches!(self, Self::Misnamed(_) | Self::Write(WriteBlobError::Mismatch(_)))
    }
}

/// Streams a body into the store, one write of its bytes, and gives the digest they are kept under.
/// `second` has seen what `upload` holds already.
pub(crate) async fn receive(
    mut upload: Box<dyn Upload>,
    mut second: Second,
    chunk: Option<Chunk>,
    body: &mut Incoming,
    expected: &ContentDigest,
    gate: &Gate<'_>,
) -> Result<Digest, UploadError> {
    let start = upload.len();
    while let Some(bytes) = body.chunk().await? {
        gate.check(upload.len() + bytes.len() as u64)?;
        second.update(&bytes);
        upload.write(bytes).await?;
    }
    let found = upload.len() - start;
    if let Some(Chunk { length: declared, .. }) = chunk
        && declared != found
    {
        return Err(UploadError::WrongLength { declared, found });
    }
    let other = second.check()?;
    let (digest, _) = upload.finish(expected.sha256().ok()).await?;
    if let Some(other) = other {
        gate.registry.blobs.alias(other, digest).await?;
    }
    Ok(digest)
}

/// distribution-spec 1.1, "Pushing a blob in chunks": chunks come in order.
fn check_start(length: u64, chunk: Option<Chunk>) -> Result<(), UploadError> {
    match chunk {
        Some(Chunk { start, .. }) if start != length => Err(UploadError::OutOfOrder { start, length }),
        _ => Ok(()),
    }
}

/// Hex digits of an id: 128 random bits.
const ID_LENGTH: usize = 32;

/// The name of the file. An upload is found only through the repository it was started in.
fn key(repository: &RepositoryName, id: &str) -> String {
    format!("{id}-{}", &Digest::of(repository.as_str().as_bytes()).hex()[..16])
}

fn is_key(name: &str) -> bool {
    name.len() == ID_LENGTH + 17 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'))
}

fn random_id() -> io::Result<String> {
    let mut raw = [0; ID_LENGTH / 2];
    let read = rustix::rand::getrandom(&mut raw[..], rustix::rand::GetRandomFlags::empty())?;
    if read < raw.len() {
        return Err(io::Error::other("the system has no randomness"));
    }
    Ok(u128::from_ne_bytes(raw)).map(|id| format!("{id:032x}"))
}

fn scan(directory: &PathBuf, limits: &Limits) -> io::Result<(HashMap<String, Arc<Session>>, u64)> {
    std::fs::create_dir_all(directory)?;
    let mut sessions = HashMap::new();
    let mut held = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let Some(name) = entry.file_name().to_str().filter(|name| is_key(name)).map(str::to_owned) else { continue };
        if !metadata.is_file() || sessions.len() >= limits.uploads {
            continue;
        }
        held += metadata.len();
        let state = State { path: entry.path(), length: metadata.len(), touched: metadata.modified()?, ended: false };
        sessions.insert(name, Arc::new(Session { owner: None, state: Arc::new(tokio::sync::Mutex::new(state)) }));
    }
    Ok((sessions, held))
}

/// Files are written off the async threads; the task is awaited, never left alone.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
