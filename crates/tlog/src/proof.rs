//! Inclusion and consistency proofs (RFC 6962 §2.1.1, §2.1.2; verification as RFC 9162 §2.1.3.2
//! and §2.1.4.2).
//!
//! Proofs are built from the hashes of complete nodes alone, which never change once they
//! exist; the ragged right edge is computed on the way.

use std::convert::Infallible;

use crate::hash::{Hash, empty_root, node_hash};
use crate::range::Node;

/// Why a proof does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The leaf or the older tree lies outside the tree.
    #[error("{0} is not within a tree of {1} leaves")]
    Range(u64, u64),
    /// Too few or too many hashes.
    #[error("the proof has the wrong number of hashes ({0})")]
    Length(usize),
    /// The hashes lead to another root.
    #[error("the proof leads to another root")]
    Root,
}

/// Why a proof could not be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError<E> {
    /// The leaf or the older tree lies outside the tree.
    #[error("{0} is not within a tree of {1} leaves")]
    Range(u64, u64),
    /// A hash could not be read.
    #[error(transparent)]
    Read(E),
}

/// The hash over leaves `from..to`; `from` is a multiple of the smallest power of two that is at
/// least `to - from`, as in every split of RFC 6962.
fn subtree<E>(from: u64, to: u64, read: &mut impl FnMut(Node) -> Result<Hash, E>) -> Result<Hash, E> {
    let count = to - from;
    if count.is_power_of_two() {
        // A power of two of u64 has at most 63 trailing zeros.
        let level = u8::try_from(count.trailing_zeros()).unwrap_or(u8::MAX);
        return read(Node { level, index: from >> level });
    }
    let middle = from + split(count);
    let left = subtree(from, middle, read)?;
    let right = subtree(middle, to, read)?;
    Ok(node_hash(&left, &right))
}

/// The largest power of two below `count`, which is at least 2.
const fn split(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

/// The root of the tree of `size` leaves.
pub fn root<E>(size: u64, mut read: impl FnMut(Node) -> Result<Hash, E>) -> Result<Hash, E> {
    if size == 0 { Ok(empty_root()) } else { subtree(0, size, &mut read) }
}

/// The proof that leaf `index` is in the tree of `size` leaves, nearest hash first.
pub fn inclusion<E>(
    index: u64,
    size: u64,
    mut read: impl FnMut(Node) -> Result<Hash, E>,
) -> Result<Vec<Hash>, TreeError<E>> {
    if index >= size {
        return Err(TreeError::Range(index, size));
    }
    let (mut from, mut to) = (0, size);
    let mut proof = Vec::new();
    while to - from > 1 {
        let middle = from + split(to - from);
        let hash = if index < middle { subtree(middle, to, &mut read) } else { subtree(from, middle, &mut read) };
        proof.push(hash.map_err(TreeError::Read)?);
        (from, to) = if index < middle { (from, middle) } else { (middle, to) };
    }
    proof.reverse();
    Ok(proof)
}

/// The proof that the tree of `old` leaves is a prefix of that of `new`. Empty if `old` is 0
/// or `new`.
pub fn consistency<E>(
    old: u64,
    new: u64,
    mut read: impl FnMut(Node) -> Result<Hash, E>,
) -> Result<Vec<Hash>, TreeError<E>> {
    if old > new {
        return Err(TreeError::Range(old, new));
    }
    let mut proof = Vec::new();
    if old == 0 || old == new {
        return Ok(proof);
    }
    let (mut from, mut to) = (0, new);
    while to != old {
        let middle = from + split(to - from);
        let hash = if old <= middle { subtree(middle, to, &mut read) } else { subtree(from, middle, &mut read) };
        proof.push(hash.map_err(TreeError::Read)?);
        (from, to) = if old <= middle { (from, middle) } else { (middle, to) };
    }
    // The verifier knows the old root; it needs the last subtree only where that is a part of it.
    if from != 0 {
        proof.push(subtree(from, to, &mut read).map_err(TreeError::Read)?);
    }
    proof.reverse();
    Ok(proof)
}

fn collect(build: impl FnOnce(&mut dyn FnMut(Node) -> Result<Hash, Infallible>) -> bool) -> Option<Vec<Node>> {
    let mut nodes = Vec::new();
    build(&mut |node| {
        nodes.push(node);
        Ok([0; 32])
    })
    .then_some(nodes)
}

/// The nodes [`inclusion`] reads, for callers that fetch them beforehand; `None` out of range.
pub fn nodes_for_inclusion(index: u64, size: u64) -> Option<Vec<Node>> {
    collect(|read| inclusion(index, size, read).is_ok())
}

/// The nodes [`consistency`] reads, for callers that fetch them beforehand; `None` out of range.
pub fn nodes_for_consistency(old: u64, new: u64) -> Option<Vec<Node>> {
    collect(|read| consistency(old, new, read).is_ok())
}

/// Checks that `leaf` (its hash) is leaf `index` of the tree of `size` leaves with root `root`.
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::Range(index, size));
    }
    let (mut position, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return Err(ProofError::Length(proof.len()));
        }
        if position & 1 == 1 || position == last {
            hash = node_hash(sibling, &hash);
            // At the right edge, levels without a sibling are passed over.
            while position & 1 == 0 && position != 0 {
                position >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        position >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(ProofError::Length(proof.len()));
    }
    if hash == *root { Ok(()) } else { Err(ProofError::Root) }
}

/// Checks that the tree of `old` leaves with root `old_root` is a prefix of that of `new` leaves
/// with root `new_root`.
pub fn verify_consistency(
    old: u64,
    old_root: &Hash,
    new: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), ProofError> {
    if old > new {
        return Err(ProofError::Range(old, new));
    }
    if old == 0 || old == new {
        if !proof.is_empty() {
            return Err(ProofError::Length(proof.len()));
        }
        let same = if old == new { old_root == new_root } else { *old_root == empty_root() };
        return if same { Ok(()) } else { Err(ProofError::Root) };
    }
    // A complete old tree is itself the first hash.
    let mut hashes = proof.iter();
    let first = if old.is_power_of_two() { old_root } else { hashes.next().ok_or(ProofError::Length(0))? };
    let (mut position, mut last) = (old - 1, new - 1);
    while position & 1 == 1 {
        position >>= 1;
        last >>= 1;
    }
    let (mut old_hash, mut new_hash) = (*first, *first);
    for sibling in hashes {
        if last == 0 {
            return Err(ProofError::Length(proof.len()));
        }
        if position & 1 == 1 || position == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            while position & 1 == 0 && position != 0 {
                position >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        position >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(ProofError::Length(proof.len()));
    }
    if old_hash == *old_root && new_hash == *new_root { Ok(()) } else { Err(ProofError::Root) }
}
