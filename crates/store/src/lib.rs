//! The two storage contracts, [`BlobStore`] and [`Ledger`], and blobs on local files and in S3.
//!
//! Siblings of this layer meet here and nowhere else.

mod blobs;
mod erased;
mod facts;
mod fs;
#[cfg(fuzzing)]
pub mod fuzz;
mod lock;
mod s3;

pub use blobs::{BlobStore, ReadBlobError, Reader, Upload, WriteBlobError};
pub use erased::{Erased, Tombstone, WithoutErased};
pub use facts::{AppendError, Bound, Chain, Conflict, Entry, Fact, Head, Ledger, LedgerError, Link, Receipt, Subject};
pub use fs::{FsBlobs, MAX_GET_BYTES, Packing};
pub use lock::{DataLock, DataLockError};
pub use s3::{S3Blobs, S3Credentials, S3Settings, S3SettingsError};

/// A future behind a seam; one allocation a call keeps builds small.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
