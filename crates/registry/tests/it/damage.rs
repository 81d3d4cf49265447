//! Wrong bytes are never served, and the right ones heal them.

use adamant_digest::Digest;
use adamant_oci::{ArtifactMeta, Manifest};
use std::os::unix::fs::PermissionsExt;

use crate::world::World;

fn flip(world: &World, digest: Digest) {
    let path = world.blobs.path(digest);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&path, bytes).unwrap();
}

#[tokio::test]
async fn a_small_blob() {
    let world = World::new().await;
    let digest = world.push_blob("a", b"content").await;
    flip(&world, digest);
    let path = format!("/v2/a/blobs/{digest}");
    for range in [&[][..], &[("range", "bytes=0-0")][..]] {
        let answer = world.send("GET", &path, range, b"").await;
        answer.fails(500, "UNKNOWN");
        let message = answer.json()["errors"][0]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(&digest.to_string()) && message.contains("push the same content again"), "{message}");
    }
    // Clients ask before they push: they must be told to push, and not be mounted wrong bytes.
    world.send("HEAD", &path, &[], b"").await.expect(404);
    world.send("POST", &format!("/v2/a/blobs/uploads/?mount={digest}"), &[], b"").await.expect(202);
    world.push_blob("a", b"content").await;
    assert_eq!(world.get(&path).await.expect(200).bytes(), b"content");
    world.send("HEAD", &path, &[], b"").await.expect(200);
}

#[tokio::test]
async fn a_large_blob_ends_early_and_is_an_error_from_then_on() {
    let world = World::new().await;
    let bytes = vec![9; 5 << 20];
    for first in [&[][..], &[("range", "bytes=10-20")][..], &[("range", "bytes=-10")][..]] {
        let digest = world.push_blob("a", &bytes).await;
        let path = format!("/v2/a/blobs/{digest}");
        world.get(&path).await.expect(200);
        flip(&world, digest);
        assert_eq!(world.send("GET", &path, first, b"").await.body, None, "{first:?}");
        world.get(&path).await.fails(500, "UNKNOWN");
        world.send("HEAD", &path, &[], b"").await.expect(404);
    }
    // Healed beside the registry: seen at the next read.
    let digest = Digest::of(&bytes);
    std::fs::write(world.blobs.path(digest), &bytes).unwrap();
    let path = format!("/v2/a/blobs/{digest}");
    assert_eq!(world.get(&path).await.expect(200).bytes(), bytes);
    world.send("HEAD", &path, &[], b"").await.expect(200);
}

#[tokio::test]
async fn a_manifest() {
    let world = World::new().await;
    let manifest = Manifest::index(vec![], ArtifactMeta::default());
    world.put("a", "v1", &manifest).await.expect(201);
    let facts = world.ledger.size();
    flip(&world, manifest.digest());
    for method in ["GET", "HEAD"] {
        world.send(method, "/v2/a/manifests/v1", &[], b"").await.expect(500);
    }
    world.put("a", "v1", &manifest).await.expect(201);
    assert_eq!(world.get("/v2/a/manifests/v1").await.expect(200).bytes(), manifest.bytes().bytes());
    assert_eq!(world.ledger.size(), facts);
}

#[tokio::test]
async fn a_manifest_over_a_damaged_blob_is_refused() {
    let world = World::new().await;
    let manifest = world.image("a", "layer").await;
    flip(&world, Digest::of(b"layer"));
    world.get(&format!("/v2/a/blobs/{}", Digest::of(b"layer"))).await.fails(500, "UNKNOWN");
    world.put("a", "v1", &manifest).await.fails(400, "MANIFEST_BLOB_UNKNOWN");
    world.push_blob("a", b"layer").await;
    world.put("a", "v1", &manifest).await.expect(201);
}
