//! Clusters that are restored.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use windlass_common::id::{ClusterName, Digest, MachineName};

use super::ApiState;
use super::clusters::accepted;
use super::extract::{Name, Query, Text};
use super::problem::Problem;
use crate::model::{Caller, Plan, Task};
use crate::service::{RestoreFrom, RestoreRequest};
use crate::spec::{self, Faults};

/// Longest path of a snapshot, bytes: what Linux allows.
const PATH_BYTES_MAX: usize = 4095;

/// Whether to act.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RestoreQuery {
    /// Answer with the plan and with what is lost, and change nothing.
    #[serde(default)]
    dry_run: bool,
    /// Hash of the plan that was shown; another one is not carried out.
    #[param(value_type = Option<String>)]
    plan: Option<String>,
    /// What the plan says is lost may be lost.
    #[serde(default)]
    accept_loss: bool,
}

/// What to restore from: a backup, a snapshot, or what is left of the members.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RestoreCluster {
    /// A backup of the cluster, by name.
    #[schema(example = "20300131-120000-00000001")]
    pub backup: Option<String>,
    /// A snapshot of etcd: absolute path of a file where the director runs.
    #[schema(example = "/var/backups/demo.db")]
    pub snapshot: Option<String>,
    /// The machine whose member's data etcd begins with again, after a majority of the members is gone for good.
    #[schema(example = "demo-cp-1")]
    pub member: Option<String>,
    /// The same with the member whose data goes furthest.
    pub best_member: bool,
    /// Make a cluster of this name from the backup, and leave the one that was backed up as it is.
    #[serde(rename = "as")]
    #[schema(example = "demo-copy")]
    pub new_name: Option<String>,
}

/// Make a cluster's etcd anew, from a backup, a snapshot or, after a majority of its members is gone for good, from what
/// one member has. Every API server of the cluster is stopped meanwhile; pods go on.
///
/// A cluster that is gone is made again from its backup: its authorities and keys, what it should be, and then its data.
///
/// With dry_run nothing is done: the plan says what is lost, and how far the data of each member goes. A restore
/// that has stopped the first API server cannot be cancelled; a director that dies goes on with it.
#[utoipa::path(post, path = "/v1/clusters/{name}/restore", operation_id = "restoreCluster",
    tag = "clusters", params(("name" = String, Path), RestoreQuery),
    request_body = RestoreCluster,
    responses(
        (status = 202, description = "Ordered; the task that does it", body = Task),
        (status = 200, description = "With dry_run: what would be done and lost", body = Plan),
        (status = 422, description = "Every fault of the input", body = Problem,
            content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn restore(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<ClusterName>,
    Query(query): Query<RestoreQuery>,
    Text(body): Text,
) -> Result<Response, Problem> {
    let request = request(&query, &body)?;
    if query.dry_run {
        let plan = state
            .director
            .plan_restore(&name, &request, &caller)
            .await?;
        return Ok(Json(plan).into_response());
    }
    let task = state
        .director
        .restore_cluster(&name, &request, &caller)
        .await?;
    Ok(accepted(task))
}

fn request(query: &RestoreQuery, body: &str) -> Result<RestoreRequest, Problem> {
    let asked: RestoreCluster =
        serde_json::from_value(spec::from_text(body)?).map_err(|error| {
            let message = format!("the body does not say what to restore from: {error}");
            Problem::new(400, "malformed", message)
        })?;
    let mut faults = Faults::default();
    let plan = query.plan.as_deref().map(str::parse::<Digest>).transpose();
    if let Err(error) = &plan {
        let given = query.plan.as_deref().unwrap_or_default();
        faults.add("plan", given, error.to_string());
    }
    let from = match (
        asked.backup,
        asked.snapshot,
        asked.member,
        asked.best_member,
    ) {
        (Some(backup), None, None, false) => match backup.parse() {
            Ok(backup) => Some(RestoreFrom::Backup(backup)),
            Err(_) => {
                let allowed = "the name of a backup, as `windlass cluster backups list` shows it";
                faults.add("backup", &backup, allowed);
                None
            }
        },
        (None, Some(path), None, false) => {
            if !path.starts_with('/') || path.len() > PATH_BYTES_MAX || path.contains('\0') {
                faults.add(
                    "snapshot",
                    &path,
                    "an absolute path where the director runs".to_owned(),
                );
            }
            Some(RestoreFrom::Snapshot(path.into()))
        }
        (None, None, Some(machine), false) => match MachineName::new(&machine) {
            Ok(machine) => Some(RestoreFrom::Member(Some(machine))),
            Err(error) => {
                faults.add("member", &machine, error.to_string());
                None
            }
        },
        (None, None, None, true) => Some(RestoreFrom::Member(None)),
        _ => {
            let allowed = "one of backup, snapshot, member and bestMember".to_owned();
            faults.add("snapshot", "what to restore from", allowed);
            None
        }
    };
    let new_name = asked.new_name.as_deref().map(ClusterName::new).transpose();
    if let Err(error) = &new_name {
        let given = asked.new_name.as_deref().unwrap_or_default();
        faults.add("as", given, error.to_string());
    }
    if asked.new_name.is_some() && !matches!(from, Some(RestoreFrom::Backup(_)) | None) {
        let allowed =
            "a cluster that is made from a backup: nothing else holds its authorities and keys";
        faults.add("as", "a new cluster", allowed);
    }
    match (plan, from, new_name, faults.is_empty()) {
        (Ok(plan), Some(from), Ok(new_name), true) => Ok(RestoreRequest {
            from,
            accept_loss: query.accept_loss,
            plan,
            new_name,
        }),
        _ => Err(faults.into()),
    }
}
