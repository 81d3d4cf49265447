//! Image configurations. Spec: image-spec 1.1, config.md.

use std::collections::{BTreeMap, BTreeSet};

use adamant_digest::{Digest, Verified};
use serde::{Deserialize, Serialize};

use crate::descriptor::null_is_default;

/// The configuration of an image. Printing is deterministic: members in the order of this
/// declaration, maps sorted, no white space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// CPU, in Go's words.
    pub architecture: String,
    /// Operating system, in Go's words.
    pub os: String,
    /// Variant of the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// How to run it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: RuntimeConfig,
    /// The layers, uncompressed.
    pub rootfs: RootFs,
    /// Where the layers came from.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
}

/// How to run an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RuntimeConfig {
    /// `user`, `uid`, `user:group` or `uid:gid`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `port`, `port/tcp` or `port/udp`.
    #[serde(with = "set", skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed_ports: BTreeSet<String>,
    /// `NAME=value`.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The command, or what goes before `cmd`.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Arguments that a user replaces.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Paths that hold data.
    #[serde(with = "set", skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<String>,
    /// Where the process starts.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Free text by key.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Signal that asks it to end.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
}

/// A set as the specification writes it: an object whose values are `{}`.
mod set {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::{Deserialize, Deserializer, Serializer};
    use serde_json::{Map, Value};

    pub(super) fn serialize<S: Serializer>(set: &BTreeSet<String>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(set.iter().map(|key| (key, Map::new())))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
        let map = Option::<BTreeMap<String, Value>>::deserialize(deserializer)?;
        Ok(map.unwrap_or_default().into_keys().collect())
    }
}

/// The layers of an image by the digests of their uncompressed tar files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// From the lowest up.
    pub diff_ids: Vec<Digest>,
}

impl RootFs {
    /// The layers of an image, from the lowest up.
    pub fn layers(diff_ids: Vec<Digest>) -> Self {
        Self { kind: "layers".to_owned(), diff_ids }
    }
}

/// Where a layer came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Who.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// In words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether the step made no layer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

impl ImageConfig {
    /// Reads a configuration; unknown members are passed over.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// The bytes to keep and sign: equal configurations print equal bytes.
    pub fn print(&self) -> Verified {
        // Strings, numbers and maps with string keys only: printing cannot fail.
        Verified::hash(serde_json::to_vec(self).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_the_same_bytes_for_ever() {
        let config = ImageConfig {
            created: Some("1980-01-01T00:00:00Z".to_owned()),
            author: None,
            architecture: "amd64".to_owned(),
            os: "linux".to_owned(),
            variant: None,
            config: RuntimeConfig {
                user: "65532:65532".to_owned(),
                exposed_ports: ["8080/tcp".to_owned()].into(),
                env: vec!["PATH=/usr/bin".to_owned()],
                entrypoint: vec!["/app".to_owned()],
                cmd: vec!["-x".to_owned()],
                working_dir: "/".to_owned(),
                labels: [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into(),
                ..RuntimeConfig::default()
            },
            rootfs: RootFs::layers(vec![Digest::of(b"")]),
            history: vec![History { created_by: Some("adamant".to_owned()), ..History::default() }],
        };
        let expected = concat!(
            r#"{"created":"1980-01-01T00:00:00Z","architecture":"amd64","os":"linux","config":{"User":"65532:65532","#,
            r#""ExposedPorts":{"8080/tcp":{}},"Env":["PATH=/usr/bin"],"Entrypoint":["/app"],"Cmd":["-x"],"#,
            r#""WorkingDir":"/","Labels":{"a":"1","b":"2"}},"rootfs":{"type":"layers","diff_ids":["#,
            r#""sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]},"#,
            r#""history":[{"created_by":"adamant"}]}"#,
        );
        assert_eq!(String::from_utf8(config.print().into_bytes()).unwrap(), expected);
        assert_eq!(ImageConfig::parse(expected.as_bytes()).unwrap(), config);
    }

    #[test]
    fn reads_what_go_prints() {
        let text = r#"{"architecture":"arm64","os":"linux","x":1,"config":{"Env":null,"Cmd":null,"OnBuild":null,
            "Labels":null,"Volumes":{"/v":{}},"Tty":false},"rootfs":{"type":"layers","diff_ids":[]},"history":null}"#;
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.config.volumes.len(), 1);
        assert!(config.config.env.is_empty());
    }
}
