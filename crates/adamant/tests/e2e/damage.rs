//! Wrong bytes on the disk: found by the scrub, recorded once, healed by whoever has the right ones.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use adamant_digest::Digest;
use serde_json::Value;
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::client::{Answer, Ask};
use crate::process::wait_for;
use crate::template::exe;
use crate::world::{Server, fresh};

/// What the chain `damage` says: of which digest, in which state, how.
fn facts(data: &Path) -> Vec<(String, String, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let statements: Vec<Vec<u8>> = runtime.block_on(async {
        let options = SqliteConnectOptions::new().filename(data.join("adamant.db")).read_only(true);
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::query_scalar("SELECT statement FROM entries ORDER BY idx").fetch_all(&mut connection).await.unwrap()
    });
    let parsed = statements.iter().map(|bytes| serde_json::from_slice::<Value>(bytes).unwrap());
    let damages = parsed.filter(|of| of["predicateType"] == "https://adamant.dev/predicate/damage/v1");
    let text = |of: &Value, key: &str| of["predicate"][key].as_str().unwrap().to_owned();
    damages.map(|of| (text(&of, "digest"), text(&of, "state"), text(&of, "how"))).collect()
}

fn fact(digest: Digest, state: &str, how: &str) -> (String, String, String) {
    (digest.to_string(), state.to_owned(), how.to_owned())
}

fn start(data: &Path, settings: &str) -> Server {
    std::fs::create_dir_all(data).unwrap();
    std::fs::write(data.join("server.toml"), settings).unwrap();
    Server::start(data, exe(), &["--anonymous-registry"])
}

const QUICK: &str = "[store]\nscrub-mb-per-second = 1000\n";

fn push(server: &Server, bytes: &[u8]) -> Digest {
    let path = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(bytes));
    Ask::new("POST", &path).body("application/octet-stream", bytes).send(&server.url).unwrap().expect(201);
    Digest::of(bytes)
}

fn ask(server: &Server, method: &str, digest: Digest) -> std::io::Result<Answer> {
    Ask::new(method, &format!("/v2/a/blobs/{digest}")).send(&server.url)
}

fn path_of(data: &Path, digest: Digest) -> PathBuf {
    data.join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex())
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[track_caller]
fn assert_damaged(server: &Server, count: usize) {
    let metrics = Ask::new("GET", "/metrics").send(&server.url).unwrap().text();
    assert!(metrics.contains(&format!("adamant_blobs_damaged {count}\n")), "{metrics}");
}

/// Long enough for what is recorded to be looked at once more.
fn another_look() {
    std::thread::sleep(Duration::from_secs(6));
}

#[test]
fn the_scrub_finds_damage_and_the_right_bytes_heal_it() {
    let dir = fresh("damage-scrub");
    let data = dir.join("data");
    let mut server = start(&data, QUICK);
    let small = push(&server, b"some bytes");
    // Random: nothing else is like it, and it stays plain.
    let large_bytes: Vec<u8> = (0..100_000_u32).flat_map(|n| *Digest::of(&n.to_le_bytes()).as_bytes()).collect();
    let large = push(&server, &large_bytes);
    let other = push(&server, b"healthy");
    server.stop();
    for digest in [small, large] {
        flip(&path_of(&data, digest));
    }

    let began = Instant::now();
    let mut server = start(&data, QUICK);
    let found = wait_for("the damage is recorded", || Some(facts(&data)).filter(|facts| facts.len() >= 2));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let mut expected = vec![fact(small, "found", "scrub"), fact(large, "found", "scrub")];
    expected.sort();
    let mut sorted = found.clone();
    sorted.sort();
    assert_eq!(sorted, expected);
    let is_damaged = |server: &Server| {
        assert_damaged(server, 2);
        for digest in [small, large] {
            assert_eq!(ask(server, "HEAD", digest).unwrap().status, 404);
            assert_ne!(ask(server, "GET", digest).unwrap().status, 200);
        }
        assert_eq!(ask(server, "GET", other).unwrap().expect(200).body, b"healthy");
    };
    is_damaged(&server);
    server.stop();
    let mut server = start(&data, QUICK);
    is_damaged(&server);
    another_look();
    assert_eq!(facts(&data), found, "one damage, one fact");

    push(&server, b"some bytes");
    push(&server, &large_bytes);
    wait_for("the healing is recorded", || (facts(&data).len() >= 4).then_some(()));
    let is_whole = |server: &Server| {
        assert_damaged(server, 0);
        let facts = facts(&data);
        let healed: Vec<_> = facts[2..].iter().map(|(digest, state, _)| (digest.clone(), state.as_str())).collect();
        assert_eq!(facts.len(), 4, "{facts:?}");
        for digest in [small, large] {
            assert!(healed.contains(&(digest.to_string(), "healed")), "{facts:?}");
            assert_eq!(ask(server, "HEAD", digest).unwrap().status, 200);
        }
        assert_eq!(ask(server, "GET", large).unwrap().expect(200).body, large_bytes);
    };
    is_whole(&server);
    server.stop();
    let server = start(&data, QUICK);
    another_look();
    is_whole(&server);
    drop(server);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_mirror_heals_what_is_damaged_here() {
    let dir = fresh("damage-mirror");
    let there = Server::start(&dir.join("there"), exe(), &["--anonymous-registry"]);
    let upstream =
        format!("{QUICK}[[upstream]]\nname = \"mirror.example\"\nurl = \"{}\"\nrepositories = [\"none\"]\n", there.url);
    let data = dir.join("data");
    let layer = b"a layer that both have";
    let heal = |heal: bool| start(&data, &format!("{upstream}heal = {heal}\n"));
    let mut here = heal(false);
    let manifest = crate::upstream::push(&here.url, "team/app", "1", layer);
    assert_eq!(crate::upstream::push(&there.url, "team/app", "1", layer), manifest);
    let nowhere = push(&here, b"the other one does not have it");
    here.stop();
    let damaged = [Digest::of(layer), manifest, nowhere];
    for digest in damaged {
        flip(&path_of(&data, digest));
    }

    // Nobody said that the other one is a mirror.
    let mut here = heal(false);
    wait_for("the damage is recorded", || (facts(&data).len() >= 3).then_some(()));
    another_look();
    assert_damaged(&here, 3);
    here.stop();
    assert_eq!(facts(&data).len(), 3, "{:?}", facts(&data));

    let here = heal(true);
    wait_for("the mirror heals", || (facts(&data).len() >= 5).then_some(()));
    another_look();
    let facts = facts(&data);
    assert_eq!(facts.len(), 5, "{facts:?}");
    assert!(facts[..3].iter().all(|(_, state, how)| state == "found" && how == "scrub"), "{facts:?}");
    for digest in [Digest::of(layer), manifest] {
        assert!(facts[3..].contains(&fact(digest, "healed", "mirror")), "{facts:?}");
    }
    assert_damaged(&here, 1);
    let answer = Ask::new("GET", "/v2/team/app/manifests/1").send(&here.url).unwrap().expect(200);
    assert_eq!(Digest::of(&answer.body), manifest);
    assert_eq!(ask(&here, "GET", Digest::of(layer)).unwrap().expect(200).body, layer);
    assert_eq!(ask(&here, "HEAD", nowhere).unwrap().status, 404);
    drop((here, there));
    std::fs::remove_dir_all(dir).unwrap();
}
