//! The real etcd and Eviction API under the cases that the simulated ones are run against (`tests/src/sim`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use windlass_common::contract::etcd::{self as etcd_cases, Act, Answer, Members};
use windlass_common::contract::eviction::{self as eviction_cases, Ask, Evictions, Is, Said};
use windlass_common::contract::eviction::{Pod, Unhealthy};
use windlass_director::kubernetes::client::{ApiError, Client, Resource};
use windlass_director::kubernetes::facts::{ClusterFacts, EtcdFacts, MachineFacts};
use windlass_director::kubernetes::pki::{ClusterPki, Profile};
use windlass_director::kubernetes::render::{self, Phase};

use crate::machine::{Machine, PATIENCE, World, block_on, until};
use crate::{etcdctl, facts, prepare, start};

/// Control-plane machines that are known, of which cases name some.
const MACHINES: u32 = 5;
/// As long as etcd counts a connection for nothing.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);

struct RealEtcd<'a> {
    world: &'a World,
    cluster: ClusterFacts,
    pki: ClusterPki,
    machines: BTreeMap<usize, Machine<'a>>,
    /// Those whose etcd runs.
    running: BTreeSet<usize>,
    /// Those that are members.
    present: BTreeSet<usize>,
    /// The ids under which they are members, or were.
    ids: BTreeMap<usize, String>,
    began: Instant,
}

impl RealEtcd<'_> {
    fn ctl(&self, of: usize, arguments: &[&str]) -> Result<String, String> {
        let facts = &self.cluster.machines[of];
        let profile = Profile::ApiServerEtcdClient;
        etcdctl(&self.machines[&of], facts, profile, arguments)
    }

    fn start(&mut self, number: usize) {
        if let Some(machine) = self.machines.get_mut(&number) {
            machine.start("etcd");
        } else {
            let machine = &self.cluster.machines[number];
            let mut machine = self.world.machine(machine, &[]);
            let facts = &self.cluster.machines[number];
            let configure = prepare(&self.cluster, &self.pki, facts, &machine);
            start(&mut machine, &configure, Phase::Etcd);
            self.machines.insert(number, machine);
        }
        self.running.insert(number);
    }

    /// What a member has last noticed of each other, by id: whether it is connected, and since when.
    fn noticed(&self, of: usize) -> BTreeMap<String, (bool, Timestamp)> {
        let log = self.machines[&of].log("etcd");
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let changes = lines.filter_map(|line| {
            let text = |field: &str| line[field].as_str().map(str::to_owned);
            let message = text("msg")?;
            let active = message.starts_with("peer became active");
            let lost = message.starts_with("peer became inactive");
            let at = text("ts")?.parse().unwrap();
            (active || lost).then_some((text("peer-id")?, (active, at)))
        });
        changes.collect()
    }

    /// Whether a member knows one that runs to lead.
    fn is_led(&self, of: usize) -> bool {
        let status = self.ctl(of, &["endpoint", "status", "-w", "json"]).unwrap();
        let status: Value = serde_json::from_str(&status).unwrap();
        let leader = status[0]["Status"]["leader"].as_u64();
        let id = |number: &usize| u64::from_str_radix(&self.ids[number], 16).unwrap();
        self.running
            .intersection(&self.present)
            .any(|number| leader == Some(id(number)))
    }

    fn is_settled(&self) -> bool {
        let long = |since: Timestamp| {
            Timestamp::now().duration_since(since) > HEALTH_INTERVAL.try_into().unwrap()
        };
        let members = self.running.intersection(&self.present);
        let majority = members.clone().count() > self.present.len() / 2;
        members.clone().all(|one| {
            if majority && !self.is_led(*one) {
                return false;
            }
            let noticed = self.noticed(*one);
            let others = self.present.iter().filter(|other| *other != one);
            others.into_iter().all(|other| {
                let seen = noticed.get(&self.ids[other]);
                match self.running.contains(other) {
                    true => seen.is_some_and(|(active, since)| *active && long(*since)),
                    false => seen.is_none_or(|(active, _)| !active),
                }
            })
        })
    }
}

impl Members for RealEtcd<'_> {
    fn begin(&mut self, members: usize) {
        for machine in &mut self.cluster.machines[members..] {
            machine.etcd.votes = false;
        }
        for number in 0..members {
            self.start(number);
            self.present.insert(number);
        }
        for machine in self.machines.values_mut() {
            machine.gate(Phase::Etcd);
        }
        let list = self.ctl(0, &["member", "list"]).unwrap();
        for line in list.lines() {
            let fields: Vec<&str> = line.split(", ").collect();
            let named = |machine: &MachineFacts| machine.name.as_str() == fields[2];
            let number = self.cluster.machines.iter().position(named).unwrap();
            self.ids.insert(number, fields[0].to_owned());
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Start(number) => self.start(number),
            Act::Kill(number) => {
                self.machines.get_mut(&number).unwrap().kill("etcd");
                self.running.remove(&number);
            }
            Act::Settle => until("members to know each other", || {
                self.is_settled().then_some(())
            }),
            Act::Ask(..) | Act::Until(..) => unreachable!("asked elsewhere"),
        }
    }

    fn ask(&mut self, of: usize, ask: etcd_cases::Ask) -> Answer {
        let (verb, number) = match ask {
            etcd_cases::Ask::Add(number) => ("add", number),
            etcd_cases::Ask::Promote(number) => ("promote", number),
            etcd_cases::Ask::Remove(number) => ("remove", number),
        };
        let peer = render::etcd_peer(&self.cluster.machines[number]);
        let url = format!("--peer-urls={}", peer.url);
        let nobody = "1".to_owned();
        let said = match ask {
            etcd_cases::Ask::Add(_) => {
                self.ctl(of, &["member", verb, &peer.name, &url, "--learner"])
            }
            _ => {
                let id = self.ids.get(&number).unwrap_or(&nobody);
                self.ctl(of, &["member", verb, id])
            }
        };
        let passed = self.began.elapsed();
        let said = match said {
            Ok(said) => said,
            Err(said) => {
                let last = said.lines().last().unwrap_or_default();
                let words = last.trim().trim_start_matches("Error: ");
                println!("{passed:.1?}: member {of}, {ask:?}: {words}");
                return Answer::said(words).unwrap_or_else(|| panic!("{ask:?}: {said}"));
            }
        };
        println!("{passed:.1?}: member {of}, {ask:?}: done");
        match ask {
            etcd_cases::Ask::Add(_) => {
                self.present.insert(number);
                // "Member 9bf1b35fc7761a23 added to cluster …"
                let id = said.split_whitespace().nth(1).unwrap();
                self.ids.insert(number, id.to_owned());
                let peers = self.present.iter().map(|number| {
                    let peer = render::etcd_peer(&self.cluster.machines[*number]);
                    format!("{}={}", peer.name, peer.url)
                });
                let initial_cluster = Some(peers.collect::<Vec<_>>().join(","));
                self.cluster.machines[number].etcd = EtcdFacts {
                    initial_cluster,
                    votes: false,
                    leaves: false,
                };
            }
            etcd_cases::Ask::Promote(_) => {}
            etcd_cases::Ask::Remove(_) => {
                self.present.remove(&number);
            }
        }
        Answer::Done
    }

    fn wait(&mut self) -> bool {
        std::thread::park_timeout(Duration::from_millis(100));
        self.began.elapsed() < PATIENCE
    }
}

#[test]
fn etcd_changes_its_members_as_the_simulated_one_does() {
    let mut faults = Vec::new();
    for case in etcd_cases::CASES {
        println!("--- {}", case.name);
        // A network of its own, which ends with its thread.
        let run = || {
            let world = World::new();
            let cluster = facts(world.kubernetes_version(), MACHINES, 0);
            let pki = ClusterPki::generate(&cluster.spec.name, Timestamp::now()).unwrap();
            let mut real = RealEtcd {
                world: &world,
                cluster,
                pki,
                machines: BTreeMap::new(),
                running: BTreeSet::new(),
                present: BTreeSet::new(),
                ids: BTreeMap::new(),
                began: Instant::now(),
            };
            etcd_cases::run(case, &mut real)
        };
        faults.extend(std::thread::scope(|scope| scope.spawn(run).join().unwrap()));
    }
    assert_eq!(faults, Vec::<String>::new());
}

/// An API server with the controllers that keep the accounts of budgets.
struct RealApi<'a, K> {
    admin: &'a Client,
    kubectl: K,
    node: &'a MachineFacts,
    namespace: String,
    uids: BTreeMap<String, String>,
}

impl<K: Fn(&[&str]) -> String> RealApi<'_, K> {
    fn namespace(&self) -> Option<&str> {
        Some(&self.namespace)
    }

    fn make(&mut self, pod: &Pod) {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod.name, "namespace": self.namespace, "labels": {"app": pod.app}},
            "spec": {
                "nodeName": self.node.node_name,
                "automountServiceAccountToken": false,
                "containers": [{"name": "it", "image": "registry.windlass.internal/none:1"}],
            },
        });
        let made = self.admin.create(&Resource::POD, self.namespace(), &object);
        let uid = block_on(made).unwrap()["metadata"]["uid"].clone();
        let uid = uid.as_str().unwrap().to_owned();
        self.uids.insert(pod.name.to_owned(), uid);
        let ready = match pod.is {
            Is::Pending => return,
            Is::NotReady => "False",
            Is::Ready => "True",
        };
        let status = json!({"status": {
            "phase": "Running", "conditions": [{"type": "Ready", "status": ready}],
        }});
        let patch = ["patch", "pod", pod.name, "--subresource=status"];
        let how = ["--type=merge", "-p", &status.to_string()];
        (self.kubectl)(&[&["-n", &self.namespace][..], &patch, &how].concat());
    }

    fn budget(&self, name: &str) -> Value {
        let kind = &Resource::POD_DISRUPTION_BUDGET;
        block_on(self.admin.get(kind, self.namespace(), name)).unwrap()
    }
}

impl<K: Fn(&[&str]) -> String> Evictions for RealApi<'_, K> {
    fn given(&mut self, case: &eviction_cases::Case) {
        (self.kubectl)(&["create", "namespace", &self.namespace]);
        // Pods are refused until the controller has made it.
        until("the namespace's account", || {
            let accounts = ["get", "serviceaccounts", "-o", "name"];
            let found = (self.kubectl)(&[&["-n", &self.namespace][..], &accounts].concat());
            found.contains("default").then_some(())
        });
        for pod in case.pods {
            self.make(pod);
        }
        for budget in case.budgets {
            let policy = match budget.unhealthy {
                Unhealthy::IfHealthyBudget => Value::Null,
                Unhealthy::AlwaysAllow => json!("AlwaysAllow"),
            };
            let object = json!({
                "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
                "metadata": {"name": budget.name, "namespace": self.namespace},
                "spec": {
                    "minAvailable": budget.least,
                    "selector": {"matchExpressions": [
                        {"key": "app", "operator": "In", "values": budget.apps},
                    ]},
                    "unhealthyPodEvictionPolicy": policy,
                },
            });
            let kind = &Resource::POD_DISRUPTION_BUDGET;
            block_on(self.admin.create(kind, self.namespace(), &object)).unwrap();
        }
        for budget in case.budgets {
            let covered = case
                .pods
                .iter()
                .filter(|pod| budget.apps.contains(&pod.app));
            let healthy = covered.clone().filter(|pod| pod.is == Is::Ready).count();
            let want = json!([covered.count(), healthy]);
            until("the budget counts", || {
                let status = self.budget(budget.name)["status"].take();
                let found = json!([status["expectedPods"], status["currentHealthy"]]);
                (found == want).then_some(())
            });
        }
    }

    fn ask(&mut self, ask: Ask) -> Said {
        let nobody = || "00000000-0000-0000-0000-000000000000".to_owned();
        let own = |name: &str| self.uids.get(name).cloned().unwrap_or_else(nobody);
        let (name, uid) = match ask {
            Ask::Evict(name) | Ask::Delete(name) => (name, own(name)),
            Ask::EvictNamesake(name) => (name, nobody()),
        };
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid},
        });
        let answer: Result<(), ApiError> = block_on(async {
            if let Ask::Delete(_) = ask {
                let pods = &Resource::POD;
                let deleted = self
                    .admin
                    .delete_with(pods, self.namespace(), name, &options)
                    .await;
                return deleted.map(drop);
            }
            let eviction = json!({
                "apiVersion": "policy/v1", "kind": "Eviction",
                "metadata": {"name": name, "namespace": self.namespace},
                "deleteOptions": options,
            });
            let pods = &Resource::POD;
            let told = self
                .admin
                .create_under(pods, self.namespace(), name, "eviction", &eviction)
                .await;
            told.map(drop)
        });
        let said = match answer {
            Ok(()) => Said {
                status: 201,
                message: String::new(),
            },
            Err(error) => Said {
                status: error.code().unwrap_or(0),
                message: error.to_string(),
            },
        };
        println!("{ask:?}: {} {}", said.status, said.message);
        said
    }

    fn left(&mut self, budget: &str) -> u32 {
        let left = self.budget(budget)["status"]["disruptionsAllowed"].as_u64();
        u32::try_from(left.unwrap()).unwrap()
    }

    fn ending(&mut self) -> BTreeSet<String> {
        let pods = self.admin.list(&Resource::POD, self.namespace(), None);
        let pods: Vec<Value> = block_on(pods).unwrap();
        let metadata = pods.iter().map(|pod| &pod["metadata"]);
        let ending = metadata.filter(|metadata| metadata["deletionTimestamp"].is_string());
        ending
            .map(|metadata| metadata["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// `node` is one whose kubelet does not run.
pub(crate) fn evictions_are_answered_as_the_simulated_ones(
    node: &MachineFacts,
    admin: &Client,
    kubectl: impl Fn(&[&str]) -> String,
) {
    let mut faults = Vec::new();
    for (number, case) in eviction_cases::CASES.iter().enumerate() {
        println!("--- {}", case.name);
        let mut real = RealApi {
            admin,
            kubectl: &kubectl,
            node,
            namespace: format!("contract-{number}"),
            uids: BTreeMap::new(),
        };
        faults.extend(eviction_cases::run(case, &mut real));
    }
    assert_eq!(faults, Vec::<String>::new());
}
