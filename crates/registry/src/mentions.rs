//! Digests in bytes, whatever the format: every run of exactly 64 or 128 lower-case hex digits.

use adamant_digest::{Digest, Sha512};

/// A digest that is written somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mention {
    Sha256(Digest),
    Sha512(Sha512),
}

/// All digests that `bytes` write as text, in order.
pub(crate) fn mentions(bytes: &[u8]) -> impl Iterator<Item = Mention> {
    bytes.split(|byte| !matches!(byte, b'0'..=b'9' | b'a'..=b'f')).filter_map(|run| {
        if !matches!(run.len(), 64 | 128) {
            return None;
        }
        let text = std::str::from_utf8(run).ok()?;
        match run.len() {
            64 => Digest::from_hex(text).ok().map(Mention::Sha256),
            _ => Sha512::from_hex(text).ok().map(Mention::Sha512),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_found_in_any_format() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let long = Sha512::of(b"3");
        let check = |text: String, expected: &[Mention]| {
            assert_eq!(mentions(text.as_bytes()).collect::<Vec<_>>(), expected, "{text}");
        };
        let first = Mention::Sha256(one);
        check(format!(r#"{{"digest":"{one}","x":{{"sha256":"{}"}}}}"#, two.hex()), &[first, Mention::Sha256(two)]);
        check(one.hex(), &[first]);
        check(format!("repo@{one}/referrers/{two}"), &[first, Mention::Sha256(two)]);
        check(format!("sha256-{}.sig", one.hex()), &[first]);
        check(format!("\0{}\u{fffd}{long}\n", one.hex()), &[first, Mention::Sha512(long)]);
        check(format!("{}0 {}", one.hex(), &one.hex()[1..]), &[]);
        check(one.hex().to_uppercase(), &[]);
        check(String::new(), &[]);
    }
}
