//! A directory tree that is put together in memory: what packages, layers and roots are made of.
//!
//! Names that come from packages, archives and recipes are resolved here, in a map, and never on
//! the host's file system: a link that points out of the tree, or at `/etc` of the host, has
//! nothing to point at. Only the finished map is written out, parents first.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use adamant_digest::{Digest, Entry, EntryKind, Tree, TreeError};

/// How many links a path may lead through.
const MAX_LINKS: usize = 40;

/// Where the bytes of a file are.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// In a file of ours below a staging directory.
    File(PathBuf),
    /// Here.
    Bytes(Arc<[u8]>),
}

/// One name in the tree.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    /// A directory.
    Dir { mode: u32 },
    /// A regular file.
    File { mode: u32, digest: Digest, size: u64, content: Content },
    /// A symbolic link.
    Link { target: String },
}

impl Node {
    /// A file of bytes that are at hand.
    pub(crate) fn bytes(mode: u32, bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        Self::File { mode, digest: Digest::of(&bytes), size: bytes.len() as u64, content: Content::Bytes(bytes) }
    }
}

/// Why something cannot be put into a layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Empty, with `..`, a NUL byte or too long.
    #[error("`{0}` is not a path inside the tree")]
    BadPath(String),
    /// Links that lead round in a circle.
    #[error("`{0}` leads through more than {MAX_LINKS} symbolic links")]
    Loop(String),
    /// A component of the path is a regular file.
    #[error("`{path}` lies below `{file}`, which is a file")]
    BelowFile {
        /// What was to be put there.
        path: String,
        /// The file in the way.
        file: String,
    },
    /// A hard link to something that is not there.
    #[error("`{path}` is a hard link to `{target}`, which is not a file before it in the archive")]
    HardLink {
        /// The link.
        path: String,
        /// What it names.
        target: String,
    },
}

impl From<TreeError> for LayoutError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::BadPath(path) | TreeError::BadMode { path, .. } => Self::BadPath(path),
        }
    }
}

/// Names by relative path. Parents of every name are in the map too, as directories.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layout(BTreeMap<String, Node>);

/// `path` without leading `/` and `./`, without empty and `.` components.
pub(crate) fn normal(path: &str) -> Result<String, LayoutError> {
    let bad = || LayoutError::BadPath(path.chars().take(200).collect());
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") || path.contains('\0') || path.len() > 4096 {
        return Err(bad());
    }
    Ok(parts.join("/"))
}

impl Layout {
    /// Names in byte order, which puts parents before what is in them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.0.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// What is at a path, no link followed.
    pub(crate) fn node(&self, path: &str) -> Option<&Node> {
        self.0.get(path)
    }

    /// The path with links resolved: in all components, or in all but the last. Absolute targets
    /// start at the tree's root; `..` at the root stays there. What does not exist is taken as it
    /// is written.
    pub(crate) fn resolve(&self, path: &str, last: bool) -> Result<String, LayoutError> {
        let mut rest: Vec<String> = normal(path)?.split('/').rev().map(str::to_owned).collect();
        let mut done: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(part),
            }
            if rest.is_empty() && !last {
                break;
            }
            if let Some(Node::Link { target }) = self.0.get(&done.join("/")) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(LayoutError::Loop(path.to_owned()));
                }
                done.pop();
                if target.starts_with('/') {
                    done.clear();
                }
                rest.extend(target.split('/').rev().map(str::to_owned));
            }
        }
        Ok(done.join("/"))
    }

    /// Puts `node` at `path`, creating parents; what was there is replaced. Returns where it went:
    /// `path` with the links of its parents resolved. The tree's own root is ignored.
    pub(crate) fn insert(&mut self, path: &str, node: Node) -> Result<String, LayoutError> {
        let path = self.resolve(path, false)?;
        if path.is_empty() {
            return Ok(path);
        }
        self.parents(&path)?;
        if matches!(self.0.get(&path), Some(Node::Dir { .. })) && !matches!(node, Node::Dir { .. }) {
            self.remove(&path);
        }
        self.0.insert(path.clone(), node);
        Ok(path)
    }

    /// Creates the missing directories above `path`.
    fn parents(&mut self, path: &str) -> Result<(), LayoutError> {
        for (at, _) in path.match_indices('/') {
            let parent = &path[..at];
            match self.0.get(parent) {
                Some(Node::Dir { .. }) => {}
                Some(Node::File { .. }) => {
                    return Err(LayoutError::BelowFile { path: path.to_owned(), file: parent.to_owned() });
                }
                Some(Node::Link { .. }) => return Err(LayoutError::Loop(path.to_owned())),
                None => {
                    self.0.insert(parent.to_owned(), Node::Dir { mode: 0o755 });
                }
            }
        }
        Ok(())
    }

    /// Removes a name and everything below it.
    pub(crate) fn remove(&mut self, path: &str) {
        self.0.remove(path);
        let below = format!("{path}/");
        let end = format!("{path}0"); // '0' is the byte after '/'
        let names: Vec<String> = self.0.range(below..end).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.0.remove(&name);
        }
    }

    /// Every name with its mode, kind and digest.
    pub(crate) fn tree(&self) -> Result<Tree, TreeError> {
        let mut tree = Tree::new();
        for (path, node) in &self.0 {
            let (mode, kind) = match node {
                Node::Dir { mode } => (*mode, EntryKind::Dir),
                Node::File { mode, digest, size, .. } => (*mode, EntryKind::File { digest: *digest, size: *size }),
                Node::Link { target } => (0o777, EntryKind::Symlink { target: target.clone() }),
            };
            tree.insert(path, Entry { mode, kind })?;
        }
        Ok(tree)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(target: &str) -> Node {
        Node::Link { target: target.into() }
    }

    #[test]
    fn names_go_through_links_and_stay_inside() {
        let mut layout = Layout::default();
        layout.insert("usr/bin", Node::Dir { mode: 0o755 }).unwrap();
        layout.insert("bin", link("usr/bin")).unwrap();
        assert_eq!(layout.insert("/bin/sh", Node::bytes(0o755, *b"sh")).unwrap(), "usr/bin/sh");
        layout.insert("out", link("../../../etc")).unwrap();
        assert_eq!(layout.insert("out/passwd", Node::bytes(0o644, *b"")).unwrap(), "etc/passwd");
        layout.insert("abs", link("/usr/../usr/bin")).unwrap();
        assert_eq!(layout.resolve("abs/sh", true).unwrap(), "usr/bin/sh");
    }

    #[test]
    fn refuses_circles_files_as_directories_and_dotdot() {
        let mut layout = Layout::default();
        layout.insert("a", link("b")).unwrap();
        layout.insert("b", link("a")).unwrap();
        layout.insert("f", Node::bytes(0o644, *b"")).unwrap();
        assert!(matches!(layout.insert("a/x", link("y")), Err(LayoutError::Loop(_))));
        assert!(matches!(layout.insert("f/x", link("y")), Err(LayoutError::BelowFile { .. })));
        assert!(matches!(layout.insert("../x", link("y")), Err(LayoutError::BadPath(_))));
    }

    #[test]
    fn a_link_over_a_directory_takes_what_is_below_with_it() {
        let mut layout = Layout::default();
        layout.insert("d/e/f", Node::bytes(0o644, *b"")).unwrap();
        layout.insert("d0", Node::bytes(0o644, *b"")).unwrap();
        layout.insert("d", link("x")).unwrap();
        assert_eq!(layout.iter().map(|(path, _)| path).collect::<Vec<_>>(), ["d", "d0"]);
    }
}
