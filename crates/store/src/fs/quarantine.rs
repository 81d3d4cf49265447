//! Bytes that are wrong, moved aside: `<dir>/quarantine/<what>-<hex>-<unix seconds>-<hex of what was
//! found>`. They are never served, and no name leads to them, so a client that asks sends the right
//! ones again. They stay for whoever wants to know what happened, the newest of them.
//!
//! Whoever only looks (`FsBlobs::observe`) moves nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use adamant_digest::{Digest, DigestMismatch, Hasher};

use super::content::{Content, Form};
use super::recipe::{Kind, Place};
use super::{COMPARE_BYTES, Inner, no_follow, read_full, sync_dir};

/// Most files that are kept aside.
const MOST: usize = 100;
/// Most blobs that are known to be damaged; beyond, one is found again when it is read.
const MOST_KNOWN: usize = 10_000;

/// What is known to be wrong.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    /// By blob.
    known: Mutex<BTreeMap<Digest, Known>>,
    /// Blobs found wrong since this store was opened.
    found: AtomicU64,
    /// Nothing is moved.
    pub(super) observing: bool,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    /// What the bytes hash to.
    found: Digest,
    /// The wrong bytes still lie under the name: they could not be moved.
    in_place: bool,
}

impl Quarantine {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was moved aside by earlier processes, whether it came back or not.
    pub(super) fn read(dir: &Path, observing: bool) -> io::Result<Self> {
        let quarantine = Self { observing, ..Self::default() };
        for (_, name) in entries(dir)? {
            if let Some((kind, digest, found)) = parse(&name)
                && kind != "pieces"
            {
                quarantine.lock().insert(digest, Known { found, in_place: false });
            }
        }
        Ok(quarantine)
    }

    pub(super) fn found(&self, digest: Digest) -> Option<Digest> {
        self.lock().get(&digest).map(|known| known.found)
    }

    pub(super) fn holds_in_place(&self, digest: Digest) -> bool {
        let known = self.lock();
        !known.is_empty() && known.get(&digest).is_some_and(|known| known.in_place)
    }

    /// The right bytes are here.
    pub(super) fn heal(&self, digest: Digest) {
        let mut known = self.lock();
        if !known.is_empty() && known.remove(&digest).is_some() {
            tracing::info!(%digest, "a damaged blob is whole again");
        }
    }

    /// As if it had never been found.
    pub(super) fn forget(&self, digest: Digest) {
        self.lock().remove(&digest);
    }

    /// Blobs found wrong since this store was opened.
    pub(super) fn count(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    fn note(&self, mismatch: &DigestMismatch, in_place: bool) {
        let mut known = self.lock();
        if known.len() < MOST_KNOWN || known.contains_key(&mismatch.expected) {
            let this = Known { found: mismatch.found, in_place };
            if known.insert(mismatch.expected, this).is_none() {
                self.found.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn all(&self) -> Vec<(Digest, Digest)> {
        self.lock().iter().map(|(digest, known)| (*digest, known.found)).collect()
    }
}

/// Kind, name and what was found, of a file that was moved aside.
fn parse(name: &str) -> Option<(&str, Digest, Digest)> {
    let mut parts = name.split('-');
    let (kind, digest, _, found) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    Some((kind, Digest::from_hex(digest).ok()?, Digest::from_hex(found).ok()?))
}

/// Files kept aside with their times, oldest first.
fn entries(dir: &Path) -> io::Result<Vec<(u64, String)>> {
    let mut found = Vec::new();
    match fs::read_dir(dir.join("quarantine")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(entries) => {
            for entry in entries {
                if let Ok(name) = entry?.file_name().into_string() {
                    let time = name.split('-').nth(2).and_then(|time| time.parse().ok()).unwrap_or(0);
                    found.push((time, name));
                }
            }
        }
    }
    found.sort();
    Ok(found)
}

/// See [`super::FsBlobs::aside`].
pub(super) fn aside(dir: &Path) -> io::Result<Vec<(PathBuf, Digest)>> {
    let of = |(_, name): (u64, String)| parse(&name).map(|(_, digest, _)| (dir.join("quarantine").join(&name), digest));
    Ok(entries(dir)?.into_iter().filter_map(of).collect())
}

impl Inner {
    /// What was read as `mismatch.expected` from `content` is wrong: finds out which file is to blame
    /// and moves it aside.
    pub(super) fn blame(&self, mismatch: &DigestMismatch, content: &Content) {
        let digest = mismatch.expected;
        if self.quarantine.observing {
            return;
        }
        let done = match &content.form {
            Form::Plain(_) => self.set_aside("plain", &self.path(digest), content.inode(), digest, mismatch.found),
            Form::Patched { recipe, .. } => self.blame_places(&recipe.places, digest, mismatch.found),
            Form::Broken => match self.recipe_head(digest) {
                // What it rests on is gone, and may come back.
                Ok(Some((_, places))) if self.recipe(digest).is_ok_and(|read| read.is_some()) => {
                    self.blame_places(&places, digest, mismatch.found)
                }
                _ => self.set_aside("recipe", &self.recipe_path(digest), None, digest, mismatch.found),
            },
        };
        if let Err(error) = &done {
            tracing::error!(%digest, %error, "damaged bytes cannot be moved aside");
        }
        self.quarantine.note(mismatch, done.is_err());
    }

    /// Hashes what a patched blob rests on. If all of it is right or gone, its recipe is wrong.
    fn blame_places(&self, places: &[Place], digest: Digest, found: Digest) -> io::Result<()> {
        let mut blamed = false;
        for place in places {
            let path = self.place_path(*place);
            let (is, inode) = match no_follow().open(&path).and_then(|file| Ok((file.metadata()?.ino(), file))) {
                Ok((inode, mut file)) => (hash(&mut file)?, inode),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    blamed = true;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if is != place.digest {
                blamed = true;
                let kind = if place.kind == Kind::Plain { "plain" } else { "pieces" };
                self.set_aside(kind, &path, Some(inode), place.digest, is)?;
                if place.kind == Kind::Plain {
                    self.quarantine.note(&DigestMismatch { expected: place.digest, found: is }, false);
                }
            }
        }
        if blamed { Ok(()) } else { self.set_aside("recipe", &self.recipe_path(digest), None, digest, found) }
    }

    /// Moves a file aside, unless another one has taken its place.
    fn set_aside(&self, kind: &str, path: &Path, inode: Option<u64>, digest: Digest, found: Digest) -> io::Result<()> {
        let dir = self.dir.join("quarantine");
        if !dir.is_dir() {
            fs::create_dir_all(&dir)?;
            sync_dir(&self.dir)?;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let name = format!("{kind}-{}-{now}-{}", digest.hex(), found.hex());
        {
            let _names = self.names.write().unwrap_or_else(PoisonError::into_inner);
            match fs::symlink_metadata(path) {
                Ok(meta) if inode.is_none_or(|inode| inode == meta.ino()) => fs::rename(path, dir.join(&name))?,
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        sync_dir(&dir)?;
        sync_dir(path.parent().unwrap_or(&self.dir))?;
        tracing::error!(%digest, %found, aside = name, "damaged bytes were moved aside; pushing the right ones heals");
        for (_, name) in entries(&self.dir)?.iter().rev().skip(MOST) {
            fs::remove_file(dir.join(name))?;
        }
        Ok(())
    }

    /// Removes what was moved aside of a blob.
    pub(super) fn forget_aside(&self, digest: Digest) -> io::Result<()> {
        self.quarantine.heal(digest);
        let dir = self.dir.join("quarantine");
        let mut removed = false;
        for (_, name) in entries(&self.dir)? {
            if parse(&name).is_some_and(|(_, of, _)| of == digest) {
                fs::remove_file(dir.join(name))?;
                removed = true;
            }
        }
        if removed { sync_dir(&dir) } else { Ok(()) }
    }
}

/// The sha256 of all that a file holds.
pub(super) fn hash(file: &mut fs::File) -> io::Result<Digest> {
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0; COMPARE_BYTES]);
    loop {
        match read_full(file.by_ref(), &mut buffer)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(&buffer[..n]),
        }
    }
}
