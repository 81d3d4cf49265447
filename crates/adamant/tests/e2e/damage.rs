//! Wrong bytes on the disk: found by the scrub, recorded once, healed by whoever has the right ones.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use adamant_api::FsckReport;
use adamant_digest::{Digest, Sha512Hasher};
use serde_json::{Value, json};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::client::{Answer, Ask};
use crate::process::{run, wait_for};
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

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn put(server: &Server, name: &str, manifest: &Value) -> Digest {
    let bytes = serde_json::to_vec(manifest).unwrap();
    let name = if name.is_empty() { Digest::of(&bytes).to_string() } else { name.to_owned() };
    let kind = manifest["mediaType"].as_str().unwrap();
    Ask::new("PUT", &format!("/v2/a/manifests/{name}")).body(kind, &bytes).send(&server.url).unwrap().expect(201);
    Digest::of(&bytes)
}

fn described(kind: &str, digest: impl std::fmt::Display, size: usize) -> Value {
    json!({"mediaType": kind, "digest": digest.to_string(), "size": size})
}

/// What a check beside the server finds, and what it notes.
fn fsck(server: &Server) -> (Vec<String>, Vec<String>) {
    let ended = run(Command::new(&server.exe).args(["fsck", "--json", "--data"]).arg(&server.data));
    let report: FsckReport = serde_json::from_str(&ended.out).unwrap_or_else(|e| panic!("{e}: {}", ended.err));
    assert_eq!(ended.code, i32::from(!report.findings.is_empty()), "{}", ended.err);
    let text = |of: Vec<adamant_api::Finding>| of.iter().map(|f| format!("{}: {}", f.object, f.problem)).collect();
    (text(report.findings), text(report.notes))
}

#[test]
fn fsck_beside_a_server_names_whatever_of_the_registry_was_changed() {
    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    let dir = fresh("damage-fsck");
    let data = dir.join("data");
    let server = start(&data, "[store]\nscrub-mb-per-second = 0\n");
    let base: Vec<u8> = (0..70_000_u32).flat_map(|n| *Digest::of(&n.to_le_bytes()).as_bytes()).collect();
    let mut like = base.clone();
    for (n, byte) in like[1_000_000..1_050_000].iter_mut().enumerate() {
        *byte = base[n] ^ 0x5a;
    }
    let (config, small) = (push(&server, b"{}"), push(&server, b"by sha512"));
    let (base_digest, like_digest) = (push(&server, &base), push(&server, &like));
    let mut hasher = Sha512Hasher::new();
    hasher.update(b"by sha512");
    let second = hasher.finish();
    let path = format!("/v2/a/blobs/uploads/?digest={second}");
    Ask::new("POST", &path).body("x/y", b"by sha512").send(&server.url).unwrap().expect(201);
    let image = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": described("application/vnd.oci.image.config.v1+json", config, 2),
        "layers": [
            described(LAYER, base_digest, base.len()),
            described(LAYER, like_digest, like.len()),
            described(LAYER, second, 9),
        ],
    });
    let size = serde_json::to_vec(&image).unwrap().len();
    let image = put(&server, "1", &image);
    let loose = push(&server, b"in an index alone");
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [described(MANIFEST, image, size), described("text/plain", loose, 17)],
    });
    let index = put(&server, "all", &index);
    let signature = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "text/signature",
        "config": described("application/vnd.oci.empty.v1+json", config, 2),
        "layers": [described("text/plain", small, 9)],
        "subject": described(MANIFEST, image, size),
    });
    let signature = put(&server, "", &signature);
    let blobs = data.join("blobs");
    let files = |what: &str| -> Vec<PathBuf> {
        let shards = std::fs::read_dir(blobs.join(what)).into_iter().flatten().flatten();
        shards.flat_map(|shard| std::fs::read_dir(shard.path()).unwrap().flatten().map(|file| file.path())).collect()
    };
    let recipe = wait_for("the recipe", || files("patched").pop());
    // The plain form goes after the recipe has its name.
    wait_for("the plain form goes", || (!path_of(&data, like_digest).exists()).then_some(()));
    let [pieces] = &files("pieces")[..] else { panic!("{:?}", files("pieces")) };
    let [alias] = &files("sha512")[..] else { panic!("{:?}", files("sha512")) };
    assert_eq!(fsck(&server), (vec![], vec![]));

    let check = |what: &str, path: &Path, change: &dyn Fn(&Path), expect: &[&str]| {
        let aside = dir.join("right");
        std::fs::copy(path, &aside).unwrap();
        change(path);
        let (found, _) = fsck(&server);
        // By renaming, as the file may not be there or not be writable.
        std::fs::rename(aside, path).unwrap();
        let named = found.iter().any(|line| expect.iter().all(|part| line.contains(part)));
        assert!(named, "{what}: none of {found:#?} says {expect:?}");
        assert_eq!(fsck(&server).0, Vec::<String>::new(), "after {what}");
    };
    let remove = |path: &Path| std::fs::remove_file(path).unwrap();
    let write = |path: &Path, text: &str| {
        remove(path);
        std::fs::write(path, text).unwrap();
    };
    let text = |digest: Digest| digest.to_string();
    let like_text = text(like_digest);
    check("flipped pieces", pieces, &flip, &[&like_text, "damaged"]);
    check("no pieces", pieces, &remove, &[&like_text, "damaged"]);
    check("a flipped recipe", &recipe, &flip, &[&like_text, "damaged"]);
    check("no recipe", &recipe, &remove, &[&like_text, "missing", &text(image)]);
    check("what a recipe rests on", &path_of(&data, base_digest), &flip, &[&like_text, "damaged"]);
    let name = format!("name {second}");
    check("a broken second name", alias, &|path| write(path, "x"), &[&name, "damaged"]);
    let elsewhere = |path: &Path| write(path, &format!("{config}\n"));
    check("a second name that leads elsewhere", alias, &elsewhere, &[&name, "other bytes"]);
    check("no second name", alias, &remove, &[&second.to_string(), "missing", &text(image)]);
    check("a flipped manifest", &path_of(&data, image), &flip, &[&text(image), "damaged"]);
    check("no manifest", &path_of(&data, index), &remove, &[&text(index), "missing", "tag a@"]);
    check("a part of an index", &path_of(&data, loose), &remove, &[&text(loose), "missing", &text(index)]);
    check("a child of an index", &path_of(&data, image), &remove, &[&text(image), "missing"]);
    check("a referrer", &path_of(&data, signature), &remove, &[&text(signature), "missing", "tag a@"]);

    // The table of tags, changed under the server's eyes.
    crate::tampering::sql(&data, "UPDATE bindings SET name = 'a:2' WHERE name = 'a:1'");
    let (found, _) = fsck(&server);
    crate::tampering::sql(&data, "UPDATE bindings SET name = 'a:1' WHERE name = 'a:2'");
    for (name, problem) in [("bindings tag a:1", "missing"), ("bindings tag a:2", "no entry says so")] {
        assert!(found.iter().any(|line| line.contains(name) && line.contains(problem)), "{found:#?}");
    }
    assert_eq!(fsck(&server).0, Vec::<String>::new());

    // What is aside is a finding only where something needs the blob.
    flip(&path_of(&data, small));
    assert_ne!(ask(&server, "GET", small).unwrap().status, 200);
    let (found, notes) = fsck(&server);
    assert!(found.iter().any(|line| line.contains(&text(small)) && line.contains("missing")), "{found:#?}");
    assert!(notes.len() == 1 && notes[0].contains("plain-") && notes[0].contains("not back"), "{notes:?}");
    push(&server, b"by sha512");
    let (found, notes) = fsck(&server);
    assert_eq!(found, Vec::<String>::new());
    assert!(notes.len() == 1 && notes[0].contains("was healed"), "{notes:?}");
    drop(server);
    std::fs::remove_dir_all(dir).unwrap();
}
