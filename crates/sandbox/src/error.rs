//! Why a program did not run.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Why a sandbox could not be started, or how it was lost.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The helper executable did not start.
    #[error("cannot start sandbox helper {}", exe.display())]
    Start {
        /// The executable given to [`crate::Sandbox::new`].
        exe: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The specification does not hold together.
    #[error("sandbox specification: {0}")]
    Spec(String),
    /// The specification is larger than the helper accepts.
    #[error("sandbox specification is {bytes} bytes, at most {limit} are accepted")]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// A stage of the set-up was refused. The program did not run.
    #[error("{0}")]
    Setup(Failure),
    /// The set-up stood, but the program could not be executed.
    #[error("cannot execute {path} in the sandbox")]
    Exec {
        /// `argv[0]`.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection to the helper broke.
    #[error("connection to the sandbox helper")]
    Connection(#[source] io::Error),
    /// The helper ended with no result, for instance because it was killed. Its processes are gone.
    #[error("sandbox helper {pid} ended with no result ({status})")]
    Lost {
        /// Its process id.
        pid: u32,
        /// Its exit status.
        status: String,
    },
}

/// One refused stage of the set-up, as reported by the stage itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What was being done.
    pub stage: Stage,
    /// To what: a path, a limit, a name.
    pub object: String,
    /// The error number; 0 when the text in `hint` says it all.
    pub errno: i32,
    /// What to change on this host, when known.
    pub hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(stage: Stage, object: impl Into<String>, errno: rustix::io::Errno) -> Self {
        Self { stage, object: object.into(), errno: errno.raw_os_error(), hint: None }
    }

    pub(crate) fn io(stage: Stage, object: impl Into<String>, error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(0);
        let hint = if errno == 0 { Some(error.to_string()) } else { None };
        Self { stage, object: object.into(), errno, hint }
    }

    pub(crate) fn text(stage: Stage, object: impl Into<String>, text: impl Into<String>) -> Self {
        Self { stage, object: object.into(), errno: 0, hint: Some(text.into()) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sandbox {} {}", self.stage, self.object)?;
        if self.errno != 0 {
            write!(f, ": {}", io::Error::from_raw_os_error(self.errno))?;
        }
        match &self.hint {
            Some(hint) => write!(f, ": {hint}"),
            None => Ok(()),
        }
    }
}

/// A stage of the set-up, in the order they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Reading the specification.
    Specification,
    /// Making the control group.
    Cgroup,
    /// Making the namespaces.
    Namespaces,
    /// Mapping and taking on the user and group.
    Identity,
    /// Mounting one object.
    Mount,
    /// Switching to the new root.
    Root,
    /// Bringing up the loopback interface.
    Network,
    /// Setting host and domain name.
    Hostname,
    /// Dropping capabilities.
    Capabilities,
    /// Resource limits, processors, address layout.
    Limits,
    /// Installing the system call filter.
    Filter,
    /// Making processes, pipes and the like.
    Process,
    /// Entering the working directory.
    Directory,
    /// Executing the program.
    Exec,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Specification => "specification",
            Self::Cgroup => "cgroup",
            Self::Namespaces => "namespaces",
            Self::Identity => "identity",
            Self::Mount => "mount",
            Self::Root => "root",
            Self::Network => "network",
            Self::Hostname => "hostname",
            Self::Capabilities => "capabilities",
            Self::Limits => "limits",
            Self::Filter => "filter",
            Self::Process => "process",
            Self::Directory => "working directory",
            Self::Exec => "execute",
        })
    }
}
