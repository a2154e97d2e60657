//! Components that are changed in place, through the death of the director at every point there is.

use serde_json::json;

use super::sim::BROKEN_VERSION;
use super::*;
use crate::kubernetes::render::component_link;
use crate::model::Wanted;
use crate::stemcell::tests::{OWN_VERSION, install_parts};

/// What a worker gets.
const NEWER: &str = "1.1.0";

impl Rig {
    /// A cluster in service, and the order to bring these components to its machines in place.
    pub(super) async fn order_refit(&self, containerd: &str, build: &str, number: u64) -> TaskId {
        let parts = [("containerd", containerd), ("kubelet", OWN_VERSION)];
        let stemcell = install_parts(self.dir.path(), VERSION, build, &parts);
        let director = self.immortal().await;
        let mut commit = Commit::default();
        let mut cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        cluster.stemcell.clone_from(&stemcell);
        commit.put(&cluster).unwrap();
        let mut machines = director.records.machines_of("demo").await.unwrap();
        for machine in &mut machines {
            machine.pinned = false;
            machine.wanted = Some(Wanted::Refitted {
                stemcell: stemcell.clone(),
                kubernetes_version: VERSION.into(),
                changes: format!("containerd to {containerd}"),
            });
            commit.put(machine).unwrap();
        }
        let desired = director.world.desired(&cluster, &machines).unwrap();
        order(&director, TaskKind::UpdateCluster, &desired, commit, number).await
    }

    /// The version of containerd that a machine's link leads to, and the versions that were brought to it.
    fn containerd(&self, machine: &str) -> (Option<String>, Vec<String>) {
        let state = self.sim.state.lock().unwrap();
        let vm = &state.machines[&MachineName::new(machine).unwrap()];
        let version = |path: &String| path.split('/').nth(5).unwrap().to_owned();
        let link = vm.links.get(&component_link("containerd")).cloned();
        (link, vm.files.iter().map(version).collect())
    }

    /// Nothing is left to do.
    async fn at_rest(&self) -> Vec<Machine> {
        let (cluster, machines) = self.settled().await;
        let director = self.immortal().await;
        let desired = director.world.desired(&cluster, &machines).unwrap();
        let observed = director.world.observe(&name()).await.unwrap();
        assert_eq!(planner::plan(&desired, &observed).unwrap().steps, []);
        machines
    }
}

#[tokio::test(start_paused = true)]
async fn a_refit_that_dies_at_any_point_ends_the_same() {
    let points = at_every_point(async |dies_at| {
        let rig = Rig::new();
        let create = rig.order_create().await;
        rig.run(&create, usize::MAX, Stop::No).await.unwrap();
        let task = rig.order_refit(NEWER, "2", 2).await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        let state = task.state;
        assert_eq!(state, TaskState::Succeeded, "{dies_at}: {:?}", task.error);
        for machine in rig.at_rest().await {
            assert_eq!(machine.incarnation, Incarnation::FIRST);
            assert_eq!(machine.runs(), "test-1.37.2-2");
            assert_eq!(machine.stemcell, "test-1.37.2-1");
            assert_eq!(machine.components["containerd"], NEWER);
            let (link, files) = rig.containerd(machine.name.as_str());
            assert_eq!((link.as_deref(), files), (Some(NEWER), vec![NEWER.into()]));
        }
        through
    })
    .await;
    assert!(points > 20, "only {points} points");
}

#[tokio::test(start_paused = true)]
async fn components_that_do_not_run_are_rolled_back_and_the_rest_is_untouched() {
    let points = at_every_point(async |dies_at| {
        let rig = Rig::new();
        let create = rig.order_create().await;
        rig.run(&create, usize::MAX, Stop::No).await.unwrap();
        let task = rig.order_refit(BROKEN_VERSION, "2", 2).await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        let said = task.error.unwrap().message;
        assert_eq!(task.state, TaskState::Failed, "died at {dies_at}: {said}");
        assert!(said.contains("containerd.service: activating"), "{said}");
        assert!(said.contains("rolled back: demo-cp-0 serves"), "{said}");
        for machine in rig.at_rest().await {
            assert_eq!(machine.runs(), "test-1.37.2-1");
            assert_eq!(machine.components["containerd"], OWN_VERSION);
        }
        let (link, _) = rig.containerd("demo-cp-0");
        assert_eq!(link.as_deref(), Some(OWN_VERSION));
        assert_eq!(rig.containerd("demo-w-0"), (None, Vec::new()));
        through
    })
    .await;
    assert!(points > 20, "only {points} points");
}

impl Rig {
    /// Has the cluster wait for a Job after each machine that changes.
    pub(super) async fn gate(&self) {
        let director = self.immortal().await;
        let mut cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        let gate = json!({
            "name": "smoke",
            "job": {"namespace": "shop", "cronJob": "smoke", "timeoutSeconds": 60},
        });
        cluster.spec.gates = vec![serde_json::from_value(gate).unwrap()];
        let mut commit = Commit::default();
        commit.put(&cluster).unwrap();
        director.records.commit(commit).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_stays_shut_after_a_change_in_place_gives_back_what_there_was() {
    let points = at_every_point(async |dies_at| {
        let rig = Rig::new();
        let create = rig.order_create().await;
        rig.run(&create, usize::MAX, Stop::No).await.unwrap();
        rig.gate().await;
        rig.sim.state.lock().unwrap().jobs_fail = true;
        let task = rig.order_refit(NEWER, "2", 2).await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        let said = task.error.unwrap().message;
        assert_eq!(task.state, TaskState::Failed, "died at {dies_at}: {said}");
        assert!(said.contains("gate smoke is not open"), "{said}");
        assert!(said.contains("rolled back: demo-cp-0 serves"), "{said}");
        let (_, machines) = rig.settled().await;
        for machine in machines {
            assert_eq!(machine.runs(), "test-1.37.2-1");
            assert_eq!(machine.components["containerd"], OWN_VERSION);
        }
        let (link, _) = rig.containerd("demo-cp-0");
        assert_eq!(link.as_deref(), Some(OWN_VERSION));
        assert_eq!(rig.containerd("demo-w-0"), (None, Vec::new()));
        through
    })
    .await;
    assert!(points > 20, "only {points} points");
}

#[tokio::test(start_paused = true)]
async fn the_version_before_stays_and_older_ones_go() {
    let rig = Rig::new();
    let create = rig.order_create().await;
    rig.run(&create, usize::MAX, Stop::No).await.unwrap();
    for (number, containerd) in [(2, NEWER), (3, "1.2.0"), (4, BROKEN_VERSION)] {
        let task = rig
            .order_refit(containerd, &number.to_string(), number)
            .await;
        rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    }
    // Both 1.2.0, which runs, and what was tried last are there; 1.1.0 went before 1.9.9 came.
    let (link, files) = rig.containerd("demo-cp-0");
    assert_eq!(link.as_deref(), Some("1.2.0"));
    assert_eq!(files, ["1.2.0", BROKEN_VERSION]);
    let (link, files) = rig.containerd("demo-w-0");
    assert_eq!(link.as_deref(), Some("1.2.0"));
    assert_eq!(files, [NEWER, "1.2.0"]);
    let task = rig.order_refit("1.3.0", "5", 5).await;
    rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    for machine in rig.at_rest().await {
        let (link, files) = rig.containerd(machine.name.as_str());
        assert_eq!(link.as_deref(), Some("1.3.0"));
        assert_eq!(files, ["1.2.0", "1.3.0"]);
        assert_eq!(machine.staged, ["test-1.37.2-3", "test-1.37.2-5"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_was_refitted_is_made_anew_from_what_it_runs() {
    let rig = Rig::new();
    let create = rig.order_create().await;
    rig.run(&create, usize::MAX, Stop::No).await.unwrap();
    let task = rig.order_refit(NEWER, "2", 2).await;
    rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    let director = rig.immortal().await;
    let mut commit = Commit::default();
    let mut machines = director.records.machines_of("demo").await.unwrap();
    for machine in machines
        .iter_mut()
        .filter(|m| m.name.as_str() == "demo-w-0")
    {
        machine.condemn(false);
        commit.put(machine).unwrap();
    }
    let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
    let desired = director.world.desired(&cluster, &machines).unwrap();
    let task = order(&director, TaskKind::UpdateCluster, &desired, commit, 3).await;
    rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    let machines = rig.at_rest().await;
    let worker = machines.iter().find(|m| m.name.as_str() == "demo-w-0");
    let worker = worker.unwrap();
    assert_eq!(worker.incarnation, Incarnation(2));
    assert_eq!(
        (worker.stemcell.as_str(), &worker.fitted),
        ("test-1.37.2-2", &None)
    );
    assert!(worker.staged.is_empty());
    assert_eq!(worker.components["containerd"], NEWER);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_gives_back_the_components_that_worked() {
    for head_start in [1, 6, 10, 14, 18] {
        let rig = Rig::new();
        let create = rig.order_create().await;
        rig.run(&create, usize::MAX, Stop::No).await.unwrap();
        let task = rig.order_refit(NEWER, "2", 2).await;
        if rig.run(&task, head_start, Stop::No).await.is_some() {
            panic!("it was over after {head_start} points");
        }
        let over = rig.run(&task, usize::MAX, Stop::CleanUp).await.unwrap();
        assert_eq!(over.state, TaskState::Cancelled, "{:?}", over.error);
        for machine in rig.at_rest().await {
            assert_eq!(machine.runs(), "test-1.37.2-1", "after {head_start}");
            let (link, _) = rig.containerd(machine.name.as_str());
            assert_ne!(link.as_deref(), Some(NEWER), "after {head_start}");
        }
    }
}
