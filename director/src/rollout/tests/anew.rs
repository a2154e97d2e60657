//! Machines that a change makes anew and that do not come through their gates: they go back to what they were, whenever
//! the director dies, and the next order tries again.

use super::*;
use crate::model::{Former, Wanted};
use crate::stemcell::tests::{OWN_VERSION, install, install_parts};

/// A patch of what runs.
const PATCH: &str = "1.37.3";
/// The next minor.
const LATER: &str = "1.38.4";

/// A cluster of so many control-plane machines and two workers, of which one may be missing and none is spare.
fn large(stemcells: &Catalogue, members: u8) -> (Cluster, Vec<Machine>) {
    let (mut cluster, machines) = draft(stemcells);
    cluster.spec.control_plane.count = u32::from(members);
    for pool in cluster.spec.pools.values_mut() {
        pool.count = 2;
        pool.update.max_surge = Amount::Count(0);
    }
    let copies = |machine: Machine| {
        let (text, count, first) = match machine.role.is_control_plane() {
            true => ("demo-cp", members, 10),
            false => ("demo-w", 2, 20),
        };
        (0..count).map(move |number| {
            let mut copy = machine.clone();
            copy.name = MachineName::new(format!("{text}-{number}")).unwrap();
            copy.node_name = copy.name.node_name(Incarnation::FIRST).unwrap();
            copy.address = [10, 0, 0, first + number].into();
            copy.pod_cidr = format!("10.244.{}.0/24", first + number).parse().unwrap();
            let disk = || DiskName::new(format!("{text}-{number}-data")).unwrap();
            copy.data_disk = machine.data_disk.as_ref().map(|_| disk());
            copy
        })
    };
    (cluster, machines.into_iter().flat_map(copies).collect())
}

impl Rig {
    /// A cluster in service of so many control-plane machines, stemcells of later versions, and nodes that never come
    /// up.
    async fn serving(members: u8, never_ready: &[&'static str]) -> Self {
        let rig = Rig::new();
        let create = rig.order_create_of(large(&rig.stemcells, members)).await;
        rig.run(&create, usize::MAX, Stop::No).await.unwrap();
        for version in [PATCH, LATER] {
            install(rig.dir.path(), version);
        }
        rig.sim
            .state
            .lock()
            .unwrap()
            .never_ready
            .extend(never_ready);
        rig
    }

    /// Looks at a cluster whose change has failed: nothing is left to do and nothing is out of service. Returns each
    /// machine's incarnation and version, by name.
    async fn went_back(&self) -> BTreeMap<String, (u32, String)> {
        let director = self.immortal().await;
        let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        assert_eq!(
            (cluster.phase, &cluster.task),
            (ClusterPhase::Degraded, &None)
        );
        let machines = director.records.machines_of("demo").await.unwrap();
        let observed = director.world.observe(&name()).await.unwrap();
        let state = self.sim.state.lock().unwrap();
        assert!(state.cordoned.is_empty(), "{:?}", state.cordoned);
        assert!(state.births.values().all(|births| *births == 1));
        let disks = machines.iter().filter(|m| m.data_disk.is_some()).count();
        assert_eq!(state.disks.len(), disks, "the data of etcd is kept");
        let mut ready: Vec<_> = state.ready.iter().cloned().collect();
        for machine in &machines {
            assert_eq!(machine.phase, MachinePhase::Ready, "{}", machine.name);
            assert!(
                machine.serving && machine.departed.is_empty(),
                "{machine:?}"
            );
            assert_eq!(machine.former, None, "{}", machine.name);
            let vm = &state.machines[&machine.name];
            assert!(
                vm.made_as.0.ends_with(&machine.stemcell),
                "{:?}",
                vm.made_as.0
            );
            assert_eq!(vm.view.incarnation, machine.incarnation);
            ready.retain(|node| *node != machine.node_name);
        }
        assert!(ready.is_empty(), "nodes of nobody: {ready:?}");
        drop(state);
        // Machines whose turn did not come wait for another order; of all others nothing is wanted but what they are.
        let mut wanted = machines.clone();
        for machine in wanted
            .iter_mut()
            .filter(|m| m.incarnation == Incarnation::FIRST)
        {
            machine.wanted = None;
        }
        let desired = director.world.desired(&cluster, &wanted).unwrap();
        let plan = planner::plan(&desired, &observed).unwrap();
        assert_eq!(plan.steps, []);
        let of = |m: &Machine| (m.incarnation.0, m.kubernetes_version.clone());
        machines
            .iter()
            .map(|m| (m.name.to_string(), of(m)))
            .collect()
    }

    /// The order to make the workers anew from another build of their version, and larger.
    async fn order_workers(&self, number: u64) -> TaskId {
        let parts = [("containerd", "1.1.0"), ("kubelet", OWN_VERSION)];
        let stemcell = install_parts(self.dir.path(), VERSION, "2", &parts);
        let director = self.immortal().await;
        let mut commit = Commit::default();
        let mut machines = director.records.machines_of("demo").await.unwrap();
        for machine in machines.iter_mut().filter(|m| !m.role.is_control_plane()) {
            machine.wanted = Some(Wanted::Reborn {
                incarnation: Incarnation(2),
                stemcell: stemcell.clone(),
                kubernetes_version: VERSION.into(),
                size: MachineSize {
                    memory_mib: 2048,
                    ..machine.size
                },
                because: None,
            });
            commit.put(machine).unwrap();
        }
        let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        let desired = director.world.desired(&cluster, &machines).unwrap();
        order(&director, TaskKind::UpdateCluster, &desired, commit, number).await
    }

    /// The next order brings all machines to a version.
    async fn tries_again(&self, version: &str, number: u64) {
        let again = self.order_version(version, number).await;
        let over = self.run(&again, usize::MAX, Stop::No).await.unwrap();
        assert_eq!(over.state, TaskState::Succeeded, "{:?}", over.error);
        let director = self.immortal().await;
        for machine in director.records.machines_of("demo").await.unwrap() {
            assert_eq!(machine.kubernetes_version, version, "{}", machine.name);
            assert!(!machine.pinned && machine.former.is_none(), "{machine:?}");
            assert_eq!(machine.wanted, None, "{}", machine.name);
        }
    }
}

/// Like [`at_every_point`], at each `nth` point alone: clusters of five machines have hundreds, and each life of a
/// director begins with their creation. Returns the last.
async fn at_points<F: AsyncFn(usize) -> bool>(nth: usize, run: F) -> usize {
    at_every_point(async |point| run(point * nth).await).await * nth
}

/// What a machine is expected to be.
fn is(incarnation: u32, version: &str) -> (u32, String) {
    (incarnation, version.to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_never_is_ready_goes_back_and_the_next_order_tries_again() {
    let points = at_points(3, async |dies_at| {
        let rig = Rig::serving(1, &["demo-w-1-i2"]).await;
        let task = rig.order_version(PATCH, 2).await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        let said = task.error.unwrap().message;
        assert_eq!(task.state, TaskState::Failed, "died at {dies_at}: {said}");
        assert!(said.contains("machine/demo-w-1/await-node"), "{said}");
        assert!(said.contains("network not ready"), "{said}");
        assert!(
            said.contains("rolled back: demo-w-1 serves as before"),
            "{said}"
        );
        assert!(
            said.contains("before the next `windlass cluster apply`"),
            "{said}"
        );
        let machines = rig.went_back().await;
        // Those that came through before stay what they have become.
        assert_eq!(machines["demo-cp-0"], is(2, PATCH));
        assert_eq!(machines["demo-w-0"], is(2, PATCH));
        assert_eq!(machines["demo-w-1"], is(3, VERSION), "died at {dies_at}");
        if through {
            rig.tries_again(PATCH, 3).await;
        }
        through
    })
    .await;
    assert!(points > 100, "only {points} points");
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_stays_shut_has_a_worker_made_anew_as_it_was() {
    let points = at_every_point(async |dies_at| {
        let rig = Rig::serving(1, &[]).await;
        rig.gate().await;
        rig.sim.state.lock().unwrap().jobs_fail = true;
        let task = rig.order_workers(2).await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        let said = task.error.unwrap().message;
        assert_eq!(task.state, TaskState::Failed, "died at {dies_at}: {said}");
        assert!(said.contains("gate smoke is not open"), "{said}");
        assert!(
            said.contains("rolled back: demo-w-0 serves as before"),
            "{said}"
        );
        let went = rig.went_back().await;
        assert_eq!(went["demo-w-0"], is(3, VERSION), "died at {dies_at}");
        assert_eq!(
            went["demo-w-1"],
            is(1, VERSION),
            "no other machine is taken"
        );
        let director = rig.immortal().await;
        for machine in director.records.machines_of("demo").await.unwrap() {
            assert_eq!(
                (machine.stemcell.as_str(), machine.size.memory_mib),
                ("test-1.37.2-1", 1024)
            );
            assert_eq!(machine.components["containerd"], OWN_VERSION);
            assert_eq!(machine.pinned, machine.name.as_str() == "demo-w-0");
        }
        // It serves until its pods have left it.
        let drains = |key: &StepKey| &*key.0 == "rollback/machine/demo-w-0/drain";
        assert!(task.steps.keys().any(drains), "{:?}", task.steps.keys());
        through
    })
    .await;
    assert!(points > 60, "only {points} points");
}

impl Rig {
    /// The order of a third worker; where it comes for another one, that goes.
    async fn order_another(&self, surge: bool, number: u64) -> TaskId {
        let director = self.immortal().await;
        let mut cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        let mut machines = director.records.machines_of("demo").await.unwrap();
        let (_, drafted) = large(&self.stemcells, 1);
        let worker = drafted.into_iter().find(|m| m.data_disk.is_none()).unwrap();
        let name = MachineName::new("demo-w-2").unwrap();
        let worker = Machine {
            node_name: name.node_name(Incarnation::FIRST).unwrap(),
            name,
            address: [10, 0, 0, 22].into(),
            pod_cidr: "10.244.22.0/24".parse().unwrap(),
            additional: true,
            ..worker
        };
        let mut commit = Commit::default();
        let address = worker.address.to_string();
        commit.value(Kind::Address, &address, Expect::Absent, &worker.name);
        commit.put(&worker).unwrap();
        if surge {
            let gone = machines.iter_mut().find(|m| m.name.as_str() == "demo-w-0");
            let gone = gone.unwrap();
            gone.wanted = Some(Wanted::Gone);
            commit.put(gone).unwrap();
        } else {
            for pool in cluster.spec.pools.values_mut() {
                pool.count = 3;
            }
            commit.put(&cluster).unwrap();
        }
        machines.push(worker);
        // It is seen as it was drafted.
        director.records.commit(commit).await.unwrap();
        let desired = director.world.desired(&cluster, &machines).unwrap();
        let none = Commit::default();
        order(&director, TaskKind::UpdateCluster, &desired, none, number).await
    }
}

#[tokio::test(start_paused = true)]
async fn an_additional_machine_that_fails_at_its_gates_is_removed_again() {
    for (surge, ready) in [(true, true), (false, true), (true, false)] {
        let points = at_points(2, async |dies_at| {
            let never: &[_] = if ready { &[] } else { &["demo-w-2-i1"] };
            let rig = Rig::serving(1, never).await;
            rig.gate().await;
            rig.sim.state.lock().unwrap().jobs_fail = true;
            let task = rig.order_another(surge, 2).await;
            let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
            let said = task.error.unwrap().message;
            assert_eq!(task.state, TaskState::Failed, "died at {dies_at}: {said}");
            let why = match ready {
                true => "gate smoke is not open",
                false => "network not ready",
            };
            assert!(said.contains(why), "{said}");
            let removed =
                "rolled back: demo-w-2, which was not there before this change, is removed again";
            assert!(said.contains(removed), "died at {dies_at}: {said}");
            let went = rig.went_back().await;
            let names: Vec<&str> = went.keys().map(String::as_str).collect();
            assert_eq!(names, ["demo-cp-0", "demo-w-0", "demo-w-1"]);
            assert!(went.values().all(|found| *found == is(1, VERSION)));
            // Its address is free again, and whom it came for stays.
            let left = rig.sim.store.entry(Kind::Address, "10.0.0.22");
            assert!(left.is_none());
            let director = rig.immortal().await;
            for machine in director.records.machines_of("demo").await.unwrap() {
                assert_eq!(machine.wanted, None, "{}", machine.name);
            }
            if through {
                {
                    let mut state = rig.sim.state.lock().unwrap();
                    state.jobs_fail = false;
                    state.never_ready.clear();
                }
                let task = rig.order_another(surge, 3).await;
                let task = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
                assert_eq!(task.state, TaskState::Succeeded, "{:?}", task.error);
                let asked = StepKey("machine/demo-w-2/await-gates".into());
                assert!(task.steps.contains_key(&asked));
                let machines = rig.immortal().await.records.machines_of("demo").await;
                let machines = machines.unwrap();
                assert_eq!(machines.len(), if surge { 3 } else { 4 });
                assert!(machines.iter().all(|machine| !machine.additional));
            }
            through
        })
        .await;
        assert!(points > 30, "only {points} points");
    }
}

/// The worker was made anew; before its gates are asked another machine dies, and the task is planned anew.
#[tokio::test(start_paused = true)]
async fn a_gate_that_was_planned_is_asked_whatever_is_planned_since() {
    let mut asked = 0;
    for head_start in 1..400 {
        let rig = Rig::serving(1, &[]).await;
        rig.gate().await;
        let task = rig.order_workers(2).await;
        if rig.run(&task, head_start, Stop::No).await.is_some() {
            break;
        }
        let director = rig.immortal().await;
        let found = director.records.task(&task).await.unwrap().unwrap();
        let state = |verb: &str| {
            let key = StepKey(format!("machine/demo-w-0/{verb}").as_str().into());
            found.steps.get(&key).map(|step| step.state)
        };
        let made = state("await-node") == Some(StepState::Succeeded);
        if !made || state("await-gates") == Some(StepState::Succeeded) {
            continue;
        }
        let machines = director.records.machines_of("demo").await.unwrap();
        let mut other = machines
            .iter()
            .find(|m| m.name.as_str() == "demo-w-1")
            .unwrap()
            .clone();
        planner::again::condemn_within(&mut other, &machines);
        let mut commit = Commit::default();
        commit.put(&other).unwrap();
        director.records.commit(commit).await.unwrap();
        rig.sim.state.lock().unwrap().cut(&other.name);
        let over = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
        assert_eq!(over.state, TaskState::Succeeded, "{:?}", over.error);
        assert!(over.rounds > 0, "head start {head_start}");
        let gate = |key: &StepKey| key.0.ends_with("machine/demo-w-0/await-gates");
        let done = over.steps.iter().filter(|(key, _)| gate(key));
        let done = done.filter(|(_, step)| step.state == StepState::Succeeded);
        assert_eq!(done.count(), 1, "head start {head_start}");
        let machines = director.records.machines_of("demo").await.unwrap();
        assert!(machines.iter().all(|machine| machine.former.is_none()));
        asked += 1;
    }
    assert!(asked > 0, "no gate was left");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_cannot_be_configured_goes_back_as_well() {
    at_points(5, async |dies_at| {
        let rig = Rig::serving(1, &[]).await;
        let task = rig.order_version(PATCH, 2).await;
        let refused = "machine/demo-w-0/configure/keys";
        rig.sim.state.lock().unwrap().refuse_once.insert(refused);
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        let said = task.error.unwrap().message;
        assert_eq!(task.state, TaskState::Failed, "died at {dies_at}: {said}");
        let went = rig.went_back().await;
        assert_eq!(
            went["demo-w-0"],
            is(3, VERSION),
            "died at {dies_at}: {said}"
        );
        assert_eq!(went["demo-w-1"], is(1, VERSION), "died at {dies_at}");
        through
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_its_provider_does_not_make_goes_back_without_a_delete() {
    let points = at_every_point(async |dies_at| {
        let rig = Rig::serving(1, &[]).await;
        let task = rig.order_workers(2).await;
        let fault = "one that some host has room for";
        let faults = |rig: &Rig| rig.sim.state.lock().unwrap().create_faults.len();
        rig.sim.state.lock().unwrap().create_faults.push_back(fault);
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        assert_eq!(faults(&rig), 0);
        if task.state == TaskState::Succeeded {
            return through; // whoever was told so died before it was written down
        }
        let said = task.error.unwrap().message;
        assert_eq!(task.state, TaskState::Failed, "died at {dies_at}: {said}");
        assert!(said.contains(fault), "{said}");
        assert!(
            said.contains("rolled back: demo-w-0 serves as before"),
            "{said}"
        );
        let went = rig.went_back().await;
        assert_eq!(went["demo-w-0"], is(3, VERSION), "died at {dies_at}");
        let deletes = |key: &StepKey| &*key.0 == "rollback/machine/demo-w-0/delete";
        assert!(!task.steps.keys().any(deletes));
        through
    })
    .await;
    assert!(points > 40, "only {points} points");
}

#[tokio::test(start_paused = true)]
async fn a_worker_goes_back_to_a_minor_that_its_control_plane_has_left() {
    let rig = Rig::serving(1, &["demo-w-0-i2"]).await;
    let task = rig.order_version(LATER, 2).await;
    let task = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    let said = task.error.unwrap().message;
    assert_eq!(task.state, TaskState::Failed, "{said}");
    assert!(
        said.contains("rolled back: demo-w-0 serves as before"),
        "{said}"
    );
    let went = rig.went_back().await;
    assert_eq!(went["demo-cp-0"].1, LATER);
    assert_eq!(went["demo-w-0"], is(3, VERSION));
    assert_eq!(went["demo-w-1"], is(1, VERSION));
    rig.tries_again(LATER, 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_machine_of_three_goes_back_to_another_patch() {
    let points = at_points(7, async |dies_at| {
        let rig = Rig::serving(3, &["demo-cp-1-i2"]).await;
        let task = rig.order_version(PATCH, 2).await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        let said = task.error.unwrap().message;
        assert_eq!(task.state, TaskState::Failed, "died at {dies_at}: {said}");
        assert!(
            said.contains("rolled back: demo-cp-1 serves as before"),
            "{said}"
        );
        let went = rig.went_back().await;
        assert_eq!(went["demo-cp-0"], is(2, PATCH));
        assert_eq!(went["demo-cp-1"], is(3, VERSION), "died at {dies_at}");
        for name in ["demo-cp-2", "demo-w-0", "demo-w-1"] {
            assert_eq!(went[name], is(1, VERSION), "{name}");
        }
        if through {
            rig.tries_again(PATCH, 3).await;
        }
        through
    })
    .await;
    assert!(points > 60, "only {points} points");
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_machine_that_serves_goes_back_as_it_came() {
    let rig = Rig::serving(3, &[]).await;
    rig.gate().await;
    rig.sim.state.lock().unwrap().jobs_fail = true;
    let task = rig.order_version(PATCH, 2).await;
    let task = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    let said = task.error.clone().unwrap().message;
    assert_eq!(task.state, TaskState::Failed, "{said}");
    assert!(said.contains("gate smoke is not open"), "{said}");
    assert!(
        said.contains("rolled back: demo-cp-0 serves as before"),
        "{said}"
    );
    let went = rig.went_back().await;
    assert_eq!(went["demo-cp-0"], is(3, VERSION));
    // Its pods, its clients and the other members are told first.
    for verb in [
        "drain",
        "save-snapshot",
        "leave-endpoint",
        "move-leader",
        "stop-components",
        "join-endpoint",
    ] {
        let key = format!("rollback/machine/demo-cp-0/{verb}");
        assert!(
            task.steps.contains_key(&StepKey(key.as_str().into())),
            "{key}"
        );
    }
    rig.sim.state.lock().unwrap().jobs_fail = false;
    rig.tries_again(PATCH, 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_cannot_go_back_is_left_and_says_why() {
    let cases = [
        (
            1,
            PATCH,
            "demo-cp-0-i2",
            "it is the only machine of its control plane",
        ),
        (
            3,
            LATER,
            "demo-cp-0-i2",
            "control planes do not go back from 1.38.4 to 1.37.2",
        ),
    ];
    for (members, version, node, why) in cases {
        let rig = Rig::serving(members, &[node]).await;
        let task = rig.order_version(version, 2).await;
        let task = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
        let said = task.error.clone().unwrap().message;
        assert_eq!(
            (task.state, &task.cleanup),
            (TaskState::Failed, &None),
            "{said}"
        );
        assert!(said.contains("machine/demo-cp-0/await-node"), "{said}");
        assert!(
            said.contains(&format!("demo-cp-0 is not rolled back, since {why}")),
            "{said}"
        );
        assert!(
            said.contains(&format!("`windlass task retry {}`", task.id)),
            "{said}"
        );
        let director = rig.immortal().await;
        let machines = director.records.machines_of("demo").await.unwrap();
        let member = machines
            .iter()
            .find(|m| m.name.as_str() == "demo-cp-0")
            .unwrap();
        assert_eq!((member.incarnation, member.pinned), (Incarnation(2), false));
        assert_eq!(member.kubernetes_version, version);
        let others = machines.iter().filter(|m| m.name != member.name);
        assert!(
            others
                .into_iter()
                .all(|m| m.incarnation == Incarnation::FIRST)
        );
        // What was in its way is mended.
        rig.sim.state.lock().unwrap().never_ready.clear();
        rig.tries_again(version, 3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stemcell_that_is_gone_is_no_way_back() {
    let rig = Rig::serving(1, &["demo-w-0-i2"]).await;
    let task = rig.order_version(PATCH, 2).await;
    let before = rig.stemcells.find(VERSION).unwrap();
    std::fs::rename(&before.path, rig.dir.path().join("elsewhere")).unwrap();
    let task = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    let said = task.error.unwrap().message;
    assert_eq!(task.state, TaskState::Failed, "{said}");
    assert!(
        said.contains("demo-w-0 is not rolled back, since stemcell test-1.37.2-1"),
        "{said}"
    );
}

#[test]
fn a_machine_remembers_what_it_was_in_service_as() {
    let dir = tempfile::tempdir().unwrap();
    let (_, machines) = draft(&stemcell::tests::catalogue(dir.path(), VERSION));
    let mut machine = machines[1].clone();
    let former = |stemcell: &str| Former {
        stemcell: stemcell.to_owned(),
        kubernetes_version: VERSION.to_owned(),
        size: machines[1].size,
    };
    let becomes = |machine: &mut Machine, stemcell: &str| {
        machine.wanted = Some(machine.as_it_was(&former(stemcell)));
        machine.remember();
        machine.take_over();
        machine
            .former
            .as_ref()
            .map(|former| former.stemcell.clone())
    };
    assert_eq!(becomes(&mut machine, "b"), None, "it never was in service");
    machine.proven = Some(Default::default());
    machine.fitted = Some("c".to_owned());
    assert_eq!(
        becomes(&mut machine, "d").as_deref(),
        Some("c"),
        "it ran that"
    );
    assert_eq!(
        becomes(&mut machine, "e").as_deref(),
        Some("c"),
        "d never came through"
    );
    // Made anew as it is, it is on trial still.
    machine.condemn(true);
    machine.phase = MachinePhase::Configured;
    machine.condemn(true);
    machine.remember();
    machine.take_over();
    assert_eq!(machine.former, Some(former("c")));
    assert_eq!(becomes(&mut machine, "c"), None, "it is what it was");
    machine.condemn(false);
    machine.remember();
    assert_eq!(machine.former, None, "it becomes what it is");
}

#[test]
fn a_record_of_an_older_director_has_no_way_back() {
    let dir = tempfile::tempdir().unwrap();
    let (_, machines) = draft(&stemcell::tests::catalogue(dir.path(), VERSION));
    let mut machine = machines[1].clone();
    machine.former = Some(Former {
        stemcell: "test-1.37.2-1".to_owned(),
        kubernetes_version: VERSION.to_owned(),
        size: machine.size,
    });
    let mut record = serde_json::to_value(&machine).unwrap();
    let same: Machine = serde_json::from_value(record.clone()).unwrap();
    assert_eq!(same, machine);
    record.as_object_mut().unwrap().remove("former").unwrap();
    let older: Machine = serde_json::from_value(record).unwrap();
    assert_eq!(older.former, None);
    // Nor does one that is not on trial look other than before.
    let text = serde_json::to_string(&older).unwrap();
    assert!(!text.contains("former"), "{text}");
}
