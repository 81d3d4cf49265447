//! What a recipe says, after defaults were applied.

use std::collections::BTreeMap;

use adamant_digest::Digest;
use serde::{Deserialize, Serialize};

/// A parsed `adamant.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The project's name: a DNS label of at most 40 characters.
    pub project: String,
    /// The artifacts, sorted by name.
    pub artifacts: Vec<Artifact>,
    /// Files from the outside by name, the `[sources.*]` tables.
    pub sources: BTreeMap<String, Source>,
}

impl Recipe {
    /// The artifact of that name.
    pub fn artifact(&self, name: &str) -> Option<&Artifact> {
        self.artifacts.iter().find(|artifact| artifact.name == name)
    }
}

/// Which ecosystem an artifact's defaults come from: `kind` in the recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Template {
    /// A Makefile: gcc, make and the C library.
    Make,
    /// A Cargo package or workspace: crates of its `Cargo.lock`, rustc and cargo of Debian.
    Cargo,
    /// Nothing but the command.
    Command,
}

impl Template {
    /// The word used in recipes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Make => "make",
            Self::Cargo => "cargo",
            Self::Command => "command",
        }
    }

    /// Debian packages of the toolchain when the recipe names none.
    pub const fn toolchain(self) -> &'static [&'static str] {
        match self {
            Self::Make => &["gcc", "libc6-dev", "make"],
            Self::Cargo => &["cargo-web", "gcc", "libc6-dev", "rustc-web"],
            Self::Command => &[],
        }
    }

    /// The build command when the recipe gives none.
    pub const fn build(self) -> Option<&'static str> {
        match self {
            Self::Make => Some("make"),
            Self::Cargo => Some("cargo build --release --offline --locked"),
            Self::Command => None,
        }
    }

    /// Environment variables set unless the recipe sets them.
    pub const fn env(self) -> &'static [(&'static str, &'static str)] {
        match self {
            // rustc calls `cc`, a link that only a maintainer script would have made.
            Self::Cargo => &[("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER", "gcc")],
            Self::Make => &[("CC", "gcc")],
            Self::Command => &[],
        }
    }
}

/// One artifact: how it is built, what goes into its image, how it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// The table's name: a DNS label of at most 40 characters.
    pub name: String,
    /// The part of the source tree that is built, relative, `.` for all of it. It becomes the
    /// work tree's root.
    pub path: String,
    /// Where defaults came from.
    pub template: Template,
    /// Debian packages of the build root as `name` or `name=version`, sorted. Essential
    /// packages are added when the lock is made.
    pub toolchain: Vec<String>,
    /// Debian packages whose files go into the image, with what they depend on, sorted.
    pub runtime: Vec<String>,
    /// Command, run with `sh -euc` in the work tree.
    pub build: String,
    /// Environment of the build, the template's defaults included.
    pub env: BTreeMap<String, String>,
    /// Absolute path in the image → output path relative to the work tree.
    pub files: BTreeMap<String, String>,
    /// What the image runs: an absolute program and its arguments; empty for an artifact that
    /// only carries files.
    pub run: Vec<String>,
    /// TCP port the program listens on.
    pub port: Option<u16>,
    /// HTTP path asked for before the program gets traffic.
    pub health: Option<String>,
    /// The step may see the commit's id and time, which then are in its key.
    pub needs_commit: bool,
    /// Processors the build sees, 1 to 64.
    pub cpus: u32,
    /// Memory the build may use, in MiB, 64 to 65536.
    pub memory_mb: u64,
    /// Seconds the build may take, 1 to 86400.
    pub timeout_s: u64,
    /// Names of [`Recipe::sources`] put into the work tree before the build, sorted.
    pub sources: Vec<String>,
}

/// A file from the outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name in the recipe and in the lock.
    pub name: String,
    /// `https://` or `http://`, without credentials.
    pub url: String,
    /// Digest, if the recipe pins it itself; otherwise the lock does.
    pub digest: Option<Digest>,
    /// Directory below the work tree where it goes, `.` for the work tree itself.
    pub dir: String,
    /// Whether it is an archive to unpack (its single top directory stripped) or a file to copy
    /// under its own name.
    pub unpack: bool,
}

impl Source {
    /// The last component of the URL's path, the name of the file when it is only copied.
    pub fn file_name(&self) -> &str {
        let path = self.url.split(['?', '#']).next().unwrap_or_default();
        path.rsplit('/').next().unwrap_or_default()
    }
}

impl Artifact {
    /// Paths of the native locks the artifact is built from, from the repository's root.
    pub fn native_locks(&self) -> Vec<String> {
        match self.template {
            Template::Cargo if self.path == "." => vec!["Cargo.lock".to_owned()],
            Template::Cargo => vec![format!("{}/Cargo.lock", self.path)],
            Template::Make | Template::Command => Vec::new(),
        }
    }
}
