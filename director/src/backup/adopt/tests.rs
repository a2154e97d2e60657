use std::net::Ipv4Addr;

use windlass_common::cluster::{
    ClusterNetwork, ClusterSpec, ControlPlaneSpec, MachineSize, PoolSpec,
};
use windlass_common::id::DirectorId;

use super::*;
use crate::model::{
    ClusterPhase, Endpoint, Goal, MachineDraft, MachineRole, Plan, Revision, TaskKind, TaskState,
    Wanted,
};
use crate::provider::Power;

const SIZE: MachineSize = MachineSize {
    cpu_millis: 1000,
    memory_mib: 1024,
    disk_mib: 64,
};

fn name(text: &str) -> MachineName {
    MachineName::new(text).unwrap()
}

fn cluster() -> Cluster {
    let pool = PoolSpec {
        count: 1,
        size: SIZE,
        labels: BTreeMap::new(),
        kubelet: BTreeMap::new(),
        update: Default::default(),
        self_fence: None,
    };
    Cluster {
        spec: ClusterSpec {
            name: ClusterName::new("demo").unwrap(),
            kubernetes_version: "1.36.3".into(),
            control_plane: ControlPlaneSpec {
                count: 1,
                size: SIZE,
                kubelet: BTreeMap::new(),
                update: Default::default(),
            },
            pools: BTreeMap::from([(PoolName::new("w").unwrap(), pool)]),
            network: ClusterNetwork {
                pod_cidr: "10.244.0.0/16".parse().unwrap(),
                service_cidr: "10.96.0.0/16".parse().unwrap(),
            },
            drain: Default::default(),
            gates: Vec::new(),
            maintenance: Default::default(),
            labels: BTreeMap::new(),
            backup: Default::default(),
        },
        endpoint: Endpoint {
            name: "demo.clusters.windlass.internal".into(),
            address: Ipv4Addr::new(10, 0, 0, 9),
            port: 6443,
        },
        stemcell: "old".into(),
        phase: ClusterPhase::Ready,
        message: None,
        task: None,
        addons: None,
        secrets: Default::default(),
        rotation: None,
        upgrade: None,
        authorities_expire_at: None,
        renewal_tried_at: None,
        made_from: None,
        emulates: None,
        revision: Revision(1),
        created_at: Timestamp::from_unix_ms(1),
    }
}

/// The `last`th machine of the network: `demo-cp-0` is the first, workers follow.
fn machine(text: &str, incarnation: u32, last: u8) -> Machine {
    let name = name(text);
    let role = match text.contains("-cp-") {
        true => MachineRole::ControlPlane,
        false => MachineRole::Worker {
            pool: PoolName::new("w").unwrap(),
        },
    };
    Machine {
        mounted: role.is_control_plane(),
        phase: MachinePhase::Ready,
        configured: Some(Digest::of(b"a")),
        started: Some(Digest::of(b"b")),
        labelled: Some(Digest::of(b"c")),
        revision: Revision(1),
        ..Machine::planned(
            MachineDraft {
                cluster: ClusterName::new("demo").unwrap(),
                incarnation: Incarnation(incarnation),
                node_name: name.node_name(Incarnation(incarnation)).unwrap(),
                address: Ipv4Addr::new(10, 0, 0, last),
                pod_cidr: format!("10.244.{last}.0/24").parse().unwrap(),
                stemcell: "old".into(),
                kubernetes_version: "1.36.3".into(),
                size: SIZE,
                data_disk: role
                    .is_control_plane()
                    .then(|| DiskName::new(format!("{text}-data")).unwrap()),
                name,
                role,
            },
            Timestamp::from_unix_ms(1),
        )
    }
}

fn view(of: &Machine) -> MachineView {
    MachineView {
        name: of.name.clone(),
        incarnation: of.incarnation,
        power: Power::Running,
        address: of.address,
        tags: tags(of),
        created_at: 0,
        boots: 1,
        complete: true,
    }
}

fn certificate(of: &Machine) -> MachineIdentity {
    MachineIdentity {
        director: DirectorId::new("d0").unwrap(),
        cluster: of.cluster.clone(),
        machine: of.name.clone(),
        incarnation: of.incarnation,
    }
}

/// What is seen; the tests change parts of it.
struct World {
    clusters: Vec<Cluster>,
    machines: Vec<Machine>,
    tasks: Vec<Task>,
    views: Vec<MachineView>,
    disks: Vec<DiskView>,
    strangers: BTreeSet<MachineIdentity>,
    connected: BTreeMap<MachineName, (Incarnation, Epoch)>,
}

impl World {
    /// A cluster of one and one that is as its records say.
    fn new() -> World {
        let machines = vec![machine("demo-cp-0", 1, 1), machine("demo-w-0", 1, 2)];
        let beat = |m: &Machine| (m.name.clone(), (m.incarnation, Epoch(5)));
        World {
            clusters: vec![cluster()],
            views: machines.iter().map(view).collect(),
            connected: machines.iter().map(beat).collect(),
            machines,
            tasks: Vec::new(),
            disks: vec![DiskView {
                name: DiskName::new("demo-cp-0-data").unwrap(),
                bytes: 1,
                attached_to: None,
            }],
            strangers: BTreeSet::new(),
        }
    }

    fn found(&self) -> Found<'_> {
        Found {
            clusters: &self.clusters,
            machines: &self.machines,
            tasks: &self.tasks,
            views: &self.views,
            disks: &self.disks,
            strangers: &self.strangers,
            connected: &self.connected,
            epoch: Epoch(5),
            now: Timestamp::from_unix_ms(1_800_000_000_000),
        }
    }

    fn changes(&self) -> Vec<(String, Change, bool)> {
        let all = compare(&self.found()).machines.into_iter();
        all.map(|d| (d.machine.to_string(), d.change, d.certificate))
            .collect()
    }

    fn approve(&self, forget: &[&str], accept: &[&str]) -> Result<Adoption, ApprovalError> {
        let set = |names: &[&str]| names.iter().map(|n| name(n)).collect();
        let approval = Approval {
            forget: set(forget),
            accept: set(accept),
        };
        approve(&self.found(), &compare(&self.found()), &approval)
    }

    /// The provider has another machine, or another incarnation of one.
    fn appears(&mut self, of: &Machine, shows: bool) {
        self.views.retain(|view| view.name != of.name);
        self.connected.remove(&of.name);
        self.views.push(view(of));
        if shows {
            self.strangers.insert(certificate(of));
        }
    }

    fn vanishes(&mut self, text: &str) {
        self.views.retain(|view| view.name.as_str() != text);
        self.connected.remove(&name(text));
    }
}

#[test]
fn each_change_is_told() {
    type Act = fn(&mut World);
    type Case = (&'static str, Act, &'static [(&'static str, Change, bool)]);
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases: &[Case] = &[
        ("as recorded",            |_| {},                                                   &[]),
        ("replaced, unseen",       |w| w.appears(&machine("demo-w-0", 2, 2), false),         &[("demo-w-0", Change::Replaced, false)]),
        ("replaced, shown",        |w| w.appears(&machine("demo-w-0", 2, 2), true),          &[("demo-w-0", Change::Replaced, true)]),
        ("replaced twice, old shown", |w| { w.appears(&machine("demo-w-0", 2, 2), true); w.appears(&machine("demo-w-0", 3, 2), false) }, &[("demo-w-0", Change::Replaced, false)]),
        ("added",                  |w| w.appears(&machine("demo-w-1", 1, 3), true),          &[("demo-w-1", Change::Added, true)]),
        ("added, not described",   |w| { w.appears(&machine("demo-w-1", 1, 3), true); w.views[2].tags.remove("windlass.pod-cidr"); }, &[("demo-w-1", Change::Undescribed, true)]),
        ("added, no disk named",   |w| { w.appears(&machine("demo-cp-1", 1, 3), true); w.views[2].tags.remove("windlass.data-disk"); }, &[("demo-cp-1", Change::Undescribed, true)]),
        ("of another cluster",     |w| { w.appears(&machine("demo-w-1", 1, 3), false); w.views[2].tags.insert(CLUSTER_TAG.into(), "prod".into()); }, &[("demo-w-1", Change::Foreign, false)]),
        ("of no cluster",          |w| { w.appears(&machine("demo-w-1", 1, 3), false); w.views[2].tags.clear(); }, &[("demo-w-1", Change::Foreign, false)]),
        ("gone",                   |w| w.vanishes("demo-w-0"),                               &[("demo-w-0", Change::Gone, false)]),
        ("never made",             |w| { w.vanishes("demo-w-0"); w.machines[1].phase = MachinePhase::Planned; }, &[]),
        ("older",                  |w| { w.machines[1].incarnation = Incarnation(4); },      &[("demo-w-0", Change::Older, false)]),
        ("a claim alone",          |w| { w.strangers.insert(certificate(&machine("demo-w-0", 7, 2))); }, &[("demo-w-0", Change::Claimed, true)]),
        ("a zombie's certificate", |w| { w.machines[1].incarnation = Incarnation(2); w.views[1].incarnation = Incarnation(2); w.strangers.insert(certificate(&machine("demo-w-0", 1, 2))); }, &[]),
    ];
    for (case, act, want) in cases {
        let mut world = World::new();
        act(&mut world);
        let want: Vec<_> = want
            .iter()
            .map(|(n, c, p)| ((*n).to_owned(), *c, *p))
            .collect();
        assert_eq!(world.changes(), want, "{case}");
    }
}

#[test]
fn a_world_as_recorded_changes_nothing() {
    let world = World::new();
    assert_eq!(compare(&world.found()), Differences::default());
    let adoption = world.approve(&[], &[]).unwrap();
    let nothing = Adoption {
        epoch: Epoch(5),
        ..Adoption::default()
    };
    assert_eq!(adoption, nothing);
}

#[test]
fn api_servers_that_may_have_been_raised_since_do_not_emulate_again() {
    let mut world = World::new();
    world.clusters[0].emulates = Some(36);
    let adoption = world.approve(&[], &[]).unwrap();
    let emulates: Vec<_> = adoption.clusters.iter().map(|c| c.emulates).collect();
    assert_eq!(emulates, [None]);
}

#[test]
fn a_replaced_machine_is_taken_over_and_its_record_goes_on() {
    let mut world = World::new();
    let mut new = machine("demo-w-0", 3, 2);
    (new.stemcell, new.kubernetes_version) = ("new".into(), "1.37.2".into());
    world.machines[1].wanted = Some(Wanted::Reborn {
        incarnation: Incarnation(2),
        stemcell: "mid".into(),
        kubernetes_version: "1.36.4".into(),
        size: SIZE,
        because: None,
    });
    world.appears(&new, false);
    let refused = world.approve(&[], &[]).unwrap_err();
    assert_eq!(refused, ApprovalError::Unproven(vec![name("demo-w-0")]));
    assert_eq!(world.approve(&[], &["demo-w-0"]).unwrap().machines.len(), 1);
    world.strangers.insert(certificate(&new));
    let adoption = world.approve(&[], &[]).unwrap();
    let [record] = &adoption.machines[..] else {
        panic!("{adoption:?}");
    };
    assert_eq!(record.incarnation, Incarnation(3));
    assert_eq!(record.node_name.as_str(), "demo-w-0-i3");
    assert_eq!(record.departed, [machine("demo-w-0", 1, 2).node_name]);
    assert_eq!((record.stemcell.as_str(), &record.wanted), ("new", &None));
    assert_eq!(record.revision, Revision(1), "written over what was read");
    assert_eq!(record.phase, MachinePhase::Ready);
    assert_ne!(record.configured, world.machines[1].configured);
    // Its cluster is not to be taken back to what it was.
    let spec = &adoption.clusters[0].spec;
    assert_eq!(spec.kubernetes_version, "1.37.2");
    assert_eq!(adoption.clusters[0].stemcell, "new");
    assert_eq!(spec.pools.values().next().unwrap().count, 1);
}

#[test]
fn an_added_machine_has_a_record_again_and_its_pool_a_place() {
    let mut world = World::new();
    let new = machine("demo-w-1", 1, 3);
    world.appears(&new, true);
    let differences = compare(&world.found());
    let [count] = &differences.counts[..] else {
        panic!("{differences:?}");
    };
    assert_eq!((count.recorded, count.found), (1, 2));
    let adoption = world.approve(&[], &[]).unwrap();
    let record = &adoption.machines[0];
    assert_eq!(record.revision, Revision(0), "it is new");
    let told = (&record.role, record.pod_cidr, record.address, record.size);
    assert_eq!(told, (&new.role, new.pod_cidr, new.address, new.size));
    let pools = &adoption.clusters[0].spec.pools;
    assert_eq!(pools.values().next().unwrap().count, 2);
    assert!(adoption.reserved.is_empty());
}

#[test]
fn a_pool_that_was_added_is_as_its_machines_are() {
    let mut world = World::new();
    let mut new = machine("demo-gpu-0", 1, 3);
    new.role = MachineRole::Worker {
        pool: PoolName::new("gpu").unwrap(),
    };
    world.appears(&new, true);
    let adoption = world.approve(&[], &[]).unwrap();
    let pool = &adoption.clusters[0].spec.pools[&PoolName::new("gpu").unwrap()];
    assert_eq!((pool.count, pool.size), (1, SIZE));
}

#[test]
fn what_is_gone_is_kept_until_it_is_named() {
    let mut world = World::new();
    world.vanishes("demo-w-0");
    let adoption = world.approve(&[], &[]).unwrap();
    assert!(adoption.forgotten.is_empty() && adoption.clusters.is_empty());
    let adoption = world.approve(&["demo-w-0"], &[]).unwrap();
    assert_eq!(adoption.forgotten, [world.machines[1].clone()]);
    assert_eq!(
        adoption.clusters[0]
            .spec
            .pools
            .values()
            .next()
            .unwrap()
            .count,
        0
    );
    let stray = world.approve(&["demo-cp-0"], &[]).unwrap_err();
    assert_eq!(stray, ApprovalError::NotNamed(name("demo-cp-0")));
    let stray = world.approve(&[], &["demo-w-0"]).unwrap_err();
    assert_eq!(stray, ApprovalError::NotNamed(name("demo-w-0")));
    // The wrong provider has nothing at all.
    world.vanishes("demo-cp-0");
    let refused = world.approve(&["demo-w-0"], &[]).unwrap_err();
    assert_eq!(refused, ApprovalError::NothingFound(2));
    let adoption = world.approve(&["demo-w-0", "demo-cp-0"], &[]).unwrap();
    assert_eq!(adoption.forgotten.len(), 2);
}

#[test]
fn what_would_be_taken_away_has_to_be_named_and_strangers_keep_their_addresses() {
    let mut world = World::new();
    world.appears(&machine("demo-w-1", 1, 3), true);
    world.views[2].tags.remove("windlass.pod-cidr");
    world.appears(&machine("prod-w-0", 1, 4), false);
    world.views[3].tags.clear();
    let refused = world.approve(&[], &[]).unwrap_err();
    assert_eq!(refused, ApprovalError::Undescribed(vec![name("demo-w-1")]));
    let adoption = world.approve(&["demo-w-1"], &[]).unwrap();
    assert!(adoption.machines.is_empty() && adoption.clusters.is_empty());
    let reserved: Vec<_> = adoption
        .reserved
        .iter()
        .map(|(a, _)| a.octets()[3])
        .collect();
    assert_eq!(reserved, [3, 4]);
}

fn task() -> Task {
    let cluster = ClusterName::new("demo").unwrap();
    let plan = Plan::of(cluster, Goal::Present, Digest::of(b""), Vec::new());
    let (id, at) = (TaskId::new(3, [1, 2, 3]), Timestamp::from_unix_ms(1));
    Task {
        state: TaskState::Running,
        ..Task::ordered(id, TaskKind::UpdateCluster, plan, "ann".into(), at)
    }
}

#[test]
fn a_task_of_the_backup_ends_and_its_cluster_is_free() {
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        (ClusterPhase::Creating, ClusterPhase::Failed),
        (ClusterPhase::Deleting, ClusterPhase::Failed),
        (ClusterPhase::Updating, ClusterPhase::Degraded),
        (ClusterPhase::Degraded, ClusterPhase::Degraded),
        (ClusterPhase::Failed,   ClusterPhase::Failed),
        (ClusterPhase::Ready,    ClusterPhase::Ready),
    ];
    for (before, after) in cases {
        let mut world = World::new();
        world.tasks = vec![task()];
        world.clusters[0].phase = before;
        world.clusters[0].task = Some(world.tasks[0].id.clone());
        assert_eq!(compare(&world.found()).tasks.len(), 1);
        let adoption = world.approve(&[], &[]).unwrap();
        assert_eq!(adoption.tasks[0].state, TaskState::Failed);
        assert!(adoption.tasks[0].error.is_some() && adoption.tasks[0].ended_at.is_some());
        assert_eq!(adoption.clusters[0].phase, after, "{before}");
        assert_eq!(adoption.clusters[0].task, None);
    }
}

#[test]
fn a_higher_epoch_is_learned_and_an_impossible_one_is_not() {
    let now = 1_800_000_000_000;
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("lower",            3,              5,       0),
        ("the same",         5,              5,       0),
        ("higher",           9,              10,      0),
        ("of a wrong clock", now + 1,        now + 2, 0),
        ("impossible",       u64::MAX,       5,       1),
    ];
    for (case, seen, want, beyond) in cases {
        let mut world = World::new();
        world
            .connected
            .insert(name("demo-w-0"), (Incarnation(1), Epoch(seen)));
        assert_eq!(
            world.approve(&[], &[]).unwrap().epoch,
            Epoch(want),
            "{case}"
        );
        assert_eq!(compare(&world.found()).beyond.len(), beyond, "{case}");
    }
}

#[test]
fn an_approval_is_for_what_was_shown() {
    let mut world = World::new();
    let before = compare(&world.found()).digest();
    world.connected.clear();
    assert_eq!(compare(&world.found()).silent.len(), 2);
    assert_eq!(
        compare(&world.found()).digest(),
        before,
        "who is silent does not count"
    );
    world.appears(&machine("demo-w-1", 1, 3), false);
    let unproven = compare(&world.found()).digest();
    assert_ne!(unproven, before);
    world.appears(&machine("demo-w-1", 1, 3), true);
    assert_ne!(compare(&world.found()).digest(), unproven);
}

#[test]
fn disks_that_nobody_names_are_shown() {
    let mut world = World::new();
    let disk = |text: &str| DiskView {
        name: DiskName::new(text).unwrap(),
        bytes: 1,
        attached_to: None,
    };
    world.disks.push(disk("lost"));
    // One that a machine says it has is that machine's.
    world.disks.push(disk("demo-cp-1-data"));
    world.appears(&machine("demo-cp-1", 1, 3), true);
    let found = compare(&world.found());
    assert_eq!(found.disks, [DiskName::new("lost").unwrap()]);
    // Two machines of a control plane are a change that goes on: the spec keeps its odd number.
    assert!(found.counts.is_empty());
}
