//! `/v2/`: who asks, how often, and what is written down of it. The registry speaks its own protocol.
//! Spec of the token endpoint: distribution, "Token Authentication Specification" and "OAuth2 Token
//! Authentication".

use std::net::IpAddr;
use std::time::{Duration, Instant};

use adamant_oci::{ErrorBody, ErrorCode};
use adamant_registry::{Access, Handled, Realm, Rights, Who};
use axum::Form;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::{RequestId, Rim, Shared};
use crate::auth::{BEARER_LIFE, Credentials};
use crate::serving::Sent;

type Parameters = Vec<(String, String)>;

/// Any request of the registry's protocol.
pub(super) async fn serve(State(rim): Shared, request: Request) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let response = answer(&rim, request, began).await;
    let received = response.extensions().get::<Handled>().map_or(0, |handled| handled.received);
    rim.metrics.registry(&method, response.status(), began.elapsed(), received);
    response
}

async fn answer(rim: &Rim, request: Request, began: Instant) -> Response {
    let address = address(request.extensions());
    let id = request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default();
    let access = match access(rim, request.headers(), address).await {
        Ok(access) => access,
        Err(wait) => return too_many("logins with credentials that do not hold", wait),
    };
    if let Some(rate) = &rim.rate {
        let key = match &access.who {
            Who::Known(actor) => actor.clone(),
            Who::Anonymous | Who::Denied => address.to_string(),
        };
        if let Err(wait) = rate.take(&key, began) {
            return too_many("requests", wait);
        }
    }
    let method = request.method().clone();
    let writes = !(method.is_safe());
    let path = if writes { request.uri().path().to_owned() } else { String::new() };
    let response = rim.platform.registry.handle(request, access).await;
    let response = response.map(|body| axum::body::Body::new(rim.metrics.counted(body)));
    if writes && let Some(handled) = response.extensions().get::<Handled>() {
        let text = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let tag = path.rsplit_once("/manifests/").map(|(_, reference)| reference).filter(|text| !text.contains(':'));
        let error = handled.error.and_then(|code| serde_json::to_value(code).ok());
        let error = error.as_ref().and_then(Value::as_str).unwrap_or_default();
        tracing::info!(
            target: "adamant::audit",
            id,
            actor = handled.actor,
            %address,
            %method,
            repository = handled.repository.as_deref().unwrap_or_default(),
            tag = tag.unwrap_or_default(),
            digest = text("docker-content-digest"),
            status = response.status().as_u16(),
            error,
            bytes = handled.received,
            ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "registry write"
        );
    }
    response
}

fn address(extensions: &axum::http::Extensions) -> IpAddr {
    extensions.get::<Sent>().and_then(|sent| sent.from).map_or(IpAddr::from([0, 0, 0, 0]), |from| from.ip())
}

/// Who asks. Only those whose credentials do not hold are ever made to wait: whoever shares an
/// address with them is not kept out.
async fn access(rim: &Rim, headers: &HeaderMap, address: IpAddr) -> Result<Access, Duration> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let realm = Some(Realm { url: format!("{}://{host}/v2/token", rim.scheme()), service: host.to_owned() });
    let access = match credentials(rim, headers).await {
        Credentials::None => Access::anonymous(rim.anonymous()),
        Credentials::Known { caller, within, .. } => Access { within, ..Access::known(caller.actor, caller.rights) },
        Credentials::Anonymous(within) => Access { within: Some(within), ..Access::anonymous(rim.anonymous()) },
        Credentials::Denied => {
            rim.failed_logins.take(&address.to_string(), Instant::now())?;
            tracing::warn!(%address, "credentials that do not hold");
            Access::denied()
        }
    };
    Ok(Access { realm, ..access })
}

/// Asks the ledger before somebody is refused: another server may have made their token.
async fn credentials(rim: &Rim, headers: &HeaderMap) -> Credentials {
    match rim.auth.credentials(headers) {
        Credentials::Denied if rim.auth.tokens.refresh(&rim.platform.facts).await.is_ok() => {
            rim.auth.credentials(headers)
        }
        other => other,
    }
}

/// `GET /v2/token`.
pub(super) async fn token(State(rim): Shared, Query(parameters): Query<Parameters>, request: Request) -> Response {
    let address = address(request.extensions());
    let found = credentials(&rim, request.headers()).await;
    issue(&rim, found, address, &parameters)
}

/// `POST /v2/token`, where the credentials are in the form.
pub(super) async fn oauth(State(rim): Shared, extensions: axum::http::Extensions, form: Form<Parameters>) -> Response {
    let value = |key: &str| form.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    let secret = match value("grant_type") {
        Some("password") => value("password"),
        Some("refresh_token") => value("refresh_token"),
        _ => None,
    };
    let Some(secret) = secret else {
        let text = "send grant_type=password with a password, or grant_type=refresh_token with a token";
        return (StatusCode::BAD_REQUEST, axum::Json(json!({"error": "invalid_request", "error_description": text})))
            .into_response();
    };
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(&format!("Bearer {secret}")) {
        headers.insert(header::AUTHORIZATION, value);
    }
    let found = if headers.is_empty() { Credentials::Denied } else { credentials(&rim, &headers).await };
    issue(&rim, found, address(&extensions), &form)
}

fn issue(rim: &Rim, found: Credentials, address: IpAddr, parameters: &Parameters) -> Response {
    let (secret, rights) = match found {
        // A token for one purpose is not worth another one.
        Credentials::Known { within: Some(_), .. } | Credentials::Anonymous(_) => return refuse(),
        Credentials::Known { caller, secret, within: None } => (Some(secret), caller.rights),
        Credentials::None if rim.anonymous() == Rights::none() => return refuse(),
        Credentials::None => (None, rim.anonymous()),
        Credentials::Denied => {
            if let Err(wait) = rim.failed_logins.take(&address.to_string(), Instant::now()) {
                return too_many("logins with credentials that do not hold", wait);
            }
            tracing::warn!(%address, "credentials that do not hold");
            return refuse();
        }
    };
    let asked = parameters.iter().filter(|(name, _)| name == "scope").flat_map(|(_, value)| value.split(' '));
    let (token, scope) = rim.auth.bearer(secret, &rights, asked);
    let body = json!({
        "token": token, "access_token": token, "expires_in": BEARER_LIFE.as_secs(),
        "issued_at": crate::opening::now(), "scope": scope, "token_type": "Bearer",
    });
    ([(header::CACHE_CONTROL, "no-store")], axum::Json(body)).into_response()
}

fn refuse() -> Response {
    let message = "the credentials do not hold, or none were sent: use a token of `adamant token` as password";
    let mut response = failure(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"adamant\""));
    response
}

fn too_many(what: &str, wait: Duration) -> Response {
    let seconds = wait.as_secs() + 1;
    let message = format!("too many {what}: try again in {seconds} s");
    let mut response = failure(StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests, &message);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

fn failure(status: StatusCode, code: ErrorCode, message: &str) -> Response {
    let body = ErrorBody::new(code, message.to_owned(), Value::Null).to_json();
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
    if let Some(reason) = adamant_registry::reason_phrase(status, message) {
        response.extensions_mut().insert(reason);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_told_to_wait_reads_so_in_the_status_line() {
        let response = too_many("requests", Duration::from_secs(4));
        let reason = response.extensions().get::<hyper::ext::ReasonPhrase>().unwrap();
        assert_eq!(reason.as_bytes(), b"Too Many Requests: too many requests: try again in 5 s");
    }
}
