//! What people look at: status, releases, differences, the ledger in words. Reads only.

use std::collections::BTreeMap;

use adamant_api::{
    ArtifactSummary, DeploymentSummary, Diff, Environment, FactSummary, PointerMove, Project, ReleaseSummary, Status,
};
use adamant_attest::predicate::BindingKind;
use adamant_recipe::{LOCK_FILE, Lock};
use adamant_release::{Rebuild, Release};

use crate::error::Problem;
use crate::facts::{CommitFact, DeploymentFact, decode, describe};
use crate::platform::{Platform, commit_of};
use crate::ship::action_word;

/// Releases shown at once.
const SHOWN_RELEASES: u64 = 20;
/// Deployments shown an environment.
const SHOWN_DEPLOYMENTS: usize = 10;
/// Moves of a pointer shown.
const SHOWN_MOVES: usize = 1000;
/// Commits listed in a difference.
const MAX_COMMITS: usize = 200;

impl Platform {
    /// All projects.
    pub async fn projects(&self) -> Result<Vec<Project>, Problem> {
        let mut projects = Vec::new();
        for chain in self.facts.ledger.chains("policy/", 10_000).await? {
            let name = chain.trim_start_matches("policy/").to_owned();
            projects.push(self.project(&name).await?);
        }
        Ok(projects)
    }

    pub(crate) async fn project(&self, name: &str) -> Result<Project, Problem> {
        let (policy, _) = self.policy(name).await?;
        Ok(Project {
            name: name.to_owned(),
            remote: format!("{}/git/{name}.git", self.base_url()),
            environments: policy.environments.into_iter().map(|e| e.name).collect(),
        })
    }

    /// What is where.
    pub async fn status(&self, project: &str) -> Result<Status, Problem> {
        let (policy, _) = self.policy(project).await?;
        let mut environments = Vec::new();
        let mut running: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for environment in &policy.environments {
            let facts = self.facts.deployments(project, &environment.name, SHOWN_DEPLOYMENTS).await?;
            let held = adamant_release::hold(&crate::ship::past(&facts)).is_some();
            let history: Vec<_> = facts.iter().rev().map(summary).collect();
            if let Some(runs) = history.iter().find(|d| d.state == "healthy") {
                running.entry(runs.release.clone()).or_default().push(environment.name.clone());
            }
            let url = match facts.last() {
                Some(last) => {
                    let release: Release = self.document(last.deployment.release_digest).await?;
                    self.address(&release, &environment.name).await
                }
                None => None,
            };
            environments.push(Environment {
                name: environment.name.clone(),
                url,
                current: history.first().cloned(),
                held,
                history,
            });
        }
        let mut releases = Vec::new();
        for commit in self.facts.newest(project, SHOWN_RELEASES).await? {
            let mut release = self.summarize(project, commit).await?;
            release.running_in = running.get(&release.name).cloned().unwrap_or_default();
            releases.push(release);
        }
        let log_size = self.facts.ledger.head().await?.size;
        Ok(Status { project: project.to_owned(), environments, releases, log_size })
    }

    /// One release.
    pub async fn release_summary(&self, project: &str, number: u64) -> Result<ReleaseSummary, Problem> {
        let status = self.status(project).await?;
        if let Some(found) = status.releases.into_iter().find(|r| r.number == number) {
            return Ok(found);
        }
        let commit = self.commit_numbered(project, number).await?;
        self.summarize(project, commit).await
    }

    /// The commit with that number, or an error that names what there is.
    pub(crate) async fn commit_numbered(&self, project: &str, number: u64) -> Result<CommitFact, Problem> {
        self.policy(project).await?;
        let found = if number == 0 { None } else { self.facts.numbered(project, number).await? };
        if let Some(commit) = found {
            return Ok(commit);
        }
        let newest = self.facts.newest(project, 1).await?;
        let hint = newest.first().map_or_else(
            || "nothing was pushed yet: git push adamant HEAD:main".to_owned(),
            |commit| format!("the newest is {project}/{}", commit.number),
        );
        Err(Problem::usage(format!("there is no release {project}/{number}")).hint(hint))
    }

    async fn summarize(&self, project: &str, commit: CommitFact) -> Result<ReleaseSummary, Problem> {
        let name = format!("{project}/{}", commit.number);
        let digest = self.facts.bound(BindingKind::Release, &name).await?;
        let mut artifacts = Vec::new();
        let mut grade = "";
        if let Some(digest) = digest {
            let release: Release = self.document(digest).await?;
            grade = "rebuilt";
            for artifact in release.artifacts {
                let own = match self.rebuild_of(project, artifact.digest).await? {
                    Some(Rebuild::Passed) => "rebuilt",
                    Some(Rebuild::Failed(_)) => "diverged",
                    Some(Rebuild::Running | Rebuild::Incomplete(_)) | None => "fixed",
                };
                grade = match (grade, own) {
                    ("diverged", _) | (_, "diverged") => "diverged",
                    ("fixed", _) | (_, "fixed") => "fixed",
                    _ => "rebuilt",
                };
                let base = self.base_url();
                let authority = base.split_once("://").map_or(base.as_str(), |(_, authority)| authority);
                artifacts.push(ArtifactSummary {
                    reference: format!("{authority}/{project}/{}@{}", artifact.name, artifact.digest),
                    name: artifact.name,
                    platform: artifact.platform,
                    digest: artifact.digest,
                    grade: own.to_owned(),
                });
            }
        }
        let state = if digest.is_some() {
            "built"
        } else if self.is_building(project, &commit.oid) {
            "building"
        } else if self.was_rejected(&name).await? {
            "failed"
        } else {
            "incomplete"
        };
        Ok(ReleaseSummary {
            number: commit.number,
            subject: self.subject(project, &commit.oid).await,
            commit: commit.oid,
            state: state.to_owned(),
            grade: grade.to_owned(),
            digest,
            artifacts,
            running_in: Vec::new(),
            at: commit.at,
            name,
        })
    }

    async fn was_rejected(&self, name: &str) -> Result<bool, Problem> {
        Ok(self.facts.ledger.chain_head(&crate::facts::rejections(name)).await?.is_some())
    }

    /// What differs between two releases, named by number, `project/number` or environment.
    pub async fn diff(&self, project: &str, from: &str, to: &str) -> Result<Diff, Problem> {
        let (from, to) = (self.find_release(project, from).await?, self.find_release(project, to).await?);
        let (old, new) = (commit_of(&from)?, commit_of(&to)?);
        let repository = self.repository(project).await?;
        let log = repository
            .log(Some(old), new, MAX_COMMITS)
            .await
            .map_err(|e| Problem::internal("cannot compare commits", e))?;
        let commits = log.commits.into_iter().map(|c| (c.id.to_string(), c.subject)).collect();
        let inputs = self.input_changes(project, &from, &to).await?;
        let mut artifacts = Vec::new();
        let names: std::collections::BTreeSet<_> =
            from.artifacts.iter().chain(&to.artifacts).map(|a| a.name.clone()).collect();
        for name in names {
            let digest = |release: &Release| release.artifacts.iter().find(|a| a.name == name).map(|a| a.digest);
            let (old, new) = (digest(&from), digest(&to));
            if old != new {
                artifacts.push((name, old, new));
            }
        }
        Ok(Diff { from: from.name(), to: to.name(), commits, inputs, artifacts })
    }

    async fn find_release(&self, project: &str, text: &str) -> Result<Release, Problem> {
        let number = match text.split_once('/') {
            Some((named, number)) if named == project => number.parse().ok(),
            Some(_) => None,
            None => text.parse().ok(),
        };
        if let Some(number) = number {
            return self.release(project, number).await;
        }
        let (policy, _) = self.policy(project).await?;
        policy.environment(text).map_err(|e| {
            Problem::usage(format!("`{text}` is neither a release of {project} nor an environment")).cause(e)
        })?;
        let facts = self.facts.deployments(project, text, SHOWN_DEPLOYMENTS).await?;
        let runs = facts.iter().rev().find(|f| f.state() == "healthy");
        let runs = runs.ok_or_else(|| Problem::no(format!("nothing runs in {text} yet")))?;
        self.document(runs.deployment.release_digest).await
    }

    /// Changed lock entries between two releases, a line each.
    pub(crate) async fn input_changes(
        &self,
        project: &str,
        from: &Release,
        to: &Release,
    ) -> Result<Vec<String>, Problem> {
        if from.lock == to.lock {
            return Ok(Vec::new());
        }
        let (old, new) = (self.lock_of(project, from).await?, self.lock_of(project, to).await?);
        let changes = adamant_recipe::diff(&old, &new);
        Ok(changes.iter().map(ToString::to_string).collect())
    }

    async fn lock_of(&self, project: &str, release: &Release) -> Result<Lock, Problem> {
        let repository = self.repository(project).await?;
        let bytes = repository
            .file(commit_of(release)?, LOCK_FILE, 16 << 20)
            .await
            .map_err(|e| Problem::internal(format!("cannot read the lock of {}", release.name()), e))?;
        Lock::parse(&String::from_utf8_lossy(&bytes)).map_err(|e| Problem::damaged(e.to_string()))
    }

    /// The newest facts before `before`, newest first, in words.
    pub async fn recent(&self, before: Option<u64>, count: u64) -> Result<Vec<FactSummary>, Problem> {
        let end = before.unwrap_or(u64::MAX).min(self.facts.ledger.head().await?.size);
        let from = end.saturating_sub(count);
        let mut facts = Vec::new();
        for entry in self.facts.ledger.entries(from, usize::try_from(end - from).unwrap_or(0)).await? {
            let recorded = decode(entry)?;
            let (kind, text) = describe(&recorded.predicate);
            let (index, at) = (recorded.entry.index, recorded.entry.recorded_at);
            facts.push(FactSummary { index, kind: kind.to_owned(), text, at, statement: None });
        }
        facts.reverse();
        Ok(facts)
    }

    /// The newest moves of the pointer `repository:tag`, newest first.
    pub async fn pointer(&self, name: &str) -> Result<Vec<PointerMove>, Problem> {
        let wrong = |cause: &dyn std::fmt::Display| {
            Problem::usage(format!("`{name}` is no name of a pointer")).cause(cause).hint("write `repository:tag`")
        };
        let (repository, tag) = name.rsplit_once(':').ok_or_else(|| wrong(&"it has no `:`"))?;
        let repository = repository.parse().map_err(|error: adamant_oci::ParseNameError| wrong(&error))?;
        let tag = tag.parse().map_err(|error: adamant_oci::ParseTagError| wrong(&error))?;
        let moves = self.registry.moves(&repository, &tag, SHOWN_MOVES).await?;
        if moves.is_empty() {
            return Err(Problem::no(format!("`{name}` is no pointer, or nothing was pushed to it"))
                .hint("docs/registry.md says which names are: `pointers` in server.toml"));
        }
        let shown = |m: adamant_registry::Move| PointerMove {
            sequence: m.sequence,
            index: m.index,
            digest: m.digest,
            from: m.from,
            by: m.by,
            at: m.at,
        };
        Ok(moves.into_iter().map(shown).collect())
    }

    /// One fact with its statement.
    pub async fn fact(&self, index: u64) -> Result<FactSummary, Problem> {
        let size = self.facts.ledger.head().await?.size;
        if index >= size {
            return Err(Problem::usage(format!("the ledger has no entry {index}; it holds {size}")));
        }
        let recorded = self.facts.at(index).await?;
        let (kind, text) = describe(&recorded.predicate);
        let statement = serde_json::from_slice(&recorded.entry.statement).ok();
        Ok(FactSummary { index, kind: kind.to_owned(), text, at: recorded.entry.recorded_at, statement })
    }
}

fn summary(fact: &DeploymentFact) -> DeploymentSummary {
    DeploymentSummary {
        sequence: fact.link.sequence,
        index: fact.link.index,
        release: fact.deployment.release.clone(),
        rollout: fact.deployment.rollout,
        action: action_word(fact.deployment.action).to_owned(),
        state: fact.state().to_owned(),
        detail: fact.observation.as_ref().map(|o| o.detail.clone()).unwrap_or_default(),
        by: fact.deployment.by.clone(),
        at: fact.at.clone(),
    }
}

impl Platform {
    /// Every fact about a digest, oldest first, in words.
    pub(crate) async fn facts_about(&self, digest: adamant_digest::Digest) -> Result<Vec<FactSummary>, Problem> {
        let facts = self.facts.about(digest).await?;
        let summary = |fact: &crate::facts::Recorded| {
            let (kind, text) = describe(&fact.predicate);
            let (index, at) = (fact.entry.index, fact.entry.recorded_at.clone());
            FactSummary { index, kind: kind.to_owned(), text, at, statement: None }
        };
        Ok(facts.iter().map(summary).collect())
    }

    /// A manifest or document as text for people; empty if it is not here or too large.
    pub(crate) async fn manifest_text(&self, digest: adamant_digest::Digest) -> Result<String, Problem> {
        const MAX: u64 = 4 << 20;
        if self.blobs.size(digest).await?.is_none_or(|size| size > MAX) {
            return Ok(String::new());
        }
        let bytes = self.blobs.get(digest).await?;
        let value: Option<serde_json::Value> = serde_json::from_slice(bytes.bytes()).ok();
        Ok(value.and_then(|v| serde_json::to_string_pretty(&v).ok()).unwrap_or_default())
    }

    /// The signed note over the log as it is now.
    pub(crate) async fn checkpoint(&self) -> Result<String, Problem> {
        Ok(self.facts.ledger.head().await?.checkpoint)
    }

    /// A file of the published log by its path: checkpoint, tile or entries.
    pub(crate) async fn log_file(&self, path: &str) -> Result<Option<Vec<u8>>, Problem> {
        if path == "checkpoint" {
            return Ok(Some(self.checkpoint().await?.into_bytes()));
        }
        Ok(self.ledger.tile(path).await?)
    }

    /// Writes what is new of the log as static files.
    pub(crate) async fn publish(&self) -> Result<(), Problem> {
        let dir = self.config.data.join("log");
        self.ledger.publish(&dir).await.map_err(|e| Problem::internal("the log cannot be published", e))?;
        Ok(())
    }

    /// The log of a release's builds and rebuilds.
    pub(crate) async fn build_log(&self, project: &str, number: u64) -> Result<crate::logs::Log, Problem> {
        self.commit_numbered(project, number).await?;
        Ok(self.logs.reader(project, number))
    }
}
