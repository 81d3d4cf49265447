//! `server.toml`: what the operator of a server decides. `docs/server.md` is its reference.
//!
//! Whoever can write this file runs the server; nothing pushed, no client and no token reaches it.
//! It is read once, at the start.

use std::path::{Path, PathBuf};
use std::time::Duration;

use adamant_attest::PublicKey;
use adamant_attest::predicate::Role;
use adamant_ledger::Keys;
use adamant_registry::{Action, Demand, Gate, ParsePatternError, Pattern, Quota, Reserve, Rights, Scope};
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
    /// `[server]`
    pub server: ServerSettings,
    /// `[tls]`; without it, the server speaks plain HTTP.
    pub tls: Option<TlsSettings>,
    /// `[registry]`
    pub registry: RegistrySettings,
    /// `[database]`
    pub database: DatabaseSettings,
    /// `[blobs]`
    pub blobs: BlobSettings,
    /// `[[gate]]`: what must be signed.
    pub gate: Vec<GateSettings>,
    /// `[[upstream]]`
    #[serde(rename = "upstream")]
    pub upstreams: Vec<UpstreamSettings>,
    /// `[store]`
    pub store: StoreSettings,
    /// `[[webhook]]`
    #[serde(rename = "webhook")]
    pub webhooks: Vec<WebhookSettings>,
}

/// `[[webhook]]`: a receiver that is told what is pushed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WebhookSettings {
    /// Its name, under which its position is kept.
    pub name: String,
    /// Where deliveries go.
    pub url: String,
    /// File with the secret that signs them; a relative path is below the data directory.
    pub secret_file: PathBuf,
    /// What it is told; empty: everything.
    #[serde(default)]
    pub events: Vec<EventKind>,
    /// Pattern of the repositories it is told of; `None`: all.
    #[serde(default)]
    pub repositories: Option<String>,
}

/// What a webhook can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A manifest is new to a repository, a tag was bound or a pointer was moved.
    Published,
    /// A signature of a manifest was pushed.
    Signed,
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

/// `[server]`: under which names clients reach it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ServerSettings {
    /// Host names that may be asked for beside the address listened on, with any port. The first one
    /// stands in remotes and links.
    pub hosts: Vec<String>,
    /// Base URL for clients, where something stands between them and this server.
    pub url: Option<String>,
}

/// `[tls]`: files in PEM; relative paths are below the data directory.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TlsSettings {
    /// The certificate, followed by those it rests on.
    pub certificate: std::path::PathBuf,
    /// Its private key.
    pub key: std::path::PathBuf,
}

impl Settings {
    /// How fast stored bytes are read again, in bytes per second; 0: not at all.
    pub fn scrub_bytes_per_second(&self) -> u64 {
        let default = if self.blobs.url.is_some() { 0 } else { 8 };
        u64::from(self.store.scrub_mb_per_second.unwrap_or(default)) * 1_000_000
    }

    /// Base URL of a server that listens on `address`.
    pub(crate) fn base_url(&self, address: std::net::SocketAddr) -> String {
        if let Some(url) = &self.server.url {
            return url.trim_end_matches('/').to_owned();
        }
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        match self.server.hosts.first() {
            Some(host) => format!("{scheme}://{host}:{}", address.port()),
            None if address.ip().is_unspecified() => format!("{scheme}://localhost:{}", address.port()),
            None => format!("{scheme}://{address}"),
        }
    }

    /// Whether a host name, without its port, is one of ours.
    pub(crate) fn names(&self, host: &str) -> bool {
        let own = self.server.url.as_deref().and_then(|url| url.split_once("://")).map(|(_, rest)| rest);
        let own = own.map(|rest| without_port(rest.split('/').next().unwrap_or(rest)));
        own == Some(host) || self.server.hosts.iter().any(|name| name.eq_ignore_ascii_case(host))
    }
}

/// `host` of `host:port`; an address in brackets keeps them.
pub(crate) fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']')) =>
        {
            host
        }
        _ => authority,
    }
}

/// `[store]`: how blobs are kept, and for how long.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct StoreSettings {
    /// Large blobs that are like others are stored as what differs.
    pub deduplicate: bool,
    /// How fast all blobs are read again and again to find damage, in MB per second; 0: not at all, the
    /// default in a bucket, where reading costs money and the store looks after its bytes itself.
    pub scrub_mb_per_second: Option<u32>,
    /// How long content that no name leads to stays after its last use.
    pub grace: Option<Grace>,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self { deduplicate: true, scrub_mb_per_second: None, grace: None }
    }
}

impl StoreSettings {
    /// The grace period in force.
    pub fn grace(&self) -> Duration {
        self.grace.map_or(Duration::from_hours(7 * 24), |grace| grace.0)
    }
}

/// A grace period, as `7d` or `36h`; at least a day, which is longer than an unfinished upload lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Grace(Duration);

impl TryFrom<String> for Grace {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let hours = match (text.strip_suffix('d'), text.strip_suffix('h')) {
            (Some(days), _) => days.parse::<u64>().ok().and_then(|days| days.checked_mul(24)),
            (_, Some(hours)) => hours.parse::<u64>().ok(),
            _ => None,
        };
        match hours {
            Some(hours @ 24..=87_600) => Ok(Self(Duration::from_hours(hours))),
            Some(_) => Err(format!("`{text}` is not between 1d and 3650d")),
            None => Err(format!("`{text}` is no time: write days or hours, as `7d` or `36h`")),
        }
    }
}

/// `[registry]`: who may use `/v2/`, and how much.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RegistrySettings {
    /// Anybody who reaches the port may pull, without a token.
    pub anonymous_pull: AnonymousPull,
    /// Tags that may move: `latest` everywhere, `shop/*:latest` in some repositories.
    #[serde(deserialize_with = "parsed")]
    pub pointers: Vec<adamant_registry::Named>,
    /// Space that pushes leave free where blobs are kept, in MiB.
    pub reserve_mb: u64,
    /// How much repositories may hold; the first that means a repository holds for it.
    pub quota: Vec<QuotaSettings>,
    /// Requests a second of one caller; `None`: as many as they like.
    pub requests_per_second: Option<u32>,
    /// Requests that one caller may send at once before that; by default ten seconds' worth.
    pub burst: Option<u32>,
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

/// `[database]`: where the facts are.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct DatabaseSettings {
    /// `postgres://…`; without it, a SQLite file in the data directory.
    pub url: Option<String>,
}

/// `[blobs]`: where the bytes are.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct BlobSettings {
    /// `s3://bucket/prefix`; without it, files in the data directory.
    pub url: Option<String>,
    /// Address of the store; without it, AWS in that region.
    pub endpoint: Option<String>,
    /// Region that requests are signed for; `us-east-1` if none is given.
    pub region: Option<String>,
    /// The bucket is part of the path and not of the host's name.
    pub path_style: bool,
    /// File with the access key, in the form of AWS's tools; without it, the usual variables.
    pub credentials: Option<std::path::PathBuf>,
}

/// `[[upstream]]`: another registry that is read through this one.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct UpstreamSettings {
    /// First part of its repositories here.
    pub name: String,
    /// `https://HOST[:PORT]`; plain `http://` only if it is written so.
    pub url: String,
    /// Repositories there that may be pulled: patterns of their names.
    #[serde(default = "every_repository", deserialize_with = "parsed")]
    pub repositories: Vec<Pattern>,
    /// Name to log in with.
    #[serde(default)]
    pub user: Option<String>,
    /// File with the password alone.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// Environment variable with the password.
    #[serde(default)]
    pub password_env: Option<String>,
    /// Host of its token service, if the credentials may be sent there.
    #[serde(default)]
    pub token_host: Option<String>,
    /// Certificates to trust besides the system's, PEM.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// It has the repositories of this server by the same names: ask it for what is damaged here.
    #[serde(default)]
    pub heal: bool,
    /// How often the bound tags are compared with those there; 0: never by itself.
    #[serde(default = "daily")]
    pub check_hours: u32,
}

fn every_repository() -> Vec<Pattern> {
    vec![Pattern::all()]
}

const fn daily() -> u32 {
    24
}

/// Which repositories anybody may pull from: all, none, or those that patterns mean.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum AnonymousPull {
    /// All or none.
    Everywhere(bool),
    /// These.
    From(Vec<String>),
}

impl Default for AnonymousPull {
    fn default() -> Self {
        Self::Everywhere(false)
    }
}

/// `[[registry.quota]]`: how much repositories may hold.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct QuotaSettings {
    /// Pattern of their names.
    pub repositories: String,
    /// Most of each, in MiB.
    pub mb: u64,
}

const MIB: u64 = 1 << 20;

impl RegistrySettings {
    pub(crate) fn anonymous(&self) -> Result<Rights, Problem> {
        match &self.anonymous_pull {
            AnonymousPull::Everywhere(true) => Ok(Rights::everywhere(&[Action::Pull])),
            AnonymousPull::Everywhere(false) => Ok(Rights::none()),
            AnonymousPull::From(patterns) => {
                let scope = |text: &String| Ok(Scope::new(pattern("anonymous-pull", text)?, &[Action::Pull]));
                Rights::new(patterns.iter().map(scope).collect::<Result<_, Problem>>()?)
                    .map_err(|error| Problem::usage("anonymous-pull cannot be used").cause(error))
            }
        }
    }

    pub(crate) fn quotas(&self) -> Result<Vec<Quota>, Problem> {
        let quota = |one: &QuotaSettings| {
            let repositories = pattern("registry.quota", &one.repositories)?;
            Ok(Quota { repositories, bytes: one.mb.saturating_mul(MIB) })
        };
        self.quota.iter().map(quota).collect()
    }

    pub(crate) fn reserve(&self, data: &Path) -> Option<Reserve> {
        let data = data.to_owned();
        let free = move || {
            let found = rustix::fs::statvfs(&data)?;
            Ok(found.f_bavail.saturating_mul(found.f_frsize))
        };
        let bytes = self.reserve_mb.saturating_mul(MIB);
        (bytes > 0).then(|| Reserve { bytes, free: std::sync::Arc::new(free) })
    }
}

pub(crate) fn pattern(key: &str, text: &str) -> Result<Pattern, Problem> {
    text.parse().map_err(|error| Problem::usage(format!("`{key}` of server.toml cannot be used")).cause(error))
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
    fn a_grace_period_is_days_or_hours_and_at_least_a_day() {
        let check = |text: &str, expected: Option<u64>| {
            let found = Settings::parse(&format!("[store]\ngrace = \"{text}\"\n"));
            assert_eq!(found.ok().map(|s| s.store.grace().as_secs() / 3600), expected, "{text}");
        };
        check("7d", Some(168));
        check("36h", Some(36));
        check("24h", Some(24));
        for wrong in ["23h", "0d", "", "d", "7", "7w", "-1d", "99999d", "18446744073709551615d"] {
            check(wrong, None);
        }
        assert_eq!(Settings::default().store.grace(), Duration::from_hours(168));
    }

    #[test]
    fn a_named_file_must_be_there_and_the_usual_one_need_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Settings::load(dir.path(), None).unwrap(), Settings::default());
        let missing = dir.path().join("other.toml");
        let problem = Settings::load(dir.path(), Some(&missing)).unwrap_err().to_string();
        assert!(problem.contains("other.toml"), "{problem}");
        std::fs::write(dir.path().join(FILE), "[registry]\nanonymous-pull = true\n").unwrap();
        assert!(Settings::load(dir.path(), None).unwrap().registry.anonymous_pull == AnonymousPull::Everywhere(true));
    }
}
