//! A small history of a project, recorded the way a server would: two commits, an artifact that
//! is reused, a rebuild, a promotion and an observation; other facts lie between.

use std::collections::HashMap;

use adamant_attest::predicate::{
    Action, ArtifactRef, Binding, BindingKind, BuildDefinition, Builder, Deployment, Input, Key, Lock, Metadata,
    Observation, Predicate, Provenance, Rejection, ResourceDescriptor, Role, RunDetails, State, Verifier, Vsa,
};
use adamant_attest::{Algorithm, Envelope, Link, PublicKey, SigningKey, Statement, canonical, format_time, leaf};
use adamant_audit::{Capsule, Claim, Document, Entry, Trust};
use adamant_digest::Digest;
use adamant_tlog::{Checkpoint, CompactRange, Hash, Node, NoteSigner, inclusion, leaf_hash};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

pub(crate) const ORIGIN: &str = "log.test";
pub(crate) const FIRST: &str = "1111111111111111111111111111111111111111";
pub(crate) const SECOND: &str = "2222222222222222222222222222222222222222";
/// Stands for the digest of the decision, which is known only once it is recorded.
pub(crate) const DECISION: Digest = Digest::from_bytes([0xdd; 32]);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Who {
    Root,
    Builder,
    Host,
    /// A builder key that is revoked in the history.
    Spare,
    /// A key that nobody introduced.
    Stranger,
}

pub(crate) struct Keys {
    keys: HashMap<Who, SigningKey>,
    pub(crate) log: NoteSigner,
}

impl Keys {
    pub(crate) fn new() -> Self {
        let all = [Who::Root, Who::Builder, Who::Host, Who::Spare, Who::Stranger];
        let keys = all.into_iter().map(|who| (who, SigningKey::generate(Algorithm::EcdsaP256).unwrap())).collect();
        Self { keys, log: log_key() }
    }

    pub(crate) fn of(&self, who: Who) -> &SigningKey {
        &self.keys[&who]
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust {
            origin: ORIGIN.into(),
            log_key: self.log.key().clone(),
            root_control_key: self.of(Who::Root).public().clone(),
            checkpoint: None,
            witnesses: vec![],
        }
    }

    pub(crate) fn key_fact(&self, who: Who, role: Role, action: &str) -> Predicate {
        key_fact(self.of(who).public(), role, action)
    }
}

pub(crate) fn log_key() -> NoteSigner {
    NoteSigner::from_pkcs8(ORIGIN, SigningKey::generate(Algorithm::Ed25519).unwrap().secret_pkcs8_der()).unwrap()
}

pub(crate) fn key_fact(key: &PublicKey, role: Role, action: &str) -> Predicate {
    Predicate::Key(Key {
        role,
        keyid: key.keyid().into(),
        public_key: STANDARD.encode(key.spki_der()),
        action: action.into(),
    })
}

/// A fact to be recorded.
#[derive(Clone)]
pub(crate) struct Step {
    pub(crate) label: &'static str,
    pub(crate) who: Who,
    pub(crate) subject: Vec<(String, Digest)>,
    pub(crate) predicate: Predicate,
    pub(crate) chain: Option<String>,
    /// Put in place of what the chain gives.
    pub(crate) link: Option<Link>,
    /// Seconds after the hour; the position otherwise.
    pub(crate) at: Option<i64>,
    /// Whether the capsule holds it.
    pub(crate) shown: bool,
}

pub(crate) fn step(label: &'static str, who: Who, subject: &[Digest], predicate: Predicate, chain: &str) -> Step {
    Step {
        label,
        who,
        subject: subject.iter().map(|digest| ("it".to_owned(), *digest)).collect(),
        predicate,
        chain: (!chain.is_empty()).then(|| chain.to_owned()),
        link: None,
        at: None,
        shown: true,
    }
}

pub(crate) fn binding(label: &'static str, kind: BindingKind, name: &str, digest: Digest, chain: &str) -> Step {
    let binding = Binding { kind, name: name.into(), digest, by: "ann".into(), detail: Value::Null };
    step(label, Who::Root, &[digest], Predicate::Binding(binding), chain)
}

fn noise() -> Step {
    let rejection = Rejection { object: "push shop@3".into(), reason: "no recipe".into(), by: "bob".into() };
    Step { shown: false, ..step("noise", Who::Root, &[], Predicate::Rejection(rejection), "") }
}

/// What can be changed before anything is hashed or signed. Outer digests follow.
pub(crate) struct Alter {
    pub(crate) release: fn(&mut Value),
    pub(crate) rollout: fn(&mut Value),
    pub(crate) policy: fn(&mut Value),
    pub(crate) steps: fn(&mut Vec<Step>, &Keys),
}

impl Default for Alter {
    fn default() -> Self {
        Self { release: |_| {}, rollout: |_| {}, policy: |_| {}, steps: |_, _| {} }
    }
}

pub(crate) fn manifest(name: &str) -> Vec<u8> {
    format!("{{\"schemaVersion\":2,\"config\":\"{name}\"}}").into_bytes()
}

pub(crate) fn lock_digest() -> Digest {
    Digest::of(b"lock")
}

pub(crate) fn tree(commit: &str) -> Digest {
    Digest::of(format!("tree of {commit}").as_bytes())
}

fn artifact(name: &str) -> ArtifactRef {
    ArtifactRef { name: name.into(), platform: "linux/amd64".into(), digest: Digest::of(&manifest(name)) }
}

fn provenance(label: &'static str, name: &str, commit: &str) -> Step {
    let digest = Digest::of(&manifest(name));
    let resolved_dependencies = vec![
        ResourceDescriptor {
            name: Some("source".into()),
            uri: None,
            digest: [("gitCommit".into(), commit.into()), ("sha256".into(), tree(commit).hex())].into(),
        },
        ResourceDescriptor::sha256(Some("lock".into()), None, lock_digest()),
        ResourceDescriptor::sha256(Some("debian:bookworm/gcc=12:amd64".into()), None, Digest::of(b"gcc")),
        ResourceDescriptor::sha256(Some("crate:serde@1.0.1".into()), None, Digest::of(b"serde")),
    ];
    let provenance = Provenance {
        build_definition: BuildDefinition {
            build_type: "https://adamant.dev/build/v1".into(),
            external_parameters: json!({"project": "shop", "commit": commit, "artifact": name}),
            internal_parameters: json!({"abi": 1}),
            resolved_dependencies,
        },
        run_details: RunDetails {
            builder: Builder { id: "https://log.test/builder".into() },
            metadata: Metadata {
                invocation_id: label.into(),
                started_on: "2026-01-01T00:00:00Z".into(),
                finished_on: "2026-01-01T00:00:01Z".into(),
            },
        },
    };
    step(label, Who::Builder, &[digest], Predicate::Provenance(provenance), "")
}

fn vsa(label: &'static str, who: Who, subject: Digest, resource_uri: &str, policy: Digest, levels: &[&str]) -> Step {
    let vsa = Vsa {
        verifier: Verifier { id: "https://log.test/control".into() },
        time_verified: "2026-01-01T00:00:00Z".into(),
        resource_uri: resource_uri.into(),
        policy: ResourceDescriptor::sha256(None, None, policy),
        input_attestations: vec![],
        verification_result: "PASSED".into(),
        verified_levels: levels.iter().map(|level| (*level).to_owned()).collect(),
        adamant_detail: Value::Null,
    };
    step(label, who, &[subject], Predicate::Vsa(vsa), "")
}

pub(crate) fn edit<T>(steps: &mut [Step], label: &str, change: impl FnOnce(&mut Step) -> T) -> T {
    change(steps.iter_mut().find(|step| step.label == label).unwrap())
}

pub(crate) fn position(steps: &[Step], label: &str) -> usize {
    steps.iter().position(|step| step.label == label).unwrap()
}

/// Gives the predicate of a step of a known kind.
#[macro_export]
macro_rules! predicate {
    ($steps:expr, $label:expr, $kind:ident, $change:expr) => {
        $crate::world::edit($steps, $label, |step| match &mut step.predicate {
            adamant_attest::predicate::Predicate::$kind(inner) => ($change)(inner),
            other => panic!("{other:?}"),
        })
    };
}

/// The history and the documents it names.
pub(crate) fn history(alter: &Alter, keys: &Keys) -> (Vec<Step>, Vec<Vec<u8>>) {
    let bytes = |mut value: Value, change: fn(&mut Value)| {
        change(&mut value);
        canonical(&value).unwrap()
    };
    let refs = vec![artifact("api"), artifact("web")];
    let policy = bytes(
        json!({"version": 1, "environments": [
            {"name": "dev", "automatic": true, "rules": []},
            {"name": "prod", "automatic": false, "rules": ["previous", "rebuilt"]},
        ]}),
        alter.policy,
    );
    let configuration = b"{\"env\":{\"A\":\"1\"}}".to_vec();
    let release = bytes(
        json!({"version": 1, "project": "shop", "number": 2, "commit": SECOND, "tree": tree(SECOND),
               "lock": lock_digest(), "artifacts": refs, "services": [{"artifact": "web", "port": 8080}]}),
        alter.release,
    );
    let release_digest = Digest::of(&release);
    let rollout = bytes(
        json!({"version": 1, "project": "shop", "environment": "prod", "release": "shop/2",
               "releaseDigest": release_digest, "artifacts": refs, "configuration": Digest::of(&configuration),
               "policy": Digest::of(&policy), "target": {"kind": "local", "services": []}}),
        alter.rollout,
    );
    let deployment = Deployment {
        project: "shop".into(),
        environment: "prod".into(),
        action: Action::Promote,
        release: "shop/2".into(),
        release_digest,
        rollout: Digest::of(&rollout),
        artifacts: refs.clone(),
        configuration: Digest::of(&configuration),
        policy: Digest::of(&policy),
        decision: Some(DECISION),
        returns_to: None,
        by: "ann".into(),
        reason: None,
    };
    let older = Deployment {
        release: "shop/1".into(),
        release_digest: Digest::of(b"release 1"),
        rollout: Digest::of(b"rollout 1"),
        ..deployment.clone()
    };
    let lock = Lock {
        project: "shop".into(),
        lock: lock_digest(),
        by: "ann".into(),
        inputs: ["debian:bookworm/gcc=12:amd64|gcc", "crate:serde@1.0.1|serde", "crate:itoa@1.0.0|itoa"]
            .iter()
            .map(|both| {
                let (name, bytes) = both.split_once('|').unwrap();
                Input { name: name.into(), digest: Digest::of(bytes.as_bytes()), size: 0 }
            })
            .collect(),
    };
    let observation = Observation {
        project: "shop".into(),
        environment: "prod".into(),
        deployment: 2,
        rollout: Digest::of(&rollout),
        state: State::Healthy,
        detail: "healthy after 0.4 s".into(),
    };
    let bound = |label, commit: &str, name: &str| {
        let name_of = format!("shop@{commit}/{name}/linux/amd64");
        binding(label, BindingKind::Artifact, &name_of, Digest::of(&manifest(name)), "")
    };
    let rebuilt = |label, name: &str| {
        let uri = format!("adamant:rebuild/shop/{name}");
        vsa(label, Who::Builder, Digest::of(&manifest(name)), &uri, Digest::of(b"rebuild"), &["ADAMANT_REBUILT"])
    };
    let environment = "environment/shop/prod";
    let mut steps = vec![
        step("root", Who::Root, &[], keys.key_fact(Who::Root, Role::Control, "introduced"), "keys"),
        step("builder", Who::Root, &[], keys.key_fact(Who::Builder, Role::Builder, "introduced"), "keys"),
        step("host", Who::Root, &[], keys.key_fact(Who::Host, Role::Host, "introduced"), "keys"),
        step("spare", Who::Root, &[], keys.key_fact(Who::Spare, Role::Builder, "introduced"), "keys"),
        noise(),
        step("spare gone", Who::Root, &[], keys.key_fact(Who::Spare, Role::Builder, "revoked"), "keys"),
        binding("commit 1", BindingKind::Commit, &format!("shop@{FIRST}"), tree(FIRST), "project/shop"),
        step("lock", Who::Root, &[lock_digest()], Predicate::Lock(lock), ""),
        provenance("api built", "api", FIRST),
        bound("api 1", FIRST, "api"),
        step("prod 1", Who::Root, &[], Predicate::Deployment(older), environment),
        noise(),
        binding("commit 2", BindingKind::Commit, &format!("shop@{SECOND}"), tree(SECOND), "project/shop"),
        provenance("web built", "web", SECOND),
        bound("api 2", SECOND, "api"),
        bound("web 2", SECOND, "web"),
        binding("release", BindingKind::Release, "shop/2", release_digest, ""),
        rebuilt("api rebuilt", "api"),
        noise(),
        rebuilt("web rebuilt", "web"),
        vsa(
            "decision",
            Who::Root,
            release_digest,
            "adamant:environment/shop/prod",
            Digest::of(&policy),
            &["previous", "rebuilt"],
        ),
        step("prod 2", Who::Root, &[], Predicate::Deployment(deployment), environment),
        noise(),
        step("seen", Who::Host, &[], Predicate::Observation(observation), "observation/shop/prod"),
        noise(),
    ];
    (alter.steps)(&mut steps, keys);
    (steps, vec![policy, configuration, release, rollout, manifest("api"), manifest("web")])
}

/// The log of a history.
pub(crate) struct Log {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) nodes: HashMap<Node, Hash>,
}

/// Records `steps` as a server would: links, signatures, tree, checkpoint, proofs.
pub(crate) fn seal(steps: &[Step], documents: &[Vec<u8>], keys: &Keys) -> (Capsule, Log) {
    let mut chains: HashMap<String, (u64, Digest)> = HashMap::new();
    let mut decision = None;
    let mut envelopes = Vec::new();
    let mut nodes = HashMap::new();
    let mut range = CompactRange::new();
    for (i, step) in steps.iter().enumerate() {
        let link = step.link.clone().or_else(|| {
            let chain = step.chain.clone()?;
            let before = chains.get(&chain).copied();
            Some(Link { chain, sequence: before.map_or(1, |(n, _)| n + 1), previous: before.map(|(_, digest)| digest) })
        });
        let mut predicate = step.predicate.clone();
        if let Predicate::Deployment(deployment) = &mut predicate
            && deployment.decision == Some(DECISION)
        {
            deployment.decision = Some(decision.unwrap_or(DECISION));
        }
        let at = format_time(1_767_225_600 + step.at.unwrap_or(i64::try_from(i).unwrap())).unwrap();
        let statement = Statement::record(step.subject.clone(), &predicate, &at, link.as_ref()).unwrap();
        let bytes = statement.to_bytes().unwrap();
        if let Some(link) = link {
            chains.insert(link.chain, (link.sequence, Digest::of(&bytes)));
        }
        if step.label == "decision" {
            decision = Some(Digest::of(&bytes));
        }
        let key = keys.of(step.who);
        let envelope = Envelope::sign(bytes, key).unwrap();
        range.append(leaf_hash(&leaf(&envelope, key.public())), |node, hash| {
            nodes.insert(node, hash);
        });
        envelopes.push(envelope.to_bytes());
    }
    let size = range.size();
    let checkpoint = Checkpoint { origin: ORIGIN.into(), size, root: range.root(), extensions: vec![] };
    let proof = |index| inclusion(index, size, |node| Ok::<_, ()>(nodes[&node])).unwrap();
    let entries = (0u64..)
        .zip(envelopes)
        .zip(steps)
        .filter(|(_, step)| step.shown)
        .map(|((index, envelope), _)| Entry { index, envelope, proof: proof(index) })
        .collect();
    let capsule = Capsule {
        claim: Claim { project: "shop".into(), environment: "prod".into(), sequence: 2 },
        checkpoint: checkpoint.sign(&keys.log).unwrap().to_string(),
        consistency: vec![],
        entries,
        documents: documents.iter().map(|bytes| Document { digest: Digest::of(bytes), bytes: bytes.clone() }).collect(),
    };
    (capsule, Log { checkpoint, nodes })
}

/// A capsule of the altered history.
pub(crate) fn capsule(alter: &Alter, keys: &Keys) -> Capsule {
    let (steps, documents) = history(alter, keys);
    seal(&steps, &documents, keys).0
}
