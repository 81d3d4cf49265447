//! Assembling capsules: which entries and documents prove a deployment (format: `audit`).

use std::collections::{BTreeMap, BTreeSet};

use adamant_attest::predicate::{Action, BindingKind, Deployment, Predicate};
use adamant_audit::{Capsule, Claim, Document, Entry};
use adamant_digest::Digest;
use adamant_release::{Release, Rollout};

use crate::error::Problem;
use crate::facts;
use crate::platform::Platform;

/// Links of a chain read at once.
const PAGE: usize = 1000;

impl Platform {
    /// The capsule of a deployment as a file; of the newest one without `sequence`.
    pub async fn prove(&self, project: &str, environment: &str, sequence: Option<u64>) -> Result<Vec<u8>, Problem> {
        let (policy, _) = self.policy(project).await?;
        policy.environment(environment).map_err(|e| Problem::usage(e.to_string()))?;
        let chain = format!("environment/{project}/{environment}");
        let newest = self.facts.ledger.chain_head(&chain).await?;
        let newest = newest.ok_or_else(|| Problem::no(format!("nothing was deployed to {environment} yet")))?.sequence;
        let sequence = sequence.unwrap_or(newest);
        if sequence == 0 || sequence > newest {
            return Err(Problem::usage(format!("{environment} has no deployment {sequence}"))
                .hint(format!("the newest is {newest}")));
        }
        let claim = Claim { project: project.to_owned(), environment: environment.to_owned(), sequence };
        self.capsule(claim).await
    }

    /// Everything about a deployment, with proofs to the head as it is now.
    pub(crate) async fn capsule(&self, claim: Claim) -> Result<Vec<u8>, Problem> {
        let (project, environment) = (claim.project.as_str(), claim.environment.as_str());
        // The head first: every entry below is looked up after it and lies under it or is left out.
        let head = self.facts.ledger.head().await?;
        let mut indices = BTreeSet::new();
        let mut blobs = BTreeSet::new();
        self.whole_chain("keys", u64::MAX, &mut indices).await?;
        let chain = format!("environment/{project}/{environment}");
        let links = self.whole_chain(&chain, claim.sequence, &mut indices).await?;
        let at = |sequence: u64| {
            links.get(&sequence).copied().ok_or_else(|| Problem::damaged(format!("{chain} has no {sequence}")))
        };
        let deployment = self.deployment(at(claim.sequence)?).await?;
        // Evidence of a rollback is that of the deployment it went back to.
        let mut origin = deployment.clone();
        while origin.action == Action::Rollback {
            let to = origin.returns_to.ok_or_else(|| Problem::damaged("a rollback returns to nothing"))?;
            origin = self.deployment(at(to)?).await?;
        }
        let release: Release = self.document(deployment.release_digest).await?;
        let _: Rollout = self.document(deployment.rollout).await?;
        blobs.extend([
            deployment.rollout,
            deployment.release_digest,
            deployment.configuration,
            deployment.policy,
            origin.policy,
        ]);

        let commit = format!("{project}@{}", release.commit);
        for (kind, name) in [
            (BindingKind::Commit, commit.clone()),
            (BindingKind::Lock, format!("{project}@{}", release.lock)),
            (BindingKind::Release, release.name()),
        ] {
            indices.insert(self.index_of(kind, &name).await?);
        }
        for artifact in &release.artifacts {
            blobs.insert(artifact.digest);
            let name = format!("{commit}/{}/{}", artifact.name, artifact.platform);
            indices.insert(self.index_of(BindingKind::Artifact, &name).await?);
            self.evidence(&release, &artifact.name, artifact.digest, &mut indices).await?;
        }
        if let Some(decision) = origin.decision {
            let decided = self.facts.stated(&facts::decisions(&origin.release, environment), decision).await?;
            indices
                .insert(decided.ok_or_else(|| Problem::damaged(format!("decision {decision} is not in the ledger")))?);
        }
        let observations = self.facts.deployments(project, environment, 1000).await?;
        if let Some(seen) = observations.iter().find(|d| d.link.sequence == claim.sequence).and_then(|d| d.observed_at)
        {
            indices.insert(seen);
        }

        let mut entries = Vec::new();
        for index in indices.into_iter().filter(|index| *index < head.size) {
            let envelope = self.facts.at(index).await?.entry.envelope;
            let proof = self.facts.ledger.inclusion(index, head.size).await?;
            entries.push(Entry { index, envelope, proof });
        }
        let mut documents = Vec::new();
        for digest in blobs {
            documents.push(Document { digest, bytes: self.blobs.get(digest).await?.into_bytes() });
        }
        let capsule = Capsule { claim, checkpoint: head.checkpoint, consistency: Vec::new(), entries, documents };
        capsule.to_bytes().map_err(|e| Problem::internal("the capsule cannot be written", e))
    }

    /// Adds a chain's entries up to `last`; gives entry by sequence number.
    async fn whole_chain(
        &self,
        chain: &str,
        last: u64,
        indices: &mut BTreeSet<u64>,
    ) -> Result<BTreeMap<u64, u64>, Problem> {
        let mut links = BTreeMap::new();
        let mut from = 1;
        loop {
            let page = self.facts.ledger.chain(chain, from, PAGE).await?;
            let Some(end) = page.last().map(|link| link.sequence) else { break };
            links.extend(page.iter().filter(|link| link.sequence <= last).map(|link| (link.sequence, link.index)));
            from = end + 1;
            if end >= last || page.len() < PAGE {
                break;
            }
        }
        indices.extend(links.values());
        Ok(links)
    }

    async fn deployment(&self, index: u64) -> Result<Deployment, Problem> {
        match self.facts.at(index).await?.predicate {
            Predicate::Deployment(deployment) => Ok(deployment),
            _ => Err(Problem::damaged(format!("entry {index} is not a deployment"))),
        }
    }

    async fn index_of(&self, kind: BindingKind, name: &str) -> Result<u64, Problem> {
        let bound = self.facts.ledger.binding(kind, name).await?;
        Ok(bound.ok_or_else(|| Problem::damaged(format!("{} {name} is not bound", kind.as_str())))?.index)
    }

    /// Provenance of this commit's build, and the first rebuild that passed.
    async fn evidence(
        &self,
        release: &Release,
        name: &str,
        artifact: Digest,
        indices: &mut BTreeSet<u64>,
    ) -> Result<(), Problem> {
        let built = facts::provenance(&release.project, &release.commit, name);
        let built = self.facts.ledger.chain_head(&built).await?;
        let built = built
            .ok_or_else(|| Problem::damaged(format!("artifact {artifact} of {} has no provenance", release.name())))?;
        indices.insert(built.index);
        // By digest: equal bytes under two names are rebuilt once.
        let rebuilds = self.facts.whole(&facts::rebuilds(&release.project, artifact)).await?;
        let passed = |fact: &&facts::Recorded| matches!(&fact.predicate, Predicate::Vsa(vsa) if vsa.verification_result == "PASSED");
        indices.extend(rebuilds.iter().find(passed).map(|fact| fact.entry.index));
        Ok(())
    }

    /// The trust file of this server.
    pub(crate) fn trust_file(&self) -> Result<Vec<u8>, Problem> {
        Ok(std::fs::read(self.config.data.join("trust.json"))?)
    }
}
