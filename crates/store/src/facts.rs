//! The contract of the ledger.

use adamant_attest::predicate::{BindingKind, Predicate, Role};
use adamant_digest::Digest;

use crate::BoxFuture;

/// Something that is to become true.
#[derive(Debug, Clone)]
pub struct Fact {
    /// Whose key signs it: builder, control or host.
    pub role: Role,
    /// What it is about.
    pub subject: Vec<Subject>,
    /// What it says. The ledger adds `recordedAt`, `chain`, `sequence` and `previous`.
    pub predicate: Predicate,
    /// The chain it belongs to, if any.
    pub chain: Option<Chain>,
}

/// in-toto subject with a sha256 digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Name, for people.
    pub name: String,
    /// What it is.
    pub digest: Digest,
}

/// A gapless, hash-linked series of facts.
#[derive(Debug, Clone)]
pub struct Chain {
    /// `environment/<project>/<environment>`, `project/<project>`, `keys`, …
    pub name: String,
    /// Compare-and-swap: the sequence number this fact must get. `None` takes the next.
    pub expect: Option<u64>,
}

/// Proof that a fact is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Index of the entry in the log, from 0.
    pub index: u64,
    /// False if the same binding was there before and nothing was written.
    pub new: bool,
    /// Sequence number in its chain, if it has one.
    pub sequence: Option<u64>,
    /// Digest of the statement's exact bytes.
    pub statement: Digest,
    /// When it was recorded, RFC 3339.
    pub recorded_at: String,
}

/// A name is bound to another digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} `{name}` is bound to {} by {} at {}, not to {offered}", kind.as_str(), bound.digest, bound.by, bound.at)]
pub struct Conflict {
    /// What kind of name.
    pub kind: BindingKind,
    /// The name.
    pub name: String,
    /// What it is bound to.
    pub bound: Bound,
    /// What was offered.
    pub offered: Digest,
}

/// A binding as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// What the name is bound to.
    pub digest: Digest,
    /// Index of the entry that bound it.
    pub index: u64,
    /// Who.
    pub by: String,
    /// When, RFC 3339.
    pub at: String,
}

/// Why facts were not recorded.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// A name is bound to another digest; a divergence was recorded.
    #[error(transparent)]
    Conflict(Box<Conflict>),
    /// The chain has moved on.
    #[error("chain `{chain}` is at {found}, expected {expected}")]
    ChainMoved {
        /// The chain.
        chain: String,
        /// The sequence number that was asked for.
        expected: u64,
        /// The sequence number that would be next.
        found: u64,
    },
    /// The statement cannot be written (too large, not representable).
    #[error("the fact cannot be recorded: {0}")]
    Invalid(String),
    /// The database.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// The ledger itself did not work.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Try again later: disk full, database locked.
    #[error("the ledger is not available: {0}")]
    Unavailable(String),
    /// What is stored contradicts itself; needs a person.
    #[error("the ledger is damaged: {0}")]
    Damaged(String),
    /// Written by a newer version.
    #[error("the ledger has schema {found}, this binary knows {known}: use a newer adamant")]
    Newer {
        /// Schema number found.
        found: i64,
        /// Highest number this binary reads.
        known: i64,
    },
}

/// A recorded fact.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Index in the log, from 0.
    pub index: u64,
    /// Exact bytes of the in-toto statement (the DSSE payload).
    pub statement: Vec<u8>,
    /// Exact bytes of the DSSE envelope as JSON.
    pub envelope: Vec<u8>,
    /// Exact bytes of the leaf (canonical hashedrekord).
    pub leaf: Vec<u8>,
    /// RFC 3339.
    pub recorded_at: String,
}

/// A place in a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// From 1.
    pub sequence: u64,
    /// Index of the entry.
    pub index: u64,
    /// Digest of the statement's bytes.
    pub statement: Digest,
}

/// The committed state of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Number of entries.
    pub size: u64,
    /// The signed note over that size, exact text.
    pub checkpoint: String,
}

/// Facts, and the views they make true, in one transaction.
pub trait Ledger: Send + Sync {
    /// Records all of `facts` or none, in order and in one transaction, and returns once they,
    /// their leaves and the checkpoint over them are durable. A fact whose first binding is
    /// there already with the same digest is not written again ([`Receipt::new`] is false). A
    /// name bound to another digest fails the whole call; then a divergence is recorded alone.
    fn append(&self, facts: Vec<Fact>) -> BoxFuture<'_, Result<Vec<Receipt>, AppendError>>;
    /// The committed head.
    fn head(&self) -> BoxFuture<'_, Result<Head, LedgerError>>;
    /// What a name is bound to.
    fn binding<'a>(&'a self, kind: BindingKind, name: &'a str) -> BoxFuture<'a, Result<Option<Bound>, LedgerError>>;
    /// Bindings of a kind whose names start with `prefix` and sort after `after`, in name order
    /// (bytewise), at most `limit`.
    fn bindings<'a>(
        &'a self,
        kind: BindingKind,
        prefix: &'a str,
        after: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(String, Bound)>, LedgerError>>;
    /// The entry at `index`.
    fn entry(&self, index: u64) -> BoxFuture<'_, Result<Option<Entry>, LedgerError>>;
    /// Entries from `from` up, at most `limit`.
    fn entries(&self, from: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Entry>, LedgerError>>;
    /// Indices of the entries about `digest`, in order, at most `limit`.
    fn about(&self, digest: Digest, limit: usize) -> BoxFuture<'_, Result<Vec<u64>, LedgerError>>;
    /// The last link of a chain.
    fn chain_head<'a>(&'a self, chain: &'a str) -> BoxFuture<'a, Result<Option<Link>, LedgerError>>;
    /// Links of a chain from sequence `from` up, at most `limit`.
    fn chain<'a>(&'a self, chain: &'a str, from: u64, limit: usize) -> BoxFuture<'a, Result<Vec<Link>, LedgerError>>;
    /// Names of chains that start with `prefix`, sorted, at most `limit`.
    fn chains<'a>(&'a self, prefix: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<String>, LedgerError>>;
    /// Hashes of the inclusion proof of entry `index` in the tree of `size` (RFC 6962).
    fn inclusion(&self, index: u64, size: u64) -> BoxFuture<'_, Result<Vec<[u8; 32]>, LedgerError>>;
    /// Hashes of the consistency proof between two sizes (RFC 6962).
    fn consistency(&self, old: u64, new: u64) -> BoxFuture<'_, Result<Vec<[u8; 32]>, LedgerError>>;
}
