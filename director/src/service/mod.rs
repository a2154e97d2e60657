//! The director's operations: what the API and the command line can ask for.
//!
//! # Invariants
//! * Every operation that changes something is audited, with the caller's name, before it is done.
//! * Nothing is decided here that the planner decides, and nothing is done here that a rollout does.
//!
//! # After a crash
//! [`Director::start`] resumes every task that was not over.
//!
//! # Not here
//! HTTP, authentication and output formats (api); parsing of configuration files (config).

mod agents;
mod backups;
mod campaigns;
mod care;
mod certificates;
mod change;
mod clusters;
mod disks;
mod draft;
mod enrollment;
mod error;
mod etcd;
#[cfg(test)]
mod fleet_tests;
mod freezes;
#[cfg(test)]
mod freezes_tests;
mod hazards;
mod hold;
mod kept;
#[cfg(test)]
mod kept_tests;
mod kubernetes;
mod legs;
mod nodes;
mod operations;
mod operators;
mod overview;
mod reach;
mod repair;
mod restore;
mod rotate;
mod rounds;
mod shown;
mod start;
mod tasks;
#[cfg(test)]
mod tests;
mod tickets;
mod token;
mod upkeep;
#[cfg(test)]
mod zones_tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::cluster::ClusterSpec;
use windlass_common::id::{ClusterName, DirectorId, Epoch};
use windlass_common::secret::Secret;
use windlass_common::step::{Progress, StepResult};
use windlass_common::wire::session::SessionEnd;

use crate::backup::hold::{Hold, HoldRecord};
use crate::backup::periodic::OwnBackups;
use crate::epoch::CurrentEpoch;
use crate::gateway::Gateway;
use crate::kubernetes::facts;
use crate::kubernetes::pki;
use crate::model::{Caller, Cluster, Machine, Role, Task, Timestamp};
use crate::pki::DirectorCa;
use crate::provider::Provider;
use crate::resurrector::witness::Witnesses;
use crate::rollout::Rollouts;
use crate::rollout::world::World;
use crate::rotation::Rotations;
use crate::stemcell::Catalogue;
use crate::store::{Act, Commit, Records};

pub use agents::{AT_A_TIME_MAX, AgentOrder};
pub use backups::{BackupCounts, BackupError, ClusterBackups};
pub use campaigns::{
    CampaignOrder, ClusterChoice, IN_FLIGHT_DEFAULT, IN_FLIGHT_MAX, SOAK_MAX_SECONDS, Steer,
};
pub use certificates::{CertificateOrder, Expiries, RenewalHeld, held_back};
pub use change::StemcellChoice;
pub use clusters::ChangeOrder;
pub use disks::Disk;
pub(crate) use draft::Drafter;
pub use enrollment::Tokens;
pub use error::ServiceError;
pub use etcd::AskError;
pub use freezes::FreezeOrder;
pub use hold::{AdoptOrder, HoldView};
pub use kept::KeptMachine;
pub(crate) use operators::CERTIFICATE_LIFE;
pub use operators::Standing;
pub use reach::{Ending, Reach, Terminal};
pub use repair::{NodeWhy, RecreateOrder, StoppedPool};
pub use restore::{RestoreFrom, RestoreRequest};
pub use rotate::RotationOrder;
pub use start::StartError;
pub use tickets::tickets;
pub use token::FreshToken;

/// What every operation returns.
pub type ServiceResult<T> = Result<T, ServiceError>;

/// What to plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanRequest {
    /// Making this cluster, or going on with it.
    Create(ClusterSpec),
    /// Making this cluster, or changing it.
    Apply(ClusterSpec, StemcellChoice),
    /// Deleting the cluster of this name, and its disks.
    Delete(ClusterName),
}

/// Access to one cluster's API for one person.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// A kubeconfig with a client certificate and its key.
    pub kubeconfig: Secret,
    /// When the certificate expires.
    pub expires_at: Timestamp,
}

/// What the director says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DirectorStatus {
    /// The director's id, part of every certificate it issues.
    pub id: String,
    /// Grows at each start.
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    /// Why it does nothing to machines; absent when it was not restored, or what changed was adopted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<HoldRecord>,
    /// Its version.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
    /// Process id.
    pub pid: u32,
    /// Where agents connect (UDP).
    #[schema(value_type = String)]
    pub gateway_address: SocketAddr,
    /// Its data directory.
    #[schema(value_type = String)]
    pub data_dir: PathBuf,
    /// Clusters by phase.
    pub clusters: BTreeMap<String, u32>,
    /// Machines known.
    pub machines: u32,
    /// Agents connected now.
    pub agents_connected: u32,
    /// Tasks that are not over.
    pub tasks_unfinished: u32,
    /// Stemcells that were verified.
    pub stemcells: u32,
    /// What limits the provider, one line each.
    pub provider_faults: Vec<String>,
}

/// What a step on a node sends, the result last.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeEvent {
    /// Output, or what is being done.
    Progress(Progress),
    /// How it ended; the stream ends after it.
    Result(Box<StepResult>),
    /// What was followed ended by itself; the stream ends after it.
    Ended(SessionEnd),
    /// The connection broke; what the step did is not known.
    Lost(String),
}

/// The director: all its operations. Cheap to clone; every clone is the same director.
#[derive(Debug, Clone)]
pub struct Director {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: DirectorId,
    epoch: CurrentEpoch,
    hold: Hold,
    own_backups: OwnBackups,
    data_dir: PathBuf,
    started_at: Timestamp,
    gateway_address: SocketAddr,
    provider_faults: Vec<String>,
    records: Records,
    provider: Arc<dyn Provider>,
    gateway: Gateway,
    world: Arc<World>,
    witnesses: Arc<dyn Witnesses>,
    rollouts: Rollouts,
    rotations: Rotations,
    stemcells: Catalogue,
    ca: Arc<DirectorCa>,
    identities: kubernetes::Identities,
    /// Orders are placed one at a time: they hand out addresses.
    orders: tokio::sync::Mutex<()>,
    /// Plans that were shown.
    plans: shown::Shown,
    repairs: repair::Repairs,
    backups: Arc<backups::Backups>,
    care: care::CareBook,
}

impl Inner {
    async fn note(&self, caller: &Caller, act: Act<'_>) -> ServiceResult<()> {
        let mut commit = Commit::default();
        self.records.audit_caller(&mut commit, caller, act);
        self.records.commit(commit).await?;
        Ok(())
    }

    async fn credentials(&self, name: &ClusterName, caller: &Caller) -> ServiceResult<Credentials> {
        let cluster = self.cluster(name).await?;
        let pki = self.cluster_pki(name).await?;
        let endpoint = facts::Endpoint {
            name: cluster.endpoint.name,
            address: cluster.endpoint.address,
            port: cluster.endpoint.port,
        };
        let now = jiff::Timestamp::now();
        let kubeconfig = pki::operator_kubeconfig(&pki, name, &endpoint, &caller.operator, now)
            .map_err(|error| ServiceError::of(error.class(), "the kubeconfig", error))?;
        let life_ms = u64::try_from(pki::OPERATOR_CERTIFICATE_LIFE.as_millis()).unwrap_or(u64::MAX);
        let now_ms = Timestamp::now().unix_ms();
        let expires_at = Timestamp::from_unix_ms(now_ms.saturating_add(life_ms));
        // Before they are handed out: what cannot be written down is not done.
        let act = Act {
            action: "cluster.credentials",
            subject: &format!("cluster/{name}"),
            detail: &format!("a kubeconfig until {expires_at}"),
            outcome: "granted",
        };
        self.note(caller, act).await?;
        Ok(Credentials {
            kubeconfig,
            expires_at,
        })
    }

    async fn status(&self) -> ServiceResult<DirectorStatus> {
        let mut phases = BTreeMap::new();
        let clusters: Vec<Cluster> = self.records.list().await?;
        for cluster in &clusters {
            *phases.entry(cluster.phase.to_string()).or_insert(0) += 1;
        }
        let machines: Vec<Machine> = self.records.list().await?;
        let tasks: Vec<Task> = self.records.list().await?;
        let stemcells = self.stemcells.list().map(|(usable, _)| usable.len());
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(DirectorStatus {
            id: self.id.to_string(),
            epoch: self.epoch.get(),
            hold: self.hold.record(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            pid: std::process::id(),
            gateway_address: self.gateway_address,
            data_dir: self.data_dir.clone(),
            clusters: phases,
            machines: count(machines.len()),
            agents_connected: count(self.gateway.connected_count()),
            tasks_unfinished: count(tasks.iter().filter(|t| !t.state.is_over()).count()),
            stemcells: count(stemcells.unwrap_or(0)),
            provider_faults: self.provider_faults.clone(),
        })
    }
}

/// Whether the caller has this role or a higher one.
fn allow(caller: &Caller, needed: Role, action: &'static str) -> ServiceResult<()> {
    if caller.role >= needed {
        return Ok(());
    }
    Err(ServiceError::Forbidden {
        operator: caller.operator.clone(),
        action,
        needed,
    })
}
