//! The capsule file, format v1.
//!
//! ```json
//! {
//!   "mediaType": "application/vnd.adamant.capsule.v1+json",
//!   "claim": { "project": "shop", "environment": "prod", "sequence": 3 },
//!   "checkpoint": "<exact signed note>",
//!   "consistency": [{ "from": 120, "proof": ["<base64>"] }],
//!   "entries": [{ "index": 0, "envelope": "<base64 of exact bytes>", "proof": ["<base64>"] }],
//!   "documents": [{ "digest": "sha256:…", "bytes": "<base64 of exact bytes>" }]
//! }
//! ```
//!
//! Entries stand in order of their indices. They hold all `key` facts up to the last entry; the
//! chain of the environment from 1 to the claimed deployment; the observation of that
//! deployment, if there is one; and for its release: commit binding, lock fact, release binding,
//! and per artifact its binding, provenance and rebuild; the decision, where one was needed. An
//! artifact that was reused needs commit binding, lock fact and artifact binding of the commit
//! it was built from too. For a rollback, decision and rebuilds are those of the deployment it
//! returns to. Documents: rollout, release, configuration revision, policy and image manifests.
//! `consistency` is optional: proofs from sizes that readers may have seen before.

use adamant_attest::{canonical, parse_strict};
use adamant_digest::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Media type of a capsule file.
pub const CAPSULE_MEDIA_TYPE: &str = "application/vnd.adamant.capsule.v1+json";
/// Longest capsule file read, in bytes.
pub const MAX_CAPSULE_BYTES: usize = 64 << 20;

const MAX_ENTRIES: usize = 100_000;
const MAX_DOCUMENTS: usize = 1_000;
const MAX_PROOF: usize = 128;

/// Statements with their proofs, and documents, for one deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capsule {
    /// What it is to prove.
    pub claim: Claim,
    /// The signed note that all proofs lead to, exact text.
    pub checkpoint: String,
    /// Proofs that the log extends smaller ones.
    pub consistency: Vec<Consistency>,
    /// Entries of the log, by ascending index.
    pub entries: Vec<Entry>,
    /// Documents that statements name by digest.
    pub documents: Vec<Document>,
}

/// A deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The project.
    pub project: String,
    /// The environment.
    pub environment: String,
    /// Sequence number in the chain of the environment, from 1.
    pub sequence: u64,
}

/// A consistency proof to the checkpoint (RFC 6962 §2.1.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consistency {
    /// The smaller size.
    pub from: u64,
    /// The hashes.
    pub proof: Vec<[u8; 32]>,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Index in the log, from 0.
    pub index: u64,
    /// Exact bytes of the DSSE envelope.
    pub envelope: Vec<u8>,
    /// Inclusion proof to the checkpoint (RFC 6962 §2.1.1).
    pub proof: Vec<[u8; 32]>,
}

/// Bytes that a statement names by digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What they are named by; checked by [`verify`](crate::verify).
    pub digest: Digest,
    /// The exact bytes.
    pub bytes: Vec<u8>,
}

/// Why bytes are not a capsule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CapsuleError {
    /// Not strict JSON.
    #[error("the capsule is not readable: {0}")]
    Json(#[from] adamant_attest::CanonicalError),
    /// A member is missing, unknown or of the wrong shape.
    #[error("the capsule does not have the shape of format v1: {0}")]
    Shape(String),
    /// Another format.
    #[error("`mediaType` is `{0}`, this version reads `{CAPSULE_MEDIA_TYPE}`: use a newer adamant if it is newer")]
    MediaType(String),
    /// Too many of something, or too long.
    #[error("the capsule has {found} {what}, the limit is {limit}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// How many are read.
        limit: usize,
    },
    /// Not base64, or of the wrong length.
    #[error("{0} is not the base64 it must be")]
    Base64(String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wire {
    media_type: String,
    claim: Claim,
    checkpoint: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    consistency: Vec<WireConsistency>,
    entries: Vec<WireEntry>,
    documents: Vec<WireDocument>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireConsistency {
    from: u64,
    proof: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireEntry {
    index: u64,
    envelope: String,
    proof: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireDocument {
    digest: Digest,
    bytes: String,
}

impl Capsule {
    /// Reads a capsule. Nothing is verified yet.
    pub fn parse(bytes: &[u8]) -> Result<Self, CapsuleError> {
        limit("bytes", bytes.len(), MAX_CAPSULE_BYTES)?;
        let value = parse_strict(bytes)?;
        let media_type = value.get("mediaType").and_then(serde_json::Value::as_str);
        if let Some(other) = media_type.filter(|found| *found != CAPSULE_MEDIA_TYPE) {
            return Err(CapsuleError::MediaType(other.chars().take(200).collect()));
        }
        let wire: Wire = serde_json::from_value(value).map_err(|error| CapsuleError::Shape(error.to_string()))?;
        limit("entries", wire.entries.len(), MAX_ENTRIES)?;
        limit("documents", wire.documents.len(), MAX_DOCUMENTS)?;
        limit("consistency proofs", wire.consistency.len(), MAX_PROOF)?;
        Ok(Self {
            claim: wire.claim,
            checkpoint: wire.checkpoint,
            consistency: wire
                .consistency
                .into_iter()
                .map(|one| Ok(Consistency { from: one.from, proof: hashes("a consistency proof", &one.proof)? }))
                .collect::<Result<_, CapsuleError>>()?,
            entries: wire
                .entries
                .into_iter()
                .map(|one| {
                    let index = one.index;
                    Ok(Entry {
                        index,
                        envelope: base64(&format!("the envelope of entry {index}"), &one.envelope)?,
                        proof: hashes(&format!("the proof of entry {index}"), &one.proof)?,
                    })
                })
                .collect::<Result<_, CapsuleError>>()?,
            documents: wire
                .documents
                .into_iter()
                .map(|one| {
                    let bytes = base64(&format!("document {}", one.digest), &one.bytes)?;
                    Ok(Document { digest: one.digest, bytes })
                })
                .collect::<Result<_, CapsuleError>>()?,
        })
    }

    /// The file: canonical JSON.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CapsuleError> {
        let encoded = |proof: &[[u8; 32]]| proof.iter().map(|hash| STANDARD.encode(hash)).collect();
        let wire = Wire {
            media_type: CAPSULE_MEDIA_TYPE.to_owned(),
            claim: self.claim.clone(),
            checkpoint: self.checkpoint.clone(),
            consistency: self
                .consistency
                .iter()
                .map(|one| WireConsistency { from: one.from, proof: encoded(&one.proof) })
                .collect(),
            entries: self
                .entries
                .iter()
                .map(|one| WireEntry {
                    index: one.index,
                    envelope: STANDARD.encode(&one.envelope),
                    proof: encoded(&one.proof),
                })
                .collect(),
            documents: self
                .documents
                .iter()
                .map(|one| WireDocument { digest: one.digest, bytes: STANDARD.encode(&one.bytes) })
                .collect(),
        };
        let value = serde_json::to_value(wire).map_err(|error| CapsuleError::Shape(error.to_string()))?;
        let bytes = canonical(&value)?;
        limit("bytes", bytes.len(), MAX_CAPSULE_BYTES)?;
        Ok(bytes)
    }
}

fn limit(what: &'static str, found: usize, limit: usize) -> Result<(), CapsuleError> {
    if found > limit { Err(CapsuleError::Limit { what, found, limit }) } else { Ok(()) }
}

fn base64(what: &str, text: &str) -> Result<Vec<u8>, CapsuleError> {
    STANDARD.decode(text).map_err(|_| CapsuleError::Base64(what.to_owned()))
}

fn hashes(what: &str, texts: &[String]) -> Result<Vec<[u8; 32]>, CapsuleError> {
    limit("hashes in a proof", texts.len(), MAX_PROOF)?;
    texts.iter().map(|text| base64(what, text)?.try_into().map_err(|_| CapsuleError::Base64(what.to_owned()))).collect()
}
