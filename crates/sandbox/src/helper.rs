//! The helper process, outside: makes namespaces and limits, watches clock and caller, and tells
//! how it ended.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, WaitOptions};

use crate::cgroup::{self, Cgroup};
use crate::error::{Failure, Stage};
use crate::host::{self, Host};
use crate::inside::{self, Inside};
use crate::program;
use crate::raw::{self, Copy};
use crate::spec::{Exit, Fds, Limit, Limits, Outcome, Spec};
use crate::wire::{self, Reply, Report, Request};

/// What the executable given to [`crate::Sandbox::new`] calls for its argument `__sandbox`, before
/// it starts a thread or opens anything. Exits with 0 when a result was told, with 70 when not.
pub fn entry() -> ! {
    std::process::exit(if serve().is_ok() { 0 } else { 70 })
}

fn serve() -> io::Result<()> {
    // What the caller's process left open by mistake goes no further.
    raw::close_from(3)?;
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    drop(null);
    // Keys typed at the caller's terminal are not for what runs here.
    let _ = rustix::process::setsid();
    let Some((request, received)) = wire::receive::<Request>(&control)? else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let reply = match request {
        Request::Probe => Reply::Host(probe()),
        Request::Run { spec, root, listener, stdout, stderr } => {
            let mut received = received.into_iter();
            let mut next = |given: bool| {
                if !given {
                    return Ok(None);
                }
                received.next().map(Some).ok_or(io::ErrorKind::UnexpectedEof)
            };
            let fds =
                Fds { root: next(root)?, listener: next(listener)?, stdout: next(stdout)?, stderr: next(stderr)? };
            match run(*spec, fds, &control) {
                Ok(outcome) => Reply::Ended(outcome),
                Err(failure) => Reply::Failed(failure),
            }
        }
    };
    wire::send(&control, &reply, &[])
}

fn run(mut spec: Spec, fds: Fds, control: &OwnedFd) -> Result<Outcome, Failure> {
    let started = Instant::now();
    let privileged = host::privileged();
    let owner = host::owner();
    let limits = spec.limits.clone();
    // The new root travels as working directory: making a mount namespace moves that into the
    // copy, so the first process mounts this very directory and looks nothing up again.
    match &fds.root {
        Some(root) => rustix::process::fchdir(root),
        None => rustix::process::chdir(&spec.root),
    }
    .map_err(|errno| Failure::new(Stage::Root, spec.root.display().to_string(), errno))?;

    let cgroup = (limits.memory_bytes.is_some() || limits.processes.is_some())
        .then(|| Cgroup::make(Path::new(cgroup::BASE), &limits, privileged));
    // Without one, what can be limited otherwise is; `Host` says so beforehand.
    let cgroup = cgroup.and_then(Result::ok);
    if cgroup.is_some() {
        // The cgroup counts what it refuses; a limit of the user at the same number would not.
        spec.limits.processes = None;
    }
    let result = first_process(spec, fds, control, privileged, owner).and_then(|(pid, helper)| {
        let mut watch = Watch {
            pid,
            helper: &helper,
            control,
            cgroup: cgroup.as_ref(),
            deadline: limits.wall_ms.map(|ms| started + Duration::from_millis(ms)),
            killed: None,
        };
        let result = watch.follow(privileged, owner);
        if result.is_err() {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        // Returns when every process of the pid namespace is gone.
        let status = wait(pid);
        let killed = watch.killed;
        let (exit, max_rss_bytes) = match result? {
            Some(ended) => ended,
            None if killed.is_some() => (Exit::Signal(9), 0),
            // Shot with the rest of its group.
            None if struck(cgroup.as_ref()).is_some() => (Exit::Signal(9), 0),
            None => {
                let text = format!("ended with no result ({status})");
                return Err(Failure::text(Stage::Process, "first process", text));
            }
        };
        let limit = match killed {
            Some(Killed::Wall) => Some(Limit::Wall),
            Some(Killed::Ordered) => None,
            None => struck(cgroup.as_ref()).or_else(|| resource_limit(exit, &limits)),
        };
        let wall_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(Outcome { exit, limit, wall_ms, max_rss_bytes })
    });
    if let Some(cgroup) = cgroup {
        cgroup.remove();
    }
    result
}

/// Starts the first process inside and returns it with the socket to it.
fn first_process(
    spec: Spec,
    fds: Fds,
    control: &OwnedFd,
    privileged: bool,
    owner: (u32, u32),
) -> Result<(Pid, OwnedFd), Failure> {
    let (ours, theirs) = pair()?;
    match split(privileged)? {
        Copy::Parent(pid) => Ok((pid, ours)),
        Copy::Child => {
            drop(ours);
            // Only the helper speaks with the caller.
            raw::forsake(control);
            inside::run(Inside { spec, fds, helper: theirs, privileged, owner })
        }
    }
}

fn pair() -> Result<(OwnedFd, OwnedFd), Failure> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| Failure::new(Stage::Process, "socket pair", errno))
}

fn split(privileged: bool) -> Result<Copy, Failure> {
    let user = if privileged { 0 } else { raw::USER_NAMESPACE };
    raw::clone(raw::NAMESPACES | user).map_err(|errno| {
        let object = if privileged { "mount, pid, net, ipc, uts" } else { "user, mount, pid, net, ipc, uts" };
        Failure { hint: host::hint(errno), ..Failure::new(Stage::Namespaces, object, errno) }
    })
}

/// Why the helper killed what it watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    Wall,
    Ordered,
}

struct Watch<'a> {
    pid: Pid,
    helper: &'a OwnedFd,
    control: &'a OwnedFd,
    cgroup: Option<&'a Cgroup>,
    deadline: Option<Instant>,
    killed: Option<Killed>,
}

impl Watch<'_> {
    /// Follows the first process to its last report; `None` when it went without one.
    fn follow(&mut self, privileged: bool, owner: (u32, u32)) -> Result<Option<(Exit, u64)>, Failure> {
        if let Some(cgroup) = self.cgroup {
            // While it mounts: it waits before it starts anything.
            cgroup.add(self.pid)?;
        }
        loop {
            match self.report()? {
                Some(Report::Ready { uid, gid }) => {
                    if privileged {
                        map(self.pid, (uid, gid), owner)?;
                    }
                    // When it is gone already, the next report says so.
                    let _ = wire::send(self.helper, &(), &[]);
                }
                Some(Report::Failed(failure)) => return Err(failure),
                Some(Report::Ended { exit, max_rss_bytes }) => {
                    return Ok(Some((exit, max_rss_bytes)));
                }
                None => return Ok(None),
            }
        }
    }

    /// The next report, or the end of it; kills on the way when time or caller say so.
    fn report(&mut self) -> Result<Option<Report>, Failure> {
        let fault = |errno| Failure::new(Stage::Process, "first process", errno);
        loop {
            let (reported, ordered) = {
                let mut polls = vec![PollFd::new(self.helper, PollFlags::IN)];
                if self.killed.is_none() {
                    polls.push(PollFd::new(self.control, PollFlags::IN));
                }
                let left = self.deadline.filter(|_| self.killed.is_none());
                let left = left.map(|at| at.saturating_duration_since(Instant::now()));
                let left = left.and_then(|left| left.try_into().ok());
                match rustix::event::poll(&mut polls, left.as_ref()) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(fault(errno)),
                }
                let ordered = polls.get(1).is_some_and(|poll| !poll.revents().is_empty());
                (!polls[0].revents().is_empty(), ordered)
            };
            if reported {
                let report = wire::receive::<Report>(self.helper)
                    .map_err(|error| Failure::io(Stage::Process, "first process", &error))?;
                return Ok(report.map(|(report, _)| report));
            }
            let late = self.deadline.is_some_and(|at| at <= Instant::now());
            if self.killed.is_none() && (ordered || late) {
                self.killed = Some(if ordered { Killed::Ordered } else { Killed::Wall });
                rustix::process::kill_process(self.pid, Signal::KILL).map_err(fault)?;
            }
        }
    }
}

/// Gives the one id inside its meaning on the host, which host root alone can.
fn map(pid: Pid, inside: (u32, u32), owner: (u32, u32)) -> Result<(), Failure> {
    let dir = format!("/proc/{}", pid.as_raw_nonzero());
    let files = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{} {} 1", inside.0, owner.0)),
        ("gid_map", format!("{} {} 1", inside.1, owner.1)),
    ];
    for (name, text) in files {
        let file = format!("{dir}/{name}");
        std::fs::write(&file, text).map_err(|error| Failure::io(Stage::Identity, file, &error))?;
    }
    Ok(())
}

fn wait(pid: Pid) -> String {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                return match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => format!("status {code}"),
                    (_, Some(signal)) => format!("signal {signal}"),
                    _ => continue,
                };
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(errno) => return errno.to_string(),
        }
    }
}

fn struck(cgroup: Option<&Cgroup>) -> Option<Limit> {
    cgroup.and_then(Cgroup::struck)
}

/// What a limit of the kernel on one process looks like from outside: its signal, or the status a
/// shell makes of that signal.
fn resource_limit(exit: Exit, limits: &Limits) -> Option<Limit> {
    let signal = match exit {
        Exit::Signal(signal) => signal,
        Exit::Code(code) => code - 128,
    };
    if limits.cpu_seconds.is_some() && signal == Signal::XCPU.as_raw() {
        return Some(Limit::Cpu);
    }
    (limits.file_bytes.is_some() && signal == Signal::XFSZ.as_raw()).then_some(Limit::FileSize)
}

/// Tries what this host allows.
fn probe() -> Host {
    let root = host::privileged();
    let limits = |memory_bytes, processes| Limits { memory_bytes, processes, ..Limits::default() };
    let try_limits = |limits| Cgroup::make(Path::new(cgroup::BASE), &limits, root).map(|group| group.remove());
    let memory = try_limits(limits(Some(64 << 20), None));
    let processes = try_limits(limits(None, Some(64)));
    let pids_limit = processes.is_ok() || program::counts_per_namespace();
    let reason = memory.as_ref().err().or(if pids_limit { None } else { processes.as_ref().err() });
    Host {
        root,
        user_namespaces: try_namespaces(root, host::owner()).map_err(|failure| failure.to_string()),
        memory_limit: memory.is_ok(),
        pids_limit,
        limits_reason: reason.map(|error| {
            format!(
                "{error}; run as root with the memory and pids cgroup controllers, or in a service with `Delegate=yes`"
            )
        }),
    }
}

fn try_namespaces(privileged: bool, owner: (u32, u32)) -> Result<(), Failure> {
    let (ours, theirs) = pair()?;
    match split(privileged)? {
        Copy::Child => inside::probe(&theirs, privileged, owner),
        Copy::Parent(pid) => {
            drop(theirs);
            let report = wire::receive::<Report>(&ours);
            let status = wait(pid);
            match report {
                Ok(Some((Report::Ready { .. }, _))) => Ok(()),
                Ok(Some((Report::Failed(failure), _))) => Err(failure),
                _ => Err(Failure::text(Stage::Process, "first process", format!("ended with {status}"))),
            }
        }
    }
}
