//! The director's records: what the store keeps and the API shows.
//!
//! # Invariants
//! * Every record serialises as camelCase JSON, in the store and in the API alike; a field that an older
//!   director did not write has a default.
//! * A record holds no secret: those are sealed blobs of the store (see `store::Secrets`).
//!
//! # After a crash
//! Nothing here lives longer than a call; the store is the truth.
//!
//! # Not here
//! What a cluster should be ([`windlass_common::cluster`]), and every decision (planner, rollout).

mod audit;
mod ca;
mod campaign;
mod cluster;
mod freeze;
mod machine;
mod operator;
mod overview;
mod plan;
mod renewal;
mod restore;
mod stemcell;
mod task;
mod time;
mod upgrade;
mod usage;

pub use audit::{AuditEntry, AuditFilter};
pub use ca::{CaRotation, CaStatus, Waiting};
pub use campaign::{
    Campaign, CampaignId, CampaignIdError, CampaignState, CampaignView, Member, MemberState,
    Refusal,
};
pub use cluster::{Cluster, ClusterPhase, Endpoint, FieldFault, MadeFrom};
pub use freeze::Freeze;
pub use machine::{
    AgentView, Former, Joined, Keep, Machine, MachineDraft, MachineFilter, MachineHealth,
    MachinePhase, MachineRole, MachineView, Reboot, Wanted,
};
pub use operator::{Caller, Operator, Role};
pub use overview::{ClusterOverview, TaskOverview};
pub use plan::{
    Action, ChangeForecast, Disruption, DrainForecast, Goal, Invariant, Moment, Plan, PlanStep,
    StepKey,
};
pub use renewal::{Certified, Next, Rotation, RotationKind, Stage};
pub use restore::{MemberFate, MemberRank, RestoreForecast, RestoreSource};
pub use stemcell::{Inside, Part, StemcellRecord};
pub use task::{
    Fault, StepRecord, StepState, Task, TaskEvent, TaskId, TaskIdError, TaskKind, TaskState,
};
pub use time::{Timestamp, TimestampError};
pub use upgrade::{Leg, LegForecast, LegsForecast, Upgrade, WayBack};
pub use usage::Usage;

/// Grows by one with each write of a record; a writer that has seen an older one is refused.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
    utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}
