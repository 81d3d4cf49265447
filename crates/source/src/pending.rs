//! Branches on their way: noted before the pipeline runs, struck out once the branch has moved.
//!
//! A branch alone does not tell a push that a crash cut off from one that was undone since: both
//! leave it where the push found it. The note does. It is a file `pending/<sha256 of the name>`
//! in the repository, so there is one a branch, and it holds what git sends for a ref.
//!
//! A crash leaves: before the note, nothing; until the pipeline is done, a note nobody needs;
//! until the branch has moved, a note to complete; until the note is struck out, one whose branch
//! has arrived. A note that says otherwise is struck out, durably, before a branch moves, so no
//! start takes a branch back.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use adamant_digest::Digest;

use crate::refs::{Update, is_ref};
use crate::repositories::blocking;
use crate::{Oid, RefError, Repository, durable};

/// Where the notes are, in a repository.
pub(crate) const PENDING: &str = "pending";
/// The longest note: two ids, a name, two spaces and a newline.
const NOTE: u64 = 512;

/// A branch on its way: pushed, and not known to have arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Full name, `refs/heads/…`.
    pub refname: String,
    /// What the branch was at; `None`: it was not there.
    pub old: Option<Oid>,
    /// The commit that was pushed.
    pub new: Oid,
}

impl Repository {
    /// Pushes that were at work when the process before ended, and those that are at work now,
    /// by name of the branch. A note that cannot be understood is logged and left out.
    pub async fn pending(&self) -> Result<Vec<Pending>, RefError> {
        let dir = self.path().join(PENDING);
        let listed = blocking(move || {
            let mut pending = Vec::new();
            for entry in std::fs::read_dir(dir)? {
                let path = entry?.path();
                match read(&path)? {
                    Some(Ok(note)) => pending.push(note),
                    Some(Err(())) => tracing::warn!(path = %path.display(), "a note of a push is damaged"),
                    None => {}
                }
            }
            pending.sort_by(|a: &Pending, b: &Pending| a.refname.cmp(&b.refname));
            Ok(pending)
        });
        listed.await.map_err(|source| self.io(PENDING, source))
    }

    /// Moves the branch of a push whose release is made, if it stands where the push found it.
    /// Whether it did. Durable on return, idempotent; an error leaves the note.
    pub async fn complete(&self, pending: &Pending) -> Result<bool, RefError> {
        let Pending { refname, old, new } = pending;
        let _turn = self.turn(refname, |_| {}).await;
        if self.noted(refname).await?.as_ref() != Some(pending) {
            return Ok(false);
        }
        let moved = match self.update(Update { name: refname, old: *old, new: Some(*new) }).await {
            Ok(()) => true,
            Err(RefError::Moved { .. }) => false,
            Err(error) => return Err(error),
        };
        self.strike(refname).await?;
        Ok(moved)
    }

    /// Forgets a push that came to nothing. Durable on return, idempotent.
    pub async fn forget(&self, pending: &Pending) -> Result<(), RefError> {
        let _turn = self.turn(&pending.refname, |_| {}).await;
        if self.noted(&pending.refname).await?.as_ref() == Some(pending) {
            self.strike(&pending.refname).await?;
        }
        Ok(())
    }

    /// Notes a push, in place of one of the same branch. Durable on return; the caller has the
    /// branch's turn.
    pub(crate) async fn note(&self, Pending { refname, old, new }: &Pending) -> Result<(), RefError> {
        let file = self.note_file(refname);
        let line = format!("{} {new} {refname}\n", old.unwrap_or(Oid::ZERO));
        blocking(move || durable::write(&file, line.as_bytes())).await.map_err(|source| self.io(PENDING, source))
    }

    /// Strikes out what is noted of a branch. Durable on return, even if it was gone: whoever
    /// removed it may not have come to the sync.
    pub(crate) async fn strike(&self, refname: &str) -> Result<(), RefError> {
        let file = self.note_file(refname);
        let dir = self.path().join(PENDING);
        let removed = blocking(move || {
            durable::remove_file(&file)?;
            durable::sync_dir(&dir)
        });
        removed.await.map_err(|source| self.io(PENDING, source))
    }

    /// Strikes out what is noted of a branch unless it leads to `new`, before the branch moves.
    pub(crate) async fn strike_other(&self, refname: &str, new: Option<Oid>) -> Result<(), RefError> {
        if new.is_some() && self.noted(refname).await?.map(|noted| noted.new) == new {
            return Ok(());
        }
        self.strike(refname).await
    }

    /// What is noted of a branch.
    async fn noted(&self, refname: &str) -> Result<Option<Pending>, RefError> {
        let file = self.note_file(refname);
        let noted = blocking(move || read(&file)).await.map_err(|source| self.io(PENDING, source))?;
        Ok(noted.and_then(Result::ok).filter(|noted| noted.refname == refname))
    }

    fn note_file(&self, refname: &str) -> PathBuf {
        self.path().join(PENDING).join(Digest::of(refname.as_bytes()).hex())
    }
}

/// Removes what a killed process was writing.
pub(crate) fn remove_unfinished(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(durable::TEMPORARY.as_bytes()) {
            durable::remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// Reads a note; `Err(())` within: it is none.
fn read(path: &Path) -> io::Result<Option<Result<Pending, ()>>> {
    if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(durable::TEMPORARY.as_bytes())) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(NOTE).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(parse(&bytes).ok_or(())))
}

/// `<old> <new> <ref>`, with zeros for a branch that was not there.
fn parse(bytes: &[u8]) -> Option<Pending> {
    let line = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    let mut parts = line.splitn(3, ' ');
    let old: Oid = parts.next()?.parse().ok()?;
    let new: Oid = parts.next()?.parse().ok()?;
    let refname = parts.next().filter(|name| name.starts_with("refs/heads/") && is_ref(name))?;
    Some(Pending { refname: refname.to_owned(), old: (old != Oid::ZERO).then_some(old), new })
}

#[cfg(test)]
mod tests {
    use super::parse;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const ZERO: &str = "0000000000000000000000000000000000000000";

    #[test]
    fn notes_are_parsed() {
        let note = parse(format!("{ZERO} {A} refs/heads/topic/x\n").as_bytes()).unwrap();
        assert_eq!((note.refname.as_str(), note.old, note.new.to_string().as_str()), ("refs/heads/topic/x", None, A));
        assert!(parse(format!("{A} {A} refs/heads/main\n").as_bytes()).unwrap().old.is_some());
        for text in [
            String::new(),
            "\n".to_owned(),
            format!("{ZERO} {A} refs/heads/main"),
            format!("{ZERO} {A} refs/tags/v1\n"),
            format!("{ZERO} {A} refs/heads/../x\n"),
            format!("{ZERO} refs/heads/main\n"),
            format!("{ZERO} {A} \n"),
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
    }
}
