//! Trees of commits as files and as digests: raw blobs, nothing interpreted.

use std::collections::{BTreeMap, HashMap};
use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};

use adamant_digest::{Digest, Entry, EntryKind, Hasher, Tree};

use crate::git::{Git, one_line, unexpected};
use crate::read::parse_check;
use crate::repositories::Inner;
use crate::{ExportError, GitError, Oid, ReadError, Repository, TreeEntry, TreeEntryKind};

/// Requests in the pipe at once; they fit into it, so that writing them never waits.
const AHEAD: usize = 64;
/// The longest name of a file, in bytes: `NAME_MAX` of every file system we may write to.
const NAME: usize = 255;
/// The longest target of a symbolic link the kernel takes.
const TARGET: u64 = 4095;

impl Repository {
    /// The tree of `commit` at directory `path` (`.` is the root) as a digest tree: files 0644
    /// or 0755, directories 0755. Nothing is written; what was read before is remembered.
    pub async fn tree(&self, commit: Oid, path: &str) -> Result<Arc<Tree>, ExportError> {
        let top = self.directory(commit, path).await?;
        if let Some(tree) = self.0.digests.tree(top) {
            return Ok(tree);
        }
        let entries = self.exportable(commit, path, top).await?;
        self.build(entries, top, None).await
    }

    /// Writes the tree of `commit` at directory `path` into `dest`, a new or empty directory,
    /// and returns what was written, not synced. Blobs are written as they are: attributes, filters and
    /// end-of-line settings have no influence. On an error `dest` holds a part.
    pub async fn export(&self, commit: Oid, path: &str, dest: &Path) -> Result<Arc<Tree>, ExportError> {
        let top = self.directory(commit, path).await?;
        let entries = self.exportable(commit, path, top).await?;
        self.build(entries, top, Some(dest.to_owned())).await
    }

    async fn directory(&self, commit: Oid, path: &str) -> Result<Oid, ExportError> {
        let entry = self.entry(commit, path).await?;
        if entry.kind == TreeEntryKind::Dir {
            return Ok(entry.oid);
        }
        let found = entry.kind.name();
        Err(ReadError::Kind { commit, path: path.to_owned(), found, expected: "directory" }.into())
    }

    /// The entries, if all are of a kind and a name that can be exported.
    async fn exportable(&self, commit: Oid, path: &str, tree: Oid) -> Result<Vec<TreeEntry>, ExportError> {
        let entries = self.list(commit, path, tree, true).await?;
        let limits = &self.0.limits;
        let mut total: u64 = 0;
        for entry in &entries {
            if entry.kind == TreeEntryKind::Submodule {
                return Err(ExportError::Submodule { path: entry.path.clone() });
            }
            // Pushed trees have passed fsck; a name that writes into `.git` or out of the
            // destination must not get here by any other way either.
            if entry.path.split('/').any(|part| matches!(part, "" | "." | "..") || part.eq_ignore_ascii_case(".git")) {
                return Err(ExportError::BadName(entry.path.clone()));
            }
            if entry.path.split('/').any(|part| part.len() > NAME) {
                let path = one_line(&entry.path, 100);
                return Err(ReadError::Limit { commit, path, what: "too long a name", limit: NAME as u64 }.into());
            }
            let limit = if entry.kind == TreeEntryKind::Symlink { TARGET } else { limits.blob_bytes };
            if entry.size > limit {
                let (path, size) = (entry.path.clone(), entry.size);
                return Err(ReadError::TooLarge { commit, path, size, limit }.into());
            }
            total = total.saturating_add(entry.size);
        }
        if total > limits.export_bytes {
            let path = path.to_owned();
            return Err(ReadError::Limit { commit, path, what: "too many bytes", limit: limits.export_bytes }.into());
        }
        Ok(entries)
    }

    async fn build(&self, entries: Vec<TreeEntry>, top: Oid, dest: Option<PathBuf>) -> Result<Arc<Tree>, ExportError> {
        let git = self.0.git.within(self.0.limits.transfer_time);
        let child = git.spawn_blocking(git.command(["cat-file", "--batch"]))?;
        let child = Arc::new(Mutex::new(child));
        let (inner, running) = (Arc::clone(&self.0), Arc::clone(&child));
        let work = tokio::task::spawn_blocking(move || {
            let blobs = Blobs::new(&running);
            let built = blobs.and_then(|mut blobs| write(&inner, &mut blobs, &entries, dest.as_deref()));
            end(&running);
            built
        });
        let tree = match tokio::time::timeout(git.time(), work).await {
            Ok(Ok(built)) => Arc::new(built?),
            Ok(Err(error)) => return Err(crate::git::io("cat-file", io::Error::other(error)).into()),
            Err(_) => {
                // The blocking thread sees the end of its pipe and stops.
                end(&child);
                return Err(timeout(&git).into());
            }
        };
        self.0.digests.remember_tree(top, Arc::clone(&tree));
        Ok(tree)
    }
}

fn timeout(git: &Git) -> GitError {
    GitError::Timeout { command: "cat-file".to_owned(), limit: git.time() }
}

fn end(child: &Mutex<Child>) {
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = child.kill();
    let _ = child.wait();
}

/// A running `cat-file --batch`.
struct Blobs {
    stdin: std::process::ChildStdin,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Blobs {
    fn new(child: &Mutex<Child>) -> Result<Self, ExportError> {
        let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(crate::git::io("cat-file", io::Error::other("no pipes")).into());
        };
        Ok(Self { stdin, stdout: BufReader::with_capacity(256 << 10, stdout) })
    }

    fn ask(&mut self, entries: &[&TreeEntry]) -> Result<(), GitError> {
        let mut lines = String::with_capacity(entries.len() * 41);
        for entry in entries {
            lines.push_str(&entry.oid.to_string());
            lines.push('\n');
        }
        self.stdin.write_all(lines.as_bytes()).map_err(|source| crate::git::io("cat-file", source))
    }

    /// Copies the blob that was asked for next to `to`.
    fn next(&mut self, entry: &TreeEntry, to: &mut impl Write) -> Result<(Digest, u64), Copying> {
        let from = |source| Copying::From(crate::git::io("cat-file", source));
        let mut line = Vec::new();
        (&mut self.stdout).take(200).read_until(b'\n', &mut line).map_err(from)?;
        let (oid, kind, size) = parse_check(line.trim_ascii_end()).map_err(Copying::From)?;
        if oid != Some(entry.oid) || kind != "blob" || size != entry.size {
            return Err(Copying::From(unexpected("cat-file", &line)));
        }
        let mut hasher = Hasher::new();
        let mut left = size;
        while left > 0 {
            let bytes = self.stdout.fill_buf().map_err(from)?;
            let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if count == 0 {
                return Err(from(io::ErrorKind::UnexpectedEof.into()));
            }
            hasher.update(&bytes[..count]);
            to.write_all(&bytes[..count]).map_err(Copying::To)?;
            self.stdout.consume(count);
            left -= count as u64;
        }
        let mut newline = [0];
        self.stdout.read_exact(&mut newline).map_err(from)?;
        Ok((hasher.finish(), size))
    }
}

/// Which side of a copy broke.
enum Copying {
    From(GitError),
    To(io::Error),
}

impl Copying {
    fn at(self, path: &Path) -> ExportError {
        match self {
            Self::From(error) => error.into(),
            Self::To(source) => ExportError::Io { path: path.to_owned(), source },
        }
    }
}

/// Digests the entries and, with a destination, writes them. Symbolic links come last: nothing
/// is ever written through one.
fn write(inner: &Inner, blobs: &mut Blobs, entries: &[TreeEntry], dest: Option<&Path>) -> Result<Tree, ExportError> {
    let targets = targets(blobs, entries)?;
    let at = |path: &Path, source| ExportError::Io { path: path.to_owned(), source };
    if let Some(dest) = dest {
        make_empty(dest)?;
    }
    let mut tree = Tree::new();
    for entry in entries.iter().filter(|entry| entry.kind == TreeEntryKind::Dir) {
        if let Some(dest) = dest {
            let path = dest.join(&entry.path);
            DirBuilder::new().mode(0o755).create(&path).map_err(|source| at(&path, source))?;
            // The mode of creation passes through the umask.
            std::fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(|source| at(&path, source))?;
        }
        tree.insert(&entry.path, Entry { mode: 0o755, kind: EntryKind::Dir })?;
    }
    let mode = |entry: &TreeEntry| if entry.kind == TreeEntryKind::Executable { 0o755 } else { 0o644 };
    let mut unread = Vec::new();
    for entry in entries.iter().filter(|e| matches!(e.kind, TreeEntryKind::File | TreeEntryKind::Executable)) {
        match inner.digests.blob(entry.oid) {
            Some((digest, size)) if dest.is_none() => {
                tree.insert(&entry.path, Entry { mode: mode(entry), kind: EntryKind::File { digest, size } })?;
            }
            _ => unread.push(entry),
        }
    }
    for part in unread.chunks(AHEAD) {
        blobs.ask(part)?;
        for entry in part {
            let (digest, size) = if let Some(dest) = dest {
                let path = dest.join(&entry.path);
                let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
                let mut file = opened.map_err(|source| at(&path, source))?;
                let copied = blobs.next(entry, &mut file).map_err(|error| error.at(&path))?;
                file.set_permissions(Permissions::from_mode(mode(entry))).map_err(|source| at(&path, source))?;
                copied
            } else {
                blobs.next(entry, &mut io::sink()).map_err(|error| error.at(Path::new(&entry.path)))?
            };
            inner.digests.remember_blob(entry.oid, digest, size);
            tree.insert(&entry.path, Entry { mode: mode(entry), kind: EntryKind::File { digest, size } })?;
        }
    }
    for (path, target) in targets {
        if let Some(dest) = dest {
            let link = dest.join(path);
            std::os::unix::fs::symlink(target.as_str(), &link).map_err(|source| at(&link, source))?;
        }
        tree.insert(path, Entry { mode: 0o777, kind: EntryKind::Symlink { target } })?;
    }
    if tree.len() != entries.len() {
        return Err(ExportError::BadName("a tree has one name twice".to_owned()));
    }
    Ok(tree)
}

fn make_empty(dest: &Path) -> Result<(), ExportError> {
    let at = |source| ExportError::Io { path: dest.to_owned(), source };
    match std::fs::create_dir(dest) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if std::fs::symlink_metadata(dest).map_err(at)?.is_symlink()
                || std::fs::read_dir(dest).map_err(at)?.next().is_some()
            {
                return Err(ExportError::NotEmpty(dest.to_owned()));
            }
        }
        Err(error) => return Err(at(error)),
    }
    std::fs::set_permissions(dest, Permissions::from_mode(0o755)).map_err(at)
}

/// Reads the targets of all symbolic links; refuses those that lead out of the tree.
fn targets<'a>(blobs: &mut Blobs, entries: &'a [TreeEntry]) -> Result<BTreeMap<&'a str, String>, ExportError> {
    let links: Vec<&TreeEntry> = entries.iter().filter(|entry| entry.kind == TreeEntryKind::Symlink).collect();
    let mut targets = BTreeMap::new();
    for part in links.chunks(AHEAD) {
        blobs.ask(part)?;
        for link in part {
            let mut target = Vec::new();
            blobs.next(link, &mut target).map_err(|error| error.at(Path::new(&link.path)))?;
            let target = String::from_utf8(target).map_err(|_| ReadError::NotUtf8(link.path.clone()))?;
            targets.insert(link.path.as_str(), target);
        }
    }
    let known: HashMap<&str, &str> = targets.iter().map(|(path, target)| (*path, target.as_str())).collect();
    for (path, target) in &targets {
        if !stays_inside(path, target, &known) {
            return Err(ExportError::LinkOutside { path: (*path).to_owned(), target: target.clone() });
        }
    }
    Ok(targets)
}

/// Whether following the link at `path` to `target` stays in the tree all the way, other links
/// on the way included. A part that does not exist counts as a directory.
fn stays_inside(path: &str, target: &str, links: &HashMap<&str, &str>) -> bool {
    let mut here: Vec<&str> = path.split('/').collect();
    here.pop();
    // Parts still to walk, the next one last.
    let mut ahead: Vec<&str> = Vec::new();
    if !push_target(target, &mut ahead) {
        return false;
    }
    let mut followed = 0;
    while let Some(part) = ahead.pop() {
        match part {
            "" | "." => {}
            ".." => {
                if here.pop().is_none() {
                    return false;
                }
            }
            name => {
                here.push(name);
                if let Some(next) = links.get(here.join("/").as_str()) {
                    followed += 1;
                    // The kernel follows 40; a circle leads nowhere, which is inside.
                    if followed > 40 {
                        return true;
                    }
                    here.pop();
                    if !push_target(next, &mut ahead) {
                        return false;
                    }
                }
            }
        }
    }
    true
}

fn push_target<'a>(target: &'a str, ahead: &mut Vec<&'a str>) -> bool {
    if target.is_empty() || target.starts_with('/') || target.contains('\0') {
        return false;
    }
    ahead.extend(target.split('/').rev());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_inside_and_outside() {
        let links = HashMap::from([("a/b/c/root", "../../.."), ("loop", "loop"), ("dir", "a/b"), ("up", "dir/../..")]);
        let check = |path: &str, target: &str| stays_inside(path, target, &links);
        for (path, target) in [
            ("x", "y"),
            ("x", "."),
            ("a/x", "../y"),
            ("a/x", ".."),
            ("x", "./a/../b"),
            ("x", "loop/y"),
            ("x", "dir/../b"),
            ("x", "a/b/c/root/y"),
            ("x", "missing/../y"),
        ] {
            assert!(check(path, target), "{path} -> {target}");
        }
        for (path, target) in [
            ("x", "/etc/passwd"),
            ("x", ".."),
            ("x", "../y"),
            ("a/x", "../../y"),
            ("x", "a/../../y"),
            ("x", ""),
            // The text stays inside, the way does not.
            ("x", "a/b/c/root/../y"),
            ("x", "up/../../y"),
            ("x", "dir/../../../y"),
        ] {
            assert!(!check(path, target), "{path} -> {target}");
        }
    }
}
