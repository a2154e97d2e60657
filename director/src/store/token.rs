//! Enrollment tokens as the store keeps them: by digest, never in clear.

use serde::{Deserialize, Serialize};
use windlass_common::id::{ClusterName, Incarnation, MachineName};

use crate::model::Timestamp;

/// A token that was issued; its name in the store is the token's digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    /// The cluster it was issued for.
    pub cluster: ClusterName,
    /// The machine it was issued for.
    pub machine: MachineName,
    /// The incarnation it was issued for.
    pub incarnation: Incarnation,
    /// When it stops counting.
    pub expires_at: Timestamp,
    /// The public key that used it first, in hex; no other may.
    pub public_key: Option<String>,
    /// Whether the machine has had a session since: nobody may use it any more.
    #[serde(default)]
    pub spent: bool,
}
