//! Restarts of a machine that serves, which die at every point there is, and end the same.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::model::{Machine, Reboot, StepKey, StepRecord};
use crate::planner::again;
use crate::resurrector::{CaseRecord, Hold, HoldKind, Rung, Verdict};

fn worker() -> MachineName {
    MachineName::new("demo-w-0").unwrap()
}

impl Rig {
    /// A cluster in service, and the order to restart its worker.
    async fn order_reboot(&self, drain: bool) -> TaskId {
        let create = self.order_create().await;
        self.run(&create, usize::MAX, Stop::No).await.unwrap();
        let director = self.immortal().await;
        let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        let mut machines = director.records.machines_of("demo").await.unwrap();
        let mut commit = Commit::default();
        self.wanted_again(&mut machines, drain, &mut commit);
        let desired = director.world.desired(&cluster, &machines).unwrap();
        order(&director, TaskKind::RepairCluster, &desired, commit, 2).await
    }

    /// Wants the worker restarted, as the ladder does.
    fn wanted_again(&self, machines: &mut [Machine], drain: bool, commit: &mut Commit) {
        let worker = machines.iter_mut().find(|m| m.name == worker()).unwrap();
        worker.reboot = Some(Reboot {
            boots: self.boots(),
            drain,
            silent: false,
        });
        commit.put(worker).unwrap();
        let mut case = CaseRecord::new(worker.name.clone(), worker.incarnation, 0);
        case.case.verdict = Verdict::Degraded;
        case.case.tried(Rung::Reboot, 0);
        commit.put(&case).unwrap();
    }

    fn boots(&self) -> u64 {
        let state = self.sim.state.lock().unwrap();
        state.machines[&worker()].view.boots
    }

    /// When its restart is noted to have been carried out, Unix milliseconds.
    async fn carried_out_ms(&self) -> u64 {
        let director = self.immortal().await;
        let case: Option<CaseRecord> = director.records.get(worker().as_str()).await.unwrap();
        case.unwrap().case.attempts.last().unwrap().at_ms
    }

    async fn assert_served(&self) {
        let (cluster, machines) = self.settled().await;
        assert_eq!(cluster.phase, ClusterPhase::Ready);
        let as_it_was = |m: &Machine| m.reboot.is_none() && m.incarnation == Incarnation(1);
        assert!(machines.iter().all(as_it_was), "{machines:?}");
    }
}

fn succeeded(task: &Task, verb: &str) -> bool {
    let key = format!("machine/{}/{verb}", worker());
    let of = |(step, record): (&StepKey, &StepRecord)| {
        step.0.ends_with(&key) && record.state == StepState::Succeeded
    };
    task.steps.iter().any(of)
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_dies_at_any_point_is_done_once() {
    let points = at_every_point(async |dies_at| {
        let rig = Rig::new();
        let task = rig.order_reboot(true).await;
        let (through, over) = rig.through_death(&task, dies_at, Stop::No).await;
        assert_eq!(
            over.state,
            TaskState::Succeeded,
            "died at {dies_at}: {:?}",
            over.error
        );
        assert_eq!(rig.boots(), 2, "died at {dies_at}");
        for verb in ["drain", "reboot", "await-agent", "await-node", "uncordon"] {
            assert!(succeeded(&over, verb), "{verb}: {:?}", over.steps.keys());
        }
        rig.assert_served().await;
        assert!(
            rig.carried_out_ms().await > 0,
            "time to show counts from it"
        );
        through
    })
    .await;
    assert!(points > 15, "only {points} points");
}

#[tokio::test(start_paused = true)]
async fn one_whose_pods_nobody_could_end_is_not_drained() {
    let rig = Rig::new();
    let task = rig.order_reboot(false).await;
    let over = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    assert_eq!(over.state, TaskState::Succeeded, "{:?}", over.error);
    assert!(!succeeded(&over, "drain") && succeeded(&over, "reboot"));
    assert_eq!(rig.boots(), 2);
    rig.assert_served().await;
}

/// What happens between the order and the restart, and that it is left as it is then.
async fn is_left(change: impl AsyncFn(&Rig)) {
    let rig = Rig::new();
    let task = rig.order_reboot(true).await;
    change(&rig).await;
    let boots = rig.boots();
    let over = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    assert_eq!(over.state, TaskState::Succeeded, "{:?}", over.error);
    assert_eq!(rig.boots(), boots);
    rig.assert_served().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_was_started_since_is_not_restarted() {
    is_left(async |rig| {
        let mut state = rig.sim.state.lock().unwrap();
        state.machines.get_mut(&worker()).unwrap().view.boots += 1;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_that_is_well_again_is_not_restarted() {
    is_left(async |rig| {
        let director = rig.immortal().await;
        let found: Option<Machine> = director.records.get(worker().as_str()).await.unwrap();
        let mut machine = found.unwrap();
        machine.reboot = None;
        let mut commit = Commit::default();
        commit.put(&machine).unwrap();
        director.records.commit(commit).await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_that_an_operator_holds_is_not_restarted() {
    is_left(async |rig| {
        let director = rig.immortal().await;
        let found: Option<CaseRecord> = director.records.get(worker().as_str()).await.unwrap();
        let mut case = found.unwrap();
        case.hold = Some(Hold {
            kind: HoldKind::Hold,
            operator: "ann".into(),
            since_ms: 0,
            reason: String::new(),
        });
        let mut commit = Commit::default();
        commit.put(&case).unwrap();
        director.records.commit(commit).await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_restart_leaves_the_machine_in_service() {
    let mut restarted = BTreeSet::new();
    for head_start in 1..60 {
        let rig = Rig::new();
        let task = rig.order_reboot(true).await;
        if rig.run(&task, head_start, Stop::No).await.is_some() {
            break;
        }
        let over = rig.run(&task, usize::MAX, Stop::CleanUp).await.unwrap();
        assert!(over.state.is_over(), "{:?}", over.state);
        restarted.insert(rig.boots());
        rig.assert_served().await;
    }
    assert_eq!(restarted, BTreeSet::from([1, 2]), "before and after it");
}

/// The change that runs restarts it in its turn, and neither of the two is lost.
#[tokio::test(start_paused = true)]
async fn a_change_that_runs_takes_a_restart_in_whoever_dies() {
    let mut taken_in = 0;
    for head_start in [1, 12, 30] {
        let wanted = AtomicBool::new(false);
        at_every_point(async |dies_at| {
            let rig = Rig::new();
            let task = rig.order_growth().await;
            if rig.run(&task, head_start, Stop::No).await.is_some() {
                return true;
            }
            let director = rig.immortal().await;
            let mut machines = director.records.machines_of("demo").await.unwrap();
            let mut commit = Commit::default();
            rig.wanted_again(&mut machines, true, &mut commit);
            director.records.commit(commit).await.unwrap();
            wanted.store(true, Ordering::Relaxed);
            let (through, over) = rig.through_death(&task, dies_at, Stop::No).await;
            assert_eq!(
                over.state,
                TaskState::Succeeded,
                "head start {head_start}, died at {dies_at}: {:?}",
                over.error
            );
            assert_eq!(rig.boots(), 2, "died at {dies_at}");
            rig.assert_served().await;
            through
        })
        .await;
        taken_in += usize::from(wanted.into_inner());
    }
    assert!(taken_in > 1);
}

/// What an update that has failed wanted of it is not what its repair makes of it.
#[tokio::test(start_paused = true)]
async fn one_of_which_a_change_that_failed_wants_more_is_restarted_and_stays_what_it_is() {
    let rig = Rig::new();
    let create = rig.order_create().await;
    rig.run(&create, usize::MAX, Stop::No).await.unwrap();
    let director = rig.immortal().await;
    let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
    let mut machines = director.records.machines_of("demo").await.unwrap();
    let left = machines.iter_mut().find(|m| m.name == worker()).unwrap();
    left.wanted = Some(left.as_it_is());
    let mut commit = Commit::default();
    rig.wanted_again(&mut machines, true, &mut commit);
    let desired = director
        .world
        .desired(&cluster, &again::as_they_are(&machines));
    let desired = desired.unwrap();
    let task = order(&director, TaskKind::RepairCluster, &desired, commit, 2).await;
    let over = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    assert_eq!(over.state, TaskState::Succeeded, "{:?}", over.error);
    assert_eq!(rig.boots(), 2);
    let found: Option<Machine> = director.records.get(worker().as_str()).await.unwrap();
    let found = found.unwrap();
    assert_eq!((found.incarnation, found.reboot), (Incarnation(1), None));
    assert!(found.wanted.is_some(), "the change is still to be ended");
}

/// The provider has lost one that was to be restarted: the change goes on, and is not planned again and again.
#[tokio::test(start_paused = true)]
async fn one_that_is_gone_when_its_turn_comes_is_not_waited_for() {
    let rig = Rig::new();
    let task = rig.order_growth().await;
    assert!(rig.run(&task, 6, Stop::No).await.is_none());
    let director = rig.immortal().await;
    let mut machines = director.records.machines_of("demo").await.unwrap();
    let mut commit = Commit::default();
    rig.wanted_again(&mut machines, true, &mut commit);
    director.records.commit(commit).await.unwrap();
    rig.sim.state.lock().unwrap().machines.remove(&worker());
    let over = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    assert_eq!(over.state, TaskState::Succeeded, "{:?}", over.error);
    assert_eq!(over.rounds, 1);
    let found: Option<Machine> = director.records.get(worker().as_str()).await.unwrap();
    assert_eq!(found.unwrap().reboot, None);
}
