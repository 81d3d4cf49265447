//! The naming law: a tag is bound once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use adamant_oci::{ArtifactMeta, Manifest};

use crate::world::World;

fn index(text: &str) -> Manifest {
    let annotations = [("n".to_owned(), text.to_owned())].into();
    Manifest::index(vec![], ArtifactMeta { annotations, ..ArtifactMeta::default() })
}

#[tokio::test]
async fn the_same_again_is_created_and_writes_nothing() {
    let world = World::new().await;
    let manifest = index("1");
    world.put("a", "v1", &manifest).await.expect(201);
    let facts = world.ledger.size();
    let stored = world.blobs.path(manifest.digest());
    let before = inode(&stored);
    for _ in 0..3 {
        let answer = world.put("a", "v1", &manifest).await.expect(201);
        assert_eq!(answer.header("docker-content-digest"), manifest.digest().to_string());
        world.put("a", &manifest.digest().to_string(), &manifest).await.expect(201);
    }
    assert_eq!(world.ledger.size(), facts);
    assert_eq!(inode(&stored), before);
    // Many names may bind one digest: one fact more, for the tag alone.
    world.put("a", "v2", &manifest).await.expect(201);
    assert_eq!(world.ledger.size(), facts + 1);
}

/// The file that holds the bytes. (Its time says when it was last used.)
fn inode(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().ino()
}

#[tokio::test]
async fn another_digest_is_a_conflict_that_says_everything() {
    let world = World::new().await;
    let (one, two) = (index("1"), index("2"));
    world.put("a/b", "v1", &one).await.expect(201);
    let facts = world.ledger.size();
    let answer = world.put("a/b", "v1", &two).await;
    answer.fails(409, "TAG_INVALID");
    let error = &answer.json()["errors"][0];
    let message = error["message"].as_str().unwrap();
    for part in
        ["a/b:v1", &one.digest().to_string(), &two.digest().to_string(), "alice", "2026-01-02T03:04:05Z", "new tag"]
    {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    assert_eq!(error["detail"]["bound"]["digest"], one.digest().to_string());
    assert_eq!(error["detail"]["offered"], two.digest().to_string());
    assert_eq!(world.get("/v2/a/b/manifests/v1").await.expect(200).bytes(), one.bytes().bytes());
    // It is recorded, and nothing of the loser is in the repository.
    assert_eq!((world.ledger.size(), world.ledger.divergences()), (facts, 1));
    world.get(&format!("/v2/a/b/manifests/{}", two.digest())).await.fails(404, "MANIFEST_UNKNOWN");
    assert!(!world.blobs.path(two.digest()).exists());
    // The way out that the message names.
    world.put("a/b", "v2", &two).await.expect(201);
}

#[tokio::test]
async fn end_9_manifests_and_tags_are_never_deleted() {
    let world = World::new().await;
    let manifest = index("1");
    world.put("a", "v1", &manifest).await.expect(201);
    for reference in ["v1".to_owned(), manifest.digest().to_string(), "unknown".to_owned()] {
        let answer = world.send("DELETE", &format!("/v2/a/manifests/{reference}"), &[], b"").await;
        answer.fails(405, "UNSUPPORTED");
        assert!(answer.json()["errors"][0]["message"].as_str().unwrap().contains("cannot be deleted"));
    }
    world.get("/v2/a/manifests/v1").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_racers_one_wins() {
    let world = Arc::new(World::new().await);
    for round in 0..30 {
        let tag = format!("r{round}");
        let done = Arc::new(AtomicBool::new(false));
        let reader = {
            let (world, tag, done) = (world.clone(), tag.clone(), done.clone());
            tokio::spawn(async move {
                let mut seen = std::collections::BTreeSet::new();
                loop {
                    let last = done.load(Ordering::Relaxed);
                    let answer = world.get(&format!("/v2/a/manifests/{tag}")).await;
                    if answer.status == 200 {
                        seen.insert(answer.bytes().to_vec());
                    }
                    if last {
                        return seen;
                    }
                }
            })
        };
        let racers: Vec<_> = (0..8)
            .map(|racer| {
                let (world, tag) = (world.clone(), tag.clone());
                tokio::spawn(async move {
                    let manifest = index(&format!("{round}/{racer}"));
                    (world.put("a", &tag, &manifest).await.status.as_u16(), manifest.bytes().bytes().to_vec())
                })
            })
            .collect();
        let mut won = Vec::new();
        for racer in racers {
            match racer.await.unwrap() {
                (201, bytes) => won.push(bytes),
                (409, _) => {}
                (other, _) => panic!("status {other}"),
            }
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(won.len(), 1, "round {round}");
        assert_eq!(reader.await.unwrap().into_iter().collect::<Vec<_>>(), won, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_pushes_again_under_readers() {
    let world = Arc::new(World::new().await);
    let manifest = world.image("a", &"layer ".repeat(20_000)).await;
    world.put("a", "v1", &manifest).await.expect(201);
    let facts = world.ledger.size();
    let layer = "layer ".repeat(20_000);
    let blob = format!("/v2/a/blobs/{}", adamant_digest::Digest::of(layer.as_bytes()));
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (world, done, blob, layer) = (world.clone(), done.clone(), blob.clone(), layer.clone());
            let expected = manifest.bytes().bytes().to_vec();
            tokio::spawn(async move {
                let mut reads = 0;
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(world.get("/v2/a/manifests/v1").await.expect(200).bytes(), expected);
                    assert_eq!(world.get(&blob).await.expect(200).bytes(), layer.as_bytes());
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    for _ in 0..1_000 {
        world.push_blob("a", layer.as_bytes()).await;
        world.put("a", "v1", &manifest).await.expect(201);
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
    assert_eq!(world.ledger.size(), facts);
}

#[tokio::test]
async fn release_numbers_and_commits_are_for_the_owner_of_a_repository() {
    let world = World::new().await;
    let manifest = index("1");
    let (commit, digest) = ("0a".repeat(20), manifest.digest());
    for tag in ["7", "00", &commit, &format!("{digest}?tag=v1&tag=8")] {
        let answer = world.put("owned/web", tag, &manifest).await;
        answer.fails(403, "DENIED");
        assert!(String::from_utf8_lossy(answer.bytes()).contains("project `owned`"), "{answer:?}");
    }
    assert_eq!(world.ledger.size(), 0);
    for (repository, tag) in [("owned/web", "v7"), ("owned", "7"), ("other/web", "7"), ("other/web", &commit)] {
        world.put(repository, tag, &manifest).await.expect(201);
    }
}
