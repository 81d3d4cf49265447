//! Errors as responses: the one place where they get a status and a code.

use std::sync::Arc;

use adamant_digest::Digest;
use adamant_oci::{
    ContentDigest, ErrorBody, ErrorCode, ParseContentDigestError, ParseNameError, ParseReferenceError, ParseTagError,
    RepositoryName, UnsupportedAlgorithm,
};
use adamant_store::{LedgerError, ReadBlobError, Tombstone, WriteBlobError};
use http::header::{HeaderName, HeaderValue};
use http::{Response, StatusCode, header};
use serde_json::{Value, json};

use crate::access::{Action, Needs, Place, Realm, Who};
use crate::body::{Body, BodyError};
use crate::contents::{ContentsError, OverQuota};
use crate::registry::OutOfSpace;
use crate::uploads::UploadError;
use crate::{
    Access, GateError, ListError, LocateError, Misnamed, PullError, PutManifestError, ReadManifestError, UpstreamError,
};

/// A response that is an error. Internal text goes to the log instead.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    code: ErrorCode,
    message: String,
    detail: Value,
    headers: Vec<(HeaderName, String)>,
}

impl Failure {
    pub(super) fn new(status: StatusCode, code: ErrorCode, message: String, detail: Value) -> Self {
        Self { status, code, message, detail, headers: Vec::new() }
    }

    pub(super) fn with(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn bad(code: ErrorCode, error: &dyn std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, error.to_string(), Value::Null)
    }

    /// Our own fault: what happened stands in the log.
    fn internal(error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, "a registry request failed");
        let message = "the registry could not do this, and its log says why: try again".to_owned();
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, message, Value::Null)
    }

    /// One challenge alone: clients that find two answer both, and fail without a password.
    pub(super) fn unauthorized(access: &Access, needs: &Needs<'_>, insufficient: bool) -> Self {
        let message = match &access.who {
            _ if insufficient => "the token was asked for something else: ask for one with this scope",
            Who::Denied => "the credentials that were sent do not hold: log in to this registry again",
            Who::Known(_) | Who::Anonymous => "credentials are needed: log in to this registry",
        };
        let challenge = match &access.realm {
            None => r#"Basic realm="adamant", charset="UTF-8""#.to_owned(),
            Some(Realm { url, service }) => {
                let scope = needs.scope().map(|scope| format!(",scope=\"{scope}\"")).unwrap_or_default();
                let error = match (insufficient, &access.who) {
                    (true, _) => ",error=\"insufficient_scope\"",
                    (false, Who::Denied) => ",error=\"invalid_token\"",
                    _ => "",
                };
                format!("Bearer realm=\"{url}\",service=\"{service}\"{scope}{error}")
            }
        };
        let detail = needs.scope().map_or(Value::Null, |scope| json!({ "scope": scope }));
        Self::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message.to_owned(), detail)
            .with(header::WWW_AUTHENTICATE, challenge)
    }

    pub(super) fn forbidden(access: &Access, needs: &Needs<'_>) -> Self {
        let place = match needs.place {
            Place::Repository(name) => format!("{} {} {name}", needs.action, preposition(needs.action)),
            _ => format!("{} here", needs.action),
        };
        let message = format!("{} may not {place}: ask for a token with that right", access.actor());
        Self::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message, Value::Null)
    }

    /// The code of the error, as the specification writes it.
    pub(super) fn code(&self) -> ErrorCode {
        self.code
    }

    fn over_quota(over: &OverQuota) -> Self {
        let detail = json!({
            "repository": over.repository.as_str(), "quota": over.quota, "used": over.used, "needed": over.needed,
        });
        Self::new(StatusCode::FORBIDDEN, ErrorCode::Denied, over.to_string(), detail)
    }

    pub(super) fn method(allowed: &str) -> Self {
        let message = format!("this address takes {allowed}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, message, Value::Null)
            .with(header::ALLOW, allowed)
    }

    pub(super) fn no_delete(repository: &RepositoryName, what: &str) -> Self {
        let what: String = what.chars().take(140).collect();
        let message = format!(
            "`{what}` of {repository} cannot be deleted: what was pushed stays, so that every name keeps its meaning; push a new version under a new tag instead"
        );
        Self::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, message, Value::Null)
            .with(header::ALLOW, "GET, HEAD, PUT")
    }

    pub(super) fn unknown_manifest(message: String) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown, message, Value::Null)
    }

    pub(super) fn unknown_blob(named: &ContentDigest) -> Self {
        let message = format!("blob {named} is not in the store");
        Self::new(StatusCode::NOT_FOUND, ErrorCode::BlobUnknown, message, Value::Null)
    }

    fn misnamed(misnamed: &Misnamed, message: String) -> Self {
        let detail = json!({"expected": misnamed.expected.to_string(), "found": misnamed.found.to_string()});
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid, message, detail)
    }

    /// A name of ours leads to other bytes than it says.
    pub(super) fn misled(named: &ContentDigest, digest: Digest) -> Self {
        tracing::error!(%named, %digest, "a second name leads to another blob");
        let message = format!("the store's entry of {named} is damaged: push the same content again to heal it");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, message, Value::Null)
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let reason = super::reason_phrase(self.status, &self.message);
        let text = ErrorBody::new(self.code, self.message, self.detail).to_json();
        let mut response = super::json(text);
        *response.status_mut() = self.status;
        if let Some(reason) = reason {
            response.extensions_mut().insert(reason);
        }
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        for (name, value) in self.headers {
            super::set(&mut response, name, value);
        }
        response
    }
}

fn preposition(action: Action) -> &'static str {
    match action {
        Action::Pull => "from",
        Action::Push => "to",
    }
}

impl From<OutOfSpace> for Failure {
    fn from(error: OutOfSpace) -> Self {
        let detail = json!({"free": error.free, "reserve": error.reserve});
        Self::new(StatusCode::INSUFFICIENT_STORAGE, ErrorCode::Unavailable, error.to_string(), detail)
    }
}

impl From<ContentsError> for Failure {
    fn from(error: ContentsError) -> Self {
        match error {
            ContentsError::Ledger(error) => error.into(),
            ContentsError::Locate(error) => error.into(),
        }
    }
}

impl From<ParseNameError> for Failure {
    fn from(error: ParseNameError) -> Self {
        Self::bad(ErrorCode::NameInvalid, &error)
    }
}

impl From<ParseTagError> for Failure {
    fn from(error: ParseTagError) -> Self {
        Self::bad(ErrorCode::TagInvalid, &error)
    }
}

impl From<ParseContentDigestError> for Failure {
    fn from(error: ParseContentDigestError) -> Self {
        Self::bad(ErrorCode::DigestInvalid, &error)
    }
}

impl From<UnsupportedAlgorithm> for Failure {
    fn from(error: UnsupportedAlgorithm) -> Self {
        Self::bad(ErrorCode::DigestInvalid, &error)
    }
}

impl From<ParseReferenceError> for Failure {
    fn from(error: ParseReferenceError) -> Self {
        match error {
            ParseReferenceError::Tag(error) => error.into(),
            ParseReferenceError::Digest(error) => error.into(),
        }
    }
}

impl From<ReadBlobError> for Failure {
    fn from(error: ReadBlobError) -> Self {
        match &error {
            ReadBlobError::NotFound(_) => {
                Self::new(StatusCode::NOT_FOUND, ErrorCode::BlobUnknown, error.to_string(), Value::Null)
            }
            ReadBlobError::Corrupt { digest, .. } => {
                tracing::error!(%error, "a damaged blob was asked for");
                Self::damaged(*digest)
            }
            ReadBlobError::Io { .. } => Self::internal(&error),
        }
    }
}

impl From<LocateError> for Failure {
    fn from(error: LocateError) -> Self {
        match error {
            LocateError::Unsupported(error) => error.into(),
            LocateError::Io(error) => Self::io(&error),
        }
    }
}

impl From<WriteBlobError> for Failure {
    fn from(error: WriteBlobError) -> Self {
        match &error {
            WriteBlobError::Mismatch(mismatch) => {
                let detail = json!({"expected": mismatch.expected.to_string(), "found": mismatch.found.to_string()});
                Self::new(StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid, error.to_string(), detail)
            }
            WriteBlobError::Erased { digest, tombstone } => {
                Self::new(StatusCode::FORBIDDEN, ErrorCode::Denied, error.to_string(), detail_of(*digest, tombstone))
            }
            WriteBlobError::Io(source) => Self::io(source),
        }
    }
}

fn detail_of(digest: Digest, tombstone: &Tombstone) -> Value {
    json!({
        "digest": digest.to_string(),
        "erased": {
            "reason": tombstone.reason,
            "requestedBy": tombstone.requested_by,
            "approvedBy": tombstone.approved_by,
            "at": tombstone.at,
            "entry": tombstone.entry,
        },
    })
}

impl Failure {
    /// It was here once, and whoever asks may know why it is not any more.
    pub(super) fn gone(code: ErrorCode, digest: Digest, tombstone: &Tombstone) -> Self {
        Self::new(StatusCode::GONE, code, format!("{digest} {tombstone}"), detail_of(digest, tombstone))
    }

    pub(super) fn damaged(digest: Digest) -> Self {
        let message = format!(
            "the stored bytes of {digest} are damaged and are not served: push the same content again to heal it"
        );
        let detail = json!({"digest": digest.to_string()});
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, message, detail)
    }

    fn io(error: &std::io::Error) -> Self {
        if matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) {
            tracing::error!(%error, "the store is full");
            let message = "the registry's disk is full: free space on its host, then push again".to_owned();
            return Self::new(StatusCode::INSUFFICIENT_STORAGE, ErrorCode::Unavailable, message, Value::Null);
        }
        Self::internal(error)
    }
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Unavailable(_) => {
                tracing::error!(%error, "the ledger is not available");
                let message = "the ledger is not available: try again later".to_owned();
                Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message, Value::Null)
                    .with(header::RETRY_AFTER, "5")
            }
            LedgerError::Damaged(_) | LedgerError::Newer { .. } => Self::internal(&error),
        }
    }
}

impl From<BodyError> for Failure {
    fn from(error: BodyError) -> Self {
        let status = match error {
            BodyError::Broken(_) => StatusCode::BAD_REQUEST,
            BodyError::Idle(_) => StatusCode::REQUEST_TIMEOUT,
        };
        Self::new(status, ErrorCode::SizeInvalid, error.to_string(), Value::Null)
    }
}

impl From<UploadError> for Failure {
    fn from(error: UploadError) -> Self {
        let (status, code) = match &error {
            UploadError::Unknown(_) => (StatusCode::NOT_FOUND, ErrorCode::BlobUploadUnknown),
            UploadError::Busy(_) | UploadError::TooMany { .. } | UploadError::Full { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests)
            }
            UploadError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::SizeInvalid),
            UploadError::OutOfOrder { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::BlobUploadInvalid),
            UploadError::WrongLength { .. } => (StatusCode::BAD_REQUEST, ErrorCode::SizeInvalid),
            UploadError::Misnamed(misnamed) => return Self::misnamed(misnamed, error.to_string()),
            UploadError::Io(source) => return Self::io(source),
            UploadError::OverQuota(over) => return Self::over_quota(over),
            UploadError::OutOfSpace(full) => return (*full).into(),
            UploadError::Body(_) | UploadError::Write(_) => {
                return match error {
                    UploadError::Body(source) => source.into(),
                    UploadError::Write(source) => source.into(),
                    other => Self::internal(&other),
                };
            }
        };
        let failure = Self::new(status, code, error.to_string(), Value::Null);
        if status == StatusCode::TOO_MANY_REQUESTS { failure.with(header::RETRY_AFTER, "5") } else { failure }
    }
}

impl From<PutManifestError> for Failure {
    fn from(error: PutManifestError) -> Self {
        let text = error.to_string();
        match error {
            PutManifestError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::ManifestInvalid, text, Value::Null)
            }
            PutManifestError::Manifest(_) | PutManifestError::MediaType { .. } => {
                Self::bad(ErrorCode::ManifestInvalid, &text)
            }
            PutManifestError::Unsupported(error) => error.into(),
            PutManifestError::Locate(error) => error.into(),
            PutManifestError::Misnamed(misnamed) => Self::misnamed(&misnamed, text),
            PutManifestError::Missing { digest, .. } => {
                let detail = json!({"digest": digest.to_string()});
                Self::new(StatusCode::BAD_REQUEST, ErrorCode::ManifestBlobUnknown, text, detail)
            }
            PutManifestError::Size { .. } => Self::bad(ErrorCode::SizeInvalid, &text),
            PutManifestError::Reserved { .. } => Self::new(StatusCode::FORBIDDEN, ErrorCode::Denied, text, Value::Null),
            PutManifestError::Shrinks(_) => Self::new(StatusCode::CONFLICT, ErrorCode::TagInvalid, text, Value::Null),
            PutManifestError::Moved(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, text, Value::Null)
                    .with(header::RETRY_AFTER, "1")
            }
            PutManifestError::Frozen { current, .. } => {
                let detail = json!({"current": current.to_string()});
                Self::new(StatusCode::CONFLICT, ErrorCode::TagInvalid, text, detail)
            }
            PutManifestError::Condition { current, .. } => {
                let detail = json!({"current": current.map(|digest| digest.to_string())});
                Self::new(StatusCode::PRECONDITION_FAILED, ErrorCode::TagInvalid, text, detail)
            }
            PutManifestError::Unconditional => Self::bad(ErrorCode::Unsupported, &text),
            PutManifestError::OverQuota(over) => Self::over_quota(&over),
            PutManifestError::OutOfSpace(full) => full.into(),
            PutManifestError::Current(error) => (*error).into(),
            PutManifestError::Conflict(conflict) => Self::conflict(&conflict),
            PutManifestError::Append { source: adamant_store::AppendError::Ledger(error), .. }
            | PutManifestError::Ledger(error) => error.into(),
            PutManifestError::Append { .. } => Self::internal(&text),
            PutManifestError::Read(error) => error.into(),
            PutManifestError::Write(error) => error.into(),
        }
    }
}

impl Failure {
    /// Docker's clients print "tag invalid:" and the message, as they do for the registries
    /// that know immutable tags.
    fn conflict(conflict: &adamant_store::Conflict) -> Self {
        let adamant_store::Conflict { name, bound, offered, .. } = conflict;
        let message = format!(
            "`{name}` is bound to {} for ever, by {} at {}; {offered} was not pushed to it: push it under a new tag, or push and deploy it by digest",
            bound.digest, bound.by, bound.at
        );
        let detail = json!({
            "name": name,
            "bound": {
                "digest": bound.digest.to_string(),
                "by": bound.by,
                "at": bound.at,
                "entry": bound.index,
            },
            "offered": offered.to_string(),
        });
        Self::new(StatusCode::CONFLICT, ErrorCode::TagInvalid, message, detail)
    }
}

impl From<ReadManifestError> for Failure {
    fn from(error: ReadManifestError) -> Self {
        match error {
            ReadManifestError::Unknown { .. } => Self::unknown_manifest(error.to_string()),
            ReadManifestError::Unsupported(error) => error.into(),
            ReadManifestError::Misled { named, digest } => Self::misled(&named, digest),
            ReadManifestError::Ledger(error) => error.into(),
            // Bound but not stored: nothing a client did can lead here.
            ReadManifestError::Blob(ReadBlobError::NotFound(_)) | ReadManifestError::Manifest { .. } => {
                Self::internal(&error)
            }
            ReadManifestError::Blob(error) => error.into(),
        }
    }
}

impl From<GateError> for Failure {
    fn from(error: GateError) -> Self {
        let text = error.to_string();
        match error {
            GateError::Closed { missing, .. } => {
                Self::new(StatusCode::FORBIDDEN, ErrorCode::Denied, text, json!({ "missing": missing }))
            }
            GateError::Ledger(error) => error.into(),
            GateError::Manifest(error) => (*error).into(),
            GateError::Blob(error) => error.into(),
        }
    }
}

impl Failure {
    pub(super) fn upstream_only(repository: &RepositoryName, url: &str) -> Self {
        let message = format!(
            "{repository} is for what is pulled through from {url}, and nobody pushes to it: push under another name"
        );
        Self::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message, Value::Null)
    }

    /// What could not be read, perhaps through an upstream. Others may wait for the same answer.
    pub(super) fn pull(error: Arc<PullError>) -> Self {
        let error = match Arc::try_unwrap(error) {
            Ok(PullError::Manifest(error)) => return error.into(),
            Ok(error) => Arc::new(error),
            Err(shared) => shared,
        };
        let text = error.to_string();
        match &*error {
            PullError::NoUpstream(_)
            | PullError::Dated { .. }
            | PullError::Upstream { source: UpstreamError::Absent(_), .. } => Self::unknown_manifest(text),
            PullError::NotAllowed { .. } => Self::new(StatusCode::FORBIDDEN, ErrorCode::Denied, text, Value::Null),
            PullError::Upstream { source: UpstreamError::Failed(_), .. } | PullError::Unfit { .. } => {
                Self::new(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, text, Value::Null)
            }
            PullError::Busy | PullError::Slow(_) | PullError::BrokenOff(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, text, Value::Null)
                    .with(header::RETRY_AFTER, "5")
            }
            PullError::Write(WriteBlobError::Io(source))
            | PullError::Put(PutManifestError::Write(WriteBlobError::Io(source))) => Self::io(source),
            PullError::Put(_)
            | PullError::Locate(_)
            | PullError::Read(_)
            | PullError::Write(_)
            | PullError::Manifest(_)
            | PullError::Ledger(_) => Self::internal(&text),
        }
    }
}

impl From<ListError> for Failure {
    fn from(error: ListError) -> Self {
        match error {
            ListError::UnknownRepository(_) => {
                Self::new(StatusCode::NOT_FOUND, ErrorCode::NameUnknown, error.to_string(), Value::Null)
            }
            ListError::Ledger(error) => error.into(),
            ListError::Manifest(error) => error.into(),
        }
    }
}
