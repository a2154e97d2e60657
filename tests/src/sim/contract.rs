//! What is simulated of etcd, of the Eviction API, of kubelets and of a provider under the cases that the real ones are
//! run against (`director/tests/kubernetes_real`, `director/tests/provider`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use tokio::runtime::Runtime;
use tokio::time::Duration;
use windlass_common::contract::etcd::{self as etcd_cases, Act, Answer, Members};
use windlass_common::contract::eviction::{self as eviction_cases, Ask, Evictions, Is, Said};
use windlass_common::contract::kubelet::{self as kubelet_cases, Kubelet, Sight};
use windlass_common::id::{Incarnation, MachineName, NodeName, PoolName};
use windlass_director::provider::contract as provider_cases;
use windlass_director::provider::{MachineView, Power};

use super::cluster::{API, KUBELET, Node, Pod};
use super::etcd::{ETCD, HEALTH_INTERVAL_MS, Member};
use super::eviction::Budget;
use super::fixtures::Fixtures;
use super::life::Life;
use super::state::{Site, Unit, Vm};
use super::{Canaries, runtime};

/// A world without directors, whose time passes when it is told to.
struct World {
    site: Site,
    runtime: Runtime,
}

impl World {
    fn new() -> Self {
        let runtime = runtime().unwrap();
        let entered = runtime.enter();
        let site = Site::new(1, Canaries::default(), false);
        drop(entered);
        let world = Self { site, runtime };
        // Long enough for what has happened before to be over.
        world.pass(600_000);
        world
    }

    fn pass(&self, ms: u64) {
        let time = Duration::from_millis(ms);
        self.runtime.block_on(tokio::time::advance(time));
    }

    fn act<T>(&self, change: impl FnOnce(&mut super::state::State) -> T) -> T {
        let _entered = self.runtime.enter();
        self.site.act(change)
    }

    fn machine(&self, name: &MachineName, pool: Option<PoolName>, unit: &str) {
        let node = name.node_name(Incarnation::FIRST).unwrap();
        let view = MachineView {
            name: name.clone(),
            incarnation: Incarnation::FIRST,
            power: Power::Running,
            address: Ipv4Addr::LOCALHOST,
            tags: BTreeMap::new(),
            created_at: 0,
            boots: 1,
            complete: true,
        };
        let mut vm = Vm::new(node, pool, 37, view);
        vm.mounted = true;
        self.act(|state| {
            let unit_runs = Unit {
                since: state.now,
                configuration: None,
            };
            vm.units.insert(unit.to_owned(), unit_runs);
            state.vms.insert(name.clone(), vm);
        });
    }
}

fn member(number: usize) -> MachineName {
    MachineName::new(format!("demo-cp-{number}")).unwrap()
}

struct SimulatedEtcd {
    world: World,
    waits: u32,
}

impl Members for SimulatedEtcd {
    fn begin(&mut self, members: usize) {
        for name in (0..members).map(member) {
            self.world.machine(&name, None, ETCD);
            self.world
                .act(|state| state.cluster.members.insert(name, Member::FIRST));
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Start(number) => self.world.machine(&member(number), None, ETCD),
            Act::Kill(number) => self.world.act(|state| {
                let vm = state.vms.get_mut(&member(number)).unwrap();
                vm.units.clear();
            }),
            Act::Settle => self.world.pass(HEALTH_INTERVAL_MS + 1_000),
            Act::Ask(..) | Act::Until(..) => unreachable!("asked elsewhere"),
        }
    }

    fn ask(&mut self, of: usize, ask: etcd_cases::Ask) -> Answer {
        let of = member(of);
        self.world.act(|state| match ask {
            etcd_cases::Ask::Add(other) => state.add_learner(&of, &member(other)),
            etcd_cases::Ask::Promote(other) => state.promote_member(&of, &member(other)),
            etcd_cases::Ask::Remove(other) => state.remove_member(&of, &member(other)),
        })
    }

    fn wait(&mut self) -> bool {
        self.world.pass(HEALTH_INTERVAL_MS / 5);
        self.waits += 1;
        self.waits < 10
    }
}

#[test]
fn the_simulated_etcd_changes_its_members_as_the_real_one_does() {
    let faults = etcd_cases::CASES.iter().flat_map(|case| {
        let mut simulated = SimulatedEtcd {
            world: World::new(),
            waits: 0,
        };
        etcd_cases::run(case, &mut simulated)
    });
    assert_eq!(faults.collect::<Vec<_>>(), Vec::<String>::new());
}

struct SimulatedApi {
    world: World,
    budgets: Vec<&'static str>,
}

impl Evictions for SimulatedApi {
    fn given(&mut self, case: &eviction_cases::Case) {
        let worker = MachineName::new("demo-workers-0").unwrap();
        let pool = PoolName::new("workers").unwrap();
        self.world.machine(&worker, Some(pool), KUBELET);
        let node = worker.node_name(Incarnation::FIRST).unwrap();
        let apps: BTreeSet<&str> = case.pods.iter().map(|pod| pod.app).collect();
        // An app is a workload; one that has no pods has a place of its own.
        let place = |app: &&str| apps.iter().position(|of| of == app).unwrap_or(apps.len());
        self.world.act(|state| {
            let (now, cluster) = (state.now, &mut state.cluster);
            let registered = Node::new(worker.clone(), now, now);
            cluster.nodes.insert(node.clone(), registered);
            let at = |so: bool| if so { now } else { u64::MAX };
            for pod in case.pods {
                let made = Pod {
                    uid: format!("uid-of-{}", pod.name),
                    workload: place(&pod.app),
                    node: Some(node.clone()),
                    runs_at: at(pod.is != Is::Pending),
                    ready_at: at(pod.is == Is::Ready),
                    ends_at: None,
                    grace_ms: 30_000,
                    charged_until: 0,
                };
                cluster.pods.insert(pod.name.to_owned(), made);
            }
            let budgets = case.budgets.iter().map(|budget| Budget {
                covers: budget.apps.iter().map(place).collect(),
                least: usize::try_from(budget.least).unwrap(),
                unhealthy: budget.unhealthy,
            });
            cluster.budgets = budgets.collect();
        });
        self.budgets = case.budgets.iter().map(|budget| budget.name).collect();
    }

    fn ask(&mut self, ask: Ask) -> Said {
        let uid = |name: &str| format!("uid-of-{name}");
        let answer = self.world.act(|state| match ask {
            Ask::Evict(name) => state.evict(name, &uid(name)),
            Ask::EvictNamesake(name) => state.evict(name, "uid-of-nobody"),
            Ask::Delete(name) => {
                // This world's operators never delete; it is theirs to say so here.
                let found = state.delete_pod(name);
                found.then_some(()).ok_or(super::eviction::Refusal::Gone)
            }
        });
        let (status, message) = match answer {
            Ok(()) => (201, ""),
            Err(refusal) => (refusal.status(), refusal.message()),
        };
        Said {
            status,
            message: message.to_owned(),
        }
    }

    fn left(&mut self, budget: &str) -> u32 {
        let at = self.budgets.iter().position(|name| *name == budget);
        let left = self.world.act(|state| state.disruptions_left(at.unwrap()));
        u32::try_from(left).unwrap()
    }

    fn ending(&mut self) -> BTreeSet<String> {
        self.world.act(|state| {
            let pods = state.cluster.pods.iter();
            let ending = pods.filter(|(_, pod)| pod.is_ending());
            ending.map(|(name, _)| name.clone()).collect()
        })
    }
}

#[test]
fn the_simulated_eviction_api_answers_as_the_real_one_does() {
    let faults = eviction_cases::CASES.iter().flat_map(|case| {
        let mut simulated = SimulatedApi {
            world: World::new(),
            budgets: Vec::new(),
        };
        eviction_cases::run(case, &mut simulated)
    });
    assert_eq!(faults.collect::<Vec<_>>(), Vec::<String>::new());
}

/// The kubelet of a worker, beside a machine of the control plane.
struct SimulatedKubelet {
    world: World,
    worker: MachineName,
    control: MachineName,
    /// When it was started or stopped last.
    turned: u64,
    waited: u64,
}

/// How long a part of what is waited for takes, and all of it at most.
const PART_MS: u64 = 500;
const PATIENCE_MS: u64 = 120_000;

impl SimulatedKubelet {
    fn new() -> Self {
        Self {
            world: World::new(),
            worker: MachineName::new("demo-workers-0").unwrap(),
            control: member(0),
            turned: 0,
            waited: 0,
        }
    }

    /// Starts a unit of a machine, or ends it.
    fn turn(&self, machine: &MachineName, unit: &str, on: bool) {
        self.world.act(|state| {
            let since = state.now;
            let units = &mut state.vms.get_mut(machine).unwrap().units;
            let started = Unit {
                since,
                configuration: None,
            };
            match on {
                true => units.insert(unit.to_owned(), started),
                false => units.remove(unit),
            };
        });
    }

    fn node(&self) -> NodeName {
        self.worker.node_name(Incarnation::FIRST).unwrap()
    }
}

impl Kubelet for SimulatedKubelet {
    fn begin(&mut self) {
        self.world.machine(&self.control, None, ETCD);
        let pool = PoolName::new("workers").unwrap();
        self.world.machine(&self.worker, Some(pool), KUBELET);
        self.turn(&self.worker, KUBELET, false);
        self.turn(&self.control, API, true);
        self.world.act(|state| {
            let cluster = &mut state.cluster;
            cluster.members.insert(member(0), Member::FIRST);
            cluster.addons = true;
            // No more pods than the cases make.
            cluster.workloads.truncate(1);
            cluster.workloads[0].replicas = 0;
        });
        self.world.pass(HEALTH_INTERVAL_MS);
        assert!(self.world.act(|state| state.api_up()));
    }

    fn act(&mut self, act: kubelet_cases::Act) {
        use kubelet_cases::Act;
        let node = self.node();
        match act {
            Act::Start | Act::Stop => {
                self.world.pass(1);
                self.turn(&self.worker, KUBELET, act == Act::Start);
                self.turned = self.world.act(|state| state.now);
                self.world.pass(1);
            }
            Act::Silence => self.turn(&self.control, API, false),
            Act::Answer => self.turn(&self.control, API, true),
            Act::Miss => self.world.pass(30_000),
            Act::Cordon => self.world.act(|state| {
                state.cluster.nodes.get_mut(&node).unwrap().cordoned = true;
            }),
            Act::Drop => self.world.act(|state| {
                state.cluster.nodes.remove(&node);
            }),
            Act::Run(name) => self.world.act(|state| {
                let now = state.now;
                let made = Pod {
                    uid: format!("uid-of-{name}"),
                    workload: 0,
                    node: Some(node.clone()),
                    runs_at: now + 1_000,
                    ready_at: now + 2_000,
                    ends_at: None,
                    grace_ms: 1_000,
                    charged_until: 0,
                };
                state.cluster.pods.insert(name.to_owned(), made);
            }),
            Act::Tell(name) => assert!(self.world.act(|state| state.delete_pod(name))),
            Act::See(_) | Act::Until(_) => unreachable!("looked at elsewhere"),
        }
        self.waited = 0;
    }

    fn sees(&mut self, sight: Sight) -> bool {
        let (own, turned) = (self.node(), self.turned);
        self.world.act(|state| {
            let (now, cluster) = (state.now, &state.cluster);
            let node = cluster.nodes.get(&own);
            let is = |what: fn(&Node) -> bool| node.is_some_and(what);
            match sight {
                Sight::Registered => cluster.nodes.keys().eq([&own]),
                Sight::Absent => cluster.nodes.is_empty(),
                Sight::Ready => is(|node| node.ready),
                Sight::NotReady => is(|node| !node.ready),
                Sight::OfBefore => node.is_some_and(|node| node.said < turned),
                Sight::OfNow => node.is_some_and(|node| node.said >= turned),
                Sight::Cordoned => is(|node| node.cordoned),
                Sight::Open => is(|node| !node.cordoned),
                Sight::Runs(name) => {
                    let pod = cluster.pods.get(name);
                    pod.is_some_and(|pod| pod.uid == format!("uid-of-{name}") && state.healthy(pod))
                }
                Sight::Overdue(name) => {
                    let pod = cluster.pods.get(name);
                    pod.is_some_and(|pod| pod.ends_at.is_some_and(|end| end < now))
                }
                Sight::Gone(name) => !cluster.pods.contains_key(name),
            }
        })
    }

    fn wait(&mut self) -> bool {
        self.world.pass(PART_MS);
        self.waited += PART_MS;
        self.waited < PATIENCE_MS
    }
}

#[test]
fn the_simulated_kubelet_does_what_the_real_one_does() {
    let faults = kubelet_cases::CASES
        .iter()
        .flat_map(|case| kubelet_cases::run(case, &mut SimulatedKubelet::new()));
    assert_eq!(faults.collect::<Vec<_>>(), Vec::<String>::new());
}

/// What the cases of a provider need of the simulation.
struct SimulatedSite(Site);

impl provider_cases::Site for SimulatedSite {
    fn stemcell(&self) -> PathBuf {
        PathBuf::from("/stemcells/sim-1.37.0-1")
    }

    fn settings(&self, _machine: &MachineName, _incarnation: Incarnation) -> Vec<u8> {
        Vec::new()
    }

    fn places_settings(&self) -> bool {
        false
    }

    fn mount(&mut self, machine: &MachineName, _device: &Path) {
        self.0.lock().vms.get_mut(machine).unwrap().mounted = true;
    }

    fn cut_off(&mut self, machine: &MachineName) {
        let mut state = self.0.lock();
        state.vms.get_mut(machine).unwrap().view.complete = false;
    }
}

#[test]
fn the_simulated_provider_answers_as_real_ones_do() {
    let fixtures = Fixtures::new().unwrap();
    let faults = provider_cases::CASES.iter().flat_map(|case| {
        let world = World::new();
        let life = Life::new(&world.site, &fixtures, false);
        let mut site = SimulatedSite(world.site.clone());
        let asked = provider_cases::run(case, &*life, &mut site);
        let faults = world.runtime.block_on(asked);
        // Machines hold their world, and the world its machines.
        world.site.lock().vms.clear();
        faults
    });
    assert_eq!(faults.collect::<Vec<_>>(), Vec::<String>::new());
}
