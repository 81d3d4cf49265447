//! Writes a layout into a directory of the host.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timestamps, utimensat};

use crate::layout::{Content, Layout, Node};

/// A file system operation that did not work.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: {source}", path.display())]
pub struct DiskError {
    /// What was tried.
    pub what: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What happened.
    #[source]
    pub source: io::Error,
}

impl DiskError {
    /// For `map_err`.
    pub(crate) fn on<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Self + 'a {
        move |source| Self { what, path: path.to_owned(), source }
    }

    /// Whether there is no room left.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// How files on the host look to a step: who owns them and when they were changed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    /// Host user and group of everything, if we are root.
    pub(crate) owner: Option<(u32, u32)>,
    /// Every mtime.
    pub(crate) epoch: u64,
}

impl Look {
    /// Owner as the sandbox wants it.
    pub(crate) fn new(epoch: u64) -> Self {
        let owner = rustix::process::geteuid().is_root().then(adamant_sandbox::owner);
        Self { owner, epoch }
    }
}

/// Creates every name below `root`, which exists and is empty. Staged files are moved, so a
/// layout can be written once. Nothing below `root` is a link that somebody else made.
pub(crate) fn write(layout: &Layout, root: &Path, look: Look) -> Result<(), DiskError> {
    let mut moved: HashMap<&Path, PathBuf> = HashMap::new();
    for (name, node) in layout.iter() {
        let path = root.join(name);
        match node {
            Node::Dir { .. } => match fs::create_dir(&path) {
                // A directory that is there already takes what is to go into it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && real_dir(&path) => {}
                result => result.map_err(DiskError::on("create", &path))?,
            },
            Node::Link { target } => {
                std::os::unix::fs::symlink(target, &path).map_err(DiskError::on("create", &path))?;
            }
            Node::File { mode, content, .. } => {
                match content {
                    Content::Bytes(bytes) => create(&path, bytes)?,
                    Content::File(staged) => {
                        if let Some(first) = moved.get(staged.as_path()) {
                            // A second name of one file, a hard link in its archive.
                            fs::copy(first, &path).map_err(DiskError::on("create", &path))?;
                        } else {
                            fs::rename(staged, &path).map_err(DiskError::on("create", &path))?;
                            moved.insert(staged, path.clone());
                        }
                    }
                }
                fs::set_permissions(&path, Permissions::from_mode(*mode)).map_err(DiskError::on("change", &path))?;
            }
        }
    }
    // Backwards, so that a directory is dressed after what is in it.
    let mut names: Vec<(&str, &Node)> = layout.iter().collect();
    names.reverse();
    for (name, node) in names {
        let path = root.join(name);
        if let Node::Dir { mode } = node {
            fs::set_permissions(&path, Permissions::from_mode(*mode)).map_err(DiskError::on("change", &path))?;
        }
        dress(&path, look)?;
    }
    dress(root, look)
}

fn real_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

fn create(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes)).map_err(DiskError::on("write", path))
}

/// Sets owner and times of one name, no link followed.
fn dress(path: &Path, look: Look) -> Result<(), DiskError> {
    if let Some((uid, gid)) = look.owner {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(DiskError::on("give away", path))?;
    }
    let time = rustix::fs::Timespec { tv_sec: i64::try_from(look.epoch).unwrap_or(0), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| DiskError {
        what: "date",
        path: path.to_owned(),
        source: errno.into(),
    })
}

/// Dresses everything below `root`, as after an export by somebody else. With `reverse`, every
/// directory is made again with its names created in the opposite order.
pub(crate) fn redress(root: &Path, look: Look, reverse: bool) -> Result<(), DiskError> {
    let mut names: Vec<PathBuf> = fs::read_dir(root)
        .and_then(|dir| dir.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(DiskError::on("read", root))?;
    names.sort();
    for path in &names {
        if real_dir(path) {
            redress(path, look, reverse)?;
        } else {
            dress(path, look)?;
        }
    }
    if reverse && names.len() > 1 {
        // Out of the directory and in again, last name first.
        let aside = root.join(".adamant-reverse");
        fs::create_dir(&aside).map_err(DiskError::on("create", &aside))?;
        for (from, to) in [(root, &*aside), (&*aside, root)] {
            for path in names.iter().rev() {
                let name = path.file_name().unwrap_or_default();
                fs::rename(from.join(name), to.join(name)).map_err(DiskError::on("move", path))?;
            }
        }
        fs::remove_dir(&aside).map_err(DiskError::on("remove", &aside))?;
        for path in names.iter().filter(|path| real_dir(path)) {
            dress(path, look)?;
        }
    }
    dress(root, look)
}

/// Removes a tree whatever modes its directories have. Links are not followed.
pub(crate) fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path);
            fs::remove_dir_all(path).map_err(DiskError::on("remove", path))
        }
        Err(source) => Err(DiskError { what: "remove", path: path.to_owned(), source }),
    }
}

/// A build may leave directories its owner cannot enter.
fn open_up(path: &Path) {
    if !real_dir(path) || fs::set_permissions(path, Permissions::from_mode(0o700)).is_err() {
        return;
    }
    let Ok(names) = fs::read_dir(path) else { return };
    for entry in names.flatten() {
        open_up(&entry.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn writes_modes_times_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let mut layout = Layout::default();
        layout.insert("a/b", Node::bytes(0o755, *b"x")).unwrap();
        layout.insert("a/c", Node::Link { target: "/nowhere".into() }).unwrap();
        write(&layout, &root, Look { owner: None, epoch: 315_532_800 }).unwrap();
        for name in ["a", "a/b", "a/c"] {
            assert_eq!(fs::symlink_metadata(root.join(name)).unwrap().mtime(), 315_532_800, "{name}");
        }
        assert_eq!(fs::metadata(root.join("a/b")).unwrap().mode() & 0o7777, 0o755);
        redress(&root, Look { owner: None, epoch: 5 }, true).unwrap();
        assert_eq!(fs::metadata(root.join("a")).unwrap().mtime(), 5);
        assert_eq!(fs::read(root.join("a/b")).unwrap(), b"x");
        assert_eq!(fs::read_dir(root.join("a")).unwrap().count(), 2);
    }

    #[test]
    fn removes_what_a_build_locked() {
        let dir = tempfile::tempdir().unwrap();
        let locked = dir.path().join("x/y");
        fs::create_dir_all(locked.join("z")).unwrap();
        fs::set_permissions(&locked, Permissions::from_mode(0o000)).unwrap();
        remove(&dir.path().join("x")).unwrap();
        assert!(!dir.path().join("x").exists());
    }
}
