//! Signing a batch. Signatures are most of what a fact costs, so the cores share them.

use adamant_attest::predicate::Role;
use adamant_attest::{Envelope, KeyError, leaf};
use adamant_tlog::{Hash, leaf_hash};

use crate::keys::Keys;

/// Below this many statements a thread costs more than it saves.
const MIN_SHARE: usize = 8;

/// A signed statement, ready to be stored.
#[derive(Debug)]
pub(crate) struct Sealed {
    /// The DSSE payload.
    pub(crate) statement: Vec<u8>,
    pub(crate) envelope: Vec<u8>,
    pub(crate) leaf: Vec<u8>,
    pub(crate) hash: Hash,
}

/// Signs each statement by the key of its role. Blocking.
pub(crate) fn seal(statements: Vec<(Role, Vec<u8>)>, keys: &Keys) -> Result<Vec<Sealed>, KeyError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let share = statements.len().div_ceil(cores).max(MIN_SHARE);
    let mut shares = Vec::new();
    let mut rest = statements;
    while rest.len() > share {
        let tail = rest.split_off(share);
        shares.push(std::mem::replace(&mut rest, tail));
    }
    std::thread::scope(|scope| {
        let others: Vec<_> = shares.into_iter().map(|share| scope.spawn(|| seal_share(share, keys))).collect();
        let last = seal_share(rest, keys);
        let mut sealed = Vec::new();
        for other in others {
            // A panic over there is a bug over there, and goes on here.
            let share = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sealed.append(&mut share?);
        }
        sealed.append(&mut last?);
        Ok(sealed)
    })
}

fn seal_share(statements: Vec<(Role, Vec<u8>)>, keys: &Keys) -> Result<Vec<Sealed>, KeyError> {
    statements
        .into_iter()
        .map(|(role, statement)| {
            let key = keys.signing(role);
            let envelope = Envelope::sign(statement, key)?;
            let leaf = leaf(&envelope, key.public());
            let (bytes, hash) = (envelope.to_bytes(), leaf_hash(&leaf));
            Ok(Sealed { statement: envelope.payload, envelope: bytes, leaf, hash })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_order_on_any_number_of_threads() {
        let keys = Keys::generate().unwrap();
        for count in [0, 1, 7, 8, 9, 16, 17, 100] {
            let statements: Vec<_> =
                (0..count).map(|i| (Role::Control, format!("{{\"n\":{i}}}").into_bytes())).collect();
            let sealed = seal(statements.clone(), &keys).unwrap();
            assert_eq!(sealed.len(), count);
            for ((_, statement), sealed) in statements.iter().zip(&sealed) {
                assert_eq!(*statement, sealed.statement);
                let envelope = Envelope::parse(&sealed.envelope).unwrap();
                assert_eq!(envelope.payload, *statement);
                envelope.verify(keys.public(Role::Control)).unwrap();
                assert_eq!(leaf_hash(&sealed.leaf), sealed.hash);
            }
        }
    }
}
