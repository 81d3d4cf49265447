//! Requests byte by byte.

use std::io::Write;
use std::sync::Arc;

use adamant_source::{ByteStream, Encoding, Oid, Receiver, ServeError, Service};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::Notify;

use crate::world::{Act, Client, World};

const ZERO: &str = "0000000000000000000000000000000000000000";

fn line(text: &str) -> Vec<u8> {
    format!("{:04x}{text}", text.len() + 4).into_bytes()
}

fn command(old: Option<Oid>, new: Oid, capabilities: &str) -> Vec<u8> {
    let old = old.map_or_else(|| ZERO.to_owned(), |old| old.to_string());
    let mut request = line(&format!("{old} {new} refs/heads/main\0 {capabilities}"));
    request.extend_from_slice(b"0000");
    request
}

fn pack(client: &Client, objects: &str) -> Vec<u8> {
    client.feed(&["pack-objects", "--stdout", "-q"], objects.as_bytes())
}

fn everything(client: &Client) -> Vec<u8> {
    client.feed(&["pack-objects", "--stdout", "-q", "--all", "--revs"], b"")
}

fn stream(bytes: &[u8]) -> ByteStream {
    let chunks: Vec<std::io::Result<Bytes>> = bytes.chunks(777).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    futures_util::stream::iter(chunks).boxed()
}

async fn collect(mut stream: ByteStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        all.extend_from_slice(&chunk.unwrap());
    }
    all
}

async fn send(world: &World, encoding: Encoding, bytes: &[u8]) -> Result<String, ServeError> {
    let receiver = Arc::clone(&world.pipeline) as Arc<dyn Receiver>;
    let answer = world.shop().await.receive_pack("ann", encoding, stream(bytes), receiver).await?;
    Ok(String::from_utf8_lossy(&collect(answer).await).into_owned())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_is_answered_with_nothing() {
    let world = World::new().await;
    assert_eq!(send(&world, Encoding::Identity, b"0000").await.unwrap(), "");
    assert_eq!(send(&world, Encoding::Identity, b"").await.unwrap(), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packs_cut_anywhere_are_refused() {
    let world = World::new().await;
    let client = world.client();
    client.write("a", "some text\n".repeat(50));
    let commit = client.commit("One");
    let mut request = command(None, commit, "report-status");
    let start = request.len();
    request.extend(everything(&client));
    for end in (start..request.len()).step_by(29) {
        let answer = send(&world, Encoding::Identity, &request[..end]).await.unwrap();
        assert!(!answer.contains("unpack ok") && answer.contains("ng refs/heads/main"), "{end}: {answer}");
    }
    let mut flipped = request.clone();
    let middle = start + (request.len() - start) / 2;
    flipped[middle] ^= 0x10;
    let answer = send(&world, Encoding::Identity, &flipped).await.unwrap();
    assert!(answer.contains("ng refs/heads/main"), "{answer}");
    assert!(world.pipeline.seen().is_empty());
    world.assert_clean().await;
    let answer = send(&world, Encoding::Identity, &request).await.unwrap();
    assert_eq!(answer, "000eunpack ok\n0017ok refs/heads/main\n0000");
    assert_eq!(world.main().await, Some(commit));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_a_push_is_not_served() {
    let world = World::new().await;
    for bytes in [&b"GET / HTTP/1.1"[..], b"0005", b"ffff", b"0010shallow nothex", b"00010000", &[0; 64], &[0xff; 64]] {
        let error = send(&world, Encoding::Identity, bytes).await.unwrap_err();
        assert!(matches!(error, ServeError::Malformed(_)), "{error}");
    }
    let error = send(&world, Encoding::Gzip, b"this is not gzip and long enough to be sure of it").await.unwrap_err();
    assert!(matches!(error, ServeError::Malformed(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packs_with_holes_are_refused() {
    let world = World::new().await;
    let client = world.client();
    client.write("a", "1");
    client.write("dir/b", "2");
    let first = client.commit("One");
    client.write("a", "3");
    let second = client.commit("Two");
    let oid = |name: &str| client.ok(&["rev-parse", name]);
    let holes = [
        format!("{second}\n"),
        format!("{second}\n{}\n", oid("HEAD^{tree}")),
        // The parent is missing.
        format!("{second}\n{}\n{}\n{}\n{}\n", oid("HEAD^{tree}"), oid("HEAD:a"), oid("HEAD:dir"), oid("HEAD:dir/b")),
        // The tip is missing.
        format!("{first}\n{}\n{}\n{}\n{}\n", oid("HEAD~^{tree}"), oid("HEAD~:a"), oid("HEAD:dir"), oid("HEAD:dir/b")),
    ];
    for hole in holes {
        let request = [command(None, second, "report-status"), pack(&client, &hole)].concat();
        let answer = send(&world, Encoding::Identity, &request).await.unwrap();
        assert!(answer.contains("ng refs/heads/main"), "{answer}");
        world.assert_clean().await;
    }
    // A branch is at a commit, nothing else.
    let tree: Oid = oid("HEAD^{tree}").parse().unwrap();
    let request = [command(None, tree, "report-status"), everything(&client)].concat();
    let answer = send(&world, Encoding::Identity, &request).await.unwrap();
    assert!(answer.contains("would point to a tree"), "{answer}");
    assert_eq!(world.shop().await.list_kept().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gzip_in_both_directions_of_work() {
    let world = World::new().await;
    let client = world.client();
    client.write("a", "1");
    let commit = client.commit("One");
    let request = [command(None, commit, "report-status"), everything(&client)].concat();
    let answer = send(&world, Encoding::Gzip, &gzip(&request)).await.unwrap();
    assert!(answer.contains("ok refs/heads/main"), "{answer}");
    let want = [line(&format!("want {commit} no-progress\n")), b"0000".to_vec(), line("done\n")].concat();
    let answer = world.shop().await.upload_pack(None, Encoding::Gzip, stream(&gzip(&want))).await.unwrap();
    let answer = collect(answer).await;
    assert!(answer.starts_with(b"0008NAK\nPACK"), "{}", answer.escape_ascii());
    let bad = world.shop().await.upload_pack(None, Encoding::Gzip, stream(b"junk")).await.unwrap();
    let parts: Vec<_> = bad.collect().await;
    assert!(parts.last().is_some_and(Result::is_err));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_client_hears_signs_of_life() {
    let world = World::new().await;
    let client = world.client();
    client.write("a", "1");
    let commit = client.commit("One");
    let go = Arc::new(Notify::new());
    world.pipeline.then(Act::Wait(Arc::clone(&go)));
    let request = [command(None, commit, "report-status side-band-64k"), everything(&client)].concat();
    let receiver = Arc::clone(&world.pipeline) as Arc<dyn Receiver>;
    let shop = world.shop().await;
    let mut answer = shop.receive_pack("ann", Encoding::Identity, stream(&request), receiver).await.unwrap();
    let mut heard = Vec::new();
    while !heard.windows(5).any(|five| five == b"0005\x01") {
        heard.extend_from_slice(&answer.next().await.unwrap().unwrap());
    }
    assert!(String::from_utf8_lossy(&heard).contains("\u{2}waiting\n"));
    go.notify_one();
    let rest = String::from_utf8_lossy(&collect(answer).await).into_owned();
    let waited = rest.find("\u{2}waited\n").unwrap();
    assert!(waited < rest.find("ok refs/heads/main").unwrap(), "{rest}");
    assert!(rest.ends_with("00000000"), "{rest}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_at_once_are_told_to_wait() {
    let limits = adamant_source::Limits { pushes: 1, fetches: 0, ..Default::default() };
    let world = World::with(limits).await;
    let client = world.client();
    client.write("a", "1");
    let commit = client.commit("One");
    let go = Arc::new(Notify::new());
    world.pipeline.then(Act::Wait(Arc::clone(&go)));
    let request = [command(None, commit, "report-status"), everything(&client)].concat();
    let receiver = Arc::clone(&world.pipeline) as Arc<dyn Receiver>;
    let shop = world.shop().await;
    let first = shop.receive_pack("ann", Encoding::Identity, stream(&request), receiver).await.unwrap();
    let error = send(&world, Encoding::Identity, &request).await.unwrap_err();
    assert!(matches!(error, ServeError::Busy), "{error}");
    assert!(matches!(shop.advertise(Service::UploadPack, None).await, Err(ServeError::Busy)));
    go.notify_one();
    assert!(String::from_utf8_lossy(&collect(first).await).contains("ok refs/heads/main"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_client_is_given_up() {
    let limits = adamant_source::Limits { idle_time: std::time::Duration::from_millis(200), ..Default::default() };
    let world = World::with(limits).await;
    let client = world.client();
    client.write("a", "1");
    let commit = client.commit("One");
    let request = [command(None, commit, "report-status"), everything(&client)[..40].to_vec()].concat();
    let body = stream(&request).chain(futures_util::stream::pending()).boxed();
    let receiver = Arc::clone(&world.pipeline) as Arc<dyn Receiver>;
    let result = world.shop().await.receive_pack("ann", Encoding::Identity, body, receiver).await;
    assert!(matches!(result.err(), Some(ServeError::Interrupted(_))));
    world.repositories.finish().await;
    world.assert_clean().await;
}
