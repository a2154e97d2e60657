//! Machines that are condemned in the middle of an update, and directors that die while they are.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::planner::again;

impl Rig {
    /// A verdict in the middle of an update: the worker serves nobody. It may be there again before it is shut
    /// out. False when it is not in service at the time, and so not judged.
    pub(super) async fn condemn_worker(&self, comes_back: bool) -> bool {
        let director = self.immortal().await;
        let machines = director.records.machines_of("demo").await.unwrap();
        let worker = machines.iter().find(|m| !m.role.is_control_plane());
        let mut worker = worker.unwrap().clone();
        if worker.phase != MachinePhase::Ready {
            return false;
        }
        again::condemn_within(&mut worker, &machines);
        let mut commit = Commit::default();
        commit.put(&worker).unwrap();
        director.records.commit(commit).await.unwrap();
        if !comes_back {
            self.sim.state.lock().unwrap().cut(&worker.name);
        }
        true
    }
}

async fn ends_the_same(comes_back: bool) -> usize {
    let mut condemned = 0;
    // The update gets so far before the verdict; then the director that takes it in dies at every point.
    for head_start in [1, 12, 30, 75] {
        let judged = AtomicBool::new(false);
        at_every_point(async |dies_at| {
            let rig = Rig::new();
            let task = rig.order_replacement().await;
            if rig.run(&task, head_start, Stop::No).await.is_some() {
                return true;
            }
            if !rig.condemn_worker(comes_back).await {
                return true;
            }
            judged.store(true, Ordering::Relaxed);
            let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
            assert_eq!(
                task.state,
                TaskState::Succeeded,
                "head start {head_start}, died at {dies_at}: {:?}",
                task.error
            );
            let (cluster, machines) = rig.settled().await;
            assert_eq!(
                (cluster.phase, cluster.message),
                (ClusterPhase::Ready, None)
            );
            // One that comes back is spared, since nothing else was wanted of it than another incarnation.
            let reborn = |m: &Machine| comes_back || m.incarnation >= Incarnation(2);
            assert!(machines.iter().all(reborn), "died at {dies_at}");
            let drained = |key: &crate::model::StepKey| key.0.ends_with("demo-w-0/drain");
            let again = task
                .steps
                .keys()
                .any(|key| key.0.starts_with("again-") && drained(key));
            assert!(comes_back || !again, "what is dead is not drained");
            through
        })
        .await;
        condemned += usize::from(judged.into_inner());
    }
    condemned
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_dies_in_the_middle_is_replaced_by_the_update_whoever_dies() {
    assert!(ends_the_same(false).await > 1);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_comes_back_in_the_middle_is_drained_whoever_dies() {
    assert!(ends_the_same(true).await > 1);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_never_connected_gets_another_token_when_its_own_has_lapsed() {
    let mut fresh = 0;
    // However far the create is when an hour passes without a director.
    for head_start in 1..60 {
        let rig = Rig::new();
        let task = rig.order_create().await;
        if rig.run(&task, head_start, Stop::No).await.is_some() {
            break;
        }
        let director = rig.immortal().await;
        let tokens: Vec<(String, crate::store::Token)> =
            director.records.values(Kind::Token, "").await.unwrap();
        let mut commit = Commit::default();
        for (digest, token) in &tokens {
            let mut lapsed = token.clone();
            lapsed.expires_at = Timestamp::from_unix_ms(1);
            commit.value(Kind::Token, digest, Expect::Any, &lapsed);
        }
        director.records.commit(commit).await.unwrap();
        let shown = |rig: &Rig| -> BTreeMap<MachineName, String> {
            let state = rig.sim.state.lock().unwrap();
            let vms = state.machines.iter();
            vms.map(|(name, vm)| (name.clone(), vm.settings.token.expose().to_owned()))
                .collect()
        };
        let before = shown(&rig);
        let over = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
        assert_eq!(over.state, TaskState::Succeeded, "{:?}", over.error);
        let after = shown(&rig);
        let of = before
            .iter()
            .filter(|(name, token)| after[*name] != **token);
        fresh += of.count();
    }
    assert!(fresh > 0, "no machine has another token");
}

/// A repair that has shut its machine out and failed then is over; the record says so, and wants nothing of it.
#[tokio::test(start_paused = true)]
async fn what_was_left_shut_out_comes_back_with_the_next_change() {
    let rig = Rig::new();
    let create = rig.order_create().await;
    rig.run(&create, usize::MAX, Stop::No).await.unwrap();
    let director = rig.immortal().await;
    let mut commit = Commit::default();
    let machines = director.records.machines_of("demo").await.unwrap();
    for mut machine in machines {
        if machine.role.pool().is_some() {
            machine.departed.push(machine.node_name.clone());
            machine.fenced = true;
            commit.put(&machine).unwrap();
            // One that is heard of again would be spared.
            rig.sim.state.lock().unwrap().cut(&machine.name);
        }
    }
    director.records.commit(commit).await.unwrap();
    let task = rig.order_version(VERSION, 2).await;
    let task = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    assert_eq!(task.state, TaskState::Succeeded, "{:?}", task.error);
    for machine in director.records.machines_of("demo").await.unwrap() {
        let worker = machine.role.pool().is_some();
        let incarnation = Incarnation(if worker { 2 } else { 1 });
        let found = (machine.incarnation, machine.fenced, machine.phase);
        assert_eq!(found, (incarnation, false, MachinePhase::Ready));
    }
}
