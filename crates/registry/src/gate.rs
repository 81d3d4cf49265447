//! The signature gate: whether what was signed about a manifest is enough. Pure: bytes in, verdict out.
//!
//! Nothing is believed for where it lies or for what it says of itself: the keys are the operator's, the
//! bytes that they sign must name the very manifest, and every other member is ignored. Signatures do
//! not end: there is no clock here.

use std::collections::BTreeSet;

use adamant_attest::{PAYLOAD_TYPE, PublicKey, STATEMENT_TYPE, pae};
use adamant_digest::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::Pattern;

/// `_type` of the statements that older clients sign.
const STATEMENT_V0_1: &str = "https://in-toto.io/Statement/v0.1";
/// What a simple-signing payload says it is.
const SIMPLE_SIGNING: &str = "cosign container image signature";
/// Longest evidence that is looked at, in bytes.
pub(crate) const MAX_EVIDENCE: usize = 1 << 20;

/// What the manifests of some repositories need.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// Which repositories.
    pub repositories: Pattern,
    /// Without it they are not deployed.
    pub demand: Demand,
    /// Without it they are not pulled, either, except by whoever may push.
    pub pull: bool,
}

/// Signatures that are enough.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    /// Whose.
    pub keys: Vec<PublicKey>,
    /// Statements of each of these types; empty: of any type, and bare signatures as well.
    pub predicates: Vec<String>,
    /// By so many of the keys.
    pub threshold: usize,
}

/// Something that was signed, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// A Sigstore bundle, or a DSSE envelope alone.
    Envelope(Vec<u8>),
    /// A simple-signing payload and its signature in base64 (cosign's SIGNATURE_SPEC).
    Simple { payload: Vec<u8>, signature: String },
}

/// Who signed, and what kind of statement; `None`: a bare signature.
struct Signed {
    key: usize,
    predicate: Option<String>,
}

impl Demand {
    /// What is missing, in words; empty if the evidence is enough.
    pub(crate) fn missing(&self, manifest: Digest, evidence: &[Evidence]) -> Vec<String> {
        let signed: Vec<_> = evidence.iter().flat_map(|one| self.signed(manifest, one)).collect();
        let wanted: Vec<Option<&str>> = match self.predicates.as_slice() {
            [] => vec![None],
            some => some.iter().map(|predicate| Some(predicate.as_str())).collect(),
        };
        let mut missing = Vec::new();
        for predicate in wanted {
            let fits = |one: &&Signed| predicate.is_none() || one.predicate.as_deref() == predicate;
            let by: BTreeSet<usize> = signed.iter().filter(fits).map(|one| one.key).collect();
            if by.len() >= self.threshold {
                continue;
            }
            let what = predicate.map_or_else(|| "a signature".to_owned(), |of| format!("a statement `{of}`"));
            let others = self.keys.iter().enumerate().filter(|(at, _)| !by.contains(at));
            let keys: Vec<_> = others.map(|(_, key)| key.keyid()).collect();
            missing.push(format!("{what} by {} more of {}", self.threshold - by.len(), keys.join(", ")));
        }
        missing
    }

    /// Which keys signed what about `manifest`.
    fn signed(&self, manifest: Digest, evidence: &Evidence) -> Vec<Signed> {
        match evidence {
            Evidence::Simple { payload, signature } => {
                let Ok(signature) = STANDARD.decode(signature.trim()) else { return Vec::new() };
                let by = self.signers(payload, &[signature]);
                if by.is_empty() || !is_payload_of(payload, manifest) {
                    return Vec::new();
                }
                by.into_iter().map(|key| Signed { key, predicate: None }).collect()
            }
            Evidence::Envelope(bytes) => self.enveloped(manifest, bytes).unwrap_or_default(),
        }
    }

    fn enveloped(&self, manifest: Digest, bytes: &[u8]) -> Option<Vec<Signed>> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        let envelope = value.get("dsseEnvelope").unwrap_or(&value);
        if envelope.get("payloadType")?.as_str()? != PAYLOAD_TYPE {
            return None;
        }
        let payload = STANDARD.decode(envelope.get("payload")?.as_str()?).ok()?;
        let signatures = envelope.get("signatures")?.as_array()?.iter().take(self.keys.len().saturating_mul(2));
        let signatures: Vec<_> = signatures.filter_map(|one| STANDARD.decode(one.get("sig")?.as_str()?).ok()).collect();
        let by = self.signers(&pae(&payload), &signatures);
        if by.is_empty() {
            return None;
        }
        let statement: Value = serde_json::from_slice(&payload).ok()?;
        let kind = statement.get("_type")?.as_str()?;
        let is_about =
            |subject: &Value| subject.pointer("/digest/sha256").and_then(Value::as_str) == Some(&manifest.hex());
        if ![STATEMENT_TYPE, STATEMENT_V0_1].contains(&kind)
            || !statement.get("subject")?.as_array()?.iter().any(is_about)
        {
            return None;
        }
        let predicate = statement.get("predicateType")?.as_str()?;
        Some(by.into_iter().map(|key| Signed { key, predicate: Some(predicate.to_owned()) }).collect())
    }

    /// The keys that made one of the signatures.
    fn signers(&self, message: &[u8], signatures: &[Vec<u8>]) -> Vec<usize> {
        let made = |key: &PublicKey| signatures.iter().any(|signature| key.verify(message, signature).is_ok());
        self.keys.iter().enumerate().filter(|(_, key)| made(key)).map(|(at, _)| at).collect()
    }
}

fn is_payload_of(payload: &[u8], manifest: Digest) -> bool {
    let Ok(value) = serde_json::from_slice::<Value>(payload) else { return false };
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    text("/critical/type") == Some(SIMPLE_SIGNING)
        && text("/critical/image/docker-manifest-digest") == Some(manifest.to_string().as_str())
}
