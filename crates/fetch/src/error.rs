//! Why inputs could not be fetched. Messages name the object, the cause and what to do.

use adamant_digest::Digest;
use adamant_store::{ReadBlobError, WriteBlobError};

use crate::debian::{ReleaseError, ResolveError};

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Settings that cannot work.
    #[error("fetching is not possible: {0}")]
    Config(String),
    /// The address is refused before anything was sent.
    #[error(transparent)]
    Refused(#[from] crate::guard::Refused),
    /// The same, of an input with a name.
    #[error("{name}: {refused}")]
    RefusedInput {
        /// The input.
        name: String,
        /// Why.
        #[source]
        refused: crate::guard::Refused,
    },
    /// The server says it has no such thing.
    #[error("{url} does not exist (HTTP {status}): check the address")]
    Gone {
        /// What was asked for.
        url: String,
        /// 404 or 410.
        status: u16,
    },
    /// Nobody who was asked has it.
    #[error("{name}: none of {} exists (HTTP 404): check the address", urls.join(", "))]
    Nowhere {
        /// The input.
        name: String,
        /// All that was asked for.
        urls: Vec<String>,
    },
    /// The server answers something else than the file.
    #[error("{url} answers HTTP {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// Its answer.
        status: u16,
    },
    /// The network, after all attempts.
    #[error("{url} cannot be fetched: {cause}: check the network and the proxy settings, then try again")]
    Network {
        /// What was asked for.
        url: String,
        /// What happened, in words.
        cause: String,
    },
    /// More bytes than announced or allowed.
    #[error("{url} is larger than {limit} bytes")]
    TooLarge {
        /// What was asked for.
        url: String,
        /// The bound.
        limit: u64,
    },
    /// Other bytes than the lock names.
    #[error(
        "{name}: {url} has {found}, the lock says {expected}: the file moved under the lock; look at why before running `adamant lock --update`"
    )]
    Mismatch {
        /// The input.
        name: String,
        /// Where the bytes came from.
        url: String,
        /// What the lock says.
        expected: Digest,
        /// What arrived.
        found: Digest,
    },
    /// Other bytes than the recipe names.
    #[error(
        "source {name}: {url} has {found}, `sha256` of [sources.{name}] in adamant.toml says {expected}: correct it if these are the bytes you want, or correct `url`"
    )]
    OtherThanRecipe {
        /// The source.
        name: String,
        /// Where the bytes came from.
        url: String,
        /// What the recipe says.
        expected: Digest,
        /// What arrived.
        found: Digest,
    },
    /// Other length than the lock names.
    #[error(
        "{name}: {url} has {found} bytes, the lock says {expected}: the file moved under the lock; look at why before running `adamant lock --update`"
    )]
    Size {
        /// The input.
        name: String,
        /// Where the bytes came from.
        url: String,
        /// What the lock says.
        expected: u64,
        /// What was announced or arrived.
        found: u64,
    },
    /// A package version the mirrors deleted.
    #[error(
        "{name} is no longer on {mirrors}: run `adamant lock --update` for the current version, or configure a snapshot mirror that still has it"
    )]
    Vanished {
        /// The input.
        name: String,
        /// Where it was looked for.
        mirrors: String,
    },
    /// The blob store.
    #[error(transparent)]
    Write(#[from] WriteBlobError),
    /// The blob store.
    #[error(transparent)]
    Read(#[from] ReadBlobError),
    /// A worker thread went away.
    #[error("a worker stopped: {0}")]
    Worker(String),
}

impl FetchError {
    /// Says which input was refused.
    pub(crate) fn of(self, name: &str) -> Self {
        match self {
            Self::Refused(refused) => Self::RefusedInput { name: name.to_owned(), refused },
            other => other,
        }
    }

    /// Whether trying again later can help.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Network { .. } | Self::Write(WriteBlobError::Io(_)) | Self::Worker(_) => true,
            Self::Status { status, .. } => *status >= 500 || matches!(status, 408 | 429),
            _ => false,
        }
    }
}

/// Why no lock could be made.
#[derive(Debug, thiserror::Error)]
pub enum LockFetchError {
    /// Fetching.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The package index cannot be trusted or read.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// Packages cannot be found or do not fit together.
    #[error("`{set}`: {source}")]
    Resolve {
        /// `<artifact>.<toolchain|runtime>`.
        set: String,
        /// Why.
        #[source]
        source: Box<ResolveError>,
    },
    /// The same name and version stand for different bytes.
    #[error("{name} is {first} and {second}: two mirrors disagree; use one of them")]
    Disagree {
        /// Package and version.
        name: String,
        /// One digest.
        first: Digest,
        /// The other.
        second: Digest,
    },
}
