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

mod error;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::cluster::ClusterSpec;
use windlass_common::id::{ClusterName, DiskName, Epoch, MachineName};
use windlass_common::secret::Secret;
use windlass_common::step::{Collect, Progress, StepResult};

use crate::model::{
    AuditEntry, Caller, Cluster, MachineFilter, MachineView, Plan, StemcellRecord, Task, TaskEvent,
    TaskId, Timestamp,
};

pub use error::ServiceError;

/// What every operation returns.
pub type ServiceResult<T> = Result<T, ServiceError>;

/// What to plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PlanRequest {
    /// Making this cluster, or going on with it.
    Create(ClusterSpec),
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
    /// The connection broke; what the step did is not known.
    Lost(String),
}

/// The director: all its operations. Cheap to clone; every clone is the same director.
#[derive(Debug, Clone)]
pub struct Director {}

impl Director {
    /// Orders a cluster, or goes on with one of the same spec whose task failed. Returns the task at once.
    pub async fn create_cluster(&self, spec: ClusterSpec, caller: &Caller) -> ServiceResult<Task> {
        let _ = (spec, caller);
        Err(unbuilt())
    }

    /// What creating or deleting would do, without doing it.
    pub async fn plan_cluster(&self, request: PlanRequest) -> ServiceResult<Plan> {
        let _ = request;
        Err(unbuilt())
    }

    /// All clusters, by name.
    pub async fn clusters(&self) -> ServiceResult<Vec<Cluster>> {
        Err(unbuilt())
    }

    /// One cluster.
    pub async fn cluster(&self, name: &ClusterName) -> ServiceResult<Cluster> {
        let _ = name;
        Err(unbuilt())
    }

    /// Orders the deletion of a cluster with its disks, `disks` being the names the operator saw in the
    /// plan; `None` stands for all it has now. A create task of it that runs is cancelled first.
    pub async fn delete_cluster(
        &self,
        name: &ClusterName,
        disks: Option<Vec<DiskName>>,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let _ = (name, disks, caller);
        Err(unbuilt())
    }

    /// Machines with their agents' state, by name.
    pub async fn machines(&self, filter: &MachineFilter) -> ServiceResult<Vec<MachineView>> {
        let _ = filter;
        Err(unbuilt())
    }

    /// One machine.
    pub async fn machine(&self, name: &MachineName) -> ServiceResult<MachineView> {
        let _ = name;
        Err(unbuilt())
    }

    /// All tasks, newest first.
    pub async fn tasks(&self) -> ServiceResult<Vec<Task>> {
        Err(unbuilt())
    }

    /// One task.
    pub async fn task(&self, id: &TaskId) -> ServiceResult<Task> {
        let _ = id;
        Err(unbuilt())
    }

    /// Follows a task: a snapshot, then what changes; ends when the task is over.
    pub async fn watch_task(&self, id: &TaskId) -> ServiceResult<BoxStream<'static, TaskEvent>> {
        let _ = id;
        Err(unbuilt())
    }

    /// Stops a task; a create removes what it had made. Returns the task as it is now; watch it for its end.
    pub async fn cancel_task(&self, id: &TaskId, caller: &Caller) -> ServiceResult<Task> {
        let _ = (id, caller);
        Err(unbuilt())
    }

    /// A kubeconfig for the caller, in the group `cluster-admins`.
    pub async fn credentials(
        &self,
        cluster: &ClusterName,
        caller: &Caller,
    ) -> ServiceResult<Credentials> {
        let _ = (cluster, caller);
        Err(unbuilt())
    }

    /// Runs a command on a machine as root, at most once; audited. Dropping the stream does not stop it.
    pub async fn node_exec(
        &self,
        machine: &MachineName,
        argv: Vec<String>,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, NodeEvent>> {
        let _ = (machine, argv, caller);
        Err(unbuilt())
    }

    /// Logs and diagnostics of a machine.
    pub async fn node_logs(
        &self,
        machine: &MachineName,
        collect: Collect,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, NodeEvent>> {
        let _ = (machine, collect, caller);
        Err(unbuilt())
    }

    /// Stemcells whose signature was verified.
    pub async fn stemcells(&self) -> ServiceResult<Vec<StemcellRecord>> {
        Err(unbuilt())
    }

    /// What the director says about itself.
    pub async fn status(&self) -> ServiceResult<DirectorStatus> {
        Err(unbuilt())
    }

    /// The newest `limit` lines of the audit log (at most 1000), newest first.
    pub async fn audit(&self, limit: u32) -> ServiceResult<Vec<AuditEntry>> {
        let _ = limit;
        Err(unbuilt())
    }
}

fn unbuilt() -> ServiceError {
    ServiceError::Unavailable {
        what: "this operation is being built".to_owned(),
        source: None,
    }
}
