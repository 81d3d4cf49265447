//! What a repository accepts and how long git may take.

use std::time::Duration;

/// Bounds on what clients send and on what git may use. Everything is refused above them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of one pack as sent.
    pub pack_bytes: u64,
    /// Objects in one pack.
    pub pack_objects: u32,
    /// Bytes of one file in any commit.
    pub blob_bytes: u64,
    /// Bytes of one git tree object (about 40 a directory entry).
    pub tree_bytes: u64,
    /// Bytes of one commit or tag object: message, headers and signature.
    pub commit_bytes: u64,
    /// Entries of one exported or listed tree, directories included.
    pub tree_entries: usize,
    /// Sum of the file sizes of one exported tree.
    pub export_bytes: u64,
    /// Directory levels.
    pub depth: usize,
    /// Bytes of one path.
    pub path_bytes: usize,
    /// Refs in one push.
    pub refs_per_push: usize,
    /// Pushes at work at once, all projects together.
    pub pushes: usize,
    /// Fetches at work at once, all projects together.
    pub fetches: usize,
    /// Bytes of one fetch request after decompression.
    pub fetch_request_bytes: u64,
    /// Address space of one git process.
    pub git_memory_bytes: u64,
    /// Wall time of one short git command.
    pub command_time: Duration,
    /// Wall time of receiving, indexing and checking one pack, and of serving one fetch.
    pub transfer_time: Duration,
    /// How long a client may stay silent in the middle of a request.
    pub idle_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        Self {
            pack_bytes: 1024 * MIB,
            pack_objects: 2_000_000,
            blob_bytes: 256 * MIB,
            tree_bytes: 8 * MIB,
            commit_bytes: 256 << 10,
            tree_entries: 200_000,
            export_bytes: 4096 * MIB,
            depth: 64,
            path_bytes: 1024,
            refs_per_push: 8,
            pushes: 32,
            fetches: 32,
            fetch_request_bytes: 32 * MIB,
            git_memory_bytes: 4096 * MIB,
            command_time: Duration::from_mins(1),
            transfer_time: Duration::from_hours(1),
            idle_time: Duration::from_mins(1),
        }
    }
}
