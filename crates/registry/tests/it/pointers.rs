//! distribution-spec 1.1, "Referrers Tag Schema", and cosign's tags: lists that only grow.

use adamant_digest::Digest;
use adamant_oci::{ArtifactMeta, Descriptor, Manifest, media};
use serde_json::json;

use crate::world::World;

fn name(kind: &str) -> String {
    format!("sha256-{}{kind}", Digest::of(b"subject").hex())
}

/// A list of manifests that were pushed.
async fn list(world: &World, of: &[&str]) -> Manifest {
    let mut all = Vec::new();
    for text in of {
        let manifest = world.image("a", text).await;
        world.put("a", &manifest.digest().to_string(), &manifest).await.expect(201);
        all.push(Descriptor::new(media::OCI_MANIFEST, manifest.digest(), manifest.size()));
    }
    Manifest::index(all, ArtifactMeta::default())
}

#[tokio::test]
async fn an_index_of_referrers_grows_and_never_shrinks() {
    let world = World::new().await;
    let tag = name("");
    let path = format!("/v2/a/manifests/{tag}");
    let (one, two, other) = (list(&world, &["1"]).await, list(&world, &["2", "1"]).await, list(&world, &["2"]).await);
    world.put("a", &tag, &one).await.expect(201);
    for _ in 0..2 {
        let answer = world.put("a", &tag, &two).await.expect(201);
        assert_eq!(answer.header("docker-content-digest"), two.digest().to_string());
        assert_eq!(world.get(&path).await.expect(200).bytes(), two.bytes().bytes());
    }
    let facts = world.ledger.size();
    world.put("a", &tag, &two).await.expect(201);
    for less in [&one, &other, &list(&world, &[]).await] {
        let answer = world.put("a", &tag, less).await;
        answer.fails(409, "TAG_INVALID");
        assert!(String::from_utf8_lossy(answer.bytes()).contains("only grows"), "{answer:?}");
    }
    assert_eq!(world.get(&path).await.expect(200).bytes(), two.bytes().bytes());
    assert_eq!((world.ledger.divergences(), world.ledger.size()), (0, facts));
    // What it led to before stays in the repository, and the tag is listed once.
    world.get(&format!("/v2/a/manifests/{}", one.digest())).await.expect(200);
    assert_eq!(world.get("/v2/a/tags/list").await.expect(200).json()["tags"], json!([tag]));
    world.send("DELETE", &path, &[], b"").await.fails(405, "UNSUPPORTED");
    // Every other tag is bound once.
    world.put("a", "v1", &one).await.expect(201);
    world.put("a", "v1", &two).await.fails(409, "TAG_INVALID");
}

#[tokio::test]
async fn a_signature_is_added_as_a_layer_with_its_annotations() {
    let world = World::new().await;
    let tag = name(".sig");
    let payload = world.push_blob("a", b"payload").await;
    let signed = async |signatures: &[&str]| {
        let config = json!({"rootfs": {"diff_ids": signatures}}).to_string();
        let layers: Vec<_> = signatures
            .iter()
            .map(|signature| {
                json!({"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "size": 7,
                       "digest": payload.to_string(), "annotations": {"dev.cosignproject.cosign/signature": signature}})
            })
            .collect();
        let digest = world.push_blob("a", config.as_bytes()).await;
        let manifest = json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "layers": layers,
            "config": {"mediaType": media::OCI_CONFIG, "digest": digest.to_string(), "size": config.len()}});
        let path = format!("/v2/a/manifests/{tag}");
        world.send("PUT", &path, &[("content-type", media::OCI_MANIFEST)], manifest.to_string().as_bytes()).await
    };
    signed(&["alice"]).await.expect(201);
    signed(&["alice", "bob"]).await.expect(201);
    // The payload is the same blob each time: what tells signatures apart are the annotations.
    signed(&["bob", "bob"]).await.fails(409, "TAG_INVALID");
    signed(&["alice", "bob", "bob"]).await.expect(201);
    signed(&["alice", "bob"]).await.fails(409, "TAG_INVALID");
}

#[tokio::test]
async fn racing_additions_lose_nothing_that_was_acknowledged() {
    let world = std::sync::Arc::new(World::new().await);
    let tag = name("");
    let mut tasks = tokio::task::JoinSet::new();
    let mut lists = Vec::new();
    for i in 0..8 {
        lists.push(list(&world, &[&i.to_string()]).await);
    }
    for (i, first) in lists.into_iter().enumerate() {
        let (world, tag) = (world.clone(), tag.clone());
        tasks.spawn(async move {
            let own = i.to_string();
            let mut next = first;
            // As a client does: on a conflict, read what is there and add to it.
            for _ in 0..50 {
                let answer = world.put("a", &tag, &next).await;
                if answer.status == 201 {
                    return;
                }
                answer.fails(409, "TAG_INVALID");
                let current = world.get(&format!("/v2/a/manifests/{tag}")).await.expect(200).json();
                let mut all: Vec<Descriptor> = serde_json::from_value(current["manifests"].clone()).unwrap();
                let mine = world.image("a", &own).await;
                all.push(Descriptor::new(media::OCI_MANIFEST, mine.digest(), mine.size()));
                next = Manifest::index(all, ArtifactMeta::default());
            }
            panic!("never added");
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let end = world.get(&format!("/v2/a/manifests/{tag}")).await.expect(200).json();
    assert_eq!(end["manifests"].as_array().unwrap().len(), 8);
    assert_eq!(world.ledger.divergences(), 0);
}
