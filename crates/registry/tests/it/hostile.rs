//! Input nobody means well with.

use std::time::Duration;

use adamant_registry::Limits;

use crate::world::World;

#[tokio::test]
async fn names_that_try_to_leave() {
    let world = World::new().await;
    let long = "a".repeat(256);
    for name in ["..", "../..", "a/../b", "%2e%2e", "a%2f..%2fb", "A", "a//b", "a%00", "%ff", "a b", "a:b", "é", &long]
    {
        let name = name.replace(' ', "%20").replace('é', "%C3%A9");
        for (method, rest) in
            [("POST", "blobs/uploads/"), ("GET", "manifests/v1"), ("PUT", "manifests/v1"), ("GET", "tags/list")]
        {
            let text = format!(
                "{method} /v2/{name}/{rest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            );
            let answer = world.raw(text.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.1 404 "), "{name}: {answer}");
            assert!(answer.contains("\"NAME_"), "{name}: {answer}");
        }
    }
    for id in ["..", "%2e%2e%2fx", "x", &"a".repeat(32), &"a".repeat(5_000)] {
        let answer = world.send("PATCH", &format!("/v2/a/blobs/uploads/{id}"), &[], b"x").await;
        assert_eq!(answer.status, 404, "{id}");
    }
    assert_eq!(std::fs::read_dir(world.directory.path().join("uploads")).unwrap().count(), 0);
}

#[tokio::test]
async fn garbage_in_headers() {
    let world = World::new().await;
    let digest = world.push_blob("a", b"0123456789").await;
    for range in ["bytes=", "bytes=a-b", "bytes=5", "x", "bytes=-", "bytes=1-2,4-5,7-8"] {
        let answer = world.send("GET", &format!("/v2/a/blobs/{digest}"), &[("range", range)], b"").await;
        assert_eq!(answer.expect(200).bytes(), b"0123456789", "{range}");
    }
    world
        .send("GET", &format!("/v2/a/blobs/{digest}"), &[("range", "bytes=99999999999999999999-0")], b"")
        .await
        .expect(416);
    for text in [
        format!("GET /v2/a/blobs/{digest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nrange: \u{ff}\r\nif-none-match: \u{fe}\r\n\r\n"),
        format!("GET /v2/a/blobs/{digest}?n=%zz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
        "PUT /v2/a/manifests/v1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: \u{fe}\r\ncontent-length: 2\r\n\r\n{}".to_owned(),
        "GET /v2/%zz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(),
        "BREW /v2/a/manifests/v1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(),
    ] {
        let answer = world.raw(text.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 2") || answer.starts_with("HTTP/1.1 4"), "{text}: {answer}");
    }
}

#[tokio::test]
async fn an_endless_manifest_is_cut_off() {
    let world = World::new().await;
    let announced =
        "PUT /v2/a/manifests/v1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 10000000000\r\n\r\n{";
    let answer = world.raw(announced.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("longer than 4194304 bytes"), "{answer}");
    let mut chunked =
        b"PUT /v2/a/manifests/v1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_vec();
    let chunk = vec![b' '; 1 << 20];
    for _ in 0..16 {
        chunked.extend_from_slice(b"100000\r\n");
        chunked.extend_from_slice(&chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    // The answer may be lost when the connection is cut while we still send.
    let answer = world.raw(&chunked).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413 "), "{answer}");
    world.get("/v2/a/manifests/v1").await.fails(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn a_refused_body_is_read_so_that_its_sender_sees_why() {
    let world = World::new().await;
    let mut requests = format!("PUT /v2/a/manifests/.x HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 3 << 20);
    requests.push_str(&" ".repeat(3 << 20));
    requests.push_str("GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let answers = world.raw(requests.as_bytes()).await;
    assert!(answers.starts_with("HTTP/1.1 400 "), "{answers}");
    assert!(answers.contains("HTTP/1.1 200 "), "the connection goes on: {answers}");
    // Who asks before sending is not told to send it for nothing.
    let asked = b"PUT /v2/a/manifests/.x HTTP/1.1\r\nhost: x\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n";
    let answer = world.raw(asked).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn wrong_lengths_store_nothing() {
    let world = World::new().await;
    let digest = adamant_digest::Digest::of(b"abc");
    let short = format!(
        "POST /v2/a/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 4\r\n\r\nabc"
    );
    let answer = world.cut(short.as_bytes()).await;
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    let broken = format!(
        "POST /v2/a/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nzz"
    );
    let answer = world.cut(broken.as_bytes()).await;
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    world.get(&format!("/v2/a/blobs/{digest}")).await.fails(404, "BLOB_UNKNOWN");
    // What was not kept left nothing behind.
    for _ in 0..500 {
        if std::fs::read_dir(world.directory.path().join("blobs/tmp")).unwrap().count() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("a temporary file is left");
}

#[tokio::test]
async fn a_silent_client_is_given_up() {
    let world = World::with(Limits { idle: Duration::from_millis(100), ..Limits::default() }).await;
    let mut stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
    let head = b"PUT /v2/a/manifests/v1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 10\r\n\r\n{";
    tokio::io::AsyncWriteExt::write_all(&mut stream, head).await.unwrap();
    let mut back = vec![0; 12];
    let read = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut back);
    tokio::time::timeout(Duration::from_secs(10), read).await.unwrap().unwrap();
    assert_eq!(back, b"HTTP/1.1 408");
}
