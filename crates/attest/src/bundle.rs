//! Sigstore bundles v0.3, <https://docs.sigstore.dev/about/bundle/>: one envelope with its log
//! proof, in the form cosign and sigstore-go read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::canonical::{CanonicalError, canonical};
use crate::envelope::{Envelope, PAYLOAD_TYPE};

/// Media type of a bundle.
pub const BUNDLE_MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// The log's part of a bundle.
#[derive(Debug, Clone)]
pub struct LogEntry<'a> {
    /// Index of the leaf, from 0.
    pub index: u64,
    /// Size of the tree the proof leads to.
    pub size: u64,
    /// Root of that tree.
    pub root: [u8; 32],
    /// Inclusion proof.
    pub proof: &'a [[u8; 32]],
    /// The signed note over that tree, exact text.
    pub checkpoint: &'a str,
    /// The untruncated C2SP key id of the log's key: SHA-256 of name, newline, `0x01` and key
    /// (Rekor v2's log id).
    pub log_id: [u8; 32],
    /// Exact bytes of the leaf.
    pub leaf: &'a [u8],
}

/// The bundle of `envelope` as JSON. 64-bit integers are strings, as protobuf's JSON has them.
pub fn bundle(envelope: &Envelope, entry: &LogEntry<'_>) -> Result<Vec<u8>, CanonicalError> {
    let hashes: Vec<Value> = entry.proof.iter().map(|hash| STANDARD.encode(hash).into()).collect();
    canonical(&json!({
        "mediaType": BUNDLE_MEDIA_TYPE,
        "verificationMaterial": {
            "publicKey": { "hint": envelope.keyid },
            "tlogEntries": [{
                "logIndex": entry.index.to_string(),
                "logId": { "keyId": STANDARD.encode(entry.log_id) },
                "kindVersion": { "kind": "hashedrekord", "version": "0.0.2" },
                "inclusionProof": {
                    "logIndex": entry.index.to_string(),
                    "rootHash": STANDARD.encode(entry.root),
                    "treeSize": entry.size.to_string(),
                    "hashes": hashes,
                    "checkpoint": { "envelope": entry.checkpoint },
                },
                "canonicalizedBody": STANDARD.encode(entry.leaf),
            }],
        },
        "dsseEnvelope": {
            "payload": STANDARD.encode(&envelope.payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{ "keyid": envelope.keyid, "sig": STANDARD.encode(&envelope.signature) }],
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Algorithm, SigningKey};

    #[test]
    fn has_the_members_of_v0_3() {
        let key = SigningKey::generate(Algorithm::EcdsaP256).unwrap();
        let envelope = Envelope::sign(b"{}".to_vec(), &key).unwrap();
        let entry = LogEntry {
            index: 5,
            size: 9,
            root: [1; 32],
            proof: &[[2; 32], [3; 32]],
            checkpoint: "note\n",
            log_id: [4; 32],
            leaf: b"leaf",
        };
        let value = crate::parse_strict(&bundle(&envelope, &entry).unwrap()).unwrap();
        assert_eq!(value["mediaType"], BUNDLE_MEDIA_TYPE);
        assert_eq!(value["verificationMaterial"]["publicKey"]["hint"], key.public().keyid());
        let tlog = &value["verificationMaterial"]["tlogEntries"][0];
        assert_eq!(tlog["logIndex"], "5");
        assert_eq!(tlog["inclusionProof"]["treeSize"], "9");
        assert_eq!(tlog["inclusionProof"]["hashes"][1], STANDARD.encode([3; 32]));
        assert_eq!(tlog["canonicalizedBody"], STANDARD.encode(b"leaf"));
        let dsse = Envelope::parse(&canonical(&value["dsseEnvelope"]).unwrap()).unwrap();
        assert_eq!(dsse, envelope);
    }
}
