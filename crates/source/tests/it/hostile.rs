//! What an attacker pushes.

use std::fmt::Write as _;

use adamant_source::{ExportError, Limits, Oid, ReadError};

use crate::world::{Client, World};

fn blob(client: &Client, bytes: &[u8]) -> Oid {
    client.feed_oid(&["hash-object", "-w", "--stdin"], bytes)
}

/// A tree object byte by byte: git's own tools refuse some of these.
fn tree(client: &Client, entries: &[(&str, &[u8], Oid)]) -> Oid {
    let mut bytes = Vec::new();
    for (mode, name, oid) in entries {
        bytes.extend_from_slice(mode.as_bytes());
        bytes.push(b' ');
        bytes.extend_from_slice(name);
        bytes.push(0);
        let hex = oid.to_string();
        bytes.extend((0..20).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap()));
    }
    client.feed_oid(&["hash-object", "-w", "--stdin", "-t", "tree", "--literally"], &bytes)
}

fn refspec(commit: Oid) -> String {
    format!("{commit}:refs/heads/main")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trees_that_write_elsewhere_are_refused_at_the_door() {
    let world = World::new().await;
    let client = world.client();
    let file = blob(&client, b"x");
    let config = tree(&client, &[("100644", b"config", file)]);
    let cases: [(&str, &[u8], Oid, &str); 8] = [
        ("40000", b".git", config, "hasDotgit"),
        ("40000", b".GIT", config, "hasDotgit"),
        ("40000", b"git~1", config, "hasDotgit"),
        ("40000", "\u{200c}.git".as_bytes(), config, "hasDotgit"),
        ("40000", b"..", config, "hasDotdot"),
        ("40000", b".", config, "hasDot"),
        ("100644", b"a/b", file, "fullPathname"),
        ("120000", b".gitmodules", file, "gitmodulesSymlink"),
    ];
    for (mode, name, oid, problem) in cases {
        let commit = client.commit_tree(tree(&client, &[(mode, name, oid)]));
        client.push_refused(&[&refspec(commit)], problem);
    }
    let twice = client.commit_tree(tree(&client, &[("100644", b"a", file), ("100755", b"a", file)]));
    client.push_refused(&[&refspec(twice)], "duplicateEntries");
    let modules = blob(&client, b"[submodule \"x\"]\n\tpath = x\n\turl = --upload-pack=evil\n");
    let modules = client.commit_tree(tree(&client, &[("100644", b".gitmodules", modules)]));
    client.push_refused(&[&refspec(modules)], "gitmodules");
    assert!(world.pipeline.seen().is_empty());
    assert_eq!(world.shop().await.list_kept().await.unwrap(), []);
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trees_that_cannot_be_exported_say_why() {
    let world = World::new().await;
    let client = world.client();
    let shop = world.shop().await;
    let file = blob(&client, b"x");
    let elsewhere = client.commit_tree(tree(&client, &[]));
    let dest = world.dir.path().join("out");
    let push = |tree: Oid| {
        let commit = client.commit_tree(tree);
        client.push_ok(&["--force", &refspec(commit)]);
        commit
    };

    let inner = tree(&client, &[("160000", b"lib", elsewhere)]);
    let commit = push(tree(&client, &[("100644", b"a", file), ("40000", b"sub", inner)]));
    let error = shop.export(commit, ".", &dest).await.unwrap_err();
    assert!(matches!(&error, ExportError::Submodule { path } if path == "sub/lib"), "{error}");

    for target in ["/etc/passwd", "../../x", "way/../../../x"] {
        let link = blob(&client, target.as_bytes());
        let inner = tree(&client, &[("120000", b"link", link)]);
        let commit = push(tree(&client, &[("40000", b"sub", inner)]));
        for result in [shop.export(commit, ".", &dest).await, shop.tree(commit, ".").await] {
            let error = result.unwrap_err();
            let ExportError::LinkOutside { path, target: named } = &error else { panic!("{error}") };
            assert_eq!((path.as_str(), named.as_str()), ("sub/link", target));
        }
    }
    // Inside the repository, but outside of the part that is exported.
    let link = blob(&client, b"../a");
    let inner = tree(&client, &[("120000", b"link", link)]);
    let commit = push(tree(&client, &[("100644", b"a", file), ("40000", b"sub", inner)]));
    assert!(matches!(shop.tree(commit, "sub").await, Err(ExportError::LinkOutside { .. })));
    shop.tree(commit, ".").await.unwrap();

    let commit = push(tree(&client, &[("100644", b"a\xff", file)]));
    let error = shop.export(commit, ".", &dest).await.unwrap_err();
    assert!(matches!(error, ExportError::Read(ReadError::NotUtf8(_))), "{error}");

    let name = "n".repeat(256);
    let inner = tree(&client, &[("100644", name.as_bytes(), file)]);
    let commit = push(tree(&client, &[("40000", b"sub", inner)]));
    for result in [shop.export(commit, ".", &dest).await, shop.tree(commit, ".").await] {
        let text = result.unwrap_err().to_string();
        assert!(text.starts_with("`sub/nnn") && text.contains("limit of 255"), "{text}");
    }
    assert!(!dest.exists(), "nothing is written before all is checked");
    let commit = push(tree(&client, &[("100644", &name.as_bytes()[1..], file)]));
    shop.export(commit, ".", &dest).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trees_that_unfold_without_end_are_cut() {
    let limits = Limits { tree_entries: 10_000, ..Limits::default() };
    let world = World::with(limits).await;
    let client = world.client();
    let mut top = tree(&client, &[("100644", b"f", blob(&client, b"x"))]);
    for _ in 0..12 {
        let names: Vec<String> = (0..10).map(|n| format!("d{n}")).collect();
        let entries: Vec<_> = names.iter().map(|name| ("40000", name.as_bytes(), top)).collect();
        top = tree(&client, &entries);
    }
    let commit = client.commit_tree(top);
    client.push_ok(&[&refspec(commit)]);
    let error = world.shop().await.tree(commit, ".").await.unwrap_err();
    assert!(error.to_string().contains("too many entries"), "{error}");
    for _ in 0..200 {
        top = tree(&client, &[("40000", b"d", top)]);
    }
    let commit = client.commit_tree(top);
    client.push_refused(&["--force", &refspec(commit)], "rejected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold() {
    let limits = Limits {
        pack_bytes: 3 << 20,
        pack_objects: 100,
        blob_bytes: 1 << 20,
        tree_bytes: 1000,
        commit_bytes: 2000,
        depth: 5,
        path_bytes: 100,
        ..Limits::default()
    };
    let world = World::with(limits).await;
    let client = world.client();
    let file = blob(&client, b"x");
    let refused = |tree: Oid, reason: &str| {
        let commit = client.commit_tree(tree);
        client.push_refused(&[&refspec(commit)], reason)
    };
    // 300 MiB of zeros are a pack of 300 KiB: the size that counts is the one inside.
    let zeros = blob(&client, &vec![0; 300 << 20]);
    refused(tree(&client, &[("100644", b"zeros", zeros)]), "above the limit of 1048576");

    let mut child = tree(&client, &[("100644", b"f", file)]);
    for _ in 0..5 {
        child = tree(&client, &[("40000", b"d", child)]);
    }
    refused(child, "deeper than 5");
    refused(tree(&client, &[("100644", &[b'n'; 101], file)]), "longer than 100 bytes");
    let names: Vec<String> = (10..60).map(|n| format!("n{n}")).collect();
    let wide: Vec<_> = names.iter().map(|name| ("100644", name.as_bytes(), file)).collect();
    refused(tree(&client, &wide), "above the limit of 1000");

    let mut entries = Vec::new();
    let many: Vec<(String, Oid)> =
        (10..120).map(|n| (format!("n{n}"), blob(&client, format!("{n}").as_bytes()))).collect();
    for (name, oid) in &many {
        entries.push(("100644", name.as_bytes(), *oid));
    }
    entries.sort_by_key(|(_, name, _)| *name);
    refused(tree(&client, &entries), "above the limit of 100");

    let mut message = String::new();
    for n in 0..400 {
        let _ = writeln!(message, "line {n}");
    }
    let commit: Oid = client.ok(&["commit-tree", "-m", &message, &tree(&client, &[]).to_string()]).parse().unwrap();
    client.push_refused(&[&refspec(commit)], "above the limit of 2000");

    let noise: Vec<u64> = (1..600_000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17)).collect();
    let parts: Vec<(String, Oid)> = noise
        .chunks(100_000)
        .enumerate()
        .map(|(n, part)| {
            let bytes: Vec<u8> =
                part.iter().flat_map(|n| (n ^ (n >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes()).collect();
            (format!("part{n}"), blob(&client, &bytes))
        })
        .collect();
    let parts: Vec<_> = parts.iter().map(|(name, oid)| ("100644", name.as_bytes(), *oid)).collect();
    let large = client.commit_tree(tree(&client, &parts));
    let (ok, text) = client.push(&[&refspec(large)]);
    assert!(!ok && (text.contains("larger than 3145728") || text.contains("pack exceeds")), "{text}");

    assert!(world.pipeline.seen().is_empty());
    assert_eq!(world.main().await, None);
    world.assert_clean().await;
    let fine = client.commit_tree(tree(&client, &[("100644", b"a", file)]));
    client.push_ok(&[&refspec(fine)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_in_a_commit_have_no_influence() {
    let world = World::new().await;
    let client = world.client();
    client.write(".gitattributes", "* text eol=crlf filter=evil export-subst working-tree-encoding=UTF-16\nsecret export-ignore\n*.x export-ignore\n");
    client.write("a.txt", "one\ntwo\n$Format:%H$ $Id$\n");
    client.write("secret", "here\n");
    client.write("b.x", "b");
    client.ok(&["config", "core.autocrlf", "false"]);
    let exact = |name: &str, bytes: &[u8]| ("100644", name.to_owned(), blob(&client, bytes));
    let attributes = std::fs::read(client.path().join(".gitattributes")).unwrap();
    let files = [
        exact(".gitattributes", &attributes),
        exact("a.txt", b"one\ntwo\n$Format:%H$ $Id$\n"),
        exact("b.x", b"b"),
        exact("secret", b"here\n"),
    ];
    let entries: Vec<_> = files.iter().map(|(mode, name, oid)| (*mode, name.as_bytes(), *oid)).collect();
    let commit = client.commit_tree(tree(&client, &entries));
    client.push_ok(&[&refspec(commit)]);
    let dest = world.dir.path().join("out");
    world.shop().await.export(commit, ".", &dest).await.unwrap();
    assert_eq!(std::fs::read(dest.join("a.txt")).unwrap(), b"one\ntwo\n$Format:%H$ $Id$\n");
    assert_eq!(std::fs::read(dest.join("secret")).unwrap(), b"here\n");
    assert_eq!(std::fs::read_dir(&dest).unwrap().count(), 4);
}
