//! The process behind `__instance`: plain threads, no runtime, a few MB at most.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adamant_sandbox::{Child, Exit, Fds, Kind, Limits, Mount, Outcome, Sandbox, SandboxError, Spec};
use rustix::fs::FlockOperation;
use rustix::pipe::PipeFlags;

use super::prepare::{Prepared, Refusal, prepare};
use super::status::Ask;
use super::{InstanceStatus, Phase, Verify, file, health};
use crate::log::{From, Log};
use crate::{daemon, durable, socket};

const WORD: &str = "__instance";
/// Pauses between starts: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// A program that ran this long starts with the first pause again.
const STEADY: Duration = Duration::from_secs(20);
/// A service without a port is healthy when it has run this long.
const QUIET: Duration = Duration::from_millis(500);
const TMP_BYTES: u64 = 256 << 20;
/// Most open descriptors of any one process of an instance.
const MAX_OPEN_FILES: u64 = 65_536;
/// Most processes and threads of an instance: they are the host's, which all instances share.
const MAX_PROCESSES: u64 = 4096;

/// Answers `__instance --dir DIR`: supervises the instance in `DIR` until it is told to stop.
/// `verify` checks its evidence at each start.
pub fn instance(arguments: impl Iterator<Item = String>, verify: Verify<'_>) -> ExitCode {
    let result = daemon::parse(arguments).map_err(io::Error::other).and_then(|call| {
        if daemon::detach(&call, WORD, "supervisor.log")? {
            return Ok(());
        }
        supervise(&call.dir, verify)
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

enum Event {
    Ended(u64, Result<Outcome, SandboxError>),
    Healthy(u64, u64),
    Unhealthy(u64, String),
    Stop,
}

/// What the threads of the supervisor share.
struct Shared {
    dir: PathBuf,
    status: Mutex<InstanceStatus>,
    changed: Condvar,
    /// Number of the current start; threads of older ones end themselves.
    start: AtomicU64,
    log: Log,
}

impl Shared {
    fn set(&self, change: impl FnOnce(&mut InstanceStatus)) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut status);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        status.changed_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let written = serde_json::to_vec(&*status).map_err(io::Error::other);
        let written = written.and_then(|bytes| durable::replace(&self.dir.join(file::STATUS), &bytes));
        if let Err(error) = written {
            self.log.line(From::Supervisor, format!("status not written: {error}").as_bytes());
        }
        drop(status);
        self.changed.notify_all();
    }

    fn get(&self) -> InstanceStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, text: &str) {
        self.log.line(From::Supervisor, text.as_bytes());
    }
}

fn supervise(dir: &Path, verify: Verify<'_>) -> io::Result<()> {
    let dir = dir.canonicalize()?;
    // Held until this process ends: there is one supervisor per instance.
    let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join(file::LOCK))?;
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return daemon::announce("ready: another supervisor runs");
    }
    let place = socket::Place::open(&dir)?;
    let control = place.listen(file::CONTROL)?;
    let shared = Arc::new(Shared {
        log: Log::open(dir.join(file::LOG))?,
        dir,
        status: Mutex::new(InstanceStatus::new(Phase::Starting)),
        changed: Condvar::new(),
        start: AtomicU64::new(0),
    });
    let (events, inbox) = channel();
    shared.set(|status| status.phase = Phase::Starting);
    {
        let (shared, events) = (shared.clone(), events.clone());
        std::thread::spawn(move || answer(&control, &shared, &events));
    }
    daemon::announce("ready")?;
    run(&shared, place, verify, &events, &inbox)
}

/// Starts the program again and again until told to stop or refused.
fn run(
    shared: &Arc<Shared>,
    place: socket::Place,
    verify: Verify<'_>,
    events: &Sender<Event>,
    inbox: &Receiver<Event>,
) -> io::Result<()> {
    let place = Arc::new(place);
    let mut pause = FIRST_PAUSE;
    let mut listener: Option<UnixListener> = None;
    loop {
        let began = Instant::now();
        let prepared = match prepare(&shared.dir, verify) {
            Ok(prepared) => prepared,
            Err(refusal) => {
                let phase = if matches!(refusal, Refusal::Damaged(_)) { Phase::Damaged } else { Phase::Refused };
                let detail = refusal.to_string();
                shared.note(&detail);
                shared.set(|status| (status.phase, status.detail) = (phase, detail));
                return Ok(());
            }
        };
        if prepared.service.port.is_some() && listener.is_none() {
            listener = Some(place.listen(file::SOCKET)?);
        }
        let number = shared.start.fetch_add(1, Ordering::SeqCst) + 1;
        let detail = match start(shared, prepared, listener.as_ref(), &place, number, began, events) {
            Ok(child) => match watch(shared, &child, number, inbox) {
                Some(detail) => detail,
                None => return Ok(()),
            },
            Err(error) => error.to_string(),
        };
        // Threads of this start see that it is over.
        shared.start.fetch_add(1, Ordering::SeqCst);
        if began.elapsed() > STEADY {
            pause = FIRST_PAUSE;
        }
        shared.note(&format!("{detail}; starting again in {} ms", pause.as_millis()));
        shared.set(|status| {
            status.phase = Phase::BackingOff;
            status.detail = detail;
            status.restarts += 1;
        });
        let until = Instant::now() + pause;
        loop {
            match inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Event::Stop) => {
                    finish(shared);
                    return Ok(());
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
        pause = (pause * 2).min(LAST_PAUSE);
        shared.set(|status| status.phase = Phase::Starting);
    }
}

/// Waits for the end of a start: the reason of the program's end, or `None` after a stop.
fn watch(shared: &Shared, child: &Child, number: u64, inbox: &Receiver<Event>) -> Option<String> {
    let mut stopping = false;
    loop {
        match inbox.recv() {
            Ok(Event::Healthy(of, ms)) if of == number => {
                shared.note(&format!("healthy after {ms} ms"));
                shared.set(|status| {
                    status.phase = Phase::Healthy;
                    status.detail.clear();
                    status.healthy_ms = Some(ms);
                });
            }
            Ok(Event::Unhealthy(of, reason)) if of == number => shared.set(|status| status.detail = reason),
            Ok(Event::Ended(of, result)) if of == number => {
                if stopping {
                    finish(shared);
                    return None;
                }
                return Some(match result {
                    Ok(outcome) => describe(&outcome),
                    Err(error) => error.to_string(),
                });
            }
            Ok(Event::Stop) => {
                stopping = true;
                child.kill();
            }
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

fn finish(shared: &Shared) {
    shared.note("stopped");
    shared.set(|status| {
        status.phase = Phase::Stopped;
        status.detail.clear();
    });
    // The thread that was asked to stop has its answer out before the process ends.
    std::thread::sleep(Duration::from_millis(20));
}

fn describe(outcome: &Outcome) -> String {
    let exit = match outcome.exit {
        Exit::Code(code) => format!("the program exited with {code}"),
        Exit::Signal(signal) => format!("signal {signal} ended the program"),
    };
    match outcome.limit {
        Some(limit) => format!("{exit}: {limit} limit"),
        None => exit,
    }
}

fn start(
    shared: &Arc<Shared>,
    prepared: Prepared,
    listener: Option<&UnixListener>,
    place: &Arc<socket::Place>,
    number: u64,
    began: Instant,
    events: &Sender<Event>,
) -> Result<Arc<Child>, StartError> {
    let (out_read, out_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (err_read, err_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let listener: Option<OwnedFd> = listener.map(UnixListener::try_clone).transpose()?.map(Into::into);
    let service = prepared.service.clone();
    let spec = spec(&prepared);
    let fds = Fds { root: Some(prepared.root), listener, stdout: Some(out_write), stderr: Some(err_write) };
    // The running binary itself, also after an upgrade has replaced its file.
    let child = Arc::new(Sandbox::new("/proc/self/exe".into()).spawn(&spec, fds)?);
    for (from, pipe) in [(From::Out, out_read), (From::Err, err_read)] {
        let shared = shared.clone();
        // Ends with the last process that holds the pipe; a sandbox leaves none behind.
        std::thread::spawn(move || shared.log.copy(from, File::from(pipe)));
    }
    {
        let (child, events) = (child.clone(), events.clone());
        std::thread::spawn(move || {
            let result = child.wait();
            let _ = events.send(Event::Ended(number, result));
        });
    }
    let (shared, place, events) = (shared.clone(), place.clone(), events.clone());
    std::thread::spawn(move || {
        let path = service.port.and(service.health.as_deref());
        until_healthy(&shared, &place, service.port, path, number, began, &events);
    });
    Ok(child)
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    System(#[from] rustix::io::Errno),
}

fn spec(prepared: &Prepared) -> Spec {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut put = |key: &str, value: &str| match env.iter_mut().find(|(k, _)| k == key) {
        Some(pair) => value.clone_into(&mut pair.1),
        None => env.push((key.to_owned(), value.to_owned())),
    };
    put("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    put("HOME", "/tmp");
    for (key, value) in &prepared.image.env {
        put(key, value);
    }
    for (key, value) in &prepared.configuration.env {
        put(key, value);
    }
    if let Some(port) = prepared.service.port {
        put("PORT", &port.to_string());
    }
    let (uid, gid) = prepared.image.user.unwrap_or((1000, 1000));
    Spec {
        root: PathBuf::new(),
        mounts: vec![Mount::Tmpfs { target: "/tmp".to_owned(), size_bytes: TMP_BYTES, mode: 0o1777 }],
        argv: prepared.image.argv.clone(),
        env,
        cwd: prepared.image.cwd.clone(),
        hostname: prepared.hostname.clone(),
        uid,
        gid,
        limits: Limits { open_files: Some(MAX_OPEN_FILES), processes: Some(MAX_PROCESSES), ..Limits::default() },
        cpus: None,
        port: prepared.service.port,
        aslr: true,
        kind: Kind::Instance,
    }
}

/// Asks until the program answers once or its start is over.
fn until_healthy(
    shared: &Shared,
    place: &socket::Place,
    port: Option<u16>,
    path: Option<&str>,
    number: u64,
    began: Instant,
    events: &Sender<Event>,
) {
    let mut pause = Duration::from_millis(5);
    let mut said = String::new();
    while shared.start.load(Ordering::SeqCst) == number {
        let healthy = if let Some(port) = port {
            health::ask(place, path, Duration::from_secs(2)).map_err(|error| on_port(port, error))
        } else if began.elapsed() >= QUIET {
            Ok(())
        } else {
            Err(io::Error::other("it has not run long enough"))
        };
        match healthy {
            Ok(()) => {
                let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                let _ = events.send(Event::Healthy(number, ms));
                return;
            }
            Err(error) => {
                let text = error.to_string();
                if text != said && began.elapsed() > Duration::from_secs(1) {
                    let _ = events.send(Event::Unhealthy(number, format!("not healthy yet: {text}")));
                    said = text;
                }
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// A refused connection with the port that was tried: the recipe may name a wrong one.
fn on_port(port: u16, error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::ConnectionRefused {
        return error;
    }
    let fix = "the program is to listen on the port that PORT names, which is `port` of the recipe";
    io::Error::new(error.kind(), format!("nothing accepts connections on port {port}: {fix}"))
}

/// Answers questions, one connection at a time.
fn answer(control: &UnixListener, shared: &Shared, events: &Sender<Event>) {
    for stream in control.incoming() {
        let Ok(stream) = stream else { continue };
        let _ = answer_one(&stream, shared, events);
    }
}

fn answer_one(stream: &UnixStream, shared: &Shared, events: &Sender<Event>) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    if let Ask::Stop { .. } = socket::read_line(&mut BufReader::new(stream))? {
        let _ = events.send(Event::Stop);
        let until = Instant::now() + Duration::from_secs(15);
        let mut status = shared.status.lock().unwrap_or_else(PoisonError::into_inner);
        while status.phase != Phase::Stopped && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            status = shared.changed.wait_timeout(status, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
    let mut line = serde_json::to_vec(&shared.get()).map_err(io::Error::other)?;
    line.push(b'\n');
    (&mut &*stream).write_all(&line)
}
