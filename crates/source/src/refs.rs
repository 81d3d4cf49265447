//! Refs: read, kept, moved. Every write is compare-and-swap and durable on return.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::git::unexpected;
use crate::repositories::blocking;
use crate::turn::directories;
use crate::{GitError, Oid, ReadError, RefError, Repository, durable};

/// Where commits are kept for good.
const KEPT: &str = "refs/adamant/commits/";
/// Loose kept refs before they are packed into one file.
const LOOSE: usize = 512;

/// One ref to write.
#[derive(Debug)]
pub(crate) struct Update<'a> {
    /// Full name.
    pub(crate) name: &'a str,
    /// What it must be at; `None`: it must not exist.
    pub(crate) old: Option<Oid>,
    /// What it shall be at; `None`: it goes.
    pub(crate) new: Option<Oid>,
}

impl Repository {
    /// Branches by short name (`main`), each with its commit.
    pub async fn branches(&self) -> Result<BTreeMap<String, Oid>, ReadError> {
        Ok(self.refs("refs/heads/").await?)
    }

    /// Tags by short name (`v1`), each with the commit it points to.
    pub async fn tags(&self) -> Result<BTreeMap<String, Oid>, ReadError> {
        Ok(self.refs("refs/tags/").await?)
    }

    /// Every commit that is kept, sorted.
    pub async fn list_kept(&self) -> Result<Vec<Oid>, ReadError> {
        let mut kept = Vec::new();
        // The name says it all: a damaged repository still lists what it ought to have.
        let args = ["for-each-ref", "--format=%(refname)", KEPT];
        self.0
            .git
            .records(&args, &[], b'\n', |record| -> Result<(), GitError> {
                let oid = record.strip_prefix(KEPT.as_bytes()).unwrap_or(record);
                kept.push(Oid::from_ascii(oid).map_err(|_| unexpected("for-each-ref", record))?);
                Ok(())
            })
            .await?;
        Ok(kept)
    }

    /// Makes sure that `commit` is never lost: `refs/adamant/commits/<oid>`. Durable on return,
    /// idempotent.
    pub async fn keep(&self, commit: Oid) -> Result<(), RefError> {
        if self.commits(&[commit]).await?.first() != Some(&Some(commit)) {
            return Err(RefError::NoCommit(commit));
        }
        self.keep_all(&[commit]).await
    }

    /// Moves a branch from `old` (`None`: it must not exist) to `new`. Durable on return.
    /// Moving to where it is succeeds.
    pub async fn set_branch(&self, name: &str, old: Option<Oid>, new: Oid) -> Result<(), RefError> {
        let name = branch_ref(name)?;
        self.keep(new).await?;
        self.update(Update { name: &name, old, new: Some(new) }).await
    }

    /// Removes a branch that is at `old`. Durable on return; loses no commit.
    pub async fn remove_branch(&self, name: &str, old: Oid) -> Result<(), RefError> {
        let name = branch_ref(name)?;
        self.keep(old).await?;
        self.update(Update { name: &name, old: Some(old), new: None }).await
    }

    /// Keeps commits that are known to be here.
    pub(crate) async fn keep_all(&self, commits: &[Oid]) -> Result<(), RefError> {
        let guard = self.0.refs.lock().await;
        let mut input = String::new();
        for commit in commits.iter().collect::<BTreeSet<_>>() {
            // No old value: the name says the only value it ever has.
            let _ = writeln!(input, "update {KEPT}{commit} {commit}");
        }
        self.0.git.run(&["update-ref", "--stdin"], input.as_bytes(), 4096).await?;
        let dir = self.path().join(KEPT);
        let top = self.path().to_owned();
        let counted = blocking(move || {
            durable::sync_upwards(&dir, &top)?;
            match std::fs::read_dir(&dir) {
                Ok(entries) => Ok(entries.count()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
                Err(error) => Err(error),
            }
        });
        let loose = counted.await.map_err(|source| self.io(KEPT, source))?;
        if loose > LOOSE {
            self.pack_refs().await?;
        }
        drop(guard);
        Ok(())
    }

    /// Packs loose refs; the caller holds `refs`. The loose files go only after the packed file
    /// is durable under its name.
    async fn pack_refs(&self) -> Result<(), RefError> {
        for prune in ["--no-prune", "--prune"] {
            self.0.git.run(&["pack-refs", "--all", prune], &[], 4096).await?;
            let top = self.path().to_owned();
            blocking(move || durable::sync_dir(&top)).await.map_err(|source| self.io("packed-refs", source))?;
        }
        Ok(())
    }

    /// Writes one ref outside of `refs/adamant/`. What is noted of a branch and leads elsewhere is
    /// struck out before.
    pub(crate) async fn update(&self, Update { name, old, new }: Update<'_>) -> Result<(), RefError> {
        let guard = self.0.refs.lock().await;
        let found = self.at(name).await?;
        if found != old && found != new {
            return Err(RefError::Moved { name: name.to_owned(), expected: old, found });
        }
        if name.starts_with("refs/heads/") {
            self.strike_other(name, new).await?;
        }
        if found == new {
            return Ok(());
        }
        let line = match (old, new) {
            (None, Some(new)) => format!("create {name} {new}\n"),
            (Some(old), Some(new)) => format!("update {name} {new} {old}\n"),
            (Some(old), None) => format!("delete {name} {old}\n"),
            (None, None) => return Ok(()),
        };
        self.0.git.run(&["update-ref", "--stdin"], line.as_bytes(), 4096).await?;
        if new.is_some() && old.is_none() && name.starts_with("refs/heads/") {
            self.settle_head(name).await?;
        }
        let file = self.path().join(name);
        let top = self.path().to_owned();
        let synced = blocking(move || durable::sync_upwards(file.parent().unwrap_or(&top), &top));
        synced.await.map_err(|source| self.io(name, source))?;
        drop(guard);
        Ok(())
    }

    /// Lets `HEAD`, which says what a clone checks out, point to a branch that exists.
    async fn settle_head(&self, branch: &str) -> Result<(), RefError> {
        let head = self.0.git.run(&["symbolic-ref", "HEAD"], &[], 4096).await?;
        let head = String::from_utf8_lossy(&head).trim().to_owned();
        if self.at(&head).await?.is_none() {
            // git renames without a sync here, and a repository with an empty HEAD is none.
            let file = self.path().join("HEAD");
            let line = format!("ref: {branch}\n");
            let written = blocking(move || durable::write(&file, line.as_bytes()));
            written.await.map_err(|source| self.io("HEAD", source))?;
        }
        Ok(())
    }

    /// What a ref is at.
    pub(crate) async fn at(&self, name: &str) -> Result<Option<Oid>, GitError> {
        let mut found = None;
        let args = ["for-each-ref", "--format=%(objectname) %(refname)", name];
        self.0
            .git
            .records(&args, &[], b'\n', |record| -> Result<(), GitError> {
                let (oid, full) = parse(record, &args)?;
                // The pattern also matches whole directories of refs.
                if full == name {
                    found = Some(oid);
                }
                Ok(())
            })
            .await?;
        Ok(found)
    }

    /// A ref that keeps `name` from being made: git holds a name, or names below it.
    pub(crate) async fn in_the_way(&self, name: &str) -> Result<Option<String>, GitError> {
        // The pattern matches this ref and the whole directory of refs of that name.
        let top = directories(name).next().unwrap_or(name);
        let args = ["for-each-ref", "--format=%(objectname) %(refname)", top];
        let mut found = None;
        self.0
            .git
            .records(&args, &[], b'\n', |record| -> Result<(), GitError> {
                let (_, other) = parse(record, &args)?;
                let below = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
                if found.is_none() && (below(name, other) || below(other, name)) {
                    found = Some(other.to_owned());
                }
                Ok(())
            })
            .await?;
        Ok(found)
    }

    /// Refs under `prefix` by the rest of their names, peeled.
    async fn refs(&self, prefix: &str) -> Result<BTreeMap<String, Oid>, GitError> {
        let mut refs = BTreeMap::new();
        let format = "--format=%(if)%(*objectname)%(then)%(*objectname)%(else)%(objectname)%(end) %(refname)";
        let args = ["for-each-ref", format, prefix];
        self.0
            .git
            .records(&args, &[], b'\n', |record| -> Result<(), GitError> {
                let (oid, name) = parse(record, &args)?;
                if let Some(rest) = name.strip_prefix(prefix) {
                    refs.insert(rest.to_owned(), oid);
                }
                Ok(())
            })
            .await?;
        Ok(refs)
    }

    /// Branches and tags as they are, by full name.
    pub(crate) async fn advertised(&self) -> Result<Vec<(Oid, String)>, GitError> {
        let mut refs = Vec::new();
        let args = ["for-each-ref", "--format=%(objectname) %(refname)", "refs/heads/", "refs/tags/"];
        self.0
            .git
            .records(&args, &[], b'\n', |record| -> Result<(), GitError> {
                let (oid, name) = parse(record, &args)?;
                refs.push((oid, name.to_owned()));
                Ok(())
            })
            .await?;
        Ok(refs)
    }

    pub(crate) fn io(&self, what: &str, source: std::io::Error) -> RefError {
        RefError::Io { path: self.path().join(what), source }
    }
}

fn parse<'a>(record: &'a [u8], args: &[&str]) -> Result<(Oid, &'a str), GitError> {
    let bad = || unexpected(args.first().copied().unwrap_or_default(), record);
    let (oid, name) = record.split_at_checked(40).ok_or_else(bad)?;
    let name = std::str::from_utf8(name).ok().and_then(|name| name.strip_prefix(' ')).ok_or_else(bad)?;
    Ok((Oid::from_ascii(oid).map_err(|_| bad())?, name))
}

fn branch_ref(name: &str) -> Result<String, RefError> {
    let full = format!("refs/heads/{name}");
    if is_ref(&full) { Ok(full) } else { Err(RefError::BadName(name.chars().take(200).collect())) }
}

/// Whether `name` is a branch or tag with a name git allows and a command line can hold.
/// Spec: git-check-ref-format(1).
pub(crate) fn is_ref(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("refs/heads/").or_else(|| name.strip_prefix("refs/tags/")) else {
        return false;
    };
    name.len() <= 200
        && !rest.contains("..")
        && !rest.contains("@{")
        && rest != "@"
        && rest != "HEAD"
        && !rest.chars().any(|c| c.is_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\'))
        && rest.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with(['.', '-'])
                && !part.ends_with('.')
                && !part.to_ascii_lowercase().ends_with(".lock")
        })
}

#[cfg(test)]
mod tests {
    use super::is_ref;

    #[test]
    fn ref_names() {
        for name in ["refs/heads/main", "refs/heads/feature/x-1", "refs/tags/v1.2.3", "refs/heads/ümlaut"] {
            assert!(is_ref(name), "{name}");
        }
        for name in [
            "",
            "main",
            "HEAD",
            "refs/heads/",
            "refs/heads/a..b",
            "refs/heads/.a",
            "refs/heads/a.lock",
            "refs/heads/a.lock/b",
            "refs/heads/a//b",
            "refs/heads/a/",
            "refs/heads/-x",
            "refs/heads/@",
            "refs/heads/a@{1}",
            "refs/heads/a b",
            "refs/heads/a\nb",
            "refs/heads/a~1",
            "refs/adamant/commits/x",
            "refs/notes/x",
            "refs/replace/0123456789abcdef0123456789abcdef01234567",
            "refs/heads/../adamant/x",
        ] {
            assert!(!is_ref(name), "{name:?}");
        }
    }
}
