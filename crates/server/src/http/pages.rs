//! The page: reading only.

use std::convert::Infallible;

use adamant_api::{ApiError, FactSummary};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Redirect, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use serde::Deserialize;
use tokio_stream::wrappers::WatchStream;

use super::Shared;
use crate::auth::COOKIE;
use crate::error::Problem;

/// A page, or a page that says why not.
type Page = Result<Html<String>, PageFailure>;

pub(super) struct PageFailure(ApiError);

impl From<Problem> for PageFailure {
    fn from(problem: Problem) -> Self {
        Self(problem.error)
    }
}

impl From<adamant_ui::Error> for PageFailure {
    fn from(error: adamant_ui::Error) -> Self {
        Self(Problem::internal("the page could not be rendered", error).error)
    }
}

impl IntoResponse for PageFailure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.class.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let hint = self.0.hint.unwrap_or_default();
        match adamant_ui::notice("That did not work", &self.0.message, &hint) {
            Ok(page) => (status, Html(page)).into_response(),
            Err(_) => (status, self.0.message).into_response(),
        }
    }
}

pub(super) fn signed_out() -> Response {
    let text = "This page needs a login. On the machine of the server, print a link that works once:";
    match adamant_ui::notice("Signed out", text, "adamant login") {
        Ok(page) => (StatusCode::UNAUTHORIZED, Html(page)).into_response(),
        Err(_) => StatusCode::UNAUTHORIZED.into_response(),
    }
}

#[derive(Deserialize)]
pub(super) struct Login {
    #[serde(default)]
    once: String,
}

pub(super) async fn login(State(rim): Shared, Query(ask): Query<Login>) -> Response {
    let Some(session) = rim.auth.log_in(&ask.once) else {
        return PageFailure(Problem::no("this link was used or is too old").hint("print another: adamant login").error)
            .into_response();
    };
    // The host alone gets it, services live under other names.
    let secure = if rim.scheme() == "https" { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={session}; HttpOnly; SameSite=Strict; Path=/{secure}");
    let mut response = Redirect::to("/").into_response();
    if let Ok(value) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}

pub(super) async fn asset(Path(name): Path<String>) -> Response {
    match adamant_ui::asset(&name) {
        Some((kind, bytes)) => {
            ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "public, max-age=3600")], bytes).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

pub(super) async fn board(State(rim): Shared) -> Page {
    let mut projects = Vec::new();
    for project in rim.platform.projects().await? {
        projects.push(rim.platform.status(&project.name).await?);
    }
    Ok(Html(adamant_ui::board(&projects)?))
}

pub(super) async fn project(State(rim): Shared, Path(project): Path<String>) -> Page {
    Ok(Html(adamant_ui::project(&rim.platform.status(&project).await?)?))
}

pub(super) async fn release(State(rim): Shared, Path((project, number)): Path<(String, u64)>) -> Page {
    Ok(Html(adamant_ui::release(&rim.platform.release_summary(&project, number).await?)?))
}

pub(super) async fn artifact(State(rim): Shared, Path(digest): Path<String>) -> Page {
    let digest = digest.parse().map_err(|e: adamant_digest::ParseDigestError| Problem::usage(e.to_string()))?;
    let facts: Vec<FactSummary> = rim.platform.facts_about(digest).await?;
    if facts.is_empty() {
        return Err(Problem::usage(format!("the ledger says nothing about {digest}")).into());
    }
    let manifest = rim.platform.manifest_text(digest).await?;
    Ok(Html(adamant_ui::artifact(&digest.to_string(), &facts, &manifest)?))
}

#[derive(Deserialize)]
pub(super) struct Before {
    before: Option<u64>,
}

pub(super) async fn ledger(State(rim): Shared, Query(ask): Query<Before>) -> Page {
    let facts = rim.platform.recent(ask.before, 100).await?;
    let before = facts.last().map(|f| f.index).filter(|index| *index > 0);
    let checkpoint = rim.platform.checkpoint().await?;
    Ok(Html(adamant_ui::ledger(&facts, before, &checkpoint)?))
}

pub(super) async fn fact(State(rim): Shared, Path(index): Path<u64>) -> Page {
    let fact = rim.platform.fact(index).await?;
    let statement = fact.statement.as_ref().and_then(|s| serde_json::to_string_pretty(s).ok()).unwrap_or_default();
    Ok(Html(adamant_ui::fact(&fact, &statement)?))
}

/// Tells open pages that something was recorded.
pub(super) async fn events(State(rim): Shared) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let stream = WatchStream::from_changes(rim.platform.ledger.grown())
        .map(|size| Ok(Event::default().event("change").data(size.to_string())))
        .take_until(rim.closing.clone().cancelled_owned());
    Sse::new(stream).keep_alive(KeepAlive::default())
}

/// A build log as events, one a line, as HTML text.
pub(super) async fn log_stream(
    State(rim): Shared,
    Path((project, number)): Path<(String, u64)>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, PageFailure> {
    let log = rim.platform.build_log(&project, number).await?;
    let lines = lines(Box::pin(log.stream(true))).map(|line| {
        let text = adamant_ui::escape(&line);
        Ok(Event::default().event("line").data(format!("{text}<br>")))
    });
    let end = futures_util::stream::once(async { Ok(Event::default().event("end").data("end")) });
    let stream = lines.chain(end).take_until(rim.closing.clone().cancelled_owned());
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

/// Cuts a byte stream into lines of text.
fn lines<S>(stream: S) -> impl Stream<Item = String> + Send + 'static
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin + 'static,
{
    let state = (stream, Vec::<u8>::new(), std::collections::VecDeque::<String>::new(), false);
    futures_util::stream::unfold(state, |(mut stream, mut rest, mut ready, mut ended)| async move {
        loop {
            if let Some(line) = ready.pop_front() {
                return Some((line, (stream, rest, ready, ended)));
            }
            if ended {
                return None;
            }
            if let Some(Ok(bytes)) = stream.next().await {
                rest.extend_from_slice(&bytes);
                while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    ready.push_back(clean(&line[..end]));
                }
            } else {
                ended = true;
                if !rest.is_empty() {
                    ready.push_back(clean(&std::mem::take(&mut rest)));
                }
            }
        }
    })
}

/// Text without control characters: an event's data may hold neither line ends nor escapes.
fn clean(line: &[u8]) -> String {
    String::from_utf8_lossy(line).chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_cut_and_cleaned() {
        let parts = [&b"on"[..], b"e\ntw\x1b[1mo\nthree"].map(|part| Ok(Bytes::from_static(part)));
        let got: Vec<_> = lines(futures_util::stream::iter(parts)).collect().await;
        assert_eq!(got, ["one", "tw\u{fffd}[1mo", "three"]);
    }
}
