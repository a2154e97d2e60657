//! What a machine is told at birth: who it is and where its director is.
//!
//! A provider puts this as JSON where its platform puts such things; on the local provider that is
//! [`SETTINGS_PATH`]. The file holds a one-time token and is readable by root alone.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::id::{ClusterName, Digest, DirectorId, Incarnation, MachineName};
use crate::secret::Secret;

/// Where the local provider writes the settings inside a machine.
pub const SETTINGS_PATH: &str = "/etc/windlass/settings.json";

/// The settings of one incarnation of a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The director's id; part of every certificate it issues.
    pub director_id: DirectorId,
    /// Addresses of the director's gateway (UDP), tried in order.
    pub directors: Vec<SocketAddr>,
    /// SHA-256 of the DER of the director's root CA, the pin of the first connection.
    pub ca_digest: Digest,
    /// One-time enrollment token, 64 hex digits.
    pub token: Secret,
    /// The cluster this machine belongs to.
    pub cluster: ClusterName,
    /// The machine's name.
    pub machine: MachineName,
    /// Which rebirth of it this is.
    pub incarnation: Incarnation,
}
