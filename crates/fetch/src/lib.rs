//! Inputs from the outside: one file per ecosystem.
//!
//! Whatever comes in here is checked against a digest that somebody signed or locked, and is in
//! the [`BlobStore`] before anything names it. Nothing here builds,
//! and nothing fetched is ever executed. Every body, archive and list is bounded; every address
//! passes the [`guard`] before and after name resolution.

pub mod archive;
mod config;
mod crates_io;
pub mod deb;
pub mod debian;
mod ensure;
mod error;
pub mod guard;
mod http;
mod post;
pub mod remote;
mod resolve_lock;
mod url;

pub use config::{Archive, Config, DebianConfig, Limits, Proxies};
pub use ensure::{Progress, Report};
pub use error::{FetchError, LockFetchError};
pub use post::Poster;
pub use resolve_lock::Locked;

use std::sync::Arc;

use adamant_store::BlobStore;

/// Fetches inputs into a blob store. Cheap to clone; safe to share.
///
/// The process must have installed a rustls crypto provider before [`Fetcher::new`].
#[derive(Clone)]
pub struct Fetcher {
    pub(crate) config: Arc<Config>,
    pub(crate) http: http::Http,
    pub(crate) blobs: Arc<dyn BlobStore>,
}

impl Fetcher {
    /// A fetcher with its own connection pool.
    pub fn new(config: Config, blobs: Arc<dyn BlobStore>) -> Result<Self, FetchError> {
        let http = http::Http::new(&config)?;
        Ok(Self { config: Arc::new(config), http, blobs })
    }
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").field("config", &self.config).finish_non_exhaustive()
    }
}
