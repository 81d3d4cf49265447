//! What a patched blob is made of: runs of bytes that lie in other files of the store.
//!
//! A place is a file that bytes lie in: a plain blob, or *pieces*, the bytes that were new in some
//! patched blob. Both are named by the sha256 of all that they hold. No place is itself made of
//! others, so reading a blob takes one step from its recipe to its bytes however often it was built
//! upon. Pure: no I/O.

use adamant_digest::Digest;

/// First bytes of a recipe.
const MAGIC: &[u8; 16] = b"adamant recipe1\n";
/// Magic, length of the blob, number of places and of runs.
const FIXED_BYTES: usize = 16 + 8 + 4 + 4;
const PLACE_BYTES: usize = 1 + 32;
const RUN_BYTES: usize = 4 + 8 + 8;
/// Most places of a recipe. A reader holds each of them open.
pub(super) const MAX_PLACES: usize = 32;
/// Most runs of a recipe.
const MAX_RUNS: usize = 1 << 20;
/// Longest head: what says where the bytes lie, without the runs.
pub(super) const MAX_HEAD_BYTES: usize = FIXED_BYTES + MAX_PLACES * PLACE_BYTES;
/// Longest recipe in bytes.
pub(super) const MAX_BYTES: usize = MAX_HEAD_BYTES + MAX_RUNS * RUN_BYTES + 32;

/// Kinds of places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A whole blob.
    Plain,
    /// Bytes that were new in a patched blob.
    Pieces,
}

/// A file that bytes lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) kind: Kind,
    /// Of all its bytes.
    pub(super) digest: Digest,
}

/// Bytes that lie in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Index into [`Recipe::places`].
    pub(super) place: usize,
    /// Where in the place.
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// A patched blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recipe {
    /// Length of the blob.
    pub(super) size: u64,
    pub(super) places: Vec<Place>,
    /// In the order of the blob; their lengths make up its length.
    pub(super) runs: Vec<Run>,
}

impl Recipe {
    /// From runs with their places, joining what lies side by side. `None` if it is beyond the bounds.
    pub(super) fn new(runs: impl IntoIterator<Item = (Place, u64, u64)>) -> Option<Self> {
        let mut recipe = Self { size: 0, places: Vec::new(), runs: Vec::new() };
        for (place, offset, len) in runs.into_iter().filter(|(_, _, len)| *len > 0) {
            let known = recipe.places.iter().position(|known| *known == place);
            let place = known.unwrap_or_else(|| {
                recipe.places.push(place);
                recipe.places.len() - 1
            });
            recipe.size += len;
            match recipe.runs.last_mut() {
                Some(last) if last.place == place && last.offset + last.len == offset => last.len += len,
                _ => recipe.runs.push(Run { place, offset, len }),
            }
        }
        (recipe.places.len() <= MAX_PLACES && recipe.runs.len() <= MAX_RUNS).then_some(recipe)
    }

    /// Runs with their places.
    pub(super) fn runs(&self) -> impl Iterator<Item = (Place, u64, u64)> + '_ {
        self.runs.iter().filter_map(|run| Some((*self.places.get(run.place)?, run.offset, run.len)))
    }

    /// The bytes of the file: head, runs, the sha256 of all that.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(four(self.places.len()));
        bytes.extend(four(self.runs.len()));
        for place in &self.places {
            bytes.push(u8::from(place.kind == Kind::Pieces));
            bytes.extend(place.digest.as_bytes());
        }
        for run in &self.runs {
            bytes.extend(four(run.place));
            bytes.extend(run.offset.to_le_bytes());
            bytes.extend(run.len.to_le_bytes());
        }
        let own = Digest::of(&bytes);
        bytes.extend(own.as_bytes());
        bytes
    }

    /// Reads what `encode` wrote; `None` if it is anything else.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (content, own) = bytes.split_last_chunk::<32>()?;
        if Digest::of(content).as_bytes() != own {
            return None;
        }
        let (size, places, mut rest) = head(content)?;
        let count = u32::from_le_bytes(*content.get(28..)?.first_chunk()?) as usize;
        if rest.len() != count.checked_mul(RUN_BYTES)? {
            return None;
        }
        let (mut runs, mut sum) = (Vec::with_capacity(count), 0_u64);
        while let Some((run, next)) = rest.split_at_checked(RUN_BYTES) {
            rest = next;
            let place = u32::from_le_bytes(*run.first_chunk()?) as usize;
            let (offset, len) = (number(&run[4..])?, number(&run[12..])?);
            offset.checked_add(len).filter(|_| place < places.len() && len > 0)?;
            sum = sum.checked_add(len)?;
            runs.push(Run { place, offset, len });
        }
        (sum == size).then_some(Self { size, places, runs })
    }
}

/// Length of the blob and its places, from the first [`MAX_HEAD_BYTES`] of a recipe, unchecked; and
/// what follows them.
pub(super) fn head(bytes: &[u8]) -> Option<(u64, Vec<Place>, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let size = number(rest)?;
    let count = u32::from_le_bytes(*rest.get(8..)?.first_chunk()?) as usize;
    if count > MAX_PLACES {
        return None;
    }
    let mut rest = rest.get(16..)?;
    let mut places = Vec::with_capacity(count);
    for _ in 0..count {
        let (place, next) = rest.split_at_checked(PLACE_BYTES)?;
        rest = next;
        let kind = match place[0] {
            0 => Kind::Plain,
            1 => Kind::Pieces,
            _ => return None,
        };
        places.push(Place { kind, digest: Digest::from_bytes(*place[1..].first_chunk()?) });
    }
    Some((size, places, rest))
}

/// A count within [`MAX_PLACES`] or [`MAX_RUNS`].
fn four(count: usize) -> [u8; 4] {
    u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes()
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(kind: Kind, name: &str) -> Place {
        Place { kind, digest: Digest::of(name.as_bytes()) }
    }

    #[test]
    fn what_lies_side_by_side_is_one_run_and_all_comes_back() {
        let (a, b) = (place(Kind::Plain, "a"), place(Kind::Pieces, "b"));
        let recipe = Recipe::new([(a, 0, 5), (a, 5, 7), (b, 0, 1), (b, 9, 0), (a, 12, 3)]).unwrap();
        assert_eq!((recipe.size, recipe.runs.len(), recipe.places.as_slice()), (16, 3, &[a, b][..]));
        let bytes = recipe.encode();
        assert_eq!(Recipe::parse(&bytes), Some(recipe.clone()));
        let (size, places, _) = head(&bytes[..bytes.len().min(MAX_HEAD_BYTES)]).unwrap();
        assert_eq!((size, places), (16, recipe.places.clone()));
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            assert_eq!(Recipe::parse(&wrong), None, "byte {at}");
            assert_eq!(Recipe::parse(&bytes[..at]), None, "{at} bytes");
        }
    }

    #[test]
    fn bounds_hold() {
        let many = |count: usize| Recipe::new((0..count).map(|n| (place(Kind::Plain, &n.to_string()), 0, 1)));
        assert!(many(MAX_PLACES).is_some() && many(MAX_PLACES + 1).is_none());
    }
}
