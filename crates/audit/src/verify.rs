//! The order of checks: log, statements, chains, then what the claim rests on.

use adamant_attest::predicate::{Action, Predicate, State};
use adamant_tlog::{Checkpoint, verify_consistency};

use crate::capsule::Capsule;
use crate::chains;
use crate::documents::Documents;
use crate::facts;
use crate::links::{Case, Evidence};
use crate::refusal::Refusal;
use crate::report::{Deployed, NO_WITNESS, Report};
use crate::trust::Trust;

/// Checks everything a capsule says against `trust`.
pub fn verify(capsule: &Capsule, trust: &Trust) -> Result<Report, Refusal> {
    let (checkpoint, note) =
        Checkpoint::verify(&capsule.checkpoint, &trust.origin, &trust.log_key).map_err(Refusal::Checkpoint)?;
    let continues = continues(capsule, &checkpoint, trust)?;
    let witnesses: Vec<String> = trust
        .witnesses
        .iter()
        .filter(|witness| note.verify(witness).is_ok())
        .map(|witness| witness.name().to_owned())
        .collect();

    let documents = Documents::check(capsule)?;
    let facts = facts::read(capsule, &checkpoint, trust)?;
    chains::check(&facts)?;
    let keys = chains::whole(&facts, "keys")?;
    if keys.is_empty() {
        return Err(Refusal::Missing("key facts".to_owned()));
    }
    let case = Case::new(&capsule.claim, &facts, &documents)?;
    let evidence = case.check()?;

    let deployment = case.deployment;
    let mut report = Report {
        claim: capsule.claim.clone(),
        origin: checkpoint.origin.clone(),
        size: checkpoint.size,
        statements: facts.len(),
        deployment: deployment.clone(),
        recorded_at: case.fact.recorded_at.clone(),
        commit: evidence.commit.clone(),
        history: history(&case),
        proven: vec![
            format!(
                "log {} of {} entries, signed by its key, holds all {} statements; each is signed by a key of its role that goes back to the root control key",
                checkpoint.origin,
                checkpoint.size,
                facts.len()
            ),
            format!(
                "chain {} is complete from 1 to {}; no other deployment was recorded here",
                case.chain, capsule.claim.sequence
            ),
        ],
        asserted: Vec::new(),
        warnings: Vec::new(),
        witnesses,
    };
    report.proven.extend(continues.clone());
    say(&mut report, &case, &evidence);
    if trust.checkpoint.is_some() && continues.is_none() {
        let line = "the log is not proven to continue the one last seen: the capsule has no consistency proof from it";
        report.warnings.push(line.to_owned());
    }
    if report.witnesses.is_empty() {
        report.warnings.push(NO_WITNESS.to_owned());
    } else {
        report.proven.push(format!("the checkpoint is cosigned by {}", report.witnesses.join(", ")));
    }
    Ok(report)
}

/// Checks the checkpoint against the one last seen; the line to report if it is proven to
/// continue it.
fn continues(capsule: &Capsule, checkpoint: &Checkpoint, trust: &Trust) -> Result<Option<String>, Refusal> {
    let Some(seen) = &trust.checkpoint else { return Ok(None) };
    let (seen, _) = Checkpoint::verify(seen, &trust.origin, &trust.log_key).map_err(Refusal::TrustedCheckpoint)?;
    let (size, before) = (checkpoint.size, seen.size);
    if size < before {
        return Err(Refusal::Older { size, seen: before });
    }
    let given = capsule.consistency.iter().find(|one| one.from == before).map(|one| one.proof.as_slice());
    // Equal sizes and the empty log need no hashes; a proof that is there must hold.
    let proof = if size == before || before == 0 { Some(given.unwrap_or(&[])) } else { given };
    let Some(proof) = proof else { return Ok(None) };
    verify_consistency(before, &seen.root, size, &checkpoint.root, proof)
        .map_err(|_| Refusal::Fork { size, seen: before })?;
    Ok(Some(format!("the log continues the one of {before} entries seen before")))
}

fn history(case: &Case<'_>) -> Vec<Deployed> {
    case.history
        .iter()
        .zip(1..)
        .map(|((fact, deployment), sequence)| Deployed {
            sequence,
            index: fact.index,
            release: deployment.release.clone(),
            recorded_at: fact.recorded_at.clone(),
        })
        .collect()
}

/// The findings in plain words.
fn say(report: &mut Report, case: &Case<'_>, evidence: &Evidence<'_>) {
    let deployment = case.deployment;
    let (proven, asserted) = (&mut report.proven, &mut report.asserted);
    proven.push(format!(
        "rollout {} fixes release {}, configuration {} and policy {}",
        deployment.rollout.short(),
        deployment.release,
        deployment.configuration.short(),
        deployment.policy.short()
    ));
    proven.push(format!(
        "release {} is bound once, to commit {} with tree {} and lock {}",
        deployment.release,
        evidence.commit,
        evidence.tree.short(),
        evidence.lock.short()
    ));
    for artifact in &evidence.artifacts {
        let name = format!("{} {}", artifact.artifact.name, artifact.artifact.digest.short());
        let from = if artifact.commit == evidence.commit {
            "this commit".to_owned()
        } else {
            format!("commit {} and reused", artifact.commit)
        };
        proven.push(format!(
            "artifact {name}: the builder signed that it was built from {from}; all {} inputs it names are in the lock",
            artifact.inputs
        ));
        match artifact.rebuilt {
            Some(index) => {
                proven.push(format!("artifact {name}: the builder signed a rebuild to the same bytes (entry {index})"));
            }
            None => report.warnings.push(format!("artifact {name}: no rebuild in the capsule")),
        }
        if artifact.commit != evidence.commit {
            asserted
                .push(format!("artifact {name}: that this commit gives the same bytes as commit {}", artifact.commit));
        }
    }
    if let Some(decision) = evidence.decision {
        proven.push(format!("the promotion was decided under that policy before it happened (entry {decision})"));
        asserted.push(format!("that the rules held: {}", evidence.rules.join(", ")));
    }
    match deployment.action {
        Action::Rollback => proven.push(format!(
            "it is a rollback: release, artifacts and configuration are those of deployment {}",
            deployment.returns_to.unwrap_or_default()
        )),
        Action::Deploy | Action::Promote => {}
    }
    match evidence.observation.map(|fact| (fact, &fact.predicate)) {
        Some((fact, Predicate::Observation(observation))) => {
            let seen = match observation.state {
                State::Healthy => "healthy",
                State::Failed => "failed: what ran before ran on",
                State::Drift => "drifted from what was deployed",
            };
            proven.push(format!("the host signed that it saw this rollout {seen} (entry {})", fact.index));
            asserted.push("that the host saw what it says".to_owned());
            if observation.state != State::Healthy {
                report.warnings.push(format!("the host saw it {seen}"));
            }
        }
        _ => report.warnings.push("no observation: nothing shows that it ever ran".to_owned()),
    }
    asserted.push(format!("recorded at {} (the server's clock)", case.fact.recorded_at));
    asserted.push(format!("asked for by {}", deployment.by));
    asserted.push("that the builder built as it says".to_owned());
    asserted.push("that no key was revoked after the last key fact in the capsule".to_owned());
}
