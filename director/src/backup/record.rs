//! What the store remembers of a cluster's backups: the one under way, and how the last ones ended.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::ClusterName;

use super::cluster::{BackupName, BackupReason};
use crate::model::{Revision, Timestamp};

/// Backups of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupRecord {
    /// Which cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// The one under way: written down before anything of it is done, so that a director that starts again goes
    /// on with it under the same name.
    pub running: Option<BackupRun>,
    /// The last that succeeded.
    pub succeeded: Option<BackupSuccess>,
    /// The last that failed, while none has succeeded since.
    pub failed: Option<BackupFailure>,
    /// The last drill, or the one under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<Drill>,
    /// Revision of this record.
    pub revision: Revision,
}

/// A drill: a backup that is restored into a cluster of its own, looked at, and deleted with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drill {
    /// The backup.
    pub backup: BackupName,
    /// The cluster that is made of it: one control-plane machine, no workers.
    #[schema(value_type = String)]
    pub scratch: ClusterName,
    /// Who ordered it.
    pub ordered_by: String,
    /// When.
    pub ordered_at: Timestamp,
    /// Age of the backup then, milliseconds: what was written in this time would have been lost (recovery point).
    pub age_ms: u64,
    /// How it ended; absent while it is under way.
    pub end: Option<DrillEnd>,
}

/// How a drill ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DrillEnd {
    /// When.
    pub at: Timestamp,
    /// From the order until everything was read, milliseconds (recovery time of the control plane).
    pub took_ms: u64,
    /// What was read in the restored cluster; absent when it failed.
    pub census: Option<Census>,
    /// Why it failed, and what to do.
    pub failure: Option<String>,
}

/// Objects of a cluster that its API server has read from etcd, Secrets decrypted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Census {
    /// Namespaces.
    pub namespaces: u64,
    /// Secrets.
    pub secrets: u64,
    /// ConfigMaps.
    pub config_maps: u64,
    /// Deployments.
    pub deployments: u64,
    /// Services.
    pub services: u64,
}

/// A backup that was ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupRun {
    /// The name it will have.
    pub name: BackupName,
    /// Why.
    pub reason: BackupReason,
    /// Who ordered it; the director itself when it was due.
    pub ordered_by: String,
    /// When.
    pub ordered_at: Timestamp,
}

/// A backup that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupSuccess {
    /// Its name.
    pub name: BackupName,
    /// When its snapshot was asked for.
    pub taken_at: Timestamp,
    /// From then until it was in its place, milliseconds.
    pub took_ms: u64,
}

/// A backup that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupFailure {
    /// The name it would have had.
    pub name: BackupName,
    /// When.
    pub at: Timestamp,
    /// How many have failed since one succeeded.
    pub in_a_row: u32,
    /// Why, and what to do.
    pub message: String,
}

impl BackupRecord {
    /// Of a cluster that has none yet.
    pub fn new(cluster: ClusterName) -> Self {
        Self {
            cluster,
            running: None,
            succeeded: None,
            failed: None,
            drill: None,
            revision: Revision::default(),
        }
    }

    /// The one under way has succeeded.
    pub fn succeed(&mut self, success: BackupSuccess) {
        (self.running, self.failed) = (None, None);
        self.succeeded = Some(success);
    }

    /// The one under way has failed.
    pub fn fail(&mut self, name: BackupName, at: Timestamp, message: String) {
        let before = self.failed.as_ref().map_or(0, |failed| failed.in_a_row);
        self.running = None;
        self.failed = Some(BackupFailure {
            name,
            at,
            in_a_row: before.saturating_add(1),
            message,
        });
    }
}
