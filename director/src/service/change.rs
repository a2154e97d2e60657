//! Drafts a change of a cluster: what each of its machines is to become, and which join or go.
//!
//! # Invariants
//! * What cannot change in place is refused, every fault named, before anything is written.
//! * A machine that exists and has to be another keeps its name, address, pod network and data disk, and gets
//!   the next incarnation.
//! * Where a machine's strategy says so and its stemcell differs from the wanted one in components alone, it keeps its
//!   incarnation and gets these.
//! * A pool that has machines to replace gets its surge in new machines, and loses as many old ones: those
//!   that are down first, then those that would have to be replaced, then those whose zone has most, then the highest
//!   number.
//! * A later minor is come to leg by leg, a minor at a time; see [`crate::planner::legs`].
//! * The control plane gets or loses machines and nothing else in one order: those it loses are those that have
//!   no vote yet, then those that are down, then those whose zone has most, then the highest number.

use std::collections::BTreeSet;

use windlass_common::cluster::{ClusterSpec, MachineSize, PoolSpec, UpdateStrategy};
use windlass_common::id::{MachineName, PoolName};

use super::draft::{CONTROL_PLANE, Draft, Drafter, Slot, full, machine, valid};
use super::{ServiceError, ServiceResult};
use crate::kubernetes::facts::minor_of;
use crate::model::{
    Cluster, FieldFault, Joined, Leg, Machine, MachinePhase, MachineRole, StemcellRecord,
    Timestamp, Upgrade, Wanted,
};
use crate::planner::{Observed, free_pod_cidrs, inputs, legs, refit, zones};

/// Which stemcell machines are made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StemcellChoice {
    /// The one in use, or the newest of another Kubernetes version that the spec asks for.
    #[default]
    Keep,
    /// The newest with the spec's Kubernetes version.
    Newest,
}

impl Drafter<'_> {
    /// Drafts the cluster as `spec` wants it, out of what there is; where it wants a later minor, as the first leg on
    /// the way there makes it.
    pub(crate) async fn change(
        &self,
        cluster: &Cluster,
        spec: &ClusterSpec,
        choice: &StemcellChoice,
        observed: &Observed,
    ) -> ServiceResult<Draft> {
        let machines = self.records.machines_of(spec.name.as_str()).await?;
        let mut faults = self.faults(spec);
        faults.extend(fixed(&cluster.spec, spec));
        faults.extend(version_step(cluster, &spec.kubernetes_version));
        let stemcell = self.stemcell_for(cluster, spec, choice);
        if let Err(fault) = &stemcell {
            faults.push(fault.clone());
        }
        let (Ok(stemcell), true) = (stemcell, faults.is_empty()) else {
            return Err(ServiceError::Invalid { faults });
        };
        let upgrade = self.way(cluster, &machines, &stemcell)?;
        let mut changed = cluster.clone();
        changed.spec = spec.clone();
        let leg = upgrade.leg().cloned();
        let leg = leg.ok_or_else(|| ServiceError::Bug {
            what: format!("the upgrade of cluster {} has no leg", spec.name),
            source: None,
        })?;
        let told = upgrade.goes_on() || cluster.emulates.is_some();
        changed.upgrade = told.then_some(upgrade);
        self.goes_back(&machines, &stemcell)?;
        let count = cluster.spec.control_plane.count;
        self.leg(changed, &leg, count, machines, observed).await
    }

    /// Drafts the leg that comes after the one that is done; `None` when none does. `machines` are those that the
    /// cluster has now.
    pub(crate) async fn next_leg(
        &self,
        cluster: &Cluster,
        machines: Vec<Machine>,
        observed: &Observed,
    ) -> ServiceResult<Option<Draft>> {
        let mut changed = cluster.clone();
        let Some(upgrade) = changed.upgrade.as_mut().filter(|upgrade| upgrade.goes_on()) else {
            return Ok(None);
        };
        upgrade.at += 1;
        let Some(leg) = upgrade.leg().cloned() else {
            return Ok(None);
        };
        let count = changed.spec.control_plane.count;
        self.leg(changed, &leg, count, machines, observed)
            .await
            .map(Some)
    }

    /// The legs from what runs to a stemcell.
    fn way(
        &self,
        cluster: &Cluster,
        machines: &[Machine],
        target: &StemcellRecord,
    ) -> ServiceResult<Upgrade> {
        let minor = |version: &String| minor_of(version);
        let oldest = |control_plane: bool| {
            let of = |m: &&Machine| m.role.is_control_plane() == control_plane && !m.is_surplus();
            let versions = machines
                .iter()
                .filter(of)
                .map(|m| inputs::version(cluster, m));
            versions.min_by_key(minor)
        };
        let servers = oldest(true).unwrap_or_else(|| cluster.spec.kubernetes_version.clone());
        let served = minor(&servers).ok_or_else(|| ServiceError::Bug {
            what: format!("{servers} is no version of Kubernetes"),
            source: None,
        })?;
        let kubelets = oldest(false).as_ref().and_then(minor);
        let (known, _) = self
            .stemcells
            .list()
            .map_err(|error| ServiceError::of(error.class(), "stemcells", error))?;
        let members = machines.iter().filter(|m| m.role.is_control_plane());
        let version = |m: &&Machine| minor(&inputs::version(cluster, m));
        let newest = members.clone().max_by_key(version);
        let current = newest.and_then(|newest| self.stemcells.get(newest.runs()).ok());
        let made = |m: &Machine| Some(m.runs()) == newest.map(Machine::runs);
        let start = legs::Start {
            servers: &servers,
            newest: newest.as_ref().and_then(version).unwrap_or(served),
            emulates: cluster.emulates,
            kubelets: kubelets.unwrap_or(served),
            stemcell: current.as_ref(),
            made: members.clone().all(made),
        };
        let legs = legs::legs(start, target, &known).map_err(|error| ServiceError::Invalid {
            faults: vec![FieldFault::new(
                "kubernetesVersion",
                &target.kubernetes_version,
                format!("a version that there is a way to; {error}"),
            )],
        })?;
        let back = minor(&target.kubernetes_version) < newest.as_ref().and_then(version);
        let from = newest.filter(|_| back).map(|m| inputs::version(cluster, m));
        Ok(Upgrade {
            from: from.unwrap_or(servers),
            legs,
            at: 0,
        })
    }

    /// Refuses a control plane whose etcd would not take over its data.
    fn goes_back(&self, machines: &[Machine], target: &StemcellRecord) -> ServiceResult<()> {
        let members = machines.iter().filter(|m| m.role.is_control_plane());
        for member in members {
            let Ok(now) = self.stemcells.get(member.runs()) else {
                continue; // nobody can tell
            };
            if let Some(why) = legs::etcd_refuses(&now, target) {
                let version = &target.kubernetes_version;
                let allowed = format!(
                    "a version whose etcd goes on with the data of {}: {why}",
                    member.name
                );
                return Err(ServiceError::Invalid {
                    faults: vec![FieldFault::new("kubernetesVersion", version, allowed)],
                });
            }
        }
        Ok(())
    }

    /// Drafts one leg: what each machine is to become in it, and which join or go. The spec gets its version;
    /// `count` is the number of control-plane machines that it had.
    async fn leg(
        &self,
        mut changed: Cluster,
        leg: &Leg,
        count: u32,
        mut machines: Vec<Machine>,
        observed: &Observed,
    ) -> ServiceResult<Draft> {
        let stemcell = self.stemcells.get(&leg.stemcell);
        let stemcell =
            stemcell.map_err(|error| ServiceError::of(error.class(), "a stemcell", error))?;
        for machine in &mut machines {
            machine.kubernetes_version = inputs::version(&changed, machine);
        }
        changed
            .spec
            .kubernetes_version
            .clone_from(&leg.kubernetes_version);
        changed.stemcell.clone_from(&leg.stemcell);
        let raises = changed.emulates.is_some() && leg.emulates.is_none();
        changed.emulates = leg.emulates;
        let spec = &changed.spec;
        for machine in &mut machines {
            let serves = available(&machine.name, observed);
            if machine.role.is_control_plane() || leg.workers || machine.is_surplus() {
                self.retarget(machine, spec, &stemcell, observed);
            } else if serves || machine.phase == MachinePhase::Planned {
                machine.pinned = false;
                machine.wanted = None;
            } else {
                // A kubelet is no newer than what API servers emulate: one that is down comes back as it was.
                machine.wanted = Some(machine.as_it_is());
            }
        }
        let others = |m: &Machine| {
            matches!(
                m.wanted,
                Some(Wanted::Reborn { .. } | Wanted::Refitted { .. })
            )
        };
        let mut members = machines.iter().filter(|m| m.role.is_control_plane());
        if count != spec.control_plane.count && (raises || members.any(others)) {
            let allowed = format!(
                "{count}: the control plane gets another size, or other machines or API servers that emulate no more, \
                 not both at once; order one after the other"
            );
            let count = spec.control_plane.count;
            return Err(ServiceError::Invalid {
                faults: vec![FieldFault::new("controlPlane.count", count, allowed)],
            });
        }
        self.resize_control_plane(spec, &stemcell, &mut machines, observed)
            .await?;
        if leg.workers {
            for (pool, of) in &spec.pools {
                self.resize(spec, &stemcell, (pool, of), &mut machines, observed)
                    .await?;
            }
        }
        zones::spread(&mut machines, &self.provider.zones());
        machines.sort_by(|a, b| a.name.cmp(&b.name));
        valid(&inputs::facts(&changed, &machines, &stemcell, self.host))?;
        Ok(Draft {
            cluster: changed,
            machines,
        })
    }

    /// Sets what a machine is to become, apart from whether it stays.
    fn retarget(
        &self,
        machine: &mut Machine,
        spec: &ClusterSpec,
        stemcell: &StemcellRecord,
        observed: &Observed,
    ) {
        let Some((size, strategy)) = inputs::update(spec, &machine.role) else {
            machine.wanted = Some(Wanted::Gone);
            return;
        };
        machine.pinned = false;
        if machine.data_disk.is_some() && size.disk_mib > machine.size.disk_mib {
            // Of one that is not made yet, too: its disk may be.
            machine.grows_from_mib.get_or_insert(machine.size.disk_mib);
            machine.size.disk_mib = size.disk_mib;
        }
        let exists = observed.machines.contains_key(&machine.name);
        let left = machine.role.is_control_plane() && !machine.votes();
        if machine.is_surplus() && (!exists || left) {
            return; // what is left of it goes; another one may come under its name later
        }
        // What was shut out does not come back as the same, whatever else is wanted of it.
        let same = !machine.fenced
            && machine.runs() == stemcell.version
            && refit::same_shape(machine.size, size);
        machine.wanted = None;
        if same {
            machine.stay();
            return;
        }
        if !exists && machine.phase == MachinePhase::Planned {
            machine.stemcell.clone_from(&stemcell.version);
            machine
                .kubernetes_version
                .clone_from(&stemcell.kubernetes_version);
            machine.size = size;
            return;
        }
        // What is down comes back whole.
        let strategy = if available(&machine.name, observed) {
            strategy
        } else {
            UpdateStrategy::Replace
        };
        let from = self.stemcells.get(machine.runs()).ok();
        machine.wanted = Some(refit::becomes(
            machine,
            size,
            strategy,
            from.as_ref(),
            stemcell,
        ));
    }

    fn stemcell_for(
        &self,
        cluster: &Cluster,
        spec: &ClusterSpec,
        choice: &StemcellChoice,
    ) -> Result<StemcellRecord, FieldFault> {
        let version = &spec.kubernetes_version;
        // An upgrade that failed on its way goes on to what it was to lead to.
        let target = cluster.upgrade.as_ref().and_then(|way| way.legs.last());
        let target = target.map(|leg| (&leg.kubernetes_version, &leg.stemcell));
        let current = (&cluster.spec.kubernetes_version, &cluster.stemcell);
        let mut kept = target.into_iter().chain([current]);
        let found = match kept.find(|(of, _)| *of == version) {
            Some((_, stemcell)) if *choice == StemcellChoice::Keep => self.stemcells.get(stemcell),
            _ => self.stemcells.find(version),
        };
        found.map_err(|error| {
            let allowed = format!("the version of a verified stemcell; {error}");
            FieldFault::new("kubernetesVersion", version, allowed)
        })
    }

    /// Brings the control plane to its number.
    async fn resize_control_plane(
        &self,
        spec: &ClusterSpec,
        stemcell: &StemcellRecord,
        machines: &mut Vec<Machine>,
        observed: &Observed,
    ) -> ServiceResult<()> {
        let count = usize::try_from(spec.control_plane.count).unwrap_or(usize::MAX);
        let members = |m: &&Machine| m.role.is_control_plane() && !m.is_surplus();
        let worth = |m: &Machine| (m.votes(), available(&m.name, observed));
        let going = cheapest_first(machines.iter().filter(members), worth);
        for name in going.iter().take(going.len().saturating_sub(count)) {
            mark_gone(machines, name);
        }
        let missing = count.saturating_sub(going.len());
        let kind = Kind {
            text: CONTROL_PLANE,
            role: MachineRole::ControlPlane,
            size: spec.control_plane.size,
        };
        let mut joining = self
            .join(spec, stemcell, kind, machines, (missing, 0))
            .await?;
        for machine in &mut joining {
            machine.joined = Some(Joined::default());
            machine.serving = false;
        }
        machines.extend(joining);
        Ok(())
    }

    /// Brings a pool to its number, with the machines that it gets for the time of a replacement.
    async fn resize(
        &self,
        spec: &ClusterSpec,
        stemcell: &StemcellRecord,
        (pool, of): (&PoolName, &PoolSpec),
        machines: &mut Vec<Machine>,
        observed: &Observed,
    ) -> ServiceResult<()> {
        let count = usize::try_from(of.count).unwrap_or(usize::MAX);
        let mut going = candidates(pool, machines, observed);
        let surplus = going.len().saturating_sub(count);
        let missing = count.saturating_sub(going.len());
        for name in going.drain(..surplus) {
            mark_gone(machines, &name);
        }
        let stale = |name: &MachineName| {
            let found = machines.iter().find(|machine| machine.name == *name);
            let reborn = |m: &Machine| matches!(m.wanted, Some(Wanted::Reborn { .. }));
            found.is_some_and(reborn) && available(name, observed)
        };
        going.retain(stale);
        let surge = usize::try_from(of.update.max_surge.at_least(of.count)).unwrap_or(usize::MAX);
        let surge = surge.min(going.len());
        let kind = Kind {
            text: pool.as_str(),
            role: MachineRole::Worker { pool: pool.clone() },
            size: of.size,
        };
        let joining = self
            .join(spec, stemcell, kind, machines, (missing, surge))
            .await?;
        for name in going.iter().take(joining.len().saturating_sub(missing)) {
            mark_gone(machines, name);
        }
        machines.extend(joining);
        Ok(())
    }

    /// New machines: those that are missing, and as many of the surge as there is room for.
    async fn join(
        &self,
        spec: &ClusterSpec,
        stemcell: &StemcellRecord,
        kind: Kind<'_>,
        machines: &[Machine],
        (missing, surge): (usize, usize),
    ) -> ServiceResult<Vec<Machine>> {
        if missing + surge == 0 {
            return Ok(Vec::new());
        }
        // Addresses of machines that were drafted a moment ago are not in the store yet.
        let drafted: BTreeSet<_> = machines.iter().map(|m| m.address).collect();
        let cidrs: BTreeSet<_> = machines.iter().map(|m| m.pod_cidr).collect();
        let mut room = missing + surge;
        let (addresses, pods) = loop {
            let addresses = self.addresses(&drafted, room).await;
            let pods = free_pod_cidrs(spec.network.pod_cidr, &cidrs, room)
                .map_err(|error| full("network.podCidr", error));
            match (addresses, pods) {
                (Ok(addresses), Ok(pods)) => break (addresses, pods),
                (Err(error), _) | (_, Err(error)) if room == missing => return Err(error),
                _ => room -= 1,
            }
        };
        let names: BTreeSet<&str> = machines.iter().map(|m| m.name.as_str()).collect();
        let free = (0u32..)
            .map(|number| format!("{}-{}-{number}", spec.name, kind.text))
            .filter(|name| !names.contains(name.as_str()));
        let now = Timestamp::now();
        let mut joining = Vec::new();
        for ((name, address), pod_cidr) in free.zip(addresses).zip(pods) {
            let slot = Slot {
                name,
                role: kind.role.clone(),
                size: kind.size,
            };
            let mut machine = machine(spec, stemcell, slot, address, pod_cidr, now)?;
            machine.additional = true;
            joining.push(machine);
        }
        self.refuse_taken_names(spec, &joining).await?;
        Ok(joining)
    }
}

/// What new machines are for.
struct Kind<'a> {
    /// Stands for it in names.
    text: &'a str,
    role: MachineRole,
    size: MachineSize,
}

fn available(name: &MachineName, observed: &Observed) -> bool {
    let found = observed.machines.get(name);
    found.is_some_and(crate::planner::ObservedMachine::available)
}

/// The machines of a pool that are not on their way out, those that go first in front.
fn candidates(pool: &PoolName, machines: &[Machine], observed: &Observed) -> Vec<MachineName> {
    let of_pool = |m: &&Machine| m.role.pool() == Some(pool) && !m.is_surplus();
    let worth = |m: &Machine| (available(&m.name, observed), m.wanted.is_none());
    cheapest_first(machines.iter().filter(of_pool), worth)
}

/// Machines, those that are worth least first; of equals those whose zone has most, then the highest number.
fn cheapest_first<'a, T: Ord>(
    machines: impl Iterator<Item = &'a Machine>,
    worth: impl Fn(&Machine) -> T,
) -> Vec<MachineName> {
    let mut all: Vec<&Machine> = machines.collect();
    all.sort_by_key(|m| (worth(m), std::cmp::Reverse(number(&m.name))));
    let equals = all.chunk_by(|a, b| worth(a) == worth(b));
    equals
        .flat_map(|equals| {
            let equals: Vec<Machine> = equals.iter().copied().cloned().collect();
            zones::crowded_first(&equals)
        })
        .collect()
}

/// The number at the end of a machine's name.
fn number(name: &MachineName) -> u32 {
    let number = name.as_str().rsplit('-').next();
    number.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn mark_gone(machines: &mut [Machine], name: &MachineName) {
    for machine in machines.iter_mut().filter(|m| m.name == *name) {
        machine.wanted = Some(Wanted::Gone);
    }
}

/// What a cluster cannot become in place.
fn fixed(now: &ClusterSpec, wanted: &ClusterSpec) -> Vec<FieldFault> {
    let mut faults = Vec::new();
    let networks = [
        (
            "network.podCidr",
            now.network.pod_cidr,
            wanted.network.pod_cidr,
        ),
        (
            "network.serviceCidr",
            now.network.service_cidr,
            wanted.network.service_cidr,
        ),
    ];
    for (key, now, wanted) in networks
        .into_iter()
        .filter(|(_, now, wanted)| now != wanted)
    {
        let allowed = format!("{now}: networks of a cluster do not change");
        faults.push(FieldFault::new(key, wanted, allowed));
    }
    let (from, to) = (
        now.control_plane.size.disk_mib,
        wanted.control_plane.size.disk_mib,
    );
    if to < from {
        let allowed = format!("{from} or more: data disks grow and do not shrink");
        faults.push(FieldFault::new("controlPlane.size.diskMib", to, allowed));
    }
    for pool in now
        .pools
        .iter()
        .filter(|(name, pool)| pool.count > 0 && !wanted.pools.contains_key(*name))
    {
        let key = format!("pools.{}", pool.0);
        let allowed = "scaled to 0 first, and left out of the spec then";
        faults.push(FieldFault::new(key, "not given", allowed));
    }
    faults
}

/// Kubernetes does not go back by a minor, but to one that its API servers never stopped emulating.
fn version_step(cluster: &Cluster, to: &str) -> Option<FieldFault> {
    let runs = &cluster.spec.kubernetes_version;
    let (oldest, new) = (cluster.emulates.or(minor_of(runs))?, minor_of(to)?);
    if new >= oldest {
        return None;
    }
    let allowed = match cluster.emulates {
        Some(_) => {
            format!("1.{oldest}.x or later: that is what its API servers emulate ({runs} runs)")
        }
        None => {
            format!("1.{oldest}.x or later: API servers do not go back by a minor ({runs} runs)")
        }
    };
    Some(FieldFault::new("kubernetesVersion", to, allowed))
}

#[cfg(test)]
mod tests {
    use super::super::tests::spec;
    use super::*;

    #[test]
    fn data_disks_grow_and_do_not_shrink() {
        let now = spec("demo");
        let of = |disk_mib: u32| {
            let mut wanted = now.clone();
            wanted.control_plane.size.disk_mib = disk_mib;
            fixed(&now, &wanted)
        };
        let has = now.control_plane.size.disk_mib;
        assert!(of(has).is_empty() && of(has + 1).is_empty());
        let faults = of(has - 1);
        assert_eq!(faults.len(), 1);
        let said = format!("{:?}", faults[0]);
        assert!(said.contains("controlPlane.size.diskMib"), "{said}");
        assert!(said.contains("do not shrink"), "{said}");
    }
}
