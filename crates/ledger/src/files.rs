//! Writing files so that they are whole and stay.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Replaces `path` with `bytes` in one step; the file is synced, its directory is not.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temp = written(path, bytes, mode)?;
    temp.persist(path).map_err(|failed| failed.error)?;
    Ok(())
}

/// Makes `path` with `bytes` if nothing is there; `AlreadyExists` otherwise. Durable on return.
pub(crate) fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temp = written(path, bytes, mode)?;
    temp.persist_noclobber(path).map_err(|failed| failed.error)?;
    sync_dir(parent(path))
}

fn written(path: &Path, bytes: &[u8], mode: u32) -> io::Result<tempfile::NamedTempFile> {
    let mut temp = tempfile::Builder::new().prefix(".new-").tempfile_in(parent(path))?;
    temp.write_all(bytes)?;
    temp.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
    temp.as_file().sync_all()?;
    Ok(temp)
}

/// The directory `path` lies in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the entries of `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
