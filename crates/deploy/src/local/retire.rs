//! Ending what was replaced.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::disk::Project;
use super::{Down, Inner, LocalError};
use crate::front::FrontClient;
use crate::instance::{self, file};
use crate::{durable, socket};

/// How long an instance may take to end after its requests did.
const RETIRED: Duration = Duration::from_secs(30);
/// Logs of ended instances that are kept per project.
const MAX_LOGS: usize = 10;

impl Inner {
    /// Marks an instance as replaced, then drains, stops and removes it in the background.
    /// The mark keeps a later deployment of the same rollout from counting on it.
    pub(super) fn retire(self: &Arc<Self>, project: &Project, name: &str) -> io::Result<()> {
        let dir = project.instance_dir(name);
        // First of all: a mark is not written into a directory that is being removed.
        if !self.ending.lock().unwrap_or_else(PoisonError::into_inner).insert(dir.clone()) {
            return Ok(());
        }
        if let Err(error) = durable::write(&dir.join(file::RETIRING), b"") {
            self.ending.lock().unwrap_or_else(PoisonError::into_inner).remove(&dir);
            // Somebody else has just ended it.
            return if error.kind() == io::ErrorKind::NotFound && !dir.exists() { Ok(()) } else { Err(error) };
        }
        let (inner, project, name) = (self.clone(), project.clone(), name.to_owned());
        // Bounded by the time to drain and to stop; owned by the tracker that `settle` waits for.
        self.retiring.spawn_blocking(move || {
            if let Err(error) = remove(&project, &name, inner.options.drain) {
                let (environment, project) = (project.environment, project.name);
                tracing::warn!(environment, project, instance = name, %error, "not retired");
            }
            inner.ending.lock().unwrap_or_else(PoisonError::into_inner).remove(&dir);
        });
        Ok(())
    }

    /// Waits until an instance that this process is ending is gone: its name is wanted again, by a
    /// deployment that is repeated.
    pub(super) async fn wait_until_retired(&self, project: &Project, name: &str) -> Result<(), LocalError> {
        let dir = project.instance_dir(name);
        let until = tokio::time::Instant::now() + self.options.drain + RETIRED;
        while self.ending.lock().unwrap_or_else(PoisonError::into_inner).contains(&dir) {
            if tokio::time::Instant::now() >= until {
                let (environment, project) = (project.environment.clone(), project.name.clone());
                return Err(LocalError::Busy { environment, project });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Stops every instance and front. Blocks.
    pub(super) fn down(&self) -> io::Result<Down> {
        let mut ended = Down::default();
        let mut result = Ok(());
        for project in Project::all(&self.options.dir) {
            for name in project.instances() {
                match instance::stop(&project.instance_dir(&name)) {
                    Ok(ran) => ended.instances += usize::from(ran),
                    Err(error) => result = Err(error),
                }
            }
        }
        let environments = std::fs::read_dir(&self.options.dir)?;
        for environment in environments {
            match FrontClient::connect(&environment?.path()) {
                Ok(front) => {
                    ended.fronts += 1;
                    result = front.stop(Duration::ZERO).and(result);
                }
                Err(e) if gone(&e) => {}
                Err(e) => result = Err(e),
            }
        }
        result.map(|()| ended)
    }
}

/// Drains, stops and removes an instance, keeping its log. Only one does it at a time; whoever
/// comes second has nothing to do.
pub(super) fn remove(project: &Project, name: &str, drain: Duration) -> io::Result<()> {
    let dir = project.instance_dir(name);
    if !dir.exists() {
        return Ok(());
    }
    match FrontClient::connect(project.environment_dir()) {
        Ok(front) => {
            front.drain(&project.key(name), drain)?;
        }
        Err(e) if gone(&e) => {}
        Err(e) => return Err(e),
    }
    instance::stop(&dir)?;
    discard(project, name)
}

/// Removes the directory of an instance whose supervisor is gone, keeping its log.
pub(super) fn discard(project: &Project, name: &str) -> io::Result<()> {
    let dir = project.instance_dir(name);
    match std::fs::rename(dir.join(file::LOG), project.logs_dir().join(name)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    durable::remove_dir(&dir)?;
    let mut logs: Vec<_> = std::fs::read_dir(project.logs_dir())?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .collect();
    logs.sort();
    let old = logs.len().saturating_sub(MAX_LOGS);
    for (_, path) in logs.into_iter().take(old) {
        match std::fs::remove_file(path) {
            // Another one that ends has tidied up already.
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Whether an error of a control socket means that nobody is there.
pub(super) fn gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory)
}

/// Whether a supervisor answers in that directory.
pub(super) fn supervised(dir: &std::path::Path) -> bool {
    socket::Place::open(dir).and_then(|place| place.connect(file::CONTROL)).is_ok()
}
