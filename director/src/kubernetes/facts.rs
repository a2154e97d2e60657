//! What the renderers need to know about a cluster, and whether it makes sense.
//!
//! [`ClusterFacts`] is assembled by the planner from desired state and from what providers answered.
//! [`ClusterFacts::validate`] lists *every* fault at once; the renderers call it first, so that no
//! step is sent whose configuration a component would refuse after the machine was changed.
//!
//! # Not here
//! Faults of the operator's input as such (unknown fields, sizes): the parser of the API.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::cluster::{ClusterSpec, KubeletSettings, NODE_POD_PREFIX, SelfFence};
use windlass_common::error::ErrorClass;
use windlass_common::id::{MachineName, NodeName, PoolName, ZoneName};

use super::{API_PORT, KUBERNETES_MINORS};

/// Everything about a cluster that its machines' configuration depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterFacts {
    /// Desired state.
    pub spec: ClusterSpec,
    /// Where the cluster's API is reached.
    pub endpoint: Endpoint,
    /// All machines that are to be part of the cluster, in any order.
    pub machines: Vec<MachineFacts>,
    /// Name servers for names outside the cluster; without one CoreDNS answers cluster names only.
    pub upstream_dns: Vec<Ipv4Addr>,
    /// Images that every machine carries.
    pub images: Images,
    /// How often what it proves itself with was changed.
    pub secrets: SecretsRevision,
}

/// How often what a cluster proves itself with was changed, for each of those who are told: what is told is
/// sealed, and whoever was told before has to be seen to differ.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "camelCase", default)]
pub struct SecretsRevision {
    /// For all machines.
    pub machines: u32,
    /// For control-plane machines alone.
    pub control_plane: u32,
    /// For the add-ons.
    pub addons: u32,
}

/// The one address of a cluster's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// DNS name in the API servers' certificates; clients verify it, whether or not it resolves.
    pub name: String,
    /// Address that clients connect to.
    pub address: Ipv4Addr,
    /// Port that clients connect to.
    pub port: u16,
}

/// One machine of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineFacts {
    /// The machine.
    pub name: MachineName,
    /// Its node name, which carries the incarnation.
    pub node_name: NodeName,
    /// What it does.
    pub role: Role,
    /// The zone that it is in.
    pub zone: Option<ZoneName>,
    /// Its address.
    pub address: Ipv4Addr,
    /// Addresses of its pods; see [`pod_cidr`].
    pub pod_cidr: Ipv4Net,
    /// What its host or hypervisor restricts.
    pub host: HostTraits,
    /// What its kubelet is told besides.
    pub kubelet: KubeletSettings,
    /// What it is in etcd; means nothing for a worker.
    pub etcd: EtcdFacts,
    /// Minor that its API server and its controllers emulate; none where they are what they are, and on a worker.
    pub emulates: Option<u32>,
    /// The stemcell whose components it runs, where it is another one than it was made from.
    pub runs: Option<String>,
}

/// What a control-plane machine is in etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdFacts {
    /// The members that its data began with, itself included, as etcd writes them; none for a member that the
    /// cluster began with.
    pub initial_cluster: Option<String>,
    /// Whether it has a vote.
    pub votes: bool,
    /// Whether it is to go for good: others do not count on it any more.
    pub leaves: bool,
}

impl Default for EtcdFacts {
    fn default() -> Self {
        Self {
            initial_cluster: None,
            votes: true,
            leaves: false,
        }
    }
}

/// What a machine does in its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Runs etcd, the API server and the controllers; a tainted node too.
    ControlPlane,
    /// Runs pods.
    Worker {
        /// The pool it belongs to.
        pool: PoolName,
    },
}

/// What a machine's host does not allow. A real VM has none of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostTraits {
    /// Resource controllers are on cgroup v1.
    pub cgroup_v1: bool,
    /// `oom_score_adj` cannot be lowered (no CAP_SYS_RESOURCE).
    pub restrict_oom_score_adj: bool,
    /// The conntrack sysctls are read-only (network namespace that is not the host's).
    pub read_only_conntrack: bool,
    /// The file system below pods and images is the host's: how full it is, in percent, says nothing
    /// about this machine.
    pub shared_disk: bool,
}

/// References of the images that the stemcell brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// The sandbox image of every pod.
    pub pause: String,
    /// Cluster DNS.
    pub coredns: String,
}

impl Default for Images {
    fn default() -> Self {
        Self {
            pause: "registry.windlass.internal/pause:1".to_owned(),
            coredns: "registry.windlass.internal/coredns:v1.14.7".to_owned(),
        }
    }
}

impl ClusterFacts {
    /// Whether a machine that alone is cut off ends its pods: never one of the control plane.
    pub fn self_fence(&self, machine: &MachineFacts) -> Option<SelfFence> {
        match &machine.role {
            Role::ControlPlane => None,
            Role::Worker { pool } => self.spec.pools.get(pool)?.self_fence,
        }
    }

    /// The first address of the Service network: the `kubernetes` Service.
    pub fn api_service_address(&self) -> Ipv4Addr {
        service_address(self.spec.network.service_cidr, 1)
    }

    /// The tenth address of the Service network: cluster DNS.
    pub fn dns_service_address(&self) -> Ipv4Addr {
        service_address(self.spec.network.service_cidr, 10)
    }

    /// Control-plane machines that are to stay, ordered by name.
    pub fn control_planes(&self) -> Vec<&MachineFacts> {
        let mut machines = self.ordered(|role| matches!(role, Role::ControlPlane));
        machines.retain(|machine| !machine.etcd.leaves);
        machines
    }

    /// Members of etcd that `machine` counts on, itself included, ordered by name: those that have a vote and
    /// stay.
    pub fn etcd_members(&self, machine: &MachineFacts) -> Vec<&MachineFacts> {
        let mut members = self.ordered(|role| matches!(role, Role::ControlPlane));
        let counts = |of: &EtcdFacts| of.votes && !of.leaves;
        members.retain(|member| member.name == machine.name || counts(&member.etcd));
        members
    }

    /// Whether the cluster's etcd is one member alone, now and after what is being changed.
    pub fn one_member(&self) -> bool {
        let all = self.ordered(|role| matches!(role, Role::ControlPlane));
        all.len() == 1
    }

    /// Workers, ordered by name.
    pub fn workers(&self) -> Vec<&MachineFacts> {
        self.ordered(|role| matches!(role, Role::Worker { .. }))
    }

    fn ordered(&self, wanted: impl Fn(&Role) -> bool) -> Vec<&MachineFacts> {
        let mut machines: Vec<_> = self.machines.iter().filter(|m| wanted(&m.role)).collect();
        machines.sort_by(|a, b| a.name.cmp(&b.name));
        machines
    }

    /// Checks everything that a component would refuse or that would make the cluster fail later.
    ///
    /// # Errors
    /// All faults at once; nothing may be rendered then.
    pub fn validate(&self) -> Result<(), FactsError> {
        let mut faults = Faults::default();
        self.check_version(&mut faults);
        self.check_networks(&mut faults);
        self.check_endpoint(&mut faults);
        self.check_members(&mut faults);
        self.check_machines(&mut faults);
        self.check_images(&mut faults);
        if faults.0.is_empty() {
            Ok(())
        } else {
            Err(FactsError { faults: faults.0 })
        }
    }

    fn check_version(&self, faults: &mut Faults) {
        let version = &self.spec.kubernetes_version;
        let minor = minor_of(version);
        if !minor.is_some_and(|minor| KUBERNETES_MINORS.contains(&minor)) {
            faults.add(
                "kubernetesVersion",
                version,
                format!(
                    "1.{}.x to 1.{}.x, for example 1.{}.2",
                    KUBERNETES_MINORS.start(),
                    KUBERNETES_MINORS.end(),
                    KUBERNETES_MINORS.end()
                ),
            );
        }
    }

    fn check_networks(&self, faults: &mut Faults) {
        let (pods, services) = (self.spec.network.pod_cidr, self.spec.network.service_cidr);
        for (key, network) in [("network.podCidr", pods), ("network.serviceCidr", services)] {
            if network.trunc() != network {
                faults.add(
                    key,
                    network,
                    format!("the network itself, {}", network.trunc()),
                );
            }
        }
        if !(8..=NODE_POD_PREFIX).contains(&pods.prefix_len()) {
            faults.add(
                "network.podCidr",
                pods,
                "a prefix from /8 to /24: each machine gets a /24",
            );
        }
        // The API server takes at most 20 bits; the tenth address is DNS, so at least 4 bits.
        if !(12..=28).contains(&services.prefix_len()) {
            faults.add("network.serviceCidr", services, "a prefix from /12 to /28");
        }
        if overlap(pods, services) {
            faults.add(
                "network.serviceCidr",
                services,
                format!("a network that does not overlap the pod network {pods}"),
            );
        }
    }

    fn check_endpoint(&self, faults: &mut Faults) {
        let endpoint = &self.endpoint;
        if !is_dns_name(&endpoint.name) {
            faults.add(
                "endpoint.name",
                &endpoint.name,
                "a DNS name of at most 253 characters, lower case",
            );
        }
        if endpoint.port == 0 || super::NODE_PORTS.contains(&endpoint.port) {
            faults.add(
                "endpoint.port",
                endpoint.port,
                "1 to 65535 outside the NodePort range 30000 to 32767",
            );
        }
        self.check_outside_cluster("endpoint.address", endpoint.address, faults);
        let on_machine = self.machines.iter().any(|m| m.address == endpoint.address);
        if on_machine && endpoint.port != API_PORT {
            faults.add(
                "endpoint.port",
                endpoint.port,
                format!("{API_PORT} when the endpoint's address is a machine's own"),
            );
        }
    }

    fn check_outside_cluster(&self, key: &str, address: Ipv4Addr, faults: &mut Faults) {
        let network = &self.spec.network;
        for (name, cidr) in [("pod", network.pod_cidr), ("Service", network.service_cidr)] {
            if cidr.contains(&address) {
                faults.add(
                    key,
                    address,
                    format!("an address outside the {name} network {cidr}"),
                );
            }
        }
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            faults.add(key, address, "an address that other machines can reach");
        }
    }

    fn check_members(&self, faults: &mut Faults) {
        let count = self.control_planes().len();
        if !matches!(count, 1 | 3 | 5) {
            faults.add("controlPlane.count", count, "1, 3 or 5 machines");
        }
        if count != self.spec.control_plane.count as usize {
            faults.add(
                "controlPlane.count",
                count,
                format!(
                    "the {} machines of the desired state",
                    self.spec.control_plane.count
                ),
            );
        }
    }

    fn check_machines(&self, faults: &mut Faults) {
        let mut seen = Seen::default();
        let mut cidrs: BTreeMap<Ipv4Net, &MachineName> = BTreeMap::new();
        for machine in &self.machines {
            let key = format!("machines.{}", machine.name);
            seen.once(&key, "name", machine.name.as_str(), faults);
            seen.once(&key, "nodeName", machine.node_name.as_str(), faults);
            seen.once(&key, "address", &machine.address.to_string(), faults);
            self.check_outside_cluster(&format!("{key}.address"), machine.address, faults);
            if let Role::Worker { pool } = &machine.role
                && !self.spec.pools.contains_key(pool)
            {
                faults.add(format!("{key}.pool"), pool, "a pool of the desired state");
            }
            let cidr = machine.pod_cidr;
            let pods = self.spec.network.pod_cidr;
            if cidr.prefix_len() != NODE_POD_PREFIX || cidr.trunc() != cidr || !pods.contains(&cidr)
            {
                faults.add(format!("{key}.podCidr"), cidr, format!("a /24 of {pods}"));
            }
            if let Some(other) = cidrs.insert(cidr, &machine.name) {
                let allowed = format!("a network of its own; {other} has this one");
                faults.add(format!("{key}.podCidr"), cidr, allowed);
            }
        }
    }

    fn check_images(&self, faults: &mut Faults) {
        for (key, image) in [
            ("images.pause", &self.images.pause),
            ("images.coredns", &self.images.coredns),
        ] {
            let ok = !image.is_empty()
                && image.len() <= 255
                && image
                    .bytes()
                    .all(|b| b.is_ascii_graphic() && !b"'\"\\$`".contains(&b));
            if !ok {
                faults.add(key, image, "an image reference without spaces or quotes");
            }
        }
    }
}

/// The pod network of the machine with number `index` of its cluster, counted from 0; `None` when
/// the cluster's pod network has no more.
pub fn pod_cidr(cluster: Ipv4Net, index: u32) -> Option<Ipv4Net> {
    let bits = NODE_POD_PREFIX.checked_sub(cluster.prefix_len())?;
    if u64::from(index) >= 1u64 << bits {
        return None;
    }
    let first = u32::from(cluster.network());
    let offset = index << (32 - u32::from(NODE_POD_PREFIX));
    Ipv4Net::new(Ipv4Addr::from(first | offset), NODE_POD_PREFIX).ok()
}

/// Minor version of `1.<minor>.<patch>`.
pub fn minor_of(version: &str) -> Option<u32> {
    let mut parts = version.split('.');
    let (major, minor, patch) = (parts.next()?, parts.next()?, parts.next()?);
    let number = |text: &str| -> Option<u32> {
        let ok = !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
        if ok { text.parse().ok() } else { None }
    };
    if parts.next().is_some() || major != "1" {
        return None;
    }
    number(patch)?;
    number(minor)
}

fn service_address(network: Ipv4Net, offset: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.network()).wrapping_add(offset))
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn is_dns_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[derive(Default)]
struct Seen(BTreeSet<(&'static str, String)>);

impl Seen {
    fn once(&mut self, key: &str, field: &'static str, value: &str, faults: &mut Faults) {
        if !self.0.insert((field, value.to_owned())) {
            faults.add(
                format!("{key}.{field}"),
                value,
                "a value that no other machine of the cluster has",
            );
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where, in the words of the API.
    pub key: String,
    /// What was found.
    pub value: String,
    /// What is allowed there.
    pub allowed: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is {}, must be {}",
            self.key, self.value, self.allowed
        )
    }
}

#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, key: impl Into<String>, value: impl ToString, allowed: impl Into<String>) {
        self.0.push(Fault {
            key: key.into(),
            value: value.to_string(),
            allowed: allowed.into(),
        });
    }
}

/// Why nothing can be rendered: every fault of the facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FactsError {
    /// At least one.
    pub faults: Vec<Fault>,
}

impl FactsError {
    /// Who acts: an operator changes the desired state.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }
}

impl fmt::Display for FactsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the cluster cannot be configured")?;
        for (i, fault) in self.faults.iter().enumerate() {
            write!(f, "{} {fault}", if i == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

impl std::error::Error for FactsError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixtures::{CONTAINER, cluster};
    use super::*;

    fn faults(change: impl FnOnce(&mut ClusterFacts)) -> Vec<String> {
        let mut facts = cluster(3, 2, CONTAINER);
        change(&mut facts);
        let faults = facts.validate().err().map(|e| e.faults).unwrap_or_default();
        faults.into_iter().map(|fault| fault.key).collect()
    }

    #[test]
    fn each_fault_is_found_by_its_key() {
        type Change = fn(&mut ClusterFacts);
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases: &[(&str, &[&str], Change)] = &[
            ("nothing wrong",              &[],                                  |_| ()),
            ("not a version",              &["kubernetesVersion"],               |f| f.spec.kubernetes_version = "v1.37".into()),
            ("a minor we do not render",   &["kubernetesVersion"],               |f| f.spec.kubernetes_version = "1.35.4".into()),
            ("a minor too new",            &["kubernetesVersion"],               |f| f.spec.kubernetes_version = "1.40.0".into()),
            ("host bits in a network",     &["network.serviceCidr"],             |f| f.spec.network.service_cidr = "10.96.0.1/16".parse().unwrap()),
            ("Services in the pods",       &["network.serviceCidr"],             |f| f.spec.network.service_cidr = "10.244.128.0/20".parse().unwrap()),
            ("no tenth Service address",   &["network.serviceCidr"],             |f| f.spec.network.service_cidr = "10.96.0.0/29".parse().unwrap()),
            ("Service network too large",  &["network.serviceCidr"],             |f| f.spec.network.service_cidr = "100.0.0.0/11".parse().unwrap()),
            ("endpoint name",              &["endpoint.name"],                   |f| f.endpoint.name = "Demo_1".into()),
            ("endpoint on a NodePort",     &["endpoint.port"],                   |f| f.endpoint.port = 30_443),
            ("endpoint port zero",         &["endpoint.port"],                   |f| f.endpoint.port = 0),
            ("endpoint in the Services",   &["endpoint.address"],                |f| f.endpoint.address = Ipv4Addr::new(10, 96, 0, 9)),
            ("endpoint is loopback",       &["endpoint.address"],                |f| f.endpoint.address = Ipv4Addr::LOCALHOST),
            ("an even count",              &["controlPlane.count"],              |f| { f.machines.remove(0); f.spec.control_plane.count = 2; }),
            ("a missing control plane",    &["controlPlane.count", "controlPlane.count"], |f| { f.machines.remove(0); }),
            ("a machine in the pods",      &["machines.demo-control-0.address"], |f| f.machines[0].address = Ipv4Addr::new(10, 244, 9, 9)),
            ("the same address twice",     &["machines.demo-control-1.address"], |f| f.machines[1].address = f.machines[0].address),
            ("the same pods twice",        &["machines.demo-control-1.podCidr"], |f| f.machines[1].pod_cidr = f.machines[0].pod_cidr),
            ("pods outside the cluster's", &["machines.demo-control-0.podCidr"], |f| f.machines[0].pod_cidr = "10.200.0.0/24".parse().unwrap()),
            ("pods of another size",       &["machines.demo-control-0.podCidr"], |f| f.machines[0].pod_cidr = "10.244.0.0/25".parse().unwrap()),
            ("an unknown pool",            &["machines.demo-workers-0.pool"],    |f| f.machines[3].role = Role::Worker { pool: PoolName::new("x").unwrap() }),
            ("an image with a quote",      &["images.pause"],                    |f| f.images.pause = "a\"b".into()),
        ];
        for (name, want, change) in cases {
            assert_eq!(faults(change), *want, "{name}");
        }
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let found = faults(|f| {
            f.spec.kubernetes_version = String::new();
            f.endpoint.port = 0;
            f.images.coredns = String::new();
        });
        assert_eq!(
            found,
            ["kubernetesVersion", "endpoint.port", "images.coredns"]
        );
    }

    #[test]
    fn well_known_addresses_follow_the_service_network() {
        let facts = cluster(1, 0, CONTAINER);
        assert_eq!(facts.api_service_address(), Ipv4Addr::new(10, 96, 0, 1));
        assert_eq!(facts.dns_service_address(), Ipv4Addr::new(10, 96, 0, 10));
    }

    proptest! {
        #[test]
        fn pod_networks_are_disjoint_parts_of_the_clusters(
            base: u32, prefix in 8u8..=24, a in 0u32..70_000, b in 0u32..70_000,
        ) {
            let cluster = Ipv4Net::new(Ipv4Addr::from(base), prefix).unwrap().trunc();
            let count = 1u32 << (NODE_POD_PREFIX - prefix);
            for index in [a, b] {
                match pod_cidr(cluster, index) {
                    Some(cidr) => {
                        prop_assert!(index < count);
                        prop_assert!(cluster.contains(&cidr) && cidr.trunc() == cidr);
                        prop_assert_eq!(cidr.prefix_len(), NODE_POD_PREFIX);
                    }
                    None => prop_assert!(index >= count),
                }
            }
            if let (Some(x), Some(y)) = (pod_cidr(cluster, a), pod_cidr(cluster, b)) {
                prop_assert_eq!(overlap(x, y), a == b);
            }
        }
    }
}
