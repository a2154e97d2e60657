//! Clusters: list, create, change, show, delete, credentials.

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use windlass_common::id::{ClusterName, Digest, DiskName};

use super::extract::{Name, Query, Text};
use super::problem::Problem;
use super::{ApiState, List};
use crate::model::{Caller, Cluster, Plan, Revision, Task, Timestamp};
use crate::service::{ChangeOrder, PlanRequest, StemcellChoice};
use crate::spec::{self, Faults, KubernetesVersion, RawClusterSpec, Surroundings};

/// Whether to act.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CreateQuery {
    /// Answer with the plan and change nothing.
    #[serde(default)]
    dry_run: bool,
}

/// How to change.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ApplyQuery {
    /// Answer with the plan and change nothing.
    #[serde(default)]
    dry_run: bool,
    /// `newest` makes all machines anew from the newest stemcell of the version; otherwise machines stay as
    /// long as their stemcell has it.
    stemcell: Option<String>,
    /// Hash of the plan that was shown; another one is not carried out.
    #[param(value_type = Option<String>)]
    plan: Option<String>,
    /// The cluster's API may be down meanwhile, as it has to be when its control plane is one machine.
    #[serde(default)]
    accept_downtime: bool,
    /// Go on although pods keep nodes from being drained: drains wait for them as long as the spec says.
    #[serde(default)]
    accept_blocked: bool,
    /// Revision of the cluster that the change was made from; a later one is not overwritten.
    revision: Option<u64>,
    /// Why the change does not wait for the cluster's maintenance window, 1 to 200 characters.
    ignore_window: Option<String>,
}

/// What to delete.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeleteQuery {
    /// Answer with the plan and change nothing.
    #[serde(default)]
    dry_run: bool,
    /// Persistent disks to delete, separated by commas; all that the cluster has when not given.
    #[param(value_type = Option<String>)]
    disks: Option<String>,
}

/// Access to a cluster's API.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct CredentialsBody {
    /// A kubeconfig with a client certificate and its key: a secret.
    kubeconfig: String,
    /// When the certificate expires.
    expires_at: Timestamp,
}

/// All clusters, by name.
#[utoipa::path(get, path = "/v1/clusters", operation_id = "listClusters",
    tag = "clusters",
    responses((status = 200, body = List<Cluster>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<List<Cluster>>, Problem> {
    let items = state.director.clusters().await?;
    Ok(Json(List { items }))
}

/// Order a cluster, or go on with one of the same spec whose task failed. JSON or YAML.
#[utoipa::path(post, path = "/v1/clusters", operation_id = "createCluster",
    tag = "clusters", params(CreateQuery),
    request_body(
        content((RawClusterSpec = "application/json"), (RawClusterSpec = "application/yaml"))),
    responses(
        (status = 202, description = "Ordered; the task that makes it", body = Task),
        (status = 200, description = "With dry_run: what would be done", body = Plan),
        (status = 422, description = "Every fault of the input", body = Problem,
            content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<CreateQuery>,
    Text(body): Text,
) -> Result<Response, Problem> {
    let input = spec::from_text(&body)?;
    let spec = spec::parse(&input, &surroundings(&state).await?)?;
    if query.dry_run {
        let plan = state
            .director
            .plan_cluster(PlanRequest::Create(spec))
            .await?;
        return Ok(Json(plan).into_response());
    }
    let task = state.director.create_cluster(spec, &caller).await?;
    Ok(accepted(task))
}

/// Order a cluster as it is described: a new one, or a change of the one that has this name. JSON or YAML.
#[utoipa::path(put, path = "/v1/clusters/{name}", operation_id = "applyCluster",
    tag = "clusters", params(("name" = String, Path), ApplyQuery),
    request_body(
        content((RawClusterSpec = "application/json"), (RawClusterSpec = "application/yaml"))),
    responses(
        (status = 202, description = "Ordered; the task that does it", body = Task),
        (status = 200, description = "With dry_run: what would be done", body = Plan),
        (status = 422, description = "Every fault of the input", body = Problem,
            content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn apply(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Query(query): Query<ApplyQuery>,
    Text(body): Text,
) -> Result<Response, Problem> {
    let input = spec::from_text(&body)?;
    let spec = spec::parse(&input, &surroundings(&state).await?)?;
    let order = change_order(&query, &name, &spec.name)?;
    if query.dry_run {
        let request = PlanRequest::Apply(spec, order.stemcell);
        let plan = state.director.plan_cluster(request).await?;
        return Ok(Json(plan).into_response());
    }
    let task = state.director.apply_cluster(spec, &order, &caller).await?;
    Ok(accepted(task))
}

fn change_order(
    query: &ApplyQuery,
    path: &str,
    spec: &ClusterName,
) -> Result<ChangeOrder, Problem> {
    let mut faults = Faults::default();
    if path != spec.as_str() {
        faults.add(
            "name",
            spec.as_str(),
            format!("{path}: the name of a cluster does not change"),
        );
    }
    let stemcell = match query.stemcell.as_deref() {
        None => StemcellChoice::Keep,
        Some("newest") => StemcellChoice::Newest,
        Some(other) => {
            faults.add("stemcell", other, "`newest`, or not given");
            StemcellChoice::Keep
        }
    };
    let plan = query.plan.as_deref().map(str::parse::<Digest>);
    let plan = match plan.transpose() {
        Ok(plan) => plan,
        Err(error) => {
            let given = query.plan.as_deref().unwrap_or_default();
            faults.add("plan", given, error.to_string());
            None
        }
    };
    if !faults.is_empty() {
        return Err(faults.into());
    }
    Ok(ChangeOrder {
        stemcell,
        plan,
        accept_downtime: query.accept_downtime,
        accept_blocked: query.accept_blocked,
        revision: query.revision.map(Revision),
        ignore_window: query.ignore_window.clone(),
        campaign: None,
    })
}

/// One cluster.
#[utoipa::path(get, path = "/v1/clusters/{name}", operation_id = "getCluster",
    tag = "clusters",
    params(("name" = String, Path)),
    responses((status = 200, body = Cluster),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn show(
    State(state): State<ApiState>,
    Name(name): Name<ClusterName>,
) -> Result<Json<Cluster>, Problem> {
    Ok(Json(state.director.cluster(&name).await?))
}

/// Order the deletion of a cluster with its disks.
#[utoipa::path(delete, path = "/v1/clusters/{name}", operation_id = "deleteCluster",
    tag = "clusters",
    params(("name" = String, Path), DeleteQuery),
    responses(
        (status = 202, description = "Ordered; the task that deletes it", body = Task),
        (status = 200, description = "With dry_run: what would be done", body = Plan),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn delete(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<ClusterName>,
    Query(query): Query<DeleteQuery>,
) -> Result<Response, Problem> {
    let disks = query.disks.as_deref().map(disks).transpose()?;
    if query.dry_run {
        let plan = state
            .director
            .plan_cluster(PlanRequest::Delete(name))
            .await?;
        return Ok(Json(plan).into_response());
    }
    let task = state.director.delete_cluster(&name, disks, &caller).await?;
    Ok(accepted(task))
}

/// A kubeconfig for the caller.
#[utoipa::path(post, path = "/v1/clusters/{name}/credentials", operation_id = "createClusterCredentials",
    tag = "clusters",
    params(("name" = String, Path)),
    responses((status = 200, body = CredentialsBody),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn credentials(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<ClusterName>,
) -> Result<Response, Problem> {
    let credentials = state.director.credentials(&name, &caller).await?;
    let body = CredentialsBody {
        kubeconfig: credentials.kubeconfig.expose().to_owned(),
        expires_at: credentials.expires_at,
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response())
}

/// 202 with the task and where to find it.
pub(super) fn accepted(task: Task) -> Response {
    let location = HeaderValue::from_str(&format!("/v1/tasks/{}", task.id));
    let mut response = (StatusCode::ACCEPTED, Json(task)).into_response();
    if let Ok(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn disks(text: &str) -> Result<Vec<DiskName>, Problem> {
    let mut faults = Faults::default();
    let mut disks = Vec::new();
    for name in text.split(',').filter(|name| !name.is_empty()) {
        match DiskName::new(name) {
            Ok(name) => disks.push(name),
            Err(_) => faults.add("disks", name, "names of disks, separated by commas"),
        }
    }
    if faults.is_empty() {
        Ok(disks)
    } else {
        Err(faults.into())
    }
}

async fn surroundings(state: &ApiState) -> Result<Surroundings, Problem> {
    let stemcells = state.director.stemcells().await?;
    let versions = stemcells
        .iter()
        .map(|stemcell| stemcell.kubernetes_version.as_str());
    Ok(Surroundings {
        kubernetes_versions: versions.filter_map(KubernetesVersion::new).collect(),
        reserved: state.reserved.clone(),
    })
}
