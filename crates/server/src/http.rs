//! One port: git, `/v2/`, interface, page, log tiles, metrics. Routing and access, no decisions.

mod api;
mod git;
mod pages;
mod registry;
mod upstreams;

use std::net::SocketAddr;
use std::sync::Arc;

use adamant_api::{ApiError, Class};
use adamant_registry::Rights;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};

use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::auth::Auth;
use crate::error::Problem;
use crate::metrics::Metrics;
use crate::platform::Platform;
use crate::rate::Buckets;
use crate::serving::Sent;
use crate::settings::without_port;

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
    /// What anybody may do in the registry without a token.
    pub(crate) anonymous_pull: Rights,
    /// How many requests a caller of the registry may send; `None`: any number.
    pub(crate) rate: Option<Buckets>,
    /// How often an address may send credentials that do not hold.
    pub(crate) failed_logins: Buckets,
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
        .route("/upstreams", get(upstreams::list))
        .route("/upstreams/check", post(upstreams::check))
        .route("/upstreams/update", post(upstreams::update))
        .route("/webhooks", get(api::webhooks))
        .route("/ledger", get(api::facts))
        .route("/pointer", get(api::pointer))
        .route("/tokens", get(api::tokens).post(api::create_token))
        .route("/tokens/{name}/revoke", post(api::revoke_token))
        .route("/trust", get(api::trust))
        .route("/gc", post(api::gc))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_REQUEST))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&rim), need_token));
    let erasures = Router::new()
        .route("/erasures", get(api::erasures).post(api::erase))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&rim), need_eraser));
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
        .nest(adamant_api::BASE, interface.merge(erasures))
        .merge(pages)
        .route("/login", get(pages::login))
        .route("/assets/{name}", get(pages::asset))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .route("/log/{*path}", get(api::log_file))
        .route("/git/{repository}/info/refs", get(git::info_refs))
        .route("/git/{repository}/git-upload-pack", post(git::upload_pack))
        .route("/git/{repository}/git-receive-pack", post(git::receive_pack))
        .route("/v2", any(registry::serve))
        .route("/v2/", any(registry::serve))
        .route("/v2/token", get(registry::token).post(registry::oauth))
        .route("/v2/{*path}", any(registry::serve))
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
async fn guard(State(rim): Shared, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    request.extensions_mut().insert(RequestId(id.clone()));
    let span = tracing::info_span!("request", id);
    let mut response = guarded(rim, request, next).instrument(span).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Names one request in its answer and in every line of the log about it.
const REQUEST_ID: &str = "x-request-id";

/// The id of the request that is being answered.
#[derive(Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// The client's own if it is short and safe, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let safe = |text: &&str| {
        (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let own = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(safe);
    own.map_or_else(|| crate::auth::random().chars().take(22).collect(), str::to_owned)
}

async fn guarded(rim: Arc<Rim>, request: Request, next: Next) -> Response {
    rim.metrics.request(request.uri().path());
    let headers = request.headers();
    let host = match host(&request) {
        Ok(host) => host,
        Err(error) => return ApiFailure(error, StatusCode::BAD_REQUEST.as_u16()).into_response(),
    };
    let to = request.extensions().get::<Sent>().and_then(|sent| sent.to);
    if !rim.serves(host, to) {
        let error = ApiError::new(Class::Denied, format!("this server does not answer for the host `{host}`"))
            .hint(format!("use {}, or name it in `[server] hosts` of server.toml", rim.platform.base_url()));
        return ApiFailure(error, StatusCode::MISDIRECTED_REQUEST.as_u16()).into_response();
    }
    let write = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if write && from_elsewhere(headers, rim.scheme(), host) {
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
    /// How clients reach this server.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.platform.base_url().starts_with("https:") { "https" } else { "http" }
    }

    /// What anybody may do in the registry.
    pub(crate) fn anonymous(&self) -> Rights {
        let open = self.anonymous_registry && self.address.ip().is_loopback();
        if open { Rights::all() } else { self.anonymous_pull.clone() }
    }

    /// Whether a `Host` header names this server.
    /// An address is ours if the connection is to it: no page has one as its host by a trick with names.
    fn serves(&self, host: &str, to: Option<SocketAddr>) -> bool {
        if to.is_some_and(|to| to.to_string() == host) || self.platform.config.settings.names(without_port(host)) {
            return true;
        }
        let port = self.address.port();
        let ip = self.address.ip();
        let with_port = [
            format!("{}", self.address),
            format!("localhost:{port}"),
            format!("127.0.0.1:{port}"),
            format!("[::1]:{port}"),
        ];
        with_port.iter().any(|name| name == host)
            || (port == if self.scheme() == "https" { 443 } else { 80 }
                && [ip.to_string().as_str(), "localhost"].contains(&host))
    }
}

/// Whether a browser says that the request was started by another site. Clients that are no
/// browsers send neither header and carry a token that no page has.
fn from_elsewhere(headers: &HeaderMap, scheme: &str, host: &str) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(site) = text("sec-fetch-site")
        && !matches!(site, "same-origin" | "none")
    {
        return true;
    }
    text("origin").is_some_and(|origin| origin != format!("{scheme}://{host}"))
}

/// Who sent the request, set by [`need_token`].
#[derive(Clone)]
pub(crate) struct Actor(pub(crate) String);

async fn need_token(State(rim): Shared, mut request: Request, next: Next) -> Response {
    let Some(actor) = rim.auth.by_token(request.headers()) else { return no_token() };
    request.extensions_mut().insert(Actor(actor));
    next.run(request).await
}

/// The same for what a named token with the scope `erase` may do as well.
async fn need_eraser(State(rim): Shared, mut request: Request, next: Next) -> Response {
    let Some(caller) = rim.auth.eraser(request.headers()) else { return no_token() };
    if !caller.erases {
        let error = ApiError::new(Class::Denied, format!("{} may not erase", caller.actor))
            .hint("adamant token create NAME --scope erase --person PERSON");
        return ApiFailure(error, 403).into_response();
    }
    request.extensions_mut().insert(Actor(caller.actor));
    next.run(request).await
}

fn no_token() -> Response {
    let error = ApiError::new(Class::Denied, "this needs a token").hint("on this machine: `adamant token`");
    let mut response = ApiFailure(error, 401).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"adamant\""));
    response
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

async fn metrics(State(rim): Shared) -> Response {
    let text = rim.metrics.render(&rim.platform).await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
