//! Updates that die at every point there is, and end the same.

use windlass_common::id::NodeName;

use super::*;
use crate::model::Wanted;
use crate::planner::DesiredState;

impl Rig {
    /// A cluster in service, and the order to make all of its machines anew.
    pub(super) async fn order_replacement(&self) -> TaskId {
        let create = self.order_create().await;
        self.run(&create, usize::MAX, Stop::No).await.unwrap();
        let director = self.immortal().await;
        let mut commit = Commit::default();
        let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        let mut machines = director.records.machines_of("demo").await.unwrap();
        for machine in &mut machines {
            machine.wanted = Some(Wanted::Reborn {
                incarnation: Incarnation(2),
                stemcell: machine.stemcell.clone(),
                kubernetes_version: VERSION.into(),
                size: machine.size,
            });
            commit.put(machine).unwrap();
        }
        let mut desired = director.world.desired(&cluster, &machines).unwrap();
        // One worker, and none to spare.
        if let DesiredState::Present { budgets, .. } = &mut desired.state {
            budgets.values_mut().for_each(|b| b.max_unavailable = 1);
        }
        order(&director, TaskKind::UpdateCluster, &desired, commit, 2).await
    }

    pub(super) async fn settled(&self) -> (Cluster, Vec<Machine>) {
        let director = self.immortal().await;
        let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        let machines = director.records.machines_of("demo").await.unwrap();
        assert_eq!(cluster.task, None);
        for machine in &machines {
            assert!(machine.serving && !machine.cordoned, "{machine:?}");
            assert_eq!(machine.wanted, None, "{}", machine.name);
            assert!(machine.departed.is_empty(), "{machine:?}");
            assert_eq!(machine.phase, MachinePhase::Ready);
        }
        let state = self.sim.state.lock().unwrap();
        let nodes: Vec<&NodeName> = machines.iter().map(|m| &m.node_name).collect();
        assert_eq!(state.ready.iter().collect::<Vec<_>>(), nodes);
        assert!(state.cordoned.is_empty(), "{:?}", state.cordoned);
        assert!(
            state
                .machines
                .values()
                .all(|vm| vm.started && vm.configured)
        );
        assert!(
            state.births.values().all(|births| *births == 1),
            "{:?}",
            state.births
        );
        assert_eq!(state.disks.len(), 1, "the data of etcd is kept");
        (cluster, machines)
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_that_dies_at_any_point_ends_the_same() {
    let points = at_every_point(async |dies_at| {
        let rig = Rig::new();
        let task = rig.order_replacement().await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        assert_eq!(
            task.state,
            TaskState::Succeeded,
            "died at {dies_at}: {:?}",
            task.error
        );
        let (cluster, machines) = rig.settled().await;
        assert_eq!(
            (cluster.phase, cluster.message),
            (ClusterPhase::Ready, None)
        );
        assert!(machines.iter().all(|m| m.incarnation == Incarnation(2)));
        through
    })
    .await;
    assert!(points > 80, "only {points} points");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_update_that_dies_at_any_point_leaves_a_cluster_that_serves() {
    // The update gets so far before it is cancelled; then the cancelling director dies at every point.
    for head_start in [1, 6, 12, 20, 30, 45, 60, 75] {
        at_every_point(async |dies_at| {
            let rig = Rig::new();
            let task = rig.order_replacement().await;
            if rig.run(&task, head_start, Stop::No).await.is_some() {
                return true;
            }
            let (through, task) = rig.through_death(&task, dies_at, Stop::CleanUp).await;
            assert_eq!(
                task.state,
                TaskState::Cancelled,
                "head start {head_start}, died at {dies_at}: {:?}",
                task.error
            );
            let (cluster, machines) = rig.settled().await;
            assert_eq!(cluster.phase, ClusterPhase::Ready);
            assert!(cluster.message.unwrap().contains("cancelled"));
            assert_eq!(machines.len(), 2);
            through
        })
        .await;
    }
}
