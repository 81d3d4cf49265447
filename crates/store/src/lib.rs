//! The two storage contracts, [`BlobStore`] and [`Ledger`], and blobs on local files.
//!
//! Siblings of this layer meet here and nowhere else.

mod blobs;
mod erased;
mod facts;
mod fs;
mod lock;

pub use blobs::{BlobStore, ReadBlobError, Reader, Upload, WriteBlobError};
pub use erased::{Erased, Tombstone, WithoutErased};
pub use facts::{AppendError, Bound, Chain, Conflict, Entry, Fact, Head, Ledger, LedgerError, Link, Receipt, Subject};
pub use fs::{FsBlobs, MAX_GET_BYTES, Packing};
pub use lock::{DataLock, DataLockError};

/// A future behind a seam; one allocation a call keeps builds small.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
