//! Asking a front. Blocks: callers use a thread that may.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::control::{Ask, Question, Reply};
use super::{ProjectRoutes, Table, file};
use crate::socket;

/// A connection to the control socket of a front.
pub(crate) struct FrontClient {
    stream: UnixStream,
}

/// What a front says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    pub(crate) port: u16,
    pub(crate) pid: u32,
    pub(crate) build: String,
    pub(crate) table: Table,
}

impl FrontClient {
    /// Connects to the front of the environment in `dir`.
    pub(crate) fn connect(dir: &Path) -> io::Result<Self> {
        Ok(Self { stream: socket::Place::open(dir)?.connect(file::CONTROL)? })
    }

    /// Address, process and routes.
    pub(crate) fn hello(&self) -> io::Result<Hello> {
        let reply = self.ask(Ask::Hello, Duration::from_secs(5))?;
        Ok(Hello { port: reply.port, pid: reply.pid, build: reply.build, table: reply.table.unwrap_or_default() })
    }

    /// Switches a project; durable and in force on return.
    pub(crate) fn route(&self, project: &str, routes: ProjectRoutes) -> io::Result<()> {
        self.ask(Ask::Route { project: project.to_owned(), routes }, Duration::from_secs(30)).map(drop)
    }

    /// Waits until no request is on an instance, at most `wait`; how many were cut then.
    pub(crate) fn drain(&self, instance: &str, wait: Duration) -> io::Result<usize> {
        let ask = Ask::Drain { instance: instance.to_owned(), wait_ms: millis(wait) };
        match self.ask(ask, wait + Duration::from_secs(10)) {
            // A front that ends takes its requests with it.
            Err(e) if socket::went_away(&e) => Ok(0),
            answered => answered.map(|reply| reply.cut),
        }
    }

    /// Ends the front, and what is in flight on it, at once.
    pub(crate) fn stop(&self, wait: Duration) -> io::Result<()> {
        match self.ask(Ask::Stop { wait_ms: millis(wait) }, wait + Duration::from_secs(10)) {
            // It ended while it was asked, which is what was asked for.
            Err(e) if socket::went_away(&e) => Ok(()),
            answered => answered.map(drop),
        }
    }

    /// Asks for the listening socket. The other front goes on accepting until [`Self::taken`].
    pub(crate) fn take_over(&self) -> io::Result<TcpListener> {
        use std::io::Write as _;
        self.stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut line = serde_json::to_vec(&Question { v: 1, ask: Ask::Handover }).map_err(io::Error::other)?;
        line.push(b'\n');
        (&mut &self.stream).write_all(&line)?;
        let (bytes, fd) = socket::receive_fd(&self.stream)?;
        socket::given(&bytes, fd).map(TcpListener::from)
    }

    /// Tells the other front that its successor accepts.
    pub(crate) fn taken(&self) -> io::Result<()> {
        self.ask(Ask::Taken, Duration::from_secs(10)).map(drop)
    }

    fn ask(&self, ask: Ask, wait: Duration) -> io::Result<Reply> {
        let reply: Reply = socket::ask(&self.stream, &Question { v: 1, ask }, wait)?;
        match reply.error {
            Some(error) => Err(io::Error::other(error)),
            None => Ok(reply),
        }
    }
}

fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}
