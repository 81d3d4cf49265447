//! Tags of clients that know no referrers: `sha256-<hex>` (distribution-spec 1.1, "Referrers Tag
//! Schema") and cosign's `sha256-<hex>.sig`. Such a client adds a signature by pushing a longer
//! manifest under the same tag, so these alone are pointers: they may lead to another manifest
//! later, but only to one that holds all that the one before held. Their history is a chain of
//! facts, and nothing is deployed by them.

use std::collections::HashMap;

use adamant_attest::Statement;
use adamant_attest::predicate::{Pointer, Predicate, Role};
use adamant_digest::Digest;
use adamant_oci::{Manifest, RepositoryName, Tag};
use adamant_store::{Chain, Fact, LedgerError, Subject};
use serde_json::Value;

use crate::{Registry, names};

/// What a fallback tag leads to.
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

/// Whether a tag is one of those.
pub(crate) fn is_pointer(tag: &Tag) -> bool {
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
    // One for one: the same signature twice stays there twice.
    let mut there: HashMap<String, usize> = HashMap::new();
    for item in items(new) {
        *there.entry(item.to_string()).or_default() += 1;
    }
    for item in items(old) {
        let Some(left @ 1..) = there.get_mut(&item.to_string()) else {
            let digest = item.get("digest").and_then(Value::as_str).unwrap_or("an entry without a digest");
            return Err(shrinks(digest.to_owned()));
        };
        *left -= 1;
    }
    Ok(())
}

fn items(manifest: &Manifest) -> Vec<Value> {
    // It was parsed before, so it is an object; what is no list holds nothing.
    let value: Value = serde_json::from_slice(manifest.bytes().bytes()).unwrap_or_default();
    let list = |key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    [list("manifests"), list("layers")].concat()
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

impl Registry {
    /// Where a fallback tag leads; `None` if it was never pushed.
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
    fn knows_the_tags_of_older_clients() {
        let hex = "a1".repeat(32);
        let is = |text: &str| is_pointer(&text.parse().unwrap());
        for tag in ["sha256-{}", "sha512-{}", "sha256-{}.sig", "sha256-{}.att", "sha256-{}.sbom"] {
            assert!(is(&tag.replace("{}", &hex)), "{tag}");
        }
        for tag in ["sha256-{}x", "sha256-{}.exe", "sha256{}", "sha1-{}", "v1", "sha256-.sig", "sha256-{}.sig.sig"] {
            assert!(!is(&tag.replace("{}", &hex)), "{tag}");
        }
        assert!(!is(&format!("sha256-{}", hex.to_uppercase())));
    }
}
