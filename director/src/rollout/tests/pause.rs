//! Updates that pause, and directors that die while they do.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::update::settings;
use super::*;
use crate::model::RotationKind;

/// A change that is not the replacement of all machines.
#[derive(Debug, Clone, Copy)]
enum Change {
    Resize,
    Reconfigure,
    Refit,
    Rotation(RotationKind),
    Renewal,
}

impl Rig {
    /// A cluster in service, and the order of a change.
    async fn order_change(&self, change: Change) -> TaskId {
        let serves = async || {
            let create = self.order_create().await;
            self.run(&create, usize::MAX, Stop::No).await.unwrap();
        };
        match change {
            Change::Resize => {
                serves().await;
                self.order_one_more().await
            }
            Change::Reconfigure => {
                serves().await;
                self.order_settings(&settings("maxPods", json!(61)), 2)
                    .await
            }
            Change::Refit => {
                serves().await;
                self.order_refit("1.1.0", "2", 2).await
            }
            Change::Rotation(kind) => self.order_rotation(kind).await,
            Change::Renewal => self.order_renewal().await,
        }
    }

    /// The order of one worker more.
    async fn order_one_more(&self) -> TaskId {
        let director = self.immortal().await;
        let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        let mut machines = director.records.machines_of("demo").await.unwrap();
        let (_, drafted) = draft(&self.stemcells);
        let worker = drafted.into_iter().find(|m| m.data_disk.is_none()).unwrap();
        let name = MachineName::new("demo-w-1").unwrap();
        let worker = Machine {
            node_name: name.node_name(Incarnation::FIRST).unwrap(),
            name,
            address: [10, 0, 0, 5].into(),
            pod_cidr: "10.244.5.0/24".parse().unwrap(),
            ..worker
        };
        let mut commit = Commit::default();
        let address = worker.address.to_string();
        commit.value(Kind::Address, &address, Expect::Absent, &worker.name);
        commit.put(&worker).unwrap();
        machines.push(worker);
        let desired = director.world.desired(&cluster, &machines).unwrap();
        order(&director, TaskKind::UpdateCluster, &desired, commit, 2).await
    }

    /// Has a task pause; lives until it rests or is over, or the director dies.
    async fn pause(&self, task: &TaskId, dies_at: usize) -> Option<Task> {
        let life = Life::new(self.sim.clone(), dies_at);
        let director = self.live(&life).await;
        director.rollouts.resume().await.unwrap();
        director.rollouts.pause(task, true);
        let rests = async {
            loop {
                let found = director.records.task(task).await.unwrap().unwrap();
                if found.state == TaskState::Paused || found.state.is_over() {
                    return found;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let found = tokio::select! {
            found = rests => Some(found),
            () = life.death() => None,
        };
        director.rollouts.abandon();
        found
    }

    /// No machine is half way: each is what it was or what it is to be, and serves. One that nobody has begun with may
    /// be to come.
    pub(super) async fn assert_whole(&self, when: &str) {
        let director = self.immortal().await;
        let mut machines = director.records.machines_of("demo").await.unwrap();
        machines.retain(|machine| machine.phase != MachinePhase::Planned);
        assert!(machines.len() >= 2, "{when}: {machines:?}");
        for machine in &machines {
            assert!(
                machine.serving && !machine.cordoned && machine.phase == MachinePhase::Ready,
                "{when}: {machine:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_update_finishes_the_machines_it_began_with_whoever_dies() {
    let paused = AtomicUsize::new(0);
    // The update gets so far before it is to pause; then the pausing director dies at every point.
    for head_start in [1, 12, 20, 30, 45, 60] {
        at_every_point(async |dies_at| {
            let rig = Rig::new();
            let task = rig.order_replacement().await;
            if rig.run(&task, head_start, Stop::No).await.is_some() {
                return true;
            }
            let rested = rig.pause(&task, dies_at).await;
            let through = rested.is_some();
            let found = match rested {
                Some(found) => found,
                // The order itself may be lost with the director, and is given again.
                None => rig.pause(&task, usize::MAX).await.unwrap(),
            };
            if found.state == TaskState::Paused {
                paused.fetch_add(1, Ordering::Relaxed);
                rig.assert_whole(&format!("head start {head_start}, died at {dies_at}"))
                    .await;
            }
            let over = rig.resumed(&task).await;
            assert_eq!(over.state, TaskState::Succeeded, "{:?}", over.error);
            let (cluster, _) = rig.settled().await;
            assert_eq!(
                (cluster.phase, cluster.message),
                (ClusterPhase::Ready, None)
            );
            through
        })
        .await;
    }
    let paused = paused.into_inner();
    assert!(paused > 20, "only {paused} pauses");
}

impl Rig {
    /// A director that starts leaves a paused task alone until it is told to go on.
    async fn resumed(&self, task: &TaskId) -> Task {
        let director = self.immortal().await;
        let before = director.records.task(task).await.unwrap().unwrap();
        director.rollouts.resume().await.unwrap();
        if before.state == TaskState::Paused {
            tokio::time::sleep(Duration::from_secs(600)).await;
            let found = director.records.task(task).await.unwrap().unwrap();
            assert_eq!(found.state, TaskState::Paused);
            assert_eq!(found.steps, before.steps);
            let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
            // A renewal leaves what is said of its cluster as it is.
            if before.kind != TaskKind::RenewCertificates {
                assert!(cluster.message.unwrap().contains("task resume"));
            }
        }
        director.rollouts.pause(task, false);
        director.rollouts.wait(task).await;
        director.records.task(task).await.unwrap().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_update_can_be_cancelled() {
    let rig = Rig::new();
    let task = rig.order_replacement().await;
    let found = rig.pause(&task, usize::MAX).await.unwrap();
    assert_eq!(found.state, TaskState::Paused);
    let over = rig.run(&task, usize::MAX, Stop::CleanUp).await.unwrap();
    assert_eq!(over.state, TaskState::Cancelled, "{:?}", over.error);
    let (cluster, machines) = rig.settled().await;
    assert!(cluster.message.unwrap().contains("cancelled"));
    assert!(machines.iter().all(|m| m.incarnation == Incarnation::FIRST));
}

#[tokio::test(start_paused = true)]
async fn every_other_change_pauses_between_machines_and_goes_on_to_its_end() {
    for change in [
        Change::Resize,
        Change::Reconfigure,
        Change::Refit,
        Change::Rotation(RotationKind::EncryptionKey),
        Change::Rotation(RotationKind::Authorities),
        Change::Renewal,
    ] {
        let mut pauses = 0;
        for head_start in [1, 4, 8, 12, 16, 24, 32, 48] {
            let rig = Rig::new();
            let task = rig.order_change(change).await;
            if rig.run(&task, head_start, Stop::No).await.is_some() {
                break;
            }
            let found = rig.pause(&task, usize::MAX).await.unwrap();
            if found.state == TaskState::Paused {
                pauses += 1;
                rig.assert_whole(&format!("{change:?} after {head_start}"))
                    .await;
            }
            let over = rig.resumed(&task).await;
            assert_eq!(
                over.state,
                TaskState::Succeeded,
                "{change:?} after {head_start}: {:?}",
                over.error
            );
            let (cluster, _) = rig.settled().await;
            assert_eq!(cluster.phase, ClusterPhase::Ready, "{change:?}");
        }
        assert!(pauses > 0, "{change:?} never paused");
    }
}
