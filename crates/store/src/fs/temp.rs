//! Files on their way in. A writer holds an exclusive lock on its file for as long as it lives,
//! so that a file nobody holds is rubbish, whichever process made it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempPath;

/// A locked file without a digest yet; removed on drop.
#[derive(Debug)]
pub(super) struct Temp {
    file: File,
    path: TempPath,
}

impl Temp {
    /// An empty, locked file in `dir`.
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        // A sweep by another process may see the file between its creation and its lock; then
        // the file is gone or about to be, and another one is made.
        for _ in 0..16 {
            let (file, path) = tempfile::Builder::new().prefix("in-").rand_bytes(16).tempfile_in(dir)?.into_parts();
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            if rustix::fs::fstat(&file)?.st_nlink > 0 {
                return Ok(Self { file, path });
            }
        }
        Err(io::Error::other(format!("no file can be locked in {}", dir.display())))
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn file_mut(&mut self) -> &mut File {
        &mut self.file
    }

    /// Moves the file to `path`, replacing what is there. On failure gives itself back.
    pub(super) fn rename(self, path: &Path) -> Result<(), (Self, io::Error)> {
        let Self { file, path: own } = self;
        match own.persist(path) {
            Ok(()) => Ok(()),
            Err(failed) => Err((Self { file, path: failed.path }, failed.error)),
        }
    }
}

/// Removes the files in `dir` that no living process holds.
pub(super) fn sweep(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path: PathBuf = entry?.path();
        let Ok(file) = super::no_follow().open(&path) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        match std::fs::remove_file(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "removed an upload that never finished"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
