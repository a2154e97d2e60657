//! Clusters for the tests of this room.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use windlass_common::cluster::{
    ClusterNetwork, ClusterSpec, ControlPlaneSpec, MachineSize, PoolSpec,
};
use windlass_common::id::{ClusterName, Incarnation, MachineName, PoolName};

use super::facts::{ClusterFacts, Endpoint, HostTraits, Images, MachineFacts, Role, pod_cidr};

/// A system container on a host with cgroup v1 and without CAP_SYS_RESOURCE.
pub(crate) const CONTAINER: HostTraits = HostTraits {
    cgroup_v1: true,
    restrict_oom_score_adj: true,
    read_only_conntrack: true,
    shared_disk: true,
};

/// A cluster `demo` with that many control planes and workers of pool `workers`.
pub(crate) fn cluster(control_planes: u32, workers: u32, host: HostTraits) -> ClusterFacts {
    let size = MachineSize {
        cpu_millis: 2000,
        memory_mib: 2048,
        disk_mib: 4096,
    };
    let pool = PoolName::new("workers").unwrap();
    let network = ClusterNetwork {
        pod_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/16".parse().unwrap(),
    };
    let labels = BTreeMap::from([("tier".to_owned(), "gold".to_owned())]);
    let machine = |index: u32| {
        let (kind, number, role) = if index < control_planes {
            ("control", index, Role::ControlPlane)
        } else {
            (
                "workers",
                index - control_planes,
                Role::Worker { pool: pool.clone() },
            )
        };
        let name = MachineName::new(format!("demo-{kind}-{number}")).unwrap();
        MachineFacts {
            node_name: name.node_name(Incarnation::FIRST).unwrap(),
            name,
            role,
            zone: None,
            address: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 88, 0, 10)) + index),
            pod_cidr: pod_cidr(network.pod_cidr, index).unwrap(),
            host,
            kubelet: BTreeMap::new(),
            etcd: Default::default(),
            emulates: None,
            runs: None,
        }
    };
    ClusterFacts {
        secrets: Default::default(),
        machines: (0..control_planes + workers).map(machine).collect(),
        spec: ClusterSpec {
            name: ClusterName::new("demo").unwrap(),
            kubernetes_version: "1.37.2".to_owned(),
            control_plane: ControlPlaneSpec {
                count: control_planes,
                size,
                kubelet: BTreeMap::new(),
                update: Default::default(),
            },
            pools: BTreeMap::from([(
                pool,
                PoolSpec {
                    count: workers,
                    size,
                    labels,
                    kubelet: BTreeMap::new(),
                    update: Default::default(),
                    self_fence: None,
                },
            )]),
            network,
            drain: Default::default(),
            gates: Vec::new(),
            maintenance: Default::default(),
            labels: Default::default(),
            backup: Default::default(),
        },
        endpoint: Endpoint {
            name: "demo.windlass.internal".to_owned(),
            address: Ipv4Addr::new(10, 88, 0, 2),
            port: 6443,
        },
        upstream_dns: vec![Ipv4Addr::new(10, 88, 0, 1)],
        images: Images::default(),
    }
}
