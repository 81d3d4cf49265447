//! Pointers: names that may lead to another manifest later. Their history is a chain of facts, which
//! also decides who moves one, and nothing is deployed by them. There are two kinds.
//!
//! *Lists* are the tags of clients that know no referrers: `sha256-<hex>` (distribution-spec 1.1,
//! "Referrers Tag Schema") and cosign's `sha256-<hex>.sig`. Such a client adds a signature by pushing a
//! longer manifest under the same tag, so these move only to a manifest that holds all that the one
//! before held.
//!
//! *Named* pointers are those that the operator names, `latest` say. They move to anything. The name is
//! bound, for ever and in the same append as the first move, to [`POINTER`], which no manifest has as
//! its digest: whoever makes a tag and whoever makes a pointer of one name meet in one binding, so it
//! is one of them for good, and a look at the binding tells which.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::str::FromStr;
use std::sync::LazyLock;

use adamant_attest::Statement;
use adamant_attest::predicate::{Pointer, Predicate, Role};
use adamant_digest::Digest;
use adamant_oci::{Manifest, RepositoryName, Tag};
use adamant_store::{Chain, Fact, LedgerError, Subject};
use serde::Deserialize;
use serde_json::Value;

use crate::{Pattern, Registry, names};

/// What the name of a pointer that the operator names is bound to.
pub static POINTER: LazyLock<Digest> = LazyLock::new(|| Digest::of(b"adamant: this name is a pointer\n"));

/// Moves of one pointer that are made at the same time in this process wait for one another here, by
/// repository: so many repositories have their own turn.
const TURNS: usize = 64;

/// What a pointer leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Led {
    pub(crate) digest: Digest,
    /// Its place in the history, from 1.
    pub(crate) sequence: u64,
}

/// An update would take something away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is a list of signatures that only grows, and {missing} is in {current} but not in {offered}")]
pub struct Shrinks {
    /// `repository:tag`.
    pub name: String,
    /// What it leads to.
    pub current: Digest,
    /// What was pushed.
    pub offered: Digest,
    /// The first thing that would be lost.
    pub missing: String,
}

/// A name that the operator makes a pointer: `latest` in every repository, `shop/*:latest` in some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    repositories: Pattern,
    tag: Tag,
}

/// A text names no pointer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` cannot be a pointer: {problem}; write `latest`, or `shop/*:latest`")]
pub struct ParseNamedError {
    text: String,
    problem: String,
}

impl FromStr for Named {
    type Err = ParseNamedError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |problem: String| ParseNamedError { text: text.chars().take(300).collect(), problem };
        let (repositories, tag) = text.rsplit_once(':').unwrap_or(("*", text));
        let repositories = repositories.parse().map_err(|error: crate::ParsePatternError| wrong(error.to_string()))?;
        let tag: Tag = tag.parse().map_err(|error: adamant_oci::ParseTagError| wrong(error.to_string()))?;
        if is_list(&tag) {
            return Err(wrong("such a tag is a list of signatures, which only grows".to_owned()));
        }
        if names::is_release(&tag) {
            return Err(wrong("release numbers and commit ids never move".to_owned()));
        }
        Ok(Self { repositories, tag })
    }
}

/// A turn for each repository, more or less: two may share one.
#[derive(Debug)]
pub(crate) struct Turns(Vec<tokio::sync::Mutex<()>>);

impl Default for Turns {
    fn default() -> Self {
        Self((0..TURNS).map(|_| tokio::sync::Mutex::default()).collect())
    }
}

impl Turns {
    pub(crate) async fn of(&self, repository: &RepositoryName) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let mut hasher = DefaultHasher::new();
        repository.as_str().hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % TURNS as u64).unwrap_or_default();
        Some(self.0.get(at)?.lock().await)
    }
}

/// Whether a tag is a list of signatures.
pub(crate) fn is_list(tag: &Tag) -> bool {
    let Some((algorithm, rest)) = tag.as_str().split_once('-') else { return false };
    let (hex, kind) = rest.split_once('.').map_or((rest, None), |(hex, kind)| (hex, Some(kind)));
    // A sha512 is cut off after as many digits as a sha256 has.
    matches!(algorithm, "sha256" | "sha512")
        && hex.len() == 64
        && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        && matches!(kind, None | Some("sig" | "att" | "sbom"))
}

/// Whether `new` holds all that `old` holds: every descriptor of its manifests or layers, exactly.
pub(crate) fn grows(name: &str, old: &Manifest, new: &Manifest) -> Result<(), Shrinks> {
    let (current, offered) = (old.digest(), new.digest());
    let shrinks = |missing: String| Shrinks { name: name.to_owned(), current, offered, missing };
    let kind = |manifest: &Manifest| manifest.kind().media_type();
    if kind(old) != kind(new) {
        return Err(shrinks(format!("the form `{}`", kind(old))));
    }
    let unreadable = || shrinks("an entry that is nested too deeply to be compared".to_owned());
    // One for one: the same signature twice stays there twice.
    let mut there: HashMap<String, usize> = HashMap::new();
    for item in items(new).ok_or_else(unreadable)? {
        *there.entry(item.to_string()).or_default() += 1;
    }
    for item in items(old).ok_or_else(unreadable)? {
        let Some(left @ 1..) = there.get_mut(&item.to_string()) else {
            let digest = item.get("digest").and_then(Value::as_str).unwrap_or("an entry without a digest");
            return Err(shrinks(digest.to_owned()));
        };
        *left -= 1;
    }
    Ok(())
}

/// What a manifest lists, with members that nobody here knows. `None` if that cannot be read: the
/// manifest was parsed before, but by a parser that skips unknown members however deep they are.
fn items(manifest: &Manifest) -> Option<Vec<Value>> {
    #[derive(Deserialize)]
    struct Lists {
        manifests: Option<Vec<Value>>,
        layers: Option<Vec<Value>>,
    }
    let lists: Lists = serde_json::from_slice(manifest.bytes().bytes()).ok()?;
    Some([lists.manifests.unwrap_or_default(), lists.layers.unwrap_or_default()].concat())
}

/// The fact that moves a pointer, if it stands where the caller has seen it.
pub(crate) fn moved(repository: &RepositoryName, tag: &Tag, from: Option<Led>, to: Digest, by: &str) -> Fact {
    let name = names::tag(repository, tag);
    Fact {
        role: Role::Control,
        subject: vec![Subject { name: name.clone(), digest: to }],
        chain: Some(Chain { name: chain(&name), expect: Some(from.map_or(1, |led| led.sequence + 1)) }),
        predicate: Predicate::Pointer(Pointer {
            name,
            digest: to,
            from: from.map(|led| led.digest),
            by: by.to_owned(),
        }),
    }
}

fn chain(name: &str) -> String {
    format!("pointer/{name}")
}

/// A move of a pointer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// From 1.
    pub sequence: u64,
    /// Index of the entry.
    pub index: u64,
    /// Where it leads from then on.
    pub digest: Digest,
    /// Where it led before.
    pub from: Option<Digest>,
    /// Who moved it.
    pub by: String,
    /// When, RFC 3339.
    pub at: String,
}

impl Registry {
    /// Whether the operator makes a name a pointer. What is read through from elsewhere is bound at
    /// first sight, whatever its name.
    pub(crate) fn is_named(&self, repository: &RepositoryName, tag: &Tag) -> bool {
        self.upstreams.owner(repository).is_none()
            && self.pointers.iter().any(|named| named.tag == *tag && named.repositories.covers(repository.as_str()))
    }

    /// The newest moves of a pointer, newest first, at most `limit`; empty if the name is none.
    pub async fn moves(&self, repository: &RepositoryName, tag: &Tag, limit: usize) -> Result<Vec<Move>, LedgerError> {
        let chain = chain(&names::tag(repository, tag));
        let Some(head) = self.ledger.chain_head(&chain).await? else { return Ok(Vec::new()) };
        let from = head.sequence.saturating_sub((limit as u64).saturating_sub(1)).max(1);
        let mut moves = Vec::new();
        for link in self.ledger.chain(&chain, from, limit).await? {
            let damaged = || LedgerError::Damaged(format!("entry {} of {chain} moves no pointer", link.index));
            let entry = self.ledger.entry(link.index).await?.ok_or_else(damaged)?;
            let statement = Statement::parse(&entry.statement).map_err(|_| damaged())?;
            let Ok(Predicate::Pointer(Pointer { digest, from, by, .. })) = statement.predicate() else {
                return Err(damaged());
            };
            let (sequence, index, at) = (link.sequence, link.index, entry.recorded_at);
            moves.push(Move { sequence, index, digest, from, by, at });
        }
        moves.reverse();
        Ok(moves)
    }

    /// Where a pointer leads; `None` if it was never pushed.
    pub(crate) async fn led(&self, repository: &RepositoryName, tag: &Tag) -> Result<Option<Led>, LedgerError> {
        let name = names::tag(repository, tag);
        let Some(link) = self.ledger.chain_head(&chain(&name)).await? else { return Ok(None) };
        let damaged = || LedgerError::Damaged(format!("entry {} moves no pointer `{name}`", link.index));
        let entry = self.ledger.entry(link.index).await?.ok_or_else(damaged)?;
        let statement = Statement::parse(&entry.statement).map_err(|_| damaged())?;
        match statement.predicate() {
            Ok(Predicate::Pointer(pointer)) if pointer.name == name => {
                Ok(Some(Led { digest: pointer.digest, sequence: link.sequence }))
            }
            _ => Err(damaged()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_compared_does_not_grow() {
        let entry = format!(r#"{{"mediaType":"a/b","digest":"{}","size":1,"x":DEEP}}"#, Digest::of(b"x"));
        let list = |x: &str, top: &str| {
            let text = format!(r#"{{"schemaVersion":2,"manifests":[{}],"y":{top}}}"#, entry.replace("DEEP", x));
            Manifest::parse(text.into_bytes()).unwrap()
        };
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        let empty = Manifest::parse(br#"{"schemaVersion":2,"manifests":[]}"#.to_vec()).unwrap();
        for (old, holds) in [(list("1", "1"), true), (list(&deep, "1"), false), (list("1", &deep), true)] {
            assert!(grows("a:t", &old, &empty).is_err());
            assert_eq!(grows("a:t", &old, &old).is_ok(), holds);
        }
    }

    #[test]
    fn knows_the_tags_of_older_clients() {
        let hex = "a1".repeat(32);
        let is = |text: &str| is_list(&text.parse().unwrap());
        for tag in ["sha256-{}", "sha512-{}", "sha256-{}.sig", "sha256-{}.att", "sha256-{}.sbom"] {
            assert!(is(&tag.replace("{}", &hex)), "{tag}");
        }
        for tag in ["sha256-{}x", "sha256-{}.exe", "sha256{}", "sha1-{}", "v1", "sha256-.sig", "sha256-{}.sig.sig"] {
            assert!(!is(&tag.replace("{}", &hex)), "{tag}");
        }
        assert!(!is(&format!("sha256-{}", hex.to_uppercase())));
    }

    #[test]
    fn names_that_may_move() {
        let named = |text: &str| text.parse::<Named>();
        let covers = |text: &str, repository: &str| named(text).unwrap().repositories.covers(repository);
        assert!(covers("latest", "any/thing"));
        assert!(covers("shop/*:latest", "shop/web") && !covers("shop/*:latest", "other/web"));
        let list = format!("sha256-{}.sig", "a1".repeat(32));
        let commit = "a".repeat(40);
        for text in ["", "Shop:latest", ":latest", "shop:", "7", "shop/*:214", &commit, &list, "a b"] {
            let error = named(text).expect_err(text).to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
