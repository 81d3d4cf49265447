//! Archives from the outside: tar, plain or packed with gzip or xz.
//!
//! Nothing is trusted: paths that leave, links that leave, devices, sparse files, absurd sizes
//! and ratios are refused by name. [`walk`] hands out entries and writes nothing;
//! [`extract`] writes into a fresh directory.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use tar::EntryType;

/// How much an archive may hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most entries.
    pub entries: u64,
    /// Most bytes of one file.
    pub file_bytes: u64,
    /// Most bytes of the unpacked archive.
    pub total_bytes: u64,
    /// Most unpacked bytes for each packed byte, counted once there are more than 16 MiB.
    pub ratio: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 500_000, file_bytes: 2 << 30, total_bytes: 8 << 30, ratio: 1000 }
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A file; its bytes come with it.
    File {
        /// Length in bytes.
        size: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Its text, as the archive has it: it may be absolute or climb.
        target: String,
    },
    /// Another name of an earlier file.
    Hardlink {
        /// Path of that file, relative and normal.
        target: String,
    },
}

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative path without `.`, `..` and empty parts.
    pub path: String,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// What it is.
    pub kind: Kind,
}

/// Why an archive was refused.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Neither tar nor packed in a known way.
    #[error("it is {0}, expected tar, plain or packed with gzip or xz")]
    Format(&'static str),
    /// Damaged, or the visitor failed.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// A path that leaves, or is no text.
    #[error("it holds `{0}`, which is not a path inside it")]
    Path(String),
    /// A link that leaves the directory it is unpacked into.
    #[error("its link `{path}` points outside, at `{target}`")]
    Link {
        /// The link.
        path: String,
        /// Where it points.
        target: String,
    },
    /// Devices, pipes, sparse files.
    #[error("its entry `{path}` is {kind}, which is not supported")]
    Entry {
        /// The entry.
        path: String,
        /// What it is.
        kind: String,
    },
    /// Beyond a bound.
    #[error("it holds more than {limit} {what}")]
    TooLarge {
        /// Entries, bytes, …
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// Two entries cannot both be there.
    #[error("its entries `{0}` collide")]
    Collision(String),
}

/// Calls `visit` for each entry of a tar stream; what `visit` does not read is skipped.
pub type Visit<'a> = dyn FnMut(&Entry, &mut dyn Read) -> Result<(), ArchiveError> + 'a;

/// Longest path or link text, in bytes.
const MAX_NAME: u64 = 4096;
/// Longest extended header, in bytes.
const MAX_EXTENDED: u64 = 1 << 20;
/// Unpacked bytes before the ratio counts.
const RATIO_FROM: u64 = 16 << 20;

/// Walks an archive, telling by its first bytes how it is packed.
pub fn walk(reader: impl Read, limits: &Limits, visit: &mut Visit<'_>) -> Result<(), ArchiveError> {
    let counted = Counted { inner: reader, count: std::rc::Rc::default() };
    let packed_bytes = counted.count.clone();
    let mut reader = BufReader::with_capacity(64 << 10, counted);
    let head = reader.fill_buf()?;
    let unpacked: Box<dyn Read + '_> = match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(reader)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => return Err(ArchiveError::Format("packed with zstd")),
        [b'B', b'Z', b'h', ..] => return Err(ArchiveError::Format("packed with bzip2")),
        [b'P', b'K', 3 | 5, ..] => return Err(ArchiveError::Format("a zip file")),
        [] => return Err(ArchiveError::Format("empty")),
        _ => Box::new(reader),
    };
    walk_tar(Bounded { inner: unpacked, packed_bytes, unpacked: 0, limits }, limits, visit)
}

/// Counts what is read of the packed stream.
struct Counted<R> {
    inner: R,
    count: std::rc::Rc<std::cell::Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.count.set(self.count.get() + read as u64);
        Ok(read)
    }
}

/// Stops a stream that unpacks to too much.
struct Bounded<'a, R> {
    inner: R,
    packed_bytes: std::rc::Rc<std::cell::Cell<u64>>,
    unpacked: u64,
    limits: &'a Limits,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.unpacked += read as u64;
        let ratio = self.packed_bytes.get().max(1).saturating_mul(self.limits.ratio);
        if self.unpacked > self.limits.total_bytes || (self.unpacked > RATIO_FROM && self.unpacked > ratio) {
            return Err(io::Error::other("it unpacks to more than is allowed"));
        }
        Ok(read)
    }
}

/// Names given by extended headers for the next entry.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

fn walk_tar(reader: impl Read, limits: &Limits, visit: &mut Visit<'_>) -> Result<(), ArchiveError> {
    let mut archive = tar::Archive::new(reader);
    let mut extended = Extended::default();
    let mut seen = 0;
    let mut any = false;
    // Raw, because the crate's own reading of long names is not bounded.
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        any = true;
        let kind = entry.header().entry_type();
        match kind {
            EntryType::GNULongName => {
                extended.path = Some(text(&mut entry)?);
                continue;
            }
            EntryType::GNULongLink => {
                extended.link = Some(text(&mut entry)?);
                continue;
            }
            EntryType::XHeader => {
                read_pax(&mut entry, &mut extended)?;
                continue;
            }
            EntryType::XGlobalHeader => continue,
            _ => {}
        }
        seen += 1;
        if seen > limits.entries {
            return Err(ArchiveError::TooLarge { what: "entries", limit: limits.entries });
        }
        let Extended { path, link } = std::mem::take(&mut extended);
        let path = path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let Some(path) = normal(&path)? else { continue };
        let link = link.or_else(|| entry.link_name_bytes().map(std::borrow::Cow::into_owned));
        let size = entry.header().entry_size()?;
        let kind = match kind {
            EntryType::Regular | EntryType::Continuous => {
                if size > limits.file_bytes {
                    return Err(ArchiveError::TooLarge { what: "bytes in one file", limit: limits.file_bytes });
                }
                Kind::File { size }
            }
            EntryType::Directory => Kind::Dir,
            EntryType::Symlink => Kind::Symlink { target: link_text(&path, link)? },
            EntryType::Link => {
                let target = link.ok_or_else(|| ArchiveError::Path(path.clone()))?;
                let target = normal(&target)?.ok_or_else(|| ArchiveError::Path(path.clone()))?;
                Kind::Hardlink { target }
            }
            other => {
                let kind = match other {
                    EntryType::Char | EntryType::Block => "a device".to_owned(),
                    EntryType::Fifo => "a pipe".to_owned(),
                    EntryType::GNUSparse => "a sparse file".to_owned(),
                    other => format!("of type {:?}", char::from(other.as_byte())),
                };
                return Err(ArchiveError::Entry { path, kind });
            }
        };
        let mode = entry.header().mode()? & 0o7777;
        visit(&Entry { path, mode, kind }, &mut entry)?;
    }
    if any { Ok(()) } else { Err(ArchiveError::Format("not tar")) }
}

fn text(entry: &mut impl Read) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = Vec::new();
    entry.take(MAX_NAME + 2).read_to_end(&mut bytes)?;
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    if bytes.len() as u64 > MAX_NAME {
        return Err(ArchiveError::TooLarge { what: "bytes in one path", limit: MAX_NAME });
    }
    Ok(bytes)
}

fn read_pax(entry: &mut impl Read, extended: &mut Extended) -> Result<(), ArchiveError> {
    let mut bytes = Vec::new();
    entry.take(MAX_EXTENDED + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_EXTENDED {
        return Err(ArchiveError::TooLarge { what: "bytes in one extended header", limit: MAX_EXTENDED });
    }
    for record in tar::PaxExtensions::new(&bytes) {
        let record = record?;
        match record.key_bytes() {
            b"path" => extended.path = Some(record.value_bytes().to_vec()),
            b"linkpath" => extended.link = Some(record.value_bytes().to_vec()),
            // The length would be another than the header's, which the rest relies on.
            b"size" => {
                return Err(ArchiveError::Entry {
                    path: "an extended header".into(),
                    kind: "a file of 8 GiB or more".into(),
                });
            }
            key if key.starts_with(b"GNU.sparse") => {
                return Err(ArchiveError::Entry { path: "an extended header".into(), kind: "a sparse file".into() });
            }
            _ => {}
        }
    }
    Ok(())
}

/// A path without `./` and `/` around; `None` for the root itself.
fn normal(path: &[u8]) -> Result<Option<String>, ArchiveError> {
    let bad =
        || ArchiveError::Path(String::from_utf8_lossy(path).chars().take(200).flat_map(char::escape_debug).collect());
    let text = std::str::from_utf8(path).map_err(|_| bad())?;
    if text.starts_with('/') || text.len() as u64 > MAX_NAME || text.contains('\0') {
        return Err(bad());
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.iter().any(|part| *part == ".." || part.len() > 255) {
        return Err(bad());
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

fn link_text(path: &str, link: Option<Vec<u8>>) -> Result<String, ArchiveError> {
    let bad = || ArchiveError::Path(path.to_owned());
    let text = String::from_utf8(link.ok_or_else(bad)?).map_err(|_| bad())?;
    if text.is_empty() || text.len() as u64 > MAX_NAME || text.contains('\0') {
        return Err(bad());
    }
    Ok(text)
}

/// Unpacks an archive into the directory `into`, which must be empty and in which nobody else
/// writes, without the first `strip` parts of each path. Files are `0644`, or `0755` if the
/// owner may execute them. Links must stay inside. Nothing is synced.
pub fn extract(reader: impl Read, into: &Path, strip: usize, limits: &Limits) -> Result<(), ArchiveError> {
    let mut tree = Extraction { into, links: BTreeSet::new() };
    walk(reader, limits, &mut |entry, bytes| {
        let stripped = |path: &str| path.splitn(strip + 1, '/').nth(strip).map(str::to_owned);
        let Some(path) = stripped(&entry.path) else { return Ok(()) };
        match &entry.kind {
            Kind::Dir => tree.dir(&path),
            Kind::File { size } => tree.file(&path, entry.mode, *size, bytes),
            Kind::Symlink { target } => tree.link(&path, target),
            Kind::Hardlink { target } => {
                let target = stripped(target)
                    .ok_or_else(|| ArchiveError::Link { path: path.clone(), target: target.clone() })?;
                tree.copy(&path, &target)
            }
        }
    })
}

struct Extraction<'a> {
    into: &'a Path,
    /// Symbolic links made so far: nothing is ever written through one.
    links: BTreeSet<String>,
}

impl Extraction<'_> {
    fn dir(&self, path: &str) -> Result<(), ArchiveError> {
        let mut so_far = String::new();
        for part in path.split('/') {
            if !so_far.is_empty() {
                so_far.push('/');
            }
            so_far.push_str(part);
            if self.links.contains(&so_far) {
                return Err(ArchiveError::Collision(path.to_owned()));
            }
        }
        fs::create_dir_all(self.into.join(path)).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => ArchiveError::Collision(path.to_owned()),
            _ => error.into(),
        })
    }

    /// Makes the parents and clears the place; a later entry replaces an earlier one.
    fn place(&mut self, path: &str) -> Result<std::path::PathBuf, ArchiveError> {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.dir(parent)?;
        }
        let place = self.into.join(path);
        match fs::remove_file(&place) {
            Ok(()) => drop(self.links.remove(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return Err(ArchiveError::Collision(path.to_owned())),
        }
        Ok(place)
    }

    fn file(&mut self, path: &str, mode: u32, size: u64, bytes: &mut dyn Read) -> Result<(), ArchiveError> {
        let place = self.place(path)?;
        let mode = if mode & 0o100 == 0 { 0o644 } else { 0o755 };
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(place)?;
        if io::copy(&mut bytes.take(size), &mut file)? != size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        // The umask may have taken bits away.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        Ok(())
    }

    fn link(&mut self, path: &str, target: &str) -> Result<(), ArchiveError> {
        // Depth below the root while following the text from the link's own directory.
        let mut depth = path.matches('/').count();
        let mut leaves = target.starts_with('/');
        for part in target.split('/') {
            match part {
                "" | "." => {}
                ".." if depth == 0 => leaves = true,
                ".." => depth -= 1,
                _ => depth += 1,
            }
        }
        if leaves {
            return Err(ArchiveError::Link { path: path.to_owned(), target: target.to_owned() });
        }
        let place = self.place(path)?;
        std::os::unix::fs::symlink(target, place)?;
        self.links.insert(path.to_owned());
        Ok(())
    }

    fn copy(&mut self, path: &str, target: &str) -> Result<(), ArchiveError> {
        let outside = || ArchiveError::Link { path: path.to_owned(), target: target.to_owned() };
        let parents: Vec<&str> = target.split('/').collect();
        let through_link = (1..=parents.len()).any(|n| self.links.contains(&parents[..n].join("/")));
        let from = self.into.join(target);
        if through_link || path == target || !fs::symlink_metadata(&from).map_err(|_| outside())?.is_file() {
            return Err(outside());
        }
        let place = self.place(path)?;
        fs::copy(from, place)?;
        Ok(())
    }
}
