//! Unix sockets of any path length, and descriptors sent over them.

use std::io::{self, BufRead as _, BufReader, IoSlice, IoSliceMut, Read, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest line of a control protocol, in bytes.
pub(crate) const MAX_LINE: u64 = 1 << 20;

/// A directory held open so that sockets in it can be named in less than the 108 bytes a socket
/// address has room for.
pub(crate) struct Place {
    dir: OwnedFd,
}

impl Place {
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self { dir: rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())? })
    }

    /// A path to `name` that is valid as long as this value lives.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.dir.as_raw_fd()))
    }

    /// Listens on `name` (mode 0600), in place of whatever was there.
    pub(crate) fn listen(&self, name: &str) -> io::Result<UnixListener> {
        let new = format!("{name}.new");
        match rustix::fs::unlinkat(&self.dir, &new, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        let listener = UnixListener::bind(self.path(&new))?;
        rustix::fs::chmodat(&self.dir, &new, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
        rustix::fs::renameat(&self.dir, &new, &self.dir, name)?;
        Ok(listener)
    }

    /// Connects to `name`.
    pub(crate) fn connect(&self, name: &str) -> io::Result<UnixStream> {
        UnixStream::connect(self.path(name))
    }
}

/// Sends one byte, and a descriptor with it.
pub(crate) fn send_fd(socket: impl AsFd, byte: u8, fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&[byte])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives what [`send_fd`] sent: up to 200 bytes and at most one descriptor.
pub(crate) fn receive_fd(socket: impl AsFd) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 200];
    let message =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut found = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            found = fds.last();
        }
    }
    Ok((bytes[..message.bytes].to_vec(), found))
}

/// Reads the answer of a socket giver: the connected TCP socket, or why there is none.
pub(crate) fn given(bytes: &[u8], fd: Option<OwnedFd>) -> io::Result<OwnedFd> {
    match (bytes.first(), fd) {
        (Some(b'+'), Some(fd)) => Ok(fd),
        (Some(b'-'), _) => {
            let text = String::from_utf8_lossy(&bytes[1..]).trim().to_owned();
            Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("the program refused the connection: {text}")))
        }
        (None, _) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the instance went away")),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the instance gave no socket")),
    }
}

/// Whether an answer is missing because who was asked ended meanwhile.
pub(crate) fn went_away(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// Asks one question over a control socket and reads the answer, both one line of JSON.
pub(crate) fn ask<Q: Serialize, A: DeserializeOwned>(
    socket: &UnixStream,
    question: &Q,
    wait: Duration,
) -> io::Result<A> {
    socket.set_read_timeout(Some(wait))?;
    socket.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut line = serde_json::to_vec(question).map_err(io::Error::other)?;
    line.push(b'\n');
    (&mut &*socket).write_all(&line)?;
    read_line(&mut BufReader::with_capacity(1, socket))
}

/// Reads one line of JSON of at most [`MAX_LINE`] bytes.
pub(crate) fn read_line<A: DeserializeOwned>(reader: &mut BufReader<impl Read>) -> io::Result<A> {
    let mut line = Vec::new();
    reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other side went away or wrote too long a line"));
    }
    serde_json::from_slice(&line).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_and_descriptors() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("x".repeat(150));
        std::fs::create_dir(&dir).unwrap();
        let place = Place::open(&dir).unwrap();
        let listener = place.listen("a.sock").unwrap();
        drop(place.listen("b.sock").unwrap());
        let again = place.listen("b.sock").unwrap();
        let client = place.connect("a.sock").unwrap();
        let (server, _) = listener.accept().unwrap();
        send_fd(&server, b'+', again.as_fd()).unwrap();
        let (bytes, fd) = receive_fd(&client).unwrap();
        let given = UnixListener::from(given(&bytes, fd).unwrap());
        place.connect("b.sock").unwrap();
        given.accept().unwrap();
        drop(server);
        let (bytes, fd) = receive_fd(&client).unwrap();
        assert!(super::given(&bytes, fd).is_err());
    }
}
