//! The control socket of a front: one JSON line a question, one an answer.
//!
//! `handover` alone answers with a byte and the listening socket, and keeps the connection: over
//! it the successor then says `taken` and passes on `drain` and `stop`.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::client::FrontClient;
use super::state::Front;
use super::{ProjectRoutes, Table};
use crate::socket;

/// A question.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub(super) enum Ask {
    Hello,
    Route { project: String, routes: ProjectRoutes },
    Drain { instance: String, wait_ms: u64 },
    Handover,
    Taken,
    Stop { wait_ms: u64 },
}

/// A question with the version of the protocol.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Question {
    pub(super) v: u32,
    #[serde(flatten)]
    pub(super) ask: Ask,
}

/// An answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Reply {
    pub(super) v: u32,
    pub(super) error: Option<String>,
    pub(super) pid: u32,
    pub(super) port: u16,
    /// The executable this front runs, to see whether it is the newest.
    pub(super) build: String,
    pub(super) table: Option<Table>,
    /// Requests that were cut by a drain.
    pub(super) cut: usize,
}

/// Listening socket of the front, for whoever takes it over.
pub(super) struct Held {
    pub(super) listener: OwnedFd,
    pub(super) port: u16,
    pub(super) build: String,
}

/// Answers until the front ends.
pub(super) async fn serve(listener: UnixListener, front: Arc<Front>, held: Arc<Held>) {
    let room = Arc::new(Semaphore::new(64));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = front.stopped.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (task, held) = (front.clone(), held.clone());
        front.tasks.spawn(async move {
            let stopped = task.stopped.clone();
            tokio::select! {
                _ = answer(stream, &task, &held) => {}
                // Long enough for the answer to `stop` itself to get out.
                () = async { stopped.cancelled().await; tokio::time::sleep(Duration::from_millis(100)).await } => {}
            }
            drop(permit);
        });
    }
}

async fn answer(stream: UnixStream, front: &Arc<Front>, held: &Held) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        (&mut stream).take(socket::MAX_LINE).read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            return Ok(());
        }
        let reply = Reply { v: 1, pid: std::process::id(), ..Reply::default() };
        let reply = match serde_json::from_slice::<Question>(&line) {
            Err(error) => Reply { error: Some(format!("this front does not know that: {error}")), ..reply },
            Ok(Question { ask: Ask::Handover, .. }) => {
                hand_over(stream.get_ref(), held).await?;
                continue;
            }
            Ok(Question { ask, .. }) => act(ask, front, held, reply).await,
        };
        let mut line = serde_json::to_vec(&reply).map_err(io::Error::other)?;
        line.push(b'\n');
        stream.get_mut().write_all(&line).await?;
    }
}

async fn hand_over(stream: &UnixStream, held: &Held) -> io::Result<()> {
    loop {
        stream.writable().await?;
        match stream.try_io(Interest::WRITABLE, || socket::send_fd(stream, b'+', held.listener.as_fd())) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

async fn act(ask: Ask, front: &Arc<Front>, held: &Held, reply: Reply) -> Reply {
    match ask {
        Ask::Hello => Reply { port: held.port, build: held.build.clone(), table: Some(front.table()), ..reply },
        Ask::Route { project, routes } => {
            let front = front.clone();
            let result = tokio::task::spawn_blocking(move || front.route(&project, routes)).await;
            let error = result.map_err(|e| e.to_string()).and_then(|r| r).err();
            Reply { error, ..reply }
        }
        Ask::Drain { instance, wait_ms } => {
            let wait = Duration::from_millis(wait_ms.min(600_000));
            let before = {
                let (front, instance) = (front.clone(), instance.clone());
                tokio::task::spawn_blocking(move || pass_on(&front, |old| old.drain(&instance, wait)))
            };
            let (here, before) = tokio::join!(front.drain(&instance, wait), before);
            Reply { cut: here + before.ok().flatten().unwrap_or(0), ..reply }
        }
        Ask::Taken => {
            // From here on the successor accepts and owns the routes and the control socket.
            let leaving = front.clone();
            let _ = tokio::task::spawn_blocking(move || leaving.leave()).await;
            front.closed.cancel();
            reply
        }
        Ask::Stop { wait_ms } => {
            let wait = Duration::from_millis(wait_ms.min(600_000));
            let passing = front.clone();
            let _ = tokio::task::spawn_blocking(move || pass_on(&passing, |old| old.stop(wait))).await;
            front.leaving.store(true, Ordering::SeqCst);
            front.closed.cancel();
            front.stopped.cancel();
            reply
        }
        Ask::Handover => reply,
    }
}

/// Asks the front before this one, if it still serves; one question after the other.
pub(super) fn pass_on<T>(front: &Front, ask: impl FnOnce(&FrontClient) -> io::Result<T>) -> Option<T> {
    let mut held = front.predecessor.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let result = ask(held.as_ref()?).ok();
    if result.is_none() {
        *held = None;
    }
    result
}
