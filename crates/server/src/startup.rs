//! What a start has to finish: everything a crash may have left half done, found from facts.

use std::sync::Arc;

use adamant_attest::predicate::BindingKind;
use adamant_release::{Release, Rollout};
use adamant_source::{Pending, Repository};

use crate::error::Problem;
use crate::platform::Platform;

/// Releases looked at for missing rebuilds and deployments.
const RECENT: u64 = 20;
/// Deployments of an environment in which the newest release is looked for.
const HISTORY: usize = 100;

impl Platform {
    /// Brings refs and environments to what the facts say, and resumes rebuilds. Problems are
    /// logged by name and do not keep the server from starting: a project that is damaged must
    /// not take the others down.
    pub(crate) async fn reconcile(self: &Arc<Self>) {
        let projects = match self.projects().await {
            Ok(projects) => projects,
            Err(problem) => {
                tracing::error!(%problem, "cannot list the projects");
                return;
            }
        };
        for project in projects {
            let name = &project.name;
            if let Err(problem) = self.source.create(name).await.map_err(|e| Problem::internal("repository", e)) {
                tracing::error!(%problem, project = name, "repository");
                continue;
            }
            if let Err(problem) = self.reconcile_branches(name).await {
                tracing::error!(%problem, project = name, "branches");
            }
            for environment in &project.environments {
                if let Err(problem) = self.reconcile_environment(name, environment).await {
                    tracing::error!(%problem, project = name, environment, "environment");
                }
            }
            if let Err(problem) = self.resume_automation(name).await {
                tracing::error!(%problem, project = name, "automatic deployments");
            }
            if let Err(problem) = self.resume_rebuilds(name).await {
                tracing::error!(%problem, project = name, "rebuilds");
            }
        }
    }

    /// A push that a crash cut off: if its release is made, its effect is recorded, and the branch
    /// follows unless somebody moved it since; if not, the push came to nothing.
    async fn reconcile_branches(&self, project: &str) -> Result<(), Problem> {
        let repository = self.repository(project).await?;
        let failed = |e| Problem::internal("cannot read the pushes that were at work", e);
        for push in repository.pending().await.map_err(failed)? {
            if let Err(problem) = self.reconcile_branch(&repository, &push).await {
                tracing::error!(%problem, project, branch = push.refname, "a push that was at work");
            }
        }
        Ok(())
    }

    async fn reconcile_branch(&self, repository: &Repository, push: &Pending) -> Result<(), Problem> {
        let (project, branch, commit) = (repository.project(), &push.refname, push.new);
        if self.facts.is_released(project, &commit.to_string()).await? {
            let moved = repository.complete(push).await;
            if moved.map_err(|e| Problem::internal(format!("cannot move {branch}"), e))? {
                tracing::info!(project, branch, %commit, "a branch is at its release");
            }
        } else {
            let forgotten = repository.forget(push).await;
            forgotten.map_err(|e| Problem::internal(format!("cannot forget the push to {branch}"), e))?;
        }
        Ok(())
    }

    /// An environment whose last deployment has no observation gets it done; one that should run
    /// is running afterwards.
    async fn reconcile_environment(self: &Arc<Self>, project: &str, environment: &str) -> Result<(), Problem> {
        let facts = self.facts.deployments(project, environment, 10).await?;
        let Some(last) = facts.last() else { return Ok(()) };
        if last.observation.is_some() {
            return Ok(());
        }
        let rollout: Rollout = self.document(last.deployment.rollout).await?;
        let (digest, sequence) = (last.deployment.rollout, last.link.sequence);
        tracing::info!(project, environment, sequence, "finishing a deployment");
        let platform = Arc::clone(self);
        let (project, environment) = (project.to_owned(), environment.to_owned());
        // In the background: a service that never gets healthy must not hold up the start.
        self.tasks.spawn(async move {
            let _turn = platform.turn(&project, &environment).await;
            // Somebody may have deployed since.
            let moved = platform.facts.deployments(&project, &environment, 1).await;
            if moved.is_ok_and(|d| d.last().is_some_and(|d| d.link.sequence == sequence && d.observation.is_none()))
                && let Err(problem) = platform.bring_about(&rollout, digest, sequence).await
            {
                tracing::error!(%problem, project, environment, "finishing a deployment");
            }
        });
        Ok(())
    }

    /// The newest release, if the crash came before its automatic deployment was recorded: its
    /// branch moves at this start, so no push will come back for it.
    async fn resume_automation(self: &Arc<Self>, project: &str) -> Result<(), Problem> {
        let mut newest = None;
        for commit in self.facts.newest(project, RECENT).await? {
            newest = self.facts.ledger.binding(BindingKind::Release, &format!("{project}/{}", commit.number)).await?;
            if newest.is_some() {
                break;
            }
        }
        let Some(bound) = newest else { return Ok(()) };
        let release: Release = self.document(bound.digest).await?;
        let (policy, _) = self.policy(project).await?;
        let mut missing = false;
        for environment in policy.environments.iter().filter(|environment| environment.automatic) {
            let facts = self.facts.deployments(project, &environment.name, HISTORY).await?;
            missing |= !facts.iter().any(|fact| fact.deployment.release == release.name());
        }
        if missing {
            let platform = Arc::clone(self);
            // In the background, as above.
            self.tasks.spawn(async move {
                let say = |line: String| tracing::info!(release = release.name(), line, "deploying after a restart");
                if let Err(problem) = platform.deploy_automatically(&release, &bound.by, &say).await {
                    tracing::error!(%problem, release = release.name(), "deploying after a restart");
                }
            });
        }
        Ok(())
    }

    async fn resume_rebuilds(self: &Arc<Self>, project: &str) -> Result<(), Problem> {
        for commit in self.facts.newest(project, RECENT).await? {
            let name = format!("{project}/{}", commit.number);
            let Some(digest) = self.facts.bound(BindingKind::Release, &name).await? else { continue };
            let release: Release = self.document(digest).await?;
            for artifact in &release.artifacts {
                if self.rebuild_of(project, artifact.digest).await?.is_none() {
                    self.rebuild_later(project, commit.number);
                    break;
                }
            }
        }
        Ok(())
    }
}
