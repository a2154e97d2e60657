//! Makes the planner's inputs out of records and of what a provider shows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde_json::json;
use windlass_common::cluster::{ClusterSpec, KubeletSettings, MachineSize, UpdateStrategy};
use windlass_common::id::{
    ClusterName, Digest, DiskName, MachineName, NodeName, PoolName, ZoneName,
};

use super::{
    Budget, Desired, DesiredMachine, DesiredState, Observed, ObservedDisk, ObservedMachine, Refit,
};
use crate::kubernetes::facts::{
    ClusterFacts, Endpoint, EtcdFacts, HostTraits, Images, MachineFacts, Role, minor_of,
};
use crate::kubernetes::{API_PORT, addons, render};
use crate::model::{Cluster, Machine, MachinePhase, MachineRole, StemcellRecord, Wanted};
use crate::provider::{DiskView, EndpointView, MachineView, Power};

/// What the renderers have to know about a cluster, out of its records. Images are those of `stemcell`:
/// facts for a machine's configuration are made with the machine's own.
pub fn facts(
    cluster: &Cluster,
    machines: &[Machine],
    stemcell: &StemcellRecord,
    host: HostTraits,
) -> ClusterFacts {
    ClusterFacts {
        spec: cluster.spec.clone(),
        endpoint: Endpoint {
            name: cluster.endpoint.name.clone(),
            address: cluster.endpoint.address,
            port: cluster.endpoint.port,
        },
        machines: machines
            .iter()
            .map(|machine| machine_facts(cluster, machine, host))
            .collect(),
        upstream_dns: Vec::new(),
        images: images(stemcell),
        secrets: cluster.secrets,
    }
}

/// The images that machines of a stemcell carry.
pub fn images(stemcell: &StemcellRecord) -> Images {
    let image = |name: &str, default: String| stemcell.images.get(name).cloned().unwrap_or(default);
    let defaults = Images::default();
    Images {
        pause: image("pause", defaults.pause),
        coredns: image("coredns", defaults.coredns),
    }
}

fn machine_facts(cluster: &Cluster, machine: &Machine, host: HostTraits) -> MachineFacts {
    MachineFacts {
        name: machine.name.clone(),
        node_name: machine.node_name.clone(),
        role: match &machine.role {
            MachineRole::ControlPlane => Role::ControlPlane,
            MachineRole::Worker { pool } => Role::Worker { pool: pool.clone() },
        },
        zone: machine.zone.clone(),
        address: machine.address,
        pod_cidr: machine.pod_cidr,
        host,
        kubelet: kubelet(cluster, machine),
        etcd: EtcdFacts {
            initial_cluster: machine
                .joined
                .as_ref()
                .and_then(|j| j.initial_cluster.clone()),
            votes: machine.votes(),
            leaves: machine.is_surplus(),
        },
        emulates: emulates(cluster, machine),
        runs: Some(machine.is_to_run())
            .filter(|runs| *runs != machine.stemcell)
            .map(str::to_owned),
    }
}

/// What the API server of a machine is to emulate: nothing where it is no newer than that.
pub fn emulates(cluster: &Cluster, machine: &Machine) -> Option<u32> {
    let own = minor_of(&version(cluster, machine))?;
    let of = cluster.emulates.filter(|minor| *minor < own);
    of.filter(|_| machine.role.is_control_plane())
}

/// What the kubelet of a machine is told besides: what its pool says, or what it went back to.
pub fn kubelet(cluster: &Cluster, machine: &Machine) -> KubeletSettings {
    match &machine.proven {
        Some(proven) if machine.pinned => proven.clone(),
        _ => settings(cluster, machine),
    }
}

/// Which shape a machine has by the spec, and how it comes to another stemcell; `None` where its pool is in it no more.
pub fn update(spec: &ClusterSpec, role: &MachineRole) -> Option<(MachineSize, UpdateStrategy)> {
    match role {
        MachineRole::ControlPlane => {
            let of = &spec.control_plane;
            Some((of.size, of.update.strategy))
        }
        MachineRole::Worker { pool } => {
            let of = spec.pools.get(pool)?;
            Some((of.size, of.update.strategy))
        }
    }
}

/// What the spec says that the kubelet of a machine is told besides.
pub fn settings(cluster: &Cluster, machine: &Machine) -> KubeletSettings {
    let spec = &cluster.spec;
    let settings = match &machine.role {
        MachineRole::ControlPlane => Some(&spec.control_plane.kubelet),
        MachineRole::Worker { pool } => spec.pools.get(pool).map(|pool| &pool.kubelet),
    };
    settings.cloned().unwrap_or_default() // a pool that the spec has no more has no machines that stay
}

/// Digests of what one machine is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Configuration {
    /// Everything, routes to other machines included.
    pub whole: Digest,
    /// What its components are started with: the whole without the routes.
    pub components: Digest,
    /// What its Node is told.
    pub labels: Digest,
}

/// Digests of what the machines of a cluster are told: what they have in common is read once.
#[derive(Debug)]
pub struct Configurations<'a> {
    facts: &'a ClusterFacts,
    servers: serde_json::Value,
    peers: Digest,
}

impl<'a> Configurations<'a> {
    /// Of the machines of these facts.
    pub fn new(facts: &'a ClusterFacts) -> Self {
        let servers = addresses(&facts.control_planes());
        let mut peers: Vec<_> = facts
            .machines
            .iter()
            .map(|m| (m.address, m.pod_cidr))
            .collect();
        peers.sort();
        let peers = Digest::of(json!(peers).to_string().as_bytes());
        Self {
            facts,
            servers,
            peers,
        }
    }

    /// Of one machine, made from a stemcell with these images.
    pub fn of(&self, machine: &MachineFacts, images: &Images) -> Configuration {
        let facts = self.facts;
        // Named one by one, so that a new trait cannot be forgotten here.
        let HostTraits {
            cgroup_v1,
            restrict_oom_score_adj,
            read_only_conntrack,
            shared_disk,
        } = machine.host;
        let host = [
            cgroup_v1,
            restrict_oom_score_adj,
            read_only_conntrack,
            shared_disk,
        ];
        // A worker's proxy reads where the API servers are again by itself, so nothing restarts for that.
        let (member, members) = match machine.role {
            Role::ControlPlane => (
                json!(facts.spec.control_plane.size.disk_mib),
                addresses(&facts.etcd_members(machine)),
            ),
            Role::Worker { .. } => Default::default(),
        };
        let endpoint = &facts.endpoint;
        let mut components = json!({
            "rendering": render::REVISION,
            "cluster": facts.spec.name,
            "network": facts.spec.network,
            "endpoint": [endpoint.name, endpoint.address.to_string(), endpoint.port.to_string()],
            "machine": [machine.name, machine.node_name, machine.address, machine.pod_cidr, host],
            "members": members,
            "member": member,
            "pause": images.pause,
        });
        if machine.role == Role::ControlPlane {
            // Members that refuse nobody yet, of an older director, start anew; workers go on.
            components["refusals"] = json!(1);
        }
        // Machines that are told nothing besides keep the digest that they had before this could be said.
        if !machine.kubelet.is_empty() {
            components["kubelet"] = json!(machine.kubelet);
        }
        // The same for those that emulate nothing.
        if let Some(minor) = machine.emulates {
            components["emulates"] = json!(minor);
        }
        // The same for those that run what they were made with.
        if let Some(stemcell) = &machine.runs {
            components["runs"] = json!(stemcell);
        }
        // The same for clusters whose secrets never were rotated.
        if facts.secrets.machines > 0 {
            components["trust"] = json!(facts.secrets.machines);
        }
        if machine.role == Role::ControlPlane && facts.secrets.control_plane > 0 {
            components["secrets"] = json!(facts.secrets.control_plane);
        }
        let components = Digest::of(components.to_string().as_bytes());
        let mut whole = json!([components, self.peers, self.servers]);
        // The same for those that do not end their own pods. Nothing restarts for it: agents read it when it matters.
        if let (Some(self_fence), Some(whole)) = (facts.self_fence(machine), whole.as_array_mut()) {
            whole.push(json!(self_fence));
        }
        let whole = whole.to_string();
        let labels = addons::node_patch(facts, machine).to_string();
        Configuration {
            whole: Digest::of(whole.as_bytes()),
            components,
            labels: Digest::of(labels.as_bytes()),
        }
    }
}

fn addresses(machines: &[&MachineFacts]) -> serde_json::Value {
    machines
        .iter()
        .map(|m| json!([m.name, m.address]))
        .collect()
}

/// Digest of the add-ons of a cluster.
pub fn addons_digest(facts: &ClusterFacts) -> Digest {
    let objects = serde_json::Value::from(addons::bootstrap_objects(facts));
    Digest::of(objects.to_string().as_bytes())
}

/// A cluster that should be there: its machines as they are wanted, without those of which nothing is.
/// `images` are those of each stemcell in use.
pub fn present(
    cluster: &Cluster,
    machines: &[Machine],
    facts: &ClusterFacts,
    images: &BTreeMap<String, Images>,
) -> Desired {
    let wanted: Vec<Machine> = wanted(machines);
    let host = facts
        .machines
        .first()
        .map_or(HostTraits::default(), |m| m.host);
    let mut facts = facts.clone();
    facts.machines = wanted
        .iter()
        .map(|m| machine_facts(cluster, m, host))
        .collect();
    for machine in &mut facts.machines {
        machine.etcd.votes = true;
    }
    let configurations = Configurations::new(&facts);
    let why = |machine: &Machine| {
        let record = machines.iter().find(|record| record.name == machine.name);
        record.and_then(|record| record.wanted.as_ref())
    };
    let desired = wanted.iter().zip(&facts.machines).map(|(machine, of)| {
        let (refit, because) = match why(machine) {
            Some(Wanted::Refitted {
                stemcell, changes, ..
            }) => {
                let refit = Refit {
                    stemcell: stemcell.clone(),
                    changes: changes.clone(),
                };
                (Some(refit), None)
            }
            Some(Wanted::Reborn { because, .. }) => (None, because.clone()),
            Some(Wanted::Gone) | None => (None, None),
        };
        let images = images.get(&machine.stemcell).unwrap_or(&facts.images);
        let configuration = configurations.of(of, images);
        let desired = DesiredMachine {
            pool: machine.role.pool().cloned(),
            incarnation: machine.incarnation,
            node: machine.node_name.clone(),
            stemcell: machine.runs().to_owned(),
            kubernetes_version: version(cluster, machine),
            emulates: of.emulates,
            disk: machine.data_disk.clone(),
            configuration: configuration.whole,
            components: configuration.components,
            labels: configuration.labels,
            refit,
            because,
            reboot: machine.reboot,
        };
        (machine.name.clone(), desired)
    });
    // A pool has one machine to spare for what is restarted, as for every repair.
    let repairs = |pool: &PoolName| {
        let restarted = wanted.iter().filter(|m| m.role.pool() == Some(pool));
        u32::from(restarted.into_iter().any(|m| m.reboot.is_some()))
    };
    let budgets = cluster.spec.pools.iter().map(|(name, pool)| {
        let update = pool.update;
        let max_unavailable = update.max_unavailable.at_most(pool.count);
        let budget = Budget {
            max_unavailable: max_unavailable.max(repairs(name)),
            canaries: update.canaries,
        };
        (name.clone(), budget)
    });
    Desired {
        cluster: cluster.spec.name.clone(),
        state: DesiredState::Present {
            endpoint: (cluster.endpoint.address, cluster.endpoint.port),
            machines: desired.collect(),
            budgets: budgets.collect(),
            addons: addons_digest(&facts),
            drain: cluster.spec.drain,
            gates: cluster.spec.gates.clone(),
        },
    }
}

/// The machines of a cluster as they are wanted.
pub fn wanted(machines: &[Machine]) -> Vec<Machine> {
    let stay = machines.iter().filter(|machine| !machine.is_surplus());
    stay.map(Machine::as_wanted).collect()
}

/// Kubernetes version of a machine's components.
pub fn version(cluster: &Cluster, machine: &Machine) -> String {
    if machine.kubernetes_version.is_empty() {
        cluster.spec.kubernetes_version.clone()
    } else {
        machine.kubernetes_version.clone()
    }
}

/// A cluster that should not be there, with the disks that the order names.
pub fn absent(cluster: &ClusterName, disks: BTreeSet<DiskName>) -> Desired {
    Desired {
        cluster: cluster.clone(),
        state: DesiredState::Absent { disks },
    }
}

/// What there is of a cluster: what the provider shows, with what the records say about it.
///
/// A machine of the provider is the cluster's when it has a record there, or carries its tag.
pub fn observe(
    cluster: Option<&Cluster>,
    name: &ClusterName,
    machines: &[Machine],
    views: &[MachineView],
    disks: &[DiskView],
    endpoints: &[EndpointView],
) -> Observed {
    let endpoint = endpoints.iter().find(|view| view.cluster == *name);
    let records: BTreeMap<&MachineName, &Machine> = machines.iter().map(|m| (&m.name, m)).collect();
    let tagged = |view: &MachineView| {
        view.tags
            .get(CLUSTER_TAG)
            .is_some_and(|tag| tag == name.as_str())
    };
    let found = views
        .iter()
        .filter(|view| records.contains_key(&view.name) || tagged(view));
    let mut observed_machines: BTreeMap<MachineName, ObservedMachine> = found
        .filter_map(|view| {
            let record = records.get(&view.name).copied();
            let machine = observe_machine(cluster, view, record)?;
            Some((view.name.clone(), machine))
        })
        .collect();
    for record in machines {
        if lost(record) && !observed_machines.contains_key(&record.name) {
            observed_machines.insert(record.name.clone(), remains(cluster, record));
        }
    }
    let departed = machines
        .iter()
        .map(|machine| {
            let shown = observed_machines.contains_key(&machine.name);
            (machine.name.clone(), departed(machine, shown))
        })
        .filter(|(_, nodes)| !nodes.is_empty())
        .collect();
    let wanted: BTreeSet<&DiskName> = machines
        .iter()
        .filter_map(|m| m.data_disk.as_ref())
        .collect();
    let disks = disks
        .iter()
        .filter(|view| wanted.contains(&view.name))
        .map(|view| {
            let disk = ObservedDisk {
                attached_to: view.attached_to.clone(),
            };
            (view.name.clone(), disk)
        })
        .collect();
    Observed {
        endpoint: endpoint.is_some(),
        endpoint_current: endpoint
            .zip(cluster)
            .is_some_and(|(view, cluster)| serves(view, cluster, machines)),
        machines: observed_machines,
        disks,
        addons: cluster.and_then(|c| c.addons),
        records: cluster.is_some(),
        surplus: names(machines, Machine::is_surplus),
        out_of_endpoint: names(machines, |m| m.role.is_control_plane() && !m.serving),
        outside: names(machines, |m| m.role.is_control_plane() && !m.votes()),
        leaving: names(machines, |m| m.is_surplus() && m.is_member()),
        short_of_disk: names(machines, |m| {
            m.data_disk.is_some() && m.grows_from_mib.is_some()
        }),
        promoted: names(machines, |m| {
            m.joined.as_ref().is_some_and(|joined| joined.alone)
        }),
        departed,
        unasked: names(machines, |m| m.former.is_some() || m.additional),
        zones: zones(machines),
    }
}

/// Nodes of incarnations that do not come back. One that was given up before it served may be made again under
/// its old name: its node is no relic then. One of which nothing is wanted and that the provider does not show was
/// deleted, by whomever, before that was written down: its node is one, and would be its namesake's.
fn departed(machine: &Machine, shown: bool) -> BTreeSet<NodeName> {
    let comes = (!machine.is_surplus()).then(|| machine.as_wanted().node_name);
    let gone = machine
        .departed
        .iter()
        .filter(|node| Some(*node) != comes.as_ref());
    let left =
        (machine.is_surplus() && !shown && machine.may_have_joined()).then_some(&machine.node_name);
    gone.chain(left).cloned().collect()
}

fn names(machines: &[Machine], which: impl Fn(&Machine) -> bool) -> BTreeSet<MachineName> {
    let machines = machines.iter().filter(|machine| which(machine));
    machines.map(|machine| machine.name.clone()).collect()
}

/// The zones of machines that are in one.
pub fn zones(machines: &[Machine]) -> BTreeMap<MachineName, ZoneName> {
    let zoned = machines.iter();
    zoned
        .filter_map(|machine| Some((machine.name.clone(), machine.zone.clone()?)))
        .collect()
}

/// What a machine carries so that its cluster is known without records.
pub const CLUSTER_TAG: &str = "windlass.cluster";

/// Where the connections to a cluster's endpoint go: the API servers that are not being changed.
pub fn backends(machines: &[Machine]) -> Vec<SocketAddr> {
    machines
        .iter()
        .filter(|machine| machine.role.is_control_plane() && machine.serving)
        .map(|machine| SocketAddr::from((machine.address, API_PORT)))
        .collect()
}

fn serves(view: &EndpointView, cluster: &Cluster, machines: &[Machine]) -> bool {
    let set = |list: &[SocketAddr]| list.iter().copied().collect::<BTreeSet<_>>();
    view.running
        && view.address == cluster.endpoint.address
        && view.port == cluster.endpoint.port
        && set(&view.backends) == set(&backends(machines))
}

/// Whether a machine was made, and another incarnation of it is wanted: what there was of it has to be proven
/// gone, also when the provider does not show it.
fn lost(record: &Machine) -> bool {
    let reborn = matches!(record.wanted, Some(Wanted::Reborn { .. }));
    reborn && record.phase != MachinePhase::Planned
}

/// What is left of a machine that the provider does not show: its place in the cluster.
fn remains(cluster: Option<&Cluster>, record: &Machine) -> ObservedMachine {
    ObservedMachine {
        pool: record.role.pool().cloned(),
        incarnation: record.incarnation,
        node: record.node_name.clone(),
        kubernetes_version: cluster.map_or_else(String::new, |c| version(c, record)),
        emulates: record.emulates,
        complete: false,
        running: false,
        mounted: false,
        configured: record.configured,
        started: record.started,
        stopping: false,
        ready: record.phase == MachinePhase::Ready,
        labelled: record.labelled,
        cordoned: record.cordoned,
        fenced: record.fenced,
        kept_as: None,
    }
}

fn observe_machine(
    cluster: Option<&Cluster>,
    view: &MachineView,
    record: Option<&Machine>,
) -> Option<ObservedMachine> {
    let pool = record.and_then(|record| record.role.pool().cloned());
    // What the records say counts for the incarnation they were written about.
    let known = record.filter(|r| r.incarnation == view.incarnation);
    let node = view.name.node_name(view.incarnation).ok()?;
    let version = known.zip(cluster).map(|(r, cluster)| version(cluster, r));
    Some(ObservedMachine {
        pool,
        incarnation: view.incarnation,
        node,
        kubernetes_version: version.unwrap_or_default(),
        emulates: known.and_then(|r| r.emulates),
        complete: view.complete,
        running: view.power == Power::Running && !known.is_some_and(|r| r.condemned),
        mounted: known.is_some_and(|r| r.mounted),
        configured: known.and_then(|r| r.configured),
        started: known.and_then(|r| r.started),
        stopping: known.is_some_and(|r| r.started.is_none() && r.phase >= MachinePhase::Configured),
        ready: known.is_some_and(|r| r.phase == MachinePhase::Ready),
        labelled: known.and_then(|r| r.labelled),
        cordoned: known.is_some_and(|r| r.cordoned),
        fenced: known.is_some_and(|r| r.fenced),
        kept_as: known.and_then(|r| Some(r.keep.as_ref()?.name.clone())),
    })
}
