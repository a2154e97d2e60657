//! The director's CA: show it, rotate it, and get a certificate of the newest one.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::MachineName;

use super::ApiState;
use super::extract::Text;
use super::operators::read;
use super::problem::Problem;
use crate::model::{CaStatus, Caller};
use crate::spec::Faults;

/// How to rotate the CA.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotateCa {
    /// Machines that the old CA is dropped without; each has to be recreated if it comes back.
    #[serde(default)]
    pub abandon: Vec<String>,
}

/// Asks for a certificate of one's own.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RenewOperator {
    /// PKCS#10 request for a P-256 key, DER, base64.
    pub request: String,
}

/// A certificate of the newest CA.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RenewedOperator {
    /// Certificate with the issuer's, PEM.
    pub certificate: String,
    /// Every root CA to trust, PEM.
    pub ca: String,
}

/// The CA, and its rotation if one is under way.
#[utoipa::path(get, path = "/v1/director/ca", operation_id = "getCa", tag = "director",
    responses((status = 200, body = CaStatus),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn show(State(state): State<ApiState>) -> Result<Json<CaStatus>, Problem> {
    Ok(Json(state.director.ca_status().await?))
}

/// Rotate the CA; joins the rotation that is under way. `GET /v1/director/ca` follows it.
#[utoipa::path(post, path = "/v1/director/ca/rotation", operation_id = "rotateCa", tag = "director",
    request_body = RotateCa,
    responses((status = 202, body = CaStatus),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn rotate(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Text(body): Text,
) -> Result<(StatusCode, Json<CaStatus>), Problem> {
    let order: RotateCa = read(&body)?;
    let mut faults = Faults::default();
    let mut abandon = Vec::new();
    for name in &order.abandon {
        match MachineName::new(name) {
            Ok(name) => abandon.push(name),
            Err(_) => faults.add("abandon", name, "names of machines"),
        }
    }
    if !faults.is_empty() {
        return Err(faults.into());
    }
    let status = state.director.rotate_ca(&abandon, &caller).await?;
    Ok((StatusCode::ACCEPTED, Json(status)))
}

/// Get a certificate of the newest CA for oneself.
#[utoipa::path(post, path = "/v1/director/ca/certificate", operation_id = "renewOperator",
    tag = "director", request_body = RenewOperator,
    responses((status = 200, body = RenewedOperator),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn renew(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Text(body): Text,
) -> Result<Json<RenewedOperator>, Problem> {
    let order: RenewOperator = read(&body)?;
    let Ok(request) = STANDARD.decode(&order.request) else {
        let mut faults = Faults::default();
        faults.add("request", "no base64", "a PKCS#10 request, DER, base64");
        return Err(faults.into());
    };
    let certificate = state.director.renew_operator(&request, &caller).await?;
    let ca = state.director.ca().root_pem();
    Ok(Json(RenewedOperator { certificate, ca }))
}
