//! Unpacked artifacts, named by their tree digest.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use adamant_digest::{Digest, Entry, Tree};
use adamant_store::{BlobStore, ReadBlobError, Reader};
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

use super::hash::HashError;
use super::image::{ImageConfig, ImageError, Layer, MAX_JSON_BYTES, Manifest};
use super::overlay::Overlay;
use crate::durable;

/// Most bytes of the list of a tree.
const MAX_LISTING_BYTES: u64 = 256 << 20;

/// Directories of unpacked artifacts: `<tree digest hex>/` beside its list `<hex>.json`.
///
/// The list hashes to the name, so whoever checks a directory needs to trust nothing but the
/// name; and the name is computed from verified blobs, never from what is on disk.
pub struct Trees {
    dir: PathBuf,
    blobs: Arc<dyn BlobStore>,
    owner: Option<(u32, u32)>,
    known: Mutex<HashMap<Digest, Arc<Unpacked>>>,
}

/// An artifact that was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Digest of its tree.
    pub tree: Digest,
    /// How it is started.
    pub config: ImageConfig,
    /// Exact bytes of the manifest.
    pub manifest_bytes: Vec<u8>,
    /// Exact bytes of the configuration the manifest names.
    pub config_bytes: Vec<u8>,
}

/// Why an artifact was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// A blob is missing or damaged.
    #[error(transparent)]
    Blob(#[from] ReadBlobError),
    /// It is not an image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A layer holds what cannot be unpacked, or cannot be read.
    #[error("layer {layer} of {manifest}: {source}")]
    Layer {
        /// The layer.
        layer: Digest,
        /// The artifact.
        manifest: Digest,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The directory of trees.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

impl Trees {
    /// Trees below `dir`. `owner`: host ids the files shall belong to, `None` for one's own.
    pub fn new(dir: PathBuf, blobs: Arc<dyn BlobStore>, owner: Option<(u32, u32)>) -> Self {
        Self { dir, blobs, owner, known: Mutex::default() }
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Unpacks an artifact, if it is not there yet, and returns its tree digest as computed from
    /// verified bytes in this process. Durable on return. What is on disk already is not read:
    /// whoever starts it does that.
    pub async fn ensure(&self, manifest: Digest) -> Result<Arc<Unpacked>, UnpackError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&manifest).cloned();
        if let Some(known) = known
            && self.dir.join(known.tree.hex()).is_dir()
        {
            return Ok(known);
        }
        let raw = self.json(manifest).await?;
        let parsed = Manifest::parse(manifest, &raw)?;
        let config_bytes = self.json(parsed.config).await?;
        let config = ImageConfig::parse(parsed.config, &config_bytes)?;
        // The hint only saves writing a tree that is there; it decides nothing.
        let hint = self.dir.join(format!("{}.manifest", manifest.hex()));
        let hinted = durable::read(&hint, 200).ok().and_then(|b| String::from_utf8(b).ok()?.parse::<Digest>().ok());
        let mut tree = None;
        if let Some(hinted) = hinted
            && self.dir.join(hinted.hex()).is_dir()
        {
            let found = self.read_layers(manifest, &parsed.layers, None).await?;
            tree = (found == hinted).then_some(found);
        }
        let tree = match tree {
            Some(tree) => tree,
            None => self.read_layers(manifest, &parsed.layers, Some(hint)).await?,
        };
        let unpacked = Arc::new(Unpacked { manifest, tree, config, manifest_bytes: raw, config_bytes });
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(manifest, unpacked.clone());
        Ok(unpacked)
    }

    /// Moves a damaged tree aside (keeping the newest such copy) and unpacks it again.
    pub async fn heal(&self, manifest: Digest) -> Result<Arc<Unpacked>, UnpackError> {
        let unpacked = self.ensure(manifest).await?;
        let place = self.dir.join(unpacked.tree.hex());
        let aside = self.dir.join(format!(".damaged-{}", unpacked.tree.hex()));
        let listing = listing_path(&self.dir, unpacked.tree);
        let at = place.clone();
        blocking(move || {
            durable::remove_dir(&aside)?;
            std::fs::rename(&place, &aside)?;
            match std::fs::remove_file(listing) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            }
        })
        .await
        .map_err(|source| UnpackError::Io { path: at, source })?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(&manifest);
        self.ensure(manifest).await
    }

    /// Compares the tree of an artifact on disk with its verified blobs.
    pub async fn check(&self, manifest: Digest) -> Result<Result<(), HashError>, UnpackError> {
        let unpacked = self.ensure(manifest).await?;
        let (dir, tree) = (self.dir.clone(), unpacked.tree);
        let check = move || Ok(verify(&dir, tree).map(drop));
        blocking(check).await.map_err(|source| UnpackError::Io { path: self.dir.clone(), source })
    }

    async fn json(&self, digest: Digest) -> Result<Vec<u8>, UnpackError> {
        let size = self.blobs.size(digest).await?.ok_or(ReadBlobError::NotFound(digest))?;
        if size > MAX_JSON_BYTES {
            return Err(
                ImageError::Malformed { digest, reason: format!("{size} bytes, at most {MAX_JSON_BYTES}") }.into()
            );
        }
        Ok(self.blobs.get(digest).await?.into_bytes())
    }

    /// Computes the tree digest; with a hint to write, also unpacks.
    async fn read_layers(
        &self,
        manifest: Digest,
        layers: &[Layer],
        hint: Option<PathBuf>,
    ) -> Result<Digest, UnpackError> {
        let mut readers = Vec::with_capacity(layers.len());
        let mut pumps = Vec::with_capacity(layers.len());
        for layer in layers {
            let (sender, receiver) = mpsc::channel(8);
            readers.push((*layer, ChannelReader { receiver, chunk: Bytes::new() }));
            pumps.push((layer.digest, sender));
        }
        let (dir, owner) = (self.dir.clone(), self.owner);
        let work = tokio::task::spawn_blocking(move || unpack(&dir, manifest, readers, hint.as_deref(), owner));
        for (digest, sender) in pumps {
            // A closed channel means that the other side has failed: its error says more.
            match self.blobs.open(digest).await {
                Ok(reader) => pump(reader, sender).await,
                Err(error) => {
                    drop(sender);
                    let _ = work.await;
                    return Err(error.into());
                }
            }
        }
        work.await.map_err(|e| UnpackError::Io { path: self.dir.clone(), source: io::Error::other(e) })?
    }
}

/// Compares the unpacked tree called `tree` below `dir` with its name. Changes nothing.
pub fn check_tree(dir: &Path, tree: Digest) -> Result<(), HashError> {
    verify(dir, tree).map(drop)
}

/// Opens the tree called `tree`, hashes it through the descriptor and returns that descriptor.
pub(crate) fn verify(dir: &Path, tree: Digest) -> Result<std::os::fd::OwnedFd, HashError> {
    let io = |source| HashError::Io { tree, source };
    let listing: BTreeMap<String, Entry> = durable::read_json(&listing_path(dir, tree), MAX_LISTING_BYTES)
        .map_err(io)?
        .ok_or_else(|| io(io::Error::new(io::ErrorKind::NotFound, "its list is missing")))?;
    let mut expected = Tree::new();
    for (path, entry) in listing {
        expected.insert(&path, entry).map_err(|e| io(io::Error::new(io::ErrorKind::InvalidData, e)))?;
    }
    if expected.digest() != tree {
        let path = format!("{}.json", tree.hex());
        return Err(
            super::Damage { expected: tree, path, found: "the list of its files was changed".to_owned() }.into()
        );
    }
    let root = super::open_dir(&dir.join(tree.hex())).map_err(io)?;
    super::compare(&root, &expected)?;
    Ok(root)
}

fn listing_path(dir: &Path, tree: Digest) -> PathBuf {
    dir.join(format!("{}.json", tree.hex()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

async fn pump(mut reader: Reader, sender: mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let mut chunk = BytesMut::with_capacity(128 * 1024);
        match reader.bytes.read_buf(&mut chunk).await {
            Ok(0) => return,
            Ok(_) => {
                if sender.send(Ok(chunk.freeze())).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let _ = sender.send(Err(error)).await;
                return;
            }
        }
    }
}

fn unpack(
    dir: &Path,
    manifest: Digest,
    layers: Vec<(Layer, ChannelReader)>,
    hint: Option<&Path>,
    owner: Option<(u32, u32)>,
) -> Result<Digest, UnpackError> {
    let io_at = |source| UnpackError::Io { path: dir.to_owned(), source };
    let temp = match hint {
        Some(_) => Some(tempfile::Builder::new().prefix(".new-").tempdir_in(dir).map_err(io_at)?),
        None => None,
    };
    let objects = temp.as_ref().map(|temp| temp.path().join("objects"));
    if let Some(objects) = &objects {
        std::fs::create_dir(objects).map_err(io_at)?;
    }
    let mut overlay = Overlay::default();
    for (layer, reader) in layers {
        let failed = |source| UnpackError::Layer { layer: layer.digest, manifest, source };
        add(&mut overlay, layer.gzip, reader, objects.as_deref()).map_err(failed)?;
    }
    for (path, mode) in [("proc", 0o755), ("dev", 0o755), ("tmp", 0o1777)] {
        overlay.mount_point(path, mode).map_err(io_at)?;
    }
    let tree = overlay.tree().map_err(io_at)?;
    let digest = tree.digest();
    if let (Some(temp), Some(objects), Some(hint)) = (temp, objects, hint) {
        keep(dir, temp.path(), &objects, &overlay, &tree, owner).map_err(io_at)?;
        durable::write(hint, digest.to_string().as_bytes()).map_err(io_at)?;
    }
    Ok(digest)
}

/// Reads a layer to its very end: the last bytes of a verified stream tell whether it is right.
fn add(overlay: &mut Overlay, gzip: bool, mut reader: ChannelReader, objects: Option<&Path>) -> io::Result<()> {
    if !gzip {
        return overlay.add(reader, objects);
    }
    overlay.add(flate2::read::MultiGzDecoder::new(&mut reader), objects)?;
    io::copy(&mut reader, &mut io::sink()).map(drop)
}

/// Lays out, syncs and renames: a tree is there as a whole or not at all.
fn keep(
    dir: &Path,
    temp: &Path,
    objects: &Path,
    overlay: &Overlay,
    tree: &Tree,
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    let digest = tree.digest();
    let root = temp.join("root");
    std::fs::create_dir(&root)?;
    overlay.lay_out(&root, objects, owner)?;
    rustix::fs::syncfs(std::fs::File::open(&root)?)?;
    let listing: BTreeMap<&str, &Entry> = tree.iter().collect();
    durable::write_json(&listing_path(dir, digest), &listing)?;
    let place = dir.join(digest.hex());
    match std::fs::rename(&root, &place) {
        // Somebody else was faster; a tree that is there is checked at start, not here.
        Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
            durable::remove_dir(&root)?;
        }
        other => other?,
    }
    durable::sync_dir(dir)
}

/// The bytes of an asynchronous reader on a blocking thread.
struct ChannelReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let most = self.chunk.len().min(buffer.len());
        buffer[..most].copy_from_slice(&self.chunk.split_to(most));
        Ok(most)
    }
}
