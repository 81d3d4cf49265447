//! Why a capsule is not accepted.

use adamant_attest::predicate::Role;
use adamant_attest::{EnvelopeError, StatementError};
use adamant_digest::Digest;
use adamant_tlog::{CheckpointError, ProofError};

/// The first thing that does not hold. Indices are those of the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The checkpoint is not one of the trusted log.
    #[error("checkpoint: {0}")]
    Checkpoint(#[source] CheckpointError),
    /// The checkpoint in the trust file is not one of the trusted log.
    #[error("last seen checkpoint of the trust file: {0}")]
    TrustedCheckpoint(#[source] CheckpointError),
    /// The capsule is older than what was seen before.
    #[error("the capsule's log has {size} entries, {seen} were seen before: it is older")]
    Older {
        /// Size of the capsule's log.
        size: u64,
        /// Size seen before.
        seen: u64,
    },
    /// The capsule's log is not a continuation of what was seen before.
    #[error(
        "the capsule's log of {size} entries does not continue the one of {seen} entries seen before: it was forked"
    )]
    Fork {
        /// Size of the capsule's log.
        size: u64,
        /// Size seen before.
        seen: u64,
    },
    /// An index appears twice.
    #[error("entry {0} is there twice")]
    DuplicateEntry(u64),
    /// Entries are not in order of their indices.
    #[error("entry {0} stands after one with a higher index")]
    EntryOrder(u64),
    /// An envelope cannot be read.
    #[error("entry {index}: envelope: {source}")]
    Envelope {
        /// The entry.
        index: u64,
        /// Why.
        source: EnvelopeError,
    },
    /// A statement cannot be read.
    #[error("entry {index}: statement: {source}")]
    Statement {
        /// The entry.
        index: u64,
        /// Why.
        source: StatementError,
    },
    /// Signed by a key that was not introduced before.
    #[error("entry {index}: key {keyid} was not introduced before it")]
    UnknownKey {
        /// The entry.
        index: u64,
        /// The key.
        keyid: String,
    },
    /// Signed by a key after its revocation.
    #[error("entry {index}: key {keyid} was revoked by entry {revoked}")]
    RevokedKey {
        /// The entry.
        index: u64,
        /// The key.
        keyid: String,
        /// Index of the revocation.
        revoked: u64,
    },
    /// Signed by a key that may not say this.
    #[error("entry {index}: signed by a {} key, only a {} key may say this", found.as_str(), expected.as_str())]
    Role {
        /// The entry.
        index: u64,
        /// Who may.
        expected: Role,
        /// Who did.
        found: Role,
    },
    /// The signature does not hold.
    #[error("entry {index}: the signature is not one of key {keyid}")]
    Signature {
        /// The entry.
        index: u64,
        /// The key it claims.
        keyid: String,
    },
    /// The entry is not in the log.
    #[error("entry {index}: not in the log: {source}")]
    Inclusion {
        /// The entry.
        index: u64,
        /// Why.
        source: ProofError,
    },
    /// The first key is not the trusted root.
    #[error("entry {index}: the first key is {found}, the trusted root control key is {expected}")]
    RootKey {
        /// The entry.
        index: u64,
        /// Fingerprint of the trusted key.
        expected: String,
        /// Fingerprint found.
        found: String,
    },
    /// A key fact contradicts itself or the ones before.
    #[error("entry {index}: key fact: {reason}")]
    KeyFact {
        /// The entry.
        index: u64,
        /// Why.
        reason: String,
    },
    /// Recorded before an entry with a lower index.
    #[error("entry {index}: recorded at {at}, before an earlier entry")]
    TimeRunsBack {
        /// The entry.
        index: u64,
        /// When it says it was recorded.
        at: String,
    },
    /// A statement stands in another chain than its kind asks for, or in none.
    #[error("entry {index}: must be in chain `{expected}`")]
    WrongChain {
        /// The entry.
        index: u64,
        /// The chain it belongs to.
        expected: String,
    },
    /// A chain has a hole.
    #[error("chain `{chain}`: {missing} is missing")]
    ChainGap {
        /// The chain.
        chain: String,
        /// The first sequence number that is not there.
        missing: u64,
    },
    /// A sequence number does not follow on the one before.
    #[error("entry {index}: chain `{chain}` goes from {before} to {sequence}")]
    ChainOrder {
        /// The entry.
        index: u64,
        /// The chain.
        chain: String,
        /// Its sequence number.
        sequence: u64,
        /// The sequence number of the entry before it in the chain.
        before: u64,
    },
    /// The hash of the statement before is another.
    #[error("entry {index}: `previous` is not the digest of statement {} of chain `{chain}`", sequence - 1)]
    ChainLink {
        /// The entry.
        index: u64,
        /// The chain.
        chain: String,
        /// Its sequence number.
        sequence: u64,
    },
    /// A name is bound to two digests.
    #[error("entry {index}: {kind} `{name}` was bound to {first} before, here to {second}")]
    BoundTwice {
        /// The second entry.
        index: u64,
        /// Kind of name.
        kind: &'static str,
        /// The name.
        name: String,
        /// The first digest.
        first: Digest,
        /// The second.
        second: Digest,
    },
    /// A statement that the claim needs is not there.
    #[error("the capsule has no {0}")]
    Missing(String),
    /// A statement that others rest on was recorded after them.
    #[error("entry {index}: {what} was recorded after entry {user}, which rests on it")]
    TooLate {
        /// The entry.
        index: u64,
        /// What it is.
        what: String,
        /// The entry that needs it.
        user: u64,
    },
    /// Two things that must agree do not.
    #[error("{place}: `{field}` is {found}, expected {expected}")]
    Mismatch {
        /// Statement or document.
        place: String,
        /// Which member.
        field: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A decision or rebuild that must have passed did not.
    #[error("entry {index}: {what} did not pass")]
    NotPassed {
        /// The entry.
        index: u64,
        /// What.
        what: String,
    },
    /// A rule of the policy did not hold when it was decided.
    #[error("entry {index}: the decision does not say that rule `{rule}` held")]
    RuleNotHeld {
        /// The decision.
        index: u64,
        /// The rule.
        rule: String,
    },
    /// A dependency of a build is not in its lock.
    #[error("entry {index}: dependency `{name}` of the build is not in the lock with this digest")]
    Unlocked {
        /// The provenance.
        index: u64,
        /// The dependency.
        name: String,
    },
    /// Bytes do not hash to the name they are given.
    #[error("document {expected} has digest {found}")]
    DocumentDigest {
        /// The name.
        expected: Digest,
        /// What the bytes hash to.
        found: Digest,
    },
    /// A document is there twice.
    #[error("document {0} is there twice")]
    DuplicateDocument(Digest),
    /// A document that a statement names is not there.
    #[error("the capsule has no {what} with digest {digest}")]
    MissingDocument {
        /// What it is.
        what: &'static str,
        /// Its name.
        digest: Digest,
    },
    /// A document does not have its shape.
    #[error("{what} {digest}: {reason}")]
    DocumentShape {
        /// What it is.
        what: &'static str,
        /// Its name.
        digest: Digest,
        /// Why.
        reason: String,
    },
}

impl Refusal {
    pub(crate) fn mismatch(
        place: impl Into<String>,
        field: &'static str,
        expected: &impl ToString,
        found: &impl ToString,
    ) -> Self {
        let found = found.to_string().chars().take(500).collect();
        Self::Mismatch { place: place.into(), field, expected: expected.to_string(), found }
    }
}
