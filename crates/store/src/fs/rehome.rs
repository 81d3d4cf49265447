//! Giving blobs that rest on a place the bytes they need of it, before the place goes. What nobody else
//! needs is in no other file afterwards.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt;
use std::sync::PoisonError;

use adamant_digest::{Digest, Hasher};

use super::recipe::{Kind, Place, Recipe};
use super::temp::Temp;
use super::{COMPARE_BYTES, Inner, no_follow, quarantine, sync_dir};

/// How often those that rest on a place are looked for: more may come meanwhile.
const TRIES: usize = 8;

/// Where bytes of the place lie from now on.
struct Moved {
    from: u64,
    len: u64,
    to: u64,
}

/// Moves all blobs but `leaving` away from `place`, unless they need all of its pieces. A crash leaves
/// some of them moved; all can be read at any time.
pub(super) fn rehome(store: &Inner, place: Place, leaving: Digest) -> io::Result<()> {
    for _ in 0..TRIES {
        let dependents = store.with_refs(|refs| refs.of(place))?;
        let mut recipes = Vec::new();
        for digest in dependents.into_iter().filter(|digest| *digest != leaving) {
            if let Some(recipe) = store.recipe(digest)? {
                recipes.push((digest, recipe));
            }
        }
        if recipes.is_empty() {
            return Ok(());
        }
        let mut file = match no_follow().open(store.place_path(place)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        if quarantine::hash(&mut file)? != place.digest {
            // Wrong bytes help nobody.
            return Ok(());
        }
        let mut moved = needed(place, &recipes);
        let bytes: u64 = moved.iter().map(|range| range.len).sum();
        if place.kind == Kind::Pieces && bytes == file.metadata()?.len() {
            return Ok(());
        }
        let home = write(store, &mut file, &mut moved)?;
        for (digest, recipe) in recipes {
            let runs = recipe.runs().filter_map(|(at, offset, len)| {
                if at != place {
                    return Some((at, offset, len));
                }
                let range = moved.iter().find(|range| (range.from..range.from + range.len).contains(&offset))?;
                Some((home, range.to + offset - range.from, len))
            });
            let rewritten = Recipe::new(runs).filter(|rewritten| rewritten.size == recipe.size);
            let beyond = || io::Error::other(format!("{digest} cannot be moved away from {}", place.digest));
            replace(store, digest, &recipe, &rewritten.ok_or_else(beyond)?)?;
        }
        store.drop_if_idle(home)?;
    }
    Ok(())
}

/// The ranges of `place` that recipes need, in order and apart.
fn needed(place: Place, recipes: &[(Digest, Recipe)]) -> Vec<Moved> {
    let runs = recipes.iter().flat_map(|(_, recipe)| recipe.runs()).filter(|(at, _, _)| *at == place);
    let mut ranges: Vec<(u64, u64)> = runs.map(|(_, offset, len)| (offset, len)).collect();
    ranges.sort_unstable();
    let mut moved: Vec<Moved> = Vec::new();
    for (from, len) in ranges {
        match moved.last_mut() {
            Some(last) if from <= last.from + last.len => last.len = last.len.max(from + len - last.from),
            _ => moved.push(Moved { from, len, to: 0 }),
        }
    }
    moved
}

/// Keeps the ranges as pieces and says where in them each begins.
fn write(store: &Inner, file: &mut fs::File, moved: &mut [Moved]) -> io::Result<Place> {
    let mut temp = Temp::new(&store.dir.join("tmp"))?;
    let (mut hasher, mut to, mut buffer) = (Hasher::new(), 0, vec![0; COMPARE_BYTES]);
    for range in moved {
        range.to = to;
        to += range.len;
        file.seek(SeekFrom::Start(range.from))?;
        let mut left = range.len;
        while left > 0 {
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            file.read_exact(&mut buffer[..n])?;
            hasher.update(&buffer[..n]);
            temp.file_mut().write_all(&buffer[..n])?;
            left -= n as u64;
        }
    }
    let home = Place { kind: Kind::Pieces, digest: hasher.finish() };
    store.keep_as(temp, &store.place_path(home))?;
    Ok(home)
}

/// Puts another recipe for the same bytes in the place of one, unless somebody else did.
fn replace(store: &Inner, digest: Digest, old: &Recipe, new: &Recipe) -> io::Result<()> {
    let path = store.recipe_path(digest);
    let before = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let mut temp = Temp::new(&store.dir.join("tmp"))?;
    temp.file_mut().write_all(&new.encode())?;
    rustix::fs::fchmod(temp.file(), rustix::fs::Mode::from_raw_mode(0o444))?;
    temp.file().sync_all()?;
    {
        let _names = store.names.write().unwrap_or_else(PoisonError::into_inner);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.ino() == before.ino() => temp.file().set_modified(meta.modified()?)?,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(()),
        }
        let there = store.are_there(&new.places)?;
        if !there || store.recipe(digest)?.as_ref() != Some(old) {
            return Ok(());
        }
        temp.rename(&path).map_err(|(_, error)| error)?;
        store.with_refs(|refs| {
            refs.remove(digest, &old.places);
            refs.add(digest, &new.places);
        })?;
    }
    sync_dir(path.parent().unwrap_or(&store.dir))
}
