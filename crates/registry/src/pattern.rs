//! Which repositories a setting of the operator is about.

use std::fmt;
use std::str::FromStr;

use adamant_oci::RepositoryName;

/// Longest pattern, in bytes: a repository name is no longer.
const MAX_BYTES: usize = 255;

/// A repository name in which `*` stands for any characters, slashes included: `shop/*`, `*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern(String);

/// A text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no pattern of repository names: write a name, or one with `*` for any characters, such as `shop/*`")]
pub struct ParsePatternError(String);

impl Pattern {
    /// Whether it covers a repository. Takes time in proportion to the product of both lengths at most.
    pub fn covers(&self, repository: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = repository.strip_prefix(first) else { return false };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            // The earliest place leaves most for what follows; the last part stands at the end.
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            let Some(at) = rest.find(part) else { return false };
            rest = rest.get(at + part.len()..).unwrap_or_default();
        }
        true
    }

    /// Whether it covers every repository.
    pub fn is_all(&self) -> bool {
        self.0.bytes().all(|b| b == b'*')
    }

    /// What every name that is covered starts with.
    pub(crate) fn start(&self) -> &str {
        self.0.split('*').next().unwrap_or_default()
    }

    /// The pattern that covers everything.
    pub fn all() -> Self {
        Self("*".to_owned())
    }

    /// The pattern that covers one repository, whose name holds no `*`.
    pub(crate) fn exactly(repository: &RepositoryName) -> Self {
        Self(repository.to_string())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Pattern {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'/' | b'*');
        if text.is_empty() || text.len() > MAX_BYTES || !text.bytes().all(known) {
            return Err(ParsePatternError(text.chars().take(MAX_BYTES).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_what_it_says() {
        let check = |pattern: &str, name: &str, expected: bool| {
            assert_eq!(pattern.parse::<Pattern>().unwrap().covers(name), expected, "{pattern} {name}");
        };
        check("*", "a", true);
        check("*", "a/b/c", true);
        check("shop/*", "shop/web", true);
        check("shop/*", "shop/web/deep", true);
        check("shop/*", "shop", false);
        check("shop/*", "workshop/web", false);
        check("shop", "shop", true);
        check("shop", "shop/web", false);
        check("*/web", "shop/web", true);
        check("*/web", "shop/webs", false);
        check("a*b*c", "a-b-b-c", true);
        check("a*b*c", "acb", false);
        check("ab*ba", "aba", false);
        check("**", "x", true);
    }

    #[test]
    fn refuses_what_no_name_has() {
        for text in ["", "Shop", "shop:1", "a b", "é", &"a".repeat(256)] {
            text.parse::<Pattern>().expect_err(text);
        }
    }
}
