//! Making artifacts: lock, keep, build, rebuild. Joins recipe, lock, fetcher and builder.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use adamant_api::{Class, LockRequest, Locked};
use adamant_attest::predicate::{BindingKind, Input, Predicate, ResourceDescriptor, Role, Verifier, Vsa};
use adamant_build::{BuildError, CrateInput, Deb, Job, SourceInput};
use adamant_digest::Digest;
use adamant_fetch::{FetchError, LockFetchError};
use adamant_recipe::{Artifact, Lock, Recipe, cargo::CargoLock, set_name};
use adamant_release::Rebuild;
use adamant_source::ExportError;
use adamant_store::{Chain, Fact, Subject};
use serde_json::json;

use crate::error::Problem;
use crate::facts::describe;
use crate::pipeline::{Checked, Progress, unexportable};
use crate::platform::{Platform, as_binding, commit_of};

/// How often a second build is tried before it is on record that it gives nothing.
const REBUILD_ATTEMPTS: u32 = 3;

/// An artifact that exists: built now, or bound before under the same key.
pub(crate) struct Made {
    pub(crate) key: Digest,
    pub(crate) manifest: Digest,
    /// Release it was first built for, if it was not built now.
    pub(crate) reused: Option<String>,
    /// Digest of the tree that hosts unpack, if it was built now.
    pub(crate) tree: Option<Digest>,
    /// RFC 3339.
    pub(crate) started: String,
    /// RFC 3339.
    pub(crate) finished: String,
}

/// `resourceUri` of a rebuild's verification summary.
pub(crate) fn rebuild_resource(project: &str, artifact: &str) -> String {
    format!("adamant:rebuild/{project}/{artifact}")
}

/// The locked inputs that enter one artifact, of all that the commit's locks hold.
pub(crate) fn inputs_of<'a>(checked: &'a Checked, artifact: &'a Artifact) -> impl Iterator<Item = &'a Input> {
    let mut names = std::collections::HashSet::new();
    for use_ in ["toolchain", "runtime"] {
        let Some(set) = checked.lock.sets.get(&set_name(&artifact.name, use_)) else { continue };
        let members: std::collections::HashSet<&str> = set.packages.iter().map(String::as_str).collect();
        for package in checked.lock.packages.iter().filter(|p| members.contains(p.id().as_str())) {
            names.insert(format!("debian:{}/{}:{}", checked.lock.debian, package.id(), package.arch));
        }
    }
    for url in checked.lock.urls.iter().filter(|url| artifact.sources.contains(&url.name)) {
        names.insert(format!("url:{}@{}", url.name, url.url));
    }
    for native in artifact.native_locks().iter().filter_map(|path| checked.native.get(path)) {
        names.extend(native.crates.iter().map(|c| format!("crate:{}@{}", c.name, c.version)));
    }
    checked.inputs.iter().filter(move |input| names.contains(&input.name))
}

impl Platform {
    /// The lock of a recipe, every byte of it kept before it is returned.
    pub(crate) async fn lock(
        &self,
        project: &str,
        ask: &LockRequest,
        by: &str,
        say: crate::ship::Say<'_>,
    ) -> Result<Locked, Problem> {
        self.policy(project).await?;
        let there = |path: &str| ask.files.iter().any(|file| file == path);
        let recipe = Recipe::parse(&ask.recipe, &there).map_err(|e| Problem::usage(e.to_string()))?;
        if recipe.project != project {
            return Err(Problem::usage(format!("the recipe is of project `{}`, not `{project}`", recipe.project)));
        }
        let previous = match ask.lock.as_deref().map(Lock::parse) {
            None => None,
            Some(Ok(lock)) => Some(lock),
            // An unreadable lock is what this command mends; nothing of it can be kept.
            Some(Err(error)) => {
                say(format!("the lock that is here is not used: {error}"));
                None
            }
        };
        let mut natives = Vec::new();
        for path in recipe.artifacts.iter().flat_map(Artifact::native_locks) {
            let text = ask.native.get(&path).ok_or_else(|| {
                Problem::usage(format!("there is no {path}")).hint("`cargo generate-lockfile` writes it")
            })?;
            natives.push(adamant_recipe::cargo::parse(text).map_err(|e| Problem::usage(format!("{path}: {e}")))?);
        }
        let crates: Vec<_> = natives.iter().flat_map(|lock| lock.crates.iter().cloned()).collect();
        say("resolving; every byte is kept before the lock names it".to_owned());
        let steps = Steps::new(say);
        let locked = self
            .fetcher
            .resolve_lock(&recipe, &crates, previous.as_ref(), ask.update, &|progress| steps.show(&progress))
            .await
            .map_err(lock_problem)?;
        let (lock, report) = (locked.lock, locked.report);
        let inputs = adamant_recipe::inputs(&lock, &crates).map_err(|e| Problem::usage(e.to_string()))?;
        self.refuse_divergent(&inputs, by).await?;
        let empty = Lock::new(&lock.debian);
        let changes = adamant_recipe::diff(previous.as_ref().unwrap_or(&empty), &lock);
        let changes = if previous.is_some() { changes.iter().map(ToString::to_string).collect() } else { Vec::new() };
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Ok(Locked {
            lock: lock.to_string(),
            kept: count(report.kept),
            new: count(report.new),
            bytes: report.bytes,
            changes,
        })
    }

    /// The artifact of a commit: bound before under its key, or built now.
    pub(crate) async fn make(
        &self,
        checked: &Checked,
        artifact: &Artifact,
        progress: &Progress,
    ) -> Result<Made, Problem> {
        let job = self.job(checked, artifact).await?;
        let key = job.key();
        let started = crate::opening::now();
        if let Some(bound) = self.facts.ledger.binding(BindingKind::Output, &key.to_string()).await? {
            let fact = self.facts.at(bound.index).await?;
            let from = as_binding(&fact.predicate).and_then(|b| b.detail.get("release")?.as_str().map(str::to_owned));
            let from = from.unwrap_or_else(|| describe(&fact.predicate).1);
            // The name is bound; its bytes may have been damaged since. Then the build heals them.
            if self.is_whole(bound.digest).await? {
                return Ok(Made {
                    key,
                    manifest: bound.digest,
                    reused: Some(from),
                    tree: None,
                    finished: bound.at,
                    started,
                });
            }
            progress.say(format!("{:<7} stored bytes are damaged; building them again", artifact.name));
        }
        progress.output(&format!("$ {}", artifact.build));
        let log = progress.output_sink();
        let built = self.builder.build(&job, log).await.map_err(|e| build_problem(&artifact.name, e))?;
        for warning in &built.warnings {
            progress.say(format!("{:<7} warning: {warning}", artifact.name));
        }
        Ok(Made {
            key,
            manifest: built.manifest,
            reused: None,
            tree: Some(built.tree),
            started,
            finished: crate::opening::now(),
        })
    }

    async fn job(&self, checked: &Checked, artifact: &Artifact) -> Result<Job, Problem> {
        let repository = self.repository(&checked.project).await?;
        let tree = repository.tree(checked.oid, &artifact.path).await;
        let tree = tree.map_err(|error| {
            let mut problem = unexportable(checked.oid, error);
            problem.error.message = format!("artifact {}: {}", artifact.name, problem.error.message);
            problem
        })?;
        let tree = tree.digest();
        let runtime = tokio::runtime::Handle::current();
        let (oid, path) = (checked.oid, artifact.path.clone());
        let export: adamant_build::Export = Arc::new(move |dest| {
            // Called on a blocking thread of this runtime.
            let exported = runtime.block_on(repository.export(oid, &path, dest));
            exported.map(|tree| (*tree).clone()).map_err(|error| not_exported(dest, error))
        });
        let mut sources = Vec::new();
        for name in &artifact.sources {
            let source = checked.recipe.sources.get(name);
            let locked = checked.lock.urls.iter().find(|url| url.name == *name);
            let (Some(source), Some(locked)) = (source, locked) else {
                return Err(
                    Problem::usage(format!("source `{name}` is an input without a digest")).hint("run `adamant lock`")
                );
            };
            sources.push(SourceInput { source: source.clone(), digest: locked.digest });
        }
        let crates = artifact
            .native_locks()
            .iter()
            .filter_map(|path| checked.native.get(path))
            .flat_map(|lock| &lock.crates)
            .map(|c| CrateInput { name: c.name.clone(), version: c.version.clone(), digest: c.checksum })
            .collect();
        Ok(Job {
            artifact: artifact.clone(),
            abi: checked.lock.abi,
            epoch: checked.lock.epoch,
            tree,
            export,
            toolchain: packages(&checked.lock, &artifact.name, "toolchain"),
            runtime: packages(&checked.lock, &artifact.name, "runtime"),
            crates,
            sources,
            commit: Some(adamant_recipe::Commit {
                id: checked.oid.to_string(),
                time: u64::try_from(checked.commit.time).unwrap_or(0),
            }),
        })
    }

    /// Starts rebuilding a release in the background, unless that is under way.
    pub(crate) fn rebuild_later(self: &Arc<Self>, project: &str, number: u64) {
        if !self.begin_rebuild(project, number) {
            return;
        }
        let (platform, project) = (Arc::clone(self), project.to_owned());
        self.tasks.spawn(async move {
            // One at a time: a rebuild must not slow down what people wait for more than once.
            let slot = Arc::clone(&platform.rebuild_slot).acquire_owned().await;
            if slot.is_ok()
                && let Err(problem) = platform.rebuild(&project, number).await
            {
                tracing::error!(%problem, project, number, "rebuild");
            }
            platform.end_rebuild(&project, number);
        });
    }

    /// Builds every artifact of a release again under varied conditions and records the results.
    async fn rebuild(&self, project: &str, number: u64) -> Result<(), Problem> {
        let release = self.release(project, number).await?;
        let repository = self.repository(project).await?;
        let oid = commit_of(&release)?;
        let checked = self.check(project, &repository, oid).await?;
        let progress = Progress::new(None, self.logs.writer(project, number)?);
        for bound in &release.artifacts {
            if matches!(self.rebuild_of(project, bound.digest).await?, Some(Rebuild::Passed | Rebuild::Failed(_))) {
                continue;
            }
            let Some(artifact) = checked.recipe.artifact(&bound.name) else { continue };
            let job = self.job(&checked, artifact).await?;
            progress.say(format!("rebuild {} under varied conditions", bound.name));
            let (passed, said, detail) = match self.build_again(&job, bound.digest, &progress).await {
                Ok(again) => match &again.divergence {
                    None => (true, "same bytes", json!({ "varied": again.varied, "log": again.log })),
                    Some(d) => {
                        let why = format!("{}: {} ({}; {})", d.path, d.detail, d.cause, d.cure);
                        let (varied, log, manifest) = (again.varied, again.log, again.manifest);
                        let detail = json!({ "varied": varied, "log": log, "manifest": manifest, "why": why });
                        (false, "OTHER BYTES", detail)
                    }
                },
                Err(error) if !error.is_ours() => {
                    (false, "not completed", json!({ "completed": false, "why": error.to_string() }))
                }
                // A host that is full is tried again.
                Err(error) => return Err(build_problem(&bound.name, error)),
            };
            progress.say(format!("rebuild {}: {said}", bound.name));
            if let Some(why) = detail.get("why").and_then(|w| w.as_str()) {
                progress.say(why);
            }
            let rule = Digest::of(b"adamant rebuild v1: the same bytes under varied conditions");
            let vsa = Vsa {
                verifier: Verifier { id: format!("https://{}/builder", self.origin) },
                time_verified: crate::opening::now(),
                resource_uri: rebuild_resource(project, &bound.name),
                policy: ResourceDescriptor::sha256(Some("rebuild".to_owned()), None, rule),
                input_attestations: Vec::new(),
                verification_result: if passed { "PASSED" } else { "FAILED" }.to_owned(),
                verified_levels: if passed { vec!["ADAMANT_REBUILT".to_owned()] } else { Vec::new() },
                adamant_detail: detail,
            };
            let subject = vec![Subject { name: format!("{project}/{}", bound.name), digest: bound.digest }];
            let chain = Some(Chain { name: crate::facts::rebuilds(project, bound.digest), expect: None });
            self.append_one(Fact { role: Role::Builder, subject, predicate: Predicate::Vsa(vsa), chain }).await?;
        }
        Ok(())
    }

    /// A second build, tried again when it gives nothing: what a host that runs out of memory kills
    /// cannot be told from what fails by itself, but only the latter fails each time.
    async fn build_again(
        &self,
        job: &Job,
        expected: Digest,
        progress: &Progress,
    ) -> Result<adamant_build::Rebuilt, BuildError> {
        let mut attempt = 1;
        loop {
            match self.builder.rebuild(job, expected, progress.output_sink()).await {
                Err(error) if !error.is_ours() && attempt < REBUILD_ATTEMPTS => {
                    progress.say(format!("rebuild attempt {attempt}: {error}"));
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Whether an image and everything it names is in the store, unharmed.
    async fn is_whole(&self, manifest: Digest) -> Result<bool, Problem> {
        let Ok(bytes) = self.blobs.get(manifest).await else { return Ok(false) };
        let parsed = adamant_oci::Manifest::from_verified(bytes)
            .map_err(|e| Problem::damaged(format!("manifest {manifest}: {e}")))?;
        if let adamant_oci::Content::Image { config, layers } = parsed.content() {
            for part in std::iter::once(&**config).chain(layers) {
                let digest = part.digest.sha256().map_err(|e| Problem::damaged(e.to_string()))?;
                let Ok(mut reader) = self.blobs.open(digest).await else { return Ok(false) };
                // The stream ends in an error if the bytes are wrong.
                if tokio::io::copy(&mut reader.bytes, &mut tokio::io::sink()).await.is_err() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Keeps every byte a lock names, fetching by digest what is missing.
    pub(crate) async fn ensure<'a>(
        &self,
        lock: &Lock,
        natives: impl Iterator<Item = &'a CargoLock>,
        say: crate::ship::Say<'_>,
    ) -> Result<adamant_fetch::Report, Problem> {
        let crates: Vec<_> = natives.flat_map(|native| native.crates.iter().cloned()).collect();
        let steps = Steps::new(say);
        self.fetcher.ensure(lock, &crates, &|progress| steps.show(&progress)).await.map_err(fetch_problem)
    }
}

/// Progress of many small downloads as few lines.
struct Steps<'a> {
    say: crate::ship::Say<'a>,
    last: Mutex<Instant>,
}

impl<'a> Steps<'a> {
    fn new(say: crate::ship::Say<'a>) -> Self {
        Self { say, last: Mutex::new(Instant::now()) }
    }

    fn show(&self, progress: &adamant_fetch::Progress<'_>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= Duration::from_secs(2) {
            *last = Instant::now();
            (self.say)(format!(
                "inputs  {} of {} fetched, {} MB ({})",
                progress.done,
                progress.total,
                progress.bytes / 1_000_000,
                progress.name
            ));
        }
    }
}

fn fetch_problem(error: FetchError) -> Problem {
    let class = match error {
        FetchError::Write(error) => return error.into(),
        FetchError::Network { .. } | FetchError::Status { .. } | FetchError::Read { .. } => Class::Unavailable,
        FetchError::Mismatch { .. } => Class::Conflict,
        _ => Class::Usage,
    };
    Problem::new(class, error.to_string())
}

fn lock_problem(error: LockFetchError) -> Problem {
    match error {
        LockFetchError::Fetch(error) => fetch_problem(error),
        other => Problem::usage(other.to_string()),
    }
}

/// Why a tree was not laid down in `dest`, which is ours: the pusher knows the paths of the tree.
fn not_exported(dest: &Path, error: ExportError) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        ExportError::Io { path, source } => {
            let path = match path.strip_prefix(dest) {
                Ok(path) if path != Path::new("") => path.to_owned(),
                _ => "the tree".into(),
            };
            Box::new(ExportError::Io { path, source })
        }
        ExportError::NotEmpty(_) => "the tree cannot be written: its place is taken".into(),
        other => other.into(),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn build_problem(artifact: &str, error: BuildError) -> Problem {
    let text = error.to_string();
    let problem = if error.is_full() {
        Problem::new(Class::Unavailable, format!("the disk is full: {artifact} could not be built"))
            .hint("free some space, then push again")
    } else if error.is_ours() {
        Problem::new(Class::Unavailable, format!("{artifact} could not be built here"))
    } else {
        Problem::no(format!("{artifact} was not built"))
    };
    problem.cause(text)
}

/// The packages of a set as the builder wants them.
fn packages(lock: &Lock, artifact: &str, use_: &str) -> Vec<Deb> {
    let Some(set) = lock.sets.get(&set_name(artifact, use_)) else { return Vec::new() };
    let members: std::collections::HashSet<&str> = set.packages.iter().map(String::as_str).collect();
    let found = lock.packages.iter().filter(|package| members.contains(package.id().as_str()));
    found.map(|p| Deb { name: p.name.clone(), version: p.version.clone(), digest: p.digest }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use adamant_build::StepError;

    #[test]
    fn a_pusher_reads_no_path_of_the_server() {
        let dest = Path::new("/srv/adamant/work/x/build");
        let check = |error: ExportError, expect: &str| {
            let text = not_exported(dest, error).to_string();
            assert!(text.contains(expect) && !text.contains("/srv"), "{text}");
        };
        let io =
            |path: &Path| ExportError::Io { path: path.to_owned(), source: std::io::ErrorKind::StorageFull.into() };
        check(io(&dest.join("src/a.c")), "src/a.c: ");
        check(io(dest), "the tree: ");
        check(io(Path::new("/srv/adamant/elsewhere")), "the tree: ");
        check(ExportError::NotEmpty(dest.to_owned()), "the tree cannot be written: ");
        check(ExportError::BadName("a/.git".to_owned()), "`a/.git`");
    }

    #[test]
    fn a_full_disk_is_said_to_be_one() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let log = Digest::of(b"");
        let step = |source| BuildError::Step { log, source: Box::new(source) };
        let failed = || StepError::Failed { how: "exited with 2".into(), missing: None, tail: Vec::new() };
        for error in [
            BuildError::Export(Box::new(full())),
            BuildError::Store(adamant_store::WriteBlobError::Io(full())),
            step(StepError::Full { how: "exited with 2".into(), tail: Vec::new() }),
        ] {
            let problem = build_problem("web", error);
            assert_eq!(problem.error.class, Class::Unavailable);
            assert!(problem.short().starts_with("the disk is full: web could not be built: "), "{problem}");
        }
        let problem = build_problem("web", step(failed()));
        assert_eq!(problem.error.class, Class::No);
        assert_eq!(problem.error.message, "web was not built");
        let problem = fetch_problem(FetchError::Write(adamant_store::WriteBlobError::Io(full())));
        assert!(problem.error.class == Class::Unavailable && problem.line().contains("the disk is full"), "{problem}");
    }
}
