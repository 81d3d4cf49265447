//! Error bodies. Spec: distribution-spec 1.1, "Error Codes".

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What went wrong, in the registry's words. Docker's clients print the code in lower case
/// with spaces, then the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// code-1.
    BlobUnknown,
    /// code-2.
    BlobUploadInvalid,
    /// code-3.
    BlobUploadUnknown,
    /// code-4.
    DigestInvalid,
    /// code-5: a manifest names a manifest or blob that is not here.
    ManifestBlobUnknown,
    /// code-6.
    ManifestInvalid,
    /// code-7.
    ManifestUnknown,
    /// code-8.
    NameInvalid,
    /// code-9.
    NameUnknown,
    /// code-10.
    SizeInvalid,
    /// code-11.
    Unauthorized,
    /// code-12.
    Denied,
    /// code-13.
    Unsupported,
    /// code-14; one word in the specification.
    #[serde(rename = "TOOMANYREQUESTS")]
    TooManyRequests,
    /// Docker's: the tag is malformed or cannot be bound.
    TagInvalid,
    /// Docker's: `n` of a listing is no number.
    PaginationNumberInvalid,
    /// Docker's: try again later.
    Unavailable,
    /// Docker's: the registry's own fault.
    Unknown,
}

/// One error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorEntry {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    #[serde(default)]
    pub message: String,
    /// Anything more, structured.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
}

/// The body of a response of class 4xx or 5xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// At least one.
    pub errors: Vec<ErrorEntry>,
}

impl ErrorBody {
    /// A body of one error.
    pub fn new(code: ErrorCode, message: impl Into<String>, detail: Value) -> Self {
        Self { errors: vec![ErrorEntry { code, message: message.into(), detail }] }
    }

    /// The body as JSON.
    pub fn to_json(&self) -> String {
        // Strings and values with string keys only: printing cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_the_codes_of_the_specification() {
        let body = ErrorBody::new(ErrorCode::ManifestBlobUnknown, "m", serde_json::json!({"digest": "d"}));
        let text = r#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"m","detail":{"digest":"d"}}]}"#;
        assert_eq!(body.to_json(), text);
        assert_eq!(serde_json::from_str::<ErrorBody>(text).unwrap(), body);
        let code = |c| serde_json::to_string(&c).unwrap();
        assert_eq!(code(ErrorCode::TooManyRequests), r#""TOOMANYREQUESTS""#);
        assert_eq!(code(ErrorCode::TagInvalid), r#""TAG_INVALID""#);
    }
}
