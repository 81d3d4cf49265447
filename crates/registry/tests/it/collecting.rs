//! Collection of what nothing names, and that it never takes what a push counts on.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use adamant_conformance::{Faulty, When};
use adamant_digest::{Digest, Sha512, Verified};
use adamant_oci::{ArtifactMeta, Descriptor, Manifest, media};
use adamant_registry::{CollectError, Collected, Config, Limits, Registry};
use adamant_store::{BlobStore, Erased, FsBlobs};

use crate::memory::MemoryLedger;
use crate::world::World;

const DAY: Duration = Duration::from_hours(24);

/// Makes all blobs look unused for ten days.
fn age(blobs: &FsBlobs, digests: &[Digest]) {
    for digest in digests {
        File::open(blobs.path(*digest)).unwrap().set_modified(SystemTime::now() - 10 * DAY).unwrap();
    }
}

async fn all(blobs: &FsBlobs) -> Vec<Digest> {
    blobs.list(None, usize::MAX).await.unwrap()
}

async fn collect(world: &World) -> Collected {
    world.registry.collect(DAY, false, None).await.unwrap()
}

#[tokio::test]
async fn what_nothing_names_goes_after_the_grace_period_and_the_rest_stays() {
    let world = World::new().await;
    let image = world.image("team/app", "layer").await;
    world.put("team/app", "1", &image).await.expect(201);
    let orphan = world.push_blob("team/app", b"orphan").await;
    assert_eq!(collect(&world).await.removed, 0, "used just now");
    age(&world.blobs, &all(&world.blobs).await);
    let dry = world.registry.collect(DAY, true, None).await.unwrap();
    assert_eq!((dry.blobs, dry.removed, dry.bytes), (4, 1, 6));
    assert!(world.blobs.size(orphan).await.unwrap().is_some(), "a dry run removes nothing");
    assert_eq!(collect(&world).await, dry);
    assert_eq!(collect(&world).await.removed, 0);
    world.get(&format!("/v2/team/app/blobs/{orphan}")).await.expect(404);
    world.get("/v2/team/app/manifests/1").await.expect(200);
    for part in [Digest::of(b"{}"), Digest::of(b"layer")] {
        world.get(&format!("/v2/team/app/blobs/{part}")).await.expect(200);
    }
    world.push_blob("team/app", b"orphan").await;
    world.get(&format!("/v2/team/app/blobs/{orphan}")).await.expect(200);
}

#[tokio::test]
async fn every_way_to_count_on_a_blob_is_a_use() {
    let world = World::new().await;
    let blob = world.push_blob("a/b", b"counted on").await;
    let upload = format!("/v2/c/d/blobs/uploads/?mount={blob}&from=a/b");
    for (method, path, body, status) in [
        ("HEAD", format!("/v2/a/b/blobs/{blob}"), &b""[..], 200),
        ("POST", upload, b"", 201),
        ("POST", format!("/v2/a/b/blobs/uploads/?digest={blob}"), b"counted on", 201),
    ] {
        age(&world.blobs, &[blob]);
        world.send(method, &path, &[], body).await.expect(status);
        assert_eq!(collect(&world).await.removed, 0, "{method} {path}");
    }
    // A manifest that names it, even one that is refused for something else.
    age(&world.blobs, &[blob]);
    let config = Descriptor::new(media::OCI_EMPTY, blob, 10);
    let missing = Descriptor::new(media::OCI_LAYER, Digest::of(b"missing"), 7);
    let manifest = Manifest::image(config, vec![missing], ArtifactMeta::default());
    world.put("a/b", "1", &manifest).await.expect(400);
    assert_eq!(collect(&world).await.removed, 0);
    age(&world.blobs, &[blob]);
    assert_eq!(collect(&world).await.removed, 1);
}

#[tokio::test]
async fn what_is_named_through_documents_and_second_names_stays() {
    let world = World::new().await;
    // A layer that names another blob in its text, and one that is named by its sha512.
    let far = world.push_blob("a/b", b"far").await;
    let text = format!("see {far}, that is all");
    let image = world.image("a/b", &text).await;
    world.put("a/b", "1", &image).await.expect(201);
    let other = Sha512::of(b"by sha512");
    let path = format!("/v2/a/b/blobs/uploads/?digest={other}");
    world.send("POST", &path, &[], b"by sha512").await.expect(201);
    let raw = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","digest":"{}","size":2}},"layers":[{{"mediaType":"{}","digest":"{other}","size":9}}]}}"#,
        media::OCI_MANIFEST,
        media::OCI_EMPTY,
        Digest::of(b"{}"),
        media::OCI_LAYER,
    );
    let path = "/v2/a/b/manifests/2";
    world.send("PUT", path, &[("content-type", media::OCI_MANIFEST)], raw.as_bytes()).await.expect(201);
    let unnamed = world.push_blob("a/b", b"unnamed").await;
    let before = all(&world.blobs).await;
    age(&world.blobs, &before);
    assert_eq!(collect(&world).await.removed, 1);
    let kept: Vec<_> = before.into_iter().filter(|digest| *digest != unnamed).collect();
    assert_eq!(all(&world.blobs).await, kept);
    world.get(&format!("/v2/a/b/blobs/{other}")).await.expect(200);
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_stops_the_collection() {
    let world = World::new().await;
    let image = world.image("a/b", "layer").await;
    world.put("a/b", "1", &image).await.expect(201);
    world.push_blob("a/b", b"orphan").await;
    let digests = all(&world.blobs).await;
    age(&world.blobs, &digests);
    let path = world.blobs.path(image.digest());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"{}").unwrap();
    // Damaged, and then moved aside.
    for _ in 0..2 {
        let refused = world.registry.collect(DAY, false, None).await.unwrap_err();
        assert!(matches!(refused, CollectError::Unreadable { .. }), "{refused}");
        assert_eq!(all(&world.blobs).await.len(), digests.len() - 1);
    }
    world.put("a/b", "1", &image).await.expect(201);
    assert_eq!(collect(&world).await.removed, 1);
}

/// A run that ends at any of its removals, before or after, leaves what is named and is made good
/// by the next one.
#[tokio::test]
async fn a_run_that_is_cut_off_anywhere_does_no_harm() {
    for step in 0..4 {
        for when in [When::Before, When::After] {
            let dir = tempfile::tempdir().unwrap();
            let files = FsBlobs::open(&dir.path().join("blobs")).unwrap();
            let store = Arc::new(Faulty::new(files.clone()));
            let ledger = Arc::new(MemoryLedger::default());
            let config = Config {
                uploads: dir.path().join("uploads"),
                limits: Limits::default(),
                clock: Arc::new(SystemTime::now),
                owned: None,
                pointers: Vec::new(),
                gates: Vec::new(),
                upstreams: Vec::new(),
                quotas: Vec::new(),
                reserve: None,
                erased: Erased::default(),
            };
            let registry = Registry::new(store.clone(), ledger, config).unwrap();
            let layer = Verified::hash(b"layer".to_vec());
            let empty = Verified::hash(b"{}".to_vec());
            for blob in [&layer, &empty] {
                registry.put_blob(blob).await.unwrap();
            }
            let describe = |kind, blob: &Verified| Descriptor::new(kind, blob.digest(), blob.bytes().len() as u64);
            let layers = vec![describe(media::OCI_LAYER, &layer)];
            let manifest = Manifest::image(describe(media::OCI_EMPTY, &empty), layers, ArtifactMeta::default());
            let (repository, tag) = ("a/b".parse().unwrap(), ["1".parse().unwrap()]);
            let bytes = manifest.bytes().bytes().to_vec();
            registry.put_manifest(&repository, &tag, None, None, bytes, "ann").await.unwrap();
            for n in 0..4 {
                let blob = Verified::hash(format!("orphan {n}").into_bytes());
                registry.put_blob(&blob).await.unwrap();
                store.alias(Sha512::of(blob.bytes()), blob.digest()).await.unwrap();
            }
            age(&files, &all(&files).await);
            store.arm(step, when);
            registry.collect(DAY, false, None).await.unwrap_err();
            let left = 4 - step - u64::from(when == When::After);
            assert_eq!(all(&files).await.len() as u64, 3 + left, "{step} {when:?}");
            assert_eq!(registry.collect(DAY, false, None).await.unwrap().removed, left);
            for digest in [layer.digest(), empty.digest(), manifest.digest()] {
                files.get(digest).await.unwrap();
            }
            assert!(files.aliases(None, 10).await.unwrap().is_empty(), "second names went, too");
        }
    }
}

/// Clients push images of new and repeated blobs, by upload, by mount and by asking first, while
/// collections run without a pause and with next to no grace. What was acknowledged is complete, then
/// and at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn soak_pushes_race_collections_and_nothing_named_is_lost() {
    const GRACE: Duration = Duration::from_millis(25);
    let world = Arc::new(World::new().await);
    let until = Instant::now() + Duration::from_secs(20);
    let stop = Arc::new(AtomicBool::new(false));
    let refused = Arc::new(AtomicU64::new(0));

    let collector = tokio::spawn({
        let (world, stop) = (Arc::clone(&world), Arc::clone(&stop));
        async move {
            let (mut runs, mut removed) = (0_u64, 0_u64);
            while !stop.load(Ordering::Relaxed) {
                removed += world.registry.collect(GRACE, false, None).await.unwrap().removed;
                runs += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            (runs, removed)
        }
    });
    let pushers = (0..6_u64).map(|pusher| {
        let (world, refused) = (Arc::clone(&world), Arc::clone(&refused));
        tokio::spawn(async move {
            let mut kept: Vec<(Manifest, Vec<Vec<u8>>)> = Vec::new();
            let mut round = 0_u64;
            while Instant::now() < until {
                round += 1;
                // Few different contents, so that most are pushed, forgotten and pushed again.
                let blobs: Vec<Vec<u8>> = [
                    b"{}".to_vec(),
                    format!("shared {}", (round * 7 + pusher) % 40).into_bytes(),
                    format!("of {pusher} in {}", round % 25).into_bytes(),
                ]
                .to_vec();
                for (n, bytes) in blobs.iter().enumerate() {
                    let digest = Digest::of(bytes);
                    let known = match (round + n as u64) % 3 {
                        0 => false,
                        1 => {
                            let head = world.send("HEAD", &format!("/v2/p/{pusher}/blobs/{digest}"), &[], b"").await;
                            head.status == 200
                        }
                        _ => {
                            let path = format!("/v2/p/{pusher}/blobs/uploads/?mount={digest}&from=p/0");
                            world.send("POST", &path, &[], b"").await.status == 201
                        }
                    };
                    if !known {
                        world.push_blob(&format!("p/{pusher}"), bytes).await;
                    }
                }
                // Most rounds leave orphans; some make a manifest of what they counted on.
                if !round.is_multiple_of(4) {
                    continue;
                }
                let describe = |kind, bytes: &Vec<u8>| Descriptor::new(kind, Digest::of(bytes), bytes.len() as u64);
                let layers = blobs[1..].iter().map(|bytes| describe(media::OCI_LAYER, bytes)).collect();
                let manifest = Manifest::image(describe(media::OCI_EMPTY, &blobs[0]), layers, ArtifactMeta::default());
                let answer = world.put(&format!("p/{pusher}"), &format!("r{round}"), &manifest).await;
                if answer.status == 400 {
                    // The grace is far shorter here than a push: a client pushes again.
                    refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                answer.expect(201);
                for bytes in &blobs {
                    world.get(&format!("/v2/p/{pusher}/blobs/{}", Digest::of(bytes))).await.expect(200);
                }
                kept.push((manifest, blobs));
            }
            kept
        })
    });
    let mut kept = Vec::new();
    for pusher in futures_util::future::join_all(pushers).await {
        kept.extend(pusher.expect("a pusher ran"));
    }
    stop.store(true, Ordering::Relaxed);
    let (runs, mut removed) = collector.await.expect("the collector ran");
    tokio::time::sleep(2 * GRACE).await;
    removed += world.registry.collect(GRACE, false, None).await.unwrap().removed;
    let mut named: Vec<Digest> = Vec::new();
    for (manifest, blobs) in &kept {
        named.push(manifest.digest());
        named.extend(blobs.iter().map(|bytes| Digest::of(bytes)));
    }
    named.sort_unstable();
    named.dedup();
    for digest in &named {
        world.blobs.get(*digest).await.expect("what is named is here");
    }
    assert_eq!(all(&world.blobs).await, named, "and nothing else");
    let refused = refused.load(Ordering::Relaxed);
    eprintln!("{} manifests kept, {refused} pushed again, {runs} collections removed {removed} blobs", kept.len());
    assert!(kept.len() > 20 && runs > 20 && removed > 20, "{} {runs} {removed}", kept.len());
}
