//! Canonical JSON, statements, predicates, DSSE envelopes and keys.
//!
//! Wire types only: parse, print, hash, verify. No I/O, no clock.

pub mod predicate;
