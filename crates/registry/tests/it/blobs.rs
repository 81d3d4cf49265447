//! end-1, end-2: the check, access, and pulling blobs.

use adamant_digest::Digest;

use crate::world::World;

#[tokio::test]
async fn end_1_the_check() {
    let world = World::new().await;
    for path in ["/v2/", "/v2"] {
        let answer = world.get(path).await.expect(200);
        assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
    }
    world.send("POST", "/v2/", &[], b"").await.fails(405, "UNSUPPORTED");
}

#[tokio::test]
async fn end_2_pulling_blobs() {
    let world = World::new().await;
    for bytes in [b"hello".to_vec(), Vec::new(), vec![7; 3 << 20]] {
        let digest = world.push_blob("a/b", &bytes).await;
        let path = format!("/v2/a/b/blobs/{digest}");
        let answer = world.get(&path).await.expect(200);
        assert_eq!(answer.bytes(), bytes);
        assert_eq!(answer.header("docker-content-digest"), digest.to_string());
        let head = world.send("HEAD", &path, &[], b"").await.expect(200);
        assert_eq!(head.header("content-length"), bytes.len().to_string());
        assert_eq!(head.header("docker-content-digest"), digest.to_string());
        assert!(head.bytes().is_empty());
        let etag = answer.header("etag").to_owned();
        world.send("GET", &path, &[("if-none-match", &etag)], b"").await.expect(304);
    }
    let missing = format!("/v2/a/b/blobs/{}", Digest::of(b"missing"));
    world.get(&missing).await.fails(404, "BLOB_UNKNOWN");
    world.send("HEAD", &missing, &[], b"").await.expect(404);
}

#[tokio::test]
async fn end_2_ranges() {
    let world = World::new().await;
    let large: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    for bytes in [b"0123456789".to_vec(), large] {
        let digest = world.push_blob("a", &bytes).await;
        let path = format!("/v2/a/blobs/{digest}");
        let size = bytes.len();
        for (range, from, to) in [
            ("bytes=0-0".to_owned(), 0, 1),
            ("bytes=2-".to_owned(), 2, size),
            ("bytes=-3".to_owned(), size - 3, size),
            (format!("bytes=4-{}", size * 2), 4, size),
            (format!("bytes={}-{}", size / 3, size / 2), size / 3, size / 2 + 1),
        ] {
            let answer = world.send("GET", &path, &[("range", &range)], b"").await.expect(206);
            assert_eq!(answer.bytes(), &bytes[from..to], "{range}");
            assert_eq!(answer.header("content-range"), format!("bytes {from}-{}/{size}", to - 1));
        }
        let beyond = format!("bytes={size}-");
        let answer = world.send("GET", &path, &[("range", &beyond)], b"").await.expect(416);
        assert_eq!(answer.header("content-range"), format!("bytes */{size}"));
        let other = [("range", "bytes=0-0"), ("if-range", "\"other\"")];
        assert_eq!(world.send("GET", &path, &other, b"").await.expect(200).bytes(), bytes);
    }
}

#[tokio::test]
async fn end_2_malformed_digests_are_bad_requests() {
    let world = World::new().await;
    for digest in ["sha256:00", "sha256", "x", "sha256:%00", &format!("sha256:{}", "G".repeat(64))] {
        world.get(&format!("/v2/a/blobs/{digest}")).await.fails(400, "DIGEST_INVALID");
    }
    // Malformed is one thing, well-formed and not supported another, not there a third.
    for digest in [format!("sha512:{}", "a".repeat(64)), format!("sha512:{}", "A".repeat(128))] {
        world.get(&format!("/v2/a/blobs/{digest}")).await.fails(400, "DIGEST_INVALID");
    }
    let other = format!("sha384:{}", "a".repeat(96));
    for path in ["blobs", "manifests", "referrers"] {
        let answer = world.get(&format!("/v2/a/{path}/{other}")).await;
        answer.fails(400, "DIGEST_INVALID");
        assert!(String::from_utf8_lossy(answer.bytes()).contains("not supported"), "{path}");
    }
    let absent = format!("sha512:{}", "a".repeat(128));
    world.get(&format!("/v2/a/blobs/{absent}")).await.fails(404, "BLOB_UNKNOWN");
    world.get(&format!("/v2/a/manifests/{absent}")).await.fails(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn end_10_blobs_are_never_deleted() {
    let world = World::new().await;
    let digest = world.push_blob("a", b"x").await;
    let path = format!("/v2/a/blobs/{digest}");
    world.send("DELETE", &path, &[], b"").await.fails(405, "UNSUPPORTED");
    world.get(&path).await.expect(200);
}
