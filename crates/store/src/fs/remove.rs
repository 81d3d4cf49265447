//! When a blob was last used, and taking it away. All of it blocks.
//!
//! The time of use is the file's time of modification: nothing else changes it, since bytes are
//! never written twice. One lock orders uses and removals of names: whoever was told that a blob is
//! here and used has a time on it that a removal, which looks under the same lock, respects. The lock
//! is this process's own; a directory has one (see `DataLock`).

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use adamant_digest::{Digest, Sha512, Sha512Hasher};
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, futimens};

use super::recipe::{Kind, Place};
use super::{COMPARE_BYTES, Inner, aliases, no_follow, rehome, sync_dir};

/// A time of use that moves by more than this is synced; the disk may be behind by as much.
const LAG: Duration = Duration::from_hours(1);

/// How often a removal begins again because something was built upon the blob meanwhile.
const TRIES: usize = 8;

/// Second names looked at together.
const PAGE: usize = 1000;

/// Sets the time of use of an open file to now.
pub(super) fn stamp(file: &File) -> io::Result<()> {
    let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    Ok(futimens(file, &Timestamps { last_access: time(UTIME_OMIT), last_modification: time(UTIME_NOW) })?)
}

/// Sets the time of use and gives the length; `None` if the blob is not here.
pub(super) fn touch(store: &Inner, digest: Digest) -> io::Result<Option<u64>> {
    let (file, size, before) = {
        let _names = store.names.read().unwrap_or_else(PoisonError::into_inner);
        let Some(size) = store.size(digest)? else { return Ok(None) };
        let file = match no_follow().open(store.path(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => no_follow().open(store.recipe_path(digest))?,
            other => other?,
        };
        let before = file.metadata()?.modified()?;
        stamp(&file)?;
        (file, size, before)
    };
    let after = file.metadata()?.modified()?;
    if after.duration_since(before).map_or(true, |moved| moved > LAG) {
        file.sync_all()?;
    }
    Ok(Some(size))
}

/// The time of use.
pub(super) fn used(store: &Inner, digest: Digest) -> io::Result<Option<SystemTime>> {
    for path in [store.path(digest), store.recipe_path(digest)] {
        match std::fs::symlink_metadata(path) {
            Ok(meta) => return meta.is_file().then(|| meta.modified()).transpose(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Removes second names, then bytes: a crash between leaves a blob without second names, which is
/// still removed by the next try. Blobs that rest on these bytes get what they need of them first.
pub(super) fn remove(store: &Inner, digest: Digest, idle_since: Option<SystemTime>) -> io::Result<bool> {
    let kept =
        |used: Option<SystemTime>| matches!((used, idle_since), (Some(used), Some(idle_since)) if used > idle_since);
    if kept(used(store, digest)?) {
        return Ok(false);
    }
    let second = second_names(store, digest)?;
    let plain = Place { kind: Kind::Plain, digest };
    let pieces = store.recipe_head(digest)?.map(|(_, places)| places).unwrap_or_default();
    for _ in 0..TRIES {
        for place in std::iter::once(plain).chain(pieces.iter().copied().filter(|place| place.kind == Kind::Pieces)) {
            rehome::rehome(store, place, digest)?;
        }
        {
            let _names = store.names.write().unwrap_or_else(PoisonError::into_inner);
            if kept(used(store, digest)?) {
                return Ok(false);
            }
            if store.with_refs(|refs| refs.is_needed(plain))? && store.path(digest).try_exists()? {
                // Packed meanwhile on top of it.
                continue;
            }
            for other in &second {
                aliases::remove(store, *other)?;
            }
            match std::fs::remove_file(store.path(digest)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        store.unlink_recipe(digest)?;
        match sync_dir(&store.shard(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        for of in std::iter::once(digest).chain(pieces.iter().map(|place| place.digest)) {
            store.forget_aside(of)?;
        }
        store.blocks.forget(digest);
        return Ok(true);
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{digest} is being built upon: remove it again")))
}

/// The second names of a blob: what its bytes hash to, or, if they are not here or damaged, what a
/// search finds.
fn second_names(store: &Inner, digest: Digest) -> io::Result<Vec<Sha512>> {
    if !store.dir.join("sha512").try_exists()? {
        return Ok(Vec::new());
    }
    if let Some(other) = hashed(store, digest) {
        return Ok(if aliases::get(store, other)? == Some(digest) { vec![other] } else { Vec::new() });
    }
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = aliases::list(store, after, PAGE)?;
        for other in &page {
            if aliases::get(store, *other)? == Some(digest) {
                found.push(*other);
            }
        }
        if page.len() < PAGE {
            return Ok(found);
        }
        after = page.last().copied();
    }
}

/// The sha512 of a stored copy that is right.
fn hashed(store: &Inner, digest: Digest) -> Option<Sha512> {
    let mut file = store.content(digest).ok()??;
    let (mut first, mut second) = (adamant_digest::Hasher::new(), Sha512Hasher::new());
    let mut buffer = vec![0; COMPARE_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                first.update(&buffer[..n]);
                second.update(&buffer[..n]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Whatever lies there cannot be read.
            Err(_) => return None,
        }
    }
    (first.finish() == digest).then(|| second.finish())
}
