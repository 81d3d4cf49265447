//! Debian's order of versions. Policy §5.6.12.

use std::cmp::Ordering;

/// Compares two versions as dpkg does: epoch, upstream version, revision; letters before other
/// characters, `~` before everything, even the end.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a_epoch, a_upstream, a_revision) = split(a);
    let (b_epoch, b_upstream, b_revision) = split(b);
    numbers(a_epoch, b_epoch).then_with(|| part(a_upstream, b_upstream)).then_with(|| part(a_revision, b_revision))
}

fn split(version: &str) -> (&str, &str, &str) {
    let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch, upstream, revision)
}

/// Compares digit strings of any length by value.
fn numbers(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// Compares alternating runs of non-digits and digits.
fn part(mut a: &str, mut b: &str) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let (a_text, a_rest) = run(a, |c| !c.is_ascii_digit());
        let (b_text, b_rest) = run(b, |c| !c.is_ascii_digit());
        let (a_number, a_next) = run(a_rest, |c| c.is_ascii_digit());
        let (b_number, b_next) = run(b_rest, |c| c.is_ascii_digit());
        let order = text(a_text, b_text).then_with(|| numbers(a_number, b_number));
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (a_next, b_next);
    }
    Ordering::Equal
}

fn run(text: &str, inside: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !inside(c)).unwrap_or(text.len()))
}

fn text(a: &str, b: &str) -> Ordering {
    // The end counts 0, `~` less, letters their code, everything else above all letters.
    let weight = |byte: Option<&u8>| match byte {
        None => 0,
        Some(b'~') => -1,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    };
    let (a, b) = (a.as_bytes(), b.as_bytes());
    (0..a.len().max(b.len()))
        .map(|i| weight(a.get(i)).cmp(&weight(b.get(i))))
        .find(|order| *order != Ordering::Equal)
        .unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_dpkg() {
        // Each is older than the one behind it.
        let rising = [
            "0~~",
            "0~~a",
            "0~",
            "0",
            "0a",
            "0+",
            "0.1",
            "1.0~rc1-1",
            "1.0~rc1-1+deb12u1",
            "1.0",
            "1.0-0.1",
            "1.0-1~bpo1",
            "1.0-1",
            "1.0-1+b1",
            "1.0-1.1",
            "1.0-2",
            "1.0-10",
            "1.0a",
            "1.0+dfsg",
            "1.0.1",
            "1.2",
            "1.10",
            "2-1",
            "12.2.0-14",
            "12.2.0-14+deb12u1",
            "1:0.1",
            "4:12.2.0-3",
            "10:0",
        ];
        for (i, a) in rising.iter().enumerate() {
            for (j, b) in rising.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} {b}");
            }
        }
    }

    #[test]
    fn equal_though_written_differently() {
        for (a, b) in [("1.0", "0:1.0"), ("1.00", "1.0"), ("1.0-0", "1.0"), ("007", "7"), ("1.0-01", "1.0-1")] {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} {b}");
        }
        assert_eq!(compare("99999999999999999999999999", "99999999999999999999999998"), Ordering::Greater);
        assert_eq!(compare("1-1-1", "1-1-2"), Ordering::Less);
        assert_eq!(compare("é", "f"), Ordering::Greater);
    }
}
