//! Takes the declared outputs out of a work tree that a hostile program wrote.
//!
//! No process of the step is left by then. Every path is opened beneath the work tree's own
//! descriptor, so a link that leads out is refused by the kernel; modes, owners and times are
//! replaced, devices, sockets and set-id files refused.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::archive::{ArchiveError, Stage, plain_mode};
use crate::layout::{LayoutError, Node, normal};

/// Bytes of all outputs of one artifact.
const MAX_BYTES: u64 = 4 << 30;
/// Names of all outputs of one artifact.
const MAX_NAMES: usize = 100_000;
/// How deep directories go.
const MAX_DEPTH: usize = 64;

/// Why an output was not taken.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The build did not make it.
    #[error("the build made no `{from}`, which the recipe puts at {to}; correct `files` or the build command")]
    Missing {
        /// Path in the image.
        to: String,
        /// Path in the work tree.
        from: String,
    },
    /// It lies behind a link that leads out.
    #[error("output `{0}` leads out of the work tree")]
    Outside(String),
    /// It is not a file, a directory or a link.
    #[error("output `{path}` is a {kind}; only files, directories and links can be packed")]
    Kind {
        /// Path in the work tree.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// It would run as somebody else.
    #[error("output `{0}` has a set-user-id or set-group-id bit; drop it with chmod in the build")]
    SetId(String),
    /// A link of an output points into the build's own file system.
    #[error("output `{path}` links to `{target}`, which exists during the build alone; make it relative")]
    Link {
        /// The link.
        path: String,
        /// Its target.
        target: String,
    },
    /// A name that is not text.
    #[error("output `{0}` holds a name that is not UTF-8")]
    NotText(String),
    /// Too many, too deep.
    #[error("the outputs hold more than {limit} {unit}")]
    TooMany {
        /// The bound.
        limit: usize,
        /// What is counted.
        unit: &'static str,
    },
    /// Too many bytes, found before any is copied.
    #[error(
        "the outputs hold more than {limit} bytes with `{path}`, which has {size}; make it smaller or leave it out"
    )]
    TooLarge {
        /// The file that goes past the bound.
        path: String,
        /// Its size.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// Its bytes.
    #[error("output `{path}`: {source}")]
    Read {
        /// The file.
        path: String,
        /// What is wrong.
        #[source]
        source: ArchiveError,
    },
    /// The kernel refused.
    #[error("output `{path}`: {errno}")]
    Os {
        /// The file.
        path: String,
        /// Why.
        errno: Errno,
    },
    /// A path of the recipe.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// Copies outputs into `stage`; `files` is image path → path in the work tree. The result is in
/// the order of image paths, parents before what is in them.
pub(crate) fn collect(
    work: &Path,
    files: &BTreeMap<String, String>,
    stage: &Stage,
) -> Result<Vec<(String, Node)>, OutputError> {
    let root = rustix::fs::openat(CWD, work, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| OutputError::Os { path: ".".to_owned(), errno })?;
    // Once without a copy: what is refused for its size or kind should not fill the disk first.
    take_all(&root, files, &mut Taken::new(None))?;
    let mut taken = Taken::new(Some(stage));
    take_all(&root, files, &mut taken)?;
    Ok(taken.outputs)
}

fn take_all(root: &OwnedFd, files: &BTreeMap<String, String>, taken: &mut Taken<'_>) -> Result<(), OutputError> {
    for (to, from) in files {
        let inside = match normal(from)? {
            path if path.is_empty() => ".".to_owned(),
            path => path,
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let fd = rustix::fs::openat2(root, &*inside, flags, Mode::empty(), resolve).map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR => OutputError::Missing { to: to.clone(), from: from.clone() },
            Errno::XDEV | Errno::LOOP => OutputError::Outside(from.clone()),
            errno => OutputError::Os { path: from.clone(), errno },
        })?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| OutputError::Os { path: from.clone(), errno })?;
        taken.take(&normal(to)?, from, &fd, &stat, 0)?;
    }
    Ok(())
}

struct Taken<'a> {
    /// Where bytes go; `None` only counts.
    stage: Option<&'a Stage>,
    outputs: Vec<(String, Node)>,
    names: usize,
    left: u64,
}

impl<'a> Taken<'a> {
    const fn new(stage: Option<&'a Stage>) -> Self {
        Self { stage, outputs: Vec::new(), names: 0, left: MAX_BYTES }
    }

    fn take(&mut self, to: &str, from: &str, fd: &OwnedFd, stat: &Stat, depth: usize) -> Result<(), OutputError> {
        if self.names >= MAX_NAMES {
            return Err(OutputError::TooMany { limit: MAX_NAMES, unit: "names" });
        }
        self.names += 1;
        if depth > MAX_DEPTH {
            return Err(OutputError::TooMany { limit: MAX_DEPTH, unit: "directories in one another" });
        }
        let os = |errno| OutputError::Os { path: from.to_owned(), errno };
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile => {
                if stat.st_mode & 0o6000 != 0 {
                    return Err(OutputError::SetId(from.to_owned()));
                }
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                if size > self.left {
                    return Err(OutputError::TooLarge { path: from.to_owned(), size, limit: MAX_BYTES });
                }
                let Some(stage) = self.stage else {
                    self.left -= size;
                    return Ok(());
                };
                let mut file = File::from(reopen(fd, OFlags::RDONLY).map_err(os)?);
                let wrap = |source| OutputError::Read { path: from.to_owned(), source };
                let node = stage.keep(plain_mode(stat.st_mode), &mut file, self.left).map_err(wrap)?;
                if let Node::File { size, .. } = &node {
                    self.left -= size;
                }
                self.outputs.push((to.to_owned(), node));
                Ok(())
            }
            FileType::Directory => {
                self.outputs.push((to.to_owned(), Node::Dir { mode: 0o755 }));
                self.directory(to, from, fd, depth)
            }
            // Reached only below a declared directory: a declared link was followed.
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(fd, "", Vec::new()).map_err(os)?;
                let target = target.into_string().map_err(|_| OutputError::NotText(from.to_owned()))?;
                let ours = [crate::abi::WORK, crate::abi::HOME, crate::abi::VENDOR, "/tmp", "/proc"];
                if ours.iter().any(|dir| Path::new(&target).starts_with(dir)) {
                    return Err(OutputError::Link { path: from.to_owned(), target });
                }
                self.outputs.push((to.to_owned(), Node::Link { target }));
                Ok(())
            }
            other => {
                let kind = match other {
                    FileType::Fifo => "fifo",
                    FileType::Socket => "socket",
                    _ => "device",
                };
                Err(OutputError::Kind { path: from.to_owned(), kind })
            }
        }
    }

    fn directory(&mut self, to: &str, from: &str, fd: &OwnedFd, depth: usize) -> Result<(), OutputError> {
        let os = |errno| OutputError::Os { path: from.to_owned(), errno };
        let readable = reopen(fd, OFlags::RDONLY | OFlags::DIRECTORY).map_err(os)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&readable).map_err(os)? {
            let entry = entry.map_err(os)?;
            let name = entry.file_name().to_str().map_err(|_| OutputError::NotText(from.to_owned()))?;
            if !matches!(name, "." | "..") {
                names.push(name.to_owned());
            }
            if names.len() > MAX_NAMES {
                return Err(OutputError::TooMany { limit: MAX_NAMES, unit: "names" });
            }
        }
        names.sort();
        for name in names {
            let from = format!("{from}/{name}");
            let os = |errno| OutputError::Os { path: from.clone(), errno };
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let child = rustix::fs::openat(readable.as_fd(), &*name, flags, Mode::empty()).map_err(os)?;
            let stat = rustix::fs::statat(&child, "", AtFlags::EMPTY_PATH).map_err(os)?;
            self.take(&format!("{to}/{name}"), &from, &child, &stat, depth + 1)?;
        }
        Ok(())
    }
}

/// Opens for reading what an `O_PATH` descriptor already names: the same file, not the same path.
fn reopen(fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd as _;
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::openat(CWD, link, flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn take(prepare: impl FnOnce(&Path), from: &str) -> Result<Vec<(String, Node)>, OutputError> {
        let dir = tempfile::tempdir().unwrap();
        let (work, stage) = (dir.path().join("build"), dir.path().join("stage"));
        fs::create_dir_all(&work).unwrap();
        fs::create_dir_all(&stage).unwrap();
        prepare(&work);
        collect(&work, &[("/app".to_owned(), from.to_owned())].into(), &Stage::new(&stage))
    }

    #[test]
    fn takes_files_and_directories_with_plain_modes() {
        let outputs = take(
            |work| {
                fs::create_dir_all(work.join("out/sub")).unwrap();
                fs::write(work.join("out/sub/run"), "x").unwrap();
                fs::set_permissions(work.join("out/sub/run"), fs::Permissions::from_mode(0o700)).unwrap();
                symlink("sub/run", work.join("out/link")).unwrap();
            },
            "out",
        );
        let outputs = outputs.unwrap();
        let names: Vec<&str> = outputs.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["app", "app/link", "app/sub", "app/sub/run"]);
        assert!(matches!(outputs[3].1, Node::File { mode: 0o755, .. }));
    }

    #[test]
    fn too_large_is_refused_before_a_byte_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let (work, stage) = (dir.path().join("build"), dir.path().join("stage"));
        fs::create_dir_all(work.join("out")).unwrap();
        fs::create_dir_all(&stage).unwrap();
        fs::write(work.join("out/a"), vec![1; 100_000]).unwrap();
        for name in ["b", "c"] {
            File::create(work.join("out").join(name)).unwrap().set_len(MAX_BYTES - 1000).unwrap();
        }
        let files = [("/app".to_owned(), "out".to_owned())].into();
        let error = collect(&work, &files, &Stage::new(&stage)).unwrap_err();
        assert!(matches!(&error, OutputError::TooLarge { path, .. } if path == "out/b"), "{error}");
        assert_eq!(fs::read_dir(&stage).unwrap().count(), 0, "something was copied");
    }

    #[test]
    fn a_declared_link_inside_is_followed() {
        let outputs = take(
            |work| {
                fs::write(work.join("real"), "bytes").unwrap();
                symlink("real", work.join("out")).unwrap();
            },
            "out",
        );
        assert!(matches!(outputs.unwrap()[0].1, Node::File { size: 5, .. }));
    }

    #[test]
    fn refuses_what_leads_out_or_is_no_file() {
        let out = take(|work| symlink("/etc/passwd", work.join("out")).unwrap(), "out");
        assert!(matches!(out, Err(OutputError::Outside(_))), "{out:?}");
        let out = take(|work| symlink("../../..", work.join("out")).unwrap(), "out/etc/passwd");
        assert!(matches!(out, Err(OutputError::Outside(_))), "{out:?}");
        let out = take(|_| {}, "out");
        assert!(matches!(out, Err(OutputError::Missing { .. })), "{out:?}");
        let set_id = |work: &Path| {
            fs::write(work.join("out"), "").unwrap();
            fs::set_permissions(work.join("out"), fs::Permissions::from_mode(0o4755)).unwrap();
        };
        assert!(matches!(take(set_id, "out"), Err(OutputError::SetId(_))));
        let socket = |work: &Path| drop(std::os::unix::net::UnixListener::bind(work.join("out")).unwrap());
        assert!(matches!(take(socket, "out"), Err(OutputError::Kind { kind: "socket", .. })));
        let link = |work: &Path| {
            fs::create_dir(work.join("out")).unwrap();
            symlink("/build/x", work.join("out/l")).unwrap();
        };
        assert!(matches!(take(link, "out"), Err(OutputError::Link { .. })));
    }
}
