//! The local target with real processes: fronts, supervisors and sandboxes.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod http;
mod instances;
mod support;
mod switching;
mod trees;
