//! What the state of a task means for its cluster. Pure.

use crate::kubernetes::facts::minor_of;
use crate::model::{
    Action, Cluster, ClusterPhase, MadeFrom, Plan, PlanStep, Task, TaskKind, TaskState, Upgrade,
};

/// What the state of its task means for a cluster.
pub(super) fn settle(cluster: &mut Cluster, task: &Task) {
    cluster.task = (!task.state.is_over()).then(|| task.id.clone());
    let fault = task.error.as_ref().map(|fault| fault.message.clone());
    let cancelled = || Some(format!("{} was cancelled", task.id));
    let way = cluster.upgrade.as_ref().map(ToString::to_string);
    let way = way.filter(|_| task.kind == TaskKind::UpdateCluster);
    let rests = match task.state {
        TaskState::Pausing => Some(format!(
            "{} pauses once the machines that it has begun with are done",
            task.id
        )),
        TaskState::Paused => Some(format!(
            "{id} is paused; `windlass task resume {id}` goes on with it",
            id = task.id
        )),
        TaskState::Waiting => Some(format!(
            "{id} waits for the maintenance window: {}; `windlass task resume {id} --ignore-window REASON` goes \
             on with it now",
            task.held.as_deref().unwrap_or("it is looked at"),
            id = task.id
        )),
        TaskState::Running => match (&task.held, &task.again) {
            (Some(held), _) => Some(format!(
                "{} finishes the machines that it has begun with; the maintenance window has closed: {held}",
                task.id
            )),
            (None, Some(plan)) => Some(repairs(task, plan)),
            (None, None) => way.as_ref().map(|way| format!("{}: {way}", task.id)),
        },
        TaskState::RollingBack => Some(format!(
            "{} has failed, and machines get back what they had: {}",
            task.id,
            fault.as_deref().unwrap_or("no reason was given")
        )),
        TaskState::Queued
        | TaskState::Cancelling
        | TaskState::Succeeded
        | TaskState::Failed
        | TaskState::Cancelled => None,
    };
    if (task.kind, task.state) == (TaskKind::RestoreCluster, TaskState::Succeeded)
        && let Some(from) = &mut cluster.made_from
    {
        from.restored = true;
    }
    (cluster.phase, cluster.message) = match task.kind {
        TaskKind::CreateCluster => match task.state {
            TaskState::Succeeded => (ClusterPhase::Ready, cluster.awaits_restore().map(empty)),
            TaskState::Queued
            | TaskState::Running
            | TaskState::Pausing
            | TaskState::Paused
            | TaskState::Waiting
            | TaskState::RollingBack => (ClusterPhase::Creating, rests),
            TaskState::Cancelling => (ClusterPhase::Deleting, None),
            TaskState::Failed => (ClusterPhase::Failed, fault),
            TaskState::Cancelled => (ClusterPhase::Failed, cancelled()),
        },
        TaskKind::UpdateCluster
        | TaskKind::RepairCluster
        | TaskKind::RestoreCluster
        | TaskKind::RotateSecrets => match task.state {
            TaskState::Succeeded => (ClusterPhase::Ready, None),
            TaskState::Queued
            | TaskState::Running
            | TaskState::Pausing
            | TaskState::Paused
            | TaskState::Waiting
            | TaskState::RollingBack
            | TaskState::Cancelling => (ClusterPhase::Updating, rests),
            TaskState::Failed => {
                let fault = match way {
                    Some(way) => fault.map(|fault| format!("{way}: {fault}")),
                    None => fault,
                };
                (ClusterPhase::Degraded, fault)
            }
            TaskState::Cancelled => {
                let name = &task.cluster;
                let target = cluster.ordered().kubernetes_version;
                let left = match (&cluster.rotation, way) {
                    (_, Some(way)) => format!(
                        "{} was cancelled in {way}; `windlass cluster upgrade {name} --to {target}` goes on{}",
                        task.id,
                        way_back(cluster)
                    ),
                    (Some(rotation), None) => format!(
                        "{} was cancelled while {}; old and new get on with one another, and `windlass \
                         cluster {} {name}` goes on",
                        task.id,
                        rotation.stage.says(),
                        rotation.stage.kind().command()
                    ),
                    (None, None) => format!(
                        "{} was cancelled; `windlass cluster plan {name}` shows what is left of it",
                        task.id
                    ),
                };
                (ClusterPhase::Ready, Some(left))
            }
        },
        // The cluster is what it was, whichever agents and certificates its machines have.
        TaskKind::UpgradeAgents | TaskKind::RenewCertificates => {
            (cluster.phase, fault.or(cluster.message.take()))
        }
        TaskKind::DeleteCluster => match task.state {
            TaskState::Queued
            | TaskState::Running
            | TaskState::Pausing
            | TaskState::Paused
            | TaskState::Waiting
            | TaskState::RollingBack
            | TaskState::Cancelling => (ClusterPhase::Deleting, rests),
            TaskState::Failed => (ClusterPhase::Failed, fault),
            TaskState::Cancelled | TaskState::Succeeded => (ClusterPhase::Failed, cancelled()),
        },
    };
    let own = minor_of(&cluster.spec.kubernetes_version);
    if task.kind == TaskKind::UpdateCluster && task.state == TaskState::Succeeded {
        // All of it is what it emulated: it went back, or was raised before.
        cluster.emulates = cluster
            .emulates
            .filter(|minor| own.is_some_and(|own| *minor < own));
    }
    // One that has failed keeps it: retried, it goes on to where it was to lead.
    let ended = matches!(task.state, TaskState::Succeeded | TaskState::Cancelled);
    if task.kind == TaskKind::UpdateCluster && ended {
        cluster.upgrade = None;
    }
}

/// What a cluster is that was just made from a backup.
fn empty(from: &MadeFrom) -> String {
    format!(
        "it is empty, and is about to be restored from backup {} of cluster {}",
        from.backup, from.cluster
    )
}

/// How a cancelled upgrade is taken back, where its API servers still emulate what ran before.
fn way_back(cluster: &Cluster) -> String {
    let Some(minor) = cluster.emulates else {
        return String::new();
    };
    let before = cluster.upgrade.as_ref().map(Upgrade::before);
    let before = before.filter(|version| minor_of(version) == Some(minor));
    let version = before.map_or_else(|| format!("1.{minor}.N"), str::to_owned);
    format!(
        ", and, since API servers emulate 1.{minor} until then, `windlass cluster upgrade {} --to {version}` goes back",
        cluster.spec.name
    )
}

/// Why a task was planned anew, and what comes first.
fn repairs(task: &Task, plan: &Plan) -> String {
    let fenced = |step: &PlanStep| match &step.action {
        Action::Fence { machine } => Some(machine.to_string()),
        _ => None,
    };
    let names: Vec<String> = plan.steps.iter().filter_map(fenced).collect();
    if names.is_empty() {
        return format!(
            "{} was planned anew, since machines have changed on the way",
            task.id
        );
    }
    format!(
        "{} died while {} ran, and is replaced first; the rest of the change waits for it",
        names.join(", "),
        task.id
    )
}
