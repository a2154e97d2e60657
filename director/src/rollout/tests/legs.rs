//! Upgrades over minors that die at every point there is, and end the same; and the way back.

use std::collections::BTreeSet;

use super::renewal::place;
use super::*;
use crate::model::{LegForecast, LegsForecast};
use crate::planner::legs;
use crate::service::StemcellChoice;

const BETWEEN: &str = "1.38.4";
const TARGET: &str = "1.39.0";

impl Rig {
    /// A cluster in service, and stemcells of two later minors.
    async fn served(&self) {
        let create = self.order_create().await;
        self.run(&create, usize::MAX, Stop::No).await.unwrap();
        for version in [BETWEEN, TARGET] {
            stemcell::tests::install(self.dir.path(), version);
        }
    }

    /// The order to upgrade it to the later of them.
    async fn order_upgrade(&self, number: u64) -> TaskId {
        self.order_version(TARGET, number).await
    }

    /// The order to bring it to a version.
    pub(super) async fn order_version(&self, version: &str, number: u64) -> TaskId {
        let director = self.immortal().await;
        let world = &director.world;
        let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        let before = director.records.machines_of("demo").await.unwrap();
        let mut spec = cluster.spec.clone();
        spec.kubernetes_version = version.into();
        let observed = world.observe(&name()).await.unwrap();
        let draft = world
            .drafter()
            .change(&cluster, &spec, &StemcellChoice::Keep, &observed)
            .await
            .unwrap();
        let desired = world.desired(&draft.cluster, &draft.machines).unwrap();
        let observed = world
            .observe_as(&draft.cluster, &draft.machines)
            .await
            .unwrap();
        let mut plan = planner::plan(&desired, &observed).unwrap();
        check(&plan, &desired, &observed).unwrap();
        let mut commit = Commit::default();
        for machine in draft.machines.iter().filter(|m| !before.contains(m)) {
            if machine.revision == Revision(0) {
                let address = machine.address.to_string();
                commit.value(Kind::Address, &address, Expect::Absent, &machine.name);
            }
            commit.put(machine).unwrap();
        }
        plan.upgrade = draft.cluster.upgrade.as_ref().map(|upgrade| LegsForecast {
            at: 0,
            legs: upgrade
                .legs
                .iter()
                .map(|leg| LegForecast {
                    // Somebody has agreed to that.
                    api_down: true,
                    ..legs::forecast(leg, &plan, &desired, &observed)
                })
                .collect(),
        });
        let kind = TaskKind::UpdateCluster;
        place(&director, kind, plan, draft.cluster, commit, number).await
    }

    /// Why the order to bring it to a version is refused.
    async fn refusal(&self, version: &str) -> String {
        let director = self.immortal().await;
        let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        let mut spec = cluster.spec.clone();
        spec.kubernetes_version = version.into();
        let observed = director.world.observe(&name()).await.unwrap();
        let drafter = director.world.drafter();
        let draft = drafter.change(&cluster, &spec, &StemcellChoice::Keep, &observed);
        draft.await.unwrap_err().to_string()
    }

    /// The minor that the API server emulates, if it does.
    fn emulated(&self) -> Option<String> {
        let state = self.sim.state.lock().unwrap();
        let vm = &state.machines[&MachineName::new("demo-cp-0").unwrap()];
        let flags = &vm.api_flags.1;
        let forward = flags.contains("--emulation-forward-compatible=true");
        let emulated = flags.split_once("--emulated-version=");
        assert_eq!(emulated.is_some(), forward, "{flags}");
        Some(emulated?.1.split([' ', '"']).next()?.to_owned())
    }

    async fn versions(&self) -> Vec<String> {
        let director = self.immortal().await;
        let machines = director.records.machines_of("demo").await.unwrap();
        machines.into_iter().map(|m| m.kubernetes_version).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_over_two_minors_that_dies_at_any_point_ends_the_same() {
    let points = at_every_point(async |dies_at| {
        let rig = Rig::new();
        rig.served().await;
        let task = rig.order_upgrade(2).await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        assert_eq!(
            task.state,
            TaskState::Succeeded,
            "died at {dies_at}: {:?}",
            task.error
        );
        let (cluster, machines) = rig.settled().await;
        assert_eq!(
            (cluster.phase, cluster.message, cluster.upgrade),
            (ClusterPhase::Ready, None, None)
        );
        assert_eq!(cluster.spec.kubernetes_version, TARGET);
        assert_eq!(rig.versions().await, [TARGET, TARGET], "died at {dies_at}");
        // Its API server took every minor, its worker none but the last, after the API server was raised in place.
        let in_leg = |key: &str| match key.split('/').next() {
            Some("leg-2") => 2,
            Some("leg-3") => 3,
            _ => 1,
        };
        let of = |machine: &str, verb: &str| -> Vec<u32> {
            let end = format!("machine/{machine}/{verb}");
            let keys = task.steps.keys().map(|key| &*key.0);
            keys.filter(|key| key.ends_with(&end)).map(in_leg).collect()
        };
        assert_eq!(of("demo-cp-0", "create"), [2, 1]);
        assert_eq!(of("demo-cp-0", "start"), [2, 3, 1]);
        assert_eq!(
            of("demo-w-0", "create").len() + of("demo-w-1", "create").len(),
            1
        );
        assert!(
            of("demo-w-0", "create")
                .iter()
                .chain(&of("demo-w-1", "create"))
                .all(|leg| *leg == 3)
        );
        assert_eq!((rig.emulated(), cluster.emulates), (None, None));
        assert!(machines.iter().all(|m| m.emulates.is_none()));
        let cp = machines.iter().find(|m| m.role.is_control_plane()).unwrap();
        assert_eq!(cp.incarnation, Incarnation(3), "died at {dies_at}");
        through
    })
    .await;
    assert!(points > 120, "only {points} points");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_in_any_leg_is_replaced_by_the_upgrade_whoever_dies() {
    let mut condemned = BTreeSet::new();
    // The upgrade gets so far before the verdict; then the director that takes it in dies now and then.
    for head_start in (1..230).step_by(13) {
        let mut dies_at = 3;
        loop {
            let rig = Rig::new();
            rig.served().await;
            let task = rig.order_upgrade(2).await;
            if rig.run(&task, head_start, Stop::No).await.is_some() {
                break;
            }
            let director = rig.immortal().await;
            let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
            if !rig.condemn_worker(false).await {
                break;
            }
            condemned.insert(cluster.upgrade.unwrap().at);
            let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
            assert_eq!(
                task.state,
                TaskState::Succeeded,
                "head start {head_start}, died at {dies_at}: {:?}",
                task.error
            );
            let (cluster, _) = rig.settled().await;
            assert_eq!(
                (cluster.phase, cluster.message, cluster.upgrade),
                (ClusterPhase::Ready, None, None)
            );
            assert_eq!(
                rig.versions().await,
                [TARGET, TARGET],
                "{head_start}, {dies_at}"
            );
            if through {
                break;
            }
            dies_at += 29;
        }
    }
    assert!(
        condemned.len() > 1,
        "it died in more than one leg: {condemned:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_that_fails_in_any_leg_goes_on_when_it_is_ordered_again() {
    let machines = ["machine/demo-cp-0/start", "machine/demo-w-0/start"];
    for refused in ["", "leg-2/", "leg-3/"].map(|leg| machines.map(|of| format!("{leg}{of}"))) {
        for refused in refused {
            let rig = Rig::new();
            rig.served().await;
            let task = rig.order_upgrade(2).await;
            let end: &'static str = format!("{task}/{refused}").leak();
            rig.sim.state.lock().unwrap().refuse_once.insert(end);
            let task = rig.run(&task, usize::MAX, Stop::No).await.unwrap();
            if task.state != TaskState::Failed {
                assert_eq!(task.state, TaskState::Succeeded, "no such step: {refused}");
                continue;
            }
            let director = rig.immortal().await;
            let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
            let said = cluster.message.clone().unwrap();
            assert!(said.contains("not in this way"), "{said}");
            assert_eq!(cluster.ordered().kubernetes_version, TARGET, "{refused}");
            let again = rig.order_upgrade(3).await;
            let task = rig.run(&again, usize::MAX, Stop::No).await.unwrap();
            assert_eq!(
                task.state,
                TaskState::Succeeded,
                "{refused}: {:?}",
                task.error
            );
            let (cluster, _) = rig.settled().await;
            assert_eq!(
                (cluster.phase, cluster.upgrade),
                (ClusterPhase::Ready, None)
            );
            assert_eq!(rig.versions().await, [TARGET, TARGET], "{refused}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_upgrade_over_two_minors_leaves_a_cluster_that_serves_and_goes_on_later() {
    let mut seen = BTreeSet::new();
    for head_start in (1..230).step_by(6) {
        let rig = Rig::new();
        rig.served().await;
        let task = rig.order_upgrade(2).await;
        if rig.run(&task, head_start, Stop::No).await.is_some() {
            continue;
        }
        let task = rig.run(&task, usize::MAX, Stop::CleanUp).await.unwrap();
        assert_eq!(
            task.state,
            TaskState::Cancelled,
            "head start {head_start}: {:?}",
            task.error
        );
        let (cluster, _) = rig.settled().await;
        assert_eq!(
            (cluster.phase, &cluster.upgrade),
            (ClusterPhase::Ready, &None)
        );
        let message = cluster.message.clone().unwrap();
        let leg = message.split(" of 3").next().unwrap().to_owned();
        assert!(leg.contains("was cancelled in leg "), "{message}");
        assert!(message.contains(&format!("--to {TARGET}")), "{message}");
        seen.insert(leg);
        // What joined and was given up may be made again.
        rig.sim.state.lock().unwrap().births.clear();
        let again = rig.order_upgrade(3).await;
        let task = rig.run(&again, usize::MAX, Stop::No).await.unwrap();
        assert_eq!(
            task.state,
            TaskState::Succeeded,
            "head start {head_start}: {:?}",
            task.error
        );
        rig.settled().await;
        assert_eq!(rig.versions().await, [TARGET, TARGET], "{head_start}");
    }
    assert_eq!(seen.len(), 3, "all legs were cancelled: {seen:?}");
}

/// Wherever an upgrade by a minor is cancelled, the cluster serves and emulates what ran as long as no API server was
/// raised: then it goes back, and else only further.
#[tokio::test(start_paused = true)]
async fn a_cancelled_upgrade_goes_back_until_api_servers_are_raised_and_not_after() {
    let (mut back, mut on) = (0, 0);
    for head_start in (1..160).step_by(3) {
        let rig = Rig::new();
        rig.served().await;
        let task = rig.order_version(BETWEEN, 2).await;
        if rig.run(&task, head_start, Stop::No).await.is_some() {
            continue;
        }
        let task = rig.run(&task, usize::MAX, Stop::CleanUp).await.unwrap();
        assert_eq!(
            task.state,
            TaskState::Cancelled,
            "{head_start}: {:?}",
            task.error
        );
        let (cluster, machines) = rig.settled().await;
        let cp = machines.iter().find(|m| m.role.is_control_plane()).unwrap();
        assert_eq!(
            cp.emulates.map(|minor| format!("1.{minor}")),
            rig.emulated()
        );
        let message = cluster.message.clone().unwrap();
        let goes_back = format!("`windlass cluster upgrade demo --to {VERSION}` goes back");
        assert_eq!(
            message.contains(&goes_back),
            cluster.emulates.is_some(),
            "{message}"
        );
        rig.sim.state.lock().unwrap().births.clear();
        let version = match cluster.emulates {
            Some(minor) => {
                assert_eq!(minor, 37);
                assert!(cp.kubernetes_version == VERSION || cp.emulates == Some(37));
                let workers = machines.iter().filter(|m| !m.role.is_control_plane());
                assert!(
                    workers
                        .map(|m| &m.kubernetes_version)
                        .all(|version| version == VERSION)
                );
                back += 1;
                VERSION
            }
            None => {
                assert_eq!(
                    (cp.emulates, cp.kubernetes_version.as_str()),
                    (None, BETWEEN)
                );
                let refused = rig.refusal(VERSION).await;
                assert!(refused.contains("1.38.x or later"), "{refused}");
                on += 1;
                BETWEEN
            }
        };
        let again = rig.order_version(version, 3).await;
        let task = rig.run(&again, usize::MAX, Stop::No).await.unwrap();
        assert_eq!(
            task.state,
            TaskState::Succeeded,
            "{head_start}: {:?}",
            task.error
        );
        let (cluster, machines) = rig.settled().await;
        assert_eq!(
            (cluster.emulates, rig.emulated(), cluster.upgrade),
            (None, None, None)
        );
        assert!(
            machines.iter().all(|m| m.kubernetes_version == version),
            "{head_start}"
        );
    }
    assert!(back > 5 && on > 2, "{back} went back, {on} on");
}

#[tokio::test(start_paused = true)]
async fn going_back_that_dies_at_any_point_ends_the_same() {
    let points = at_every_point(async |dies_at| {
        let rig = Rig::new();
        rig.served().await;
        let task = rig.order_version(BETWEEN, 2).await;
        // Far enough for the machine of the later minor to be there.
        assert!(rig.run(&task, 60, Stop::No).await.is_none());
        let task = rig.run(&task, usize::MAX, Stop::CleanUp).await.unwrap();
        assert_eq!(task.state, TaskState::Cancelled, "{:?}", task.error);
        assert_eq!(rig.emulated().as_deref(), Some("1.37"));
        rig.sim.state.lock().unwrap().births.clear();
        let task = rig.order_version(VERSION, 3).await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        assert_eq!(
            task.state,
            TaskState::Succeeded,
            "died at {dies_at}: {:?}",
            task.error
        );
        let (cluster, _) = rig.settled().await;
        assert_eq!(
            (cluster.phase, cluster.emulates, cluster.upgrade),
            (ClusterPhase::Ready, None, None)
        );
        assert_eq!(
            (rig.emulated(), cluster.spec.kubernetes_version.as_str()),
            (None, VERSION)
        );
        assert_eq!(
            rig.versions().await,
            [VERSION, VERSION],
            "died at {dies_at}"
        );
        through
    })
    .await;
    assert!(points > 20, "only {points} points");
}
