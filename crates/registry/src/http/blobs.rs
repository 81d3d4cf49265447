//! Blobs: end-2.

use adamant_digest::Digest;
use adamant_oci::{ContentDigest, ErrorCode, RepositoryName, media};
use adamant_store::ReadBlobError;
use http::{Response, StatusCode, header};

use super::failure::Failure;
use super::range::{Wanted, wanted};
use super::{Asked, DIGEST, FOR_EVER, empty, is_known, set};
use crate::body;
use crate::registry::Second;
use crate::{Body, Registry};

/// Up to this length a blob is checked before the first byte is sent, so that damage is an
/// error response; above, it is found before the last byte, and the connection ends.
const SMALL: u64 = 1024 * 1024;

impl Registry {
    pub(super) async fn get_blob(
        &self,
        repository: &RepositoryName,
        digest: &str,
        asked: &Asked,
    ) -> Result<Response<Body>, Failure> {
        let named = digest.parse::<ContentDigest>()?;
        let etag = format!("\"{named}\"");
        let digest = self.locate(&named).await?.ok_or_else(|| Failure::unknown_blob(&named))?;
        if !asked.access.sees_all() && !self.reaches(repository, digest).await? {
            return Err(Failure::unknown_blob(&named));
        }
        if let Some(tombstone) = self.erased.tombstone(digest) {
            return Err(Failure::gone(ErrorCode::BlobUnknown, digest, &tombstone));
        }
        let size = if asked.is_head() { self.count_on(digest).await } else { self.blobs.size(digest).await };
        let size = match size? {
            Some(size) => size,
            None if asked.is_head() => return Err(Failure::unknown_blob(&named)),
            // Bytes that are known to be wrong are damage to whoever reads, and unknown to whoever asks
            // before a push.
            None => match self.blobs.open(digest).await {
                Ok(healed) => healed.size,
                Err(ReadBlobError::NotFound(_)) => return Err(Failure::unknown_blob(&named)),
                Err(error) => return Err(error.into()),
            },
        };
        let mut response = if is_known(asked, &etag) {
            empty(StatusCode::NOT_MODIFIED)
        } else if asked.is_head() {
            let mut response = Response::new(body::empty());
            set(&mut response, header::CONTENT_LENGTH, size);
            response
        } else {
            self.send_blob(&named, digest, size, asked, &etag).await?
        };
        set(&mut response, header::CONTENT_TYPE, media::OCTET_STREAM);
        set(&mut response, header::ACCEPT_RANGES, "bytes");
        set(&mut response, DIGEST, named);
        set(&mut response, header::ETAG, etag);
        set(&mut response, header::CACHE_CONTROL, FOR_EVER);
        Ok(response)
    }

    async fn send_blob(
        &self,
        named: &ContentDigest,
        digest: Digest,
        size: u64,
        asked: &Asked,
        etag: &str,
    ) -> Result<Response<Body>, Failure> {
        let current = asked.header(header::IF_RANGE).is_none_or(|tag| tag == etag);
        let range = if current { wanted(asked.header(header::RANGE), size) } else { Wanted::Whole };
        if range == Wanted::Unsatisfiable {
            let mut response = empty(StatusCode::RANGE_NOT_SATISFIABLE);
            set(&mut response, header::CONTENT_RANGE, format!("bytes */{size}"));
            return Ok(response);
        }
        if size <= SMALL {
            let bytes = self.blobs.get(digest).await?;
            let bytes = bytes::Bytes::from(bytes.into_bytes());
            let mut second = Second::of(named);
            second.update(&bytes);
            if second.check().is_err() {
                return Err(Failure::misled(named, digest));
            }
            return Ok(match range {
                Wanted::Part { start, length } => {
                    let (from, to) = (index(start), index(start + length));
                    let part = if to <= bytes.len() { bytes.slice(from..to) } else { bytes };
                    partial(body::full(part), start, length, size)
                }
                _ => whole(body::full(bytes), size),
            });
        }
        let reader = self.blobs.open(digest).await?;
        let source = body::checked(digest, Second::of(named), reader);
        Ok(match range {
            Wanted::Part { start, length } => partial(body::range(source, start, length), start, length, size),
            _ => whole(body::blob(source), size),
        })
    }
}

fn whole(body: Body, size: u64) -> Response<Body> {
    let mut response = Response::new(body);
    set(&mut response, header::CONTENT_LENGTH, size);
    response
}

fn partial(body: Body, start: u64, length: u64, size: u64) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    set(&mut response, header::CONTENT_LENGTH, length);
    set(&mut response, header::CONTENT_RANGE, format!("bytes {start}-{}/{size}", start + length - 1));
    response
}

fn index(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
