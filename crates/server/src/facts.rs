//! Reading facts: from entries to typed predicates, and the few lookups everything rests on.

use std::sync::Arc;

use adamant_attest::Statement;
use adamant_attest::predicate::{
    Binding, BindingKind, Deployment, Erasure, ErasureStep, Observation, PersonalGrant, Predicate, State,
};
use adamant_digest::Digest;
use adamant_store::{Entry, Ledger, Link};

use crate::error::Problem;

/// Facts about a digest that are shown.
const SHOWN: usize = 1000;
/// Links of a chain read at once.
const PAGE: usize = 1000;

/// Chain of the rules of a project; whatever has one is a project.
pub(crate) fn policy(project: &str) -> String {
    format!("policy/{project}")
}

/// Chain of the results of rebuilding an artifact of a project.
pub(crate) fn rebuilds(project: &str, artifact: Digest) -> String {
    format!("rebuild/{project}/{artifact}")
}

/// Chain of how an artifact of a commit was built: one fact.
pub(crate) fn provenance(project: &str, commit: &str, artifact: &str) -> String {
    format!("provenance/{project}@{commit}/{artifact}")
}

/// Chain of the decisions about a release (`shop/214`) and an environment.
pub(crate) fn decisions(release: &str, environment: &str) -> String {
    format!("decision/{release}/{environment}")
}

/// Chain of what was refused about an object (`shop/214`).
pub(crate) fn rejections(object: &str) -> String {
    format!("rejection/{object}")
}

/// A fact as recorded.
pub(crate) struct Recorded {
    pub(crate) entry: Entry,
    pub(crate) predicate: Predicate,
}

/// Typed reading on top of any ledger.
#[derive(Clone)]
pub(crate) struct Facts {
    pub(crate) ledger: Arc<dyn Ledger>,
}

/// A commit of a project with its number.
pub(crate) struct CommitFact {
    pub(crate) number: u64,
    pub(crate) oid: String,
    pub(crate) at: String,
}

/// A deployment with what a host said of it.
pub(crate) struct DeploymentFact {
    pub(crate) link: Link,
    pub(crate) deployment: Deployment,
    pub(crate) at: String,
    pub(crate) observation: Option<Observation>,
    /// Index of the observation's entry.
    pub(crate) observed_at: Option<u64>,
}

impl DeploymentFact {
    pub(crate) fn state(&self) -> &'static str {
        match self.observation.as_ref().map(|o| o.state) {
            None => "pending",
            Some(State::Healthy) => "healthy",
            Some(State::Failed) => "failed",
            Some(State::Drift) => "drift",
        }
    }
}

impl Facts {
    pub(crate) async fn at(&self, index: u64) -> Result<Recorded, Problem> {
        let entry = self
            .ledger
            .entry(index)
            .await?
            .ok_or_else(|| Problem::damaged(format!("a view names entry {index}, which is not in the ledger")))?;
        decode(entry)
    }

    /// What a name of this kind is bound to, with the binding's fact.
    pub(crate) async fn bound(&self, kind: BindingKind, name: &str) -> Result<Option<Digest>, Problem> {
        Ok(self.ledger.binding(kind, name).await?.map(|bound| bound.digest))
    }

    /// The first facts about `digest`, oldest first, for people. Nothing is decided by it: whoever
    /// may push to the registry can make as many of them as they like.
    pub(crate) async fn about(&self, digest: Digest) -> Result<Vec<Recorded>, Problem> {
        let mut facts = Vec::new();
        for index in self.ledger.about(digest, SHOWN).await? {
            facts.push(self.at(index).await?);
        }
        Ok(facts)
    }

    /// All facts of a chain, oldest first.
    pub(crate) async fn whole(&self, chain: &str) -> Result<Vec<Recorded>, Problem> {
        let mut facts = Vec::new();
        loop {
            let page = self.ledger.chain(chain, facts.len() as u64 + 1, PAGE).await?;
            for link in &page {
                facts.push(self.at(link.index).await?);
            }
            if page.len() < PAGE {
                return Ok(facts);
            }
        }
    }

    /// The entry of a chain whose statement has this digest.
    pub(crate) async fn stated(&self, chain: &str, statement: Digest) -> Result<Option<u64>, Problem> {
        let mut from = 1;
        loop {
            let page = self.ledger.chain(chain, from, PAGE).await?;
            if let Some(link) = page.iter().find(|link| link.statement == statement) {
                return Ok(Some(link.index));
            }
            let Some(last) = page.last().filter(|_| page.len() == PAGE) else { return Ok(None) };
            from = last.sequence + 1;
        }
    }

    pub(crate) async fn commit(&self, link: &Link) -> Result<CommitFact, Problem> {
        let recorded = self.at(link.index).await?;
        let Predicate::Binding(Binding { kind: BindingKind::Commit, name, .. }) = recorded.predicate else {
            return Err(Problem::damaged(format!("entry {} is not a commit", link.index)));
        };
        let oid = name.rsplit('@').next().unwrap_or_default().to_owned();
        let at = recorded.entry.recorded_at;
        Ok(CommitFact { number: link.sequence, oid, at })
    }

    /// The commit with a release number.
    pub(crate) async fn numbered(&self, project: &str, number: u64) -> Result<Option<CommitFact>, Problem> {
        let links = self.ledger.chain(&format!("project/{project}"), number, 1).await?;
        match links.first().filter(|link| link.sequence == number) {
            Some(link) => Ok(Some(self.commit(link).await?)),
            None => Ok(None),
        }
    }

    /// Whether a commit has a release: its artifacts are bound in the same append.
    pub(crate) async fn is_released(&self, project: &str, oid: &str) -> Result<bool, Problem> {
        let prefix = format!("{project}@{oid}/");
        Ok(!self.ledger.bindings(BindingKind::Artifact, &prefix, "", 1).await?.is_empty())
    }

    /// The newest commits, newest first.
    pub(crate) async fn newest(&self, project: &str, count: u64) -> Result<Vec<CommitFact>, Problem> {
        let chain = format!("project/{project}");
        let Some(head) = self.ledger.chain_head(&chain).await? else { return Ok(Vec::new()) };
        let from = head.sequence.saturating_sub(count - 1).max(1);
        let mut commits = Vec::new();
        for link in self.ledger.chain(&chain, from, usize::try_from(count).unwrap_or(usize::MAX)).await? {
            commits.push(self.commit(&link).await?);
        }
        commits.reverse();
        Ok(commits)
    }

    /// All deployments of an environment from `from` up, oldest first, with observations.
    pub(crate) async fn deployments(
        &self,
        project: &str,
        environment: &str,
        newest: usize,
    ) -> Result<Vec<DeploymentFact>, Problem> {
        let chain = format!("environment/{project}/{environment}");
        let Some(head) = self.ledger.chain_head(&chain).await? else { return Ok(Vec::new()) };
        let from = head.sequence.saturating_sub(newest as u64 - 1).max(1);
        let mut deployments = Vec::new();
        for link in self.ledger.chain(&chain, from, newest).await? {
            let recorded = self.at(link.index).await?;
            let Predicate::Deployment(deployment) = recorded.predicate else {
                return Err(Problem::damaged(format!("entry {} is not a deployment", link.index)));
            };
            deployments.push(DeploymentFact {
                link,
                deployment,
                at: recorded.entry.recorded_at,
                observation: None,
                observed_at: None,
            });
        }
        // Observations follow their deployment, so the newest of them cover the newest of those;
        // a few more a deployment (healthy, then drift) is all there is.
        let chain = format!("observation/{project}/{environment}");
        if let Some(head) = self.ledger.chain_head(&chain).await? {
            let window = newest * 4;
            let from = head.sequence.saturating_sub(window as u64 - 1).max(1);
            for link in self.ledger.chain(&chain, from, window).await? {
                if let Predicate::Observation(seen) = self.at(link.index).await?.predicate
                    && let Some(of) = deployments.iter_mut().find(|d| d.link.sequence == seen.deployment)
                {
                    of.observation = Some(seen);
                    of.observed_at = Some(link.index);
                }
            }
        }
        Ok(deployments)
    }

    /// The last revision in a configuration chain.
    pub(crate) async fn revision(&self, chain: &str) -> Result<Option<Digest>, Problem> {
        let Some(head) = self.ledger.chain_head(chain).await? else { return Ok(None) };
        match self.at(head.index).await?.predicate {
            Predicate::Configuration(configuration) => Ok(Some(configuration.revision)),
            _ => Err(Problem::damaged(format!("entry {} is not a configuration", head.index))),
        }
    }
}

/// Reads an entry's statement.
pub(crate) fn decode(entry: Entry) -> Result<Recorded, Problem> {
    let damaged = |error: &dyn std::fmt::Display| Problem::damaged(format!("entry {}: {error}", entry.index));
    let statement = Statement::parse(&entry.statement).map_err(|e| damaged(&e))?;
    let predicate = statement.predicate().map_err(|e| damaged(&e))?;
    Ok(Recorded { entry, predicate })
}

/// The short name of a predicate and what it says, for people.
pub(crate) fn describe(predicate: &Predicate) -> (&'static str, String) {
    match predicate {
        Predicate::Binding(b) => {
            ("binding", format!("{} {} = {}, by {}", b.kind.as_str(), b.name, b.digest.short(), b.by))
        }
        Predicate::Lock(l) => {
            ("lock", format!("{}: {} with {} inputs, by {}", l.project, l.lock.short(), l.inputs.len(), l.by))
        }
        Predicate::Provenance(p) => {
            let of = &p.build_definition.external_parameters;
            let text = |name: &str| of.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
            ("provenance", format!("{} of {}@{:.7}", text("artifact"), text("project"), text("commit")))
        }
        Predicate::Vsa(v) => {
            ("summary", format!("{} {}: {}", v.verification_result, v.resource_uri, v.verified_levels.join(", ")))
        }
        Predicate::Deployment(d) => {
            let action = crate::ship::action_word(d.action);
            ("deployment", format!("{action} {} to {}, by {}", d.release, d.environment, d.by))
        }
        Predicate::Observation(o) => {
            let state = match o.state {
                State::Healthy => "healthy",
                State::Failed => "failed",
                State::Drift => "drift",
            };
            (
                "observation",
                format!("{}/{} deployment {} {state}: {}", o.project, o.environment, o.deployment, o.detail),
            )
        }
        Predicate::Configuration(c) => {
            let of = if c.environment.is_empty() { "rules" } else { &c.environment };
            ("configuration", format!("{} {of} = {}, by {}", c.project, c.revision.short(), c.by))
        }
        Predicate::Key(k) => ("key", format!("{} key {} {}", k.role.as_str(), k.keyid, k.action)),
        Predicate::Divergence(d) => (
            "divergence",
            format!(
                "{} {} stays {}, {} refused, by {}",
                d.kind.as_str(),
                d.name,
                d.bound.short(),
                d.offered.short(),
                d.by
            ),
        ),
        Predicate::Rejection(r) => ("rejection", format!("{}: {}", r.object, r.reason)),
        Predicate::Grant(g) => ("grant", format!("token {} {} {}, by {}", g.name, g.action, g.scopes.join(" "), g.by)),
        Predicate::PersonalGrant(PersonalGrant { grant: g, person }) => {
            ("grant", format!("token {} of {person} {} {}, by {}", g.name, g.action, g.scopes.join(" "), g.by))
        }
        Predicate::ErasureRequest(r) => ("erasure-request", asked(r.digest, r.step, &r.by)),
        Predicate::ErasureRequestV2(r) => ("erasure-request", asked(r.digest, r.step, &r.by)),
        Predicate::Erasure(e) => ("erasure", erased(e)),
        Predicate::ErasureV2(e) => ("erasure", format!("{}; in git {}", erased(&e.erasure), e.names.git_blob)),
        Predicate::Damage(d) => {
            let found = d.found.map(|found| format!(", which hashes to {}", found.short())).unwrap_or_default();
            ("damage", format!("{} {} by {}{found}", d.digest.short(), d.state, d.how))
        }
        Predicate::Pointer(p) => ("pointer", format!("{} → {}, by {}", p.name, p.digest.short(), p.by)),
    }
}

fn asked(digest: Digest, step: ErasureStep, by: &str) -> String {
    let step = match step {
        ErasureStep::Requested => "asked for",
        ErasureStep::Withdrawn => "no longer asked for",
    };
    format!("erasure of {} {step}, by {by}", digest.short())
}

fn erased(erasure: &Erasure) -> String {
    let Erasure { digest, size_bytes, requested_by, approved_by, .. } = erasure;
    format!("{} ({size_bytes} bytes) erased: asked for by {requested_by}, approved by {approved_by}", digest.short())
}
