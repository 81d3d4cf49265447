//! From a pushed commit to a release: check → keep inputs → record → build → bind → deploy.
//!
//! Every stage can be repeated: what is there already is found and not made again, so a push
//! after a crash at any point completes what the one before began. The commit's objects are
//! durable before this runs and its branch moves after it succeeds (see `source`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use adamant_attest::predicate::{
    ArtifactRef, Binding, BindingKind, BuildDefinition, Builder, Divergence, Input, Lock as LockPredicate, Metadata,
    Predicate, Provenance, Rejection, ResourceDescriptor, Role, RunDetails,
};
use adamant_digest::Digest;
use adamant_recipe::{Artifact, LOCK_FILE, Lock, RECIPE_FILE, Recipe};
use adamant_release::{Document as _, Release, Service};
use adamant_source::{ExportError, Oid, Push, ReadError, Repository};
use adamant_store::{Chain, Fact, Subject};
use serde_json::json;
use tokio::sync::mpsc;

use crate::error::Problem;
use crate::making::Made;
use crate::platform::{Platform, commit_of};

/// The one platform this version builds for and runs on.
pub(crate) const PLATFORM: &str = "linux/amd64";
/// Largest recipe, lock or native lock read from a commit, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// A commit taken apart and checked: everything a build needs to know, nothing resolved.
pub(crate) struct Checked {
    pub(crate) project: String,
    pub(crate) oid: Oid,
    pub(crate) commit: adamant_source::Commit,
    pub(crate) tree: Digest,
    pub(crate) recipe: Recipe,
    pub(crate) lock: Lock,
    /// Parsed native locks by path.
    pub(crate) native: BTreeMap<String, adamant_recipe::cargo::CargoLock>,
    pub(crate) lock_digest: Digest,
    pub(crate) inputs: Vec<Input>,
}

/// Lines for the pusher and for the build log.
pub(crate) struct Progress {
    client: Option<mpsc::Sender<String>>,
    log: Arc<crate::logs::Writer>,
}

impl Progress {
    pub(crate) fn new(client: Option<mpsc::Sender<String>>, log: crate::logs::Writer) -> Self {
        Self { client, log: Arc::new(log) }
    }

    /// One line for both.
    pub(crate) fn say(&self, line: impl Into<String>) {
        let line = line.into();
        self.log.line(&line);
        if let Some(client) = &self.client {
            // A client that does not read misses lines; the log has them.
            let _ = client.try_send(line);
        }
    }

    /// One line of a build's output: for the log alone.
    pub(crate) fn output(&self, line: &str) {
        self.log.line(line);
    }

    /// Takes a build's output.
    pub(crate) fn output_sink(&self) -> adamant_build::Sink {
        let log = Arc::clone(&self.log);
        Arc::new(move |line| {
            tracing::debug!(point = "in a step", line);
            log.line(line);
        })
    }
}

impl Platform {
    /// What `git push` of one ref starts.
    pub(crate) async fn push(self: &Arc<Self>, push: Push, client: mpsc::Sender<String>) -> Result<(), Problem> {
        let repository = self.repository(&push.project).await?;
        if push.refname.starts_with("refs/tags/") {
            // A tag names a commit that a branch brings or brought; it builds nothing.
            return Ok(());
        }
        tracing::info!(point = "pack received", project = push.project, commit = %push.new);
        let checked = self.check(&push.project, &repository, push.new).await?;
        // One commit of a project at a time: pushes of the same commit meet here and the second
        // finds everything done.
        let _turn = self.turn(&push.project, "").await;
        // A lock that is on record was compared then, and bindings do not change.
        if !self.is_bound(BindingKind::Lock, &format!("{}@{}", push.project, checked.lock_digest)).await? {
            self.refuse_divergent(&checked.inputs, &push.by).await?;
        }
        let number = self.record_commit(&checked, &push).await?;
        tracing::info!(point = "commit recorded", project = push.project, number);
        let name = format!("{}/{number}", push.project);
        let log = self.logs.writer(&push.project, number)?;
        let _building = self.building(&push.project, &push.new.to_string());
        let progress = Progress::new(Some(client), log);
        progress.say(format!("{name}  {} \"{}\"", push.new.short(), checked.commit.subject));
        let result = self.make_release(&checked, number, &push.by, &progress).await;
        match result {
            Ok(release) => {
                self.after_release(&checked, &release, &push.by, &progress).await;
                Ok(())
            }
            Err(problem) => {
                progress.say(format!("failed  {}", problem.line()));
                // What could not be done now may work later; what the commit itself is at fault
                // for is part of the record.
                if problem.error.class != adamant_api::Class::Unavailable {
                    let reason = problem.line().chars().take(2000).collect();
                    self.reject(&name, checked.tree, reason, &push.by).await;
                }
                Err(problem)
            }
        }
    }

    /// Reads recipe and locks from the commit and checks that they agree.
    pub(crate) async fn check(&self, project: &str, repository: &Repository, oid: Oid) -> Result<Checked, Problem> {
        let read = |error| unreadable(oid, error);
        let commit = repository.commit(oid).await.map_err(read)?;
        let file = async |path: &str, fix: &str| -> Result<String, Problem> {
            if !repository.exists(oid, path).await.map_err(read)? {
                return Err(Problem::usage(format!("commit {} has no {path}", oid.short())).hint(fix));
            }
            let bytes = repository.file(oid, path, MAX_FILE).await.map_err(read)?;
            String::from_utf8(bytes).map_err(|_| Problem::usage(format!("{path} is not UTF-8 text")))
        };
        let recipe_text = file(RECIPE_FILE, "`adamant init` writes one; commit it").await?;
        let lock_text = file(LOCK_FILE, "`adamant lock` writes it; commit it beside adamant.toml").await?;
        let paths = repository.entries(oid, ".", true).await.map_err(read)?;
        let paths: std::collections::BTreeSet<&str> = paths.iter().map(|entry| entry.path.as_str()).collect();
        let recipe =
            Recipe::parse(&recipe_text, &|path| paths.contains(path)).map_err(|e| Problem::usage(e.to_string()))?;
        if recipe.project != project {
            return Err(Problem::usage(format!(
                "{RECIPE_FILE} is of project `{}`, this remote is `{project}`",
                recipe.project
            ))
            .hint("push to the project's own remote, or change `project` in adamant.toml"));
        }
        let lock = Lock::parse(&lock_text).map_err(|e| Problem::usage(e.to_string()))?;
        adamant_recipe::lock_agrees(&recipe, &lock)
            .map_err(|e| Problem::usage(e.to_string()).hint("commit adamant.lock and push again"))?;

        let mut native = BTreeMap::new();
        let mut files = BTreeMap::from([(LOCK_FILE.to_owned(), lock_text.into_bytes())]);
        let mut crates = Vec::new();
        for path in recipe.artifacts.iter().flat_map(Artifact::native_locks) {
            if native.contains_key(&path) {
                continue;
            }
            let text = file(&path, "`cargo generate-lockfile` writes it; commit it").await?;
            let parsed = adamant_recipe::cargo::parse(&text).map_err(|e| Problem::usage(format!("{path}: {e}")))?;
            self.check_manifests(repository, oid, &path, &paths, &parsed).await?;
            crates.extend(parsed.crates.iter().cloned());
            files.insert(path.clone(), text.into_bytes());
            native.insert(path, parsed);
        }
        let inputs = adamant_recipe::inputs(&lock, &crates).map_err(|e| Problem::usage(e.to_string()))?;
        let tree = repository.tree(oid, ".").await.map_err(|error| unexportable(oid, error))?.digest();
        let lock_digest = adamant_recipe::lock_digest(&files);
        Ok(Checked { project: project.to_owned(), oid, commit, tree, recipe, lock, native, lock_digest, inputs })
    }

    /// Whether a `Cargo.lock` answers the manifests of its workspace.
    async fn check_manifests(
        &self,
        repository: &Repository,
        oid: Oid,
        lock_path: &str,
        paths: &std::collections::BTreeSet<&str>,
        lock: &adamant_recipe::cargo::CargoLock,
    ) -> Result<(), Problem> {
        let root = lock_path.strip_suffix("/Cargo.lock").unwrap_or(".");
        let root_manifest = if root == "." { "Cargo.toml".to_owned() } else { format!("{root}/Cargo.toml") };
        if !paths.contains(root_manifest.as_str()) {
            // The manifest comes with a source archive; cargo's `--locked` compares them.
            return Ok(());
        }
        let read = async |path: &str| -> Result<String, Problem> {
            let bytes = repository.file(oid, path, MAX_FILE).await.map_err(|error| unreadable(oid, error))?;
            String::from_utf8(bytes).map_err(|_| Problem::usage(format!("{path} is not UTF-8 text")))
        };
        let root_text = read(&root_manifest).await?;
        let members = adamant_recipe::cargo::manifests(root, &root_text, paths.iter().copied())
            .map_err(|e| Problem::usage(e.to_string()))?;
        let mut texts = Vec::new();
        for path in members {
            let text = if path == root_manifest { root_text.clone() } else { read(&path).await? };
            texts.push((path, text));
        }
        let manifests: Vec<_> =
            texts.iter().map(|(path, text)| adamant_recipe::cargo::Manifest { path, text }).collect();
        adamant_recipe::cargo::agrees(&manifests, lock)
            .map_err(|e| Problem::usage(format!("{lock_path} disagrees with its manifest")).cause(e))
    }

    /// A name of this lock that is bound to other bytes: refused before anything is fetched.
    pub(crate) async fn refuse_divergent(&self, inputs: &[Input], by: &str) -> Result<(), Problem> {
        for input in inputs {
            let Some(bound) = self.facts.ledger.binding(BindingKind::Upstream, &input.name).await? else { continue };
            if bound.digest == input.digest {
                continue;
            }
            let divergence = Divergence {
                kind: BindingKind::Upstream,
                name: input.name.clone(),
                bound: bound.digest,
                offered: input.digest,
                by: by.to_owned(),
            };
            let subject = vec![Subject { name: input.name.clone(), digest: input.digest }];
            let fact = Fact { role: Role::Control, subject, predicate: Predicate::Divergence(divergence), chain: None };
            self.append_one(fact).await?;
            return Err(Problem::new(
                adamant_api::Class::Conflict,
                format!(
                    "input {} is bound to {} since {} (entry {}); this lock says {}",
                    input.name, bound.digest, bound.at, bound.index, input.digest
                ),
            )
            .hint("somebody changed published bytes, or the lock was edited: run `adamant lock` and look at the difference"));
        }
        Ok(())
    }

    /// Records the commit, which gives it its number. The same commit again keeps its number.
    async fn record_commit(&self, checked: &Checked, push: &Push) -> Result<u64, Problem> {
        let name = format!("{}@{}", checked.project, checked.oid);
        let binding = Binding {
            kind: BindingKind::Commit,
            name: name.clone(),
            digest: checked.tree,
            by: push.by.clone(),
            detail: json!({
                "gitTree": checked.commit.tree.to_string(),
                "parents": checked.commit.parents.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "ref": push.refname,
                "old": push.old.map(|old| old.to_string()),
            }),
        };
        let fact = Fact {
            role: Role::Control,
            subject: vec![Subject { name, digest: checked.tree }],
            predicate: Predicate::Binding(binding),
            chain: Some(Chain { name: format!("project/{}", checked.project), expect: None }),
        };
        let receipt = self.append_one(fact).await?;
        receipt.sequence.ok_or_else(|| Problem::damaged(format!("commit {} has no number", checked.oid)))
    }

    async fn make_release(
        &self,
        checked: &Checked,
        number: u64,
        by: &str,
        progress: &Progress,
    ) -> Result<Release, Problem> {
        let name = format!("{}/{number}", checked.project);
        self.keep_inputs(checked, by, progress).await?;
        if let Some(digest) = self.facts.bound(BindingKind::Release, &name).await? {
            let release: Release = self.document(digest).await?;
            for artifact in &release.artifacts {
                progress.say(format!("{:<7} bound already  {}", artifact.name, artifact.digest.short()));
            }
            return Ok(release);
        }
        let mut facts = Vec::new();
        let mut artifacts = Vec::new();
        for artifact in &checked.recipe.artifacts {
            let begin = Instant::now();
            let made = self.make(checked, artifact, progress).await?;
            let how = match &made.reused {
                Some(from) => format!("reused from {from}"),
                None => format!("built {:.1} s", begin.elapsed().as_secs_f64()),
            };
            progress.say(format!("{:<7} {how}  {}", artifact.name, made.manifest.short()));
            tracing::info!(point = "artifact made", project = checked.project, number, artifact = artifact.name);
            facts.extend(self.artifact_facts(checked, artifact, &made, &name, by));
            artifacts.push(ArtifactRef {
                name: artifact.name.clone(),
                platform: PLATFORM.to_owned(),
                digest: made.manifest,
            });
        }
        artifacts.sort_by(|a, b| a.name.cmp(&b.name));
        let services = checked
            .recipe
            .artifacts
            .iter()
            .filter(|a| !a.run.is_empty())
            .map(|a| Service { artifact: a.name.clone(), port: a.port, health: a.health.clone() })
            .collect();
        let release = Release {
            version: 1,
            project: checked.project.clone(),
            number,
            commit: checked.oid.to_string(),
            tree: checked.tree,
            lock: checked.lock_digest,
            artifacts,
            services,
        };
        let document = release.encode().map_err(|e| Problem::internal("the release cannot be written", e))?;
        self.blobs.put(&document).await?;
        let mut subject = vec![Subject { name: name.clone(), digest: document.digest() }];
        subject.extend(release.artifacts.iter().map(|a| Subject { name: a.name.clone(), digest: a.digest }));
        facts.push(Fact {
            role: Role::Control,
            subject,
            predicate: Predicate::Binding(Binding {
                kind: BindingKind::Release,
                name,
                digest: document.digest(),
                by: by.to_owned(),
                detail: serde_json::Value::Null,
            }),
            chain: None,
        });
        tracing::info!(point = "before binding", project = checked.project, number);
        self.append(facts).await?;
        tracing::info!(point = "release bound", project = checked.project, number);
        Ok(release)
    }

    /// Keeps every input byte and records the lock. Resolves nothing: names and digests are the
    /// lock's; what is missing is fetched by digest.
    async fn keep_inputs(&self, checked: &Checked, by: &str, progress: &Progress) -> Result<(), Problem> {
        let report = self.ensure(&checked.lock, checked.native.values(), &|line| progress.say(line)).await?;
        tracing::info!(point = "inputs kept", project = checked.project);
        progress.say(format!("inputs  {} kept, {} new", report.kept, report.new));
        let subject =
            vec![Subject { name: format!("{}@{}", checked.project, checked.lock_digest), digest: checked.lock_digest }];
        let predicate = Predicate::Lock(LockPredicate {
            project: checked.project.clone(),
            lock: checked.lock_digest,
            by: by.to_owned(),
            inputs: checked.inputs.clone(),
        });
        self.append_one(Fact { role: Role::Control, subject, predicate, chain: None }).await?;
        Ok(())
    }

    /// What becomes true of one artifact: how it was built, and the names that are its own now.
    fn artifact_facts(
        &self,
        checked: &Checked,
        artifact: &Artifact,
        made: &Made,
        release: &str,
        by: &str,
    ) -> Vec<Fact> {
        let subject = |name: String| vec![Subject { name, digest: made.manifest }];
        let repository = format!("{}/{}", checked.project, artifact.name);
        let mut dependencies = vec![
            ResourceDescriptor {
                name: Some("source".to_owned()),
                uri: Some(format!("git+{}/git/{}.git@{}", self.base_url(), checked.project, checked.oid)),
                digest: [("gitCommit".to_owned(), checked.oid.to_string()), ("sha256".to_owned(), checked.tree.hex())]
                    .into(),
            },
            ResourceDescriptor::sha256(Some("lock".to_owned()), None, checked.lock_digest),
        ];
        let inputs = crate::making::inputs_of(checked, artifact);
        dependencies.extend(inputs.map(|i| ResourceDescriptor::sha256(Some(i.name.clone()), None, i.digest)));
        let provenance = Predicate::Provenance(Provenance {
            build_definition: BuildDefinition {
                build_type: "https://adamant.dev/build/v1".to_owned(),
                external_parameters: json!({
                    "project": checked.project,
                    "commit": checked.oid.to_string(),
                    "artifact": artifact.name,
                    "release": release,
                }),
                internal_parameters: json!({
                    "buildKey": made.key,
                    "buildAbi": checked.lock.abi,
                    "epoch": checked.lock.epoch,
                    "reusedFrom": made.reused,
                    "outputTree": made.tree,
                }),
                resolved_dependencies: dependencies,
            },
            run_details: RunDetails {
                builder: Builder { id: format!("https://{}/builder", self.origin) },
                metadata: Metadata {
                    invocation_id: format!("{release}/{}/{}", artifact.name, made.key.short()),
                    started_on: made.started.clone(),
                    finished_on: made.finished.clone(),
                },
            },
        });
        let bind = |kind: BindingKind, name: String, digest: Digest, detail: serde_json::Value| Fact {
            role: Role::Control,
            subject: subject(name.clone()),
            predicate: Predicate::Binding(Binding { kind, name, digest, by: by.to_owned(), detail }),
            chain: None,
        };
        let number = release.rsplit('/').next().unwrap_or_default();
        let none = || serde_json::Value::Null;
        vec![
            Fact {
                role: Role::Builder,
                subject: subject(format!("{repository}@{}", checked.oid)),
                predicate: provenance,
                chain: Some(Chain {
                    name: crate::facts::provenance(&checked.project, &checked.oid.to_string(), &artifact.name),
                    expect: None,
                }),
            },
            bind(
                BindingKind::Output,
                made.key.to_string(),
                made.manifest,
                json!({ "release": release, "artifact": artifact.name }),
            ),
            bind(
                BindingKind::Artifact,
                format!("{}@{}/{}/{PLATFORM}", checked.project, checked.oid, artifact.name),
                made.manifest,
                json!({ "buildKey": made.key }),
            ),
            bind(BindingKind::Tag, adamant_registry::member_name(&repository, made.manifest), made.manifest, none()),
            bind(BindingKind::Tag, format!("{repository}:{}", checked.oid), made.manifest, none()),
            bind(BindingKind::Tag, format!("{repository}:{number}"), made.manifest, none()),
        ]
    }

    /// Everything after the release exists: deploy, tell what changed, rebuild. None of it can
    /// undo the release.
    async fn after_release(self: &Arc<Self>, checked: &Checked, release: &Release, by: &str, progress: &Progress) {
        if let Err(problem) = self.deploy_automatically(release, by, &|line| progress.say(line)).await {
            progress.say(format!("deploy  {}", problem.line()));
        }
        match self.since(release).await {
            Ok(Some(line)) => progress.say(line),
            Ok(None) => {}
            Err(problem) => tracing::warn!(%problem, "comparing with what runs"),
        }
        let known = self.rebuilds(release).await.unwrap_or_default();
        if !release.artifacts.iter().all(|a| matches!(known.get(&a.digest), Some(adamant_release::Rebuild::Passed))) {
            self.rebuild_later(&checked.project, release.number);
        }
        let next = match self.policy(&release.project).await {
            Ok((policy, _)) => policy.environments.iter().find(|e| !e.automatic).map(|e| e.name.clone()),
            Err(_) => None,
        };
        if let Some(next) = next {
            let running = self.is_rebuilding(&release.project, release.number);
            let when = if running { "rebuild running; then" } else { "rebuilt before; next" };
            progress.say(format!("{when}: adamant promote {} {next}", release.name()));
        }
    }

    /// "since prod (211): 3 commits, 1 package".
    async fn since(&self, release: &Release) -> Result<Option<String>, Problem> {
        let (policy, _) = self.policy(&release.project).await?;
        let Some(last) = policy.environments.last() else { return Ok(None) };
        let facts = self.facts.deployments(&release.project, &last.name, 10).await?;
        let Some(runs) = facts.iter().rev().find(|f| f.state() == "healthy") else { return Ok(None) };
        let old: Release = self.document(runs.deployment.release_digest).await?;
        if old.number == release.number {
            return Ok(None);
        }
        let repository = self.repository(&release.project).await?;
        let log = repository
            .log(Some(commit_of(&old)?), commit_of(release)?, 1)
            .await
            .map_err(|e| Problem::internal("cannot compare commits", e))?;
        let inputs = self.input_changes(&release.project, &old, release).await?.len();
        let plural = |n: usize, word: &str| if n == 1 { format!("1 {word}") } else { format!("{n} {word}s") };
        Ok(Some(format!(
            "since {} ({}): {}, {}",
            last.name,
            old.number,
            plural(log.count, "commit"),
            plural(inputs, "input")
        )))
    }

    async fn reject(&self, object: &str, tree: Digest, reason: String, by: &str) {
        let fact = Fact {
            role: Role::Control,
            subject: vec![Subject { name: object.to_owned(), digest: tree }],
            predicate: Predicate::Rejection(Rejection { object: object.to_owned(), reason, by: by.to_owned() }),
            chain: Some(Chain { name: crate::facts::rejections(object), expect: None }),
        };
        if let Err(problem) = self.append_one(fact).await {
            tracing::error!(%problem, object, "a rejection could not be recorded");
        }
    }
}

/// Why something of a commit is not read: what it holds is the pusher's to change, what fails
/// below is not.
fn unreadable(commit: Oid, error: ReadError) -> Problem {
    let problem = Problem::usage(error.to_string());
    match error {
        ReadError::Kind { expected, .. } => problem.hint(format!("commit a {expected} there, then push again")),
        ReadError::TooLarge { .. } => problem.hint("make it smaller, commit it and push again"),
        ReadError::Limit { .. } => problem.hint("remove or rename what is over the limit, commit and push again"),
        ReadError::Erased { .. } => problem.hint("it is not built: remove the file, commit and push again"),
        ReadError::NoPath { .. } | ReadError::BadPath(_) | ReadError::NotUtf8(_) => problem,
        ReadError::NoCommit(_) | ReadError::Git(_) => Problem::internal(format!("cannot read commit {commit}"), error),
    }
}

/// The same for the tree of a commit.
pub(crate) fn unexportable(commit: Oid, error: ExportError) -> Problem {
    match error {
        ExportError::Read(error) => unreadable(commit, error),
        ExportError::Submodule { .. }
        | ExportError::LinkOutside { .. }
        | ExportError::BadName(_)
        | ExportError::Tree(_) => Problem::usage(error.to_string()),
        ExportError::NotEmpty(_) | ExportError::Io { .. } => {
            Problem::internal(format!("cannot read commit {commit}"), error)
        }
    }
}

#[cfg(test)]
mod tests {
    use adamant_api::Class;
    use adamant_source::GitError;

    use super::*;

    #[test]
    fn what_a_commit_holds_is_the_pushers_to_change() {
        let commit: Oid = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
        let path = || "adamant.lock".to_owned();
        let check = |error: ReadError, words: &[&str]| {
            let problem = unexportable(commit, error.into());
            assert_eq!((problem.error.class, &problem.internal), (Class::Usage, &None), "{problem}");
            for word in words {
                assert!(problem.line().contains(word), "no `{word}` in: {problem}");
            }
        };
        let link = ReadError::Kind { commit, path: path(), found: "symbolic link", expected: "file" };
        check(link, &["`adamant.lock`", "symbolic link", "commit a file there"]);
        check(ReadError::TooLarge { commit, path: path(), size: 9, limit: 8 }, &["`adamant.lock`", "smaller"]);
        let limit = ReadError::Limit { commit, path: ".".to_owned(), what: "too many entries", limit: 8 };
        check(limit, &["too many entries", "limit of 8", "remove"]);
        check(ReadError::NoPath { commit, path: path() }, &["`adamant.lock`"]);
        check(ReadError::NotUtf8("a?".to_owned()), &["`a?`", "rename it"]);
        let ours = |error: ExportError| {
            let problem = unexportable(commit, error);
            assert_eq!(problem.error.class, Class::Internal, "{problem}");
            assert!(problem.internal.is_some());
        };
        ours(ReadError::NoCommit(commit).into());
        ours(GitError::Output { command: "ls-tree".to_owned(), limit: 8 }.into());
        ours(ExportError::NotEmpty("/x".into()));
    }
}
