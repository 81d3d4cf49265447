//! Real clients: each pushes, pushes again without a write, pulls by tag and by digest, copies to
//! another repository, lists tags where it can, and shows why a tag is refused. Those that are not
//! installed, or forbidden here, are skipped by name.
//!
//! Tags are listed by skopeo (`list-tags`), podman (`search --list-tags`), oras in Python (`get_tags`) and
//! as a command (`repo tags`), and crane (`ls`). The others have no command for it: docker's `search` asks
//! another service, buildah and umoci know only what is on their machine, and ctr lists its own images.

mod artifacts;
mod cosign;
mod engines;
mod newer;

use std::path::Path;
use std::process::{Command, Output};

use adamant_digest::Digest;
use adamant_oci::{ArtifactMeta, Descriptor, ImageConfig, Manifest, RootFs, RuntimeConfig, media};

use crate::world::World;

fn is_missing(test: &str, program: &str) -> bool {
    let missing = Command::new(program).arg("--version").output().is_err();
    if missing {
        skipped(test, &format!("{program} is not installed"));
    }
    missing
}

fn skipped(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The digest of a tag, asked for by HTTP; the manifest is whole.
async fn bound(world: &World, repository: &str, tag: &str) -> String {
    let answer = world.get(&format!("/v2/{repository}/manifests/{tag}")).await.expect(200);
    let digest = answer.header("docker-content-digest").to_owned();
    assert_eq!(Digest::of(answer.bytes()).to_string(), digest);
    digest
}

/// Runs a client off the async thread.
async fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).env_remove("REGISTRY_AUTH_FILE");
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn done(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments).await;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// An image in skopeo's `dir:` layout with one file in one layer.
fn write_image(directory: &Path, content: &str) -> Manifest {
    let layer = tar("file", content.as_bytes());
    let config = ImageConfig {
        created: None,
        author: None,
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        variant: None,
        config: RuntimeConfig::default(),
        rootfs: RootFs::layers(vec![Digest::of(&layer)]),
        history: vec![],
    }
    .print();
    let describe = |kind, bytes: &[u8]| Descriptor::new(kind, Digest::of(bytes), bytes.len() as u64);
    let manifest = Manifest::image(
        describe(media::OCI_CONFIG, config.bytes()),
        vec![describe(media::OCI_LAYER, &layer)],
        ArtifactMeta::default(),
    );
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("version"), "Directory Transport Version: 1.1\n").unwrap();
    std::fs::write(directory.join("manifest.json"), manifest.bytes().bytes()).unwrap();
    std::fs::write(directory.join(config.digest().hex()), config.bytes()).unwrap();
    std::fs::write(directory.join(Digest::of(&layer).hex()), &layer).unwrap();
    manifest
}

/// A tar archive of one file (ustar).
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = vec![0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    for (at, text) in [
        (100, "0000644\0"),
        (108, "0000000\0"),
        (116, "0000000\0"),
        (136, "00000000000\0"),
        (148, "        "),
        (257, "ustar\x0000"),
    ] {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[156] = b'0';
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.extend_from_slice(content);
    header.resize(header.len().next_multiple_of(512) + 1024, 0);
    header
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_both_ways() {
    if is_missing("skopeo_copies_both_ways", "skopeo") {
        return;
    }
    let world = World::new().await;
    let here = tempfile::tempdir().unwrap();
    let path = |name: &str| here.path().join(name);
    let dir = |name: &str| format!("dir:{}", path(name).display());
    let manifest = write_image(&path("one"), "one");
    let docker = |reference: &str| format!("docker://{}/{reference}", world.address);
    let to = |from: String, reference: String| async move {
        // Without the flag, skopeo compresses the layers on the way and so makes another image.
        run("skopeo", &["copy", "--preserve-digests", "--dest-tls-verify=false", &from, &reference]).await
    };
    let from = |reference: String, into: String| async move {
        done("skopeo", &["copy", "--src-tls-verify=false", &reference, &into]).await
    };

    let mut written = None;
    for _ in 0..2 {
        let output = to(dir("one"), docker("shop/web:v1")).await;
        assert!(output.status.success(), "{}", errors(&output));
        // The second time nothing is recorded.
        assert_eq!(*written.get_or_insert(world.ledger.size()), world.ledger.size());
    }
    let by_digest = docker(&format!("shop/web@{}", manifest.digest()));
    for (name, reference) in [("by-tag", docker("shop/web:v1")), ("by-digest", by_digest.clone())] {
        from(reference, dir(name)).await;
        for entry in std::fs::read_dir(path("one")).unwrap() {
            let file = entry.unwrap().file_name();
            let (there, back) = (std::fs::read(path("one").join(&file)), std::fs::read(path(name).join(&file)));
            assert_eq!(there.unwrap(), back.unwrap(), "{name}: {}", file.display());
        }
    }
    let inspected = done("skopeo", &["inspect", "--tls-verify=false", "--raw", &by_digest]).await;
    assert_eq!(inspected.as_bytes(), manifest.bytes().bytes());
    let tags = done("skopeo", &["list-tags", "--tls-verify=false", &docker("shop/web")]).await;
    assert!(tags.contains("\"v1\""), "{tags}");
    // Between repositories: blobs are mounted or known.
    let copy =
        ["copy", "--src-tls-verify=false", "--dest-tls-verify=false", &docker("shop/web:v1"), &docker("shop/api:v1")];
    done("skopeo", &copy).await;
    assert_eq!(bound(&world, "shop/api", "v1").await, manifest.digest().to_string());

    let other = write_image(&path("two"), "two");
    let refused = to(dir("two"), docker("shop/web:v1")).await;
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    for part in [&manifest.digest().to_string(), &other.digest().to_string(), "alice", "new tag"] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    let deleted = run("skopeo", &["delete", "--tls-verify=false", &docker("shop/web:v1")]).await;
    assert!(!deleted.status.success());
    from(docker("shop/web:v1"), dir("after")).await;
}

/// Podman and buildah share flags: an own store below a directory, no driver that needs rights.
async fn pushes_and_pulls(program: &str) {
    if is_missing(program, program) {
        return;
    }
    let world = World::new().await;
    let here = tempfile::tempdir().unwrap();
    let manifest = write_image(&here.path().join("one"), "one");
    let (root, run_root) = (here.path().join("root"), here.path().join("run"));
    let (root, run_root) = (root.to_str().unwrap().to_owned(), run_root.to_str().unwrap().to_owned());
    let store = ["--root", &root, "--runroot", &run_root, "--storage-driver", "vfs"];
    let call = |rest: &[&str]| {
        let all: Vec<String> = store.iter().chain(rest).map(|&text| text.to_owned()).collect();
        async move { run(program, &all.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    let source = format!("dir:{}", here.path().join("one").display());
    let pulled = call(&["pull", "-q", &source]).await;
    if !pulled.status.success() {
        return skipped(program, &format!("it does not work on this host: {}", errors(&pulled)));
    }
    let id = String::from_utf8_lossy(&pulled.stdout).trim().to_owned();
    let reference = format!("{}/shop/{program}:v1", world.address);
    let target = format!("docker://{reference}");
    let mut written = None;
    for _ in 0..2 {
        let pushed = call(&["push", "-q", "--tls-verify=false", &id, &target]).await;
        assert!(pushed.status.success(), "{}", errors(&pushed));
        assert_eq!(*written.get_or_insert(world.ledger.size()), world.ledger.size());
    }
    let digest = bound(&world, &format!("shop/{program}"), "v1").await;
    for reference in [reference.clone(), format!("{}/shop/{program}@{digest}", world.address)] {
        let pulled = call(&["pull", "-q", "--tls-verify=false", &reference]).await;
        assert!(pulled.status.success(), "{}", errors(&pulled));
        assert_eq!(String::from_utf8_lossy(&pulled.stdout).trim(), id);
    }
    // To another repository, from what was pulled.
    let copy = format!("docker://{}/copy/{program}:v1", world.address);
    let copied = call(&["push", "-q", "--tls-verify=false", &reference, &copy]).await;
    assert!(copied.status.success(), "{}", errors(&copied));
    bound(&world, &format!("copy/{program}"), "v1").await;
    if program == "podman" {
        let repository = reference.trim_end_matches(":v1");
        let listed = call(&["search", "--list-tags", "--tls-verify=false", repository]).await;
        assert!(String::from_utf8_lossy(&listed.stdout).contains("v1"), "{}", errors(&listed));
    }
    // Another image under the same tag: refused with both digests.
    let other = write_image(&here.path().join("two"), "two");
    assert_ne!(other.digest(), manifest.digest());
    let second = call(&["pull", "-q", &format!("dir:{}", here.path().join("two").display())]).await;
    let second = String::from_utf8_lossy(&second.stdout).trim().to_owned();
    let refused = call(&["push", "-q", "--tls-verify=false", &second, &target]).await;
    assert!(!refused.status.success());
    assert!(errors(&refused).contains(&digest) && errors(&refused).contains("new tag"), "{}", errors(&refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pushes_and_pulls() {
    pushes_and_pulls("podman").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn buildah_pushes_and_pulls() {
    pushes_and_pulls("buildah").await;
}
