//! Turns archives and packages into items: bytes go to numbered files of a staging directory, names stay
//! in memory. Nothing in an archive chooses where on the host anything is written.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use adamant_digest::Hasher;
use adamant_fetch::archive::{self, Entry, Limits};
use adamant_fetch::deb::{self, DebError};

use crate::abi;
use crate::layout::{Content, Layout, LayoutError, Node};

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// What is in it.
    #[error(transparent)]
    Archive(#[from] archive::ArchiveError),
    /// What is in a Debian package.
    #[error(transparent)]
    Deb(#[from] DebError),
    /// Its bytes cannot be read.
    #[error("it cannot be read: {0}")]
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
    /// Too much.
    #[error("it holds more than {0} bytes")]
    TooLarge(u64),
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
    pub(crate) fn keep(&self, mode: u32, reader: &mut (impl Read + ?Sized), limit: u64) -> Result<Node, ArchiveError> {
        let mut buffer = vec![0; 16 << 10];
        let first = fill(reader, &mut buffer).map_err(ArchiveError::Read)?;
        if first < buffer.len() {
            // Small files, most of them, stay in memory: a root has tens of thousands.
            buffer.truncate(first);
            return if first as u64 > limit {
                Err(ArchiveError::TooLarge(limit))
            } else {
                Ok(Node::bytes(mode, buffer))
            };
        }
        let path = self.dir.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let wrap = |source| ArchiveError::Write { path: path.clone(), source };
        let mut file = File::create_new(&path).map_err(wrap)?;
        let (mut hasher, mut size, mut filled) = (Hasher::new(), 0, first);
        while filled > 0 {
            size += filled as u64;
            if size > limit {
                return Err(ArchiveError::TooLarge(limit));
            }
            hasher.update(&buffer[..filled]);
            file.write_all(&buffer[..filled]).map_err(wrap)?;
            filled = fill(reader, &mut buffer).map_err(ArchiveError::Read)?;
        }
        Ok(Node::File { mode, digest: hasher.finish(), size, content: Content::File(path) })
    }
}

/// Reads until the buffer is full or the stream ends.
pub(crate) fn fill(reader: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
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

/// Reads an archive, packed or not, to its last byte, so that a verifying reader can refuse it.
pub(crate) fn read_tar(mut reader: impl Read, stage: &Stage, limits: &Limits) -> Result<Vec<Item>, ArchiveError> {
    let mut items = Collector { stage, wanted: |_| true, items: Vec::new(), files: HashMap::new(), failed: None };
    let walked = archive::walk(&mut reader, limits, &mut |entry, bytes| Ok(items.take(entry, bytes)?));
    items.finish(walked.map_err(ArchiveError::from), &mut reader)
}

/// Reads the files of a Debian package, as [`read_tar`] does.
pub(crate) fn read_deb(mut reader: impl Read, stage: &Stage, limits: &Limits) -> Result<Vec<Item>, ArchiveError> {
    let mut items = Collector { stage, wanted: abi::keeps, items: Vec::new(), files: HashMap::new(), failed: None };
    let read = deb::read(&mut reader, limits, &mut |entry, bytes| items.take(entry, bytes));
    items.finish(read.map_err(ArchiveError::from), &mut reader)
}

struct Collector<'a> {
    stage: &'a Stage,
    wanted: fn(&str) -> bool,
    items: Vec<Item>,
    /// Files so far, for hard links to them.
    files: HashMap<String, Node>,
    /// Our own reason to stop, which the walk can only carry as text.
    failed: Option<ArchiveError>,
}

impl Collector<'_> {
    fn take(&mut self, entry: &Entry, bytes: &mut dyn Read) -> io::Result<()> {
        self.add(entry, bytes).map_err(|error| {
            let text = error.to_string();
            self.failed = Some(error);
            io::Error::other(text)
        })
    }

    fn add(&mut self, entry: &Entry, bytes: &mut dyn Read) -> Result<(), ArchiveError> {
        let path = entry.path.clone();
        let node = match &entry.kind {
            archive::Kind::Dir => Node::Dir { mode: 0o755 },
            archive::Kind::File { size } => {
                let node = self.stage.keep(plain_mode(entry.mode), bytes, *size)?;
                self.files.insert(path.clone(), node.clone());
                node
            }
            archive::Kind::Symlink { target } => Node::Link { target: target.clone() },
            archive::Kind::Hardlink { target } => {
                let missing = || LayoutError::HardLink { path: path.clone(), target: target.clone() };
                let node = self.files.get(target).ok_or_else(missing)?.clone();
                self.files.insert(path.clone(), node.clone());
                node
            }
        };
        if (self.wanted)(&path) {
            self.items.push(Item { path, node });
        }
        Ok(())
    }

    fn finish(self, walked: Result<(), ArchiveError>, rest: &mut impl Read) -> Result<Vec<Item>, ArchiveError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        walked?;
        io::copy(rest, &mut io::sink()).map_err(ArchiveError::Read)?;
        Ok(self.items)
    }
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

    fn read(bytes: &[u8]) -> Result<Vec<Item>, ArchiveError> {
        let dir = tempfile::tempdir().unwrap();
        read_tar(bytes, &Stage::new(dir.path()), &Limits::default())
    }

    #[test]
    fn reads_files_links_and_hard_links() {
        let bytes = tar(|b| {
            add(b, "./top/", tar::EntryType::Directory, "", b"");
            add(b, "./top/a", tar::EntryType::Regular, "", b"bytes");
            add(b, "./top/b", tar::EntryType::Link, "./top/a", b"");
            add(b, "./top/c", tar::EntryType::Symlink, "a", b"");
        });
        let items = read(&bytes).unwrap();
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
        let items = read(&bytes).unwrap();
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
            assert!(read(&bytes).is_err(), "{path}");
        }
    }

    #[test]
    fn a_link_out_of_the_tree_leads_nowhere() {
        let bytes = tar(|b| {
            add(b, "out", tar::EntryType::Symlink, "/etc", b"");
            add(b, "out/evil", tar::EntryType::Regular, "", b"x");
        });
        let layout = layout(read(&bytes).unwrap(), false).unwrap();
        assert!(layout.node("etc/evil").is_some());
    }

    #[test]
    fn large_files_go_to_the_stage() {
        let dir = tempfile::tempdir().unwrap();
        let (stage, bytes) = (Stage::new(dir.path()), vec![7; 100_000]);
        let Node::File { content: Content::File(path), size, digest, .. } =
            stage.keep(0o644, &mut &bytes[..], 100_000).unwrap()
        else {
            panic!("not staged")
        };
        assert_eq!((std::fs::read(path).unwrap(), size), (bytes.clone(), 100_000));
        assert_eq!(digest, adamant_digest::Digest::of(&bytes));
        assert!(matches!(stage.keep(0o644, &mut &bytes[..], 99_999), Err(ArchiveError::TooLarge(99_999))));
    }

    #[test]
    fn a_package_is_read_without_its_manuals() {
        let data = tar(|b| {
            add(b, "./usr/bin/x", tar::EntryType::Regular, "", b"x");
            add(b, "./usr/share/man/man1/x.1", tar::EntryType::Regular, "", b"x");
        });
        let mut deb = b"!<arch>\n".to_vec();
        for (name, bytes) in [("debian-binary", &b"2.0\n"[..]), ("data.tar", &data)] {
            deb.extend_from_slice(
                format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, bytes.len()).as_bytes(),
            );
            deb.extend_from_slice(bytes);
        }
        let dir = tempfile::tempdir().unwrap();
        let items = read_deb(&deb[..], &Stage::new(dir.path()), &Limits::default()).unwrap();
        assert_eq!(items.iter().map(|item| item.path.as_str()).collect::<Vec<_>>(), ["usr/bin/x"]);
    }
}
