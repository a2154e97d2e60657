//! What is done about a task that is cancelled, or has failed.
//!
//! A cancelled create is removed. A cancelled update goes back to service: machines that still are what they
//! were stay so, those whose old incarnation is gone already become what was wanted, and machines that were
//! only about to join are given up. API servers that were to stop emulating an older minor go on with it when none
//! of them was begun with, and all stop otherwise. Kubelet settings and components that are not proven are given up in
//! both cases: machines keep to those with which they were in service, or get them again, until somebody orders a change.
//! A machine that a failed update has made anew, and that is not through its gates, is made anew once more as it was, and
//! keeps to that in the same way. One of the control plane is only where others hold quorum and its data can go back: the
//! minors of Kubernetes and etcd are the same. A worker that a failed update has added, and that is not through its gates,
//! goes again, and those that were to go for it stay. What a machine was is in its record ([`Machine::former`]) from when its
//! former incarnation is gone.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, Incarnation, MachineName};

use super::{World, check};
use crate::kubernetes::facts::minor_of;
use crate::model::{
    Action, Cluster, Former, Machine, MachinePhase, Plan, PlanStep, StepKey, StepState, Task,
    Wanted,
};
use crate::planner::{
    self, DesiredState, Observed, ObservedMachine, Verb, inputs, legs, machine_key,
};
use crate::rollout::{EffectError, Rollback};
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

    /// Has machines keep to what is proven, and plans their way back to it: to kubelet settings and components in
    /// place, and to what they were by being made anew once more.
    pub(super) async fn plan_way_back(&self, task: &Task) -> Result<Rollback, EffectError> {
        let name = &task.cluster;
        let cluster = self.changing(name).await?;
        let found = self.observe(name).await?.machines;
        let mut machines = self.records.machines_of(name.as_str()).await?;
        let voters = machines.iter().filter(|m| m.votes() && !m.is_surplus());
        let voters = voters.count();
        let mut commit = Commit::default();
        let (mut anew, mut left) = (BTreeSet::new(), Vec::new());
        for machine in &mut machines {
            let before = machine.clone();
            if let Some(former) = on_trial(machine, task) {
                match self.keeps(machine, &former, voters) {
                    Some(why) => left.push(format!(
                        "{} is not rolled back, since {why}; it is left as it is, and once that is mended `windlass \
                         task retry {}` goes on with it",
                        machine.name, task.id
                    )),
                    None => {
                        go_back(machine, &former, found.contains_key(&machine.name));
                        anew.insert(machine.name.clone());
                    }
                }
            }
            if added(machine, task) {
                if machine.role.is_control_plane() {
                    left.push(format!(
                        "{} stays, since a control plane grows as a whole; once what is in its way is mended `windlass \
                         task retry {}` goes on with it",
                        machine.name, task.id
                    ));
                } else {
                    (machine.wanted, machine.reboot) = (Some(Wanted::Gone), None);
                }
            }
            pin(&cluster, machine, task);
            if *machine != before {
                commit.put(machine)?;
            }
        }
        let pools = machines.iter().filter(|m| goes_again(m));
        let pools: BTreeSet<_> = pools.filter_map(|m| m.role.pool()).cloned().collect();
        for machine in &mut machines {
            // It was to go for one that goes itself now.
            let of = machine.role.pool().is_some_and(|pool| pools.contains(pool));
            let there = found.get(&machine.name).is_some_and(|found| {
                found.available() && !found.cordoned && found.incarnation == machine.incarnation
            });
            if of && there && machine.is_surplus() && !machine.additional {
                machine.stay();
                commit.put(machine)?;
            }
        }
        self.records.commit(commit).await?;
        let machines = self.records.machines_of(name.as_str()).await?;
        let going = machines.iter().filter(|machine| goes_again(machine));
        let going: BTreeSet<MachineName> = going.map(|machine| machine.name.clone()).collect();
        // Of one that is gone already and has become what it was, nothing else tells.
        let lost = machines
            .iter()
            .filter(|machine| machine.pinned && machine.started.is_none())
            .map(|machine| machine.name.clone());
        anew.extend(lost);
        if anew.is_empty() && going.is_empty() {
            return Ok(Rollback { plan: None, left });
        }
        let (mut desired, mut observed) = (
            self.desired(&cluster, &machines)?,
            self.observe(name).await?,
        );
        if let DesiredState::Present { gates, .. } = &mut desired.state {
            gates.clear();
        }
        let there = observed.machines.clone();
        let names = anew.union(&going).cloned().collect();
        planner::narrow(&mut desired, &mut observed, &names, &BTreeSet::new());
        let there = there.into_iter().filter(|(name, _)| going.contains(name));
        observed.machines.extend(there);
        observed.surplus = going;
        let plan = planner::plan(&desired, &observed)
            .map_err(|error| EffectError::of(error.class(), &error))?;
        check(&plan, &desired, &observed)?;
        let plan = Some(renamed(plan, ROLLBACK));
        Ok(Rollback { plan, left })
    }

    /// Why a machine does not go back to what it was; `None` when it does. `voters` are the members of etcd.
    fn keeps(&self, machine: &Machine, former: &Former, voters: usize) -> Option<String> {
        let gone = |stemcell: &str| format!("stemcell {stemcell} is not in the catalogue any more");
        let Ok(to) = self.stemcells.get(&former.stemcell) else {
            return Some(gone(&former.stemcell));
        };
        if !machine.role.is_control_plane() {
            return None;
        }
        if voters < 2 {
            return Some("it is the only machine of its control plane".to_owned());
        }
        let (was, is) = (&former.kubernetes_version, &machine.kubernetes_version);
        if minor_of(was).is_none() || minor_of(was) != minor_of(is) {
            return Some(format!("control planes do not go back from {is} to {was}"));
        }
        match self.stemcells.get(machine.runs()) {
            Ok(from) => legs::etcd_refuses(&from, &to),
            Err(_) => Some(gone(machine.runs())),
        }
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

/// Whether a task has begun to make a machine that was not there before, and that is not through its gates.
fn added(machine: &Machine, task: &Task) -> bool {
    let key = machine_key(&machine.name, Verb::Create);
    let begun = task.steps.keys().any(|begun| begun.0.ends_with(&*key.0));
    machine.additional && begun && !machine.is_surplus()
}

/// Whether a worker that was not there before its change goes again.
fn goes_again(machine: &Machine) -> bool {
    machine.additional && machine.is_surplus() && !machine.role.is_control_plane()
}

/// What a machine was before a task made it anew as something else that is not through its gates; `None` where the task
/// has not, or where it is.
fn on_trial(machine: &Machine, task: &Task) -> Option<Former> {
    let begun = |verb| {
        let key = machine_key(&machine.name, verb);
        task.steps.keys().any(|begun| begun.0.ends_with(&*key.0))
    };
    let awaited = |step: &&PlanStep| match &step.action {
        Action::AwaitNode { machine: of, .. } | Action::AwaitGates { machine: of } => {
            *of == machine.name
        }
        _ => false,
    };
    let done = |step: &PlanStep| {
        let record = task.steps.get(&step.key);
        record.is_some_and(|record| record.state == StepState::Succeeded)
    };
    let through = task.current().steps.iter().filter(awaited).all(done);
    let anew = begun(Verb::Delete) || begun(Verb::Create);
    let former = machine.former.clone()?;
    (anew && !through && !machine.is_surplus()).then_some(former)
}

/// Wants a machine made anew as it was. `exists` says whether there is anything of it.
fn go_back(machine: &mut Machine, former: &Former, exists: bool) {
    machine.wanted = Some(machine.as_it_was(former));
    machine.reboot = None;
    machine.pinned = true;
    if machine.phase == MachinePhase::Planned && !exists {
        // Nothing has to be deleted first.
        machine.take_over();
        machine.former = None;
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
