//! What other people's tools say of keys and signatures made here.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::process::Command;

use adamant_attest::{Algorithm, Envelope, SigningKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("adamant-attest-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a tool prints, and whether it succeeded; `None` if it is not installed.
fn run(test: &str, tool: &str, args: &[&str]) -> Option<(bool, String)> {
    match Command::new(tool).args(args).output() {
        Ok(output) => Some((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())),
        Err(error) => {
            eprintln!("skipped: {test}: {tool}: {error}");
            None
        }
    }
}

#[test]
fn openssl_verifies_the_raw_encoding() {
    let scratch = Scratch::new("openssl");
    let key = SigningKey::generate(Algorithm::EcdsaP256).unwrap();
    let envelope = Envelope::sign(b"{\"a\":1}".to_vec(), &key).unwrap();
    let public = scratch.file("key", key.public().to_pem().as_bytes());
    let signature = scratch.file("sig", &envelope.signature);
    for (bytes, expected) in [(envelope.pae(), true), (envelope.payload, false)] {
        let signed = scratch.file("signed", &bytes);
        let args = ["dgst", "-sha256", "-verify", &public, "-signature", &signature, &signed];
        let Some((ok, text)) = run("openssl_verifies_the_raw_encoding", "openssl", &args) else { return };
        assert_eq!(ok, expected, "{text}");
    }
    let secret = scratch.file("secret", key.secret_pem().as_bytes());
    let (ok, text) = run("openssl_verifies_the_raw_encoding", "openssl", &["pkey", "-in", &secret, "-pubout"]).unwrap();
    assert!(ok);
    assert_eq!(text, key.public().to_pem());
}

#[test]
fn ssh_keygen_prints_the_key_id() {
    let scratch = Scratch::new("ssh");
    for algorithm in [Algorithm::EcdsaP256, Algorithm::Ed25519] {
        let key = SigningKey::generate(algorithm).unwrap();
        let parts: &[&[u8]] = match algorithm {
            Algorithm::EcdsaP256 => &[b"ecdsa-sha2-nistp256", b"nistp256", key.public().raw()],
            Algorithm::Ed25519 => &[b"ssh-ed25519", key.public().raw()],
        };
        let wire: Vec<u8> = parts
            .iter()
            .flat_map(|part| [&u32::try_from(part.len()).unwrap().to_be_bytes()[..], part].concat())
            .collect();
        let line = format!("{} {}\n", std::str::from_utf8(parts[0]).unwrap(), STANDARD.encode(wire));
        let file = scratch.file("key.pub", line.as_bytes());
        let Some((_, text)) = run("ssh_keygen_prints_the_key_id", "ssh-keygen", &["-l", "-f", &file]) else { return };
        assert!(text.contains(&format!(" {} ", key.public().keyid())), "{text}");
    }
}
