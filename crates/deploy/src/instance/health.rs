//! Whether an instance answers.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::instance::file;
use crate::socket;

/// Asks once: a 2xx answer on `path`, or without a path a connection, is health.
pub(super) fn ask(place: &socket::Place, path: Option<&str>, wait: Duration) -> io::Result<()> {
    let socket = place.connect(file::SOCKET)?;
    socket.set_read_timeout(Some(wait))?;
    let (bytes, fd) = socket::receive_fd(&socket)?;
    let mut stream = TcpStream::from(socket::given(&bytes, fd)?);
    let Some(path) = path else { return Ok(()) };
    // The giver's own sockets never block; this thread may.
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(wait))?;
    stream.set_write_timeout(Some(wait))?;
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: adamant-health\r\nConnection: close\r\n\r\n")
            .as_bytes(),
    )?;
    let mut head = Vec::new();
    let mut buffer = [0; 512];
    while !head.contains(&b'\n') && head.len() < 4096 {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        head.extend_from_slice(&buffer[..read]);
    }
    let line = head.split(|b| *b == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line).trim().to_owned();
    let mut words = line.split(' ');
    let http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    if http && words.next().is_some_and(|code| code.len() == 3 && code.starts_with('2')) {
        return Ok(());
    }
    Err(io::Error::other(format!("GET {path} answered `{}`", line.chars().take(100).collect::<String>())))
}
