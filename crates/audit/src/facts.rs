//! From entries to facts: read, signed by who may say it, and in the log.

use std::collections::HashMap;

use adamant_attest::predicate::{BindingKind, Predicate, Role, binds};
use adamant_attest::{Envelope, EnvelopeError, Link, Statement, leaf, parse_time};
use adamant_digest::Digest;
use adamant_tlog::{Checkpoint, leaf_hash, verify_inclusion};

use crate::capsule::{Capsule, Entry};
use crate::keyring::Keyring;
use crate::refusal::Refusal;
use crate::trust::Trust;

/// A statement that the log holds and that was signed by who may say it.
pub(crate) struct Fact {
    pub(crate) index: u64,
    pub(crate) digest: Digest,
    pub(crate) subject: Vec<(String, Digest)>,
    pub(crate) predicate: Predicate,
    pub(crate) link: Option<Link>,
    pub(crate) recorded_at: String,
}

impl Fact {
    pub(crate) fn is_about(&self, digest: Digest) -> bool {
        self.subject.iter().any(|(_, found)| *found == digest)
    }
}

/// All entries as facts, in order.
pub(crate) fn read(capsule: &Capsule, checkpoint: &Checkpoint, trust: &Trust) -> Result<Vec<Fact>, Refusal> {
    for pair in capsule.entries.windows(2) {
        match pair[1].index {
            index if index == pair[0].index => return Err(Refusal::DuplicateEntry(index)),
            index if index < pair[0].index => return Err(Refusal::EntryOrder(index)),
            _ => {}
        }
    }
    let mut facts: Vec<Fact> = Vec::with_capacity(capsule.entries.len());
    let mut keyring = Keyring::default();
    let mut newest = i64::MIN;
    for entry in &capsule.entries {
        let index = entry.index;
        let fact = read_entry(entry, checkpoint, trust, &mut keyring)?;
        // `recorded_at` was parsed once already; it cannot fail here.
        let at = parse_time(&fact.recorded_at).unwrap_or(i64::MIN);
        if at < newest {
            return Err(Refusal::TimeRunsBack { index, at: fact.recorded_at });
        }
        newest = at;
        facts.push(fact);
    }
    bound_once(&facts)?;
    Ok(facts)
}

fn read_entry(entry: &Entry, checkpoint: &Checkpoint, trust: &Trust, keyring: &mut Keyring) -> Result<Fact, Refusal> {
    let index = entry.index;
    let envelope = Envelope::parse(&entry.envelope).map_err(|source| Refusal::Envelope { index, source })?;
    let malformed = |source| Refusal::Statement { index, source };
    let statement = Statement::parse(&envelope.payload).map_err(malformed)?;
    let predicate = statement.predicate().map_err(malformed)?;
    let link = statement.link().map_err(malformed)?;
    let recorded_at = statement.recorded_at().map_err(malformed)?.to_owned();

    if let Predicate::Key(key) = &predicate {
        if link.as_ref().is_none_or(|link| link.chain != "keys") {
            return Err(Refusal::WrongChain { index, expected: "keys".to_owned() });
        }
        if keyring.is_empty() {
            // The root introduces itself: it is trusted beforehand, not by this signature.
            keyring.root(index, key, &trust.root_control_key)?;
            authenticate(entry, &envelope, &predicate, keyring, checkpoint)?;
        } else {
            authenticate(entry, &envelope, &predicate, keyring, checkpoint)?;
            keyring.change(index, key)?;
        }
    } else {
        authenticate(entry, &envelope, &predicate, keyring, checkpoint)?;
    }
    Ok(Fact { index, digest: Digest::of(&envelope.payload), subject: statement.subject, predicate, link, recorded_at })
}

fn authenticate(
    entry: &Entry,
    envelope: &Envelope,
    predicate: &Predicate,
    keyring: &Keyring,
    checkpoint: &Checkpoint,
) -> Result<(), Refusal> {
    let index = entry.index;
    let (key, found) = keyring.key(index, &envelope.keyid)?;
    let expected = speaker(predicate);
    if found != expected {
        return Err(Refusal::Role { index, expected, found });
    }
    envelope.verify(key).map_err(|source| match source {
        EnvelopeError::Key(_) => Refusal::Signature { index, keyid: envelope.keyid.clone() },
        source => Refusal::Envelope { index, source },
    })?;
    let hash = leaf_hash(&leaf(envelope, key));
    verify_inclusion(&hash, index, checkpoint.size, &entry.proof, &checkpoint.root)
        .map_err(|source| Refusal::Inclusion { index, source })
}

/// Who may say it.
fn speaker(predicate: &Predicate) -> Role {
    match predicate {
        Predicate::Provenance(_) => Role::Builder,
        Predicate::Vsa(vsa) if vsa.resource_uri.starts_with("adamant:rebuild/") => Role::Builder,
        Predicate::Observation(_) => Role::Host,
        Predicate::Vsa(_)
        | Predicate::Binding(_)
        | Predicate::Lock(_)
        | Predicate::Deployment(_)
        | Predicate::Configuration(_)
        | Predicate::Key(_)
        | Predicate::Divergence(_)
        | Predicate::Rejection(_)
        | Predicate::Pointer(_)
        | Predicate::Grant(_)
        | Predicate::PersonalGrant(_)
        | Predicate::ErasureRequestV2(_)
        | Predicate::ErasureV2(_)
        | Predicate::ErasureRequest(_)
        | Predicate::Erasure(_)
        | Predicate::Damage(_) => Role::Control,
    }
}

/// No name may be bound to two digests anywhere in the capsule.
fn bound_once(facts: &[Fact]) -> Result<(), Refusal> {
    let mut bound: HashMap<(BindingKind, String), Digest> = HashMap::new();
    for fact in facts {
        for (kind, name, second) in binds(&fact.predicate) {
            let first = *bound.entry((kind, name.clone())).or_insert(second);
            if first != second {
                return Err(Refusal::BoundTwice { index: fact.index, kind: kind.as_str(), name, first, second });
            }
        }
    }
    Ok(())
}
