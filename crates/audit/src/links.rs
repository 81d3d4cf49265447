//! From the claim down: deployment, rollout, release, commit, lock, artifacts, evidence.

use std::collections::HashMap;

use adamant_attest::predicate::{
    Action, ArtifactRef, Binding, BindingKind, Deployment, Lock, Predicate, Provenance, Vsa,
};
use adamant_digest::Digest;

use crate::capsule::Claim;
use crate::chains;
use crate::documents::{Documents, Environment, Policy, Release, Rollout, shape};
use crate::facts::Fact;
use crate::refusal::Refusal;

/// The deployment that is claimed, and what it can rest on.
pub(crate) struct Case<'a> {
    pub(crate) claim: &'a Claim,
    pub(crate) chain: String,
    /// The chain of the environment up to the claimed deployment.
    pub(crate) history: Vec<(&'a Fact, &'a Deployment)>,
    pub(crate) fact: &'a Fact,
    pub(crate) deployment: &'a Deployment,
    facts: &'a [Fact],
    documents: &'a Documents<'a>,
    /// Bindings by kind and name; each is there once.
    bindings: HashMap<(BindingKind, &'a str), (&'a Fact, &'a Binding)>,
}

/// What was found for a claim that holds.
pub(crate) struct Evidence<'a> {
    pub(crate) commit: String,
    pub(crate) tree: Digest,
    pub(crate) lock: Digest,
    pub(crate) artifacts: Vec<Built>,
    /// Index of the decision, if one was needed.
    pub(crate) decision: Option<u64>,
    pub(crate) rules: Vec<String>,
    pub(crate) observation: Option<&'a Fact>,
}

/// An artifact and where it came from.
pub(crate) struct Built {
    pub(crate) artifact: ArtifactRef,
    /// The commit it was built from.
    pub(crate) commit: String,
    /// Number of locked inputs that entered the build.
    pub(crate) inputs: usize,
    /// Index of a rebuild that passed.
    pub(crate) rebuilt: Option<u64>,
}

impl<'a> Case<'a> {
    pub(crate) fn new(claim: &'a Claim, facts: &'a [Fact], documents: &'a Documents<'a>) -> Result<Self, Refusal> {
        let chain = format!("environment/{}/{}", claim.project, claim.environment);
        let mut history = Vec::new();
        for fact in chains::whole(facts, &chain)? {
            // A chain of an environment holds its deployments and nothing else.
            let Predicate::Deployment(deployment) = &fact.predicate else {
                let (expected, found) = ("a deployment", fact.predicate.uri());
                return Err(Refusal::mismatch(place(fact), "predicateType", &expected, &found));
            };
            history.push((fact, deployment));
        }
        let found = history.len() as u64;
        if claim.sequence == 0 || found < claim.sequence {
            return Err(Refusal::ChainGap { chain, missing: found + 1 });
        }
        // Later deployments may be in the capsule; they are no part of the claim.
        history.truncate(usize::try_from(claim.sequence).unwrap_or(usize::MAX));
        let Some((fact, deployment)) = history.last().copied() else {
            return Err(Refusal::ChainGap { chain, missing: 1 });
        };
        let bindings = facts
            .iter()
            .filter_map(|fact| match &fact.predicate {
                Predicate::Binding(binding) => Some(((binding.kind, binding.name.as_str()), (fact, binding))),
                _ => None,
            })
            .collect();
        Ok(Self { claim, chain, history, fact, deployment, facts, documents, bindings })
    }

    pub(crate) fn check(&self) -> Result<Evidence<'a>, Refusal> {
        let release = self.documents_agree()?;
        let user = self.fact.index;
        let bound = self.binding(BindingKind::Release, &self.deployment.release, user)?;
        same(place(bound.0), "digest", &self.deployment.release_digest, &bound.1.digest)?;

        let tree = self.commit(&release.commit, bound.0.index)?;
        same(place(tree.0), "digest", &release.tree, &tree.1.digest)?;
        let sequence = tree.0.link.as_ref().map_or(0, |link| link.sequence);
        same(place(tree.0), "sequence", &release.number, &sequence)?;
        self.lock(release.lock, bound.0.index)?;

        let (origin_fact, origin) = self.origin()?;
        let environment = self.rules(origin)?;
        let rebuilt_rule = environment.rules.iter().any(|rule| rule == "rebuilt");
        let mut artifacts = Vec::new();
        for artifact in &release.artifacts {
            self.documents.json("image manifest", artifact.digest)?;
            artifacts.push(self.artifact(
                artifact,
                &release,
                bound.0.index,
                rebuilt_rule.then_some(origin_fact.index),
            )?);
        }
        Ok(Evidence {
            commit: release.commit,
            tree: release.tree,
            lock: release.lock,
            artifacts,
            decision: self.decision(origin_fact, origin, &environment)?,
            rules: environment.rules,
            observation: self.observation()?,
        })
    }

    /// Rollout and release document say what the deployment says.
    fn documents_agree(&self) -> Result<Release, Refusal> {
        let told = self.deployment;
        let rollout: Rollout = self.documents.read("rollout document", told.rollout)?;
        version("rollout document", told.rollout, rollout.version)?;
        let at = || format!("rollout document {}", told.rollout);
        same(at(), "project", &told.project, &rollout.project)?;
        same(at(), "environment", &told.environment, &rollout.environment)?;
        same(at(), "release", &told.release, &rollout.release)?;
        same(at(), "releaseDigest", &told.release_digest, &rollout.release_digest)?;
        same(at(), "configuration", &told.configuration, &rollout.configuration)?;
        same(at(), "policy", &told.policy, &rollout.policy)?;
        same(at(), "artifacts", &list(&told.artifacts), &list(&rollout.artifacts))?;
        self.documents.json("configuration revision", told.configuration)?;
        self.documents.json("policy", told.policy)?;

        let release: Release = self.documents.read("release document", told.release_digest)?;
        version("release document", told.release_digest, release.version)?;
        let at = || format!("release document {}", told.release_digest);
        same(at(), "project", &told.project, &release.project)?;
        same(at(), "number", &told.release, &format!("{}/{}", release.project, release.number))?;
        same(at(), "artifacts", &list(&told.artifacts), &list(&release.artifacts))?;
        let twice = |a: &ArtifactRef| {
            release.artifacts.iter().filter(|b| (&a.name, &a.platform) == (&b.name, &b.platform)).count() > 1
        };
        if release.artifacts.is_empty() || release.artifacts.iter().any(twice) {
            return Err(shape("release document", told.release_digest, &"no artifacts, or one of them twice"));
        }
        Ok(release)
    }

    /// The binding of a name, recorded before entry `user`.
    fn binding(&self, kind: BindingKind, name: &str, user: u64) -> Result<(&'a Fact, &'a Binding), Refusal> {
        let what = || format!("{} binding of {name}", kind.as_str());
        let found = *self.bindings.get(&(kind, name)).ok_or_else(|| Refusal::Missing(what()))?;
        before(found.0, user, what)?;
        Ok(found)
    }

    fn commit(&self, commit: &str, user: u64) -> Result<(&'a Fact, &'a Binding), Refusal> {
        let project = &self.claim.project;
        let found = self.binding(BindingKind::Commit, &format!("{project}@{commit}"), user)?;
        let expected = format!("project/{project}");
        if found.0.link.as_ref().is_none_or(|link| link.chain != expected) {
            return Err(Refusal::WrongChain { index: found.0.index, expected });
        }
        Ok(found)
    }

    fn lock(&self, digest: Digest, user: u64) -> Result<&'a Lock, Refusal> {
        let what = || format!("lock fact of {}@{digest}", self.claim.project);
        let found = self.facts.iter().find_map(|fact| match &fact.predicate {
            Predicate::Lock(lock) if lock.project == self.claim.project && lock.lock == digest => Some((fact, lock)),
            _ => None,
        });
        let (fact, lock) = found.ok_or_else(|| Refusal::Missing(what()))?;
        before(fact, user, what)?;
        Ok(lock)
    }

    /// The deployment whose evidence counts: for a rollback the one it goes back to.
    fn origin(&self) -> Result<(&'a Fact, &'a Deployment), Refusal> {
        let (mut fact, mut current, mut limit) = (self.fact, self.deployment, self.claim.sequence);
        loop {
            if current.action != Action::Rollback {
                return Ok((fact, current));
            }
            // Strictly backwards, so this ends.
            let target = current.returns_to.filter(|to| (1..limit).contains(to));
            let Some(to) = target else {
                let found = current.returns_to.map_or_else(|| "absent".to_owned(), |to| to.to_string());
                return Err(Refusal::mismatch(place(fact), "returnsTo", &format!("1 to {}", limit - 1), &found));
            };
            let place_in_history = usize::try_from(to - 1).unwrap_or(usize::MAX);
            let Some((earlier_fact, earlier)) = self.history.get(place_in_history).copied() else {
                return Err(Refusal::ChainGap { chain: self.chain.clone(), missing: to });
            };
            same(place(fact), "releaseDigest", &earlier.release_digest, &current.release_digest)?;
            same(place(fact), "configuration", &earlier.configuration, &current.configuration)?;
            same(place(fact), "artifacts", &list(&earlier.artifacts), &list(&current.artifacts))?;
            (fact, current, limit) = (earlier_fact, earlier, to);
        }
    }

    /// What the policy of `deployment` asks of the environment.
    fn rules(&self, deployment: &Deployment) -> Result<Environment, Refusal> {
        let policy: Policy = self.documents.read("policy", deployment.policy)?;
        version("policy", deployment.policy, policy.version)?;
        let mut named = policy.environments.into_iter().filter(|one| one.name == self.claim.environment);
        match (named.next(), named.next()) {
            (Some(one), None) => Ok(one),
            _ => Err(shape("policy", deployment.policy, &format!("it does not name {} once", self.claim.environment))),
        }
    }

    /// Binding, provenance and, where `rebuilt_before` asks for it, a rebuild of an artifact.
    fn artifact(
        &self,
        artifact: &ArtifactRef,
        release: &Release,
        user: u64,
        rebuilt_before: Option<u64>,
    ) -> Result<Built, Refusal> {
        let bound = self.artifact_binding(artifact, &release.commit, user)?;
        let (fact, provenance) = self
            .provenances(artifact.digest)
            .find(|(_, provenance)| source(provenance).next() == Some(&release.commit))
            .or_else(|| self.provenances(artifact.digest).next())
            .ok_or_else(|| Refusal::Missing(format!("provenance of {} {}", artifact.name, artifact.digest)))?;
        before(fact, user, || format!("provenance of {}", artifact.name))?;
        let (commit, inputs) = self.provenance(fact, provenance, artifact, release, bound.0.index)?;

        // The subject says which bytes came out again; two artifacts of equal bytes share a rebuild.
        let resource = format!("adamant:rebuild/{}/", self.claim.project);
        let rebuilds: Vec<_> = self
            .vsas()
            .filter(|(fact, vsa)| vsa.resource_uri.starts_with(&resource) && fact.is_about(artifact.digest))
            .collect();
        let has_passed = |vsa: &Vsa| vsa.verification_result == "PASSED";
        let first = rebuilds.iter().find(|(_, vsa)| has_passed(vsa)).map(|(fact, _)| *fact);
        if let Some(limit) = rebuilt_before {
            let what = || format!("rebuild of {} {}", artifact.name, artifact.digest);
            // Bytes that differed once are not outweighed by a later pass.
            if let Some((fact, _)) = rebuilds.iter().find(|(fact, vsa)| !has_passed(vsa) && fact.index < limit) {
                return Err(Refusal::NotPassed { index: fact.index, what: what() });
            }
            before(first.ok_or_else(|| Refusal::Missing(what()))?, limit, what)?;
        }
        Ok(Built { artifact: artifact.clone(), commit, inputs, rebuilt: first.map(|fact| fact.index) })
    }

    fn artifact_binding(
        &self,
        artifact: &ArtifactRef,
        commit: &str,
        user: u64,
    ) -> Result<(&'a Fact, &'a Binding), Refusal> {
        let name = format!("{}@{commit}/{}/{}", self.claim.project, artifact.name, artifact.platform);
        let bound = self.binding(BindingKind::Artifact, &name, user)?;
        same(place(bound.0), "digest", &artifact.digest, &bound.1.digest)?;
        Ok(bound)
    }

    /// The dependencies of a build: one commit, its lock, and nothing that the lock does not
    /// hold. Gives the commit and the number of locked inputs.
    fn provenance(
        &self,
        fact: &Fact,
        provenance: &Provenance,
        artifact: &ArtifactRef,
        release: &Release,
        user: u64,
    ) -> Result<(String, usize), Refusal> {
        let dependencies = &provenance.build_definition.resolved_dependencies;
        let missing = |what: &str| Refusal::Missing(format!("{what} in the provenance of {}", artifact.name));
        let mut commits = source(provenance);
        let commit = commits.next().ok_or_else(|| missing("commit"))?;
        if let Some(other) = commits.find(|other| *other != commit) {
            return Err(Refusal::mismatch(place(fact), "resolvedDependencies.gitCommit", commit, other));
        }
        // An artifact is bound again, not built again, where nothing it sees has changed.
        let tree = if *commit == release.commit {
            release.tree
        } else {
            self.artifact_binding(artifact, commit, user)?;
            self.commit(commit, user)?.1.digest
        };
        let lock = if *commit == release.commit {
            self.lock(release.lock, user)?
        } else {
            let names = |digest: Digest| {
                dependencies.iter().any(|one| one.digest.get("sha256").is_some_and(|found| *found == digest.hex()))
            };
            let named = self.facts.iter().find_map(|fact| match &fact.predicate {
                Predicate::Lock(lock) if lock.project == self.claim.project && names(lock.lock) => Some(lock.lock),
                _ => None,
            });
            self.lock(named.ok_or_else(|| missing("lock"))?, user)?
        };
        let locked: HashMap<&str, Digest> =
            lock.inputs.iter().map(|input| (input.name.as_str(), input.digest)).collect();
        let (mut has_lock, mut inputs) = (false, 0);
        for dependency in dependencies {
            let is_source = dependency.digest.contains_key("gitCommit");
            let name = dependency.name.as_deref().or(dependency.uri.as_deref()).unwrap_or_default();
            let Some(hex) = dependency.digest.get("sha256") else {
                if is_source {
                    continue;
                }
                return Err(unlocked(fact, name));
            };
            let digest = Digest::from_hex(hex).map_err(|_| unlocked(fact, name))?;
            if is_source {
                same(place(fact), "resolvedDependencies.tree", &tree, &digest)?;
            } else if digest == lock.lock {
                has_lock = true;
            } else if digest != tree {
                let by = |label: &Option<String>| label.as_deref().and_then(|label| locked.get(label)) == Some(&digest);
                if !by(&dependency.name) && !by(&dependency.uri) {
                    return Err(unlocked(fact, name));
                }
                inputs += 1;
            }
        }
        if !has_lock {
            return Err(missing("lock"));
        }
        if inputs == 0 && !lock.inputs.is_empty() {
            return Err(missing("locked input"));
        }
        Ok((commit.clone(), inputs))
    }

    /// The decision that allowed `deployment`, where it needed one.
    fn decision(
        &self,
        fact: &Fact,
        deployment: &Deployment,
        environment: &Environment,
    ) -> Result<Option<u64>, Refusal> {
        // A push deploys by itself only where the policy says so and asks for nothing.
        let free = deployment.action == Action::Deploy && environment.automatic && environment.rules.is_empty();
        let Some(named) = deployment.decision else {
            if free {
                return Ok(None);
            }
            return Err(Refusal::mismatch(place(fact), "decision", &"the digest of a decision", &"absent"));
        };
        let what = || format!("decision {named}");
        let (decided, vsa) =
            self.vsas().find(|(fact, _)| fact.digest == named).ok_or_else(|| Refusal::Missing(what()))?;
        before(decided, fact.index, what)?;
        let at = || place(decided);
        let resource = format!("adamant:environment/{}/{}", self.claim.project, self.claim.environment);
        same(at(), "resourceUri", &resource, &vsa.resource_uri)?;
        let policy = vsa.policy.digest.get("sha256").cloned().unwrap_or_default();
        same(at(), "policy", &deployment.policy.hex(), &policy)?;
        if !decided.is_about(deployment.release_digest) && !decided.is_about(deployment.rollout) {
            let found = decided.subject.iter().map(|(_, digest)| digest.to_string()).collect::<Vec<_>>().join(", ");
            return Err(Refusal::mismatch(at(), "subject", &deployment.release_digest, &found));
        }
        if vsa.verification_result != "PASSED" {
            return Err(Refusal::NotPassed { index: decided.index, what: "the decision".to_owned() });
        }
        if let Some(rule) = environment.rules.iter().find(|rule| !vsa.verified_levels.contains(rule)) {
            return Err(Refusal::RuleNotHeld { index: decided.index, rule: rule.clone() });
        }
        Ok(Some(decided.index))
    }

    /// The newest observation of the claimed deployment; each one there must agree with it.
    fn observation(&self) -> Result<Option<&'a Fact>, Refusal> {
        let mut newest = None;
        for fact in self.facts {
            let Predicate::Observation(seen) = &fact.predicate else { continue };
            if (&seen.project, &seen.environment, seen.deployment)
                != (&self.claim.project, &self.claim.environment, self.claim.sequence)
            {
                continue;
            }
            same(place(fact), "rollout", &self.deployment.rollout, &seen.rollout)?;
            if fact.index < self.fact.index {
                let what = format!("deployment {}", self.claim.sequence);
                return Err(Refusal::TooLate { index: self.fact.index, what, user: fact.index });
            }
            newest = Some(fact);
        }
        Ok(newest)
    }

    fn provenances(&self, digest: Digest) -> impl Iterator<Item = (&'a Fact, &'a Provenance)> {
        self.facts.iter().filter_map(move |fact| match &fact.predicate {
            Predicate::Provenance(provenance) if fact.is_about(digest) => Some((fact, provenance)),
            _ => None,
        })
    }

    fn vsas(&self) -> impl Iterator<Item = (&'a Fact, &'a Vsa)> {
        self.facts.iter().filter_map(|fact| match &fact.predicate {
            Predicate::Vsa(vsa) => Some((fact, vsa)),
            _ => None,
        })
    }
}

/// The commits a build names.
fn source(provenance: &Provenance) -> impl Iterator<Item = &String> {
    provenance.build_definition.resolved_dependencies.iter().filter_map(|one| one.digest.get("gitCommit"))
}

fn place(fact: &Fact) -> String {
    format!("entry {}", fact.index)
}

fn unlocked(fact: &Fact, name: &str) -> Refusal {
    Refusal::Unlocked { index: fact.index, name: name.chars().take(200).collect() }
}

fn same<T: PartialEq + ToString>(
    place: impl Into<String>,
    field: &'static str,
    expected: &T,
    found: &T,
) -> Result<(), Refusal> {
    if expected == found { Ok(()) } else { Err(Refusal::mismatch(place, field, expected, found)) }
}

fn before(fact: &Fact, user: u64, what: impl FnOnce() -> String) -> Result<(), Refusal> {
    if fact.index < user { Ok(()) } else { Err(Refusal::TooLate { index: fact.index, what: what(), user }) }
}

fn version(what: &'static str, digest: Digest, found: u32) -> Result<(), Refusal> {
    if found == 1 { Ok(()) } else { Err(shape(what, digest, &format!("version {found} is not known, 1 is"))) }
}

/// Artifacts as one text, in an order of their own.
fn list(artifacts: &[ArtifactRef]) -> String {
    let mut lines: Vec<String> = artifacts.iter().map(|a| format!("{}/{} {}", a.name, a.platform, a.digest)).collect();
    lines.sort();
    lines.join(", ")
}
