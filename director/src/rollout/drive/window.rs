//! Waiting: for an operator who has paused a task, and for the maintenance window of its cluster.

use tokio::sync::watch;
use windlass_common::clock::Clock;
use windlass_common::maintenance::MaintenanceSpec;

use super::{Driver, wait_for_store};
use crate::model::{Cluster, Task, TaskKind, TaskState};

impl Driver {
    /// When the machines of a task may be begun with, as its cluster's spec says: at any time where it changes none
    /// that serve, or heals.
    pub(super) async fn windows(&self, task: &Task) -> Option<MaintenanceSpec> {
        match task.kind {
            TaskKind::UpdateCluster | TaskKind::UpgradeAgents => {}
            TaskKind::CreateCluster
            | TaskKind::RepairCluster
            | TaskKind::RestoreCluster
            | TaskKind::RenewCertificates
            | TaskKind::RotateSecrets
            | TaskKind::DeleteCluster => return None,
        }
        loop {
            match self.records.get::<Cluster>(task.cluster.as_str()).await {
                // The spec does not change before the task is over.
                Ok(cluster) => return cluster.map(|cluster| cluster.spec.maintenance),
                Err(error) => wait_for_store(&error).await,
            }
        }
    }

    /// Writes down that a task goes on outside of windows, so that a restart does not forget it.
    pub(super) async fn note_ignored(&self, task: &mut Task) {
        let reason = self.ignore_window.borrow().clone();
        if task.ignore_window.is_none() && reason.is_some() {
            task.ignore_window = reason;
            self.set_state(task, task.state, None).await;
        }
    }

    /// Writes down that a task pauses, is held by its window or goes on, so that a restart does not forget it.
    pub(super) async fn note_pause(&self, task: &mut Task, pausing: bool, held: Option<String>) {
        let changed = task.held != held;
        task.held = held;
        let state = match (task.state, pausing) {
            (TaskState::Running | TaskState::Waiting, true) => TaskState::Pausing,
            (TaskState::Pausing | TaskState::Paused, false) => TaskState::Running,
            (TaskState::Waiting, false) if task.held.is_none() => TaskState::Running,
            (state, _) => state,
        };
        if changed || state != task.state {
            self.set_state(task, state, None).await;
        }
    }
}

/// Returns when a task that pauses or does not is to do the other.
pub(super) async fn turned(pause: &mut watch::Receiver<bool>, pausing: bool) {
    if pause.wait_for(|pause| *pause != pausing).await.is_err() {
        // Nobody is left who could say so.
        std::future::pending::<()>().await;
    }
}

/// Returns when an operator has the task go on outside of its window.
pub(super) async fn ordered(ignore: &mut watch::Receiver<Option<String>>) {
    if ignore.wait_for(Option::is_some).await.is_err() {
        // Nobody is left who could say so.
        std::future::pending::<()>().await;
    }
}

/// Returns when the window has turned; never when it does not.
pub(super) async fn turned_at(clock: &Clock, at: Option<jiff::Timestamp>) {
    match at {
        Some(at) => clock.reached(at).await,
        None => std::future::pending().await,
    }
}
