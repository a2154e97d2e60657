//! Many clusters under one director: real store, orders, rollouts and campaigns; provider, agents and the clusters'
//! APIs are simulated.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use windlass_common::cluster::Amount;

use super::campaigns::{CampaignOrder, ClusterChoice};
use super::tests::ann;
use super::*;
use crate::config::{Config, DataDir, Identity};
use crate::drain::{Hazard, HazardKind};
use crate::model::{
    AuditFilter, CampaignId, CampaignState, CampaignView, ClusterOverview, ClusterPhase,
    MemberState, Operator, TaskState, WayBack,
};
use crate::resurrector::Mode;
use crate::rollout::tests::sim::{Life, Sim};
use crate::store::DirectoryLock;

const OLDER: &str = "1.36.3";
const NEWER: &str = "1.37.2";
/// A hundred clusters are made in a third of it on a busy host.
const LIMIT: Duration = Duration::from_secs(240);

struct Fleet {
    dir: tempfile::TempDir,
    sim: Arc<Sim>,
    lock: DirectoryLock,
}

fn data(dir: &Path) -> DataDir {
    DataDir::new(dir).unwrap()
}

fn named(name: &str) -> ClusterName {
    ClusterName::new(name).unwrap()
}

/// One control-plane machine and one worker of the older version.
fn spec(name: &str, stage: &str) -> ClusterSpec {
    let size = json!({"cpuMillis": 1000, "memoryMib": 1024, "diskMib": 64});
    serde_json::from_value(json!({
        "name": name,
        "kubernetesVersion": OLDER,
        "controlPlane": {"count": 1, "size": size},
        "pools": {"w": {"count": 1, "size": size}},
        "network": {"podCidr": "10.244.0.0/16", "serviceCidr": "10.96.0.0/16"},
        "labels": {"stage": stage},
    }))
    .unwrap()
}

impl Fleet {
    async fn new() -> Fleet {
        let dir = tempfile::tempdir().unwrap();
        let stemcells = dir.path().join("stemcells");
        for version in [OLDER, NEWER] {
            crate::stemcell::tests::install(&stemcells, version);
        }
        Identity::create(&data(dir.path()), jiff::Timestamp::now())
            .await
            .unwrap();
        let lock = DirectoryLock::acquire(dir.path()).unwrap();
        let sim: Arc<Sim> = Arc::default();
        sim.state.lock().unwrap().stored_elsewhere = true;
        Fleet { dir, sim, lock }
    }

    async fn director(&self) -> Director {
        let data = data(self.dir.path());
        let mut config = Config::parse("", &data).unwrap();
        config.gateway.listen = "127.0.0.1:0".parse().unwrap();
        // Nobody is connected to the gateway: there would be nothing but dead machines.
        config.resurrector.mode = Mode::Off;
        let identity = Identity::load(&data, jiff::Timestamp::now()).await.unwrap();
        let life = Life::new(self.sim.clone(), usize::MAX);
        let doors = |_: &Gateway| start::Doors {
            agents: life.clone(),
            kubernetes: life.clone(),
            witnesses: None,
        };
        let _held = &self.lock;
        let started = start::start_through(&data, &config, identity, life.clone(), doors).await;
        let director = started.unwrap();
        let records = &director.inner.records;
        if records.get::<Operator>("ann").await.unwrap().is_none() {
            let mut commit = Commit::default();
            let ann = Operator::new("ann", Role::Admin, "director");
            commit.put(&ann).unwrap();
            records.commit(commit).await.unwrap();
        }
        director
    }

    /// Has the drains of a cluster's nodes not end, or end.
    fn stick(&self, cluster: &str, stuck: bool) {
        let stuck_ones = &mut self.sim.state.lock().unwrap().stuck;
        let begins = format!("{cluster}-");
        if stuck {
            stuck_ones.insert(begins);
        } else {
            stuck_ones.remove(&begins);
        }
    }
}

/// Makes these clusters, all at once.
async fn make(director: &Director, names: &[(&str, &str)]) {
    for (name, stage) in names {
        director
            .create_cluster(spec(name, stage), &ann())
            .await
            .unwrap();
    }
    until(director, |all| {
        all.iter().all(|one| one.phase == ClusterPhase::Ready)
    })
    .await;
}

/// Waits until all clusters are as they should be for the caller.
async fn until(
    director: &Director,
    enough: impl Fn(&[ClusterOverview]) -> bool,
) -> Vec<ClusterOverview> {
    let found = async {
        loop {
            let all = director.overview().await.unwrap();
            if enough(&all) {
                return all;
            }
            let faults: Vec<_> = all.iter().filter_map(|one| one.fault.clone()).collect();
            let failed = all.iter().any(|one| one.phase == ClusterPhase::Failed);
            assert!(!failed, "{faults:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, found).await.expect("in time")
}

/// Waits until a campaign is so.
async fn campaign(
    director: &Director,
    id: &CampaignId,
    enough: impl Fn(&CampaignView) -> bool,
) -> CampaignView {
    let found = async {
        loop {
            let view = director.campaign(id).await.unwrap();
            if enough(&view) {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, found).await.expect("in time")
}

fn order(waves: &[&str]) -> CampaignOrder {
    CampaignOrder {
        kubernetes_version: Some(NEWER.into()),
        waves: waves
            .iter()
            .map(|text| text.parse::<Amount>().unwrap())
            .collect(),
        accept_downtime: true,
        ..CampaignOrder::default()
    }
}

fn in_state(view: &CampaignView, state: MemberState) -> Vec<&str> {
    let members = view.members.iter().filter(|member| member.state == state);
    members.map(|member| member.cluster.as_str()).collect()
}

fn upgraded(one: &ClusterOverview) -> bool {
    one.task.is_none() && one.versions.keys().eq([NEWER]) && one.to_change == 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_campaign_goes_wave_by_wave_through_the_death_of_its_director() {
    let fleet = Fleet::new().await;
    let director = fleet.director().await;
    make(
        &director,
        &[("a", "canary"), ("b", "prod"), ("c", "prod"), ("d", "prod")],
    )
    .await;
    fleet.stick("a", true);
    let made = director
        .create_campaign(&order(&["1"]), &ann())
        .await
        .unwrap();
    let id = made.campaign.id.clone();
    let sizes: Vec<_> = made.campaign.waves.iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 3]);
    // A cluster is in one campaign at a time.
    let again = director
        .create_campaign(&order(&[]), &ann())
        .await
        .unwrap_err();
    assert!(again.to_string().contains(id.as_str()), "{again}");
    campaign(&director, &id, |view| {
        in_state(view, MemberState::Running) == ["a"]
    })
    .await;
    director.shutdown().await;
    drop(director);
    let director = fleet.director().await;
    // It pauses with its task, and goes on with it.
    let paused = director
        .steer_campaign(&id, Steer::Pause, &ann())
        .await
        .unwrap();
    assert_eq!(paused.campaign.state, CampaignState::Paused);
    let task = paused.members[0].task.clone().unwrap();
    for state in [TaskState::Pausing, TaskState::Paused] {
        let reached = async {
            while director.task(&task).await.unwrap().state != state {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LIMIT, reached).await.expect("in time");
        // What it has begun with is finished.
        fleet.stick("a", false);
    }
    director
        .steer_campaign(&id, Steer::Resume, &ann())
        .await
        .unwrap();
    let over = campaign(&director, &id, |view| view.campaign.state.is_over()).await;
    assert_eq!(over.campaign.state, CampaignState::Succeeded, "{over:?}");
    let first = over.members[0].ended_at.unwrap();
    for member in &over.members[1..] {
        let task = director.task(member.task.as_ref().unwrap()).await.unwrap();
        assert!(task.created_at >= first, "{member:?} was begun too early");
        assert_eq!(task.campaign.as_ref(), Some(&id));
        assert_eq!(task.operator, "ann");
    }
    until(&director, |all| all.iter().all(upgraded)).await;
    let log = director.audit(100, &AuditFilter::default()).await.unwrap();
    let of_campaign: Vec<_> = log
        .iter()
        .filter(|entry| entry.subject == format!("campaign/{id}"))
        .map(|entry| entry.action.as_str())
        .collect();
    let want = [
        "campaign.end",
        "campaign.resume",
        "campaign.pause",
        "campaign.create",
    ];
    assert_eq!(of_campaign, want);
    director.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_campaign_stops_at_a_refusal_and_goes_on_when_it_is_retried() {
    let fleet = Fleet::new().await;
    let director = fleet.director().await;
    make(&director, &[("a", "canary"), ("b", "prod")]).await;
    let mut careless = order(&["1"]);
    careless.accept_downtime = false;
    careless.choice = ClusterChoice::Labelled([("stage".to_owned(), "canary".to_owned())].into());
    let made = director.create_campaign(&careless, &ann()).await.unwrap();
    let id = made.campaign.id;
    let over = campaign(&director, &id, |view| view.campaign.state.is_over()).await;
    assert_eq!(over.campaign.state, CampaignState::Failed);
    let why = over.campaign.error.unwrap();
    assert!(
        why.contains("cluster a") && why.contains("--accept-downtime"),
        "{why}"
    );
    assert!(
        director
            .tasks()
            .await
            .unwrap()
            .iter()
            .all(|task| task.campaign.is_none())
    );
    // A window that is closed is waited for before a task is made, and an operator may go on without.
    let mut frozen = director.cluster(&named("b")).await.unwrap().spec;
    frozen.maintenance = serde_json::from_value(json!({"freezes": [
        {"from": "2020-01-01T00:00:00Z", "to": "2999-01-01T00:00:00Z", "reason": "for ever"}]}))
    .unwrap();
    let task = director
        .apply_cluster(frozen.clone(), &ChangeOrder::default(), &ann())
        .await
        .unwrap();
    assert!(
        task.plan.steps.is_empty(),
        "windows change no machine: {:?}",
        task.plan.steps
    );
    until(&director, |all| all.iter().all(|one| one.task.is_none())).await;
    let mut chosen = order(&[]);
    chosen.choice = ClusterChoice::Named(vec![named("a"), named("b")]);
    let made = director.create_campaign(&chosen, &ann()).await.unwrap();
    let id = made.campaign.id;
    let waits = campaign(&director, &id, |view| {
        in_state(view, MemberState::Succeeded) == ["a"]
    });
    let waits = waits.await;
    assert_eq!(in_state(&waits, MemberState::Waiting), ["b"]);
    director
        .steer_campaign(&id, Steer::Cancel, &ann())
        .await
        .unwrap();
    let over = campaign(&director, &id, |view| view.campaign.state.is_over()).await;
    assert_eq!(over.campaign.state, CampaignState::Cancelled);
    // What is ordered in a freeze waits, and says until when.
    frozen.kubernetes_version = NEWER.into();
    let consent = ChangeOrder {
        accept_downtime: true,
        ..ChangeOrder::default()
    };
    let plan = director
        .plan_cluster(PlanRequest::Apply(frozen.clone(), StemcellChoice::Keep))
        .await
        .unwrap();
    assert!(!plan.window.unwrap().open);
    let task = director
        .apply_cluster(frozen, &consent, &ann())
        .await
        .unwrap();
    let held = until(&director, |all| {
        all[1]
            .task
            .as_ref()
            .is_some_and(|task| task.state == TaskState::Waiting)
    })
    .await;
    let next = held[1].next.as_deref().unwrap();
    assert!(
        next.contains("2999-01-01") && next.contains("for ever"),
        "{next}"
    );
    let nothing = director.ignore_window(&task.id, " ".into(), &ann()).await;
    assert!(matches!(nothing, Err(ServiceError::Invalid { .. })));
    let reason = "incident 7".to_owned();
    director
        .ignore_window(&task.id, reason, &ann())
        .await
        .unwrap();
    until(&director, |all| all.iter().all(upgraded)).await;
    let log = director.audit(10, &AuditFilter::default()).await.unwrap();
    let ignored = log
        .iter()
        .find(|entry| entry.action == "task.ignore-window");
    assert!(ignored.unwrap().detail.contains("incident 7"));
    director.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_over_two_minors_goes_leg_by_leg_through_the_death_of_its_director() {
    const TARGET: &str = "1.38.1";
    let fleet = Fleet::new().await;
    let stemcells = fleet.dir.path().join("stemcells");
    let director = fleet.director().await;
    make(&director, &[("a", "prod")]).await;
    let mut wanted = director.cluster(&named("a")).await.unwrap().spec;
    let plan = async |director: &Director, spec: &ClusterSpec| {
        let request = PlanRequest::Apply(spec.clone(), StemcellChoice::Keep);
        director.plan_cluster(request).await
    };
    // A minor that no stemcell is known of is named.
    crate::stemcell::tests::install(&stemcells, "1.39.0");
    wanted.kubernetes_version = "1.39.0".into();
    let refused = plan(&director, &wanted).await.unwrap_err().to_string();
    for part in ["1.38.x", "windlass stemcell build --kubernetes 1.38.N"] {
        assert!(refused.contains(part), "{refused}");
    }
    crate::stemcell::tests::install(&stemcells, TARGET);
    wanted.kubernetes_version = TARGET.into();
    let shown = plan(&director, &wanted).await.unwrap();
    let legs = &shown.upgrade.as_ref().unwrap().legs;
    let told: Vec<_> = legs
        .iter()
        .map(|leg| {
            let machines: Vec<_> = leg.machines.iter().map(ToString::to_string).collect();
            let version = leg.kubernetes_version.as_str();
            (version, machines.len(), leg.api_servers, leg.kubelets)
        })
        .collect();
    let want = [
        (NEWER, 1, (36, 36), (36, 37)),
        (TARGET, 1, (36, 37), (36, 38)),
        (TARGET, 1, (37, 38), (36, 38)),
    ];
    assert_eq!(told, want, "the worker is made anew in the last leg alone");
    let emulated: Vec<_> = legs.iter().map(|leg| leg.emulates).collect();
    assert_eq!(emulated, [Some(36), Some(37), None]);
    let restarted: Vec<_> = legs.iter().map(|leg| leg.restarted.len()).collect();
    assert_eq!(restarted, [0, 0, 1], "API servers are raised in place");
    let back: Vec<_> = legs
        .iter()
        .map(|leg| match &leg.way_back {
            Some(WayBack::Open { kubernetes_version }) => Some(kubernetes_version.as_str()),
            Some(WayBack::Closed { why }) => panic!("{why}"),
            None => None,
        })
        .collect();
    assert_eq!(back, [Some(OLDER), Some(NEWER), None]);
    assert!(legs.iter().all(|leg| leg.seconds.is_some()), "{legs:?}");
    // The hash covers the later legs: another stemcell on the way is another plan.
    let other = {
        let mut other = legs.clone();
        other[1].stemcell.push('x');
        crate::planner::legs::hash(&other)
    };
    assert_eq!(crate::planner::legs::hash(legs), shown.hash);
    assert_ne!(other, shown.hash);
    fleet.stick("a", true);
    let consent = ChangeOrder {
        plan: Some(shown.hash),
        accept_downtime: true,
        accept_blocked: true,
        ..ChangeOrder::default()
    };
    let task = director
        .apply_cluster(wanted.clone(), &consent, &ann())
        .await
        .unwrap();
    let cluster = director.cluster(&named("a")).await.unwrap();
    assert_eq!(cluster.spec.kubernetes_version, NEWER);
    let way = cluster.upgrade.as_ref().unwrap().to_string();
    assert_eq!(
        way,
        format!(
            "leg 1 of 3, Kubernetes {OLDER} to {NEWER}, emulating 1.36, on the way to {TARGET}"
        )
    );
    // Ordered again, it is the task that leads there.
    let again = ChangeOrder::default();
    let same = director.apply_cluster(wanted, &again, &ann()).await;
    assert_eq!(same.unwrap().id, task.id);
    director.shutdown().await;
    drop(director);
    fleet.stick("a", false);
    let director = fleet.director().await;
    until(&director, |all| {
        let there = |one: &ClusterOverview| one.task.is_none() && one.versions.keys().eq([TARGET]);
        all.iter().all(there)
    })
    .await;
    let over = director.task(&task.id).await.unwrap();
    assert_eq!(over.state, TaskState::Succeeded, "{:?}", over.error);
    assert_eq!(over.plan.hash, shown.hash, "what was approved");
    let cluster = director.cluster(&named("a")).await.unwrap();
    assert_eq!(
        (
            cluster.upgrade,
            cluster.message,
            cluster.spec.kubernetes_version
        ),
        (None, None, TARGET.to_owned())
    );
    let log = director.audit(50, &AuditFilter::default()).await.unwrap();
    let legs = log.iter().filter(|entry| entry.action == "task.leg");
    let legs: Vec<_> = legs.map(|entry| entry.detail.as_str()).collect();
    assert_eq!(legs.len(), 2, "{legs:?}");
    assert!(
        legs.iter().any(|said| said.contains("leg 2 of 3")),
        "{legs:?}"
    );
    director.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_that_failed_in_a_later_leg_is_retried_to_where_it_was_to_lead() {
    const TARGET: &str = "1.38.1";
    let fleet = Fleet::new().await;
    let stemcells = fleet.dir.path().join("stemcells");
    crate::stemcell::tests::install(&stemcells, TARGET);
    let director = fleet.director().await;
    make(&director, &[("a", "prod")]).await;
    let mut wanted = director.cluster(&named("a")).await.unwrap().spec;
    wanted.kubernetes_version = TARGET.into();
    let refused = &["leg-2/machine/a-cp-0/start"];
    fleet.sim.state.lock().unwrap().refuse_once.extend(refused);
    let consent = ChangeOrder {
        accept_downtime: true,
        accept_blocked: true,
        ..ChangeOrder::default()
    };
    let task = director
        .apply_cluster(wanted, &consent, &ann())
        .await
        .unwrap();
    let over = async {
        while !director.task(&task.id).await.unwrap().state.is_over() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, over).await.expect("in time");
    let failed = director.task(&task.id).await.unwrap();
    let why = failed.error.unwrap().message;
    assert!(why.contains("not in this way"), "{why}");
    let cluster = director.cluster(&named("a")).await.unwrap();
    let said = cluster.message.clone().unwrap();
    assert_eq!(cluster.phase, ClusterPhase::Degraded);
    assert!(said.contains("leg 2 of ") && said.contains(&why), "{said}");
    assert_eq!(cluster.ordered().kubernetes_version, TARGET);
    // Another stemcell of the version has come: what was ordered is what it goes on to.
    let ordered = cluster
        .upgrade
        .unwrap()
        .legs
        .last()
        .unwrap()
        .stemcell
        .clone();
    crate::stemcell::tests::install_build(&stemcells, TARGET, "9");
    let retried = director.retry_task(&task.id, &ann()).await.unwrap();
    until(&director, |all| {
        let there = |one: &ClusterOverview| one.task.is_none() && one.versions.keys().eq([TARGET]);
        all.iter().all(there)
    })
    .await;
    let over = director.task(&retried.id).await.unwrap();
    assert_eq!(over.state, TaskState::Succeeded, "{:?}", over.error);
    let cluster = director.cluster(&named("a")).await.unwrap();
    assert_eq!(
        (cluster.phase, cluster.upgrade, cluster.message),
        (ClusterPhase::Ready, None, None)
    );
    assert_eq!(
        (cluster.stemcell, cluster.spec.kubernetes_version),
        (ordered, TARGET.into())
    );
    director.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_clusters_one_that_is_stuck_delays_no_other() {
    let fleet = Fleet::new().await;
    let director = fleet.director().await;
    let names: Vec<String> = (0..100).map(|number| format!("f{number:02}")).collect();
    let made: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "prod")).collect();
    make(&director, &made).await;
    fleet.stick("f00", true);
    let mut all = order(&[]);
    all.max_in_flight = Some(100);
    let campaign_made = director.create_campaign(&all, &ann()).await.unwrap();
    let id = campaign_made.campaign.id;
    let seen = until(&director, |all| {
        all.iter().filter(|one| upgraded(one)).count() == 99
    })
    .await;
    let stuck = &seen[0];
    assert_eq!(
        (stuck.name.as_str(), stuck.phase),
        ("f00", ClusterPhase::Updating)
    );
    let task = stuck.task.as_ref().unwrap();
    assert!(
        task.running.iter().any(|key| key.0.ends_with("/drain")),
        "{task:?}"
    );
    // Nor does it delay the plan of another.
    let asked = Instant::now();
    let spec = director.cluster(&named("f99")).await.unwrap().spec;
    let request = PlanRequest::Apply(spec, StemcellChoice::Keep);
    assert!(
        director
            .plan_cluster(request)
            .await
            .unwrap()
            .steps
            .is_empty()
    );
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    let view = director
        .steer_campaign(&id, Steer::Cancel, &ann())
        .await
        .unwrap();
    assert_eq!(in_state(&view, MemberState::Succeeded).len(), 99);
    fleet.stick("f00", false);
    let over = campaign(&director, &id, |view| view.campaign.state.is_over()).await;
    assert_eq!(over.campaign.state, CampaignState::Cancelled);
    assert_eq!(in_state(&over, MemberState::Failed), ["f00"]);
    director.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stemcell_replacement_never_brings_a_later_minor_and_its_plan_says_what_becomes_of_machines()
 {
    let fleet = Fleet::new().await;
    let director = fleet.director().await;
    make(&director, &[("a", "dev")]).await;
    // Of the newer minor there is a stemcell all the time.
    let root = fleet.dir.path().join("stemcells");
    crate::stemcell::tests::install_build(&root, OLDER, "2");
    let wanted = spec("a", "dev");
    let newest = StemcellChoice::Newest;
    let request = PlanRequest::Apply(wanted.clone(), newest.clone());
    let shown = director.plan_cluster(request).await.unwrap();
    let changes = shown.changes.unwrap();
    let names = |machines: &[windlass_common::id::MachineName]| -> Vec<String> {
        machines.iter().map(ToString::to_string).collect()
    };
    let changed = [&changes.replaced[..], &changes.restarted].concat();
    assert!(
        names(&changed).contains(&"a-cp-0".to_owned()),
        "{changes:?}"
    );
    assert!(
        changes.seconds.is_some(),
        "a cluster was made here: {changes:?}"
    );
    for moment in &changes.moments {
        assert!(
            moment.kubelets.is_none_or(|of| of == (36, 36)),
            "{moment:?}"
        );
        assert!(
            moment.api_servers.is_none_or(|of| of == (36, 36)),
            "{moment:?}"
        );
    }
    let order = ChangeOrder {
        stemcell: newest,
        plan: Some(shown.hash),
        accept_downtime: true,
        ..ChangeOrder::default()
    };
    let task = director
        .apply_cluster(wanted, &order, &ann())
        .await
        .unwrap();
    // A forecast is of the plan that is shown, and not of the order.
    assert_eq!((task.plan.hash, task.plan.changes), (shown.hash, None));
    until(&director, |all| all.iter().all(|one| one.task.is_none())).await;
    let over = director.task(&task.id).await.unwrap();
    assert_eq!(over.state, TaskState::Succeeded, "{:?}", over.error);
    for machine in director.inner.records.machines_of("a").await.unwrap() {
        assert_eq!(machine.runs(), format!("test-{OLDER}-2"));
        assert_eq!(machine.kubernetes_version, OLDER, "{}", machine.name);
    }
    director.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_would_meet_something_is_refused_unless_somebody_sees_to_it() {
    let fleet = Fleet::new().await;
    let director = fleet.director().await;
    make(&director, &[("a", "dev")]).await;
    fleet.sim.state.lock().unwrap().hazards = vec![Hazard {
        kind: HazardKind::Webhook,
        at: "webhook guard".into(),
        why: "nobody answers for it".into(),
        remedy: "have it fail open".into(),
    }];
    let wanted = ClusterSpec {
        kubernetes_version: NEWER.into(),
        ..spec("a", "dev")
    };
    let request = PlanRequest::Apply(wanted.clone(), StemcellChoice::Keep);
    let shown = director.plan_cluster(request).await.unwrap();
    let drains = format!("{:?}", shown.drains);
    assert!(drains.contains("webhook guard"), "{drains}");
    let mut order = ChangeOrder {
        accept_downtime: true,
        ..ChangeOrder::default()
    };
    let apply =
        async |order: &ChangeOrder| director.apply_cluster(wanted.clone(), order, &ann()).await;
    let refused = apply(&order).await.unwrap_err().to_string();
    for said in [
        "webhook guard: nobody answers for it",
        "What to do: have it fail open",
        "--accept-blocked",
    ] {
        assert!(refused.contains(said), "{refused}");
    }
    order.accept_blocked = true;
    apply(&order).await.unwrap();
    until(&director, |all| all.iter().all(upgraded)).await;
    director.shutdown().await;
}
