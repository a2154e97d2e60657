//! The cluster on the machines: etcd, API servers, nodes, pods and their budgets.
//!
//! Nothing here runs by itself: what time has brought is worked out when the state is looked at.
//!
//! Members of etcd are static, as the renderers write them; a change of membership is refused as etcd's
//! strict reconfiguration check does.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::id::{MachineName, NodeName};
use windlass_director::drain::{Budget, Controller, Pod as DrainPod, PodPhase, PodRef};

use super::dice::Dice;
use super::state::{State, Vm};

/// A unit by its name.
pub const ETCD: &str = "etcd.service";
/// See [`ETCD`].
pub const API: &str = "kube-apiserver.service";
/// See [`ETCD`].
pub const KUBELET: &str = "kubelet.service";

/// How long an API server takes to be ready.
const API_READY_MS: u64 = 2_000;
/// How long a kubelet takes to register.
const KUBELET_READY_MS: u64 = 3_000;
/// How long a node is dead before its pods are made anew elsewhere (default tolerations).
const TOLERATED_MS: u64 = 300_000;

/// What the API knows.
#[derive(Debug)]
pub struct Cluster {
    /// Members of etcd as configured.
    pub members: BTreeSet<MachineName>,
    /// Nodes.
    pub nodes: BTreeMap<NodeName, Node>,
    /// Pods by name.
    pub pods: BTreeMap<String, Pod>,
    /// What makes them.
    pub workloads: Vec<Workload>,
    /// Whether the add-ons are there.
    pub addons: bool,
    /// The API refuses until then.
    pub refuses_until: u64,
    /// Budgets let nobody go until then.
    pub held_until: u64,
    next_pod: u64,
}

/// A Node object.
#[derive(Debug)]
pub struct Node {
    /// Its machine.
    pub machine: MachineName,
    /// Closed by us.
    pub cordoned: bool,
    /// When its kubelet was last seen.
    pub seen: u64,
}

/// A deployment or a stateful set with a budget.
#[derive(Debug)]
pub struct Workload {
    name: &'static str,
    kind: &'static str,
    replicas: usize,
    /// Healthy pods that have to be there.
    pub healthy_min: usize,
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    workload: usize,
    /// Where it runs.
    pub node: Option<NodeName>,
    ready_at: u64,
    ends_at: Option<u64>,
    grace_ms: u64,
}

/// Why etcd refuses a change of its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberRefusal {
    /// `etcdserver: re-configuration failed due to not enough started members`
    NotEnoughStarted,
    /// `etcdserver: unhealthy cluster`
    Unhealthy,
}

impl Cluster {
    /// A cluster whose workloads are thrown.
    pub fn new(dice: &mut Dice) -> Self {
        let web = usize::try_from(dice.within(3..=6)).unwrap_or(3);
        let spare = usize::try_from(dice.within(1..=2)).unwrap_or(1);
        let workload = |name, kind, replicas, healthy_min| Workload {
            name,
            kind,
            replicas,
            healthy_min,
        };
        Self {
            members: BTreeSet::new(),
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            workloads: vec![
                workload("web", "ReplicaSet", web, web - spare),
                workload("db", "StatefulSet", 3, 2),
            ],
            addons: false,
            refuses_until: 0,
            held_until: 0,
            next_pod: 0,
        }
    }

    /// Nothing is left of it.
    pub fn clear(&mut self) {
        self.members.clear();
        self.nodes.clear();
        self.pods.clear();
        self.addons = false;
    }
}

impl State {
    /// Whether a member of etcd runs.
    pub fn member_up(&self, name: &MachineName) -> bool {
        self.vms
            .get(name)
            .is_some_and(|vm| vm.mounted && vm.has(ETCD, self.now))
    }

    /// Members that run.
    pub fn members_up(&self) -> usize {
        let members = self.cluster.members.iter();
        members.filter(|name| self.member_up(name)).count()
    }

    /// Whether a majority runs.
    pub fn quorum(&self) -> bool {
        let members = self.cluster.members.len();
        members > 0 && self.members_up() > members / 2
    }

    /// Whether a machine's API server answers.
    pub fn api_server_up(&self, name: &MachineName) -> bool {
        self.quorum()
            && self.member_up(name)
            && self
                .vms
                .get(name)
                .is_some_and(|vm| vm.has_for(API, self.now, API_READY_MS))
    }

    /// Whether any API server answers.
    pub fn api_up(&self) -> bool {
        self.cluster.refuses_until <= self.now
            && self.vms.keys().any(|name| self.api_server_up(name))
    }

    /// Whether the director reaches an API server.
    pub fn api_reached(&self) -> bool {
        self.cluster.refuses_until <= self.now
            && self
                .vms
                .iter()
                .any(|(name, vm)| vm.connected(self.now) && self.api_server_up(name))
    }

    /// Whether an API server answers a machine of the cluster.
    pub fn api_answers(&self) -> bool {
        self.cluster.refuses_until <= self.now
            && self.vms.keys().any(|name| self.api_server_up(name))
    }

    /// Whether a machine's node is Ready.
    pub fn node_ready(&self, name: &MachineName) -> bool {
        self.vms.get(name).is_some_and(|vm| {
            vm.has_for(KUBELET, self.now, KUBELET_READY_MS)
                && self.cluster.nodes.contains_key(&vm.node)
        })
    }

    /// Whether a worker takes pods.
    pub fn available(&self, name: &MachineName) -> bool {
        let Some(vm) = self.vms.get(name) else {
            return false;
        };
        let node = self.cluster.nodes.get(&vm.node);
        self.node_ready(name) && node.is_some_and(|node| !node.cordoned)
    }

    /// Whether etcd would let a member join: all started members have to be a majority with the new one
    /// counted, and none may be missing.
    pub fn member_add(&self) -> Result<(), MemberRefusal> {
        let (members, up) = (self.cluster.members.len(), self.members_up());
        if up <= members / 2 {
            Err(MemberRefusal::Unhealthy)
        } else if up < members.div_ceil(2) + 1 || up < members {
            Err(MemberRefusal::NotEnoughStarted)
        } else {
            Ok(())
        }
    }

    /// Whether etcd would let a member go: those left have to have a majority that runs.
    pub fn member_remove(&self, name: &MachineName) -> Result<(), MemberRefusal> {
        let (members, up) = (self.cluster.members.len(), self.members_up());
        let left = up - usize::from(self.member_up(name));
        if up <= members / 2 {
            Err(MemberRefusal::Unhealthy)
        } else if left < (members - 1) / 2 + 1 {
            Err(MemberRefusal::NotEnoughStarted)
        } else {
            Ok(())
        }
    }

    /// What time has brought.
    pub fn settle(&mut self) {
        let now = self.now;
        for (name, vm) in &mut self.vms {
            let up = vm.runs(now);
            let serves = vm.has(KUBELET, now);
            match (serves, vm.down_since) {
                (true, Some(_)) => vm.down_since = None,
                (false, None) if !vm.by_us => vm.down_since = Some(now),
                _ => {}
            }
            if up && let Some(node) = self.cluster.nodes.get_mut(&vm.node) {
                debug_assert_eq!(node.machine, *name);
                if serves {
                    node.seen = now;
                }
            }
        }
        if self.api_up() && self.cluster.addons {
            self.register();
            self.controllers();
        } else {
            self.end_pods();
        }
        let nodes = &self.cluster.nodes;
        for vm in self.vms.values_mut() {
            if vm.has_for(KUBELET, now, KUBELET_READY_MS) && nodes.contains_key(&vm.node) {
                vm.ready_at = Some(now);
            }
        }
    }

    /// Kubelets make their Node objects.
    fn register(&mut self) {
        let now = self.now;
        let ready = |vm: &&Vm| vm.has_for(KUBELET, now, KUBELET_READY_MS);
        let new: Vec<(NodeName, MachineName)> = self
            .vms
            .iter()
            .filter(|(_, vm)| ready(vm) && !self.cluster.nodes.contains_key(&vm.node))
            .map(|(name, vm)| (vm.node.clone(), name.clone()))
            .collect();
        for (node, machine) in new {
            self.tell(format!("node {node} registers"));
            let made = Node {
                machine,
                cordoned: false,
                seen: now,
            };
            self.cluster.nodes.insert(node, made);
        }
    }

    /// Pods whose time is over are gone, where a kubelet says so.
    fn end_pods(&mut self) {
        let now = self.now;
        let (vms, cluster) = (&self.vms, &mut self.cluster);
        let nodes = &cluster.nodes;
        cluster.pods.retain(|_, pod| {
            let Some(ends_at) = pod.ends_at else {
                return true;
            };
            let vm = pod
                .node
                .as_ref()
                .and_then(|node| nodes.get(node))
                .and_then(|node| vms.get(&node.machine));
            !(ends_at <= now && vm.is_some_and(|vm| vm.has(KUBELET, now)))
        });
    }

    fn controllers(&mut self) {
        self.end_pods();
        let now = self.now;
        let cluster = &mut self.cluster;
        // Pods of nodes that are gone, and of nodes that have been dead for long.
        let nodes = &cluster.nodes;
        let lost = |pod: &Pod| {
            let Some(node) = &pod.node else { return false };
            nodes
                .get(node)
                .is_none_or(|node| node.seen + TOLERATED_MS < now)
        };
        cluster.pods.retain(|_, pod| !lost(pod));
        for (index, workload) in cluster.workloads.iter().enumerate() {
            let there = cluster
                .pods
                .values()
                .filter(|pod| pod.workload == index && pod.ends_at.is_none())
                .count();
            for _ in there..workload.replicas {
                cluster.next_pod += 1;
                let name = format!("{}-{}", workload.name, cluster.next_pod);
                let pod = Pod {
                    workload: index,
                    node: None,
                    ready_at: u64::MAX,
                    ends_at: None,
                    grace_ms: self.dice.within(1_000..=20_000),
                };
                cluster.pods.insert(name, pod);
            }
        }
        self.schedule();
    }

    /// Pods that wait go to the worker with the fewest.
    fn schedule(&mut self) {
        let now = self.now;
        let mut load: BTreeMap<NodeName, usize> = BTreeMap::new();
        for (name, vm) in &self.vms {
            if !vm.control_plane() && self.available(name) {
                load.insert(vm.node.clone(), 0);
            }
        }
        for pod in self.cluster.pods.values() {
            if let Some(count) = pod.node.as_ref().and_then(|node| load.get_mut(node)) {
                *count += 1;
            }
        }
        for pod in self.cluster.pods.values_mut() {
            if pod.node.is_some() {
                continue;
            }
            let Some((node, count)) = load.iter_mut().min_by_key(|(_, count)| **count) else {
                return;
            };
            *count += 1;
            pod.node = Some(node.clone());
            pod.ready_at = now + self.dice.within(2_000..=15_000);
        }
    }

    fn healthy(&self, pod: &Pod) -> bool {
        let vm = pod
            .node
            .as_ref()
            .and_then(|node| self.cluster.nodes.get(node))
            .and_then(|node| self.vms.get(&node.machine));
        pod.ends_at.is_none()
            && pod.ready_at <= self.now
            && vm.is_some_and(|vm| vm.has(KUBELET, self.now))
    }

    fn healthy_of(&self, workload: usize) -> usize {
        let pods = self.cluster.pods.values();
        pods.filter(|pod| pod.workload == workload && self.healthy(pod))
            .count()
    }

    /// The Eviction API: lets a pod go if its budget does. `Err` is 429, in its words.
    pub fn evict(&mut self, name: &str) -> Result<bool, String> {
        let Some(pod) = self.cluster.pods.get(name) else {
            return Ok(false);
        };
        let (index, healthy) = (pod.workload, self.healthy(pod));
        let left = self.healthy_of(index) - usize::from(healthy);
        let least = self.cluster.workloads[index].healthy_min;
        if self.cluster.held_until > self.now || left < least {
            return Err("Cannot evict pod as it would violate the pod's disruption budget.".into());
        }
        self.tell(format!("pod {name} is evicted"));
        self.end_pod(name);
        Ok(true)
    }

    /// Deletes a pod, whatever its budget says.
    pub fn delete_pod(&mut self, name: &str) -> bool {
        let Some(pod) = self.cluster.pods.get(name) else {
            return false;
        };
        let (index, healthy) = (pod.workload, self.healthy(pod));
        let left = self.healthy_of(index) - usize::from(healthy);
        if left < self.cluster.workloads[index].healthy_min {
            self.violated(
                4,
                format!("pod {name} is deleted past its budget, and no policy says so"),
            );
        }
        self.tell(format!("pod {name} is deleted"));
        self.end_pod(name);
        true
    }

    fn end_pod(&mut self, name: &str) {
        if let Some(pod) = self.cluster.pods.get_mut(name)
            && pod.ends_at.is_none()
        {
            pod.ends_at = Some(self.now + pod.grace_ms);
        }
    }

    /// Names of the pods on a node that are not ending.
    pub fn pods_on(&self, node: &NodeName) -> Vec<&str> {
        let pods = self.cluster.pods.iter();
        pods.filter(|(_, pod)| pod.node.as_ref() == Some(node) && pod.ends_at.is_none())
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// The pods of a node, as a drain reads them.
    pub fn drain_view(&self, node: &NodeName) -> Vec<DrainPod> {
        let pods = self.cluster.pods.iter();
        pods.filter(|(_, pod)| pod.node.as_ref() == Some(node))
            .map(|(name, pod)| {
                let workload = &self.cluster.workloads[pod.workload];
                DrainPod {
                    id: PodRef {
                        namespace: "default".into(),
                        name: name.clone(),
                        uid: name.clone(),
                    },
                    labels: BTreeMap::new(),
                    controller: Some(Controller {
                        kind: workload.kind.into(),
                        name: workload.name.into(),
                    }),
                    is_static: false,
                    phase: PodPhase::Running,
                    terminating: pod.ends_at.is_some(),
                    finalizers: Vec::new(),
                    grace_seconds: pod.grace_ms / 1000,
                    empty_dir: false,
                    persistent: workload.kind == "StatefulSet",
                    priority: 0,
                    ready: self.healthy(pod),
                    node: Some(node.to_string()),
                }
            })
            .collect()
    }

    /// Budgets only explain who blocks; the messages of this world need none.
    pub fn budgets(&self) -> Vec<Budget> {
        Vec::new()
    }

    /// Whether all that should run does.
    pub fn workloads_healthy(&self) -> bool {
        (0..self.cluster.workloads.len())
            .all(|index| self.healthy_of(index) == self.cluster.workloads[index].replicas)
    }
}
