//! Steps of a restore: components that stay stopped, members whose data is made anew, and nodes that find their
//! way back.
//!
//! # Invariants
//! * A restore is named by its task: a machine that has done its part of it does nothing when asked again.
//! * That etcd begins with some members is written down in the commit that ends the making of their data: the
//!   others have to join from then on.
//!
//! # Not here
//! The order (the planner); what moves on a machine's disk (the agent).

use std::collections::BTreeSet;

use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, Digest, MachineName};
use windlass_common::step::{
    EtcdDataAction, EtcdRestore, EtcdRestoreId, EtcdSource, Service, Step, UNFINISHED_RESTORES_MAX,
};

use super::context::ClusterContext;
use super::{Done, EffectError, RecordChange, StepOrder, World};
use crate::backup::record::Census;
use crate::kubernetes::render;
use crate::model::{
    Action, Cluster, Machine, MachinePhase, MemberFate, Plan, RestoreSource, Task, TaskId,
    TaskKind, TaskState,
};
use crate::planner::restore::{self, RestoreOrder};

/// How much is added to the revision of the keyspace. It has to be more than what was written since the snapshot:
/// 1 000 writes a second for eleven days; and etcd counts to nine billion times as much.
const BUMP_REVISION: u64 = 1_000_000_000;

/// The records as they are with the order: no change of the control plane is wanted any more, and what cannot be
/// told to stop is made anew.
fn give_up(machines: &[Machine], order: &RestoreOrder) -> Vec<Machine> {
    let mut machines = machines.to_vec();
    for machine in &mut machines {
        match order.members.get(&machine.name) {
            Some(MemberFate::Begins | MemberFate::Joins) => {
                machine.stay();
                machine.condemned = false;
            }
            Some(MemberFate::Replaced) => machine.condemn(true),
            None => {}
        }
    }
    machines
}

/// What its record says once the members that begin answer; what those are started with is not known here.
fn foresee(machine: &mut Machine, order: &RestoreOrder) {
    match order.members.get(&machine.name) {
        Some(MemberFate::Begins) => {
            machine.phase = MachinePhase::Ready;
            if let Some(joined) = &mut machine.joined {
                joined.alone = false;
            }
        }
        Some(MemberFate::Joins | MemberFate::Replaced) => {
            machine.joined = Some(Default::default());
            machine.started = None;
            machine.serving = false;
        }
        None => {}
    }
}

/// The snapshot that a step needs.
fn snapshot_of(action: &Action) -> Option<Digest> {
    if let Action::RestoreMember {
        source: RestoreSource::Snapshot { digest },
        ..
    } = action
    {
        Some(*digest)
    } else {
        None
    }
}

impl World {
    /// Reads what there is of a cluster.
    pub(crate) async fn census(&self, cluster: &ClusterName) -> Result<Census, EffectError> {
        let context = self.context(cluster).await?;
        self.kubernetes.census(&context).await
    }

    /// Plans an order with the records as they are, and as they will be once etcd answers again. Returns the
    /// records that change with the order, too.
    pub(crate) async fn plan_restore(
        &self,
        cluster: &Cluster,
        machines: &[Machine],
        order: &RestoreOrder,
    ) -> Result<(Plan, Vec<Machine>), EffectError> {
        let drafted = give_up(machines, order);
        let mut later = drafted.clone();
        for machine in &mut later {
            foresee(machine, order);
        }
        for at in 0..later.len() {
            if order.members.get(&later[at].name) == Some(&MemberFate::Begins) {
                let told = self.told(cluster, &later, &later[at].name)?;
                later[at].configured = Some(told.whole);
                later[at].started = Some(told.components);
            }
        }
        let mut desired = self.desired(cluster, &later)?;
        let mut then = self.observe_as(cluster, &later).await?;
        restore::narrow(&mut desired, &mut then, order);
        let restore = restore::plan(&desired, &then, order)
            .map_err(|error| EffectError::of(error.class(), &error))?;
        super::check(&restore.rest, &desired, &then)?;
        super::check_restore(&restore.plan, order)?;
        let changed = drafted
            .into_iter()
            .zip(machines)
            .filter(|(drafted, before)| drafted != *before);
        let changed = changed.map(|(drafted, _)| drafted).collect();
        Ok((restore.plan, changed))
    }

    /// Stops units of a machine, also for its next boot.
    pub(super) async fn stop_for_good(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
        units: Service,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        let result = self.send(machine, order, "", Step::Service(units)).await?;
        Ok(Done {
            changes: result.changes,
            records: Vec::new(),
        })
    }

    /// Makes the data of a member anew.
    pub(super) async fn restore_member(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        source: &RestoreSource,
        members: &[MachineName],
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        let source = match source {
            RestoreSource::Snapshot { digest } => self.share(context, digest).await?,
            RestoreSource::Member => EtcdSource::Own,
        };
        let peers = members
            .iter()
            .map(|member| context.machine_facts(member).map(render::etcd_peer))
            .collect::<Result<Vec<_>, _>>()?;
        let action = EtcdDataAction::Restore(EtcdRestore {
            restore: self.restore_id(order).await?,
            source,
            member: render::etcd_peer(context.machine_facts(name)?),
            members: peers,
            token: format!("{}-{}", order.cluster, order.task),
            bump_revision: BUMP_REVISION,
        });
        let step = Step::EtcdData(render::etcd_data_step(action));
        let result = self.send(machine, order, "", step).await?;
        let others = context
            .machines
            .iter()
            .filter(|machine| machine.role.is_control_plane() && !members.contains(&machine.name));
        let outside = |machine: &Machine| {
            [
                RecordChange::MemberRemoved(machine.name.clone()),
                RecordChange::Leaving(machine.name.clone()),
            ]
        };
        Ok(Done {
            changes: result.changes,
            records: others.flat_map(outside).collect(),
        })
    }

    /// Sets the data of a member aside that is to join.
    pub(super) async fn set_member_aside(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        let action = EtcdDataAction::SetAside(self.restore_id(order).await?);
        let step = Step::EtcdData(render::etcd_data_step(action));
        let result = self.send(machine, order, "", step).await?;
        Ok(Done {
            changes: result.changes,
            records: Vec::new(),
        })
    }

    /// Starts a kubelet again, and has its node waited for until it has said something since.
    pub(super) async fn restart_kubelet(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        // What the snapshot says of its node may be long ago, and say that it is Ready.
        let before = self.kubernetes.heartbeat(context, name).await?;
        let certificates = self.certificates(context, machine, order).await?;
        let configure = super::node::configure_step(context, machine, &certificates)?;
        let step = Step::Service(render::restart_kubelet(&configure));
        let result = self.send(machine, order, "", step).await?;
        Ok(Done {
            changes: result.changes,
            records: vec![RecordChange::Heartbeat(name.clone(), before)],
        })
    }

    /// Removes nodes that the snapshot knows and that are gone, and the director's copy of the snapshot.
    pub(super) async fn settle_nodes(
        &self,
        context: &ClusterContext,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let done = self.kubernetes.settle_nodes(context).await?;
        self.drop_snapshots(Some(&order.task), None).await?;
        Ok(done)
    }

    /// Removes the snapshots that neither `plan` nor any restore under way needs, `done` being one that does not.
    pub(crate) async fn drop_snapshots(
        &self,
        done: Option<&TaskId>,
        plan: Option<&Plan>,
    ) -> Result<(), EffectError> {
        let tasks: Vec<Task> = self.records.list().await?;
        let open = |task: &&Task| !task.state.is_over() && Some(&task.id) != done;
        let needed: BTreeSet<Digest> = tasks
            .iter()
            .filter(open)
            .map(|task| &task.plan)
            .chain(plan)
            .flat_map(|plan| &plan.steps)
            .filter_map(|step| snapshot_of(&step.action))
            .collect();
        let artifacts = self.artifacts.clone();
        tokio::task::spawn_blocking(move || artifacts.drop_private(&needed))
            .await
            .map_err(|error| EffectError::of(ErrorClass::Bug, &error))?
            .map_err(|error| EffectError::of(error.class(), &error))
    }

    /// Lets the machines of a control plane have a snapshot.
    async fn share(
        &self,
        context: &ClusterContext,
        digest: &Digest,
    ) -> Result<EtcdSource, EffectError> {
        let members = context
            .machines
            .iter()
            .filter(|m| m.role.is_control_plane());
        let names: BTreeSet<MachineName> = members.map(|machine| machine.name.clone()).collect();
        let (artifacts, digest) = (self.artifacts.clone(), *digest);
        let shared = tokio::task::spawn_blocking(move || artifacts.share(&digest, names));
        let bytes = shared
            .await
            .map_err(|error| EffectError::of(ErrorClass::Bug, &error))?
            .map_err(|error| EffectError::of(error.class(), &error))?;
        Ok(EtcdSource::Snapshot { digest, bytes })
    }

    /// The restore that a task is, with those before it that never came to their end.
    async fn restore_id(&self, order: &StepOrder) -> Result<EtcdRestoreId, EffectError> {
        let tasks: Vec<Task> = self.records.list().await?;
        let own = tasks.iter().find(|task| task.id == order.task);
        let ordered = own.map(|task| task.created_at).ok_or_else(|| {
            let message = format!("task {} is not in the store", order.task);
            EffectError::new(ErrorClass::Bug, message)
        })?;
        let mut before: Vec<&Task> = tasks
            .iter()
            .filter(|task| task.kind == TaskKind::RestoreCluster && task.cluster == order.cluster)
            .filter(|task| task.id != order.task && task.created_at <= ordered)
            .collect();
        before.sort_by_key(|task| std::cmp::Reverse(task.created_at));
        let unfinished = before
            .into_iter()
            .take_while(|task| task.state != TaskState::Succeeded)
            .take(UNFINISHED_RESTORES_MAX)
            .map(|task| task.id.to_string());
        Ok(EtcdRestoreId {
            id: order.task.to_string(),
            unfinished: unfinished.collect(),
        })
    }
}
