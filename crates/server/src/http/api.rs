//! Handlers of the JSON interface: take a request apart, call the platform, write the answer.

use std::sync::Arc;

use adamant_api::{
    ConfigChange, Diff, Erase, EraseAction, Erasing, Erasure, FactSummary, Gc, Line, LockRequest, NewProject, NewToken,
    Project, Promote, ReleaseSummary, Rollback, TokenMade, TokenSummary,
};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{Actor, ApiFailure, Rim, Shared};
use crate::error::Problem;
use crate::platform::Platform;

pub(super) type Answer<T> = Result<Json<T>, ApiFailure>;

pub(super) async fn projects(State(rim): Shared) -> Answer<Vec<Project>> {
    Ok(Json(rim.platform.projects().await?))
}

pub(super) async fn create_project(
    State(rim): Shared,
    Extension(actor): Extension<Actor>,
    Json(ask): Json<NewProject>,
) -> Answer<Project> {
    Ok(Json(rim.platform.create_project(&ask.name, &actor.0).await?))
}

pub(super) async fn webhooks(State(rim): Shared) -> Answer<Vec<adamant_api::Webhook>> {
    Ok(Json(rim.platform.webhooks().await?))
}

pub(super) async fn tokens(State(rim): Shared) -> Answer<Vec<TokenSummary>> {
    rim.auth.tokens.refresh(&rim.platform.facts).await?;
    Ok(Json(rim.auth.tokens.list()))
}

pub(super) async fn create_token(
    State(rim): Shared,
    Extension(actor): Extension<Actor>,
    Json(ask): Json<NewToken>,
) -> Answer<TokenMade> {
    let made = rim.auth.tokens.create(&rim.platform.facts, &ask, &actor.0).await?;
    Ok(Json(made))
}

pub(super) async fn revoke_token(
    State(rim): Shared,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
) -> Answer<TokenSummary> {
    let revoked = rim.auth.tokens.revoke(&rim.platform.facts, &name, &actor.0).await?;
    Ok(Json(revoked))
}

pub(super) async fn status(State(rim): Shared, Path(project): Path<String>) -> Answer<adamant_api::Status> {
    Ok(Json(rim.platform.status(&project).await?))
}

pub(super) async fn release(
    State(rim): Shared,
    Path((project, number)): Path<(String, u64)>,
) -> Answer<ReleaseSummary> {
    Ok(Json(rim.platform.release_summary(&project, number).await?))
}

/// Runs `work` in a task of its own, so that a client that leaves cancels nothing, and streams
/// what it says followed by its result.
pub(super) fn streamed<T, F, W>(rim: &Arc<Rim>, work: W) -> Response
where
    T: Serialize + Send + 'static,
    F: Future<Output = Result<T, Problem>> + Send,
    W: FnOnce(Arc<Platform>, Box<dyn Fn(String) + Send + Sync>) -> F + Send + 'static,
{
    let (lines, receiver) = mpsc::channel::<Line<T>>(256);
    let platform = Arc::clone(&rim.platform);
    let progress = lines.clone();
    rim.platform.tasks.spawn(async move {
        // A full channel belongs to a client that does not read; it may miss lines of progress.
        let say = Box::new(move |line: String| drop(progress.try_send(Line::Progress(line))));
        let last = match work(platform, say).await {
            Ok(value) => Line::Done(value),
            Err(problem) => {
                if let Some(internal) = &problem.internal {
                    tracing::error!(error = %problem.error.message, internal, "request failed");
                }
                Line::Failed(problem.error)
            }
        };
        let _ = lines.send(last).await;
    });
    let body = tokio_stream::wrappers::ReceiverStream::new(receiver).map(|line| {
        let mut bytes = serde_json::to_vec(&line).map_err(std::io::Error::other)?;
        bytes.push(b'\n');
        Ok::<_, std::io::Error>(Bytes::from(bytes))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response()
}

pub(super) async fn lock(
    State(rim): Shared,
    Path(project): Path<String>,
    Extension(actor): Extension<Actor>,
    Json(ask): Json<LockRequest>,
) -> Response {
    streamed(&rim, move |platform, say| async move { platform.lock(&project, &ask, &actor.0, &*say).await })
}

pub(super) async fn promote(
    State(rim): Shared,
    Path(project): Path<String>,
    Extension(actor): Extension<Actor>,
    Json(ask): Json<Promote>,
) -> Response {
    streamed(&rim, move |platform, say| async move { platform.promote(&project, &ask, &actor.0, &*say).await })
}

pub(super) async fn rollback(
    State(rim): Shared,
    Path(project): Path<String>,
    Extension(actor): Extension<Actor>,
    Json(ask): Json<Rollback>,
) -> Response {
    streamed(&rim, move |platform, say| async move { platform.rollback(&project, &ask, &actor.0, &*say).await })
}

#[derive(Deserialize)]
pub(super) struct Between {
    from: String,
    to: String,
}

pub(super) async fn diff(State(rim): Shared, Path(project): Path<String>, Query(ask): Query<Between>) -> Answer<Diff> {
    Ok(Json(rim.platform.diff(&project, &ask.from, &ask.to).await?))
}

pub(super) async fn config(
    State(rim): Shared,
    Path((project, environment)): Path<(String, String)>,
) -> Answer<adamant_api::Config> {
    Ok(Json(rim.platform.config(&project, &environment).await?))
}

pub(super) async fn set_config(
    State(rim): Shared,
    Path((project, environment)): Path<(String, String)>,
    Extension(actor): Extension<Actor>,
    Json(change): Json<ConfigChange>,
) -> Answer<adamant_api::Config> {
    Ok(Json(rim.platform.set_config(&project, &environment, &change, &actor.0).await?))
}

#[derive(Deserialize)]
pub(super) struct Follow {
    #[serde(default)]
    follow: bool,
}

pub(super) async fn build_log(
    State(rim): Shared,
    Path((project, number)): Path<(String, u64)>,
    Query(ask): Query<Follow>,
) -> Result<Response, ApiFailure> {
    let log = rim.platform.build_log(&project, number).await?;
    Ok(text(log.stream(ask.follow).take_until(rim.closing.clone().cancelled_owned())))
}

pub(super) async fn instance_log(
    State(rim): Shared,
    Path((project, environment)): Path<(String, String)>,
    Query(ask): Query<Follow>,
) -> Result<Response, ApiFailure> {
    let lines = rim.platform.instance_log(&project, &environment, ask.follow).await?;
    Ok(text(lines.take_until(rim.closing.clone().cancelled_owned())))
}

/// A plain text stream.
pub(super) fn text(stream: impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(stream)).into_response()
}

#[derive(Deserialize)]
pub(super) struct Sequence {
    sequence: Option<u64>,
}

pub(super) async fn capsule(
    State(rim): Shared,
    Path((project, environment)): Path<(String, String)>,
    Query(ask): Query<Sequence>,
) -> Result<Response, ApiFailure> {
    let bytes = rim.platform.prove(&project, &environment, ask.sequence).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

#[derive(Deserialize)]
pub(super) struct Before {
    before: Option<u64>,
}

pub(super) async fn facts(State(rim): Shared, Query(ask): Query<Before>) -> Answer<Vec<FactSummary>> {
    Ok(Json(rim.platform.recent(ask.before, 100).await?))
}

#[derive(Deserialize)]
pub(super) struct PointerName {
    name: String,
}

pub(super) async fn pointer(
    State(rim): Shared,
    Query(ask): Query<PointerName>,
) -> Answer<Vec<adamant_api::PointerMove>> {
    Ok(Json(rim.platform.pointer(&ask.name).await?))
}

pub(super) async fn trust(State(rim): Shared) -> Result<Response, ApiFailure> {
    Ok(([(header::CONTENT_TYPE, "application/json")], rim.platform.trust_file()?).into_response())
}

/// The log as static files, C2SP tlog-tiles. Full tiles never change; the checkpoint does.
pub(super) async fn log_file(State(rim): Shared, Path(path): Path<String>) -> Result<Response, ApiFailure> {
    let missing = || ApiFailure(adamant_api::ApiError::new(adamant_api::Class::Usage, "there is no such tile"), 404);
    let bytes = rim.platform.log_file(&path).await?.ok_or_else(missing)?;
    let (kind, cache) = if path == "checkpoint" {
        ("text/plain; charset=utf-8", "no-cache")
    } else {
        ("application/octet-stream", "public, max-age=31536000, immutable")
    };
    Ok(([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, cache)], bytes).into_response())
}

pub(super) async fn gc(State(rim): Shared, Json(ask): Json<Gc>) -> Response {
    streamed(&rim, move |platform, say| async move {
        say("looking for what nothing names".to_owned());
        platform.collect(ask.dry_run, None).await
    })
}

pub(super) async fn erasures(State(rim): Shared) -> Answer<Vec<Erasure>> {
    Ok(Json(rim.platform.erasures().await?))
}

pub(super) async fn erase(
    State(rim): Shared,
    Extension(actor): Extension<Actor>,
    Json(ask): Json<Erase>,
) -> Answer<Erasing> {
    let (platform, auth) = (Arc::clone(&rim.platform), Arc::clone(&rim.auth));
    // A task of its own: a client that leaves must not leave an erasure half done.
    let done = rim.platform.tasks.spawn(async move {
        let by = &actor.0;
        match ask.action {
            EraseAction::Request { reason } => {
                let erasure = platform.ask_erasure(&ask.what, &reason, by).await?;
                Ok(Erasing { erasure, left: Vec::new() })
            }
            EraseAction::Withdraw => {
                let erasure = platform.withdraw_erasure(&ask.what, by).await?;
                Ok(Erasing { erasure, left: Vec::new() })
            }
            EraseAction::Approve => {
                // A token that another server made and gave may be new to this one.
                auth.tokens.refresh(&platform.facts).await?;
                platform.approve_erasure(&ask.what, by, |actor| auth.tokens.holder(actor)).await
            }
        }
    });
    let done: Result<Erasing, Problem> = done.await.map_err(|e| Problem::internal("an erasure ended early", e))?;
    Ok(Json(done?))
}
