//! A stemcell the director may make machines from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::Digest;
use windlass_common::stemcell::ComponentFile;

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
    /// What another one is compared with, and what machines get of it in place.
    #[serde(skip)]
    pub inside: Inside,
}

/// What is inside a stemcell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inside {
    /// Its line, for example `debian12`.
    pub line: String,
    /// Debian's name of the processor architecture.
    pub architecture: String,
    /// Digest of everything on a machine that is neither a component, nor the agent, nor an image, nor the stemcell's
    /// own name; none where its listing of files cannot be read.
    pub base: Option<Digest>,
    /// Images that a machine has from the start, by name.
    pub images: BTreeMap<String, Digest>,
    /// Components in a machine's root file system, by name.
    pub parts: BTreeMap<String, Part>,
}

impl Inside {
    /// Versions of the components, by name.
    pub fn versions(&self) -> BTreeMap<String, String> {
        let parts = self.parts.iter();
        parts
            .map(|(name, part)| (name.clone(), part.version.clone()))
            .collect()
    }
}

/// A component at a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// For example `1.37.2`.
    pub version: String,
    /// Its files.
    pub files: Vec<ComponentFile>,
}
