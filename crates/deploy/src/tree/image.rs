//! The members of OCI and Docker manifests and configurations that running needs.

use adamant_digest::Digest;
use serde::Deserialize;

/// Most bytes of a manifest or configuration.
pub(crate) const MAX_JSON_BYTES: u64 = 4 << 20;
const MAX_LAYERS: usize = 128;

/// Why an image cannot run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Not the JSON of an image.
    #[error("{digest} is not an image: {reason}")]
    Malformed {
        /// Manifest or configuration.
        digest: Digest,
        /// Why.
        reason: String,
    },
    /// A layer in a format that is not unpacked here.
    #[error("layer {layer} is `{media_type}`; tar and tar+gzip layers can run here")]
    MediaType {
        /// The layer.
        layer: Digest,
        /// Its media type.
        media_type: String,
    },
}

/// How a program of an image is started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `Entrypoint` and `Cmd`.
    pub argv: Vec<String>,
    /// `Env`, in order.
    pub env: Vec<(String, String)>,
    /// `WorkingDir`, `/` if there is none.
    pub cwd: String,
    /// `User`, if it is a number or two.
    pub user: Option<(u32, u32)>,
}

/// A layer of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) digest: Digest,
    pub(crate) gzip: bool,
}

/// A manifest's configuration and layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Digest,
    pub(crate) layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: u32,
    #[serde(default)]
    manifests: Option<serde_json::Value>,
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Vec<RawDescriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: String,
    digest: Digest,
}

#[derive(Deserialize)]
struct RawImage {
    #[serde(default)]
    config: Option<RawConfig>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawConfig {
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    cmd: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    working_dir: Option<String>,
    #[serde(default)]
    user: Option<String>,
}

/// The digest of the configuration a manifest names.
pub(crate) fn config_of(digest: Digest, manifest: &[u8]) -> Result<Digest, ImageError> {
    Manifest::parse(digest, manifest).map(|manifest| manifest.config)
}

impl Manifest {
    pub(crate) fn parse(digest: Digest, bytes: &[u8]) -> Result<Self, ImageError> {
        let bad = |reason: String| ImageError::Malformed { digest, reason };
        let raw: RawManifest = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        if raw.manifests.is_some() {
            return Err(bad("it is an index of several; name the manifest of one platform".to_owned()));
        }
        let config = raw.config.ok_or_else(|| bad("it has no configuration".to_owned()))?;
        if raw.schema_version != 2 || raw.layers.len() > MAX_LAYERS {
            return Err(bad(format!("schema version {}, {} layers", raw.schema_version, raw.layers.len())));
        }
        let layer = |layer: RawDescriptor| {
            let gzip = match layer.media_type.as_str() {
                "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => false,
                "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
                    true
                }
                _ => return Err(ImageError::MediaType { layer: layer.digest, media_type: layer.media_type }),
            };
            Ok(Layer { digest: layer.digest, gzip })
        };
        Ok(Self { config: config.digest, layers: raw.layers.into_iter().map(layer).collect::<Result<_, _>>()? })
    }
}

impl ImageConfig {
    pub(crate) fn parse(digest: Digest, bytes: &[u8]) -> Result<Self, ImageError> {
        let bad = |reason: String| ImageError::Malformed { digest, reason };
        let raw: RawImage = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        let raw = raw.config.unwrap_or_default();
        let mut argv = raw.entrypoint.unwrap_or_default();
        argv.extend(raw.cmd.unwrap_or_default());
        if argv.is_empty() {
            return Err(bad("it names no program to run".to_owned()));
        }
        let pair = |text: String| match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(bad(format!("`{text}` is not an environment variable"))),
        };
        let env = raw.env.unwrap_or_default().into_iter().map(pair).collect::<Result<_, _>>()?;
        let cwd = raw.working_dir.filter(|dir| !dir.is_empty()).unwrap_or_else(|| "/".to_owned());
        if !cwd.starts_with('/') || cwd.split('/').any(|part| part == "..") {
            return Err(bad(format!("working directory `{cwd}` is not absolute")));
        }
        Ok(Self { argv, env, cwd, user: raw.user.as_deref().and_then(user) })
    }
}

fn user(text: &str) -> Option<(u32, u32)> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests() {
        let d = Digest::of(b"x");
        let manifest = |media: &str| {
            format!(
                "{{\"schemaVersion\":2,\"config\":{{\"mediaType\":\"c\",\"digest\":\"{d}\",\"size\":1}},\
                 \"layers\":[{{\"mediaType\":\"{media}\",\"digest\":\"{d}\",\"size\":1}}]}}"
            )
        };
        let parse = |text: &str| Manifest::parse(d, text.as_bytes());
        assert!(parse(&manifest("application/vnd.oci.image.layer.v1.tar+gzip")).unwrap().layers[0].gzip);
        assert!(!parse(&manifest("application/vnd.docker.image.rootfs.diff.tar")).unwrap().layers[0].gzip);
        let zstd = parse(&manifest("application/vnd.oci.image.layer.v1.tar+zstd"));
        assert!(matches!(zstd, Err(ImageError::MediaType { .. })));
        assert!(parse("{\"schemaVersion\":2,\"manifests\":[]}").unwrap_err().to_string().contains("index"));
        assert!(parse("{\"schemaVersion\":1}").is_err());
    }

    #[test]
    fn configurations() {
        let d = Digest::of(b"x");
        let parse = |text: &str| ImageConfig::parse(d, text.as_bytes());
        let config = parse(
            "{\"config\":{\"Entrypoint\":[\"/a\"],\"Cmd\":[\"b\"],\"Env\":[\"A=1=2\"],\"User\":\"7:8\",\"WorkingDir\":\"/w\"}}",
        )
        .unwrap();
        assert_eq!(config.argv, ["/a", "b"]);
        assert_eq!(config.env, [("A".to_owned(), "1=2".to_owned())]);
        assert_eq!((config.cwd.as_str(), config.user), ("/w", Some((7, 8))));
        assert!(parse("{\"config\":{}}").unwrap_err().to_string().contains("no program"));
        assert!(parse("{\"config\":{\"Cmd\":[\"a\"],\"WorkingDir\":\"../x\"}}").is_err());
    }
}
