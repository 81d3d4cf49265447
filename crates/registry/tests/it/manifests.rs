//! end-3, end-7: pushing and pulling manifests.

use adamant_digest::Digest;
use adamant_oci::{ArtifactMeta, Descriptor, Manifest, media};
use adamant_registry::Limits;

use crate::world::World;

async fn put_text(world: &World, reference: &str, kind: &str, text: &str) -> crate::world::Answer {
    world.send("PUT", &format!("/v2/a/manifests/{reference}"), &[("content-type", kind)], text.as_bytes()).await
}

#[tokio::test]
async fn end_7_by_tag_and_end_3_by_both() {
    let world = World::new().await;
    let manifest = world.image("a", "x").await;
    let digest = manifest.digest();
    let answer = world.put("a", "v1", &manifest).await.expect(201);
    assert_eq!(answer.header("location"), format!("/v2/a/manifests/{digest}"));
    assert_eq!(answer.header("docker-content-digest"), digest.to_string());
    for reference in ["v1".to_owned(), digest.to_string(), digest.to_string().replace(':', "%3a")] {
        let path = format!("/v2/a/manifests/{reference}");
        let answer = world.get(&path).await.expect(200);
        assert_eq!(answer.bytes(), manifest.bytes().bytes());
        assert_eq!(answer.header("content-type"), media::OCI_MANIFEST);
        assert_eq!(answer.header("docker-content-digest"), digest.to_string());
        let head = world.send("HEAD", &path, &[], b"").await.expect(200);
        assert_eq!(head.header("content-length"), manifest.size().to_string());
        assert_eq!(head.header("content-type"), media::OCI_MANIFEST);
        let etag = [("if-none-match", answer.header("etag"))];
        world.send("GET", &path, &etag, b"").await.expect(304);
    }
    // A manifest is in the repositories it was pushed to, and nowhere else.
    world.get(&format!("/v2/b/manifests/{digest}")).await.fails(404, "MANIFEST_UNKNOWN");
    world.get("/v2/a/manifests/v2").await.fails(404, "MANIFEST_UNKNOWN");
    world.get("/v2/a/manifests/.INVALID_MANIFEST_NAME").await.fails(404, "MANIFEST_UNKNOWN");
    world.get("/v2/a/manifests/sha256:0").await.fails(400, "DIGEST_INVALID");
}

#[tokio::test]
async fn end_7_by_digest() {
    let world = World::new().await;
    let manifest = world.image("a", "x").await;
    let wrong = Digest::of(b"other").to_string();
    world.put("a", &wrong, &manifest).await.fails(400, "DIGEST_INVALID");
    world.put("a", &manifest.digest().to_string(), &manifest).await.expect(201);
    world.get(&format!("/v2/a/manifests/{}", manifest.digest())).await.expect(200);
    assert_eq!(world.get("/v2/a/tags/list").await.expect(200).json()["tags"], serde_json::json!([]));
}

#[tokio::test]
async fn exact_bytes_with_unknown_members_and_no_media_type() {
    let world = World::new().await;
    let config = world.push_blob("a", b"{}").await;
    let text = format!(
        "{{\n  \"config\": {{\"size\":2, \"digest\":\"{config}\", \"mediaType\":\"x/y\", \"z\":null}},\n  \"schemaVersion\" : 2, \"layers\":[], \"custom\": [1.50, \"\\u00e9\"]\n}}\n"
    );
    put_text(&world, "v1", &format!("{}; charset=utf-8", media::OCI_MANIFEST), &text).await.expect(201);
    let answer = world.get("/v2/a/manifests/v1").await.expect(200);
    assert_eq!(answer.bytes(), text.as_bytes());
    assert_eq!(answer.header("content-type"), media::OCI_MANIFEST);
}

#[tokio::test]
async fn docker_schema_2_and_lists() {
    let world = World::new().await;
    let config = world.push_blob("a", b"{}").await;
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","size":2,"digest":"{config}"}},"layers":[]}}"#,
        media::DOCKER_MANIFEST,
        media::DOCKER_CONFIG
    );
    put_text(&world, "v1", media::OCI_MANIFEST, &text).await.fails(400, "MANIFEST_INVALID");
    put_text(&world, "v1", media::DOCKER_MANIFEST, &text).await.expect(201);
    let list = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{{"mediaType":"{}","size":{},"digest":"{}","platform":{{"architecture":"amd64","os":"linux"}}}}]}}"#,
        media::DOCKER_LIST,
        media::DOCKER_MANIFEST,
        text.len(),
        Digest::of(text.as_bytes())
    );
    put_text(&world, "list", media::DOCKER_LIST, &list).await.expect(201);
    assert_eq!(world.get("/v2/a/manifests/list").await.expect(200).header("content-type"), media::DOCKER_LIST);
}

#[tokio::test]
async fn what_a_manifest_names_must_be_there() {
    let world = World::new().await;
    let whole = world.image("a", "x").await;
    let config = Descriptor::new(media::OCI_EMPTY, Digest::of(b"{}"), 2);
    let missing = Digest::of(b"missing");
    let layer = |kind: &str, size| Descriptor::new(kind, missing, size);
    let image = |layers| Manifest::image(config.clone(), layers, ArtifactMeta::default());

    let answer = world.put("a", "v1", &image(vec![layer(media::OCI_LAYER, 7)])).await;
    answer.fails(400, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(answer.json()["errors"][0]["detail"]["digest"], missing.to_string());
    let absent = Manifest::image(layer(media::OCI_CONFIG, 7), vec![], ArtifactMeta::default());
    world.put("a", "v1", &absent).await.fails(400, "MANIFEST_BLOB_UNKNOWN");
    let mut wrong_size = config.clone();
    wrong_size.size = 3;
    let wrong_size = Manifest::image(wrong_size, vec![], ArtifactMeta::default());
    world.put("a", "v1", &wrong_size).await.fails(400, "SIZE_INVALID");
    assert_eq!(world.ledger.size(), 0);
    world.get("/v2/a/tags/list").await.fails(404, "NAME_UNKNOWN");

    // image-spec, layer.md: a non-distributable layer lies elsewhere.
    let foreign = layer("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", 7);
    world.put("a", "foreign", &image(vec![foreign])).await.expect(201);

    let child = |manifest: &Manifest| Descriptor::new(media::OCI_MANIFEST, manifest.digest(), manifest.size());
    let index = Manifest::index(vec![child(&whole)], ArtifactMeta::default());
    world.put("a", "index", &index).await.fails(400, "MANIFEST_BLOB_UNKNOWN");
    // Being in another repository is not enough: nobody could pull it from here.
    world.put("b", "v1", &whole).await.expect(201);
    world.put("a", "index", &index).await.fails(400, "MANIFEST_BLOB_UNKNOWN");
    world.put("a", &whole.digest().to_string(), &whole).await.expect(201);
    world.put("a", "index", &index).await.expect(201);
    let nested = Descriptor::new(media::OCI_INDEX, index.digest(), index.size());
    world.put("a", "nested", &Manifest::index(vec![nested], ArtifactMeta::default())).await.expect(201);
    world.put("a", "empty", &Manifest::index(vec![], ArtifactMeta::default())).await.expect(201);
}

#[tokio::test]
async fn malformed_manifests_are_refused() {
    let world = World::new().await;
    for text in
        ["", "{", "[]", r#"{"schemaVersion":2,"mediaType":"text/plain"}"#, r#"{"schemaVersion":1,"fsLayers":[]}"#]
    {
        put_text(&world, "v1", media::OCI_MANIFEST, text).await.fails(400, "MANIFEST_INVALID");
    }
    let index = Manifest::index(vec![], ArtifactMeta::default());
    for tag in [".x", "-x", "a%20b", &"a".repeat(129)] {
        world.put("a", tag, &index).await.fails(400, "TAG_INVALID");
    }
    world.put("a", "sha256:0", &index).await.fails(400, "DIGEST_INVALID");
    assert_eq!(world.ledger.size(), 0);
}

#[tokio::test]
async fn manifests_of_four_mebibytes_and_no_more() {
    let world = World::new().await;
    let limit = Limits::default().manifest_bytes;
    let sized = |length: usize| {
        let frame = r#"{"schemaVersion":2,"manifests":[],"x":""}"#;
        frame.replace("\"x\":\"", &format!("\"x\":\"{}", "y".repeat(length - frame.len())))
    };
    put_text(&world, "most", media::OCI_INDEX, &sized(limit)).await.expect(201);
    put_text(&world, "more", media::OCI_INDEX, &sized(limit + 1)).await.fails(413, "MANIFEST_INVALID");
    world.get("/v2/a/manifests/more").await.fails(404, "MANIFEST_UNKNOWN");
}
