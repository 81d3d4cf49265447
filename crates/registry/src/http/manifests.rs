//! Manifests: end-3 and end-7.

use adamant_digest::Digest;
use adamant_oci::{ErrorCode, ParseReferenceError, Reference, RepositoryName};
use http::{Response, StatusCode, header};
use serde_json::{Value, json};

use super::failure::Failure;
use super::{ASK_AGAIN, Asked, DIGEST, FOR_EVER, OCI_SUBJECT, empty, is_known, set};
use crate::body::{self, Incoming};
use crate::{Body, PutManifestError, Registry};

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
        let digest = self.resolve(repository, &reference).await?;
        let etag = format!("\"{digest}\"");
        let mut response = if is_known(asked, &etag) {
            empty(StatusCode::NOT_MODIFIED)
        } else {
            let manifest = self.manifest(digest).await?;
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
        let reference = Reference::parse(reference)?;
        let (tag, expected) = match &reference {
            Reference::Tag(tag) => (Some(tag), None),
            Reference::Digest(digest) => (None, Some(digest.sha256()?)),
        };
        let limit = self.limits.manifest_bytes;
        let announced = asked.header(header::CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        if announced.is_some_and(|length| length > limit as u64) {
            return Err(PutManifestError::TooLarge { limit }.into());
        }
        let bytes = body.whole(limit).await?.ok_or(PutManifestError::TooLarge { limit })?;
        if let Some(expected) = expected {
            check_digest(expected, &bytes)?;
        }
        let media_type = asked.header(header::CONTENT_TYPE).map(|text| text.split(';').next().unwrap_or(text).trim());
        let pushed = self.put_manifest(repository, tag, media_type, bytes, &asked.actor).await?;

        let mut response = empty(StatusCode::CREATED);
        set(&mut response, header::LOCATION, format!("/v2/{repository}/manifests/{}", pushed.digest));
        set(&mut response, DIGEST, pushed.digest);
        if let Some(subject) = pushed.subject {
            set(&mut response, OCI_SUBJECT, subject);
        }
        Ok(response)
    }
}

fn check_digest(expected: Digest, bytes: &[u8]) -> Result<(), Failure> {
    let found = Digest::of(bytes);
    if found == expected {
        return Ok(());
    }
    let message = format!("the manifest was pushed as {expected}, but its bytes are {found}");
    let detail: Value = json!({"expected": expected.to_string(), "found": found.to_string()});
    Err(Failure::new(StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid, message, detail))
}
