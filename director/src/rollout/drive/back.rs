//! The way back: of a task that has failed, and of one that is cancelled.

use std::collections::BTreeSet;

use windlass_common::error::ErrorClass;

use super::super::{Rollback, Stop};
use super::{Driver, Outcome, STORE_PAUSE};
use crate::model::{Action, Fault, PlanStep, Task, TaskKind, TaskState};

impl Driver {
    pub(super) async fn give_up(&self, task: &mut Task, fault: Fault) {
        let state = match task.kind {
            TaskKind::UpdateCluster => TaskState::RollingBack,
            TaskKind::CreateCluster
            | TaskKind::RepairCluster
            | TaskKind::DeleteCluster
            | TaskKind::RestoreCluster
            | TaskKind::RenewCertificates
            | TaskKind::RotateSecrets
            | TaskKind::UpgradeAgents => TaskState::Failed,
        };
        self.set_state(task, state, Some(fault)).await;
    }

    /// Takes back what keeps machines from coming back, then fails as the task has failed. That it rolls back is
    /// in the store before anything is, so that no crash makes it go on with what it takes back.
    pub(super) async fn roll_back(&self, task: &mut Task) {
        if task.cleanup.is_none() {
            match self.effects.plan_rollback(task).await {
                Ok(Rollback { plan, left }) => {
                    let before = task.error.clone();
                    let fault = left
                        .iter()
                        .fold(before, |fault, left| Some(with(fault, left)));
                    if plan.is_none() {
                        return self.set_state(task, TaskState::Failed, fault).await;
                    }
                    task.cleanup = plan;
                    self.set_state(task, TaskState::RollingBack, fault).await;
                }
                Err(error) if error.class == ErrorClass::Retry => {
                    tracing::warn!(task = %task.id, %error, "cannot plan the way back yet");
                    tokio::time::sleep(STORE_PAUSE).await;
                    return;
                }
                Err(error) => {
                    let mut fault = with(task.error.clone(), &format!("no way back: {error}"));
                    if error.class == ErrorClass::Bug {
                        fault.class = error.class;
                    }
                    return self.set_state(task, TaskState::Failed, Some(fault)).await;
                }
            }
        }
        let Some(plan) = task.cleanup.clone() else {
            return;
        };
        let comes_back = |step: &PlanStep| match &step.action {
            Action::AwaitNode { machine, .. } => Some(machine.to_string()),
            _ => None,
        };
        let goes = |step: &PlanStep| match &step.action {
            Action::ForgetMachine { machine } => Some(machine.to_string()),
            _ => None,
        };
        let listed = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(", ");
        let back = listed(plan.steps.iter().filter_map(comes_back).collect());
        let gone = listed(plan.steps.iter().filter_map(goes).collect());
        let mut done = Vec::new();
        if !gone.is_empty() {
            done.push(format!(
                "rolled back: {gone}, which was not there before this change, is removed again, and no machine goes \
                 for it"
            ));
        }
        if !back.is_empty() {
            done.push(format!(
                "rolled back: {back} serves as before this change, with the former stemcell, Kubernetes version, size, \
                 components and kubelet settings, and no machine takes the wanted ones before the next `windlass \
                 cluster apply` or `windlass task retry {}`",
                task.id
            ));
        }
        let names = [back, gone].into_iter().filter(|names| !names.is_empty());
        let names = names.collect::<Vec<_>>().join(", ");
        let note = match self.run_plan(task, &plan, true).await {
            Outcome::Succeeded => done.join("; "),
            Outcome::Stopped | Outcome::Unfit => format!("the way back of {names} was stopped"),
            Outcome::Failed(fault) => format!("the way back of {names} failed: {}", fault.message),
        };
        self.fail(task, &note).await;
    }

    /// Fails a task as it has failed before, with what came of it since.
    async fn fail(&self, task: &mut Task, note: &str) {
        let fault = with(task.error.clone(), note);
        self.set_state(task, TaskState::Failed, Some(fault)).await;
    }

    pub(super) async fn clean_up(&self, task: &mut Task) {
        if task.cleanup.is_none() {
            match self.effects.plan_cleanup(task).await {
                Ok(plan) => {
                    task.cleanup = Some(plan);
                    self.set_state(task, TaskState::Cancelling, None).await;
                }
                Err(error) if error.class == ErrorClass::Retry => {
                    tracing::warn!(task = %task.id, %error, "cannot plan the clean-up yet");
                    tokio::time::sleep(STORE_PAUSE).await;
                    return;
                }
                Err(error) => {
                    let fault = Some(Fault::from(error));
                    return self.set_state(task, TaskState::Failed, fault).await;
                }
            }
        }
        let Some(plan) = task.cleanup.clone() else {
            return;
        };
        match self.run_plan(task, &plan, true).await {
            Outcome::Succeeded | Outcome::Stopped | Outcome::Unfit => {
                self.set_state(task, TaskState::Cancelled, None).await;
            }
            Outcome::Failed(fault) => self.set_state(task, TaskState::Failed, Some(fault)).await,
        }
    }

    /// Writes down that a create or an update is being cancelled, so that a restart does not forget it.
    pub(super) async fn begin_to_cancel(&self, task: &mut Task, stop: Stop) {
        let cleans = match task.kind {
            TaskKind::CreateCluster
            | TaskKind::UpdateCluster
            | TaskKind::RepairCluster
            | TaskKind::RotateSecrets => true,
            TaskKind::DeleteCluster
            | TaskKind::UpgradeAgents
            | TaskKind::RestoreCluster
            | TaskKind::RenewCertificates => false,
        };
        let clean = stop == Stop::CleanUp && cleans;
        let runs = match task.state {
            TaskState::Running | TaskState::Pausing | TaskState::Paused | TaskState::Waiting => {
                true
            }
            TaskState::Queued
            | TaskState::RollingBack
            | TaskState::Cancelling
            | TaskState::Succeeded
            | TaskState::Failed
            | TaskState::Cancelled => false,
        };
        if clean && runs {
            self.set_state(task, TaskState::Cancelling, None).await;
        }
    }
}

/// Why a task has failed, with what there is to say about it besides.
fn with(fault: Option<Fault>, note: &str) -> Fault {
    match fault {
        Some(Fault { class, message }) => Fault {
            class,
            message: format!("{message}; {note}"),
        },
        None => Fault {
            class: ErrorClass::Operator,
            message: note.to_owned(),
        },
    }
}
