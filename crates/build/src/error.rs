//! Why a build gave no artifact.

use std::io;

use adamant_digest::Digest;
use adamant_store::{ReadBlobError, WriteBlobError};

use crate::archive::ArchiveError;
use crate::canary::Finding;
use crate::inputs::{InputError, PlaceError};
use crate::outputs::OutputError;
use crate::pack::PackError;
use crate::root::RootError;
use crate::step::StepError;
use crate::stream::{StreamError, UploadError};
use crate::tarball::LayerError;
use crate::write::DiskError;

/// Why a build gave no artifact.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The lock asks for an ABI this version does not have.
    #[error(
        "the lock asks for build ABI {0}; this version has {supported:?}; run `adamant lock` or use a version that \
         has it",
        supported = crate::abi::SUPPORTED
    )]
    Abi(u32),
    /// The source could not be written out.
    #[error("the source cannot be exported: {0}")]
    Export(String),
    /// The export is not the tree that was asked for.
    #[error("the exported source has the digest {found}, not {expected}")]
    Tree {
        /// What the key names.
        expected: Digest,
        /// What was exported.
        found: Digest,
    },
    /// A tree of packages.
    #[error(transparent)]
    Root(Box<RootError>),
    /// A source or crate.
    #[error(transparent)]
    Input(Box<InputError>),
    /// The work tree.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The command.
    #[error("{source}")]
    Step {
        /// Its log, a blob.
        log: Digest,
        /// Why.
        source: Box<StepError>,
    },
    /// What it left behind.
    #[error("{source}")]
    Output {
        /// Its log, a blob.
        log: Digest,
        /// Why.
        source: Box<OutputError>,
    },
    /// What it left behind will be another tomorrow, or elsewhere.
    #[error("output {finding}; take it from SOURCE_DATE_EPOCH or leave it out, or nobody can build these bytes again")]
    Trace {
        /// Its log, a blob.
        log: Digest,
        /// Where.
        finding: Box<Finding>,
    },
    /// Reading an output again.
    #[error("output {path} cannot be read: {source}")]
    Scan {
        /// The file, as a path in the image.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A layer of it.
    #[error(transparent)]
    Write(#[from] LayerError),
    /// Keeping a layer.
    #[error(transparent)]
    Upload(#[from] UploadError<LayerError>),
    /// A blob was not kept.
    #[error(transparent)]
    Store(#[from] WriteBlobError),
    /// A blob is not there.
    #[error(transparent)]
    Blob(Box<ReadBlobError>),
    /// The artifact to compare with is no image of ours.
    #[error("{0} is not an image manifest that was built here")]
    NotAnImage(Digest),
    /// A layer of the artifact to compare with.
    #[error("layer {digest}: {source}")]
    Layer {
        /// The layer.
        digest: Digest,
        /// What is wrong.
        #[source]
        source: Box<StreamError<ArchiveError>>,
    },
    /// Comparing.
    #[error("cannot compare with {expected}: {source}")]
    Compare {
        /// The artifact.
        expected: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory of ours.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A thread was lost.
    #[error("the worker thread ended early: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

impl BuildError {
    /// The log of the step, if it came to run.
    pub const fn log(&self) -> Option<Digest> {
        match self {
            Self::Step { log, .. } | Self::Output { log, .. } | Self::Trace { log, .. } => Some(*log),
            _ => None,
        }
    }

    /// Whether the same job may well succeed later: the fault lies with this host, not with the
    /// commit.
    pub const fn is_ours(&self) -> bool {
        match self {
            Self::Abi(_)
            | Self::Output { .. }
            | Self::Trace { .. }
            | Self::Pack(_)
            | Self::Export(_)
            | Self::Place(_)
            | Self::NotAnImage(_) => false,
            Self::Step { source, .. } => matches!(**source, StepError::Sandbox(_) | StepError::Output(_)),
            Self::Tree { .. }
            | Self::Root(_)
            | Self::Input(_)
            | Self::Scan { .. }
            | Self::Write(_)
            | Self::Upload(_)
            | Self::Store(_)
            | Self::Blob(_)
            | Self::Layer { .. }
            | Self::Compare { .. }
            | Self::Disk(_)
            | Self::Thread(_) => true,
        }
    }
}

impl From<RootError> for BuildError {
    fn from(error: RootError) -> Self {
        Self::Root(Box::new(error))
    }
}

impl From<InputError> for BuildError {
    fn from(error: InputError) -> Self {
        Self::Input(Box::new(error))
    }
}

impl From<ReadBlobError> for BuildError {
    fn from(error: ReadBlobError) -> Self {
        Self::Blob(Box::new(error))
    }
}
