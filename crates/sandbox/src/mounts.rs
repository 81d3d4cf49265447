//! The file system a program sees, put together by the first process inside, in its own mount
//! namespace and with rights it drops afterwards.
//!
//! Mounts are made detached, get their attributes, and are attached to a directory opened below the
//! new root without following a symbolic link: a hostile tree cannot send a mount elsewhere.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::error::{Failure, Stage};
use crate::host;
use crate::raw;
use crate::spec::{Access, Mount, Source, Spec};

/// Size of `/tmp` when nothing else bounds it, bytes.
const TMP_BYTES: u64 = 1 << 30;

/// Size of `/dev/shm`, bytes.
const SHM_BYTES: u64 = 64 << 20;

/// Devices taken from the host, by name. There is no terminal.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

const DEVICE_LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Files of `/proc` that tell about the host or reach into it, shown empty.
const MASKED: [&str; 7] = ["kcore", "keys", "key-users", "timer_list", "sched_debug", "latency_stats", "sysrq-trigger"];

/// Builds the tree from the working directory, which is the new root, and makes it `/`.
/// `owner` is the program's user and group in the numbers of the namespace the caller is in.
pub(crate) fn build(spec: &Spec, owner: (u32, u32)) -> Result<(), Failure> {
    private()?;
    let root = clone_of(c"", OpenTreeFlags::AT_EMPTY_PATH).map_err(fault("/"))?;
    raw::mount_attributes(
        &root,
        true,
        MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )
    .map_err(fault("/"))?;
    rustix::mount::move_mount(&root, c"", CWD, c"", empty_paths()).map_err(fault("/"))?;
    rustix::process::fchdir(&root).map_err(fault("/"))?;

    proc(&root)?;
    dev(&root, owner)?;
    let tmp = spec.mounts.iter().any(|mount| target(mount) == "/tmp");
    if !tmp {
        let size = spec.limits.memory_bytes.map_or(TMP_BYTES, |bytes| bytes.min(TMP_BYTES));
        let mount = tmpfs(size, 0o1777, owner, "/tmp")?;
        attach(&mount, &root, "/tmp")?;
    }
    for mount in &spec.mounts {
        add(&root, mount, owner)?;
    }

    let switch = |errno| Failure::new(Stage::Root, "/", errno);
    rustix::process::pivot_root(c".", c".").map_err(switch)?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).map_err(switch)?;
    rustix::process::chdir(c"/").map_err(switch)
}

/// Cuts this namespace off, so that no mount made here shows on the host.
pub(crate) fn private() -> Result<(), Failure> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", flags).map_err(fault("propagation"))
}

/// A detached `/proc` of the own pid namespace, read-only, that hides other users' processes, the
/// first process among them.
pub(crate) fn fresh_proc() -> Result<OwnedFd, Failure> {
    let make = || {
        let context = rustix::mount::fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&context, c"hidepid", c"2")?;
        rustix::mount::fsconfig_create(&context)?;
        let attributes = hardened() | MountAttrFlags::MOUNT_ATTR_RDONLY;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    make().map_err(fault("/proc"))
}

fn proc(root: &OwnedFd) -> Result<(), Failure> {
    let mount = fresh_proc()?;
    attach(&mount, root, "/proc")?;
    for name in MASKED {
        let path = format!("/proc/{name}");
        match open(mount.as_fd(), name) {
            Ok(place) => {
                let null = device("null").map_err(fault(&path))?;
                rustix::mount::move_mount(&null, c"", &place, c"", empty_paths()).map_err(fault(&path))?;
            }
            // Which of these exist is up to the kernel's configuration.
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(fault(&path)(errno)),
        }
    }
    Ok(())
}

fn dev(root: &OwnedFd, owner: (u32, u32)) -> Result<(), Failure> {
    let mount = tmpfs(64 << 10, 0o755, owner, "/dev")?;
    for name in DEVICES {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&mount, name, flags, Mode::from_raw_mode(0o666)).map_err(fault(&format!("/dev/{name}")))?;
    }
    rustix::fs::mkdirat(&mount, c"shm", Mode::from_raw_mode(0o755)).map_err(fault("/dev/shm"))?;
    for (name, to) in DEVICE_LINKS {
        rustix::fs::symlinkat(to, &mount, name).map_err(fault(&format!("/dev/{name}")))?;
    }
    attach(&mount, root, "/dev")?;
    for name in DEVICES {
        let path = format!("/dev/{name}");
        let device = device(name).map_err(fault(&path))?;
        let place = open(mount.as_fd(), name).map_err(fault(&path))?;
        rustix::mount::move_mount(&device, c"", &place, c"", empty_paths()).map_err(fault(&path))?;
    }
    let shm = tmpfs(SHM_BYTES, 0o1777, owner, "/dev/shm")?;
    attach(&shm, root, "/dev/shm")?;
    raw::mount_attributes(&mount, false, MountAttrFlags::MOUNT_ATTR_RDONLY).map_err(fault("/dev"))
}

/// A device of the host, detached.
fn device(name: &str) -> Result<OwnedFd, Errno> {
    let mount = clone_of(format!("/dev/{name}"), OpenTreeFlags::empty())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    raw::mount_attributes(&mount, false, attributes)?;
    Ok(mount)
}

fn add(root: &OwnedFd, mount: &Mount, owner: (u32, u32)) -> Result<(), Failure> {
    match mount {
        Mount::Tmpfs { target, size_bytes, mode } => attach(&tmpfs(*size_bytes, *mode, owner, target)?, root, target),
        Mount::Bind { source: Source::Path(source), target, access } => {
            let clone = clone_of(source.as_path(), OpenTreeFlags::empty())
                .map_err(|errno| Failure::new(Stage::Mount, format!("{target} from {}", source.display()), errno))?;
            let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
            if *access == Access::ReadOnly {
                attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
            }
            raw::mount_attributes(&clone, true, attributes).map_err(fault(target))?;
            attach(&clone, root, target)
        }
    }
}

fn target(mount: &Mount) -> &str {
    match mount {
        Mount::Bind { target, .. } | Mount::Tmpfs { target, .. } => target,
    }
}

fn tmpfs(size: u64, mode: u32, owner: (u32, u32), target: &str) -> Result<OwnedFd, Failure> {
    let make = || {
        let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let set = |key: &str, value: String| rustix::mount::fsconfig_set_string(&context, key, value);
        set("size", size.to_string())?;
        // One inode for each 4 KiB: empty files cost kernel memory, too.
        set("nr_inodes", (size / 4096).clamp(64, 1 << 20).to_string())?;
        set("mode", format!("{:o}", mode & 0o1777))?;
        set("uid", owner.0.to_string())?;
        set("gid", owner.1.to_string())?;
        rustix::mount::fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    make().map_err(fault(target))
}

/// A detached copy of what is mounted at a path and below it.
fn clone_of(path: impl rustix::path::Arg, flags: OpenTreeFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(CWD, path, flags)
}

fn attach(mount: &OwnedFd, root: &OwnedFd, target: &str) -> Result<(), Failure> {
    let relative = target.trim_matches('/');
    if !target.starts_with('/') || relative.is_empty() {
        return Err(Failure::text(Stage::Mount, target, "the target must be a path below `/`"));
    }
    let place = open(root.as_fd(), relative).map_err(|errno| {
        let mut failure = Failure::new(Stage::Mount, target, errno);
        failure.hint = match errno {
            Errno::NOENT => Some("the mount point must exist in the root".to_owned()),
            Errno::LOOP => Some("the mount point must not lead through a symbolic link".to_owned()),
            _ => None,
        };
        failure
    })?;
    rustix::mount::move_mount(mount, c"", &place, c"", empty_paths()).map_err(fault(target))
}

/// Opens a place below a directory, through mounts but through no symbolic link.
fn open(below: BorrowedFd<'_>, relative: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(
        below,
        relative,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

fn empty_paths() -> MoveMountFlags {
    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH
}

fn hardened() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

fn fault(object: &str) -> impl Fn(Errno) -> Failure + use<> {
    let object = object.to_owned();
    move |errno| {
        let mut failure = Failure::new(Stage::Mount, object.clone(), errno);
        if matches!(errno, Errno::PERM | Errno::ACCESS | Errno::NOSYS) {
            failure.hint = host::hint(errno);
        }
        failure
    }
}
