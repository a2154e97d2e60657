//! Renewal of what a cluster's machines prove themselves with.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Timestamp;

/// The certificates that a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Certified {
    /// When the first of them began to be valid.
    pub issued_at: Timestamp,
    /// When they are renewed by themselves: after two thirds of their life.
    pub renew_at: Timestamp,
    /// When the first of them expires.
    pub expires_at: Timestamp,
}
