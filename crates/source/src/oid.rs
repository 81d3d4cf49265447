//! Git object ids.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The SHA-1 id of a git object, written as 40 lower-case hex digits.
/// Spec: git, gitformat-pack, "object name".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Oid([u8; 20]);

/// Why a text is not an object id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a git object id: expected 40 lower-case hex digits")]
pub struct ParseOidError(String);

impl Oid {
    /// The id git writes where there is no object.
    pub(crate) const ZERO: Self = Self([0; 20]);

    /// The first 7 hex digits, for people.
    pub fn short(&self) -> String {
        self.to_string().chars().take(7).collect()
    }

    /// From the ASCII bytes of 40 lower-case hex digits.
    pub fn from_ascii(text: &[u8]) -> Result<Self, ParseOidError> {
        let bad = || ParseOidError(String::from_utf8_lossy(text).chars().take(80).collect());
        if text.len() != 40 {
            return Err(bad());
        }
        let mut raw = [0; 20];
        for (byte, pair) in raw.iter_mut().zip(text.chunks_exact(2)) {
            let (Some(high), Some(low)) = (nibble(pair[0]), nibble(pair[1])) else { return Err(bad()) };
            *byte = high << 4 | low;
        }
        Ok(Self(raw))
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Oid {
    type Err = ParseOidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_ascii(text.as_bytes())
    }
}

impl Serialize for Oid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Oid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        let text = "0123456789abcdef0123456789abcdef01234567";
        let oid: Oid = text.parse().unwrap();
        assert_eq!(oid.to_string(), text);
        assert_eq!(oid.short(), "0123456");
    }

    #[test]
    fn refuses_what_is_not_an_id() {
        let good = "0123456789abcdef0123456789abcdef01234567";
        for text in ["", "HEAD", &good.to_uppercase(), &good[..39], &format!("{good}0"), &good.replace('0', "é")] {
            assert!(text.parse::<Oid>().is_err(), "{text}");
        }
    }
}
