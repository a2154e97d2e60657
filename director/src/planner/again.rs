//! When a task has to be planned anew, and what a repair in the middle of it wants. Pure.
//!
//! A repair never waits for a change of its whole cluster, and never fights it: the change that runs takes it in.
//! The machine is condemned in its record; the task finds that its plan does not fit any more, and goes on with
//! one that replaces the dead machine first. Target and consent stay those that were approved.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::id::{Incarnation, MachineName};

use crate::kubernetes::facts::minor_of;
use crate::model::{
    Action, Cluster, Machine, MachinePhase, PlanStep, StepState, Task, TaskKind, TaskState,
    Upgrade, Wanted,
};

/// Whether the task that works on a cluster takes in the repair of a machine that serves nobody.
pub fn takes_repairs(task: &Task) -> bool {
    let changes = matches!(task.kind, TaskKind::UpdateCluster | TaskKind::RepairCluster);
    let goes_on = matches!(
        task.state,
        TaskState::Queued
            | TaskState::Running
            | TaskState::Pausing
            | TaskState::Paused
            | TaskState::Waiting
    );
    changes && goes_on
}

/// Wants a machine that serves nobody replaced in the middle of a change: by what the change makes of it, or by
/// what it was where API servers are not as new as that yet. `machines` are those of its cluster.
pub fn condemn_within(machine: &mut Machine, machines: &[Machine]) {
    if machine.phase == MachinePhase::Planned {
        return;
    }
    machine.condemned = true;
    machine.reboot = None;
    let members = machines.iter().filter(|m| m.role.is_control_plane());
    let oldest = members.filter_map(Machine::api_minor).min();
    match &machine.wanted {
        Some(Wanted::Gone) => {}
        Some(Wanted::Reborn {
            kubernetes_version, ..
        }) if machine.role.is_control_plane() || minor_of(kubernetes_version) <= oldest => {}
        // It goes where it was to go anyway, at the same minor.
        Some(Wanted::Refitted {
            stemcell,
            kubernetes_version,
            ..
        }) => {
            let (stemcell, kubernetes_version) = (stemcell.clone(), kubernetes_version.clone());
            machine.wanted = Some(Wanted::Reborn {
                incarnation: Incarnation(machine.incarnation.0.saturating_add(1)),
                stemcell,
                kubernetes_version,
                size: machine.size,
                because: None,
            });
        }
        Some(Wanted::Reborn { .. }) | None => machine.wanted = Some(machine.as_it_is()),
    }
}

/// The machines of a cluster for a repair that restarts some of them: of these nothing else is wanted now, whatever a
/// change that has not come to its end wanted of them.
pub fn as_they_are(machines: &[Machine]) -> Vec<Machine> {
    let mut machines = machines.to_vec();
    for machine in machines.iter_mut().filter(|m| m.reboot.is_some()) {
        machine.wanted = None;
    }
    machines
}

/// Gives up the replacement of a machine that came back, if it was to become nothing but itself.
pub fn spare(machine: &mut Machine) {
    if machine.wanted == Some(machine.as_it_is()) {
        machine.stay();
    }
}

/// Where a change leads.
#[derive(Debug, Clone, Copy)]
pub struct Aim<'a> {
    /// What machines are to be made from.
    pub stemcell: &'a str,
    /// Whether workers are too: there are legs of upgrades that leave them as they are.
    pub workers: bool,
}

impl<'a> Aim<'a> {
    /// Where the change of a cluster leads.
    pub fn of(cluster: &'a Cluster) -> Self {
        let leg = cluster.upgrade.as_ref().and_then(Upgrade::leg);
        Self {
            stemcell: &cluster.stemcell,
            // A kubelet is never newer than what an API server emulates.
            workers: cluster.emulates.is_none() && leg.is_none_or(|leg| leg.workers),
        }
    }

    /// Whether the change has left a machine as it was, since it was repaired before its turn.
    pub fn leaves_behind(&self, machine: &Machine) -> bool {
        let turn = machine.role.is_control_plane() || self.workers;
        let as_it_was = machine.wanted.is_none() && machine.phase == MachinePhase::Ready;
        turn && as_it_was && machine.runs() != self.stemcell
    }
}

/// What a plan does to one machine.
#[derive(Default)]
struct Part<'a> {
    drain: Option<&'a PlanStep>,
    fence: Option<&'a PlanStep>,
    delete: Option<&'a PlanStep>,
    reboot: Option<&'a PlanStep>,
}

impl Part<'_> {
    fn goes(&self, task: &Task) -> bool {
        self.delete.is_some_and(|step| !done(task, step))
    }

    fn came_back(&self, task: &Task, machine: &Machine) -> bool {
        let shut_out = self.fence.is_some_and(|step| done(task, step));
        self.goes(task) && shut_out && !machine.fenced
    }
}

fn done(task: &Task, step: &PlanStep) -> bool {
    let record = task.steps.get(&step.key);
    record.is_some_and(|record| record.state == StepState::Succeeded)
}

fn parts(task: &Task) -> BTreeMap<&MachineName, Part<'_>> {
    let mut parts: BTreeMap<&MachineName, Part<'_>> = BTreeMap::new();
    for step in &task.current().steps {
        match &step.action {
            Action::Drain { machine, .. } => parts.entry(machine).or_default().drain = Some(step),
            Action::Fence { machine } => parts.entry(machine).or_default().fence = Some(step),
            Action::DeleteMachine { machine } => {
                parts.entry(machine).or_default().delete = Some(step);
            }
            Action::RebootMachine { machine, .. } => {
                parts.entry(machine).or_default().reboot = Some(step);
            }
            _ => {}
        }
    }
    parts
}

/// The machines that a task's plan takes away or brings into service.
pub fn replaced(task: &Task) -> BTreeSet<MachineName> {
    let steps = task.current().steps.iter();
    steps
        .filter_map(|step| match &step.action {
            Action::DeleteMachine { machine } | Action::AwaitNode { machine, .. } => {
                Some(machine.clone())
            }
            _ => None,
        })
        .collect()
}

/// Machines for which a task's plan has gates that were not open yet.
pub fn unasked(task: &Task) -> BTreeSet<MachineName> {
    let steps = task.current().steps.iter();
    steps
        .filter_map(|step| match &step.action {
            Action::AwaitGates { machine } if !done(task, step) => Some(machine.clone()),
            _ => None,
        })
        .collect()
}

/// Machines that a task's plan was to shut out, and that have come back before that.
pub fn spared(task: &Task, machines: &[Machine]) -> BTreeSet<MachineName> {
    let parts = parts(task);
    let came_back = |machine: &&Machine| {
        let part = parts.get(&machine.name);
        part.is_some_and(|part| part.came_back(task, machine))
    };
    let machines = machines.iter().filter(came_back);
    machines.map(|machine| machine.name.clone()).collect()
}

/// Whether what is left of a task's plan still fits its machines: none was condemned that it would drain or does
/// not touch, none is to be restarted of which it does not know, and none has come back that it was about to shut out. `aim` is where its change leads, `held` are those
/// that an operator keeps.
pub fn fits(task: &Task, aim: Aim<'_>, machines: &[Machine], held: &BTreeSet<MachineName>) -> bool {
    let changes = matches!(task.kind, TaskKind::UpdateCluster | TaskKind::RepairCluster);
    if !changes {
        return true;
    }
    let parts = parts(task);
    let fits = |machine: &Machine| {
        let held = held.contains(&machine.name);
        let dead = machine.condemned && !machine.fenced && !held;
        let reboots = machine.reboot.is_some() && !held;
        let Some(part) = parts.get(&machine.name) else {
            return !dead && !reboots;
        };
        let rebooted = part.goes(task) || part.reboot.is_some();
        let drained = part.drain.is_none_or(|step| done(task, step));
        let at_once = part.goes(task) && drained;
        !part.came_back(task, machine) && (!dead || at_once) && (!reboots || rebooted)
    };
    let complete = || task.current().steps.iter().all(|step| done(task, step));
    let behind = || {
        let repaired = task.kind == TaskKind::UpdateCluster && task.again.is_some();
        repaired && machines.iter().any(|m| aim.leaves_behind(m)) && complete()
    };
    machines.iter().all(fits) && !behind()
}
