//! What git objects of one repository are in our digests, remembered in memory.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use adamant_digest::{Digest, Tree};

use crate::Oid;

/// Blobs per generation; two generations are kept.
const BLOBS: usize = 32_768;
/// Trees remembered.
const TREES: usize = 64;
/// Entries of all remembered trees together.
const TREE_ENTRIES: usize = 65_536;

/// A bounded memory. Never shared between repositories: a git id is only a SHA-1.
#[derive(Debug, Default)]
pub(crate) struct Digests(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    young: HashMap<Oid, (Digest, u64)>,
    old: HashMap<Oid, (Digest, u64)>,
    trees: VecDeque<(Oid, Arc<Tree>)>,
    tree_entries: usize,
}

impl Digests {
    /// Digest and size of a blob.
    pub(crate) fn blob(&self, oid: Oid) -> Option<(Digest, u64)> {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = memory.young.get(&oid) {
            return Some(*known);
        }
        let known = memory.old.remove(&oid)?;
        memory.young.insert(oid, known);
        Some(known)
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Memory::default();
    }

    pub(crate) fn remember_blob(&self, oid: Oid, digest: Digest, size: u64) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.young.len() >= BLOBS {
            memory.old = mem::take(&mut memory.young);
        }
        memory.young.insert(oid, (digest, size));
    }

    /// The tree a git tree was exported or digested as.
    pub(crate) fn tree(&self, oid: Oid) -> Option<Arc<Tree>> {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.trees.iter().find(|(known, _)| *known == oid).map(|(_, tree)| Arc::clone(tree))
    }

    pub(crate) fn remember_tree(&self, oid: Oid, tree: Arc<Tree>) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tree.len() > TREE_ENTRIES || memory.trees.iter().any(|(known, _)| *known == oid) {
            return;
        }
        memory.tree_entries += tree.len();
        memory.trees.push_back((oid, tree));
        while memory.tree_entries > TREE_ENTRIES || memory.trees.len() > TREES {
            let Some((_, oldest)) = memory.trees.pop_front() else { break };
            memory.tree_entries -= oldest.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oid(n: usize) -> Oid {
        format!("{n:040x}").parse().unwrap()
    }

    #[test]
    fn stays_bounded_and_keeps_what_is_used() {
        let digests = Digests::default();
        for n in 0..3 * BLOBS {
            digests.remember_blob(oid(n), Digest::of(b""), n as u64);
            assert_eq!(digests.blob(oid(0)).map(|(_, size)| size), Some(0), "{n}");
        }
        let memory = digests.0.lock().unwrap();
        assert!(memory.young.len() + memory.old.len() <= 2 * BLOBS);
    }

    #[test]
    fn trees_are_forgotten_in_order() {
        let digests = Digests::default();
        for n in 0..TREES + 10 {
            digests.remember_tree(oid(n), Arc::new(Tree::new()));
        }
        assert!(digests.tree(oid(9)).is_none());
        assert!(digests.tree(oid(10)).is_some());
    }
}
