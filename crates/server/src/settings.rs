//! `server.toml`: what the operator of a server decides. `docs/server.md` is its reference.
//!
//! Whoever can write this file runs the server; nothing pushed, no client and no token reaches it.
//! It is read once, at the start.

use std::path::Path;

use adamant_attest::PublicKey;
use adamant_attest::predicate::Role;
use adamant_ledger::Keys;
use adamant_registry::{Demand, Gate, ParsePatternError};
use serde::Deserialize;

use crate::error::Problem;

/// Name of the file in the data directory.
const FILE: &str = "server.toml";
/// Longest file read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Everything that `server.toml` says; what it leaves out has the default of its type.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// `[registry]`
    pub registry: RegistrySettings,
    /// `[[gate]]`: what must be signed.
    pub gate: Vec<GateSettings>,
    /// `[store]`
    pub store: StoreSettings,
}

/// `[[gate]]`: signatures that some repositories need.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GateSettings {
    /// Pattern of repositories.
    pub repositories: String,
    /// Public keys: files, or the keys themselves in PEM or OpenSSH's form; `builder` for this server's.
    pub keys: Vec<String>,
    /// Types of statements; empty: any signature.
    #[serde(default)]
    pub predicates: Vec<String>,
    /// How many of the keys must have signed.
    #[serde(default = "one")]
    pub threshold: usize,
    /// Pulls need it, too.
    #[serde(default)]
    pub pull: bool,
}

fn one() -> usize {
    1
}

impl GateSettings {
    /// The gate, with its keys read.
    pub(crate) fn open(&self, data: &Path) -> Result<Gate, Problem> {
        let refuse = |cause: &dyn std::fmt::Display| {
            Problem::usage(format!("the gate of `{}` in the settings cannot be used", self.repositories))
                .cause(cause)
                .hint("docs/server.md has an example")
        };
        let repositories = self.repositories.parse().map_err(|error: ParsePatternError| refuse(&error))?;
        let mut keys: Vec<PublicKey> = Vec::new();
        for text in &self.keys {
            let key = key(data, text).map_err(|cause| refuse(&cause))?;
            // A key that stands there twice is one signer.
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        if self.threshold == 0 || self.threshold > keys.len() {
            let cause = format!("`threshold` is {}, and {} different keys are given", self.threshold, keys.len());
            return Err(refuse(&cause));
        }
        let demand = Demand { keys, predicates: self.predicates.clone(), threshold: self.threshold };
        Ok(Gate { repositories, demand, pull: self.pull })
    }
}

/// A key as the settings give it.
fn key(data: &Path, text: &str) -> Result<PublicKey, String> {
    let parse = |text: &str| {
        let pem = text.trim_start().starts_with("-----BEGIN");
        if pem { PublicKey::from_pem(text) } else { PublicKey::from_openssh(text) }
    };
    if text == "builder" {
        let keys = Keys::open(&data.join("keys")).map_err(|error| error.to_string())?;
        return Ok(keys.public(Role::Builder).clone());
    }
    if text.trim_start().starts_with("-----BEGIN") || text.contains(' ') {
        return parse(text).map_err(|error| error.to_string());
    }
    let found = read(Path::new(text)).map_err(|error| format!("key {text}: {error}"))?;
    parse(&found).map_err(|error| format!("key {text}: {error}"))
}

/// `[store]`: how blobs are kept.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct StoreSettings {
    /// Large blobs that are like others are stored as what differs.
    pub deduplicate: bool,
    /// How fast all blobs are read again and again to find damage, in MB per second; 0: not at all.
    pub scrub_mb_per_second: u32,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self { deduplicate: true, scrub_mb_per_second: 8 }
    }
}

/// `[registry]`: who may use `/v2/`, and how much.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RegistrySettings {
    /// Anybody who reaches the port may pull, without a token.
    pub anonymous_pull: bool,
    /// Tags that may move: `latest` everywhere, `shop/*:latest` in some repositories.
    #[serde(deserialize_with = "parsed")]
    pub pointers: Vec<adamant_registry::Named>,
}

/// Reads texts whose type parses them.
fn parsed<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let texts = Vec::<String>::deserialize(from)?;
    texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
}

impl Settings {
    /// Reads `file`, or the data directory's `server.toml` if there is one.
    pub fn load(data: &Path, file: Option<&Path>) -> Result<Self, Problem> {
        let path = file.map_or_else(|| data.join(FILE), Path::to_owned);
        let refuse = |cause: &dyn std::fmt::Display| {
            Problem::usage(format!("the settings in {} cannot be used", path.display()))
                .cause(cause)
                .hint("docs/server.md lists every key")
        };
        let text = match read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => return Ok(Self::default()),
            other => other.map_err(|error| refuse(&error))?,
        };
        Self::parse(&text).map_err(|error| refuse(&error.to_string().trim_end()))
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, format!("longer than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The blocks of the reference page, in order, as one file.
    fn documented() -> String {
        let page = include_str!("../../../docs/server.md");
        page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect()
    }

    #[test]
    fn what_the_reference_shows_is_understood_and_is_not_the_default() {
        let shown = Settings::parse(&documented()).unwrap();
        assert_ne!(shown, Settings::default());
    }

    #[test]
    fn a_key_that_does_not_exist_is_named() {
        let error = Settings::parse("[registry]\nanonymous-push = true\n").unwrap_err().to_string();
        assert!(error.contains("anonymous-push") && error.contains("anonymous-pull"), "{error}");
    }

    #[test]
    fn a_name_that_cannot_move_is_refused_at_the_start() {
        let pointers = Settings::parse("[registry]\npointers = [\"latest\", \"shop/*:edge\"]\n").unwrap();
        assert_eq!(pointers.registry.pointers.len(), 2);
        let error = Settings::parse("[registry]\npointers = [\"214\"]\n").unwrap_err().to_string();
        assert!(error.contains("`214` cannot be a pointer"), "{error}");
    }

    #[test]
    fn a_gate_has_its_keys_or_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let key = adamant_attest::SigningKey::generate(adamant_attest::Algorithm::EcdsaP256).unwrap();
        let file = dir.path().join("release.pem");
        std::fs::write(&file, key.public().to_pem()).unwrap();
        let open = |keys: &[&str], threshold: usize| {
            let keys = keys.iter().map(|text| (*text).to_owned()).collect();
            let (repositories, predicates) = ("shop/*".to_owned(), Vec::new());
            GateSettings { repositories, keys, predicates, threshold, pull: false }.open(dir.path())
        };
        let (file, inline) = (file.to_str().unwrap(), key.public().to_pem());
        assert_eq!(open(&[file, &inline], 1).unwrap().demand.keys, [key.public().clone()]);
        for (keys, threshold, cause) in [
            (&[file, &inline][..], 2, "1 different keys"),
            (&[], 1, "0 different keys"),
            (&[file], 0, "`threshold` is 0"),
            (&["/nowhere.pem"], 1, "/nowhere.pem"),
            (&["ssh-rsa AAAA"], 1, "not a SubjectPublicKeyInfo"),
        ] {
            let problem = format!("{:?}", open(keys, threshold).unwrap_err());
            assert!(problem.contains(cause), "{cause}: {problem}");
        }
    }

    #[test]
    fn a_named_file_must_be_there_and_the_usual_one_need_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Settings::load(dir.path(), None).unwrap(), Settings::default());
        let missing = dir.path().join("other.toml");
        let problem = Settings::load(dir.path(), Some(&missing)).unwrap_err().to_string();
        assert!(problem.contains("other.toml"), "{problem}");
        std::fs::write(dir.path().join(FILE), "[registry]\nanonymous-pull = true\n").unwrap();
        assert!(Settings::load(dir.path(), None).unwrap().registry.anonymous_pull);
    }
}
