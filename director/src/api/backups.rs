//! Backups of clusters.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::stream;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use utoipa::IntoParams;
use windlass_common::id::ClusterName;
use windlass_common::limits::CHUNK_BYTES;

use super::ApiState;
use super::extract::{Name, Named, Query};
use super::problem::Problem;
use crate::backup::cluster::BackupName;
use crate::backup::record::BackupRecord;
use crate::backup::repository::{Archive, BackupEntry};
use crate::model::Caller;
use crate::service::ClusterBackups;

impl Named for BackupName {
    const KIND: &'static str = "cluster backups";
}

fn read(cluster: &str, backup: &str) -> Result<(ClusterName, BackupName), Problem> {
    let Name(cluster) = Name::read(cluster)?;
    let Name(backup) = Name::read(backup)?;
    Ok((cluster, backup))
}

/// The backups of a cluster, newest first, also of one that was deleted; how the last ended, and when the next is
/// due.
#[utoipa::path(get, path = "/v1/clusters/{name}/backups", operation_id = "listBackups",
    tag = "backups", params(("name" = String, Path)),
    responses((status = 200, body = ClusterBackups),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(state): State<ApiState>,
    Name(name): Name<ClusterName>,
) -> Result<Json<ClusterBackups>, Problem> {
    Ok(Json(state.director.backups(&name).await?))
}

/// Order a backup of a cluster.
///
/// The answer says what it will be called. It is listed under that name once it is whole and was read back.
#[utoipa::path(post, path = "/v1/clusters/{name}/backups", operation_id = "backUpCluster",
    tag = "backups", params(("name" = String, Path)),
    responses((status = 202, description = "Ordered", body = BackupRecord),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn order(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<ClusterName>,
) -> Result<(StatusCode, Json<BackupRecord>), Problem> {
    let record = state.director.order_backup(&name, &caller).await?;
    Ok((StatusCode::ACCEPTED, Json(record)))
}

/// Which backup.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DrillQuery {
    /// Its name; the newest when not given.
    backup: Option<String>,
}

/// Order a drill: a backup is restored into a cluster of its own, with one control-plane machine and no workers;
/// everything in it is read, and the cluster is deleted again.
///
/// How it ended is in the state of the cluster's backups.
#[utoipa::path(post, path = "/v1/clusters/{name}/drill", operation_id = "drillCluster",
    tag = "backups", params(("name" = String, Path), DrillQuery),
    responses((status = 202, description = "Ordered", body = BackupRecord),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn drill(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<ClusterName>,
    Query(query): Query<DrillQuery>,
) -> Result<(StatusCode, Json<BackupRecord>), Problem> {
    let backup = query.backup.as_deref().map(Name::read).transpose()?;
    let backup = backup.map(|Name(backup)| backup);
    let record = state
        .director
        .order_drill(&name, backup.as_ref(), &caller)
        .await?;
    Ok((StatusCode::ACCEPTED, Json(record)))
}

/// One backup.
#[utoipa::path(get, path = "/v1/clusters/{name}/backups/{backup}", operation_id = "getBackup",
    tag = "backups", params(("name" = String, Path), ("backup" = String, Path)),
    responses((status = 200, body = BackupEntry),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn show(
    State(state): State<ApiState>,
    Path((name, backup)): Path<(String, String)>,
) -> Result<Json<BackupEntry>, Problem> {
    let (name, backup) = read(&name, &backup)?;
    Ok(Json(state.director.backup(&name, &backup).await?))
}

/// Delete one backup for good.
#[utoipa::path(delete, path = "/v1/clusters/{name}/backups/{backup}", operation_id = "deleteBackup",
    tag = "backups", params(("name" = String, Path), ("backup" = String, Path)),
    responses((status = 200, description = "Deleted; what it was", body = BackupEntry),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn delete(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path((name, backup)): Path<(String, String)>,
) -> Result<Json<BackupEntry>, Problem> {
    let (name, backup) = read(&name, &backup)?;
    Ok(Json(
        state
            .director
            .delete_backup(&name, &backup, &caller)
            .await?,
    ))
}

/// The archive of a backup: a gzipped tar, encrypted in the age format.
#[utoipa::path(get, path = "/v1/clusters/{name}/backups/{backup}/archive", operation_id = "getBackupArchive",
    tag = "backups", params(("name" = String, Path), ("backup" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn archive(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path((name, backup)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let (name, backup) = read(&name, &backup)?;
    let archive = state
        .director
        .backup_archive(&name, &backup, &caller)
        .await?;
    let Archive { entry, from } = archive;
    let pieces = stream::try_unfold(from, |mut from| async {
        let mut piece = vec![0; CHUNK_BYTES];
        let read = from.read(&mut piece).await?;
        piece.truncate(read);
        Ok::<_, std::io::Error>((read > 0).then_some((piece, from)))
    });
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        ),
        (
            header::CONTENT_LENGTH,
            HeaderValue::from(entry.archive.bytes),
        ),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}
