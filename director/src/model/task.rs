//! A task: one plan being carried out, with the state of each of its steps.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::error::ErrorClass;
use windlass_common::id::ClusterName;

use super::{CampaignId, Plan, Revision, StepKey, Timestamp};

/// Names a task: `t<number>-<6 hex digits>`. The digits are random, so that a director restored from an
/// old store never reuses a name that an agent has in its journal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "t12-3fa9c0")]
pub struct TaskId(String);

/// Why a text is not a task id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("task id {0:?} must look like `t12-3fa9c0`; `windlass task list` shows those there are")]
pub struct TaskIdError(String);

impl TaskId {
    /// The id of the `number`th task.
    pub fn new(number: u64, random: [u8; 3]) -> Self {
        let [a, b, c] = random;
        Self(format!("t{number}-{a:02x}{b:02x}{c:02x}"))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for TaskId {
    type Err = TaskIdError;
    fn from_str(value: &str) -> Result<Self, TaskIdError> {
        match is_numbered(value, 't') {
            true => Ok(Self(value.to_owned())),
            false => Err(TaskIdError(value.chars().take(80).collect())),
        }
    }
}

/// Whether a text is a letter with a number, `-`, and 6 hex digits.
pub(super) fn is_numbered(value: &str, letter: char) -> bool {
    let parts = value
        .strip_prefix(letter)
        .and_then(|rest| rest.split_once('-'));
    value.len() <= 32
        && parts.is_some_and(|(number, random)| {
            number.parse::<u64>().is_ok()
                && random.len() == 6
                && random.bytes().all(|b| b.is_ascii_hexdigit())
        })
}

impl TryFrom<String> for TaskId {
    type Error = TaskIdError;
    fn try_from(value: String) -> Result<Self, TaskIdError> {
        value.parse()
    }
}

impl From<TaskId> for String {
    fn from(value: TaskId) -> String {
        value.0
    }
}

/// What a task is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum TaskKind {
    /// Bring a cluster up, or a half-made one to its end.
    CreateCluster,
    /// Delete a cluster.
    DeleteCluster,
    /// Change a cluster that is there.
    UpdateCluster,
    /// Replace machines of a cluster that is there, and touch nothing else.
    RepairCluster,
    /// Upgrade the agents of a cluster's machines in place.
    UpgradeAgents,
    /// Make a cluster's etcd anew, from a snapshot or from what one member has.
    RestoreCluster,
    /// Sign the certificates of a cluster's machines anew.
    RenewCertificates,
    /// Rotate a cluster's encryption key or its authorities, stage by stage.
    RotateSecrets,
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::CreateCluster => "create-cluster",
            Self::DeleteCluster => "delete-cluster",
            Self::UpdateCluster => "update-cluster",
            Self::RepairCluster => "repair-cluster",
            Self::UpgradeAgents => "upgrade-agents",
            Self::RestoreCluster => "restore-cluster",
            Self::RenewCertificates => "renew-certificates",
            Self::RotateSecrets => "rotate-secrets",
        })
    }
}

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum TaskState {
    /// Written down, not begun.
    Queued,
    /// Steps are running.
    Running,
    /// It is to pause: machines that were begun with are finished, and no other one is begun with.
    Pausing,
    /// Nothing of it runs, and every machine is in service or was not begun with.
    Paused,
    /// As paused, until the cluster's maintenance window opens; it goes on by itself.
    Waiting,
    /// A step failed for good, and machines that do not come back with what they were told are being given what
    /// they had before; then it has failed.
    RollingBack,
    /// Every step succeeded.
    Succeeded,
    /// A step failed for good.
    Failed,
    /// Running steps are being stopped; for a create, what was made is being removed; for an update, what
    /// was begun is brought back to service.
    Cancelling,
    /// Cancelled; for a create, nothing is left of it; for an update, the cluster serves.
    Cancelled,
}

impl TaskState {
    /// Whether it will change no more.
    pub fn is_over(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
            Self::Queued
            | Self::Running
            | Self::Pausing
            | Self::Paused
            | Self::Waiting
            | Self::RollingBack
            | Self::Cancelling => false,
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Queued => "Queued",
            Self::Running => "Running",
            Self::Pausing => "Pausing",
            Self::Paused => "Paused",
            Self::Waiting => "Waiting",
            Self::RollingBack => "RollingBack",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Cancelling => "Cancelling",
            Self::Cancelled => "Cancelled",
        })
    }
}

/// One task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Its name.
    pub id: TaskId,
    /// What it is for.
    pub kind: TaskKind,
    /// The cluster it works on.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// Who ordered it.
    pub operator: String,
    /// How far it is.
    pub state: TaskState,
    /// What it carries out; of a task that goes on in stages, the stage of now.
    pub plan: Plan,
    /// Each step of the plan that was touched; one that is absent waits.
    pub steps: BTreeMap<StepKey, StepRecord>,
    /// The plan that it goes on with since machines died on the way; the one above is what was approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<Plan>,
    /// How often it was planned anew.
    #[serde(default)]
    pub rounds: u32,
    /// The plan that ends a cancelled task, once there is one: removes what a create had made, or brings what
    /// an update had begun back to service.
    pub cleanup: Option<Plan>,
    /// Why it failed.
    pub error: Option<Fault>,
    /// What keeps it from beginning with another machine, for people: the cluster's maintenance window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// Why an operator has it go on outside of the cluster's maintenance windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore_window: Option<String>,
    /// The campaign that it is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub campaign: Option<CampaignId>,
    /// Revision of this record.
    pub revision: Revision,
    /// When it was ordered.
    pub created_at: Timestamp,
    /// When its first step began.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
}

impl Task {
    /// One that was just ordered by `operator` and has done nothing yet.
    pub fn ordered(
        id: TaskId,
        kind: TaskKind,
        plan: Plan,
        operator: String,
        created_at: Timestamp,
    ) -> Task {
        Task {
            id,
            kind,
            cluster: plan.cluster.clone(),
            operator,
            state: TaskState::Queued,
            plan,
            steps: BTreeMap::new(),
            again: None,
            rounds: 0,
            cleanup: None,
            error: None,
            held: None,
            ignore_window: None,
            campaign: None,
            revision: Revision(0),
            created_at,
            started_at: None,
            ended_at: None,
        }
    }

    /// Whether this is a restore that has taken something out of service and is not over: from there on it leads
    /// to its end only.
    pub fn has_to_end(&self) -> bool {
        let begun = |step: &super::PlanStep| {
            let stops = matches!(
                step.action,
                super::Action::StopApi { .. } | super::Action::Fence { .. }
            );
            stops && self.steps.contains_key(&step.key)
        };
        self.kind == TaskKind::RestoreCluster
            && !self.state.is_over()
            && self.plan.steps.iter().any(begun)
    }

    /// The plan that is carried out now.
    pub fn current(&self) -> &Plan {
        let again = self.again.as_ref().unwrap_or(&self.plan);
        self.cleanup.as_ref().unwrap_or(again)
    }

    /// Number of steps that succeeded, and number of all.
    pub fn progress(&self) -> (usize, usize) {
        let plan = self.current();
        let done = plan
            .steps
            .iter()
            .filter(|step| {
                self.steps
                    .get(&step.key)
                    .is_some_and(|record| record.state == StepState::Succeeded)
            })
            .count();
        (done, plan.steps.len())
    }
}

/// What failed, and who acts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// Who acts.
    #[schema(value_type = String)]
    pub class: ErrorClass,
    /// The whole chain of causes, for people.
    pub message: String,
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum StepState {
    /// Begun; its effect may or may not have happened.
    Running,
    /// Done.
    Succeeded,
    /// Failed for good.
    Failed,
    /// Stopped by a cancel.
    Cancelled,
}

/// A step that was touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepRecord {
    /// How far it is.
    pub state: StepState,
    /// Number of its attempts: grows when one has failed, not when it is sent again.
    pub attempts: u32,
    /// When it was begun first.
    pub started_at: Timestamp,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
    /// The last error; on a running step, why it is being tried again.
    pub error: Option<Fault>,
    /// What it changed, one line each, without secrets.
    pub changes: Vec<String>,
}

/// What a watcher of a task receives. The first event is always a snapshot; one that fell behind gets a
/// new snapshot instead of what it missed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum TaskEvent {
    /// The whole task as it is now.
    Snapshot {
        /// The task.
        task: Box<Task>,
    },
    /// A step changed.
    Step {
        /// Which.
        key: StepKey,
        /// How far it is now.
        record: StepRecord,
    },
    /// What a running step is doing, for people; not kept.
    Progress {
        /// Which step.
        key: StepKey,
        /// What it does.
        stage: String,
    },
    /// The task's own state changed.
    State {
        /// The new state.
        state: TaskState,
        /// Why it failed.
        error: Option<Fault>,
    },
}
