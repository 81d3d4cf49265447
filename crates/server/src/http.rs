//! One port: git, `/v2/`, interface, page, log tiles, metrics. Routing and access, no decisions.

mod api;
mod git;
mod pages;

use std::net::SocketAddr;
use std::sync::Arc;

use adamant_api::{ApiError, Class};
use adamant_registry::Access;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};

use tokio_util::sync::CancellationToken;

use crate::auth::Auth;
use crate::error::Problem;
use crate::metrics::Metrics;
use crate::platform::Platform;

/// Largest JSON request, in bytes: a recipe with its native locks.
const MAX_REQUEST: usize = 32 * 1024 * 1024;

/// What every handler sees.
pub(crate) struct Rim {
    pub(crate) platform: Arc<Platform>,
    pub(crate) auth: Arc<Auth>,
    pub(crate) metrics: Arc<Metrics>,
    /// The address listened on; names the hosts that may be asked for.
    pub(crate) address: SocketAddr,
    /// `/v2/` is open to everyone on loopback.
    pub(crate) anonymous_registry: bool,
    /// Anybody may pull.
    pub(crate) anonymous_pull: bool,
    /// Ends streams that would otherwise never end when the server stops.
    pub(crate) closing: CancellationToken,
}

pub(crate) type Shared = State<Arc<Rim>>;

/// The whole interface.
pub(crate) fn router(rim: Arc<Rim>) -> Router {
    let interface = Router::new()
        .route("/projects", get(api::projects).post(api::create_project))
        .route("/projects/{project}", get(api::status))
        .route("/projects/{project}/lock", post(api::lock))
        .route("/projects/{project}/promote", post(api::promote))
        .route("/projects/{project}/rollback", post(api::rollback))
        .route("/projects/{project}/diff", get(api::diff))
        .route("/projects/{project}/config/{environment}", get(api::config).post(api::set_config))
        .route("/projects/{project}/releases/{number}", get(api::release))
        .route("/projects/{project}/releases/{number}/log", get(api::build_log))
        .route("/projects/{project}/environments/{environment}/log", get(api::instance_log))
        .route("/projects/{project}/environments/{environment}/capsule", get(api::capsule))
        .route("/ledger", get(api::facts))
        .route("/pointer", get(api::pointer))
        .route("/trust", get(api::trust))
        .route("/gc", post(api::gc))
        .route("/erasures", get(api::erasures).post(api::erase))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_REQUEST))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&rim), need_token));
    let pages = Router::new()
        .route("/", get(pages::board))
        .route("/ledger", get(pages::ledger))
        .route("/ledger/{index}", get(pages::fact))
        .route("/p/{project}", get(pages::project))
        .route("/p/{project}/{number}", get(pages::release))
        .route("/p/{project}/{number}/log", get(pages::log_stream))
        .route("/artifact/{digest}", get(pages::artifact))
        .route("/events", get(pages::events))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&rim), need_session));
    Router::new()
        .nest(adamant_api::BASE, interface)
        .merge(pages)
        .route("/login", get(pages::login))
        .route("/assets/{name}", get(pages::asset))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .route("/log/{*path}", get(api::log_file))
        .route("/git/{repository}/info/refs", get(git::info_refs))
        .route("/git/{repository}/git-upload-pack", post(git::upload_pack))
        .route("/git/{repository}/git-receive-pack", post(git::receive_pack))
        .route("/v2", any(registry))
        .route("/v2/", any(registry))
        .route("/v2/{*path}", any(registry))
        .fallback(|| async { ApiFailure(ApiError::new(Class::Usage, "there is nothing at this path"), 404) })
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&rim), guard))
        .with_state(rim)
}

/// A problem as a response: JSON body, status of its class.
pub(crate) struct ApiFailure(pub(crate) ApiError, pub(crate) u16);

impl IntoResponse for ApiFailure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.1).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, axum::Json(self.0)).into_response()
    }
}

impl From<Problem> for ApiFailure {
    fn from(problem: Problem) -> Self {
        if let Some(internal) = &problem.internal {
            tracing::error!(error = %problem.error.message, internal, "request failed");
        }
        let status = problem.error.class.status();
        Self(problem.error, status)
    }
}

/// Checks that hold for every request, whoever sends it: the host asked for is ours, and a
/// write does not come from a page of somebody else (DESIGN §8: loopback is no trust boundary).
async fn guard(State(rim): Shared, request: Request, next: Next) -> Response {
    rim.metrics.request(request.uri().path());
    let headers = request.headers();
    let host = match host(&request) {
        Ok(host) => host,
        Err(error) => return ApiFailure(error, StatusCode::BAD_REQUEST.as_u16()).into_response(),
    };
    if !rim.serves(host) {
        let error = ApiError::new(Class::Denied, format!("this server does not answer for the host `{host}`"))
            .hint(format!("use http://{}", rim.address));
        return ApiFailure(error, StatusCode::MISDIRECTED_REQUEST.as_u16()).into_response();
    }
    let write = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if write && from_elsewhere(headers, host) {
        let error = ApiError::new(Class::Denied, "a page of another origin may not change anything here");
        return ApiFailure(error, 403).into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

/// The one host a request is for. Whoever stands before this server, or reads its log, must not be
/// able to take the request for another one (RFC 9112 §3.2).
fn host(request: &Request) -> Result<&str, ApiError> {
    let mut named = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (named.next(), named.next()) else {
        let error = ApiError::new(Class::Usage, "the request names no host, or several");
        return Err(error.hint("send one `Host` header"));
    };
    let host = host.to_str().unwrap_or_default();
    match request.uri().authority() {
        Some(authority) if authority.as_str() != host => {
            let text = format!("the request is for `{authority}` and its `Host` is `{host}`");
            Err(ApiError::new(Class::Usage, text).hint("send the path alone, with one `Host` header"))
        }
        _ => Ok(host),
    }
}

impl Rim {
    /// Whether a `Host` header names this server.
    fn serves(&self, host: &str) -> bool {
        let port = self.address.port();
        let ip = self.address.ip();
        let with_port = [
            format!("{}", self.address),
            format!("localhost:{port}"),
            format!("127.0.0.1:{port}"),
            format!("[::1]:{port}"),
        ];
        with_port.iter().any(|name| name == host)
            || (port == 80 && [ip.to_string().as_str(), "localhost"].contains(&host))
    }
}

/// Whether a browser says that the request was started by another site. Clients that are no
/// browsers send neither header and carry a token that no page has.
fn from_elsewhere(headers: &HeaderMap, host: &str) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(site) = text("sec-fetch-site")
        && !matches!(site, "same-origin" | "none")
    {
        return true;
    }
    text("origin").is_some_and(|origin| origin != format!("http://{host}"))
}

/// Who sent the request, set by [`need_token`].
#[derive(Clone)]
pub(crate) struct Actor(pub(crate) String);

async fn need_token(State(rim): Shared, mut request: Request, next: Next) -> Response {
    let Some(actor) = rim.auth.by_token(request.headers()) else {
        let error = ApiError::new(Class::Denied, "this needs a token").hint("on this machine: `adamant token`");
        let mut response = ApiFailure(error, 401).into_response();
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"adamant\""));
        return response;
    };
    request.extensions_mut().insert(Actor(actor));
    next.run(request).await
}

/// Everything a page may load comes from here; nothing may frame it.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                   base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

async fn need_session(State(rim): Shared, request: Request, next: Next) -> Response {
    let known = rim.auth.by_cookie(request.headers()).or_else(|| rim.auth.by_token(request.headers()));
    let mut response = if known.is_some() { next.run(request).await } else { pages::signed_out() };
    let headers = response.headers_mut();
    headers.insert("content-security-policy", HeaderValue::from_static(CSP));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// `/v2/`: the registry speaks its own protocol; here only who is asking is decided.
async fn registry(State(rim): Shared, request: Request) -> Response {
    let access = match rim.auth.by_token(request.headers()) {
        Some(actor) => Access::Granted { actor, push: true },
        None if request.headers().contains_key(header::AUTHORIZATION) => Access::Denied,
        None => {
            let open = rim.anonymous_registry && rim.address.ip().is_loopback();
            Access::Anonymous { pull: open || rim.anonymous_pull, push: open }
        }
    };
    rim.platform.registry.handle(request, access).await.map(axum::body::Body::new)
}

async fn metrics(State(rim): Shared) -> Response {
    let text = rim.metrics.render(&rim.platform).await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
