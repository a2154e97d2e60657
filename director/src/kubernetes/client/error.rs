//! What can go wrong between the director and an API server, and who acts.

use std::io;
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use windlass_common::error::ErrorClass;

/// Longest message of an API server that is kept.
const MESSAGE_BYTES_MAX: usize = 2000;

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The authority's PEM holds no certificate.
    #[error("the cluster's authority is not a PEM certificate")]
    Authority,
    /// The identity's PEM holds no certificate or key.
    #[error("the client identity is not a PEM certificate and key")]
    Identity,
    /// The endpoint's name is none.
    #[error("endpoint name {name:?} cannot be verified in a certificate")]
    Name {
        /// The name.
        name: String,
    },
    /// TLS refused.
    #[error("TLS cannot be configured with the client identity")]
    Tls(#[source] rustls::Error),
}

impl SetupError {
    /// Who acts: all of it is made by the director.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Bug
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// No stream to an API server.
    #[error("no connection to an API server of the cluster")]
    Connect(#[source] io::Error),
    /// TLS failed.
    #[error("TLS with the API server failed")]
    Tls(#[source] io::Error),
    /// HTTP failed.
    #[error("the connection to the API server broke")]
    Http {
        /// From the library.
        #[source]
        source: hyper::Error,
    },
    /// No answer in time; the call may have had its effect.
    #[error("{method} {path} was not answered within {after:?}")]
    Deadline {
        /// Method.
        method: Method,
        /// Path.
        path: String,
        /// The deadline.
        after: Duration,
    },
    /// The answer is too long.
    #[error("the answer to {path} has more than {limit} {unit}")]
    TooLarge {
        /// Path.
        path: String,
        /// The limit.
        limit: usize,
        /// Of what.
        unit: &'static str,
    },
    /// The API server said no.
    #[error("{method} {path} was answered with {code} {reason}: {message}")]
    Status {
        /// Method.
        method: Method,
        /// Path.
        path: String,
        /// HTTP status.
        code: u16,
        /// Kubernetes' reason, for example `NotFound`.
        reason: String,
        /// Kubernetes' message.
        message: String,
    },
    /// The answer is not what was asked for.
    #[error("the answer to {path} cannot be read")]
    Decode {
        /// Path.
        path: String,
        /// From the parser.
        #[source]
        source: serde_json::Error,
    },
    /// The object cannot be sent.
    #[error("the object cannot be sent: {what}")]
    Object {
        /// What is wrong.
        what: String,
    },
}

#[derive(Deserialize, Default)]
struct Status {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

impl ApiError {
    pub(super) fn status(method: &Method, path: &str, code: StatusCode, body: &[u8]) -> Self {
        let status: Option<Status> = serde_json::from_slice(body).ok();
        // A Service behind the API server speaks a JSON of its own.
        let status = status.filter(|status| !status.message.is_empty());
        let status = status.unwrap_or_else(|| Status {
            reason: code.canonical_reason().unwrap_or_default().to_owned(),
            message: String::from_utf8_lossy(&body[..body.len().min(MESSAGE_BYTES_MAX)]).into(),
        });
        ApiError::Status {
            method: method.clone(),
            path: path.to_owned(),
            code: code.as_u16(),
            reason: status.reason,
            message: status.message.chars().take(MESSAGE_BYTES_MAX).collect(),
        }
    }

    /// The HTTP status, when the API server answered.
    pub fn code(&self) -> Option<u16> {
        match self {
            ApiError::Status { code, .. } => Some(*code),
            ApiError::Connect(_)
            | ApiError::Tls(_)
            | ApiError::Http { .. }
            | ApiError::Deadline { .. }
            | ApiError::TooLarge { .. }
            | ApiError::Decode { .. }
            | ApiError::Object { .. } => None,
        }
    }

    /// There is no such object.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// Somebody else changed or made the object.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            ApiError::Connect(_) | ApiError::Http { .. } | ApiError::Deadline { .. } => {
                ErrorClass::Retry
            }
            // A certificate that does not verify is `InvalidData`; anything else is a server that
            // went away in the middle.
            ApiError::Tls(source) if source.kind() == io::ErrorKind::InvalidData => {
                ErrorClass::Operator
            }
            ApiError::Tls(_) => ErrorClass::Retry,
            ApiError::Status { code, .. } => match code {
                408 | 409 | 429 | 500..=599 => ErrorClass::Retry,
                401 | 403 | 404 | 410 => ErrorClass::Operator,
                _ => ErrorClass::Bug,
            },
            ApiError::TooLarge { .. } => ErrorClass::Operator,
            ApiError::Decode { .. } | ApiError::Object { .. } => ErrorClass::Bug,
        }
    }
}
