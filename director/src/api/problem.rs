//! Errors as the API shows them: `application/problem+json` (RFC 9457) with a stable code.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::error::{ErrorChain, ErrorClass};

use crate::model::FieldFault;
use crate::service::ServiceError;
use crate::spec::Faults;

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// Stable, for programs: `not-found`, `conflict`, `on-hold`, `invalid`, `forbidden`, `unavailable`, `operator`,
    /// `bug`, `malformed`, `unauthenticated`, `no-such-route`, `no-such-method`, `timeout`.
    pub code: String,
    /// What failed, with which values, and what to do; for people.
    pub message: String,
    /// Who acts: `retry` (the caller, later), `operator` (a person), `bug` (us).
    #[schema(value_type = String)]
    pub class: ErrorClass,
    /// Every fault of the input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FieldFault>,
}

impl Problem {
    /// A problem a person has to act on.
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Problem {
        Problem {
            status,
            code: code.to_owned(),
            message: message.into(),
            class: ErrorClass::Operator,
            faults: Vec::new(),
        }
    }
}

impl From<Faults> for Problem {
    fn from(faults: Faults) -> Problem {
        ServiceError::Invalid {
            faults: faults.into_vec(),
        }
        .into()
    }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Problem {
        let (status, code) = match &error {
            ServiceError::NotFound { .. } => (404, "not-found"),
            ServiceError::Conflict { .. } => (409, "conflict"),
            ServiceError::OnHold { .. } => (409, "on-hold"),
            ServiceError::Invalid { .. } => (422, "invalid"),
            ServiceError::Forbidden { .. } => (403, "forbidden"),
            ServiceError::Unavailable { .. } => (503, "unavailable"),
            ServiceError::Operator { .. } => (500, "operator"),
            ServiceError::Bug { .. } => (500, "bug"),
        };
        let message = match &error {
            ServiceError::Invalid { faults } => format!("the input has {} fault(s)", faults.len()),
            ServiceError::NotFound { .. }
            | ServiceError::Conflict { .. }
            | ServiceError::OnHold { .. }
            | ServiceError::Forbidden { .. }
            | ServiceError::Unavailable { .. }
            | ServiceError::Operator { .. }
            | ServiceError::Bug { .. } => ErrorChain(&error).to_string(),
        };
        let class = error.class();
        let faults = match error {
            ServiceError::Invalid { faults } => faults,
            ServiceError::NotFound { .. }
            | ServiceError::Conflict { .. }
            | ServiceError::OnHold { .. }
            | ServiceError::Forbidden { .. }
            | ServiceError::Unavailable { .. }
            | ServiceError::Operator { .. }
            | ServiceError::Bug { .. } => Vec::new(),
        };
        Problem {
            status,
            code: code.to_owned(),
            message,
            class,
            faults,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if self.class == ErrorClass::Bug {
            tracing::error!(code = self.code, error = self.message, "request failed");
        }
        let mut response = (status, Json(self)).into_response();
        let problem = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, problem);
        response
    }
}
