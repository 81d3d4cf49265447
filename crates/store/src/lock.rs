//! One server for one data directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// How long a holder that is ending may take: the kernel closes the files of a killed process after
/// it has gone from the process list, as far as that can be seen.
const DYING: Duration = Duration::from_secs(5);
/// Between looks at one.
const PAUSE: Duration = Duration::from_millis(20);

/// An exclusive lock on a data directory, held until dropped or the process ends, however it
/// ends. The file `<dir>/lock` stays and tells who holds it.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
    path: PathBuf,
}

/// Why a data directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum DataLockError {
    /// Another process works on it.
    #[error("{} is in use by process {}: stop it or choose another --data", dir.display(), holder(*pid))]
    Held {
        /// The data directory.
        dir: PathBuf,
        /// The process that holds it, if it said so already.
        pid: Option<u32>,
    },
    /// The file system.
    #[error("{}: {source}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string())
}

/// Whether a process has memory still, which it loses before its files.
fn lives(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| !text.is_empty())
}

impl DataLock {
    /// Locks `dir`, which must exist. Does not wait for a holder that lives; for one that is ending,
    /// a moment, which blocks.
    pub fn acquire(dir: &Path) -> Result<Self, DataLockError> {
        let path = dir.join("lock");
        let failed = |source| DataLockError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default())
            .open(&path)
            .map_err(failed)?;
        let began = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let mut text = String::new();
                    // A holder that has not written its number yet is still a holder.
                    let _ = file.rewind().and_then(|()| (&file).take(32).read_to_string(&mut text));
                    let pid = text.trim().parse().ok();
                    if pid.is_none_or(lives) || began.elapsed() > DYING {
                        return Err(DataLockError::Held { dir: dir.to_owned(), pid });
                    }
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return Err(failed(error.into())),
            }
        }
        // The number is a courtesy; the lock is what counts, and it must hold on a full disk.
        let note = file.set_len(0).and_then(|()| {
            file.rewind()?;
            file.write_all(format!("{}\n", std::process::id()).as_bytes())
        });
        if let Err(error) = note {
            tracing::warn!(path = %path.display(), %error, "cannot note the process in the lock file");
        }
        Ok(Self { _file: file, path })
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lives_is_not_waited_for_and_who_is_ending_is() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataLock::acquire(dir.path()).unwrap();
        let began = Instant::now();
        let refused = DataLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("in use by process {}", std::process::id())), "{refused}");
        assert!(began.elapsed() < DYING);

        // No process has this number.
        std::fs::write(dir.path().join("lock"), format!("{}\n", u32::MAX)).unwrap();
        let ending = std::thread::spawn(move || {
            std::thread::sleep(PAUSE * 5);
            drop(held);
        });
        DataLock::acquire(dir.path()).unwrap();
        ending.join().unwrap();
    }
}
