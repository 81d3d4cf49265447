//! The first process inside: sets everything up, gives every right away, starts the program, and
//! takes care of what it leaves behind.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{DumpableBehavior, Pid, Signal, WaitOptions};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use crate::error::{Failure, Stage};
use crate::filter;
use crate::giver::Giver;
use crate::host;
use crate::mounts;
use crate::program;
use crate::raw::{self, Copy};
use crate::spec::{Exit, Fds, Kind, Spec};
use crate::wire::{self, Report};

/// What the helper knew before this process was made.
pub(crate) struct Inside {
    pub(crate) spec: Spec,
    pub(crate) fds: Fds,
    /// To the helper; its other end closes when the helper dies.
    pub(crate) helper: OwnedFd,
    /// Host root made the namespaces; else this process is in a user namespace already.
    pub(crate) privileged: bool,
    /// User and group on the host.
    pub(crate) owner: (u32, u32),
}

/// Runs the program to its end. Every way out of here ends the pid namespace.
pub(crate) fn run(inside: Inside) -> ! {
    let Inside { spec, fds, helper, privileged, owner } = inside;
    let failure = match prepare(&spec, &helper, privileged, owner) {
        Ok(signals) => match raw::clone(0) {
            Ok(Copy::Child) => {
                let failure = program::execute(&spec, fds.stdout.as_ref(), fds.stderr.as_ref());
                let _ = wire::send(&helper, &Report::Failed(failure), &[]);
                raw::exit_now(127)
            }
            Ok(Copy::Parent(main)) => {
                let giver = fds.listener.zip(spec.port).map(|(fd, port)| Giver::new(fd, port));
                drop((fds.stdout, fds.stderr, fds.root));
                attend(main, &helper, &signals, giver)
            }
            Err(errno) => Failure::new(Stage::Process, "main program", errno),
        },
        Err(failure) => failure,
    };
    let _ = wire::send(&helper, &Report::Failed(failure), &[]);
    raw::exit_now(1)
}

/// Tries the steps that hosts forbid, and ends.
pub(crate) fn probe(helper: &OwnedFd, privileged: bool, owner: (u32, u32)) -> ! {
    let tried = || {
        if !privileged {
            map_own(1, 1, owner)?;
        }
        mounts::private()?;
        mounts::fresh_proc().map(drop)
    };
    let report = match tried() {
        Ok(()) => Report::Ready { uid: 1, gid: 1 },
        Err(failure) => Report::Failed(failure),
    };
    let _ = wire::send(helper, &report, &[]);
    raw::exit_now(0)
}

fn prepare(spec: &Spec, helper: &OwnedFd, privileged: bool, owner: (u32, u32)) -> Result<OwnedFd, Failure> {
    die_with_helper(helper)?;
    if !privileged {
        map_own(spec.uid, spec.gid, owner)?;
    }
    if spec.kind == Kind::Build {
        // When the whole machine runs out of memory, a build goes before a service.
        let _ = write("/proc/self/oom_score_adj", "300");
    }
    if spec.port.is_some_and(|port| port < 1024) {
        let file = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
        write(file, "0").map_err(|error| Failure::io(Stage::Network, file, &error))?;
    }
    let tmpfs_owner = if privileged { owner } else { (spec.uid, spec.gid) };
    mounts::build(spec, tmpfs_owner)?;
    names(spec)?;
    network()?;

    if privileged {
        rustix::thread::set_thread_groups(&[]).map_err(|e| Failure::new(Stage::Identity, "groups", e))?;
        raw::unshare_user().map_err(|errno| {
            let hint = host::hint(errno);
            Failure { hint, ..Failure::new(Stage::Namespaces, "user", errno) }
        })?;
    }
    // The helper maps the ids (host root alone can) and answers when every limit holds.
    let gone = |error: &std::io::Error| Failure::io(Stage::Process, "helper", error);
    let ready = Report::Ready { uid: spec.uid, gid: spec.gid };
    wire::send(helper, &ready, &[]).map_err(|error| gone(&error))?;
    if wire::receive::<()>(helper).map_err(|error| gone(&error))?.is_none() {
        raw::exit_now(1);
    }
    become_program_user(spec)?;
    // A change of rights clears what the first call asked for.
    die_with_helper(helper)?;
    filter::install()?;
    raw::child_signals().map_err(|errno| Failure::new(Stage::Process, "signals", errno))
}

/// Ends with the helper, also when it died before the kernel was told.
fn die_with_helper(helper: &OwnedFd) -> Result<(), Failure> {
    let fault = |errno| Failure::new(Stage::Process, "death signal", errno);
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(fault)?;
    let mut poll = [PollFd::new(helper, PollFlags::RDHUP)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut poll, Some(&now)).map_err(fault)?;
    if poll[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR) {
        raw::exit_now(1);
    }
    Ok(())
}

/// Maps the one id an ordinary user may map: the own one.
fn map_own(uid: u32, gid: u32, owner: (u32, u32)) -> Result<(), Failure> {
    let files = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{uid} {} 1", owner.0)),
        ("/proc/self/gid_map", format!("{gid} {} 1", owner.1)),
    ];
    for (file, text) in files {
        write(file, &text).map_err(|error| {
            let failure = Failure::io(Stage::Identity, file, &error);
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::PERM);
            Failure { hint: failure.hint.or_else(|| host::hint(errno)), ..failure }
        })?;
    }
    Ok(())
}

fn names(spec: &Spec) -> Result<(), Failure> {
    rustix::system::sethostname(spec.hostname.as_bytes())
        .map_err(|errno| Failure::new(Stage::Hostname, spec.hostname.clone(), errno))?;
    rustix::system::setdomainname(b"(none)").map_err(|errno| Failure::new(Stage::Hostname, "domain name", errno))
}

fn network() -> Result<(), Failure> {
    let up = || {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        raw::loopback_up(&socket)
    };
    up().map_err(|errno| Failure::new(Stage::Network, "lo", errno))
}

/// Takes on the one mapped user and group and drops every capability for good.
fn become_program_user(spec: &Spec) -> Result<(), Failure> {
    let fault = |object: &str, errno| Failure::new(Stage::Capabilities, object, errno);
    // Even user id 0 inside is nobody special.
    rustix::thread::set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )
    .map_err(|errno| fault("secure bits", errno))?;
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last one this kernel has.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(fault("bounding set", errno)),
        }
    }
    let identity = |errno| Failure::new(Stage::Identity, format!("{}:{}", spec.uid, spec.gid), errno);
    let gid = rustix::fs::Gid::from_raw(spec.gid);
    let uid = rustix::fs::Uid::from_raw(spec.uid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(identity)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(identity)?;
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, none).map_err(|errno| fault("sets", errno))?;
    rustix::thread::set_no_new_privs(true).map_err(|errno| fault("no new privileges", errno))?;
    // Keeps the program, which has the same user, out of this process's memory and descriptors.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|errno| fault("dumpable", errno))
}

/// Reaps, gives sockets, and ends everything when the main program ends.
fn attend(main: Pid, helper: &OwnedFd, signals: &OwnedFd, mut giver: Option<Giver>) -> ! {
    loop {
        let (signalled, helper_gone) = {
            let mut polls = vec![PollFd::new(signals, PollFlags::IN), PollFd::new(helper, PollFlags::RDHUP)];
            let timeout = giver.as_ref().and_then(|giver| giver.polls(&mut polls));
            let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
            // A refusal here (out of memory) is no reason to end the program; look again.
            let _ = rustix::event::poll(&mut polls, timeout.as_ref());
            let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
            (!polls[0].revents().is_empty(), polls[1].revents().intersects(gone))
        };
        if helper_gone {
            raw::exit_now(1);
        }
        if signalled {
            // One record may stand for many ended children: all are asked for below.
            let mut records = [0_u8; 1024];
            let _ = rustix::io::read(signals, &mut records);
        }
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == main {
                let exit = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Exit::Code(code),
                    (None, Some(signal)) => Exit::Signal(signal),
                    (None, None) => continue,
                };
                let max_rss_bytes = raw::largest_child_bytes();
                let _ = wire::send(helper, &Report::Ended { exit, max_rss_bytes }, &[]);
                raw::exit_now(0);
            }
        }
        if let Some(giver) = &mut giver {
            giver.step();
        }
    }
}

fn write(file: &str, text: &str) -> std::io::Result<()> {
    fs::OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}
