//! What clients see of something that was erased.

use adamant_digest::{Digest, Sha512};
use adamant_store::{BlobStore, Tombstone};

use crate::world::World;

fn tombstone(of: Option<&[u8]>) -> Tombstone {
    Tombstone {
        sha512: of.map(Sha512::of),
        git_blob: None,
        reason: Some("a key leaked".to_owned()),
        requested_by: "ann".to_owned(),
        approved_by: "bob".to_owned(),
        at: "2026-01-02T03:04:05Z".to_owned(),
        entry: 7,
    }
}

pub(crate) async fn erase(world: &World, digest: Digest) {
    // The names that the fact says.
    let bytes = world.blobs.get(digest).await.ok();
    world.erased.insert(digest, tombstone(bytes.as_ref().map(adamant_digest::Verified::bytes)));
    world.blobs.remove(digest, None).await.unwrap();
}

#[tokio::test]
async fn an_erased_layer_is_gone_with_the_reason_and_its_manifest_still_answers() {
    let world = World::new().await;
    let image = world.image("a/b", "secret").await;
    world.put("a/b", "1", &image).await.expect(201);
    let layer = Digest::of(b"secret");
    erase(&world, layer).await;
    let path = format!("/v2/a/b/blobs/{layer}");
    let answer = world.get(&path).await;
    answer.fails(410, "BLOB_UNKNOWN");
    let error = &answer.json()["errors"][0];
    let message = error["message"].as_str().unwrap();
    assert!(["a key leaked", "ann", "bob", "2026-01-02"].iter().all(|part| message.contains(part)), "{message}");
    assert_eq!(error["detail"]["erased"]["entry"], 7);
    world.send("HEAD", &path, &[], b"").await.expect(410);
    world.get("/v2/a/b/manifests/1").await.expect(200);
    world.get("/v2/a/b/tags/list").await.expect(200);
}

#[tokio::test]
async fn an_erased_manifest_is_gone_and_its_tag_stays_bound() {
    let world = World::new().await;
    let image = world.image("a/b", "one").await;
    world.put("a/b", "1", &image).await.expect(201);
    erase(&world, image.digest()).await;
    for reference in ["1".to_owned(), image.digest().to_string()] {
        world.get(&format!("/v2/a/b/manifests/{reference}")).await.fails(410, "MANIFEST_UNKNOWN");
        world.send("HEAD", &format!("/v2/a/b/manifests/{reference}"), &[], b"").await.expect(410);
    }
    assert_eq!(world.get("/v2/a/b/tags/list").await.json()["tags"][0], "1");
    world.put("a/b", "1", &image).await.fails(403, "DENIED");
    world.put("a/b", "2", &image).await.fails(403, "DENIED");
    let other = world.image("a/b", "other").await;
    world.put("a/b", "1", &other).await.fails(409, "TAG_INVALID");
}

#[tokio::test]
async fn what_was_erased_cannot_be_pushed_again_by_any_way() {
    let world = World::new().await;
    let image = world.image("a/b", "secret").await;
    let layer = Digest::of(b"secret");
    erase(&world, layer).await;
    world.put("a/b", "1", &image).await.fails(403, "DENIED");
    let whole = format!("/v2/a/b/blobs/uploads/?digest={layer}");
    let answer = world.send("POST", &whole, &[], b"secret").await;
    answer.fails(403, "DENIED");
    assert!(String::from_utf8_lossy(answer.bytes()).contains("a key leaked"));
    let other = format!("/v2/a/b/blobs/uploads/?digest={}", Sha512::of(b"secret"));
    world.send("POST", &other, &[], b"secret").await.fails(403, "DENIED");
    // A mount falls back to an upload, which is refused at its end.
    let mount = format!("/v2/c/d/blobs/uploads/?mount={layer}&from=a/b");
    let started = world.send("POST", &mount, &[], b"").await.expect(202);
    let place = format!("{}?digest={layer}", started.header("location"));
    world.send("PUT", &place, &[], b"secret").await.fails(403, "DENIED");
    assert_eq!(world.blobs.size(layer).await.unwrap(), None, "no way leaves bytes");
}

#[tokio::test]
async fn an_erased_blob_is_gone_by_its_sha512_too() {
    let world = World::new().await;
    let other = Sha512::of(b"secret");
    let whole = format!("/v2/a/b/blobs/uploads/?digest={other}");
    world.send("POST", &whole, &[], b"secret").await.expect(201);
    world.get(&format!("/v2/a/b/blobs/{other}")).await.expect(200);
    erase(&world, Digest::of(b"secret")).await;
    let answer = world.get(&format!("/v2/a/b/blobs/{other}")).await;
    answer.fails(410, "BLOB_UNKNOWN");
    assert!(String::from_utf8_lossy(answer.bytes()).contains("a key leaked"));
    world.send("HEAD", &format!("/v2/a/b/blobs/{other}"), &[], b"").await.expect(410);
    world.send("POST", &whole, &[], b"secret").await.fails(403, "DENIED");
    world.get(&format!("/v2/a/b/blobs/{other}")).await.fails(410, "BLOB_UNKNOWN");
    let never = Sha512::of(b"never here");
    world.get(&format!("/v2/a/b/blobs/{never}")).await.fails(404, "BLOB_UNKNOWN");
}
