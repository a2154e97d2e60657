//! Campaigns: one upgrade of many clusters, in waves.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use windlass_common::cluster::Amount;
use windlass_common::id::ClusterName;

use super::extract::{Name, Query, Text};
use super::problem::Problem;
use super::{ApiState, List};
use crate::model::{Caller, CampaignId, CampaignView};
use crate::service::{CampaignOrder, ClusterChoice, Steer};
use crate::spec::{self, Faults};

/// Whether to act.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CreateQuery {
    /// Answer with the waves and change nothing.
    #[serde(default)]
    dry_run: bool,
}

/// Which clusters to upgrade, to what, and how. One of `clusters`, `selector` and `all` says which.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CreateCampaign {
    /// These clusters, in this order.
    #[schema(max_items = 1000)]
    pub clusters: Vec<String>,
    /// Clusters that have all of these labels.
    pub selector: BTreeMap<String, String>,
    /// All clusters.
    pub all: bool,
    /// Kubernetes version; the one that each has when not given.
    #[schema(example = "1.37.2")]
    pub kubernetes_version: Option<String>,
    /// Make all machines anew from the newest stemcell, also those whose version is right.
    pub newest_stemcell: bool,
    /// How many clusters of all are done with after each wave: numbers, or percent, rounded up. The last wave has
    /// the rest; one wave when not given.
    #[schema(example = json!(["1", "10%", "100%"]), max_items = 20)]
    pub waves: Vec<String>,
    /// Clusters that are changed at a time, 1 to 100; 5 when not given.
    #[schema(minimum = 1, maximum = 100)]
    pub max_in_flight: Option<u32>,
    /// Clusters that may fail; one more stops the campaign.
    pub max_failures: u32,
    /// How long a wave that is over is watched before the next, seconds, 0 to 604800.
    #[schema(maximum = 604_800)]
    pub soak_seconds: u32,
    /// The APIs of clusters with one control-plane machine may be down meanwhile.
    pub accept_downtime: bool,
    /// Go on although pods keep nodes from being drained.
    pub accept_blocked: bool,
    /// Why the clusters' maintenance windows are not waited for, 1 to 200 characters.
    pub ignore_window: Option<String>,
}

/// All campaigns, newest first.
#[utoipa::path(get, path = "/v1/campaigns", operation_id = "listCampaigns", tag = "campaigns",
    responses((status = 200, body = List<CampaignView>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(state): State<ApiState>,
) -> Result<Json<List<CampaignView>>, Problem> {
    let items = state.director.campaigns().await?;
    Ok(Json(List { items }))
}

/// Upgrade many clusters in waves: each by an ordinary task with its own plan, window and gates.
#[utoipa::path(post, path = "/v1/campaigns", operation_id = "createCampaign", tag = "campaigns",
    params(CreateQuery), request_body = CreateCampaign,
    responses(
        (status = 202, description = "Ordered", body = CampaignView),
        (status = 200, description = "With dry_run: what would be done", body = CampaignView),
        (status = 422, description = "Every fault of the input", body = Problem,
            content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<CreateQuery>,
    Text(body): Text,
) -> Result<Response, Problem> {
    let order = order(&body)?;
    if query.dry_run {
        let view = state.director.plan_campaign(&order, &caller).await?;
        return Ok(Json(view).into_response());
    }
    let view = state.director.create_campaign(&order, &caller).await?;
    Ok((StatusCode::ACCEPTED, Json(view)).into_response())
}

/// One campaign, with how far its clusters are.
#[utoipa::path(get, path = "/v1/campaigns/{id}", operation_id = "getCampaign", tag = "campaigns",
    params(("id" = String, Path)),
    responses((status = 200, body = CampaignView),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn show(
    State(state): State<ApiState>,
    Name(id): Name<CampaignId>,
) -> Result<Json<CampaignView>, Problem> {
    Ok(Json(state.director.campaign(&id).await?))
}

/// Begin with no further cluster; the tasks of those that were pause.
#[utoipa::path(post, path = "/v1/campaigns/{id}/pause", operation_id = "pauseCampaign",
    tag = "campaigns", params(("id" = String, Path)),
    responses((status = 202, description = "It pauses", body = CampaignView),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn pause(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(id): Name<CampaignId>,
) -> Result<Response, Problem> {
    steer(&state, &id, Steer::Pause, &caller).await
}

/// Go on with a campaign that is paused, and with its tasks.
#[utoipa::path(post, path = "/v1/campaigns/{id}/resume", operation_id = "resumeCampaign",
    tag = "campaigns", params(("id" = String, Path)),
    responses((status = 202, description = "It goes on", body = CampaignView),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn resume(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(id): Name<CampaignId>,
) -> Result<Response, Problem> {
    steer(&state, &id, Steer::Resume, &caller).await
}

/// Begin with no further cluster, and cancel the tasks of those that were.
#[utoipa::path(post, path = "/v1/campaigns/{id}/cancel", operation_id = "cancelCampaign",
    tag = "campaigns", params(("id" = String, Path)),
    responses((status = 202, description = "It is being cancelled", body = CampaignView),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn cancel(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(id): Name<CampaignId>,
) -> Result<Response, Problem> {
    steer(&state, &id, Steer::Cancel, &caller).await
}

/// Go on with a campaign that has failed or was cancelled: its failed clusters are tried again.
#[utoipa::path(post, path = "/v1/campaigns/{id}/retry", operation_id = "retryCampaign",
    tag = "campaigns", params(("id" = String, Path)),
    responses((status = 202, description = "It goes on", body = CampaignView),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn retry(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(id): Name<CampaignId>,
) -> Result<Response, Problem> {
    steer(&state, &id, Steer::Retry, &caller).await
}

async fn steer(
    state: &ApiState,
    id: &CampaignId,
    steer: Steer,
    caller: &Caller,
) -> Result<Response, Problem> {
    let view = state.director.steer_campaign(id, steer, caller).await?;
    Ok((StatusCode::ACCEPTED, Json(view)).into_response())
}

fn order(body: &str) -> Result<CampaignOrder, Problem> {
    let asked: CreateCampaign =
        serde_json::from_value(spec::from_text(body)?).map_err(|error| {
            let message = format!("the body is no campaign: {error}");
            Problem::new(400, "malformed", message)
        })?;
    let mut faults = Faults::default();
    let mut named = Vec::new();
    for name in &asked.clusters {
        match ClusterName::new(name) {
            Ok(name) => named.push(name),
            Err(error) => faults.add("clusters", name, error.to_string()),
        }
    }
    let mut waves = Vec::new();
    for text in &asked.waves {
        match text.parse::<Amount>() {
            Ok(Amount::Count(0) | Amount::Percent(0)) | Err(_) => {
                faults.add("waves", text, "a number of clusters, or 1% to 100% of them");
            }
            Ok(amount) => waves.push(amount),
        }
    }
    let given = [
        !asked.clusters.is_empty(),
        !asked.selector.is_empty(),
        asked.all,
    ];
    let choice = match given {
        [true, false, false] => ClusterChoice::Named(named),
        [false, true, false] => ClusterChoice::Labelled(asked.selector),
        [false, false, true] => ClusterChoice::All,
        _ => {
            let count = given.iter().filter(|given| **given).count();
            let allowed = "one of clusters, selector and all";
            faults.add("clusters", format!("{count} of them"), allowed);
            ClusterChoice::All
        }
    };
    if !faults.is_empty() {
        return Err(faults.into());
    }
    Ok(CampaignOrder {
        choice,
        kubernetes_version: asked.kubernetes_version,
        newest_stemcell: asked.newest_stemcell,
        waves,
        max_in_flight: asked.max_in_flight,
        max_failures: asked.max_failures,
        soak_seconds: asked.soak_seconds,
        accept_downtime: asked.accept_downtime,
        accept_blocked: asked.accept_blocked,
        ignore_window: asked.ignore_window,
    })
}
