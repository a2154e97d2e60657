//! What is known of a machine that does not work, and what operators say to it.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::{ClusterName, MachineName};

use super::extract::{Name, Text};
use super::problem::Problem;
use super::{ApiState, List};
use crate::model::{Caller, Task};
use crate::resurrector::{CaseRecord, HoldKind};
use crate::service::{KeptMachine, NodeWhy, RecreateOrder, StoppedPool};
use crate::spec;

/// How much is left to the operator, and why.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HoldNode {
    /// What.
    pub kind: HoldKind,
    /// Why, for others who look; at most 500 bytes.
    #[serde(default)]
    pub reason: String,
}

/// How a machine is made anew.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RecreateNode {
    /// The API of a cluster with one control-plane machine may be down meanwhile.
    #[serde(default)]
    pub accept_downtime: bool,
    /// Keep what there is of it, off and without disks and network, for people to look into.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
    /// Why it is kept, for others who look; at most 500 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Why a machine is judged as it is, and what comes next.
#[utoipa::path(get, path = "/v1/machines/{name}/why", operation_id = "explainMachine",
    tag = "machines", params(("name" = String, Path)),
    responses((status = 200, body = NodeWhy),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn why(
    State(state): State<ApiState>,
    Name(name): Name<MachineName>,
) -> Result<Json<NodeWhy>, Problem> {
    Ok(Json(state.director.node_why(&name).await?))
}

/// The pools of a cluster that are left to an operator since their replacements die young, with what those have in
/// common.
#[utoipa::path(get, path = "/v1/clusters/{name}/stopped-pools", operation_id = "listStoppedPools",
    tag = "clusters", params(("name" = String, Path)),
    responses((status = 200, body = List<StoppedPool>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn stopped(
    State(state): State<ApiState>,
    Name(name): Name<ClusterName>,
) -> Result<Json<List<StoppedPool>>, Problem> {
    let items = state.director.stopped_pools(&name).await?;
    Ok(Json(List { items }))
}

/// Keep remedies from a machine, or have it ignored, until it is released.
#[utoipa::path(put, path = "/v1/machines/{name}/hold", operation_id = "holdMachine",
    tag = "machines", params(("name" = String, Path)), request_body = HoldNode,
    responses((status = 200, body = CaseRecord),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn hold(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<MachineName>,
    Text(body): Text,
) -> Result<Json<CaseRecord>, Problem> {
    let HoldNode { kind, reason } = read(&body)?;
    let record = state
        .director
        .hold_node(&name, kind, reason, &caller)
        .await?;
    Ok(Json(record))
}

/// Let a machine go that was held or ignored; what was tried on it is forgotten.
#[utoipa::path(delete, path = "/v1/machines/{name}/hold", operation_id = "releaseMachine",
    tag = "machines", params(("name" = String, Path)),
    responses((status = 200, body = CaseRecord),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn release(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<MachineName>,
) -> Result<Json<CaseRecord>, Problem> {
    Ok(Json(state.director.release_node(&name, &caller).await?))
}

/// Replace a machine by its next incarnation, whatever its verdict.
///
/// One that serves is drained first; one that is judged to serve nobody is shut out and not waited for. Its
/// address, its pods' network and its data disk go to the next incarnation. What else there is of it is deleted, or
/// kept for people to look into.
#[utoipa::path(post, path = "/v1/machines/{name}/recreation", operation_id = "recreateMachine",
    tag = "machines", params(("name" = String, Path)), request_body = RecreateNode,
    responses((status = 202, description = "Ordered", body = Task),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn recreate(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<MachineName>,
    Text(body): Text,
) -> Result<(StatusCode, Json<Task>), Problem> {
    let RecreateNode {
        accept_downtime,
        keep,
        reason,
    } = read(&body)?;
    let order = RecreateOrder {
        accept_downtime,
        keep: keep.then_some(reason),
    };
    let task = state.director.recreate_node(&name, order, &caller).await?;
    Ok((StatusCode::ACCEPTED, Json(task)))
}

/// Machines that are kept after another incarnation followed them.
///
/// Each is off, refused at the link, and has no disk and no network. It is deleted by an order that names it, or by the
/// director once it is too old.
#[utoipa::path(get, path = "/v1/kept-machines", operation_id = "listKeptMachines", tag = "machines",
    responses((status = 200, body = List<KeptMachine>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn kept(
    State(state): State<ApiState>,
) -> Result<Json<List<KeptMachine>>, Problem> {
    let items = state.director.kept_machines().await?;
    Ok(Json(List { items }))
}

/// Delete a machine that is kept, and all it holds.
#[utoipa::path(delete, path = "/v1/kept-machines/{name}", operation_id = "deleteKeptMachine",
    tag = "machines", params(("name" = String, Path)),
    responses((status = 200, description = "The machine that is gone", body = KeptMachine),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn delete_kept(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<MachineName>,
) -> Result<Json<KeptMachine>, Problem> {
    let gone = state.director.delete_kept_machine(&name, &caller).await?;
    Ok(Json(gone))
}

fn read<T: DeserializeOwned>(body: &str) -> Result<T, Problem> {
    serde_json::from_value(spec::from_text(body)?).map_err(|error| {
        Problem::new(
            400,
            "malformed",
            format!("the body is not understood: {error}"),
        )
    })
}
