//! Manifests and indexes. Spec: image-spec 1.1, manifest.md and image-index.md.

use std::collections::BTreeMap;

use adamant_digest::{Digest, Verified};
use serde::{Deserialize, Serialize};

use crate::descriptor::null_is_default;
use crate::{Descriptor, media};

/// A parsed manifest or index with the exact bytes it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    bytes: Verified,
    kind: ManifestKind,
    content: Content,
    meta: ArtifactMeta,
}

/// The four manifest types. The type is a function of the bytes: it is their `mediaType`, or,
/// where that is absent, OCI's for the members they have. So no record besides the bytes is
/// needed to serve them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestKind {
    /// OCI image manifest.
    OciImage,
    /// OCI image index.
    OciIndex,
    /// Docker schema 2.
    DockerImage,
    /// Docker manifest list.
    DockerList,
}

/// What a manifest holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// An image or artifact.
    Image {
        /// Its configuration.
        config: Box<Descriptor>,
        /// Its layers, from the lowest up.
        layers: Vec<Descriptor>,
    },
    /// A list of manifests.
    Index {
        /// Its children.
        manifests: Vec<Descriptor>,
    },
}

/// The members that images and indexes share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArtifactMeta {
    /// Type of the artifact, if it is not an image.
    pub artifact_type: Option<String>,
    /// The manifest that this one refers to.
    pub subject: Option<Descriptor>,
    /// Free text by key.
    pub annotations: BTreeMap<String, String>,
}

/// Why bytes are not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or members of wrong types.
    #[error("the manifest cannot be read: {0}")]
    Json(String),
    /// `schemaVersion` is not 2.
    #[error("the manifest has schemaVersion {0}: only 2 is supported")]
    SchemaVersion(u64),
    /// A type that is not one of the four.
    #[error("the manifest has the unsupported media type `{0}`: use an OCI manifest or index or Docker's schema 2")]
    MediaType(String),
    /// A member that its type demands is absent.
    #[error("the manifest is of type `{media_type}` but has no `{member}`")]
    Missing {
        /// The type.
        media_type: &'static str,
        /// The member.
        member: &'static str,
    },
    /// A document that one client would read as an image and another as an index.
    #[error("the manifest is ambiguous: it has the members of an image and of an index")]
    Ambiguous,
}

impl ManifestKind {
    /// The media type.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::OciImage => media::OCI_MANIFEST,
            Self::OciIndex => media::OCI_INDEX,
            Self::DockerImage => media::DOCKER_MANIFEST,
            Self::DockerList => media::DOCKER_LIST,
        }
    }

    /// Whether it lists manifests.
    pub const fn is_index(self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }

    fn from_media_type(text: &str) -> Option<Self> {
        [Self::OciImage, Self::OciIndex, Self::DockerImage, Self::DockerList]
            .into_iter()
            .find(|kind| kind.media_type() == text)
    }
}

impl Manifest {
    /// Reads a manifest and hashes it.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, ManifestError> {
        Self::from_verified(Verified::hash(bytes))
    }

    /// Reads a manifest whose digest was checked.
    pub fn from_verified(bytes: Verified) -> Result<Self, ManifestError> {
        let wire: Wire =
            serde_json::from_slice(bytes.bytes()).map_err(|error| ManifestError::Json(error.to_string()))?;
        if wire.schema_version != 2 {
            return Err(ManifestError::SchemaVersion(wire.schema_version));
        }
        // image-spec, manifest.md: a document that can be read both ways must not be accepted.
        if wire.manifests.is_some() && (wire.config.is_some() || wire.layers.is_some()) {
            return Err(ManifestError::Ambiguous);
        }
        let kind = match wire.media_type.as_deref() {
            Some(text) => ManifestKind::from_media_type(text)
                .ok_or_else(|| ManifestError::MediaType(crate::names::excerpt(text)))?,
            None if wire.config.is_some() => ManifestKind::OciImage,
            None => ManifestKind::OciIndex,
        };
        let missing = |member| ManifestError::Missing { media_type: kind.media_type(), member };
        let content = if kind.is_index() {
            if wire.config.is_some() || wire.layers.is_some() {
                return Err(ManifestError::Ambiguous);
            }
            Content::Index { manifests: wire.manifests.ok_or_else(|| missing("manifests"))?.0 }
        } else {
            if wire.manifests.is_some() {
                return Err(ManifestError::Ambiguous);
            }
            let layers = wire.layers.unwrap_or_default().0;
            Content::Image { config: Box::new(wire.config.ok_or_else(|| missing("config"))?), layers }
        };
        let meta = ArtifactMeta {
            artifact_type: wire.artifact_type.filter(|text| !text.is_empty()),
            subject: wire.subject,
            annotations: wire.annotations,
        };
        Ok(Self { bytes, kind, content, meta })
    }

    /// Makes an OCI image manifest. Equal arguments give equal bytes.
    pub fn image(config: Descriptor, layers: Vec<Descriptor>, meta: ArtifactMeta) -> Self {
        Self::build(ManifestKind::OciImage, Content::Image { config: Box::new(config), layers }, meta)
    }

    /// Makes an OCI index. Equal arguments give equal bytes.
    pub fn index(manifests: Vec<Descriptor>, meta: ArtifactMeta) -> Self {
        Self::build(ManifestKind::OciIndex, Content::Index { manifests }, meta)
    }

    fn build(kind: ManifestKind, content: Content, meta: ArtifactMeta) -> Self {
        let (config, layers, manifests) = match &content {
            Content::Image { config, layers } => (Some(&**config), Some(layers), None),
            Content::Index { manifests } => (None, None, Some(manifests)),
        };
        let printed = Printed {
            schema_version: 2,
            media_type: kind.media_type(),
            artifact_type: meta.artifact_type.as_deref(),
            config,
            layers,
            manifests,
            subject: meta.subject.as_ref(),
            annotations: &meta.annotations,
        };
        // Strings, numbers and maps with string keys only: printing cannot fail.
        let bytes = serde_json::to_vec(&printed).unwrap_or_default();
        Self { bytes: Verified::hash(bytes), kind, content, meta }
    }

    /// The exact bytes, with their digest.
    pub const fn bytes(&self) -> &Verified {
        &self.bytes
    }

    /// Gives the bytes away.
    pub fn into_bytes(self) -> Verified {
        self.bytes
    }

    /// The digest of the exact bytes.
    pub const fn digest(&self) -> Digest {
        self.bytes.digest()
    }

    /// Length of the exact bytes.
    pub fn size(&self) -> u64 {
        self.bytes.bytes().len() as u64
    }

    /// Its type.
    pub const fn kind(&self) -> ManifestKind {
        self.kind
    }

    /// What it holds.
    pub const fn content(&self) -> &Content {
        &self.content
    }

    /// The members that images and indexes share.
    pub const fn meta(&self) -> &ArtifactMeta {
        &self.meta
    }

    /// The descriptor under which a referrers list names it (distribution-spec 1.1, "Listing
    /// Referrers"): its own `artifactType`, for an image else its configuration's media type;
    /// its own annotations.
    pub fn referrer(&self) -> Descriptor {
        let artifact_type = match (&self.meta.artifact_type, &self.content) {
            (Some(own), _) => Some(own.clone()),
            (None, Content::Image { config, .. }) => Some(config.media_type.clone()),
            (None, Content::Index { .. }) => None,
        };
        Descriptor {
            artifact_type,
            annotations: self.meta.annotations.clone(),
            ..Descriptor::new(self.kind.media_type(), self.digest(), self.size())
        }
    }
}

/// Only the members that are looked at; all others stay in the bytes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default, deserialize_with = "present")]
    layers: Option<List>,
    #[serde(default, deserialize_with = "present")]
    manifests: Option<List>,
    #[serde(default)]
    subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "null_is_default")]
    annotations: BTreeMap<String, String>,
}

#[derive(Default)]
struct List(Vec<Descriptor>);

/// `null` counts as a present, empty list: Go prints an empty slice so.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<List>, D::Error> {
    null_is_default(deserializer).map(|list| Some(List(list)))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Printed<'a> {
    schema_version: u64,
    media_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<&'a Descriptor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<&'a Vec<Descriptor>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifests: Option<&'a Vec<Descriptor>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a Descriptor>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(text: &str) -> Descriptor {
        Descriptor::new(media::OCI_LAYER, Digest::of(text.as_bytes()), text.len() as u64)
    }

    fn check(text: &str, expected: &Result<ManifestKind, ManifestError>) {
        assert_eq!(Manifest::parse(text.into()).map(|m| m.kind()), *expected, "{text}");
    }

    #[test]
    fn tells_the_type_from_the_bytes() {
        let d = serde_json::to_string(&descriptor("x")).unwrap();
        let with = |members: &str| format!(r#"{{"schemaVersion":2,{members}}}"#);
        check(&with(&format!(r#""config":{d},"layers":[{d}]"#)), &Ok(ManifestKind::OciImage));
        check(&with(&format!(r#""config":{d},"layers":null"#)), &Ok(ManifestKind::OciImage));
        check(&with(r#""manifests":[]"#), &Ok(ManifestKind::OciIndex));
        check(&with(r#""manifests":null"#), &Ok(ManifestKind::OciIndex));
        let docker = format!(r#""mediaType":"{}","config":{d},"layers":[]"#, media::DOCKER_MANIFEST);
        check(&with(&docker), &Ok(ManifestKind::DockerImage));
        let list = format!(r#""mediaType":"{}","manifests":[{d}],"x":[1,{{}}]"#, media::DOCKER_LIST);
        check(&with(&list), &Ok(ManifestKind::DockerList));

        check(&with(&format!(r#""config":{d},"manifests":[]"#)), &Err(ManifestError::Ambiguous));
        let both = format!(r#""mediaType":"{}","manifests":[],"layers":[]"#, media::OCI_INDEX);
        check(&with(&both), &Err(ManifestError::Ambiguous));
        let no_config = format!(r#""mediaType":"{}""#, media::OCI_MANIFEST);
        let missing = ManifestError::Missing { media_type: media::OCI_MANIFEST, member: "config" };
        check(&with(&no_config), &Err(missing));
        check(&with(r#""mediaType":"text/plain""#), &Err(ManifestError::MediaType("text/plain".to_owned())));
        check(r#"{"schemaVersion":1,"manifests":[]}"#, &Err(ManifestError::SchemaVersion(1)));
        for bad in ["", "{", "[]", "null", r#"{"schemaVersion":"2"}"#, r#"{"manifests":[]}"#] {
            assert!(matches!(Manifest::parse(bad.into()), Err(ManifestError::Json(_))), "{bad}");
        }
        let twice = with(r#""manifests":[],"manifests":[]"#);
        assert!(matches!(Manifest::parse(twice.into()), Err(ManifestError::Json(_))));
    }

    #[test]
    fn keeps_exact_bytes() {
        let text = b"{ \"schemaVersion\" : 2,\n \"manifests\":[], \"custom\": 1.50 }".to_vec();
        let manifest = Manifest::parse(text.clone()).unwrap();
        assert_eq!(manifest.bytes().bytes(), text);
        assert_eq!(manifest.digest(), Digest::of(&text));
    }

    #[test]
    fn names_a_referrer() {
        let meta = ArtifactMeta {
            subject: Some(descriptor("s")),
            annotations: [("k".to_owned(), "v".to_owned())].into(),
            ..ArtifactMeta::default()
        };
        let image = Manifest::image(descriptor("c"), vec![], meta.clone());
        assert_eq!(image.referrer().artifact_type.as_deref(), Some(media::OCI_LAYER));
        assert_eq!(image.referrer().annotations, meta.annotations);
        let typed = ArtifactMeta { artifact_type: Some("a/b".to_owned()), ..meta.clone() };
        assert_eq!(Manifest::image(descriptor("c"), vec![], typed).referrer().artifact_type.as_deref(), Some("a/b"));
        assert_eq!(Manifest::index(vec![], meta).referrer().artifact_type, None);
    }
}
