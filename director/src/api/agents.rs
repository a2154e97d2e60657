//! Agents of a cluster, upgraded in place.

use std::collections::BTreeSet;

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
use crate::service::{AT_A_TIME_MAX, AgentOrder};
use crate::spec::{self, Faults};

/// Most machines that one order names.
const MACHINES_MAX: usize = 2000;

/// Whether to act.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UpgradeQuery {
    /// Answer with the plan and change nothing.
    #[serde(default)]
    dry_run: bool,
    /// Hash of the plan that was shown; another one is not carried out.
    #[param(value_type = Option<String>)]
    plan: Option<String>,
    /// Why it does not wait for the cluster's maintenance window; 1 to 500 characters.
    ignore_window: Option<String>,
}

/// Which agents, and how.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct UpgradeAgents {
    /// Version of the stemcell whose agent is wanted; the newest one's when not given.
    #[schema(example = "debian12-1.37.2-0a1b2c3d")]
    pub stemcell: Option<String>,
    /// Only of these machines; of all when not given.
    #[schema(max_items = 2000)]
    pub machines: Vec<String>,
    /// How many at a time once the first has succeeded, 1 to 50; 1 when not given.
    #[schema(minimum = 1, maximum = 50)]
    pub at_a_time: Option<u32>,
}

/// Upgrade the agents of a cluster's machines in place, from a stemcell. Pods and components go on.
///
/// Each new agent is on trial until it has answered over a connection of its own; a machine whose new agent
/// does not brings the old one back by itself, and the task ends there.
#[utoipa::path(post, path = "/v1/clusters/{name}/agents", operation_id = "upgradeAgents",
    tag = "clusters", params(("name" = String, Path), UpgradeQuery),
    request_body = UpgradeAgents,
    responses(
        (status = 202, description = "Ordered; the task that does it", body = Task),
        (status = 200, description = "With dry_run: what would be done", body = Plan),
        (status = 422, description = "Every fault of the input", body = Problem,
            content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn upgrade(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<ClusterName>,
    Query(query): Query<UpgradeQuery>,
    Text(body): Text,
) -> Result<Response, Problem> {
    let order = order(&query, &body)?;
    if query.dry_run {
        let plan = state.director.plan_agents(&name, &order).await?;
        return Ok(Json(plan).into_response());
    }
    let task = state
        .director
        .upgrade_agents(&name, &order, &caller)
        .await?;
    Ok(accepted(task))
}

fn order(query: &UpgradeQuery, body: &str) -> Result<AgentOrder, Problem> {
    let asked: UpgradeAgents = serde_json::from_value(spec::from_text(body)?).map_err(|error| {
        let message = format!("the body is no upgrade of agents: {error}");
        Problem::new(400, "malformed", message)
    })?;
    let mut faults = Faults::default();
    let at_a_time = asked.at_a_time.unwrap_or(1);
    if !(1..=AT_A_TIME_MAX).contains(&at_a_time) {
        let allowed = format!("1 to {AT_A_TIME_MAX}");
        faults.add("atATime", at_a_time.to_string(), allowed);
    }
    if asked.machines.len() > MACHINES_MAX {
        let allowed = format!("at most {MACHINES_MAX} machines");
        faults.add("machines", asked.machines.len().to_string(), allowed);
    }
    let mut machines = BTreeSet::new();
    for name in asked.machines.iter().take(MACHINES_MAX) {
        match MachineName::new(name) {
            Ok(name) => {
                machines.insert(name);
            }
            Err(error) => faults.add("machines", name, error.to_string()),
        }
    }
    let plan = query.plan.as_deref().map(str::parse::<Digest>).transpose();
    if let Err(error) = &plan {
        let given = query.plan.as_deref().unwrap_or_default();
        faults.add("plan", given, error.to_string());
    }
    match (plan, faults.is_empty()) {
        (Ok(plan), true) => Ok(AgentOrder {
            stemcell: asked.stemcell,
            machines,
            at_a_time,
            plan,
            ignore_window: query.ignore_window.clone(),
        }),
        _ => Err(faults.into()),
    }
}
