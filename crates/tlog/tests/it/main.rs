//! The tree against the definitions of RFC 6962, and notes against published ones.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod notes;
mod tree;
