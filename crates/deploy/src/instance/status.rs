//! What a supervisor says of its instance, and asking it.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::file;
use crate::{durable, socket};

/// How long a supervisor that has stopped its program may take to end.
const STOPPED_EXIT: Duration = Duration::from_secs(5);

/// Where an instance is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Being verified and started, not yet healthy.
    Starting,
    /// Passed its health check since its last start.
    Healthy,
    /// The program ended; the next start comes after a pause.
    BackingOff,
    /// Its files are not the ones that were deployed. Never started so.
    Damaged,
    /// Evidence or documents do not hold. Never started so.
    Refused,
    /// Stopped on request.
    Stopped,
    /// No supervisor runs.
    Gone,
}

/// What a supervisor writes to `status.json` and answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    /// Always 1.
    pub version: u32,
    /// Where it is.
    pub phase: Phase,
    /// In words: the file that differs, how the program ended.
    pub detail: String,
    /// How often the program was started again.
    pub restarts: u32,
    /// Process id of the supervisor.
    pub supervisor: u32,
    /// Milliseconds from start to healthy, once it was.
    pub healthy_ms: Option<u64>,
    /// Milliseconds since 1970 of the last change.
    pub changed_ms: u64,
}

impl InstanceStatus {
    pub(crate) fn new(phase: Phase) -> Self {
        Self {
            version: 1,
            phase,
            detail: String::new(),
            restarts: 0,
            supervisor: std::process::id(),
            healthy_ms: None,
            changed_ms: 0,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(super) enum Ask {
    Status { v: u32 },
    Stop { v: u32 },
}

/// Looks at the instance in `dir`: asks its supervisor, or reads what the last one left.
pub(crate) fn look(dir: &Path) -> InstanceStatus {
    let asked = ask(dir, &Ask::Status { v: 1 }, Duration::from_secs(5));
    if let Ok(status) = asked {
        return status;
    }
    let left = durable::read_json::<InstanceStatus>(&dir.join(file::STATUS), 1 << 20).ok().flatten();
    let mut status = left.unwrap_or_else(|| InstanceStatus::new(Phase::Gone));
    if !matches!(status.phase, Phase::Damaged | Phase::Refused | Phase::Stopped) {
        status.phase = Phase::Gone;
    }
    status
}

/// Stops program and supervisor; whether there was one. Both are gone on return, so that the next
/// supervisor of the instance does not find the last one's lock.
pub(crate) fn stop(dir: &Path) -> io::Result<bool> {
    match ask(dir, &Ask::Stop { v: 1 }, Duration::from_secs(20)) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(false),
        // It went away while it was asked, which is what was asked for.
        Err(e) if socket::went_away(&e) => {}
        Err(e) => return Err(e),
        Ok(_) => {}
    }
    let lock = match std::fs::File::open(dir.join(file::LOCK)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        other => other?,
    };
    let until = Instant::now() + STOPPED_EXIT;
    while rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err() {
        if Instant::now() >= until {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the supervisor said it stopped and did not end"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}

fn ask(dir: &Path, ask: &Ask, wait: Duration) -> io::Result<InstanceStatus> {
    let stream = socket::Place::open(dir)?.connect(file::CONTROL)?;
    socket::ask(&stream, ask, wait)
}
