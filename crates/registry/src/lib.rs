//! The OCI distribution protocol over a store that never overwrites.
//!
//! Bytes are kept under their sha256. A client may name them by sha512 instead: the store remembers
//! which blob that is, and whatever is pushed or pulled by it is hashed by it, too.
//!
//! Invariants: a tag is bound to one digest for ever, by one call to the ledger; a manifest is
//! listed only after its bytes and everything it names are durable; wrong bytes are never sent
//! to their end. There is no delete and no overwrite here, for nobody.
//! Names that move (see `pointers`) are another type: the signature lists of older clients, which may
//! only grow, and those that the operator names.
//!
//! What is in a repository is a set of `tag` bindings in the ledger (see `names`), so tags,
//! pushes by digest and referrers are all rebuilt from facts. Blobs belong to the store as a
//! whole: whoever may pull may read a blob whose digest they know through any repository, and a
//! mount succeeds whenever the blob exists. Rights per repository will need a blob to be
//! reachable from a manifest of the repository it is asked from; that is a question to facts
//! already kept.

mod access;
mod body;
mod collect;
mod condition;
mod damaged;
mod evidence;
mod gate;
mod http;
mod manifests;
mod mentions;
mod names;
mod pattern;
mod pointers;
mod registry;
mod uploads;

pub use access::Access;
pub use body::{Body, BodyError};
pub use collect::{CollectError, Collected, SCANNED_BYTES};
pub use condition::Condition;
pub use evidence::GateError;
pub use gate::{Demand, Gate};
pub use manifests::{ListError, Names, Pushed, PutManifestError, ReadManifestError};
pub use names::member_name;
pub use pattern::{ParsePatternError, Pattern};
pub use pointers::{Move, Named, POINTER, ParseNamedError, Shrinks};
pub use registry::{Clock, Config, Limits, LocateError, Misnamed, Owned, Registry};
pub use uploads::OpenUploadsError;
