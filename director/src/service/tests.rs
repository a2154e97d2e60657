//! Orders on a real director: real store, gateway and rollouts; the provider is simulated and its machines
//! never connect, so that creates stay where agents are awaited.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use ipnet::Ipv4Net;
use windlass_common::cluster::{ControlPlaneSpec, MachineSize, PoolSpec};
use windlass_common::error::ErrorClass;
use windlass_common::id::{Digest, Incarnation, MachineName, PoolName};
use windlass_common::pki::MachineIdentity;
use windlass_common::settings::Settings;

use super::*;
use crate::backup::cluster::BackupName;
use crate::config::{Config, DataDir, Identity};
use crate::gateway::{EnrollmentStore, RedeemError};
use crate::model::{AuditFilter, MachineFilter, StepState, TaskEvent, TaskId, TaskState};
use crate::pki::EnrollmentToken;
use crate::rollout::tests::sim::{Life, Sim};
use crate::store::{DirectoryLock, Expect, Kind, Token};

pub(super) const VERSION: &str = "1.37.2";

pub(super) struct Rig {
    pub(super) dir: tempfile::TempDir,
    pub(super) sim: Arc<Sim>,
    pub(super) lock: DirectoryLock,
}

impl Rig {
    pub(super) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        crate::stemcell::tests::install(&dir.path().join("stemcells"), VERSION);
        let data = data(dir.path());
        Identity::create(&data, jiff::Timestamp::now())
            .await
            .unwrap();
        let lock = DirectoryLock::acquire(dir.path()).unwrap();
        let sim = Arc::default();
        Self { dir, sim, lock }
    }

    pub(super) async fn director(&self) -> Director {
        let data = data(self.dir.path());
        let mut config = Config::parse("", &data).unwrap();
        config.gateway.listen = "127.0.0.1:0".parse().unwrap();
        let identity = Identity::load(&data, jiff::Timestamp::now()).await.unwrap();
        let provider = Life::new(self.sim.clone(), usize::MAX);
        let started = Director::start(&self.lock, &data, &config, identity, provider).await;
        started.unwrap()
    }
}

pub(super) fn data(dir: &Path) -> DataDir {
    DataDir::new(dir).unwrap()
}

pub(super) fn spec(name: &str) -> ClusterSpec {
    let size = MachineSize {
        cpu_millis: 1000,
        memory_mib: 1024,
        disk_mib: 64,
    };
    let pool = PoolSpec {
        count: 2,
        size,
        labels: BTreeMap::new(),
        kubelet: BTreeMap::new(),
        update: Default::default(),
        self_fence: None,
    };
    ClusterSpec {
        name: ClusterName::new(name).unwrap(),
        kubernetes_version: VERSION.into(),
        control_plane: ControlPlaneSpec {
            count: 1,
            size,
            kubelet: Default::default(),
            update: Default::default(),
        },
        pools: BTreeMap::from([(PoolName::new("w").unwrap(), pool)]),
        network: windlass_common::cluster::ClusterNetwork {
            pod_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
        },
        drain: Default::default(),
        gates: Vec::new(),
        maintenance: Default::default(),
        labels: Default::default(),
        backup: Default::default(),
    }
}

pub(super) fn ann() -> Caller {
    Caller {
        operator: "ann".into(),
        role: Role::Admin,
        request: "r1".into(),
    }
}

/// Waits until the task's machines are made and their agents awaited.
pub(super) async fn made(director: &Director, id: &TaskId) {
    let waiting = async {
        let mut events = director.watch_task(id).await.unwrap();
        while events.next().await.is_some() {
            let task = director.task(id).await.unwrap();
            let running = task
                .steps
                .iter()
                .filter(|(key, step)| {
                    key.0.ends_with("/await-agent") && step.state == StepState::Running
                })
                .count();
            if running == 3 {
                return;
            }
        }
        panic!("the task is over");
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .unwrap();
}

/// Follows the task to its end.
async fn over(director: &Director, id: &TaskId) -> TaskState {
    let events = director.watch_task(id).await.unwrap();
    let all = tokio::time::timeout(Duration::from_secs(60), events.collect::<Vec<_>>());
    let all = all.await.unwrap();
    assert!(matches!(all.first(), Some(TaskEvent::Snapshot { .. })));
    director.task(id).await.unwrap().state
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_is_refused_with_all_its_faults() {
    let rig = Rig::new().await;
    let director = rig.director().await;
    let mut bad = spec("demo");
    bad.kubernetes_version = "1.30.1".into();
    bad.network.pod_cidr = "10.0.0.0/8".parse::<Ipv4Net>().unwrap();
    let pool = bad.pools.values().next().unwrap().clone();
    bad.pools.insert(PoolName::new("cp").unwrap(), pool);
    let error = director
        .create_cluster(bad.clone(), &ann())
        .await
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Operator);
    let ServiceError::Invalid { faults } = error else {
        panic!("{error}");
    };
    let keys: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(keys, ["network.podCidr", "pools", "kubernetesVersion"]);
    assert!(faults[2].allowed.contains(VERSION), "{}", faults[2]);
    assert!(
        director
            .plan_cluster(PlanRequest::Create(bad))
            .await
            .is_err()
    );
    let viewer = Caller {
        operator: "vic".into(),
        role: Role::Viewer,
        request: "r2".into(),
    };
    let error = director
        .create_cluster(spec("demo"), &viewer)
        .await
        .unwrap_err();
    assert!(matches!(error, ServiceError::Forbidden { .. }), "{error}");
    let nobody = ClusterName::new("nobody").unwrap();
    let error = director
        .delete_cluster(&nobody, None, &ann())
        .await
        .unwrap_err();
    assert!(matches!(error, ServiceError::NotFound { .. }), "{error}");
    assert!(director.tasks().await.unwrap().is_empty());
    director.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_of_different_clusters_do_not_wait_and_share_no_address() {
    let rig = Rig::new().await;
    let director = rig.director().await;
    let plan = director
        .plan_cluster(PlanRequest::Create(spec("one")))
        .await
        .unwrap();
    assert_eq!(plan.steps.len(), 21);
    let one = director.create_cluster(spec("one"), &ann()).await.unwrap();
    made(&director, &one.id).await;
    // The first waits for agents that never come; the second is made nevertheless.
    let two = director.create_cluster(spec("two"), &ann()).await.unwrap();
    made(&director, &two.id).await;
    let again = director.create_cluster(spec("one"), &ann()).await.unwrap();
    assert_eq!(again.id, one.id);
    let mut other = spec("one");
    other.control_plane.count = 3;
    let error = director.create_cluster(other, &ann()).await.unwrap_err();
    assert!(matches!(error, ServiceError::Conflict { .. }), "{error}");
    let machines = director.machines(&MachineFilter::default()).await.unwrap();
    let mut addresses: Vec<_> = machines.iter().map(|m| m.machine.address).collect();
    addresses.extend(
        director
            .clusters()
            .await
            .unwrap()
            .iter()
            .map(|c| c.endpoint.address),
    );
    addresses.sort();
    addresses.dedup();
    assert_eq!((machines.len(), addresses.len()), (6, 8));
    let actions: Vec<_> = director.audit(10, &AuditFilter::default()).await.unwrap();
    let actions: Vec<_> = actions.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["cluster.create", "cluster.create"]);
    director.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clusters_never_share_a_machine_name() {
    let rig = Rig::new().await;
    let director = rig.director().await;
    let named = |cluster: &str, pool: &str| {
        let mut spec = spec(cluster);
        let workers = spec.pools.values().next().unwrap().clone();
        spec.pools = BTreeMap::from([(PoolName::new(pool).unwrap(), workers)]);
        spec
    };
    let first = named("a", "b-c");
    director.create_cluster(first, &ann()).await.unwrap();
    let error = director
        .create_cluster(named("a-b", "c"), &ann())
        .await
        .unwrap_err();
    let ServiceError::Invalid { faults } = error else {
        panic!("{error}");
    };
    assert_eq!(faults.len(), 2, "both workers: {faults:?}");
    assert!(faults[0].allowed.contains("a-b-c-0 belongs to cluster a"));
    assert_eq!(director.clusters().await.unwrap().len(), 1);
    director.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_create_gives_everything_back() {
    let rig = Rig::new().await;
    let director = rig.director().await;
    let first = director.create_cluster(spec("demo"), &ann()).await.unwrap();
    made(&director, &first.id).await;
    let state = director.cancel_task(&first.id, &ann()).await.unwrap().state;
    assert!(
        matches!(state, TaskState::Cancelling | TaskState::Cancelled),
        "{state}"
    );
    assert_eq!(over(&director, &first.id).await, TaskState::Cancelled);
    assert!(director.clusters().await.unwrap().is_empty());
    assert!(rig.sim.state.lock().unwrap().machines.is_empty());
    let error = director.cancel_task(&first.id, &ann()).await.unwrap_err();
    assert!(matches!(error, ServiceError::Conflict { .. }), "{error}");
    let again = director.create_cluster(spec("demo"), &ann()).await.unwrap();
    made(&director, &again.id).await;
    // A delete stops the create that runs, and removes what it had made.
    let name = ClusterName::new("demo").unwrap();
    let delete = director.delete_cluster(&name, None, &ann()).await.unwrap();
    assert_eq!(over(&director, &delete.id).await, TaskState::Succeeded);
    assert_eq!(
        director.task(&again.id).await.unwrap().state,
        TaskState::Cancelled
    );
    let state = rig.sim.state.lock().unwrap();
    assert!(state.machines.is_empty() && state.disks.is_empty() && state.endpoints.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_in_a_higher_epoch() {
    let rig = Rig::new().await;
    let director = rig.director().await;
    let task = director.create_cluster(spec("demo"), &ann()).await.unwrap();
    made(&director, &task.id).await;
    let before = director.status().await.unwrap();
    director.shutdown().await;
    drop(director);
    let director = rig.director().await;
    made(&director, &task.id).await;
    let after = director.status().await.unwrap();
    assert_eq!(after.epoch.0, before.epoch.0 + 1);
    assert_eq!((after.id, after.tasks_unfinished), (before.id, 1));
    assert!(
        rig.sim
            .state
            .lock()
            .unwrap()
            .births
            .values()
            .all(|births| *births == 1)
    );
    director.cancel_task(&task.id, &ann()).await.unwrap();
    assert_eq!(over(&director, &task.id).await, TaskState::Cancelled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_token_counts_for_the_first_key_alone_when_two_race() {
    let rig = Rig::new().await;
    let director = rig.director().await;
    let task = director.create_cluster(spec("demo"), &ann()).await.unwrap();
    made(&director, &task.id).await;
    let claim = MachineIdentity {
        director: director.id().clone(),
        cluster: ClusterName::new("demo").unwrap(),
        machine: MachineName::new("demo-w-0").unwrap(),
        incarnation: Incarnation::FIRST,
    };
    let records = director.inner.records.clone();
    let tokens = Arc::new(Tokens::load(records.clone()).await.unwrap());
    let now = jiff::Timestamp::now();
    for round in 0..8 {
        let hash = Digest::of(format!("token {round}").as_bytes());
        let token = Token {
            cluster: claim.cluster.clone(),
            machine: claim.machine.clone(),
            incarnation: claim.incarnation,
            expires_at: Timestamp::from_unix_ms(Timestamp::now().unix_ms() + 60_000),
            public_key: None,
            spent: false,
        };
        let mut commit = Commit::default();
        commit.value(Kind::Token, &hash.to_string(), Expect::Absent, &token);
        records.commit(commit).await.unwrap();
        let mut racing = tokio::task::JoinSet::new();
        for key in 0..8u8 {
            let (tokens, claim) = (tokens.clone(), claim.clone());
            racing.spawn_blocking(move || (key, tokens.redeem(hash, &claim, &[4, key], now)));
        }
        let results = racing.join_all().await;
        let winners: Vec<_> = results
            .iter()
            .filter(|(_, result)| result.is_ok())
            .collect();
        assert_eq!(winners.len(), 1);
        let refused = |r: &Result<(), RedeemError>| matches!(r, Err(RedeemError::OtherKey));
        assert_eq!(
            results.iter().filter(|(_, result)| refused(result)).count(),
            7
        );
        let winners_claim = claim.clone();
        let (winner, tokens, claim) = (winners[0].0, tokens.clone(), claim.clone());
        // Not after `now`, which may be long ago on a busy host.
        let later = jiff::Timestamp::now() + jiff::Span::new().seconds(61);
        let after = tokio::task::spawn_blocking(move || {
            let mut stranger = claim.clone();
            stranger.machine = MachineName::new("demo-w-1").unwrap();
            (
                tokens.redeem(hash, &claim, &[4, winner], now),
                tokens.redeem(hash, &stranger, &[4, winner], now),
                tokens.redeem(hash, &claim, &[4, winner], later),
                tokens.redeem(Digest::of(b"unknown"), &claim, &[4, winner], now),
            )
        });
        let (same, stranger, late, unknown) = after.await.unwrap();
        assert!(same.is_ok(), "the same key may ask again: {same:?}");
        assert!(
            matches!(stranger, Err(RedeemError::OtherMachine(_))),
            "{stranger:?}"
        );
        assert!(matches!(late, Err(RedeemError::Expired(_))), "{late:?}");
        assert!(matches!(unknown, Err(RedeemError::Unknown)), "{unknown:?}");
        let (winner, claim) = (winners[0].0, winners_claim.clone());
        let reborn = Arc::new(Tokens::load(records.clone()).await.unwrap());
        assert!(reborn.is_bound(&claim), "a restart forgets no bound token");
        let spent = tokio::task::spawn_blocking(move || {
            reborn.spend(&claim).unwrap();
            assert!(!reborn.is_bound(&claim));
            reborn.redeem(hash, &claim, &[4, winner], now)
        });
        let spent = spent.await.unwrap();
        assert!(matches!(spent, Err(RedeemError::Spent)), "{spent:?}");
    }
    director.shutdown().await;
}

/// Whether a file of this directory, or of one in it, has these words.
fn written(dir: &Path, words: &str) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return written(&path, words);
        }
        // A socket cannot be read.
        let bytes = std::fs::read(&path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).contains(words)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_fresh_token_is_for_a_machine_that_is_there_and_away() {
    let rig = Rig::new().await;
    let director = rig.director().await;
    let task = director.create_cluster(spec("demo"), &ann()).await.unwrap();
    made(&director, &task.id).await;
    let name = MachineName::new("demo-w-0").unwrap();
    let claim = MachineIdentity {
        director: director.id().clone(),
        cluster: ClusterName::new("demo").unwrap(),
        machine: name.clone(),
        incarnation: Incarnation::FIRST,
    };
    let in_the_machine = || {
        rig.sim.state.lock().unwrap().machines[&name]
            .settings
            .clone()
    };
    let born_with = in_the_machine().token;

    let placed = director.enroll_node(&name, true, &ann()).await.unwrap();
    assert!(placed.placed && placed.settings.is_none(), "{placed:?}");
    let second = in_the_machine().token;
    let told = director.enroll_node(&name, false, &ann()).await.unwrap();
    assert_eq!((told.placed, told.incarnation), (false, Incarnation::FIRST));
    let told = told.settings.unwrap();
    let third: Settings = serde_json::from_str(told.expose()).unwrap();
    assert_eq!(
        (&third.machine, third.incarnation),
        (&name, Incarnation::FIRST)
    );
    assert_eq!(third.ca_digest, in_the_machine().ca_digest);

    // The director's directory has a digest for each, and none of the tokens.
    let newest = EnrollmentToken::hash_of(&third.token);
    assert!(written(rig.dir.path(), &newest.hex()));
    for token in [&born_with, &second, &third.token] {
        assert!(
            !written(rig.dir.path(), token.expose()),
            "a token is written down"
        );
    }

    // One counts at a time: the newest.
    let tokens = Tokens::load(director.inner.records.clone()).await.unwrap();
    let shown = tokio::task::spawn_blocking(move || {
        [born_with, second, third.token].map(|token| {
            let hash = EnrollmentToken::hash_of(&token);
            tokens.redeem(hash, &claim, &[4, 1], jiff::Timestamp::now())
        })
    });
    let [first, second, third] = shown.await.unwrap();
    assert!(matches!(first, Err(RedeemError::Unknown)), "{first:?}");
    assert!(matches!(second, Err(RedeemError::Unknown)), "{second:?}");
    third.unwrap();

    let filter = AuditFilter {
        subject: Some(format!("machine/{name}")),
        ..AuditFilter::default()
    };
    let log = director.audit(10, &filter).await.unwrap();
    let enrolled = log.iter().filter(|entry| entry.action == "node.enroll");
    assert_eq!(enrolled.count(), 2, "{log:#?}");
    assert!(!format!("{log:?}").contains(told.expose()));

    let viewer = Caller {
        role: Role::Viewer,
        ..ann()
    };
    let refused = director.enroll_node(&name, false, &viewer).await;
    assert!(matches!(refused, Err(ServiceError::Forbidden { .. })));
    let nobody = MachineName::new("nobody").unwrap();
    let refused = director.enroll_node(&nobody, false, &ann()).await;
    assert!(matches!(refused, Err(ServiceError::NotFound { .. })));
    director.inner.world.registry.expel(&name);
    let refused = director.enroll_node(&name, false, &ann()).await;
    assert!(
        matches!(refused, Err(ServiceError::Conflict { .. })),
        "a machine that is shut out gets no token"
    );
    director.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_etcd_is_not_backed_up_and_no_backup_is_invented() {
    let rig = Rig::new().await;
    let director = rig.director().await;
    director.create_cluster(spec("demo"), &ann()).await.unwrap();
    let demo = ClusterName::new("demo").unwrap();
    let error = director.order_backup(&demo, &ann()).await.unwrap_err();
    assert!(error.to_string().contains("is Creating"), "{error}");
    let backups = director.backups(&demo).await.unwrap();
    assert_eq!((backups.state, backups.items.len()), (None, 0));
    assert_eq!(backups.policy, Some(Default::default()));
    let nobody = ClusterName::new("nobody").unwrap();
    let name: BackupName = "20300131-120000-00000001".parse().unwrap();
    for error in [
        director.backups(&nobody).await.unwrap_err(),
        director.order_backup(&nobody, &ann()).await.unwrap_err(),
        director.backup(&demo, &name).await.unwrap_err(),
        director
            .delete_backup(&demo, &name, &ann())
            .await
            .unwrap_err(),
    ] {
        assert!(matches!(error, ServiceError::NotFound { .. }), "{error}");
    }
    let operator = Caller {
        role: Role::Operator,
        ..ann()
    };
    for error in [
        director
            .delete_backup(&demo, &name, &operator)
            .await
            .map(drop),
        director
            .backup_archive(&demo, &name, &operator)
            .await
            .map(drop),
    ] {
        let error = error.unwrap_err();
        assert!(matches!(error, ServiceError::Forbidden { .. }), "{error}");
    }
}
