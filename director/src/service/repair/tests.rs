//! Replacements that die, from the order to replace a machine to the pool that is stopped: real store, loop, orders
//! and rollouts; provider, agents and witnesses are simulated.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use windlass_common::id::{ClusterName, Incarnation, MachineName};
use windlass_common::limits::{HEARTBEAT_INTERVAL, suspect_after};

use crate::config::{Config, Forensics, Identity};
use crate::gateway::Gateway;
use crate::model::{
    AuditFilter, ClusterPhase, Machine, MachinePhase, StepKey, TaskKind, TaskState, Timestamp,
};
use crate::provider::{Power as VmPower, Provider};
use crate::resurrector::witness::{
    Gathered, LEASE_DEADLINE, LinkChange, POWER_DEADLINE, POWER_EARLY, PROBE_DEADLINE, Witnesses,
};
use crate::resurrector::{
    ACTOR, CauseKind, Evidence, GuardPolicy, HoldKind, LadderPolicy, Lease, Link, Mode, Outlook,
    Peers, Policy, Power, Rung, Work,
};
use crate::rollout::tests::sim::Life;
use crate::rollout::world::Agents;
use crate::service::start::{Doors, start_through};
use crate::service::tests::{Rig, ann, data, spec};
use crate::service::{Director, StoppedPool};

const LIMIT: Duration = Duration::from_secs(120);
/// How soon changes are told.
const TOLD: Duration = Duration::from_millis(20);

/// Witnesses that see the simulated world as it is.
#[derive(Debug)]
struct Seers {
    life: Arc<Life>,
    /// Whether a machine that is not heard is late and never suspect.
    late: bool,
}

impl Seers {
    fn hears(&self, machine: &Machine) -> bool {
        self.life.is_heard(&machine.name, machine.incarnation)
    }
}

impl Witnesses for Seers {
    fn link(&self, machine: &Machine) -> Link {
        match self.late || self.hears(machine) {
            true => Link::Beating,
            false => Link::Silent,
        }
    }

    fn late(&self, machine: &Machine) -> bool {
        self.late && !self.hears(machine)
    }

    fn changes(&self) -> BoxStream<'static, LinkChange> {
        Box::pin(stream::unfold((), |()| async {
            tokio::time::sleep(TOLD).await;
            Some((LinkChange::Missed, ()))
        }))
    }

    fn evidence<'a>(&'a self, machine: &'a Machine) -> BoxFuture<'a, Gathered> {
        Box::pin(async move {
            let seen = self.life.power(&machine.name, machine.incarnation).await;
            let power = match seen.unwrap().power {
                Some(VmPower::Running) => Power::Running,
                Some(VmPower::Stopped) => Power::Stopped,
                None => Power::Absent,
            };
            Gathered {
                evidence: Evidence {
                    // Of one that is late others are asked if it is off.
                    link: match (self.late(machine), power) {
                        (true, Power::Absent | Power::Stopped) => Link::Silent,
                        _ => self.link(machine),
                    },
                    // While a machine runs, its kubelet does.
                    peers: match power {
                        Power::Running => Peers::Kubelet,
                        Power::Stopped | Power::Absent | Power::Unknown => Peers::Nobody,
                    },
                    lease: Lease::Unknown,
                    power,
                    work: Work::Well,
                },
                at: Timestamp::now(),
                took_ms: 0,
                silent_ms: None,
                lease_watched_ms: None,
                statements: Vec::new(),
                probes: Vec::new(),
            }
        })
    }
}

/// A director that replaces at once, over a cluster of one control-plane machine and two workers that serves.
pub(in crate::service) async fn impatient(rig: &Rig, forensics: Forensics) -> Director {
    judged_by(rig, forensics, false).await
}

async fn judged_by(rig: &Rig, forensics: Forensics, late: bool) -> Director {
    let data = data(rig.dir.path());
    let mut config = Config::parse("", &data).unwrap();
    config.gateway.listen = "127.0.0.1:0".parse().unwrap();
    config.resurrector.mode = Mode::On;
    config.resurrector.policy = Policy {
        ladder: LadderPolicy {
            replace_first_ms: 1,
            replace_cap_ms: 1,
            reboot_ms: 1,
            agent_lost_ms: 1,
            ..LadderPolicy::default()
        },
        guard: GuardPolicy {
            watch_first_ms: 0,
            ..GuardPolicy::default()
        },
    };
    config.resurrector.forensics = forensics;
    rig.sim.state.lock().unwrap().stored_elsewhere = true;
    let life = Life::new(rig.sim.clone(), usize::MAX);
    let doors = |_: &Gateway| Doors {
        agents: life.clone(),
        kubernetes: life.clone(),
        witnesses: Some(Arc::new(Seers {
            life: life.clone(),
            late,
        })),
    };
    let identity = Identity::load(&data, jiff::Timestamp::now()).await.unwrap();
    let started = start_through(&data, &config, identity, life.clone(), doors).await;
    let director = started.unwrap();
    director.create_cluster(spec("demo"), &ann()).await.unwrap();
    let serves = async {
        while director.cluster(&demo()).await.unwrap().phase != ClusterPhase::Ready {
            tokio::time::sleep(TOLD).await;
        }
    };
    tokio::time::timeout(LIMIT, serves).await.expect("in time");
    director
}

pub(in crate::service) fn demo() -> ClusterName {
    ClusterName::new("demo").unwrap()
}

pub(in crate::service) fn worker() -> MachineName {
    MachineName::new("demo-w-0").unwrap()
}

/// The provider has it no more.
pub(in crate::service) fn lose(rig: &Rig) {
    rig.sim.state.lock().unwrap().machines.remove(&worker());
}

/// Waits until the worker serves as this incarnation, and nothing works on its cluster any more.
pub(in crate::service) async fn serves(director: &Director, incarnation: u32) {
    let found = async {
        loop {
            let machine = director.machine(&worker()).await.unwrap().machine;
            let there = machine.incarnation == Incarnation(incarnation);
            let cluster = director.cluster(&demo()).await.unwrap().phase;
            if there && machine.phase == MachinePhase::Ready && cluster == ClusterPhase::Ready {
                return;
            }
            tokio::time::sleep(TOLD).await;
        }
    };
    tokio::time::timeout(LIMIT, found).await.expect("in time");
}

/// Waits until the cluster has a pool that is stopped, and shows that nothing is replaced there any more.
async fn stopped(director: &Director) -> StoppedPool {
    let found = async {
        loop {
            if let Some(pool) = director.stopped_pools(&demo()).await.unwrap().pop() {
                return pool;
            }
            tokio::time::sleep(TOLD).await;
        }
    };
    let pool = tokio::time::timeout(LIMIT, found).await.expect("in time");
    let refused = async {
        loop {
            if let Outlook::Refused { why, .. } =
                director.node_why(&worker()).await.unwrap().outlook
            {
                return why;
            }
            tokio::time::sleep(TOLD).await;
        }
    };
    let why = tokio::time::timeout(LIMIT, refused).await.expect("in time");
    assert_eq!(
        why, pool.why,
        "what it waits for is what is said of the pool"
    );
    pool
}

#[test]
fn a_dead_machine_is_judged_within_five_seconds() {
    // It may have been heard until it died, which is seen by the next look; one more look notices its silence. How
    // soon it is suspected: `gateway::silence`, in simulated time.
    let look = HEARTBEAT_INTERVAL / 4;
    let suspected = look + suspect_after(HEARTBEAT_INTERVAL) + look;
    let asked = POWER_EARLY + PROBE_DEADLINE.max(LEASE_DEADLINE).max(POWER_DEADLINE);
    assert!(suspected <= Duration::from_secs(2), "{suspected:?}");
    let judged = suspected + super::GATHER_CHANGES + asked;
    assert!(judged < Duration::from_millis(4_900), "{judged:?}");
}

/// Waits until the loop has looked at machines several times.
async fn looked_at_again_and_again(director: &Director) {
    let mut looks = BTreeSet::new();
    let looked = async {
        while looks.len() < 5 {
            looks.insert(director.node_why(&worker()).await.unwrap().looked_at);
            tokio::time::sleep(TOLD).await;
        }
    };
    tokio::time::timeout(LIMIT, looked).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_late_is_replaced_if_its_provider_says_that_it_is_gone() {
    let rig = Rig::new().await;
    let director = judged_by(&rig, Forensics::default(), true).await;
    let speaks = |does| {
        let mut state = rig.sim.state.lock().unwrap();
        state.machines.get_mut(&worker()).unwrap().connected = does;
    };
    // One that runs is let be, however often it is looked at.
    speaks(false);
    looked_at_again_and_again(&director).await;
    let said = director.node_why(&worker()).await.unwrap();
    assert!(said.case.is_none(), "{said:?}");
    speaks(true);
    lose(&rig);
    serves(&director, 2).await;
    let case = director.node_why(&worker()).await.unwrap().case.unwrap();
    let gone = case.history.iter().find(|change| change.verdict.is_down());
    let gone = gone.expect("it was judged").evidence;
    assert_eq!((gone.link, gone.power), (Link::Silent, Power::Absent));
    director.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_ignores_is_not_judged_and_nothing_is_done_to_it() {
    let rig = Rig::new().await;
    let director = impatient(&rig, Forensics::default()).await;
    let why = async || director.node_why(&worker()).await.unwrap();
    let reason = "it is being looked at".to_owned();
    let (name, ann) = (worker(), ann());
    let ignored = director.hold_node(&name, HoldKind::Ignore, reason, &ann);
    let history = ignored.await.unwrap().history;
    let unwatched = async {
        while why().await.unwatched.is_none() {
            tokio::time::sleep(TOLD).await;
        }
    };
    tokio::time::timeout(LIMIT, unwatched)
        .await
        .expect("in time");
    lose(&rig);
    // The loop looks at others meanwhile.
    looked_at_again_and_again(&director).await;
    let said = why().await;
    assert_eq!((said.verdict, said.outlook), (None, Outlook::Rest));
    assert!(said.unwatched.unwrap().contains("ignored"));
    let case = said.case.unwrap();
    assert_eq!((case.history, case.case.attempts), (history, Vec::new()));
    assert_eq!(said.incarnation, Incarnation(1));
    // Let go, it is judged and replaced.
    director.release_node(&name, &ann).await.unwrap();
    serves(&director, 2).await;
    director.shutdown().await;
}

async fn told(director: &Director) -> Vec<String> {
    let log = director.audit(200, &AuditFilter::default()).await.unwrap();
    let stops = log.into_iter().filter(|entry| entry.action == "pool.stop");
    stops.map(|entry| entry.detail).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_that_die_the_same_way_stop_their_pool_and_name_why() {
    let rig = Rig::new().await;
    let director = impatient(&rig, Forensics::default()).await;
    rig.sim.state.lock().unwrap().create_faults = [
        "no room: 7 MiB are free",
        "no room: 12 MiB are free",
        "no room: 9 MiB are free",
    ]
    .into();
    lose(&rig);
    let pool = stopped(&director).await;
    assert_eq!((pool.died, pool.kind), (3, CauseKind::Step), "{pool:?}");
    assert_eq!(pool.role.to_string(), "w");
    for part in [
        "create-machine failed",
        "no room",
        "(3 of 3)",
        "node release",
    ] {
        assert!(pool.why.contains(part), "{part}: {}", pool.why);
    }
    let case = director.node_why(&worker()).await.unwrap().case.unwrap();
    assert_eq!(case.deaths.len(), 3, "{:?}", case.deaths);
    let told_once = told(&director).await;
    assert_eq!(told_once.len(), 1, "{told_once:?}");
    assert!(
        told_once[0].contains("create-machine failed"),
        "{told_once:?}"
    );
    let counts = director.stopped_pool_counts();
    assert_eq!(counts[&CauseKind::Step], 1, "{counts:?}");
    let fault = director.overview().await.unwrap().remove(0).fault.unwrap();
    assert!(fault.contains("create-machine failed"), "{fault}");
    // Another worker is none the worse; what is released is replaced again.
    assert!(rig.sim.state.lock().unwrap().create_faults.is_empty());
    let released = director.release_node(&worker(), &ann()).await.unwrap();
    assert!(released.deaths.is_empty());
    serves(&director, 2).await;
    let gone = async {
        while !director.stopped_pools(&demo()).await.unwrap().is_empty() {
            tokio::time::sleep(TOLD).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.expect("in time");
    director.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_that_die_of_different_causes_stop_it_and_none_is_named() {
    let rig = Rig::new().await;
    let director = impatient(&rig, Forensics::default()).await;
    let first = ["no room: 7 MiB are free"].into();
    rig.sim.state.lock().unwrap().create_faults = first;
    lose(&rig);
    serves(&director, 2).await;
    let second = ["its stemcell is damaged"].into();
    rig.sim.state.lock().unwrap().create_faults = second;
    assert!(director.stopped_pools(&demo()).await.unwrap().is_empty());
    // The second that dies has served for a moment.
    lose(&rig);
    let pool = stopped(&director).await;
    assert_eq!(pool.kind, CauseKind::None, "{pool:?}");
    assert!(pool.why.contains("nothing in common but"), "{}", pool.why);
    assert!(!pool.why.contains("create-machine"), "{}", pool.why);
    let case = director.node_why(&worker()).await.unwrap().case.unwrap();
    let steps: Vec<_> = case
        .deaths
        .iter()
        .map(|death| death.step.is_some())
        .collect();
    assert_eq!(steps, [true, false, true], "{:?}", case.deaths);
    director.shutdown().await;
}

/// The worker's agent is lost while its kubelet goes on.
fn lose_agent(rig: &Rig) {
    let mut state = rig.sim.state.lock().unwrap();
    state.machines.get_mut(&worker()).unwrap().connected = false;
}

fn boots(rig: &Rig) -> u64 {
    rig.sim.state.lock().unwrap().machines[&worker()].view.boots
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_serves_is_drained_by_a_task_before_it_is_restarted() {
    let rig = Rig::new().await;
    let director = impatient(&rig, Forensics::default()).await;
    lose_agent(&rig);
    let restarted = async {
        while boots(&rig) < 2 {
            tokio::time::sleep(TOLD).await;
        }
    };
    tokio::time::timeout(LIMIT, restarted)
        .await
        .expect("in time");
    serves(&director, 1).await;
    let tasks = director.tasks().await.unwrap();
    let task = &tasks[0];
    assert_eq!(
        (task.kind, task.state, task.operator.as_str()),
        (TaskKind::RepairCluster, TaskState::Succeeded, ACTOR)
    );
    for verb in ["drain", "reboot", "await-agent", "uncordon"] {
        let key = StepKey::from(format!("machine/demo-w-0/{verb}"));
        assert!(task.steps.contains_key(&key), "{verb}: {task:?}");
    }
    // One restart by one task, and nothing is left of the wish.
    assert_eq!((boots(&rig), tasks.len()), (2, 2));
    let machine = director.machine(&worker()).await.unwrap().machine;
    assert_eq!((machine.reboot, machine.cordoned), (None, false));
    let case = director.node_why(&worker()).await.unwrap().case.unwrap();
    let tried: Vec<Rung> = case.case.attempts.iter().map(|tried| tried.rung).collect();
    assert_eq!(tried, [Rung::Reboot]);
    assert_eq!(case.begun, None);
    director.shutdown().await;
}
