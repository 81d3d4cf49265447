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
    Export(#[source] Box<dyn std::error::Error + Send + Sync>),
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

    /// Whether it is for want of room on the disk, wherever something was written.
    pub fn is_full(&self) -> bool {
        if let Self::Step { source, .. } = self
            && matches!(**source, StepError::Full { .. })
        {
            return true;
        }
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
            if matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
                return true;
            }
            source = error.source();
        }
        false
    }

    /// Whether the same job may well succeed later: the fault lies with this host, not with the
    /// commit.
    pub fn is_ours(&self) -> bool {
        if self.is_full() {
            return true;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn full() -> io::Error {
        io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())
    }

    fn disk(source: io::Error) -> DiskError {
        DiskError { what: "write", path: PathBuf::from("/data/work/x"), source }
    }

    fn archive(source: io::Error) -> ArchiveError {
        ArchiveError::Write { path: PathBuf::from("/data/work/x"), source }
    }

    #[test]
    fn a_full_disk_is_ours_wherever_something_was_written() {
        type Make = fn(Digest, io::Error) -> BuildError;
        let log = Digest::of(b"");
        let makers: [(&str, Make); 9] = [
            ("export", |_, e| BuildError::Export(Box::new(disk(e)))),
            ("root", |_, e| RootError::Disk(disk(e)).into()),
            ("package", |_, e| {
                let source = Box::new(StreamError::Work(archive(e)));
                RootError::Package { name: "gcc".into(), version: "12".into(), source }.into()
            }),
            ("source", |_, e| {
                let source = Box::new(StreamError::Work(PlaceError::Archive(archive(e))));
                InputError::Source { name: "upstream".into(), source }.into()
            }),
            ("work tree", |_, e| BuildError::Place(PlaceError::Disk(disk(e)))),
            ("output", |log, e| {
                let source = OutputError::Read { path: "out".into(), source: archive(e) };
                BuildError::Output { log, source: Box::new(source) }
            }),
            ("layer", |_, e| BuildError::Upload(UploadError::Work(LayerError::Io { path: "x".into(), source: e }))),
            ("blob", |_, e| BuildError::Upload(UploadError::Store(WriteBlobError::Io(e)))),
            ("log", |_, e| BuildError::Store(WriteBlobError::Io(e))),
        ];
        for (name, make) in makers {
            let error = make(log, full());
            assert!(error.is_full() && error.is_ours(), "{name}: {error}");
            assert!(!make(log, io::Error::from(io::ErrorKind::PermissionDenied)).is_full(), "{name}");
        }
        let source = StepError::Full { how: "exited with 2".into(), tail: Vec::new() };
        let error = BuildError::Step { log, source: Box::new(source) };
        assert!(error.is_full() && error.is_ours());
        assert!(!BuildError::Export("a submodule".into()).is_ours());
    }
}
