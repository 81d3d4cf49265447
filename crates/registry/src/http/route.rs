//! Paths and queries.

use std::fmt::Write as _;

use adamant_oci::{ErrorCode, RepositoryName};
use http::StatusCode;
use serde_json::Value;

use super::failure::Failure;

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    Base,
    Catalog,
    Repository(Route),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) repository: RepositoryName,
    pub(super) target: Target,
}

/// What of a repository; references are still texts, because each request answers a malformed
/// one in its own way.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    Manifest(String),
    Blob(String),
    Uploads,
    Upload(String),
    Tags,
    Referrers(String),
}

impl Route {
    /// Reads a path from its end, because a repository name may hold any word.
    pub(super) fn parse(path: &str) -> Result<Parsed, Failure> {
        let rest = path.strip_prefix("/v2").ok_or_else(|| nowhere(path))?;
        if matches!(rest, "" | "/") {
            return Ok(Parsed::Base);
        }
        let rest = rest.strip_prefix('/').ok_or_else(|| nowhere(path))?;
        if rest == "_catalog" {
            return Ok(Parsed::Catalog);
        }
        let segments = rest.split('/').map(decode).collect::<Option<Vec<_>>>().ok_or_else(|| nowhere(path))?;
        let text: Vec<_> = segments.iter().map(String::as_str).collect();
        let (name, target) = match text.as_slice() {
            [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => (name, Target::Uploads),
            [name @ .., "blobs", "uploads", id] => (name, Target::Upload((*id).to_owned())),
            [name @ .., "blobs", digest] => (name, Target::Blob((*digest).to_owned())),
            [name @ .., "manifests", reference] => (name, Target::Manifest((*reference).to_owned())),
            [name @ .., "referrers", digest] => (name, Target::Referrers((*digest).to_owned())),
            [name @ .., "tags", "list"] => (name, Target::Tags),
            _ => return Err(nowhere(path)),
        };
        // A decoded `/` inside a segment would be read as two; a name is checked as it was cut.
        if name.iter().any(|part| part.contains('/')) {
            return Err(nowhere(path));
        }
        let repository = name.join("/").parse::<RepositoryName>()?;
        Ok(Parsed::Repository(Self { repository, target }))
    }
}

/// The parameters of a query, decoded, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let bad = || {
            let message = "the query is not percent-encoded UTF-8".to_owned();
            Failure::new(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message, Value::Null)
        };
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            // A `+` is one: media types have it, not all clients encode it, and no parameter has spaces.
            Some((decode(key)?, decode(value)?))
        };
        text.split('&').filter(|part| !part.is_empty()).map(pair).collect::<Option<_>>().map(Self).ok_or_else(bad)
    }

    pub(super) fn value(&self, key: &str) -> Option<&str> {
        self.values(key).next()
    }

    pub(super) fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// Percent-decodes; `None` if the escape or the result is malformed.
fn decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
            let value = digit()? * 16 + digit()?;
            decoded.push(u8::try_from(value).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

/// Encodes a value for a query of our own making.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'/') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn nowhere(path: &str) -> Failure {
    let path: String = path.chars().take(300).collect();
    let message = format!("`{path}` is no address of a registry");
    Failure::new(StatusCode::NOT_FOUND, ErrorCode::NameUnknown, message, Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, name: &str, target: Target) {
        let expected = Parsed::Repository(Route { repository: name.parse().unwrap(), target });
        assert_eq!(Route::parse(path).ok(), Some(expected), "{path}");
    }

    #[test]
    fn reads_paths_from_the_end() {
        assert_eq!(Route::parse("/v2/").ok(), Some(Parsed::Base));
        assert_eq!(Route::parse("/v2").ok(), Some(Parsed::Base));
        assert_eq!(Route::parse("/v2/_catalog").ok(), Some(Parsed::Catalog));
        check("/v2/a/manifests/v1", "a", Target::Manifest("v1".to_owned()));
        check("/v2/a/b/manifests/sha256%3A00", "a/b", Target::Manifest("sha256:00".to_owned()));
        check("/v2/a/blobs/uploads/", "a", Target::Uploads);
        check("/v2/a/blobs/uploads", "a", Target::Uploads);
        check("/v2/a/blobs/uploads/x", "a", Target::Upload("x".to_owned()));
        check("/v2/a/blobs/blobs/x", "a/blobs", Target::Blob("x".to_owned()));
        check("/v2/a/manifests/tags/list", "a/manifests", Target::Tags);
        check("/v2/a/referrers/x", "a", Target::Referrers("x".to_owned()));
        for bad in [
            "/",
            "/v1/",
            "/v2x",
            "/v2/a",
            "/v2//manifests/x",
            "/v2/manifests/x",
            "/v2/a/../b/manifests/x",
            "/v2/a%2Fb/manifests/x",
            "/v2/%2e%2e/manifests/x",
            "/v2/a%zz/manifests/x",
            "/v2/a%ff/manifests/x",
            "/v2/a/manifests",
            "/v2/A/tags/list",
        ] {
            assert!(Route::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_queries() {
        let query = Query::parse("mount=sha256%3A00&from=a/b&x&n=1&n=2&p=a+b%2Bc").unwrap_or_default();
        assert_eq!(query.value("mount"), Some("sha256:00"));
        assert_eq!(query.value("from"), Some("a/b"));
        assert_eq!(query.value("x"), Some(""));
        assert_eq!(query.value("n"), Some("1"));
        assert_eq!(query.value("p"), Some("a+b+c"));
        assert_eq!(query.value("y"), None);
        assert!(Query::parse("a=%f").is_err());
        assert_eq!(encode("a b&c=d/e"), "a%20b%26c%3Dd/e");
    }
}
