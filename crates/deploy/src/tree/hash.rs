//! The tree digest of a directory, read through its descriptor and never through links.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use adamant_digest::{Digest, Entry, EntryKind, Hasher, Tree};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

const MAX_DEPTH: usize = 200;
const MAX_ENTRIES: usize = 1_000_000;

/// What is on disk is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tree {expected} is damaged at `{path}`: {found}")]
pub struct Damage {
    /// The tree's name.
    pub expected: Digest,
    /// The first path that differs.
    pub path: String,
    /// What is there instead, in words.
    pub found: String,
}

/// Why a tree is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// Something differs.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// It could not be read.
    #[error("tree {tree}: {source}")]
    Io {
        /// The tree's name.
        tree: Digest,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

/// Opens a directory to hash and mount it through the descriptor.
pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Hashes the directory behind `root` and compares it with `expected`.
pub(crate) fn compare(root: impl AsFd, expected: &Tree) -> Result<(), HashError> {
    let digest = expected.digest();
    let damaged =
        |path: &str, found: String| HashError::Damaged(Damage { expected: digest, path: path.to_owned(), found });
    let found = match scan(root.as_fd()) {
        Ok(found) => found,
        Err(ScanError::Strange(path, what)) => return Err(damaged(&path, what)),
        Err(ScanError::Io(source)) => return Err(HashError::Io { tree: digest, source }),
    };
    let Some(path) = found.first_difference(expected) else { return Ok(()) };
    let words = match (found.entry(path), expected.entry(path)) {
        (None, _) => "it is missing".to_owned(),
        (Some(_), None) => "it does not belong there".to_owned(),
        (Some(a), Some(b)) if a.kind == b.kind => format!("mode {:04o}, expected {:04o}", a.mode, b.mode),
        (
            Some(Entry { kind: EntryKind::File { digest: a, .. }, .. }),
            Some(Entry { kind: EntryKind::File { digest: b, .. }, .. }),
        ) => {
            format!("{a}, expected {b}")
        }
        _ => "another kind of entry or another link".to_owned(),
    };
    Err(damaged(path, words))
}

enum ScanError {
    /// Something that no tree holds.
    Strange(String, String),
    Io(io::Error),
}

impl<E: Into<io::Error>> From<E> for ScanError {
    fn from(error: E) -> Self {
        Self::Io(error.into())
    }
}

fn scan(root: BorrowedFd<'_>) -> Result<Tree, ScanError> {
    let mut tree = Tree::new();
    scan_dir(root, "", 0, &mut tree, &mut vec![0; 256 * 1024])?;
    Ok(tree)
}

fn scan_dir(
    dir: BorrowedFd<'_>,
    prefix: &str,
    depth: usize,
    tree: &mut Tree,
    buffer: &mut [u8],
) -> Result<(), ScanError> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let raw = entry.file_name();
        if matches!(raw.to_bytes(), b"." | b"..") {
            continue;
        }
        let strange = |what: &str| ScanError::Strange(format!("{prefix}{}", raw.to_string_lossy()), what.to_owned());
        let name = raw.to_str().map_err(|_| strange("its name is not UTF-8"))?;
        if depth > MAX_DEPTH || tree.len() >= MAX_ENTRIES {
            return Err(strange("there are too many entries"));
        }
        let path = format!("{prefix}{name}");
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mut mode = stat.st_mode & 0o7777;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = rustix::fs::openat(dir, name, flags, Mode::empty())?;
                scan_dir(below.as_fd(), &format!("{path}/"), depth + 1, tree, buffer)?;
                EntryKind::Dir
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
                let (digest, size) = hash_file(std::fs::File::from(file), buffer)?;
                EntryKind::File { digest, size }
            }
            FileType::Symlink => {
                mode = 0o777;
                let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
                EntryKind::Symlink { target: target.into_string().map_err(|_| strange("its target is not UTF-8"))? }
            }
            _ => return Err(strange("it is a device, pipe or socket")),
        };
        tree.insert(&path, Entry { mode, kind }).map_err(|e| strange(&e.to_string()))?;
    }
    Ok(())
}

fn hash_file(mut file: std::fs::File, buffer: &mut [u8]) -> io::Result<(Digest, u64)> {
    let (mut hasher, mut size) = (Hasher::new(), 0);
    loop {
        let read = file.read(buffer)?;
        if read == 0 {
            return Ok((hasher.finish(), size));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
    }
}
