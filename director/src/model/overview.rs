//! A cluster at a glance: what runs, what is being done, and what comes next.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::ClusterName;

use super::{
    Cluster, ClusterPhase, Machine, MachineHealth, MachinePhase, MachineView, StepKey, StepState,
    Task, TaskId, TaskKind, TaskState, Timestamp, Wanted,
};
use crate::maintenance::WindowView;

/// Running steps that are named.
const NAMED_MAX: usize = 3;

/// A cluster at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterOverview {
    /// The cluster.
    #[schema(value_type = String)]
    pub name: ClusterName,
    /// How far it is.
    pub phase: ClusterPhase,
    /// Machines by the Kubernetes version that they run; those that do not exist yet are left out.
    pub versions: BTreeMap<String, u32>,
    /// Version that its spec asks for.
    pub wanted_version: String,
    /// Machines that serve and are healthy.
    pub ready: u32,
    /// Machines that it should have.
    pub wanted: u32,
    /// Machines that are to become others, to be made or to go.
    pub to_change: u32,
    /// The task that works on it.
    pub task: Option<TaskOverview>,
    /// What comes next, for people.
    pub next: Option<String>,
    /// Whether its machines may be changed; absent where they always may.
    pub window: Option<WindowView>,
    /// The last fault: why its last task failed, or what its machines have.
    pub fault: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A task at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskOverview {
    /// Its id.
    pub id: TaskId,
    /// What it is for.
    pub kind: TaskKind,
    /// How far it is.
    pub state: TaskState,
    /// Steps that succeeded.
    pub done: u32,
    /// All steps.
    pub all: u32,
    /// Steps that run now, a few of them.
    pub running: Vec<StepKey>,
    /// Why a running step is being tried again.
    pub trouble: Option<String>,
    /// When it was ordered.
    pub created_at: Timestamp,
}

impl ClusterOverview {
    /// A cluster with its machines, and with its task and the steps of that.
    pub fn of(
        cluster: &Cluster,
        machines: &[MachineView],
        task: Option<&Task>,
        window: Option<WindowView>,
    ) -> ClusterOverview {
        let spec = &cluster.spec;
        let workers = spec.pools.values().map(|pool| pool.count);
        let mut versions = BTreeMap::new();
        for machine in machines.iter().map(|view| &view.machine) {
            if machine.phase != MachinePhase::Planned {
                *versions.entry(version(cluster, machine)).or_insert(0) += 1;
            }
        }
        let serves = |view: &&MachineView| {
            view.machine.phase == MachinePhase::Ready && view.health == MachineHealth::Healthy
        };
        let changes = |view: &&MachineView| {
            view.machine.wanted.is_some() || view.machine.phase == MachinePhase::Planned
        };
        ClusterOverview {
            name: spec.name.clone(),
            phase: cluster.phase,
            versions,
            wanted_version: cluster.ordered().kubernetes_version,
            ready: count(machines.iter().filter(serves).count()),
            wanted: spec.control_plane.count + workers.sum::<u32>(),
            to_change: count(machines.iter().filter(changes).count()),
            next: next(machines, task),
            task: task.map(TaskOverview::of),
            window,
            fault: fault(cluster, machines, task),
            labels: spec.labels.clone(),
        }
    }
}

impl TaskOverview {
    fn of(task: &Task) -> TaskOverview {
        let (done, all) = task.progress();
        let running = || {
            task.steps
                .iter()
                .filter(|(_, record)| record.state == StepState::Running)
        };
        let trouble = running().find_map(|(_, record)| record.error.as_ref());
        TaskOverview {
            id: task.id.clone(),
            kind: task.kind,
            state: task.state,
            done: count(done),
            all: count(all),
            running: running()
                .take(NAMED_MAX)
                .map(|(key, _)| key.clone())
                .collect(),
            trouble: trouble.map(|fault| fault.message.clone()),
            created_at: task.created_at,
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn version(cluster: &Cluster, machine: &Machine) -> String {
    match machine.kubernetes_version.as_str() {
        "" => cluster.spec.kubernetes_version.clone(),
        version => version.to_owned(),
    }
}

/// What comes next: what the task waits for, or the machine that is taken next, or what is left to be ordered.
fn next(machines: &[MachineView], task: Option<&Task>) -> Option<String> {
    if let Some(task) = task {
        if let Some(held) = &task.held {
            return Some(format!("window {held}"));
        }
        if matches!(task.state, TaskState::Pausing | TaskState::Paused) {
            return Some(format!("`windlass task resume {}`", task.id));
        }
        let plan = task.cleanup.as_ref().unwrap_or(&task.plan);
        let step = plan
            .steps
            .iter()
            .find(|step| !task.steps.contains_key(&step.key));
        return step.map(|step| step.key.to_string());
    }
    let wanted = machines.iter().find_map(|view| match &view.machine.wanted {
        Some(Wanted::Reborn { .. }) => Some((&view.machine.name, "is to be made anew")),
        Some(Wanted::Refitted { .. }) => {
            Some((&view.machine.name, "is to get other components in place"))
        }
        Some(Wanted::Gone) => Some((&view.machine.name, "is to go")),
        None => None,
    });
    if let Some((machine, what)) = wanted {
        return Some(format!("{machine} {what} once it is ordered again"));
    }
    let pinned = machines.iter().find(|view| view.machine.pinned)?;
    Some(format!(
        "{} keeps to what it was before a change failed, until the next order",
        pinned.machine.name
    ))
}

fn fault(cluster: &Cluster, machines: &[MachineView], task: Option<&Task>) -> Option<String> {
    if let Some(fault) = task.and_then(|task| task.error.as_ref()) {
        return Some(fault.message.clone());
    }
    if matches!(cluster.phase, ClusterPhase::Degraded | ClusterPhase::Failed) {
        return cluster.message.clone();
    }
    machines.iter().find_map(|view| {
        let name = &view.machine.name;
        match &view.health {
            MachineHealth::Degraded { units } => Some(format!("{name}: {}", units.join(", "))),
            MachineHealth::AgentLost => Some(format!("{name}: its agent does not answer")),
            MachineHealth::Healthy | MachineHealth::Unknown => None,
        }
    })
}
