//! The blobs that are known to be wrong.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use adamant_digest::Digest;

/// Most digests that are remembered; beyond that a damaged blob is found again when it is read.
const MOST: usize = 10_000;

/// Digests whose stored bytes were seen to be wrong since the start. A `HEAD` answers "unknown"
/// for them, so that clients, which ask before they push, send the right bytes and heal them.
#[derive(Debug, Default)]
pub(crate) struct Damaged(Mutex<BTreeSet<Digest>>);

impl Damaged {
    pub(crate) fn insert(&self, digest: Digest) {
        tracing::error!(%digest, "a stored blob is damaged; pushing the same bytes again heals it");
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if set.len() < MOST {
            set.insert(digest);
        }
    }

    pub(crate) fn remove(&self, digest: Digest) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
    }

    pub(crate) fn contains(&self, digest: Digest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&digest)
    }
}
