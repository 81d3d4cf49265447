//! What a caller may do, repository by repository.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use adamant_oci::RepositoryName;

use crate::{ParsePatternError, Pattern};

/// Characters of a wrong scope that are shown.
const SHOWN: usize = 255;
/// Most scopes of one set of rights.
const MAX_SCOPES: usize = 64;

/// What is done in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Read manifests, blobs, tags and referrers.
    Pull,
    /// Upload, mount and bind. It does not include [`Action::Pull`].
    Push,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pull => "pull",
            Self::Push => "push",
        })
    }
}

/// Why a text is no pattern or scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseScopeError {
    /// Not a pattern.
    #[error(transparent)]
    Pattern(#[from] ParsePatternError),
    /// Not a scope.
    #[error("`{0}` is no scope: write REPOSITORIES:ACTIONS, for example `team/*:pull,push`")]
    Scope(String),
    /// More than are borne.
    #[error("more than {MAX_SCOPES} scopes: use wider patterns")]
    TooMany,
}

/// Actions in some repositories, written `team/*:pull,push`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    repositories: Pattern,
    pull: bool,
    push: bool,
}

impl Scope {
    /// Actions in all repositories that a pattern means.
    pub fn new(repositories: Pattern, actions: &[Action]) -> Self {
        Self { repositories, pull: actions.contains(&Action::Pull), push: actions.contains(&Action::Push) }
    }

    /// Actions in one repository.
    pub fn exactly(repository: &RepositoryName, actions: &[Action]) -> Self {
        Self::new(Pattern::exactly(repository), actions)
    }

    fn allows(&self, action: Action) -> bool {
        match action {
            Action::Pull => self.pull,
            Action::Push => self.push,
        }
    }
}

impl FromStr for Scope {
    type Err = ParseScopeError;

    fn from_str(text: &str) -> Result<Self, ParseScopeError> {
        let bad = || ParseScopeError::Scope(text.chars().take(SHOWN).collect());
        let (repositories, words) = text.rsplit_once(':').ok_or_else(bad)?;
        let mut actions = Vec::new();
        for word in words.split(',') {
            actions.push(match word {
                "pull" => Action::Pull,
                "push" => Action::Push,
                _ => return Err(bad()),
            });
        }
        Ok(Self::new(repositories.parse()?, &actions))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = [Action::Pull, Action::Push]
            .into_iter()
            .filter(|action| self.allows(*action))
            .map(|a| a.to_string())
            .collect();
        write!(f, "{}:{}", self.repositories, words.join(","))
    }
}

/// Everything that somebody may do: what any of the scopes allows. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights(Arc<[Scope]>);

impl Rights {
    /// Rights of these scopes.
    pub fn new(scopes: Vec<Scope>) -> Result<Self, ParseScopeError> {
        if scopes.len() > MAX_SCOPES { Err(ParseScopeError::TooMany) } else { Ok(Self(scopes.into())) }
    }

    /// No rights.
    pub fn none() -> Self {
        Self(Arc::new([]))
    }

    /// The right to do this everywhere.
    pub fn everywhere(actions: &[Action]) -> Self {
        Self(Arc::new([Scope::new(Pattern::all(), actions)]))
    }

    /// Every right.
    pub fn all() -> Self {
        Self::everywhere(&[Action::Pull, Action::Push])
    }

    /// Whether `action` is allowed in `repository`.
    pub fn may(&self, action: Action, repository: &str) -> bool {
        self.0.iter().any(|scope| scope.allows(action) && scope.repositories.covers(repository))
    }

    /// Whether `action` is allowed in all repositories, by one of the scopes.
    pub fn may_everywhere(&self, action: Action) -> bool {
        self.0.iter().any(|scope| scope.allows(action) && scope.repositories.is_all())
    }

    /// Whether `action` is allowed in any repository.
    pub fn may_anywhere(&self, action: Action) -> bool {
        self.0.iter().any(|scope| scope.allows(action))
    }

    /// What the names of the repositories that may be pulled from start with.
    pub(crate) fn starts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|scope| scope.pull).map(|scope| scope.repositories.start())
    }
}

/// Whose request it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Nobody in particular.
    Anonymous,
    /// Somebody whose credentials hold. The name is written into every binding they make.
    Known(String),
    /// Credentials were sent and do not hold.
    Denied,
}

/// An extension of a request: the address it comes from. Callers who have nothing else to be told
/// apart by are told apart by it where they share what is scarce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub std::net::IpAddr);

/// Where tokens are to be had: the `realm` and `service` of a `Bearer` challenge.
/// Spec: distribution, "Token Authentication Specification".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realm {
    /// Absolute URL of the token endpoint.
    pub url: String,
    /// Name of this registry.
    pub service: String,
}

/// The narrower limits of a token that was asked for one purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Within {
    /// Only this, whatever the rights are.
    pub rights: Rights,
    /// The list of repositories may be asked for.
    pub catalog: bool,
}

/// Who calls and what they may do, as the server found out before it passed the request on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Whose request it is.
    pub who: Who,
    /// What they may do.
    pub rights: Rights,
    /// What their token was asked for, if it is one of that kind.
    pub within: Option<Within>,
    /// Where tokens are to be had; `None`: only `Basic` credentials are asked for.
    pub realm: Option<Realm>,
}

impl Access {
    /// Access without credentials.
    pub fn anonymous(rights: Rights) -> Self {
        Self { who: Who::Anonymous, rights, within: None, realm: None }
    }

    /// Access of somebody known.
    pub fn known(actor: impl Into<String>, rights: Rights) -> Self {
        Self { who: Who::Known(actor.into()), rights, within: None, realm: None }
    }

    /// Access with credentials that do not hold.
    pub fn denied() -> Self {
        Self { who: Who::Denied, rights: Rights::none(), within: None, realm: None }
    }

    /// In whose name.
    pub(crate) fn actor(&self) -> &str {
        match &self.who {
            Who::Known(actor) => actor,
            Who::Anonymous | Who::Denied => "anonymous",
        }
    }

    /// Whether nothing needs to be kept from the caller. A token for one purpose is no limit here:
    /// whoever has it could ask for another one.
    pub(crate) fn sees_all(&self) -> bool {
        self.rights.may_everywhere(Action::Pull)
    }

    /// Whether the caller may push to `repository`.
    pub(crate) fn may_push(&self, repository: &RepositoryName) -> bool {
        self.rights.may(Action::Push, repository.as_str())
    }

    /// Whether `repository` is listed for the caller.
    pub(crate) fn lists(&self, repository: &str) -> bool {
        let within = self.within.as_ref().is_none_or(|w| w.catalog || w.rights.may(Action::Pull, repository));
        within && self.rights.may(Action::Pull, repository)
    }

    pub(crate) fn decide(&self, needs: &Needs<'_>) -> Decision {
        let Needs { action, place } = needs;
        let (by_rights, by_token) = match place {
            Place::Repository(name) => (
                self.rights.may(*action, name.as_str()),
                self.within.as_ref().is_none_or(|within| within.rights.may(*action, name.as_str())),
            ),
            // Clients ask for the base first to find out whether to log in: as long as that gives
            // more than the caller has, the answer is a challenge.
            Place::Base => {
                (self.who != Who::Anonymous || self.within.is_some() || self.rights.may_everywhere(Action::Push), true)
            }
            Place::Catalog => (self.rights.may_anywhere(Action::Pull), true),
            Place::Nowhere => (self.who != Who::Anonymous || self.rights.may_anywhere(*action), true),
        };
        match (&self.who, by_rights, by_token) {
            (Who::Denied, ..) | (Who::Anonymous, false, _) => Decision::Unauthorized,
            (Who::Known(_), false, _) => Decision::Forbidden,
            (_, true, false) => Decision::Insufficient,
            (_, true, true) => Decision::Allowed,
        }
    }
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs<'a> {
    pub(crate) action: Action,
    pub(crate) place: Place<'a>,
}

/// Where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    Base,
    Catalog,
    Repository(&'a RepositoryName),
    /// The path leads nowhere.
    Nowhere,
}

impl Needs<'_> {
    /// As a token's `scope`.
    pub(crate) fn scope(&self) -> Option<String> {
        match (self.place, self.action) {
            (Place::Repository(name), Action::Pull) => Some(format!("repository:{name}:pull")),
            // Whoever pushes looks first at what is there.
            (Place::Repository(name), Action::Push) => Some(format!("repository:{name}:pull,push")),
            (Place::Catalog, _) => Some("registry:catalog:*".to_owned()),
            (Place::Base | Place::Nowhere, _) => None,
        }
    }
}

/// What a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Allowed,
    /// Credentials might help: 401.
    Unauthorized,
    /// Another token of the same caller would: 401.
    Insufficient,
    /// Nothing does: 403.
    Forbidden,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_and_written() {
        for text in ["team/*:pull,push", "*:pull", "a/b:push"] {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
        for bad in ["", "a", "a:", "a:pull,", "a:delete", ":pull", "A:pull", "a:pull:push"] {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
    }

    #[test]
    fn answers_say_whether_credentials_would_help() {
        let shop: RepositoryName = "shop/web".parse().unwrap();
        let push = Needs { action: Action::Push, place: Place::Repository(&shop) };
        let pull = Needs { action: Action::Pull, ..push };
        let base = Needs { action: Action::Pull, place: Place::Base };
        let rights = |text: &str| Rights::new(vec![text.parse().unwrap()]).unwrap();
        let bot = Access::known("bot", rights("shop/*:pull"));
        assert_eq!(bot.decide(&pull), Decision::Allowed);
        assert_eq!(bot.decide(&push), Decision::Forbidden);
        assert_eq!(bot.decide(&base), Decision::Allowed);
        let nobody = Access::anonymous(rights("*:pull"));
        assert_eq!(nobody.decide(&pull), Decision::Allowed);
        assert_eq!(nobody.decide(&push), Decision::Unauthorized);
        assert_eq!(nobody.decide(&base), Decision::Unauthorized);
        assert_eq!(Access::anonymous(Rights::all()).decide(&base), Decision::Allowed);
        assert_eq!(Access::denied().decide(&base), Decision::Unauthorized);
        let within = Some(Within { rights: rights("shop/other:pull"), catalog: false });
        let narrow = Access { within, ..bot };
        assert_eq!(narrow.decide(&pull), Decision::Insufficient);
        assert_eq!(narrow.decide(&push), Decision::Forbidden);
        assert!(!narrow.lists("shop/web") && narrow.lists("shop/other") && !narrow.lists("other"));
    }
}
