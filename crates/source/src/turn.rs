//! Taking turns at refs.

use std::sync::{Arc, PoisonError, Weak};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::Repository;

/// The right to work on one ref. While it is held nobody has the turn at the same ref, at one
/// whose name is a directory of it, or at one below it: git holds one of those at most.
pub(crate) struct Turn {
    _above: Vec<OwnedRwLockReadGuard<()>>,
    _own: OwnedRwLockWriteGuard<()>,
}

impl Repository {
    /// Waits for the turn at `name`; `waiting` hears the ref at which somebody else is at work.
    pub(crate) async fn turn(&self, name: &str, waiting: impl Fn(&str)) -> Turn {
        let mut above = Vec::new();
        // From the top down, the same for all: nobody waits for somebody who waits for them.
        for dir in directories(name) {
            let lock = self.turn_lock(dir);
            if lock.try_read().is_err() {
                waiting(dir);
            }
            above.push(lock.read_owned().await);
        }
        let lock = self.turn_lock(name);
        if lock.try_write().is_err() {
            waiting(name);
        }
        let own = lock.write_owned().await;
        Turn { _above: above, _own: own }
    }

    fn turn_lock(&self, name: &str) -> Arc<RwLock<()>> {
        let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(name.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

/// The names that `name` would make directories of, below `refs/heads/` or `refs/tags/`: `a` and
/// `a/b` of `a/b/c`.
pub(crate) fn directories(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('/').skip(2).filter_map(|(at, _)| name.get(..at))
}

#[cfg(test)]
mod tests {
    use super::directories;

    #[test]
    fn directories_of_names() {
        let check = |name: &str, expect: &[&str]| assert_eq!(directories(name).collect::<Vec<_>>(), expect, "{name}");
        check("refs/heads/main", &[]);
        check("refs/heads/a/b", &["refs/heads/a"]);
        check("refs/tags/a/b/c", &["refs/tags/a", "refs/tags/a/b"]);
    }
}
