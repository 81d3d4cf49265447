//! Canonical JSON, statements, predicates, DSSE envelopes and keys.
//!
//! Wire types only: parse, print, hash, sign, verify. No I/O, no clock. What is parsed here is
//! hostile: every length, depth and count has a bound, and a text has one meaning (duplicate
//! members, floats and unknown members are refused).

mod bundle;
mod canonical;
mod envelope;
mod keys;
mod leaf;
pub mod predicate;
mod statement;
mod timestamp;

pub use bundle::{BUNDLE_MEDIA_TYPE, LogEntry, bundle};
pub use canonical::{CanonicalError, MAX_DEPTH, MAX_INTEGER, MAX_JSON_BYTES, canonical, parse_strict};
pub use envelope::{Envelope, EnvelopeError, PAYLOAD_TYPE, pae};
pub use keys::{Algorithm, KeyError, PublicKey, SigningKey};
pub use leaf::leaf;
pub use statement::{Link, STATEMENT_TYPE, Statement, StatementError};
pub use timestamp::{format_time, parse_time};
