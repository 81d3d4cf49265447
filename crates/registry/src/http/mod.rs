//! The protocol: `/v2/`. Spec: distribution-spec 1.1.

mod blobs;
mod failure;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod listings;
mod manifests;
mod range;
mod reason;
mod route;
mod uploads;

use adamant_oci::ErrorCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, header};

use self::failure::Failure;
pub use self::reason::reason_phrase;
use self::route::{Parsed, Query, Route, Target};
use crate::access::{Action, Decision, Needs, Place};
use crate::body::{self, Incoming};
use crate::{Access, Body, Peer, Registry};

const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
const OCI_FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// What a request asks, taken apart.
pub(crate) struct Asked {
    method: Method,
    headers: HeaderMap,
    query: Query,
    access: Access,
    /// Who shares what is scarce: the actor and where they call from.
    owner: String,
}

/// What a request came to, for the server's record: [`Registry::handle`] puts it into the
/// extensions of every response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handled {
    /// In whose name.
    pub actor: String,
    /// Which repository was named, if one was.
    pub repository: Option<String>,
    /// Bytes of the request's body that were read.
    pub received: u64,
    /// Code of the error, if it is one.
    pub error: Option<ErrorCode>,
}

impl Asked {
    fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Registry {
    /// Answers a request below `/v2/`. Whoever calls bounds the number of connections, the
    /// length of headers and the time of a whole request; bodies are bounded here.
    pub async fn handle<B>(&self, request: Request<B>, access: Access) -> Response<Body>
    where
        B: http_body::Body + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let mut body = Incoming::new(body, self.limits.idle);
        let is_head = head.method == Method::HEAD;
        let parsed = Route::parse(head.uri.path());
        let mut handled = Handled { actor: access.actor().to_owned(), repository: None, received: 0, error: None };
        if let Ok(Parsed::Repository(route)) = &parsed {
            handled.repository = Some(route.repository.to_string());
        }
        // To read is to say "100 Continue", which nobody who is refused is told.
        let waits = head.headers.contains_key(header::EXPECT);
        let answer = self.answer(head, parsed, &mut body, access).await;
        if answer.is_err() && !(waits && body.received() == 0) {
            body.drain(self.limits.manifest_bytes).await;
        }
        let mut response = answer.unwrap_or_else(|failure| {
            handled.error = Some(failure.code());
            failure.into_response()
        });
        handled.received = body.received();
        response.extensions_mut().insert(handled);
        if is_head {
            // The lengths stand in the headers already.
            *response.body_mut() = body::empty();
        }
        let headers = response.headers_mut();
        headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }

    async fn answer(
        &self,
        head: http::request::Parts,
        parsed: Result<Parsed, Failure>,
        body: &mut Incoming,
        access: Access,
    ) -> Result<Response<Body>, Failure> {
        let needs = needed(&head.method, &parsed);
        let pushes = needs.action == Action::Push;
        match access.decide(&needs) {
            Decision::Allowed => {}
            Decision::Unauthorized => return Err(Failure::unauthorized(&access, &needs, false)),
            Decision::Insufficient => return Err(Failure::unauthorized(&access, &needs, true)),
            Decision::Forbidden => return Err(Failure::forbidden(&access, &needs)),
        }
        let query = Query::parse(head.uri.query().unwrap_or_default())?;
        let Route { repository, target } = match parsed? {
            Parsed::Base => return base(&head.method),
            Parsed::Catalog => {
                return match head.method {
                    Method::GET | Method::HEAD => self.catalog(&query, &access).await,
                    _ => Err(Failure::method("GET, HEAD")),
                };
            }
            Parsed::Repository(route) => route,
        };
        if pushes && let Some(upstream) = self.upstreams.owner(&repository) {
            return Err(Failure::upstream_only(&repository, &upstream.config.url));
        }
        let peer = head.extensions.get::<Peer>().map(|peer| peer.0.to_string()).unwrap_or_default();
        let owner = format!("{} {peer}", access.actor());
        let asked = Asked { method: head.method, headers: head.headers, query, access, owner };
        match (target, asked.method.as_str()) {
            (Target::Manifest(reference), "GET" | "HEAD") => self.get_manifest(&repository, &reference, &asked).await,
            (Target::Manifest(reference), "PUT") => {
                self.put_manifest_request(&repository, &reference, &asked, body).await
            }
            (Target::Manifest(reference), "DELETE") => Err(Failure::no_delete(&repository, &reference)),
            (Target::Manifest(_), _) => Err(Failure::method("GET, HEAD, PUT")),
            (Target::Blob(digest), "GET" | "HEAD") => self.get_blob(&repository, &digest, &asked).await,
            (Target::Blob(digest), "DELETE") => Err(Failure::no_delete(&repository, &digest)),
            (Target::Uploads, "POST") => self.post_upload(&repository, &asked, body).await,
            (Target::Uploads, _) => Err(Failure::method("POST")),
            (Target::Upload(id), "GET" | "HEAD") => self.upload_status(&repository, &id).await,
            (Target::Upload(id), "PATCH") => self.patch_upload(&repository, &id, &asked, body).await,
            (Target::Upload(id), "PUT") => self.put_upload(&repository, &id, &asked, body).await,
            (Target::Upload(id), "DELETE") => self.cancel_upload(&repository, &id).await,
            (Target::Upload(_), _) => Err(Failure::method("GET, HEAD, PATCH, PUT, DELETE")),
            (Target::Tags, "GET" | "HEAD") => self.list_tags(&repository, &asked.query).await,
            (Target::Referrers(digest), "GET" | "HEAD") => self.list_referrers(&repository, &digest, &asked).await,
            (Target::Blob(_) | Target::Tags | Target::Referrers(_), _) => Err(Failure::method("GET, HEAD")),
        }
    }
}

/// What a request needs. A delete that never happens needs no more than a look at the reason;
/// whatever is done with an upload is a part of writing.
fn needed<'a>(method: &Method, parsed: &'a Result<Parsed, Failure>) -> Needs<'a> {
    let (place, is_upload) = match parsed {
        Ok(Parsed::Base) => (Place::Base, false),
        Ok(Parsed::Catalog) => (Place::Catalog, false),
        Ok(Parsed::Repository(route)) => {
            (Place::Repository(&route.repository), matches!(route.target, Target::Uploads | Target::Upload(_)))
        }
        Err(_) => (Place::Nowhere, false),
    };
    let action = match *method {
        _ if is_upload => Action::Push,
        Method::GET | Method::HEAD | Method::DELETE => Action::Pull,
        _ => Action::Push,
    };
    Needs { action, place }
}

/// end-1: says that this is a registry.
fn base(method: &Method) -> Result<Response<Body>, Failure> {
    match *method {
        Method::GET | Method::HEAD => Ok(json("{}".to_owned())),
        _ => Err(Failure::method("GET, HEAD")),
    }
}

fn json(text: String) -> Response<Body> {
    let length = text.len();
    let mut response = Response::new(body::full(text));
    set(&mut response, header::CONTENT_TYPE, "application/json");
    set(&mut response, header::CONTENT_LENGTH, length);
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = status;
    if status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED {
        set(&mut response, header::CONTENT_LENGTH, 0);
    }
    response
}

/// Sets a header to a text made here. What cannot stand in a header is left out; nothing made
/// here contains such bytes.
fn set(response: &mut Response<Body>, name: HeaderName, value: impl std::fmt::Display) {
    if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
        response.headers_mut().insert(name, value);
    }
}

/// As `set`, beside the values that are there.
fn add(response: &mut Response<Body>, name: HeaderName, value: impl std::fmt::Display) {
    if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
        response.headers_mut().append(name, value);
    }
}

/// Whether `If-None-Match` names `etag` (RFC 9110, 13.1.2, weak comparison).
fn is_known(asked: &Asked, etag: &str) -> bool {
    asked.headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
    })
}

/// Content that a digest names never changes.
const FOR_EVER: &str = "private, max-age=31536000, immutable";
/// What a tag names does not change either, but the tag may be known only later, or be erased.
const ASK_AGAIN: &str = "no-cache";
