//! An instance as the front sees it: connections, and what is in flight on them.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::Outgoing;
use crate::instance::file;
use crate::socket;

/// How long a program that does not accept yet (it is being started again, say) is waited for.
const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// Idle connections kept, and for how long: shorter than the keep-alive of common servers.
const MAX_IDLE: usize = 32;
const IDLE: Duration = Duration::from_secs(2);

/// One instance.
pub(super) struct Backend {
    /// Its directory, relative to the environment's.
    pub(super) key: String,
    dir: PathBuf,
    in_flight: AtomicUsize,
    quiet: Notify,
    /// Cuts tunnels when the time to drain is over.
    pub(super) cut: CancellationToken,
    idle: Mutex<Vec<(SendRequest<Outgoing>, Instant)>>,
}

/// A request that is being served; counts until it is dropped.
pub(super) struct InFlight(Arc<Backend>);

impl Backend {
    pub(super) fn new(key: String, dir: PathBuf) -> Self {
        Self {
            key,
            dir,
            in_flight: AtomicUsize::new(0),
            quiet: Notify::new(),
            cut: CancellationToken::new(),
            idle: Mutex::default(),
        }
    }

    /// Counts a request. Called with the routes locked, so that nobody who has switched them
    /// sees a count without it.
    pub(super) fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        InFlight(self.clone())
    }

    /// Whether something is in flight.
    pub(super) fn busy(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst) > 0
    }

    /// Waits until nothing is in flight, at most `wait`; how many were left and cut.
    pub(super) async fn drain(&self, wait: Duration) -> usize {
        let quiet = async {
            loop {
                let notified = self.quiet.notified();
                if self.in_flight.load(Ordering::SeqCst) == 0 {
                    return;
                }
                notified.await;
            }
        };
        let _ = tokio::time::timeout(wait, quiet).await;
        let left = self.in_flight.load(Ordering::SeqCst);
        self.cut.cancel();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        left
    }

    /// A connection that served before and is still open.
    pub(super) fn reuse(&self) -> Option<SendRequest<Outgoing>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(sender, since)| since.elapsed() < IDLE && !sender.is_closed());
        let position = idle.iter().rposition(|(sender, _)| sender.is_ready())?;
        Some(idle.swap_remove(position).0)
    }

    /// A new connection to the program.
    pub(super) async fn connect(&self, tasks: &TaskTracker) -> io::Result<SendRequest<Outgoing>> {
        let stream = self.stream().await?;
        let (sender, connection) =
            http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let cut = self.cut.clone();
        // Ends with its sender, with the program, or when the instance is drained.
        tasks.spawn(async move {
            tokio::select! {
                _ = connection.with_upgrades() => {}
                () = cut.cancelled() => {}
            }
        });
        Ok(sender)
    }

    async fn stream(&self) -> io::Result<TcpStream> {
        let deadline = tokio::time::Instant::now() + CONNECT_WAIT;
        let mut pause = Duration::from_millis(5);
        loop {
            let Ok(given) = tokio::time::timeout_at(deadline, self.ask()).await else {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the program does not accept connections"));
            };
            match given.and_then(|(bytes, fd)| socket::given(&bytes, fd)) {
                Ok(fd) => {
                    let stream = std::net::TcpStream::from(fd);
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    return TcpStream::from_std(stream);
                }
                Err(error) => {
                    // Nothing was sent yet, so asking again is safe for any request.
                    let again = matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionRefused
                            | io::ErrorKind::UnexpectedEof
                            | io::ErrorKind::ConnectionReset
                    );
                    if !again || tokio::time::Instant::now() + pause >= deadline {
                        return Err(error);
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Asks the instance's socket giver for a connected socket.
    async fn ask(&self) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        // No such socket or nobody behind it: the instance is gone, which is final here.
        let gone = |e: io::Error| io::Error::new(io::ErrorKind::NotConnected, e);
        let place = socket::Place::open(&self.dir).map_err(gone)?;
        let stream = UnixStream::connect(place.path(file::SOCKET)).await.map_err(gone)?;
        loop {
            stream.readable().await?;
            match stream.try_io(Interest::READABLE, || socket::receive_fd(&stream)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }
}

impl InFlight {
    /// The instance.
    pub(super) fn backend(&self) -> &Backend {
        &self.0
    }

    /// Keeps a connection for the next request.
    pub(super) fn give_back(&self, sender: SendRequest<Outgoing>) {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !sender.is_closed() && idle.len() < MAX_IDLE && !self.0.cut.is_cancelled() {
            idle.push((sender, Instant::now()));
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.quiet.notify_waiters();
        }
    }
}
