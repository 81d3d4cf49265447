//! `InRelease`: a suite's list of files, signed in clear text. RFC 9580 §7.

use std::io::Cursor;

use adamant_digest::Digest;
use pgp::composed::{Deserializable as _, DetachedSignature, SignedPublicKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType};

use super::control::{fields, stanzas};

/// Why a suite is not trusted or not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// Not a clear-signed text.
    #[error("InRelease of {suite} is not a signed text: {cause}: check the mirror's address")]
    Framing {
        /// The suite.
        suite: String,
        /// Why.
        cause: String,
    },
    /// No signature by a key we have.
    #[error(
        "InRelease of {suite} is not signed by a known key of the archive (signatures by {signers}): check the mirror, or configure its keyring"
    )]
    Untrusted {
        /// The suite.
        suite: String,
        /// Key ids found.
        signers: String,
    },
    /// A keyring cannot be read.
    #[error("keyring {number} cannot be read: {cause}")]
    Keyring {
        /// Position in the configuration, from 1.
        number: usize,
        /// Why.
        cause: String,
    },
    /// Signed, but for another suite: a replay.
    #[error("the mirror answers {found} when asked for {suite}: check the mirror's address")]
    OtherSuite {
        /// What was asked for.
        suite: String,
        /// What it says it is.
        found: String,
    },
    /// No such file in the suite.
    #[error("{suite} has no {file}: check component and architecture")]
    NoFile {
        /// The suite.
        suite: String,
        /// The file.
        file: String,
    },
    /// The package index is damaged or too large.
    #[error("the package index of {suite} cannot be read: {cause}")]
    Index {
        /// The suite.
        suite: String,
        /// Why.
        cause: String,
    },
}

/// A suite's signed description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The suite as asked for.
    pub suite: String,
    /// `Date`, as written.
    pub date: String,
    /// `Valid-Until`, as written; stable suites without updates have none.
    pub valid_until: Option<String>,
    /// Whether files can be had by their digest.
    pub by_hash: bool,
    files: String,
}

impl Release {
    /// Checks the signature over `signed` and reads what is under it, nothing else.
    pub fn parse(suite: &str, signed: &[u8], keyrings: &[Vec<u8>]) -> Result<Self, ReleaseError> {
        let text = verify_cleartext(suite, signed, keyrings)?;
        let stanza = stanzas(&text).next().unwrap_or_default();
        let (mut release, mut names) = (
            Self {
                suite: suite.to_owned(),
                date: String::new(),
                valid_until: None,
                by_hash: false,
                files: String::new(),
            },
            Vec::new(),
        );
        for (name, value) in fields(stanza) {
            match name {
                "Suite" | "Codename" => names.push(value),
                "Date" => value.clone_into(&mut release.date),
                "Valid-Until" => release.valid_until = Some(value.to_owned()),
                "Acquire-By-Hash" => release.by_hash = value == "yes",
                "SHA256" => value.clone_into(&mut release.files),
                _ => {}
            }
        }
        if names.contains(&suite) {
            Ok(release)
        } else {
            let found = names.join(" ").chars().take(100).collect();
            Err(ReleaseError::OtherSuite { suite: suite.to_owned(), found })
        }
    }

    /// Digest and length of a file of the suite.
    pub fn file(&self, name: &str) -> Result<(Digest, u64), ReleaseError> {
        let found = self.files.lines().find_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (hex, size, path) = (words.next()?, words.next()?, words.next()?);
            (path == name).then(|| Some((Digest::from_hex(hex).ok()?, size.parse().ok()?))).flatten()
        });
        found.ok_or_else(|| ReleaseError::NoFile { suite: self.suite.clone(), file: name.to_owned() })
    }
}

const BEGIN: &str = "-----BEGIN PGP SIGNED MESSAGE-----";
const SIGNATURE: &str = "-----BEGIN PGP SIGNATURE-----";
/// Most signatures looked at.
const MAX_SIGNATURES: usize = 16;

/// Returns the text under a clear-text signature if one of the signatures is by a key of
/// `keyrings`. `what` names the text in errors. Lines are joined by `\n`.
pub fn verify_cleartext(what: &str, signed: &[u8], keyrings: &[Vec<u8>]) -> Result<String, ReleaseError> {
    let framing = |cause: &str| ReleaseError::Framing { suite: what.to_owned(), cause: cause.to_owned() };
    let signed = std::str::from_utf8(signed).map_err(|_| framing("not UTF-8"))?;
    let (lines, armor) = unframe(signed).map_err(framing)?;
    let keys = read_keys(keyrings)?;
    let (parsed, _) =
        DetachedSignature::from_armor_many(Cursor::new(armor)).map_err(|error| framing(&error.to_string()))?;
    let mut signatures = Vec::new();
    for signature in parsed.take(MAX_SIGNATURES) {
        // One signature of a kind we cannot read must not hide one that we can.
        signatures.extend(signature.ok().map(|signature| signature.signature));
    }
    let hashed = lines.join("\r\n");
    if signatures.iter().any(|signature| trusted(signature, hashed.as_bytes(), &keys)) {
        return Ok(lines.join("\n"));
    }
    let ids = signatures.iter().flat_map(Signature::issuer_key_id).map(ToString::to_string);
    let signers = ids.collect::<Vec<_>>().join(", ");
    Err(ReleaseError::Untrusted {
        suite: what.to_owned(),
        signers: if signers.is_empty() { "nobody".to_owned() } else { signers },
    })
}

/// The signed lines, dash-unescaped and without white space at their ends, and the armoured
/// signatures. Nothing may stand before or behind.
fn unframe(signed: &str) -> Result<(Vec<&str>, String), &'static str> {
    let mut lines = signed.lines();
    if lines.next().map(str::trim_end) != Some(BEGIN) {
        return Err("it does not begin with a PGP signed message");
    }
    loop {
        match lines.next() {
            Some(line) if line.trim().is_empty() => break,
            Some(header) if header.starts_with("Hash: ") => {}
            _ => return Err("an unknown header"),
        }
    }
    let mut text = Vec::new();
    loop {
        let line = lines.next().ok_or("the signature is missing")?;
        if line.trim_end() == SIGNATURE {
            break;
        }
        let line = match line.strip_prefix("- ") {
            Some(escaped) => escaped,
            None if line.starts_with('-') => return Err("an unescaped dash"),
            None => line,
        };
        text.push(line.trim_end_matches([' ', '\t', '\r']));
    }
    let mut armor = format!("{SIGNATURE}\n");
    let mut ended = false;
    for line in lines {
        if ended && !line.trim().is_empty() {
            return Err("something follows the signature");
        }
        ended = ended || line.starts_with("-----END PGP SIGNATURE-----");
        armor.push_str(line);
        armor.push('\n');
    }
    Ok((text, armor))
}

fn read_keys(keyrings: &[Vec<u8>]) -> Result<Vec<SignedPublicKey>, ReleaseError> {
    let mut keys = Vec::new();
    for (i, keyring) in keyrings.iter().enumerate() {
        let bad = |error: pgp::errors::Error| ReleaseError::Keyring { number: i + 1, cause: error.to_string() };
        let (parsed, _) = SignedPublicKey::from_reader_many(Cursor::new(keyring)).map_err(bad)?;
        for key in parsed {
            keys.push(key.map_err(bad)?);
        }
    }
    Ok(keys)
}

fn trusted(signature: &Signature, text: &[u8], keys: &[SignedPublicKey]) -> bool {
    let strong = matches!(
        signature.hash_alg(),
        Some(
            HashAlgorithm::Sha256
                | HashAlgorithm::Sha384
                | HashAlgorithm::Sha512
                | HashAlgorithm::Sha3_256
                | HashAlgorithm::Sha3_512
        )
    );
    if !strong || !matches!(signature.typ(), Some(SignatureType::Text | SignatureType::Binary)) {
        return false;
    }
    keys.iter().any(|key| {
        signature.verify(&key.primary_key, text).is_ok()
            || key.public_subkeys.iter().any(|subkey| {
                // A subkey counts only if its primary key says it is its own.
                signature.verify(&subkey.key, text).is_ok() && subkey.verify_bindings(&key.primary_key).is_ok()
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framing() {
        let check = |text: &str| unframe(text).map(|(lines, _)| lines.join("|"));
        let good = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nA: 1 \t\n- -b\n\n-----BEGIN PGP SIGNATURE-----\n\nx\n-----END PGP SIGNATURE-----\n";
        assert_eq!(check(good).as_deref(), Ok("A: 1|-b|"));
        assert!(check(&format!("x\n{good}")).is_err());
        assert!(check(&format!("{good}x\n")).is_err());
        assert!(check(&good.replace("Hash: SHA256", "Evil: x")).is_err());
        assert!(check(&good.replace("- -b", "-b")).is_err());
        assert!(check(&good[..60]).is_err());
        assert!(check("").is_err());
    }

    #[test]
    fn embedded_keys_are_read() {
        let keys = read_keys(&super::super::archive_keys()).unwrap();
        assert_eq!(keys.len(), 9);
        assert!(matches!(read_keys(&[b"junk".to_vec()]), Err(ReleaseError::Keyring { number: 1, .. })));
    }
}
