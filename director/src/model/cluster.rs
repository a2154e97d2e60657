//! A cluster as the director keeps it: what it should be, and how far it is.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::cluster::ClusterSpec;
use windlass_common::id::{ClusterName, Digest};

use super::{Revision, Rotation, TaskId, Timestamp, Upgrade};
use crate::backup::cluster::BackupName;
use crate::kubernetes::facts::SecretsRevision;

/// One cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// What it should be.
    #[schema(value_type = crate::spec::RawClusterSpec)]
    pub spec: ClusterSpec,
    /// The one address of its API.
    pub endpoint: Endpoint,
    /// Stemcell its machines are made from: the version of [`super::StemcellRecord`].
    pub stemcell: String,
    /// How far it is.
    pub phase: ClusterPhase,
    /// Why it is not `Ready`, for people.
    pub message: Option<String>,
    /// The task that works on it now.
    pub task: Option<TaskId>,
    /// Digest of the add-ons that were applied last.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub addons: Option<Digest>,
    /// How often what it proves itself with was changed.
    #[serde(default)]
    pub secrets: SecretsRevision,
    /// The rotation that is under way, or rests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
    /// How far it is on its way over several minors of Kubernetes; absent when it is on none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<Upgrade>,
    /// Minor of Kubernetes that its API servers and controllers emulate where they are newer; absent while they are
    /// nothing but what they are. While it is there, none of them ever did what is newer, and they can go back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emulates: Option<u32>,
    /// When the first of its authorities expires; absent while nobody has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorities_expire_at: Option<Timestamp>,
    /// When certificates of its machines were last renewed by themselves, or should have been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_tried_at: Option<Timestamp>,
    /// The backup that it was made from, after it or another cluster was gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_from: Option<MadeFrom>,
    /// Revision of this record.
    pub revision: Revision,
    /// When it was ordered.
    pub created_at: Timestamp,
}

impl Cluster {
    /// The backup that it is about to get its data from; until then its etcd is empty, and no state of it is worth
    /// keeping.
    pub fn awaits_restore(&self) -> Option<&MadeFrom> {
        self.made_from.as_ref().filter(|from| !from.restored)
    }

    /// What was ordered: its spec, with the version that an upgrade over several minors leads to.
    pub fn ordered(&self) -> ClusterSpec {
        let mut spec = self.spec.clone();
        if let Some(target) = self.upgrade.as_ref().and_then(Upgrade::target) {
            target.clone_into(&mut spec.kubernetes_version);
        }
        spec
    }
}

/// The backup that a cluster was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MadeFrom {
    /// The cluster that was backed up.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// When that one was ordered.
    pub cluster_created_at: Timestamp,
    /// The backup.
    pub backup: BackupName,
    /// Whether etcd was made from it, or from something else, since.
    pub restored: bool,
    /// Whether the cluster is for a drill: it goes once it was looked at.
    #[serde(default)]
    pub drill: bool,
}

/// The address of a cluster's API, never a machine's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// DNS name in its certificate.
    pub name: String,
    /// Address on the provider's network.
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
    /// TCP port.
    pub port: u16,
}

/// How far a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ClusterPhase {
    /// A task makes it.
    Creating,
    /// It serves, and is as it should be as far as `message` says nothing else.
    Ready,
    /// It serves, and a task changes it.
    Updating,
    /// It was ready, and a change of it failed.
    Degraded,
    /// Its task failed; planning it again goes on from what is there.
    Failed,
    /// A task deletes it.
    Deleting,
}

impl std::fmt::Display for ClusterPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Creating => "Creating",
            Self::Ready => "Ready",
            Self::Updating => "Updating",
            Self::Degraded => "Degraded",
            Self::Failed => "Failed",
            Self::Deleting => "Deleting",
        })
    }
}

/// One fault of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FieldFault {
    /// Path of the field, for example `controlPlane.count`.
    pub key: String,
    /// The value given, shortened to 80 characters.
    pub value: String,
    /// What is allowed.
    pub allowed: String,
}

impl FieldFault {
    /// A fault of the field `key`.
    pub fn new(
        key: impl Into<String>,
        value: impl std::fmt::Display,
        allowed: impl Into<String>,
    ) -> Self {
        Self {
            key: key.into(),
            value: value.to_string().chars().take(80).collect(),
            allowed: allowed.into(),
        }
    }
}

impl std::fmt::Display for FieldFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} is {:?}: must be {}",
            self.key, self.value, self.allowed
        )
    }
}
