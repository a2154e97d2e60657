//! The world that steps act on: a provider, agents behind the gateway, and Kubernetes APIs.
//!
//! # Invariants
//! * What has an effect is found again by name after a crash: machines by name and incarnation, agent steps
//!   by task, key and attempt, objects by name.
//! * An incarnation may connect from before it is created until before it is deleted, and never again.
//! * Certificates of a machine are written down before the machine sees them, and are issued anew only once they
//!   are due or somebody orders it.
//!
//! # After a crash
//! Nothing is kept in memory that the store, the provider, agents and API servers do not have.
//!
//! # Not here
//! Order, retries and journal (the rollout above).

mod again;
mod agents;
mod asked;
mod cancel;
mod context;
mod emulation;
mod etcd;
mod evict;
mod gates;
mod handover;
mod keep;
mod kube;
mod lease;
mod legs;
mod machines;
mod node;
mod precondition;
mod reboot;
mod refit;
mod registry;
mod rehearse;
mod renewal;
mod restore;
mod revocation;
mod rotation;
mod upgrade;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, DirectorId, MachineName};

use super::{Done, EffectError, Effects, RecordChange, Rollback, StepOrder};
use crate::artifacts::Artifacts;
use crate::epoch::CurrentEpoch;
use crate::kubernetes::facts::HostTraits;
use crate::kubernetes::render;
use crate::model::{Action, Machine, Plan, Task, TaskKind};
use crate::pki::DirectorCa;
use crate::planner;
use crate::provider::Provider;
use crate::stemcell::Catalogue;
use crate::store::Records;

pub(crate) use agents::ask;
pub use agents::{AgentFuture, Agents};
pub use asked::KubeApi;
pub use context::ClusterContext;
pub(crate) use etcd::SNAPSHOTS_KEPT;
pub use etcd::Turns;
pub use gates::JobOrder;
pub(crate) use keep::note;
pub use kube::KubeClient;
pub use lease::LeaseMark;
pub use precondition::Closings;
pub use registry::Registry;
pub(crate) use rotation::Turn;

/// Everything the steps act on.
#[derive(Debug)]
pub struct World {
    /// The store.
    pub records: Records,
    /// Makes machines, disks and endpoints.
    pub provider: Arc<dyn Provider>,
    /// Agents.
    pub agents: Arc<dyn Agents>,
    /// Kubernetes APIs.
    pub kubernetes: Arc<dyn KubeApi>,
    /// Which incarnations may connect.
    pub registry: Arc<Registry>,
    /// Stemcells.
    pub stemcells: Catalogue,
    /// What agents may fetch.
    pub artifacts: Arc<Artifacts>,
    /// What machines are told at birth.
    pub birth: Birth,
    /// What the provider's machines cannot do.
    pub host: HostTraits,
    /// Whose turn it is to take a member of etcd out of service.
    pub etcd_turns: Turns,
    /// Which nodes are about to be closed.
    pub closings: Closings,
}

/// What every machine of this director is told at birth.
#[derive(Debug, Clone)]
pub struct Birth {
    /// The director's id.
    pub director: DirectorId,
    /// Where its gateway is.
    pub directors: Vec<std::net::SocketAddr>,
    /// Its CA, whose newest root a machine trusts from its birth.
    pub ca: Arc<DirectorCa>,
    /// Its epoch.
    pub epoch: CurrentEpoch,
}

impl Effects for World {
    fn perform(&self, order: StepOrder) -> BoxFuture<'_, Result<Done, EffectError>> {
        Box::pin(async move {
            match &order.action {
                // What removes or only looks at the provider needs nothing of the cluster's secrets or
                // stemcell, and has to work without them.
                Action::AttachDisk { disk, machine } => self.attach_disk(disk, machine).await,
                Action::Fence { machine } => self.fence(machine, &order).await,
                Action::DeleteMachine { machine } => self.delete_machine(machine, &order).await,
                Action::DeleteDisk { disk } => self.delete_disk(disk).await,
                Action::DeleteEndpoint => self.delete_endpoint(&order.cluster).await,
                Action::ForgetCluster => Ok(self.forget(&order.cluster)),
                Action::ForgetMachine { machine } => Ok(forget_machine(machine)),
                Action::Checkpoint { .. } => Ok(Done::default()),
                Action::UpgradeAgent { machine, stemcell } => {
                    self.upgrade_agent(machine, stemcell, &order).await
                }
                Action::EnsureEndpoint
                | Action::AwaitApi
                | Action::AwaitGates { .. }
                | Action::LeaveEndpoint { .. }
                | Action::JoinEndpoint { .. }
                | Action::Drain { .. }
                | Action::Uncordon { .. }
                | Action::StopComponents { .. }
                | Action::AddRoutes { .. }
                | Action::PruneRoutes { .. }
                | Action::CreateDisk { .. }
                | Action::CreateMachine { .. }
                | Action::AwaitAgent { .. }
                | Action::MountDisk { .. }
                | Action::GrowDisk { .. }
                | Action::Configure { .. }
                | Action::StageComponents { .. }
                | Action::StartComponents { .. }
                | Action::AwaitControlPlane { .. }
                | Action::AddMember { .. }
                | Action::StartMember { .. }
                | Action::PromoteMember { .. }
                | Action::MoveLeader { .. }
                | Action::SaveSnapshot { .. }
                | Action::RemoveMember { .. }
                | Action::StopApi { .. }
                | Action::StopMember { .. }
                | Action::RestoreMember { .. }
                | Action::SetMemberAside { .. }
                | Action::RestartKubelet { .. }
                | Action::RebootMachine { .. }
                | Action::SettleNodes
                | Action::RenewCertificates { .. }
                | Action::SpreadTrust
                | Action::RewriteSecrets
                | Action::AwaitDns
                | Action::ApplyAddons
                | Action::AwaitNode { .. }
                | Action::DropNode { .. } => {
                    let context = self.context(&order.cluster).await?;
                    self.perform_on(&context, &order).await
                }
            }
        })
    }

    fn plan_cleanup<'a>(&'a self, task: &'a Task) -> BoxFuture<'a, Result<Plan, EffectError>> {
        Box::pin(async move {
            match task.kind {
                TaskKind::CreateCluster | TaskKind::DeleteCluster => {
                    self.plan_removal(&task.cluster).await
                }
                TaskKind::UpdateCluster | TaskKind::RepairCluster => self.plan_return(task).await,
                TaskKind::RotateSecrets => self.plan_halt(task).await,
                TaskKind::UpgradeAgents
                | TaskKind::RestoreCluster
                | TaskKind::RenewCertificates => Err(EffectError::new(
                    ErrorClass::Bug,
                    format!("{} leaves nothing to clean up", task.kind),
                )),
            }
        })
    }

    fn fits<'a>(&'a self, task: &'a Task) -> BoxFuture<'a, Result<bool, EffectError>> {
        Box::pin(self.still_fits(task))
    }

    fn plan_again<'a>(&'a self, task: &'a Task) -> BoxFuture<'a, Result<Plan, EffectError>> {
        Box::pin(self.plan_on(task))
    }

    fn plan_next<'a>(&'a self, task: &'a Task) -> BoxFuture<'a, Result<Option<Plan>, EffectError>> {
        Box::pin(async move {
            match task.kind {
                TaskKind::RotateSecrets => self.plan_stage(task).await,
                TaskKind::UpdateCluster => self.plan_leg(task).await,
                TaskKind::CreateCluster
                | TaskKind::DeleteCluster
                | TaskKind::RepairCluster
                | TaskKind::UpgradeAgents
                | TaskKind::RestoreCluster
                | TaskKind::RenewCertificates => Ok(None),
            }
        })
    }

    fn plan_rollback<'a>(&'a self, task: &'a Task) -> BoxFuture<'a, Result<Rollback, EffectError>> {
        Box::pin(self.plan_way_back(task))
    }
}

impl World {
    /// A step that has to know its cluster.
    async fn perform_on(
        &self,
        context: &ClusterContext,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        match &order.action {
            Action::EnsureEndpoint => self.ensure_endpoint(context).await,
            Action::CreateDisk { disk, machine } => self.create_disk(context, disk, machine).await,
            Action::CreateMachine { machine } => self.create_machine(context, machine).await,
            Action::AwaitAgent { machine } => self.await_agent(context, machine, order.limit).await,
            Action::MountDisk { machine } => self.mount_disk(context, machine, order).await,
            Action::GrowDisk { disk, machine } => {
                self.grow_disk(context, disk, machine, order).await
            }
            Action::Configure { machine } => {
                let mut done = self.configure(context, machine, order, true).await?;
                done.records.extend(self.heartbeat(context, machine).await?);
                Ok(done)
            }
            Action::AddRoutes { machine } | Action::PruneRoutes { machine } => {
                self.configure(context, machine, order, false).await
            }
            Action::StopComponents { machine } => self.stop(context, machine, order).await,
            Action::LeaveEndpoint { machine } => self.leave_endpoint(context, machine).await,
            Action::JoinEndpoint { machine } => self.join_endpoint(context, machine).await,
            Action::AwaitApi => self.kubernetes.await_api(context).await,
            Action::AwaitGates { machine } => {
                let keeper = gates::Keeper {
                    context,
                    kubernetes: self.kubernetes.as_ref(),
                    order,
                };
                let mut done = keeper.open(machine).await?;
                done.records.extend(context.proven(machine)?);
                Ok(done)
            }
            Action::Drain { machine, .. } => self.drain(context, machine, order).await,
            Action::Uncordon { machine, node } => {
                self.kubernetes.uncordon(context, machine, node).await
            }
            Action::StageComponents { machine, stemcell } => {
                self.stage_components(context, machine, stemcell, order)
                    .await
            }
            Action::StartComponents { machine } => self.start(context, machine, order).await,
            Action::AwaitControlPlane { machine } => {
                self.await_control_plane(context, machine, order).await
            }
            Action::AddMember { machine } => self.add_member(context, machine, order).await,
            Action::StartMember { machine } => self.start_member(context, machine, order).await,
            Action::PromoteMember { machine } => self.promote_member(context, machine, order).await,
            Action::MoveLeader { machine } => self.move_leader(context, machine, order).await,
            Action::SaveSnapshot { machine } => self.save_snapshot(context, machine, order).await,
            Action::RemoveMember { machine } => self.remove_member(context, machine, order).await,
            Action::StopApi { machine } => {
                if context.machine(machine)?.is_surplus() {
                    self.others_serve(context, machine, order).await?;
                }
                let stop = render::stop_units(&render::API_UNITS);
                self.stop_for_good(context, machine, order, stop).await
            }
            Action::StopMember { machine } => {
                let stop = render::stop_units(&render::MEMBER_UNITS);
                self.stop_for_good(context, machine, order, stop).await
            }
            Action::RestoreMember {
                machine,
                source,
                members,
            } => {
                self.restore_member(context, machine, source, members, order)
                    .await
            }
            Action::SetMemberAside { machine } => {
                self.set_member_aside(context, machine, order).await
            }
            Action::RestartKubelet { machine } => {
                self.restart_kubelet(context, machine, order).await
            }
            Action::RebootMachine { machine, boots } => {
                self.reboot(context, machine, *boots, order).await
            }
            Action::SettleNodes => self.settle_nodes(context, order).await,
            Action::RenewCertificates { machine } => self.renew(context, machine, order).await,
            Action::ApplyAddons => self.kubernetes.apply_addons(context).await,
            Action::SpreadTrust => self.spread_trust(context, order).await,
            Action::RewriteSecrets => {
                self.kubernetes
                    .rewrite_secrets(context, &order.progress)
                    .await
            }
            Action::AwaitDns => self.kubernetes.await_dns(context).await,
            Action::AwaitNode { machine, .. } => {
                let kubernetes = &self.kubernetes;
                let mut done = kubernetes.await_node(context, machine, order.limit).await?;
                self.await_balancers(context, machine, order).await?;
                // Where gates stand, these have to be open too before there is no way back. What has gone back waits for
                // none, and nor does what its cluster was made with.
                let gated = !context.cluster.spec.gates.is_empty();
                let record = context.machine(machine)?;
                let first = record.proven.is_none() && !record.additional;
                if !gated || record.pinned || first {
                    done.records.extend(context.proven(machine)?);
                }
                Ok(done)
            }
            Action::DropNode { machine, node } => {
                let (limit, progress) = (order.limit, &order.progress);
                self.kubernetes
                    .drop_node(context, machine, node, limit, progress)
                    .await
            }
            Action::AttachDisk { .. }
            | Action::Fence { .. }
            | Action::DeleteMachine { .. }
            | Action::DeleteDisk { .. }
            | Action::DeleteEndpoint
            | Action::ForgetMachine { .. }
            | Action::Checkpoint { .. }
            | Action::UpgradeAgent { .. }
            | Action::ForgetCluster => Err(EffectError::new(
                ErrorClass::Bug,
                format!("{} is no step on a cluster", order.action.name()),
            )),
        }
    }

    fn forget(&self, cluster: &ClusterName) -> Done {
        self.kubernetes.forget(cluster);
        Done {
            changes: vec![format!("forgot cluster {cluster}")],
            records: vec![RecordChange::Forget],
        }
    }
}

fn forget_machine(machine: &MachineName) -> Done {
    Done {
        changes: vec![format!("forgot machine {machine}")],
        records: vec![RecordChange::MachineForgotten(machine.clone())],
    }
}

/// The block device of a machine's data disk, which is known once the disk was attached.
fn data_device(machine: &Machine) -> Result<&str, EffectError> {
    machine.data_device.as_deref().ok_or_else(|| {
        let message = format!(
            "the device of the data disk of {} is not known",
            machine.name
        );
        EffectError::new(ErrorClass::Bug, message)
    })
}

/// Refuses a plan that a task made later, when it takes an API down and the approved one did not.
fn agreed(task: &Task, plan: &Plan) -> Result<(), EffectError> {
    if !plan.takes_api_down() || task.plan.takes_api_down() {
        return Ok(());
    }
    let message = format!(
        "the API of cluster {} would be down, which nobody has agreed to; order the change again with \
         --accept-downtime",
        task.cluster
    );
    Err(EffectError::new(ErrorClass::Operator, message))
}

/// Refuses a plan that breaks an invariant.
pub(crate) fn check(
    plan: &Plan,
    desired: &planner::Desired,
    observed: &planner::Observed,
) -> Result<(), EffectError> {
    crate::plan::check(plan, desired, observed).map_err(|violations| violated(&violations))
}

/// Refuses the plan of a restore that breaks an invariant.
pub(crate) fn check_restore(
    plan: &Plan,
    order: &planner::restore::RestoreOrder,
) -> Result<(), EffectError> {
    crate::plan::restore::check(plan, order).map_err(|violations| violated(&violations))
}

fn violated(violations: &[crate::plan::Violation]) -> EffectError {
    let all: Vec<String> = violations.iter().map(ToString::to_string).collect();
    EffectError::new(ErrorClass::Bug, all.join("; "))
}
