//! What a reader of capsules trusts beforehand: the file `trust.json`.

use adamant_attest::{PublicKey, canonical, parse_strict};
use adamant_tlog::{Checkpoint, VerifierKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The anchors of every verification. JSON, version 1:
/// `{"version":1,"origin","logKey","rootControlKey","checkpoint"?,"witnesses"?}`; `logKey` and
/// `witnesses` are verifier keys (`name+id+base64`), `rootControlKey` is the base64 of a DER
/// SubjectPublicKeyInfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// Name of the log.
    pub origin: String,
    /// The key of the log.
    pub log_key: VerifierKey,
    /// The control key that every other key goes back to.
    pub root_control_key: PublicKey,
    /// The newest checkpoint seen: older ones are refused. Exact text of the note.
    pub checkpoint: Option<String>,
    /// Keys of witnesses whose cosignatures count.
    pub witnesses: Vec<VerifierKey>,
}

/// Why bytes are not a trust file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the trust file is not usable: {0}")]
pub struct TrustError(String);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wire {
    version: u32,
    origin: String,
    log_key: String,
    root_control_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checkpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    witnesses: Vec<String>,
}

impl Trust {
    /// Reads a trust file. A last seen checkpoint must be signed by the log key.
    pub fn parse(bytes: &[u8]) -> Result<Self, TrustError> {
        let bad = |reason: &dyn std::fmt::Display| TrustError(reason.to_string());
        if bytes.len() > 1 << 20 {
            return Err(bad(&"it is above 1 MiB"));
        }
        let value = parse_strict(bytes).map_err(|error| bad(&error))?;
        let wire: Wire = serde_json::from_value(value).map_err(|error| bad(&error))?;
        if wire.version != 1 {
            return Err(bad(&format!("version {} is not known, this binary reads 1", wire.version)));
        }
        let log_key: VerifierKey = wire.log_key.parse().map_err(|error| bad(&error))?;
        if log_key.is_witness() {
            return Err(bad(&"`logKey` is a key of a witness"));
        }
        let spki = STANDARD.decode(&wire.root_control_key).map_err(|_| bad(&"`rootControlKey` is not base64"))?;
        let root_control_key = PublicKey::from_spki_der(&spki).map_err(|error| bad(&error))?;
        let witnesses = wire
            .witnesses
            .iter()
            .map(|text| match text.parse::<VerifierKey>() {
                Ok(key) if key.is_witness() => Ok(key),
                Ok(key) => Err(bad(&format!("`{}` is not a key of a witness", key.name()))),
                Err(error) => Err(bad(&error)),
            })
            .collect::<Result<_, _>>()?;
        if let Some(note) = &wire.checkpoint {
            Checkpoint::verify(note, &wire.origin, &log_key).map_err(|error| bad(&error))?;
        }
        Ok(Self { origin: wire.origin, log_key, root_control_key, checkpoint: wire.checkpoint, witnesses })
    }

    /// The file: canonical JSON.
    pub fn to_bytes(&self) -> Result<Vec<u8>, TrustError> {
        let wire = Wire {
            version: 1,
            origin: self.origin.clone(),
            log_key: self.log_key.to_string(),
            root_control_key: STANDARD.encode(self.root_control_key.spki_der()),
            checkpoint: self.checkpoint.clone(),
            witnesses: self.witnesses.iter().map(ToString::to_string).collect(),
        };
        let value = serde_json::to_value(wire).map_err(|error| TrustError(error.to_string()))?;
        canonical(&value).map_err(|error| TrustError(error.to_string()))
    }
}
