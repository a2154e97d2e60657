//! Drafts a cluster: names, addresses and the records that an order will write.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use windlass_common::cluster::ClusterSpec;
use windlass_common::id::{DiskName, Incarnation, MachineName};

use super::{ServiceError, ServiceResult};
use crate::kubernetes::API_PORT;
use crate::kubernetes::facts::{ClusterFacts, HostTraits};
use crate::model::{
    Cluster, ClusterPhase, Endpoint, FieldFault, Machine, MachineDraft, MachineRole, Revision,
    StemcellRecord, Timestamp,
};
use crate::planner::{free_addresses, free_pod_cidrs, inputs, zones};
use crate::provider::Provider;
use crate::stemcell::Catalogue;
use crate::store::{Kind, Records};

/// A cluster that is not ordered yet.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) cluster: Cluster,
    pub(crate) machines: Vec<Machine>,
}

/// First numbers of machines, by pool; 0 for those that are not named.
pub(super) type Numbers = BTreeMap<String, u32>;

/// What a machine is drafted from.
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) role: MachineRole,
    pub(super) size: windlass_common::cluster::MachineSize,
}

/// Drafts clusters and changes of them, out of what there is. Reads only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drafter<'a> {
    /// The store.
    pub(crate) records: &'a Records,
    /// Whose network machines are on.
    pub(crate) provider: &'a dyn Provider,
    /// Stemcells that are known.
    pub(crate) stemcells: &'a Catalogue,
    /// What the provider's machines cannot do.
    pub(crate) host: HostTraits,
}

impl Drafter<'_> {
    /// Drafts a cluster of this spec out of free addresses; refuses what cannot work, all faults at once. Its machines
    /// are numbered from `first` on.
    pub(super) async fn draft(&self, spec: &ClusterSpec, first: &Numbers) -> ServiceResult<Draft> {
        let mut faults = self.faults(spec);
        let stemcell = self.stemcells.find(&spec.kubernetes_version);
        if let Err(error) = &stemcell {
            faults.push(FieldFault::new(
                "kubernetesVersion",
                &spec.kubernetes_version,
                format!("the version of a verified stemcell; {error}"),
            ));
        }
        let (Ok(stemcell), true) = (stemcell, faults.is_empty()) else {
            return Err(ServiceError::Invalid { faults });
        };
        let slots = slots(spec, first);
        let draft = self.place(spec, &stemcell, slots).await?;
        self.refuse_taken_names(spec, &draft.machines).await?;
        let facts = inputs::facts(&draft.cluster, &draft.machines, &stemcell, self.host);
        valid(&facts)?;
        Ok(draft)
    }

    /// Faults that only a running director can see.
    pub(super) fn faults(&self, spec: &ClusterSpec) -> Vec<FieldFault> {
        let machines = self.provider.network().cidr;
        let mut faults = Vec::new();
        for (key, network) in [
            ("network.podCidr", spec.network.pod_cidr),
            ("network.serviceCidr", spec.network.service_cidr),
        ] {
            if network.contains(&machines.network()) || machines.contains(&network.network()) {
                let allowed = format!("a network that does not overlap the machines' {machines}");
                faults.push(FieldFault::new(key, network, allowed));
            }
        }
        if let Some(pool) = spec
            .pools
            .keys()
            .find(|pool| pool.as_str() == CONTROL_PLANE)
        {
            let allowed = "another name: `cp` names the control plane's machines";
            faults.push(FieldFault::new("pools", pool, allowed));
        }
        faults
    }

    /// Machine names are unique within a director, and `a` with pool `b-c` makes the same ones as `a-b`
    /// with pool `c`.
    pub(super) async fn refuse_taken_names(
        &self,
        spec: &ClusterSpec,
        machines: &[Machine],
    ) -> ServiceResult<()> {
        let mut faults = Vec::new();
        for machine in machines {
            let other: Option<Machine> = self.records.get(machine.name.as_str()).await?;
            // The cluster's own are told apart by whoever drafts them.
            if let Some(other) = other.filter(|other| other.cluster != spec.name) {
                let allowed = format!(
                    "cluster and pool names that make new machines; {} belongs to cluster {}",
                    other.name, other.cluster
                );
                faults.push(FieldFault::new("name", &spec.name, allowed));
            }
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(ServiceError::Invalid { faults })
        }
    }

    async fn place(
        &self,
        spec: &ClusterSpec,
        stemcell: &StemcellRecord,
        slots: Vec<Slot>,
    ) -> ServiceResult<Draft> {
        let network = self.provider.network();
        let mut addresses = self
            .addresses(&BTreeSet::new(), slots.len() + 1)
            .await?
            .into_iter();
        let pods = free_pod_cidrs(spec.network.pod_cidr, &BTreeSet::new(), slots.len())
            .map_err(|error| full("network.podCidr", error))?;
        let now = Timestamp::now();
        let endpoint = addresses.next().unwrap_or(network.gateway);
        let mut machines = Vec::with_capacity(slots.len());
        for ((slot, address), pod_cidr) in slots.into_iter().zip(addresses).zip(pods) {
            machines.push(machine(spec, stemcell, slot, address, pod_cidr, now)?);
        }
        zones::spread(&mut machines, &self.provider.zones());
        machines.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Draft {
            cluster: Cluster {
                spec: spec.clone(),
                endpoint: Endpoint {
                    name: format!("{}.clusters.windlass.internal", spec.name),
                    address: endpoint,
                    port: API_PORT,
                },
                stemcell: stemcell.version.clone(),
                phase: ClusterPhase::Creating,
                message: None,
                task: None,
                addons: None,
                authorities_expire_at: None,
                secrets: Default::default(),
                rotation: None,
                upgrade: None,
                renewal_tried_at: None,
                made_from: None,
                emulates: None,
                revision: Revision(0),
                created_at: now,
            },
            machines,
        })
    }

    /// So many free addresses of the provider's network that are not in `drafted`, lowest first.
    pub(super) async fn addresses(
        &self,
        drafted: &BTreeSet<Ipv4Addr>,
        count: usize,
    ) -> ServiceResult<Vec<Ipv4Addr>> {
        let network = self.provider.network();
        let taken: Vec<(String, serde_json::Value)> =
            self.records.values(Kind::Address, "").await?;
        let mut used: BTreeSet<Ipv4Addr> = network.reserved.iter().copied().collect();
        used.insert(network.gateway);
        used.extend(drafted);
        used.extend(
            taken
                .iter()
                .filter_map(|(name, _)| name.parse::<Ipv4Addr>().ok()),
        );
        free_addresses(network.cidr, &used, count).map_err(|error| full("provider.network", error))
    }
}

pub(super) fn full(key: &str, error: crate::planner::AddressError) -> ServiceError {
    ServiceError::Invalid {
        faults: vec![FieldFault::new(key, error.network, error.to_string())],
    }
}

pub(super) fn valid(facts: &ClusterFacts) -> ServiceResult<()> {
    facts.validate().map_err(|error| ServiceError::Invalid {
        faults: error
            .faults
            .iter()
            .map(|fault| FieldFault::new(&fault.key, &fault.value, &fault.allowed))
            .collect(),
    })
}

/// Stands for the control plane in names of machines; no pool may be called so.
pub(super) const CONTROL_PLANE: &str = "cp";

fn slots(spec: &ClusterSpec, first: &Numbers) -> Vec<Slot> {
    let name = |pool: &str, number: u32| {
        let number = first.get(pool).copied().unwrap_or_default() + number;
        format!("{}-{pool}-{number}", spec.name)
    };
    let control_planes = (0..spec.control_plane.count).map(|number| Slot {
        name: name(CONTROL_PLANE, number),
        role: MachineRole::ControlPlane,
        size: spec.control_plane.size,
    });
    let pools: &BTreeMap<_, _> = &spec.pools;
    let workers = pools.iter().flat_map(|(pool, of)| {
        (0..of.count).map(move |number| Slot {
            name: name(pool.as_str(), number),
            role: MachineRole::Worker { pool: pool.clone() },
            size: of.size,
        })
    });
    control_planes.chain(workers).collect()
}

pub(super) fn machine(
    spec: &ClusterSpec,
    stemcell: &StemcellRecord,
    slot: Slot,
    address: Ipv4Addr,
    pod_cidr: ipnet::Ipv4Net,
    now: Timestamp,
) -> ServiceResult<Machine> {
    let bug = |error: windlass_common::id::NameError| ServiceError::Bug {
        what: "a machine cannot be named".to_owned(),
        source: Some(Box::new(error)),
    };
    let name = MachineName::new(slot.name).map_err(bug)?;
    let node_name = name.node_name(Incarnation::FIRST).map_err(bug)?;
    // Random, so that a cluster of the same name never meets the data of one that was deleted.
    let data_disk = if slot.role.is_control_plane() {
        let text = format!("{name}-d{:06x}", random_u32()? >> 8);
        Some(DiskName::new(text).map_err(bug)?)
    } else {
        None
    };
    Ok(Machine::planned(
        MachineDraft {
            name,
            cluster: spec.name.clone(),
            role: slot.role,
            incarnation: Incarnation::FIRST,
            node_name,
            address,
            pod_cidr,
            stemcell: stemcell.version.clone(),
            kubernetes_version: stemcell.kubernetes_version.clone(),
            size: slot.size,
            data_disk,
        },
        now,
    ))
}

/// Random bits of the operating system.
pub(super) fn random_u32() -> ServiceResult<u32> {
    let mut bytes = [0; 4];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| ServiceError::Unavailable {
        what: "the operating system gave no random bytes".to_owned(),
        source: None,
    })?;
    Ok(u32::from_be_bytes(bytes))
}
