//! What a cluster should be: the schema of the API, of `cluster create -f` and of the store.
//!
//! [`ClusterSpec`] is always valid: it is made by the director's parser, which reports every fault
//! of an input at once, and is read back from the store as it was written.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::id::{ClusterName, PoolName};

/// Desired state of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSpec {
    /// Unique within the director; cannot change.
    pub name: ClusterName,
    /// Kubernetes version, for example `1.37.2`; a stemcell with it has to be there.
    pub kubernetes_version: String,
    /// Control-plane machines.
    pub control_plane: ControlPlaneSpec,
    /// Worker pools, by name.
    pub pools: BTreeMap<PoolName, PoolSpec>,
    /// Pod and Service networks.
    pub network: ClusterNetwork,
}

/// Control-plane machines of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ControlPlaneSpec {
    /// 1, 3 or 5.
    pub count: u32,
    /// Shape of each machine.
    pub size: MachineSize,
}

/// A pool of equal workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolSpec {
    /// Number of machines, 0 to 1000.
    pub count: u32,
    /// Shape of each machine.
    pub size: MachineSize,
    /// Node labels the director sets.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Shape of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MachineSize {
    /// Thousandths of a CPU.
    pub cpu_millis: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Persistent data disk of control-plane machines (etcd), MiB.
    pub disk_mib: u32,
}

/// Networks inside a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterNetwork {
    /// Addresses of pods; each machine gets a /24 of it.
    pub pod_cidr: Ipv4Net,
    /// Addresses of Services.
    pub service_cidr: Ipv4Net,
}

/// Pods of one machine: a network of this prefix length out of [`ClusterNetwork::pod_cidr`].
pub const NODE_POD_PREFIX: u8 = 24;
