//! Going on from one plan of a task to the next, for tasks that are done in stages.

use windlass_common::error::ErrorClass;

use super::super::Stop;
use super::{Driver, STORE_PAUSE};
use crate::model::{Fault, Task, TaskEvent, TaskKind, TaskState};

impl Driver {
    /// Goes on with the next stage of a task whose plan is carried out, or ends it.
    pub(super) async fn go_on(&self, task: &mut Task) {
        match task.kind {
            TaskKind::RotateSecrets => {}
            TaskKind::UpdateCluster => {
                let stop = *self.stop.borrow();
                let upgrade = task.plan.upgrade.as_ref();
                let more = upgrade.is_some_and(|of| of.at + 1 < of.legs.len());
                if more && stop != Stop::No {
                    // What is between two legs is what its spec says, and serves.
                    self.begin_to_cancel(task, stop).await;
                    if task.state != TaskState::Cancelling {
                        self.set_state(task, TaskState::Cancelled, None).await;
                    }
                    return;
                }
            }
            TaskKind::CreateCluster
            | TaskKind::DeleteCluster
            | TaskKind::RepairCluster
            | TaskKind::UpgradeAgents
            | TaskKind::RestoreCluster
            | TaskKind::RenewCertificates => {
                return self.set_state(task, TaskState::Succeeded, None).await;
            }
        }
        match self.effects.plan_next(task).await {
            Ok(Some(plan)) => {
                task.plan = plan;
                task.again = None;
                let state = task.state;
                self.set_state(task, state, None).await;
                self.tell(TaskEvent::Snapshot {
                    task: Box::new(task.clone()),
                });
            }
            Ok(None) => self.set_state(task, TaskState::Succeeded, None).await,
            Err(error) if error.class == ErrorClass::Retry => {
                tracing::warn!(task = %task.id, %error, "cannot plan the next stage yet");
                tokio::time::sleep(STORE_PAUSE).await;
            }
            Err(error) => {
                let fault = Some(Fault::from(error));
                self.set_state(task, TaskState::Failed, fault).await;
            }
        }
    }
}
