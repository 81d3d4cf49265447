//! What the rest of the server reads, and what survives a restart.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;

use adamant_digest::{Digest, EntryKind};
use adamant_source::{Depth, ExportError, Limits, Oid, OpenError, ReadError, RefError, Repositories, TreeEntryKind};

use crate::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_logs_and_files() {
    let world = World::new().await;
    let client = world.client();
    let shop = world.shop().await;
    client.write("a.txt", "one\n");
    client.write("dir/sub/b", "b");
    let first = client.commit("First\n\nbody");
    client.write("a.txt", "two\n");
    let second = client.commit("Second");
    client.write("dir/c d", "c");
    let third = client.commit("Third");
    client.ok(&["checkout", "-q", "-b", "side", &first.to_string()]);
    client.write("x", "x");
    let side = client.commit("Side");
    client.ok(&["tag", "-a", "-m", "T", "v1"]);
    client.push_ok(&["main", "side", "v1"]);

    let commit = shop.commit(second).await.unwrap();
    assert_eq!((commit.subject.as_str(), commit.author.as_str()), ("Second", "Ann <ann@example.org>"));
    assert_eq!((commit.parents.as_slice(), commit.time > 1_000_000_000), (&[first][..], true));
    let log = shop.log(Some(first), third, 1).await.unwrap();
    assert_eq!((log.count, log.commits.len(), log.commits[0].id), (2, 1, third));
    assert_eq!(shop.log(None, third, 10).await.unwrap().count, 3);
    assert_eq!(shop.file(first, "a.txt", 10).await.unwrap(), b"one\n");
    assert_eq!(shop.file(third, "dir/c d", 10).await.unwrap(), b"c");
    assert!(matches!(shop.file(first, "a.txt", 3).await, Err(ReadError::TooLarge { size: 4, .. })));
    assert!(matches!(shop.file(first, "nope", 3).await, Err(ReadError::NoPath { .. })));
    assert!(matches!(shop.file(first, "dir", 3).await, Err(ReadError::Kind { found: "directory", .. })));
    assert!(matches!(shop.file(first, "../x", 3).await, Err(ReadError::BadPath(_))));
    assert!(shop.exists(first, "dir/sub/b").await.unwrap());
    assert!(!shop.exists(first, "dir/sub/b/c").await.unwrap());
    assert!(!shop.exists(first, "*").await.unwrap());
    let names = async |dir: &str, deep| -> Vec<String> {
        shop.entries(third, dir, deep).await.unwrap().into_iter().map(|entry| entry.path).collect()
    };
    assert_eq!(names(".", false).await, ["a.txt", "dir"]);
    assert_eq!(names("dir", false).await, ["c d", "sub"]);
    assert_eq!(names(".", true).await, ["a.txt", "dir", "dir/c d", "dir/sub", "dir/sub/b"]);
    assert_eq!(shop.entry(third, "dir").await.unwrap().kind, TreeEntryKind::Dir);
    assert!(shop.is_ancestor(first, third).await.unwrap());
    assert!(!shop.is_ancestor(third, first).await.unwrap());
    assert_eq!(shop.merge_base(third, side).await.unwrap(), Some(first));
    assert_eq!(shop.changed(first, third, 10).await.unwrap(), ["a.txt", "dir/c d"]);
    assert_eq!(shop.changed(first, third, 1).await.unwrap(), ["a.txt"]);
    for (name, expect) in [
        ("main", Some(third)),
        ("v1", Some(side)),
        (&second.short(), Some(second)),
        (&second.to_string(), Some(second)),
        ("nope", None),
        ("main~1", None),
        ("--all", None),
        ("", None),
    ] {
        assert_eq!(shop.resolve(name).await.unwrap(), expect, "{name}");
    }
    let unknown: Oid = "1234567890123456789012345678901234567890".parse().unwrap();
    assert!(matches!(shop.commit(unknown).await, Err(ReadError::NoCommit(_))));
    assert!(matches!(shop.log(Some(unknown), first, 1).await, Err(ReadError::NoCommit(c)) if c == unknown));
    assert!(matches!(shop.exists(unknown, "a").await, Err(ReadError::NoCommit(_))));
    assert!(matches!(shop.tree(unknown, ".").await, Err(ExportError::Read(ReadError::NoCommit(_)))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn export_writes_what_the_digest_says() {
    let world = World::new().await;
    let client = world.client();
    let shop = world.shop().await;
    client.write("a", "A");
    client.write("bin/run", "#!/bin/sh\n");
    client.write("empty", "");
    client.write("Case", "1");
    client.write("case", "2");
    for n in 0..200 {
        client.write(&format!("many/{n}"), format!("{n}\n"));
    }
    let run = client.path().join("bin/run");
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("../a", client.path().join("bin/link")).unwrap();
    std::os::unix::fs::symlink("bin", client.path().join("dirlink")).unwrap();
    std::os::unix::fs::symlink("not-there", client.path().join("dangling")).unwrap();
    let commit = client.commit("Files");
    client.push_ok(&["main"]);

    let digested = shop.tree(commit, ".").await.unwrap();
    let dest = world.dir.path().join("out");
    let written = shop.export(commit, ".", &dest).await.unwrap();
    assert_eq!(digested, written);
    assert_eq!(shop.tree(commit, ".").await.unwrap().digest(), written.digest());
    for (path, entry) in written.iter() {
        let on_disk = std::fs::symlink_metadata(dest.join(path)).unwrap();
        match &entry.kind {
            EntryKind::Dir => assert!(on_disk.is_dir()),
            EntryKind::File { digest, size } => {
                let bytes = std::fs::read(dest.join(path)).unwrap();
                assert_eq!((Digest::of(&bytes), bytes.len() as u64), (*digest, *size));
            }
            EntryKind::Symlink { target } => {
                assert_eq!(std::fs::read_link(dest.join(path)).unwrap().to_str().unwrap(), target);
                continue;
            }
        }
        assert_eq!(on_disk.permissions().mode() & 0o7777, entry.mode, "{path}");
    }
    assert_eq!(written.len(), 200 + 10);
    assert_eq!(written.entry("bin/run").unwrap().mode, 0o755);
    assert_eq!(std::fs::read(dest.join("Case")).unwrap(), b"1");
    assert!(matches!(shop.export(commit, ".", &dest).await, Err(ExportError::NotEmpty(_))));

    let part = world.dir.path().join("part");
    let many = shop.export(commit, "many", &part).await.unwrap();
    assert_eq!(many.len(), 200);
    assert!(part.join("199").is_file());
    assert!(matches!(shop.tree(commit, "a").await, Err(ExportError::Read(ReadError::Kind { .. }))));

    // Another commit with one file changed.
    client.write("a", "B");
    let next = client.commit("Next");
    client.push_ok(&["main"]);
    let next = shop.tree(next, ".").await.unwrap();
    assert_eq!(next.first_difference(&written), Some("a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refs_move_by_compare_and_swap() {
    let world = World::new().await;
    let client = world.client();
    let shop = world.shop().await;
    client.write("a", "1");
    let first = client.commit("One");
    client.write("a", "2");
    let second = client.commit("Two");
    client.push_ok(&["main"]);
    shop.set_branch("old", None, first).await.unwrap();
    shop.set_branch("old", None, first).await.unwrap();
    let error = shop.set_branch("old", None, second).await.unwrap_err();
    assert!(matches!(error, RefError::Moved { found: Some(found), .. } if found == first), "{error}");
    shop.set_branch("old", Some(first), second).await.unwrap();
    assert!(matches!(shop.remove_branch("old", first).await, Err(RefError::Moved { .. })));
    shop.remove_branch("old", second).await.unwrap();
    shop.remove_branch("old", second).await.unwrap();
    assert!(matches!(shop.set_branch("a..b", None, first).await, Err(RefError::BadName(_))));
    let unknown: Oid = "1234567890123456789012345678901234567890".parse().unwrap();
    assert!(matches!(shop.set_branch("x", None, unknown).await, Err(RefError::NoCommit(_))));
    let tree = shop.commit(first).await.unwrap().tree;
    assert!(matches!(shop.keep(tree).await, Err(RefError::NoCommit(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_kept_commits_are_packed() {
    let world = World::new().await;
    let client = world.client();
    let shop = world.shop().await;
    let mut input = String::new();
    for n in 0..600 {
        let time = 1_700_000_000 + n;
        let _ = writeln!(input, "commit refs/heads/main\ncommitter Bob <bob@example.org> {time} +0000\ndata 1\nx");
    }
    client.feed(&["fast-import", "--quiet"], input.as_bytes());
    client.push_ok(&["main"]);
    let all: Vec<Oid> = client.ok(&["rev-list", "main"]).lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(all.len(), 600);
    let dir = shop.path().join("refs/adamant/commits");
    for oid in &all[1..] {
        std::fs::write(dir.join(oid.to_string()), format!("{oid}\n")).unwrap();
    }
    shop.keep(all[0]).await.unwrap();
    assert!(!dir.exists() || std::fs::read_dir(&dir).unwrap().count() == 0);
    assert_eq!(shop.list_kept().await.unwrap().len(), 600);
    shop.keep(all[5]).await.unwrap();
    assert_eq!(shop.verify(&all, Depth::Content).await.unwrap(), Vec::<String>::new());
    client.write("a", "1");
    client.commit("More");
    client.push_ok(&["main"]);
    assert_eq!(shop.list_kept().await.unwrap().len(), 601);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_finds_what_is_gone() {
    let world = World::new().await;
    let client = world.client();
    let shop = world.shop().await;
    client.write("a", "1".repeat(1000));
    let commit = client.commit("One");
    client.push_ok(&["main"]);
    assert_eq!(shop.verify(&[commit], Depth::Content).await.unwrap(), Vec::<String>::new());
    let unknown: Oid = "1234567890123456789012345678901234567890".parse().unwrap();
    let problems = shop.verify(&[commit, unknown], Depth::Connectivity).await.unwrap();
    assert_eq!(problems, [format!("commit {unknown} is missing")]);
    let packs = shop.path().join("objects/pack");
    for entry in std::fs::read_dir(&packs).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let problems = shop.verify(&[commit], Depth::Connectivity).await.unwrap();
    assert!(problems.iter().any(|line| line.contains(&format!("commit {commit} is missing"))), "{problems:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_cleans_up_after_a_killed_process() {
    let world = World::new().await;
    let client = world.client();
    client.write("a", "1");
    let commit = client.commit("One");
    client.push_ok(&["main"]);
    let dir = world.shop().await.path().to_owned();
    std::fs::write(dir.join("refs/heads/main.lock"), "").unwrap();
    std::fs::write(dir.join("packed-refs.lock"), "").unwrap();
    std::fs::create_dir_all(dir.join("objects/incoming-x/pack")).unwrap();
    std::fs::write(dir.join("objects/incoming-x/pack/tmp_pack_y"), "junk").unwrap();
    std::fs::write(dir.join("config"), "[core]\n\thooksPath = /tmp\n").unwrap();
    // A pack that is coming in, or one that has lost its index.
    let pack = dir.join("objects/pack/pack-1111111111111111111111111111111111111111.pack");
    std::fs::write(&pack, "PACK").unwrap();
    // Who only looks, beside a server, touches none of it.
    let beside = Repositories::observe(dir.parent().unwrap().to_owned(), Limits::default()).await.unwrap();
    assert_eq!(
        beside.get("shop").await.unwrap().verify(&[commit], Depth::Content).await.unwrap(),
        Vec::<String>::new()
    );
    for there in ["refs/heads/main.lock", "packed-refs.lock", "objects/incoming-x/pack/tmp_pack_y"] {
        assert!(dir.join(there).exists(), "{there}");
    }
    let again = Repositories::open(dir.parent().unwrap().to_owned(), Limits::default()).await.unwrap();
    assert_eq!(again.projects().await.unwrap(), ["shop"]);
    let shop = again.get("shop").await.unwrap();
    shop.set_branch("main", Some(commit), commit).await.unwrap();
    shop.set_branch("next", None, commit).await.unwrap();
    assert!(!dir.join("refs/heads/main.lock").exists() && !dir.join("objects/incoming-x").exists());
    assert!(pack.exists());
    assert!(std::fs::read_to_string(dir.join("config")).unwrap().contains("hooksPath = /dev/null"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn projects_are_made_once_and_named_well() {
    let world = World::new().await;
    let all = &world.repositories;
    let made = futures_util::future::join_all((0..8).map(|_| all.create("cart"))).await;
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    assert_eq!(all.projects().await.unwrap(), ["cart", "shop"]);
    assert!(matches!(all.get("none").await, Err(OpenError::Unknown(_))));
    assert!(matches!(all.create("../x").await, Err(OpenError::BadName(_))));
    let left = std::fs::read_dir(world.dir.path().join("git")).unwrap().count();
    assert_eq!(left, 2, "no temporary directory stays");
}
