//! Smart HTTP: carries the streams, decides nothing.

use adamant_source::{ByteStream, Encoding, Repository, ServeError, Service};
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::{Rim, Shared};

#[derive(serde::Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    service: String,
}

pub(super) async fn info_refs(
    State(rim): Shared,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    let Some(service) = Service::parse(&asked.service) else {
        return plain(StatusCode::FORBIDDEN, "only git's smart protocol is spoken here: use git 1.6.6 or newer");
    };
    let (repository, _) = match open(&rim, &name, &headers).await {
        Ok(opened) => opened,
        Err(response) => return response,
    };
    match repository.advertise(service, protocol(&headers)).await {
        Ok(bytes) => answer(service.advertisement_type(), Body::from(bytes)),
        Err(error) => refuse(&error),
    }
}

pub(super) async fn upload_pack(State(rim): Shared, Path(name): Path<String>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (repository, _) = match open(&rim, &name, &parts.headers).await {
        Ok(opened) => opened,
        Err(response) => return response,
    };
    let served = async {
        let encoding = Encoding::parse(text(&parts.headers, header::CONTENT_ENCODING.as_str()))?;
        repository.upload_pack(protocol(&parts.headers), encoding, stream(body)).await
    };
    match served.await {
        Ok(bytes) => answer(Service::UploadPack.result_type(), Body::from_stream(bytes)),
        Err(error) => refuse(&error),
    }
}

pub(super) async fn receive_pack(State(rim): Shared, Path(name): Path<String>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (repository, actor) = match open(&rim, &name, &parts.headers).await {
        Ok(opened) => opened,
        Err(response) => return response,
    };
    let receiver = rim.platform.receiver();
    let served = async {
        let encoding = Encoding::parse(text(&parts.headers, header::CONTENT_ENCODING.as_str()))?;
        repository.receive_pack(&actor, encoding, stream(body), receiver).await
    };
    match served.await {
        Ok(bytes) => answer(Service::ReceivePack.result_type(), Body::from_stream(bytes)),
        Err(error) => refuse(&error),
    }
}

/// The repository, and who asks. Nothing about projects is told to strangers.
async fn open(rim: &Rim, name: &str, headers: &HeaderMap) -> Result<(Repository, String), Response> {
    let Some(actor) = rim.auth.by_token(headers) else {
        // git asks its credential helper after this answer.
        let challenge = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"adamant\""))];
        return Err(
            (StatusCode::UNAUTHORIZED, challenge, "sign in: `adamant init` sets up git for that\n").into_response()
        );
    };
    let project = name.strip_suffix(".git").unwrap_or(name);
    match rim.platform.repository(project).await {
        Ok(repository) => Ok((repository, actor)),
        Err(_) => Err(plain(
            StatusCode::NOT_FOUND,
            &format!("there is no project `{project}`: run `adamant init` in its repository"),
        )),
    }
}

fn stream(body: Body) -> ByteStream {
    body.into_data_stream().map_err(std::io::Error::other).boxed()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn protocol(headers: &HeaderMap) -> Option<&str> {
    text(headers, "git-protocol")
}

fn answer(kind: &'static str, body: Body) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], body).into_response()
}

fn plain(status: StatusCode, message: &str) -> Response {
    (status, format!("{message}\n")).into_response()
}

fn refuse(error: &ServeError) -> Response {
    let status = match error {
        ServeError::Malformed(_) => StatusCode::BAD_REQUEST,
        ServeError::Encoding(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ServeError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        ServeError::Busy => StatusCode::SERVICE_UNAVAILABLE,
        ServeError::Interrupted(_) => StatusCode::REQUEST_TIMEOUT,
        ServeError::Git(error) => {
            tracing::error!(%error, "git");
            return plain(StatusCode::INTERNAL_SERVER_ERROR, "git failed on the server; its log says why");
        }
    };
    plain(status, &error.to_string())
}
