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
//! whole: whoever may pull everything reads a blob whose digest they know through any repository,
//! and mounts it whenever it exists. For everybody else a blob is in a repository if a manifest of
//! it names the blob, or if it was uploaded there not long ago (see `contents`), and they name
//! nothing in a manifest that is not.

mod access;
mod body;
mod collect;
mod condition;
mod contents;
mod credentials;
mod evidence;
#[cfg(fuzzing)]
pub mod fuzz;
mod gate;
mod http;
mod manifests;
mod mentions;
mod names;
mod pattern;
mod pointers;
mod pushed_by;
mod registry;
mod uploads;
mod upstream;

pub use access::{Access, Action, ParseScopeError, Peer, Realm, Rights, Scope, Who, Within};
pub use body::{Body, BodyError};
pub use collect::{CollectError, Collected, SCANNED_BYTES};
pub use condition::Condition;
pub use contents::{OverQuota, Quota};
pub use credentials::{Asked, secret};
pub use evidence::GateError;
pub use gate::{Demand, Gate};
pub use http::{Handled, reason_phrase};
pub use manifests::{ListError, Names, Pushed, PutManifestError, ReadManifestError};
pub use names::member_name;
pub use pattern::{ParsePatternError, Pattern};
pub use pointers::{Move, Named, POINTER, ParseNamedError, Shrinks};
pub use registry::{Clock, Config, FreeSpace, Limits, LocateError, Misnamed, OutOfSpace, Owned, Registry, Reserve};
pub use uploads::OpenUploadsError;
pub use upstream::{
    Checked, Followed, HealError, Healed, PullError, Updated, Upstream, UpstreamConfig, UpstreamCounts, UpstreamError,
};
