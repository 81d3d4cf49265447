//! Connections of clients: how many there are, how long each may keep the server waiting, and how
//! they end.
//!
//! Whoever reaches the port can open connections, token or not. None of them may keep others out:
//! when all places are taken, the connection whose client keeps the server waiting longest is
//! ended for the new one. A request that is being worked on, whose body is arriving or whose answer
//! is being taken is never ended, however long it lasts.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, Rlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Most connections at a time, on a host that allows enough descriptors.
const MAX_CONNECTIONS: usize = 4096;
/// Descriptors for each connection: its socket and what answering it may open.
const DESCRIPTORS_EACH: u64 = 4;
/// Longest request head, in bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// How long a client may take for a request's head, and keep an idle connection.
const HEAD_WAIT: Duration = Duration::from_secs(75);
/// How long a connection without a request is left alone when its place is wanted.
const IDLE_PATIENCE: Duration = Duration::from_millis(100);
/// How long a client that takes nothing of its answer, or sends next to nothing of its request, is
/// left alone when its place is wanted.
const STALL_PATIENCE: Duration = Duration::from_secs(10);
/// What must arrive of a body in that time, in bytes, to count as sending.
const PROGRESS_BYTES: usize = 16 * 1024;
/// Pause after the system refused a connection, and between looks for a place.
const PAUSE: Duration = Duration::from_millis(50);

/// Where connections come from.
pub(crate) enum Listener {
    /// A port, with TLS or without.
    Tcp(TcpListener, Option<Arc<rustls::ServerConfig>>),
    /// A socket of this machine.
    Local(UnixListener),
}

/// A connection before anything was said.
enum Accepted {
    Tcp(TcpStream, Option<Arc<rustls::ServerConfig>>),
    Local(UnixStream),
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener, tls) => Ok(Accepted::Tcp(listener.accept().await?.0, tls.clone())),
            Self::Local(listener) => Ok(Accepted::Local(listener.accept().await?.0)),
        }
    }
}

/// The two ends of the connection that a request came by, in its extensions; a request from this
/// machine's own socket has none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) from: Option<SocketAddr>,
    pub(crate) to: Option<SocketAddr>,
}

/// Bounds on connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Most at a time.
    pub(crate) connections: usize,
    /// How long a client may take for a request's head, and keep an idle connection.
    pub(crate) head_wait: Duration,
}

impl Bounds {
    /// What the process's limit of open files leaves room for, once it is as high as the system
    /// allows. Most of the descriptors stay for the rest of the server.
    pub(crate) fn of_this_process() -> Self {
        let limit = rustix::process::getrlimit(Resource::Nofile);
        // Refused only where it is as high already.
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        let _ = rustix::process::setrlimit(Resource::Nofile, raised);
        let files = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let connections = usize::try_from(files / DESCRIPTORS_EACH).unwrap_or(MAX_CONNECTIONS);
        Self { connections: connections.clamp(1, MAX_CONNECTIONS), head_wait: HEAD_WAIT }
    }
}

/// Serves until `stop`. Connections are tasks of `tasks`: after `stop` each ends with the answer
/// it is giving.
pub(crate) async fn serve(
    listener: Listener,
    router: Router,
    bounds: Bounds,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let room = Arc::new(Room { places: Arc::new(Semaphore::new(bounds.connections)), waiting: Mutex::default() });
    loop {
        let next = async {
            let stream = listener.accept().await?;
            Ok((stream, room.place().await?))
        };
        let accepted: io::Result<_> = tokio::select! {
            accepted = next => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, place)) => {
                let (room, router, stop) = (Arc::clone(&room), router.clone(), stop.clone());
                tasks.spawn(async move {
                    connection(stream, router, room, bounds.head_wait, stop).await;
                    drop(place);
                });
            }
            Err(error) if gone(&error) => {}
            Err(error) => {
                // Out of descriptors, say: the queue of the socket holds what comes.
                tracing::warn!(%error, "no connection can be accepted");
                room.make();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whether the client was gone before its connection was accepted.
fn gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

async fn connection(accepted: Accepted, router: Router, room: Arc<Room>, head_wait: Duration, stop: CancellationToken) {
    let peer = Peer::new(room);
    match accepted {
        Accepted::Local(stream) => {
            let stream = Watched { stream, peer: Arc::clone(&peer) };
            answer(stream, None, router, peer, head_wait, stop).await;
        }
        Accepted::Tcp(stream, tls) => {
            let _ = stream.set_nodelay(true);
            let sent = Sent { from: stream.peer_addr().ok(), to: stream.local_addr().ok() };
            let stream = Watched { stream, peer: Arc::clone(&peer) };
            let Some(tls) = tls else { return answer(stream, Some(sent), router, peer, head_wait, stop).await };
            let handshake = tokio::time::timeout(head_wait, TlsAcceptor::from(tls).accept(stream));
            let stream = tokio::select! {
                stream = handshake => stream,
                () = peer.ended.cancelled() => return,
                () = stop.cancelled() => return,
            };
            // A client that does not like the certificate, or speaks no TLS.
            if let Ok(Ok(stream)) = stream {
                answer(stream, Some(sent), router, peer, head_wait, stop).await;
            }
        }
    }
}

/// Answers the requests of a connection until it ends.
async fn answer<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    sent: Option<Sent>,
    router: Router,
    peer: Arc<Peer>,
    head_wait: Duration,
    stop: CancellationToken,
) {
    let router = TowerToHyperService::new(router);
    let service = {
        let peer = Arc::clone(&peer);
        service_fn(move |mut request: Request<Incoming>| {
            if let Some(sent) = sent {
                request.extensions_mut().insert(sent);
                if let Some(from) = sent.from {
                    request.extensions_mut().insert(adamant_registry::Peer(from.ip()));
                }
            }
            let under_way = UnderWay::of(&peer);
            let request = request.map(|body| Asked { body, peer: Arc::clone(&peer), arrived: 0 });
            let answer = router.call(request);
            async move {
                let answer = answer.await?;
                Ok::<_, Infallible>(answer.map(|body| Answer { body, _under_way: under_way }))
            }
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_wait)
        .max_header_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = peer.ended.cancelled() => return,
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    if peer.is_idle() {
        return;
    }
    tokio::select! {
        _ = connection => {}
        () = peer.ended.cancelled() => {}
    }
}

/// The places for connections, and who keeps the server waiting.
struct Room {
    places: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    /// In the order in which they began to wait.
    clients: BTreeMap<u64, Client>,
}

/// A client that is waited for.
struct Client {
    since: Instant,
    patience: Duration,
    ended: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Room {
    /// A place for a new connection; waits while all are taken by requests under way.
    async fn place(&self) -> io::Result<OwnedSemaphorePermit> {
        loop {
            if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
                return Ok(place);
            }
            self.make();
            if let Ok(place) = tokio::time::timeout(PAUSE, Arc::clone(&self.places).acquire_owned()).await {
                return place.map_err(io::Error::other);
            }
        }
    }

    /// Ends the connection whose client keeps the server waiting longest, if one does.
    fn make(&self) {
        let mut waiting = lock(&self.waiting);
        let longest = waiting.clients.iter().find(|(_, client)| client.since.elapsed() >= client.patience);
        if let Some(number) = longest.map(|(number, _)| *number)
            && let Some(client) = waiting.clients.remove(&number)
        {
            client.ended.cancel();
        }
    }
}

/// The other end of a connection.
struct Peer {
    room: Arc<Room>,
    /// Its place is given to somebody else.
    ended: CancellationToken,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// A request was read and its answer is not yet written.
    under_way: bool,
    /// The client takes nothing of what is being written.
    stalled: bool,
    /// The client has not sent what is being read.
    starved: bool,
    /// Its number among the waiting.
    number: Option<u64>,
}

impl Peer {
    fn new(room: Arc<Room>) -> Arc<Self> {
        let peer = Arc::new(Self { room, ended: CancellationToken::new(), state: Mutex::default() });
        peer.note(|_| {});
        peer
    }

    /// Changes the state and, with it, whether this client is waited for.
    fn note(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        let before = (state.under_way, state.stalled, state.starved, state.number.is_some());
        change(&mut state);
        let waits = !state.under_way || state.stalled || state.starved;
        if before == (state.under_way, state.stalled, state.starved, waits) {
            return;
        }
        let mut waiting = lock(&self.room.waiting);
        if let Some(number) = state.number.take() {
            waiting.clients.remove(&number);
        }
        if waits {
            let patience = if state.stalled || state.starved { STALL_PATIENCE } else { IDLE_PATIENCE };
            let number = waiting.next;
            waiting.next += 1;
            state.number = Some(number);
            let client = Client { since: Instant::now(), patience, ended: self.ended.clone() };
            waiting.clients.insert(number, client);
        }
    }

    /// Whether nothing was asked that is not answered.
    fn is_idle(&self) -> bool {
        let state = lock(&self.state);
        !state.under_way && !state.stalled
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(number) = lock(&self.state).number.take() {
            lock(&self.room.waiting).clients.remove(&number);
        }
    }
}

/// A request until its answer is written or given up.
struct UnderWay(Arc<Peer>);

impl UnderWay {
    fn of(peer: &Arc<Peer>) -> Self {
        peer.note(|state| state.under_way = true);
        Self(Arc::clone(peer))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.note(|state| {
            state.under_way = false;
            state.starved = false;
        });
    }
}

/// The body of a request, as it is; it notes when its client sends next to nothing.
struct Asked {
    body: Incoming,
    peer: Arc<Peer>,
    /// Bytes since the wait for the client began.
    arrived: usize,
}

impl HttpBody for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Pending => {
                if self.arrived >= PROGRESS_BYTES {
                    // The wait begins anew.
                    self.arrived = 0;
                    self.peer.note(|state| state.starved = false);
                }
                self.peer.note(|state| state.starved = true);
            }
            Poll::Ready(Some(Ok(frame))) => self.arrived += frame.data_ref().map_or(0, Bytes::len),
            Poll::Ready(_) => self.peer.note(|state| state.starved = false),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.peer.note(|state| state.starved = false);
    }
}

/// The body of an answer, as it is.
struct Answer {
    body: Body,
    _under_way: UnderWay,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that notes when its client takes nothing.
struct Watched<S> {
    stream: S,
    peer: Arc<Peer>,
}

impl<S> Watched<S> {
    fn taken(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.peer.note(|state| state.stalled = written.is_pending());
        Poll::Ready(ready!(written))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, buf);
        self.taken(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bufs);
        self.taken(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use futures_util::StreamExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const HEAD: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n";
    /// Longer than any head may take in these tests.
    const LONG: Duration = Duration::from_millis(600);

    struct Served {
        address: std::net::SocketAddr,
        tasks: TaskTracker,
        stop: CancellationToken,
    }

    async fn served(connections: usize, head_wait: Duration) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let slow = || async {
            let parts = futures_util::stream::iter(["one ", "two ", "three"]).then(|part| async move {
                tokio::time::sleep(LONG / 2).await;
                Ok::<_, Infallible>(part)
            });
            Body::from_stream(parts)
        };
        let large = || async { vec![b'x'; 64 << 20] };
        let upload = |body: Bytes| async move { format!("{} bytes", body.len()) };
        let router = Router::new()
            .route("/healthz", get(|| async { "ok" }).post(upload))
            .route("/slow", get(slow))
            .route("/large", get(large));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let bounds = Bounds { connections, head_wait };
        let listener = Listener::Tcp(listener, None);
        tasks.spawn(serve(listener, router, bounds, tasks.clone(), stop.clone()));
        Served { address, tasks, stop }
    }

    impl Served {
        async fn send(&self, text: &str) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            stream
        }

        async fn ask(&self, path: &str) -> String {
            rest(self.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await).await
        }
    }

    /// Everything until the server closes, which it does soon.
    async fn rest(mut stream: TcpStream) -> String {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await;
        // A reset is an end, too.
        let _ = read.expect("the server closes the connection");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_ends_the_connection() {
        let server = served(8, LONG / 3).await;
        assert_eq!(rest(server.send("").await).await, "");
        assert!(!rest(server.send(HEAD).await).await.contains("200"));
        // The same for the second request of a connection.
        let idle = rest(server.send(&format!("{HEAD}\r\n")).await).await;
        assert!(idle.ends_with("ok"), "{idle}");
    }

    #[tokio::test]
    async fn work_may_last_longer_than_a_head() {
        let server = served(8, LONG / 3).await;
        let streamed = server.ask("/slow").await;
        assert!(streamed.contains("three"), "{streamed}");
        let head = "POST /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\n";
        let mut upload = server.send(head).await;
        for byte in b"abcd" {
            tokio::time::sleep(LONG / 2).await;
            upload.write_all(&[*byte]).await.unwrap();
        }
        let answer = rest(upload).await;
        assert!(answer.ends_with("4 bytes"), "{answer}");
    }

    #[tokio::test]
    async fn idle_connections_keep_nobody_out() {
        let server = served(4, Duration::from_mins(5)).await;
        let working =
            tokio::spawn(rest(server.send("GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await));
        let mut idle = Vec::new();
        for text in ["", HEAD, &format!("{HEAD}\r\n")].iter().cycle().take(40) {
            idle.push(server.send(text).await);
        }
        let answer = tokio::time::timeout(Duration::from_secs(20), server.ask("/healthz")).await.unwrap();
        assert!(answer.ends_with("ok"), "{answer}");
        // What is under way is not what makes room.
        let streamed = working.await.unwrap();
        assert!(streamed.contains("three"), "{streamed}");
    }

    #[tokio::test]
    async fn answers_that_nobody_takes_keep_nobody_out() {
        let server = served(2, Duration::from_mins(5)).await;
        let request = "GET /large HTTP/1.1\r\nHost: x\r\n\r\n";
        let _stalled = [server.send(request).await, server.send(request).await];
        let answer = tokio::time::timeout(STALL_PATIENCE * 3, server.ask("/healthz")).await.unwrap();
        assert!(answer.ends_with("ok"), "{answer}");
    }

    #[tokio::test]
    async fn bodies_that_do_not_come_keep_nobody_out() {
        let server = served(3, Duration::from_mins(5)).await;
        let head = "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n";
        let _silent = server.send(head).await;
        // Dripping is not sending.
        let mut dripping = [server.send(head).await, server.send(head).await];
        let dripped = tokio::spawn(async move {
            for _ in 0..60 {
                for stream in &mut dripping {
                    let _ = stream.write_all(b"x").await;
                }
                tokio::time::sleep(LONG).await;
            }
        });
        for _ in 0..2 {
            let answer = tokio::time::timeout(STALL_PATIENCE * 3, server.ask("/healthz")).await.unwrap();
            assert!(answer.ends_with("ok"), "{answer}");
        }
        dripped.abort();
    }

    #[tokio::test]
    async fn a_stop_ends_idle_connections_and_finishes_answers() {
        let server = served(8, Duration::from_mins(5)).await;
        let idle = [server.send("").await, server.send(HEAD).await];
        let mut working = server.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
        // The head of the answer: the request is under way.
        let mut first = [0; 1];
        working.read_exact(&mut first).await.unwrap();
        server.stop.cancel();
        server.tasks.close();
        for stream in idle {
            rest(stream).await;
        }
        let streamed = rest(working).await;
        assert!(streamed.contains("three"), "{streamed}");
        tokio::time::timeout(Duration::from_secs(20), server.tasks.wait()).await.unwrap();
    }
}
