//! What every blob store and every ledger must do, as suites that a backend's tests run, and
//! [`Faulty`] wrappers to see what callers do when a store fails.
//!
//! For tests alone: a broken promise panics, with a message that names it.

pub mod blobs;
mod faulty;
pub mod ledger;
pub mod services;

pub use faulty::{Faulty, When};
