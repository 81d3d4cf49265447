//! The documents that name what runs.

use std::collections::BTreeMap;

use adamant_attest::predicate::ArtifactRef;
use adamant_digest::Digest;
use serde::{Deserialize, Serialize};

use crate::Document;

/// What a push made: the artifacts of one commit under a number of the project.
///
/// JSON: `{"artifacts":[{"digest","name","platform"}],"commit","lock","number","project",
/// "services":[{"artifact","health"?,"port"?}],"tree","version":1}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// Always 1.
    pub version: u32,
    /// The project.
    pub project: String,
    /// From 1, once per project.
    pub number: u64,
    /// Git object id of the commit, lower-case hex.
    pub commit: String,
    /// Digest of the commit's tree.
    pub tree: Digest,
    /// Digest of the combined lock.
    pub lock: Digest,
    /// Sorted by name and platform.
    pub artifacts: Vec<ArtifactRef>,
    /// What of it runs, sorted by artifact.
    pub services: Vec<Service>,
}

/// An artifact that runs as a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Name of the artifact.
    pub artifact: String,
    /// TCP port the program listens on; absent if it serves nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// HTTP path that answers 2xx when healthy; absent if a connection is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
}

/// Where and how a rollout runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// `local`.
    pub kind: String,
    /// What runs, sorted by artifact.
    pub services: Vec<Service>,
}

/// Release, configuration, policy and target under one digest: what runs in an environment.
///
/// JSON: `{"artifacts":[…],"configuration","environment","policy","project","release",
/// "releaseDigest","target":{"kind","services":[…]},"version":1}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// Always 1.
    pub version: u32,
    /// The project.
    pub project: String,
    /// The environment.
    pub environment: String,
    /// `project/number`.
    pub release: String,
    /// Digest of the release document.
    pub release_digest: Digest,
    /// The artifacts of the release.
    pub artifacts: Vec<ArtifactRef>,
    /// Digest of the configuration revision.
    pub configuration: Digest,
    /// Digest of the rules.
    pub policy: Digest,
    /// How it runs.
    pub target: Target,
}

/// A configuration revision of an environment. JSON: `{"env":{"NAME":"value"}}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// Environment variables of every service.
    pub env: BTreeMap<String, String>,
}

impl Release {
    /// `project/number`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.project, self.number)
    }

    /// The rollout of this release to `environment`.
    pub fn rollout(
        &self,
        environment: &str,
        configuration: Digest,
        policy: Digest,
    ) -> Result<Rollout, crate::DocumentError> {
        Ok(Rollout {
            version: 1,
            project: self.project.clone(),
            environment: environment.to_owned(),
            release: self.name(),
            release_digest: self.digest()?,
            artifacts: self.artifacts.clone(),
            configuration,
            policy,
            target: Target { kind: "local".to_owned(), services: self.services.clone() },
        })
    }
}

impl Document for Release {
    const NAME: &'static str = "release";

    fn check(&self) -> Result<(), String> {
        version(self.version)?;
        name("project", &self.project)?;
        if self.number == 0 || self.number >= 1 << 53 {
            return Err(format!("number {} is not between 1 and 2^53", self.number));
        }
        let hex = self.commit.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !hex || !matches!(self.commit.len(), 40 | 64) {
            return Err(format!("`{}` is not a commit id", excerpt(&self.commit)));
        }
        artifacts(&self.artifacts)?;
        services(&self.services, &self.artifacts)
    }
}

impl Document for Rollout {
    const NAME: &'static str = "rollout";

    fn check(&self) -> Result<(), String> {
        version(self.version)?;
        name("project", &self.project)?;
        name("environment", &self.environment)?;
        let number = self.release.strip_prefix(&self.project).and_then(|rest| rest.strip_prefix('/'));
        if !number.is_some_and(|n| n.parse::<u64>().is_ok_and(|v| v > 0 && v.to_string() == n)) {
            return Err(format!("`{}` is not a release of {}", excerpt(&self.release), self.project));
        }
        if self.target.kind != "local" {
            return Err(format!("target kind `{}` is not known, `local` is", excerpt(&self.target.kind)));
        }
        artifacts(&self.artifacts)?;
        services(&self.target.services, &self.artifacts)
    }
}

impl Document for Configuration {
    const NAME: &'static str = "configuration";

    fn check(&self) -> Result<(), String> {
        if self.env.len() > 1000 {
            return Err(format!("{} variables, at most 1000 are allowed", self.env.len()));
        }
        for (key, value) in &self.env {
            let head = key.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
            if !head || key.len() > 200 || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(format!("`{}` is not a name of a variable", excerpt(key)));
            }
            if value.contains('\0') || value.len() > 64 * 1024 {
                return Err(format!("the value of {key} holds a NUL byte or is above 64 KiB"));
            }
        }
        Ok(())
    }
}

/// Whether `text` can name a project, an environment or an artifact: a DNS label of lower-case
/// letters, digits and inner hyphens, at most 40 bytes.
pub fn valid_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 40
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

pub(crate) fn name(what: &str, text: &str) -> Result<(), String> {
    if valid_name(text) {
        return Ok(());
    }
    Err(format!(
        "`{}` is not a name of {what}: lower-case letters, digits and inner hyphens, at most 40",
        excerpt(text)
    ))
}

pub(crate) fn version(found: u32) -> Result<(), String> {
    if found == 1 { Ok(()) } else { Err(format!("version {found} is not known, 1 is")) }
}

fn artifacts(artifacts: &[ArtifactRef]) -> Result<(), String> {
    if artifacts.is_empty() || artifacts.len() > 100 {
        return Err(format!("{} artifacts, expected 1 to 100", artifacts.len()));
    }
    for artifact in artifacts {
        name("artifact", &artifact.name)?;
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"/._-".contains(&b);
        if artifact.platform.is_empty() || artifact.platform.len() > 60 || !artifact.platform.bytes().all(ok) {
            return Err(format!("`{}` is not a platform", excerpt(&artifact.platform)));
        }
    }
    let key = |a: &ArtifactRef| (a.name.clone(), a.platform.clone());
    sorted("artifacts", artifacts.iter().map(key))
}

fn services(services: &[Service], artifacts: &[ArtifactRef]) -> Result<(), String> {
    for service in services {
        if !artifacts.iter().any(|a| a.name == service.artifact) {
            return Err(format!("service `{}` is not among the artifacts", excerpt(&service.artifact)));
        }
        if service.port == Some(0) {
            return Err(format!("service `{}` has port 0", service.artifact));
        }
        if let Some(path) = &service.health {
            let graphic = path.bytes().all(|b| b.is_ascii_graphic());
            if !path.starts_with('/') || !graphic || path.len() > 500 || service.port.is_none() {
                return Err(format!("health path `{}` of `{}` needs a port and `/`", excerpt(path), service.artifact));
            }
        }
    }
    sorted("services", services.iter().map(|s| s.artifact.clone()))
}

fn sorted<T: Ord>(what: &str, items: impl Iterator<Item = T>) -> Result<(), String> {
    let items: Vec<T> = items.collect();
    if items.windows(2).all(|pair| pair[0] < pair[1]) {
        return Ok(());
    }
    Err(format!("{what} are not sorted or not unique"))
}

pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn release() -> Release {
        let digest = Digest::of(b"web");
        Release {
            version: 1,
            project: "shop".into(),
            number: 214,
            commit: "9f3c1e2".repeat(6)[..40].to_owned(),
            tree: Digest::of(b"tree"),
            lock: Digest::of(b"lock"),
            artifacts: vec![ArtifactRef { name: "web".into(), platform: "linux/amd64".into(), digest }],
            services: vec![Service { artifact: "web".into(), port: Some(8080), health: Some("/health".into()) }],
        }
    }

    #[test]
    fn golden_bytes() {
        let text = String::from_utf8(release().encode().unwrap().into_bytes()).unwrap();
        let web = Digest::of(b"web");
        let expected = format!(
            "{{\"artifacts\":[{{\"digest\":\"{web}\",\"name\":\"web\",\"platform\":\"linux/amd64\"}}],\
             \"commit\":\"9f3c1e29f3c1e29f3c1e29f3c1e29f3c1e29f3c1\",\"lock\":\"{}\",\"number\":214,\
             \"project\":\"shop\",\"services\":[{{\"artifact\":\"web\",\"health\":\"/health\",\"port\":8080}}],\
             \"tree\":\"{}\",\"version\":1}}",
            Digest::of(b"lock"),
            Digest::of(b"tree"),
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn reads_back_only_its_own_bytes() {
        let release = release();
        let bytes = release.encode().unwrap().into_bytes();
        assert_eq!(Release::parse(&bytes).unwrap(), release);
        let text = String::from_utf8(bytes).unwrap();
        for (from, to) in [
            ("{\"artifacts\"", "{ \"artifacts\""),
            ("\"version\":1", "\"version\":2"),
            ("\"version\":1", "\"version\":1,\"x\":1"),
            ("\"number\":214", "\"number\":214,\"number\":214"),
            ("\"number\":214", "\"number\":0"),
            ("\"name\":\"web\"", "\"name\":\"Web\""),
            ("\"name\":\"web\"", "\"name\":\"api\""),
            ("\"port\":8080", "\"port\":0"),
            ("/health", "health"),
            ("\"platform\":\"linux/amd64\"", "\"platform\":\"linux/amd64\",\"x\":null"),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            assert!(Release::parse(changed.as_bytes()).is_err(), "{to}");
        }
    }

    #[test]
    fn a_rollout_names_everything_that_runs() {
        let a = release().rollout("prod", Digest::of(b"c"), Digest::of(b"p")).unwrap();
        let b = release().rollout("prod", Digest::of(b"d"), Digest::of(b"p")).unwrap();
        let expected = format!(
            "{{\"artifacts\":[{{\"digest\":\"{}\",\"name\":\"web\",\"platform\":\"linux/amd64\"}}],\
             \"configuration\":\"{}\",\"environment\":\"prod\",\"policy\":\"{}\",\"project\":\"shop\",\
             \"release\":\"shop/214\",\"releaseDigest\":\"{}\",\"target\":{{\"kind\":\"local\",\"services\":\
             [{{\"artifact\":\"web\",\"health\":\"/health\",\"port\":8080}}]}},\"version\":1}}",
            Digest::of(b"web"),
            Digest::of(b"c"),
            Digest::of(b"p"),
            release().digest().unwrap(),
        );
        assert_eq!(String::from_utf8(a.encode().unwrap().into_bytes()).unwrap(), expected);
        assert_eq!(Rollout::parse(a.encode().unwrap().bytes()).unwrap(), a);
        assert_ne!(a.digest().unwrap(), b.digest().unwrap());
        let mut wrong = a.clone();
        wrong.release = "other/214".into();
        assert!(wrong.encode().is_err());
        wrong.release = "shop/0214".into();
        assert!(wrong.encode().is_err());
    }

    #[test]
    fn configuration_takes_only_names_of_variables() {
        let with = |key: &str, value: &str| Configuration { env: [(key.to_owned(), value.to_owned())].into() };
        assert_eq!(with("A_1", "é\n").encode().unwrap().bytes(), "{\"env\":{\"A_1\":\"é\\n\"}}".as_bytes());
        for key in ["", "1A", "A=B", "A B", "Ä"] {
            assert!(with(key, "x").encode().is_err(), "{key:?}");
        }
        assert!(with("A", "\0").encode().is_err());
    }
}
