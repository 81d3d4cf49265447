//! What clients write of who they are, and what they ask a token for.

use adamant_oci::RepositoryName;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::access::{Action, Rights, Scope};

/// The secret in a value of `Authorization`: the token of `Bearer` (RFC 6750, 2.1), or the password of
/// `Basic` (RFC 7617, 2), whatever the name before it. `None` if it is anything else.
pub fn secret(authorization: &str) -> Option<String> {
    match authorization.split_once(' ')? {
        (scheme, secret) if scheme.eq_ignore_ascii_case("bearer") => Some(secret.trim().to_owned()),
        (scheme, encoded) if scheme.eq_ignore_ascii_case("basic") => {
            let raw = STANDARD.decode(encoded.trim()).ok()?;
            Some(String::from_utf8(raw).ok()?.split_once(':')?.1.to_owned())
        }
        _ => None,
    }
}

/// One part of the `scope` of a request for a token (distribution, "Token Scope Documentation").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// `registry:catalog:*`: the list of repositories.
    Catalog,
    /// `repository:NAME:ACTIONS`. Actions that there are not here are passed over; `*` is all of them.
    Repository {
        /// Which one.
        name: RepositoryName,
        /// What is wanted there.
        actions: Vec<Action>,
    },
}

impl Asked {
    /// Reads one part; `None` for what means nothing here.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "registry:catalog:*" {
            return Some(Self::Catalog);
        }
        let (name, words) = text.strip_prefix("repository:")?.rsplit_once(':')?;
        let name = name.parse().ok()?;
        let wanted = |action: &Action| words.split(',').any(|word| word == action.to_string() || word == "*");
        Some(Self::Repository { name, actions: [Action::Pull, Action::Push].into_iter().filter(wanted).collect() })
    }

    /// What of it `rights` allow in a repository; `None` if that is nothing.
    pub fn within(&self, rights: &Rights) -> Option<Scope> {
        let Self::Repository { name, actions } = self else { return None };
        let allowed: Vec<_> = actions.iter().copied().filter(|action| rights.may(*action, name.as_str())).collect();
        (!allowed.is_empty()).then(|| Scope::exactly(name, &allowed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets() {
        for (text, expected) in [
            ("Bearer s", Some("s")),
            ("bearer   s ", Some("s")),
            ("Basic YW5uOnM6dA==", Some("s:t")),
            ("basic OnM=", Some("s")),
            ("Basic YW5u", None),
            ("Basic /////w==", None),
            ("Basic !", None),
            ("Digest s", None),
            ("Bearer", None),
            ("", None),
        ] {
            assert_eq!(secret(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_asked_and_what_is_given() {
        let repository = |name: &str, actions: &[Action]| {
            Some(Asked::Repository { name: name.parse().unwrap(), actions: actions.to_vec() })
        };
        for (text, expected) in [
            ("registry:catalog:*", Some(Asked::Catalog)),
            ("repository:a/b:push,pull,delete", repository("a/b", &[Action::Pull, Action::Push])),
            ("repository:a:*", repository("a", &[Action::Pull, Action::Push])),
            ("repository:a:", repository("a", &[])),
            ("repository:NO:pull", None),
            ("repository:*:pull", None),
            ("repository:a", None),
            ("registry:catalog:pull", None),
            ("", None),
        ] {
            assert_eq!(Asked::parse(text), expected, "{text}");
        }
        let pull = Rights::everywhere(&[Action::Pull]);
        let given = |text: &str| Asked::parse(text).unwrap().within(&pull).map(|scope| scope.to_string());
        assert_eq!(given("repository:a:pull,push").as_deref(), Some("a:pull"));
        assert_eq!(given("repository:a:push"), None);
        assert_eq!(given("registry:catalog:*"), None);
    }
}
