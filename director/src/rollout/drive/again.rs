//! Going on with another plan when what is left of a task's own does not fit what there is any more.

use tokio::sync::watch;
use windlass_common::error::ErrorClass;

use super::super::Stop;
use super::super::change::RecordChange;
use super::super::step::End;
use super::{Driver, Ended, STORE_PAUSE};
use crate::model::{Fault, Task, TaskEvent, TaskState};

impl Driver {
    /// Whether what is left of the task's plan fits what the records say.
    pub(super) async fn fits(&self, task: &Task) -> bool {
        loop {
            match self.effects.fits(task).await {
                Ok(fits) => return fits,
                Err(error) => {
                    tracing::error!(task = %task.id, %error, "it cannot be told whether the plan fits; the task waits");
                    tokio::time::sleep(STORE_PAUSE).await;
                }
            }
        }
    }

    /// Writes down the plan that the task goes on with.
    pub(super) async fn plan_again(&self, task: &mut Task) {
        let stop = *self.stop.borrow();
        if stop != Stop::No {
            self.begin_to_cancel(task, stop).await;
            if task.state != TaskState::Cancelling {
                self.set_state(task, TaskState::Cancelled, None).await;
            }
            return;
        }
        match self.effects.plan_again(task).await {
            Ok(plan) => {
                tracing::info!(task = %task.id, cluster = %task.cluster, steps = plan.steps.len(), "task is planned anew");
                task.again = Some(plan);
                task.rounds += 1;
                let pausing = *self.pause.borrow();
                let state = if pausing {
                    TaskState::Pausing
                } else {
                    TaskState::Running
                };
                self.set_state(task, state, None).await;
                self.tell(TaskEvent::Snapshot {
                    task: Box::new(task.clone()),
                });
            }
            Err(error) if error.class == ErrorClass::Retry => {
                tracing::warn!(task = %task.id, %error, "the task cannot be planned anew yet");
                tokio::time::sleep(STORE_PAUSE).await;
            }
            Err(error) => {
                let class = error.class;
                let message = format!(
                    "machines have changed on the way, and there is no plan to go on with: {error}"
                );
                self.give_up(task, Fault { class, message }).await;
            }
        }
    }
}

/// Returns when somebody says that the plan has to be looked at.
pub(super) async fn called(look: &mut watch::Receiver<()>) {
    if look.changed().await.is_err() {
        // Nobody is left who could say so.
        std::future::pending::<()>().await;
    }
}

/// Whether a step has found its machine back, so that what was planned for it does not hold.
pub(super) fn spared((_, _, end): &Ended) -> bool {
    match end {
        End::Succeeded(done) => {
            let mut records = done.records.iter();
            records.any(|change| matches!(change, RecordChange::Returned(_)))
        }
        End::Failed(_) | End::Stopped => false,
    }
}
