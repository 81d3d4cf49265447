//! Input nobody means well with, against the whole server: what it takes of memory, places and time.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use adamant_digest::Digest;
use serde_json::json;

use crate::client::{Ask, Connection};
use crate::process::wait_for;
use crate::pushes::{Content, MANIFEST, files, serve};
use crate::world::fresh;

/// Resident memory of a process, in bytes.
fn memory(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Sends bytes and gives what comes back until the server closes; a reset is an end, too.
fn raw(url: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let _ = stream.write_all(bytes);
    let mut back = Vec::new();
    let _ = stream.read_to_end(&mut back);
    String::from_utf8_lossy(&back).into_owned()
}

fn status(url: &str, path: &str) -> u16 {
    Ask::new("GET", path).send(url).unwrap().status
}

#[test]
fn hostile_requests_cost_a_registry_little() {
    let dir = fresh("registry-hostile");
    let server = serve(&dir.join("data"));
    let (url, pid) = (server.url.clone(), server.process.child.id());
    let host = url.trim_start_matches("http://").to_owned();
    assert_eq!(status(&url, "/v2/"), 200);
    let before = memory(pid);

    // 10 GB in chunks to a manifest: refused long before.
    let (sent, _) = ten_gigabytes(&url, "PUT", "/v2/a/manifests/v1");
    assert!(sent < 64, "{sent} MiB were taken");

    // Heads: too long, too many, malformed, and lengths that do not agree.
    let get = format!("GET /v2/ HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    let put = format!("PUT /v2/a/manifests/v1 HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    let many = "x: y\r\n".repeat(5000);
    for (text, codes) in [
        (format!("{get}x: {}\r\n\r\n", "y".repeat(1 << 20)), &["431", ""][..]),
        (format!("{get}{many}\r\n"), &["431", ""]),
        (format!("GET /v2/{} HTTP/1.1\r\nhost: {host}\r\n\r\n", "a/".repeat(100_000)), &["414", "431", ""]),
        (format!("{put}content-length: -1\r\n\r\n{{}}"), &["400"]),
        (format!("{put}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}"), &["400"]),
        (format!("{put}content-length: 99999999999999999999\r\n\r\n{{}}"), &["400", "413"]),
        (format!("{put}transfer-encoding: chunked\r\n\r\nzz\r\n"), &["400"]),
        (format!("{put}transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n"), &["400"]),
    ] {
        let answer = raw(&url, text.as_bytes());
        let code = answer.split(' ').nth(1).unwrap_or("");
        assert!(codes.contains(&code), "{:.80}: {:.200}", text.replace("\r\n", "|"), answer);
    }
    // Two lengths: one request, never a second one that is hidden in its body.
    let hidden = format!(
        "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nhost: {host}\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /v2/hidden/tags/list HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    );
    let answer = raw(&url, hidden.as_bytes());
    let first = answer.split(' ').nth(1).unwrap_or("");
    assert!(matches!(first, "400" | "" | "202"), "{answer}");
    if first == "202" {
        // RFC 9112, 6.1: the transfer coding wins.
        assert!(answer.matches("HTTP/1.1").count() <= 2, "{answer}");
    }

    // JSON that grows in the reader.
    let blob =
        Ask::new("POST", &format!("/v2/a/blobs/uploads/?digest={}", Digest::of(b"{}"))).body("x/y", b"{}").send(&url);
    assert_eq!(blob.unwrap().status, 201);
    let entry = json!({"mediaType": MANIFEST, "digest": Digest::of(b"absent").to_string(), "size": 1}).to_string();
    let wide = [entry.as_str()].repeat((4 << 20) / (entry.len() + 1) - 1).join(",");
    let begin = Instant::now();
    for text in [
        "[".repeat(4_000_000),
        format!("{{\"schemaVersion\":2,\"manifests\":{}", "[".repeat(4_000_000)),
        format!("{{\"schemaVersion\":2,\"manifests\":[{wide}]}}"),
        format!("{{\"schemaVersion\":2,\"annotations\":{{{}}}", "\"a\":\"b\",".repeat(400_000)),
        "{\"schemaVersion\":2,\"schemaVersion\":2,\"manifests\":[]}".to_owned(),
        format!("{{\"schemaVersion\":1e{}}}", "9".repeat(1_000_000)),
    ] {
        let answer =
            Ask::new("PUT", "/v2/a/manifests/bomb").body("application/json", text.as_bytes()).send(&url).unwrap();
        assert_eq!(answer.status, 400, "{:.60}: {:.200}", text, answer.text());
    }
    assert!(begin.elapsed() < Duration::from_mins(1));

    // Pages and ranges beyond all sense.
    let content = Content { seed: 7, length: 2 << 20 };
    let bytes = content.bytes();
    let digest = Digest::of(&bytes);
    let path = format!("/v2/a/blobs/uploads/?digest={digest}");
    assert_eq!(Ask::new("POST", &path).body("x/y", &bytes).send(&url).unwrap().status, 201);
    for n in ["0", "18446744073709551616", "99999999999999999999999999"] {
        assert!(status(&url, &format!("/v2/_catalog?n={n}")) < 500);
    }
    assert_eq!(status(&url, &format!("/v2/a/referrers/sha256:{}", "0".repeat(100_000 / 2))), 400);
    let ranges = (0..2000).map(|n| format!("{n}-{n}")).collect::<Vec<_>>().join(",");
    let mut connection = Connection::open(&url).unwrap();
    let path = format!("/v2/a/blobs/{digest}");
    for _ in 0..50 {
        let ask = Ask::new("GET", &path).header("Range", format!("bytes={ranges}"));
        let answer = connection.ask(&ask, false).unwrap();
        assert_eq!((answer.status, answer.body.len()), (200, bytes.len()));
    }
    let after = memory(pid);
    eprintln!("{} MiB before, {} MiB after", before >> 20, after >> 20);
    assert!(after < before + (96 << 20), "{} MiB grew to {} MiB", before >> 20, after >> 20);
    drop(server);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn readers_never_see_wrong_bytes_while_content_is_pushed_and_healed() {
    let dir = fresh("registry-torn");
    let data = dir.join("data");
    let server = serve(&data);
    let url = server.url.clone();
    let push = |connection: &mut Connection, bytes: &[u8]| {
        let path = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(bytes));
        let answer = connection.ask(&Ask::new("POST", &path).body("x/y", bytes), false).unwrap();
        assert_eq!(answer.status, 201, "{}", answer.text());
    };
    let mut connection = Connection::open(&url).unwrap();
    let contents = [(1, 10_000, true), (2, 1_500_000, true), (3, 10_000, false), (4, 1_500_000, false)];
    let contents = contents.map(|(seed, length, healthy)| (Content { seed, length }.bytes(), healthy));
    for (bytes, _) in &contents {
        push(&mut connection, bytes);
    }
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = contents
        .iter()
        .map(|(bytes, healthy)| {
            let (url, done, bytes, healthy) = (url.clone(), Arc::clone(&done), bytes.clone(), *healthy);
            std::thread::spawn(move || {
                let path = format!("/v2/a/blobs/{}", Digest::of(&bytes));
                let (mut right, mut refused) = (0, 0);
                while !done.load(Ordering::Relaxed) {
                    match Ask::new("GET", &path).send(&url) {
                        Ok(answer) if answer.status == 200 => {
                            assert!(answer.body == bytes, "wrong bytes with 200 and their full length");
                            right += 1;
                        }
                        other => {
                            assert!(!healthy, "a failed read of healthy content: {other:?}");
                            refused += 1;
                        }
                    }
                }
                (right, refused)
            })
        })
        .collect();
    // The healthy ones are pushed again and again; the others are damaged and healed.
    for round in 0..1000 {
        push(&mut connection, &contents[0].0);
        if round % 20 == 0 {
            push(&mut connection, &contents[1].0);
            for (bytes, _) in &contents[2..] {
                let digest = Digest::of(bytes);
                let mut wrong = bytes.clone();
                wrong[bytes.len() / 2] ^= 1;
                let beside = dir.join("wrong");
                std::fs::write(&beside, wrong).unwrap();
                let hex = digest.hex();
                std::fs::rename(beside, data.join("blobs/sha256").join(&hex[..2]).join(&hex)).unwrap();
                std::thread::sleep(Duration::from_millis(5));
                push(&mut connection, bytes);
                let answer = connection.ask(&Ask::new("GET", &format!("/v2/a/blobs/{digest}")), false).unwrap();
                assert!(answer.status == 200 && answer.body == *bytes, "not healed");
            }
        }
    }
    done.store(true, Ordering::Relaxed);
    let counts: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    eprintln!("right and refused reads: {counts:?}");
    assert!(counts.iter().all(|(right, _)| *right > 0));
    drop(server);
    std::fs::remove_dir_all(dir).unwrap();
}

/// Sends 10 GB in chunks of 1 MiB; how many MiB went, and what the server said, if it could be read.
fn ten_gigabytes(url: &str, method: &str, path: &str) -> (usize, String) {
    let host = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = [b"100000\r\n", vec![b' '; 1 << 20].as_slice(), b"\r\n"].concat();
    let sent = (0..10_000).take_while(|_| stream.write_all(&chunk).is_ok()).count();
    let mut back = Vec::new();
    let _ = stream.read_to_end(&mut back);
    (sent, String::from_utf8_lossy(&back).into_owned())
}

#[test]
fn ten_gigabytes_beyond_a_quota_are_cut_off_and_leave_nothing() {
    let dir = fresh("registry-ten-gigabytes");
    let data = dir.join("data");
    std::fs::create_dir_all(&data).unwrap();
    let settings = "[[registry.quota]]\nrepositories = \"small/*\"\nmb = 8\n";
    std::fs::write(data.join("server.toml"), settings).unwrap();
    let server = serve(&data);
    let url = server.url.clone();
    let (sent, _) = ten_gigabytes(&url, "PUT", "/v2/small/a/manifests/v1");
    assert!(sent < 64, "{sent} MiB of a manifest were taken");
    let stored = || -> u64 {
        let kept = ["blobs", "work"].map(|place| files(&data.join(place)));
        kept.iter().flatten().map(|path| std::fs::metadata(path).map_or(0, |meta| meta.len())).sum()
    };
    let before = stored();
    for round in 0..3 {
        let begun = Ask::new("POST", "/v2/small/a/blobs/uploads/").send(&url).unwrap();
        assert_eq!(begun.status, 202, "{}", begun.text());
        let location = begun.header("location").to_owned();
        let (sent, said) = ten_gigabytes(&url, "PATCH", &location);
        assert!(sent < 64, "{sent} MiB were taken: {said}");
        assert!(stored() <= before + (9 << 20), "round {round}: {} bytes are kept of it", stored() - before);
        let ended = Ask::new("DELETE", &location).send(&url).unwrap();
        assert!(matches!(ended.status, 204 | 404), "{}", ended.text());
        assert_eq!(stored(), before, "round {round}");
        let path = format!("/v2/small/a/blobs/uploads/?digest={}", Digest::of(b"other"));
        let (sent, said) = ten_gigabytes(&url, "POST", &path);
        assert!(sent < 64, "{sent} MiB were taken: {said}");
        wait_for("the end of what was cut off", || (stored() == before).then_some(()));
    }
    // Who keeps to it is served.
    let path = format!("/v2/small/a/blobs/uploads/?digest={}", Digest::of(b"small"));
    assert_eq!(Ask::new("POST", &path).body("x/y", b"small").send(&url).unwrap().status, 201);
    drop(server);
    std::fs::remove_dir_all(dir).unwrap();
}
