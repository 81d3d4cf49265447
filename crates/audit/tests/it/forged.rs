//! Alterations, each refused for its own reason.
//!
//! Two kinds. In the first the attacker has the capsule file alone and rewrites what he can. In
//! the second he is the operator himself: statement or document are changed before anything is
//! hashed, and every digest, link, signature, leaf, proof and checkpoint is made anew with the
//! real keys, so that only the rules between statements can tell.

use adamant_attest::predicate::{
    Action, BindingKind, Deployment, Key, Lock, Observation, Predicate, Provenance, ResourceDescriptor, Role, Vsa,
};
use adamant_attest::{Envelope, Link, Statement};
use adamant_audit::{Capsule, Consistency, Document, Refusal, Trust, verify};
use adamant_digest::Digest;
use adamant_tlog::{Checkpoint, CheckpointError, NoteError, ProofError};
use serde_json::{Value, json};

use crate::predicate;
use crate::world::{
    Alter, FIRST, Keys, ORIGIN, SECOND, Step, Who, binding, capsule, edit, history, key_fact, log_key, manifest,
    position, seal, step, tree,
};

/// Alters the finished file.
fn file(change: impl FnOnce(&mut Capsule, &Keys)) -> Refusal {
    let keys = Keys::new();
    let mut capsule = capsule(&Alter::default(), &keys);
    change(&mut capsule, &keys);
    verify(&capsule, &keys.trust()).expect_err("altered")
}

/// Alters what is recorded; all that is outside of it follows.
fn recorded(alter: &Alter) -> Refusal {
    let keys = Keys::new();
    verify(&capsule(alter, &keys), &keys.trust()).expect_err("altered")
}

fn steps(change: fn(&mut Vec<Step>, &Keys)) -> Refusal {
    recorded(&Alter { steps: change, ..Alter::default() })
}

/// Asserts that a refusal has a shape.
macro_rules! refused {
    ($refusal:expr, $pattern:pat $(if $guard:expr)?) => {
        match $refusal {
            $pattern $(if $guard)? => {}
            other => panic!("refused for another reason: {other:?}"),
        }
    };
}

/// The place in the capsule of the entry recorded as step `label`.
fn at(label: &str, keys: &Keys) -> usize {
    let (steps, _) = history(&Alter::default(), keys);
    steps.iter().filter(|step| step.shown).position(|step| step.label == label).unwrap()
}

/// Replaces text in the statement of `label` and signs it with the key of `who`.
fn resign(capsule: &mut Capsule, keys: &Keys, label: &str, who: Who, from: &str, to: &str) {
    let entry = &mut capsule.entries[at(label, keys)];
    let payload = String::from_utf8(Envelope::parse(&entry.envelope).unwrap().payload).unwrap();
    let changed = payload.replace(from, to);
    assert!(from == to || payload != changed, "{from} is not in {payload}");
    assert!(Statement::parse(changed.as_bytes()).is_ok());
    entry.envelope = Envelope::sign(changed.into_bytes(), keys.of(who)).unwrap().to_bytes();
}

// The file alone.

#[test]
fn a_statement_changed_under_its_signature() {
    refused!(
        file(|capsule, keys| {
            let entry = &mut capsule.entries[at("prod 2", keys)];
            let mut envelope = Envelope::parse(&entry.envelope).unwrap();
            let text = String::from_utf8(envelope.payload).unwrap();
            envelope.payload = text.replace("\"by\":\"ann\"", "\"by\":\"eve\"").into_bytes();
            entry.envelope = envelope.to_bytes();
        }),
        Refusal::Signature { index: 21, .. }
    );
}

#[test]
fn a_statement_signed_again_by_its_own_key_is_not_in_the_log() {
    refused!(
        file(|capsule, keys| resign(capsule, keys, "prod 2", Who::Root, "\"by\":\"ann\"", "\"by\":\"eve\"")),
        Refusal::Inclusion { index: 21, source: ProofError::Root }
    );
}

#[test]
fn even_unchanged_bytes_signed_again_are_not_in_the_log() {
    // ECDSA signatures differ each time, and the leaf holds the signature.
    refused!(
        file(|capsule, keys| resign(capsule, keys, "prod 2", Who::Root, "", "")),
        Refusal::Inclusion { index: 21, .. }
    );
}

#[test]
fn signed_by_another_key_of_ours() {
    refused!(
        file(|capsule, keys| resign(capsule, keys, "prod 2", Who::Host, "\"by\":\"ann\"", "\"by\":\"eve\"")),
        Refusal::Role { index: 21, expected: Role::Control, found: Role::Host }
    );
}

#[test]
fn signed_by_a_stranger() {
    refused!(
        file(|capsule, keys| resign(capsule, keys, "prod 2", Who::Stranger, "\"by\":\"ann\"", "\"by\":\"eve\"")),
        Refusal::UnknownKey { index: 21, .. }
    );
}

#[test]
fn signed_by_a_stranger_in_the_name_of_our_key() {
    refused!(
        file(|capsule, keys| {
            resign(capsule, keys, "prod 2", Who::Stranger, "\"by\":\"ann\"", "\"by\":\"eve\"");
            let entry = &mut capsule.entries[at("prod 2", keys)];
            let mut envelope = Envelope::parse(&entry.envelope).unwrap();
            envelope.keyid = keys.of(Who::Root).public().keyid().into();
            entry.envelope = envelope.to_bytes();
        }),
        Refusal::Signature { index: 21, .. }
    );
}

#[test]
fn a_swapped_proof() {
    refused!(
        file(|capsule, _| {
            let proof = capsule.entries[3].proof.clone();
            capsule.entries[3].proof = std::mem::replace(&mut capsule.entries[4].proof, proof);
        }),
        Refusal::Inclusion { index: 3, .. }
    );
}

#[test]
fn a_shortened_proof() {
    refused!(
        file(|capsule, _| {
            capsule.entries[2].proof.pop();
        }),
        Refusal::Inclusion { index: 2, source: ProofError::Length(_) }
    );
}

#[test]
fn an_entry_under_another_index() {
    refused!(
        file(|capsule, keys| capsule.entries[at("prod 2", keys)].index += 1),
        Refusal::Inclusion { index: 22, .. }
    );
    refused!(
        file(|capsule, keys| capsule.entries[at("seen", keys)].index = 1_000),
        Refusal::Inclusion { index: 1_000, source: ProofError::Range(..) }
    );
}

#[test]
fn an_entry_twice_or_out_of_order() {
    refused!(
        file(|capsule, _| {
            let again = capsule.entries[2].clone();
            capsule.entries.insert(3, again);
        }),
        Refusal::DuplicateEntry(2)
    );
    refused!(file(|capsule, _| capsule.entries.swap(3, 4)), Refusal::EntryOrder(3));
}

#[test]
fn dropped_keys() {
    let dropped = |label: &str| {
        file(|capsule, keys| {
            capsule.entries.remove(at(label, keys));
        })
    };
    refused!(dropped("root"), Refusal::RootKey { index: 1, .. });
    // What the builder signed comes before the end of the chain is seen.
    refused!(dropped("builder"), Refusal::UnknownKey { index: 8, .. });
    refused!(dropped("host"), Refusal::UnknownKey { index: 23, .. });
    refused!(dropped("spare"), Refusal::KeyFact { index: 5, .. });
    // A key fact that nothing else needs leaves a hole.
    refused!(
        file(|capsule, keys| {
            capsule.entries.remove(at("host", keys));
            capsule.entries.pop();
        }),
        Refusal::ChainGap { chain, missing: 3 } if chain == "keys"
    );
}

#[test]
fn a_truncated_history() {
    refused!(
        file(|capsule, keys| {
            capsule.entries.remove(at("prod 1", keys));
        }),
        Refusal::ChainGap { chain, missing: 1 } if chain == "environment/shop/prod"
    );
    refused!(
        file(|capsule, keys| {
            capsule.entries.remove(at("prod 2", keys));
        }),
        Refusal::ChainGap { missing: 2, .. }
    );
    refused!(file(|capsule, _| capsule.entries.clear()), Refusal::Missing(_));
}

#[test]
fn dropped_evidence() {
    let dropped = |label: &str| {
        file(|capsule, keys| {
            capsule.entries.remove(at(label, keys));
        })
    };
    for (label, missing) in [
        ("commit 1", "commit binding of shop@1111"),
        ("commit 2", "commit binding of shop@2222"),
        ("lock", "lock fact of shop@sha256:"),
        ("api built", "provenance of api sha256:"),
        ("web built", "provenance of web sha256:"),
        ("api 1", "artifact binding of shop@1111"),
        ("api 2", "artifact binding of shop@2222"),
        ("web 2", "artifact binding of shop@2222"),
        ("release", "release binding of shop/2"),
        ("api rebuilt", "rebuild of api sha256:"),
        ("web rebuilt", "rebuild of web sha256:"),
        ("decision", "decision sha256:"),
    ] {
        refused!(dropped(label), Refusal::Missing(what) if what.starts_with(missing));
    }
}

#[test]
fn another_claim() {
    refused!(file(|capsule, _| capsule.claim.sequence = 1), Refusal::MissingDocument { what: "rollout document", .. });
    refused!(file(|capsule, _| capsule.claim.sequence = 3), Refusal::ChainGap { missing: 3, .. });
    refused!(file(|capsule, _| capsule.claim.sequence = 0), Refusal::ChainGap { .. });
    refused!(file(|capsule, _| capsule.claim.environment = "staging".into()), Refusal::ChainGap { missing: 1, .. });
    refused!(file(|capsule, _| capsule.claim.project = "shop2".into()), Refusal::ChainGap { missing: 1, .. });
}

#[test]
fn a_changed_checkpoint() {
    use CheckpointError::Note;
    refused!(
        file(|capsule, _| capsule.checkpoint = capsule.checkpoint.replace("\n25\n", "\n26\n")),
        Refusal::Checkpoint(Note(NoteError::Signature(_)))
    );
    refused!(
        file(|capsule, _| capsule.checkpoint = capsule.checkpoint.replacen(ORIGIN, "log.other", 1)),
        Refusal::Checkpoint(Note(NoteError::Signature(_)))
    );
    refused!(
        file(|capsule, _| capsule.checkpoint = capsule.checkpoint.replace(ORIGIN, "log.other")),
        Refusal::Checkpoint(Note(NoteError::Unsigned(_)))
    );
    refused!(
        file(|capsule, _| {
            let text = capsule.checkpoint.split("\n\n").next().unwrap().to_owned();
            capsule.checkpoint = format!("{text}\n");
        }),
        Refusal::Checkpoint(Note(NoteError::Shape(_)))
    );
    refused!(
        file(|capsule, keys| {
            let checkpoint = Checkpoint::verify(&capsule.checkpoint, ORIGIN, keys.log.key()).unwrap().0;
            let other = Checkpoint { origin: "log.other".into(), ..checkpoint };
            capsule.checkpoint = other.sign(&keys.log).unwrap().to_string();
        }),
        Refusal::Checkpoint(CheckpointError::Origin { .. })
    );
}

#[test]
fn a_whole_log_of_the_attackers() {
    // Every step is his, and consistent in itself.
    let (ours, mut his) = (Keys::new(), Keys::new());
    refused!(
        verify(&capsule(&Alter::default(), &his), &ours.trust()).unwrap_err(),
        Refusal::Checkpoint(CheckpointError::Note(NoteError::Unsigned(_)))
    );
    // Even with the log's key, the root is not his.
    his.log = ours.log;
    let trust = Trust {
        log_key: his.log.key().clone(),
        root_control_key: Keys::new().of(Who::Root).public().clone(),
        ..his.trust()
    };
    refused!(verify(&capsule(&Alter::default(), &his), &trust).unwrap_err(), Refusal::RootKey { index: 0, .. });
}

#[test]
fn an_older_or_forked_log() {
    let keys = Keys::new();
    let (steps, documents) = history(&Alter::default(), &keys);
    let (capsule, log) = seal(&steps, &documents, &keys);
    let seen = |size: u64, root: [u8; 32]| {
        let checkpoint = Checkpoint { size, root, ..log.checkpoint.clone() };
        Trust { checkpoint: Some(checkpoint.sign(&keys.log).unwrap().to_string()), ..keys.trust() }
    };
    let check = |capsule: &Capsule, trust: &Trust| verify(capsule, trust).expect_err("altered");
    refused!(check(&capsule, &seen(26, [7; 32])), Refusal::Older { size: 25, seen: 26 });
    refused!(check(&capsule, &seen(25, [7; 32])), Refusal::Fork { size: 25, seen: 25 });
    let mut wrong = capsule.clone();
    wrong.consistency = vec![Consistency { from: 9, proof: vec![[0; 32]; 4] }];
    refused!(check(&wrong, &seen(9, [7; 32])), Refusal::Fork { size: 25, seen: 9 });
    let foreign = Trust { checkpoint: Some(log.checkpoint.sign(&log_key()).unwrap().to_string()), ..keys.trust() };
    refused!(check(&capsule, &foreign), Refusal::TrustedCheckpoint(_));
}

#[test]
fn documents_replaced_or_dropped() {
    for i in 0..6 {
        refused!(file(|capsule, _| capsule.documents[i].bytes.push(b' ')), Refusal::DocumentDigest { .. });
        refused!(
            file(|capsule, _| {
                let bytes = b"{}".to_vec();
                capsule.documents[i] = Document { digest: Digest::of(&bytes), bytes };
            }),
            Refusal::MissingDocument { .. }
        );
    }
    refused!(
        file(|capsule, _| {
            let again = capsule.documents[0].clone();
            capsule.documents.push(again);
        }),
        Refusal::DuplicateDocument(_)
    );
}

#[test]
fn a_malformed_envelope() {
    refused!(file(|capsule, _| capsule.entries[5].envelope = b"{}".to_vec()), Refusal::Envelope { .. });
    refused!(
        file(|capsule, _| {
            let text = String::from_utf8(capsule.entries[5].envelope.clone()).unwrap();
            let twice = text.replacen("{\"payload\":", "{\"payload\":\"e30=\",\"payload\":", 1);
            capsule.entries[5].envelope = twice.into_bytes();
        }),
        Refusal::Envelope { source: adamant_attest::EnvelopeError::Json(_), .. }
    );
}

#[test]
fn a_statement_with_a_member_twice() {
    refused!(
        file(|capsule, keys| {
            let entry = &mut capsule.entries[at("prod 2", keys)];
            let payload = String::from_utf8(Envelope::parse(&entry.envelope).unwrap().payload).unwrap();
            let twice = payload.replacen("\"by\":\"ann\"", "\"by\":\"eve\",\"by\":\"ann\"", 1);
            entry.envelope = Envelope::sign(twice.into_bytes(), keys.of(Who::Root)).unwrap().to_bytes();
        }),
        Refusal::Statement { index: 21, .. }
    );
}

// The operator himself.

#[test]
fn keys_that_contradict_themselves() {
    refused!(
        steps(|steps, _| predicate!(steps, "builder", Key, |key: &mut Key| key.keyid.push('x'))),
        Refusal::KeyFact { index: 1, .. }
    );
    refused!(
        steps(|steps, _| predicate!(steps, "builder", Key, |key: &mut Key| key.action = "loved".into())),
        Refusal::KeyFact { index: 1, .. }
    );
    refused!(
        steps(|steps, _| predicate!(steps, "builder", Key, |key: &mut Key| key.public_key = "AAAA".into())),
        Refusal::KeyFact { index: 1, .. }
    );
    refused!(
        steps(|steps, _| predicate!(steps, "root", Key, |key: &mut Key| key.role = Role::Builder)),
        Refusal::KeyFact { index: 0, .. }
    );
    // One key in two roles; a revoked key that comes back; a revocation of what is not in use.
    refused!(
        steps(|steps, keys| {
            steps.insert(3, step("x", Who::Root, &[], keys.key_fact(Who::Builder, Role::Host, "introduced"), "keys"));
        }),
        Refusal::KeyFact { index: 3, .. }
    );
    refused!(
        steps(|steps, keys| {
            steps.insert(6, step("x", Who::Root, &[], keys.key_fact(Who::Spare, Role::Builder, "introduced"), "keys"));
        }),
        Refusal::KeyFact { index: 6, .. }
    );
    refused!(
        steps(|steps, keys| {
            steps.insert(6, step("x", Who::Root, &[], keys.key_fact(Who::Stranger, Role::Builder, "revoked"), "keys"));
        }),
        Refusal::KeyFact { index: 6, .. }
    );
}

#[test]
fn another_root() {
    refused!(
        steps(|steps, keys| {
            let fact = key_fact(keys.of(Who::Stranger).public(), Role::Control, "introduced");
            steps.insert(0, step("x", Who::Stranger, &[], fact, "keys"));
        }),
        Refusal::RootKey { index: 0, .. }
    );
    // A key fact signed by the key it introduces.
    refused!(
        steps(|steps, keys| {
            let fact = key_fact(keys.of(Who::Stranger).public(), Role::Control, "introduced");
            steps.insert(1, step("x", Who::Stranger, &[], fact, "keys"));
        }),
        Refusal::UnknownKey { index: 1, .. }
    );
    // A key introduced by one that may not.
    refused!(
        steps(|steps, keys| {
            let fact = key_fact(keys.of(Who::Stranger).public(), Role::Control, "introduced");
            steps.insert(3, step("x", Who::Builder, &[], fact, "keys"));
        }),
        Refusal::Role { index: 3, .. }
    );
}

#[test]
fn a_key_before_its_time_or_after_its_revocation() {
    refused!(
        steps(|steps, _| edit(steps, "web built", |step| step.who = Who::Spare)),
        Refusal::RevokedKey { index: 13, revoked: 5, .. }
    );
    refused!(
        steps(|steps, _| {
            let built = steps.remove(position(steps, "api built"));
            steps.insert(1, built);
        }),
        Refusal::UnknownKey { index: 1, .. }
    );
}

#[test]
fn wrong_roles() {
    for (label, who, expected) in [
        ("api built", Who::Root, Role::Builder),
        ("api rebuilt", Who::Root, Role::Builder),
        ("decision", Who::Builder, Role::Control),
        ("release", Who::Builder, Role::Control),
        ("lock", Who::Host, Role::Control),
        ("commit 2", Who::Host, Role::Control),
        ("prod 2", Who::Builder, Role::Control),
        ("seen", Who::Root, Role::Host),
        ("spare", Who::Builder, Role::Control),
    ] {
        let keys = Keys::new();
        let (mut steps, documents) = history(&Alter::default(), &keys);
        edit(&mut steps, label, |step| step.who = who);
        let refusal = verify(&seal(&steps, &documents, &keys).0, &keys.trust()).unwrap_err();
        refused!(refusal, Refusal::Role { expected: found, .. } if found == expected);
    }
}

#[test]
fn time_that_runs_back() {
    refused!(
        steps(|steps, _| edit(steps, "prod 2", |step| step.at = Some(3))),
        Refusal::TimeRunsBack { index: 21, .. }
    );
}

#[test]
fn broken_chains() {
    let link = |sequence, previous: Option<&[u8]>| {
        Some(Link { chain: "environment/shop/prod".into(), sequence, previous: previous.map(Digest::of) })
    };
    let with = |label: &'static str, link: Option<Link>| {
        let keys = Keys::new();
        let (mut steps, documents) = history(&Alter::default(), &keys);
        edit(&mut steps, label, |step| step.link = link);
        verify(&seal(&steps, &documents, &keys).0, &keys.trust()).unwrap_err()
    };
    refused!(with("prod 2", link(2, Some(b"other"))), Refusal::ChainLink { index: 21, sequence: 2, .. });
    refused!(with("prod 2", link(3, Some(b"other"))), Refusal::ChainGap { missing: 2, .. });
    refused!(with("prod 2", link(1, None)), Refusal::ChainOrder { index: 21, sequence: 1, before: 1, .. });
    refused!(
        steps(|steps, _| edit(steps, "prod 2", |step| step.chain = Some("environment/shop/dev".into()))),
        Refusal::WrongChain { index: 21, .. }
    );
    refused!(steps(|steps, _| edit(steps, "prod 2", |step| step.chain = None)), Refusal::WrongChain { index: 21, .. });
    refused!(
        steps(|steps, _| edit(steps, "builder", |step| step.chain = Some("project/shop".into()))),
        Refusal::WrongChain { index: 1, .. }
    );
    refused!(
        steps(|steps, _| edit(steps, "release", |step| step.chain = Some("environment/shop/prod".into()))),
        Refusal::WrongChain { index: 16, .. }
    );
    refused!(steps(|steps, _| edit(steps, "seen", |step| step.chain = None)), Refusal::WrongChain { index: 23, .. });
    refused!(
        steps(|steps, _| edit(steps, "commit 2", |step| step.chain = None)),
        Refusal::WrongChain { index: 12, .. }
    );
}

#[test]
fn a_name_bound_twice() {
    refused!(
        steps(|steps, _| {
            let name = format!("shop@{SECOND}/web/linux/amd64");
            steps.push(binding("x", BindingKind::Artifact, &name, Digest::of(b"other"), ""));
        }),
        Refusal::BoundTwice { kind: "artifact", .. }
    );
    refused!(
        steps(|steps, _| {
            let other = Lock {
                project: "other".into(),
                lock: Digest::of(b"other lock"),
                by: "eve".into(),
                inputs: vec![adamant_attest::predicate::Input {
                    name: "crate:serde@1.0.1".into(),
                    digest: Digest::of(b"evil"),
                    size: 0,
                }],
            };
            steps.push(step("x", Who::Root, &[], Predicate::Lock(other), ""));
        }),
        Refusal::BoundTwice { kind: "upstream", .. }
    );
}

/// A member of the deployment changed, everything outside recomputed.
#[test]
fn deployment_and_rollout_disagree() {
    fn check(change: fn(&mut Vec<Step>, &Keys), field: &str) {
        refused!(steps(change), Refusal::Mismatch { field: found, .. } if found == field);
    }
    macro_rules! deployment {
        ($field:expr, $change:expr) => {
            check(|steps, _| predicate!(steps, "prod 2", Deployment, |it: &mut Deployment| ($change)(it)), $field)
        };
    }
    deployment!("release", |it: &mut Deployment| it.release = "shop/1".into());
    deployment!("releaseDigest", |it: &mut Deployment| it.release_digest = Digest::of(b"x"));
    deployment!("configuration", |it: &mut Deployment| it.configuration = Digest::of(b"x"));
    deployment!("policy", |it: &mut Deployment| it.policy = Digest::of(b"x"));
    deployment!("artifacts", |it: &mut Deployment| it.artifacts[0].digest = it.artifacts[1].digest);
    deployment!("artifacts", |it: &mut Deployment| it.artifacts.truncate(1));
    deployment!("artifacts", |it: &mut Deployment| it.artifacts[0].platform = "linux/arm64".into());
    deployment!("decision", |it: &mut Deployment| it.decision = None);
}

#[test]
fn documents_that_disagree() {
    fn rollout(change: fn(&mut Value)) -> Refusal {
        recorded(&Alter { rollout: change, ..Alter::default() })
    }
    fn release(change: fn(&mut Value)) -> Refusal {
        recorded(&Alter { release: change, ..Alter::default() })
    }
    let field = |refusal: Refusal, expected: &str| {
        refused!(refusal, Refusal::Mismatch { field, .. } if field == expected);
    };
    field(rollout(|it| it["project"] = "other".into()), "project");
    field(rollout(|it| it["environment"] = "dev".into()), "environment");
    field(rollout(|it| it["release"] = "shop/1".into()), "release");
    field(rollout(|it| it["artifacts"][0]["digest"] = json!(Digest::of(b"evil"))), "artifacts");
    field(rollout(|it| it["configuration"] = json!(Digest::of(b"evil"))), "configuration");
    field(release(|it| it["number"] = 3.into()), "number");
    field(release(|it| it["tree"] = json!(Digest::of(b"evil"))), "digest");
    field(release(|it| it["artifacts"][0]["digest"] = json!(Digest::of(b"evil"))), "artifacts");
    refused!(
        release(|it| it["commit"] = "3333333333333333333333333333333333333333".into()),
        Refusal::Missing(what) if what.starts_with("commit binding of shop@3333")
    );
    // The first commit is a real one, but not the second release.
    refused!(
        release(|it| {
            it["commit"] = FIRST.into();
            it["tree"] = json!(tree(FIRST));
        }),
        Refusal::Mismatch { field: "sequence", .. }
    );
    refused!(
        release(|it| it["lock"] = json!(Digest::of(b"other"))),
        Refusal::Missing(what) if what.starts_with("lock fact")
    );
    for change in [
        (|it: &mut Value| it["version"] = 2.into()) as fn(&mut Value),
        |it| it["more"] = 1.into(),
        |it| {
            it.as_object_mut().unwrap().remove("project");
        },
    ] {
        refused!(rollout(change), Refusal::DocumentShape { what: "rollout document", .. });
        refused!(release(change), Refusal::DocumentShape { what: "release document", .. });
    }
    refused!(
        recorded(&Alter { policy: |it| it["environments"][1]["name"] = "live".into(), ..Alter::default() }),
        Refusal::DocumentShape { what: "policy", .. }
    );
}

#[test]
fn a_swapped_artifact() {
    // A consistent release of an artifact that was bound to this commit under another digest.
    refused!(
        steps(|steps, _| {
            edit(steps, "web 2", |step| {
                if let Predicate::Binding(binding) = &mut step.predicate {
                    binding.digest = Digest::of(&manifest("api"));
                }
            });
        }),
        Refusal::Mismatch { place, field: "digest", .. } if place == "entry 15"
    );
    refused!(
        steps(|steps, _| edit(steps, "web built", |step| step.subject[0].1 = Digest::of(b"other"))),
        Refusal::Missing(what) if what.starts_with("provenance of web")
    );
    refused!(
        steps(|steps, _| {
            edit(steps, "release", |step| {
                if let Predicate::Binding(binding) = &mut step.predicate {
                    binding.digest = Digest::of(b"other");
                }
            });
        }),
        Refusal::Mismatch { field: "digest", .. }
    );
}

#[test]
fn what_entered_the_build() {
    fn provenance(change: fn(&mut Provenance)) -> Refusal {
        let keys = Keys::new();
        let (mut steps, documents) = history(&Alter::default(), &keys);
        predicate!(&mut steps, "web built", Provenance, change);
        verify(&seal(&steps, &documents, &keys).0, &keys.trust()).expect_err("altered")
    }
    fn dependencies(it: &mut Provenance) -> &mut Vec<ResourceDescriptor> {
        &mut it.build_definition.resolved_dependencies
    }
    let evil = |it: &mut Provenance| {
        let more = ResourceDescriptor::sha256(Some("crate:evil@1".into()), None, Digest::of(b"evil"));
        dependencies(it).push(more);
    };
    refused!(provenance(evil), Refusal::Unlocked { index: 13, name } if name == "crate:evil@1");
    refused!(
        provenance(|it| {
            dependencies(it)[3].digest.insert("sha256".into(), Digest::of(b"evil").hex());
        }),
        Refusal::Unlocked { name, .. } if name == "crate:serde@1.0.1"
    );
    refused!(
        provenance(|it| {
            dependencies(it)[3].digest.clear();
        }),
        Refusal::Unlocked { .. }
    );
    refused!(
        provenance(|it| {
            dependencies(it).remove(1);
        }),
        Refusal::Missing(what) if what == "lock in the provenance of web"
    );
    refused!(
        provenance(|it| {
            dependencies(it).remove(0);
        }),
        Refusal::Missing(what) if what == "commit in the provenance of web"
    );
    refused!(
        provenance(|it| dependencies(it).truncate(2)),
        Refusal::Missing(what) if what == "locked input in the provenance of web"
    );
    refused!(
        provenance(|it| {
            dependencies(it)[0].digest.insert("gitCommit".into(), "3".repeat(40));
        }),
        Refusal::Missing(what) if what.starts_with("artifact binding of shop@3333")
    );
    refused!(
        provenance(|it| {
            let mut other = dependencies(it)[0].clone();
            other.digest.insert("gitCommit".into(), FIRST.into());
            dependencies(it).push(other);
        }),
        Refusal::Mismatch { field: "resolvedDependencies.gitCommit", .. }
    );
    refused!(
        provenance(|it| {
            dependencies(it)[0].digest.insert("sha256".into(), Digest::of(b"evil").hex());
        }),
        Refusal::Mismatch { field: "resolvedDependencies.tree", .. }
    );
}

#[test]
fn a_rebuild_that_is_none() {
    refused!(
        steps(|steps, _| predicate!(steps, "web rebuilt", Vsa, |it: &mut Vsa| it.verification_result = "FAILED".into())),
        Refusal::NotPassed { index: 19, .. }
    );
    refused!(
        steps(|steps, _| edit(steps, "web rebuilt", |step| step.subject[0].1 = Digest::of(b"other"))),
        Refusal::Missing(what) if what.starts_with("rebuild of web")
    );
    refused!(
        steps(|steps, _| predicate!(steps, "web rebuilt", Vsa, |it: &mut Vsa| it.resource_uri =
            "adamant:rebuild/other/web".into())),
        Refusal::Missing(what) if what.starts_with("rebuild of web")
    );
    // One that failed before, and one that passed.
    refused!(
        steps(|steps, _| {
            let mut failed = steps[position(steps, "web rebuilt")].clone();
            failed.label = "failed";
            predicate!(std::slice::from_mut(&mut failed), "failed", Vsa, |it: &mut Vsa| it.verification_result =
                "FAILED".into());
            steps.insert(position(steps, "web rebuilt"), failed);
        }),
        Refusal::NotPassed { index: 19, .. }
    );
    refused!(
        steps(|steps, _| {
            let late = steps.remove(position(steps, "web rebuilt"));
            steps.push(late);
        }),
        Refusal::TooLate { index: 24, user: 20, .. }
    );
}

#[test]
fn a_decision_that_is_none() {
    refused!(
        steps(|steps, _| predicate!(steps, "decision", Vsa, |it: &mut Vsa| it.verification_result = "FAILED".into())),
        Refusal::NotPassed { index: 20, .. }
    );
    refused!(
        steps(|steps, _| predicate!(steps, "decision", Vsa, |it: &mut Vsa| it.policy =
            ResourceDescriptor::sha256(None, None, Digest::of(b"other")))),
        Refusal::Mismatch { field: "policy", .. }
    );
    refused!(
        steps(|steps, _| predicate!(steps, "decision", Vsa, |it: &mut Vsa| it.resource_uri =
            "adamant:environment/shop/dev".into())),
        Refusal::Mismatch { field: "resourceUri", .. }
    );
    refused!(
        steps(|steps, _| edit(steps, "decision", |step| step.subject[0].1 = Digest::of(b"other"))),
        Refusal::Mismatch { field: "subject", .. }
    );
    refused!(
        steps(|steps, _| predicate!(steps, "decision", Vsa, |it: &mut Vsa| it.verified_levels.truncate(1))),
        Refusal::RuleNotHeld { index: 20, rule } if rule == "rebuilt"
    );
    // Deployed by itself, where the policy asks for a decision.
    refused!(
        steps(|steps, _| predicate!(steps, "prod 2", Deployment, |it: &mut Deployment| {
            it.action = Action::Deploy;
            it.decision = None;
        })),
        Refusal::Mismatch { field: "decision", .. }
    );
}

#[test]
fn evidence_after_the_fact() {
    for (label, index) in [("commit 2", 24), ("web 2", 24), ("web built", 24), ("release", 24), ("lock", 24)] {
        let keys = Keys::new();
        let (mut steps, documents) = history(&Alter::default(), &keys);
        let late = steps.remove(position(&steps, label));
        steps.push(late);
        let refusal = verify(&seal(&steps, &documents, &keys).0, &keys.trust()).unwrap_err();
        refused!(refusal, Refusal::TooLate { index: found, .. } if found == index);
    }
}

#[test]
fn an_observation_of_something_else() {
    refused!(
        steps(
            |steps, _| predicate!(steps, "seen", Observation, |it: &mut Observation| it.rollout = Digest::of(b"other"))
        ),
        Refusal::Mismatch { field: "rollout", .. }
    );
    refused!(
        steps(|steps, _| {
            let early = steps.remove(position(steps, "seen"));
            let at = position(steps, "prod 2");
            steps.insert(at, early);
        }),
        Refusal::TooLate { .. }
    );
}

#[test]
fn a_rollback_to_something_else() {
    fn rollback(change: fn(&mut Deployment)) -> Refusal {
        let keys = Keys::new();
        let (mut steps, documents) = history(&Alter::default(), &keys);
        let mut back = steps[position(&steps, "prod 2")].clone();
        back.label = "back";
        if let Predicate::Deployment(it) = &mut back.predicate {
            it.action = Action::Rollback;
            it.decision = None;
            it.returns_to = Some(2);
            change(it);
        }
        steps.truncate(position(&steps, "seen"));
        steps.push(back);
        let mut capsule = seal(&steps, &documents, &keys).0;
        capsule.claim.sequence = 3;
        verify(&capsule, &keys.trust()).expect_err("altered")
    }
    refused!(rollback(|it| it.returns_to = None), Refusal::Mismatch { field: "returnsTo", .. });
    refused!(rollback(|it| it.returns_to = Some(3)), Refusal::Mismatch { field: "returnsTo", .. });
    refused!(rollback(|it| it.returns_to = Some(0)), Refusal::Mismatch { field: "returnsTo", .. });
    // Deployment 1 was another release.
    refused!(rollback(|it| it.returns_to = Some(1)), Refusal::Mismatch { field: "releaseDigest", .. });
}
