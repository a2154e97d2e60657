//! Persistent disks.

use axum::extract::State;
use axum::{Extension, Json};
use windlass_common::id::DiskName;

use super::extract::Name;
use super::problem::Problem;
use super::{ApiState, List};
use crate::model::Caller;
use crate::service::Disk;

/// Persistent disks; those without a machine are orphans.
#[utoipa::path(get, path = "/v1/disks", operation_id = "listDisks", tag = "machines",
    responses((status = 200, body = List<Disk>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<List<Disk>>, Problem> {
    let items = state.director.disks().await?;
    Ok(Json(List { items }))
}

/// Delete an orphan and the data on it. A disk that is a machine's is refused with 409.
#[utoipa::path(delete, path = "/v1/disks/{name}", operation_id = "deleteDisk", tag = "machines",
    params(("name" = String, Path)),
    responses((status = 200, description = "The disk that is gone", body = Disk),
        (status = 409, description = "Somebody has it", body = Problem,
            content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn delete(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<DiskName>,
) -> Result<Json<Disk>, Problem> {
    Ok(Json(state.director.delete_disk(&name, &caller).await?))
}
