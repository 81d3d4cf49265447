//! Verifies capsules: offline proof files for one deployment.
//!
//! [`verify`] takes a [`Capsule`] and what its reader trusts ([`Trust`]), and answers with a
//! [`Report`] or the one [`Refusal`] that was met first. It knows the rules by itself: no crate
//! that writes facts is linked, documents are read by structs of its own, and nothing in a
//! capsule is believed because it is in the capsule. No I/O and no clock.

mod capsule;
mod chains;
mod documents;
mod facts;
mod keyring;
mod links;
mod refusal;
mod report;
mod trust;
mod verify;

pub use capsule::{CAPSULE_MEDIA_TYPE, Capsule, CapsuleError, Claim, Consistency, Document, Entry, MAX_CAPSULE_BYTES};
pub use refusal::Refusal;
pub use report::{Deployed, NO_WITNESS, Report};
pub use trust::{Trust, TrustError};
pub use verify::verify;
