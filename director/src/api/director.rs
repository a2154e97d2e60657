//! The director itself: health, status, stemcells, audit log.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::Query;
use super::problem::Problem;
use super::{ApiState, List};
use crate::model::{AuditEntry, AuditFilter, StemcellRecord, Timestamp};
use crate::service::DirectorStatus;

/// Whether the director serves requests.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// Version of the director.
    pub version: String,
    /// Its process id, by which a client that started it knows that it is the one.
    pub pid: u32,
}

/// Whether the director serves requests.
#[utoipa::path(get, path = "/v1/health", operation_id = "getHealth",
    tag = "director", responses((status = 200, body = Health)))]
pub(super) async fn health() -> Json<Health> {
    Json(Health {
        status: "ok".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
    })
}

/// What the director says about itself.
#[utoipa::path(get, path = "/v1/status", operation_id = "getStatus",
    tag = "director",
    responses((status = 200, body = DirectorStatus),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn status(State(state): State<ApiState>) -> Result<Json<DirectorStatus>, Problem> {
    Ok(Json(state.director.status().await?))
}

/// Stemcells whose signature was verified.
#[utoipa::path(get, path = "/v1/stemcells", operation_id = "listStemcells",
    tag = "director",
    responses((status = 200, body = List<StemcellRecord>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn stemcells(
    State(state): State<ApiState>,
) -> Result<Json<List<StemcellRecord>>, Problem> {
    let items = state.director.stemcells().await?;
    Ok(Json(List { items }))
}

/// Which lines of the audit log to show.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// Newest entries, 1 to 1000; 100 when not given.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Only of this operator, or of `director`.
    actor: Option<String>,
    /// Only actions that begin so, for example `node.`.
    action: Option<String>,
    /// Only about this, for example `cluster/demo`.
    subject: Option<String>,
    /// Only from this moment on.
    #[param(value_type = Option<String>)]
    since: Option<Timestamp>,
}

/// The audit log, newest first. Filters look at the newest 20000 entries.
#[utoipa::path(get, path = "/v1/audit", operation_id = "listAuditEntries",
    tag = "director", params(AuditQuery),
    responses((status = 200, body = List<AuditEntry>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn audit(
    State(state): State<ApiState>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<List<AuditEntry>>, Problem> {
    let limit = query.limit.unwrap_or(100).clamp(1, 1000);
    let filter = AuditFilter {
        actor: query.actor,
        action: query.action,
        subject: query.subject,
        since: query.since,
    };
    let items = state.director.audit(limit, &filter).await?;
    Ok(Json(List { items }))
}
