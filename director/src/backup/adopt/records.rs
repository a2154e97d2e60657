//! Records as they are after adopting: read from what machines carry at the provider, and from each other.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::cluster::{MachineSize, PoolSpec};
use windlass_common::error::ErrorClass;
use windlass_common::id::{
    ClusterName, Digest, DiskName, MachineName, NodeName, PoolName, ZoneName,
};

use super::{Change, CountDifference, Found, MachineDifference};
use crate::model::{
    Cluster, ClusterPhase, Fault, Machine, MachineDraft, MachinePhase, MachineRole, Task,
    TaskState, Timestamp, Wanted,
};
use crate::planner::inputs::CLUSTER_TAG;
use crate::provider::MachineView;

/// The tag that names the data disk of a machine.
pub(super) const DISK_TAG: &str = "windlass.data-disk";

/// Tags that describe a machine, so that its record can be written anew.
mod tag {
    pub(super) const POOL: &str = "windlass.pool";
    pub(super) const PODS: &str = "windlass.pod-cidr";
    pub(super) const STEMCELL: &str = "windlass.stemcell";
    pub(super) const KUBERNETES: &str = "windlass.kubernetes";
    pub(super) const CPU: &str = "windlass.cpu-millis";
    pub(super) const MEMORY: &str = "windlass.memory-mib";
    pub(super) const DISK_SIZE: &str = "windlass.disk-mib";
    pub(super) const DISK: &str = super::DISK_TAG;
    pub(super) const ZONE: &str = "windlass.zone";
    /// Value of [`POOL`] for machines of the control plane; no pool may be called so.
    pub(super) const CONTROL_PLANE: &str = "cp";
}

/// What a machine carries at the provider, so that its cluster and its record are known without the store.
pub fn tags(machine: &Machine) -> BTreeMap<String, String> {
    let pool = machine.role.pool();
    let pool = pool.map_or(tag::CONTROL_PLANE, PoolName::as_str);
    let mut tags = BTreeMap::from([
        (CLUSTER_TAG.to_owned(), machine.cluster.to_string()),
        (tag::POOL.to_owned(), pool.to_owned()),
        (tag::PODS.to_owned(), machine.pod_cidr.to_string()),
        (tag::STEMCELL.to_owned(), machine.stemcell.clone()),
        (
            tag::KUBERNETES.to_owned(),
            machine.kubernetes_version.clone(),
        ),
        (tag::CPU.to_owned(), machine.size.cpu_millis.to_string()),
        (tag::MEMORY.to_owned(), machine.size.memory_mib.to_string()),
        (tag::DISK_SIZE.to_owned(), machine.size.disk_mib.to_string()),
    ]);
    if let Some(disk) = &machine.data_disk {
        tags.insert(tag::DISK.to_owned(), disk.to_string());
    }
    if let Some(zone) = &machine.zone {
        tags.insert(tag::ZONE.to_owned(), zone.to_string());
    }
    tags
}

/// What a machine carries, read back.
pub(super) struct Described {
    role: MachineRole,
    pod_cidr: ipnet::Ipv4Net,
    stemcell: String,
    kubernetes_version: String,
    size: MachineSize,
    data_disk: Option<DiskName>,
    zone: Option<ZoneName>,
}

pub(super) fn described(view: &MachineView) -> Option<Described> {
    let text = |key: &str| view.tags.get(key).map(String::as_str);
    let number = |key: &str| text(key)?.parse::<u32>().ok();
    let role = match text(tag::POOL)? {
        tag::CONTROL_PLANE => MachineRole::ControlPlane,
        pool => MachineRole::Worker {
            pool: PoolName::new(pool).ok()?,
        },
    };
    let data_disk = match text(tag::DISK) {
        Some(name) => Some(DiskName::new(name).ok()?),
        None => None,
    };
    // A control-plane machine without its disk would be made with an empty one.
    if role.is_control_plane() && data_disk.is_none() {
        return None;
    }
    Some(Described {
        role,
        pod_cidr: text(tag::PODS)?.parse().ok()?,
        stemcell: text(tag::STEMCELL)?.to_owned(),
        kubernetes_version: text(tag::KUBERNETES)?.to_owned(),
        size: MachineSize {
            cpu_millis: number(tag::CPU)?,
            memory_mib: number(tag::MEMORY)?,
            disk_mib: number(tag::DISK_SIZE)?,
        },
        data_disk,
        zone: text(tag::ZONE).and_then(|zone| ZoneName::new(zone).ok()),
    })
}

/// A digest of no configuration: what a machine was configured and started with that the records do not know.
/// The next plan of its cluster writes the wanted one, and restarts what it changes.
fn unknown_configuration() -> Digest {
    Digest::of(b"adopted: not known what it was configured with")
}

/// All records of machines after adopting these differences, by name.
pub(super) fn records_after(
    found: &Found<'_>,
    differences: &[MachineDifference],
    forget: &BTreeSet<MachineName>,
) -> BTreeMap<MachineName, Machine> {
    let mut all: BTreeMap<MachineName, Machine> = found
        .machines
        .iter()
        .filter(|machine| !forget.contains(&machine.name))
        .map(|machine| (machine.name.clone(), machine.clone()))
        .collect();
    let views: BTreeMap<_, _> = found.views.iter().map(|v| (&v.name, v)).collect();
    for difference in differences {
        let Some(view) = views.get(&difference.machine) else {
            continue;
        };
        let adopted = match difference.change {
            Change::Replaced => all
                .get(&difference.machine)
                .and_then(|record| replaced(record, view)),
            Change::Added => added(difference, view, found.now),
            Change::Undescribed
            | Change::Foreign
            | Change::Gone
            | Change::Older
            | Change::Claimed => None,
        };
        if let Some(machine) = adopted {
            all.insert(machine.name.clone(), machine);
        }
    }
    all
}

/// The record of the incarnation that the provider has.
fn replaced(record: &Machine, view: &MachineView) -> Option<Machine> {
    let mut machine = record.clone();
    let node_name = machine.name.node_name(view.incarnation).ok()?;
    let departed = std::mem::replace(&mut machine.node_name, node_name);
    if !machine.departed.contains(&departed) {
        machine.departed.push(departed);
    }
    // It was to become what it is now, or something before that.
    if let Some(Wanted::Reborn { incarnation, .. }) = machine.wanted
        && incarnation <= view.incarnation
    {
        machine.take_over();
        machine.node_name = machine.name.node_name(view.incarnation).ok()?;
    }
    machine.incarnation = view.incarnation;
    (machine.fitted, machine.components) = Default::default();
    machine.staged.clear();
    machine.former = None;
    if let Some(of) = described(view) {
        machine.stemcell = of.stemcell;
        machine.kubernetes_version = of.kubernetes_version;
        machine.size = of.size;
    }
    in_service(&mut machine);
    Some(machine)
}

/// The record of a machine that the records do not have.
fn added(difference: &MachineDifference, view: &MachineView, now: Timestamp) -> Option<Machine> {
    let of = described(view)?;
    let node_name: NodeName = view.name.node_name(view.incarnation).ok()?;
    let mut machine = Machine {
        mounted: of.data_disk.is_some(),
        phase: MachinePhase::Ready,
        zone: of.zone,
        ..Machine::planned(
            MachineDraft {
                name: view.name.clone(),
                cluster: difference.cluster.clone()?,
                role: of.role,
                incarnation: view.incarnation,
                node_name,
                address: view.address,
                pod_cidr: of.pod_cidr,
                stemcell: of.stemcell,
                kubernetes_version: of.kubernetes_version,
                size: of.size,
                data_disk: of.data_disk,
            },
            now,
        )
    };
    in_service(&mut machine);
    Some(machine)
}

/// What is believed of a machine that runs and whose past is not known.
fn in_service(machine: &mut Machine) {
    machine.phase = MachinePhase::Ready;
    machine.configured = Some(unknown_configuration());
    machine.started = Some(unknown_configuration());
    machine.labelled = None;
    machine.condemned = false;
    machine.fenced = false;
    machine.heartbeat = None;
}

/// Machines of a cluster that are wanted: of its control plane, and of each pool.
fn wanted<'a>(
    cluster: &ClusterName,
    machines: impl Iterator<Item = &'a Machine>,
) -> BTreeMap<Option<PoolName>, u32> {
    let mut counts = BTreeMap::new();
    for machine in machines.filter(|m| m.cluster == *cluster && !m.is_surplus()) {
        *counts.entry(machine.role.pool().cloned()).or_insert(0) += 1;
    }
    counts
}

/// Counts of specs that no longer fit. Where the records themselves do not fit their spec, a task was under way,
/// and what it was to bring about is still wanted.
pub(super) fn counts(
    clusters: &[Cluster],
    before: &[Machine],
    after: &BTreeMap<MachineName, Machine>,
) -> Vec<CountDifference> {
    let mut all = Vec::new();
    for cluster in clusters {
        let name = &cluster.spec.name;
        let was = wanted(name, before.iter());
        let is = wanted(name, after.values());
        let pools: BTreeSet<_> = was.keys().chain(is.keys()).cloned().collect();
        for pool in pools {
            let (was, is) = (was.get(&pool), is.get(&pool).copied().unwrap_or(0));
            let recorded = match &pool {
                None => cluster.spec.control_plane.count,
                Some(pool) => cluster.spec.pools.get(pool).map_or(0, |pool| pool.count),
            };
            // A control plane has an odd number of machines; one in between is a change that goes on.
            let sound = pool.is_some() || is % 2 == 1;
            if was.copied().unwrap_or(0) != is && recorded != is && sound {
                all.push(CountDifference {
                    cluster: name.clone(),
                    pool,
                    recorded,
                    found: is,
                });
            }
        }
    }
    all
}

/// Records of clusters that change: counts, versions that machines have already, and no task.
pub(super) fn clusters_after(
    found: &Found<'_>,
    after: &BTreeMap<MachineName, Machine>,
) -> Vec<Cluster> {
    let counts = counts(found.clusters, found.machines, after);
    let mut changed = Vec::new();
    for cluster in found.clusters {
        let mut new = cluster.clone();
        let name = &cluster.spec.name;
        for count in counts.iter().filter(|count| count.cluster == *name) {
            match &count.pool {
                None => new.spec.control_plane.count = count.found,
                Some(pool) => set_count(&mut new, pool, count.found, after),
            }
        }
        let newest = after
            .values()
            .filter(|machine| machine.cluster == *name)
            .max_by_key(|machine| version(&machine.kubernetes_version));
        if let Some(newest) = newest
            && version(&newest.kubernetes_version) > version(&new.spec.kubernetes_version)
        {
            new.spec.kubernetes_version = newest.kubernetes_version.clone();
            new.stemcell = newest.stemcell.clone();
        }
        // Whether its API servers were raised since is not known, and one that was does not go back.
        new.emulates = None;
        if found.tasks.iter().any(|task| task.cluster == *name) || new.task.is_some() {
            new.task = None;
            new.upgrade = None;
            new.phase = match new.phase {
                ClusterPhase::Creating | ClusterPhase::Deleting => ClusterPhase::Failed,
                ClusterPhase::Updating => ClusterPhase::Degraded,
                phase @ (ClusterPhase::Ready | ClusterPhase::Degraded | ClusterPhase::Failed) => {
                    phase
                }
            };
            new.message = Some(ENDED.to_owned());
        }
        if new != *cluster {
            changed.push(new);
        }
    }
    changed
}

fn set_count(
    cluster: &mut Cluster,
    pool: &PoolName,
    count: u32,
    machines: &BTreeMap<MachineName, Machine>,
) {
    if let Some(spec) = cluster.spec.pools.get_mut(pool) {
        spec.count = count;
        return;
    }
    // A pool that was added since: as its machines are, without the labels that nobody knows.
    let name = &cluster.spec.name;
    let one = machines
        .values()
        .find(|m| m.cluster == *name && m.role.pool() == Some(pool));
    if let Some(machine) = one {
        let spec = PoolSpec {
            count,
            size: machine.size,
            labels: BTreeMap::new(),
            kubelet: BTreeMap::new(),
            update: Default::default(),
            self_fence: None,
        };
        cluster.spec.pools.insert(pool.clone(), spec);
    }
}

/// The numbers of a version, for comparing.
fn version(text: &str) -> Vec<u32> {
    text.split('.')
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// Why a task of the backup is over.
const ENDED: &str = "the director was restored from a backup that was taken while this was under way; \
                     look what became of it, then order it again";

pub(super) fn ended(task: &Task, now: Timestamp) -> Task {
    let mut task = task.clone();
    task.state = TaskState::Failed;
    task.ended_at = Some(now);
    task.error = Some(Fault {
        class: ErrorClass::Operator,
        message: ENDED.to_owned(),
    });
    task
}
