//! Tags, repositories and referrers: end-8 and end-12.

use adamant_digest::Digest;
use adamant_oci::{ArtifactMeta, ContentDigest, ErrorCode, Manifest, RepositoryName, media};
use http::{Response, StatusCode, header};
use serde_json::{Value, json};

use super::failure::Failure;
use super::route::{Query, encode};
use super::{Asked, OCI_FILTERS, json, set};
use crate::body;
use crate::{Access, Body, Registry};

/// Referrers in one answer, if their manifests together are no longer than one may be: few clients
/// follow a `Link` here, so an answer has as many as can be.
const REFERRERS: usize = 2_000;

impl Registry {
    pub(super) async fn list_tags(
        &self,
        repository: &RepositoryName,
        query: &Query,
    ) -> Result<Response<Body>, Failure> {
        let n = page(query, self.limits.page)?;
        let mut tags = self.tags(repository, query.value("last"), n + 1).await?;
        let more = tags.len() > n;
        tags.truncate(n);
        let mut response = json(json!({"name": repository.as_str(), "tags": tags}).to_string());
        link(&mut response, &format!("/v2/{repository}/tags/list"), n, tags.last().filter(|_| more));
        Ok(response)
    }

    pub(super) async fn catalog(&self, query: &Query, access: &Access) -> Result<Response<Body>, Failure> {
        let n = page(query, self.limits.page)?;
        let (names, next) = self.repositories_for(access, query.value("last"), n).await?;
        let mut response = json(json!({"repositories": names}).to_string());
        link(&mut response, "/v2/_catalog", n, next.as_ref());
        Ok(response)
    }

    pub(super) async fn list_referrers(
        &self,
        repository: &RepositoryName,
        subject: &str,
        asked: &Asked,
    ) -> Result<Response<Body>, Failure> {
        let subject = subject.parse::<ContentDigest>()?;
        if let ContentDigest::Other(other) = &subject {
            return Err(other.unsupported().into());
        }
        let filter = asked.query.value("artifactType").filter(|text| !text.is_empty());
        let last = asked.query.value("last").map(str::parse::<Digest>).transpose().map_err(|error| {
            Failure::new(StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid, error.to_string(), Value::Null)
        })?;
        let (descriptors, next) = self.referrers(repository, &subject, filter, last, REFERRERS).await?;
        let index = Manifest::index(descriptors, ArtifactMeta::default());
        let size = index.size();
        let bytes = index.into_bytes().into_bytes();
        let mut response = Response::new(body::full(bytes));
        set(&mut response, header::CONTENT_TYPE, media::OCI_INDEX);
        set(&mut response, header::CONTENT_LENGTH, size);
        if filter.is_some() {
            set(&mut response, OCI_FILTERS, "artifactType");
        }
        if let Some(next) = next {
            let filter = filter.map(|text| format!("&artifactType={}", encode(text))).unwrap_or_default();
            let address = format!("</v2/{repository}/referrers/{subject}?last={next}{filter}>; rel=\"next\"");
            set(&mut response, header::LINK, address);
        }
        Ok(response)
    }
}

/// Names in a page: `n`, bounded.
pub(super) fn page(query: &Query, most: usize) -> Result<usize, Failure> {
    let Some(text) = query.value("n") else { return Ok(most) };
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits {
        let message = format!("n=`{}` is not a number", text.chars().take(20).collect::<String>());
        return Err(Failure::new(StatusCode::BAD_REQUEST, ErrorCode::PaginationNumberInvalid, message, Value::Null));
    }
    Ok(text.parse().unwrap_or(most).min(most))
}

fn link(response: &mut Response<Body>, path: &str, n: usize, last: Option<&String>) {
    if let Some(last) = last {
        set(response, header::LINK, format!("<{path}?n={n}&last={}>; rel=\"next\"", encode(last)));
    }
}
