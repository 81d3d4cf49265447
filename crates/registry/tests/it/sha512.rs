//! image-spec, "Registered Algorithms": content by sha512, and tags beside a digest.

use adamant_digest::{Digest, Sha512};
use adamant_oci::media;
use serde_json::json;

use crate::world::{Answer, World};

async fn push(world: &World, bytes: &[u8]) -> Sha512 {
    let named = Sha512::of(bytes);
    let answer = world.send("POST", &format!("/v2/a/blobs/uploads/?digest={named}"), &[], bytes).await.expect(201);
    assert_eq!(answer.header("docker-content-digest"), named.to_string());
    assert_eq!(answer.header("location"), format!("/v2/a/blobs/{named}"));
    named
}

async fn put(world: &World, reference: &str, kind: &str, bytes: &[u8]) -> Answer {
    world.send("PUT", &format!("/v2/a/manifests/{reference}"), &[("content-type", kind)], bytes).await
}

/// A manifest that names everything by sha512, and its bytes.
async fn image(world: &World, content: &[u8]) -> (Sha512, Vec<u8>) {
    let describe =
        |kind: &str, named: Sha512, size: usize| json!({"mediaType": kind, "digest": named.to_string(), "size": size});
    let config = push(world, b"{}").await;
    let layer = push(world, content).await;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_MANIFEST,
        "config": describe(media::OCI_EMPTY, config, 2),
        "layers": [describe(media::OCI_LAYER, layer, content.len())],
    });
    let bytes = manifest.to_string().into_bytes();
    (Sha512::of(&bytes), bytes)
}

#[tokio::test]
async fn blobs_in_every_way_and_after_a_restart() {
    let world = World::new().await;
    let bytes = vec![7; 3 << 20];
    let named = Sha512::of(&bytes);
    // end-4a, end-5, end-6: started, sent in two chunks, finished.
    let started = world.send("POST", "/v2/a/blobs/uploads/", &[], b"").await.expect(202);
    let (first, second) = bytes.split_at(1 << 20);
    let range = format!("0-{}", first.len() - 1);
    let answer = world.send("PATCH", started.header("location"), &[("content-range", &range)], first).await.expect(202);
    let path = format!("{}?digest={named}", answer.header("location"));
    let answer = world.send("PUT", &path, &[], second).await.expect(201);
    assert_eq!(answer.header("docker-content-digest"), named.to_string());
    // end-11: mounted elsewhere.
    world.send("POST", &format!("/v2/b/blobs/uploads/?mount={named}&from=a"), &[], b"").await.expect(201);

    let world = world.reopen().await;
    let path = format!("/v2/a/blobs/{named}");
    let answer = world.get(&path).await.expect(200);
    assert_eq!(answer.bytes(), bytes);
    assert_eq!(answer.header("docker-content-digest"), named.to_string());
    let head = world.send("HEAD", &path, &[], b"").await.expect(200);
    assert_eq!(head.header("content-length"), bytes.len().to_string());
    let part = world.send("GET", &path, &[("range", "bytes=2-1048577")], b"").await.expect(206);
    assert_eq!(part.bytes(), &bytes[2..=1_048_577]);
    // It is one blob under two names.
    let answer = world.get(&format!("/v2/a/blobs/{}", Digest::of(&bytes))).await.expect(200);
    assert_eq!(answer.header("docker-content-digest"), Digest::of(&bytes).to_string());
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_leave_nothing() {
    let world = World::new().await;
    let named = Sha512::of(b"right");
    world
        .send("POST", &format!("/v2/a/blobs/uploads/?digest={named}"), &[], b"wrong")
        .await
        .fails(400, "DIGEST_INVALID");
    let started = world.send("POST", "/v2/a/blobs/uploads/", &[], b"").await.expect(202);
    let path = format!("{}?digest={named}", started.header("location"));
    world.send("PUT", &path, &[], b"wrong").await.fails(400, "DIGEST_INVALID");
    world.send("PUT", &path, &[], b"right").await.fails(404, "BLOB_UPLOAD_UNKNOWN");
    world.get(&format!("/v2/a/blobs/{named}")).await.fails(404, "BLOB_UNKNOWN");
    let (named, bytes) = image(&world, b"x").await;
    put(&world, &Sha512::of(b"other").to_string(), media::OCI_MANIFEST, &bytes).await.fails(400, "DIGEST_INVALID");
    world.get(&format!("/v2/a/manifests/{named}")).await.fails(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn manifests_and_indexes_of_them() {
    let world = World::new().await;
    let (named, bytes) = image(&world, b"x").await;
    let answer = put(&world, &named.to_string(), media::OCI_MANIFEST, &bytes).await.expect(201);
    assert_eq!(answer.header("docker-content-digest"), named.to_string());
    assert_eq!(answer.header("location"), format!("/v2/a/manifests/{named}"));
    let answer = world.get(&format!("/v2/a/manifests/{named}")).await.expect(200);
    assert_eq!((answer.bytes(), answer.header("docker-content-digest")), (&*bytes, &*named.to_string()));
    let etag = [("if-none-match", answer.header("etag"))];
    world.send("GET", &format!("/v2/a/manifests/{named}"), &etag, b"").await.expect(304);

    let child = json!({"mediaType": media::OCI_MANIFEST, "digest": named.to_string(), "size": bytes.len()});
    let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": [child]}).to_string();
    let other = Sha512::of(index.as_bytes());
    put(&world, &other.to_string(), media::OCI_INDEX, index.as_bytes()).await.expect(201);
    assert_eq!(world.get(&format!("/v2/a/manifests/{other}")).await.expect(200).bytes(), index.as_bytes());
    let facts = world.ledger.size();
    put(&world, &other.to_string(), media::OCI_INDEX, index.as_bytes()).await.expect(201);
    assert_eq!(world.ledger.size(), facts, "the same push again writes nothing");

    let unknown = json!({"mediaType": media::OCI_MANIFEST, "digest": Sha512::of(b"no").to_string(), "size": 2});
    let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": [unknown]}).to_string();
    put(&world, "v1", media::OCI_INDEX, index.as_bytes()).await.fails(400, "MANIFEST_BLOB_UNKNOWN");

    // A referrer of a subject that is named by sha512 is found by that name.
    let subject = json!({"mediaType": media::OCI_MANIFEST, "digest": named.to_string(), "size": bytes.len()});
    let mut referrer: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    referrer["subject"] = subject;
    let referrer = referrer.to_string();
    let answer = put(&world, "signature", media::OCI_MANIFEST, referrer.as_bytes()).await.expect(201);
    assert_eq!(answer.header("oci-subject"), named.to_string());
    let list = world.get(&format!("/v2/a/referrers/{named}")).await.expect(200).json();
    assert_eq!(list["manifests"][0]["digest"], Digest::of(referrer.as_bytes()).to_string());
}

#[tokio::test]
async fn tags_beside_a_digest() {
    let world = World::new().await;
    let (named, bytes) = image(&world, b"x").await;
    for (reference, tags) in [(named.to_string(), ["one", "two"]), (Digest::of(&bytes).to_string(), ["three", "one"])] {
        let path = format!("{reference}?tag={}&tag={}", tags[0], tags[1]);
        let answer = put(&world, &path, media::OCI_MANIFEST, &bytes).await.expect(201);
        let said: Vec<_> = answer.headers.get_all("oci-tag").iter().map(|tag| tag.to_str().unwrap()).collect();
        assert_eq!(said, tags);
        assert_eq!(answer.header("docker-content-digest"), reference);
    }
    let list = world.get("/v2/a/tags/list").await.expect(200).json();
    assert_eq!(list["tags"], json!(["one", "three", "two"]));
    // A tag answers with the digest of the push that made it, and has one entity tag for conditions.
    let sha256 = Digest::of(&bytes).to_string();
    for _ in 0..2 {
        for (tag, digest) in [("one", named.to_string()), ("two", named.to_string()), ("three", sha256.clone())] {
            for method in ["GET", "HEAD"] {
                let path = format!("/v2/a/manifests/{tag}");
                let answer = world.send(method, &path, &[], b"").await.expect(200);
                assert_eq!(answer.header("docker-content-digest"), digest, "{method} {tag}");
                assert_eq!(answer.header("etag"), format!("\"{sha256}\""));
                let known = [("if-none-match", answer.header("etag"))];
                let answer = world.send(method, &path, &known, b"").await.expect(304);
                assert_eq!(answer.header("docker-content-digest"), digest, "{method} {tag}");
            }
            assert_eq!(world.get(&format!("/v2/a/manifests/{tag}")).await.expect(200).bytes(), bytes);
        }
    }
    let facts = world.ledger.size();
    put(&world, &format!("{named}?tag=three"), media::OCI_MANIFEST, &bytes).await.expect(201);
    assert_eq!(world.ledger.size(), facts, "the tag is made already");
    // All of the names or none.
    let (other, more) = image(&world, b"y").await;
    put(&world, &format!("{other}?tag=four&tag=two"), media::OCI_MANIFEST, &more).await.fails(409, "TAG_INVALID");
    world.get("/v2/a/manifests/four").await.fails(404, "MANIFEST_UNKNOWN");
    world.get(&format!("/v2/a/manifests/{other}")).await.fails(404, "MANIFEST_UNKNOWN");
    put(&world, &format!("{other}?tag=/"), media::OCI_MANIFEST, &more).await.fails(400, "TAG_INVALID");
    let many: Vec<_> = (0..65).map(|i| format!("tag=t{i}")).collect();
    put(&world, &format!("{other}?{}", many.join("&")), media::OCI_MANIFEST, &more).await.fails(414, "TAG_INVALID");
}

#[tokio::test]
async fn a_second_name_that_leads_elsewhere_gives_nothing_away() {
    let world = World::new().await;
    let big = [vec![1; 2 << 20], vec![2; 2 << 20]];
    let small = [b"one".to_vec(), b"two".to_vec()];
    for [right, wrong] in [&big, &small] {
        let named = push(&world, right).await;
        let other = push(&world, wrong).await;
        let entry = |named: Sha512| {
            let hex = named.hex();
            world.directory.path().join("blobs/sha512").join(&hex[..2]).join(hex)
        };
        std::fs::remove_file(entry(named)).unwrap();
        std::fs::copy(entry(other), entry(named)).unwrap();
        let answer = world.get(&format!("/v2/a/blobs/{named}")).await;
        assert!(answer.status == 500 || answer.body.is_none(), "{answer:?}");
        push(&world, right).await;
        assert_eq!(world.get(&format!("/v2/a/blobs/{named}")).await.expect(200).bytes(), right);
    }
}
