//! The directory of repositories, and opening one.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OnceCell, RwLock, Semaphore};
use tokio_util::task::TaskTracker;

use crate::digests::Digests;
use crate::durable;
use crate::erased::Erased;
use crate::git::Git;
use crate::pending::{PENDING, remove_unfinished};
use crate::{Limits, OpenError};

/// All projects' repositories: `<dir>/<project>.git`. Cheap to clone. One process at a time may
/// have a directory open: opening a repository removes lock files a killed one left behind.
#[derive(Debug, Clone)]
pub struct Repositories(Arc<All>);

#[derive(Debug)]
struct All {
    dir: PathBuf,
    git: PathBuf,
    /// Whether another process works here.
    observing: bool,
    limits: Arc<Limits>,
    open: Mutex<HashMap<String, Arc<OnceCell<Repository>>>>,
    shared: Arc<Shared>,
}

/// What all repositories have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) pushes: Arc<Semaphore>,
    pub(crate) fetches: Arc<Semaphore>,
    pub(crate) erased: Erased,
    /// Owner of every push and fetch at work.
    pub(crate) tasks: TaskTracker,
}

/// One bare repository. Cheap to clone; safe to use from many tasks.
#[derive(Debug, Clone)]
pub struct Repository(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) project: String,
    pub(crate) git: Git,
    pub(crate) limits: Arc<Limits>,
    pub(crate) shared: Arc<Shared>,
    /// Writing refs, one at a time: git's own lock files would make the second one fail.
    pub(crate) refs: tokio::sync::Mutex<()>,
    /// Who is at work on which ref.
    pub(crate) turns: Mutex<HashMap<String, Weak<RwLock<()>>>>,
    pub(crate) digests: Digests,
    /// Held for reading by who adds a pack, for writing by who takes erased objects out of packs.
    pub(crate) packs: RwLock<()>,
}

impl Repositories {
    /// Opens the directory, creating it if needed, with `git` from `/usr/local/bin`, `/usr/bin`
    /// or `/bin`.
    pub async fn open(dir: PathBuf, limits: Limits) -> Result<Self, OpenError> {
        Self::open_with(dir, limits, PathBuf::from("git")).await
    }

    /// Opens the directory beside the process that it belongs to, only to read: what looks left over
    /// may be at work over there.
    pub async fn observe(dir: PathBuf, limits: Limits) -> Result<Self, OpenError> {
        Self::open_as(dir, limits, PathBuf::from("git"), true).await
    }

    /// Opens it with a git program of the caller's choice.
    pub async fn open_with(dir: PathBuf, limits: Limits, git: PathBuf) -> Result<Self, OpenError> {
        Self::open_as(dir, limits, git, false).await
    }

    async fn open_as(dir: PathBuf, limits: Limits, git: PathBuf, observing: bool) -> Result<Self, OpenError> {
        let wanted = dir.clone();
        let opened = blocking(move || {
            durable::create_dir_all(&wanted)?;
            wanted.canonicalize()
        });
        let dir = opened.await.map_err(|source| OpenError::Io { path: dir, source })?;
        let shared = Shared {
            pushes: Arc::new(Semaphore::new(limits.pushes)),
            fetches: Arc::new(Semaphore::new(limits.fetches)),
            erased: Erased::default(),
            tasks: TaskTracker::new(),
        };
        let all =
            All { dir, git, observing, limits: Arc::new(limits), open: Mutex::default(), shared: Arc::new(shared) };
        let repositories = Self(Arc::new(all));
        repositories.git(repositories.0.dir.clone()).check_version().await?;
        Ok(repositories)
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    fn git(&self, dir: PathBuf) -> Git {
        let Limits { command_time, git_memory_bytes, .. } = *self.0.limits;
        Git::new(self.0.git.clone(), dir, command_time, git_memory_bytes)
    }

    /// The repository of `project`, created if there is none. Durable on return.
    pub async fn create(&self, project: &str) -> Result<Repository, OpenError> {
        self.project(project, true).await
    }

    /// The repository of `project`.
    pub async fn get(&self, project: &str) -> Result<Repository, OpenError> {
        self.project(project, false).await
    }

    /// Names of all projects, sorted.
    pub async fn projects(&self) -> Result<Vec<String>, OpenError> {
        let dir = self.0.dir.clone();
        let listed = blocking(move || {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(dir)? {
                let name = entry?.file_name();
                let name = name.to_str().and_then(|name| name.strip_suffix(".git"));
                names.extend(name.filter(|name| is_project(name)).map(str::to_owned));
            }
            names.sort();
            Ok(names)
        });
        listed.await.map_err(|source| OpenError::Io { path: self.0.dir.clone(), source })
    }

    /// Takes no new pushes and fetches and waits for those at work. For an orderly stop; a
    /// killed process loses nothing that was acknowledged.
    pub async fn finish(&self) {
        self.0.shared.pushes.close();
        self.0.shared.fetches.close();
        self.0.shared.tasks.close();
        self.0.shared.tasks.wait().await;
    }

    async fn project(&self, project: &str, create: bool) -> Result<Repository, OpenError> {
        if !is_project(project) {
            return Err(OpenError::BadName(project.chars().take(100).collect()));
        }
        let path = self.0.dir.join(format!("{project}.git"));
        let found = {
            let path = path.clone();
            blocking(move || path.try_exists()).await
        };
        let found = found.map_err(|source| OpenError::Io { path: path.clone(), source })?;
        if !found && !create {
            return Err(OpenError::Unknown(project.to_owned()));
        }
        let cell = {
            let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(open.entry(project.to_owned()).or_default())
        };
        let opened = cell.get_or_try_init(async || {
            if !found {
                self.make(&path).await?;
            }
            if !self.0.observing {
                let prepared = path.clone();
                let limits = Arc::clone(&self.0.limits);
                blocking(move || prepare(&prepared, &limits))
                    .await
                    .map_err(|source| OpenError::Io { path: path.clone(), source })?;
            }
            let inner = Inner {
                project: project.to_owned(),
                git: self.git(path.clone()),
                limits: Arc::clone(&self.0.limits),
                shared: Arc::clone(&self.0.shared),
                refs: tokio::sync::Mutex::default(),
                turns: Mutex::default(),
                digests: Digests::default(),
                packs: RwLock::default(),
            };
            Ok::<_, OpenError>(Repository(Arc::new(inner)))
        });
        opened.await.cloned()
    }

    /// Makes a bare repository beside and renames it into place: it is there whole or not at all.
    async fn make(&self, path: &Path) -> Result<(), OpenError> {
        let at = |source| OpenError::Io { path: path.to_owned(), source };
        if path.try_exists().map_err(at)? {
            return Ok(());
        }
        let dir = self.0.dir.clone();
        let temp = blocking(move || tempfile::Builder::new().prefix(".new-").tempdir_in(dir)).await.map_err(at)?;
        let made = temp.path().join("git");
        let git = self.git(made.clone());
        let mut command = git.command(["init", "--quiet", "--bare", "--template=", "--object-format=sha1"]);
        command.arg("--initial-branch=main");
        git.finish("init", command, &[], 4096).await?;
        let (target, parent, limits) = (path.to_owned(), self.0.dir.clone(), Arc::clone(&self.0.limits));
        let moved = blocking(move || {
            for kept in ["refs/heads", "refs/tags", "refs/adamant/commits", "objects/pack", "objects/info", "info"] {
                durable::create_dir_all(&made.join(kept))?;
            }
            durable::write(&made.join("config"), config(&limits).as_bytes())?;
            durable::sync_tree(&made)?;
            std::fs::rename(&made, &target)?;
            durable::sync_dir(&parent)?;
            temp.close()
        });
        moved.await.map_err(at)
    }
}

impl Repository {
    /// The project it belongs to.
    pub fn project(&self) -> &str {
        &self.0.project
    }

    /// The bare repository on disk.
    pub fn path(&self) -> &Path {
        self.0.git.dir()
    }
}

/// Whether `name` names a project: a label of a host name.
fn is_project(name: &str) -> bool {
    let inner = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=63).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// The whole configuration of a repository; nothing else configures git.
fn config(limits: &Limits) -> String {
    let Limits { blob_bytes, depth, pack_bytes, .. } = limits;
    format!(
        "# Written by adamant at every start: changes are lost.
[core]
\trepositoryformatversion = 0
\tbare = true
\tfilemode = true
\tlogallrefupdates = false
\tfsync = all
\tfsyncMethod = fsync
\thooksPath = /dev/null
\tattributesFile = /dev/null
\texcludesFile = /dev/null
\tfsmonitor = false
\tprotectHFS = true
\tprotectNTFS = true
\tbigFileThreshold = {blob_bytes}
\tmaxTreeDepth = {tree_depth}
\tpackedGitWindowSize = 64m
\tpackedGitLimit = 512m
\tdeltaBaseCacheLimit = 64m
\tfilesRefLockTimeout = 5000
\tpackedRefsTimeout = 5000
[transfer]
\tfsckObjects = true
\thideRefs = refs/adamant
[receive]
\tfsckObjects = true
\tmaxInputSize = {pack_bytes}
\tautogc = false
\tunpackLimit = 1
[fetch]
\tfsckObjects = true
[uploadpack]
\tallowTipSHA1InWant = true
\tallowFilter = false
\tkeepAlive = 5
[pack]
\tthreads = 2
\twindowMemory = 64m
[gc]
\tauto = 0
[maintenance]
\tauto = false
[protocol]
\tallow = never
[credential]
\thelper =
",
        tree_depth = depth + 1,
    )
}

/// Brings a repository into the state we expect: our configuration, no hooks, no alternates,
/// nothing that a killed process left.
fn prepare(path: &Path, limits: &Limits) -> io::Result<()> {
    let wanted = config(limits);
    let file = path.join("config");
    if std::fs::read(&file).ok().as_deref() != Some(wanted.as_bytes()) {
        durable::write(&file, wanted.as_bytes())?;
    }
    for stray in ["HEAD.lock", "config.lock", "packed-refs.lock", "objects/info/alternates", "info/grafts", "shallow"] {
        durable::remove_file(&path.join(stray))?;
    }
    durable::create_dir_all(&path.join("refs/adamant/commits"))?;
    durable::create_dir_all(&path.join(PENDING))?;
    remove_unfinished(&path.join(PENDING))?;
    remove_locks(&path.join("refs"), 0)?;
    for entry in std::fs::read_dir(path.join("objects"))? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(QUARANTINE.as_bytes()) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    for entry in std::fs::read_dir(path.join("objects/pack"))? {
        let entry = entry?;
        let path = entry.path();
        // A removal that a kill cut short leaves the index. A pack without one is left alone: git does
        // not see it, and if its index was lost it can be made again.
        let index = path.extension().is_some_and(|extension| extension == "idx" || extension == "rev");
        let stray = index && !path.with_extension("pack").try_exists()?;
        if stray || entry.file_name().as_encoded_bytes().starts_with(b"tmp_") {
            durable::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Prefix of the directories in `objects/` that hold packs nobody vouches for yet.
pub(crate) const QUARANTINE: &str = "incoming-";

fn remove_locks(dir: &Path, depth: usize) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if depth < 32 {
                remove_locks(&entry.path(), depth + 1)?;
            }
        } else if entry.file_name().as_encoded_bytes().ends_with(b".lock") {
            durable::remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// Runs file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::is_project;

    #[test]
    fn project_names() {
        for name in ["shop", "a", "my-app", "0x", &"a".repeat(63)] {
            assert!(is_project(name), "{name}");
        }
        for name in ["", "-a", "a-", "A", "a.b", "a/b", "..", "a b", "ü", "shop.git", &"a".repeat(64)] {
            assert!(!is_project(name), "{name}");
        }
    }
}
