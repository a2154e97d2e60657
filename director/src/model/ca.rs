//! The director's CA as the API shows it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::{Incarnation, MachineName};

use super::Timestamp;
use crate::rotation::{Phase, Progress};

/// The director's CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaStatus {
    /// The generation that is trusted; during a rotation, the one that goes.
    pub generation: u32,
    /// The rotation under way.
    pub rotation: Option<CaRotation>,
    /// Machines that the last rotation left behind.
    pub abandoned: Vec<String>,
    /// Operators who had not renewed when the last rotation ended; their certificates are refused.
    pub operators_left: Vec<String>,
    /// Every root that is trusted now, PEM.
    pub roots: String,
}

/// A rotation under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaRotation {
    /// The generation that stays.
    pub to: u32,
    /// How far it is.
    pub phase: Phase,
    /// Who ordered it.
    pub started_by: String,
    /// When.
    pub started_at: Timestamp,
    /// Machines that are not deleted.
    pub machines: u32,
    /// Machines that trust the new root.
    pub trusting: u32,
    /// Machines that hold a certificate of the new CA as well.
    pub renewed: u32,
    /// Machines that it waits for.
    pub waiting: Vec<Waiting>,
    /// Machines that it does not wait for.
    pub abandoned: Vec<String>,
    /// Operators who have not renewed: they are refused once the old CA is dropped.
    pub operators: Vec<String>,
}

/// A machine that a rotation waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// Its name.
    #[schema(value_type = String)]
    pub machine: MachineName,
    /// Which rebirth of it.
    #[schema(value_type = u32)]
    pub incarnation: Incarnation,
    /// How far it is.
    pub progress: Progress,
    /// Why it is not further.
    pub why: String,
}
