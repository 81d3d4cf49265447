//! OCI names, descriptors, manifests, image configurations and errors.
//!
//! Wire types only: parse and print, no I/O. Invariant: a [`Manifest`] keeps the exact bytes it
//! was parsed from, and nothing here ever prints a parsed manifest again.

mod config;
mod content;
mod descriptor;
mod error;
mod manifest;
pub mod media;
mod names;

pub use config::{History, ImageConfig, RootFs, RuntimeConfig};
pub use content::{ContentDigest, OtherDigest, ParseContentDigestError, UnsupportedAlgorithm};
pub use descriptor::{Descriptor, Platform};
pub use error::{ErrorBody, ErrorCode, ErrorEntry};
pub use manifest::{ArtifactMeta, Content, Manifest, ManifestError, ManifestKind};
pub use names::{ParseNameError, ParseReferenceError, ParseTagError, Reference, RepositoryName, Tag};
