//! HTTP as small as a load generator needs it: one connection, one request after the other.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// Longest wait for any answer.
const PATIENCE: Duration = Duration::from_mins(1);

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: u16,
    location: Option<String>,
    /// Bytes of the body, which nobody keeps.
    pub(crate) length: u64,
}

impl Answer {
    pub(crate) fn expect(self, status: u16) -> Result<Self> {
        ensure!(self.status == status, "the answer is {} where {status} was expected", self.status);
        Ok(self)
    }

    /// The path of the `Location`, absolute or relative.
    fn path(&self) -> Result<&str> {
        let text = self.location.as_deref().context("an upload without a Location")?;
        Ok(text.split_once("://").map_or(text, |(_, rest)| &rest[rest.find('/').unwrap_or(0)..]))
    }
}

/// A connection to a registry.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    address: SocketAddr,
    token: Option<String>,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) fn open(address: SocketAddr, token: Option<&str>) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let stream = BufReader::with_capacity(1 << 16, stream);
        Ok(Self { stream, address, token: token.map(str::to_owned), buffer: vec![0; 1 << 18] })
    }

    pub(crate) fn send(&mut self, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<Answer> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.address);
        let signed = self.token.iter().map(|token| format!("Authorization: Bearer {token}\r\n"));
        head.extend(signed);
        let last = if matches!(method, "GET" | "HEAD") {
            format!("Accept: {kind}\r\n\r\n")
        } else {
            format!("Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len())
        };
        head.push_str(&last);
        let stream = self.stream.get_mut();
        if body.len() < 1 << 16 {
            stream.write_all(&[head.as_bytes(), body].concat())?;
        } else {
            stream.write_all(head.as_bytes())?;
            stream.write_all(body)?;
        }
        self.answer(method == "HEAD")
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "the connection was closed");
        Ok(line.trim_end().to_owned())
    }

    fn answer(&mut self, is_head: bool) -> Result<Answer> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok()).context("not HTTP")?;
        let (mut location, mut length) = (None, 0);
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "location" => location = Some(value.trim().to_owned()),
                "content-length" => length = value.trim().parse()?,
                "transfer-encoding" => anyhow::bail!("an answer without a length"),
                _ => {}
            }
        }
        if is_head || status == 204 || status == 304 {
            length = 0;
        }
        let mut left = length;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let read = self.stream.read(&mut self.buffer[..most])?;
            ensure!(read > 0, "the body ended early");
            left -= read as u64;
        }
        Ok(Answer { status, location, length })
    }

    /// `POST`, then `PUT` of the whole.
    pub(crate) fn push_blob(&mut self, repository: &str, digest: &str, bytes: &[u8]) -> Result<()> {
        let answer = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), OCTETS, b"")?.expect(202)?;
        let path = answer.path()?;
        let sign = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{sign}digest={digest}");
        self.send("PUT", &path, OCTETS, bytes)?.expect(201).map(drop)
    }
}

pub(crate) const OCTETS: &str = "application/octet-stream";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
