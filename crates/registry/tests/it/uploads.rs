//! end-4, end-5, end-6, end-11, end-13, end-14: pushing blobs.

use std::time::Duration;

use adamant_digest::Digest;
use adamant_registry::{Access, Limits, Rights};
use tokio::io::AsyncWriteExt;

use crate::world::World;

async fn start(world: &World, repository: &str) -> String {
    let answer = world.send("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], b"").await.expect(202);
    assert!(!answer.header("docker-upload-uuid").is_empty());
    assert_eq!(answer.header("range"), "0-0");
    answer.header("location").to_owned()
}

fn files(world: &World) -> usize {
    std::fs::read_dir(world.directory.path().join("uploads")).unwrap().count()
}

async fn holds(world: &World, repository: &str, bytes: &[u8]) {
    let answer = world.get(&format!("/v2/{repository}/blobs/{}", Digest::of(bytes))).await.expect(200);
    assert_eq!(answer.bytes(), bytes);
}

#[tokio::test]
async fn end_4b_post_alone() {
    let world = World::new().await;
    let digest = Digest::of(b"abc");
    let path = format!("/v2/a/blobs/uploads/?digest={}", digest.to_string().replace(':', "%3A"));
    let answer = world.send("POST", &path, &[("content-type", "application/json")], b"abc").await.expect(201);
    assert_eq!(answer.header("location"), format!("/v2/a/blobs/{digest}"));
    holds(&world, "a", b"abc").await;
    let wrong = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(b"x"));
    world.send("POST", &wrong, &[], b"abc").await.fails(400, "DIGEST_INVALID");
    world.get(&format!("/v2/a/blobs/{}", Digest::of(b"x"))).await.fails(404, "BLOB_UNKNOWN");
    assert_eq!(files(&world), 0);
}

#[tokio::test]
async fn end_6_post_then_put() {
    let world = World::new().await;
    let bytes = vec![3; 2 << 20];
    let location = start(&world, "a").await;
    let digest = Digest::of(&bytes);
    let answer = world.send("PUT", &format!("{location}?digest={digest}"), &[], &bytes).await.expect(201);
    assert_eq!(answer.header("docker-content-digest"), digest.to_string());
    holds(&world, "a", &bytes).await;
    world.get(&location).await.fails(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(files(&world), 0);
}

#[tokio::test]
async fn end_5_streamed_without_type_or_range() {
    let world = World::new().await;
    let location = start(&world, "a").await;
    let answer = world.send("PATCH", &location, &[], b"hello ").await.expect(202);
    assert_eq!(answer.header("range"), "0-5");
    world.send("PATCH", &location, &[], b"wor").await.expect(202);
    let path = format!("{location}?digest={}", Digest::of(b"hello world"));
    world.send("PUT", &path, &[], b"ld").await.expect(201);
    holds(&world, "a", b"hello world").await;
}

#[tokio::test]
async fn end_5_chunks_in_order() {
    let world = World::new().await;
    let location = start(&world, "a").await;
    let patch =
        async |range: &str, body: &[u8]| world.send("PATCH", &location, &[("content-range", range)], body).await;
    let answer = patch("1-3", b"abc").await;
    answer.fails(416, "BLOB_UPLOAD_INVALID");
    assert_eq!(answer.header("range"), "0-0");
    assert_eq!(answer.header("location"), location);
    patch("0-2", b"abc").await.expect(202);
    patch("0-2", b"abc").await.fails(416, "BLOB_UPLOAD_INVALID");
    patch("4-5", b"ef").await.fails(416, "BLOB_UPLOAD_INVALID");
    patch("3-9", b"de").await.fails(400, "BLOB_UPLOAD_INVALID");
    patch("x", b"de").await.fails(400, "BLOB_UPLOAD_INVALID");
    let status = world.get(&location).await.expect(204);
    assert_eq!(status.header("range"), "0-2");
    assert_eq!(status.header("location"), location);
    patch("3-4", b"de").await.expect(202);
    let last = format!("{location}?digest={}", Digest::of(b"abcdef"));
    world.send("PUT", &last, &[("content-range", "9-9")], b"f").await.fails(416, "BLOB_UPLOAD_INVALID");
    world.send("PUT", &last, &[("content-range", "5-5")], b"f").await.expect(201);
    holds(&world, "a", b"abcdef").await;
}

#[tokio::test]
async fn a_wrong_digest_ends_the_upload() {
    let world = World::new().await;
    let location = start(&world, "a").await;
    world.send("PATCH", &location, &[], b"abc").await.expect(202);
    world.send("PUT", &location, &[], b"").await.fails(400, "DIGEST_INVALID");
    world.send("PUT", &format!("{location}?digest=sha256:0"), &[], b"").await.fails(400, "DIGEST_INVALID");
    let wrong = format!("{location}?digest={}", Digest::of(b"x"));
    let answer = world.send("PUT", &wrong, &[], b"").await;
    answer.fails(400, "DIGEST_INVALID");
    assert_eq!(answer.json()["errors"][0]["detail"]["found"], Digest::of(b"abc").to_string());
    world.get(&location).await.fails(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(files(&world), 0);
}

#[tokio::test]
async fn uploads_are_cancelled_and_private_to_their_repository() {
    let world = World::new().await;
    let location = start(&world, "a").await;
    let elsewhere = location.replace("/v2/a/", "/v2/b/");
    for method in ["GET", "PATCH", "DELETE"] {
        world.send(method, &elsewhere, &[], b"").await.fails(404, "BLOB_UPLOAD_UNKNOWN");
    }
    world.send("DELETE", &location, &[], b"").await.expect(204);
    world.send("PATCH", &location, &[], b"x").await.fails(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(files(&world), 0);
}

#[tokio::test]
async fn end_11_mounts() {
    let world = World::new().await;
    let digest = world.push_blob("a/b", b"abc").await;
    let path = format!("/v2/c/blobs/uploads/?mount={digest}&from=a/b");
    let answer = world.send("POST", &path, &[], b"").await.expect(201);
    assert_eq!(answer.header("location"), format!("/v2/c/blobs/{digest}"));
    world.send("POST", &format!("/v2/c/blobs/uploads/?mount={digest}"), &[], b"").await.expect(201);
    let missing = Digest::of(b"missing");
    let answer = world.send("POST", &format!("/v2/c/blobs/uploads/?mount={missing}&from=a/b"), &[], b"").await;
    assert!(answer.expect(202).header("location").starts_with("/v2/c/blobs/uploads/"));
    world.send("POST", "/v2/c/blobs/uploads/?mount=x&from=a/b", &[], b"").await.fails(400, "DIGEST_INVALID");
}

#[tokio::test]
async fn an_upload_goes_on_after_a_restart() {
    let world = World::new().await;
    let location = start(&world, "a").await;
    world.send("PATCH", &location, &[], &vec![1; 1 << 20]).await.expect(202);
    let world = world.reopen().await;
    let status = world.get(&location).await.expect(204);
    assert_eq!(status.header("range"), format!("0-{}", (1 << 20) - 1));
    world.send("PATCH", &location, &[("content-range", "1048576-1048577")], b"ab").await.expect(202);
    let world = world.reopen().await;
    let whole = [vec![1; 1 << 20], b"abc".to_vec()].concat();
    world.send("PUT", &format!("{location}?digest={}", Digest::of(&whole)), &[], b"c").await.expect(201);
    holds(&world, "a", &whole).await;
    assert_eq!(files(&world), 0);
}

#[tokio::test]
async fn what_arrived_before_a_broken_connection_stays() {
    let world = World::new().await;
    let location = start(&world, "a").await;
    {
        let mut stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
        let head = format!("PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabcd");
        stream.write_all(head.as_bytes()).await.unwrap();
    }
    // The status waits for the broken request, whatever of it the server has seen by then.
    let mut range = String::new();
    for _ in 0..500 {
        range = world.get(&location).await.expect(204).header("range").to_owned();
        if range == "0-3" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(range, "0-3");
    world.send("PATCH", &location, &[("content-range", "4-5")], b"ef").await.expect(202);
    world.send("PUT", &format!("{location}?digest={}", Digest::of(b"abcdef")), &[], b"").await.expect(201);
}

#[tokio::test]
async fn uploads_are_bounded_and_expire() {
    let limits = Limits { uploads: 2, upload_bytes: 10, blob_bytes: 8, ..Limits::default() };
    let expiry = limits.upload_expiry;
    let world = World::with(limits).await;
    let one = start(&world, "a").await;
    let two = start(&world, "a").await;
    let answer = world.send("POST", "/v2/a/blobs/uploads/", &[], b"").await;
    answer.fails(429, "TOOMANYREQUESTS");
    assert!(!answer.header("retry-after").is_empty());
    world.send("PATCH", &one, &[], b"123456789").await.fails(413, "SIZE_INVALID");
    world.send("PATCH", &one, &[], b"12345678").await.expect(202);
    world.send("PATCH", &two, &[], b"123").await.fails(429, "TOOMANYREQUESTS");
    world.send("PATCH", &two, &[], b"12").await.expect(202);
    let direct = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(b"123456789"));
    world.send("POST", &direct, &[], b"123456789").await.fails(413, "SIZE_INVALID");

    assert_eq!(world.registry.sweep().await, 0);
    world.pass(expiry.saturating_sub(Duration::from_secs(1)));
    world.get(&two).await.expect(204);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.registry.sweep().await, 1);
    world.get(&one).await.fails(404, "BLOB_UPLOAD_UNKNOWN");
    // The bytes of the expired one are free again, and so is its place.
    world.send("PATCH", &two, &[], b"345678").await.expect(202);
    let three = start(&world, "a").await;
    world.send("PATCH", &three, &[], b"12").await.expect(202);
    // A full house makes room by itself.
    world.pass(expiry);
    start(&world, "a").await;
    assert_eq!(files(&world), 1);
}

#[tokio::test]
async fn whoever_holds_most_uploads_gives_one_up() {
    let world = World::with(Limits { uploads: 4, ..Limits::default() }).await;
    let be = |name: &str| *world.access.lock().unwrap() = Access::known(name, Rights::all());
    be("greedy");
    let first = start(&world, "a").await;
    let mut rest = Vec::new();
    for _ in 0..3 {
        world.pass(Duration::from_secs(1));
        rest.push(start(&world, "a").await);
    }
    // Nobody has more than they: no place for them.
    world.send("POST", "/v2/a/blobs/uploads/", &[], b"").await.fails(429, "TOOMANYREQUESTS");
    be("modest");
    let own = start(&world, "a").await;
    // The idlest one made room, and no other.
    world.get(&first).await.fails(404, "BLOB_UPLOAD_UNKNOWN");
    for location in rest.iter().chain([&own]) {
        world.get(location).await.expect(204);
    }
    assert_eq!(files(&world), 4);
    // Two and two are fair shares; a third caller gets one all the same.
    start(&world, "a").await;
    world.send("POST", "/v2/a/blobs/uploads/", &[], b"").await.fails(429, "TOOMANYREQUESTS");
    be("third");
    start(&world, "a").await;
    assert_eq!(files(&world), 4);
}

#[tokio::test]
async fn an_upload_whose_file_cannot_be_removed_is_swept_later() {
    let world = World::new().await;
    let location = start(&world, "a").await;
    let id = location.rsplit('/').next().unwrap();
    let entry = std::fs::read_dir(world.directory.path().join("uploads")).unwrap().next().unwrap().unwrap().path();
    assert!(entry.file_name().unwrap().to_str().unwrap().starts_with(id));
    // A directory cannot be removed as a file is.
    std::fs::remove_file(&entry).unwrap();
    std::fs::create_dir(&entry).unwrap();
    world.send("DELETE", &location, &[], b"").await.expect(204);
    world.get(&location).await.fails(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(files(&world), 1);
    std::fs::remove_dir(&entry).unwrap();
    std::fs::write(&entry, b"").unwrap();
    assert_eq!(world.registry.sweep().await, 1);
    assert_eq!(files(&world), 0);
}
