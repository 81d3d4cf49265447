//! A small HTTP client that hides nothing.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// A connection that is kept.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    pub(crate) closed: bool,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Connection {
    pub(crate) fn open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), closed: false })
    }

    pub(crate) fn raw(&mut self) -> &mut BufReader<TcpStream> {
        &mut self.stream
    }

    pub(crate) fn send(&mut self, method: &str, host: &str, path: &str, extra: &str, body: &[u8]) -> io::Result<()> {
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{extra}{length}\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.stream.get_mut().write_all(&bytes)
    }

    pub(crate) fn head(&mut self) -> io::Result<(u16, String)> {
        let mut head = String::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("closed after `{head}`")));
            }
            if line == "\r\n" {
                break;
            }
            head.push_str(&line.to_ascii_lowercase());
        }
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        self.closed = head.contains("connection: close");
        Ok((status, head))
    }

    pub(crate) fn ask(&mut self, method: &str, host: &str, path: &str, extra: &str, body: &[u8]) -> io::Result<Answer> {
        self.send(method, host, path, extra, body)?;
        let (status, head) = self.head()?;
        let mut body = Vec::new();
        if let Some(length) = head.lines().find_map(|line| line.strip_prefix("content-length: ")) {
            body.resize(length.trim().parse().map_err(io::Error::other)?, 0);
            self.stream.read_exact(&mut body)?;
        } else if head.contains("transfer-encoding: chunked") {
            loop {
                let mut line = String::new();
                self.stream.read_line(&mut line)?;
                let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
                let mut chunk = vec![0; size + 2];
                self.stream.read_exact(&mut chunk)?;
                if size == 0 {
                    break;
                }
                body.extend_from_slice(&chunk[..size]);
            }
        }
        Ok(Answer { status, head, body: String::from_utf8_lossy(&body).into_owned() })
    }
}

/// One request on a connection of its own.
pub(crate) fn get(port: u16, host: &str, path: &str) -> io::Result<Answer> {
    Connection::open(port)?.ask("GET", host, path, "", b"")
}
