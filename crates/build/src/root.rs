//! Trees of Debian packages: roots of steps and lower layers of images.
//!
//! Packages are read in parallel and merged in memory, ordered by name, so the tree is a function
//! of the set and the ABI. No maintainer script runs; what scripts would have made is the link
//! table of [`crate::abi`]. A finished tree lies at `<cache>/roots/<digest of the set>`, written
//! aside and renamed, with its listing beside it. It is a cache: nothing is synced. Instead the
//! first use in a process compares every byte with the listing, later uses compare a rotating
//! window of names, `verify` compares everything; a tree that fails is made again from blobs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use adamant_digest::{Digest, Entry, EntryKind, Hasher, Tree, TreeError};
use adamant_fetch::archive::Limits;
use adamant_store::BlobStore;
use tokio::sync::Semaphore;

use crate::abi::{self, Kind};
use crate::archive::{ArchiveError, Item, Stage, read_deb};
use crate::layout::{Content, Layout, LayoutError, Node};
use crate::stream::{StreamError, with_blob};
use crate::write::{self, DiskError, Look};

/// Names looked at on each use after the first.
const WINDOW: usize = 256;
/// Bytes of a listing that are read back at most.
const MAX_LISTING: u64 = 256 << 20;

/// A package of a set: its name and version, and the blob of its `.deb`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deb {
    /// Debian package name.
    pub name: String,
    /// Debian version.
    pub version: String,
    /// Digest of the `.deb`.
    pub digest: Digest,
}

/// A package set, sorted, and what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageTree {
    kind: Kind,
    abi: u32,
    epoch: u64,
    packages: Vec<Deb>,
}

impl PackageTree {
    /// Of these packages in any order.
    pub fn new(kind: Kind, abi: u32, epoch: u64, mut packages: Vec<Deb>) -> Self {
        packages.sort();
        packages.dedup();
        Self { kind, abi, epoch, packages }
    }

    /// What decides the tree: ABI, purpose, epoch and the ordered packages. Known before anything
    /// is unpacked; part of build keys.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(b"adamant packages v1\n");
        hasher.update(format!("{} {} {}\n", self.kind.as_str(), self.abi, self.epoch).as_bytes());
        for Deb { name, version, digest } in &self.packages {
            hasher.update(format!("{} {name} {} {version} {digest}\n", name.len(), version.len()).as_bytes());
        }
        hasher.finish()
    }
}

/// A tree on disk, compared with its listing.
#[derive(Debug, Clone)]
pub struct Root {
    /// The directory.
    pub path: PathBuf,
    /// What is in it.
    pub tree: Arc<Tree>,
    /// Names that several packages carry with different bytes: path, kept, dropped.
    pub conflicts: Arc<Vec<Overlap>>,
}

/// A name that two packages carry, differing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// The path.
    pub path: String,
    /// The package whose file stays.
    pub kept: String,
    /// The package whose file is dropped.
    pub dropped: String,
}

/// Why a tree of packages is not there.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The blob of a package, or what is in it.
    #[error("package {name} {version}: {source}")]
    Package {
        /// Its name.
        name: String,
        /// Its version.
        version: String,
        /// What is wrong.
        #[source]
        source: Box<StreamError<ArchiveError>>,
    },
    /// Packages that do not fit together.
    #[error("package {name} does not fit beside the others: {source}")]
    Merge {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: LayoutError,
    },
    /// What the ABI adds does not fit.
    #[error("the packages leave no room for what the build ABI adds: {0}")]
    Abi(#[source] LayoutError),
    /// A path no tree can hold.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The cache directory.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Made, and yet not what was to be made: the disk or its memory is broken.
    #[error("{} does not hold what was just written into it: `{path_inside}` differs", path.display())]
    Unstable {
        /// The tree.
        path: PathBuf,
        /// First name that differs.
        path_inside: String,
    },
    /// A thread was lost.
    #[error("the worker thread ended early: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

/// The cache of package trees below one directory.
pub struct Roots {
    dir: PathBuf,
    blobs: Arc<dyn BlobStore>,
    cores: usize,
    /// Trees compared in this process, and one lock for each being made.
    known: Mutex<HashMap<Digest, Root>>,
    making: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    window: AtomicUsize,
}

impl Roots {
    /// Opens `<cache>/roots` and removes what a crash left half written.
    pub fn open(cache: &Path, blobs: Arc<dyn BlobStore>) -> Result<Self, DiskError> {
        let dir = cache.join("roots");
        fs::create_dir_all(&dir).map_err(DiskError::on("create", &dir))?;
        for entry in fs::read_dir(&dir).map_err(DiskError::on("read", &dir))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                write::remove(&entry.path())?;
            }
        }
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self { dir, blobs, cores, known: Mutex::default(), making: Mutex::default(), window: AtomicUsize::new(0) })
    }

    /// The tree of a set, made if it is not there or damaged.
    pub async fn assemble(&self, set: &PackageTree) -> Result<Root, RootError> {
        let digest = set.digest();
        let turn = {
            let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            making.retain(|_, turn| Arc::strong_count(turn) > 1);
            making.entry(digest).or_default().clone()
        };
        let _turn = turn.lock().await;
        let path = self.dir.join(digest.hex());
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned();
        if let Some(root) = known {
            let start = self.window.fetch_add(WINDOW, Ordering::Relaxed);
            let checked = tokio::task::spawn_blocking(move || glance(&root, start).map(|()| root)).await?;
            match checked {
                Ok(root) => return Ok(root),
                Err(name) => tracing::warn!(root = %digest, %name, "a cached root was altered; it is made again"),
            }
            self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
        } else if path.exists() {
            let (at, look, cores) = (path.clone(), Look::new(set.epoch), self.cores);
            match tokio::task::spawn_blocking(move || load(&at, look, cores)).await? {
                Ok(root) => return Ok(self.remember(digest, root)),
                Err(name) => tracing::warn!(root = %digest, %name, "a cached root is damaged; it is made again"),
            }
        }
        let root = self.make(set, &path).await?;
        Ok(self.remember(digest, root))
    }

    /// Compares every byte of every tree in the cache with its listing; damaged trees are removed,
    /// to be made again when they are wanted. Returns (trees, names of the damaged ones).
    pub async fn verify(&self) -> Result<(usize, Vec<String>), RootError> {
        let (dir, cores) = (self.dir.clone(), self.cores);
        let found = tokio::task::spawn_blocking(move || verify_all(&dir, cores)).await??;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(found)
    }

    fn remember(&self, digest: Digest, root: Root) -> Root {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, root.clone());
        root
    }

    async fn make(&self, set: &PackageTree, path: &Path) -> Result<Root, RootError> {
        let aside = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempdir_in(&self.dir)
            .map_err(DiskError::on("create a directory in", &self.dir))?;
        let (stage_dir, tree_dir) = (aside.path().join("stage"), aside.path().join("tree"));
        for dir in [&stage_dir, &tree_dir] {
            fs::create_dir(dir).map_err(DiskError::on("create", dir))?;
        }
        let unpacked = self.unpack(set, Arc::new(Stage::new(&stage_dir))).await?;
        let (kind, look, cores, path) = (set.kind, Look::new(set.epoch), self.cores, path.to_owned());
        let root = tokio::task::spawn_blocking(move || {
            let (layout, conflicts) = merge(kind, &unpacked)?;
            write::write(&layout, &tree_dir, look)?;
            let tree = layout.tree()?;
            let listing = aside.path().join("listing");
            fs::write(&listing, list(&tree, &conflicts)).map_err(DiskError::on("write", &listing))?;
            write::remove(&path)?;
            fs::rename(&listing, listing_of(&path)).map_err(DiskError::on("write", &path))?;
            fs::rename(&tree_dir, &path).map_err(DiskError::on("create", &path))?;
            if let Err(name) = compare(&path, &tree, look, cores) {
                return Err(RootError::Unstable { path, path_inside: name });
            }
            drop(aside);
            Ok(Root { path, tree: Arc::new(tree), conflicts: Arc::new(conflicts) })
        });
        root.await?
    }

    /// All packages, as many at once as there are cores.
    async fn unpack(&self, set: &PackageTree, stage: Arc<Stage>) -> Result<Vec<(String, Vec<Item>)>, RootError> {
        let slots = Arc::new(Semaphore::new(self.cores.max(1)));
        let mut tasks = tokio::task::JoinSet::new();
        for (index, deb) in set.packages.iter().cloned().enumerate() {
            let (slots, stage, blobs) = (slots.clone(), stage.clone(), self.blobs.clone());
            tasks.spawn(async move {
                let _slot = slots.acquire().await;
                let done = with_blob(&blobs, deb.digest, move |reader| read_deb(reader, &stage, &Limits::default()));
                match done.await {
                    Ok(items) => Ok((index, deb.name, items)),
                    Err(error) => {
                        Err(RootError::Package { name: deb.name, version: deb.version, source: Box::new(error) })
                    }
                }
            });
        }
        let mut done = BTreeMap::new();
        // Dropping the set on an error stops the others.
        while let Some(result) = tasks.join_next().await {
            let (index, name, items) = result??;
            done.insert(index, (name, items));
        }
        Ok(done.into_values().collect())
    }
}

const TEMPORARY: &str = ".tmp-";

fn listing_of(path: &Path) -> PathBuf {
    path.with_extension("list")
}

/// Lays packages over the skeleton in the order of their names. Directories and links go first,
/// so that files find their parents whichever package brings them. Of two files with one name
/// that differ, the last stays and the overlap is recorded; packages of one release that are
/// installed together have none.
fn merge(kind: Kind, packages: &[(String, Vec<Item>)]) -> Result<(Layout, Vec<Overlap>), RootError> {
    let mut layout = abi::skeleton(kind).map_err(RootError::Abi)?;
    let fixed: BTreeSet<String> = layout.iter().map(|(path, _)| path.to_owned()).collect();
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    let mut conflicts = Vec::new();
    for files in [false, true] {
        for (package, items) in packages {
            let wrap = |source| RootError::Merge { name: package.clone(), source };
            for item in items {
                if matches!(item.node, Node::File { .. }) != files {
                    continue;
                }
                let path = layout.resolve(&item.path, false).map_err(wrap)?;
                if path.is_empty() || fixed.contains(&path) {
                    continue;
                }
                match (layout.node(&path), &item.node) {
                    // A directory is satisfied by a directory or by a link to one, as dpkg does.
                    (Some(Node::Dir { .. } | Node::Link { .. }), Node::Dir { .. })
                    // A link or a file over a directory: the directory stays.
                    | (Some(Node::Dir { .. }), _) => continue,
                    (Some(there), new) if !same(there, new) => {
                        let dropped = owners.get(&path).cloned().unwrap_or_default();
                        conflicts.push(Overlap { path: path.clone(), kept: package.clone(), dropped });
                    }
                    _ => {}
                }
                layout.insert(&path, item.node.clone()).map_err(wrap)?;
                owners.insert(path, package.clone());
            }
        }
    }
    abi::finish(&mut layout).map_err(RootError::Abi)?;
    conflicts.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((layout, conflicts))
}

fn same(a: &Node, b: &Node) -> bool {
    match (a, b) {
        (Node::File { digest: a, .. }, Node::File { digest: b, .. }) => a == b,
        (Node::Link { target: a }, Node::Link { target: b }) => a == b,
        _ => false,
    }
}

/// What `update-ca-certificates` would have written: all certificates of ca-certificates, in
/// order of their names.
pub(crate) fn ca_bundle(layout: &Layout) -> Option<Vec<u8>> {
    let mut bundle = Vec::new();
    for (path, node) in layout.iter() {
        let certificate = path.starts_with("usr/share/ca-certificates/") && path.strip_suffix(".crt").is_some();
        if let (true, Node::File { content, .. }) = (certificate, node) {
            match content {
                Content::Bytes(bytes) => bundle.extend_from_slice(bytes),
                // Nobody's certificate has 16 KiB.
                Content::File(_) => continue,
            }
            if bundle.last() != Some(&b'\n') {
                bundle.push(b'\n');
            }
        }
    }
    (!bundle.is_empty()).then_some(bundle)
}

/// A listing: JSON lines, entries first, then overlaps.
fn list(tree: &Tree, conflicts: &[Overlap]) -> Vec<u8> {
    let mut text = String::new();
    for entry in tree.iter() {
        text.push_str(&serde_json::json!(entry).to_string());
        text.push('\n');
    }
    for Overlap { path, kept, dropped } in conflicts {
        text.push_str(&serde_json::json!({ "path": path, "kept": kept, "dropped": dropped }).to_string());
        text.push('\n');
    }
    text.into_bytes()
}

fn parse(text: &str) -> Option<(Tree, Vec<Overlap>)> {
    let (mut tree, mut conflicts) = (Tree::new(), Vec::new());
    for line in text.lines() {
        if line.starts_with('[') {
            let (path, entry): (String, Entry) = serde_json::from_str(line).ok()?;
            tree.insert(&path, entry).ok()?;
        } else {
            let value: serde_json::Value = serde_json::from_str(line).ok()?;
            let text = |name: &str| value.get(name).and_then(|value| value.as_str()).map(str::to_owned);
            conflicts.push(Overlap { path: text("path")?, kept: text("kept")?, dropped: text("dropped")? });
        }
    }
    Some((tree, conflicts))
}

/// Reads a listing and compares the whole tree; the name of what differs otherwise.
fn load(path: &Path, look: Look, cores: usize) -> Result<Root, String> {
    let listing = listing_of(path);
    let mut text = String::new();
    let read = File::open(&listing).and_then(|file| file.take(MAX_LISTING).read_to_string(&mut text));
    let (tree, conflicts) = read.ok().and_then(|_| parse(&text)).ok_or_else(|| listing.display().to_string())?;
    compare(path, &tree, look, cores)?;
    Ok(Root { path: path.to_owned(), tree: Arc::new(tree), conflicts: Arc::new(conflicts) })
}

fn verify_all(dir: &Path, cores: usize) -> Result<(usize, Vec<String>), RootError> {
    let (mut count, mut damaged) = (0, Vec::new());
    for entry in fs::read_dir(dir).map_err(DiskError::on("read", dir))?.flatten() {
        let path = entry.path();
        if Digest::from_hex(&entry.file_name().to_string_lossy()).is_err() {
            continue;
        }
        count += 1;
        let epoch = fs::symlink_metadata(&path).map_or(0, |meta| meta.mtime().try_into().unwrap_or(0));
        if let Err(name) = load(&path, Look::new(epoch), cores) {
            damaged.push(path.join(name).display().to_string());
            write::remove(&path)?;
        }
    }
    Ok((count, damaged))
}

/// Compares names, kinds, modes, times and all bytes of a directory with a tree, on all cores.
/// The first difference found is returned as its path.
fn compare(root: &Path, tree: &Tree, look: Look, cores: usize) -> Result<(), String> {
    let mut names = 0;
    count(root, &mut names, tree.len())?;
    if names != tree.len() {
        return Err(format!("{names} names instead of {}", tree.len()));
    }
    let entries: Vec<(&str, &Entry)> = tree.iter().collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let worker = || {
            let mut buffer = vec![0; 128 << 10];
            while let Some((path, entry)) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                if !matches(root, path, entry, look) || !bytes_match(root, path, entry, &mut buffer) {
                    return Err((*path).to_owned());
                }
            }
            Ok(())
        };
        let workers: Vec<_> = (0..cores.max(1)).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err("a thread".to_owned())))
    })
}

/// Counts names, so that nothing can be there besides the listing.
fn count(dir: &Path, names: &mut usize, limit: usize) -> Result<(), String> {
    let unreadable = |_| dir.display().to_string();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        *names += 1;
        if *names > limit {
            return Err(entry.path().display().to_string());
        }
        if entry.file_type().map_err(unreadable)?.is_dir() {
            count(&entry.path(), names, limit)?;
        }
    }
    Ok(())
}

fn matches(root: &Path, path: &str, entry: &Entry, look: Look) -> bool {
    let at = root.join(path);
    let Ok(meta) = fs::symlink_metadata(&at) else { return false };
    let kind = match &entry.kind {
        EntryKind::Dir => meta.is_dir(),
        EntryKind::File { size, .. } => meta.is_file() && meta.len() == *size,
        EntryKind::Symlink { target } => {
            meta.is_symlink() && fs::read_link(&at).is_ok_and(|found| found.as_os_str() == target.as_str())
        }
    };
    let mode = meta.is_symlink() || meta.permissions().mode() & 0o7777 == entry.mode;
    let owner = look.owner.is_none_or(|owner| (meta.uid(), meta.gid()) == owner);
    kind && mode && owner && u64::try_from(meta.mtime()) == Ok(look.epoch)
}

fn bytes_match(root: &Path, path: &str, entry: &Entry, buffer: &mut [u8]) -> bool {
    let EntryKind::File { digest, .. } = &entry.kind else { return true };
    let Ok(mut file) = File::open(root.join(path)) else { return false };
    let mut hasher = Hasher::new();
    loop {
        match file.read(buffer) {
            Ok(0) => return hasher.finish() == *digest,
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// A quick look at a rotating window of names, bytes included.
fn glance(root: &Root, start: usize) -> Result<(), String> {
    let epoch = fs::symlink_metadata(&root.path).map_err(|_| ".".to_owned())?.mtime();
    let look = Look::new(u64::try_from(epoch).unwrap_or(0));
    let mut buffer = vec![0; 64 << 10];
    let skip = if root.tree.is_empty() { 0 } else { start % root.tree.len() };
    for (path, entry) in root.tree.iter().skip(skip).take(WINDOW) {
        let small = !matches!(entry.kind, EntryKind::File { size, .. } if size > 1 << 20);
        if !matches(&root.path, path, entry, look) || (small && !bytes_match(&root.path, path, entry, &mut buffer)) {
            return Err(path.to_owned());
        }
    }
    Ok(())
}

impl Root {
    /// The tree as a layout over its files, to be packed: every byte is compared then.
    pub(crate) fn layout(&self) -> Result<Layout, LayoutError> {
        let mut layout = Layout::default();
        for (path, Entry { mode, kind }) in self.tree.iter() {
            let node = match kind {
                EntryKind::Dir => Node::Dir { mode: *mode },
                EntryKind::Symlink { target } => Node::Link { target: target.clone() },
                EntryKind::File { digest, size } => {
                    let content = Content::File(self.path.join(path));
                    Node::File { mode: *mode, digest: *digest, size: *size, content }
                }
            };
            layout.insert(path, node)?;
        }
        Ok(layout)
    }
}
