//! What caller, helper and first process say to each other: one length-prefixed JSON message each
//! way over a socket that only they hold.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::host::Host;
use crate::spec::{Exit, Outcome, Spec};

/// Largest message, bytes: an environment and argument list of the kernel's usual bound fit.
pub(crate) const MESSAGE_LIMIT: usize = 4 << 20;

/// Most descriptors in one message.
const FDS_LIMIT: usize = 4;

/// Caller → helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Run a program; the flags say which descriptors came along, in this order.
    Run { spec: Box<Spec>, root: bool, listener: bool, stdout: bool, stderr: bool },
    /// Try what this host allows.
    Probe,
}

/// Helper → caller.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Ended(Outcome),
    Failed(Failure),
    Host(Host),
}

/// First process inside → helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Its namespaces and mounts stand; it waits until these ids are mapped and the limits hold.
    Ready {
        uid: u32,
        gid: u32,
    },
    Failed(Failure),
    Ended {
        exit: Exit,
        max_rss_bytes: u64,
    },
}

/// Sends one message, with descriptors on its first byte. Blocks until the peer took it.
pub(crate) fn send<T: Serialize>(socket: impl AsFd, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = serde_json::to_vec(message).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(&body);
    let mut sent = 0;
    while sent < bytes.len() {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_LIMIT))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if sent == 0 && !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("too many descriptors"));
        }
        let part = [io::IoSlice::new(&bytes[sent..])];
        match rustix::net::sendmsg(&socket, &part, &mut control, SendFlags::NOSIGNAL) {
            Ok(count) => sent += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Receives one message and the descriptors that came with it; `None` when the peer is gone.
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut fds = Vec::new();
    let mut prefix = [0; 4];
    if !fill(&socket, &mut prefix, &mut fds)? {
        return Ok(None);
    }
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MESSAGE_LIMIT {
        return Err(io::Error::other("message is too large"));
    }
    let mut body = vec![0; length];
    if !fill(&socket, &mut body, &mut fds)? {
        return Ok(None);
    }
    let message = serde_json::from_slice(&body).map_err(io::Error::other)?;
    Ok(Some((message, fds)))
}

/// Fills the buffer; false when the peer went away before it was full.
fn fill(socket: impl AsFd, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut got = 0;
    while got < buffer.len() {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_LIMIT))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut part = [io::IoSliceMut::new(&mut buffer[got..])];
        match rustix::net::recvmsg(&socket, &mut part, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) if message.bytes == 0 => return Ok(false),
            Ok(message) => {
                got += message.bytes;
                for ancillary in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(received) = ancillary {
                        fds.extend(received);
                    }
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}
