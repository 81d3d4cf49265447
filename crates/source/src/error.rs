//! Errors, one enum per kind of operation.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use adamant_digest::TreeError;

use crate::Oid;

/// A git process did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// It could not be started.
    #[error("cannot run `{}`: install git 2.36 or newer", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is too old, or not git.
    #[error("`{}` is `{found}`: git 2.36 or newer is needed", program.display())]
    Version {
        /// The program.
        program: PathBuf,
        /// What it said.
        found: String,
    },
    /// Talking to it broke.
    #[error("git {command}: {source}")]
    Io {
        /// The subcommand.
        command: String,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// It took too long and was ended.
    #[error("git {command} took longer than {} s and was ended", limit.as_secs())]
    Timeout {
        /// The subcommand.
        command: String,
        /// The bound.
        limit: Duration,
    },
    /// It printed more than is sensible and was ended.
    #[error("git {command} printed more than {limit} bytes and was ended")]
    Output {
        /// The subcommand.
        command: String,
        /// The bound.
        limit: usize,
    },
    /// It said no.
    #[error("git {command}: {message}")]
    Failed {
        /// The subcommand.
        command: String,
        /// Its exit code, if it ended by itself.
        code: Option<i32>,
        /// What it printed, on one line.
        message: String,
    },
    /// It printed something unexpected.
    #[error("git {command} printed something unexpected: `{line}`")]
    Unexpected {
        /// The subcommand.
        command: String,
        /// What it printed, shortened.
        line: String,
    },
}

/// Why a repository cannot be opened or created.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not usable as the name of a project.
    #[error(
        "`{0}` cannot name a project: use 1 to 63 lower-case letters, digits and inner hyphens, such as `shop` or `my-app`"
    )]
    BadName(String),
    /// There is no such project.
    #[error("there is no project `{0}`: create it with `adamant init`, or check the spelling")]
    Unknown(String),
    /// The disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// git.
    #[error(transparent)]
    Git(#[from] GitError),
}

/// Why something could not be read from a repository.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The object is not here or not a commit.
    #[error("commit {0} is not in this repository: push it first")]
    NoCommit(Oid),
    /// The commit has no such path.
    #[error("commit {} has no `{path}`", commit.short())]
    NoPath {
        /// The commit.
        commit: Oid,
        /// The path.
        path: String,
    },
    /// Its tree holds what was erased.
    #[error("`{path}` of commit {} is not here: {what}", commit.short())]
    Erased {
        /// The commit.
        commit: Oid,
        /// Where in its tree.
        path: String,
        /// The object, and what its tombstone says.
        what: String,
    },
    /// Not a relative, `/`-separated path.
    #[error("`{0}` is not a path inside a repository: write it relative, without `.`, `..` or empty parts")]
    BadPath(String),
    /// The path is not what was asked for.
    #[error("`{path}` of commit {} is a {found}, not a {expected}", commit.short())]
    Kind {
        /// The commit.
        commit: Oid,
        /// The path.
        path: String,
        /// What it is.
        found: &'static str,
        /// What was expected.
        expected: &'static str,
    },
    /// Larger than the caller takes.
    #[error("`{path}` of commit {} has {size} bytes, above the limit of {limit}", commit.short())]
    TooLarge {
        /// The commit.
        commit: Oid,
        /// The path.
        path: String,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The name is not UTF-8.
    #[error("`{0}` (shown with replacement characters) is not UTF-8: rename it")]
    NotUtf8(String),
    /// A tree that is too large, too deep, or with too long paths or names.
    #[error("`{path}` of commit {} has {what}, above the limit of {limit}", commit.short())]
    Limit {
        /// The commit.
        commit: Oid,
        /// The directory or path, the beginning of a long one.
        path: String,
        /// Too many of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// git.
    #[error(transparent)]
    Git(#[from] GitError),
}

/// Why a tree was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Submodules are not pinned by bytes we keep.
    #[error(
        "`{path}` is a submodule: Adamant builds only what the commit itself holds; copy the files in (git subtree) or lock them as a URL"
    )]
    Submodule {
        /// Where.
        path: String,
    },
    /// A symbolic link that would reach other files than those of the tree.
    #[error(
        "`{path}` is a symbolic link to `{target}`, which is outside the exported tree: link to something inside it"
    )]
    LinkOutside {
        /// The link.
        path: String,
        /// Its target.
        target: String,
    },
    /// A name no export writes.
    #[error("`{0}` is not a name a work tree may hold: rename it")]
    BadName(String),
    /// The destination is there already and not empty.
    #[error("`{}` is not empty: export writes into a new or empty directory", .0.display())]
    NotEmpty(PathBuf),
    /// The tree does not fit [`adamant_digest::Tree`].
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The destination.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// Reading the repository.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<GitError> for ExportError {
    fn from(error: GitError) -> Self {
        Self::Read(error.into())
    }
}

/// Why a ref was not written.
#[derive(Debug, thiserror::Error)]
pub enum RefError {
    /// Not a name git or we allow.
    #[error("`{0}` is not a ref name that can be written")]
    BadName(String),
    /// Compare-and-swap: somebody else was there first.
    #[error("`{name}` is at {}, not at {}: fetch, then push again", at(*.found), at(*.expected))]
    Moved {
        /// The ref.
        name: String,
        /// What it was expected at.
        expected: Option<Oid>,
        /// What it is at.
        found: Option<Oid>,
    },
    /// The target is not here.
    #[error("commit {0} is not in this repository: push it first")]
    NoCommit(Oid),
    /// The disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// git.
    #[error(transparent)]
    Git(#[from] GitError),
}

fn at(oid: Option<Oid>) -> String {
    oid.map_or_else(|| "nothing".to_owned(), |oid| oid.to_string())
}

/// Why a request was not served at all. Everything a git client can show is told in the git
/// protocol instead.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The request is not what git sends (HTTP 400).
    #[error("the request is not valid: {0}")]
    Malformed(String),
    /// An encoding other than gzip (HTTP 415).
    #[error("content encoding `{0}` is not supported: use gzip or none")]
    Encoding(String),
    /// More bytes than allowed (HTTP 413).
    #[error("the request is larger than {limit} bytes")]
    TooLarge {
        /// The bound.
        limit: u64,
    },
    /// Too many at once (HTTP 503).
    #[error("too many git requests are at work: try again in a moment")]
    Busy,
    /// The client went away or stayed silent (HTTP 408).
    #[error("the request ended early: {0}")]
    Interrupted(String),
    /// git.
    #[error(transparent)]
    Git(#[from] GitError),
}
