//! Capsules that must hold, what the report says of them, and how long it takes.

use std::time::Instant;

use adamant_attest::predicate::{Action, Predicate};
use adamant_audit::{Capsule, Consistency, NO_WITNESS, Trust, verify};
use adamant_tlog::{Checkpoint, Note, NoteSignature, VerifierKey, consistency, cosigned, root};

use crate::predicate;
use crate::world::{Alter, Keys, capsule, history, position, seal};

#[test]
fn a_whole_capsule() {
    let keys = Keys::new();
    let capsule = capsule(&Alter::default(), &keys);
    // Through the file and the trust file, as a reader gets them.
    let again = Capsule::parse(&capsule.to_bytes().unwrap()).unwrap();
    assert_eq!(again, capsule);
    let trust = Trust::parse(&keys.trust().to_bytes().unwrap()).unwrap();
    assert_eq!(trust, keys.trust());
    let report = verify(&again, &trust).unwrap();
    assert_eq!(report.deployment.release, "shop/2");
    assert_eq!(report.history.len(), 2);
    assert_eq!(report.history[0].release, "shop/1");
    assert_eq!(report.warnings, [NO_WITNESS]);
    let text = report.to_string();
    for line in [
        "verified: deployment 2 of shop to prod is shop/2",
        "chain environment/shop/prod is complete from 1 to 2",
        "was built from this commit; all 2 inputs",
        "was built from commit 1111111111111111111111111111111111111111 and reused",
        "signed a rebuild to the same bytes",
        "saw this rollout healthy",
        "asked for by ann",
        "not protected against a fork by the operator",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn later_deployments_do_not_disturb() {
    let keys = Keys::new();
    let steps = |steps: &mut Vec<_>, _: &Keys| {
        let again = steps[position(steps, "prod 2")].clone();
        steps.push(again);
    };
    let capsule = capsule(&Alter { steps, ..Alter::default() }, &keys);
    assert_eq!(verify(&capsule, &keys.trust()).unwrap().history.len(), 2);
}

#[test]
fn a_deployment_nobody_observed_says_so() {
    let keys = Keys::new();
    let mut capsule = capsule(&Alter::default(), &keys);
    capsule.entries.pop();
    let report = verify(&capsule, &keys.trust()).unwrap();
    assert!(report.warnings[0].contains("no observation"), "{report}");
}

#[test]
fn a_rollback_rests_on_what_it_returns_to() {
    let keys = Keys::new();
    let steps = |steps: &mut Vec<crate::world::Step>, _: &Keys| {
        steps.truncate(position(steps, "seen"));
        let other = steps[position(steps, "prod 1")].clone();
        let back = steps[position(steps, "prod 2")].clone();
        // Back to 2, and then back to the deployment that went back.
        for (returns_to, mut step) in [(0, other), (2, back.clone()), (4, back)] {
            if let (Predicate::Deployment(deployment), 1..) = (&mut step.predicate, returns_to) {
                deployment.action = Action::Rollback;
                deployment.decision = None;
                deployment.returns_to = Some(returns_to);
            }
            steps.push(step);
        }
    };
    let mut capsule = capsule(&Alter { steps, ..Alter::default() }, &keys);
    for sequence in [4, 5] {
        capsule.claim.sequence = sequence;
        let report = verify(&capsule, &keys.trust()).unwrap();
        assert!(report.to_string().contains("it is a rollback"), "{report}");
    }
}

#[test]
fn without_the_rule_no_rebuild_is_needed() {
    let keys = Keys::new();
    let alter = Alter {
        policy: |policy| policy["environments"][1]["rules"] = serde_json::json!(["previous"]),
        steps: |steps, _| steps.retain(|step| !step.label.ends_with("rebuilt")),
        ..Alter::default()
    };
    let report = verify(&capsule(&alter, &keys), &keys.trust()).unwrap();
    assert!(report.warnings.iter().any(|line| line.contains("no rebuild")), "{report}");
}

#[test]
fn an_automatic_deployment_needs_no_decision() {
    let keys = Keys::new();
    let alter = Alter {
        policy: |policy| {
            policy["environments"][1]["rules"] = serde_json::json!([]);
            policy["environments"][1]["automatic"] = true.into();
        },
        steps: |steps, _| {
            steps.retain(|step| step.label != "decision");
            predicate!(steps, "prod 2", Deployment, |it: &mut adamant_attest::predicate::Deployment| {
                it.action = Action::Deploy;
                it.decision = None;
            });
        },
        ..Alter::default()
    };
    verify(&capsule(&alter, &keys), &keys.trust()).unwrap();
}

#[test]
fn continues_what_was_seen() {
    let keys = Keys::new();
    let (steps, documents) = history(&Alter::default(), &keys);
    let (mut capsule, log) = seal(&steps, &documents, &keys);
    let read = |node| Ok::<_, ()>(log.nodes[&node]);
    let seen = Checkpoint { size: 9, root: root(9, read).unwrap(), ..log.checkpoint.clone() };
    let trust = Trust { checkpoint: Some(seen.sign(&keys.log).unwrap().to_string()), ..keys.trust() };
    let report = verify(&capsule, &trust).unwrap();
    assert!(report.warnings.iter().any(|line| line.contains("no consistency proof")), "{report}");
    capsule.consistency = vec![Consistency { from: 9, proof: consistency(9, log.checkpoint.size, read).unwrap() }];
    let report = verify(&Capsule::parse(&capsule.to_bytes().unwrap()).unwrap(), &trust).unwrap();
    assert!(report.proven.iter().any(|line| line.contains("continues the one of 9 entries")), "{report}");
    let same = Trust { checkpoint: Some(capsule.checkpoint.clone()), ..keys.trust() };
    let report = verify(&capsule, &same).unwrap();
    assert!(report.proven.iter().any(|line| line.contains("continues the one of 25 entries")), "{report}");
}

#[test]
fn a_trusted_witness_counts() {
    let keys = Keys::new();
    let mut capsule = capsule(&Alter::default(), &keys);
    let key = adamant_attest::SigningKey::generate(adamant_attest::Algorithm::Ed25519).unwrap();
    let witness = VerifierKey::witness("witness.test", key.public().raw().try_into().unwrap()).unwrap();
    let mut note = Note::parse(&capsule.checkpoint).unwrap();
    let time = 1_767_225_700u64;
    let signature = [&time.to_be_bytes()[..], &key.sign(&cosigned(time, note.text())).unwrap()].concat();
    note.push(NoteSignature { name: witness.name().into(), key_id: witness.key_id(), signature }).unwrap();
    capsule.checkpoint = note.to_string();
    assert_eq!(verify(&capsule, &keys.trust()).unwrap().warnings, [NO_WITNESS], "nobody trusts it");
    let trust = Trust { witnesses: vec![witness], ..keys.trust() };
    let trust = Trust::parse(&trust.to_bytes().unwrap()).unwrap();
    let report = verify(&capsule, &trust).unwrap();
    assert_eq!(report.witnesses, ["witness.test"]);
    assert!(report.warnings.is_empty(), "{report}");
}

/// The goal is 20 ms for a capsule of usual size in a release build; printed for the record.
#[test]
fn is_fast() {
    let keys = Keys::new();
    let steps = |steps: &mut Vec<crate::world::Step>, _: &Keys| {
        let at = position(steps, "prod 1");
        let older = steps[at].clone();
        steps.splice(at..at, std::iter::repeat_n(older, 40));
    };
    let mut capsule = capsule(&Alter { steps, ..Alter::default() }, &keys);
    capsule.claim.sequence = 42;
    capsule.entries.pop();
    let (bytes, trust) = (capsule.to_bytes().unwrap(), keys.trust());
    let best = (0..5)
        .map(|_| {
            let start = Instant::now();
            verify(&Capsule::parse(&bytes).unwrap(), &trust).unwrap();
            start.elapsed()
        })
        .min()
        .unwrap();
    eprintln!("a capsule of {} statements, {} bytes: {best:?}", capsule.entries.len(), bytes.len());
    assert!(best.as_millis() < 2_000, "{best:?}");
}
