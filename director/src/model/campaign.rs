//! A campaign: one upgrade of many clusters, in waves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::ClusterName;

use super::task::is_numbered;
use super::{Revision, TaskId, Timestamp};

/// Names a campaign: `c<number>-<6 hex digits>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "c3-3fa9c0")]
pub struct CampaignId(String);

/// Why a text is no campaign id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "campaign id {0:?} must look like `c3-3fa9c0`; `windlass campaign list` shows those there are"
)]
pub struct CampaignIdError(String);

impl CampaignId {
    /// The id of the `number`th campaign.
    pub fn new(number: u64, random: [u8; 3]) -> Self {
        let [a, b, c] = random;
        Self(format!("c{number}-{a:02x}{b:02x}{c:02x}"))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CampaignId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for CampaignId {
    type Err = CampaignIdError;
    fn from_str(value: &str) -> Result<Self, CampaignIdError> {
        match is_numbered(value, 'c') {
            true => Ok(Self(value.to_owned())),
            false => Err(CampaignIdError(value.chars().take(80).collect())),
        }
    }
}

impl TryFrom<String> for CampaignId {
    type Error = CampaignIdError;
    fn try_from(value: String) -> Result<Self, CampaignIdError> {
        value.parse()
    }
}

impl From<CampaignId> for String {
    fn from(id: CampaignId) -> String {
        id.0
    }
}

/// How far a campaign is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum CampaignState {
    /// Clusters are upgraded, wave by wave.
    Running,
    /// No further cluster is begun with, and the tasks of those that were pause.
    Paused,
    /// No further cluster is begun with, and the tasks of those that were are being cancelled.
    Cancelling,
    /// Every cluster was upgraded, or failed within what was allowed to.
    Succeeded,
    /// More clusters failed than were allowed to; the rest was not begun with.
    Failed,
    /// Cancelled; each cluster serves.
    Cancelled,
}

impl CampaignState {
    /// Whether it does nothing any more by itself.
    pub fn is_over(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
            Self::Running | Self::Paused | Self::Cancelling => false,
        }
    }
}

impl fmt::Display for CampaignState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "Running",
            Self::Paused => "Paused",
            Self::Cancelling => "Cancelling",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
        })
    }
}

/// One campaign. How far its clusters are is what their tasks say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Campaign {
    /// Its name.
    pub id: CampaignId,
    /// Who ordered it; each task is ordered in this name.
    pub operator: String,
    /// Kubernetes version that the clusters get; the one they have when absent.
    pub kubernetes_version: Option<String>,
    /// All machines are made anew from the newest stemcell of the version.
    pub newest_stemcell: bool,
    /// Clusters that are begun with together; one wave is over before the next.
    #[schema(value_type = Vec<Vec<String>>)]
    pub waves: Vec<Vec<ClusterName>>,
    /// Clusters that may be changed at a time.
    pub max_in_flight: u32,
    /// Clusters that may fail; one more stops the campaign.
    pub max_failures: u32,
    /// How long a wave that is over is watched before the next, seconds.
    pub soak_seconds: u32,
    /// The APIs of clusters with one control-plane machine may be down meanwhile.
    pub accept_downtime: bool,
    /// Drains may wait for pods that keep nodes from being drained.
    pub accept_blocked: bool,
    /// Why the clusters' maintenance windows are not waited for.
    pub ignore_window: Option<String>,
    /// How far it is.
    pub state: CampaignState,
    /// Clusters whose upgrade was refused.
    #[schema(value_type = BTreeMap<String, Refusal>)]
    pub refused: BTreeMap<ClusterName, Refusal>,
    /// Tasks that failed and were ordered again since.
    pub forgiven: BTreeSet<TaskId>,
    /// Why it failed, or what failed although it succeeded.
    pub error: Option<String>,
    /// Revision of this record.
    pub revision: Revision,
    /// When it was ordered.
    pub created_at: Timestamp,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
}

/// An upgrade that was refused before anything was touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Why, and what to do.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// A cluster of a campaign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// The cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// Its wave, 1 for the first.
    pub wave: u32,
    /// How far it is.
    pub state: MemberState,
    /// The task that upgrades it.
    pub task: Option<TaskId>,
    /// How far that is, or why it failed, for people.
    pub message: Option<String>,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
}

/// How far a cluster of a campaign is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum MemberState {
    /// Not begun with.
    Waiting,
    /// Its task is not over.
    Running,
    /// It was upgraded.
    Succeeded,
    /// Its task failed or was cancelled, or was refused.
    Failed,
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Waiting => "Waiting",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        })
    }
}

/// A campaign with its clusters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CampaignView {
    /// The record.
    #[serde(flatten)]
    pub campaign: Campaign,
    /// Its clusters, in their order.
    pub members: Vec<Member>,
    /// What comes next, for people.
    pub next: String,
}
