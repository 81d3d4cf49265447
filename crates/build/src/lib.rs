//! Runs steps, packs artifacts, compares rebuilds.
//!
//! A [`Job`] holds everything a build is a function of; [`Job::key`] names it. [`Builder::build`]
//! makes it an image in the blob store, [`Builder::rebuild`] makes it once more under varied
//! conditions and says where the two part. Absent: the network, the ledger, and any decision
//! whether a key was built before.

pub mod abi;
mod archive;
mod builder;
mod canary;
mod compare;
mod error;
mod inputs;
mod interpreter;
mod layout;
mod missing;
mod network;
mod outputs;
mod pack;
mod root;
mod step;
mod stream;
mod tarball;
mod write;

pub use archive::ArchiveError;
pub use builder::{Builder, BuilderConfig, Built, Clock, Export, Job, JobError, Rebuilt, system_clock};
pub use canary::{Finding, Host, Trace};
pub use compare::Divergence;
pub use error::BuildError;
pub use inputs::{CrateInput, InputError, PlaceError, SourceInput};
pub use layout::LayoutError;
pub use network::Wanted;
pub use outputs::OutputError;
pub use pack::PackError;
pub use root::{Deb, Overlap, PackageTree, Root, RootError, Roots};
pub use step::{Conditions, Sink, StepError};
pub use stream::{StreamError, UploadError};
pub use tarball::LayerError;
pub use write::DiskError;
