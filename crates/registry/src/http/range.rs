//! `Range` and `Content-Range`.

use crate::uploads::Chunk;

/// What a `Range` header asks of content of a known size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it: no range, or one that is not understood (RFC 9110, 14.2: ignored).
    Whole,
    /// This many bytes, at least one, from this one on.
    Part { start: u64, length: u64 },
    /// Nothing of what there is.
    Unsatisfiable,
}

/// Reads one `bytes` range. Several ranges are answered with the whole.
pub(super) fn wanted(header: Option<&str>, size: u64) -> Wanted {
    let Some((first, last)) =
        header.and_then(|text| text.trim().strip_prefix("bytes=")).and_then(|text| text.trim().split_once('-'))
    else {
        return Wanted::Whole;
    };
    let (start, end) = match (position(first), position(last)) {
        (Some(first), None) if last.is_empty() => (first, size),
        // One that ends before it begins has no bytes; other registries say so, too.
        (Some(first), Some(last)) => (first, last.saturating_add(1).min(size)),
        (None, Some(last)) if first.is_empty() => (size - last.min(size), size),
        _ => return Wanted::Whole,
    };
    if start < end { Wanted::Part { start, length: end - start } } else { Wanted::Unsatisfiable }
}

/// Reads the `Content-Range` of a chunk: `start-end` (distribution-spec 1.1), which some
/// clients write as `bytes start-end/size`. `None` if it is malformed.
pub(super) fn chunk(text: &str) -> Option<Chunk> {
    let text = text.trim();
    let text = text.strip_prefix("bytes").map_or(text, |rest| rest.trim_start_matches([' ', '=']));
    let text = text.split('/').next()?;
    let (start, end) = text.split_once('-')?;
    let (start, end) = (number(start)?, number(end)?);
    let length = end.checked_sub(start)?.checked_add(1)?;
    Some(Chunk { start, length })
}

/// Digits only: `u64::from_str` would take a sign.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// As [`number`]; one that is beyond all sizes is the greatest there is.
fn position(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |start, length| Wanted::Part { start, length };
        for (text, expected) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=2-", part(2, 8)),
            ("bytes=2-99", part(2, 8)),
            ("bytes=2-99999999999999999999", part(2, 8)),
            ("bytes=-99999999999999999999", part(0, 10)),
            ("bytes=99999999999999999999-", Wanted::Unsatisfiable),
            ("bytes=-3", part(7, 3)),
            ("bytes=-99", part(0, 10)),
            ("bytes=0-18446744073709551615", part(0, 10)),
            ("bytes=10-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=3-2", Wanted::Unsatisfiable),
            ("bytes=5-0", Wanted::Unsatisfiable),
            ("bytes=-", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("lines=0-1", Wanted::Whole),
        ] {
            assert_eq!(wanted(Some(text), 10), expected, "{text}");
        }
        assert_eq!(wanted(None, 10), Wanted::Whole);
        assert_eq!(wanted(Some("bytes=0-0"), 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn chunks() {
        for text in ["5-9", "bytes 5-9/*", "bytes=5-9", "bytes 5-9/10"] {
            assert_eq!(chunk(text), Some(Chunk { start: 5, length: 5 }), "{text}");
        }
        for text in ["", "-", "5-", "-5", "9-5", "a-b", "+5-9", "0-18446744073709551615", "5"] {
            assert_eq!(chunk(text), None, "{text}");
        }
    }
}
