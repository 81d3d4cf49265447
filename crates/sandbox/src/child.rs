//! The caller's side: start the helper, wait for it, end it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::fs::FileType;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};

use crate::error::{SandboxError, Stage};
use crate::host::Host;
use crate::spec::{Fds, Outcome, Spec};
use crate::wire::{self, MESSAGE_LIMIT, Reply, Request};

/// Starts sandboxes through a helper executable that calls [`crate::entry`].
#[derive(Debug, Clone)]
pub struct Sandbox {
    exe: PathBuf,
}

impl Sandbox {
    /// `exe` answers the argument `__sandbox` with [`crate::entry`].
    pub fn new(exe: PathBuf) -> Self {
        Self { exe }
    }

    /// Starts a program and returns once its helper has the specification. Faults of the set-up
    /// and of the execution come from [`Child::wait`]. Callable from any thread; blocks shortly.
    pub fn spawn(&self, spec: &Spec, fds: Fds) -> Result<Child, SandboxError> {
        check(spec, &fds)?;
        let request = Request::Run {
            spec: Box::new(spec.clone()),
            root: fds.root.is_some(),
            listener: fds.listener.is_some(),
            stdout: fds.stdout.is_some(),
            stderr: fds.stderr.is_some(),
        };
        for output in [&fds.stdout, &fds.stderr].into_iter().flatten() {
            own(output);
        }
        let fds: Vec<OwnedFd> = [fds.root, fds.listener, fds.stdout, fds.stderr].into_iter().flatten().collect();
        self.start(&request, &fds)
    }

    /// Tries what this host allows, by making namespaces and mounts in a helper. Blocks shortly.
    pub fn capabilities(&self) -> Result<Host, SandboxError> {
        let child = self.start(&Request::Probe, &[])?;
        match child.reply()? {
            Reply::Host(host) => Ok(host),
            Reply::Failed(failure) => Err(SandboxError::Setup(failure)),
            Reply::Ended(_) => Err(SandboxError::Connection(io::Error::other("unexpected reply"))),
        }
    }

    fn start(&self, request: &Request, fds: &[OwnedFd]) -> Result<Child, SandboxError> {
        let start = |source| SandboxError::Start { exe: self.exe.clone(), source };
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(|errno| start(errno.into()))?;
        // The socket travels as standard input: nothing has to be made inheritable in a program
        // with other threads that start processes, too.
        let process = Command::new(&self.exe)
            .arg("__sandbox")
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()
            .map_err(start)?;
        let child = Child { pid: process.id(), control: ours, process: Mutex::new(State::Running(process)) };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        // A helper that went away says why through its exit status, in `wait`.
        match wire::send(&child.control, request, &fds) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(SandboxError::Connection(error)),
            _ => Ok(child),
        }
    }
}

/// Gives a pipe to the sandboxed user, so that a program may open `/dev/stdout` anew as daemons
/// with a log file setting do. Anything but a pipe keeps its owner. Without it such a program
/// says so itself: nothing is lost that was promised.
fn own(output: &OwnedFd) {
    let pipe = rustix::fs::fstat(output).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    if pipe && crate::host::privileged() {
        let (uid, gid) = crate::host::owner();
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        let _ = rustix::fs::fchown(output, Some(uid), Some(gid));
    }
}

/// Faults a caller can see before anything is started.
fn check(spec: &Spec, fds: &Fds) -> Result<(), SandboxError> {
    let fault = |text: &str| Err(SandboxError::Spec(text.to_owned()));
    let Some(program) = spec.argv.first() else {
        return fault("argv is empty");
    };
    if !program.starts_with('/') {
        return fault("argv[0] is not an absolute path");
    }
    if !spec.cwd.starts_with('/') {
        return fault("cwd is not an absolute path");
    }
    if spec.port.is_some() != fds.listener.is_some() {
        return fault("port and listener must be given together");
    }
    if spec.cpus == Some(0) {
        return fault("cpus is 0");
    }
    // (uid_t)-1 means "unchanged" to the kernel.
    if spec.uid == u32::MAX || spec.gid == u32::MAX {
        return fault("uid or gid is not an id");
    }
    if spec.hostname.is_empty() || spec.hostname.len() > 64 {
        return fault("hostname must have 1 to 64 bytes");
    }
    let strings = spec.argv.iter().chain(spec.env.iter().flat_map(|(name, value)| [name, value]));
    if strings.chain([&spec.cwd, &spec.hostname]).any(|text| text.contains('\0')) {
        return fault("a string holds a zero byte");
    }
    if spec.env.iter().any(|(name, _)| name.is_empty() || name.contains('=')) {
        return fault("a name in env is empty or holds `=`");
    }
    let bytes = serde_json::to_vec(spec).map_err(|error| SandboxError::Spec(error.to_string()))?.len();
    if bytes + 256 > MESSAGE_LIMIT {
        return Err(SandboxError::TooLarge { bytes, limit: MESSAGE_LIMIT - 256 });
    }
    Ok(())
}

/// A running sandbox. Dropping it kills everything in it and waits for that.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    control: OwnedFd,
    process: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Running(std::process::Child),
    Ended,
}

impl Child {
    /// Process id of the helper, which lives as long as the sandbox. Killing it kills all.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Blocks until the program and every process it left behind are gone. A second call fails
    /// with [`SandboxError::Lost`]. May be called while another thread calls [`Child::kill`].
    pub fn wait(&self) -> Result<Outcome, SandboxError> {
        match self.reply()? {
            Reply::Ended(outcome) => Ok(outcome),
            Reply::Failed(failure) if failure.stage == Stage::Exec => {
                Err(SandboxError::Exec { path: failure.object, source: io::Error::from_raw_os_error(failure.errno) })
            }
            Reply::Failed(failure) => Err(SandboxError::Setup(failure)),
            Reply::Host(_) => Err(SandboxError::Connection(io::Error::other("unexpected reply"))),
        }
    }

    /// Kills everything in the sandbox; [`Child::wait`] then reports signal 9. Does not block.
    /// Harmless when all is over.
    pub fn kill(&self) {
        // The helper takes the end of its input as the order; it fails only when all is over.
        let _ = rustix::net::shutdown(&self.control, Shutdown::Write);
    }

    fn reply(&self) -> Result<Reply, SandboxError> {
        let mut state = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = wire::receive::<Reply>(&self.control);
        let status = match std::mem::replace(&mut *state, State::Ended) {
            State::Running(mut process) => match process.wait() {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            },
            State::Ended => "already waited for".to_owned(),
        };
        match reply {
            Ok(Some((reply, _))) => Ok(reply),
            Ok(None) => Err(SandboxError::Lost { pid: self.pid, status }),
            Err(error) => Err(SandboxError::Connection(error)),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        let state = self.process.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let State::Running(process) = state {
            let _ = process.wait();
        }
    }
}
