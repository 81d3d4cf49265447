//! Handlers of what is read through other registries.

use adamant_api::{Upstream, UpstreamCheck, UpstreamUpdate, UpstreamUpdated};
use axum::Json;
use axum::extract::{Extension, Query, State};
use axum::response::Response;
use serde::Deserialize;

use super::api::{Answer, streamed};
use super::{Actor, Shared};

#[derive(Deserialize)]
pub(super) struct Which {
    name: Option<String>,
}

pub(super) async fn list(State(rim): Shared, Query(which): Query<Which>) -> Answer<Vec<Upstream>> {
    Ok(Json(rim.platform.upstreams(which.name.as_deref()).await?))
}

pub(super) async fn check(State(rim): Shared, Json(ask): Json<UpstreamCheck>) -> Response {
    streamed(&rim, move |platform, say| async move { platform.check_upstreams(ask.what.as_deref(), &*say).await })
}

pub(super) async fn update(
    State(rim): Shared,
    Extension(actor): Extension<Actor>,
    Json(ask): Json<UpstreamUpdate>,
) -> Response {
    streamed::<UpstreamUpdated, _, _>(&rim, move |platform, _say| async move {
        platform.update_upstream(&ask.name, &actor.0).await
    })
}
