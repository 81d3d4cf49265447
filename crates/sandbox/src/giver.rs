//! Gives connections to the program's port to those who ask on a unix socket of the host: the way
//! in for a front, when there is no network between it and the program.
//!
//! Never waits for a slow client, and holds a bounded number of unanswered ones.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};

/// Most connections under way to the program at one time; others wait in the listener's queue.
const PENDING_LIMIT: usize = 256;

/// How long the program may take to take a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// Rest after the host refused to accept, which it does when descriptors or memory run out.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves one listener.
pub(crate) struct Giver {
    listener: OwnedFd,
    address: SocketAddrV4,
    pending: Vec<Pending>,
    paused_until: Option<Instant>,
}

struct Pending {
    client: OwnedFd,
    socket: OwnedFd,
    deadline: Instant,
}

impl Giver {
    pub(crate) fn new(listener: OwnedFd, port: u16) -> Self {
        // Another process may accept on the same socket: never block on one it took.
        let _ = rustix::io::ioctl_fionbio(&listener, true);
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        Self { listener, address, pending: Vec::new(), paused_until: None }
    }

    /// Adds what to wait for, and returns how long at most.
    pub(crate) fn polls<'a>(&'a self, polls: &mut Vec<PollFd<'a>>) -> Option<Duration> {
        let accepts = self.pending.len() < PENDING_LIMIT && self.paused_until.is_none();
        if accepts {
            polls.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        let mut next = self.paused_until;
        for pending in &self.pending {
            polls.push(PollFd::new(&pending.socket, PollFlags::OUT));
            next = Some(next.map_or(pending.deadline, |next| next.min(pending.deadline)));
        }
        next.map(|next| next.saturating_duration_since(Instant::now()))
    }

    /// Does what can be done now.
    pub(crate) fn step(&mut self) {
        let now = Instant::now();
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
        }
        self.accept(now);
        let pending = std::mem::take(&mut self.pending);
        self.pending = pending.into_iter().filter_map(|pending| pending.step(now)).collect();
    }

    fn accept(&mut self, now: Instant) {
        while self.paused_until.is_none() && self.pending.len() < PENDING_LIMIT {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::accept_with(&self.listener, flags) {
                Ok(client) => self.connect(client, now),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.paused_until = Some(now + PAUSE),
            }
        }
    }

    fn connect(&mut self, client: OwnedFd, now: Instant) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
        let result = socket.and_then(|socket| match rustix::net::connect(&socket, &self.address) {
            Ok(()) => Ok((socket, true)),
            Err(Errno::INPROGRESS) => Ok((socket, false)),
            Err(errno) => Err(errno),
        });
        match result {
            Ok((socket, true)) => give(&client, &socket),
            Ok((socket, false)) => {
                self.pending.push(Pending { client, socket, deadline: now + CONNECT_WAIT });
            }
            Err(errno) => refuse(&client, errno),
        }
    }
}

impl Pending {
    /// Answers when the outcome is known; else stays.
    fn step(self, now: Instant) -> Option<Self> {
        let ready = {
            let mut polls = [PollFd::new(&self.socket, PollFlags::OUT)];
            let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut polls, Some(&at_once)).is_ok_and(|count| count > 0)
        };
        if ready {
            match rustix::net::sockopt::socket_error(&self.socket) {
                Ok(Ok(())) => give(&self.client, &self.socket),
                Ok(Err(errno)) | Err(errno) => refuse(&self.client, errno),
            }
            return None;
        }
        if now >= self.deadline {
            refuse(&self.client, Errno::TIMEDOUT);
            return None;
        }
        Some(self)
    }
}

/// The client's queue is empty, so one message fits; a client that went away is its own fault.
fn give(client: &OwnedFd, socket: &OwnedFd) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [socket.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let _ = rustix::net::sendmsg(client, &[std::io::IoSlice::new(b"+")], &mut control, flags);
}

fn refuse(client: &OwnedFd, errno: Errno) {
    let reason = std::io::Error::from_raw_os_error(errno.raw_os_error());
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let _ = rustix::net::send(client, format!("-{reason}").as_bytes(), flags);
}
