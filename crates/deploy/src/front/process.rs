//! The process behind `__front`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::fs::FlockOperation;
use rustix::process::{Resource, Rlimit};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;

use super::client::FrontClient;
use super::control::{self, Held};
use super::state::Front;
use super::{FrontConfig, WORD, file, proxy};
use crate::{daemon, socket};

/// Most connections of clients at a time.
const MAX_CONNECTIONS: usize = 20_000;
/// Longest request head, in bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// How long a client may take for a request's head, and keep an idle connection.
const HEAD_WAIT: Duration = Duration::from_secs(75);

/// Answers `__front --dir DIR`: serves the environment in `DIR` until it is told to stop.
pub fn front(arguments: impl Iterator<Item = String>) -> ExitCode {
    let result = daemon::parse(arguments).map_err(io::Error::other).and_then(|call| {
        if daemon::detach(&call, WORD, file::LOG)? {
            return Ok(());
        }
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(4);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
        let result = runtime.block_on(serve(&call.dir.canonicalize()?, call.take_over));
        runtime.shutdown_timeout(Duration::from_secs(1));
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{WORD}: {error}");
            let _ = daemon::announce(&format!("error {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn serve(dir: &Path, take_over: bool) -> io::Result<()> {
    let missing = || io::Error::other(format!("{} is missing in {}", file::CONFIG, dir.display()));
    let mut config = FrontConfig::read(dir)?.ok_or_else(missing)?;
    let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join(file::LOCK))?;
    let (listener, old) = if take_over {
        let old = FrontClient::connect(dir)?;
        (old.take_over()?, Some(old))
    } else {
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return daemon::announce("ready: another front runs");
        }
        (listen(config.port)?, None)
    };
    let port = listener.local_addr()?.port();
    if config.port != port {
        // Remembered before anybody is told, so that the address never changes.
        config.port = port;
        config.write(dir)?;
    }
    raise_open_files();
    listener.set_nonblocking(true)?;
    let held = Held { listener: listener.try_clone()?.into(), port, build: build() };
    let front = Arc::new(Front::new(dir.to_owned(), config.environment.clone())?);

    let control = socket::Place::open(dir)?.listen(file::CONTROL)?;
    control.set_nonblocking(true)?;
    let accepting = front.tasks.spawn(accept(TcpListener::from_std(listener)?, front.clone()));
    let lock = match old {
        Some(old) => Some(succeed(&front, old, lock).await?),
        None => Some(lock),
    };
    front.tasks.spawn(control::serve(UnixListener::from_std(control)?, front.clone(), Arc::new(held)));
    daemon::announce(&format!("ready {port}"))?;

    let _ = accepting.await;
    // Whoever took over holds the lock from here on.
    drop(lock);
    front.tasks.close();
    tokio::select! {
        () = front.stopped.cancelled() => {}
        () = tokio::time::sleep(Duration::from_millis(config.handover_ms)) => front.stopped.cancel(),
        () = wait_for_connections(&front) => front.stopped.cancel(),
    }
    // Answers that are being written get a moment.
    let _ = tokio::time::timeout(Duration::from_secs(2), front.tasks.wait()).await;
    Ok(())
}

/// The predecessor stops accepting; its routes were read from the file, which cannot have changed
/// since: nobody else can ask it any more, because the control socket's name leads here.
async fn succeed(front: &Arc<Front>, old: FrontClient, lock: File) -> io::Result<File> {
    let front = front.clone();
    let taken = tokio::task::spawn_blocking(move || {
        old.taken()?;
        // A switch that came in while this process started is in the file now.
        front.reload()?;
        *front.predecessor.lock().unwrap_or_else(PoisonError::into_inner) = Some(old);
        // It lets go of the lock as soon as it has stopped accepting.
        for _ in 0..500 {
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Ok(lock);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(io::Error::other("the front before this one does not let go"))
    });
    taken.await.map_err(io::Error::other)?
}

fn listen(port: u16) -> io::Result<StdTcpListener> {
    StdTcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => io::Error::new(
            error.kind(),
            format!("port {port} of 127.0.0.1 is in use by another program: stop that, or choose another port"),
        ),
        _ => error,
    })
}

async fn accept(listener: TcpListener, front: Arc<Front>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = front.closed.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let task = front.clone();
                front.tasks.spawn(async move {
                    connection(stream, peer, task).await;
                    drop(permit);
                });
            }
            // Out of descriptors, say: the queue of the socket holds what comes.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, front: Arc<Front>) {
    let _ = stream.set_nodelay(true);
    let stopped = front.stopped.clone();
    front.connections.fetch_add(1, Ordering::SeqCst);
    let service = {
        let front = front.clone();
        service_fn(move |request| {
            let front = front.clone();
            async move { Ok::<_, std::convert::Infallible>(proxy::pass(front, peer, request).await) }
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .max_header_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stopped.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(Duration::from_secs(1), connection).await;
        }
    }
    front.connections.fetch_sub(1, Ordering::SeqCst);
    front.connection_ended.notify_waiters();
}

/// Waits until nothing is served here nor by the front before, which can be asked only through
/// this one.
async fn wait_for_connections(front: &Arc<Front>) {
    loop {
        let ended = front.connection_ended.notified();
        if front.connections.load(Ordering::SeqCst) == 0 && !front.busy() {
            let asking = front.clone();
            let before = move || control::pass_on(&asking, FrontClient::hello);
            if matches!(tokio::task::spawn_blocking(before).await, Ok(None)) {
                return;
            }
        }
        let _ = tokio::time::timeout(Duration::from_millis(500), ended).await;
    }
}

/// As many descriptors as the system allows: each request needs two.
fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// What identifies the running executable: device, inode and time of the file.
fn build() -> String {
    crate::local::build_of(Path::new("/proc/self/exe"))
}
