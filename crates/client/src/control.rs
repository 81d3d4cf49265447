//! The way to a server on this machine: a socket in its data directory that only its owner can
//! open, and a token handed out over it.

use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use adamant_api::{Control, ControlAnswer};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::ClientError;

/// How long the control socket may take for an answer, in seconds.
const WAIT_S: u64 = 10;

/// A server this process may talk to.
#[derive(Clone)]
pub struct Server {
    /// Base URL, `http://127.0.0.1:7000`.
    pub url: String,
    pub(crate) token: String,
    /// The socket that carries requests where the address speaks TLS.
    pub(crate) socket: PathBuf,
}

impl Server {
    /// A server at an address, by a token that somebody gave: `http://host:port`.
    pub fn at(url: &str, token: &str) -> Result<Self, ClientError> {
        let url = url.trim_end_matches('/');
        let authority = url.strip_prefix("http://").filter(|rest| !rest.is_empty() && !rest.contains('/'));
        let Some(authority) = authority else {
            return Err(ClientError::Answer(format!(
                "`{url}` is not http://HOST:PORT: where the server speaks TLS, use a tunnel to it or its interface (POST /api/v1/erasures)"
            )));
        };
        let port =
            if authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) { "" } else { ":80" };
        Ok(Self { url: format!("{url}{port}"), token: token.to_owned(), socket: PathBuf::new() })
    }

    /// The short-lived token, for clients such as docker and git that want a password.
    pub fn token(&self) -> &str {
        &self.token
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({})", self.url)
    }
}

/// Asks the server of `data` for a token.
pub async fn connect(data: &Path) -> Result<Server, ClientError> {
    let answer = ask(data, &Control::Token).await?;
    Ok(Server { url: answer.url, token: answer.secret, socket: data.join("run/http.sock") })
}

/// Asks the server of `data` for a one-time login link.
pub async fn login_link(data: &Path) -> Result<String, ClientError> {
    Ok(ask(data, &Control::Login).await?.secret)
}

/// Where the control socket of a data directory is.
fn socket_path(data: &Path) -> PathBuf {
    data.join("run").join("control.sock")
}

async fn ask(data: &Path, request: &Control) -> Result<ControlAnswer, ClientError> {
    let path = socket_path(data);
    let off = |source| ClientError::Off { data: data.to_owned(), source };
    let exchange = async {
        let stream = short_connect(&path).await.map_err(off)?;
        let (read, mut write) = stream.into_split();
        let mut line = serde_json::to_vec(request).map_err(|e| ClientError::Answer(e.to_string()))?;
        line.push(b'\n');
        write.write_all(&line).await.map_err(off)?;
        let mut answer = String::new();
        // One line of a few hundred bytes; the limit keeps a wrong peer from filling memory.
        let limited = tokio::io::AsyncReadExt::take(read, 64 * 1024);
        let read = BufReader::new(limited).read_line(&mut answer).await.map_err(off)?;
        if read == 0 {
            // It ended before it could answer.
            let text = "it closed the connection without an answer";
            return Err(off(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, text)));
        }
        serde_json::from_str(&answer)
            .map_err(|_| ClientError::Answer(format!("control socket said `{}`", answer.trim())))
    };
    tokio::time::timeout(std::time::Duration::from_secs(WAIT_S), exchange).await.map_err(|_| ClientError::Silent {
        data: data.to_owned(),
        process: holder(data),
        wait_s: WAIT_S,
    })?
}

/// The process that noted itself in the lock file of `data`.
fn holder(data: &Path) -> Option<u32> {
    let mut note = String::new();
    let file = std::fs::File::open(data.join("lock")).ok()?;
    std::io::Read::take(file, 32).read_to_string(&mut note).ok()?;
    note.trim().parse().ok()
}

/// Connects through `/proc/self/fd` where the path is longer than a socket address holds.
pub(crate) async fn short_connect(path: &Path) -> std::io::Result<UnixStream> {
    if path.as_os_str().len() < 100 {
        return UnixStream::connect(path).await;
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    let dir = std::fs::File::open(parent)?;
    let name = path.file_name().unwrap_or_default();
    UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name)).await
}
