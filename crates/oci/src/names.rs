//! Repository names, tags and references. Spec: distribution-spec 1.1, "Pulling manifests".

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{ContentDigest, ParseContentDigestError};

/// A repository name: components of `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` joined by `/`, at most
/// 255 bytes. It never contains `:`, `@`, `..` or an empty component.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(String);

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

/// What stands after `manifests/` in a request: a digest if it holds a `:`, a tag otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// By name.
    Tag(Tag),
    /// By content.
    Digest(ContentDigest),
}

/// Why a text is not a repository name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a repository name: at most 255 bytes of lower-case letters and digits, separated by `.`, `_`, `__`, dashes or `/`"
)]
pub struct ParseNameError(String);

/// Why a text is not a tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a tag: at most 128 letters, digits, `_`, `.` and `-`, the first neither `.` nor `-`")]
pub struct ParseTagError(String);

impl RepositoryName {
    /// Longest name in bytes.
    pub const MAX: usize = 255;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Tag {
    /// Longest tag in bytes.
    pub const MAX: usize = 128;

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() <= Self::MAX && text.split('/').all(is_component) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseNameError(excerpt(text)))
        }
    }
}

impl FromStr for Tag {
    type Err = ParseTagError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(word);
        if first && text.len() <= Self::MAX && bytes.all(|b| word(b) || b == b'.' || b == b'-') {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseTagError(excerpt(text)))
        }
    }
}

impl Reference {
    /// Reads a reference. The two errors differ because a registry answers them differently:
    /// no manifest can have a malformed tag (404), but a malformed digest is a bad request (400).
    pub fn parse(text: &str) -> Result<Self, ParseReferenceError> {
        if text.contains(':') {
            text.parse().map(Self::Digest).map_err(ParseReferenceError::Digest)
        } else {
            text.parse().map(Self::Tag).map_err(ParseReferenceError::Tag)
        }
    }
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    /// Neither a digest nor a tag.
    #[error(transparent)]
    Tag(ParseTagError),
    /// Holds a `:` and is no digest.
    #[error(transparent)]
    Digest(ParseContentDigestError),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

macro_rules! text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
text!(RepositoryName);
text!(Tag);

fn is_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut rest = bytes;
    loop {
        let word = rest.iter().take_while(|&&b| alnum(b)).count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        let separator = match rest {
            [] => return true,
            [b'_', b'_', ..] => 2,
            [b'.' | b'_', ..] => 1,
            [b'-', ..] => rest.iter().take_while(|&&b| b == b'-').count(),
            _ => return false,
        };
        rest = &rest[separator..];
    }
}

/// What of a hostile text may stand in an error.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names() {
        for good in ["a", "a/b", "library/x", "a.b_c__d-e---f/0", &"a".repeat(255)] {
            assert_eq!(good.parse::<RepositoryName>().map(|n| n.to_string()).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a..b",
            "a___b",
            "a.-b",
            "-a",
            "a-",
            "_a",
            ".",
            "..",
            "a/../b",
            "a b",
            "a:b",
            "a@b",
            "é",
            "a\0",
            "a%2fb",
            &"a".repeat(256),
        ] {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tags() {
        for good in ["1", "latest", "_x", "v1.2-rc.3_b", &"a".repeat(128)] {
            assert_eq!(good.parse::<Tag>().map(|t| t.to_string()).as_deref(), Ok(good));
        }
        for bad in ["", ".", "-x", ".x", "a/b", "a:b", "a b", "é", &"a".repeat(129)] {
            assert!(bad.parse::<Tag>().is_err(), "{bad}");
        }
    }

    #[test]
    fn references() {
        assert!(matches!(Reference::parse("v1"), Ok(Reference::Tag(_))));
        assert!(matches!(Reference::parse("sha256:00"), Err(ParseReferenceError::Digest(_))));
        assert!(matches!(Reference::parse(".x"), Err(ParseReferenceError::Tag(_))));
        let digest = adamant_digest::Digest::of(b"");
        assert_eq!(Reference::parse(&digest.to_string()), Ok(Reference::Digest(digest.into())));
    }
}
