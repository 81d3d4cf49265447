//! The bytes of a stored blob, whichever form it has: a plain file, or a recipe over the places that
//! its bytes lie in.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use adamant_digest::Digest;

use super::recipe::{self, Kind, MAX_PLACES, Place, Recipe};
use super::{Inner, no_follow};

/// How often a recipe is read again whose places went while they were opened: they are replaced
/// when a blob is removed that others rest on.
const TRIES: usize = 8;
/// Most places kept in the table of open ones before those that nobody reads are struck out.
const OPEN: usize = 1024;

/// A stored blob, opened. All it reads from is held open, so it reads on whatever is removed.
#[derive(Debug)]
pub(super) struct Content {
    /// As stored; bytes may follow where there should be none.
    pub(super) size: u64,
    pub(super) form: Form,
    at: u64,
    /// The run that `at` lies in, and where in it.
    run: (usize, u64),
}

#[derive(Debug)]
pub(super) enum Form {
    Plain(File),
    Patched {
        recipe: Recipe,
        files: Vec<Arc<File>>,
    },
    /// A recipe that cannot be read, or places that are not there: it has no bytes, which are wrong.
    Broken,
}

impl Content {
    pub(super) fn new(size: u64, form: Form) -> Self {
        Self { size, form, at: 0, run: (0, 0) }
    }

    pub(super) fn inode(&self) -> Option<u64> {
        match &self.form {
            Form::Plain(file) => file.metadata().ok().map(|meta| meta.ino()),
            Form::Patched { .. } | Form::Broken => None,
        }
    }

    /// Fills `buffer` from `offset`, as far as there are bytes.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.form {
            Form::Plain(file) => read_full_at(file, offset, buffer),
            Form::Patched { recipe, files } => {
                let (mut at, mut filled) = (0, 0);
                for run in &recipe.runs {
                    let wanted = offset + filled as u64;
                    if filled < buffer.len() && wanted < at + run.len {
                        let into = wanted - at;
                        let n = usize::try_from(run.len - into).unwrap_or(usize::MAX).min(buffer.len() - filled);
                        let part = &mut buffer[filled..filled + n];
                        if read_full_at(&files[run.place], run.offset + into, part)? < n {
                            break;
                        }
                        filled += n;
                    }
                    at += run.len;
                }
                Ok(filled)
            }
            Form::Broken => Ok(0),
        }
    }

    /// Where `len` bytes from `offset` lie, run by run.
    pub(super) fn places(&self, own: Digest, offset: u64, len: u64) -> Vec<(Place, u64, u64)> {
        let Form::Patched { recipe, .. } = &self.form else {
            return vec![(Place { kind: Kind::Plain, digest: own }, offset, len)];
        };
        let (mut at, mut found) = (0, Vec::new());
        for (place, start, run) in recipe.runs() {
            let (from, to) = (offset.max(at), (offset + len).min(at + run));
            if from < to {
                found.push((place, start + from - at, to - from));
            }
            at += run;
        }
        found
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.form {
            Form::Plain(file) => file.read(buffer),
            Form::Patched { recipe, files } => {
                let mut filled = 0;
                while filled < buffer.len()
                    && let Some(run) = recipe.runs.get(self.run.0)
                {
                    let left = run.len - self.run.1;
                    let n = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len() - filled);
                    let part = &mut buffer[filled..filled + n];
                    let n = read_full_at(&files[run.place], run.offset + self.run.1, part)?;
                    if n == 0 {
                        break;
                    }
                    filled += n;
                    self.run = if n as u64 == left { (self.run.0 + 1, 0) } else { (self.run.0, self.run.1 + n as u64) };
                }
                self.at += filled as u64;
                Ok(filled)
            }
            Form::Broken => Ok(0),
        }
    }
}

impl Inner {
    pub(super) fn recipe_path(&self, digest: Digest) -> PathBuf {
        self.in_shard("patched", digest)
    }

    /// Whether there is a file at each of `places`.
    pub(super) fn are_there(&self, places: &[Place]) -> io::Result<bool> {
        for place in places {
            if !super::is_file(&self.place_path(*place))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn place_path(&self, place: Place) -> PathBuf {
        match place.kind {
            Kind::Plain => self.path(place.digest),
            Kind::Pieces => self.in_shard("pieces", place.digest),
        }
    }

    pub(super) fn in_shard(&self, what: &str, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.join(what).join(&hex[..2]).join(hex)
    }

    /// Opens a blob; `None` if it is not here.
    pub(super) fn content(&self, digest: Digest) -> io::Result<Option<Content>> {
        for _ in 0..TRIES {
            if let Some((file, size)) = self.stored(digest)? {
                return Ok(Some(Content::new(size, Form::Plain(file))));
            }
            let Some(recipe) = self.recipe(digest)? else {
                // A push may have put it in place between the two looks.
                if self.stored(digest)?.is_some() {
                    continue;
                }
                match std::fs::symlink_metadata(self.recipe_path(digest)) {
                    Ok(_) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error),
                }
            };
            if let Some(content) = self.assemble(recipe)? {
                return Ok(Some(content));
            }
        }
        Ok(Some(Content::new(0, Form::Broken)))
    }

    /// The recipe of a blob: `None` if there is none or it is damaged.
    pub(super) fn recipe(&self, digest: Digest) -> io::Result<Option<Recipe>> {
        Ok(self.recipe_bytes(digest, recipe::MAX_BYTES)?.and_then(|bytes| Recipe::parse(&bytes)))
    }

    fn recipe_bytes(&self, digest: Digest, most: usize) -> io::Result<Option<Vec<u8>>> {
        let file = match no_follow().open(self.recipe_path(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(most as u64).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// What the head of a recipe says, `None` if there is no recipe or it is damaged.
    pub(super) fn recipe_head(&self, digest: Digest) -> io::Result<Option<(u64, Vec<Place>)>> {
        let bytes = self.recipe_bytes(digest, recipe::MAX_HEAD_BYTES)?.unwrap_or_default();
        Ok(recipe::head(&bytes).map(|(size, places, _)| (size, places)))
    }

    /// Opens what a recipe names; `None` if some of it is not there.
    pub(super) fn assemble(&self, recipe: Recipe) -> io::Result<Option<Content>> {
        let mut files = Vec::with_capacity(recipe.places.len().min(MAX_PLACES));
        for place in &recipe.places {
            match self.open_place(*place) {
                Ok(file) => files.push(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(Content::new(recipe.size, Form::Patched { recipe, files })))
    }

    /// Readers of blobs that rest on the same place share its open file.
    fn open_place(&self, place: Place) -> io::Result<Arc<File>> {
        let path = self.place_path(place);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&place).and_then(std::sync::Weak::upgrade) {
            // One that was removed, or replaced, is not what others may begin to read.
            let same = std::fs::symlink_metadata(&path)?.ino() == file.metadata()?.ino();
            if same {
                return Ok(file);
            }
        }
        let file = Arc::new(no_follow().open(path)?);
        if open.len() >= OPEN {
            open.retain(|_, file| file.strong_count() > 0);
        }
        open.insert(place, Arc::downgrade(&file));
        Ok(file)
    }

    /// Length of a blob without reading its content; `None` if it is not here or known to be wrong.
    pub(super) fn size(&self, digest: Digest) -> io::Result<Option<u64>> {
        if self.quarantine.holds_in_place(digest) {
            return Ok(None);
        }
        match std::fs::symlink_metadata(self.path(digest)) {
            Ok(meta) => return Ok(meta.is_file().then_some(meta.len())),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) => {}
        }
        for _ in 0..TRIES {
            let Some((size, places)) = self.recipe_head(digest)? else { break };
            if self.are_there(&places)? {
                return Ok(Some(size));
            }
        }
        match std::fs::symlink_metadata(self.path(digest)) {
            Ok(meta) => Ok(meta.is_file().then_some(meta.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn read_full_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
