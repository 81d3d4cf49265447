//! Documents that statements name by digest, read by structs of this crate's own.

use std::collections::HashMap;

use adamant_attest::parse_strict;
use adamant_attest::predicate::ArtifactRef;
use adamant_digest::Digest;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::capsule::Capsule;
use crate::refusal::Refusal;

/// What runs in an environment. `target` is free: it is named by the digest, not judged here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Rollout {
    pub(crate) version: u32,
    pub(crate) project: String,
    pub(crate) environment: String,
    pub(crate) release: String,
    pub(crate) release_digest: Digest,
    pub(crate) artifacts: Vec<ArtifactRef>,
    pub(crate) configuration: Digest,
    pub(crate) policy: Digest,
    #[expect(dead_code, reason = "must be there, may hold anything")]
    pub(crate) target: Value,
}

/// What a push made. `services` is free, as `target` is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Release {
    pub(crate) version: u32,
    pub(crate) project: String,
    pub(crate) number: u64,
    pub(crate) commit: String,
    pub(crate) tree: Digest,
    pub(crate) lock: Digest,
    pub(crate) artifacts: Vec<ArtifactRef>,
    #[serde(default)]
    #[expect(dead_code, reason = "may be there, may hold anything")]
    pub(crate) services: Value,
}

/// Environments and their rules.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    pub(crate) version: u32,
    pub(crate) environments: Vec<Environment>,
}

/// See [`Policy`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Environment {
    pub(crate) name: String,
    pub(crate) automatic: bool,
    pub(crate) rules: Vec<String>,
}

/// The documents of a capsule by digest, checked.
pub(crate) struct Documents<'a>(HashMap<Digest, &'a [u8]>);

impl<'a> Documents<'a> {
    pub(crate) fn check(capsule: &'a Capsule) -> Result<Self, Refusal> {
        let mut documents = HashMap::new();
        for document in &capsule.documents {
            let found = Digest::of(&document.bytes);
            if found != document.digest {
                return Err(Refusal::DocumentDigest { expected: document.digest, found });
            }
            if documents.insert(found, document.bytes.as_slice()).is_some() {
                return Err(Refusal::DuplicateDocument(found));
            }
        }
        Ok(Self(documents))
    }

    /// The JSON document `digest`.
    pub(crate) fn json(&self, what: &'static str, digest: Digest) -> Result<Value, Refusal> {
        let bytes = self.0.get(&digest).ok_or(Refusal::MissingDocument { what, digest })?;
        let value = parse_strict(bytes).map_err(|error| shape(what, digest, &error))?;
        if value.is_object() { Ok(value) } else { Err(shape(what, digest, &"it is not an object")) }
    }

    /// The JSON document `digest`, of a known shape.
    pub(crate) fn read<T: DeserializeOwned>(&self, what: &'static str, digest: Digest) -> Result<T, Refusal> {
        let value = self.json(what, digest)?;
        serde_json::from_value(value).map_err(|error| shape(what, digest, &error))
    }
}

pub(crate) fn shape(what: &'static str, digest: Digest, reason: &dyn ToString) -> Refusal {
    Refusal::DocumentShape { what, digest, reason: reason.to_string() }
}
