//! Reads tar archives into items: bytes go to numbered files of a staging directory, names stay
//! in memory. Nothing in an archive chooses where on the host anything is written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use adamant_digest::Hasher;

use crate::layout::{Content, Layout, LayoutError, Node, normal};

/// How much may come out of one archive.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveLimits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Names.
    pub entries: u64,
}

impl Default for ArchiveLimits {
    fn default() -> Self {
        Self { bytes: 8 << 30, entries: 400_000 }
    }
}

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The bytes are not what the format asks for, or could not be read.
    #[error("the archive cannot be read: {0}")]
    Read(#[source] io::Error),
    /// Ours: the staging directory.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// A name that cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A name that is not text.
    #[error("`{0}` is not UTF-8")]
    NotText(String),
    /// A device, a socket or another thing that no build needs.
    #[error("`{path}` is a {kind}; only files, directories and links are unpacked")]
    Kind {
        /// The entry.
        path: String,
        /// What it is.
        kind: String,
    },
    /// Too much.
    #[error("the archive holds more than {limit} {unit}")]
    TooLarge {
        /// The bound.
        limit: u64,
        /// What is counted.
        unit: &'static str,
    },
}

/// A directory for bytes whose place in a tree is not decided yet.
#[derive(Debug)]
pub(crate) struct Stage {
    dir: PathBuf,
    next: AtomicU64,
}

impl Stage {
    /// Uses `dir`, which exists, is empty and is removed by its owner.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), next: AtomicU64::new(0) }
    }

    /// Keeps the bytes of `reader`, at most `limit`; returns the node.
    pub(crate) fn keep(&self, mode: u32, reader: &mut impl Read, limit: u64) -> Result<Node, ArchiveError> {
        let mut buffer = vec![0; 16 << 10];
        let first = fill(reader, &mut buffer).map_err(ArchiveError::Read)?;
        if first < buffer.len() {
            // Small files, most of them, stay in memory: a root has tens of thousands.
            buffer.truncate(first);
            return if first as u64 > limit { Err(too_large(limit)) } else { Ok(Node::bytes(mode, buffer)) };
        }
        let path = self.dir.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let wrap = |source| ArchiveError::Write { path: path.clone(), source };
        let mut file = File::create_new(&path).map_err(wrap)?;
        let (mut hasher, mut size, mut filled) = (Hasher::new(), 0, first);
        while filled > 0 {
            size += filled as u64;
            if size > limit {
                return Err(too_large(limit));
            }
            hasher.update(&buffer[..filled]);
            file.write_all(&buffer[..filled]).map_err(wrap)?;
            filled = fill(reader, &mut buffer).map_err(ArchiveError::Read)?;
        }
        Ok(Node::File { mode, digest: hasher.finish(), size, content: Content::File(path) })
    }
}

fn too_large(limit: u64) -> ArchiveError {
    ArchiveError::TooLarge { limit, unit: "bytes" }
}

/// Reads until the buffer is full or the stream ends.
pub(crate) fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// One entry of an archive, in its order. Permissions are reduced to "may be run or not".
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) path: String,
    pub(crate) node: Node,
}

/// `0755` for directories and programs, `0644` for the rest: set-id bits, odd groups and private
/// files have no meaning in a tree that one unprivileged user reads.
pub(crate) const fn plain_mode(mode: u32) -> u32 {
    if mode & 0o111 == 0 { 0o644 } else { 0o755 }
}

/// Reads a whole tar stream, to its last byte, so that a verifying reader can refuse it.
/// `wanted` says which paths are kept.
pub(crate) fn read_tar(
    reader: impl Read,
    stage: &Stage,
    limits: ArchiveLimits,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Item>, ArchiveError> {
    let mut archive = tar::Archive::new(reader);
    let mut items = Vec::new();
    let mut files: BTreeMap<String, Node> = BTreeMap::new();
    let (mut count, mut bytes) = (0_u64, 0_u64);
    for entry in archive.entries().map_err(ArchiveError::Read)? {
        let mut entry = entry.map_err(ArchiveError::Read)?;
        count += 1;
        if count > limits.entries {
            return Err(ArchiveError::TooLarge { limit: limits.entries, unit: "entries" });
        }
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let path = normal(&text(&entry.path_bytes())?)?;
        let mode = entry.header().mode().map_err(ArchiveError::Read)?;
        let node = if kind.is_dir() {
            Node::Dir { mode: 0o755 }
        } else if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            let node = stage.keep(plain_mode(mode), &mut entry, limits.bytes - bytes)?;
            if let Node::File { size, .. } = &node {
                bytes += size;
            }
            files.insert(path.clone(), node.clone());
            node
        } else if kind.is_symlink() || kind.is_hard_link() {
            let target = text(&entry.link_name_bytes().unwrap_or_default())?;
            if kind.is_symlink() {
                Node::Link { target }
            } else {
                let missing = || LayoutError::HardLink { path: path.clone(), target: target.clone() };
                let node = files.get(&normal(&target)?).ok_or_else(missing)?.clone();
                files.insert(path.clone(), node.clone());
                node
            }
        } else {
            let kind = match kind {
                tar::EntryType::Char | tar::EntryType::Block => "device".to_owned(),
                tar::EntryType::Fifo => "fifo".to_owned(),
                other => format!("tar entry of type {:?}", char::from(other.as_byte())),
            };
            return Err(ArchiveError::Kind { path, kind });
        };
        if wanted(&path) {
            items.push(Item { path, node });
        }
    }
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(ArchiveError::Read)?;
    Ok(items)
}

fn text(bytes: &[u8]) -> Result<String, ArchiveError> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| ArchiveError::NotText(String::from_utf8_lossy(bytes).chars().take(200).collect()))
}

/// The items as a tree, later ones over earlier ones. With `strip`, a single directory that holds
/// everything is left out, as source archives have one.
pub(crate) fn layout(items: Vec<Item>, strip: bool) -> Result<Layout, LayoutError> {
    let mut tops = items.iter().filter(|item| !item.path.is_empty()).map(|item| {
        let (top, below) = item.path.split_once('/').unwrap_or((&item.path, ""));
        (top.to_owned(), !below.is_empty() || matches!(item.node, Node::Dir { .. }))
    });
    let first = tops.next();
    let single = first.filter(|(top, dir)| *dir && tops.all(|(other, dir)| other == *top && dir)).map(|(top, _)| top);
    let mut layout = Layout::default();
    for Item { path, node } in items {
        let path = match &single {
            Some(top) if strip => path.strip_prefix(top.as_str()).unwrap_or(&path).trim_start_matches('/').to_owned(),
            _ => path,
        };
        layout.insert(&path, node)?;
    }
    Ok(layout)
}

/// Opens what may be compressed: gzip, xz or neither, told by its first bytes.
pub(crate) fn decompress<'a>(mut reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0; 6];
    let filled = fill(&mut reader, &mut magic)?;
    let head = magic[..filled].to_vec();
    let whole = io::Cursor::new(head.clone()).chain(reader);
    Ok(if head.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::read::MultiGzDecoder::new(whole))
    } else if head.starts_with(b"\xfd7zXZ\0") {
        Box::new(liblzma::read::XzDecoder::new_multi_decoder(whole))
    } else {
        Box::new(whole)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn add(builder: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, link: &str, bytes: &[u8]) {
        let mut header = tar::Header::new_gnu();
        // Written past the checks of the library, as a hostile archive would be.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        builder.append(&header, bytes).unwrap();
    }

    fn read(bytes: &[u8], limits: ArchiveLimits) -> Result<Vec<Item>, ArchiveError> {
        let dir = tempfile::tempdir().unwrap();
        read_tar(bytes, &Stage::new(dir.path()), limits, |_| true)
    }

    #[test]
    fn reads_files_links_and_hard_links() {
        let bytes = tar(|b| {
            add(b, "./top/", tar::EntryType::Directory, "", b"");
            add(b, "./top/a", tar::EntryType::Regular, "", b"bytes");
            add(b, "./top/b", tar::EntryType::Link, "./top/a", b"");
            add(b, "./top/c", tar::EntryType::Symlink, "a", b"");
        });
        let items = read(&bytes, ArchiveLimits::default()).unwrap();
        let stripped = layout(items.clone(), true).unwrap();
        assert_eq!(stripped.iter().map(|(path, _)| path).collect::<Vec<_>>(), ["a", "b", "c"]);
        let Some(Node::File { mode, digest, .. }) = stripped.node("b") else { panic!("b is not a file") };
        assert_eq!((*mode, *digest), (0o755, adamant_digest::Digest::of(b"bytes")));
        assert!(layout(items, false).unwrap().node("top/a").is_some());
    }

    #[test]
    fn two_tops_are_not_stripped() {
        let bytes = tar(|b| {
            add(b, "x/a", tar::EntryType::Regular, "", b"1");
            add(b, "README", tar::EntryType::Regular, "", b"2");
        });
        let items = read(&bytes, ArchiveLimits::default()).unwrap();
        assert!(layout(items, true).unwrap().node("x/a").is_some());
    }

    #[test]
    fn refuses_what_leaves_and_what_is_no_file() {
        for (path, kind, link) in [
            ("../evil", tar::EntryType::Regular, ""),
            ("a/../../evil", tar::EntryType::Regular, ""),
            ("dev", tar::EntryType::Char, ""),
            ("pipe", tar::EntryType::Fifo, ""),
            ("hard", tar::EntryType::Link, "/etc/passwd"),
        ] {
            let bytes = tar(|b| add(b, path, kind, link, b""));
            assert!(read(&bytes, ArchiveLimits::default()).is_err(), "{path}");
        }
    }

    #[test]
    fn a_link_out_of_the_tree_leads_nowhere() {
        let bytes = tar(|b| {
            add(b, "out", tar::EntryType::Symlink, "/etc", b"");
            add(b, "out/evil", tar::EntryType::Regular, "", b"x");
        });
        let layout = layout(read(&bytes, ArchiveLimits::default()).unwrap(), false).unwrap();
        assert!(layout.node("etc/evil").is_some());
    }

    #[test]
    fn counts_bytes_and_entries() {
        let bytes = tar(|b| {
            for i in 0..5 {
                add(b, &format!("{i}"), tar::EntryType::Regular, "", &[b'x'; 1000]);
            }
        });
        assert!(read(&bytes, ArchiveLimits { bytes: 4999, entries: 5 }).is_err());
        assert!(read(&bytes, ArchiveLimits { bytes: 5000, entries: 4 }).is_err());
        assert!(read(&bytes, ArchiveLimits { bytes: 5000, entries: 5 }).is_ok());
    }
}
