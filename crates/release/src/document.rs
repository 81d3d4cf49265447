//! Canonical bytes, digests and strict parsing, once for all documents.

use adamant_digest::{Digest, Verified};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// No document is longer than this, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// A document named by the digest of its canonical JSON (RFC 8785).
pub trait Document: Serialize + DeserializeOwned {
    /// What the document is called in errors.
    const NAME: &'static str;

    /// Whether the values make sense together; in words if they do not.
    fn check(&self) -> Result<(), String>;

    /// The canonical bytes with their digest.
    fn encode(&self) -> Result<Verified, DocumentError> {
        let bad = |reason: String| DocumentError { document: Self::NAME, reason };
        self.check().map_err(bad)?;
        let value = serde_json::to_value(self).map_err(|e| bad(e.to_string()))?;
        let bytes = adamant_attest::canonical(&value).map_err(|e| bad(e.to_string()))?;
        if bytes.len() > MAX_DOCUMENT_BYTES {
            return Err(bad(format!("it has {} bytes, at most {MAX_DOCUMENT_BYTES} are allowed", bytes.len())));
        }
        Ok(Verified::hash(bytes))
    }

    /// The digest of the canonical bytes.
    fn digest(&self) -> Result<Digest, DocumentError> {
        self.encode().map(|verified| verified.digest())
    }

    /// Reads a document. Bytes that this version would not write itself (an unknown or missing
    /// member, a duplicate key, another order, white space) are refused.
    fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let bad = |reason: String| DocumentError { document: Self::NAME, reason };
        if bytes.len() > MAX_DOCUMENT_BYTES {
            return Err(bad(format!("it has {} bytes, at most {MAX_DOCUMENT_BYTES} are allowed", bytes.len())));
        }
        let document: Self = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        if document.encode()?.bytes() != bytes {
            return Err(bad("its bytes are not canonical JSON of the known members".to_owned()));
        }
        Ok(document)
    }
}

/// A document cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {document} document: {reason}")]
pub struct DocumentError {
    /// Which document was expected.
    pub document: &'static str,
    /// What is wrong with it.
    pub reason: String,
}
