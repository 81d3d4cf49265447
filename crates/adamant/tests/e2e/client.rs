//! HTTP as small as the tests need it: one request a connection, or many.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case; values of a name that came more than once are joined by `, `.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text().chars().take(500).collect::<String>());
        self
    }
}

/// Bytes of one piece of a chunked body.
const PIECE: usize = 1000;

/// A request without its connection.
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) headers: Vec<(&'a str, String)>,
    pub(crate) body: &'a [u8],
    chunked: bool,
}

impl<'a> Ask<'a> {
    pub(crate) fn new(method: &'a str, path: &'a str) -> Self {
        Self { method, path, headers: Vec::new(), body: &[], chunked: false }
    }

    /// Without `Content-Length`, in pieces of at most `PIECE` bytes.
    pub(crate) fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    pub(crate) fn header(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn token(self, token: &str) -> Self {
        self.header("Authorization", format!("Bearer {token}"))
    }

    pub(crate) fn body(mut self, kind: &str, body: &'a [u8]) -> Self {
        self.body = body;
        self.header("Content-Type", kind)
    }

    /// Sends it over a connection of its own to `url`, `http://host:port`.
    pub(crate) fn send(&self, url: &str) -> io::Result<Answer> {
        Connection::open(url)?.ask(self, true)
    }
}

/// A connection that carries one request after the other.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    authority: String,
}

impl Connection {
    pub(crate) fn open(url: &str) -> io::Result<Self> {
        let authority = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        // Names below `localhost` are this machine, whatever the resolver knows.
        let port = authority.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(80_u16);
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_mins(1)))?;
        Ok(Self { stream: BufReader::new(stream), authority })
    }

    pub(crate) fn ask(&mut self, ask: &Ask<'_>, last: bool) -> io::Result<Answer> {
        let mut head = format!("{} {} HTTP/1.1\r\n", ask.method, ask.path);
        let mut line = |name: &str, value: &str| {
            head.push_str(name);
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        };
        if !ask.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            line("Host", &self.authority);
        }
        for (name, value) in &ask.headers {
            line(name, value);
        }
        if last {
            line("Connection", "close");
        }
        if ask.chunked {
            line("Transfer-Encoding", "chunked");
        } else if !ask.body.is_empty() || !matches!(ask.method, "GET" | "HEAD") {
            line("Content-Length", &ask.body.len().to_string());
        }
        head.push_str("\r\n");
        let mut all = head.into_bytes();
        if ask.chunked {
            for piece in ask.body.chunks(PIECE) {
                all.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                all.extend_from_slice(piece);
                all.extend_from_slice(b"\r\n");
            }
            all.extend_from_slice(b"0\r\n\r\n");
        } else {
            all.extend_from_slice(ask.body);
        }
        self.stream.get_mut().write_all(&all)?;
        self.read(ask.method == "HEAD")
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed"));
        }
        Ok(line.trim_end().to_owned())
    }

    fn read(&mut self, no_body: bool) -> io::Result<Answer> {
        let first = self.line()?;
        let bad = || io::Error::other(format!("not HTTP: {first}"));
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
        let mut headers: BTreeMap<String, String> = BTreeMap::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(bad)?;
            let (name, value) = (name.to_lowercase(), value.trim());
            headers.entry(name).and_modify(|all| *all = format!("{all}, {value}")).or_insert_with(|| value.to_owned());
        }
        let mut answer = Answer { status, headers, body: Vec::new() };
        if no_body || status == 204 || status == 304 {
            return Ok(answer);
        }
        if answer.header("transfer-encoding").eq_ignore_ascii_case("chunked") {
            loop {
                let size = self.line()?;
                let size = usize::from_str_radix(size.split(';').next().unwrap_or(""), 16).map_err(io::Error::other)?;
                let start = answer.body.len();
                answer.body.resize(start + size, 0);
                self.stream.read_exact(&mut answer.body[start..])?;
                self.line()?;
                if size == 0 {
                    break;
                }
            }
        } else if let Ok(length) = answer.header("content-length").parse::<usize>() {
            answer.body.resize(length, 0);
            self.stream.read_exact(&mut answer.body)?;
        } else {
            self.stream.read_to_end(&mut answer.body)?;
        }
        Ok(answer)
    }
}

/// `GET` of a whole address.
pub(crate) fn get(url: &str) -> io::Result<Answer> {
    let rest = url.trim_start_matches("http://");
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    Ask::new("GET", path).send(&format!("http://{authority}"))
}
