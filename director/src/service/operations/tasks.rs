//! Tasks, and campaigns over many clusters.

use futures_util::stream::BoxStream;

use crate::model::{Caller, CampaignId, CampaignView, Role, Task, TaskEvent, TaskId};
use crate::service::campaigns::{CampaignOrder, Steer};
use crate::service::{Director, ServiceResult, allow};

impl Director {
    /// All tasks, newest first.
    pub async fn tasks(&self) -> ServiceResult<Vec<Task>> {
        self.inner.tasks().await
    }

    /// One task.
    pub async fn task(&self, id: &TaskId) -> ServiceResult<Task> {
        self.inner.task(id).await
    }

    /// Follows a task: a snapshot, then what changes; ends when the task is over.
    pub async fn watch_task(&self, id: &TaskId) -> ServiceResult<BoxStream<'static, TaskEvent>> {
        self.inner.watch_task(id).await
    }

    /// Stops a task; a create removes what it had made. Returns the task as it is now; watch it for its end.
    pub async fn cancel_task(&self, id: &TaskId, caller: &Caller) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "cancel tasks")?;
        self.inner.not_on_hold("cancel tasks")?;
        self.inner.cancel_task(id, caller).await
    }

    /// Has a task pause: the machines that it has begun with are finished, and no other one is begun with.
    /// Returns when that is written down; watch the task for when nothing of it runs.
    pub async fn pause_task(&self, id: &TaskId, caller: &Caller) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "pause tasks")?;
        self.inner.not_on_hold("pause tasks")?;
        self.inner.pause_task(id, true, caller).await
    }

    /// Goes on with a task that pauses.
    pub async fn resume_task(&self, id: &TaskId, caller: &Caller) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "go on with tasks")?;
        self.inner.not_on_hold("go on with tasks")?;
        self.inner.pause_task(id, false, caller).await
    }

    /// Has a task go on although its cluster's maintenance window is closed. Returns when that is written down.
    pub async fn ignore_window(
        &self,
        id: &TaskId,
        reason: String,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "go on outside of windows")?;
        self.inner.ignore_window(id, reason, caller).await
    }

    /// Orders what a failed task did not get done. Returns the task that does it.
    pub async fn retry_task(&self, id: &TaskId, caller: &Caller) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "retry tasks")?;
        self.inner.not_on_hold("retry tasks")?;
        self.inner.retry_task(id, caller).await
    }

    /// All campaigns, newest first.
    pub async fn campaigns(&self) -> ServiceResult<Vec<CampaignView>> {
        self.inner.campaigns().await
    }

    /// One campaign, with how far its clusters are.
    pub async fn campaign(&self, id: &CampaignId) -> ServiceResult<CampaignView> {
        self.inner.campaign(id).await
    }

    /// What a campaign would do, without doing it.
    pub async fn plan_campaign(
        &self,
        order: &CampaignOrder,
        caller: &Caller,
    ) -> ServiceResult<CampaignView> {
        self.inner.plan_campaign(order, caller).await
    }

    /// Orders an upgrade of many clusters, in waves. Returns at once.
    pub async fn create_campaign(
        &self,
        order: &CampaignOrder,
        caller: &Caller,
    ) -> ServiceResult<CampaignView> {
        allow(caller, Role::Operator, "upgrade clusters")?;
        self.inner.create_campaign(order, caller).await
    }

    /// Has a campaign pause, go on, end, or try again what failed. Returns when that is written down.
    pub async fn steer_campaign(
        &self,
        id: &CampaignId,
        steer: Steer,
        caller: &Caller,
    ) -> ServiceResult<CampaignView> {
        allow(caller, Role::Operator, "steer campaigns")?;
        self.inner.steer_campaign(id, steer, caller).await
    }
}
