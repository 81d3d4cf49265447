//! Digests of any algorithm, as descriptors and requests name them.

use std::fmt;
use std::str::FromStr;

use adamant_digest::{Digest, Sha512};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::names::excerpt;

/// A digest by the grammar of image-spec, descriptor.md, "Digests": `algorithm:encoded`.
/// Well-formed digests of other algorithms are kept as text, so that a reader can say
/// "unsupported" instead of "malformed".
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ContentDigest {
    /// The algorithm that Adamant names bytes by.
    Sha256(Digest),
    /// The other one that content can be pushed and pulled by.
    Sha512(Sha512),
    /// Another one, well-formed.
    Other(OtherDigest),
}

/// A well-formed digest that is neither sha256 nor sha512.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OtherDigest(String);

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest: expected `sha256:` and 64 lower-case hex digits, or `sha512:` and 128")]
pub struct ParseContentDigestError(String);

/// A digest of an algorithm that cannot be checked here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("digest `{0}` is of an algorithm that is not supported here: use sha256")]
pub struct UnsupportedAlgorithm(String);

impl ContentDigest {
    /// The sha256 digest, or why there is none.
    pub fn sha256(&self) -> Result<Digest, UnsupportedAlgorithm> {
        match self {
            Self::Sha256(digest) => Ok(*digest),
            Self::Sha512(digest) => Err(UnsupportedAlgorithm(excerpt(&digest.to_string()))),
            Self::Other(other) => Err(other.unsupported()),
        }
    }
}

impl OtherDigest {
    /// Says that nothing can be done with it here.
    pub fn unsupported(&self) -> UnsupportedAlgorithm {
        UnsupportedAlgorithm(excerpt(&self.0))
    }
}

impl From<Sha512> for ContentDigest {
    fn from(digest: Sha512) -> Self {
        Self::Sha512(digest)
    }
}

impl From<Digest> for ContentDigest {
    fn from(digest: Digest) -> Self {
        Self::Sha256(digest)
    }
}

impl FromStr for ContentDigest {
    type Err = ParseContentDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseContentDigestError(excerpt(text));
        let (algorithm, encoded) = text.split_once(':').ok_or_else(bad)?;
        let hex =
            |length: usize| encoded.len() == length && encoded.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match algorithm {
            "sha256" => Digest::from_hex(encoded).map(Self::Sha256).map_err(|_| bad()),
            "sha384" if hex(96) => Ok(Self::Other(OtherDigest(text.to_owned()))),
            "sha512" => Sha512::from_hex(encoded).map(Self::Sha512).map_err(|_| bad()),
            "sha384" => Err(bad()),
            _ => {
                let component =
                    |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
                let well_formed = algorithm.split(['+', '.', '_', '-']).all(component)
                    && !encoded.is_empty()
                    && encoded.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-'))
                    && text.len() <= MAX;
                if well_formed { Ok(Self::Other(OtherDigest(text.to_owned()))) } else { Err(bad()) }
            }
        }
    }
}

/// Longest digest that is read, in bytes; a sha512 has 135.
const MAX: usize = 512;

impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) => digest.fmt(f),
            Self::Sha512(digest) => digest.fmt(f),
            Self::Other(other) => f.write_str(&other.0),
        }
    }
}

impl Serialize for ContentDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_unsupported_from_malformed() {
        let sha512 = format!("sha512:{}", "a".repeat(128));
        let parsed: ContentDigest = sha512.parse().unwrap();
        assert_eq!(parsed.to_string(), sha512);
        assert!(matches!(parsed, ContentDigest::Sha512(_)) && parsed.sha256().is_err());
        assert!("multihash+base58:QmRZxt2b1FVZPNqd8hsiykDL3TdBDeTSPX9Kv46HmX4Gx8".parse::<ContentDigest>().is_ok());
        for bad in [
            "",
            ":",
            "sha256",
            "sha256:",
            "sha256:zz",
            "sha512:00",
            "sha256+:00",
            "+a:00",
            "A:00",
            "a:",
            "a:/",
            "a:..%",
        ] {
            assert!(bad.parse::<ContentDigest>().is_err(), "{bad}");
        }
        assert!(format!("sha256:{}", "A".repeat(64)).parse::<ContentDigest>().is_err());
        assert!(format!("x:{}", "A".repeat(600)).parse::<ContentDigest>().is_err());
    }
}
