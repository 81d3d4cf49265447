//! The whole product: the real binary, real git, real HTTP, each test in a data directory of its own.
//!
//! One locked and twice released project is made once per run (`template`) and copied for each
//! test, so that the package mirror is asked once. What the host forbids is skipped by name on
//! stderr.

#![expect(clippy::unwrap_used, reason = "what a helper cannot do is a failed test")]

mod access;
mod clauses;
mod client;
mod crash;
mod damage;
mod determinism;
mod disks;
mod erase;
mod faults;
mod gates;
mod hostile;
mod isolation;
mod kills;
mod load;
mod process;
mod proof;
mod pushes;
mod refusals;
mod registry;
mod rollback;
mod space;
mod stores;
mod tampering;
mod template;
mod tls;
mod tokens;
mod tour;
mod upstream;
mod webhooks;
mod world;
