//! A stemcell the director may make machines from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::Digest;

/// One stemcell in the catalogue; listed only when its signature was verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StemcellRecord {
    /// Name and version, for example `debian12-1.37.2-0a1b2c3d`; also its directory's name.
    pub version: String,
    /// Kubernetes version inside.
    pub kubernetes_version: String,
    /// When it was built, RFC 3339.
    pub built_at: String,
    /// Component name to version.
    pub components: BTreeMap<String, String>,
    /// Images inside: name to reference.
    pub images: BTreeMap<String, String>,
    /// Digest of what it was built from.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Digest of the agent inside; none in one without an agent.
    #[schema(value_type = Option<String>)]
    pub agent: Option<Digest>,
    /// Directory that holds it.
    #[schema(value_type = String)]
    pub path: PathBuf,
}
