//! The digest that a tag answers with. Bytes are kept under their sha256; a tag that came beside a
//! sha512 (`PUT …/manifests/sha512:…?tag=v1`) answers with that one, as its push did.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use adamant_attest::predicate::BindingKind;
use adamant_digest::Digest;
use adamant_oci::{ContentDigest, RepositoryName, Tag};
use adamant_store::LedgerError;

use crate::{Registry, names};

/// Most tags that are remembered, so that a pull looks up one name and not two.
const MOST: usize = 1_024;

/// What was found out of tags. It is decided with the tag and never changes.
#[derive(Debug, Default)]
pub(crate) struct PushedBy(Mutex<HashMap<String, ContentDigest>>);

impl PushedBy {
    fn get(&self, tag: &str) -> Option<ContentDigest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(tag).cloned()
    }

    fn insert(&self, tag: String, digest: ContentDigest) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= MOST {
            map.clear();
        }
        map.insert(tag, digest);
    }
}

impl Registry {
    /// The digest of a tag that leads to `bound`, by the algorithm of the push that made it.
    pub(crate) async fn pushed_by(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        bound: Digest,
    ) -> Result<ContentDigest, LedgerError> {
        let name = names::tag(repository, tag);
        let sha256 = ContentDigest::from(bound);
        match self.pushed_by.get(&name) {
            // A pointer has led to something else.
            Some(ContentDigest::Sha256(_)) => return Ok(sha256),
            Some(known) => return Ok(known),
            None => {}
        }
        let prefix = names::pushed_bys(repository, tag);
        let found = self.ledger.bindings(BindingKind::Tag, &prefix, "", 1).await?;
        let digest = found
            .first()
            .filter(|(_, second)| second.digest == bound)
            .and_then(|(name, _)| name.strip_prefix(&prefix)?.parse().ok())
            .unwrap_or(sha256);
        self.pushed_by.insert(name, digest.clone());
        Ok(digest)
    }
}
