//! What a step has to know about its cluster, read fresh from the store for each step.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, MachineName};
use windlass_common::secret::SecretBytes;

use super::World;
use crate::kubernetes::facts::{ClusterFacts, MachineFacts};
use crate::kubernetes::pki::ClusterPki;
use crate::model::{Cluster, Machine, StemcellRecord};
use crate::planner::inputs::{Configuration, Configurations};
use crate::planner::{Desired, Observed, inputs};
use crate::rollout::change::cluster_pki_name;
use crate::rollout::{EffectError, RecordChange};

/// A cluster with all that belongs to it.
pub struct ClusterContext {
    /// Its record.
    pub cluster: Cluster,
    /// Its machines, by name.
    pub machines: Vec<Machine>,
    /// What the renderers need, with all machines that are there.
    pub facts: ClusterFacts,
    /// The same with the machines that are to be there, for the add-ons.
    pub future: ClusterFacts,
    /// Its secrets.
    pub pki: ClusterPki,
    /// Stemcells of its machines, by version, those that are there.
    pub stemcells: BTreeMap<String, StemcellRecord>,
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

    /// The stemcell a machine is made from.
    pub fn stemcell(&self, machine: &Machine) -> Result<&StemcellRecord, EffectError> {
        self.stemcell_of(machine, &machine.stemcell)
    }

    /// A stemcell whose components a machine runs or is to run.
    pub fn stemcell_of(
        &self,
        machine: &Machine,
        stemcell: &str,
    ) -> Result<&StemcellRecord, EffectError> {
        self.stemcells.get(stemcell).ok_or_else(|| {
            EffectError::new(
                ErrorClass::Operator,
                format!(
                    "stemcell {stemcell} of machine {} is not in the catalogue any more, or not verified; put it back",
                    machine.name
                ),
            )
        })
    }

    /// Versions of the components of a stemcell that a machine runs or is to run. Those that it was in service with are
    /// known without the stemcell.
    pub fn versions(
        &self,
        machine: &Machine,
        stemcell: &str,
    ) -> Result<BTreeMap<String, String>, EffectError> {
        if machine.fitted.as_deref() == Some(stemcell) && !machine.components.is_empty() {
            return Ok(machine.components.clone());
        }
        Ok(self.stemcell_of(machine, stemcell)?.inside.versions())
    }

    /// Facts for the configuration of one machine: with the images that it carries.
    pub fn facts_for(&self, machine: &Machine) -> ClusterFacts {
        let mut facts = self.facts.clone();
        if let Some(stemcell) = self.stemcells.get(&machine.stemcell) {
            facts.images = inputs::images(stemcell);
        }
        facts
    }

    /// That a machine is in service with the kubelet settings and the components that it has now.
    pub fn proven(
        &self,
        name: &MachineName,
    ) -> Result<impl Iterator<Item = RecordChange> + use<>, EffectError> {
        let machine = self.machine(name)?;
        let settings = inputs::kubelet(&self.cluster, machine);
        let proven = RecordChange::Proven(name.clone(), settings);
        let runs = self
            .stemcells
            .get(machine.is_to_run())
            .map(|stemcell| RecordChange::Runs(name.clone(), stemcell.inside.versions()));
        Ok([Some(proven), runs].into_iter().flatten())
    }

    /// Digests of what a machine is told now.
    pub fn configuration(&self, machine: &Machine) -> Result<Configuration, EffectError> {
        let facts = self.facts_for(machine);
        let of = self.machine_facts(&machine.name)?;
        Ok(Configurations::new(&facts).of(of, &facts.images))
    }
}

impl World {
    /// The sealed document of a cluster.
    pub(super) async fn pki(&self, name: &ClusterName) -> Result<ClusterPki, EffectError> {
        let pki_name = cluster_pki_name(name);
        let document = self
            .records
            .secret(&pki_name)
            .await?
            .ok_or_else(|| missing("secret", &pki_name))?;
        ClusterPki::from_bytes(&SecretBytes::new(document.to_vec()))
            .map_err(|error| EffectError::of(error.class(), &error))
    }

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
        let pki = self.pki(name).await?;
        let facts = inputs::facts(&cluster, &machines, &stemcell, self.host);
        let wanted = inputs::wanted(&machines);
        let future = inputs::facts(&cluster, &wanted, &stemcell, self.host);
        Ok(ClusterContext {
            stemcells: self.stemcells_of(&machines),
            cluster,
            machines,
            facts,
            future,
            pki,
        })
    }

    /// The stemcells that machines are or will be made from, those that are usable now.
    pub fn stemcells_of(&self, machines: &[Machine]) -> BTreeMap<String, StemcellRecord> {
        let of = |m: &Machine| {
            let wanted = m.as_wanted();
            let known = [m.stemcell.clone(), m.runs().to_owned()];
            let wanted = [wanted.runs().to_owned(), wanted.stemcell];
            known.into_iter().chain(wanted).chain(m.staged.clone())
        };
        let versions: BTreeSet<String> = machines.iter().flat_map(of).collect();
        versions
            .into_iter()
            .filter_map(|version| Some((version.clone(), self.stemcells.get(&version).ok()?)))
            .collect()
    }

    /// What a cluster should be.
    pub fn desired(&self, cluster: &Cluster, machines: &[Machine]) -> Result<Desired, EffectError> {
        let stemcell = self
            .stemcells
            .get(&cluster.stemcell)
            .map_err(|error| EffectError::of(error.class(), &error))?;
        let facts = inputs::facts(cluster, machines, &stemcell, self.host);
        let stemcells = self.stemcells_of(machines);
        let images = stemcells
            .iter()
            .map(|(version, record)| (version.clone(), inputs::images(record)))
            .collect();
        Ok(inputs::present(cluster, machines, &facts, &images))
    }

    /// What a machine of a cluster would be told now, were its records these.
    pub fn told(
        &self,
        cluster: &Cluster,
        machines: &[Machine],
        name: &MachineName,
    ) -> Result<Configuration, EffectError> {
        let stemcell = self
            .stemcells
            .get(&cluster.stemcell)
            .map_err(|error| EffectError::of(error.class(), &error))?;
        let mut facts = inputs::facts(cluster, machines, &stemcell, self.host);
        let machine = machines.iter().find(|machine| machine.name == *name);
        let own = machine.and_then(|machine| self.stemcells.get(&machine.stemcell).ok());
        if let Some(own) = own {
            facts.images = inputs::images(&own);
        }
        let of = facts.machines.iter().find(|m| m.name == *name);
        let of = of.ok_or_else(|| missing("machine", name.as_str()))?;
        Ok(Configurations::new(&facts).of(of, &facts.images))
    }

    /// What there is of a cluster now.
    pub async fn observe(&self, name: &ClusterName) -> Result<Observed, EffectError> {
        let cluster: Option<Cluster> = self.records.get(name.as_str()).await?;
        let machines = self.records.machines_of(name.as_str()).await?;
        self.look(name, cluster.as_ref(), &machines).await
    }

    /// What there is of a cluster now, seen with records that are not written yet.
    pub async fn observe_as(
        &self,
        cluster: &Cluster,
        machines: &[Machine],
    ) -> Result<Observed, EffectError> {
        self.look(&cluster.spec.name, Some(cluster), machines).await
    }

    async fn look(
        &self,
        name: &ClusterName,
        cluster: Option<&Cluster>,
        machines: &[Machine],
    ) -> Result<Observed, EffectError> {
        let of = |error: crate::provider::ProviderError| EffectError::of(error.class(), &error);
        let views = self.provider.machines().await.map_err(of)?;
        let disks = self.provider.disks().await.map_err(of)?;
        let endpoints = self.provider.endpoints().await.map_err(of)?;
        Ok(inputs::observe(
            cluster, name, machines, &views, &disks, &endpoints,
        ))
    }
}

fn missing(kind: &str, name: &str) -> EffectError {
    EffectError::new(
        ErrorClass::Bug,
        format!("{kind} {name} is not in the store although a plan needs it"),
    )
}
