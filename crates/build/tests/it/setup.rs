//! Real packages, data directories and jobs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use adamant_build::{Builder, BuilderConfig, Deb, Export, Host, Job, Sink, system_clock};
use adamant_digest::{Digest, Entry, EntryKind, Tree, Verified};
use adamant_recipe::{Artifact, EPOCH, Template};
use adamant_sandbox::Sandbox;
use adamant_store::{BlobStore as _, FsBlobs};

const REQUEST: [&str; 10] =
    ["gcc", "libc6-dev", "make", "bash", "dash", "coreutils", "sed", "grep", "mawk", "findutils"];

/// A directory others may enter.
pub(crate) fn directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::Builder::new().prefix("build-it-").tempdir().expect("temporary directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    dir
}

/// Downloads the packages with apt, once; or says why not.
pub(crate) fn packages() -> Result<PathBuf, String> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debs");
    if dir.join("complete").exists() {
        return Ok(dir);
    }
    let partial = dir.join("partial");
    fs::create_dir_all(&partial).map_err(|error| error.to_string())?;
    let status = dir.join("status");
    fs::write(&status, "").map_err(|error| error.to_string())?;
    let output = Command::new("apt-get")
        .args(["install", "--download-only", "--yes", "--no-install-recommends", "-q"])
        .args(["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"])
        .arg(format!("-oDir::State::status={}", status.display()))
        .arg(format!("-oDir::Cache::archives={}", dir.display()))
        .args(REQUEST)
        .output()
        .map_err(|error| format!("apt-get: {error}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(format!("apt-get: {}", text.lines().last().unwrap_or("failed")));
    }
    fs::write(dir.join("complete"), "").map_err(|error| error.to_string())?;
    Ok(dir)
}

/// A data directory with a builder over it.
pub(crate) struct Site {
    pub(crate) builder: Builder,
    pub(crate) blobs: Arc<FsBlobs>,
    pub(crate) data: PathBuf,
    pub(crate) toolchain: Vec<Deb>,
    pub(crate) runtime: Vec<Deb>,
}

impl Site {
    /// Puts packages into a new store below `data`.
    pub(crate) async fn new(data: &Path, packages: &Path) -> Self {
        fs::create_dir_all(data).expect("data directory");
        let blobs = Arc::new(FsBlobs::open(&data.join("blobs")).expect("store"));
        let (mut toolchain, mut runtime) = (Vec::new(), Vec::new());
        let mut files: Vec<PathBuf> =
            fs::read_dir(packages).expect("packages").map(|entry| entry.expect("entry").path()).collect();
        files.sort();
        for file in files.into_iter().filter(|file| file.extension().is_some_and(|ext| ext == "deb")) {
            let blob = Verified::hash(fs::read(&file).expect("package"));
            blobs.put(&blob).await.expect("put");
            let name = file.file_name().expect("name").to_string_lossy().into_owned();
            let mut parts = name.split('_').map(str::to_owned);
            let (name, version) = (parts.next().expect("name"), parts.next().expect("version"));
            let deb = Deb { name, version, digest: blob.digest() };
            if matches!(deb.name.as_str(), "libc6" | "libgcc-s1" | "gcc-12-base" | "dash") {
                runtime.push(deb.clone());
            }
            toolchain.push(deb);
        }
        // Sets come in any order.
        toolchain.reverse();
        let builder = Self::open(data, blobs.clone());
        Self { builder, blobs, data: data.to_owned(), toolchain, runtime }
    }

    pub(crate) fn open(data: &Path, blobs: Arc<FsBlobs>) -> Builder {
        let config = BuilderConfig {
            cache: data.join("cache"),
            work: data.join("work"),
            rebuild_work: None,
            blobs,
            sandbox: Sandbox::new(std::env::current_exe().expect("own path")),
            host: Host { data: data.display().to_string(), ..Host::default() },
            clock: system_clock(),
        };
        Builder::open(config).expect("builder")
    }

    /// A job over `files` (path → text), which gives `/app/out` from `out`.
    pub(crate) fn job(&self, files: &[(&str, &str)], build: &str) -> Job {
        let tree = tree(files);
        let owned: Vec<(String, String)> =
            files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        let copy = tree.clone();
        let export: Export = Arc::new(move |dir: &Path| {
            for (path, text) in &owned {
                let at = dir.join(path);
                fs::create_dir_all(at.parent().ok_or("no parent")?).map_err(|error| error.to_string())?;
                fs::write(at, text).map_err(|error| error.to_string())?;
            }
            Ok(copy.clone())
        });
        Job {
            artifact: artifact(build),
            abi: 1,
            epoch: EPOCH,
            tree: tree.digest(),
            export,
            toolchain: self.toolchain.clone(),
            runtime: Vec::new(),
            crates: Vec::new(),
            sources: Vec::new(),
            commit: None,
        }
    }
}

fn tree(files: &[(&str, &str)]) -> Tree {
    let mut tree = Tree::new();
    for (path, text) in files {
        let kind = EntryKind::File { digest: Digest::of(text.as_bytes()), size: text.len() as u64 };
        tree.insert(path, Entry { mode: 0o644, kind }).expect("path");
    }
    tree
}

fn artifact(build: &str) -> Artifact {
    Artifact {
        name: "web".into(),
        path: ".".into(),
        template: Template::Make,
        toolchain: Vec::new(),
        runtime: Vec::new(),
        build: build.into(),
        env: BTreeMap::from([("CC".to_owned(), "gcc".to_owned())]),
        files: BTreeMap::from([("/app/out".to_owned(), "out".to_owned())]),
        run: Vec::new(),
        port: None,
        health: None,
        needs_commit: false,
        cpus: 2,
        memory_mb: 1024,
        timeout_s: 120,
        sources: Vec::new(),
    }
}

/// A sink that keeps lines.
pub(crate) fn listen() -> (Sink, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let copy = lines.clone();
    (Arc::new(move |line: &str| copy.lock().expect("lock").push(line.to_owned())), lines)
}

pub(crate) fn silent() -> Sink {
    Arc::new(|_: &str| ())
}
