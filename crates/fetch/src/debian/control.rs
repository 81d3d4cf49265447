//! The control format of Release and Packages files, and relations between packages.
//! Policy §5.1 and §7.1.

use std::cmp::Ordering;

use super::version::compare;

/// Stanzas of `text`; each yields its fields as (name, value), continuation lines joined by
/// newlines.
pub(super) fn stanzas(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n\n").map(|stanza| stanza.trim_matches('\n')).filter(|stanza| !stanza.is_empty())
}

/// Fields of a stanza: name and value; a value of several lines keeps them.
pub(super) fn fields(stanza: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = stanza;
    std::iter::from_fn(move || {
        loop {
            if rest.is_empty() {
                return None;
            }
            // A field goes on while lines begin with white space.
            let mut end = 0;
            loop {
                end = rest[end..].find('\n').map_or(rest.len(), |at| end + at + 1);
                if !rest[end..].starts_with([' ', '\t']) {
                    break;
                }
            }
            let (field, after) = rest.split_at(end);
            rest = after;
            if let Some((name, value)) = field.split_once(':') {
                return Some((name, value.trim()));
            }
        }
    })
}

/// How a version is restricted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Earlier,
    EarlierEqual,
    Exactly,
    LaterEqual,
    Later,
}

/// `name (>= version)`, one alternative of a dependency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relation<'a> {
    pub(super) name: &'a str,
    pub(super) version: Option<(Operator, &'a str)>,
}

impl Relation<'_> {
    /// Whether a package of that version will do.
    pub(super) fn accepts(&self, version: &str) -> bool {
        let Some((operator, wanted)) = self.version else { return true };
        let order = compare(version, wanted);
        match operator {
            Operator::Earlier => order == Ordering::Less,
            Operator::EarlierEqual => order != Ordering::Greater,
            Operator::Exactly => order == Ordering::Equal,
            Operator::LaterEqual => order != Ordering::Less,
            Operator::Later => order == Ordering::Greater,
        }
    }
}

/// Parses `a (>= 1) | b, c`: what must all hold, each by one of its alternatives. What cannot
/// be read yields a group that nothing satisfies, so that it is never silently ignored.
pub(super) fn relations<'a>(text: &'a str, arch: &'a str) -> impl Iterator<Item = Vec<Relation<'a>>> {
    text.split(',')
        .map(str::trim)
        .filter(|group| !group.is_empty())
        .map(move |group| group.split('|').filter_map(|alternative| relation(alternative.trim(), arch)).collect())
}

fn relation<'a>(text: &'a str, arch: &str) -> Option<Relation<'a>> {
    let (name, version) = match text.split_once('(') {
        Some((name, rest)) => (name.trim(), Some(rest.split_once(')')?.0.trim())),
        None => (text, None),
    };
    let name = match name.split_once(':') {
        Some((name, qualifier)) if qualifier == "any" || qualifier == "native" || qualifier == arch => name,
        Some(_) => return None,
        None => name,
    };
    let version = match version {
        None => None,
        Some(text) => {
            let number = text.trim_start_matches(['<', '=', '>']);
            let operator = match &text[..text.len() - number.len()] {
                "<<" => Operator::Earlier,
                "<=" | "<" => Operator::EarlierEqual,
                "=" => Operator::Exactly,
                ">=" | ">" => Operator::LaterEqual,
                ">>" => Operator::Later,
                _ => return None,
            };
            Some((operator, number.trim()))
        }
    };
    adamant_recipe::package_name(name).ok()?;
    Some(Relation { name, version })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_fields() {
        let text = "A: 1\nB:\n two\n three\nC: x:y\n\n\n\nA: 2\n";
        let all: Vec<Vec<_>> = stanzas(text).map(|stanza| fields(stanza).collect()).collect();
        assert_eq!(all, [vec![("A", "1"), ("B", "two\n three"), ("C", "x:y")], vec![("A", "2")]]);
        assert_eq!(fields("junk\nA: 1").collect::<Vec<_>>(), [("A", "1")]);
        assert_eq!(fields(" \n \n:").collect::<Vec<_>>(), [("", "")]);
    }

    #[test]
    fn reads_relations() {
        let groups: Vec<_> =
            relations("libc6 (>= 2.34), awk | mawk:any (<< 2), gcc:arm64,, x (~ 1)", "amd64").collect();
        assert_eq!(groups.len(), 4);
        assert_eq!(groups[0], [Relation { name: "libc6", version: Some((Operator::LaterEqual, "2.34")) }]);
        assert_eq!(groups[1].iter().map(|r| r.name).collect::<Vec<_>>(), ["awk", "mawk"]);
        assert!(groups[2].is_empty() && groups[3].is_empty());
        assert!(groups[0][0].accepts("2.36-9+deb12u13") && !groups[0][0].accepts("2.33"));
        for (operator, below, same, above) in [
            ("<<", true, false, false),
            ("<=", true, true, false),
            ("=", false, true, false),
            (">=", false, true, true),
            (">>", false, false, true),
        ] {
            let text = format!("ab ({operator} 2)");
            let relation = relations(&text, "amd64").next().unwrap().remove(0);
            assert_eq!(
                (relation.accepts("1"), relation.accepts("2"), relation.accepts("3")),
                (below, same, above),
                "{operator}"
            );
        }
    }
}
