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
mod hold;
mod kubernetes;
mod nodes;
mod operators;
mod overview;
mod reach;
mod repair;
mod restore;
mod rotate;
mod shown;
mod start;
mod tasks;
#[cfg(test)]
mod tests;
mod tickets;
mod token;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::cluster::ClusterSpec;
use windlass_common::condition::NAMES;
use windlass_common::id::{ClusterName, DirectorId, DiskName, Epoch, MachineName, OperatorName};
use windlass_common::secret::Secret;
use windlass_common::step::{Collect, Progress, StepResult};
use windlass_common::wire::session::SessionEnd;

use crate::backup::cluster::BackupName;
use crate::backup::director;
use crate::backup::hold::{Hold, HoldRecord};
use crate::backup::periodic::OwnBackups;
use crate::backup::record::BackupRecord;
use crate::backup::repository::{Archive, BackupEntry};
use crate::config::{Config, DataDir, Identity};
use crate::epoch::CurrentEpoch;
use crate::gateway::{CounterView, Gateway};
use crate::health;
use crate::kubernetes::facts;
use crate::kubernetes::pki;
use crate::model::{
    AuditEntry, AuditFilter, CaStatus, Caller, CampaignId, CampaignView, Cluster, Machine,
    MachineFilter, MachineView, Operator, Plan, Role, StemcellRecord, Task, TaskEvent, TaskId,
    Timestamp, Usage,
};
use crate::pki::DirectorCa;
use crate::provider::Provider;
use crate::resurrector::witness::{Judgement, Witnesses};
use crate::resurrector::{CaseRecord, HoldKind, Verdict};
use crate::rollout::Rollouts;
use crate::rollout::world::World;
use crate::rotation::Rotations;
use crate::stemcell::Catalogue;
use crate::store::{Act, Commit, DirectoryLock, Records};

pub use agents::{AT_A_TIME_MAX, AgentOrder};
pub use backups::{BackupCounts, BackupError, ClusterBackups};
pub use campaigns::{
    CampaignOrder, ClusterChoice, IN_FLIGHT_DEFAULT, IN_FLIGHT_MAX, SOAK_MAX_SECONDS, Steer,
};
pub use certificates::{CertificateOrder, Expiries};
pub use change::StemcellChoice;
pub use clusters::ChangeOrder;
pub use disks::Disk;
pub use enrollment::Tokens;
pub use error::ServiceError;
pub use etcd::AskError;
pub use hold::{AdoptOrder, HoldView};
pub(crate) use kubernetes::ApiServer;
pub(crate) use operators::CERTIFICATE_LIFE;
pub use operators::Standing;
pub use reach::{Ending, Reach, Terminal};
pub use repair::NodeWhy;
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

impl Director {
    /// Starts a director, and goes on with every task that was not over. The lock shows that no other
    /// director uses the directory; hold it until this one is shut down.
    pub async fn start(
        _lock: &DirectoryLock,
        data: &DataDir,
        config: &Config,
        identity: Identity,
        provider: Arc<dyn Provider>,
    ) -> Result<Director, StartError> {
        start::start(data, config, identity, provider).await
    }

    /// Its id.
    pub fn id(&self) -> &DirectorId {
        &self.inner.id
    }

    /// What the gateway refused and what went through it, since the start.
    pub fn counters(&self) -> CounterView {
        self.inner.gateway.counters()
    }

    /// Its CA: issues the API's certificate and verifies operators.
    pub fn ca(&self) -> &Arc<DirectorCa> {
        &self.inner.ca
    }

    /// Orders a cluster, or goes on with one of the same spec whose task failed. Returns the task at once.
    pub async fn create_cluster(&self, spec: ClusterSpec, caller: &Caller) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "create clusters")?;
        self.inner.not_on_hold("create clusters")?;
        self.inner.create_cluster(spec, caller).await
    }

    /// Orders a cluster, or a change of one that is there. Returns the task at once.
    pub async fn apply_cluster(
        &self,
        spec: ClusterSpec,
        order: &ChangeOrder,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "change clusters")?;
        self.inner.not_on_hold("change clusters")?;
        self.inner.apply_cluster(spec, order, caller).await
    }

    /// Orders a backup of a cluster. Returns at once; the record says which, and later how it ended.
    pub async fn order_backup(
        &self,
        name: &ClusterName,
        caller: &Caller,
    ) -> ServiceResult<BackupRecord> {
        allow(caller, Role::Operator, "back clusters up")?;
        self.inner.order_backup(name, caller).await
    }

    /// The backups of a cluster, also of one that is gone.
    pub async fn backups(&self, name: &ClusterName) -> ServiceResult<ClusterBackups> {
        self.inner.backups(name).await
    }

    /// One backup of a cluster.
    pub async fn backup(
        &self,
        cluster: &ClusterName,
        name: &BackupName,
    ) -> ServiceResult<BackupEntry> {
        self.inner.backup(cluster, name).await
    }

    /// The encrypted archive of a backup.
    pub async fn backup_archive(
        &self,
        cluster: &ClusterName,
        name: &BackupName,
        caller: &Caller,
    ) -> ServiceResult<Archive> {
        allow(caller, Role::Admin, "fetch backups")?;
        self.inner.backup_archive(cluster, name, caller).await
    }

    /// Deletes one backup of a cluster for good.
    pub async fn delete_backup(
        &self,
        cluster: &ClusterName,
        name: &BackupName,
        caller: &Caller,
    ) -> ServiceResult<BackupEntry> {
        allow(caller, Role::Admin, "delete backups")?;
        self.inner.delete_backup(cluster, name, caller).await
    }

    /// How many clusters there are whose etcd needs a person.
    pub fn etcd_needs_operator(&self) -> u64 {
        self.inner.care.needs_operator()
    }

    /// What the backups of all clusters come to.
    pub fn backup_counts(&self) -> BackupCounts {
        self.inner.backup_counts()
    }

    /// What renewing certificates would do, without doing it.
    pub async fn plan_certificates(
        &self,
        name: &ClusterName,
        order: &CertificateOrder,
    ) -> ServiceResult<Plan> {
        self.inner.plan_certificates(name, order).await
    }

    /// Orders the renewal of machines' certificates now. Returns the task at once.
    pub async fn renew_certificates(
        &self,
        name: &ClusterName,
        order: &CertificateOrder,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "renew certificates")?;
        self.inner.renew_certificates(name, order, caller).await
    }

    /// What rotating a cluster's keys or authorities would do first, without doing it.
    pub async fn plan_rotation(
        &self,
        name: &ClusterName,
        order: &RotationOrder,
        caller: &Caller,
    ) -> ServiceResult<Plan> {
        self.inner.plan_rotation(name, order, caller).await
    }

    /// Orders the rotation of a cluster's encryption key or authorities, or goes on with one. Returns the task at
    /// once.
    pub async fn rotate(
        &self,
        name: &ClusterName,
        order: &RotationOrder,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        allow(caller, Role::Admin, "rotate keys and authorities")?;
        self.inner.rotate(name, order, caller).await
    }

    /// When the first certificates of all clusters expire.
    pub async fn expiries(&self) -> ServiceResult<Expiries> {
        self.inner.expiries().await
    }

    /// What upgrading agents would do, without doing it.
    pub async fn plan_agents(&self, name: &ClusterName, order: &AgentOrder) -> ServiceResult<Plan> {
        self.inner.plan_agents(name, order).await
    }

    /// Orders the upgrade of agents in place. Returns the task at once.
    pub async fn upgrade_agents(
        &self,
        name: &ClusterName,
        order: &AgentOrder,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "upgrade agents")?;
        self.inner.not_on_hold("upgrade agents")?;
        self.inner.upgrade_agents(name, order, caller).await
    }

    /// What restoring a cluster would do and lose, without doing it. Takes the role that restoring takes: it reads
    /// a file of the director's host.
    pub async fn plan_restore(
        &self,
        name: &ClusterName,
        request: &RestoreRequest,
        caller: &Caller,
    ) -> ServiceResult<Plan> {
        allow(caller, Role::Admin, "restore clusters")?;
        self.inner.plan_restore(name, request).await
    }

    /// Orders a cluster to be restored. Returns the task at once.
    pub async fn restore_cluster(
        &self,
        name: &ClusterName,
        request: &RestoreRequest,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        allow(caller, Role::Admin, "restore clusters")?;
        self.inner.restore_cluster(name, request, caller).await
    }

    /// What creating, changing or deleting would do, without doing it.
    pub async fn plan_cluster(&self, request: PlanRequest) -> ServiceResult<Plan> {
        self.inner.plan_cluster(request).await
    }

    /// All clusters, by name.
    pub async fn clusters(&self) -> ServiceResult<Vec<Cluster>> {
        Ok(self.inner.records.list().await?)
    }

    /// One cluster.
    pub async fn cluster(&self, name: &ClusterName) -> ServiceResult<Cluster> {
        self.inner.cluster(name).await
    }

    /// Orders the deletion of a cluster with its disks, `disks` being the names the operator saw in the
    /// plan; `None` stands for all it has now. A create task of it that runs is stopped first.
    pub async fn delete_cluster(
        &self,
        name: &ClusterName,
        disks: Option<Vec<DiskName>>,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "delete clusters")?;
        self.inner.not_on_hold("delete clusters")?;
        self.inner.delete_cluster(name, disks, caller).await
    }

    /// Machines with their agents' state, by name.
    pub async fn machines(&self, filter: &MachineFilter) -> ServiceResult<Vec<MachineView>> {
        let sessions = self.inner.gateway.connected();
        let now = Timestamp::now();
        let mut machines: Vec<Machine> = self.inner.records.list().await?;
        machines.retain(|m| filter.cluster.as_ref().is_none_or(|c| *c == m.cluster));
        let views = machines.into_iter().map(|machine| {
            let session = sessions.get(&machine.name);
            health::view(machine, session, now)
        });
        self.inner.judged(views.collect()).await
    }

    /// One machine.
    pub async fn machine(&self, name: &MachineName) -> ServiceResult<MachineView> {
        let machine = self.inner.machine_record(name).await?;
        let sessions = self.inner.gateway.connected();
        let view = health::view(machine, sessions.get(name), Timestamp::now());
        let mut judged = self.inner.judged(vec![view]).await?;
        judged.pop().ok_or_else(|| ServiceError::Bug {
            what: format!("the view of {name} was lost"),
            source: None,
        })
    }

    /// Asks every witness about a machine now, and says what the evidence means by itself.
    pub async fn machine_evidence(
        &self,
        name: &MachineName,
        caller: &Caller,
    ) -> ServiceResult<Judgement> {
        allow(caller, Role::Operator, "have machines probed")?;
        let machine = self.inner.machine_record(name).await?;
        Ok(self.inner.witnesses.evidence(&machine).await.into())
    }

    /// All tasks, newest first.
    pub async fn tasks(&self) -> ServiceResult<Vec<Task>> {
        self.inner.tasks().await
    }

    /// One task.
    pub async fn task(&self, id: &TaskId) -> ServiceResult<Task> {
        self.inner.task(id).await
    }

    /// Follows a task: a snapshot, then what changes; ends when the task is over.
    pub async fn watch_task(&self, id: &TaskId) -> ServiceResult<BoxStream<'static, TaskEvent>> {
        self.inner.watch_task(id).await
    }

    /// Stops a task; a create removes what it had made. Returns the task as it is now; watch it for its end.
    pub async fn cancel_task(&self, id: &TaskId, caller: &Caller) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "cancel tasks")?;
        self.inner.not_on_hold("cancel tasks")?;
        self.inner.cancel_task(id, caller).await
    }

    /// Has a task pause: the machines that it has begun with are finished, and no other one is begun with.
    /// Returns when that is written down; watch the task for when nothing of it runs.
    pub async fn pause_task(&self, id: &TaskId, caller: &Caller) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "pause tasks")?;
        self.inner.not_on_hold("pause tasks")?;
        self.inner.pause_task(id, true, caller).await
    }

    /// Goes on with a task that pauses.
    pub async fn resume_task(&self, id: &TaskId, caller: &Caller) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "go on with tasks")?;
        self.inner.not_on_hold("go on with tasks")?;
        self.inner.pause_task(id, false, caller).await
    }

    /// Has a task go on although its cluster's maintenance window is closed. Returns when that is written down.
    pub async fn ignore_window(
        &self,
        id: &TaskId,
        reason: String,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "go on outside of windows")?;
        self.inner.ignore_window(id, reason, caller).await
    }

    /// Orders what a failed task did not get done. Returns the task that does it.
    pub async fn retry_task(&self, id: &TaskId, caller: &Caller) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "retry tasks")?;
        self.inner.not_on_hold("retry tasks")?;
        self.inner.retry_task(id, caller).await
    }

    /// All campaigns, newest first.
    pub async fn campaigns(&self) -> ServiceResult<Vec<CampaignView>> {
        self.inner.campaigns().await
    }

    /// One campaign, with how far its clusters are.
    pub async fn campaign(&self, id: &CampaignId) -> ServiceResult<CampaignView> {
        self.inner.campaign(id).await
    }

    /// What a campaign would do, without doing it.
    pub async fn plan_campaign(
        &self,
        order: &CampaignOrder,
        caller: &Caller,
    ) -> ServiceResult<CampaignView> {
        self.inner.plan_campaign(order, caller).await
    }

    /// Orders an upgrade of many clusters, in waves. Returns at once.
    pub async fn create_campaign(
        &self,
        order: &CampaignOrder,
        caller: &Caller,
    ) -> ServiceResult<CampaignView> {
        allow(caller, Role::Operator, "upgrade clusters")?;
        self.inner.create_campaign(order, caller).await
    }

    /// Has a campaign pause, go on, end, or try again what failed. Returns when that is written down.
    pub async fn steer_campaign(
        &self,
        id: &CampaignId,
        steer: Steer,
        caller: &Caller,
    ) -> ServiceResult<CampaignView> {
        allow(caller, Role::Operator, "steer campaigns")?;
        self.inner.steer_campaign(id, steer, caller).await
    }

    /// A kubeconfig for the caller, in the group of cluster administrators.
    pub async fn credentials(
        &self,
        cluster: &ClusterName,
        caller: &Caller,
    ) -> ServiceResult<Credentials> {
        allow(caller, Role::Admin, "get a cluster's credentials")?;
        self.inner.credentials(cluster, caller).await
    }

    /// Runs a command on a machine as root, at most once; audited. Dropping the stream does not stop it.
    pub async fn node_exec(
        &self,
        machine: &MachineName,
        argv: Vec<String>,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, NodeEvent>> {
        allow(caller, Role::Admin, "run commands on machines")?;
        self.inner.node_exec(machine, argv, caller).await
    }

    /// What is known about why a machine is judged as it is, and what comes next.
    pub async fn node_why(&self, machine: &MachineName) -> ServiceResult<NodeWhy> {
        self.inner.node_why(machine).await
    }

    /// Keeps remedies from a machine, or has it ignored, until it is released.
    pub async fn hold_node(
        &self,
        machine: &MachineName,
        kind: HoldKind,
        reason: String,
        caller: &Caller,
    ) -> ServiceResult<CaseRecord> {
        allow(caller, Role::Operator, "hold machines")?;
        self.inner.hold_node(machine, kind, reason, caller).await
    }

    /// Lets a machine go that was held or ignored, and forgets what was tried on it.
    pub async fn release_node(
        &self,
        machine: &MachineName,
        caller: &Caller,
    ) -> ServiceResult<CaseRecord> {
        allow(caller, Role::Operator, "release machines")?;
        self.inner.release_node(machine, caller).await
    }

    /// Persistent disks, with the machines whose data they hold.
    pub async fn disks(&self) -> ServiceResult<Vec<Disk>> {
        self.inner.disks().await
    }

    /// Deletes a disk that no machine has, and its data. Returns what it was.
    pub async fn delete_disk(&self, name: &DiskName, caller: &Caller) -> ServiceResult<Disk> {
        allow(caller, Role::Operator, "delete disks")?;
        self.inner.delete_disk(name, caller).await
    }

    /// Issues a token with which a machine that has no certificate that counts comes back; `place`: the
    /// provider brings it there, if it can.
    pub async fn enroll_node(
        &self,
        machine: &MachineName,
        place: bool,
        caller: &Caller,
    ) -> ServiceResult<FreshToken> {
        allow(caller, Role::Operator, "give tokens to machines")?;
        self.inner.not_on_hold("give tokens to machines")?;
        self.inner.enroll_node(machine, place, caller).await
    }

    /// Orders the next incarnation of a machine, whatever its verdict. Returns the task at once.
    pub async fn recreate_node(
        &self,
        machine: &MachineName,
        accept_downtime: bool,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "recreate machines")?;
        self.inner.not_on_hold("recreate machines")?;
        self.inner
            .recreate_node(machine, accept_downtime, caller)
            .await
    }

    /// How many machines there are of each verdict.
    pub fn verdicts(&self) -> BTreeMap<Verdict, u64> {
        self.inner.repairs.verdicts()
    }

    /// How many connected machines a condition speaks against, by its name; every name is there.
    pub fn conditions(&self) -> BTreeMap<&'static str, u64> {
        let now = Timestamp::now();
        let mut counts: BTreeMap<_, _> = NAMES.into_iter().map(|name| (name, 0)).collect();
        for session in self.inner.gateway.connected().values() {
            let conditions = health::of_session(session, now);
            let bad: BTreeSet<&str> = health::counting(&conditions)
                .map(|one| one.name.as_str())
                .collect();
            for (name, count) in &mut counts {
                *count += u64::from(bad.contains(name));
            }
        }
        counts
    }

    /// Logs and diagnostics of a machine.
    pub async fn node_logs(
        &self,
        machine: &MachineName,
        collect: Collect,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, NodeEvent>> {
        allow(caller, Role::Operator, "read the logs of machines")?;
        self.inner.node_logs(machine, collect, caller).await
    }

    /// Follows the logs of a machine, after the newest `lines`; dropping the stream ends it.
    pub async fn follow_logs(
        &self,
        machine: &MachineName,
        units: Vec<String>,
        lines: u32,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, NodeEvent>> {
        allow(caller, Role::Operator, "read the logs of machines")?;
        self.inner.follow_logs(machine, units, lines, caller).await
    }

    /// Starts a shell as root on a machine; dropping it ends it, with all it started.
    pub async fn open_shell(
        &self,
        machine: &MachineName,
        terminal: Terminal,
        caller: &Caller,
    ) -> ServiceResult<Reach> {
        allow(caller, Role::Admin, "open shells on machines")?;
        self.inner.open_shell(machine, terminal, caller).await
    }

    /// Starts a command as root on a machine that reads what it is sent; dropping it ends it, with all it
    /// started.
    pub async fn run_command(
        &self,
        machine: &MachineName,
        argv: Vec<String>,
        caller: &Caller,
    ) -> ServiceResult<Reach> {
        allow(caller, Role::Admin, "run commands on machines")?;
        self.inner.run_command(machine, argv, caller).await
    }

    /// Usage as it is, of one machine, of those of a cluster or of all; dropping the stream ends it.
    pub async fn watch_usage(
        &self,
        cluster: Option<&ClusterName>,
        machine: Option<&MachineName>,
        interval_ms: u32,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, Usage>> {
        allow(caller, Role::Operator, "watch machines")?;
        let machines = self.inner.watched(cluster, machine).await?;
        let subject = match (machine, cluster) {
            (Some(name), _) => format!("machine/{name}"),
            (None, Some(name)) => format!("cluster/{name}"),
            (None, None) => "machines".to_owned(),
        };
        self.inner
            .watch_usage(machines, interval_ms, subject, caller)
            .await
    }

    /// The CA, and its rotation if one is under way.
    pub async fn ca_status(&self) -> ServiceResult<CaStatus> {
        Ok(self.inner.rotations.status().await?)
    }

    /// Begins to rotate the CA, or joins the rotation under way, without waiting for the machines
    /// `abandon`. Returns at once; see [`Director::ca_status`].
    pub async fn rotate_ca(
        &self,
        abandon: &[MachineName],
        caller: &Caller,
    ) -> ServiceResult<CaStatus> {
        allow(caller, Role::Admin, "rotate the CA")?;
        self.inner.not_on_hold("rotate the CA")?;
        Ok(self.inner.rotations.order(abandon, caller).await?)
    }

    /// Whether an operator's certificate, which was verified, still counts, as its generation of the CA
    /// does; notes who has one of the newest.
    pub async fn operator_shows(&self, name: &str, generation: u32) -> bool {
        if !self.inner.ca.trusts(generation) {
            return false;
        }
        self.inner.rotations.operator_seen(name, generation).await;
        true
    }

    /// A certificate of the newest CA for the caller, for the key in its request.
    pub async fn renew_operator(
        &self,
        request_der: &[u8],
        caller: &Caller,
    ) -> ServiceResult<String> {
        self.inner.renew_operator(request_der, caller).await
    }

    /// Stemcells whose signature was verified.
    pub async fn stemcells(&self) -> ServiceResult<Vec<StemcellRecord>> {
        let (usable, faults) = self
            .inner
            .stemcells
            .list()
            .map_err(|error| ServiceError::of(error.class(), "stemcells", error))?;
        for fault in faults {
            tracing::warn!(fault, "a stemcell cannot be used");
        }
        Ok(usable)
    }

    /// Whether the director was restored, and nobody has approved yet of what it found.
    pub fn is_on_hold(&self) -> bool {
        self.inner.hold.is_on()
    }

    /// Whether the director is on hold, and how the world differs from its records then.
    pub async fn hold(&self) -> ServiceResult<HoldView> {
        self.inner.hold_view().await
    }

    /// Adopts what has changed since the backup that the director was restored from, and ends its hold.
    pub async fn adopt(&self, order: &AdoptOrder, caller: &Caller) -> ServiceResult<HoldView> {
        allow(caller, Role::Admin, "end the director's hold")?;
        self.inner.adopt(order, caller).await
    }

    /// A backup of the director, sealed, piece by piece; the last piece is an error if it is not whole.
    pub async fn own_backup(
        &self,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, Result<Vec<u8>, director::BackupError>>> {
        allow(caller, Role::Admin, "back the director up")?;
        let act = Act {
            action: "director.backup",
            subject: "director",
            ..Act::default()
        };
        self.inner.note(caller, act).await?;
        Ok(self.inner.own_backups.stream())
    }

    /// When the last backup was taken that is whole, as far as this director knows; and how many of its
    /// scheduled ones failed since it started.
    pub fn own_backups(&self) -> (Option<Timestamp>, u64) {
        self.inner.own_backups.last()
    }

    /// What the director says about itself.
    pub async fn status(&self) -> ServiceResult<DirectorStatus> {
        self.inner.status().await
    }

    /// The newest `limit` lines of the audit log that match (at most 1000), newest first.
    pub async fn audit(&self, limit: u32, filter: &AuditFilter) -> ServiceResult<Vec<AuditEntry>> {
        Ok(self.inner.records.audit_log(limit, filter).await?)
    }

    /// Connects with an API server of the cluster, through one of its machines, as the caller.
    pub(crate) async fn api_server(
        &self,
        cluster: &ClusterName,
        caller: &Caller,
    ) -> ServiceResult<ApiServer> {
        self.inner.api_server(cluster, caller).await
    }

    /// Adds a line to the audit log: what a caller asked for, or what came of it.
    pub async fn note(&self, caller: &Caller, act: Act<'_>) -> ServiceResult<()> {
        self.inner.note(caller, act).await
    }

    /// Who the operator of a certificate is at the moment; `None` when it is nobody's, or was revoked.
    pub async fn caller(&self, name: &str) -> ServiceResult<Option<Caller>> {
        self.inner.caller(name).await
    }

    /// Watches whether an operator keeps a role and the generation of its certificate counts, for what
    /// goes on after its request was let in.
    pub fn standing(&self, operator: &str, needed: Role, generation: u32) -> Standing {
        let records = self.inner.records.clone();
        Standing::new(records, self.inner.ca.clone(), operator, needed, generation)
    }

    /// All operators, by name; those that were revoked too.
    pub async fn operators(&self) -> ServiceResult<Vec<Operator>> {
        Ok(self.inner.records.list().await?)
    }

    /// One operator.
    pub async fn operator(&self, name: &str) -> ServiceResult<Operator> {
        self.inner.operator(name).await
    }

    /// Adds an operator; returns its record and a certificate for the key in the request (PKCS#10,
    /// DER). A name that was given out before is refused, also one that was revoked.
    pub async fn add_operator(
        &self,
        name: OperatorName,
        role: Role,
        request_der: &[u8],
        caller: &Caller,
    ) -> ServiceResult<(Operator, String)> {
        allow(caller, Role::Admin, "add operators")?;
        self.inner
            .add_operator(name, role, request_der, caller)
            .await
    }

    /// Gives an operator another role, from its next request on. The last admin stays one.
    pub async fn set_role(
        &self,
        name: &str,
        role: Role,
        caller: &Caller,
    ) -> ServiceResult<Operator> {
        allow(caller, Role::Admin, "change roles")?;
        self.inner.set_role(name, role, caller).await
    }

    /// Shuts an operator out, at once and for good. The last admin cannot be.
    pub async fn revoke_operator(&self, name: &str, caller: &Caller) -> ServiceResult<Operator> {
        allow(caller, Role::Admin, "revoke operators")?;
        self.inner.revoke_operator(name, caller).await
    }
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
        let act = Act {
            action: "cluster.credentials",
            subject: &format!("cluster/{name}"),
            ..Act::default()
        };
        self.note(caller, act).await?;
        let life_ms = u64::try_from(pki::OPERATOR_CERTIFICATE_LIFE.as_millis()).unwrap_or(u64::MAX);
        let now_ms = Timestamp::now().unix_ms();
        Ok(Credentials {
            kubeconfig,
            expires_at: Timestamp::from_unix_ms(now_ms.saturating_add(life_ms)),
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
