//! Reading commits, trees and files. Safe beside pushes: objects only ever appear.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::git::unexpected;
use crate::refs::is_ref;
use crate::{GitError, Oid, ReadError, Repository};

/// What a commit says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Its id.
    pub id: Oid,
    /// The git tree it holds.
    pub tree: Oid,
    /// Its parents, in order.
    pub parents: Vec<Oid>,
    /// `Name <address>` of the author.
    pub author: String,
    /// When it was committed, seconds since 1970, as the committer says.
    pub time: i64,
    /// First line of the message, at most 200 characters, without control characters.
    pub subject: String,
}

/// What one commit has that another has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// How many commits there are, counted up to 100,000.
    pub count: usize,
    /// The newest of them, newest first, as many as asked for.
    pub commits: Vec<Commit>,
}

/// What an entry of a git tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TreeEntryKind {
    /// A file.
    File,
    /// A file that is executable.
    Executable,
    /// A symbolic link; the blob is its target.
    Symlink,
    /// A directory.
    Dir,
    /// A commit of another repository.
    Submodule,
}

/// One entry of a git tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEntry {
    /// Relative to the directory that was listed, `/`-separated.
    pub path: String,
    /// What it is.
    pub kind: TreeEntryKind,
    /// The git object.
    pub oid: Oid,
    /// Length in bytes of files and symbolic links, 0 for others.
    pub size: u64,
}

/// The most commits that are counted.
const COUNT: usize = 100_000;
/// The most commits one log returns.
const LOG: usize = 1000;

impl TreeEntryKind {
    /// For error messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::File | Self::Executable => "file",
            Self::Symlink => "symbolic link",
            Self::Dir => "directory",
            Self::Submodule => "submodule",
        }
    }
}

impl Repository {
    /// What a commit says.
    pub async fn commit(&self, commit: Oid) -> Result<Commit, ReadError> {
        let mut found = self.read_commits(&[commit]).await?;
        found.pop().ok_or(ReadError::NoCommit(commit))
    }

    /// The commit that a branch, a tag, a full id or an unambiguous beginning of one (at least
    /// 7 digits) names.
    pub async fn resolve(&self, name: &str) -> Result<Option<Oid>, ReadError> {
        let hex = (7..=40).contains(&name.len()) && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let mut input = String::new();
        if hex {
            let _ = writeln!(input, "{name}^{{commit}}");
        }
        for full in [format!("refs/heads/{name}"), format!("refs/tags/{name}")] {
            if is_ref(&full) {
                let _ = writeln!(input, "{full}^{{commit}}");
            }
        }
        let mut found = None;
        self.check(&input, |oid, kind, _| {
            if kind == "commit" && found.is_none() {
                found = oid;
            }
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// What `new` has that `old` has not (everything if `None`), at most `max` of them in full.
    pub async fn log(&self, old: Option<Oid>, new: Oid, max: usize) -> Result<Log, ReadError> {
        let mut wanted = vec![new];
        wanted.extend(old);
        self.require(&wanted).await?;
        let exclude = old.map(|old| format!("^{old}"));
        let most = format!("--max-count={COUNT}");
        let new = new.to_string();
        let mut args = vec!["rev-list", &most, &new];
        args.extend(exclude.as_deref());
        let (mut count, mut newest) = (0, Vec::new());
        self.0
            .git
            .records(&args, &[], b'\n', |record| -> Result<(), GitError> {
                count += 1;
                if newest.len() < max.min(LOG) {
                    newest.push(Oid::from_ascii(record).map_err(|_| unexpected("rev-list", record))?);
                }
                Ok(())
            })
            .await?;
        Ok(Log { count, commits: self.read_commits(&newest).await? })
    }

    /// Whether `ancestor` is `commit` or one it descends from.
    pub async fn is_ancestor(&self, ancestor: Oid, commit: Oid) -> Result<bool, ReadError> {
        self.require(&[ancestor, commit]).await?;
        let args = ["merge-base", "--is-ancestor", &ancestor.to_string(), &commit.to_string()];
        match self.0.git.run(&args, &[], 4096).await {
            Ok(_) => Ok(true),
            Err(GitError::Failed { code: Some(1), .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// A best common ancestor, if the two have one.
    pub async fn merge_base(&self, a: Oid, b: Oid) -> Result<Option<Oid>, ReadError> {
        self.require(&[a, b]).await?;
        match self.0.git.run(&["merge-base", &a.to_string(), &b.to_string()], &[], 4096).await {
            Ok(output) => {
                let line = output.trim_ascii_end();
                Ok(Some(Oid::from_ascii(line).map_err(|_| unexpected("merge-base", line))?))
            }
            Err(GitError::Failed { code: Some(1), .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Paths whose content or kind differs between two commits, at most `max`; names that are
    /// not UTF-8 have replacement characters.
    pub async fn changed(&self, old: Oid, new: Oid, max: usize) -> Result<Vec<String>, ReadError> {
        self.require(&[old, new]).await?;
        let (old, new) = (old.to_string(), new.to_string());
        let args =
            ["diff-tree", "-r", "-z", "--name-only", "--no-renames", "--no-ext-diff", "--no-textconv", &old, &new];
        let mut paths = Vec::new();
        self.0
            .git
            .records(&args, &[], 0, |record| -> Result<(), GitError> {
                if paths.len() < max {
                    paths.push(String::from_utf8_lossy(record).into_owned());
                }
                Ok(())
            })
            .await?;
        Ok(paths)
    }

    /// The bytes of a file, at most `max` of them. Symbolic links are not followed.
    pub async fn file(&self, commit: Oid, path: &str, max: u64) -> Result<Vec<u8>, ReadError> {
        let entry = self.entry(commit, path).await?;
        if !matches!(entry.kind, TreeEntryKind::File | TreeEntryKind::Executable) {
            let found = entry.kind.name();
            return Err(ReadError::Kind { commit, path: path.to_owned(), found, expected: "file" });
        }
        if entry.size > max {
            return Err(ReadError::TooLarge { commit, path: path.to_owned(), size: entry.size, limit: max });
        }
        let limit = usize::try_from(max).unwrap_or(usize::MAX);
        Ok(self.0.git.run(&["cat-file", "blob", &entry.oid.to_string()], &[], limit).await?)
    }

    /// Whether a commit has something at `path`.
    pub async fn exists(&self, commit: Oid, path: &str) -> Result<bool, ReadError> {
        match self.entry(commit, path).await {
            Ok(_) => Ok(true),
            Err(ReadError::NoPath { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What a commit has at `path`; the entry's own path is `path`.
    pub async fn entry(&self, commit: Oid, path: &str) -> Result<TreeEntry, ReadError> {
        if path == "." {
            let oid = self.commit(commit).await?.tree;
            return Ok(TreeEntry { path: path.to_owned(), kind: TreeEntryKind::Dir, oid, size: 0 });
        }
        if !is_path(path) {
            return Err(ReadError::BadPath(path.chars().take(200).collect()));
        }
        let name = commit.to_string();
        let args = ["ls-tree", "-z", "-l", "--full-tree", &name, "--", path];
        let mut found = None;
        let listed = self.0.git.records(&args, &[], 0, |record| -> Result<(), ReadError> {
            found = Some(self.parse_entry(commit, record)?);
            Ok(())
        });
        if let Err(error) = listed.await {
            self.require(&[commit]).await?;
            return Err(error);
        }
        found.filter(|entry| entry.path == path).ok_or_else(|| ReadError::NoPath { commit, path: path.to_owned() })
    }

    /// What is in a directory (`.` is the root), and with `deep` in all below it, in git's order.
    pub async fn entries(&self, commit: Oid, dir: &str, deep: bool) -> Result<Vec<TreeEntry>, ReadError> {
        let top = self.entry(commit, dir).await?;
        if top.kind != TreeEntryKind::Dir {
            let found = top.kind.name();
            return Err(ReadError::Kind { commit, path: dir.to_owned(), found, expected: "directory" });
        }
        self.list(commit, dir, top.oid, deep).await
    }

    pub(crate) async fn list(
        &self,
        commit: Oid,
        dir: &str,
        tree: Oid,
        deep: bool,
    ) -> Result<Vec<TreeEntry>, ReadError> {
        let limits = &self.0.limits;
        let tree = tree.to_string();
        let mut args = vec!["ls-tree", "-z", "-l"];
        if deep {
            args.extend(["-r", "-t"]);
        }
        args.push(&tree);
        let over = |path: &str, what, limit: usize| ReadError::Limit {
            commit,
            path: path.chars().take(200).collect(),
            what,
            limit: limit as u64,
        };
        let mut entries = Vec::new();
        self.0
            .git
            .records(&args, &[], 0, |record| {
                let entry = self.parse_entry(commit, record)?;
                if entries.len() >= limits.tree_entries {
                    return Err(over(dir, "too many entries", limits.tree_entries));
                }
                if entry.path.len() > limits.path_bytes {
                    return Err(over(&entry.path, "too long a path", limits.path_bytes));
                }
                if entry.path.split('/').count() > limits.depth {
                    return Err(over(&entry.path, "too many directory levels", limits.depth));
                }
                entries.push(entry);
                Ok(())
            })
            .await?;
        Ok(entries)
    }

    /// An entry, unless it was erased.
    fn parse_entry(&self, commit: Oid, record: &[u8]) -> Result<TreeEntry, ReadError> {
        let entry = parse_entry(record)?;
        match self.0.shared.erased.why(entry.oid) {
            Some(why) => {
                let what = crate::erased::line(entry.oid, &why);
                Err(ReadError::Erased { commit, path: entry.path, what })
            }
            None => Ok(entry),
        }
    }

    /// Fails unless all of these are commits that are here.
    async fn require(&self, commits: &[Oid]) -> Result<(), ReadError> {
        let found = self.commits(commits).await?;
        match commits.iter().zip(found).find(|(wanted, found)| Some(**wanted) != *found) {
            Some((missing, _)) => Err(ReadError::NoCommit(*missing)),
            None => Ok(()),
        }
    }

    /// For each id the commit it is or, if it is a tag, points to.
    pub(crate) async fn commits(&self, ids: &[Oid]) -> Result<Vec<Option<Oid>>, GitError> {
        let mut input = String::new();
        for id in ids {
            let _ = writeln!(input, "{id}^{{commit}}");
        }
        let mut found = Vec::new();
        self.check(&input, |oid, kind, _| {
            found.push(oid.filter(|_| kind == "commit"));
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// `cat-file --batch-check`: id (`None` if missing), type and size of each line of `input`.
    pub(crate) async fn check(
        &self,
        input: &str,
        mut on: impl FnMut(Option<Oid>, &str, u64) -> Result<(), GitError> + Send,
    ) -> Result<(), GitError> {
        self.0
            .git
            .records(&["cat-file", "--batch-check"], input.as_bytes(), b'\n', |record| {
                let (oid, kind, size) = parse_check(record)?;
                on(oid, kind, size)
            })
            .await
    }

    async fn read_commits(&self, commits: &[Oid]) -> Result<Vec<Commit>, ReadError> {
        let mut read = Vec::with_capacity(commits.len());
        let each = usize::try_from(self.0.limits.commit_bytes).unwrap_or(usize::MAX).saturating_add(128);
        // A few at a time bounds the memory.
        for part in commits.chunks(64) {
            let mut input = String::new();
            for id in part {
                let _ = writeln!(input, "{id}");
            }
            let limit = each.saturating_mul(part.len());
            let output = self.0.git.run(&["cat-file", "--batch"], input.as_bytes(), limit).await?;
            let mut rest = output.as_slice();
            for id in part {
                let end = rest.iter().position(|b| *b == b'\n').ok_or_else(|| unexpected("cat-file", rest))?;
                let (_, kind, size) = parse_check(&rest[..end])?;
                if kind != "commit" {
                    return Err(ReadError::NoCommit(*id));
                }
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                let body = rest.get(end + 1..).and_then(|rest| rest.split_at_checked(size));
                let (body, after) = body.ok_or_else(|| unexpected("cat-file", &rest[..end]))?;
                rest = after.get(1..).unwrap_or_default();
                read.push(parse_commit(*id, body).ok_or_else(|| unexpected("cat-file", body))?);
            }
        }
        Ok(read)
    }
}

/// Whether `path` is relative and stays inside.
fn is_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 4096
        && !path.contains(['\0', '\n'])
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// `<oid> <type> <size>`, or `<name> missing`.
pub(crate) fn parse_check(record: &[u8]) -> Result<(Option<Oid>, &str, u64), GitError> {
    let bad = || unexpected("cat-file", record);
    let text = std::str::from_utf8(record).map_err(|_| bad())?;
    if text.ends_with(" missing") || text.ends_with(" ambiguous") {
        return Ok((None, "missing", 0));
    }
    let mut parts = text.split(' ');
    let (Some(oid), Some(kind), Some(size), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(bad());
    };
    Ok((Some(oid.parse().map_err(|_| bad())?), kind, size.parse().map_err(|_| bad())?))
}

/// `<mode> <type> <oid> <size, padded>\t<path>`.
fn parse_entry(record: &[u8]) -> Result<TreeEntry, ReadError> {
    let bad = || unexpected("ls-tree", record);
    let tab = record.iter().position(|b| *b == b'\t').ok_or_else(bad)?;
    let (head, path) = (&record[..tab], &record[tab + 1..]);
    let head = std::str::from_utf8(head).map_err(|_| bad())?;
    let mut parts = head.split_ascii_whitespace();
    let (Some(mode), Some(_), Some(oid), Some(size)) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(bad().into());
    };
    let kind = match mode {
        "100644" | "100664" => TreeEntryKind::File,
        "100755" => TreeEntryKind::Executable,
        "120000" => TreeEntryKind::Symlink,
        "040000" => TreeEntryKind::Dir,
        "160000" => TreeEntryKind::Submodule,
        _ => return Err(bad().into()),
    };
    // `BAD`: the object is not here, as one that was erased.
    let size = if matches!(size, "-" | "BAD") { 0 } else { size.parse().map_err(|_| bad())? };
    let path = String::from_utf8(path.to_owned())
        .map_err(|error| ReadError::NotUtf8(String::from_utf8_lossy(error.as_bytes()).into_owned()))?;
    Ok(TreeEntry { path, kind, oid: oid.parse().map_err(|_| bad())?, size })
}

/// A commit object. Spec: git, gitformat-... "commit objects"; what git's own fsck lets in.
fn parse_commit(id: Oid, body: &[u8]) -> Option<Commit> {
    let text = String::from_utf8_lossy(body);
    let (headers, message) = text.split_once("\n\n").unwrap_or((&text, ""));
    let (mut tree, mut parents, mut author, mut time) = (None, Vec::new(), None, None);
    for line in headers.lines() {
        match line.split_once(' ') {
            Some(("tree", oid)) if tree.is_none() => tree = oid.parse().ok(),
            Some(("parent", oid)) => parents.push(oid.parse().ok()?),
            Some(("author", person)) if author.is_none() => author = Some(person_name(person)),
            Some(("committer", person)) if time.is_none() => time = Some(person_time(person)),
            _ => {}
        }
    }
    let subject = message.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let subject = crate::git::one_line(subject, 200);
    Some(Commit { id, tree: tree?, parents, author: author?, time: time.unwrap_or(0), subject })
}

fn person_name(person: &str) -> String {
    let end = person.rfind('>').map_or(person.len(), |end| end + 1);
    crate::git::one_line(&person[..end], 200)
}

fn person_time(person: &str) -> i64 {
    let times = person.rfind('>').map_or("", |end| &person[end + 1..]);
    times.split_ascii_whitespace().next().and_then(|time| time.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn commits_are_parsed() {
        let id: Oid = ID.parse().unwrap();
        let body = format!(
            "tree {ID}\nparent {ID}\nauthor Ann <a@x> 1700000000 +0100\ncommitter Bob <b@x> 1700000001 +0000\ngpgsig x\n y\n\nFix\tcart\n\nbody"
        );
        let commit = parse_commit(id, body.as_bytes()).unwrap();
        assert_eq!(commit.author, "Ann <a@x>");
        assert_eq!(commit.time, 1_700_000_001);
        assert_eq!(commit.subject, "Fix cart");
        assert_eq!(commit.parents, [id]);
        assert!(parse_commit(id, b"").is_none());
        assert!(parse_commit(id, b"tree x\n\n").is_none());
        assert!(parse_commit(id, &[0xff; 40]).is_none());
    }

    #[test]
    fn entries_are_parsed() {
        let entry = parse_entry(format!("100755 blob {ID}    1234\ta b/c").as_bytes()).unwrap();
        assert_eq!((entry.path.as_str(), entry.size, entry.kind), ("a b/c", 1234, TreeEntryKind::Executable));
        assert!(parse_entry(format!("100644 blob {ID} 1\t\n").as_bytes()).is_ok());
        let mut bytes = format!("100644 blob {ID} 1\t").into_bytes();
        bytes.push(0xff);
        assert!(matches!(parse_entry(&bytes), Err(ReadError::NotUtf8(_))));
        assert!(parse_entry(b"").is_err());
        assert!(parse_entry(b"1 2 3\t").is_err());
    }

    #[test]
    fn paths() {
        for path in ["a", "a/b", "a b", "ü"] {
            assert!(is_path(path), "{path}");
        }
        for path in ["", "/a", "a/", "a//b", "../a", "a/./b", "a\nb", "a\0"] {
            assert!(!is_path(path), "{path:?}");
        }
    }
}
