//! What the blocks of right blobs hash to, so that a blob that was right once is checked block by
//! block, by a digest that costs a third of the one that names it.
//!
//! While the sha256 of a blob is taken, on its way in or when it is read, each of its blocks is
//! digested by BLAKE3 as well. The list is kept only if the sha256 came out right. From then on a
//! block whose BLAKE3 digest is in the list is, as surely as collisions cannot be found, the block
//! that was hashed then. Nothing is believed for having been right before: every byte of every read
//! is hashed, and a wrong block is never given away.
//!
//! The lists live in memory alone and are bounded; those of blobs that nobody asks for go first.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use adamant_digest::Digest;

/// Bytes of a block; the last one of a blob is shorter.
pub(super) const BLOCK_BYTES: usize = 256 << 10;

/// Digests kept of all blobs together: 8 MiB, for 64 GiB of blobs.
const MOST: usize = (8 << 20) / size_of::<BlockDigest>();

/// What the entry of a blob takes beside its blocks, in digests.
const OVERHEAD: usize = 8;

type BlockDigest = [u8; 32];

pub(super) fn digest_of(block: &[u8]) -> BlockDigest {
    blake3::hash(block).into()
}

/// The blocks of a blob that was right.
#[derive(Debug)]
pub(super) struct BlockList {
    size: u64,
    digests: Vec<BlockDigest>,
}

impl BlockList {
    /// Whether `block` is the right one for `offset`, which is where a block begins.
    pub(super) fn holds(&self, offset: u64, block: &[u8]) -> bool {
        let index = usize::try_from(offset / BLOCK_BYTES as u64).unwrap_or(usize::MAX);
        self.digests.get(index).is_some_and(|expected| *expected == digest_of(block))
    }
}

/// Digests the blocks of a blob as it passes.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    hasher: blake3::Hasher,
    /// Bytes of the block in `hasher`.
    filled: usize,
    list: Vec<BlockDigest>,
    size: u64,
}

impl Recorder {
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        self.size += bytes.len() as u64;
        // A blob that takes all of the table is not worth it.
        while !bytes.is_empty() && self.list.len() + OVERHEAD < MOST {
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.filled));
            self.hasher.update(now);
            self.filled += now.len();
            bytes = rest;
            if self.filled == BLOCK_BYTES {
                self.end_block();
            }
        }
    }

    fn end_block(&mut self) {
        self.list.push(self.hasher.finalize().into());
        self.hasher.reset();
        self.filled = 0;
    }

    /// The list, if the whole blob is in it.
    fn finish(mut self) -> Option<BlockList> {
        if self.filled > 0 {
            self.end_block();
        }
        self.list.shrink_to_fit();
        let whole = self.list.len() as u64 == self.size.div_ceil(BLOCK_BYTES as u64);
        whole.then_some(BlockList { size: self.size, digests: self.list })
    }
}

/// The lists that are kept.
#[derive(Debug)]
pub(super) struct Blocks {
    table: Mutex<Table>,
    most: usize,
}

#[derive(Debug, Default)]
struct Table {
    lists: HashMap<Digest, (u64, Arc<BlockList>)>,
    /// By when they were last asked for.
    order: BTreeMap<u64, Digest>,
    asked: u64,
    /// Digests in all of them, and what they take beside.
    total: usize,
}

impl Default for Blocks {
    fn default() -> Self {
        Self { table: Mutex::default(), most: MOST }
    }
}

impl Blocks {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The blocks of a blob of this many bytes.
    pub(super) fn of(&self, digest: Digest, size: u64) -> Option<Arc<BlockList>> {
        let mut table = self.lock();
        let list = table.take(digest).filter(|list| list.size == size)?;
        table.put(digest, Arc::clone(&list));
        Some(list)
    }

    /// Keeps what was recorded of a blob whose sha256 came out right.
    pub(super) fn keep(&self, digest: Digest, recorder: Recorder) {
        let Some(list) = recorder.finish() else { return };
        let mut table = self.lock();
        table.put(digest, Arc::new(list));
        while table.total > self.most
            && let Some(oldest) = table.order.values().next().copied()
        {
            table.take(oldest);
        }
    }

    pub(super) fn forget(&self, digest: Digest) {
        self.lock().take(digest);
    }
}

impl Table {
    fn take(&mut self, digest: Digest) -> Option<Arc<BlockList>> {
        let (asked, list) = self.lists.remove(&digest)?;
        self.order.remove(&asked);
        self.total -= list.digests.len() + OVERHEAD;
        Some(list)
    }

    /// In place of what was kept of it before.
    fn put(&mut self, digest: Digest, list: Arc<BlockList>) {
        self.take(digest);
        self.asked += 1;
        self.total += list.digests.len() + OVERHEAD;
        self.order.insert(self.asked, digest);
        self.lists.insert(digest, (self.asked, list));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(bytes: &[u8], piece: usize) -> Recorder {
        let mut recorder = Recorder::default();
        bytes.chunks(piece).for_each(|piece| recorder.update(piece));
        recorder
    }

    #[test]
    fn blocks_do_not_depend_on_how_the_bytes_came() {
        let bytes: Vec<u8> = (0..BLOCK_BYTES * 2 + 1000).map(|n| u8::try_from(n % 251).unwrap_or(0)).collect();
        let digest = Digest::of(&bytes);
        for piece in [bytes.len(), BLOCK_BYTES, 70_001, 9_999] {
            let blocks = Blocks::default();
            blocks.keep(digest, recorded(&bytes, piece));
            let list = blocks.of(digest, bytes.len() as u64).unwrap();
            for (n, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
                let offset = (n * BLOCK_BYTES) as u64;
                assert!(list.holds(offset, block), "{piece}, block {n}");
                assert!(!list.holds(offset, &block[1..]), "{piece}, block {n}, cut");
                assert!(!list.holds(offset + BLOCK_BYTES as u64, block), "{piece}, block {n}, in another place");
            }
            assert!(blocks.of(digest, bytes.len() as u64 + 1).is_none(), "another size is another blob");
        }
    }

    #[test]
    fn what_is_put_twice_is_there_once() {
        let blocks = Blocks { most: 1 + OVERHEAD, ..Blocks::default() };
        let blobs = [vec![1; 100], vec![2; 100]];
        blocks.keep(Digest::of(&blobs[0]), recorded(&blobs[0], 100));
        let list = blocks.of(Digest::of(&blobs[0]), 100).unwrap();
        let counts = || {
            let table = blocks.lock();
            (table.lists.len(), table.order.len(), table.total)
        };
        blocks.lock().put(Digest::of(&blobs[0]), list);
        assert_eq!(counts(), (1, 1, 1 + OVERHEAD));
        blocks.keep(Digest::of(&blobs[1]), recorded(&blobs[1], 100));
        assert_eq!(counts(), (1, 1, 1 + OVERHEAD));
    }

    #[test]
    fn the_table_is_bounded_and_drops_what_nobody_asks_for() {
        let blocks = Blocks { most: 3 * (1 + OVERHEAD), ..Blocks::default() };
        let blobs: Vec<Vec<u8>> = (0..4).map(|n| vec![n; 100]).collect();
        let keep = |n: usize| blocks.keep(Digest::of(&blobs[n]), recorded(&blobs[n], 100));
        let has = |n: usize| blocks.lock().lists.contains_key(&Digest::of(&blobs[n]));
        (0..3).for_each(keep);
        keep(0);
        assert!(blocks.of(Digest::of(&blobs[1]), 100).is_some());
        keep(3);
        assert_eq!([0, 1, 2, 3].map(has), [true, true, false, true]);
        assert_eq!(blocks.lock().order.len(), 3);
        blocks.forget(Digest::of(&blobs[0]));
        blocks.forget(Digest::of(&blobs[0]));
        assert_eq!([0, 1, 2, 3].map(has), [false, true, false, true]);
        assert_eq!(blocks.lock().total, 2 * (1 + OVERHEAD));
    }

    #[test]
    fn a_blob_too_long_for_the_table_is_not_kept() {
        let mut recorder = recorded(b"0123", 4);
        recorder.list = vec![[0; 32]; MOST];
        recorder.update(b"4567");
        recorder.size += BLOCK_BYTES as u64 * (MOST as u64 + 1);
        assert!(recorder.finish().is_none());
    }
}
