//! Deliveries to receivers on this machine, over a real ledger.

use std::collections::VecDeque;

use adamant_attest::predicate::{Binding, BindingKind, Predicate, Role};
use adamant_digest::Digest;
use adamant_ledger::{Keys, SqlLedger};
use adamant_store::{BlobStore, Fact, FsBlobs, Subject};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::*;

const SECRET: [u8; 32] = [7; 32];
const QUICK: Patience =
    Patience { first: Duration::from_millis(20), most: Duration::from_millis(60), age: Duration::from_hours(1) };
const SOON: Duration = Duration::from_secs(20);

/// One request as it came.
#[derive(Debug)]
struct Delivery {
    id: String,
    body: Value,
}

/// Reads one request of a connection and checks its signature.
async fn receive(stream: &mut tokio::net::TcpStream) -> Option<Delivery> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).unwrap_or_else(|| panic!("{name}: {head}")).1.to_owned()
    };
    let length: usize = header("content-length").parse().unwrap();
    while bytes.len() < end + length {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0);
    }
    assert!(head.starts_with("POST /hook?x=1 HTTP/1.1\r\n"), "{head}");
    assert!(header("content-type").starts_with("application/cloudevents+json"));
    let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
    let sent = age(&OffsetDateTime::from_unix_timestamp(timestamp.parse().unwrap()).unwrap().format(&Rfc3339).unwrap());
    assert!(sent < Duration::from_mins(1), "{timestamp}");
    let signed = [format!("{id}.{timestamp}.").as_bytes(), &bytes[end..]].concat();
    let signature = STANDARD.decode(header("webhook-signature").strip_prefix("v1,").unwrap()).unwrap();
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &SECRET), &signed, &signature).unwrap();
    Some(Delivery { id, body: serde_json::from_slice(&bytes[end..]).unwrap() })
}

/// A receiver that gives `answers` in order and 204 then, each after `pause`.
async fn receiver(answers: &[u16], pause: Duration) -> (String, mpsc::UnboundedReceiver<Delivery>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook?x=1", listener.local_addr().unwrap());
    let (told, deliveries) = mpsc::unbounded_channel();
    let answers = Arc::new(Mutex::new(answers.iter().copied().collect::<VecDeque<u16>>()));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (told, answers) = (told.clone(), Arc::clone(&answers));
            tokio::spawn(async move {
                while let Some(delivery) = receive(&mut stream).await {
                    let status = answers.lock().unwrap().pop_front().unwrap_or(204);
                    tokio::time::sleep(pause).await;
                    let _ = told.send(delivery);
                    let head = format!("HTTP/1.1 {status} x\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n");
                    stream.write_all(head.as_bytes()).await.unwrap();
                }
            });
        }
    });
    (url, deliveries)
}

struct World {
    dir: tempfile::TempDir,
    log: Arc<Log>,
    grown: watch::Receiver<u64>,
}

impl World {
    async fn new() -> Self {
        // The second test finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::generate().unwrap();
        let clock = Arc::new(SystemTime::now);
        let ledger = SqlLedger::open(&dir.path().join("adamant.db"), keys, clock, None).await.unwrap();
        let blobs: Arc<dyn BlobStore> = Arc::new(FsBlobs::open(&dir.path().join("blobs")).unwrap());
        std::fs::write(dir.path().join("secret"), format!("whsec_{}\n", STANDARD.encode(SECRET))).unwrap();
        let (origin, registry) = (ledger.trust_values().origin.clone(), "http://localhost:7000".to_owned());
        let grown = ledger.grown();
        Self { dir, grown, log: Arc::new(Log { origin, registry, blobs, ledger: Arc::new(ledger) }) }
    }

    async fn bind(&self, name: &str, digest: Digest) -> u64 {
        let name = name.to_owned();
        let fact = Fact {
            role: Role::Control,
            subject: vec![Subject { name: name.clone(), digest }],
            predicate: Predicate::Binding(Binding {
                kind: BindingKind::Tag,
                name,
                digest,
                by: "ann".to_owned(),
                detail: json!({"mediaType": "application/vnd.oci.image.manifest.v1+json"}),
            }),
            chain: None,
        };
        self.log.ledger.append(vec![fact]).await.unwrap()[0].index
    }

    async fn hook(&self, name: &str, url: &str, more: &str, patience: Patience) -> Arc<Hook> {
        let text = format!("[[webhook]]\nname = \"{name}\"\nurl = \"{url}\"\nsecret-file = \"secret\"\n{more}");
        let settings = toml::from_str::<crate::Settings>(&text).unwrap().webhooks.remove(0);
        let size = self.log.ledger.head().await.unwrap().size;
        let poster = Poster::new(url, &adamant_fetch::Proxies::default(), TIMEOUT).unwrap();
        Arc::new(Hook::open(&settings, poster, self.dir.path(), size, patience).unwrap())
    }

    /// Runs a hook until the task is aborted, which is as rude as a crash.
    fn run(&self, hook: &Arc<Hook>) -> tokio::task::JoinHandle<()> {
        let (log, hook, grown) = (Arc::clone(&self.log), Arc::clone(hook), self.grown.clone());
        tokio::spawn(async move { hook.follow(&log, grown).await })
    }
}

async fn next(deliveries: &mut mpsc::UnboundedReceiver<Delivery>) -> Delivery {
    tokio::time::timeout(SOON, deliveries.recv()).await.expect("a delivery comes").unwrap()
}

async fn reach(hook: &Hook, position: u64) {
    let reached = async {
        while std::fs::read_to_string(&hook.file).unwrap() != format!("{position}\n") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, reached).await.expect("the position is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_told_signed_and_only_what_was_asked_for() {
    let world = World::new().await;
    world.bind("shop/web:0", Digest::of(b"before the hook")).await;
    let (url, mut deliveries) = receiver(&[], Duration::ZERO).await;
    let hook = world.hook("ci", &url, "repositories = \"shop/*\"", QUICK).await;
    let task = world.run(&hook);
    world.bind("other:1", Digest::of(b"other")).await;
    let digest = Digest::of(b"web");
    let index = world.bind("shop/web:1.0", digest).await;
    let Delivery { id, body } = next(&mut deliveries).await;
    let hex = digest.to_string().replace("sha256:", "");
    let package = format!("pkg:oci/web@sha256%3A{hex}?repository_url=localhost:7000/shop/web&tag=1.0");
    assert_eq!(body["specversion"], "1.0");
    assert_eq!((&body["id"], &body["data"]["context"]["id"]), (&json!(id), &json!(id)));
    assert_eq!(body["type"], "dev.cdevents.artifact.published.0.2.0");
    assert_eq!((&body["source"], &body["subject"]), (&json!(world.log.origin), &json!(package)));
    assert_eq!(body["data"]["subject"]["id"], package);
    assert_eq!(body["data"]["subject"]["content"]["user"], "ann");
    let more = &body["data"]["customData"];
    assert_eq!((&more["repository"], &more["tag"]), (&json!("shop/web"), &json!("1.0")));
    assert_eq!((&more["digest"], &more["entry"]), (&json!(digest.to_string()), &json!(index)));

    // A signature is told as one, by the type of what refers; another referrer is not.
    for (kind, told) in [("application/spdx+json", false), ("application/vnd.dev.sigstore.bundle.v0.3+json", true)] {
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": kind,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}").to_string(), "size": 2},
            "layers": [], "subject": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": 3},
        });
        let mut upload = world.log.blobs.upload().await.unwrap();
        upload.write(bytes::Bytes::from(manifest.to_string())).await.unwrap();
        let (carrier, _) = upload.finish(None).await.unwrap();
        world.bind(&format!("shop/web@{digest}/referrers/{carrier}"), carrier).await;
        if told {
            let body = next(&mut deliveries).await.body;
            assert_eq!(body["type"], "dev.cdevents.artifact.signed.0.2.0");
            assert_eq!(body["data"]["customData"]["digest"], digest.to_string());
            assert_eq!(body["data"]["subject"]["content"]["signature"], format!("localhost:7000/shop/web@{carrier}"));
        }
    }
    reach(&hook, index + 3).await;
    assert!(deliveries.try_recv().is_err());
    let counts = hook.counts();
    assert_eq!((counts.delivered, counts.failed, counts.skipped), (2, 0, 0));
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_tried_again_with_the_same_id() {
    let world = World::new().await;
    let (url, mut deliveries) = receiver(&[500, 302, 410], Duration::ZERO).await;
    let hook = world.hook("ci", &url, "", QUICK).await;
    let task = world.run(&hook);
    let index = world.bind("a:1", Digest::of(b"1")).await;
    let first = next(&mut deliveries).await.id;
    for _ in 0..3 {
        // A redirect is a failure, too: nothing but the address of the settings is asked.
        assert_eq!(next(&mut deliveries).await.id, first);
    }
    reach(&hook, index + 1).await;
    let counts = hook.counts();
    assert_eq!((counts.delivered, counts.failed, counts.position), (1, 3, index + 1));
    assert_eq!(*hook.last_error(), None);
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_receiver_keeps_no_other_hook_waiting() {
    let world = World::new().await;
    let (slow, _held) = receiver(&[], Duration::from_mins(1)).await;
    let (quick, mut deliveries) = receiver(&[], Duration::ZERO).await;
    let hooks = [world.hook("slow", &slow, "", QUICK).await, world.hook("quick", &quick, "", QUICK).await];
    let tasks = hooks.each_ref().map(|hook| world.run(hook));
    let mut last = 0;
    for number in 0..PAGE + 3 {
        last = world.bind(&format!("a:v{number}"), Digest::of(number.to_string().as_bytes())).await;
    }
    for _ in 0..PAGE + 3 {
        next(&mut deliveries).await;
    }
    reach(&hooks[1], last + 1).await;
    assert_eq!(hooks[0].counts().delivered, 0);
    for task in tasks {
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_and_repeats_at_most_what_was_not_kept() {
    let world = World::new().await;
    let (url, mut deliveries) = receiver(&[], Duration::ZERO).await;
    let hook = world.hook("ci", &url, "", QUICK).await;
    let task = world.run(&hook);
    let one = world.bind("a:1", Digest::of(b"1")).await;
    let first = next(&mut deliveries).await;
    reach(&hook, one + 1).await;
    task.abort();
    let _ = task.await;

    // Recorded while nobody runs: told by the next run, and the first one is not repeated.
    let two = world.bind("a:2", Digest::of(b"2")).await;
    let hook = world.hook("ci", &url, "", QUICK).await;
    let task = world.run(&hook);
    let second = next(&mut deliveries).await;
    assert_eq!(second.body["data"]["customData"]["tag"], "2");
    assert_ne!(first.id, second.id);
    reach(&hook, two + 1).await;
    task.abort();
    let _ = task.await;

    // As a crash between the delivery and the position leaves it: the same id again.
    save(&hook.file, two).unwrap();
    let hook = world.hook("ci", &url, "", QUICK).await;
    let task = world.run(&hook);
    assert_eq!(next(&mut deliveries).await.id, second.id);
    reach(&hook, two + 1).await;
    assert!(deliveries.try_recv().is_err());
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_is_given_up_and_counted() {
    let world = World::new().await;
    let (url, mut deliveries) = receiver(&[500], Duration::ZERO).await;
    let hook = world.hook("ci", &url, "", Patience { age: Duration::ZERO, ..QUICK }).await;
    // One failed attempt, then the second is not tried at all.
    world.bind("a:1", Digest::of(b"1")).await;
    let last = world.bind("a:2", Digest::of(b"2")).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let task = world.run(&hook);
    reach(&hook, last + 1).await;
    let counts = hook.counts();
    assert_eq!((counts.delivered, counts.failed, counts.skipped), (0, 1, 2));
    assert_eq!(next(&mut deliveries).await.body["data"]["customData"]["tag"], "1");
    assert!(deliveries.try_recv().is_err());
    assert!(hook.last_error().as_deref().is_some_and(|cause| cause.ends_with("/hook answers HTTP 500")));
    task.abort();
}

#[test]
fn waits_double_to_a_bound_and_secrets_have_one_form() {
    for (failing, most) in [(1, 2), (2, 4), (5, 32), (40, 3600)] {
        let waited = wait(PATIENCE, failing);
        assert!(
            waited >= Duration::from_secs(most) / 2 && waited <= Duration::from_secs(most),
            "{failing}: {waited:?}"
        );
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    for (text, fine) in [
        (format!("whsec_{}\n", STANDARD.encode(SECRET)), true),
        (STANDARD.encode(SECRET), false),
        ("whsec_c2hvcnQ=".to_owned(), false),
        (format!("whsec_{}", STANDARD.encode([1; 65])), false),
    ] {
        std::fs::write(file.path(), &text).unwrap();
        assert_eq!(secret(file.path()).is_ok(), fine, "{text}");
    }
    // The example that libraries of Standard Webhooks are tested with.
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap());
    let signature = sign(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", br#"{"test": 2432232314}"#);
    assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
}
