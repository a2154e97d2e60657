//! Drains that begin together, in a pool that has fewer to spare than it had when they were planned.

use super::*;
use crate::model::Wanted;

impl Rig {
    /// A cluster of three workers in service of which two may be missing, and the order to make them anew.
    async fn order_workers_anew(&self) -> TaskId {
        let (mut cluster, mut machines) = draft(&self.stemcells);
        for pool in cluster.spec.pools.values_mut() {
            pool.count = 3;
            pool.update.max_unavailable = Amount::Count(2);
        }
        let worker = machines[1].clone();
        for number in 1..3_u8 {
            let name = MachineName::new(format!("demo-w-{number}")).unwrap();
            machines.push(Machine {
                node_name: name.node_name(Incarnation::FIRST).unwrap(),
                name,
                address: [10, 0, 0, 4 + number].into(),
                pod_cidr: format!("10.244.{}.0/24", 4 + number).parse().unwrap(),
                ..worker.clone()
            });
        }
        let create = self.order_create_of((cluster, machines)).await;
        self.run(&create, usize::MAX, Stop::No).await.unwrap();
        let director = self.immortal().await;
        let mut commit = Commit::default();
        let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        let mut machines = director.records.machines_of("demo").await.unwrap();
        for machine in machines.iter_mut().filter(|m| !m.role.is_control_plane()) {
            machine.wanted = Some(Wanted::Reborn {
                incarnation: Incarnation(2),
                stemcell: machine.stemcell.clone(),
                kubernetes_version: VERSION.into(),
                size: machine.size,
                because: None,
            });
            commit.put(machine).unwrap();
        }
        let desired = director.world.desired(&cluster, &machines).unwrap();
        order(&director, TaskKind::UpdateCluster, &desired, commit, 2).await
    }
}

#[tokio::test(start_paused = true)]
async fn of_drains_that_begin_together_as_many_go_as_may_whoever_dies() {
    at_every_point(async |dies_at| {
        let rig = Rig::new();
        let task = rig.order_workers_anew().await;
        {
            // The last in the order goes down by itself: of the two that are to go together, one may.
            let mut state = rig.sim.state.lock().unwrap();
            let last = MachineName::new("demo-w-2").unwrap();
            state
                .ready
                .remove(&last.node_name(Incarnation::FIRST).unwrap());
        }
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        assert_eq!(
            task.state,
            TaskState::Succeeded,
            "died at {dies_at}: {:?}",
            task.error
        );
        rig.settled().await;
        through
    })
    .await;
}

/// The Node of a machine that died says that it is Ready for as long as a minute, and that of one that is back until its
/// kubelet runs: neither serves.
#[tokio::test(start_paused = true)]
async fn a_node_that_says_what_was_is_not_counted_on() {
    let last = MachineName::new("demo-w-2").unwrap();
    for dies in [true, false] {
        let rig = Rig::new();
        let task = rig.order_workers_anew().await;
        {
            let mut state = rig.sim.state.lock().unwrap();
            match dies {
                true => state.cut(&last),
                false => {
                    let now = "1970-01-01T02:00:00Z".parse().unwrap();
                    state.booted.insert(last.clone(), now);
                }
            }
            // It would drain forever: the others go on as far as they may without it.
            state.stuck.insert("demo-w-0".to_owned());
        }
        let life = Life::new(rig.sim.clone(), usize::MAX);
        let director = rig.live(&life).await;
        director.rollouts.resume().await.unwrap();
        tokio::time::sleep(Duration::from_secs(300)).await;
        let closed = rig.sim.state.lock().unwrap().cordoned.clone();
        assert_eq!(closed.len(), 1, "dies: {dies}: {closed:?}");
        // It is heard of, and its kubelet has spoken.
        {
            let mut state = rig.sim.state.lock().unwrap();
            state.stuck.clear();
            state.booted.clear();
        }
        if !dies {
            director.rollouts.wait(&task).await;
            let task = director.records.task(&task).await.unwrap().unwrap();
            assert_eq!(task.state, TaskState::Succeeded, "{:?}", task.error);
        }
        director.rollouts.abandon();
    }
}

/// A worker of which nothing is wanted any more, and that nobody saw in service: whether it serves by now, the API says.
#[tokio::test(start_paused = true)]
async fn a_worker_that_serves_unseen_is_drained_before_it_goes() {
    for serves in [true, false] {
        let rig = Rig::new();
        let (cluster, mut machines) = draft(&rig.stemcells);
        let name = MachineName::new("demo-w-1").unwrap();
        machines.push(Machine {
            node_name: name.node_name(Incarnation::FIRST).unwrap(),
            name: name.clone(),
            address: [10, 0, 0, 5].into(),
            pod_cidr: "10.244.5.0/24".parse().unwrap(),
            ..machines[1].clone()
        });
        let create = rig.order_create_of((cluster, machines)).await;
        rig.run(&create, usize::MAX, Stop::No).await.unwrap();
        let director = rig.immortal().await;
        let mut machines = director.records.machines_of("demo").await.unwrap();
        let machine = machines.iter_mut().find(|m| m.name == name).unwrap();
        (machine.phase, machine.labelled) = (MachinePhase::Configured, None);
        machine.wanted = Some(Wanted::Gone);
        let mut commit = Commit::default();
        commit.put(machine).unwrap();
        if !serves {
            let node = &machine.node_name;
            rig.sim.state.lock().unwrap().ready.remove(node);
        }
        let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        let desired = director.world.desired(&cluster, &machines).unwrap();
        director.records.commit(commit).await.unwrap();
        let none = Commit::default();
        let task = order(&director, TaskKind::UpdateCluster, &desired, none, 2).await;
        let task = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
        assert_eq!(task.state, TaskState::Succeeded, "{:?}", task.error);
        let drain = &task.steps[&crate::model::StepKey("machine/demo-w-1/drain".into())];
        let asked = drain.changes.is_empty();
        assert_eq!(asked, serves, "{:?}", drain.changes);
        rig.assert_up();
    }
}
