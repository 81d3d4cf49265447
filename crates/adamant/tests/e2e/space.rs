//! What goes from the store: what nothing names, and what two people erase.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use adamant_api::{Erasing, Erasure, ErasureState, GcReport};
use adamant_digest::Digest;

use crate::client::Ask;
use crate::process::{Background, Ended, is_root, run, skipped};
use crate::world::{Server, World, fresh, up};

fn stored(data: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for shard in std::fs::read_dir(data.join("blobs/sha256")).unwrap() {
        found.extend(std::fs::read_dir(shard.unwrap().path()).unwrap().map(|entry| entry.unwrap().path()));
    }
    found.sort();
    found
}

fn push_blob(url: &str, token: &str, bytes: &[u8]) -> u16 {
    let path = format!("/v2/some/where/blobs/uploads/?digest={}", Digest::of(bytes));
    Ask::new("POST", &path).token(token).body("application/octet-stream", bytes).send(url).unwrap().status
}

#[test]
fn gc_keeps_whatever_a_release_an_environment_or_a_lock_needs() {
    let Some(world) = World::new("gc_keeps_whatever_a_release_an_environment_or_a_lock_needs") else { return };
    let before = stored(&world.data);
    assert_eq!(push_blob(&world.server.url, &world.token(), b"nobody names this"), 201);
    for path in stored(&world.data) {
        let file = std::fs::File::open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(30 * 24)).unwrap();
    }
    let gc = |arguments: &[&str]| -> GcReport {
        serde_json::from_str(&world.shop.adamant(&[&["gc", "--json"], arguments].concat()).ok()).unwrap()
    };
    let dry = gc(&["--dry-run"]);
    // Beside the stray blob, the package indexes that the lock was resolved from, which nothing names.
    assert_eq!((dry.blobs, dry.grace_s), (before.len() as u64 + 1, 7 * 24 * 3600));
    assert!((1..10).contains(&dry.removed), "{dry:?}");
    assert_eq!(stored(&world.data).len(), before.len() + 1, "a dry run removes nothing");
    assert_eq!(gc(&[]), GcReport { dry_run: false, ..dry.clone() });
    let stray = Digest::of(b"nobody names this").hex();
    assert!(!stored(&world.data).iter().any(|path| path.ends_with(&stray)));
    assert_eq!(gc(&[]).removed, 0);
    world.assert_sound("after a collection");
    // What needs the inputs and the earlier release still works.
    world.shop.change("4.0.0");
    world.shop.push().ok();
    world.shop.adamant(&["rollback", "prod"]).ok();
    world.assert_sound("after another build and a rollback");
    let metrics = crate::client::get(&format!("{}/metrics", world.server.url)).unwrap().text();
    assert!(metrics.contains(&format!("adamant_collected_blobs_total {}\n", dry.removed)), "{metrics}");
}

/// A command of the user `tester`, in whose name the server runs, too.
fn as_tester(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=tester", "--regid=tester", "--clear-groups"]).arg(program);
    command
}

#[test]
fn two_people_erase_a_blob_and_one_alone_cannot() {
    const TEST: &str = "two_people_erase_a_blob_and_one_alone_cannot";
    let known = std::fs::read_to_string("/etc/passwd").unwrap().contains("\ntester:");
    if !is_root() || !known {
        return skipped(TEST, "only root can act as a second user, and there must be one called tester");
    }
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_adamant"));
    let dir = fresh(TEST);
    let data = dir.join("data");
    std::fs::create_dir(&data).unwrap();
    std::os::unix::fs::chown(&data, Some(1001), Some(1001)).unwrap();
    if std::fs::metadata(&data).unwrap().uid() != 1001 || !run(as_tester(Path::new("ls")).arg(&exe)).err.is_empty() {
        return skipped(TEST, "the user tester cannot reach the program");
    }
    let start = || {
        let mut command = as_tester(&exe);
        command.args(up(&data, &exe, &[]).get_args()).env("ADAMANT_LOG", "info");
        Server::of(Background::spawn(&mut command), &data, &exe)
    };
    let mut server = start();
    let adamant = |tester: bool, arguments: &[&str]| -> Ended {
        let mut command = if tester { as_tester(&exe) } else { Command::new(&exe) };
        run(command.arg("--data").arg(&data).args(arguments))
    };
    let token = adamant(true, &["token"]).ok().trim().to_owned();
    let secret = b"-----BEGIN PRIVATE KEY-----";
    assert_eq!(push_blob(&server.url, &token, secret), 201);
    let digest = Digest::of(secret);
    let text = digest.to_string();
    let stays = |server: &Server, what: &str| {
        let answer =
            Ask::new("GET", &format!("/v2/some/where/blobs/{digest}")).token(&token).send(&server.url).unwrap();
        assert_eq!(answer.body, secret, "{what}");
    };

    assert!(adamant(true, &["erase", &text, "--approve"]).fails(1).contains("nobody asks"));
    adamant(true, &["erase", &text, "--reason", "a private key leaked"]).ok();
    adamant(true, &["erase", &text, "--reason", "twice"]).fails(1);
    assert!(adamant(true, &["erase", &text, "--approve"]).fails(1).contains("two people"));
    stays(&server, "one person alone erases nothing");
    adamant(false, &["erase", &text, "--withdraw"]).ok();
    assert!(adamant(false, &["erase", &text, "--approve"]).fails(1).contains("nobody asks"));
    stays(&server, "a request that was taken back erases nothing");

    adamant(true, &["erase", &text, "--reason", "a private key leaked"]).ok();
    let done: Erasing = serde_json::from_str(&adamant(false, &["erase", &text, "--approve", "--json"]).ok()).unwrap();
    assert_eq!(done.erasure.state, ErasureState::Erased);
    assert_eq!((done.erasure.by.as_str(), done.erasure.approved_by.as_deref()), ("tester", Some("root")));
    assert_eq!(done.left, Vec::<String>::new());

    let path = data.join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex());
    let gone = |server: &Server| {
        let token = adamant(true, &["token"]).ok().trim().to_owned();
        assert!(!path.exists());
        let answer =
            Ask::new("GET", &format!("/v2/some/where/blobs/{digest}")).token(&token).send(&server.url).unwrap();
        assert_eq!(answer.status, 410, "{}", answer.text());
        assert!(answer.text().contains("a private key leaked"), "{}", answer.text());
        assert_eq!(push_blob(&server.url, &token, secret), 403);
        assert!(!path.exists());
        adamant(true, &["fsck"]).ok();
        adamant(false, &["erase", &text, "--reason", "again"]).fails(1);
        let list: Vec<Erasure> = serde_json::from_str(&adamant(true, &["erase", "--list", "--json"]).ok()).unwrap();
        assert_eq!(list, std::slice::from_ref(&done.erasure));
    };
    gone(&server);

    // As after a crash between the fact and the removal: the bytes are there, and the start takes them.
    server.kill();
    std::fs::write(&path, secret).unwrap();
    std::os::unix::fs::chown(&path, Some(1001), Some(1001)).unwrap();
    assert!(adamant(true, &["fsck"]).fails(1).contains("wrong"), "bytes that must not be here are a finding");
    let mut server = start();
    gone(&server);

    // The words can be erased like anything else; the tombstone stays.
    let words = done.erasure.reason_digest.to_string();
    adamant(false, &["erase", &words, "--reason", "the words name a person"]).ok();
    adamant(true, &["erase", &words, "--approve"]).ok();
    server.stop();
    let server = start();
    let token = adamant(true, &["token"]).ok().trim().to_owned();
    let answer = Ask::new("GET", &format!("/v2/some/where/blobs/{digest}")).token(&token).send(&server.url).unwrap();
    assert_eq!(answer.status, 410);
    assert!(!answer.text().contains("leaked") && answer.text().contains("was erased, too"), "{}", answer.text());
    adamant(true, &["fsck"]).ok();
    assert_eq!(adamant(true, &["gc", "--json"]).ok().matches("\"removed\": 0").count(), 1);
}
