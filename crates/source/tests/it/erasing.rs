//! Blobs that are taken out of a repository, and what clients see of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use adamant_source::{Depth, Limits, Oid, ReadError, Repositories};

use crate::world::{Client, World};

const WHY: &str = "was erased at 2026-01-02T03:04:05Z: a key leaked";
const SECRET: &str = "-----BEGIN PRIVATE KEY----- d8f1b6c2";

/// A file that is long enough for git to store others as what differs from it.
fn secret() -> String {
    (0..400).fold(format!("{SECRET}\n"), |text, n| format!("{text}line {n} of a file that git finds similar\n"))
}

fn git(repository: &Path, args: &[&str]) -> Vec<u8> {
    let output = Command::new("git").arg("--git-dir").arg(repository).args(args).output().unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// No object, in any pack or loose, has the secret in it, and there is no pack that git does not see.
fn assert_gone(repository: &Path) {
    let all = git(repository, &["cat-file", "--batch-all-objects", "--batch"]);
    assert!(!all.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()), "an object has the secret");
    let packs = files(&repository.join("objects/pack"));
    for pack in &packs {
        assert!(pack.with_extension("idx").exists() && pack.with_extension("pack").exists(), "{packs:?}");
    }
}

/// Three commits, each in a pack of its own: the secret with another file, the file without the
/// secret, which is stored as what differs from it, and a file more. Gives the first commit and the blob.
fn pushed(client: &Client) -> (Oid, Oid) {
    client.write("conf/key", secret());
    client.write("other", "stays\n");
    let first = client.commit("one");
    client.push_ok(&["HEAD:main"]);
    client.write("conf/key", secret().replace(SECRET, "no secret"));
    client.commit("two");
    client.push_ok(&["HEAD:main"]);
    client.write("more", "more\n");
    client.commit("three");
    client.push_ok(&["HEAD:main"]);
    (first, client.ok(&["rev-parse", &format!("{first}:conf/key")]).parse().unwrap())
}

fn clone(world: &World, into: &str, args: &[&str]) -> Result<PathBuf, String> {
    let path = world.dir.path().join(into);
    let output = world
        .client()
        .command(&["clone", "-q"])
        .args(args)
        .args(["-b", "main", &world.url()])
        .arg(&path)
        .output()
        .unwrap();
    if output.status.success() { Ok(path) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_blob_is_in_no_pack_and_all_else_is() {
    let world = World::new().await;
    let client = world.client();
    let (first, blob) = pushed(&client);
    let shop = world.shop().await;
    let mut size = 0;
    shop.read_blob(blob, |part| size += part.len()).await.unwrap();
    assert_eq!(size, secret().len());
    assert_eq!(shop.object(blob).await.unwrap(), Some(("blob".to_owned(), size as u64)));
    shop.tree(first, ".").await.unwrap();
    let before = git(shop.path(), &["rev-list", "--objects", "--all"]);

    world.repositories.forbid(blob, WHY);
    assert!(!shop.verify(&[], Depth::Content).await.unwrap().is_empty(), "it is still here");
    world.repositories.erase().await.unwrap();
    assert_gone(shop.path());
    assert_eq!(shop.object(blob).await.unwrap(), None);
    assert_eq!(shop.verify(&[first, client.head()], Depth::Content).await.unwrap(), Vec::<String>::new());
    let ids = String::from_utf8(before).unwrap();
    for id in ids.lines().map(|line| &line[..40]).filter(|id| *id != blob.to_string()) {
        git(shop.path(), &["cat-file", "-e", id]);
    }
    // Nothing to do is nothing done.
    let packs = files(&shop.path().join("objects/pack"));
    world.repositories.erase().await.unwrap();
    assert_eq!(files(&shop.path().join("objects/pack")), packs);

    // What holds it is refused, from memory, too; what does not is given.
    for error in [
        shop.tree(first, ".").await.unwrap_err().to_string(),
        shop.entries(first, ".", true).await.unwrap_err().to_string(),
        shop.file(first, "conf/key", 1 << 20).await.unwrap_err().to_string(),
    ] {
        assert!(error.contains("conf/key") && error.contains(WHY), "{error}");
    }
    assert!(matches!(shop.entries(first, "conf", false).await, Err(ReadError::Erased { .. })));
    shop.entries(client.head(), ".", true).await.unwrap();
    shop.tree(client.head(), ".").await.unwrap();
    assert_eq!(shop.file(first, "other", 100).await.unwrap(), b"stays\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_without_it_work_and_those_with_it_say_why_not() {
    let world = World::new().await;
    let client = world.client();
    let (first, blob) = pushed(&client);
    world.repositories.forbid(blob, WHY);
    world.repositories.erase().await.unwrap();

    let told = clone(&world, "whole", &[]).unwrap_err();
    assert!(told.contains(WHY) && told.contains(&blob.to_string()) && told.contains("--filter=blob:none"), "{told}");
    let shallow = clone(&world, "shallow", &["--depth", "1"]).unwrap();
    assert_eq!(std::fs::read(shallow.join("more")).unwrap(), b"more\n");
    let partial = clone(&world, "partial", &["--filter=blob:none"]).unwrap();
    assert_eq!(std::fs::read(partial.join("other")).unwrap(), b"stays\n");
    let run = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(&partial).args(args).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(run(&["log", "--stat", "-1"]).0, "history is there");
    let (ok, said) = run(&["checkout", "-q", &first.to_string()]);
    assert!(!ok && said.contains(WHY), "{said}");

    // A clone from before goes on as ever.
    client.write("later", "later\n");
    client.commit("four");
    client.push_ok(&["HEAD:main"]);
    let other = world.client();
    other.ok(&["fetch", "-q", "--depth", "1", "adamant", "main"]);
    client.ok(&["fetch", "-q", "adamant"]);
    let (ok, said) = run(&["fetch", "-q", "origin"]);
    assert!(ok, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_push_brings_it_back() {
    let world = World::new().await;
    let client = world.client();
    let (first, blob) = pushed(&client);
    world.repositories.forbid(blob, WHY);
    world.repositories.erase().await.unwrap();
    let shop = world.shop().await;

    // In another place of another tree, and by its old commit from a client that has all of it.
    client.write("elsewhere", secret());
    client.commit("again");
    client.push_refused(&["HEAD:refs/heads/again"], WHY);
    assert_gone(shop.path());
    let fresh = world.client();
    fresh.write("conf/key", secret());
    fresh.commit("a history of its own");
    fresh.push_refused(&["HEAD:refs/heads/fresh"], WHY);
    assert_gone(shop.path());
    // A tree that holds it, from a client that takes it to be here.
    client.ok(&["checkout", "-q", &first.to_string()]);
    client.write("conf/more", "more\n");
    client.commit("upon the old one");
    client.push_refused(&["HEAD:refs/heads/old"], WHY);
    assert_gone(shop.path());
    // What differs little from it is a file of its own.
    client.ok(&["checkout", "-q", "-b", "good", &first.to_string()]);
    client.write("conf/key", secret().replace(SECRET, "still no secret"));
    client.commit("without it");
    client.push_ok(&["HEAD:refs/heads/good"]);
    assert_gone(shop.path());
    assert_eq!(shop.verify(&[client.head()], Depth::Content).await.unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_point_is_made_good() {
    for cut in 0..3 {
        let world = World::new().await;
        let client = world.client();
        let (first, blob) = pushed(&client);
        let dir = world.shop().await.path().to_owned();
        let pack = dir.join("objects/pack");
        let before: Vec<_> = files(&pack).into_iter().map(|path| (std::fs::read(&path).unwrap(), path)).collect();
        world.repositories.forbid(blob, WHY);
        world.repositories.erase().await.unwrap();
        // What the process had got to: the new pack is there, and more or less of the old one.
        for (bytes, path) in before {
            let kept = match path.extension().unwrap().to_str().unwrap() {
                // The index goes last, when it is durable that the pack went.
                "idx" => true,
                "pack" => cut == 0,
                _ => cut <= 1,
            };
            if kept && !path.exists() {
                std::fs::write(path, bytes).unwrap();
            }
        }
        std::fs::write(pack.join("tmp_pack_x"), SECRET).unwrap();
        let again = Repositories::open(world.dir.path().join("git"), Limits::default()).await.unwrap();
        again.forbid(blob, WHY);
        again.erase().await.unwrap();
        assert_gone(&dir);
        let problems = again.get("shop").await.unwrap().verify(&[first, client.head()], Depth::Content).await;
        assert_eq!(problems.unwrap(), Vec::<String>::new(), "cut {cut}");
    }
}
