//! Tasks as operators see them.

use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::broadcast;
use windlass_common::error::ErrorChain;

use super::{Inner, ServiceError, ServiceResult};
use crate::model::{Caller, FieldFault, Task, TaskEvent, TaskId, TaskKind, TaskState};
use crate::rollout::Stop;
use crate::spec::REASON_MAX;
use crate::store::{Act, Records};

/// How long an order to a task waits until it is written down that it is being followed; running provider
/// calls may take longer, and the answer then shows the task as it is.
const NOTED: Duration = Duration::from_secs(5);

impl Inner {
    pub(super) async fn tasks(&self) -> ServiceResult<Vec<Task>> {
        let headers: Vec<Task> = self.records.list().await?;
        let mut tasks = Vec::with_capacity(headers.len());
        for header in headers {
            tasks.extend(self.records.task(&header.id).await?);
        }
        tasks.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        Ok(tasks)
    }

    pub(super) async fn task(&self, id: &TaskId) -> ServiceResult<Task> {
        let found = self.records.task(id).await?;
        found.ok_or_else(|| ServiceError::NotFound {
            kind: "task",
            name: id.to_string(),
        })
    }

    pub(super) async fn watch_task(
        &self,
        id: &TaskId,
    ) -> ServiceResult<BoxStream<'static, TaskEvent>> {
        // Subscribed before the snapshot is read, so that nothing falls between the two.
        let events = self.rollouts.subscribe(id);
        let task = self.task(id).await?;
        let watch = Watch {
            id: id.clone(),
            records: self.records.clone(),
            events: events.filter(|_| !task.state.is_over()),
            pending: Some(task),
        };
        Ok(stream::unfold(watch, Watch::next).boxed())
    }

    /// Has a task pause, or go on; returns when that is written down.
    pub(super) async fn pause_task(
        &self,
        id: &TaskId,
        pause: bool,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let task = self.task(id).await?;
        match pauses(task.state) {
            Some(now) if now == pause => return Ok(task),
            Some(_) => {}
            None => {
                let what = if pause { "pause" } else { "go on with" };
                return Err(ServiceError::Conflict {
                    message: format!("{id} is {}; there is nothing to {what}", task.state),
                });
            }
        }
        if task.kind == TaskKind::RestoreCluster && pause {
            return Err(ServiceError::Conflict {
                message: format!(
                    "{id} is a restore, and does not pause: the API of cluster {} is down until it is over",
                    task.cluster
                ),
            });
        }
        let act = Act {
            action: if pause { "task.pause" } else { "task.resume" },
            subject: &format!("cluster/{}", task.cluster),
            detail: id.as_str(),
            outcome: "",
        };
        self.note(caller, act).await?;
        let events = self.rollouts.subscribe(id);
        self.rollouts.pause(id, pause);
        noted(events, |state| pauses(state) == Some(pause)).await;
        self.task(id).await
    }

    /// Has a task go on outside of its cluster's maintenance windows; returns when that is written down.
    pub(super) async fn ignore_window(
        &self,
        id: &TaskId,
        reason: String,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let reason = reason_given("ignore_window", reason)?;
        let task = self.task(id).await?;
        if pauses(task.state).is_none() {
            return Err(ServiceError::Conflict {
                message: format!("{id} is {}; it waits for no window", task.state),
            });
        }
        let act = Act {
            action: "task.ignore-window",
            subject: &format!("cluster/{}", task.cluster),
            detail: &format!("{id}: {reason}"),
            outcome: "",
        };
        self.note(caller, act).await?;
        let events = self.rollouts.subscribe(id);
        self.rollouts.ignore_window(id, reason);
        if task.state == TaskState::Waiting {
            noted(events, |state| state != TaskState::Waiting).await;
        }
        self.task(id).await
    }

    pub(super) async fn cancel_task(&self, id: &TaskId, caller: &Caller) -> ServiceResult<Task> {
        let task = self.task(id).await?;
        if task.state.is_over() {
            return Err(ServiceError::Conflict {
                message: format!("{id} is {} already; there is nothing to cancel", task.state),
            });
        }
        if task.has_to_end() {
            return Err(ServiceError::Conflict {
                message: format!(
                    "{id} restores cluster {} and has stopped API servers or shut machines out: from there on only \
                     its end brings them back. A director that dies goes on with it; `windlass task watch {id}` \
                     follows it",
                    task.cluster
                ),
            });
        }
        let act = Act {
            action: "task.cancel",
            subject: &format!("cluster/{}", task.cluster),
            detail: id.as_str(),
            outcome: "",
        };
        self.note(caller, act).await?;
        let events = self.rollouts.subscribe(id);
        self.rollouts.stop(id, Stop::CleanUp);
        noted(events, |state| pauses(state).is_none()).await;
        self.task(id).await
    }
}

/// A reason that an operator gives for what is to be explained later.
pub(super) fn reason_given(key: &str, reason: String) -> ServiceResult<String> {
    let length = reason.chars().count();
    if reason.trim().is_empty() || length > REASON_MAX {
        let allowed = format!("why, in 1 to {REASON_MAX} characters");
        let shown: String = reason.chars().take(80).collect();
        return Err(ServiceError::Invalid {
            faults: vec![FieldFault::new(key, shown, allowed)],
        });
    }
    Ok(reason)
}

/// Waits until a task is in a state that is waited for, for a while: if it takes longer, the task's own state
/// tells it.
async fn noted(events: Option<broadcast::Receiver<TaskEvent>>, wanted: impl Fn(TaskState) -> bool) {
    let Some(mut events) = events else { return };
    let noted = async {
        loop {
            match events.recv().await {
                Ok(TaskEvent::State { state, .. }) if wanted(state) => return,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    };
    let _ = tokio::time::timeout(NOTED, noted).await;
}

/// Whether a task in this state was told to pause; `None` when it is no matter of pausing.
fn pauses(state: TaskState) -> Option<bool> {
    match state {
        TaskState::Queued | TaskState::Running | TaskState::Waiting => Some(false),
        TaskState::Pausing | TaskState::Paused => Some(true),
        TaskState::RollingBack
        | TaskState::Cancelling
        | TaskState::Succeeded
        | TaskState::Failed
        | TaskState::Cancelled => None,
    }
}

struct Watch {
    id: TaskId,
    records: Records,
    /// `None` once the task is over.
    events: Option<broadcast::Receiver<TaskEvent>>,
    /// A snapshot that comes next.
    pending: Option<Task>,
}

impl Watch {
    async fn next(mut self) -> Option<(TaskEvent, Self)> {
        if let Some(task) = self.pending.take() {
            let event = TaskEvent::Snapshot {
                task: Box::new(task),
            };
            return Some((event, self));
        }
        let events = self.events.as_mut()?;
        match events.recv().await {
            Ok(event) => {
                if let TaskEvent::State { state, .. } = &event
                    && state.is_over()
                {
                    self.events = None;
                }
                Some((event, self))
            }
            Err(broadcast::error::RecvError::Lagged(_)) => self.snapshot().await,
            Err(broadcast::error::RecvError::Closed) => {
                self.events = None;
                self.snapshot().await
            }
        }
    }

    async fn snapshot(mut self) -> Option<(TaskEvent, Self)> {
        match self.records.task(&self.id).await {
            Ok(task) => {
                let task = Box::new(task?);
                if task.state.is_over() {
                    self.events = None;
                }
                Some((TaskEvent::Snapshot { task }, self))
            }
            Err(error) => {
                tracing::warn!(task = %self.id, error = %ErrorChain(&error), "a watch ends");
                None
            }
        }
    }
}
