//! What changes an environment: deploy, promote, roll back, configure.
//!
//! Order of every change: decide (pure) → record the decision → record the deployment → let the
//! host do it → record what the host saw. A crash after the deployment's fact leaves an
//! environment without an observation; start-up brings it to what the fact says.

use std::collections::BTreeMap;
use std::sync::Arc;

use adamant_api::{Config, ConfigChange, Deployed, Promote, Rollback};
use adamant_attest::predicate::{
    Action, Deployment, Observation, Predicate, ResourceDescriptor, Role, State, Verifier, Vsa,
};
use adamant_digest::Digest;
use adamant_release::{
    Automation, Configuration, Document, Health, Past, Policy, PromotionInput, Rebuild, Release, Rollout,
    decide_automation, decide_promotion, decide_rollback,
};
use adamant_store::{Chain, Fact, Subject};

use crate::error::Problem;
use crate::facts::DeploymentFact;
use crate::platform::Platform;

/// Deployments looked at when deciding: enough for any rollback a person asks for.
const HISTORY: usize = 1000;

/// The word for an action.
pub(crate) fn action_word(action: Action) -> &'static str {
    match action {
        Action::Deploy => "deploy",
        Action::Promote => "promote",
        Action::Rollback => "rollback",
    }
}

/// Somewhere to say what is going on.
pub(crate) type Say<'a> = &'a (dyn Fn(String) + Send + Sync);

/// What is to be recorded and done.
struct Order<'a> {
    action: Action,
    release: &'a Release,
    rollout: Rollout,
    decision: Option<Digest>,
    returns_to: Option<u64>,
    by: &'a str,
    reason: Option<String>,
}

impl Platform {
    /// After a push: deploys where the rules say so by themselves. The line tells what happened.
    pub(crate) async fn deploy_automatically(&self, release: &Release, by: &str, say: Say<'_>) -> Result<(), Problem> {
        let (policy, policy_digest) = self.policy(&release.project).await?;
        for environment in policy.environments.iter().filter(|e| e.automatic) {
            let name = &environment.name;
            let _turn = self.turn(&release.project, name).await;
            let facts = self.facts.deployments(&release.project, name, HISTORY).await?;
            let history = past(&facts);
            match decide_automation(&policy, name, &history, release.number).map_err(unknown)? {
                Automation::Asked => {}
                Automation::Held { since } => say(format!(
                    "{name:<7} held since rollback {since}; release it: adamant promote {} {name}",
                    release.name()
                )),
                Automation::Older => {
                    say(format!("{name:<7} keeps the newer {}", history.last().map_or("", |p| &p.release)));
                }
                Automation::Deploy => {
                    let configuration = self.configuration_digest(&release.project, name).await?;
                    let rollout = release.rollout(name, configuration, policy_digest).map_err(document)?;
                    let digest = rollout.digest().map_err(document)?;
                    if history.last().is_some_and(|last| last.rollout == digest && last.healthy) {
                        say(format!("{name:<7} runs it already  {}", self.url(release, name).await));
                        continue;
                    }
                    if let Err(problem) = self.check_signed(release, by).await {
                        say(format!("{name:<7} {}", problem.line()));
                        continue;
                    }
                    let order = Order {
                        action: Action::Deploy,
                        release,
                        rollout,
                        decision: None,
                        returns_to: None,
                        by,
                        reason: None,
                    };
                    match self.carry_out(order).await {
                        Ok(done) => {
                            say(format!("{name:<7} {}  {}", done.detail, self.url(release, name).await));
                        }
                        // The artifact exists and the branch may move; that it does not run is told, not hidden.
                        Err(problem) => say(format!("{name:<7} {}", problem.line())),
                    }
                }
            }
        }
        Ok(())
    }

    /// Brings a release to an environment, if every rule holds.
    pub(crate) async fn promote(
        self: &Arc<Self>,
        project: &str,
        ask: &Promote,
        by: &str,
        say: Say<'_>,
    ) -> Result<Deployed, Problem> {
        let (policy, policy_digest) = self.policy(project).await?;
        policy.environment(&ask.environment).map_err(unknown)?;
        let release = self.release(project, ask.release).await?;
        // A rebuild that this host could not finish before is tried again when it is wanted.
        let known = self.rebuilds(&release).await?;
        let settled = |d: &Digest| matches!(known.get(d), Some(Rebuild::Passed | Rebuild::Failed(_)));
        if !release.artifacts.iter().all(|artifact| settled(&artifact.digest)) {
            self.rebuild_later(project, release.number);
        }
        if ask.wait {
            self.await_rebuild(&release, say).await;
        }
        let environment = ask.environment.as_str();
        let _turn = self.turn(project, environment).await;
        let rebuilds = self.rebuilds(&release).await?;
        let observed = self.health(&policy, &release).await?;
        let input = PromotionInput {
            policy: &policy,
            environment,
            release: &release,
            rebuilds: &rebuilds,
            observed: &observed,
        };
        let decision = decide_promotion(&input).map_err(unknown)?;

        let configuration = self.configuration_digest(project, environment).await?;
        let rollout = release.rollout(environment, configuration, policy_digest).map_err(document)?;
        let digest = rollout.digest().map_err(document)?;
        let history = past(&self.facts.deployments(project, environment, HISTORY).await?);
        if let Some(last) = history.last().filter(|last| last.rollout == digest && last.healthy)
            && adamant_release::hold(&history).is_none()
        {
            return self.unchanged(project, environment, last.sequence, digest, &release).await;
        }
        self.check_signed(&release, by).await?;
        let summary = self.record_decision(project, environment, &release, policy_digest, &decision).await?;
        if !decision.allowed {
            let mut problem = Problem::no(format!("cannot promote {} to {environment}", release.name()));
            for failed in &decision.failed {
                problem = problem.cause(format!("rule `{}`: {}", failed.rule.as_str(), failed.reason));
            }
            if let Some(first) = decision.failed.first() {
                problem = problem.hint(first.fix.clone());
            }
            // Waiting helps when a rebuild is still running and nothing else is wrong.
            let running = |d: &Digest| matches!(rebuilds.get(d), Some(Rebuild::Running));
            let only_waiting = decision.failed.iter().all(|f| f.rule == adamant_release::Rule::Rebuilt)
                && release.artifacts.iter().any(|a| running(&a.digest));
            if only_waiting {
                problem.error.class = adamant_api::Class::Unavailable;
                problem = problem.hint(format!("wait for it: adamant promote {} {environment} --wait", release.name()));
            }
            return Err(problem);
        }
        let order = Order {
            action: Action::Promote,
            release: &release,
            rollout,
            decision: Some(summary),
            returns_to: None,
            by,
            reason: ask.reason.clone(),
        };
        self.carry_out(order).await
    }

    /// Returns to an earlier deployment: artifact and configuration as they were. Asks no rule.
    pub(crate) async fn rollback(
        &self,
        project: &str,
        ask: &Rollback,
        by: &str,
        say: Say<'_>,
    ) -> Result<Deployed, Problem> {
        let (policy, _) = self.policy(project).await?;
        let environment = ask.environment.as_str();
        policy.environment(environment).map_err(unknown)?;
        let _turn = self.turn(project, environment).await;
        let facts = self.facts.deployments(project, environment, HISTORY).await?;
        let history = past(&facts);
        let to = ask.to.map(|number| format!("{project}/{number}"));
        let target = decide_rollback(environment, &history, to.as_deref()).map_err(|e| Problem::no(e.to_string()))?;
        let rollout: Rollout = self.document(target.rollout).await?;
        let release: Release = self.document(rollout.release_digest).await?;
        if let Some(current) = facts.last() {
            let before: Rollout = self.document(current.deployment.rollout).await?;
            for line in difference(&before, &rollout) {
                say(line);
            }
        }
        let order = Order {
            action: Action::Rollback,
            release: &release,
            rollout,
            decision: None,
            returns_to: Some(target.sequence),
            by,
            reason: ask.reason.clone(),
        };
        self.carry_out(order).await
    }

    /// Every artifact is signed as the operator's gates ask. A rollback asks no gate: what it brings back
    /// has passed them.
    async fn check_signed(&self, release: &Release, by: &str) -> Result<(), Problem> {
        for artifact in &release.artifacts {
            let repository = format!("{}/{}", release.project, artifact.name);
            let repository = repository.parse().map_err(|e| Problem::internal(format!("`{repository}`"), e))?;
            match self.registry.may_deploy(&repository, artifact.digest, by).await {
                Ok(()) => {}
                Err(error @ adamant_registry::GateError::Closed { .. }) => {
                    return Err(Problem::no(format!("{} may not be deployed", release.name()))
                        .cause(error)
                        .hint("sign it and push the signature beside it, then promote the release"));
                }
                Err(adamant_registry::GateError::Ledger(error)) => return Err(error.into()),
                Err(error) => return Err(Problem::damaged("a signature cannot be read").cause(error)),
            }
        }
        Ok(())
    }

    /// Records the deployment, lets the host do it, records what the host saw.
    async fn carry_out(&self, order: Order<'_>) -> Result<Deployed, Problem> {
        self.must_be_whole(order.release).await?;
        let rollout = order.rollout.encode().map_err(document)?;
        self.blobs.put(&rollout).await?;
        let (project, environment) = (order.rollout.project.clone(), order.rollout.environment.clone());
        let deployment = Deployment {
            project: project.clone(),
            environment: environment.clone(),
            action: order.action,
            release: order.rollout.release.clone(),
            release_digest: order.rollout.release_digest,
            rollout: rollout.digest(),
            artifacts: order.release.artifacts.clone(),
            configuration: order.rollout.configuration,
            policy: order.rollout.policy,
            decision: order.decision,
            returns_to: order.returns_to,
            by: order.by.to_owned(),
            reason: order.reason,
        };
        let mut subject =
            vec![Subject { name: format!("{}:{environment}", deployment.release), digest: rollout.digest() }];
        subject.extend(deployment.artifacts.iter().map(|a| Subject { name: a.name.clone(), digest: a.digest }));
        let fact = Fact {
            role: Role::Control,
            subject,
            predicate: Predicate::Deployment(deployment),
            chain: Some(Chain { name: format!("environment/{project}/{environment}"), expect: None }),
        };
        let receipt = self.append_one(fact).await?;
        let sequence = receipt.sequence.unwrap_or_default();
        tracing::info!(point = "deployment recorded", project, environment, sequence);
        let seen = self.bring_about(&order.rollout, rollout.digest(), sequence).await?;
        let done = Deployed {
            release: order.rollout.release.clone(),
            environment: environment.clone(),
            sequence,
            index: receipt.index,
            rollout: rollout.digest(),
            url: self.address(order.release, &environment).await,
            detail: seen.detail.clone(),
            unchanged: false,
        };
        match seen.state {
            State::Healthy => Ok(done),
            State::Failed | State::Drift => {
                let runs = self.runs(&project, &environment).await;
                let before = if runs { "what ran before runs on" } else { "nothing runs there yet" };
                Err(Problem::no(format!("{} did not become healthy in {environment}", done.release))
                    .cause(seen.detail)
                    .hint(format!("{before}; see `adamant logs {environment} --project {project}`")))
            }
        }
    }

    /// Lets the host run a recorded deployment and records what it saw. Repeatable.
    pub(crate) async fn bring_about(
        &self,
        rollout: &Rollout,
        digest: Digest,
        sequence: u64,
    ) -> Result<Observation, Problem> {
        let seen = self.apply(rollout, digest, sequence).await?;
        tracing::info!(point = "switched", project = rollout.project, environment = rollout.environment, sequence);
        let fact = Fact {
            role: Role::Host,
            subject: vec![Subject { name: format!("{}:{}", rollout.release, rollout.environment), digest }],
            predicate: Predicate::Observation(seen.clone()),
            chain: Some(Chain {
                name: format!("observation/{}/{}", rollout.project, rollout.environment),
                expect: None,
            }),
        };
        self.append_one(fact).await?;
        Ok(seen)
    }

    async fn unchanged(
        &self,
        project: &str,
        environment: &str,
        sequence: u64,
        rollout: Digest,
        release: &Release,
    ) -> Result<Deployed, Problem> {
        let link = self.facts.ledger.chain(&format!("environment/{project}/{environment}"), sequence, 1).await?;
        Ok(Deployed {
            release: release.name(),
            environment: environment.to_owned(),
            sequence,
            index: link.first().map_or(0, |link| link.index),
            rollout,
            url: self.address(release, environment).await,
            detail: String::new(),
            unchanged: true,
        })
    }

    async fn record_decision(
        &self,
        project: &str,
        environment: &str,
        release: &Release,
        policy: Digest,
        decision: &adamant_release::Decision,
    ) -> Result<Digest, Problem> {
        let failed: Vec<_> =
            decision.failed.iter().map(|f| serde_json::json!({"rule": f.rule, "reason": f.reason})).collect();
        let digest = release.digest().map_err(document)?;
        let mut evidence = Vec::new();
        for artifact in &release.artifacts {
            for fact in self.facts.whole(&crate::facts::rebuilds(project, artifact.digest)).await? {
                let digest = Digest::of(&fact.entry.statement);
                evidence.push(ResourceDescriptor::sha256(Some(format!("entry {}", fact.entry.index)), None, digest));
            }
        }
        let vsa = Vsa {
            verifier: Verifier { id: format!("https://{}/control", self.origin) },
            time_verified: crate::opening::now(),
            resource_uri: format!("adamant:environment/{project}/{environment}"),
            policy: ResourceDescriptor::sha256(Some("rules".to_owned()), None, policy),
            input_attestations: evidence,
            verification_result: if decision.allowed { "PASSED" } else { "FAILED" }.to_owned(),
            verified_levels: decision.held.iter().map(|rule| rule.as_str().to_owned()).collect(),
            adamant_detail: if failed.is_empty() {
                serde_json::Value::Null
            } else {
                serde_json::json!({ "failed": failed })
            },
        };
        let mut subject = vec![Subject { name: release.name(), digest }];
        subject.extend(release.artifacts.iter().map(|a| Subject { name: a.name.clone(), digest: a.digest }));
        let chain = crate::facts::decisions(&release.name(), environment);
        // Whoever asks again and again gets the same answer, which is on record once.
        if let Some(last) = self.facts.ledger.chain_head(&chain).await?
            && !decision.allowed
            && let Predicate::Vsa(before) = self.facts.at(last.index).await?.predicate
            && (Vsa { time_verified: before.time_verified.clone(), ..vsa.clone() }) == before
        {
            return Ok(last.statement);
        }
        let chain = Some(Chain { name: chain, expect: None });
        let fact = Fact { role: Role::Control, subject, predicate: Predicate::Vsa(vsa), chain };
        Ok(self.append_one(fact).await?.statement)
    }

    /// What is known of the rebuild of each artifact of a release.
    pub(crate) async fn rebuilds(&self, release: &Release) -> Result<BTreeMap<Digest, Rebuild>, Problem> {
        let mut known = BTreeMap::new();
        for artifact in &release.artifacts {
            let state = self.rebuild_of(&release.project, artifact.digest).await?;
            let settled = matches!(state, Some(Rebuild::Passed | Rebuild::Failed(_)));
            if !settled && self.is_rebuilding(&release.project, release.number) {
                known.insert(artifact.digest, Rebuild::Running);
            } else if let Some(state) = state {
                known.insert(artifact.digest, state);
            }
        }
        Ok(known)
    }

    /// The recorded result of rebuilding an artifact. A rebuild to other bytes is never outweighed
    /// by a later pass: bytes that differ once may differ again. One that gave no bytes says
    /// nothing of them, so the next one counts.
    pub(crate) async fn rebuild_of(&self, project: &str, artifact: Digest) -> Result<Option<Rebuild>, Problem> {
        let mut state = None;
        for fact in self.facts.whole(&crate::facts::rebuilds(project, artifact)).await? {
            let Predicate::Vsa(vsa) = &fact.predicate else { continue };
            let why = || vsa.adamant_detail.get("why").and_then(|v| v.as_str()).unwrap_or("other bytes").to_owned();
            let completed = vsa.adamant_detail.get("completed").and_then(serde_json::Value::as_bool) != Some(false);
            match (&state, vsa.verification_result == "PASSED") {
                (Some(Rebuild::Failed(_)), _) => {}
                (_, true) => state = Some(Rebuild::Passed),
                (_, false) if completed => state = Some(Rebuild::Failed(why())),
                (Some(Rebuild::Passed), false) => {}
                (_, false) => state = Some(Rebuild::Incomplete(why())),
            }
        }
        Ok(state)
    }

    /// What each environment last saw of this very release.
    async fn health(&self, policy: &Policy, release: &Release) -> Result<BTreeMap<String, Health>, Problem> {
        let mut observed = BTreeMap::new();
        for environment in &policy.environments {
            let facts = self.facts.deployments(&release.project, &environment.name, HISTORY).await?;
            if let Some(last) = facts.iter().rev().find(|f| f.deployment.release == release.name()) {
                let health = match &last.observation {
                    None => Health::Pending,
                    Some(o) if o.state == State::Healthy => Health::Healthy,
                    Some(o) => Health::Failed(o.detail.clone()),
                };
                observed.insert(environment.name.clone(), health);
            }
        }
        Ok(observed)
    }

    /// The configuration in force in an environment.
    pub(crate) async fn config(&self, project: &str, environment: &str) -> Result<Config, Problem> {
        let (policy, _) = self.policy(project).await?;
        policy.environment(environment).map_err(unknown)?;
        let revision = self.configuration_digest(project, environment).await?;
        let configuration: Configuration = self.document(revision).await?;
        Ok(Config { revision, env: configuration.env })
    }

    /// Changes the configuration; used from the next deployment on.
    pub(crate) async fn set_config(
        &self,
        project: &str,
        environment: &str,
        change: &ConfigChange,
        by: &str,
    ) -> Result<Config, Problem> {
        if change.set.contains_key("PORT") {
            return Err(Problem::usage(
                "`PORT` cannot be configured: a program is told the `port` of its recipe in it",
            )
            .hint("change `port` in adamant.toml and push"));
        }
        let _turn = self.turn(project, environment).await;
        let before = self.config(project, environment).await?;
        let mut env = before.env.clone();
        for name in &change.unset {
            if env.remove(name).is_none() {
                return Err(Problem::usage(format!("`{name}` is not set in {environment}")));
            }
        }
        env.extend(change.set.clone());
        let configuration = Configuration { env: env.clone() };
        let bytes = configuration.encode().map_err(|e| Problem::usage(e.to_string()))?;
        let revision = bytes.digest();
        if revision != before.revision {
            self.blobs.put(&bytes).await?;
            self.record_revision(project, environment, revision, by).await?;
        }
        Ok(Config { revision, env })
    }
}

/// Facts as the pure rules want them.
pub(crate) fn past(facts: &[DeploymentFact]) -> Vec<Past> {
    facts
        .iter()
        .map(|fact| Past {
            sequence: fact.link.sequence,
            action: fact.deployment.action,
            release: fact.deployment.release.clone(),
            rollout: fact.deployment.rollout,
            healthy: fact.observation.as_ref().is_some_and(|o| o.state == State::Healthy),
            returns_to: fact.deployment.returns_to,
        })
        .collect()
}

/// What a rollback changes, for people, before it happens.
fn difference(before: &Rollout, after: &Rollout) -> Vec<String> {
    let mut lines = vec![format!("{} → {}", before.release, after.release)];
    for artifact in &after.artifacts {
        let old = before.artifacts.iter().find(|a| a.name == artifact.name);
        if old.is_none_or(|old| old.digest != artifact.digest) {
            let old = old.map_or_else(|| "none".to_owned(), |old| old.digest.short());
            lines.push(format!("artifact {} {old} → {}", artifact.name, artifact.digest.short()));
        }
    }
    if before.configuration != after.configuration {
        lines.push(format!("configuration {} → {}", before.configuration.short(), after.configuration.short()));
    }
    lines
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn unknown(error: adamant_release::UnknownEnvironment) -> Problem {
    let known = error.known.join(", ");
    Problem::usage(error.to_string()).hint(format!("use one of: {known}"))
}

fn document(error: adamant_release::DocumentError) -> Problem {
    Problem::internal("a document cannot be written", error)
}
