//! Layers laid over each other, as a map of paths before anything gets its place on disk.
//!
//! Members never decide where bytes are written: files go to numbered objects, and the finished
//! map is laid out below a fresh directory in which every parent is a directory made here.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use adamant_digest::{Digest, Entry, EntryKind, Hasher, Tree};

use super::tar::{Kind, TarReader};

/// Most entries of a tree.
const MAX_ENTRIES: usize = 500_000;
/// Most bytes of all files of an image.
const MAX_BYTES: u64 = 16 << 30;
/// Deepest path.
const MAX_DEPTH: usize = 100;

#[derive(Debug, Clone)]
enum Node {
    Dir { mode: u32 },
    File { mode: u32, digest: Digest, size: u64, object: u64 },
    Symlink { target: String },
}

#[derive(Debug, Default)]
pub(crate) struct Overlay {
    /// Path → number of the layer and node.
    nodes: BTreeMap<String, (usize, Node)>,
    layer: usize,
    objects: u64,
    bytes: u64,
}

impl Overlay {
    /// Lays the members of a tar stream over what is there. File bytes go to `objects`, if given.
    /// Reads `layer` to its very end, so that a verifying reader below sees all bytes.
    pub(crate) fn add(&mut self, layer: impl Read, objects: Option<&Path>) -> io::Result<()> {
        self.layer += 1;
        let mut reader = TarReader::new(layer);
        while let Some(member) = reader.next()? {
            let Some(path) = inside(&member.path)? else { continue };
            if self.nodes.len() >= MAX_ENTRIES {
                return Err(bad(format!("more than {MAX_ENTRIES} entries")));
            }
            if self.whiteout(&path)? {
                continue;
            }
            self.parents(&path)?;
            let node = match member.kind {
                // Set-user-id and set-group-id mean nothing in an instance and are left out;
                // whoever owns a file may always read it, so that it can be hashed again.
                Kind::File => self.file((member.mode & 0o777) | 0o400, &mut reader, objects)?,
                Kind::Dir => Node::Dir { mode: (member.mode & 0o1777) | 0o500 },
                Kind::Symlink(target) => symlink_node(&path, target)?,
                Kind::Hardlink(target) => self.hardlink(&path, &target)?,
            };
            let stays = matches!((&node, self.nodes.get(&path)), (Node::Dir { .. }, Some((_, Node::Dir { .. }))));
            if !stays {
                self.remove_below(&path, usize::MAX);
            }
            self.nodes.insert(path, (self.layer, node));
        }
        drain(reader.into_inner())
    }

    /// Makes sure that `path` (one component) is a directory, for a mount.
    pub(crate) fn mount_point(&mut self, path: &str, mode: u32) -> io::Result<()> {
        match self.nodes.get(path) {
            Some((_, Node::Dir { .. })) => Ok(()),
            Some(_) => Err(bad(format!("`/{path}` is not a directory"))),
            None => {
                self.nodes.insert(path.to_owned(), (self.layer, Node::Dir { mode }));
                Ok(())
            }
        }
    }

    /// The finished tree.
    pub(crate) fn tree(&self) -> io::Result<Tree> {
        let mut tree = Tree::new();
        for (path, (_, node)) in &self.nodes {
            let entry = match node {
                Node::Dir { mode } => Entry { mode: *mode, kind: EntryKind::Dir },
                Node::File { mode, digest, size, .. } => {
                    Entry { mode: *mode, kind: EntryKind::File { digest: *digest, size: *size } }
                }
                Node::Symlink { target } => Entry { mode: 0o777, kind: EntryKind::Symlink { target: target.clone() } },
            };
            tree.insert(path, entry).map_err(|e| bad(e.to_string()))?;
        }
        Ok(tree)
    }

    /// Lays the tree out below `root`, an empty directory, taking the files from `objects`.
    pub(crate) fn lay_out(&self, root: &Path, objects: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
        let own = |path: &Path| match owner {
            Some((uid, gid)) => std::os::unix::fs::lchown(path, Some(uid), Some(gid)),
            None => Ok(()),
        };
        let mut used = HashSet::new();
        for (path, (_, node)) in &self.nodes {
            let place = root.join(path);
            match node {
                Node::Dir { .. } => fs::create_dir(&place)?,
                Node::File { mode, object, .. } => {
                    let from = objects.join(object.to_string());
                    if used.insert(*object) {
                        fs::rename(&from, &place)?;
                    } else {
                        let first = self.place_of(*object).ok_or_else(|| bad("a link without a file".to_owned()))?;
                        fs::copy(root.join(first), &place)?;
                    }
                    own(&place)?;
                    fs::set_permissions(&place, fs::Permissions::from_mode(*mode))?;
                }
                Node::Symlink { target } => {
                    symlink(target, &place)?;
                    own(&place)?;
                }
            }
        }
        // Children first: a directory may forbid its owner to write.
        for (path, (_, node)) in self.nodes.iter().rev() {
            if let Node::Dir { mode } = node {
                let place = root.join(path);
                own(&place)?;
                fs::set_permissions(&place, fs::Permissions::from_mode(*mode))?;
            }
        }
        own(root)?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o755))
    }

    /// The first path of an object, in the order of [`Overlay::lay_out`].
    fn place_of(&self, wanted: u64) -> Option<&str> {
        let of = |node: &Node| matches!(node, Node::File { object, .. } if *object == wanted);
        self.nodes.iter().find(|(_, (_, node))| of(node)).map(|(path, _)| path.as_str())
    }

    fn file(&mut self, mode: u32, bytes: &mut impl Read, objects: Option<&Path>) -> io::Result<Node> {
        let object = self.objects;
        self.objects += 1;
        let mut file = match objects {
            Some(dir) => Some(File::create_new(dir.join(object.to_string()))?),
            None => None,
        };
        let (mut hasher, mut size, mut buffer) = (Hasher::new(), 0, vec![0; 64 * 1024]);
        loop {
            let read = bytes.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            size += read as u64;
            self.bytes += read as u64;
            if self.bytes > MAX_BYTES {
                return Err(bad(format!("more than {MAX_BYTES} bytes in files")));
            }
            hasher.update(&buffer[..read]);
            if let Some(file) = &mut file {
                file.write_all(&buffer[..read])?;
            }
        }
        Ok(Node::File { mode, digest: hasher.finish(), size, object })
    }

    fn hardlink(&self, path: &str, target: &str) -> io::Result<Node> {
        let missing = || bad(format!("`{path}` is a link to `{target}`, which is not a file of the image"));
        let target_path = inside(target)?.ok_or_else(missing)?;
        match self.nodes.get(&target_path) {
            Some((_, node @ Node::File { .. })) => Ok(node.clone()),
            _ => Err(missing()),
        }
    }

    /// Parents that no member named are plain directories; below a file or link nothing can be.
    fn parents(&mut self, path: &str) -> io::Result<()> {
        for (end, _) in path.match_indices('/') {
            let parent = &path[..end];
            match self.nodes.get(parent) {
                Some((_, Node::Dir { .. })) => {}
                Some((_, Node::Symlink { target })) => {
                    return Err(bad(format!("`{path}` lies below `{parent}`, a symbolic link to `{target}`")));
                }
                Some((_, Node::File { .. })) => return Err(bad(format!("`{path}` lies below the file `{parent}`"))),
                None => {
                    self.nodes.insert(parent.to_owned(), (self.layer, Node::Dir { mode: 0o755 }));
                }
            }
        }
        Ok(())
    }

    /// OCI image-spec, layer.md, "Whiteouts": they hide what lower layers have, and are no files.
    fn whiteout(&mut self, path: &str) -> io::Result<bool> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let Some(hidden) = name.strip_prefix(".wh.") else { return Ok(false) };
        let below = if parent.is_empty() { String::new() } else { format!("{parent}/") };
        if hidden == ".wh..opq" {
            self.remove_prefix(&below, self.layer);
        } else if hidden.is_empty() || hidden == "." || hidden == ".." || hidden.starts_with(".wh.") {
            return Err(bad(format!("`{path}` is not a whiteout this version knows")));
        } else {
            let hidden = format!("{below}{hidden}");
            if self.nodes.get(&hidden).is_some_and(|(layer, _)| *layer < self.layer) {
                self.nodes.remove(&hidden);
            }
            self.remove_below(&hidden, self.layer);
        }
        Ok(true)
    }

    /// Removes what lies below `path` and came with a layer under `before`.
    fn remove_below(&mut self, path: &str, before: usize) {
        self.remove_prefix(&format!("{path}/"), before);
    }

    fn remove_prefix(&mut self, prefix: &str, before: usize) {
        let doomed: Vec<String> = self
            .nodes
            .range(prefix.to_owned()..)
            .take_while(|(path, _)| path.starts_with(prefix))
            .filter(|(_, (layer, _))| *layer < before)
            .map(|(path, _)| path.clone())
            .collect();
        for path in doomed {
            // A directory of a lower layer stays if this layer has put something into it.
            let inner = format!("{path}/");
            let holds = self
                .nodes
                .range(inner.clone()..)
                .take_while(|(p, _)| p.starts_with(&inner))
                .any(|(_, (l, _))| *l >= before);
            if !holds {
                self.nodes.remove(&path);
            }
        }
    }
}

fn symlink_node(path: &str, target: String) -> io::Result<Node> {
    if target.is_empty() || target.len() > 4095 || target.contains('\0') {
        return Err(bad(format!("`{path}` is a link with an impossible target")));
    }
    Ok(Node::Symlink { target })
}

/// A member's name as a path inside the tree; `None` for the root itself.
fn inside(name: &str) -> io::Result<Option<String>> {
    let outside = |why| Err(bad(format!("`{}` {why}", name.chars().take(200).collect::<String>())));
    if name.starts_with('/') {
        return outside("is an absolute path");
    }
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => return outside("leaves the tree"),
            part if part.len() > 255 => return outside("has a component above 255 bytes"),
            part if part.contains('\0') => return outside("holds a NUL byte"),
            part => parts.push(part),
        }
    }
    if parts.len() > MAX_DEPTH {
        return outside("is nested too deeply");
    }
    Ok(if parts.is_empty() { None } else { Some(parts.join("/")) })
}

fn drain(mut rest: impl Read) -> io::Result<()> {
    // Padding after the end of an archive is short; a bomb is not padding.
    let most = 64 << 20;
    if io::copy(&mut rest.by_ref().take(most), &mut io::sink())? == most {
        return Err(bad("too many bytes after the end of a layer".to_owned()));
    }
    Ok(())
}

fn bad(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
#[path = "overlay_tests.rs"]
mod tests;
