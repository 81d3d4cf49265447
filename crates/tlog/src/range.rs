//! The compact range: what an appender must remember of a tree.

use crate::hash::{Hash, empty_root, node_hash};

/// A node over a complete subtree: it covers leaves `index << level .. (index + 1) << level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    /// Height above the leaves, which have 0.
    pub level: u8,
    /// Position among the nodes of its level, from 0.
    pub index: u64,
}

/// The roots of the largest complete subtrees that tile a tree of some size, left to right:
/// at most 64 hashes that fix the root and suffice to append.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CompactRange {
    size: u64,
    hashes: Vec<Hash>,
}

/// Why bytes are not a compact range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a compact range of {size} leaves has {expected} hashes in {} bytes, found {found} bytes", 8 + 32 * expected)]
pub struct RangeError {
    size: u64,
    expected: u32,
    found: usize,
}

impl CompactRange {
    /// The empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of leaves.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The hashes, the largest subtree first: one for each set bit of [`CompactRange::size`].
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// The nodes the hashes belong to.
    pub fn nodes(&self) -> Vec<Node> {
        let mut done = 0;
        (0..64u8)
            .rev()
            .filter(|level| self.size >> level & 1 == 1)
            .map(|level| {
                let node = Node { level, index: done >> level };
                done += 1 << level;
                node
            })
            .collect()
    }

    /// From a size and its hashes, in the order of [`CompactRange::hashes`].
    pub fn from_parts(size: u64, hashes: Vec<Hash>) -> Result<Self, RangeError> {
        if hashes.len() == size.count_ones() as usize {
            Ok(Self { size, hashes })
        } else {
            Err(RangeError { size, expected: size.count_ones(), found: 8 + 32 * hashes.len() })
        }
    }

    /// Adds a leaf and shows `completed` every node that is complete by it, the leaf first.
    /// A tree holds fewer than 2^63 leaves; no caller lives long enough to see another.
    pub fn append(&mut self, leaf: Hash, mut completed: impl FnMut(Node, Hash)) {
        let (mut node, mut hash) = (Node { level: 0, index: self.size }, leaf);
        completed(node, hash);
        while node.index & 1 == 1 {
            let Some(left) = self.hashes.pop() else { break };
            hash = node_hash(&left, &hash);
            node = Node { level: node.level + 1, index: node.index >> 1 };
            completed(node, hash);
        }
        self.hashes.push(hash);
        self.size += 1;
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash {
        let mut hashes = self.hashes.iter().rev();
        let Some(last) = hashes.next() else { return empty_root() };
        hashes.fold(*last, |right, left| node_hash(left, &right))
    }

    /// The size as 8 bytes, most significant first, then the hashes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.size.to_be_bytes().to_vec();
        out.extend(self.hashes.iter().flatten());
        out
    }

    /// Reads what [`CompactRange::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RangeError> {
        let bad = |size: u64| RangeError { size, expected: size.count_ones(), found: bytes.len() };
        let Some((head, rest)) = bytes.split_first_chunk::<8>() else { return Err(bad(0)) };
        let size = u64::from_be_bytes(*head);
        let (hashes, rest) = rest.as_chunks::<32>();
        if !rest.is_empty() || hashes.len() != size.count_ones() as usize {
            return Err(bad(size));
        }
        Ok(Self { size, hashes: hashes.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_it() {
        let mut range = CompactRange::new();
        for i in 0..70u8 {
            let again = CompactRange::from_bytes(&range.to_bytes()).unwrap();
            assert_eq!(again, range);
            assert_eq!(CompactRange::from_parts(range.size(), range.hashes().to_vec()).unwrap(), range);
            assert_eq!(range.nodes().len(), range.hashes().len());
            range.append([i; 32], |_, _| {});
        }
        let bytes = range.to_bytes();
        assert!(CompactRange::from_bytes(&bytes[..bytes.len() - 1]).is_err());
        assert!(CompactRange::from_bytes(&bytes[..bytes.len() - 32]).is_err());
        assert!(CompactRange::from_bytes(&bytes[..3]).is_err());
        assert!(CompactRange::from_parts(3, vec![[0; 32]]).is_err());
    }

    #[test]
    fn nodes_cover_the_tree_once() {
        for size in 0..600u64 {
            let range = CompactRange::from_parts(size, vec![[0; 32]; size.count_ones() as usize]).unwrap();
            let mut next = 0;
            for node in range.nodes() {
                assert_eq!(node.index << node.level, next);
                next += 1 << node.level;
            }
            assert_eq!(next, size);
        }
    }
}
