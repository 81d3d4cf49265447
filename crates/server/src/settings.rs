//! `server.toml`: what the operator of a server decides. `docs/server.md` is its reference.
//!
//! Whoever can write this file runs the server; nothing pushed, no client and no token reaches it.
//! It is read once, at the start.

use std::path::{Path, PathBuf};

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
    /// `[[upstream]]`
    #[serde(rename = "upstream")]
    pub upstreams: Vec<UpstreamSettings>,
}

/// `[registry]`: who may use `/v2/`, and how much.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RegistrySettings {
    /// Anybody who reaches the port may pull, without a token.
    pub anonymous_pull: bool,
}

/// `[[upstream]]`: another registry that is read through this one.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct UpstreamSettings {
    /// First part of its repositories here.
    pub name: String,
    /// `https://HOST[:PORT]`; plain `http://` only if it is written so.
    pub url: String,
    /// Repositories there that may be pulled: names, or beginnings that end in `*`.
    #[serde(default = "every_repository")]
    pub repositories: Vec<String>,
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

fn every_repository() -> Vec<String> {
    vec!["*".to_owned()]
}

const fn daily() -> u32 {
    24
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
