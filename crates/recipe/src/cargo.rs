//! Cargo's native lock: which crates a build needs, and whether lock and manifests agree.
//!
//! `Cargo.lock` pins name, version and sha256 of every crate, so `adamant.lock` repeats nothing
//! of it and a bot that updates it breaks nothing.

mod agree;
mod lock;
mod members;

pub use agree::{Disagreement, Manifest, agrees};
pub use lock::{CargoLock, CargoLockError, Crate, Dependency, Local, parse};
pub use members::{MembersError, manifests};
