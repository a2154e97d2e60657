//! Orders to restore a cluster: its etcd made anew from a snapshot, or from what one member has.
//!
//! # Invariants
//! * Nothing is ordered that does not say what it loses, and nothing is done before an operator has accepted that.
//! * Members are looked at when the order is planned; which of them are used is part of what is approved.
//! * Changes that were under way are given up: what the cluster's spec asks for beyond what there is has to be
//!   ordered again.
//!
//! A cluster that is gone is made again first ([`remake`]).
//!
//! # Not here
//! In which order it is done (the planner), and the choice between members (`judge`).

mod drill;
mod judge;
mod remake;
mod snapshot;

pub(super) use self::remake::start;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::Instant;
use windlass_common::error::ErrorChain;
use windlass_common::id::{ClusterName, Digest, MachineName};
use windlass_common::step::{
    EtcdDataAction, EtcdDataReport, Outcome, Progress, Step, StepId, StepRequest,
};

use super::draft::random_u32;
use super::shown::Planned;
use super::{Inner, ServiceError, ServiceResult};
use crate::backup::cluster::BackupName;
use crate::gateway::DeliveryError;
use crate::kubernetes::render;
use crate::model::{
    Caller, ClusterPhase, Machine, MachinePhase, Plan, RestoreSource, Task, TaskKind, Timestamp,
};
use crate::planner::restore::RestoreOrder;
use crate::store::Commit;

/// How long a member's data may take to be looked at: a copy of 8 GiB, and a read of it.
const LOOK: Duration = Duration::from_secs(180);
/// How long a machine may take to be connected before it counts as one that does not answer: agents that were cut
/// off come back within seconds.
const CONNECT: Duration = Duration::from_secs(10);

/// What to restore from, and what the operator has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreRequest {
    /// What etcd is made from.
    pub from: RestoreFrom,
    /// The operator accepts what is lost.
    pub accept_loss: bool,
    /// The plan that was shown: another one is not carried out.
    pub plan: Option<Digest>,
    /// The cluster to make from the backup, instead of giving the one that was backed up its former state.
    pub new_name: Option<ClusterName>,
}

/// What etcd is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreFrom {
    /// A backup of the cluster.
    Backup(BackupName),
    /// A snapshot, a file where the director runs.
    Snapshot(PathBuf),
    /// The data of this machine's member; of the one that goes furthest when none is named.
    Member(Option<MachineName>),
}

/// An order that is not placed yet.
struct Drafted {
    planned: Planned,
    /// Records that change with the order.
    machines: Vec<Machine>,
}

impl Inner {
    /// What a restore would do and lose.
    pub(super) async fn plan_restore(
        &self,
        name: &ClusterName,
        request: &RestoreRequest,
    ) -> ServiceResult<Plan> {
        if let Some(remake) = self.remake(name, request).await? {
            return self.shown(self.plan_remake(&remake).await?).await;
        }
        let drafted = self.draft_restore(name, request).await?;
        self.shown(drafted.planned).await
    }

    pub(super) async fn restore_cluster(
        &self,
        name: &ClusterName,
        request: &RestoreRequest,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let _order = self.orders.lock().await;
        if let Some(remake) = self.remake(name, request).await? {
            return self.order_remake(remake, request.plan, caller).await;
        }
        let cluster = self.cluster(name).await?;
        if let Some(task) = self.unfinished(&cluster).await? {
            return Err(ServiceError::Conflict {
                message: format!(
                    "cluster {name} is being worked on by {} ({}); `windlass task cancel {}` ends that first",
                    task.id, task.kind, task.id
                ),
            });
        }
        let drafted = self.draft_restore(name, request).await?;
        let Drafted { planned, machines } = drafted;
        let Planned { plan, desired, .. } = planned;
        self.same_plan(&plan, &desired, request.plan)?;
        if !request.accept_loss {
            let losses = plan
                .restore
                .as_ref()
                .map(|forecast| forecast.losses.join("; "));
            return Err(ServiceError::Conflict {
                message: format!(
                    "restoring cluster {name} loses data, and its API is down meanwhile: {}. Order it with \
                     --accept-loss, or look at the plan with --dry-run",
                    losses.unwrap_or_default()
                ),
            });
        }
        self.world.drop_snapshots(None, Some(&plan)).await?;
        let task = self
            .new_task(TaskKind::RestoreCluster, plan, caller)
            .await?;
        let mut commit = Commit::default();
        for machine in &machines {
            commit.put(machine)?;
        }
        self.order_existing(&mut commit, cluster, &task, ClusterPhase::Updating)?;
        self.place_order(commit, task, "cluster.restore", caller)
            .await
    }

    async fn draft_restore(
        &self,
        name: &ClusterName,
        request: &RestoreRequest,
    ) -> ServiceResult<Drafted> {
        let cluster = self.cluster(name).await?;
        let machines = self.records.machines_of(name.as_str()).await?;
        let (from, source) = match &request.from {
            RestoreFrom::Member(machine) => {
                (judge::From::Member(machine.clone()), RestoreSource::Member)
            }
            RestoreFrom::Backup(backup) => {
                let taken = self.open_and_take(&cluster, backup).await?;
                taken.named(format!("backup {backup}"))
            }
            RestoreFrom::Snapshot(path) => {
                let taken = self.take_snapshot(path.clone()).await?;
                taken.named(path.display().to_string())
            }
        };
        let members = machines.iter().filter(|m| m.role.is_control_plane());
        let looks = join_all(members.map(|machine| async {
            let look = self.look_at(machine).await?;
            Ok::<_, ServiceError>((machine.name.clone(), look))
        }));
        let looks: Vec<_> = looks.await;
        let looks: BTreeMap<MachineName, judge::Look> =
            looks.into_iter().collect::<Result<_, _>>()?;
        let votes = |name: &MachineName| machines.iter().any(|m| m.name == *name && m.votes());
        let judged = judge::judge(name.as_str(), &from, &looks, votes, Timestamp::now());
        let (members, forecast) = judged.map_err(|refusal| ServiceError::Conflict {
            message: refusal.to_string(),
        })?;
        let order = RestoreOrder {
            source,
            members,
            reached: self.reached(&machines),
        };
        let (desired, observed) = self.state(&cluster, &machines).await?;
        let (mut plan, machines) = self.world.plan_restore(&cluster, &machines, &order).await?;
        plan.restore = Some(forecast);
        let planned = Planned {
            plan,
            desired,
            observed,
        };
        Ok(Drafted { planned, machines })
    }

    /// Machines whose agents are connected as what they are now.
    fn reached(&self, machines: &[Machine]) -> BTreeSet<MachineName> {
        let sessions = self.gateway.connected();
        let connected = |machine: &&Machine| {
            let session = sessions.get(&machine.name);
            session.is_some_and(|session| session.identity.incarnation == machine.incarnation)
        };
        let names = machines.iter().filter(connected).map(|m| m.name.clone());
        names.collect()
    }

    /// How far the data of a machine's member goes, or why the machine cannot be told to stop. Of one that can and
    /// that fails to say, nothing is known.
    async fn look_at(&self, machine: &Machine) -> ServiceResult<judge::Look> {
        if machine.fenced || machine.phase <= MachinePhase::Creating {
            return Ok(Err("it is shut out, or was not made yet".to_owned()));
        }
        let agents = &self.world.agents;
        let deadline = Instant::now() + CONNECT;
        let connected = agents.wait_connected(&machine.name, machine.incarnation, deadline);
        if connected.await.is_err() {
            return Ok(Err("its agent is not connected".to_owned()));
        }
        let random = random_u32()?;
        let step = Step::EtcdData(render::etcd_data_step(EtcdDataAction::Inspect));
        let request = StepRequest {
            id: StepId(format!("{}/{random:08x}", step.kind())),
            epoch: self.epoch.get(),
            deadline_ms: u64::try_from(LOOK.as_millis()).unwrap_or(u64::MAX),
            step,
            labels: BTreeMap::new(),
        };
        let (sender, mut progress) = mpsc::channel(4);
        let call = agents.run_step(&machine.name, machine.incarnation, request, sender);
        let listen = async {
            let mut said = Vec::new();
            while let Some(item) = progress.recv().await {
                if let Progress::Output { bytes, .. } = item {
                    said.extend(bytes);
                }
            }
            said
        };
        let (result, said) = tokio::join!(call, listen);
        let result = match result {
            Ok(result) => result,
            // It serves, and is no machine to be shut out for that.
            Err(error @ DeliveryError::TooOld { .. }) => {
                return Err(ServiceError::Conflict {
                    message: format!(
                        "{error}; `windlass cluster upgrade-agents {}` does it in place",
                        machine.cluster
                    ),
                });
            }
            Err(error) => return Ok(Err(ErrorChain(&error).to_string())),
        };
        let report = match result.outcome {
            Outcome::Converged | Outcome::Changed => {
                serde_json::from_slice::<EtcdDataReport>(&said).map_err(|error| error.to_string())
            }
            Outcome::Failed { message, .. }
            | Outcome::Unknown { message }
            | Outcome::Refused { message } => Err(message),
        };
        Ok(Ok(report.unwrap_or_else(|error| {
            tracing::warn!(machine = %machine.name, error, "how far its data goes is not known");
            EtcdDataReport::default()
        })))
    }
}
