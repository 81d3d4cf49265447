//! What a registry asks for with a 401 (RFC 9110, 11.6.1; distribution, "Token Authentication"),
//! and what a token service answers.

use std::time::Duration;

use serde_json::Value;

/// Longest life believed of a token.
const LONGEST: u64 = 24 * 60 * 60;

/// A challenge that can be answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// With a token of the service at `realm`.
    Bearer { realm: String, service: Option<String> },
    /// With name and password.
    Basic,
}

impl Challenge {
    /// The best of the header's values: a token before a password.
    pub(super) fn choose<'a>(values: impl Iterator<Item = &'a str>) -> Option<Self> {
        let all: Vec<_> = values.take(8).filter_map(Self::parse).collect();
        let mut best = None;
        for challenge in all {
            if matches!(challenge, Self::Bearer { .. }) {
                return Some(challenge);
            }
            best = Some(challenge);
        }
        best
    }

    /// One header value with one challenge, as registries send it.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        for (name, value) in parameters(rest) {
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                _ => {}
            }
        }
        Some(Self::Bearer { realm: realm?, service })
    }
}

/// `name="value"` and `name=value`, separated by commas. What is malformed ends the list.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while let Some((name, after)) = rest.split_once('=') {
        let (value, next) = if let Some(quoted) = after.strip_prefix('"') {
            let mut value = String::new();
            let mut characters = quoted.char_indices();
            let end = loop {
                match characters.next() {
                    Some((at, '"')) => break at + 1,
                    Some((_, '\\')) => value.extend(characters.next().map(|(_, c)| c)),
                    Some((_, c)) => value.push(c),
                    None => return found,
                }
            };
            (value, &quoted[end..])
        } else {
            let end = after.find(',').unwrap_or(after.len());
            (after[..end].trim().to_owned(), &after[end..])
        };
        found.push((name.trim().to_owned(), value));
        rest = next.trim_start_matches([' ', ',']);
    }
    found
}

/// The token in a service's answer, and how long it holds.
pub(super) fn token(bytes: &[u8]) -> Option<(String, Option<Duration>)> {
    let answer: Value = serde_json::from_slice(bytes).ok()?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let token = text("token").or_else(|| text("access_token"))?;
    let life = answer.get("expires_in").and_then(Value::as_u64);
    Some((token.to_owned(), life.map(|seconds| Duration::from_secs(seconds.min(LONGEST)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) }
    }

    #[test]
    fn challenges() {
        for (text, expected) in [
            (
                r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#,
                Some(bearer("https://auth.example/token", Some("registry.example"))),
            ),
            (r#"bearer  service="s", realm="r""#, Some(bearer("r", Some("s")))),
            (r#"Bearer realm="a\"b\\c""#, Some(bearer(r#"a"b\c"#, None))),
            ("Bearer realm=r,service=s", Some(bearer("r", Some("s")))),
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            ("Basic", Some(Challenge::Basic)),
            (r#"Bearer service="s""#, None),
            (r#"Bearer realm="open"#, None),
            ("Negotiate", None),
            ("", None),
            ("=,=,==\"", None),
        ] {
            assert_eq!(Challenge::parse(text), expected, "{text}");
        }
        let both = ["Basic realm=\"x\"", "Bearer realm=\"r\""];
        assert_eq!(Challenge::choose(both.into_iter()), Some(bearer("r", None)));
        assert_eq!(Challenge::choose(both.into_iter().take(1)), Some(Challenge::Basic));
    }

    #[test]
    fn tokens() {
        let read = |text: &str| token(text.as_bytes());
        let minute = Some(Duration::from_mins(1));
        assert_eq!(read(r#"{"token":"t","expires_in":60}"#), Some(("t".to_owned(), minute)));
        assert_eq!(read(r#"{"access_token":"a","token":""}"#), Some(("a".to_owned(), None)));
        assert_eq!(read(r#"{"token":"t","expires_in":-1}"#), Some(("t".to_owned(), None)));
        let longest = Some(Duration::from_secs(LONGEST));
        assert_eq!(read(r#"{"token":"t","expires_in":18446744073709551615}"#), Some(("t".to_owned(), longest)));
        for bad in ["", "{}", "[]", r#"{"token":1}"#] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
