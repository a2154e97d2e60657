//! Rollouts that die at every point there is, and end the same.

mod again;
mod anew;
mod contract;
mod drains;
mod legs;
mod pause;
mod reboot;
mod refit;
mod renewal;
mod restore;
mod shut_out;
pub(crate) mod sim;
mod update;
mod window;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use windlass_common::cluster::{
    Amount, ClusterNetwork, ClusterSpec, ControlPlaneSpec, MachineSize, PoolSpec, UpdatePolicy,
};
use windlass_common::id::{
    ClusterName, DirectorId, DiskName, Epoch, Incarnation, MachineName, PoolName,
};

use self::sim::{Life, Sim};
use super::world::{Birth, Registry, World, check};
use super::{Effects, ProgressSink, Rollouts, StepOrder, Stop, cluster_pki_name};
use crate::artifacts::Artifacts;
use crate::kubernetes::facts::HostTraits;
use crate::kubernetes::pki::ClusterPki;
use crate::model::{
    Action, Cluster, ClusterPhase, Endpoint, Machine, MachineDraft, MachinePhase, MachineRole,
    Plan, Revision, StepKey, StepState, Task, TaskId, TaskKind, TaskState, Timestamp,
};
use crate::pki::DirectorCa;
use crate::planner::{self, Desired, inputs};
use crate::stemcell::{self, Catalogue};
use crate::store::{Commit, Expect, Kind, Records, Sealer, Store};

const VERSION: &str = "1.37.2";

/// What tests need of one life of a director.
struct Director {
    records: Records,
    world: Arc<World>,
    rollouts: Rollouts,
}

struct Rig {
    dir: tempfile::TempDir,
    stemcells: Catalogue,
    sim: Arc<Sim>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stemcells = stemcell::tests::catalogue(dir.path(), VERSION);
        Self {
            dir,
            stemcells,
            sim: Arc::default(),
        }
    }

    async fn live(&self, life: &Arc<Life>) -> Director {
        let store: Arc<dyn Store> = life.clone();
        let records = Records::new(store, Sealer::new(&[7; 32]).unwrap())
            .await
            .unwrap();
        let machines: Vec<Machine> = records.list().await.unwrap();
        let director = DirectorId::new("d1").unwrap();
        let ca = DirectorCa::create(director.clone(), jiff::Timestamp::now()).unwrap();
        let world = Arc::new(World {
            records: records.clone(),
            provider: life.clone(),
            agents: life.clone(),
            kubernetes: life.clone(),
            registry: Arc::new(Registry::new(director.clone(), &machines)),
            stemcells: self.stemcells.clone(),
            artifacts: Arc::new(Artifacts::new(self.dir.path().join("artifacts"))),
            birth: Birth {
                director,
                directors: vec!["10.0.0.1:1".parse().unwrap()],
                ca: Arc::new(ca),
                epoch: Epoch(1).into(),
            },
            host: HostTraits::default(),
            etcd_turns: Default::default(),
            closings: Default::default(),
        });
        let rollouts = Rollouts::new(records.clone(), world.clone());
        Director {
            records,
            world,
            rollouts,
        }
    }

    /// A life that does not die.
    async fn immortal(&self) -> Director {
        self.live(&Life::new(self.sim.clone(), usize::MAX)).await
    }

    async fn order_create(&self) -> TaskId {
        self.order_create_of(draft(&self.stemcells)).await
    }

    async fn order_create_of(&self, (cluster, machines): (Cluster, Vec<Machine>)) -> TaskId {
        let director = self.immortal().await;
        let stemcell = self.stemcells.get(&cluster.stemcell).unwrap();
        let facts = inputs::facts(&cluster, &machines, &stemcell, HostTraits::default());
        facts.validate().unwrap();
        let desired = director.world.desired(&cluster, &machines).unwrap();
        let pki = ClusterPki::generate(&cluster.spec.name, jiff::Timestamp::now()).unwrap();
        let mut commit = Commit::default();
        let name = cluster_pki_name(&cluster.spec.name);
        director
            .records
            .put_secret(&mut commit, &name, pki.to_bytes().expose())
            .unwrap();
        commit.put(&cluster).unwrap();
        let endpoint = cluster.endpoint.address.to_string();
        commit.value(Kind::Address, &endpoint, Expect::Absent, &cluster.spec.name);
        for machine in &machines {
            let address = machine.address.to_string();
            commit.value(Kind::Address, &address, Expect::Absent, &machine.name);
            commit.put(machine).unwrap();
        }
        order(&director, TaskKind::CreateCluster, &desired, commit, 1).await
    }

    async fn order_delete(&self) -> TaskId {
        let director = self.immortal().await;
        let observed = director.world.observe(&name()).await.unwrap();
        let disks = observed.disks.keys().cloned().collect();
        let desired = inputs::absent(&name(), disks);
        order(
            &director,
            TaskKind::DeleteCluster,
            &desired,
            Commit::default(),
            2,
        )
        .await
    }

    /// Lives until the task is over or the director dies; `stop` is asked for once the task runs.
    async fn run(&self, task: &TaskId, dies_at: usize, stop: Stop) -> Option<Task> {
        let life = Life::new(self.sim.clone(), dies_at);
        let director = self.live(&life).await;
        director.rollouts.resume().await.unwrap();
        if stop != Stop::No {
            director.rollouts.stop(task, stop);
        }
        let over = tokio::select! {
            () = director.rollouts.wait(task) => true,
            () = life.death() => false,
        };
        director.rollouts.abandon();
        if !over {
            return None;
        }
        director.records.task(task).await.unwrap()
    }

    /// A create that lives `dies_at` points, and is taken up by a director that does not die.
    async fn through_death(&self, task: &TaskId, dies_at: usize, stop: Stop) -> (bool, Task) {
        match self.run(task, dies_at, stop).await {
            Some(task) => (true, task),
            None => (false, self.run(task, usize::MAX, stop).await.unwrap()),
        }
    }

    fn assert_up(&self) {
        let state = self.sim.state.lock().unwrap();
        assert_eq!(state.machines.len(), 2);
        assert!(
            state
                .machines
                .values()
                .all(|vm| vm.started && vm.configured)
        );
        assert_eq!(state.ready.len(), 2);
        assert!(state.addons && state.endpoints.contains_key(&name()));
        assert!(
            state.births.values().all(|births| *births == 1),
            "{:?}",
            state.births
        );
        assert_eq!(state.disks.len(), 1);
    }

    async fn assert_gone(&self) {
        let director = self.immortal().await;
        {
            let state = self.sim.state.lock().unwrap();
            assert!(state.machines.is_empty() && state.disks.is_empty());
            assert!(state.endpoints.is_empty());
        }
        for kind in [
            Kind::Cluster,
            Kind::Machine,
            Kind::Address,
            Kind::Secret,
            Kind::Token,
            Kind::Certificates,
        ] {
            let left = self.sim.store.list(kind, "").await.unwrap();
            assert!(left.is_empty(), "{kind:?}: {left:?}");
        }
        drop(director);
    }
}

fn name() -> ClusterName {
    ClusterName::new("demo").unwrap()
}

fn draft(stemcells: &Catalogue) -> (Cluster, Vec<Machine>) {
    let size = MachineSize {
        cpu_millis: 1000,
        memory_mib: 1024,
        disk_mib: 64,
    };
    let pool = PoolName::new("w").unwrap();
    let spec = ClusterSpec {
        name: name(),
        kubernetes_version: VERSION.into(),
        control_plane: ControlPlaneSpec {
            count: 1,
            size,
            kubelet: Default::default(),
            update: Default::default(),
        },
        pools: BTreeMap::from([(
            pool.clone(),
            PoolSpec {
                count: 1,
                size,
                labels: BTreeMap::new(),
                kubelet: BTreeMap::new(),
                // One worker, and none to spare.
                update: UpdatePolicy {
                    max_unavailable: Amount::Count(1),
                    ..UpdatePolicy::default()
                },
                self_fence: None,
            },
        )]),
        network: ClusterNetwork {
            pod_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
        },
        drain: Default::default(),
        gates: Vec::new(),
        maintenance: Default::default(),
        labels: Default::default(),
        backup: Default::default(),
    };
    let stemcell = stemcells.find(VERSION).unwrap().version;
    let machine = |text: &str, number: u8, role: MachineRole| {
        let name = MachineName::new(text).unwrap();
        Machine::planned(
            MachineDraft {
                node_name: name.node_name(Incarnation::FIRST).unwrap(),
                data_disk: role
                    .is_control_plane()
                    .then(|| DiskName::new(format!("{text}-data")).unwrap()),
                name,
                cluster: spec.name.clone(),
                role,
                incarnation: Incarnation::FIRST,
                address: [10, 0, 0, number].into(),
                pod_cidr: format!("10.244.{number}.0/24").parse().unwrap(),
                stemcell: stemcell.clone(),
                kubernetes_version: VERSION.into(),
                size,
            },
            Timestamp::now(),
        )
    };
    let machines = vec![
        machine("demo-cp-0", 3, MachineRole::ControlPlane),
        machine("demo-w-0", 4, MachineRole::Worker { pool }),
    ];
    let cluster = Cluster {
        spec,
        endpoint: Endpoint {
            name: "demo.clusters.windlass.internal".into(),
            address: [10, 0, 0, 2].into(),
            port: 6443,
        },
        stemcell,
        phase: ClusterPhase::Creating,
        message: None,
        task: None,
        addons: None,
        authorities_expire_at: None,
        secrets: Default::default(),
        rotation: None,
        upgrade: None,
        renewal_tried_at: None,
        made_from: None,
        emulates: None,
        revision: Revision(0),
        created_at: Timestamp::now(),
    };
    (cluster, machines)
}

/// A worker in service.
pub(crate) fn machine_in_service() -> Machine {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut machines) = draft(&stemcell::tests::catalogue(dir.path(), VERSION));
    let mut machine = machines.pop().unwrap();
    machine.phase = MachinePhase::Ready;
    machine
}

async fn order(
    director: &Director,
    kind: TaskKind,
    desired: &Desired,
    mut commit: Commit,
    number: u64,
) -> TaskId {
    let observed = director.world.observe(&name()).await.unwrap();
    let plan = planner::plan(desired, &observed).unwrap();
    check(&plan, desired, &observed).unwrap();
    let task = Task::ordered(
        TaskId::new(number, [1, 2, 3]),
        kind,
        plan,
        "ann".into(),
        Timestamp::now(),
    );
    commit.put(&task).unwrap();
    director.records.commit(commit).await.unwrap();
    task.id
}

/// Dies at the first point, the second, and so on, until a life gets through; returns how many there are.
async fn at_every_point<F: AsyncFn(usize) -> bool>(run: F) -> usize {
    for dies_at in 1..10_000 {
        let patience = Duration::from_secs(3600);
        let through = tokio::time::timeout(patience, run(dies_at)).await;
        if through.unwrap_or_else(|_| panic!("stuck after dying at point {dies_at}")) {
            return dies_at;
        }
    }
    panic!("no life gets through");
}

#[tokio::test(start_paused = true)]
async fn a_create_that_dies_at_any_point_ends_the_same() {
    let points = at_every_point(async |dies_at| {
        let rig = Rig::new();
        let task = rig.order_create().await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        assert_eq!(
            task.state,
            TaskState::Succeeded,
            "died at {dies_at}: {:?}",
            task.error
        );
        assert!(
            task.steps
                .values()
                .all(|step| step.state == StepState::Succeeded)
        );
        assert_eq!(task.steps.len(), task.plan.steps.len());
        rig.assert_up();
        let cluster: Cluster = rig
            .immortal()
            .await
            .records
            .get("demo")
            .await
            .unwrap()
            .unwrap();
        assert_eq!((cluster.phase, cluster.task), (ClusterPhase::Ready, None));
        through
    })
    .await;
    // 15 steps, each with an effect and two commits about it, all with two points.
    assert!(points > 60, "only {points} points");
}

#[tokio::test(start_paused = true)]
async fn etcd_is_handed_over_while_api_servers_stand_still() {
    let rig = Rig::new();
    let create = rig.order_create().await;
    rig.run(&create, usize::MAX, Stop::No).await.unwrap();
    // No task writes this step down.
    rig.sim.state.lock().unwrap().stored_elsewhere = true;
    let director = rig.immortal().await;
    let machine = MachineName::new("demo-cp-0").unwrap();
    let key = StepKey("machine/demo-cp-0/move-leader".into());
    let order = StepOrder {
        task: create,
        cluster: name(),
        key: key.clone(),
        action: Action::MoveLeader { machine },
        attempt: 1,
        limit: Duration::from_secs(60),
        progress: ProgressSink {
            events: tokio::sync::broadcast::channel(1).0,
            key,
        },
    };
    let done = director.world.perform(order).await.unwrap();
    let told = "1 API servers stood still for it, 0 ms";
    assert_eq!(done.changes, ["changed", told]);
}

/// Whoever repairs it takes much less than it is waited for, and has the task go on with a successor.
#[tokio::test(start_paused = true)]
async fn an_agent_is_not_awaited_for_long_where_its_machine_is_gone() {
    let rig = Rig::new();
    let task = rig.order_create().await;
    rig.sim.state.lock().unwrap().vanish_once.insert("demo-w-0");
    let began = tokio::time::Instant::now();
    let task = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    assert_eq!(task.state, TaskState::Failed);
    let told = task.error.unwrap().message;
    assert!(
        told.contains("await-agent: ") && told.contains("the provider has not had for 30 s"),
        "{told}"
    );
    let waited = began.elapsed();
    assert!(
        (Duration::from_secs(30)..Duration::from_secs(60)).contains(&waited),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_dies_at_any_point_leaves_nothing() {
    at_every_point(async |dies_at| {
        let rig = Rig::new();
        let create = rig.order_create().await;
        rig.run(&create, usize::MAX, Stop::No).await.unwrap();
        let task = rig.order_delete().await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        assert_eq!(
            task.state,
            TaskState::Succeeded,
            "died at {dies_at}: {:?}",
            task.error
        );
        rig.assert_gone().await;
        through
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_create_that_dies_at_any_point_leaves_nothing() {
    // The create gets so far before it is cancelled; then the cancelling director dies at every point.
    for head_start in [1, 5, 12, 25, 40, 60] {
        at_every_point(async |dies_at| {
            let rig = Rig::new();
            let task = rig.order_create().await;
            if rig.run(&task, head_start, Stop::No).await.is_some() {
                return true;
            }
            let (through, task) = rig.through_death(&task, dies_at, Stop::CleanUp).await;
            assert_eq!(
                task.state,
                TaskState::Cancelled,
                "died at {dies_at}: {:?}",
                task.error
            );
            rig.assert_gone().await;
            through
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_is_not_forgotten_by_a_restart() {
    let rig = Rig::new();
    let task = rig.order_create().await;
    assert!(rig.run(&task, 30, Stop::No).await.is_none());
    // Found dead after it had written that it is being cancelled.
    let mut cancelling = false;
    for dies_at in 1.. {
        let before = rig.run(&task, dies_at, Stop::CleanUp).await;
        assert!(
            before.is_none(),
            "it got through before it was seen cancelling"
        );
        let found = rig
            .immortal()
            .await
            .records
            .task(&task)
            .await
            .unwrap()
            .unwrap();
        if found.state == TaskState::Cancelling {
            cancelling = true;
            break;
        }
    }
    assert!(cancelling);
    let over = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    assert_eq!(over.state, TaskState::Cancelled);
    rig.assert_gone().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_attempt_is_tried_again_under_a_new_id() {
    let rig = Rig::new();
    rig.sim.state.lock().unwrap().fail_once.extend([
        "demo-cp-0/configure",
        "demo-w-0/configure/keys",
        "demo-w-0/start",
    ]);
    let task = rig.order_create().await;
    let task = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    assert_eq!(task.state, TaskState::Succeeded, "{:?}", task.error);
    let attempts: Vec<_> = task
        .steps
        .iter()
        .filter(|(_, step)| step.attempts > 1)
        .map(|(key, step)| (&*key.0, step.attempts))
        .collect();
    assert_eq!(
        attempts,
        [
            ("machine/demo-cp-0/configure", 2),
            ("machine/demo-w-0/configure", 2),
            ("machine/demo-w-0/start", 2),
        ]
    );
    rig.assert_up();
}

#[tokio::test(start_paused = true)]
async fn a_step_whose_answer_is_lost_is_sent_again_under_the_same_id() {
    let rig = Rig::new();
    rig.sim.state.lock().unwrap().lose_once.extend([
        "demo-cp-0/mount-disk",
        "demo-w-0/configure/keys",
        "demo-w-0/start",
    ]);
    let task = rig.order_create().await;
    let task = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    assert_eq!(task.state, TaskState::Succeeded, "{:?}", task.error);
    assert!(rig.sim.state.lock().unwrap().lose_once.is_empty());
    assert!(task.steps.values().all(|step| step.attempts == 1));
    rig.assert_up();
}

#[tokio::test(start_paused = true)]
async fn a_failed_create_is_taken_up_by_planning_it_again() {
    let rig = Rig::new();
    let first = rig.order_create().await;
    // Stopped and left as it is after some effects.
    assert!(rig.run(&first, 30, Stop::No).await.is_none());
    let stopped = rig.run(&first, usize::MAX, Stop::Leave).await.unwrap();
    assert_eq!(stopped.state, TaskState::Cancelled);
    let director = rig.immortal().await;
    let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
    assert_eq!(cluster.phase, ClusterPhase::Failed);
    let machines = director.records.machines_of("demo").await.unwrap();
    let desired = director.world.desired(&cluster, &machines).unwrap();
    let again = order(
        &director,
        TaskKind::CreateCluster,
        &desired,
        Commit::default(),
        2,
    )
    .await;
    let over = rig.run(&again, usize::MAX, Stop::No).await.unwrap();
    assert_eq!(over.state, TaskState::Succeeded, "{:?}", over.error);
    assert!(
        over.plan.steps.len() < stopped.plan.steps.len(),
        "it went on, not from the start"
    );
    rig.assert_up();
}
