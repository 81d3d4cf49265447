//! Manifests: end-3 and end-7.

use adamant_oci::{ContentDigest, ErrorCode, ParseReferenceError, Reference, RepositoryName, Tag};
use http::{Response, StatusCode, header};
use serde_json::Value;

use super::failure::Failure;
use super::{ASK_AGAIN, Asked, DIGEST, FOR_EVER, OCI_SUBJECT, OCI_TAG, add, empty, is_known, set};
use crate::body::{self, Incoming};
use crate::manifests::Origin;
use crate::{Body, Condition, Names, PutManifestError, Registry};

impl Registry {
    pub(super) async fn get_manifest(
        &self,
        repository: &RepositoryName,
        reference: &str,
        asked: &Asked,
    ) -> Result<Response<Body>, Failure> {
        let reference = Reference::parse(reference).map_err(|error| match error {
            // No manifest can have this tag, so it is not there.
            ParseReferenceError::Tag(error) => Failure::unknown_manifest(error.to_string()),
            digest @ ParseReferenceError::Digest(_) => digest.into(),
        })?;
        let bound = self.resolve_through(repository, &reference).await.map_err(Failure::pull)?;
        if let Some(tombstone) = self.erased.tombstone(bound) {
            return Err(Failure::gone(ErrorCode::ManifestUnknown, bound, &tombstone));
        }
        let digest: ContentDigest = match &reference {
            Reference::Tag(tag) => self.pushed_by(repository, tag, bound).await?,
            Reference::Digest(digest) => digest.clone(),
        };
        if !asked.access.may_push(repository) && self.gates.iter().any(|gate| gate.pull) {
            let manifest = self.manifest_named(&digest, bound).await?;
            self.may_pull(repository, &manifest, asked.access.actor()).await?;
        }
        let etag = match &reference {
            // What the conditions of a push are compared with.
            Reference::Tag(_) => format!("\"{bound}\""),
            Reference::Digest(digest) => format!("\"{digest}\""),
        };
        let mut response = if is_known(asked, &etag) {
            empty(StatusCode::NOT_MODIFIED)
        } else {
            let manifest = self.manifest_named(&digest, bound).await?;
            let (kind, size) = (manifest.kind(), manifest.size());
            let bytes = manifest.into_bytes().into_bytes();
            let mut response = Response::new(body::full(bytes));
            set(&mut response, header::CONTENT_TYPE, kind.media_type());
            set(&mut response, header::CONTENT_LENGTH, size);
            response
        };
        set(&mut response, DIGEST, digest);
        set(&mut response, header::ETAG, etag);
        let cache = if matches!(reference, Reference::Digest(_)) { FOR_EVER } else { ASK_AGAIN };
        set(&mut response, header::CACHE_CONTROL, cache);
        Ok(response)
    }

    pub(super) async fn put_manifest_request(
        &self,
        repository: &RepositoryName,
        reference: &str,
        asked: &Asked,
        body: &mut Incoming,
    ) -> Result<Response<Body>, Failure> {
        let (mut tags, named) = match Reference::parse(reference)? {
            Reference::Tag(tag) => (vec![tag], None),
            Reference::Digest(digest) => (Vec::new(), Some(digest)),
        };
        if named.is_some() {
            // distribution-spec, "Pushing Manifests with Tags": one push by digest, several tags.
            for tag in asked.query.values("tag") {
                tags.push(tag.parse::<Tag>()?);
            }
        }
        if tags.len() > TAGS {
            return Err(too_many(tags.len()));
        }
        let limit = self.limits.manifest_bytes;
        let announced = asked.header(header::CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        let whole =
            if announced.is_some_and(|length| length > limit as u64) { None } else { body.whole(limit).await? };
        let Some(bytes) = whole else {
            return Err(PutManifestError::TooLarge { limit }.into());
        };
        let media_type = asked.header(header::CONTENT_TYPE).map(|text| text.split(';').next().unwrap_or(text).trim());
        let by_digest = named.is_some();
        let condition =
            Condition { matches: etags(asked, header::IF_MATCH), differs: etags(asked, header::IF_NONE_MATCH) };
        let names = Names { tags: &tags, digest: named.as_ref(), condition: &condition };
        let origin = Origin { by: asked.access.actor(), sees_all: asked.access.sees_all(), detail: None };
        let pushed = self.put_manifest_if(repository, names, media_type, bytes, &origin).await?;

        let digest = named.unwrap_or_else(|| pushed.digest.into());
        let mut response = empty(StatusCode::CREATED);
        set(&mut response, header::LOCATION, format!("/v2/{repository}/manifests/{digest}"));
        set(&mut response, DIGEST, digest);
        for tag in tags.iter().filter(|_| by_digest) {
            add(&mut response, OCI_TAG, tag);
        }
        if let Some(subject) = pushed.subject {
            set(&mut response, OCI_SUBJECT, subject);
        }
        Ok(response)
    }
}

/// The entity tags that a header lists; `None` without the header.
fn etags(asked: &Asked, name: header::HeaderName) -> Option<Vec<String>> {
    let mut values = asked.headers.get_all(name).iter().peekable();
    values.peek()?;
    // What cannot be read as text matches nothing.
    let texts = values.filter_map(|value| value.to_str().ok());
    Some(texts.flat_map(|text| text.split(',')).map(|tag| tag.trim().to_owned()).collect())
}

/// Most tags of one push; the specification asks for at least ten.
const TAGS: usize = 64;

fn too_many(count: usize) -> Failure {
    let message = format!("{count} tags in one push are too many: send at most {TAGS}");
    Failure::new(StatusCode::URI_TOO_LONG, ErrorCode::TagInvalid, message, Value::Null)
}
