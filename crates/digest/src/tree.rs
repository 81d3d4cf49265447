//! The digest of a directory tree: what is in it, without owners, times or inode numbers.
//!
//! Shape hashed (version 1): the line `adamant tree v1\n`, then for each entry in byte order of
//! its path one record `<kind> <mode octal, 4 digits> <path length> <path> <payload>\n`, where
//! kind is `d`, `f` or `l`, and payload is `-` for directories, `<digest> <size>` for files and
//! `<target length> <target>` for symbolic links. Lengths make the record unambiguous for any
//! byte a path may hold.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, Hasher};

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Digest of its bytes.
        digest: Digest,
        /// Length in bytes.
        size: u64,
    },
    /// A symbolic link.
    Symlink {
        /// The text of the link, never followed here.
        target: String,
    },
}

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Permission bits, `0o7777` at most; symbolic links have `0o777`.
    pub mode: u32,
    /// What it is.
    pub kind: EntryKind,
}

/// A tree by relative, `/`-separated paths. The root itself has no entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree(BTreeMap<String, Entry>);

/// Why an entry does not fit into a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Absolute, empty, with `.`, `..`, an empty component or a NUL byte, or over 4096 bytes.
    #[error("`{0}` is not a relative path inside a tree")]
    BadPath(String),
    /// Mode bits outside `0o7777`.
    #[error("`{path}` has mode {mode:o}, above 7777")]
    BadMode {
        /// The entry.
        path: String,
        /// Its mode.
        mode: u32,
    },
}

/// Whether `path` is relative, `/`-separated, and names something strictly inside a tree.
fn inside(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 4096
        && !path.contains('\0')
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

impl Tree {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces the entry at `path`.
    pub fn insert(&mut self, path: &str, entry: Entry) -> Result<(), TreeError> {
        if !inside(path) {
            return Err(TreeError::BadPath(path.chars().take(200).collect()));
        }
        if entry.mode > 0o7777 {
            return Err(TreeError::BadMode { path: path.to_owned(), mode: entry.mode });
        }
        self.0.insert(path.to_owned(), entry);
        Ok(())
    }

    /// Entries in byte order of their paths.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.0.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// The entry at `path`.
    pub fn entry(&self, path: &str) -> Option<&Entry> {
        self.0.get(path)
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The digest of the whole tree.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(b"adamant tree v1\n");
        for (path, Entry { mode, kind }) in &self.0 {
            let (letter, payload) = match kind {
                EntryKind::Dir => ('d', "-".to_owned()),
                EntryKind::File { digest, size } => ('f', format!("{digest} {size}")),
                EntryKind::Symlink { target } => ('l', format!("{} {target}", target.len())),
            };
            hasher.update(format!("{letter} {mode:04o} {} {path} {payload}\n", path.len()).as_bytes());
        }
        hasher.finish()
    }

    /// The first path at which two trees differ, for error messages.
    pub fn first_difference<'a>(&'a self, other: &'a Self) -> Option<&'a str> {
        let here = self.0.iter().find(|(path, entry)| other.0.get(*path) != Some(entry));
        let there = other.0.iter().find(|(path, _)| !self.0.contains_key(*path));
        match (here, there) {
            (Some((a, _)), Some((b, _))) => Some(if a < b { a } else { b }),
            (a, b) => a.or(b).map(|(path, _)| path.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> Entry {
        let kind = EntryKind::File { digest: Digest::of(bytes), size: bytes.len() as u64 };
        Entry { mode: 0o644, kind }
    }

    #[test]
    fn golden() {
        let mut tree = Tree::new();
        tree.insert("bin", Entry { mode: 0o755, kind: EntryKind::Dir }).unwrap();
        tree.insert("bin/a", file(b"a")).unwrap();
        let link = EntryKind::Symlink { target: "a".into() };
        tree.insert("bin/b", Entry { mode: 0o777, kind: link }).unwrap();
        assert_eq!(
            tree.digest().to_string(),
            "sha256:46a233ef4dcb6dd2d0fc868de29c53a3f97b2bdd16117f4fcbdcc012f9013930",
        );
    }

    #[test]
    fn order_of_insertion_does_not_matter_but_content_does() {
        let (mut a, mut b) = (Tree::new(), Tree::new());
        a.insert("x", file(b"1")).unwrap();
        a.insert("y", file(b"2")).unwrap();
        b.insert("y", file(b"2")).unwrap();
        b.insert("x", file(b"1")).unwrap();
        assert_eq!(a.digest(), b.digest());
        b.insert("x", file(b"3")).unwrap();
        assert_ne!(a.digest(), b.digest());
        assert_eq!(a.first_difference(&b), Some("x"));
    }

    #[test]
    fn refuses_paths_that_leave() {
        for path in ["", "/a", "a/../b", "..", "./a", "a//b", "a/", "a\0b"] {
            assert!(Tree::new().insert(path, file(b"")).is_err(), "{path:?}");
        }
    }
}
