//! What a cluster proves itself with, renewed in place.

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
use crate::model::{Caller, Plan, RotationKind, Task};
use crate::service::{CertificateOrder, RotationOrder};
use crate::spec::{self, Faults};

/// Most machines that one order names.
const MACHINES_MAX: usize = 2000;

/// Whether to act.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RenewalQuery {
    /// Answer with the plan and change nothing.
    #[serde(default)]
    dry_run: bool,
    /// Hash of the plan that was shown; another one is not carried out.
    #[param(value_type = Option<String>)]
    plan: Option<String>,
}

/// Whose certificates.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RenewCertificates {
    /// Only of these machines; of all when not given.
    #[schema(max_items = 2000)]
    pub machines: Vec<String>,
}

/// Renew the certificates of a cluster's machines now. Keys stay, nothing is restarted.
///
/// Without an order they are renewed once two thirds of their life have passed.
#[utoipa::path(post, path = "/v1/clusters/{name}/certificates", operation_id = "renewCertificates",
    tag = "clusters", params(("name" = String, Path), RenewalQuery),
    request_body = RenewCertificates,
    responses(
        (status = 202, description = "Ordered; the task that does it", body = Task),
        (status = 200, description = "With dry_run: what would be done", body = Plan),
        (status = 422, description = "Every fault of the input", body = Problem,
            content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn certificates(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<ClusterName>,
    Query(query): Query<RenewalQuery>,
    Text(body): Text,
) -> Result<Response, Problem> {
    let asked: RenewCertificates = typed(&body)?;
    let mut faults = Faults::default();
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
    let plan = shown(&query, &mut faults);
    if !faults.is_empty() {
        return Err(faults.into());
    }
    let order = CertificateOrder { machines, plan };
    if query.dry_run {
        let plan = state.director.plan_certificates(&name, &order).await?;
        return Ok(Json(plan).into_response());
    }
    let task = state
        .director
        .renew_certificates(&name, &order, &caller)
        .await?;
    Ok(accepted(task))
}

/// What to rotate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotateSecrets {
    /// The encryption key of Secrets, or the authorities.
    pub what: RotationKind,
    /// Of authorities: only have both generations trusted, and rest. Credentials that are fetched then are good
    /// before and after; the same order without this goes on.
    #[serde(default)]
    pub prepare: bool,
    /// The API of a cluster with one control-plane machine may be down for some seconds in each stage.
    #[serde(default)]
    pub accept_downtime: bool,
}

/// Rotate a cluster's encryption key or its authorities in place, or go on with a rotation.
///
/// Each stage changes one machine after the other and is over when all of them run with what it told them: at
/// every moment old and new get on with one another. Components are restarted, pods run on.
#[utoipa::path(post, path = "/v1/clusters/{name}/rotation", operation_id = "rotateSecrets",
    tag = "clusters", params(("name" = String, Path), RenewalQuery),
    request_body = RotateSecrets,
    responses(
        (status = 202, description = "Ordered; the task that does it", body = Task),
        (status = 200, description = "With dry_run: what would be done first", body = Plan),
        (status = 422, description = "Every fault of the input", body = Problem,
            content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn rotation(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<ClusterName>,
    Query(query): Query<RenewalQuery>,
    Text(body): Text,
) -> Result<Response, Problem> {
    let asked: RotateSecrets = typed(&body)?;
    let mut faults = Faults::default();
    let plan = shown(&query, &mut faults);
    if asked.prepare && asked.what != RotationKind::Authorities {
        faults.add(
            "prepare",
            "true",
            "false: an encryption key has nothing to prepare",
        );
    }
    if !faults.is_empty() {
        return Err(faults.into());
    }
    let order = RotationOrder {
        kind: asked.what,
        prepare: asked.prepare,
        plan,
        accept_downtime: asked.accept_downtime,
    };
    if query.dry_run {
        let plan = state.director.plan_rotation(&name, &order, &caller).await?;
        return Ok(Json(plan).into_response());
    }
    let task = state.director.rotate(&name, &order, &caller).await?;
    Ok(accepted(task))
}

fn typed<T: serde::de::DeserializeOwned>(body: &str) -> Result<T, Problem> {
    serde_json::from_value(spec::from_text(body)?).map_err(|error| {
        let message = format!("the body is no order of this kind: {error}");
        Problem::new(400, "malformed", message)
    })
}

/// The plan that was shown.
fn shown(query: &RenewalQuery, faults: &mut Faults) -> Option<Digest> {
    let given = query.plan.as_deref()?;
    match given.parse() {
        Ok(plan) => Some(plan),
        Err(error) => {
            let error: <Digest as std::str::FromStr>::Err = error;
            faults.add("plan", given, error.to_string());
            None
        }
    }
}
