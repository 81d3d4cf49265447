//! Which key may sign what, by index in the log.

use std::collections::HashMap;

use adamant_attest::PublicKey;
use adamant_attest::predicate::{Key, Role};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::refusal::Refusal;

struct Known {
    key: PublicKey,
    role: Role,
    revoked: Option<u64>,
}

/// The keys introduced so far. Entries are fed in order of their indices, so "introduced
/// before" is "in the map".
#[derive(Default)]
pub(crate) struct Keyring {
    keys: HashMap<String, Known>,
}

impl Keyring {
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key `keyid`, usable by entry `index`, and its role.
    pub(crate) fn key(&self, index: u64, keyid: &str) -> Result<(&PublicKey, Role), Refusal> {
        let keyid_shown = || keyid.chars().take(100).collect();
        let known = self.keys.get(keyid).ok_or_else(|| Refusal::UnknownKey { index, keyid: keyid_shown() })?;
        match known.revoked {
            Some(revoked) => Err(Refusal::RevokedKey { index, keyid: keyid_shown(), revoked }),
            None => Ok((&known.key, known.role)),
        }
    }

    /// Admits the trusted root, if the first key fact introduces it.
    pub(crate) fn root(&mut self, index: u64, fact: &Key, root: &PublicKey) -> Result<(), Refusal> {
        let key = public_key(index, fact)?;
        if key != *root {
            let (expected, found) = (root.keyid().to_owned(), key.keyid().to_owned());
            return Err(Refusal::RootKey { index, expected, found });
        }
        if fact.role != Role::Control || fact.action != "introduced" {
            let reason = "the first one must introduce the root control key".to_owned();
            return Err(Refusal::KeyFact { index, reason });
        }
        self.keys.insert(fact.keyid.clone(), Known { key, role: Role::Control, revoked: None });
        Ok(())
    }

    /// Introduces or revokes a key after the first.
    pub(crate) fn change(&mut self, index: u64, fact: &Key) -> Result<(), Refusal> {
        let key = public_key(index, fact)?;
        let refuse = |reason: String| Err(Refusal::KeyFact { index, reason });
        match (fact.action.as_str(), self.keys.get_mut(&fact.keyid)) {
            ("introduced", None) => {
                self.keys.insert(fact.keyid.clone(), Known { key, role: fact.role, revoked: None });
                Ok(())
            }
            // One key has one role, and what is revoked stays so.
            ("introduced", Some(_)) => refuse(format!("{} was introduced before", fact.keyid)),
            ("revoked", Some(known)) if known.role == fact.role && known.revoked.is_none() => {
                known.revoked = Some(index);
                Ok(())
            }
            ("revoked", _) => refuse(format!("{} is no {} key in use", fact.keyid, fact.role.as_str())),
            (other, _) => refuse(format!("`{}` is not an action", other.chars().take(50).collect::<String>())),
        }
    }
}

fn public_key(index: u64, fact: &Key) -> Result<PublicKey, Refusal> {
    let refuse = |reason: String| Refusal::KeyFact { index, reason };
    let der = STANDARD.decode(&fact.public_key).map_err(|_| refuse("`publicKey` is not base64".to_owned()))?;
    let key = PublicKey::from_spki_der(&der).map_err(|error| refuse(error.to_string()))?;
    if key.keyid() != fact.keyid {
        return Err(refuse(format!("`keyid` is not the fingerprint {} of the key", key.keyid())));
    }
    Ok(key)
}
