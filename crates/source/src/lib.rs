//! The git remote: packs in, commits recorded, refs moved last.
//!
//! All git work is done by the system's `git` binary as a subprocess: its fsck, index-pack,
//! delta resolution and fsync are the reference that every client is tested against, and the
//! Rust implementations have no receive-pack. The command loop of receive-pack is ours, because
//! the order matters: objects durable → kept under `refs/adamant/commits/<oid>` → pipeline
//! ([`Receiver`]) → branch. A push is noted before the pipeline and until its branch has moved
//! ([`Pending`]), so that a start can complete what a crash cut off.
//!
//! Invariants:
//! - a ref under `refs/adamant/` is never moved, deleted or shown to clients; so no push,
//!   force-push or branch deletion loses a commit;
//! - a tag never moves and is never deleted;
//! - what was erased is in no pack, comes back by no push, and is named to whoever asks for it;
//! - git sees neither the environment, the home nor the configuration of whoever runs us, and no
//!   repository has hooks, alternates, filters or configuration that came with a push;
//! - what is exported is the raw bytes of blobs: no checkout, no attributes, no end-of-line
//!   conversion.
//!
//! There is no HTTP here: streams of bytes in, streams of bytes out.

mod body;
mod digests;
mod durable;
mod erased;
mod error;
mod export;
mod git;
mod limits;
mod oid;
mod packet;
mod pending;
mod quarantine;
mod read;
mod receive;
mod receiver;
mod refs;
mod repositories;
mod request;
mod serve;
mod turn;
mod verify;

pub use body::Encoding;
pub use erased::EraseError;
pub use error::{ExportError, GitError, OpenError, ReadError, RefError, ServeError};
pub use limits::Limits;
pub use oid::{Oid, ParseOidError};
pub use pending::Pending;
pub use read::{Commit, Log, TreeEntry, TreeEntryKind};
pub use receiver::{Push, Receiver};
pub use repositories::{Repositories, Repository};
pub use serve::Service;
pub use verify::Depth;

/// A body on its way, in or out.
pub type ByteStream = futures_util::stream::BoxStream<'static, std::io::Result<bytes::Bytes>>;
