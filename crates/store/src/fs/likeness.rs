//! Which blob is most like another: the sketches of the blobs that were looked at last.
//!
//! They are derived data, kept in `<dir>/sketches` so that a start need not read every blob again. Whoever
//! removes that file has it made again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use adamant_digest::Digest;

use super::chunks::{FEATURES, Sketch};

/// Most blobs that are remembered to compare with.
const MOST: usize = 16_384;
/// Blobs remembered under one feature, the newest.
const BUCKET: usize = 4;
/// Digest, features, the first bytes of the sha256 of that.
const RECORD_BYTES: usize = 32 + 8 * FEATURES + 4;
/// A longer file is made anew, in bytes: a million blobs.
const MOST_BYTES: u64 = 1_000_000 * RECORD_BYTES as u64;

/// The newest sketches.
#[derive(Debug, Default)]
pub(super) struct Likeness {
    newest: VecDeque<(Digest, Sketch)>,
    /// By number of the feature and its value: when they were remembered, and which.
    by: HashMap<(usize, u64), Vec<(u64, Digest)>>,
    /// How many were remembered.
    count: u64,
    file: Option<File>,
}

impl Likeness {
    /// Reads what is kept below `dir`. Gives the blobs that were looked at before as well.
    pub(super) fn open(dir: &Path) -> io::Result<(Self, HashSet<Digest>)> {
        let path = dir.join("sketches");
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(file) => drop(file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let whole = bytes.len() % RECORD_BYTES == 0 && bytes.len() as u64 <= MOST_BYTES;
        let records: Vec<_> = bytes.chunks_exact(RECORD_BYTES).map_while(parse).collect();
        let whole = whole && records.len() == bytes.len() / RECORD_BYTES;
        let (mut likeness, mut seen) = (Self::default(), HashSet::new());
        for (digest, sketch) in if whole { records } else { Vec::new() } {
            seen.insert(digest);
            likeness.remember(digest, sketch);
        }
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        let file = options.open(&path)?;
        if !whole {
            // A record that a crash cut in two, or too many: all is looked at again.
            file.set_len(0)?;
        }
        likeness.file = Some(file);
        Ok((likeness, seen))
    }

    /// Remembers a blob that can be compared with.
    pub(super) fn add(&mut self, digest: Digest, sketch: Sketch) -> io::Result<()> {
        self.remember(digest, sketch);
        let mut record = digest.as_bytes().to_vec();
        for feature in sketch {
            record.extend(feature.to_le_bytes());
        }
        let own = Digest::of(&record);
        record.extend(&own.as_bytes()[..4]);
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(&record))
    }

    fn remember(&mut self, digest: Digest, sketch: Sketch) {
        self.count += 1;
        for (n, feature) in sketch.into_iter().enumerate() {
            let bucket = self.by.entry((n, feature)).or_default();
            bucket.retain(|(_, other)| *other != digest);
            if bucket.len() == BUCKET {
                bucket.remove(0);
            }
            bucket.push((self.count, digest));
        }
        self.newest.push_back((digest, sketch));
        if self.newest.len() > MOST
            && let Some((old, sketch)) = self.newest.pop_front()
        {
            for (n, feature) in sketch.into_iter().enumerate() {
                if let Some(bucket) = self.by.get_mut(&(n, feature)) {
                    bucket.retain(|(_, other)| *other != old);
                    if bucket.is_empty() {
                        self.by.remove(&(n, feature));
                    }
                }
            }
        }
    }

    /// Blobs that have something in common with `sketch`: first those that are about as alike as the most
    /// alike one, the newest of them first. Of a series of builds that is the one before, which no count
    /// of so few features can tell from the one before that.
    pub(super) fn most_like(&self, digest: Digest, sketch: &Sketch) -> Vec<Digest> {
        let mut counts: HashMap<Digest, (usize, u64)> = HashMap::new();
        for (n, feature) in sketch.iter().enumerate() {
            for (time, other) in self.by.get(&(n, *feature)).into_iter().flatten() {
                let (count, newest) = counts.entry(*other).or_default();
                *count += 1;
                *newest = (*newest).max(*time);
            }
        }
        counts.remove(&digest);
        let most = counts.values().map(|(count, _)| *count).max().unwrap_or(0);
        let mut ranked: Vec<(bool, u64, Digest)> =
            counts.into_iter().map(|(other, (count, time))| (count * 4 >= most * 3, time, other)).collect();
        ranked.sort_unstable_by(|a, b| b.cmp(a));
        ranked.into_iter().map(|(_, _, other)| other).collect()
    }
}

fn parse(record: &[u8]) -> Option<(Digest, Sketch)> {
    let (content, own) = record.split_last_chunk::<4>()?;
    if Digest::of(content).as_bytes()[..4] != own[..] {
        return None;
    }
    let (digest, features) = content.split_first_chunk::<32>()?;
    let mut sketch = [0; FEATURES];
    for (feature, bytes) in sketch.iter_mut().zip(features.chunks_exact(8)) {
        *feature = u64::from_le_bytes(*bytes.first_chunk()?);
    }
    Some((Digest::from_bytes(*digest), sketch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_alike_comes_first_and_all_is_remembered() {
        let dir = tempfile::tempdir().expect("directory");
        let names: Vec<Digest> = (0..4_u8).map(|n| Digest::of(&[n])).collect();
        let sketch = |same: usize, other: u64| -> Sketch { std::array::from_fn(|n| if n < same { 7 } else { other }) };
        {
            let (mut likeness, seen) = Likeness::open(dir.path()).expect("opened");
            assert!(seen.is_empty());
            for (name, (same, other)) in names.iter().zip([(9, 1), (14, 2), (12, 3), (0, 4)]) {
                likeness.add(*name, sketch(same, other)).expect("kept");
            }
        }
        let (likeness, seen) = Likeness::open(dir.path()).expect("opened");
        assert_eq!(seen.len(), 4);
        assert_eq!(likeness.most_like(Digest::of(b"new"), &sketch(FEATURES, 9)), [names[2], names[1], names[0]]);
        assert_eq!(likeness.most_like(names[2], &sketch(FEATURES, 9)), [names[1], names[0]]);
        drop(likeness);
        // Cut in two: all is looked at again.
        let file = OpenOptions::new().write(true).open(dir.path().join("sketches")).expect("file");
        file.set_len(4 * RECORD_BYTES as u64 - 1).expect("cut");
        assert!(Likeness::open(dir.path()).expect("opened").1.is_empty());
    }
}
