//! A small Debian archive, signed with a key made for the test.

use std::fmt::Write as _;

use adamant_digest::Digest;
use pgp::composed::{ArmorOptions, CleartextSignedMessage, KeyType, SecretKeyParamsBuilder, SignedSecretKey};
use pgp::ser::Serialize as _;
use pgp::types::Password;

use crate::server::{Answer, Server};

pub(crate) struct Repo {
    key: SignedSecretKey,
    packages: String,
}

impl Repo {
    pub(crate) fn new() -> Self {
        let params = SecretKeyParamsBuilder::default()
            .key_type(KeyType::Ed25519Legacy)
            .can_sign(true)
            .primary_user_id("Archive <archive@example.org>".into())
            .build()
            .unwrap();
        Self { key: params.generate(rand::thread_rng()).unwrap(), packages: String::new() }
    }

    pub(crate) fn keyring(&self) -> Vec<u8> {
        self.key.to_public_key().to_bytes().unwrap()
    }

    /// Adds a package whose "deb" is its own name and version.
    pub(crate) fn add(&mut self, server: &Server, name: &str, version: &str, fields: &str) {
        let bytes = format!("{name} {version}").into_bytes();
        let path = format!("pool/main/{name}_{version}_amd64.deb");
        let (size, digest) = (bytes.len(), Digest::of(&bytes).hex());
        let head = format!("Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: {path}");
        writeln!(self.packages, "{head}\nSize: {size}\nSHA256: {digest}\n{fields}\n").unwrap();
        server.put(&format!("/debian/{path}"), Answer::File(bytes));
    }

    pub(crate) fn packed(&self) -> Vec<u8> {
        let mut packed = Vec::new();
        let mut encoder = liblzma::write::XzEncoder::new(&mut packed, 6);
        std::io::Write::write_all(&mut encoder, self.packages.as_bytes()).unwrap();
        encoder.finish().unwrap();
        packed
    }

    pub(crate) fn sign(&self, text: &str) -> String {
        let signed =
            CleartextSignedMessage::sign(rand::thread_rng(), text, &self.key.primary_key, &Password::empty()).unwrap();
        signed.to_armored_string(ArmorOptions::default()).unwrap()
    }

    pub(crate) fn release(&self, suite: &str) -> String {
        let packed = self.packed();
        format!(
            "Origin: Test\nSuite: {suite}\nCodename: {suite}\nDate: Sat, 10 Jun 2023 08:16:33 UTC\nValid-Until: Sat, 17 Jun 2023 08:16:33 UTC\nAcquire-By-Hash: yes\nSHA256:\n {} {} main/binary-amd64/Packages.xz\n",
            Digest::of(&packed).hex(),
            packed.len()
        )
    }

    /// Publishes what was added.
    pub(crate) fn publish(&self, server: &Server) {
        let packed = self.packed();
        server.put("/debian/dists/stable/InRelease", Answer::File(self.sign(&self.release("stable")).into_bytes()));
        let dir = "/debian/dists/stable/main/binary-amd64";
        server.put(&format!("{dir}/by-hash/SHA256/{}", Digest::of(&packed).hex()), Answer::File(packed.clone()));
        server.put(&format!("{dir}/Packages.xz"), Answer::File(packed));
    }
}
