//! The OCI distribution protocol over a store that never overwrites.
//!
//! Bytes are kept under their sha256. A client may name them by sha512 instead: the store remembers
//! which blob that is, and whatever is pushed or pulled by it is hashed by it, too.
//!
//! Invariants: a tag is bound to one digest for ever, by one call to the ledger; a manifest is
//! listed only after its bytes and everything it names are durable; wrong bytes are never sent
//! to their end. There is no delete and no overwrite here, for nobody.
//! The signature lists of older clients (see `pointers`) are another type, and may only grow.
//!
//! What is in a repository is a set of `tag` bindings in the ledger (see `names`), so tags,
//! pushes by digest and referrers are all rebuilt from facts. Blobs belong to the store as a
//! whole: whoever may pull may read a blob whose digest they know through any repository, and a
//! mount succeeds whenever the blob exists. Rights per repository will need a blob to be
//! reachable from a manifest of the repository it is asked from; that is a question to facts
//! already kept.

mod access;
mod body;
mod damaged;
mod http;
mod manifests;
mod names;
mod pointers;
mod registry;
mod uploads;
mod upstream;

pub use access::Access;
pub use body::{Body, BodyError};
pub use manifests::{ListError, Pushed, PutManifestError, ReadManifestError};
pub use names::member_name;
pub use pointers::Shrinks;
pub use registry::{Clock, Config, Limits, LocateError, Misnamed, Owned, Registry};
pub use uploads::OpenUploadsError;
pub use upstream::{
    Checked, Followed, HealError, Healed, PullError, Updated, Upstream, UpstreamConfig, UpstreamCounts, UpstreamError,
};
