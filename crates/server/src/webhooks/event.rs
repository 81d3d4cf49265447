//! From an entry of the ledger to the event that tells of it. One entry is one event or none.

use std::sync::Arc;

use adamant_attest::predicate::{BindingKind, Predicate};
use adamant_digest::Digest;
use adamant_oci::Manifest;
use adamant_registry::POINTER;
use adamant_store::{BlobStore, Entry, Ledger};
use serde_json::{Value, json};

use crate::settings::EventKind;

const SPECIFICATION: &str = "0.4.1";
const PUBLISHED: &str = "dev.cdevents.artifact.published.0.2.0";
const SIGNED: &str = "dev.cdevents.artifact.signed.0.2.0";

/// Beginnings of the artifact types that signatures have: sigstore, cosign, notation, DSSE.
const SIGNATURES: [&str; 4] = [
    "application/vnd.dev.sigstore.bundle",
    "application/vnd.dev.cosign.artifact.sig.",
    "application/vnd.cncf.notary.signature",
    "application/vnd.dsse.envelope.",
];

/// The log, as hooks read it.
pub(crate) struct Log {
    pub(crate) origin: String,
    /// Base URL of this server.
    pub(crate) registry: String,
    pub(crate) blobs: Arc<dyn BlobStore>,
    pub(crate) ledger: Arc<dyn Ledger>,
}

/// What is told.
pub(super) struct Event {
    pub(super) kind: EventKind,
    /// The same for the same entry of the same log, always.
    pub(super) id: String,
    pub(super) repository: String,
    /// When it was recorded, RFC 3339.
    pub(super) at: String,
    pub(super) body: Vec<u8>,
}

/// What a fact says of a repository.
#[derive(Debug, PartialEq)]
struct Told {
    repository: String,
    tag: Option<String>,
    /// What the event is about: as text, for a signature may be of a sha512.
    digest: String,
    by: String,
    media_type: Option<String>,
    what: What,
}

#[derive(Debug, PartialEq)]
enum What {
    Published,
    /// A manifest refers to another one; whether as a signature, its type says.
    Refers(Digest),
    Signed(Digest),
}

impl Log {
    pub(super) async fn event(&self, entry: Entry) -> Option<Event> {
        let index = entry.index;
        let recorded = match crate::facts::decode(entry) {
            Ok(recorded) => recorded,
            Err(problem) => {
                tracing::warn!(index, %problem, "no event is made of an entry");
                return None;
            }
        };
        let told = told(&recorded.predicate)?;
        let (kind, signature) = match told.what {
            What::Published => (EventKind::Published, None),
            What::Signed(signature) => (EventKind::Signed, Some(signature)),
            What::Refers(signature) if self.is_signature(signature).await => (EventKind::Signed, Some(signature)),
            What::Refers(_) => return None,
        };
        let at = recorded.entry.recorded_at;
        let id = id(&self.origin, index);
        let body = body(self, &told, signature, index, &id, &at);
        Some(Event { kind, id, repository: told.repository, at, body: body.to_string().into_bytes() })
    }

    async fn is_signature(&self, digest: Digest) -> bool {
        let manifest = match self.blobs.get(digest).await {
            Ok(bytes) => Manifest::from_verified(bytes).ok(),
            Err(error) => {
                tracing::warn!(%digest, %error, "what a manifest is cannot be read: no event is made of it");
                None
            }
        };
        let kind = manifest.and_then(|manifest| manifest.referrer().artifact_type);
        kind.is_some_and(|kind| SIGNATURES.iter().any(|known| kind.starts_with(known)))
    }
}

fn id(origin: &str, index: u64) -> String {
    let digest = Digest::of(format!("{origin}\n{index}").as_bytes()).to_string();
    format!("msg_{}", digest.trim_start_matches("sha256:").chars().take(32).collect::<String>())
}

/// What is to be told of a fact. The forms of the names are those of the registry (`names`).
fn told(predicate: &Predicate) -> Option<Told> {
    let (name, digest, by, detail, moves) = match predicate {
        Predicate::Binding(binding) if binding.kind == BindingKind::Tag => {
            (&binding.name, binding.digest, &binding.by, Some(&binding.detail), false)
        }
        Predicate::Pointer(pointer) => (&pointer.name, pointer.digest, &pointer.by, None, true),
        _ => return None,
    };
    let at = name.find([':', '@'])?;
    let (repository, rest) = name.split_at(at);
    let media_type = detail.and_then(|detail| detail.get("mediaType")?.as_str()).map(str::to_owned);
    let make = |tag: Option<&str>, digest: String, what: What| {
        let (repository, tag) = (repository.to_owned(), tag.map(str::to_owned));
        Some(Told { repository, tag, digest, by: by.clone(), media_type, what })
    };
    if let Some(rest) = rest.strip_prefix('@') {
        return match rest.split_once("/referrers/") {
            Some((subject, _)) => make(None, subject.to_owned(), What::Refers(digest)),
            None if rest == digest.to_string() => make(None, rest.to_owned(), What::Published),
            // A second name of the same manifest.
            None => None,
        };
    }
    let tag = rest.strip_prefix(':')?;
    match list(tag) {
        // Its moves say everything, the first one too.
        Some(_) if !moves => None,
        Some((subject, true)) => make(Some(tag), subject, What::Signed(digest)),
        Some((_, false)) => None,
        // The mark of a pointer; the moves follow.
        None if digest == *POINTER => None,
        None => make(Some(tag), digest.to_string(), What::Published),
    }
}

/// The subject of a list of signatures or of referrers, and whether it is of signatures.
fn list(tag: &str) -> Option<(String, bool)> {
    let rest = tag.strip_prefix("sha256-")?;
    let (hex, signatures) = rest.strip_suffix(".sig").map_or((rest, false), |hex| (hex, true));
    let subject: Digest = format!("sha256:{hex}").parse().ok()?;
    Some((subject.to_string(), signatures))
}

/// A CDEvent in a CloudEvent, in structured mode.
fn body(log: &Log, told: &Told, signature: Option<Digest>, index: u64, id: &str, at: &str) -> Value {
    let Told { repository, tag, digest, by, media_type, .. } = told;
    let kind = if signature.is_some() { SIGNED } else { PUBLISHED };
    let host = log.registry.split_once("://").map_or(log.registry.as_str(), |(_, host)| host);
    let package = purl(host, repository, digest, tag.as_deref().filter(|_| signature.is_none()));
    let content = match signature {
        Some(signature) => json!({"signature": format!("{host}/{repository}@{signature}")}),
        None => json!({"user": by}),
    };
    let mut more = json!({
        "registry": log.registry, "repository": repository, "digest": digest, "by": by, "entry": index,
    });
    let text = |value: &Option<String>| value.as_ref().map(|text| json!(text));
    let optional = [
        ("tag", text(tag)),
        ("mediaType", text(media_type)),
        ("signature", signature.map(|signature| json!(signature.to_string()))),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            more[name] = value;
        }
    }
    json!({
        "specversion": "1.0", "id": id, "source": log.origin, "type": kind, "subject": package, "time": at,
        "datacontenttype": "application/json",
        "data": {
            "context": {"version": SPECIFICATION, "id": id, "source": log.origin, "type": kind, "timestamp": at},
            "subject": {"id": package, "source": log.origin, "type": "artifact", "content": content},
            "customData": more, "customDataContentType": "application/json",
        },
    })
}

/// `pkg:oci/NAME@DIGEST?repository_url=…&tag=…`: no character of these needs another escape.
fn purl(host: &str, repository: &str, digest: &str, tag: Option<&str>) -> String {
    let name = repository.rsplit('/').next().unwrap_or(repository);
    let tag = tag.map(|tag| format!("&tag={tag}")).unwrap_or_default();
    format!("pkg:oci/{name}@{}?repository_url={host}/{repository}{tag}", digest.replace(':', "%3A"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use adamant_attest::predicate::{Binding, Pointer};

    fn binding(name: &str, digest: Digest) -> Option<Told> {
        let (name, by) = (name.to_owned(), "ann".to_owned());
        told(&Predicate::Binding(Binding { kind: BindingKind::Tag, name, digest, by, detail: Value::Null }))
    }

    #[test]
    fn every_form_of_a_name_is_told_once() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let hex = two.to_string().replace("sha256:", "");
        let tag = binding("a/b:1.0", one).unwrap();
        assert_eq!((tag.repository.as_str(), tag.tag.as_deref(), &tag.what), ("a/b", Some("1.0"), &What::Published));
        let member = binding(&format!("a/b@{one}"), one).unwrap();
        assert_eq!((member.tag, member.what), (None, What::Published));
        let refers = binding(&format!("a/b@{two}/referrers/{one}"), one).unwrap();
        assert_eq!((refers.digest, refers.what), (two.to_string(), What::Refers(one)));
        assert_eq!(binding(&format!("a/b@sha512:{}", "0".repeat(128)), one), None);
        assert_eq!(binding(&format!("a/b@tag:referrers/sha512:{}", "0".repeat(128)), one), None);
        assert_eq!(binding("a/b:latest", *POINTER), None);
        assert_eq!(binding(&format!("a/b:sha256-{hex}.sig"), one), None);
        let moved = |tag: &str| {
            let name = format!("a/b:{tag}");
            told(&Predicate::Pointer(Pointer { name, digest: one, from: None, by: "ann".to_owned() }))
        };
        let signed = moved(&format!("sha256-{hex}.sig")).unwrap();
        assert_eq!((signed.digest, signed.what), (two.to_string(), What::Signed(one)));
        assert_eq!(moved(&format!("sha256-{hex}")), None);
        assert_eq!(moved("latest").unwrap().what, What::Published);
    }

    #[test]
    fn packages_are_named_as_the_purl_specification_says() {
        assert_eq!(
            purl("localhost:7000", "a/web", "sha256:00", Some("1.0")),
            "pkg:oci/web@sha256%3A00?repository_url=localhost:7000/a/web&tag=1.0"
        );
    }
}
