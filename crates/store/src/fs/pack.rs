//! Storing a blob as what differs from one that is like it.
//!
//! A push is stored plain, as it came. Later, and never in its way, the blob is cut into chunks and the
//! most similar stored blob is looked for; what both have in common is found byte by byte from equal
//! chunks on. If that saves enough, what is new becomes *pieces*, and a recipe says where every byte
//! lies. In order: pieces synced and named; recipe written, synced, read back through the reader of
//! everybody, hashed; then, with no removal at work, the recipe gets its name, durably, and only then
//! the plain file goes. A crash leaves pieces that nobody names (swept), or both forms of a blob (the
//! recipe goes, the blob is looked at again).

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use adamant_digest::{Digest, DigestMismatch, Hasher};

use super::chunks::{self, Chunk, Sketch};
use super::content::{Content, Form};
use super::likeness::Likeness;
use super::recipe::{Kind, MAX_PLACES, Place, Recipe};
use super::temp::Temp;
use super::{COMPARE_BYTES, Inner, read_full, sync_dir};

/// Smaller blobs stay as they are, in bytes.
pub(super) const LEAST_BYTES: u64 = 1 << 20;
/// Larger ones, too: the chunks of two are held in memory.
const MOST_BYTES: u64 = 8 << 30;
/// Blobs that are looked at for their likeness before one stays plain.
const CANDIDATES: usize = 2;
/// Shorter common runs are stored again, in bytes.
const LEAST_RUN: u64 = 256;
/// When there are too many places, so many are left.
const KEPT_PLACES: usize = MAX_PLACES / 2;
/// A patched blob costs at most so many percent of a plain one.
const MOST_COST: u64 = 70;
/// Bytes compared at a time beyond a chunk.
const STRIDE: usize = 64 << 10;

/// What became of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packed {
    /// It is stored as what differs from others.
    Patched {
        /// Bytes that are new.
        new: u64,
    },
    /// It stays as it is: small, like nothing else, rested on by others, or patched already.
    Plain,
}

/// Bytes of the new blob that another has as well.
#[derive(Debug, Clone, Copy)]
struct Common {
    here: u64,
    there: u64,
    len: u64,
}

impl Inner {
    /// Looks at one blob. `stop` ends it early, with an error of kind `Interrupted` and no change.
    pub(super) fn pack(&self, digest: Digest, likeness: &mut Likeness, stop: &AtomicBool) -> io::Result<Packed> {
        let Some((mut file, size)) = self.stored(digest)? else { return Ok(Packed::Plain) };
        if fs::symlink_metadata(self.recipe_path(digest)).is_ok() {
            let mut plain = Content::new(size, Form::Plain(file));
            let found = hash_all(&mut plain)?;
            if found != digest {
                self.blame(&DigestMismatch { expected: digest, found }, &plain);
                return Ok(Packed::Plain);
            }
            self.drop_recipe(digest, &plain)?;
            let Some((again, _)) = self.stored(digest)? else { return Ok(Packed::Plain) };
            file = again;
        }
        if !(LEAST_BYTES..=MOST_BYTES).contains(&size) {
            return Ok(Packed::Plain);
        }
        let mut hasher = Hasher::new();
        let here = chunks::cut(&mut file, &mut |block| {
            hasher.update(block);
            self.go_on(stop)
        })?;
        let found = hasher.finish();
        let new = Content::new(size, Form::Plain(file));
        if found != digest {
            self.blame(&DigestMismatch { expected: digest, found }, &new);
            return Ok(Packed::Plain);
        }
        let sketch = chunks::sketch(&here);
        let packed = self.patch(digest, &new, &here, &sketch, likeness, stop)?;
        likeness.add(digest, sketch)?;
        Ok(packed)
    }

    fn patch(
        &self,
        digest: Digest,
        new: &Content,
        here: &[Chunk],
        sketch: &Sketch,
        likeness: &Likeness,
        stop: &AtomicBool,
    ) -> io::Result<Packed> {
        if self.with_refs(|refs| refs.is_needed(Place { kind: Kind::Plain, digest }))? {
            return Ok(Packed::Plain);
        }
        let mut looked = 0;
        for other in likeness.most_like(digest, sketch) {
            let Some(mut there) = self.content(other)?.filter(|there| there.size > 0) else { continue };
            let cut = chunks::cut(&mut there, &mut |_| self.go_on(stop))?;
            let common = compare(new, here, &there, &cut, &|| self.go_on(stop))?;
            if let Some(mut runs) = resolve(new.size, &common, &there, other)
                && let Some(packed) = self.replace(digest, new, &mut runs, stop)?
            {
                return Ok(packed);
            }
            looked += 1;
            if looked == CANDIDATES {
                break;
            }
        }
        Ok(Packed::Plain)
    }

    /// Writes pieces and recipe and gives them the blob's name; `None` if it cannot be or a removal came
    /// between. `runs` are places, `None` for what is new.
    fn replace(
        &self,
        digest: Digest,
        new: &Content,
        runs: &mut [(Option<Place>, u64, u64)],
        stop: &AtomicBool,
    ) -> io::Result<Option<Packed>> {
        let fresh: u64 = runs.iter().filter(|run| run.0.is_none()).map(|run| run.2).sum();
        let pieces = if fresh > 0 {
            let mut temp = Temp::new(&self.dir.join("tmp"))?;
            let (mut hasher, mut at, mut to) = (Hasher::new(), 0, 0);
            for (place, offset, len) in runs.iter_mut() {
                if place.is_none() {
                    copy_range(new, at, *len, &mut |bytes| {
                        hasher.update(bytes);
                        self.go_on(stop)?;
                        temp.file_mut().write_all(bytes)
                    })?;
                    *offset = to;
                    to += *len;
                }
                at += *len;
            }
            Some((temp, Place { kind: Kind::Pieces, digest: hasher.finish() }))
        } else {
            None
        };
        let named = runs.iter().filter_map(|(place, offset, len)| {
            let place = place.or_else(|| pieces.as_ref().map(|(_, place)| *place))?;
            Some((place, *offset, *len))
        });
        let Some(recipe) = Recipe::new(named) else { return Ok(None) };
        let place = pieces.as_ref().map(|(_, place)| *place);
        if let Some((temp, place)) = pieces {
            self.keep_as(temp, &self.place_path(place))?;
        }
        let done = self.commit(digest, new, &recipe);
        if let (Some(place), false) = (place, matches!(done, Ok(true))) {
            self.drop_if_idle(place)?;
        }
        Ok(done?.then_some(Packed::Patched { new: fresh }))
    }

    /// Gives a recipe for a plain blob its name, after all that it says was read and was right, and
    /// removes the plain file. False if anything it rests on went meanwhile.
    fn commit(&self, digest: Digest, new: &Content, recipe: &Recipe) -> io::Result<bool> {
        let mut temp = Temp::new(&self.dir.join("tmp"))?;
        temp.file_mut().write_all(&recipe.encode())?;
        temp.file().sync_all()?;
        let mut back = Vec::new();
        temp.file_mut().seek(SeekFrom::Start(0))?;
        temp.file_mut().read_to_end(&mut back)?;
        let Some(recipe) = Recipe::parse(&back) else { return Ok(false) };
        let places = recipe.places.clone();
        let Some(mut content) = self.assemble(recipe)? else { return Ok(false) };
        if hash_all(&mut content)? != digest {
            tracing::error!(%digest, "a recipe gives other bytes than it should: the blob stays as it is");
            return Ok(false);
        }
        rustix::fs::fchmod(temp.file(), rustix::fs::Mode::from_raw_mode(0o444))?;
        let (plain, path) = (self.path(digest), self.recipe_path(digest));
        self.make_shard("patched", digest)?;
        let _names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let unused = Place { kind: Kind::Plain, digest };
        let there = self.with_refs(|refs| !refs.is_needed(unused))? && self.are_there(&places)?;
        let meta = match fs::symlink_metadata(&plain) {
            Ok(meta) if there && Some(meta.ino()) == new.inode() => meta,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(false),
        };
        // When it was used last, it still was.
        temp.file().set_modified(meta.modified()?)?;
        temp.rename(&path).map_err(|(_, error)| error)?;
        self.with_refs(|refs| refs.add(digest, &places))?;
        sync_dir(path.parent().unwrap_or(&self.dir))?;
        fs::remove_file(&plain)?;
        sync_dir(&self.shard(digest))?;
        Ok(true)
    }

    /// Between two steps of the work.
    fn go_on(&self, stop: &AtomicBool) -> io::Result<()> {
        self.reading.give_way();
        if stop.load(Ordering::Relaxed) { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }

    /// A blob that has both forms was pushed while its patched form was damaged, or a crash came before
    /// its plain one went. What others rest on and is gone is made again from it; then the recipe goes.
    fn drop_recipe(&self, digest: Digest, plain: &Content) -> io::Result<()> {
        let Some(recipe) = self.recipe(digest)?.filter(|recipe| recipe.size == plain.size) else {
            return self.unlink_recipe(digest);
        };
        for lost in recipe.places.iter().filter(|place| place.kind == Kind::Pieces) {
            if !self.are_there(&[*lost])? {
                self.restore(*lost, &recipe, plain)?;
            }
        }
        self.unlink_recipe(digest)
    }

    /// Writes pieces again from a blob that holds all of them.
    fn restore(&self, lost: Place, recipe: &Recipe, plain: &Content) -> io::Result<()> {
        let (mut at, mut parts) = (0, Vec::new());
        for (place, offset, len) in recipe.runs() {
            if place == lost {
                parts.push((offset, at, len));
            }
            at += len;
        }
        parts.sort_unstable();
        let mut temp = Temp::new(&self.dir.join("tmp"))?;
        let (mut hasher, mut next) = (Hasher::new(), 0);
        for (offset, from, len) in parts {
            if offset != next {
                return Ok(());
            }
            next += len;
            copy_range(plain, from, len, &mut |bytes| {
                hasher.update(bytes);
                temp.file_mut().write_all(bytes)
            })?;
        }
        if hasher.finish() == lost.digest {
            self.keep_as(temp, &self.place_path(lost))?;
            tracing::info!(pieces = %lost.digest, "pieces that were lost are here again");
        }
        Ok(())
    }

    /// Removes a recipe, and pieces that nobody else names.
    pub(super) fn unlink_recipe(&self, digest: Digest) -> io::Result<()> {
        let places = self.recipe_head(digest)?.map(|(_, places)| places).unwrap_or_default();
        {
            let _names = self.names.write().unwrap_or_else(PoisonError::into_inner);
            self.with_refs(|refs| refs.remove(digest, &places))?;
            match fs::remove_file(self.recipe_path(digest)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            }
        }
        sync_dir(self.recipe_path(digest).parent().unwrap_or(&self.dir))?;
        for place in places {
            self.drop_if_idle(place)?;
        }
        Ok(())
    }

    /// Gives bytes in `temp` a path in a shard, durably.
    pub(super) fn keep_as(&self, temp: Temp, path: &Path) -> io::Result<()> {
        rustix::fs::fchmod(temp.file(), rustix::fs::Mode::from_raw_mode(0o444))?;
        temp.file().sync_all()?;
        let shard = path.parent().unwrap_or(&self.dir);
        self.make_dir(shard)?;
        temp.rename(path).map_err(|(_, error)| error)?;
        sync_dir(shard)
    }

    pub(super) fn make_shard(&self, what: &str, digest: Digest) -> io::Result<()> {
        self.make_dir(self.in_shard(what, digest).parent().unwrap_or(&self.dir))
    }
}

fn hash_all(content: &mut Content) -> io::Result<Digest> {
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0; COMPARE_BYTES]);
    loop {
        match read_full(content, &mut buffer)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Gives `len` bytes from `offset` to `take`.
pub(super) fn copy_range(
    content: &Content,
    offset: u64,
    len: u64,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; COMPARE_BYTES];
    let mut done = 0;
    while done < len {
        let n = usize::try_from(len - done).unwrap_or(usize::MAX).min(buffer.len());
        if content.read_at(offset + done, &mut buffer[..n])? < n {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        take(&buffer[..n])?;
        done += n as u64;
    }
    Ok(())
}

/// What `new` has in common with `old`, in order and without overlaps in `new`.
fn compare(
    new: &Content,
    here: &[Chunk],
    old: &Content,
    there: &[Chunk],
    go_on: &dyn Fn() -> io::Result<()>,
) -> io::Result<Vec<Common>> {
    let known: HashMap<u64, &Chunk> = there.iter().rev().map(|chunk| (chunk.fingerprint, chunk)).collect();
    let mut common: Vec<Common> = Vec::new();
    let mut done = 0;
    let mut both = Both { new, old, a: vec![0; STRIDE], b: vec![0; STRIDE] };
    for chunk in here {
        go_on()?;
        let Some(twin) = known.get(&chunk.fingerprint).filter(|twin| twin.len == chunk.len) else { continue };
        if chunk.offset < done {
            continue;
        }
        let forward = both.forward(chunk.offset, twin.offset)?;
        if forward < chunk.len {
            continue;
        }
        let back = both.backward(chunk.offset, twin.offset, chunk.offset - done)?;
        // What was overwritten in place: whole chunks may be rare between such places.
        let (here, there) = (chunk.offset - back, twin.offset - back);
        let from = common.last().map_or((0, 0), |last| (last.here + last.len, last.there + last.len));
        if there.checked_sub(from.1) == Some(here - from.0) {
            both.beside(from, here - from.0, &mut common)?;
        }
        common.push(Common { here: chunk.offset - back, there: twin.offset - back, len: forward + back });
        done = chunk.offset + forward;
    }
    Ok(common)
}

/// Two contents beside each other.
struct Both<'a> {
    new: &'a Content,
    old: &'a Content,
    a: Vec<u8>,
    b: Vec<u8>,
}

impl Both<'_> {
    /// How many bytes from these offsets on are equal.
    fn forward(&mut self, here: u64, there: u64) -> io::Result<u64> {
        let mut len = 0;
        loop {
            let n = self.new.read_at(here + len, &mut self.a)?;
            let n = self.old.read_at(there + len, &mut self.b[..n])?;
            let same = self.a.iter().zip(&self.b[..n]).take_while(|(a, b)| a == b).count();
            len += same as u64;
            if same < n || n == 0 {
                return Ok(len);
            }
        }
    }

    /// Adds the equal runs within `len` bytes from these offsets on.
    fn beside(&mut self, (here, there): (u64, u64), len: u64, common: &mut Vec<Common>) -> io::Result<()> {
        let mut at = 0;
        while at < len {
            let n = usize::try_from(len - at).unwrap_or(usize::MAX).min(STRIDE);
            let n = self.new.read_at(here + at, &mut self.a[..n])?.min(self.old.read_at(there + at, &mut self.b[..n])?);
            if n == 0 {
                break;
            }
            let mut from = 0;
            while from < n {
                let same = self.a[from..n].iter().zip(&self.b[from..n]).take_while(|(a, b)| a == b).count();
                if same as u64 >= LEAST_RUN {
                    let into = at + from as u64;
                    common.push(Common { here: here + into, there: there + into, len: same as u64 });
                }
                from += same + 1;
            }
            at += n as u64;
        }
        Ok(())
    }

    /// How many bytes before these offsets are equal, at most `most`.
    fn backward(&mut self, here: u64, there: u64, most: u64) -> io::Result<u64> {
        let most = most.min(there);
        let mut len = 0;
        while len < most {
            let n = usize::try_from(most - len).unwrap_or(usize::MAX).min(STRIDE);
            let (from, to) = (here - len - n as u64, there - len - n as u64);
            if self.new.read_at(from, &mut self.a[..n])? < n || self.old.read_at(to, &mut self.b[..n])? < n {
                break;
            }
            let same = self.a[..n].iter().rev().zip(self.b[..n].iter().rev()).take_while(|(a, b)| a == b).count();
            len += same as u64;
            if same < n {
                break;
            }
        }
        Ok(len)
    }
}

/// Where each byte of the new blob lies, `None` where it is new; `None` at all if that saves too little.
/// When there would be too many places, those that give the least are left and their bytes kept again.
fn resolve(size: u64, common: &[Common], old: &Content, other: Digest) -> Option<Vec<(Option<Place>, u64, u64)>> {
    let mut runs: Vec<(Option<Place>, u64, u64)> = Vec::new();
    let mut at = 0;
    let push = |runs: &mut Vec<(Option<Place>, u64, u64)>, run: (Option<Place>, u64, u64)| match runs.last_mut() {
        Some(last) if last.0.is_none() && run.0.is_none() => last.2 += run.2,
        _ => runs.push(run),
    };
    let mut located = Vec::new();
    for part in common {
        located.push((part.here, old.places(other, part.there, part.len)));
    }
    let mut given: HashMap<Place, u64> = HashMap::new();
    for (place, _, len) in located.iter().flat_map(|(_, places)| places) {
        *given.entry(*place).or_default() += len;
    }
    let mut most: Vec<(Place, u64)> = given.into_iter().collect();
    most.sort_by_key(|(place, bytes)| (std::cmp::Reverse(*bytes), *place));
    // One is for what is new.
    if most.len() >= MAX_PLACES {
        most.truncate(KEPT_PLACES);
    }
    for (here, places) in located {
        if here > at {
            push(&mut runs, (None, 0, here - at));
            at = here;
        }
        for (place, offset, len) in places {
            let kept = len >= LEAST_RUN && most.iter().any(|(kept, _)| *kept == place);
            push(&mut runs, if kept { (Some(place), offset, len) } else { (None, 0, len) });
            at += len;
        }
    }
    if size > at {
        push(&mut runs, (None, 0, size - at));
    }
    let new: u64 = runs.iter().filter(|run| run.0.is_none()).map(|run| run.2).sum();
    let cost = new + runs.len() as u64 * 20;
    (cost.saturating_mul(100) <= size.saturating_mul(MOST_COST)).then_some(runs)
}
