//! DSSE envelopes, <https://github.com/secure-systems-lab/dsse/blob/master/protocol.md>.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::canonical::{CanonicalError, parse_strict};
use crate::keys::{KeyError, PublicKey, SigningKey};

/// The payload type of every envelope here: an in-toto statement.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

const MAX_SIGNATURE_BYTES: usize = 1024;
const MAX_KEYID_BYTES: usize = 256;

/// Signed bytes: a payload and one signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The exact bytes signed: a statement.
    pub payload: Vec<u8>,
    /// OpenSSH fingerprint of the key.
    pub keyid: String,
    /// The signature over [`pae`].
    pub signature: Vec<u8>,
}

/// Why bytes are not an envelope, or an envelope is not signed as it claims.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not strict JSON.
    #[error(transparent)]
    Json(#[from] CanonicalError),
    /// A member is missing, unknown or of the wrong shape.
    #[error("member `{0}` is missing, unknown or malformed")]
    Member(&'static str),
    /// The payload is something else than a statement.
    #[error("`payloadType` is `{0}`, expected `{PAYLOAD_TYPE}`")]
    PayloadType(String),
    /// The envelope names another key.
    #[error("signed by key {found}, not by {expected}")]
    OtherKey {
        /// The key it was checked with.
        expected: String,
        /// The key it names.
        found: String,
    },
    /// The signature is not one of this key over this payload.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// What is signed: DSSE's pre-authentication encoding of a statement.
pub fn pae(payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

impl Envelope {
    /// Signs `payload`.
    pub fn sign(payload: Vec<u8>, key: &SigningKey) -> Result<Self, KeyError> {
        let signature = key.sign(&pae(&payload))?;
        Ok(Self { payload, keyid: key.public().keyid().to_owned(), signature })
    }

    /// What is signed.
    pub fn pae(&self) -> Vec<u8> {
        pae(&self.payload)
    }

    /// Checks that `key` signed this.
    pub fn verify(&self, key: &PublicKey) -> Result<(), EnvelopeError> {
        if self.keyid != key.keyid() {
            return Err(EnvelopeError::OtherKey { expected: key.keyid().to_owned(), found: self.keyid.clone() });
        }
        Ok(key.verify(&self.pae(), &self.signature)?)
    }

    /// The JSON written: canonical, so an envelope has one spelling.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Key ids are base64 and letters by construction or were parsed from JSON; quote them anyway.
        let keyid = Value::from(self.keyid.as_str());
        let payload = STANDARD.encode(&self.payload);
        let signature = STANDARD.encode(&self.signature);
        format!(
            "{{\"payload\":\"{payload}\",\"payloadType\":\"{PAYLOAD_TYPE}\",\
             \"signatures\":[{{\"keyid\":{keyid},\"sig\":\"{signature}\"}}]}}"
        )
        .into_bytes()
    }

    /// Reads an envelope: exactly the members of the specification, exactly one signature.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        use EnvelopeError::Member;
        let Value::Object(mut members) = parse_strict(bytes)? else { return Err(Member("payload")) };
        let Some(Value::String(payload)) = members.remove("payload") else { return Err(Member("payload")) };
        let payload = STANDARD.decode(payload).map_err(|_| Member("payload"))?;
        match members.remove("payloadType") {
            Some(Value::String(text)) if text == PAYLOAD_TYPE => {}
            Some(Value::String(text)) => {
                return Err(EnvelopeError::PayloadType(text.chars().take(200).collect()));
            }
            _ => return Err(Member("payloadType")),
        }
        let Some(Value::Array(mut signatures)) = members.remove("signatures") else {
            return Err(Member("signatures"));
        };
        let (Some(Value::Object(mut signed)), true, true) =
            (signatures.pop(), signatures.is_empty(), members.is_empty())
        else {
            return Err(Member("signatures"));
        };
        let Some(Value::String(keyid)) = signed.remove("keyid") else { return Err(Member("keyid")) };
        let Some(Value::String(sig)) = signed.remove("sig") else { return Err(Member("sig")) };
        if !signed.is_empty() {
            return Err(Member("signatures"));
        }
        if keyid.is_empty() || keyid.len() > MAX_KEYID_BYTES {
            return Err(Member("keyid"));
        }
        let signature = STANDARD.decode(sig).map_err(|_| Member("sig"))?;
        if signature.is_empty() || signature.len() > MAX_SIGNATURE_BYTES {
            return Err(Member("sig"));
        }
        Ok(Self { payload, keyid, signature })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Algorithm;

    #[test]
    fn pae_counts_bytes() {
        assert_eq!(pae("é".as_bytes()), "DSSEv1 28 application/vnd.in-toto+json 2 é".as_bytes());
    }

    #[test]
    fn signs_and_verifies() {
        for algorithm in [Algorithm::EcdsaP256, Algorithm::Ed25519] {
            let key = SigningKey::generate(algorithm).unwrap();
            let envelope = Envelope::sign(b"{}".to_vec(), &key).unwrap();
            let bytes = envelope.to_bytes();
            assert_eq!(crate::canonical(&parse_strict(&bytes).unwrap()).unwrap(), bytes);
            let again = Envelope::parse(&bytes).unwrap();
            assert_eq!(again, envelope);
            again.verify(key.public()).unwrap();
            let other = SigningKey::generate(algorithm).unwrap();
            assert!(matches!(again.verify(other.public()), Err(EnvelopeError::OtherKey { .. })));
            let posing = Envelope { keyid: other.public().keyid().to_owned(), ..again.clone() };
            assert!(matches!(posing.verify(other.public()), Err(EnvelopeError::Key(_))));
            let changed = Envelope { payload: b"{ }".to_vec(), ..again };
            assert!(matches!(changed.verify(key.public()), Err(EnvelopeError::Key(_))));
        }
    }

    #[test]
    fn refuses_other_shapes() {
        let key = SigningKey::generate(Algorithm::EcdsaP256).unwrap();
        let good = String::from_utf8(Envelope::sign(b"{}".to_vec(), &key).unwrap().to_bytes()).unwrap();
        for (from, to) in [
            ("\"payload\":\"e30=\"", "\"payload\":\"e30\""),
            ("\"payload\":\"e30=\"", "\"payload\":\"e31=\""),
            ("\"payload\":\"e30=\"", "\"payload\":\"e30=\",\"payload\":\"e30=\""),
            ("\"payload\":\"e30=\"", "\"payload\":\"e30=\",\"more\":1"),
            ("in-toto+json", "other+json"),
            ("\"signatures\":[", "\"signatures\":[{\"keyid\":\"a\",\"sig\":\"AAAA\"},"),
            ("\"keyid\":\"SHA256", "\"cert\":\"\",\"keyid\":\"SHA256"),
            ("\"sig\":\"", "\"sig\":\"*"),
            ("}]}", "}]} "),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            let read = Envelope::parse(bad.as_bytes());
            // White space around is the one freedom JSON keeps.
            assert_eq!(read.is_ok(), to == "}]} ", "{bad}");
        }
    }
}
