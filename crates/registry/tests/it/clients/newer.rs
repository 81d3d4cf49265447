//! Clients that Debian 12 does not have: `./test --packages` unpacks them below `target/clients`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{bound, errors, skipped, tar};
use crate::world::World;

/// A program with a home of its own. What it asks of other hosts goes nowhere: nothing here needs it.
pub(super) struct Program {
    path: PathBuf,
    pub(super) home: tempfile::TempDir,
}

impl Program {
    /// `None` if it is not there, which is said by name.
    pub(super) fn find(test: &str, directory: &str, name: &str) -> Option<Self> {
        let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/clients").join(directory);
        if !clients.join("complete").exists() {
            skipped(test, &format!("{directory} is not installed: run ./test --packages"));
            return None;
        }
        Some(Self { path: clients.join("usr/bin").join(name), home: tempfile::tempdir().unwrap() })
    }

    pub(super) fn at(&self, file: &str) -> String {
        self.home.path().join(file).to_str().unwrap().to_owned()
    }

    pub(super) async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.path);
        command.current_dir(self.home.path()).env("HOME", self.home.path()).env("DOCKER_CONFIG", self.home.path());
        command.env("HTTPS_PROXY", "http://127.0.0.1:9").env("COSIGN_PASSWORD", "").args(arguments);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    pub(super) async fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(output.status.success(), "{} {arguments:?}: {}", self.path.display(), errors(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// What it says when it cannot.
    pub(super) async fn fails(&self, arguments: &[&str], parts: &[&str]) {
        let output = self.run(arguments).await;
        assert!(!output.status.success(), "{} {arguments:?}", self.path.display());
        for part in parts {
            assert!(errors(&output).contains(part), "{part} is not in: {}", errors(&output));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crane_pushes_and_pulls() {
    let Some(crane) = Program::find("crane_pushes_and_pulls", "crane", "crane") else { return };
    let world = World::new().await;
    for name in ["one", "two"] {
        std::fs::write(crane.at(name), tar("file", name.as_bytes())).unwrap();
    }
    let at = |reference: &str| format!("{}/{reference}", world.address);
    let (repository, reference) = (at("shop/crane"), at("shop/crane:v1"));
    let mut written = None;
    for _ in 0..2 {
        crane.done(&["append", "--insecure", "-f", "one", "-t", &reference]).await;
        assert_eq!(*written.get_or_insert(world.ledger.size()), world.ledger.size());
    }
    let digest = bound(&world, "shop/crane", "v1").await;
    // It asks first whether the tag is there; a push of the manifest again is a `PUT`.
    let by_digest = format!("{repository}@{digest}");
    crane.done(&["tag", "--insecure", &by_digest, "v1"]).await;
    assert_eq!(written, Some(world.ledger.size()));
    let manifest = world.get("/v2/shop/crane/manifests/v1").await.expect(200);
    for reference in [&reference, &by_digest] {
        assert_eq!(crane.done(&["digest", "--insecure", reference]).await, digest);
        assert_eq!(crane.done(&["manifest", "--insecure", reference]).await.as_bytes(), manifest.bytes());
        crane.done(&["pull", "--insecure", "--format=oci", reference, "layout"]).await;
        let file = Path::new("layout/blobs/sha256").join(digest.trim_start_matches("sha256:"));
        assert_eq!(std::fs::read(crane.home.path().join(file)).unwrap(), manifest.bytes());
        std::fs::remove_dir_all(crane.home.path().join("layout")).unwrap();
    }
    crane.done(&["copy", "--insecure", &reference, &at("copy/crane:v1")]).await;
    assert_eq!(bound(&world, "copy/crane", "v1").await, digest);
    crane.done(&["tag", "--insecure", &by_digest, "v2"]).await;
    assert_eq!(crane.done(&["ls", "--insecure", &repository]).await, "v1\nv2");
    assert_eq!(crane.done(&["catalog", "--insecure", &at("")[..at("").len() - 1]]).await, "copy/crane\nshop/crane");

    let push = ["append", "--insecure", "-f", "two", "-t", &reference];
    crane.fails(&push, &["TAG_INVALID", &digest, "by alice", "new tag"]).await;
    crane.fails(&["delete", "--insecure", &reference], &["UNSUPPORTED", "cannot be deleted"]).await;
    assert_eq!(bound(&world, "shop/crane", "v1").await, digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oras_command_pushes_and_pulls() {
    let Some(oras) = Program::find("the_oras_command_pushes_and_pulls", "oras", "oras") else { return };
    let world = World::new().await;
    std::fs::write(oras.at("one.txt"), "one").unwrap();
    std::fs::write(oras.at("two.txt"), "two").unwrap();
    let at = |reference: &str| format!("{}/{reference}", world.address);
    let (repository, reference) = (at("shop/oras"), at("shop/oras:v1"));
    // It would write the time.
    let time = ["--annotation", "org.opencontainers.image.created=2026-01-01T00:00:00Z"];
    let push = |file| [&["push", "--plain-http", &reference, file], &time[..]].concat();
    let mut written = None;
    for _ in 0..2 {
        oras.done(&push("one.txt")).await;
        assert_eq!(*written.get_or_insert(world.ledger.size()), world.ledger.size());
    }
    let digest = bound(&world, "shop/oras", "v1").await;
    let by_digest = format!("{repository}@{digest}");
    for reference in [&reference, &by_digest] {
        oras.done(&["pull", "--plain-http", "-o", "pulled", reference]).await;
        assert_eq!(std::fs::read_to_string(oras.at("pulled/one.txt")).unwrap(), "one");
        std::fs::remove_dir_all(oras.at("pulled")).unwrap();
    }
    oras.done(&["cp", "--from-plain-http", "--to-plain-http", &reference, &at("copy/oras:v1")]).await;
    assert_eq!(bound(&world, "copy/oras", "v1").await, digest);
    oras.done(&["tag", "--plain-http", &reference, "v2"]).await;
    assert_eq!(oras.done(&["repo", "tags", "--plain-http", &repository]).await, "v1\nv2");
    oras.done(&["attach", "--plain-http", "--artifact-type", "text/note", &reference, "two.txt"]).await;
    let found = oras.done(&["discover", "--plain-http", "--format", "json", &reference]).await;
    assert!(found.contains("text/note"), "{found}");

    oras.fails(&push("two.txt"), &["tag invalid", &digest, "by alice", "new tag"]).await;
    let delete = ["manifest", "delete", "--plain-http", "--force", &reference];
    oras.fails(&delete, &["cannot be deleted"]).await;
    assert_eq!(bound(&world, "shop/oras", "v1").await, digest);
}
