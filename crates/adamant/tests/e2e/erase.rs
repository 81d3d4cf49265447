//! A secret goes from everywhere: blobs by all their names, git, what was moved aside; by two people
//! with tokens of their own; whenever the server is killed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use adamant_api::{Erasing, Erasure, ErasureState};
use adamant_digest::{Digest, Sha512};

use crate::client::Ask;
use crate::process::{Ended, run};
use crate::template::exe;
use crate::world::{Repo, Server, World, fresh};

/// Somebody with a named token.
pub(crate) struct Person {
    pub(crate) token: String,
    file: PathBuf,
}

impl Person {
    pub(crate) fn new(data: &Path, name: &str, person: &str) -> Self {
        let arguments = ["token", "create", name, "--scope", "erase", "--scope", "*:pull,push", "--person", person];
        let made = run(Command::new(exe()).args(arguments).arg("--data").arg(data).env("ADAMANT_LOG", "error"));
        let token = made.ok().trim().to_owned();
        let file = data.with_file_name(format!("{name}.token"));
        std::fs::write(&file, format!("{token}\n")).unwrap();
        Self { token, file }
    }

    pub(crate) fn erase(&self, url: &str, arguments: &[&str]) -> Ended {
        let mut command = Command::new(exe());
        command.arg("erase").args(arguments).args(["--server", url, "--token-file"]).arg(&self.file);
        run(command.env("ADAMANT_LOG", "error"))
    }
}

/// Files below `dir` that hold `secret`, and git objects of its repositories.
fn holders(dir: &Path, secret: &[u8]) -> Vec<String> {
    let holds = |bytes: &[u8]| bytes.windows(secret.len()).any(|part| part == secret);
    let (mut found, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                if path.extension().is_some_and(|extension| extension == "git") {
                    let objects = ["cat-file", "--batch-all-objects", "--batch"];
                    let output = Command::new("git").arg("--git-dir").arg(&path).args(objects).output().unwrap();
                    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                    found.extend(holds(&output.stdout).then(|| format!("objects of {}", path.display())));
                }
                dirs.push(path);
            } else if kind.is_file() && std::fs::read(&path).is_ok_and(|bytes| holds(&bytes)) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

fn push_blob(url: &str, token: &str, name: &str, bytes: &[u8]) -> u16 {
    let path = format!("/v2/some/where/blobs/uploads/?digest={name}");
    Ask::new("POST", &path).token(token).body("application/octet-stream", bytes).send(url).unwrap().status
}

fn get_blob(url: &str, token: &str, name: &str) -> (u16, String) {
    let path = format!("/v2/some/where/blobs/{name}");
    let answer = Ask::new("GET", &path).token(token).send(url).unwrap();
    (answer.status, answer.text())
}

#[test]
fn a_secret_in_a_commit_is_erased_by_two_named_tokens() {
    const SECRET: &str = "password = 5f0c9c1f-hunter2-0b6d";
    let Some(mut world) = World::new("a_secret_in_a_commit_is_erased_by_two_named_tokens") else { return };
    let shop = &world.shop;
    shop.write("conf/secret", SECRET);
    let with = shop.commit("with a secret");
    shop.push().ok();
    std::fs::remove_file(shop.dir.join("conf/secret")).unwrap();
    shop.change("7.0.0");
    shop.push().ok();
    let oid = shop.git(&["rev-parse", &format!("{with}:conf/secret")]).ok().trim().to_owned();
    let url = world.server.url.clone();
    let (digest, other) = (Digest::of(SECRET.as_bytes()), Sha512::of(SECRET.as_bytes()).to_string());

    let bob = Person::new(&world.data, "bob", "bob");
    let laptop = Person::new(&world.data, "bob-laptop", "bob");
    let carol = Person::new(&world.data, "carol", "carol");
    assert_eq!(push_blob(&url, &bob.token, &digest.to_string(), SECRET.as_bytes()), 201);
    assert_eq!(get_blob(&url, &bob.token, &digest.to_string()).0, 200);
    assert!(holders(&world.data, SECRET.as_bytes()).len() >= 2);

    // A token without the scope, one without a person, what is no file, and one person twice.
    let refused = shop.adamant(&["token", "create", "nobody", "--scope", "erase"]);
    assert!(refused.fails(2).contains("whose it is"));
    let ci = shop.adamant(&["token", "create", "ci", "--scope", "*:pull"]).ok();
    let answer = Ask::new("GET", "/api/v1/erasures").token(ci.trim()).send(&url).unwrap();
    assert_eq!(answer.status, 403, "{}", answer.text());
    let answer = Ask::new("GET", "/api/v1/projects").token(&bob.token).send(&url).unwrap();
    assert_eq!(answer.status, 401, "the scope is for erasures alone: {}", answer.text());
    let git = ["--git", &oid, "--project", "shop"];
    let tree = shop.git(&["rev-parse", &format!("{with}:conf")]).ok().trim().to_owned();
    let refused = bob.erase(&url, &["--git", &tree, "--project", "shop", "--reason", "x"]);
    assert!(refused.fails(2).contains("is a tree"));
    bob.erase(&url, &[&git[..], &["--reason", "a password leaked"]].concat()).ok();
    for again in [&bob, &laptop] {
        assert!(again.erase(&url, &[&git[..], &["--approve"]].concat()).fails(1).contains("two people"));
    }
    // Who made both tokens could be using one of them.
    assert!(shop.adamant(&["erase", &digest.to_string(), "--approve"]).fails(1).contains("two people"));
    assert_eq!(get_blob(&url, &bob.token, &digest.to_string()).0, 200);
    let done = carol.erase(&url, &[&git[..], &["--approve", "--json"]].concat()).ok();
    let done: Erasing = serde_json::from_str(&done).unwrap();
    assert_eq!((done.erasure.state, done.erasure.git_blob.as_deref()), (ErasureState::Erased, Some(&*oid)));
    assert_eq!((done.erasure.by.as_str(), done.erasure.approved_by.as_deref()), ("token:bob", Some("token:carol")));
    assert_eq!(done.left, Vec::<String>::new());

    for restarted in [false, true] {
        if restarted {
            world.server.kill();
            world.restart();
        }
        let (shop, url) = (&world.shop, world.server.url.clone());
        assert_eq!(holders(&world.data, SECRET.as_bytes()), Vec::<String>::new());
        for name in [digest.to_string(), other.clone()] {
            let (status, text) = get_blob(&url, &bob.token, &name);
            assert!(status == 410 && text.contains("a password leaked"), "{name}: {status} {text}");
            assert_eq!(push_blob(&url, &bob.token, &name, SECRET.as_bytes()), 403);
        }
        world.assert_sound("after an erasure");
        let list: Vec<Erasure> = serde_json::from_str(&bob.erase(&url, &["--list", "--json"]).ok()).unwrap();
        assert_eq!(list, std::slice::from_ref(&done.erasure));
        // The bytes come back by no push, and a commit that still has them is not built.
        shop.git(&["checkout", "--quiet", "--detach", "main"]).ok();
        shop.write("elsewhere", SECRET);
        shop.commit("the secret again");
        let pushed = shop.git(&["push", "adamant", "HEAD:refs/heads/again"]);
        assert!(pushed.fails(1).contains("a password leaked"));
        shop.git(&["checkout", "--quiet", "--detach", &with]).ok();
        shop.git(&["commit", "--quiet", "--allow-empty", "-m", "still with a secret"]).ok();
        let pushed = shop.git(&["push", "adamant", "HEAD:refs/heads/still"]);
        let said = pushed.fails(1);
        assert!(said.contains("a password leaked") && said.contains("conf/secret"), "{said}");
        shop.git(&["checkout", "--quiet", "main"]).ok();
        assert_eq!(holders(&world.data, SECRET.as_bytes()), Vec::<String>::new());
    }
    // What does not hold it goes on.
    world.shop.change("8.0.0");
    world.shop.push().ok();
    world.assert_sound("after another push");
}

#[test]
fn wrong_bytes_that_were_moved_aside_go_with_the_blob() {
    let data = fresh("wrong_bytes_that_were_moved_aside_go_with_the_blob").join("data");
    let server = Server::start(&data, exe(), &[]);
    let (bob, carol) = (Person::new(&data, "bob", "bob"), Person::new(&data, "carol", "carol"));
    let secret = b"-----BEGIN PRIVATE KEY----- 77aa".repeat(100);
    let digest = Digest::of(&secret).to_string();
    assert_eq!(push_blob(&server.url, &bob.token, &digest, &secret), 201);
    // Some bytes of it rot, are found wrong and moved aside; the right ones come back.
    let hex = Digest::of(&secret).hex();
    let path = data.join("blobs/sha256").join(&hex[..2]).join(&hex);
    let mut wrong = secret.clone();
    wrong[0] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, wrong).unwrap();
    assert_eq!(get_blob(&server.url, &bob.token, &digest).0, 500);
    assert_eq!(std::fs::read_dir(data.join("blobs/quarantine")).unwrap().count(), 1);
    assert_eq!(push_blob(&server.url, &bob.token, &digest, &secret), 201);
    assert_eq!(holders(&data, &secret[100..200]).len(), 2);
    bob.erase(&server.url, &[&digest, "--reason", "a key"]).ok();
    carol.erase(&server.url, &[&digest, "--approve"]).ok();
    assert_eq!(holders(&data, &secret[100..200]), Vec::<String>::new());
    assert_eq!(get_blob(&server.url, &bob.token, &digest).0, 410);
}

/// The fact comes first, then the bytes: after a kill at any time the erasure is recorded and completed
/// by the start, or not recorded and everything is there.
#[test]
fn a_kill_during_an_erasure_leaves_all_or_nothing() {
    let dir = fresh("a_kill_during_an_erasure_leaves_all_or_nothing");
    let data = dir.join("data");
    let mut server = Server::start(&data, exe(), &[]);
    let (bob, carol) = (Person::new(&data, "bob", "bob"), Person::new(&data, "carol", "carol"));
    let repo = Repo::create(&dir.join("shop"), &data, exe());
    let control = || run(Command::new(exe()).arg("token").arg("--data").arg(&data)).ok().trim().to_owned();
    let project = Ask::new("POST", "/api/v1/projects").body("application/json", br#"{"name":"shop"}"#);
    project.token(&control()).send(&server.url).unwrap().expect(200);
    let mut outcomes = [0, 0];
    // Later after a kill that came too early, earlier after one that came too late.
    let mut delay = Duration::from_millis(4);
    for round in 0..10 {
        let secret = format!("round {round}: {}", "secret bytes ".repeat(20_000));
        // Each on its own: a history that holds what was erased is not taken again.
        repo.git(&["checkout", "--quiet", "--orphan", &format!("round-{round}")]).ok();
        repo.write("file", &secret);
        repo.commit("a secret");
        // Without a recipe it is not built, and what was received is kept all the same.
        let remote = server.url.replace("http://", &format!("http://me:{}@", control()));
        repo.git(&["push", &format!("{remote}/git/shop.git"), "HEAD:refs/heads/main"]).fails(1);
        let digest = Digest::of(secret.as_bytes()).to_string();
        assert_eq!(push_blob(&server.url, &bob.token, &digest, secret.as_bytes()), 201);
        let mark = &secret.as_bytes()[..40];
        assert_eq!(holders(&data, mark).len(), 2, "round {round}: as a blob and in git");
        bob.erase(&server.url, &[&digest, "--reason", "a key"]).ok();
        let (url, token) = (server.url.clone(), carol.token.clone());
        let body = format!(r#"{{"digest":"{digest}","action":"approve"}}"#);
        let approval = std::thread::spawn(move || {
            let ask = Ask::new("POST", "/api/v1/erasures").token(&token).body("application/json", body.as_bytes());
            ask.send(&url).is_ok_and(|answer| answer.status == 200)
        });
        std::thread::sleep(delay);
        server.kill();
        let acknowledged = approval.join().unwrap();
        server = Server::start(&data, exe(), &[]);
        let (status, text) = get_blob(&server.url, &bob.token, &digest);
        outcomes[usize::from(status == 410)] += 1;
        if status == 410 {
            assert_eq!(holders(&data, mark), Vec::<String>::new(), "round {round}");
            delay = delay.mul_f64(0.6);
        } else {
            assert!(status == 200 && !acknowledged, "round {round}: {status} {text}");
            assert_eq!(holders(&data, mark).len(), 2, "round {round}: nothing is half gone");
            carol.erase(&server.url, &[&digest, "--approve"]).ok();
            assert_eq!(holders(&data, mark), Vec::<String>::new(), "round {round}");
            delay = delay.mul_f64(2.5);
        }
        let fsck = run(Command::new(exe()).args(["fsck", "--data"]).arg(&data));
        assert_eq!(fsck.code, 0, "round {round}: {}{}", fsck.out, fsck.err);
    }
    assert!(outcomes.iter().all(|count| *count > 0), "the kills came before and after the fact: {outcomes:?}");
}
