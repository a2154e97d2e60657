//! Operators: list, show, add, change, revoke.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::OperatorName;

use super::extract::{Name, Text};
use super::problem::Problem;
use super::{ApiState, List};
use crate::kubernetes::pki::OPERATOR_NAME_MAX;
use crate::model::{Caller, Operator, Role};
use crate::spec::{self, Faults};

/// A new operator.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddOperator {
    /// Its name: a DNS label that was never used before.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// PKCS#10 request for a P-256 key, DER, base64: the key stays with who made it.
    pub request: String,
}

/// An operator that was added.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddedOperator {
    /// The record.
    pub operator: Operator,
    /// Its certificate with the issuer's, PEM.
    pub certificate: String,
    /// The director's root CA, PEM.
    pub ca: String,
}

/// What to change.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChangeOperator {
    /// The new role.
    pub role: Role,
}

/// All operators, by name; revoked ones too.
#[utoipa::path(get, path = "/v1/operators", operation_id = "listOperators",
    tag = "operators",
    responses((status = 200, body = List<Operator>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<List<Operator>>, Problem> {
    let items = state.director.operators().await?;
    Ok(Json(List { items }))
}

/// Add an operator; answers with its certificate.
#[utoipa::path(post, path = "/v1/operators", operation_id = "addOperator",
    tag = "operators", request_body = AddOperator,
    responses((status = 201, body = AddedOperator),
        (status = 422, description = "Every fault of the input", body = Problem,
            content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn add(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Text(body): Text,
) -> Result<(StatusCode, Json<AddedOperator>), Problem> {
    let order: AddOperator = read(&body)?;
    let mut faults = Faults::default();
    let name = OperatorName::new(&order.name);
    if name.is_err() || order.name.len() > OPERATOR_NAME_MAX {
        faults.add(
            "name",
            &order.name,
            "1 to 40 small letters, digits and dashes",
        );
    }
    let request = STANDARD.decode(&order.request);
    if request.is_err() {
        faults.add("request", "no base64", "a PKCS#10 request, DER, base64");
    }
    let (Ok(name), Ok(request), true) = (name, request, faults.is_empty()) else {
        return Err(faults.into());
    };
    let (operator, certificate) = state
        .director
        .add_operator(name, order.role, &request, &caller)
        .await?;
    let ca = state.director.ca().root_pem();
    let added = AddedOperator {
        operator,
        certificate,
        ca,
    };
    Ok((StatusCode::CREATED, Json(added)))
}

/// One operator.
#[utoipa::path(get, path = "/v1/operators/{name}", operation_id = "getOperator",
    tag = "operators", params(("name" = String, Path)),
    responses((status = 200, body = Operator),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn show(
    State(state): State<ApiState>,
    Name(name): Name<OperatorName>,
) -> Result<Json<Operator>, Problem> {
    Ok(Json(state.director.operator(name.as_str()).await?))
}

/// Give an operator another role, from its next request on.
#[utoipa::path(patch, path = "/v1/operators/{name}", operation_id = "changeOperator",
    tag = "operators", params(("name" = String, Path)), request_body = ChangeOperator,
    responses((status = 200, body = Operator),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn change(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<OperatorName>,
    Text(body): Text,
) -> Result<Json<Operator>, Problem> {
    let change: ChangeOperator = read(&body)?;
    let operator = state
        .director
        .set_role(name.as_str(), change.role, &caller)
        .await?;
    Ok(Json(operator))
}

/// Shut an operator out, at once and for good; its record stays.
#[utoipa::path(delete, path = "/v1/operators/{name}", operation_id = "revokeOperator",
    tag = "operators", params(("name" = String, Path)),
    responses((status = 200, body = Operator),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn revoke(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<OperatorName>,
) -> Result<Json<Operator>, Problem> {
    Ok(Json(
        state
            .director
            .revoke_operator(name.as_str(), &caller)
            .await?,
    ))
}

/// Reads a body.
pub(super) fn read<T: serde::de::DeserializeOwned>(body: &str) -> Result<T, Problem> {
    serde_json::from_value(spec::from_text(body)?).map_err(|error| {
        Problem::new(
            400,
            "malformed",
            format!("the body is not as asked: {error}"),
        )
    })
}
