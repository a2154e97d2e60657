//! Restores that die at every point there is, and end the same.

use std::collections::BTreeSet;

use super::*;
use crate::model::{MemberFate, RestoreSource};
use crate::planner::restore::RestoreOrder;

impl Rig {
    /// A cluster in service, and the order to restore it from a snapshot.
    async fn order_restore(&self, number: u64) -> TaskId {
        let director = self.immortal().await;
        let file = self.dir.path().join("snapshot.db");
        std::fs::write(&file, b"snapshot").unwrap();
        let (digest, _) = director.world.artifacts.keep(&file, 100).unwrap();
        let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        let machines = director.records.machines_of("demo").await.unwrap();
        let order = RestoreOrder {
            source: RestoreSource::Snapshot { digest },
            members: BTreeMap::from([(member(), MemberFate::Begins)]),
            reached: machines.iter().map(|m| m.name.clone()).collect(),
        };
        let plan = director.world.plan_restore(&cluster, &machines, &order);
        let (plan, changed) = plan.await.unwrap();
        assert_eq!(changed, [], "nothing of it was to change");
        let task = Task::ordered(
            TaskId::new(number, [1, 2, 3]),
            TaskKind::RestoreCluster,
            plan,
            "ann".into(),
            Timestamp::now(),
        );
        let mut commit = Commit::default();
        commit.put(&task).unwrap();
        director.records.commit(commit).await.unwrap();
        task.id
    }

    async fn up(&self) {
        let create = self.order_create().await;
        self.run(&create, usize::MAX, Stop::No).await.unwrap();
    }

    fn restored(&self) -> Vec<String> {
        self.sim.state.lock().unwrap().machines[&member()]
            .restored
            .clone()
    }

    async fn assert_restored(&self, by: &TaskId) {
        let (cluster, _) = self.settled().await;
        assert_eq!(
            (cluster.phase, cluster.message),
            (ClusterPhase::Ready, None)
        );
        assert_eq!(self.restored().last(), Some(&by.to_string()));
        let state = self.sim.state.lock().unwrap();
        assert!(state.machines[&member()].serves, "its API server is back");
        let restarts: Vec<u32> = state
            .machines
            .values()
            .map(|vm| vm.kubelet_restarts)
            .collect();
        assert!(
            restarts.iter().all(|restarts| *restarts > 0),
            "{restarts:?}"
        );
        drop(state);
        let private = self.dir.path().join("artifacts/private");
        let left = std::fs::read_dir(private).unwrap().count();
        assert_eq!(left, 0, "the snapshot holds Secrets, and is needed no more");
    }
}

fn member() -> MachineName {
    MachineName::new("demo-cp-0").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_dies_at_any_point_ends_the_same() {
    let points = at_every_point(async |dies_at| {
        let rig = Rig::new();
        rig.up().await;
        let task = rig.order_restore(2).await;
        let (through, over) = rig.through_death(&task, dies_at, Stop::No).await;
        assert_eq!(
            over.state,
            TaskState::Succeeded,
            "died at {dies_at}: {:?}",
            over.error
        );
        assert_eq!(over.steps.len(), over.plan.steps.len());
        rig.assert_restored(&task).await;
        assert_eq!(rig.restored().len(), 1, "died at {dies_at}");
        through
    })
    .await;
    // 17 steps, each with an effect and commits about it.
    assert!(points > 60, "only {points} points");
}

#[tokio::test(start_paused = true)]
async fn a_restore_is_cancelled_before_it_stops_anything_and_never_after() {
    let mut ends = BTreeSet::new();
    for head_start in 1..80 {
        let rig = Rig::new();
        rig.up().await;
        let task = rig.order_restore(2).await;
        if rig.run(&task, head_start, Stop::No).await.is_some() {
            break;
        }
        let begun = rig
            .immortal()
            .await
            .records
            .task(&task)
            .await
            .unwrap()
            .unwrap();
        let over = rig.run(&task, usize::MAX, Stop::CleanUp).await.unwrap();
        if begun.has_to_end() {
            assert_eq!(
                over.state,
                TaskState::Succeeded,
                "begun at {head_start}: {:?}",
                over.error
            );
            rig.assert_restored(&task).await;
        } else if over.state == TaskState::Cancelled {
            assert_eq!(rig.restored(), Vec::<String>::new());
            assert!(rig.sim.state.lock().unwrap().machines[&member()].serves);
        }
        ends.insert(over.state.to_string());
    }
    let ends: Vec<&str> = ends.iter().map(String::as_str).collect();
    assert_eq!(ends, ["Cancelled", "Succeeded"]);
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_failed_is_ordered_again() {
    let rig = Rig::new();
    rig.up().await;
    let first = rig.order_restore(2).await;
    assert!(rig.run(&first, 30, Stop::No).await.is_none());
    let stopped = rig.run(&first, usize::MAX, Stop::Leave).await.unwrap();
    assert_eq!(stopped.state, TaskState::Cancelled);
    let second = rig.order_restore(3).await;
    let over = rig.run(&second, usize::MAX, Stop::No).await.unwrap();
    assert_eq!(over.state, TaskState::Succeeded, "{:?}", over.error);
    rig.assert_restored(&second).await;
}
