//! The signature gate, with keys and signatures of openssl and ssh-keygen.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use adamant_attest::predicate::{BindingKind, Predicate, Rejection};
use adamant_attest::{PublicKey, Statement, pae};
use adamant_digest::Digest;
use adamant_oci::{Manifest, RepositoryName, media};
use adamant_registry::{Access, Action, Demand, Gate, GateError, Rights};
use adamant_store::Ledger as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::erasing::erase;
use crate::world::World;

const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SLSA: &str = "https://slsa.dev/provenance/v1";

fn run(command: &mut Command) {
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ended.stderr));
}

/// A private key in a file, and its public half as another tool wrote it.
struct Signer {
    dir: TempDir,
    secret: PathBuf,
    public: PublicKey,
    ed25519: bool,
}

impl Signer {
    fn openssl(ed25519: bool) -> Self {
        let dir = TempDir::new().unwrap();
        let (secret, public) = (dir.path().join("key"), dir.path().join("key.pub"));
        let kind: &[&str] = if ed25519 { &["ed25519"] } else { &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"] };
        run(Command::new("openssl").args(["genpkey", "-algorithm"]).args(kind).arg("-out").arg(&secret));
        run(Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(&secret).arg("-out").arg(&public));
        let public = PublicKey::from_pem(&std::fs::read_to_string(public).unwrap()).unwrap();
        Self { dir, secret, public, ed25519 }
    }

    fn ssh() -> Self {
        let dir = TempDir::new().unwrap();
        let secret = dir.path().join("key");
        run(Command::new("ssh-keygen")
            .args(["-q", "-t", "ecdsa", "-b", "256", "-m", "PKCS8", "-N", "", "-f"])
            .arg(&secret));
        let line = std::fs::read_to_string(dir.path().join("key.pub")).unwrap();
        Self { public: PublicKey::from_openssh(&line).unwrap(), dir, secret, ed25519: false }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let at = |name: &str| self.dir.path().join(name);
        std::fs::write(at("message"), message).unwrap();
        let mut command = Command::new("openssl");
        if self.ed25519 {
            command.args(["pkeyutl", "-sign", "-rawin", "-inkey"]).arg(&self.secret).arg("-in").arg(at("message"));
            command.arg("-out").arg(at("signature"));
        } else {
            command.args(["dgst", "-sha256", "-sign"]).arg(&self.secret).arg("-out").arg(at("signature"));
            command.arg(at("message"));
        }
        run(&mut command);
        std::fs::read(at("signature")).unwrap()
    }

    /// A statement about `subject` in a bundle; `tamper` sees the envelope before it is sent.
    fn bundle(&self, kind: &str, subject: Digest, tamper: impl Fn(&mut Value)) -> Value {
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1", "predicateType": kind, "predicate": {"x": 1.5},
            "subject": [{"name": "other", "digest": {"sha256": Digest::of(b"other").hex()}},
                        {"name": "it", "digest": {"sha256": subject.hex()}}],
        });
        let payload = statement.to_string().into_bytes();
        let mut envelope = json!({
            "payload": STANDARD.encode(&payload), "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": STANDARD.encode(self.sign(&pae(&payload))), "keyid": ""}],
        });
        tamper(&mut envelope);
        json!({"mediaType": BUNDLE, "verificationMaterial": {"publicKey": {"hint": "x"}}, "dsseEnvelope": envelope})
    }
}

fn tools() -> bool {
    let there = ["openssl", "ssh-keygen"].iter().all(|tool| Path::new("/usr/bin").join(tool).exists());
    if !there {
        eprintln!("skipped: gates: openssl or ssh-keygen is not installed");
    }
    there
}

fn gate(keys: &[&Signer], predicates: &[&str], threshold: usize) -> Gate {
    let demand = Demand {
        keys: keys.iter().map(|signer| signer.public.clone()).collect(),
        predicates: predicates.iter().map(|text| (*text).to_owned()).collect(),
        threshold,
    };
    Gate { repositories: "shop/*".parse().unwrap(), demand, pull: true }
}

fn shop() -> RepositoryName {
    "shop/web".parse().unwrap()
}

async fn image(world: &World, mark: &str) -> Manifest {
    let manifest = world.image("shop/web", mark).await;
    world.put("shop/web", mark, &manifest).await.expect(201);
    manifest
}

/// Pushes `layers` (type, bytes, annotations) as a manifest about `subject`, or under a tag.
async fn push(world: &World, subject: Option<&Manifest>, tag: Option<&str>, layers: &[(&str, Vec<u8>, Value)]) {
    world.push_blob("shop/web", b"{}").await;
    let mut described = Vec::new();
    for (kind, bytes, annotations) in layers {
        let digest = world.push_blob("shop/web", bytes).await;
        described.push(
            json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len(), "annotations": annotations}),
        );
    }
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "artifactType": layers[0].0, "layers": described,
        "config": {"mediaType": media::OCI_EMPTY, "digest": Digest::of(b"{}").to_string(), "size": 2},
    });
    if let Some(of) = subject {
        manifest["subject"] =
            json!({"mediaType": media::OCI_MANIFEST, "digest": of.digest().to_string(), "size": of.size()});
    }
    let bytes = manifest.to_string().into_bytes();
    let reference = tag.map_or_else(|| Digest::of(&bytes).to_string(), str::to_owned);
    let path = format!("/v2/shop/web/manifests/{reference}");
    world.send("PUT", &path, &[("content-type", media::OCI_MANIFEST)], &bytes).await.expect(201);
}

async fn attach(world: &World, subject: &Manifest, bundle: &Value) {
    push(world, Some(subject), None, &[(BUNDLE, bundle.to_string().into_bytes(), json!({}))]).await;
}

async fn is_open(world: &World, manifest: &Manifest) -> bool {
    match world.registry.may_deploy(&shop(), manifest.digest(), "alice").await {
        Ok(()) => true,
        Err(GateError::Closed { missing, .. }) => {
            assert!(!missing.is_empty());
            false
        }
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_bundle_by_a_key_of_each_kind_opens_the_gate() {
    if !tools() {
        return;
    }
    for signer in [Signer::openssl(false), Signer::openssl(true), Signer::ssh()] {
        let world = World::guarded(&[gate(&[&signer], &[], 1)]).await;
        let (one, two) = (image(&world, "1").await, image(&world, "2").await);
        assert!(!is_open(&world, &one).await);
        // The verdict is made anew when a signature arrives.
        attach(&world, &one, &signer.bundle(SLSA, one.digest(), |_| {})).await;
        assert!(is_open(&world, &one).await);
        assert!(!is_open(&world, &two).await);
    }
}

#[tokio::test]
async fn what_is_tampered_with_opens_nothing() {
    if !tools() {
        return;
    }
    let (signer, stranger) = (Signer::openssl(false), Signer::openssl(false));
    let world = World::guarded(&[gate(&[&signer], &[], 1)]).await;
    let (one, two) = (image(&world, "1").await, image(&world, "2").await);
    // About another manifest, though it is attached to this one.
    attach(&world, &one, &signer.bundle(SLSA, two.digest(), |_| {})).await;
    attach(&world, &one, &stranger.bundle(SLSA, one.digest(), |_| {})).await;
    let good = signer.bundle(SLSA, one.digest(), |_| {});
    let other = signer.bundle(SLSA, two.digest(), |_| {});
    // The payload of one with the signature of the other.
    attach(
        &world,
        &one,
        &signer.bundle(SLSA, one.digest(), |e| e["signatures"] = other["dsseEnvelope"]["signatures"].clone()),
    )
    .await;
    attach(&world, &one, &signer.bundle(SLSA, one.digest(), |e| e["payloadType"] = json!("text/plain"))).await;
    attach(&world, &one, &signer.bundle(SLSA, one.digest(), |e| e["signatures"] = json!([]))).await;
    attach(&world, &one, &json!({"dsseEnvelope": 7})).await;
    push(&world, Some(&one), None, &[(BUNDLE, b"\xff{".to_vec(), json!({}))]).await;
    assert!(!is_open(&world, &one).await);
    // What is right opens it, in spite of all that.
    attach(&world, &one, &good).await;
    assert!(is_open(&world, &one).await);
}

#[tokio::test]
async fn predicates_and_a_threshold_are_all_asked_for() {
    if !tools() {
        return;
    }
    let (a, b) = (Signer::openssl(false), Signer::ssh());
    let vsa = "https://slsa.dev/verification_summary/v1";
    let world = World::guarded(&[gate(&[&a, &b], &[SLSA, vsa], 2)]).await;
    let one = image(&world, "1").await;
    let mut left = 4;
    for (signer, kind) in [(&a, SLSA), (&a, vsa), (&b, SLSA), (&b, vsa)] {
        assert!(!is_open(&world, &one).await, "{left} are missing");
        // The same one again is no second signer.
        for mark in [1, 2] {
            let mut bundle = signer.bundle(kind, one.digest(), |_| {});
            bundle["again"] = json!(mark);
            attach(&world, &one, &bundle).await;
        }
        left -= 1;
    }
    assert!(is_open(&world, &one).await);
}

#[tokio::test]
async fn a_signature_of_cosign_opens_the_gate() {
    if !tools() {
        return;
    }
    let signer = Signer::openssl(false);
    let kind = "application/vnd.dev.cosign.simplesigning.v1+json";
    let payload = |of: Digest| {
        json!({"critical": {"identity": {"docker-reference": "shop/web"}, "type": "cosign container image signature",
               "image": {"docker-manifest-digest": of.to_string()}}, "optional": null})
        .to_string()
        .into_bytes()
    };
    let signature = |bytes: &[u8]| json!({"dev.cosignproject.cosign/signature": STANDARD.encode(signer.sign(bytes))});
    let world = World::guarded(&[gate(&[&signer], &[], 1)]).await;
    let (one, two) = (image(&world, "1").await, image(&world, "2").await);
    let tag = format!("sha256-{}.sig", one.digest().hex());
    let (right, wrong) = (payload(one.digest()), payload(two.digest()));
    // Signed, but of another manifest; of this one, but signed elsewhere.
    let mut layers = vec![(kind, wrong.clone(), signature(&wrong)), (kind, right.clone(), signature(&wrong))];
    push(&world, None, Some(&tag), &layers).await;
    assert!(!is_open(&world, &one).await);
    layers.push((kind, right.clone(), signature(&right)));
    push(&world, None, Some(&tag), &layers).await;
    assert!(is_open(&world, &one).await);
    // It is no statement.
    let strict = World::guarded(&[gate(&[&signer], &[SLSA], 1)]).await;
    image(&strict, "1").await;
    push(&strict, None, Some(&tag), &layers).await;
    assert!(!is_open(&strict, &one).await);
}

#[tokio::test]
async fn a_pull_is_refused_with_what_is_missing() {
    if !tools() {
        return;
    }
    let signer = Signer::openssl(false);
    let world = World::guarded(&[gate(&[&signer], &[SLSA], 1)]).await;
    let one = image(&world, "1").await;
    let elsewhere = world.image("other", "1").await;
    world.put("other", "1", &elsewhere).await.expect(201);
    let by_digest = format!("/v2/shop/web/manifests/{}", one.digest());
    // Whoever may push may pull: that is how one signs.
    world.get(&by_digest).await.expect(200);
    let reader = || Access::known("reader", Rights::everywhere(&[Action::Pull]));
    world.allow(reader());
    for path in ["/v2/shop/web/manifests/1", &by_digest] {
        let answer = world.get(path).await;
        answer.fails(403, "DENIED");
        let missing = answer.json()["errors"][0]["detail"]["missing"].to_string();
        assert!(missing.contains(SLSA) && missing.contains(signer.public.keyid()), "{missing}");
        world.send("HEAD", path, &[], b"").await.expect(403);
        world.send("GET", path, &[("if-none-match", "*")], b"").await.expect(403);
    }
    world.get("/v2/other/manifests/1").await.expect(200);
    world.get(&format!("/v2/shop/web/blobs/{}", Digest::of(b"{}"))).await.expect(200);
    // What is signed is pulled, and so are the signatures.
    world.allow(Access::known("alice", Rights::all()));
    attach(&world, &one, &signer.bundle(SLSA, one.digest(), |_| {})).await;
    world.allow(reader());
    world.get("/v2/shop/web/manifests/1").await.expect(200);
    let referrers = world.get(&format!("/v2/shop/web/referrers/{}", one.digest())).await.expect(200).json();
    let signature = referrers["manifests"][0]["digest"].as_str().unwrap().to_owned();
    world.get(&format!("/v2/shop/web/manifests/{signature}")).await.expect(200);
    // An image that says it is about something else is an image still.
    world.allow(Access::known("alice", Rights::all()));
    push(&world, Some(&one), Some("posing"), &[(media::OCI_LAYER, b"layer".to_vec(), json!({}))]).await;
    world.allow(reader());
    world.get("/v2/shop/web/manifests/posing").await.fails(403, "DENIED");
}

#[tokio::test]
async fn an_attestation_of_cosign_opens_the_gate() {
    if !tools() {
        return;
    }
    let (a, b, stranger) = (Signer::openssl(false), Signer::ssh(), Signer::openssl(true));
    let kind = "application/vnd.dsse.envelope.v1+json";
    // The envelope alone, with a statement of the first version: what cosign puts into `.att`.
    let envelope = |signer: &Signer, predicate: &str, of: Digest| {
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v0.1", "predicateType": predicate, "predicate": {"x": 1},
            "subject": [{"name": "shop/web", "digest": {"sha256": of.hex()}}],
        });
        let payload = statement.to_string().into_bytes();
        let signature = STANDARD.encode(signer.sign(&pae(&payload)));
        let envelope = json!({
            "payload": STANDARD.encode(&payload), "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"keyid": "", "sig": signature}],
        });
        (
            kind,
            envelope.to_string().into_bytes(),
            json!({"predicateType": predicate, "dev.cosignproject.cosign/signature": ""}),
        )
    };
    let world = World::guarded(&[gate(&[&a, &b], &[SLSA], 2)]).await;
    let (one, two) = (image(&world, "1").await, image(&world, "2").await);
    let tag = format!("sha256-{}.att", one.digest().hex());
    // By somebody else; about another manifest; of another kind; and one that is right.
    let mut layers = vec![
        envelope(&stranger, SLSA, one.digest()),
        envelope(&b, SLSA, two.digest()),
        envelope(&b, "https://example.com/other/v1", one.digest()),
        envelope(&a, SLSA, one.digest()),
    ];
    push(&world, None, Some(&tag), &layers).await;
    assert!(!is_open(&world, &one).await);
    // A second signer adds to the list.
    layers.push(envelope(&b, SLSA, one.digest()));
    push(&world, None, Some(&tag), &layers).await;
    assert!(is_open(&world, &one).await);
    assert!(!is_open(&world, &two).await);
    // The list of one image says nothing of another.
    push(&world, None, Some(&format!("sha256-{}.att", two.digest().hex())), &layers).await;
    assert!(!is_open(&world, &two).await);
}

#[tokio::test]
async fn an_open_gate_for_pulls_opens_none_for_deployments() {
    if !tools() {
        return;
    }
    let (a, b) = (Signer::openssl(false), Signer::openssl(false));
    let deploys = Gate { pull: false, ..gate(&[&b], &[], 1) };
    let world = World::guarded(&[gate(&[&a], &[], 1), deploys]).await;
    let one = image(&world, "1").await;
    attach(&world, &one, &a.bundle(SLSA, one.digest(), |_| {})).await;
    world.allow(Access::known("reader", Rights::everywhere(&[Action::Pull])));
    world.get("/v2/shop/web/manifests/1").await.expect(200);
    assert!(!is_open(&world, &one).await);
}

async fn rejections(world: &World) -> Vec<Rejection> {
    let mut found = Vec::new();
    for entry in world.ledger.entries(0, usize::MAX).await.unwrap() {
        if let Ok(Predicate::Rejection(rejection)) = Statement::parse(&entry.statement).unwrap().predicate() {
            found.push(rejection);
        }
    }
    found
}

#[tokio::test]
async fn what_a_gate_refused_is_recorded_once() {
    if !tools() {
        return;
    }
    let (a, b) = (Signer::openssl(false), Signer::ssh());
    let world = World::guarded(&[gate(&[&a, &b], &[], 2)]).await;
    let (one, two) = (image(&world, "1").await, image(&world, "2").await);
    let alice = || Access::known("alice", Rights::all());
    let reader = || Access::known("reader", Rights::everywhere(&[Action::Pull]));
    let pull = async |tag: &str| world.get(&format!("/v2/shop/web/manifests/{tag}")).await.fails(403, "DENIED");
    world.allow(reader());
    let before = world.ledger.size();
    for _ in 0..3 {
        pull("1").await;
    }
    assert_eq!(world.ledger.size(), before + 1);
    for _ in 0..3 {
        assert!(!is_open(&world, &one).await);
    }
    let found = rejections(&world).await;
    let by: Vec<_> = found.iter().map(|one| one.by.as_str()).collect();
    assert_eq!(by, ["reader", "alice"]);
    for (action, rejection) in ["pull", "deploy"].iter().zip(&found) {
        assert_eq!(rejection.object, format!("{action} shop/web@{}", one.digest()));
        for part in ["a signature by 2 more", a.public.keyid(), b.public.keyid(), "gate `shop/*`"] {
            assert!(rejection.reason.contains(part), "{part}: {}", rejection.reason);
        }
    }
    assert!(!world.ledger.about(one.digest(), 99).await.unwrap().is_empty());
    // Another manifest is another refusal, and so is another reason.
    pull("2").await;
    world.allow(alice());
    attach(&world, &one, &a.bundle(SLSA, one.digest(), |_| {})).await;
    world.allow(reader());
    pull("1").await;
    let found = rejections(&world).await;
    assert_eq!(found.len(), 4);
    assert_eq!(found[2].object, format!("pull shop/web@{}", two.digest()));
    assert!(found[3].reason.contains("by 1 more") && !found[3].reason.contains(a.public.keyid()));
}

#[tokio::test]
async fn servers_that_refuse_for_different_reasons_do_not_fill_the_log() {
    if !tools() {
        return;
    }
    let (a, b) = (Signer::openssl(false), Signer::openssl(false));
    let world = World::guarded(&[gate(&[&a], &[], 1)]).await;
    let one = image(&world, "1").await;
    let other = world.guarded_beside(&[gate(&[&b], &[], 1)]).await;
    for _ in 0..20 {
        assert!(!is_open(&world, &one).await);
        assert!(!is_open(&other, &one).await);
    }
    assert_eq!(rejections(&world).await.len(), 16);
}

#[tokio::test]
async fn what_was_erased_opens_no_gate_and_breaks_none() {
    if !tools() {
        return;
    }
    let (signer, stranger) = (Signer::openssl(true), Signer::openssl(true));
    let world = World::guarded(&[gate(&[&signer], &[], 1)]).await;
    let image = image(&world, "1").await;
    let carriers = async || {
        let bound = world.ledger.bindings(BindingKind::Tag, "", "", 100).await.unwrap();
        bound.into_iter().map(|(_, bound)| bound.digest).collect::<BTreeSet<_>>()
    };
    let other = stranger.bundle(SLSA, image.digest(), |_| {});
    attach(&world, &image, &other).await;
    erase(&world, Digest::of(other.to_string().as_bytes())).await;
    assert!(!is_open(&world, &image).await);
    let before = carriers().await;
    attach(&world, &image, &signer.bundle(SLSA, image.digest(), |_| {})).await;
    assert!(is_open(&world, &image).await);
    // Neither does the verdict of before.
    for carrier in carriers().await.difference(&before) {
        erase(&world, *carrier).await;
    }
    assert!(!is_open(&world, &image).await);
}
