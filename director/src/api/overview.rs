//! All clusters at a glance.

use axum::Json;
use axum::extract::State;

use super::problem::Problem;
use super::{ApiState, List};
use crate::model::ClusterOverview;

/// All clusters at a glance, by name: versions, machines, what is being done and what comes next.
#[utoipa::path(get, path = "/v1/overview", operation_id = "listOverview", tag = "clusters",
    responses((status = 200, body = List<ClusterOverview>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(state): State<ApiState>,
) -> Result<Json<List<ClusterOverview>>, Problem> {
    let items = state.director.overview().await?;
    Ok(Json(List { items }))
}
