//! Which patched blobs rest on which places: read from the heads of all recipes when it is first
//! asked for, and kept from then on. Numbers instead of digests keep it small.

use std::collections::HashMap;
use std::io;

use adamant_digest::Digest;

use super::Inner;
use super::recipe::{Kind, Place};

/// Who rests on what.
#[derive(Debug, Default)]
pub(super) struct Refs {
    numbers: HashMap<Digest, u32>,
    names: HashMap<u32, Digest>,
    dependents: HashMap<Place, Vec<u32>>,
}

impl Refs {
    fn number(&mut self, digest: Digest) -> u32 {
        // Four billion blobs do not fit onto a disk.
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(digest).or_insert(next);
        self.names.insert(number, digest);
        number
    }

    /// `digest` rests on `places`.
    pub(super) fn add(&mut self, digest: Digest, places: &[Place]) {
        let number = self.number(digest);
        for place in places {
            let dependents = self.dependents.entry(*place).or_default();
            if !dependents.contains(&number) {
                dependents.push(number);
            }
        }
    }

    /// `digest` does not rest on `places` any more.
    pub(super) fn remove(&mut self, digest: Digest, places: &[Place]) {
        let Some(number) = self.numbers.get(&digest).copied() else { return };
        for place in places {
            if let Some(dependents) = self.dependents.get_mut(place) {
                dependents.retain(|dependent| *dependent != number);
                if dependents.is_empty() {
                    self.dependents.remove(place);
                }
            }
        }
    }

    /// The blobs that rest on `place`.
    pub(super) fn of(&self, place: Place) -> Vec<Digest> {
        let numbers = self.dependents.get(&place).map(Vec::as_slice).unwrap_or_default();
        numbers.iter().filter_map(|number| self.names.get(number).copied()).collect()
    }

    pub(super) fn is_needed(&self, place: Place) -> bool {
        self.dependents.contains_key(&place)
    }
}

impl Inner {
    /// Asks who rests on what. Whoever needs `names` as well takes that first.
    pub(super) fn with_refs<T>(&self, ask: impl FnOnce(&mut Refs) -> T) -> io::Result<T> {
        let mut refs = self.refs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if refs.is_none() {
            let mut read = Refs::default();
            for digest in self.names_in("patched")? {
                if let Some((_, places)) = self.recipe_head(digest)? {
                    read.add(digest, &places);
                }
            }
            *refs = Some(read);
        }
        Ok(ask(refs.get_or_insert_default()))
    }

    /// Removes the pieces that no recipe names: what a crash left between writing the two.
    pub(super) fn sweep_pieces(&self) -> io::Result<()> {
        for digest in self.names_in("pieces")? {
            self.drop_if_idle(Place { kind: Kind::Pieces, digest })?;
        }
        Ok(())
    }

    /// Removes pieces unless somebody rests on them.
    pub(super) fn drop_if_idle(&self, place: Place) -> io::Result<()> {
        let _names = self.names.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if place.kind == Kind::Plain || self.with_refs(|refs| refs.is_needed(place))? {
            return Ok(());
        }
        match std::fs::remove_file(self.place_path(place)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Digests that name files in the shards of `what`.
    pub(super) fn names_in(&self, what: &str) -> io::Result<Vec<Digest>> {
        let mut all = Vec::new();
        for shard in 0..=u8::MAX {
            self.shard_names(what, shard, &mut all)?;
        }
        Ok(all)
    }

    /// Digests that name files in one shard of `what`.
    pub(super) fn shard_names(&self, what: &str, shard: u8, into: &mut Vec<Digest>) -> io::Result<()> {
        let entries = match std::fs::read_dir(self.dir.join(what).join(format!("{shard:02x}"))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            // What no writer here makes is not a blob.
            let name = entry?.file_name();
            let digest = name.to_str().and_then(|name| Digest::from_hex(name).ok());
            into.extend(digest.filter(|digest| digest.as_bytes()[0] == shard));
        }
        Ok(())
    }
}
