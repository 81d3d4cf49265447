//! Another registry read through this one: first sight, moved tags, and what it must not do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use adamant_attest::predicate::BindingKind;
use adamant_digest::{Digest, Verified};
use adamant_oci::{ArtifactMeta, ContentDigest, Descriptor, Manifest, Reference, Tag, media};
use adamant_registry::{Upstream, UpstreamConfig, UpstreamError};
use adamant_store::{BlobStore as _, BoxFuture, FsBlobs, Ledger as _};

use crate::world::World;

#[derive(Default)]
struct State {
    /// By tag or digest.
    manifests: HashMap<String, Vec<u8>>,
    blobs: HashMap<Digest, Vec<u8>>,
    gone: bool,
    asked: Vec<String>,
}

/// A registry whose answers a test decides.
struct Fake {
    state: Mutex<State>,
    blobs: FsBlobs,
}

impl Fake {
    fn ask(&self, what: String) -> Result<(), UpstreamError> {
        let mut state = self.state.lock().unwrap();
        state.asked.push(what);
        if state.gone { Err(UpstreamError::Failed("https://up.example does not answer".to_owned())) } else { Ok(()) }
    }

    fn put(&self, reference: &str, manifest: &Manifest) {
        let mut state = self.state.lock().unwrap();
        for name in [reference.to_owned(), manifest.digest().to_string()] {
            state.manifests.insert(name, manifest.bytes().bytes().to_vec());
        }
    }

    fn blob_of(&self, kind: &str, bytes: &[u8]) -> Descriptor {
        let digest = Digest::of(bytes);
        self.state.lock().unwrap().blobs.insert(digest, bytes.to_vec());
        Descriptor::new(kind, digest, bytes.len() as u64)
    }

    fn image(&self, content: &str) -> Manifest {
        let config = self.blob_of(media::OCI_CONFIG, b"{}");
        let layer = self.blob_of(media::OCI_LAYER, content.as_bytes());
        Manifest::image(config, vec![layer], ArtifactMeta::default())
    }

    fn asked(&self) -> usize {
        self.state.lock().unwrap().asked.len()
    }
}

impl Upstream for Fake {
    fn manifest<'a>(&'a self, of: &'a str, reference: &'a Reference) -> BoxFuture<'a, Result<Vec<u8>, UpstreamError>> {
        Box::pin(async move {
            self.ask(format!("{of} {reference}"))?;
            // Long enough for others to come meanwhile.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let found = self.state.lock().unwrap().manifests.get(&reference.to_string()).cloned();
            found.ok_or_else(|| UpstreamError::Absent("https://up.example answers HTTP 404".to_owned()))
        })
    }

    fn digest<'a>(&'a self, of: &'a str, tag: &'a Tag) -> BoxFuture<'a, Result<Option<Digest>, UpstreamError>> {
        Box::pin(async move {
            self.ask(format!("{of} {tag}"))?;
            Ok(self.state.lock().unwrap().manifests.get(tag.as_str()).map(|bytes| Digest::of(bytes)))
        })
    }

    fn blob<'a>(
        &'a self,
        of: &'a str,
        named: &'a ContentDigest,
        _size: u64,
    ) -> BoxFuture<'a, Result<Digest, UpstreamError>> {
        Box::pin(async move {
            self.ask(format!("{of} {named}"))?;
            let digest = named.sha256().map_err(|error| UpstreamError::Failed(error.to_string()))?;
            let found = self.state.lock().unwrap().blobs.get(&digest).cloned();
            let bytes = found.ok_or_else(|| UpstreamError::Absent(format!("no {named}")))?;
            self.blobs.put(&Verified::hash(bytes)).await.map_err(|error| UpstreamError::Failed(error.to_string()))?;
            Ok(digest)
        })
    }
}

async fn world() -> (World, Arc<Fake>) {
    let (send, fake) = std::sync::mpsc::channel();
    let world = World::below(move |blobs| {
        let fake = Arc::new(Fake { state: Mutex::default(), blobs });
        send.send(fake.clone()).unwrap();
        let config = UpstreamConfig {
            name: "up.example".to_owned(),
            url: "https://up.example".to_owned(),
            repositories: vec!["library/*".parse().unwrap()],
            heal: true,
            source: fake,
        };
        vec![config]
    })
    .await;
    let fake = fake.recv().unwrap();
    (world, fake)
}

const X: &str = "/v2/up.example/library/x/manifests";

#[tokio::test]
async fn the_first_sight_binds_and_everything_is_kept() {
    let (world, up) = world().await;
    let (one, two) = (up.image("one"), up.image("two"));
    for image in [&one, &two] {
        up.put("-", image);
    }
    let describe = |of: &Manifest| Descriptor::new(of.kind().media_type(), of.digest(), of.size());
    let inner = Manifest::index(vec![describe(&two)], ArtifactMeta::default());
    up.put("-", &inner);
    let index = Manifest::index(vec![describe(&one), describe(&inner)], ArtifactMeta::default());
    up.put("1", &index);
    let head = world.send("HEAD", &format!("{X}/1"), &[], b"").await.expect(200);
    assert_eq!(head.header("docker-content-digest"), index.digest().to_string());
    up.state.lock().unwrap().gone = true;
    let asked = up.asked();
    assert_eq!(world.get(&format!("{X}/1")).await.expect(200).bytes(), index.bytes().bytes());
    for image in [&one, &inner, &two] {
        world.get(&format!("{X}/{}", image.digest())).await.expect(200);
    }
    let blob = format!("/v2/up.example/library/x/blobs/{}", Digest::of(b"two"));
    assert_eq!(world.get(&blob).await.expect(200).bytes(), b"two");
    assert_eq!(up.asked(), asked);
    let bound = world.ledger.binding(BindingKind::Tag, "up.example/library/x:1").await.unwrap().unwrap();
    assert_eq!((bound.digest, bound.by.as_str()), (index.digest(), "upstream up.example"));
    let entry = world.ledger.entry(bound.index).await.unwrap().unwrap();
    let statement = String::from_utf8(entry.statement).unwrap();
    assert!(statement.contains("https://up.example") && statement.contains("library/x"), "{statement}");
    let tags = world.get("/v2/up.example/library/x/tags/list").await.expect(200).json();
    assert_eq!(tags["tags"], serde_json::json!(["1"]));
}

#[tokio::test]
async fn a_digest_is_kept_without_a_tag() {
    let (world, up) = world().await;
    let image = up.image("one");
    up.put("1", &image);
    world.get(&format!("{X}/{}", image.digest())).await.expect(200);
    assert!(world.ledger.binding(BindingKind::Tag, "up.example/library/x:1").await.unwrap().is_none());
    up.state.lock().unwrap().gone = true;
    world.get(&format!("{X}/{}", image.digest())).await.expect(200);
}

#[tokio::test]
async fn of_many_first_pulls_one_fetches() {
    let (world, up) = world().await;
    let image = up.image("one");
    up.put("1", &image);
    let path = format!("{X}/1");
    let pulls = futures_util::future::join_all((0..20).map(|_| world.get(&path))).await;
    assert!(pulls.iter().all(|answer| answer.status == 200));
    // The manifest, its configuration and its layer.
    assert_eq!(up.asked(), 3, "{:?}", up.state.lock().unwrap().asked);
}

#[tokio::test]
async fn a_moved_tag_is_reported_once_and_not_followed() {
    let (world, up) = world().await;
    let (one, two, three) = (up.image("one"), up.image("two"), up.image("three"));
    up.put("1", &one);
    let pull = async || world.get(&format!("{X}/1")).await.expect(200).body.unwrap();
    assert_eq!(pull().await, one.bytes().bytes());
    let (repository, tag) = ("up.example/library/x".parse().unwrap(), "1".parse().unwrap());
    let check = async || world.registry.check_upstream(&repository, &tag).await.unwrap().now;
    assert_eq!((check().await, world.ledger.divergences()), (one.digest(), 0));
    up.put("1", &two);
    assert_eq!((check().await, world.ledger.divergences()), (two.digest(), 1));
    assert_eq!(world.registry.upstream_counts()[0].moved, 1);
    assert_eq!(pull().await, one.bytes().bytes());

    let update = async || world.registry.update_from_upstream(&repository, &tag, "ann").await.unwrap();
    let day = adamant_attest::format_time(
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs().try_into().unwrap(),
    );
    let day = day.unwrap()[..10].replace('-', "");
    let first = update().await;
    assert_eq!((first.bound, first.digest, first.new), (one.digest(), two.digest(), true));
    assert_eq!(first.tag.as_str(), format!("1-seen-{day}"));
    assert_eq!((update().await.tag, update().await.new), (first.tag.clone(), false));
    up.put("1", &three);
    let second = update().await;
    assert_eq!((second.digest, second.tag.as_str()), (three.digest(), format!("1-seen-{day}.2").as_str()));
    up.state.lock().unwrap().gone = true;
    for (tag, image) in [("1", &one), (first.tag.as_str(), &two), (second.tag.as_str(), &three)] {
        assert_eq!(world.get(&format!("{X}/{tag}")).await.expect(200).bytes(), image.bytes().bytes());
    }
    up.state.lock().unwrap().gone = false;
    up.put("1", &one);
    assert_eq!(check().await, one.digest());
    assert_eq!(world.registry.upstream_counts()[0].moved, 0);
    let (followed, more) = world.registry.followed("up.example/", "", 10).await.unwrap();
    assert_eq!((followed.len(), more), (3, None));
}

/// A list of signatures grows where it is, and updates' tags are ours: neither diverges.
#[tokio::test]
async fn what_no_first_sight_bound_is_not_compared() {
    let (world, up) = world().await;
    let (one, two) = (up.image("one"), up.image("two"));
    let list = format!("sha256-{}.sig", one.digest().hex());
    up.put(&list, &one);
    world.get(&format!("{X}/{list}")).await.expect(200);
    up.put(&list, &two);
    let repository = "up.example/library/x".parse().unwrap();
    let checked = world.registry.check_upstream(&repository, &list.parse().unwrap()).await;
    assert!(checked.unwrap_err().to_string().contains("no tag that an upstream's first sight bound"));
    assert_eq!((world.ledger.divergences(), world.registry.upstream_counts()[0].moved), (0, 0));
}

#[tokio::test]
async fn refusals_name_the_upstream_and_the_cause() {
    let (world, up) = world().await;
    let image = up.image("one");
    up.put("1", &image);
    for repository in ["up.example/library/x", "up.example/other", "up.example"] {
        let answer = world.put(repository, "1", &image).await;
        answer.fails(403, "DENIED");
        let upload = world.send("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], b"").await;
        upload.fails(403, "DENIED");
    }
    world.get("/v2/up.example/secret/x/manifests/1").await.fails(403, "DENIED");
    // What only an update makes is asked for nowhere.
    world.get(&format!("{X}/1-seen-20260101")).await.fails(404, "MANIFEST_UNKNOWN");
    assert_eq!(up.asked(), 0);
    let absent = world.get(&format!("{X}/2")).await;
    absent.fails(404, "MANIFEST_UNKNOWN");
    assert!(String::from_utf8_lossy(absent.bytes()).contains("https://up.example answers HTTP 404"));
    up.state.lock().unwrap().gone = true;
    for _ in 0..3 {
        let failed = world.get(&format!("{X}/3")).await;
        failed.fails(502, "UNAVAILABLE");
        assert!(String::from_utf8_lossy(failed.bytes()).contains("does not answer"));
    }
    // Asked once for all three, and again a moment later.
    assert_eq!(up.asked(), 2);
    up.state.lock().unwrap().gone = false;
    up.put("3", &image);
    tokio::time::sleep(Duration::from_millis(3_100)).await;
    world.get(&format!("{X}/3")).await.expect(200);
}

#[tokio::test]
async fn wrong_content_binds_nothing() {
    let (world, up) = world().await;
    let (one, two) = (up.image("one"), up.image("two"));
    let child = Descriptor::new(one.kind().media_type(), one.digest(), one.size());
    up.put("index", &Manifest::index(vec![child], ArtifactMeta::default()));
    // Another manifest where the child should be.
    up.state.lock().unwrap().manifests.insert(one.digest().to_string(), two.bytes().bytes().to_vec());
    up.state.lock().unwrap().manifests.insert("text".to_owned(), b"no manifest".to_vec());
    // A layer that is not there.
    let lost = Descriptor::new(media::OCI_LAYER, Digest::of(b"lost"), 4);
    let config = up.blob_of(media::OCI_CONFIG, b"{}");
    up.put("lost", &Manifest::image(config, vec![lost], ArtifactMeta::default()));
    for (tag, status) in [("index", 502), ("text", 502), ("lost", 404)] {
        world.get(&format!("{X}/{tag}")).await.expect(status);
    }
    world.get(&format!("{X}/{}", one.digest())).await.expect(502);
    assert_eq!(world.ledger.size(), 0);
}

#[tokio::test]
async fn damage_is_healed_from_where_it_came() {
    let (world, up) = world().await;
    let image = up.image("one");
    up.put("1", &image);
    world.get(&format!("{X}/1")).await.expect(200);
    // A repository of our own that the upstream has by the same name.
    let own = world.image("tools/a", "own").await;
    world.put("tools/a", "1", &own).await.expect(201);
    up.blob_of(media::OCI_LAYER, b"own");
    let digests = [Digest::of(b"one"), image.digest(), Digest::of(b"own")];
    for digest in digests {
        let path = world.blobs.path(digest);
        let length = std::fs::read(&path).unwrap().len();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, vec![b'!'; length]).unwrap();
        assert!(world.blobs.get(digest).await.is_err());
    }
    for digest in digests {
        world.registry.heal(digest).await.unwrap();
        assert!(world.blobs.get(digest).await.is_ok());
    }
    assert!(up.state.lock().unwrap().asked.iter().any(|asked| asked.starts_with("tools/a ")));
    assert!(world.registry.heal(Digest::of(b"nobody has it")).await.is_err());
}
