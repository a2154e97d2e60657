//! Who asked for what, and what came of it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Timestamp;

/// Who asks; the API takes it from the operator's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Caller {
    /// Name in the operator's certificate.
    pub operator: String,
    /// What it may do.
    pub role: Role,
}

/// What an operator may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// See everything except secrets.
    Viewer,
    /// Everything.
    Admin,
}

/// One line of the audit log; never changed, never deleted by the director.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    /// Grows by one with each entry.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// Who: an operator's name, or `director`.
    pub actor: String,
    /// What, for example `cluster.create`.
    pub action: String,
    /// On what, for example `cluster/demo`.
    pub subject: String,
    /// Details without secrets.
    pub detail: String,
}
