//! Blobs on local files.

/// Blobs below one directory.
pub struct FsBlobs;
