//! A whole capsule with real keys and a real log, and every way we know to falsify it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod files;
mod forged;
mod holds;
mod world;
