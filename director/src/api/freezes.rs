//! Times in which no cluster of the director is changed.

use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::FreezeName;
use windlass_common::maintenance::Moment;

use super::extract::{Name, Text};
use super::problem::Problem;
use super::{ApiState, List};
use crate::health::from_jiff;
use crate::model::{Caller, Freeze};
use crate::service::FreezeOrder;
use crate::spec;

/// From when until when, and why.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FreezeClusters {
    /// Its first moment, as RFC 3339; now when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub from: Option<Moment>,
    /// The first moment after it.
    #[schema(value_type = String, example = "2030-01-02T06:00:00Z")]
    pub to: Moment,
    /// Why, for people; 1 to 500 characters.
    pub reason: String,
}

/// The times in which no cluster is changed.
#[utoipa::path(get, path = "/v1/director/freezes", operation_id = "listFreezes", tag = "director",
    responses((status = 200, body = List<Freeze>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<List<Freeze>>, Problem> {
    let items = state.director.freezes().await?;
    Ok(Json(List { items }))
}

/// Have no cluster be changed for some time, or change the order of this name.
///
/// Tasks that change clusters finish the machines they have begun with, then wait as for a closed maintenance window.
/// Repairs, restores, rotations and new clusters go on.
#[utoipa::path(put, path = "/v1/director/freezes/{name}", operation_id = "freezeClusters",
    tag = "director", params(("name" = String, Path)), request_body = FreezeClusters,
    responses((status = 200, body = Freeze),
        (status = 422, description = "Every fault of the input", body = Problem,
            content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn put(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<FreezeName>,
    Text(body): Text,
) -> Result<Json<Freeze>, Problem> {
    let asked: FreezeClusters =
        serde_json::from_value(spec::from_text(&body)?).map_err(|error| {
            Problem::new(400, "malformed", format!("the body is no freeze: {error}"))
        })?;
    let order = FreezeOrder {
        from: asked.from.map(|from| from_jiff(from.0)),
        to: from_jiff(asked.to.0),
        reason: asked.reason,
    };
    Ok(Json(state.director.freeze(&name, order, &caller).await?))
}

/// End such a time, or take back one that is to come.
#[utoipa::path(delete, path = "/v1/director/freezes/{name}", operation_id = "thawClusters",
    tag = "director", params(("name" = String, Path)),
    responses((status = 200, description = "The one that is gone", body = Freeze),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn delete(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<FreezeName>,
) -> Result<Json<Freeze>, Problem> {
    Ok(Json(state.director.thaw(&name, &caller).await?))
}
