//! Updates that die at every point there is, and end the same.

use std::collections::BTreeSet;

use serde_json::json;
use windlass_common::cluster::KubeletSettings;
use windlass_common::id::{Digest, NodeName};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::sim::BROKEN;
use super::*;
use crate::kubernetes::pki::Certificates;
use crate::model::Wanted;
use crate::store::Kind;

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
                because: None,
            });
            commit.put(machine).unwrap();
        }
        let desired = director.world.desired(&cluster, &machines).unwrap();
        order(&director, TaskKind::UpdateCluster, &desired, commit, 2).await
    }

    /// A cluster in service, and the order to make the data disk of its control plane larger.
    pub(super) async fn order_growth(&self) -> TaskId {
        let create = self.order_create().await;
        self.run(&create, usize::MAX, Stop::No).await.unwrap();
        let director = self.immortal().await;
        let mut commit = Commit::default();
        let mut cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        let mut machines = director.records.machines_of("demo").await.unwrap();
        let size = &mut cluster.spec.control_plane.size;
        size.disk_mib *= 2;
        commit.put(&cluster).unwrap();
        for machine in machines.iter_mut().filter(|m| m.data_disk.is_some()) {
            machine.grows_from_mib = Some(machine.size.disk_mib);
            machine.size.disk_mib *= 2;
            commit.put(machine).unwrap();
        }
        director.records.commit(commit).await.unwrap();
        let desired = director.world.desired(&cluster, &machines).unwrap();
        let none = Commit::default();
        order(&director, TaskKind::UpdateCluster, &desired, none, 2).await
    }

    /// A cluster in service, and the order to tell its worker's kubelet this besides.
    pub(super) async fn order_settings(&self, kubelet: &KubeletSettings, number: u64) -> TaskId {
        let director = self.immortal().await;
        let mut commit = Commit::default();
        let mut cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        for pool in cluster.spec.pools.values_mut() {
            pool.kubelet.clone_from(kubelet);
        }
        commit.put(&cluster).unwrap();
        let mut machines = director.records.machines_of("demo").await.unwrap();
        for machine in &mut machines {
            machine.pinned = false;
            commit.put(machine).unwrap();
        }
        let desired = director.world.desired(&cluster, &machines).unwrap();
        order(&director, TaskKind::UpdateCluster, &desired, commit, number).await
    }

    fn told(&self, machine: &str, what: &str) -> bool {
        let state = self.sim.state.lock().unwrap();
        let vm = &state.machines[&MachineName::new(machine).unwrap()];
        vm.kubelet.contains(what)
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
            assert!(!machine.proxy_restarted, "{machine:?}");
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
        for machine in machines.iter().filter(|m| m.role.is_control_plane()) {
            let refused = refused(state.machines[&machine.name].refuses.as_ref().unwrap());
            let gone = usize::try_from(machine.incarnation.0 - 1).unwrap();
            assert!(refused.len() >= 3 * gone, "{refused:?}");
            let denies = state.machines[&machine.name].denies.as_ref().unwrap();
            assert_eq!(denies.contains("type: Webhook"), gone > 0, "{denies}");
            let certificates = self
                .sim
                .store
                .entry(Kind::Certificates, machine.name.as_str());
            let (_, certificates): (u32, Certificates) =
                serde_json::from_slice(&certificates.unwrap().body).unwrap();
            for (name, pem) in certificates {
                let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
                let serial = pem.parse_x509().unwrap().raw_serial().to_vec();
                assert!(!refused.contains(&serial), "{name} of {}", machine.name);
                let fingerprint = Digest::of(&pem.contents).hex();
                assert!(
                    !denies.contains(&fingerprint[..16]),
                    "{name} of {}",
                    machine.name
                );
            }
        }
        (cluster, machines)
    }
}

/// Serial numbers of a list.
fn refused(der: &[u8]) -> BTreeSet<Vec<u8>> {
    let (_, list) = CertificateRevocationList::from_der(der).unwrap();
    let revoked = list.iter_revoked_certificates();
    revoked.map(|r| r.raw_serial().to_vec()).collect()
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
async fn a_disk_grows_in_place_whenever_the_director_dies() {
    let points = at_every_point(async |dies_at| {
        let rig = Rig::new();
        let task = rig.order_growth().await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        assert_eq!(task.state, TaskState::Succeeded, "{:?}", task.error);
        let (_, machines) = rig.settled().await;
        assert!(machines.iter().all(|m| m.incarnation == Incarnation(1)));
        assert!(machines.iter().all(|m| m.grows_from_mib.is_none()));
        let state = rig.sim.state.lock().unwrap();
        for machine in machines.iter().filter(|m| m.data_disk.is_some()) {
            let disk = &state.disks[machine.data_disk.as_ref().unwrap()];
            assert_eq!(disk.bytes, u64::from(machine.size.disk_mib) << 20);
        }
        through
    })
    .await;
    assert!(points > 10, "only {points} points");
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

pub(super) fn settings(field: &str, value: serde_json::Value) -> KubeletSettings {
    [(field.to_owned(), value)].into()
}

#[tokio::test(start_paused = true)]
async fn kubelet_settings_that_work_are_taken_over_in_place() {
    at_every_point(async |dies_at| {
        let rig = Rig::new();
        let create = rig.order_create().await;
        rig.run(&create, usize::MAX, Stop::No).await.unwrap();
        let task = rig.order_settings(&settings("maxPods", json!(61)), 2).await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        assert_eq!(task.state, TaskState::Succeeded, "{:?}", task.error);
        let (_, machines) = rig.settled().await;
        assert!(machines.iter().all(|m| m.incarnation == Incarnation::FIRST));
        assert!(rig.told("demo-w-0", "maxPods: 61") && rig.told("demo-cp-0", "maxPods: 110"));
        through
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn kubelet_settings_that_do_not_work_are_rolled_back_whenever_the_director_dies() {
    let points = at_every_point(async |dies_at| {
        let rig = Rig::new();
        let create = rig.order_create().await;
        rig.run(&create, usize::MAX, Stop::No).await.unwrap();
        let good = rig.order_settings(&settings("maxPods", json!(61)), 2).await;
        rig.run(&good, usize::MAX, Stop::No).await.unwrap();
        let broken = settings("systemReserved", json!({"memory": BROKEN}));
        let task = rig.order_settings(&broken, 3).await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        let said = task.error.unwrap().message;
        assert_eq!(task.state, TaskState::Failed, "died at {dies_at}: {said}");
        assert!(said.contains("the kubelet ends at once"), "{said}");
        assert!(said.contains("rolled back: demo-w-0 serves"), "{said}");
        let (cluster, machines) = rig.settled().await;
        assert_eq!(cluster.phase, ClusterPhase::Degraded);
        assert!(rig.told("demo-w-0", "maxPods: 61") && !rig.told("demo-w-0", BROKEN));
        // Nobody takes them again by himself: what is wanted of the machine is what it has.
        let director = rig.immortal().await;
        let desired = director.world.desired(&cluster, &machines).unwrap();
        let observed = director.world.observe(&name()).await.unwrap();
        assert_eq!(planner::plan(&desired, &observed).unwrap().steps, []);
        through
    })
    .await;
    assert!(points > 20, "only {points} points");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_gives_back_the_kubelet_settings_that_worked() {
    for head_start in [1, 4, 8, 12] {
        let rig = Rig::new();
        let create = rig.order_create().await;
        rig.run(&create, usize::MAX, Stop::No).await.unwrap();
        let task = rig.order_settings(&settings("maxPods", json!(61)), 2).await;
        let Some(_) = rig.run(&task, head_start, Stop::No).await else {
            let over = rig.run(&task, usize::MAX, Stop::CleanUp).await.unwrap();
            assert_eq!(over.state, TaskState::Cancelled, "{:?}", over.error);
            rig.settled().await;
            assert!(rig.told("demo-w-0", "maxPods: 110"), "after {head_start}");
            continue;
        };
        panic!("it was over after {head_start} points");
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_proxy_was_started_again_gets_time_to_be_trusted() {
    for seconds in [0, 40] {
        let rig = Rig::new();
        let create = rig.order_create().await;
        rig.run(&create, usize::MAX, Stop::No).await.unwrap();
        let director = rig.immortal().await;
        let mut cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        cluster.spec.drain.load_balancer_seconds = seconds;
        let mut commit = Commit::default();
        commit.put(&cluster).unwrap();
        director.records.commit(commit).await.unwrap();
        let task = rig.order_settings(&settings("maxPods", json!(61)), 2).await;
        let began = tokio::time::Instant::now();
        rig.run(&task, usize::MAX, Stop::No).await.unwrap();
        rig.settled().await;
        let took = began.elapsed().as_secs();
        assert_eq!(took >= 40, seconds == 40, "{took} s");
    }
}

/// The provider has a machine no more of which nothing is wanted, and nobody has written that down: a crash, or a
/// cancel, after it was deleted.
#[tokio::test(start_paused = true)]
async fn a_machine_that_is_gone_unwritten_leaves_no_node() {
    let rig = Rig::new();
    let create = rig.order_create().await;
    rig.run(&create, usize::MAX, Stop::No).await.unwrap();
    let director = rig.immortal().await;
    let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
    let mut machines = director.records.machines_of("demo").await.unwrap();
    let mut commit = Commit::default();
    let worker = machines.iter_mut().find(|m| m.name.as_str() == "demo-w-0");
    let worker = worker.unwrap();
    worker.wanted = Some(Wanted::Gone);
    commit.put(worker).unwrap();
    let (name, node) = (worker.name.clone(), worker.node_name.clone());
    director.records.commit(commit).await.unwrap();
    rig.sim.state.lock().unwrap().machines.remove(&name);
    let machines = director.records.machines_of("demo").await.unwrap();
    let desired = director.world.desired(&cluster, &machines).unwrap();
    let (kind, commit) = (TaskKind::UpdateCluster, Commit::default());
    let task = order(&director, kind, &desired, commit, 2).await;
    rig.run(&task, usize::MAX, Stop::No).await.unwrap();
    let left = director.records.machines_of("demo").await.unwrap();
    assert!(left.iter().all(|machine| machine.name != name), "{left:?}");
    // A machine that gets its name later would have its Node, closed to pods.
    assert!(!rig.sim.state.lock().unwrap().ready.contains(&node));
}
