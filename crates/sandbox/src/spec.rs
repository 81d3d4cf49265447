//! What to run and what it may see: the plain data a caller fills in.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything that decides how a program runs, apart from descriptors.
///
/// The tree at `root` must already hold an empty directory (not a symbolic link) for each mount
/// point: `/proc`, `/dev`, `/tmp` and every `target` of `mounts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Tree shown read-only as `/`. Unused when [`Fds::root`] is given.
    pub root: PathBuf,
    /// Mounted in this order, after `/proc`, `/dev` and `/tmp`.
    pub mounts: Vec<Mount>,
    /// Program (absolute path inside the sandbox) and its arguments.
    pub argv: Vec<String>,
    /// The whole environment; nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Working directory inside the sandbox.
    pub cwd: String,
    /// Host name seen inside; the domain name is always `(none)`.
    pub hostname: String,
    /// User id seen inside.
    pub uid: u32,
    /// Group id seen inside.
    pub gid: u32,
    /// Ceilings; absent means the defaults of [`Limits`].
    pub limits: Limits,
    /// Number of processors the program may use and sees; fewer when the host has fewer.
    pub cpus: Option<u32>,
    /// TCP port of 127.0.0.1 inside to which [`Fds::listener`] gives connections.
    pub port: Option<u16>,
    /// Whether addresses are randomized.
    pub aslr: bool,
    /// What the program is.
    pub kind: Kind,
}

/// What a sandboxed program is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A build step: the first to be killed when the host runs out of memory.
    Build,
    /// A deployed service.
    Instance,
}

/// One mount below `/`, always without set-user-id programs and devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mount {
    /// A file or directory of the host, with what is mounted below it.
    Bind {
        /// Where it is on the host.
        source: Source,
        /// Absolute path inside; must exist, with no symbolic link in it.
        target: String,
        /// Whether the program may write.
        access: Access,
    },
    /// A fresh file system in memory, owned by the program's user.
    Tmpfs {
        /// Absolute path inside; `/tmp` replaces the default one.
        target: String,
        /// Most bytes it may hold.
        size_bytes: u64,
        /// Permission bits of its top directory.
        mode: u32,
    },
}

/// Where a bind mount comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A path on the host, resolved with the rights of the caller.
    Path(PathBuf),
}

/// Whether a mount may be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Recursively read-only.
    ReadOnly,
    /// Writable as far as file permissions allow.
    Writable,
}

/// Ceilings of one sandbox. Absent means no ceiling, except where a default is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of all processes together, bytes, swap included. Needs a cgroup, see [`crate::Host`].
    pub memory_bytes: Option<u64>,
    /// Processes and threads at one time.
    pub processes: Option<u64>,
    /// Processor seconds of any one process.
    pub cpu_seconds: Option<u64>,
    /// Wall-clock milliseconds from spawn; then everything is killed.
    pub wall_ms: Option<u64>,
    /// Size of any one file written, bytes.
    pub file_bytes: Option<u64>,
    /// Open descriptors of any one process; default 4096.
    pub open_files: Option<u64>,
}

/// Descriptors handed to a sandbox. The program itself gets none but 0, 1 and 2.
#[derive(Debug, Default)]
pub struct Fds {
    /// Directory mounted as `/` in place of [`Spec::root`], never looked up by path again.
    pub root: Option<OwnedFd>,
    /// Listening unix stream socket. For each connection accepted on it, the first process inside
    /// connects to 127.0.0.1:[`Spec::port`] and answers with one message: byte `+` with the TCP
    /// socket attached (`SCM_RIGHTS`), or byte `-` and the reason as text. Then it closes.
    pub listener: Option<OwnedFd>,
    /// The program's standard output; `/dev/null` when absent.
    pub stdout: Option<OwnedFd>,
    /// The program's standard error; `/dev/null` when absent.
    pub stderr: Option<OwnedFd>,
}

/// How a sandbox ended. By then none of its processes is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How the main program ended.
    pub exit: Exit,
    /// The ceiling that was struck, even when the program then exited with 0.
    pub limit: Option<Limit>,
    /// Wall-clock milliseconds from the helper's start to the end of the last process.
    pub wall_ms: u64,
    /// Largest resident set of any one process, bytes.
    pub max_rss_bytes: u64,
}

impl Outcome {
    /// Whether the main program exited with 0 and no ceiling ended it.
    pub fn success(&self) -> bool {
        self.exit == Exit::Code(0)
    }
}

/// How the main program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exit {
    /// It exited with this status.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// A ceiling of [`Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// [`Limits::memory_bytes`]: the kernel killed a process.
    Memory,
    /// [`Limits::processes`]: a fork was refused.
    Processes,
    /// [`Limits::cpu_seconds`].
    Cpu,
    /// [`Limits::wall_ms`].
    Wall,
    /// [`Limits::file_bytes`].
    FileSize,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Processes => "processes",
            Self::Cpu => "processor time",
            Self::Wall => "wall-clock time",
            Self::FileSize => "file size",
        })
    }
}
