//! The builder: from a job to an image in the blob store, and once more to compare.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use adamant_digest::{Digest, Tree, Verified};
use adamant_fetch::archive::Limits;
use adamant_oci::{Content, Descriptor, Manifest};
use adamant_recipe::cargo::Crate;
use adamant_recipe::{Artifact, Commit, Lock, Machine, Recipe, Step, StepInput, Template, set_name};
use adamant_sandbox::Sandbox;
use adamant_store::BlobStore;

use crate::abi::{self, Kind};
use crate::archive::{self, Stage, read_tar};
use crate::canary::{Canary, Finding, Host};
use crate::compare::{self, Divergence};
use crate::error::BuildError;
use crate::inputs::{self, CrateInput, SourceInput};
use crate::layout::Layout;
use crate::outputs;
use crate::pack::{self, Image, Layer};
use crate::root::{Deb, Overlap, PackageTree, Root, Roots};
use crate::step::{self, Conditions, Places, Sink};
use crate::stream::{into_blob, with_blob};
use crate::write::{self, DiskError, Look};

/// Writes the source subset into an empty directory and returns its tree. Called on a blocking
/// thread; the text of an error goes to the user, and an [`std::io::Error`] among its sources says
/// whether the disk is full.
pub type Export = Arc<dyn Fn(&Path) -> Result<Tree, Box<dyn std::error::Error + Send + Sync>> + Send + Sync>;

/// Seconds since 1970. A parameter, so that the library reads no clock of its own.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The clock of the host.
pub fn system_clock() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// One artifact to build, with every input pinned.
#[derive(Clone)]
pub struct Job {
    /// What the recipe says.
    pub artifact: Artifact,
    /// Build ABI of the lock.
    pub abi: u32,
    /// Epoch of the lock.
    pub epoch: u64,
    /// Digest of the source subset, as `export` writes it.
    pub tree: Digest,
    /// Writes the source subset.
    pub export: Export,
    /// Packages of the toolchain set.
    pub toolchain: Vec<Deb>,
    /// Packages of the runtime set.
    pub runtime: Vec<Deb>,
    /// Crates of the `Cargo.lock`; empty for other templates.
    pub crates: Vec<CrateInput>,
    /// Declared sources, in the order the recipe gives.
    pub sources: Vec<SourceInput>,
    /// The commit; used only if the artifact needs it.
    pub commit: Option<Commit>,
}

/// Why a lock does not give a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// The recipe has no artifact of that name.
    #[error("the recipe has no artifact `{0}`")]
    NoArtifact(String),
    /// The lock lacks a source of the recipe.
    #[error("adamant.lock has no source `{0}`; run `adamant lock`")]
    NoSource(String),
}

impl Job {
    /// The job of one artifact of a recipe, with what its lock and its `Cargo.lock` pin. That
    /// they agree has been checked before.
    pub fn new(
        recipe: &Recipe,
        artifact: &str,
        lock: &Lock,
        crates: &[Crate],
        tree: Digest,
        export: Export,
    ) -> Result<Self, JobError> {
        let artifact = recipe.artifact(artifact).ok_or_else(|| JobError::NoArtifact(artifact.to_owned()))?.clone();
        let set = |purpose| {
            let deb = |package: &adamant_recipe::Package| Deb {
                name: package.name.clone(),
                version: package.version.clone(),
                digest: package.digest,
            };
            lock.packages_of(&set_name(&artifact.name, purpose)).into_iter().map(deb).collect()
        };
        let sources = artifact.sources.iter().map(|name| {
            let missing = || JobError::NoSource(name.clone());
            let source = recipe.sources.get(name).ok_or_else(missing)?.clone();
            Ok(SourceInput { digest: lock.url(name).ok_or_else(missing)?.digest, source })
        });
        let cargo = artifact.template == Template::Cargo;
        Ok(Self {
            abi: lock.abi,
            epoch: lock.epoch,
            tree,
            export,
            toolchain: set("toolchain"),
            runtime: set("runtime"),
            crates: crates
                .iter()
                .filter(|_| cargo)
                .map(|one| CrateInput { name: one.name.clone(), version: one.version.clone(), digest: one.checksum })
                .collect(),
            sources: sources.collect::<Result<_, _>>()?,
            commit: None,
            artifact,
        })
    }

    fn toolchain_set(&self) -> PackageTree {
        PackageTree::new(Kind::Toolchain, self.abi, self.epoch, self.toolchain.clone())
    }

    fn runtime_set(&self) -> PackageTree {
        PackageTree::new(Kind::Runtime, self.abi, self.epoch, self.runtime.clone())
    }

    fn commit(&self) -> Option<&Commit> {
        self.commit.as_ref().filter(|_| self.artifact.needs_commit)
    }

    fn env(&self) -> std::collections::BTreeMap<String, String> {
        let Artifact { template, env, cpus, .. } = &self.artifact;
        abi::environment(*template, env, *cpus, self.epoch, self.commit())
    }

    /// The step whose key names the image: the command with all it sees, and what packing adds
    /// (runtime packages and image configuration).
    pub fn step(&self) -> Step {
        let input = |path: String, mode: &str, digest| StepInput { path, mode: mode.to_owned(), digest };
        let mut inputs = vec![
            input("/".to_owned(), "root", self.toolchain_set().digest()),
            input(abi::WORK.to_owned(), "copy", self.tree),
        ];
        for SourceInput { source, digest } in &self.sources {
            let dir = if source.dir == "." { abi::WORK.to_owned() } else { format!("{}/{}", abi::WORK, source.dir) };
            inputs.push(if source.unpack {
                input(dir, "unpack", *digest)
            } else {
                input(format!("{dir}/{}", source.file_name()), "copy", *digest)
            });
        }
        let mut crates = self.crates.clone();
        crates.sort();
        for CrateInput { name, version, digest } in crates {
            inputs.push(input(format!("{}/{name}-{version}", abi::VENDOR), "unpack", digest));
        }
        inputs.push(input("image:/".to_owned(), "root", self.runtime_set().digest()));
        let config = pack::config(&self.artifact, self.epoch, Vec::new()).print();
        inputs.push(input("image:config".to_owned(), "config", config.digest()));
        Step {
            abi: self.abi,
            arch: abi::ARCH.to_owned(),
            machine: Machine {
                cpus: self.artifact.cpus,
                memory_mb: self.artifact.memory_mb,
                hostname: abi::HOSTNAME.to_owned(),
                uid: abi::ID,
                gid: abi::ID,
                cwd: abi::WORK.to_owned(),
            },
            argv: vec!["/usr/bin/sh".to_owned(), "-euc".to_owned(), self.artifact.build.clone()],
            env: self.env(),
            epoch: self.epoch,
            commit: self.commit().cloned(),
            inputs,
            outputs: self.artifact.files.clone(),
        }
    }

    /// The build key: look its output up before building.
    pub fn key(&self) -> Digest {
        self.step().key()
    }
}

/// An artifact that was built. Every blob of it is durable in the store.
#[derive(Debug, Clone)]
pub struct Built {
    /// Digest of the image manifest: the artifact.
    pub manifest: Digest,
    /// The manifest's bytes.
    pub manifest_bytes: Vec<u8>,
    /// The image configuration.
    pub config: Descriptor,
    /// Layers, from the lowest up.
    pub layers: Vec<Descriptor>,
    /// Digest of the tree that a host unpacks.
    pub tree: Digest,
    /// The log of the step, as a blob.
    pub log: Digest,
    /// Traces of the host that are no reason to refuse.
    pub warnings: Vec<Finding>,
    /// Names that several packages carry with different bytes.
    pub overlaps: Vec<Overlap>,
    /// Milliseconds from the start of the command to its end.
    pub step_ms: u64,
}

/// The result of a second build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilt {
    /// What the second build gave.
    pub manifest: Digest,
    /// `None` if it is what was expected.
    pub divergence: Option<Divergence>,
    /// The log of the second build, as a blob.
    pub log: Digest,
    /// What was varied, in words.
    pub varied: Vec<&'static str>,
}

impl Rebuilt {
    /// Whether both builds gave the same bytes.
    pub const fn passed(&self) -> bool {
        self.divergence.is_none()
    }
}

/// What a builder needs.
pub struct BuilderConfig {
    /// `<data>/cache`.
    pub cache: PathBuf,
    /// `<data>/work`.
    pub work: PathBuf,
    /// Where rebuilds run: another directory, best on another file system. `None` takes a
    /// differently named one below `work`.
    pub rebuild_work: Option<PathBuf>,
    /// Where inputs come from and images go to.
    pub blobs: Arc<dyn BlobStore>,
    /// Runs steps.
    pub sandbox: Sandbox,
    /// What outputs must not hold.
    pub host: Host,
    /// For the scan of outputs.
    pub clock: Clock,
}

/// Builds jobs. One per data directory; any number of jobs at once.
pub struct Builder {
    config: BuilderConfig,
    roots: Roots,
    /// Base layers made in this process, by package set.
    bases: Mutex<HashMap<Digest, (Digest, u64)>>,
}

const PREFIX: &str = "build-";
const REBUILD: &str = "again";

struct Product {
    image: Image,
    base_set: Digest,
    log: Vec<u8>,
    warnings: Vec<Finding>,
    overlaps: Vec<Overlap>,
    step_ms: u64,
    /// Staged files of the image; removed when it is packed.
    work: Work,
}

/// A directory of one run, removed with all a build may have locked in it.
struct Work(tempfile::TempDir);

impl Work {
    fn below(parent: &Path) -> Result<Self, DiskError> {
        let made = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent);
        made.map(Self).map_err(DiskError::on("create a directory in", parent))
    }

    /// Removes it off the async threads: a build may leave gigabytes.
    async fn remove(self) -> Result<(), BuildError> {
        Ok(tokio::task::spawn_blocking(move || drop(self)).await?)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = write::remove(self.0.path()) {
            tracing::warn!(%error, "a work directory stays until the next start");
        }
    }
}

impl Builder {
    /// Opens the directories and removes what a crash left in them. Blocks on the disk.
    pub fn open(config: BuilderConfig) -> Result<Self, DiskError> {
        let again = config.work.join(REBUILD);
        let rebuilds = config.rebuild_work.as_ref().unwrap_or(&again);
        for dir in [&config.cache, &config.work, rebuilds] {
            fs::create_dir_all(dir).map_err(DiskError::on("create", dir))?;
            for entry in fs::read_dir(dir).map_err(DiskError::on("read", dir))?.flatten() {
                if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                    write::remove(&entry.path())?;
                }
            }
        }
        let roots = Roots::open(&config.cache, config.blobs.clone())?;
        Ok(Self { config, roots, bases: Mutex::default() })
    }

    /// The cache of package trees.
    pub const fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Runs the step, packs its outputs, keeps the image. Whether the key has an output already
    /// is the caller's question.
    pub async fn build(&self, job: &Job, sink: Sink) -> Result<Built, BuildError> {
        let product = self.produce(job, Conditions::FIXED, &self.config.work, sink).await?;
        let blobs = &self.config.blobs;
        let known = self.bases.lock().unwrap_or_else(PoisonError::into_inner).get(&product.base_set).copied();
        let image = Arc::new(product.image);
        let base = match known {
            Some(base) if blobs.touch(base.0).await.map_err(adamant_store::WriteBlobError::from)?.is_some() => base,
            _ => {
                let base = self.keep(&image, Layer::Base).await?;
                self.bases.lock().unwrap_or_else(PoisonError::into_inner).insert(product.base_set, base);
                base
            }
        };
        let upper = self.keep(&image, Layer::Upper).await?;
        product.work.remove().await?;
        tracing::info!(point = "layers kept", artifact = job.artifact.name);
        let (config, manifest) = pack::documents(&job.artifact, job.epoch, &[base, upper]);
        let log = Verified::hash(product.log);
        for blob in [&log, &config, manifest.bytes()] {
            blobs.put(blob).await?;
        }
        let (config, layers) = match manifest.content() {
            Content::Image { config, layers } => ((**config).clone(), layers.clone()),
            Content::Index { .. } => return Err(BuildError::NotAnImage(manifest.digest())),
        };
        Ok(Built {
            manifest: manifest.digest(),
            manifest_bytes: manifest.bytes().bytes().to_vec(),
            config,
            layers,
            tree: image.tree().map_err(pack::PackError::from)?.digest(),
            log: log.digest(),
            warnings: product.warnings,
            overlaps: product.overlaps,
            step_ms: product.step_ms,
        })
    }

    async fn keep(&self, image: &Arc<Image>, layer: Layer) -> Result<(Digest, u64), BuildError> {
        let image = image.clone();
        Ok(into_blob(&self.config.blobs, move |out| image.write(layer, out)).await?)
    }

    /// Builds again under varied conditions, past every cache of outputs, and compares with the
    /// image `expected`. Keeps nothing but the log.
    pub async fn rebuild(&self, job: &Job, expected: Digest, sink: Sink) -> Result<Rebuilt, BuildError> {
        let again = self.config.work.join(REBUILD);
        let work = self.config.rebuild_work.as_ref().unwrap_or(&again);
        let product = self.produce(job, Conditions::VARIED, work, sink).await?;
        let image = Arc::new(product.image);
        let measured = image.clone();
        let layers = tokio::task::spawn_blocking(move || {
            Ok::<_, BuildError>([measured.measure(Layer::Base)?, measured.measure(Layer::Upper)?])
        });
        let (_, manifest) = pack::documents(&job.artifact, job.epoch, &layers.await??);
        let log = Verified::hash(product.log);
        self.config.blobs.put(&log).await?;
        let divergence =
            if manifest.digest() == expected { None } else { Some(self.explain(expected, image, work).await?) };
        product.work.remove().await?;
        Ok(Rebuilt { manifest: manifest.digest(), divergence, log: log.digest(), varied: varied(job) })
    }

    /// Unpacks the expected image's layers and compares.
    async fn explain(&self, expected: Digest, image: Arc<Image>, work: &Path) -> Result<Divergence, BuildError> {
        let manifest = Manifest::from_verified(self.config.blobs.get(expected).await?)
            .map_err(|_| BuildError::NotAnImage(expected))?;
        let Content::Image { layers, .. } = manifest.content() else { return Err(BuildError::NotAnImage(expected)) };
        let dir = Work::below(work)?;
        let stage = Arc::new(Stage::new(dir.0.path()));
        let mut items = Vec::new();
        // An empty layer is nothing but its end.
        for layer in layers.iter().filter(|layer| layer.size > 1024) {
            let digest = layer.digest.sha256().map_err(|_| BuildError::NotAnImage(expected))?;
            let stage = stage.clone();
            let read =
                with_blob(&self.config.blobs, digest, move |reader| read_tar(reader, &stage, &Limits::default()));
            items.extend(read.await.map_err(|error| BuildError::Layer { digest, source: Box::new(error) })?);
        }
        let found = tokio::task::spawn_blocking(move || {
            // Modes as `read_tar` sees them, on both sides.
            let first = archive::layout(items, false).map_err(pack::PackError::from)?;
            compare::explain(&first, &plain(&image.whole)).map_err(|source| BuildError::Compare { expected, source })
        });
        let found = found.await??;
        dir.remove().await?;
        Ok(found.unwrap_or_else(|| Divergence {
            path: String::new(),
            detail: "all files are equal; the image configuration or the order of layers differs".to_owned(),
            cause: "the image was made by another build ABI or recipe".to_owned(),
            cure: "rebuild it with the recipe and lock of its own commit".to_owned(),
        }))
    }

    /// From inputs to an image in memory and staged files.
    async fn produce(
        &self,
        job: &Job,
        conditions: Conditions,
        parent: &Path,
        sink: Sink,
    ) -> Result<Product, BuildError> {
        if !abi::SUPPORTED.contains(&job.abi) {
            return Err(BuildError::Abi(job.abi));
        }
        let root = self.roots.assemble(&job.toolchain_set()).await?;
        let base_set = job.runtime_set();
        let base = self.roots.assemble(&base_set).await?;
        let work = Work::below(parent)?;
        self.lay_down(job, conditions, work.0.path()).await?;
        let started = (self.config.clock)();
        let (log, step_ms, outputs) = self.execute(job, conditions, &root, work.0.path(), sink).await?;
        let canary = Canary::new(&self.config.host, started, (self.config.clock)());
        let (artifact, epoch, first) = (job.artifact.clone(), job.epoch, conditions == Conditions::FIXED);
        let packed = tokio::task::spawn_blocking(move || {
            let warnings = scan(&canary, &outputs, log.digest())?;
            let image = Image::new(base.layout().map_err(pack::PackError::from)?, outputs, epoch)?;
            image.check(&artifact)?;
            if first {
                image.check_interpreters(&artifact)?;
            }
            Ok::<_, BuildError>((image, warnings, log, base.conflicts))
        });
        let (image, warnings, log, below) = packed.await??;
        let overlaps = root.conflicts.iter().chain(below.iter()).cloned().collect();
        let base_set = base_set.digest();
        Ok(Product { image, base_set, log: log.into_bytes(), warnings, overlaps, step_ms, work })
    }

    /// Source, archives, crates and Cargo's home below `work`.
    async fn lay_down(&self, job: &Job, conditions: Conditions, work: &Path) -> Result<(), BuildError> {
        let look = Look::new(job.epoch);
        let [build, home, vendor, stage] = ["build", "home", "vendor", "stage"].map(|name| work.join(name));
        for dir in [&build, &home, &vendor, &stage] {
            fs::create_dir(dir).map_err(DiskError::on("create", dir))?;
        }
        let stage = Arc::new(Stage::new(&stage));
        let (export, target) = (job.export.clone(), build.clone());
        let tree = tokio::task::spawn_blocking(move || export(&target)).await?.map_err(BuildError::Export)?;
        if tree.digest() != job.tree {
            return Err(BuildError::Tree { expected: job.tree, found: tree.digest() });
        }
        let blobs = &self.config.blobs;
        inputs::sources(blobs, &job.sources, &build, &stage, look).await?;
        inputs::vendor(blobs, &job.crates, &vendor, &stage, look).await?;
        let cargo = job.artifact.template == Template::Cargo;
        let dressed = tokio::task::spawn_blocking(move || {
            if cargo {
                inputs::cargo_home(&home, look)?;
            }
            for dir in [&build, &home, &vendor] {
                write::redress(dir, look, conditions.reverse)?;
            }
            Ok::<_, inputs::PlaceError>(())
        });
        Ok(dressed.await??)
    }

    /// Runs the command and takes its outputs. The log is kept also when it fails.
    async fn execute(
        &self,
        job: &Job,
        conditions: Conditions,
        root: &Root,
        work: &Path,
        sink: Sink,
    ) -> Result<(Verified, u64, Vec<(String, crate::layout::Node)>), BuildError> {
        let (sandbox, artifact, env) = (self.config.sandbox.clone(), job.artifact.clone(), job.env());
        let (root, work) = (root.path.clone(), work.to_owned());
        let ran = tokio::task::spawn_blocking(move || {
            let [build, home, vendor] = ["build", "home", "vendor"].map(|name| work.join(name));
            let places = Places { root: &root, build: &build, home: &home, vendor: &vendor };
            let ran = step::run(&sandbox, &artifact, env.into_iter().collect(), places, conditions, &sink);
            // Now, since the work directory goes with the failure, and there is room again.
            let result = ran.result.map_err(|error| error.on_disk(room(&work)));
            if let Err(step::StepError::Full { .. }) = result {
                // Its log needs room; what cannot be removed is tried again with the whole directory.
                let _ = write::remove(&build);
            }
            let taken = result.map_err(Failure::Step).and_then(|outcome| {
                let out = work.join("out");
                fs::create_dir(&out).map_err(|source| Failure::Disk(DiskError::on("create", &out)(source)))?;
                let outputs = outputs::collect(&build, &artifact.files, &Stage::new(&out)).map_err(Failure::Output)?;
                Ok((outcome.wall_ms, outputs))
            });
            (ran.log, taken)
        });
        let (log, taken) = ran.await?;
        let log = Verified::hash(log);
        match taken {
            Ok((wall_ms, outputs)) => Ok((log, wall_ms, outputs)),
            Err(failure) => {
                self.config.blobs.put(&log).await?;
                let log = log.digest();
                Err(match failure {
                    Failure::Step(source) => BuildError::Step { log, source: Box::new(source) },
                    Failure::Output(source) => BuildError::Output { log, source: Box::new(source) },
                    Failure::Disk(source) => BuildError::Disk(source),
                })
            }
        }
    }
}

enum Failure {
    Step(step::StepError),
    Output(outputs::OutputError),
    Disk(DiskError),
}

/// Bytes that a step can still write below `dir`; `None` if the file system does not say.
fn room(dir: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(dir).ok()?;
    // Some file systems have no count of inodes and say 0 of 0.
    let inodes = found.f_files == 0 || found.f_favail > 0;
    Some(if inodes { found.f_bavail.saturating_mul(found.f_frsize) } else { 0 })
}

/// What a rebuild of this job changes.
fn varied(job: &Job) -> Vec<&'static str> {
    let mut varied = vec!["work directory on the host", "order of directory entries", "address layout", "time"];
    if job.artifact.cpus > 1 {
        varied.push("number of processors");
    }
    varied
}

/// The layout with modes as an unpacked archive has them.
fn plain(layout: &Layout) -> Layout {
    let mut plain = Layout::default();
    for (path, node) in layout.iter() {
        let node = match node.clone() {
            crate::layout::Node::Dir { .. } => crate::layout::Node::Dir { mode: 0o755 },
            other => other,
        };
        // Paths of a layout fit into a layout.
        let _ = plain.insert(path, node);
    }
    plain
}

fn scan(canary: &Canary, outputs: &[(String, crate::layout::Node)], log: Digest) -> Result<Vec<Finding>, BuildError> {
    let mut warnings = Vec::new();
    for (path, node) in outputs {
        let path = format!("/{path}");
        let findings = canary.scan(&path, node).map_err(|source| BuildError::Scan { path: path.clone(), source })?;
        for finding in findings {
            if finding.trace.refused() {
                return Err(BuildError::Trace { log, finding: Box::new(finding) });
            }
            warnings.push(finding);
        }
    }
    Ok(warnings)
}
