//! What is not signed as the operator demands runs nowhere new.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::client::Ask;
use crate::process::{Ended, run, skipped};
use crate::world::World;

/// Demands a signature of a key, from now on.
fn gate(world: &mut World, key: &str) {
    let text = format!("[[gate]]\nrepositories = \"shop/*\"\nkeys = [\"{}\"]\n", key.trim());
    std::fs::write(world.data.join("server.toml"), text).unwrap();
    world.server.stop();
    world.restart();
}

#[test]
fn a_gate_keeps_an_unsigned_release_from_running() {
    let Some(mut world) = World::new("a_gate_keeps_an_unsigned_release_from_running") else { return };
    let key = world.dir.join("key");
    run(Command::new("ssh-keygen").args(["-q", "-t", "ecdsa", "-N", "", "-C", "", "-f"]).arg(&key)).ok();
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    gate(&mut world, &public);
    let commit = world.shop.change("third");
    let pushed = world.shop.push();
    assert!(pushed.err.contains("may not be deployed"), "{}", pushed.err);
    let release = world.shop.release_of(&commit);
    assert!(world.page("dev").contains("version second"));
    let refused = world.shop.adamant(&["promote", &release, "dev", "--wait"]).fails(1);
    assert!(refused.contains("may not be deployed") && refused.contains("SHA256:"), "{refused}");
    // It is on record, and asking again adds nothing to that.
    let size = || {
        let ask = Ask::new("GET", "/api/v1/ledger").token(&world.token());
        ask.send(&world.server.url).unwrap().expect(200).text()
    };
    let ledger = size();
    assert!(ledger.contains("rejection") && ledger.contains("deploy shop/web@sha256:"), "{ledger}");
    assert!(ledger.contains("gate `shop/*`"), "{ledger}");
    world.shop.adamant(&["promote", &release, "dev", "--wait"]).fails(1);
    assert_eq!(size(), ledger);
    // What ran before is not stopped by it, and a rollback asks no gate.
    world.shop.adamant(&["rollback", "dev"]).ok();
    assert!(world.page("dev").contains("version first"));

    // The provenance that this server signed is evidence for those who trust its builder.
    gate(&mut world, "builder");
    world.shop.adamant(&["promote", &release, "dev", "--wait"]).ok();
    assert!(world.page("dev").contains("version third"));
    world.assert_sound("at the end");
}

/// The program that `./test --packages` unpacks; with a home of its own, and without a way to other hosts.
fn cosign(home: &Path, arguments: &[&str]) -> Ended {
    let mut command = Command::new(cosign_3());
    command.current_dir(home).env("HOME", home).env("DOCKER_CONFIG", home);
    run(command.env("HTTPS_PROXY", "http://127.0.0.1:9").env("COSIGN_PASSWORD", "").args(arguments))
}

fn cosign_3() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/clients/cosign-3/usr/bin/cosign")
}

#[test]
fn a_release_that_cosign_signed_runs() {
    let test = "a_release_that_cosign_signed_runs";
    if !cosign_3().exists() {
        return skipped(test, "cosign-3 is not installed: run ./test --packages");
    }
    let Some(mut world) = World::new(test) else { return };
    let home = world.dir.join("cosign");
    std::fs::create_dir(&home).unwrap();
    for name in ["a", "stranger"] {
        cosign(&home, &["generate-key-pair", "--output-key-prefix", name]).ok();
    }
    cosign(&home, &["signing-config", "create", "--out", "config.json"]).ok();
    let key = home.join("a.pub");
    gate(&mut world, key.to_str().unwrap());
    let commit = world.shop.change("third");
    let pushed = world.shop.push();
    assert!(pushed.err.contains("may not be deployed"), "{}", pushed.err);
    let release = world.shop.release_of(&commit);
    let status = world.shop.status();
    let artifact = &status.releases.iter().find(|one| one.name == release).unwrap().artifacts[0];
    let host = world.server.url.trim_start_matches("http://").trim_end_matches('/');
    let reference = format!("{host}/shop/{}@{}", artifact.name, artifact.digest);
    let token = world.token();
    let registry = ["--allow-http-registry", "--registry-username=me", "--registry-password", &token];
    let sign = |key: &str| {
        let options = ["sign", "-y", "--signing-config", "config.json", "--key", key];
        cosign(&home, &[&options, &registry[..], &[&reference]].concat()).ok();
    };
    let promote = ["promote", &release, "dev", "--wait"];
    sign("stranger.key");
    let refused = world.shop.adamant(&promote).fails(1);
    assert!(refused.contains("may not be deployed"), "{refused}");
    sign("a.key");
    let verify = ["verify", "--key", "a.pub", "--insecure-ignore-tlog"];
    cosign(&home, &[&verify, &registry[..], &[&reference]].concat()).ok();
    world.shop.adamant(&promote).ok();
    assert!(world.page("dev").contains("version third"));
    world.assert_sound("at the end");
}
