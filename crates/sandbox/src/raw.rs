//! The system calls that have no safe binding. The only unsafe code of the project.
//!
//! Everything here is called from the helper, a process with one thread, so that a copy made by
//! `clone` holds no lock of a thread that does not exist in it.
#![expect(unsafe_code, reason = "process creation, signals and mount attributes need it")]

use std::ffi::{CString, c_char, c_int, c_long, c_ulong};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use rustix::process::Pid;

/// Which side of a process copy this is.
pub(crate) enum Copy {
    Parent(Pid),
    Child,
}

/// Namespaces made together with the first process inside.
pub(crate) const NAMESPACES: c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// The user namespace.
pub(crate) const USER_NAMESPACE: c_int = libc::CLONE_NEWUSER;

/// `fork` into new namespaces.
pub(crate) fn clone(namespaces: c_int) -> Result<Copy, Errno> {
    let flags = c_long::from(namespaces | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and without a stack this is `fork`: the child runs on its own copy
    // of this stack. The process has one thread, so no lock is left held in the child.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    let pid = checked(result)?;
    Ok(match i32::try_from(pid).ok().and_then(Pid::from_raw) {
        Some(pid) => Copy::Parent(pid),
        None => Copy::Child,
    })
}

/// Moves this process into a new user namespace, in which it has every capability.
pub(crate) fn unshare_user() -> Result<(), Errno> {
    // SAFETY: takes a number and touches no memory; descriptors stay shared with nobody.
    checked(c_long::from(unsafe { libc::unshare(libc::CLONE_NEWUSER) })).map(drop)
}

/// Closes a descriptor that a copy of this process inherited and that its owner, left behind on a
/// stack this copy never returns to, will not close in it.
pub(crate) fn forsake(fd: &OwnedFd) {
    // SAFETY: called right after `clone` in the child, which ends by `exit_now` or `execute`: the
    // owner's destructor never runs in this process, and nothing here uses the descriptor again.
    unsafe { libc::close(fd.as_raw_fd()) };
}

/// Ends this process without running exit handlers, which belong to the helper it was copied from.
pub(crate) fn exit_now(status: c_int) -> ! {
    // SAFETY: does not return and touches no memory.
    unsafe { libc::_exit(status) }
}

/// Replaces the program. Returns only the error.
pub(crate) fn execute(path: &CString, argv: &[CString], env: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with a null pointer, and the strings they point to outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    last()
}

/// Adds attributes to the mount at the descriptor, and to all below it when `recursive`.
pub(crate) fn mount_attributes(mount: impl AsFd, recursive: bool, set: MountAttrFlags) -> Result<(), Errno> {
    /// `struct mount_attr` of linux/mount.h, version 0.
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let attributes = Attributes { set: u64::from(set.bits()), clear: 0, propagation: 0, user_namespace: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string; the structure has the layout and the size that is
    // passed, and outlives the call, which only reads it.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    })
    .map(drop)
}

/// Closes every descriptor from `first` on.
///
/// For the start of the helper alone, when nothing owns a descriptor yet.
pub(crate) fn close_from(first: u32) -> Result<(), Errno> {
    close_range(first, 0)
}

/// Marks every descriptor from `first` on to be closed by [`execute`].
pub(crate) fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    close_range(first, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, flags: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: takes numbers. No owned descriptor is closed under its owner: `close_from` runs
    // before there is one, and marking closes nothing until the program is replaced.
    checked(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) }).map(drop)
}

/// Blocks SIGCHLD and returns a descriptor that becomes readable when one is pending.
pub(crate) fn child_signals() -> Result<OwnedFd, Errno> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initializes the set before it is read; the old mask is not asked for;
    // the descriptor returned is new and owned by nobody else.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        checked(c_long::from(libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut())))?;
        let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        checked(c_long::from(fd))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Every signal as a fresh program expects it: default action, none blocked.
pub(crate) fn reset_signals() {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: SIG_DFL is no function of ours, and `sigemptyset` initializes the set before it is
    // read. Refusals (SIGKILL, SIGSTOP and the two of libc) leave those as they are.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// Sets the interface `lo` of the own network namespace up; the kernel adds its addresses.
pub(crate) fn loopback_up(socket: impl AsFd) -> Result<(), Errno> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `ifreq` is plain data for which zero is valid; the name stays zero-terminated; the
    // union is read and written as the flags that these two calls define; it outlives both calls.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = from.cast_signed() as c_char;
        }
        checked(c_long::from(libc::ioctl(fd, libc::SIOCGIFFLAGS as _, &raw mut request)))?;
        request.ifr_ifru.ifru_flags |= 1; // IFF_UP, which libc has as another type
        checked(c_long::from(libc::ioctl(fd, libc::SIOCSIFFLAGS as _, &raw const request)))?;
    }
    Ok(())
}

/// Turns address randomization off for programs executed from here on.
pub(crate) fn fixed_addresses() -> Result<(), Errno> {
    // SAFETY: takes a number and touches no memory.
    let result = unsafe { libc::personality(libc::ADDR_NO_RANDOMIZE as c_ulong) };
    checked(c_long::from(result)).map(drop)
}

/// Largest resident set of any one child waited for, and of theirs, bytes.
pub(crate) fn largest_child_bytes() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `rusage` is plain data for which zero is valid, and the call only writes to it.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    u64::try_from(usage.ru_maxrss).unwrap_or(0).saturating_mul(1024)
}

fn checked(result: c_long) -> Result<c_long, Errno> {
    if result < 0 { Err(last()) } else { Ok(result) }
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}
