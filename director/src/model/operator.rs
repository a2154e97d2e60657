//! Operators: who may ask the director for what.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Revision, Timestamp};

/// A person or program that uses the API. The certificate carries the name alone; what is kept here
/// decides, with each request anew.
///
/// A name is never given out twice: the certificates of one that was revoked may be valid still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Operator {
    /// Name in its certificates.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it was shut out; the record stays.
    #[serde(default)]
    pub revoked_at: Option<Timestamp>,
    /// Who added it: an operator, or `director`.
    pub added_by: String,
    /// When.
    pub created_at: Timestamp,
    /// Revision of this record.
    pub revision: Revision,
}

impl Operator {
    /// A new one.
    pub fn new(name: impl Into<String>, role: Role, added_by: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            role,
            revoked_at: None,
            added_by: added_by.into(),
            created_at: Timestamp::now(),
            revision: Revision::default(),
        }
    }

    /// Its role; `None` once it was revoked.
    pub fn active_role(&self) -> Option<Role> {
        match self.revoked_at {
            None => Some(self.role),
            Some(_) => None,
        }
    }
}

/// What an operator may do; each role may do what the ones before it may.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    ToSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// See everything except secrets.
    Viewer,
    /// Make and remove clusters, steer tasks, read logs.
    Operator,
    /// Everything: run commands on machines, hand out access, manage operators.
    Admin,
}

impl Role {
    /// All of them, the least first.
    pub const ALL: [Role; 3] = [Role::Viewer, Role::Operator, Role::Admin];
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

/// Who asks: the operator of the certificate, with the role it has at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Name in the operator's certificate.
    pub operator: String,
    /// What it may do.
    pub role: Role,
    /// Names this request in the audit log, in logs and on machines.
    pub request: String,
}
