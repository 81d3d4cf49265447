//! The target as the server and the command line see it.

mod disk;
mod execute;
mod fronts;
mod retire;
mod view;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use adamant_digest::Digest;
use adamant_release::{Configuration, Document as _, DocumentError, PlanError, Rollout};
use adamant_store::BlobStore;
use tokio_util::task::TaskTracker;

use crate::tree::{Trees, UnpackError};
use disk::Project;
pub use disk::Record;
pub(crate) use fronts::build_of;
pub use view::{InstanceView, LogFollower, LogLine, Observed};

/// Where the target keeps things and how long it waits.
#[derive(Debug, Clone)]
pub struct Options {
    /// `<data>/local`.
    pub dir: PathBuf,
    /// `<data>/trees`.
    pub trees: PathBuf,
    /// The executable that answers `__front`, `__instance` and `__sandbox`.
    pub exe: PathBuf,
    /// The trust file that supervisors verify evidence with.
    pub trust: PathBuf,
    /// How long a new instance may take until it is healthy.
    pub ready: Duration,
    /// How long requests on an old instance may take after a switch.
    pub drain: Duration,
}

impl Options {
    /// The usual places below a data directory: a minute to become healthy, 30 s to drain.
    pub fn new(data: &std::path::Path, exe: PathBuf) -> Self {
        Self {
            dir: data.join("local"),
            trees: data.join("trees"),
            exe,
            trust: data.join("trust.json"),
            ready: Duration::from_mins(1),
            drain: Duration::from_secs(30),
        }
    }
}

/// A deployment to carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its sequence number in the environment's chain.
    pub generation: u64,
    /// Exact bytes of the rollout document.
    pub rollout: Vec<u8>,
    /// Exact bytes of the configuration revision the rollout names.
    pub configuration: Vec<u8>,
    /// The capsule that shows that this rollout was deployed there; supervisors verify it.
    pub evidence: String,
    /// Port of the environment's front if it has none yet; `None` takes any.
    pub port: Option<u16>,
}

/// How a deployment went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It serves.
    Healthy {
        /// From the call to the switch, in milliseconds.
        ms: u64,
        /// Files that had to be repaired, in words.
        healed: Vec<String>,
    },
    /// It does not; what ran before runs on.
    Failed {
        /// Why, with the last lines of the log.
        reason: String,
    },
}

/// Why a deployment was not tried.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Rollout or configuration cannot be read.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The configuration is not the one the rollout names.
    #[error("the rollout names configuration {named}, but {given} was given")]
    Configuration {
        /// In the rollout.
        named: Digest,
        /// What came.
        given: Digest,
    },
    /// The host has accepted something newer, or something else under that number.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// An artifact cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The target itself.
    #[error(transparent)]
    Local(#[from] LocalError),
}

/// The target's own files, fronts and supervisors.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// A file or directory.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// The front of an environment.
    #[error("the front of {environment}: {source}")]
    Front {
        /// The environment.
        environment: String,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else works on it.
    #[error("{project} in {environment} is being changed by another process; try again when it is done")]
    Busy {
        /// The environment.
        environment: String,
        /// The project.
        project: String,
    },
    /// Nothing runs there.
    #[error("{project} was never deployed to {environment}")]
    Unknown {
        /// The environment.
        environment: String,
        /// The project.
        project: String,
    },
}

/// What [`Local::down`] has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Down {
    /// Instances that ran.
    pub instances: usize,
    /// Fronts that ran.
    pub fronts: usize,
}

/// What [`Local::converge`] did or saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The environment.
    pub environment: String,
    /// The project; empty for the front.
    pub project: String,
    /// In words: `front started`, `1-web: damaged: …`.
    pub what: String,
    /// Whether something is still not as it should be.
    pub trouble: bool,
}

/// The local target. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Local(Arc<Inner>);

pub(crate) struct Inner {
    options: Options,
    trees: Trees,
    /// Retirements under way; [`Local::settle`] waits for them.
    retiring: TaskTracker,
    /// Directories of the instances they are about.
    ending: Mutex<HashSet<PathBuf>>,
}

impl Local {
    /// Opens the target, making its directories. Starts nothing: see [`Local::converge`].
    pub fn open(options: Options, blobs: Arc<dyn BlobStore>) -> Result<Self, LocalError> {
        for dir in [&options.dir, &options.trees] {
            crate::durable::create_dir(dir).map_err(|source| LocalError::Io { path: dir.clone(), source })?;
        }
        let options = Options { dir: canonical(&options.dir)?, trees: canonical(&options.trees)?, ..options };
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let owner = Some(adamant_sandbox::owner()).filter(|owner| *owner != own);
        let trees = Trees::new(options.trees.clone(), blobs, owner);
        Ok(Self(Arc::new(Inner { options, trees, retiring: TaskTracker::new(), ending: Mutex::default() })))
    }

    /// Unpacked artifacts.
    pub fn trees(&self) -> &Trees {
        &self.0.trees
    }

    /// Carries out a deployment: new instances beside the old ones, a switch when they are
    /// healthy, then the old ones are drained and stopped in the background. Idempotent. A failed
    /// one leaves what ran before. Durable on return.
    pub async fn apply(&self, applied: &Applied) -> Result<Outcome, ApplyError> {
        let rollout = Rollout::parse(&applied.rollout)?;
        Configuration::parse(&applied.configuration)?;
        let given = Digest::of(&applied.configuration);
        if given != rollout.configuration {
            return Err(ApplyError::Configuration { named: rollout.configuration, given });
        }
        let project = Project::new(&self.0.options.dir, &rollout.environment, &rollout.project);
        self.0.apply(project, rollout, applied).await
    }

    /// Makes what runs agree with what is recorded: missing fronts and instances are started,
    /// damaged trees healed, routes and retirements completed, fronts of an older executable
    /// replaced without dropping a connection. Level-triggered: call it at start and at intervals.
    pub async fn converge(&self) -> Vec<Event> {
        self.0.converge().await
    }

    /// Everything that is or should be running.
    pub async fn observe(&self) -> Result<Vec<Observed>, LocalError> {
        let inner = self.0.clone();
        blocking(&self.0.options.dir, move || Ok(view::observe(&inner.options.dir))).await
    }

    /// Deployments this host has accepted, oldest first, with all that is needed to repeat them.
    pub async fn history(&self, environment: &str, project: &str) -> Result<Vec<Record>, LocalError> {
        let project = Project::new(&self.0.options.dir, environment, project);
        let path = project.dir().to_owned();
        blocking(&path, move || project.history()).await
    }

    /// The last lines of the logs of what runs (or ran last) and, after them, of what failed if the
    /// newest deployment did; oldest first per instance.
    pub async fn logs(&self, environment: &str, project: &str, lines: usize) -> Result<Vec<LogLine>, LocalError> {
        let project = Project::new(&self.0.options.dir, environment, project);
        let path = project.dir().to_owned();
        blocking(&path, move || Ok(view::logs(&project, lines))).await
    }

    /// Follows the logs of a project from now on, over switches and restarts.
    pub fn follow(&self, environment: &str, project: &str) -> LogFollower {
        LogFollower::new(Project::new(&self.0.options.dir, environment, project))
    }

    /// Port of the front of `environment`, if it has one.
    pub async fn port(&self, environment: &str) -> Result<Option<u16>, LocalError> {
        let dir = self.0.options.dir.join(environment);
        let path = dir.clone();
        blocking(&path, move || Ok(crate::front::FrontConfig::read(&dir)?.map(|config| config.port))).await
    }

    /// Makes sure that `environment` has a front that answers, on `port` if it is new; its port.
    pub async fn ensure_front(&self, environment: &str, port: Option<u16>) -> Result<u16, LocalError> {
        let (inner, name) = (self.0.clone(), environment.to_owned());
        let failed = |source| LocalError::Front { environment: environment.to_owned(), source };
        let work = tokio::task::spawn_blocking(move || inner.ensure_front(&name, port));
        work.await.map_err(std::io::Error::other).and_then(|result| result).map_err(failed)
    }

    /// Waits until everything replaced is stopped.
    pub async fn settle(&self) {
        self.0.retiring.close();
        self.0.retiring.wait().await;
        self.0.retiring.reopen();
    }

    /// Stops every instance and front and says how many ran. What should run stays recorded:
    /// [`Local::converge`] brings it back.
    pub async fn down(&self) -> Result<Down, LocalError> {
        self.settle().await;
        let inner = self.0.clone();
        let path = self.0.options.dir.clone();
        blocking(&path, move || inner.down()).await
    }
}

fn canonical(path: &std::path::Path) -> Result<PathBuf, LocalError> {
    path.canonicalize().map_err(|source| LocalError::Io { path: path.to_owned(), source })
}

/// Runs file work off the asynchronous threads.
pub(crate) async fn blocking<T: Send + 'static>(
    path: &std::path::Path,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, LocalError> {
    let result = tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other);
    result.and_then(|result| result).map_err(|source| LocalError::Io { path: path.to_owned(), source })
}
