//! `If-Match` and `If-None-Match` of a push (RFC 9110, 13.1): compare-and-swap for names that move.

use adamant_digest::Digest;

/// What a client wants to be true of a name when its push takes effect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    /// Entity tags of which the current one must be one; `*` for any.
    pub matches: Option<Vec<String>>,
    /// Entity tags of which the current one must be none; `*` if there must be none at all.
    pub differs: Option<Vec<String>>,
}

impl Condition {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.matches.is_none() && self.differs.is_none()
    }

    /// Whether it holds for a name that leads to `current`.
    pub(crate) fn holds(&self, current: Option<Digest>) -> bool {
        let etag = current.map(|digest| format!("\"{digest}\""));
        // A weak tag never matches strongly (8.8.3.2).
        let strong = |tag: &String| etag.as_ref().is_some_and(|etag| tag == "*" || tag == etag);
        let weak = |tag: &String| {
            etag.as_ref().is_some_and(|etag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
        };
        self.matches.as_ref().is_none_or(|tags| tags.iter().any(strong))
            && self.differs.as_ref().is_none_or(|tags| !tags.iter().any(weak))
    }

    /// Whether it wants the name to be new: then one push alone may make it.
    pub(crate) fn wants_new(&self) -> bool {
        self.differs.as_ref().is_some_and(|tags| tags.iter().any(|tag| tag == "*"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_as_rfc_9110_says() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let tags = |tags: &[&str]| Some(tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>());
        let (etag, weak) = (format!("\"{one}\""), format!("W/\"{one}\""));
        let check = |matches: &[&str], current: Option<Digest>, expected: bool| {
            let condition = Condition { matches: tags(matches), differs: None };
            assert_eq!(condition.holds(current), expected, "{matches:?} {current:?}");
        };
        check(&[&etag], Some(one), true);
        check(&["\"x\"", &etag], Some(one), true);
        check(&[&etag], Some(two), false);
        check(&[&etag], None, false);
        check(&[&weak], Some(one), false);
        check(&["*"], Some(two), true);
        check(&["*"], None, false);
        let check = |differs: &[&str], current: Option<Digest>, expected: bool| {
            let condition = Condition { matches: None, differs: tags(differs) };
            assert_eq!(condition.holds(current), expected, "{differs:?} {current:?}");
        };
        check(&["*"], None, true);
        check(&["*"], Some(one), false);
        check(&[&weak], Some(one), false);
        check(&[&etag], Some(two), true);
        assert!(Condition::default().is_empty() && Condition::default().holds(None));
    }
}
