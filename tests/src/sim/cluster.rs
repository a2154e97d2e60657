//! The cluster on the machines: API servers, nodes and pods. Members of etcd are in [`super::etcd`], what keeps pods
//! in [`super::eviction`].
//!
//! Nothing here runs by itself: what time has brought is worked out when the state is looked at.

use std::collections::BTreeMap;

use windlass_common::contract::eviction::Unhealthy;
use windlass_common::id::{MachineName, NodeName};
use windlass_director::drain::{Budget as Covering, Controller, Pod as DrainPod, PodPhase, PodRef};

use super::dice::Dice;
use super::etcd::Member;
use super::eviction::Budget;
use super::state::{State, Vm};

/// A unit by its name.
pub const API: &str = "kube-apiserver.service";
/// See [`API`].
pub const KUBELET: &str = "kubelet.service";

/// How long an API server takes to be ready.
const API_READY_MS: u64 = 2_000;
/// How long a kubelet takes to register.
const KUBELET_READY_MS: u64 = 3_000;
/// How long a node that is not heard of stays Ready (`--node-monitor-grace-period`, by default).
pub const GRACE_MS: u64 = 50_000;
/// How long a node is dead before its pods are made anew elsewhere (default tolerations).
const TOLERATED_MS: u64 = 300_000;

/// What the API knows.
#[derive(Debug)]
pub struct Cluster {
    /// Members of etcd.
    pub members: BTreeMap<MachineName, Member>,
    /// Nodes.
    pub nodes: BTreeMap<NodeName, Node>,
    /// Pods by name.
    pub pods: BTreeMap<String, Pod>,
    /// What makes them.
    pub workloads: Vec<Workload>,
    /// What keeps them.
    pub budgets: Vec<Budget>,
    /// Jobs of gates, by name: when each is over, and whether it fails.
    pub jobs: BTreeMap<String, (u64, bool)>,
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
    /// What it says of being Ready: what its kubelet has said, until that was not seen for [`GRACE_MS`].
    pub ready: bool,
    /// When its kubelet has said so.
    pub said: u64,
    /// Since when the kubelet runs that has.
    pub by: u64,
}

impl Node {
    /// One that its kubelet, which runs since then, has registered just now.
    pub fn new(machine: MachineName, now: u64, by: u64) -> Self {
        Self {
            machine,
            cordoned: false,
            seen: now,
            ready: true,
            said: now,
            by,
        }
    }
}

/// A deployment or a stateful set.
#[derive(Debug)]
pub struct Workload {
    name: &'static str,
    kind: &'static str,
    pub(super) replicas: usize,
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// Told apart from others of its name by this.
    pub uid: String,
    /// What has made it, by its place.
    pub workload: usize,
    /// Where it runs.
    pub node: Option<NodeName>,
    /// When its containers start.
    pub runs_at: u64,
    /// When it is ready.
    pub ready_at: u64,
    /// When it is over, if it was told to end.
    pub ends_at: Option<u64>,
    /// How long it takes to end.
    pub grace_ms: u64,
    /// It counts as lost until then, since its budget was charged for it.
    pub charged_until: u64,
}

impl Pod {
    /// Whether it was told to end.
    pub fn is_ending(&self) -> bool {
        self.ends_at.is_some()
    }

    /// Whether none of its containers was started.
    pub fn is_pending(&self, now: u64) -> bool {
        self.runs_at > now
    }
}

impl Cluster {
    /// A cluster whose workloads are thrown.
    pub fn new(dice: &mut Dice) -> Self {
        let web = usize::try_from(dice.within(3..=6)).unwrap_or(3);
        let spare = usize::try_from(dice.within(1..=2)).unwrap_or(1);
        let workload = |name, kind, replicas| Workload {
            name,
            kind,
            replicas,
        };
        let budget = |workload, least| Budget {
            covers: vec![workload],
            least,
            unhealthy: Unhealthy::IfHealthyBudget,
        };
        Self {
            members: BTreeMap::new(),
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            workloads: vec![
                workload("web", "ReplicaSet", web),
                workload("db", "StatefulSet", 3),
            ],
            budgets: vec![budget(0, web - spare), budget(1, 2)],
            jobs: BTreeMap::new(),
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
        self.jobs.clear();
        self.addons = false;
    }
}

impl Vm {
    /// Since when its kubelet runs, once that is up.
    fn kubelet_up(&self, now: u64) -> Option<u64> {
        let up = self.has_for(KUBELET, now, KUBELET_READY_MS);
        self.units
            .get(KUBELET)
            .filter(|_| up)
            .map(|unit| unit.since)
    }
}

impl State {
    /// Whether a machine's API server answers.
    pub fn api_server_up(&self, name: &MachineName) -> bool {
        let vm = self.vms.get(name);
        vm.is_some_and(|vm| self.api_server_runs(vm)) && self.quorum()
    }

    fn api_server_runs(&self, vm: &Vm) -> bool {
        vm.has_for(API, self.now, API_READY_MS) && vm.has_member(self.now)
    }

    /// Whether any API server answers.
    pub fn api_up(&self) -> bool {
        let mut vms = self.vms.values();
        self.cluster.refuses_until <= self.now
            && vms.any(|vm| self.api_server_runs(vm))
            && self.quorum()
    }

    /// Whether the director reaches an API server.
    pub fn api_reached(&self) -> bool {
        let mut vms = self.vms.values();
        self.cluster.refuses_until <= self.now
            && vms.any(|vm| vm.connected(self.now) && self.api_server_runs(vm))
            && self.quorum()
    }

    /// Whether an API server answers a machine of the cluster.
    pub fn api_answers(&self) -> bool {
        self.api_up()
    }

    /// Whether a machine's node is Ready, whatever it says.
    pub fn node_ready(&self, name: &MachineName) -> bool {
        self.vms.get(name).is_some_and(|vm| {
            vm.has_for(KUBELET, self.now, KUBELET_READY_MS)
                && self.cluster.nodes.contains_key(&vm.node)
        })
    }

    /// The node of a machine that says that it is Ready.
    pub fn says_ready(&self, name: &MachineName) -> Option<&Node> {
        let node = self.cluster.nodes.get(&self.vms.get(name)?.node)?;
        node.ready.then_some(node)
    }

    /// Whether a worker takes pods.
    pub fn available(&self, name: &MachineName) -> bool {
        let Some(vm) = self.vms.get(name) else {
            return false;
        };
        let node = self.cluster.nodes.get(&vm.node);
        self.node_ready(name) && node.is_some_and(|node| !node.cordoned)
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
        self.settle_members();
        if self.api_up() && self.cluster.addons {
            self.register();
            self.tell_of_nodes();
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

    /// Kubelets make their Node objects, each once after it has started: one whose Node is deleted does not make it
    /// again.
    fn register(&mut self) {
        let now = self.now;
        let mut new = Vec::new();
        for (machine, vm) in &mut self.vms {
            let Some(since) = vm
                .kubelet_up(now)
                .filter(|since| vm.registered != Some(*since))
            else {
                continue;
            };
            vm.registered = Some(since);
            if !self.cluster.nodes.contains_key(&vm.node) {
                let made = Node::new(machine.clone(), now, since);
                self.cluster.nodes.insert(vm.node.clone(), made);
                new.push(vm.node.clone());
            }
        }
        for node in new {
            self.tell(format!("node {node} registers"));
        }
    }

    /// Kubelets say that their nodes are Ready: when they have started, and when it was taken back. It is taken back
    /// where none was seen for long.
    fn tell_of_nodes(&mut self) {
        let now = self.now;
        for vm in self.vms.values() {
            if let Some(since) = vm.kubelet_up(now)
                && let Some(node) = self.cluster.nodes.get_mut(&vm.node)
                && (!node.ready || node.by != since)
            {
                (node.ready, node.said, node.by) = (true, now, since);
            }
        }
        for node in self.cluster.nodes.values_mut() {
            node.ready &= node.seen + GRACE_MS >= now;
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
                    uid: name.clone(),
                    workload: index,
                    node: None,
                    runs_at: u64::MAX,
                    ready_at: u64::MAX,
                    ends_at: None,
                    grace_ms: self.dice.within(1_000..=20_000),
                    charged_until: 0,
                };
                cluster.pods.insert(name, pod);
            }
        }
        self.schedule();
    }

    /// Pods that wait go to the worker with the fewest.
    fn schedule(&mut self) {
        if self.cluster.pods.values().all(|pod| pod.node.is_some()) {
            return;
        }
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
            let takes = self.dice.within(2_000..=15_000);
            pod.runs_at = now + takes / 2;
            pod.ready_at = now + takes;
        }
    }

    /// Whether a pod is ready.
    pub fn ready(&self, pod: &Pod) -> bool {
        let vm = pod
            .node
            .as_ref()
            .and_then(|node| self.cluster.nodes.get(node))
            .and_then(|node| self.vms.get(&node.machine));
        pod.ready_at <= self.now && vm.is_some_and(|vm| vm.has(KUBELET, self.now))
    }

    /// Whether it is ready and goes on.
    pub fn healthy(&self, pod: &Pod) -> bool {
        !pod.is_ending() && self.ready(pod)
    }

    fn healthy_of(&self, workload: usize) -> usize {
        let pods = self.cluster.pods.values();
        pods.filter(|pod| pod.workload == workload && self.healthy(pod))
            .count()
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
                        uid: pod.uid.clone(),
                    },
                    labels: BTreeMap::new(),
                    controller: Some(Controller {
                        kind: workload.kind.into(),
                        name: workload.name.into(),
                    }),
                    is_static: false,
                    phase: match pod.is_pending(self.now) {
                        true => PodPhase::Pending,
                        false => PodPhase::Running,
                    },
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
    pub fn budgets(&self) -> Vec<Covering> {
        Vec::new()
    }

    /// Whether all that should run does.
    pub fn workloads_healthy(&self) -> bool {
        (0..self.cluster.workloads.len())
            .all(|index| self.healthy_of(index) == self.cluster.workloads[index].replicas)
    }
}
