//! What is done about a task that is cancelled, or has failed.
//!
//! A cancelled create is removed. A cancelled update goes back to service: machines that still are what they
//! were stay so, those whose old incarnation is gone already become what was wanted, and machines that were
//! only about to join are given up. API servers that were to stop emulating an older minor go on with it when none
//! of them was begun with, and all stop otherwise. Kubelet settings and components that are not proven are given up in
//! both cases: machines keep to those with which they were in service, or get them again, until somebody orders a change.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, Incarnation, MachineName};

use super::{World, check};
use crate::model::{Cluster, Machine, MachinePhase, Plan, StepKey, Task, Wanted};
use crate::planner::{self, DesiredState, Observed, ObservedMachine, Verb, inputs, machine_key};
use crate::rollout::EffectError;
use crate::store::Commit;

/// Begins the keys of a plan that ends a cancelled task, so that none is taken for a step of the first plan.
pub(super) const CANCEL: &str = "cancel/";
/// The same of one that takes back what has failed.
const ROLLBACK: &str = "rollback/";

impl World {
    pub(super) async fn plan_removal(&self, cluster: &ClusterName) -> Result<Plan, EffectError> {
        let observed = self.observe(cluster).await?;
        // The cancel is the order: it names the disks that this create has made.
        let desired = inputs::absent(cluster, observed.disks.keys().cloned().collect());
        let plan = planner::plan(&desired, &observed)
            .map_err(|error| EffectError::of(error.class(), &error))?;
        check(&plan, &desired, &observed)?;
        Ok(plan)
    }

    /// Gives up what was wanted of machines that are not touched yet, and plans the way back to service.
    pub(super) async fn plan_return(&self, task: &Task) -> Result<Plan, EffectError> {
        let name = &task.cluster;
        let cluster = self.changing(name).await?;
        let observed = self.observe(name).await?;
        let mut machines = self.records.machines_of(name.as_str()).await?;
        let mut commit = Commit::default();
        // A control plane of an even size is worse than one of the smaller: all who join stay, or none.
        let joined = |m: &Machine| !joining(m) || m.votes();
        let all = machines
            .iter()
            .filter(|m| m.role.is_control_plane())
            .all(joined);
        for machine in &mut machines {
            let before = machine.clone();
            machine.wanted = give_up(machine, &observed, all);
            machine.reboot = None;
            // Whether it serves anybody is judged anew.
            machine.condemned &= machine.wanted.is_some();
            machine.keep.take_if(|_| machine.wanted.is_none());
            pin(&cluster, machine, task);
            if *machine != before {
                commit.put(machine)?;
            }
        }
        let stay = machines
            .iter()
            .filter(|m| m.role.is_control_plane() && !m.is_surplus());
        let count = u32::try_from(stay.count()).unwrap_or(u32::MAX);
        let mut changed = cluster.clone();
        changed.spec.control_plane.count = count;
        if let Some(minor) = self.unraised(task, &cluster, &machines)? {
            changed.emulates = Some(minor);
        }
        if changed != cluster {
            commit.put(&changed)?;
        }
        let cluster = changed;
        self.records.commit(commit).await?;
        let machines = self.records.machines_of(name.as_str()).await?;
        let (mut desired, observed) = (
            self.desired(&cluster, &machines)?,
            self.observe(name).await?,
        );
        // What is begun is finished, whatever users' gates say: they are there to stop, and it has stopped.
        if let DesiredState::Present { gates, .. } = &mut desired.state {
            gates.clear();
        }
        let plan = planner::plan(&desired, &observed)
            .map_err(|error| EffectError::of(error.class(), &error))?;
        check(&plan, &desired, &observed)?;
        Ok(renamed(plan, CANCEL))
    }

    /// Has machines keep to the kubelet settings and components that are proven, and plans their way back to them.
    pub(super) async fn plan_way_back(&self, task: &Task) -> Result<Option<Plan>, EffectError> {
        let name = &task.cluster;
        let cluster = self.changing(name).await?;
        let mut machines = self.records.machines_of(name.as_str()).await?;
        let mut commit = Commit::default();
        for machine in &mut machines {
            let before = machine.clone();
            pin(&cluster, machine, task);
            if *machine != before {
                commit.put(machine)?;
            }
        }
        self.records.commit(commit).await?;
        let machines = self.records.machines_of(name.as_str()).await?;
        let lost: BTreeSet<MachineName> = machines
            .iter()
            .filter(|machine| machine.pinned && machine.started.is_none())
            .map(|machine| machine.name.clone())
            .collect();
        if lost.is_empty() {
            return Ok(None);
        }
        let (mut desired, mut observed) = (
            self.desired(&cluster, &machines)?,
            self.observe(name).await?,
        );
        if let DesiredState::Present { gates, .. } = &mut desired.state {
            gates.clear();
        }
        planner::narrow(&mut desired, &mut observed, &lost, &BTreeSet::new());
        let plan = planner::plan(&desired, &observed)
            .map_err(|error| EffectError::of(error.class(), &error))?;
        check(&plan, &desired, &observed)?;
        Ok(Some(renamed(plan, ROLLBACK)))
    }

    pub(super) async fn changing(&self, name: &ClusterName) -> Result<Cluster, EffectError> {
        self.records.get(name.as_str()).await?.ok_or_else(|| {
            EffectError::new(
                ErrorClass::Bug,
                format!("cluster {name} is not in the store although it is being changed"),
            )
        })
    }
}

/// Has a machine keep to its proven kubelet settings and components when it is told others. What the task has begun to
/// tell it is told anew, whatever came of it.
fn pin(cluster: &Cluster, machine: &mut Machine, task: &Task) {
    let refitted = machine.is_refitted();
    if refitted {
        machine.stay();
    }
    let proven = machine.proven.as_ref();
    let told = proven.is_some_and(|proven| *proven != inputs::settings(cluster, machine));
    if machine.pinned || !(told || refitted) {
        return;
    }
    machine.pinned = true;
    let key = machine_key(&machine.name, Verb::Configure);
    if task.steps.keys().any(|begun| begun.0.ends_with(&*key.0)) {
        machine.configured = None;
        machine.started = None;
    }
}

/// What is still wanted of a machine when its update is cancelled.
fn give_up(machine: &Machine, observed: &Observed, all: bool) -> Option<Wanted> {
    let found: &BTreeMap<MachineName, ObservedMachine> = &observed.machines;
    let exists = found
        .get(&machine.name)
        .is_some_and(|found| found.incarnation == machine.incarnation && found.complete)
        // One that was shut out does not come back as it was.
        && !machine.fenced;
    let keeps = machine.role.is_control_plane() && (machine.joined.is_none() || all);
    match &machine.wanted {
        _ if joining(machine) && !keeps => Some(Wanted::Gone),
        // Its member was removed: it does not come back with its data.
        Some(Wanted::Gone) if machine.role.is_control_plane() && !machine.votes() => {
            Some(Wanted::Gone)
        }
        Some(Wanted::Reborn { .. } | Wanted::Gone) if exists => None,
        wanted => wanted.clone(),
    }
}

/// Whether a machine was never in service.
fn joining(machine: &Machine) -> bool {
    let joined = machine.phase == MachinePhase::Ready || machine.labelled.is_some();
    machine.incarnation == Incarnation::FIRST && !joined
}

/// The plan with other keys, so that none of its steps is taken for one of another plan of its task.
pub(super) fn renamed(mut plan: Plan, prefix: &str) -> Plan {
    let rename = |key: &mut StepKey| *key = format!("{prefix}{key}").into();
    for step in &mut plan.steps {
        rename(&mut step.key);
        step.after.iter_mut().for_each(rename);
    }
    plan
}
