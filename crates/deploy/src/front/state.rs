//! The routes of a running front.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backend::{Backend, InFlight};
use super::client::FrontClient;
use super::{ProjectRoutes, Table, file};

/// What all tasks of a front share.
pub(super) struct Front {
    pub(super) dir: PathBuf,
    pub(super) environment: String,
    routes: RwLock<Routes>,
    /// Serializes changes of the file.
    changing: Mutex<()>,
    /// The front that handed its socket to this one and still serves old connections.
    pub(super) predecessor: Mutex<Option<FrontClient>>,
    /// Set once the socket was handed over: connections are closed after their next answer.
    pub(super) leaving: AtomicBool,
    /// No more connections are accepted.
    pub(super) closed: CancellationToken,
    /// Everything ends.
    pub(super) stopped: CancellationToken,
    pub(super) tasks: TaskTracker,
    /// Connections of clients.
    pub(super) connections: AtomicUsize,
    pub(super) connection_ended: Notify,
}

#[derive(Default)]
struct Routes {
    table: Table,
    hosts: HashMap<String, Arc<Backend>>,
    /// All backends by key, also those that drain.
    backends: HashMap<String, Arc<Backend>>,
    /// Which version of the file this is.
    stamp: Option<(u64, i64, i64)>,
}

/// What a host name leads to.
pub(super) enum Found {
    Instance(InFlight),
    Unknown,
}

impl Front {
    pub(super) fn new(dir: PathBuf, environment: String) -> io::Result<Self> {
        let front = Self {
            dir,
            environment,
            routes: RwLock::default(),
            changing: Mutex::default(),
            predecessor: Mutex::default(),
            leaving: AtomicBool::new(false),
            closed: CancellationToken::new(),
            stopped: CancellationToken::new(),
            tasks: TaskTracker::new(),
            connections: AtomicUsize::new(0),
            connection_ended: Notify::new(),
        };
        front.reload()?;
        Ok(front)
    }

    /// The instance for a host; the request counts as in flight from here on.
    pub(super) fn find(&self, host: &str) -> Found {
        if self.leaving.load(Ordering::SeqCst) && stamp(&self.dir) != self.read().stamp {
            // The successor owns the routes now; the file is where it puts them.
            let _ = self.reload();
        }
        match self.read().hosts.get(host) {
            Some(backend) => Found::Instance(backend.enter()),
            None => Found::Unknown,
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Routes> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the routes from the file.
    pub(super) fn reload(&self) -> io::Result<()> {
        // One at a time: an older table must not be applied after a newer one.
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.dir);
        let table = Table::read(&self.dir)?;
        self.apply(table, stamp);
        Ok(())
    }

    fn apply(&self, table: Table, stamp: Option<(u64, i64, i64)>) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        let mut hosts = HashMap::new();
        for (host, key) in table.projects.values().flat_map(|project| &project.hosts) {
            let backend = routes
                .backends
                .entry(key.clone())
                .or_insert_with(|| Arc::new(Backend::new(key.clone(), self.dir.join(key))));
            hosts.insert(host.clone(), backend.clone());
        }
        routes.hosts = hosts;
        routes.table = table;
        routes.stamp = stamp;
    }

    /// The routes as they are.
    pub(super) fn table(&self) -> Table {
        self.read().table.clone()
    }

    /// Replaces a project's routes: durable first, then at once for every new request. Blocks.
    pub(super) fn route(&self, project: &str, new: ProjectRoutes) -> Result<(), String> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.leaving.load(Ordering::SeqCst) {
            return Err("this front has handed over to another one: ask that".to_owned());
        }
        let mut table = self.table();
        let accepted = table.projects.get(project).map_or(0, |routes| routes.generation);
        if new.generation < accepted {
            return Err(format!("routes of deployment {} are older than those of {accepted}", new.generation));
        }
        if new.hosts.values().any(|key| !inside(key)) {
            return Err("a route leads out of the environment".to_owned());
        }
        if table.projects.get(project) == Some(&new) {
            return Ok(());
        }
        table.projects.insert(project.to_owned(), new);
        table.write(&self.dir).map_err(|e| format!("routes are not kept: {e}"))?;
        self.apply(table, stamp(&self.dir));
        Ok(())
    }

    /// Ends changes of the routes here, after one that is being written. Blocks.
    pub(super) fn leave(&self) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.leaving.store(true, Ordering::SeqCst);
    }

    /// Whether a request or a tunnel is still on an instance.
    pub(super) fn busy(&self) -> bool {
        self.read().backends.values().any(|backend| backend.busy())
    }

    /// Waits until nothing is in flight on an instance that has no route any more.
    pub(super) async fn drain(&self, key: &str, wait: Duration) -> usize {
        if self.leaving.load(Ordering::SeqCst) {
            let _ = self.reload();
        }
        let backend = {
            let routes = self.read();
            routes.backends.get(key).filter(|b| !routes.hosts.values().any(|h| h.key == b.key)).cloned()
        };
        let Some(backend) = backend else { return 0 };
        let left = backend.drain(wait).await;
        self.routes.write().unwrap_or_else(PoisonError::into_inner).backends.remove(key);
        left
    }
}

/// Keys are `<project>/instances/<name>`.
fn inside(key: &str) -> bool {
    Path::new(key).components().all(|c| matches!(c, std::path::Component::Normal(_)))
}

fn stamp(dir: &Path) -> Option<(u64, i64, i64)> {
    let metadata = std::fs::metadata(dir.join(file::ROUTES)).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}
