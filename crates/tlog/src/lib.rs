//! A transparency log's arithmetic: Merkle tree, tiles, proofs, signed notes and checkpoints.
//!
//! Specifications: RFC 6962 §2.1 (hashes and proofs), C2SP `tlog-tiles`, `tlog-checkpoint`,
//! `signed-note` and `tlog-cosignature`. No I/O and no clock: hashes come from closures, and
//! whoever stores them decides how.

mod checkpoint;
mod entries;
mod hash;
mod note;
mod proof;
mod range;
mod tile;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use entries::{EntriesError, decode_entries, encode_entries};
pub use hash::{Hash, empty_root, leaf_hash, node_hash};
pub use note::{Note, NoteError, NoteSignature, NoteSigner, VerifierKey, cosigned};
pub use proof::{
    ProofError, TreeError, consistency, inclusion, nodes_for_consistency, nodes_for_inclusion, root,
    verify_consistency, verify_inclusion,
};
pub use range::{CompactRange, Node, RangeError};
pub use tile::{TILE_HEIGHT, TILE_WIDTH, Tile, TileError, TileKind, new_tiles, node_in_tile};
