//! Uploads: end-4, end-5, end-6, end-11, end-13 and end-14.

use adamant_digest::Digest;
use adamant_oci::{ContentDigest, ErrorCode, RepositoryName};
use http::{Response, StatusCode, header};
use serde_json::Value;

use super::failure::Failure;
use super::{Asked, DIGEST, UPLOAD_ID, empty, range, set};
use crate::access::Action;
use crate::body::Incoming;
use crate::registry::Second;
use crate::uploads::{self, Chunk, Gate, UploadError};
use crate::{Body, Registry};

/// What a blob can be pushed by.
const ALGORITHMS: [&str; 2] = ["sha256", "sha512"];

impl Registry {
    /// Begins an upload, takes a whole blob (`digest`), or mounts one (`mount`).
    pub(super) async fn post_upload(
        &self,
        repository: &RepositoryName,
        asked: &Asked,
        body: &mut Incoming,
    ) -> Result<Response<Body>, Failure> {
        if let Some(mount) = asked.query.value("mount") {
            let named = mount.parse::<ContentDigest>()?;
            if let Some(digest) = self.locate(&named).await?
                && self.count_on(digest).await?.is_some()
                && self.may_mount(repository, asked, digest).await?
            {
                self.note_upload(repository, asked, digest);
                return Ok(created(repository, &named));
            }
        } else if asked.query.value("digest").is_some() {
            let named = wanted_digest(asked)?;
            let gate = self.gate(repository, Some(&named)).await?;
            let upload = self.blobs.upload().await?;
            let digest = uploads::receive(upload, Second::of(&named), None, body, &named, &gate).await?;
            self.note_upload(repository, asked, digest);
            return Ok(created(repository, &named));
        }
        if let Some(algorithm) = asked.query.value("digest-algorithm").filter(|name| !ALGORITHMS.contains(name)) {
            let algorithm: String = algorithm.chars().take(100).collect();
            let message = format!("`{algorithm}` is no algorithm for digests here: use sha256 or sha512");
            return Err(Failure::new(StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid, message, Value::Null));
        }
        self.check_space()?;
        let id = self.uploads.start(repository, &asked.owner).await?;
        Ok(under_way(StatusCode::ACCEPTED, repository, &id, 0))
    }

    pub(super) async fn upload_status(&self, repository: &RepositoryName, id: &str) -> Result<Response<Body>, Failure> {
        let held = self.uploads.take(repository, id).await?;
        Ok(under_way(StatusCode::NO_CONTENT, repository, id, held.length()))
    }

    pub(super) async fn patch_upload(
        &self,
        repository: &RepositoryName,
        id: &str,
        asked: &Asked,
        body: &mut Incoming,
    ) -> Result<Response<Body>, Failure> {
        let chunk = announced(asked)?;
        let gate = self.gate(repository, None).await?;
        let held = self.uploads.take(repository, id).await?;
        let length = held.length();
        let held = self
            .uploads
            .append(held, chunk, body, &gate)
            .await
            .map_err(|error| with_place(error, repository, id, length))?;
        Ok(under_way(StatusCode::ACCEPTED, repository, id, held.length()))
    }

    pub(super) async fn put_upload(
        &self,
        repository: &RepositoryName,
        id: &str,
        asked: &Asked,
        body: &mut Incoming,
    ) -> Result<Response<Body>, Failure> {
        let named = wanted_digest(asked)?;
        // An empty last chunk has no range; clients that send one anyway mean nothing by it.
        let empty = asked.header(header::CONTENT_LENGTH) == Some("0");
        let chunk = if empty { None } else { announced(asked)? };
        let gate = self.gate(repository, Some(&named)).await?;
        let held = self.uploads.take(repository, id).await?;
        let length = held.length();
        let digest = self
            .uploads
            .finish(held, chunk, body, &named, &gate)
            .await
            .map_err(|error| with_place(error, repository, id, length))?;
        self.note_upload(repository, asked, digest);
        Ok(created(repository, &named))
    }

    /// What holds while bytes arrive: space, and the quota unless the blob is counted already.
    async fn gate(&self, repository: &RepositoryName, named: Option<&ContentDigest>) -> Result<Gate<'_>, Failure> {
        let mut room = None;
        if let Some(counted) = self.counted(repository).await? {
            let digest = match named {
                Some(named) => self.locate(named).await?,
                None => None,
            };
            room = (!digest.is_some_and(|digest| counted.has(digest))).then(|| counted.room());
        }
        Ok(Gate { registry: self, room })
    }

    /// Whether a blob may be mounted. For whoever may read everything, `from` is a hint: blobs belong
    /// to the store as a whole. Others get what they may read in the repository they name, and
    /// are not told whether there is more.
    async fn may_mount(&self, repository: &RepositoryName, asked: &Asked, digest: Digest) -> Result<bool, Failure> {
        if asked.access.sees_all() {
            return Ok(true);
        }
        let from = match asked.query.value("from").map(str::parse::<RepositoryName>) {
            Some(Ok(from)) if asked.access.rights.may(Action::Pull, from.as_str()) => from,
            Some(_) => return Ok(false),
            None => repository.clone(),
        };
        Ok(self.reaches(&from, digest).await?)
    }

    /// Lets a caller who may not read everything go on with what they uploaded.
    fn note_upload(&self, repository: &RepositoryName, asked: &Asked, digest: Digest) {
        if !asked.access.sees_all() {
            self.contents.uploaded(repository, digest, (self.clock)(), self.limits.upload_expiry);
        }
    }

    pub(super) async fn cancel_upload(&self, repository: &RepositoryName, id: &str) -> Result<Response<Body>, Failure> {
        let held = self.uploads.take(repository, id).await?;
        self.uploads.remove(held).await;
        Ok(empty(StatusCode::NO_CONTENT))
    }
}

fn wanted_digest(asked: &Asked) -> Result<ContentDigest, Failure> {
    let text = asked.query.value("digest").ok_or_else(|| {
        let message = "the digest of the blob is missing: finish the upload with `?digest=sha256:…`".to_owned();
        Failure::new(StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid, message, Value::Null)
    })?;
    match text.parse()? {
        ContentDigest::Other(other) => Err(other.unsupported().into()),
        named => Ok(named),
    }
}

/// The place of a chunk, if the client says one; a stream has none.
fn announced(asked: &Asked) -> Result<Option<Chunk>, Failure> {
    let Some(value) = asked.headers.get(header::CONTENT_RANGE) else { return Ok(None) };
    let bad =
        |message: String| Failure::new(StatusCode::BAD_REQUEST, ErrorCode::BlobUploadInvalid, message, Value::Null);
    let chunk = value.to_str().ok().and_then(range::chunk);
    let chunk = chunk.ok_or_else(|| bad("the Content-Range is malformed: expected `<start>-<end>`".to_owned()))?;
    match asked.header(header::CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok()) {
        Some(length) if length != chunk.length => {
            Err(bad(format!("the Content-Range holds {} bytes, the Content-Length is {length}", chunk.length)))
        }
        _ => Ok(Some(chunk)),
    }
}

/// A chunk out of order is told where the next one must start.
fn with_place(error: UploadError, repository: &RepositoryName, id: &str, length: u64) -> Failure {
    let out_of_order = matches!(error, UploadError::OutOfOrder { .. });
    let failure = Failure::from(error);
    if !out_of_order {
        return failure;
    }
    failure.with(header::RANGE, received(length)).with(header::LOCATION, location(repository, id)).with(UPLOAD_ID, id)
}

fn under_way(status: StatusCode, repository: &RepositoryName, id: &str, length: u64) -> Response<Body> {
    let mut response = empty(status);
    set(&mut response, header::LOCATION, location(repository, id));
    set(&mut response, header::RANGE, received(length));
    set(&mut response, UPLOAD_ID, id);
    response
}

fn created(repository: &RepositoryName, digest: &ContentDigest) -> Response<Body> {
    let mut response = empty(StatusCode::CREATED);
    set(&mut response, header::LOCATION, format!("/v2/{repository}/blobs/{digest}"));
    set(&mut response, DIGEST, digest);
    response
}

fn location(repository: &RepositoryName, id: &str) -> String {
    format!("/v2/{repository}/blobs/uploads/{id}")
}

/// The last byte received is inclusive, so nothing looks like one byte; every registry has this.
fn received(length: u64) -> String {
    format!("0-{}", length.saturating_sub(1))
}
