//! Makes the planner's inputs out of records and of what a provider shows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde_json::json;
use windlass_common::id::{ClusterName, Digest, DiskName, MachineName};

use super::{Desired, DesiredMachine, DesiredState, Observed, ObservedDisk, ObservedMachine};
use crate::kubernetes::facts::{ClusterFacts, Endpoint, HostTraits, Images, MachineFacts, Role};
use crate::kubernetes::{API_PORT, addons};
use crate::model::{Cluster, Machine, MachinePhase, MachineRole, StemcellRecord};
use crate::provider::{DiskView, EndpointView, MachineView};

/// What the renderers have to know about a cluster, out of its records.
pub fn facts(
    cluster: &Cluster,
    machines: &[Machine],
    stemcell: &StemcellRecord,
    host: HostTraits,
) -> ClusterFacts {
    let image = |name: &str, default: String| stemcell.images.get(name).cloned().unwrap_or(default);
    let defaults = Images::default();
    ClusterFacts {
        spec: cluster.spec.clone(),
        endpoint: Endpoint {
            name: cluster.endpoint.name.clone(),
            address: cluster.endpoint.address,
            port: cluster.endpoint.port,
        },
        machines: machines
            .iter()
            .map(|machine| machine_facts(machine, host))
            .collect(),
        upstream_dns: Vec::new(),
        images: Images {
            pause: image("pause", defaults.pause),
            coredns: image("coredns", defaults.coredns),
        },
    }
}

fn machine_facts(machine: &Machine, host: HostTraits) -> MachineFacts {
    MachineFacts {
        name: machine.name.clone(),
        node_name: machine.node_name.clone(),
        role: match &machine.role {
            MachineRole::ControlPlane => Role::ControlPlane,
            MachineRole::Worker { pool } => Role::Worker { pool: pool.clone() },
        },
        address: machine.address,
        pod_cidr: machine.pod_cidr,
        host,
    }
}

/// Digest of everything the configuration of one machine depends on.
pub fn configuration(facts: &ClusterFacts, machine: &MachineName) -> Digest {
    let machines: Vec<_> = facts
        .machines
        .iter()
        .map(|m| {
            // Named one by one, so that a new trait cannot be forgotten here.
            let HostTraits {
                cgroup_v1,
                restrict_oom_score_adj,
                read_only_conntrack,
                shared_disk,
            } = m.host;
            let host = [
                cgroup_v1,
                restrict_oom_score_adj,
                read_only_conntrack,
                shared_disk,
            ];
            let control_plane = m.role == Role::ControlPlane;
            json!([
                m.name,
                m.node_name,
                control_plane,
                m.address,
                m.pod_cidr,
                host
            ])
        })
        .collect();
    let endpoint = &facts.endpoint;
    let inputs = json!({
        "machine": machine,
        "spec": facts.spec,
        "endpoint": [endpoint.name, endpoint.address.to_string(), endpoint.port.to_string()],
        "machines": machines,
        "images": [facts.images.pause, facts.images.coredns],
    });
    Digest::of(inputs.to_string().as_bytes())
}

/// Digest of the add-ons of a cluster.
pub fn addons_digest(facts: &ClusterFacts) -> Digest {
    let objects = serde_json::Value::from(addons::bootstrap_objects(facts));
    Digest::of(objects.to_string().as_bytes())
}

/// A cluster that should be there.
pub fn present(cluster: &Cluster, machines: &[Machine], facts: &ClusterFacts) -> Desired {
    let machines = machines
        .iter()
        .map(|machine| {
            let desired = DesiredMachine {
                control_plane: machine.role.is_control_plane(),
                incarnation: machine.incarnation,
                node: machine.node_name.clone(),
                stemcell: machine.stemcell.clone(),
                kubernetes_version: cluster.spec.kubernetes_version.clone(),
                disk: machine.data_disk.clone(),
                configuration: configuration(facts, &machine.name),
            };
            (machine.name.clone(), desired)
        })
        .collect();
    Desired {
        cluster: cluster.spec.name.clone(),
        state: DesiredState::Present {
            endpoint: (cluster.endpoint.address, cluster.endpoint.port),
            machines,
            addons: addons_digest(facts),
        },
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
    let observed_machines = found
        .filter_map(|view| {
            let record = records.get(&view.name).copied();
            observe_machine(view, record).map(|machine| (view.name.clone(), machine))
        })
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
    }
}

/// What a machine carries so that its cluster is known without records.
pub const CLUSTER_TAG: &str = "windlass.cluster";

/// Where the connections to a cluster's endpoint go: the API servers.
pub fn backends(machines: &[Machine]) -> Vec<SocketAddr> {
    machines
        .iter()
        .filter(|machine| machine.role.is_control_plane())
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

fn observe_machine(view: &MachineView, record: Option<&Machine>) -> Option<ObservedMachine> {
    // What the records say counts for the incarnation they were written about.
    let known = record.filter(|r| r.incarnation == view.incarnation);
    let node = view.name.node_name(view.incarnation).ok()?;
    Some(ObservedMachine {
        incarnation: view.incarnation,
        node,
        complete: view.complete,
        mounted: known.is_some_and(|r| r.mounted),
        configured: known.and_then(|r| r.configured),
        started: known.and_then(|r| r.started),
        ready: known.is_some_and(|r| r.phase == MachinePhase::Ready),
    })
}
