//! What a step has to know about its cluster, read fresh from the store for each step.

use std::fmt;

use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, MachineName};
use windlass_common::secret::SecretBytes;

use super::World;
use crate::kubernetes::facts::{ClusterFacts, MachineFacts};
use crate::kubernetes::pki::ClusterPki;
use crate::model::{Cluster, Machine, StemcellRecord};
use crate::planner::{Observed, inputs};
use crate::rollout::EffectError;
use crate::rollout::change::cluster_pki_name;

/// A cluster with all that belongs to it.
pub struct ClusterContext {
    /// Its record.
    pub cluster: Cluster,
    /// Its machines, by name.
    pub machines: Vec<Machine>,
    /// What the renderers need.
    pub facts: ClusterFacts,
    /// Its secrets.
    pub pki: ClusterPki,
    /// Its stemcell.
    pub stemcell: StemcellRecord,
}

impl fmt::Debug for ClusterContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterContext({})", self.cluster.spec.name)
    }
}

impl ClusterContext {
    /// The machine of this name.
    pub fn machine(&self, name: &MachineName) -> Result<&Machine, EffectError> {
        let found = self.machines.iter().find(|machine| machine.name == *name);
        found.ok_or_else(|| missing("machine", name.as_str()))
    }

    /// What the renderers know of it.
    pub fn machine_facts(&self, name: &MachineName) -> Result<&MachineFacts, EffectError> {
        let found = self.facts.machines.iter().find(|m| m.name == *name);
        found.ok_or_else(|| missing("machine", name.as_str()))
    }
}

impl World {
    /// Reads a cluster.
    pub(super) async fn context(&self, name: &ClusterName) -> Result<ClusterContext, EffectError> {
        let cluster: Cluster = self
            .records
            .get(name.as_str())
            .await?
            .ok_or_else(|| missing("cluster", name.as_str()))?;
        let machines = self.records.machines_of(name.as_str()).await?;
        let stemcell = self
            .stemcells
            .get(&cluster.stemcell)
            .map_err(|error| EffectError::of(error.class(), &error))?;
        let pki_name = cluster_pki_name(name);
        let document = self
            .records
            .secret(&pki_name)
            .await?
            .ok_or_else(|| missing("secret", &pki_name))?;
        let pki = ClusterPki::from_bytes(&SecretBytes::new(document.to_vec()))
            .map_err(|error| EffectError::of(error.class(), &error))?;
        let facts = inputs::facts(&cluster, &machines, &stemcell, self.host);
        Ok(ClusterContext {
            cluster,
            machines,
            facts,
            pki,
            stemcell,
        })
    }

    /// What there is of a cluster now.
    pub async fn observe(&self, name: &ClusterName) -> Result<Observed, EffectError> {
        let cluster: Option<Cluster> = self.records.get(name.as_str()).await?;
        let machines = self.records.machines_of(name.as_str()).await?;
        let of = |error: crate::provider::ProviderError| EffectError::of(error.class(), &error);
        let views = self.provider.machines().await.map_err(of)?;
        let disks = self.provider.disks().await.map_err(of)?;
        let endpoints = self.provider.endpoints().await.map_err(of)?;
        let cluster = cluster.as_ref();
        Ok(inputs::observe(
            cluster, name, &machines, &views, &disks, &endpoints,
        ))
    }
}

fn missing(kind: &str, name: &str) -> EffectError {
    EffectError::new(
        ErrorClass::Bug,
        format!("{kind} {name} is not in the store although a plan needs it"),
    )
}
