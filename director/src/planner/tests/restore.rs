//! Restores: what comes before what, and the broken plans that the checker has to see.

use super::change::{reborn, serving};
use super::*;
use crate::model::{MemberFate, RestoreSource};
use crate::plan;
use crate::planner::restore::{self, Restore, RestoreOrder};

use MemberFate::{Begins, Joins, Replaced};

fn source() -> RestoreSource {
    RestoreSource::Snapshot {
        digest: Digest::of(b"snapshot"),
    }
}

/// A cluster with two workers, what there will be of it once etcd answers, and the order that leads there.
fn scene(fates: &[MemberFate]) -> (Desired, Observed, RestoreOrder) {
    let (mut desired, mut then) = serving(fates.len(), 2);
    let names: Vec<MachineName> = (0..fates.len())
        .map(|i| name(&format!("c-cp-{i}")))
        .collect();
    let mut order = RestoreOrder {
        source: source(),
        members: names.iter().cloned().zip(fates.iter().copied()).collect(),
        reached: then.machines.keys().cloned().collect(),
    };
    for (name, fate) in &order.members {
        let found = then.machines.get_mut(name).unwrap();
        if *fate == Begins {
            continue;
        }
        then.outside.insert(name.clone());
        then.out_of_endpoint.insert(name.clone());
        found.started = None;
        if *fate == Replaced {
            found.running = false;
            order.reached.remove(name);
            reborn(&mut desired, name.as_str(), "1.37.2");
        }
    }
    restore::narrow(&mut desired, &mut then, &order);
    (desired, then, order)
}

/// The plan, which breaks nothing.
fn checked(fates: &[MemberFate]) -> (Restore, RestoreOrder) {
    let (desired, then, order) = scene(fates);
    let restore = restore::plan(&desired, &then, &order).unwrap();
    assert_eq!(check(&restore.rest, &desired, &then), Ok(()), "{fates:?}");
    assert_eq!(
        plan::restore::check(&restore.plan, &order),
        Ok(()),
        "{fates:?}"
    );
    (restore, order)
}

/// All that comes before a step.
fn above(plan: &Plan, key: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut left = vec![StepKey(key.into())];
    while let Some(key) = left.pop() {
        let step = plan.steps.iter().find(|step| step.key == key).unwrap();
        for key in &step.after {
            if found.insert(key.to_string()) {
                left.push(key.clone());
            }
        }
    }
    found
}

#[test]
fn everything_ends_before_data_is_made_and_nothing_starts_before_all_is() {
    let (restore, _) = checked(&[Begins, Begins, Begins]);
    for i in 0..3 {
        let before = above(&restore.plan, &format!("restore/c-cp-{i}/restore-member"));
        let starts = above(&restore.plan, &format!("restore/c-cp-{i}/start"));
        for other in 0..3 {
            for verb in ["stop-api", "stop-member"] {
                assert!(
                    before.contains(&format!("restore/c-cp-{other}/{verb}")),
                    "{before:?}"
                );
            }
            assert!(starts.contains(&format!("restore/c-cp-{other}/restore-member")));
        }
    }
    for node in ["c-cp-0", "c-cp-2", "c-w-0", "c-w-1"] {
        let before = above(&restore.plan, &format!("machine/{node}/await-node"));
        for key in [
            format!("machine/{node}/restart-kubelet"),
            "api/await".to_owned(),
            "addons/apply".to_owned(),
            "restore/c-cp-1/await-control-plane".to_owned(),
        ] {
            assert!(before.contains(&key), "{node} without {key}: {before:?}");
        }
    }
    let settles = above(&restore.plan, "nodes/settle");
    assert!(settles.contains("addons/apply"), "{settles:?}");
    let made = |step: &&PlanStep| {
        matches!(
            step.action,
            Action::AddMember { .. } | Action::CreateMachine { .. }
        )
    };
    assert_eq!(restore.plan.steps.iter().filter(made).count(), 0);
    let destroys = restore
        .plan
        .steps
        .iter()
        .filter(|s| s.disrupts == Disruption::Data);
    assert_eq!(destroys.count(), 3);
}

#[test]
fn a_restore_of_one_machine_goes_in_this_order() {
    let (restore, _) = checked(&[Begins]);
    assert_eq!(
        keys(&restore.plan),
        [
            "restore/c-cp-0/stop-api",
            "checkpoint/api-stopped",
            "restore/c-cp-0/stop-member",
            "checkpoint/etcd-stopped",
            "restore/c-cp-0/restore-member",
            "checkpoint/etcd-made",
            "restore/c-cp-0/configure",
            "restore/c-cp-0/start",
            "restore/c-cp-0/await-control-plane",
            "api/await",
            "addons/apply",
            "machine/c-cp-0/restart-kubelet",
            "machine/c-cp-0/await-node",
            "machine/c-w-0/restart-kubelet",
            "machine/c-w-0/await-node",
            "machine/c-w-1/restart-kubelet",
            "machine/c-w-1/await-node",
            "nodes/settle",
        ]
    );
}

#[test]
fn members_that_are_lost_are_shut_out_first_and_join_again_without_data() {
    let (restore, _) = checked(&[Replaced, Begins, Replaced]);
    let before = above(&restore.plan, "restore/c-cp-1/stop-api");
    for lost in ["c-cp-0", "c-cp-2"] {
        assert!(
            before.contains(&format!("machine/{lost}/fence")),
            "{before:?}"
        );
        let starts = above(&restore.plan, &format!("machine/{lost}/start-member"));
        for key in [
            format!("machine/{lost}/set-member-aside"),
            format!("machine/{lost}/add-member"),
            format!("machine/{lost}/create"),
            format!("machine/{lost}/delete"),
            "restore/c-cp-1/await-control-plane".to_owned(),
        ] {
            assert!(starts.contains(&key), "{lost} without {key}: {starts:?}");
        }
        let kubelet = format!("machine/{lost}/restart-kubelet");
        assert!(
            !keys(&restore.plan).contains(&kubelet.as_str()),
            "it is made anew"
        );
    }
    // One that is there and goes less far joins as it is.
    let (restore, _) = checked(&[Joins, Begins, Replaced]);
    assert!(keys(&restore.plan).contains(&"restore/c-cp-0/stop-member"));
    assert!(keys(&restore.plan).contains(&"machine/c-cp-0/set-member-aside"));
    assert!(!keys(&restore.plan).contains(&"machine/c-cp-0/create"));
    assert!(
        above(&restore.plan, "machine/c-cp-0/await-node")
            .contains("machine/c-cp-0/restart-kubelet")
    );
}

#[test]
fn every_combination_of_fates_is_planned() {
    for members in [1_u32, 3, 5] {
        for choice in 0..3_u32.pow(members) {
            let fates: Vec<MemberFate> = (0..members)
                .map(|at| [Begins, Joins, Replaced][(choice / 3_u32.pow(at) % 3) as usize])
                .collect();
            if fates.contains(&Begins) {
                checked(&fates);
            } else {
                let (desired, then, order) = scene(&fates);
                let none = restore::plan(&desired, &then, &order);
                assert!(
                    matches!(none, Err(PlanError::NoControlPlane(_))),
                    "{none:?}"
                );
            }
        }
    }
}

/// As when a cluster is found that was begun with other members, and whose disks are gone with their machines.
#[test]
fn members_that_begin_are_told_of_the_others_and_lost_disks_are_made_anew() {
    let (desired, mut then, order) = scene(&[Replaced, Begins, Replaced]);
    let first = then.machines.get_mut(&name("c-cp-1")).unwrap();
    first.started = Some(Digest::of(b"with itself alone"));
    for lost in ["c-cp-0", "c-cp-2"] {
        then.disks.remove(&disk(&format!("{lost}-data")));
    }
    let restore = restore::plan(&desired, &then, &order).unwrap();
    assert_eq!(check(&restore.rest, &desired, &then), Ok(()));
    assert_eq!(plan::restore::check(&restore.plan, &order), Ok(()));
    let stops = above(&restore.plan, "machine/c-cp-1/stop-components");
    for lost in ["c-cp-0", "c-cp-2"] {
        assert!(
            stops.contains(&format!("machine/{lost}/await-node")),
            "{stops:?}"
        );
        let key = format!("disk/{lost}-data/create");
        assert!(keys(&restore.plan).contains(&key.as_str()), "{key}");
    }
}

#[test]
fn a_node_that_cannot_be_reached_is_not_waited_for() {
    let (mut desired, mut then) = serving(1, 2);
    then.machines.get_mut(&name("c-w-1")).unwrap().running = false;
    let order = RestoreOrder {
        source: RestoreSource::Member,
        members: BTreeMap::from([(name("c-cp-0"), Begins)]),
        reached: BTreeSet::from([name("c-cp-0"), name("c-w-0")]),
    };
    restore::narrow(&mut desired, &mut then, &order);
    let restore = restore::plan(&desired, &then, &order).unwrap();
    let keys = keys(&restore.plan);
    assert!(keys.contains(&"machine/c-w-0/await-node"));
    assert!(!keys.iter().any(|key| key.contains("c-w-1")), "{keys:?}");
}

/// What somebody did to a plan.
type Broken<'a> = &'a dyn Fn(&mut Plan);

#[test]
fn broken_restores_are_seen() {
    let (restore, order) = checked(&[Joins, Begins, Replaced]);
    let seen = |change: &dyn Fn(&mut Plan)| {
        let mut plan = restore.plan.clone();
        change(&mut plan);
        let found = plan::restore::check(&plan, &order)
            .err()
            .unwrap_or_default();
        found
            .into_iter()
            .map(|v| v.problem)
            .collect::<Vec<_>>()
            .join("; ")
    };
    let without = |key: &'static str| {
        move |plan: &mut Plan| {
            plan.steps.retain(|step| *step.key.0 != *key);
            for step in &mut plan.steps {
                step.after.retain(|after| *after.0 != *key);
            }
        }
    };
    let freed = |key: &'static str| {
        move |plan: &mut Plan| {
            let step = plan
                .steps
                .iter_mut()
                .find(|step| *step.key.0 == *key)
                .unwrap();
            step.after.clear();
        }
    };
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases: [(&str, Broken<'_>, &str); 9] = [
        ("an API server runs on",         &without("restore/c-cp-0/stop-api"),       "may serve on"),
        ("a member runs on",              &without("restore/c-cp-0/stop-member"),    "may serve on"),
        ("one that is lost may live",     &without("machine/c-cp-2/fence"),          "may serve on"),
        ("members end with their API up", &freed("restore/c-cp-1/stop-member"),      "it may begin before"),
        ("data is made at once",          &freed("restore/c-cp-1/restore-member"),   "it may begin before"),
        ("etcd starts with old data",     &freed("restore/c-cp-1/start"),            "it may begin before"),
        ("a member joins with old data",  &without("machine/c-cp-0/set-member-aside"), "a cluster that is no more"),
        ("nobody is made",                &without("restore/c-cp-1/restore-member"), "are made"),
        ("the API is asked at once",      &freed("api/await"),                       "does not answer by then"),
    ];
    for (what, change, want) in cases {
        let problems = seen(change);
        assert!(problems.contains(want), "{what}: {problems}");
    }
    let other = |plan: &mut Plan| {
        for step in &mut plan.steps {
            if let Action::RestoreMember { source, .. } = &mut step.action {
                *source = RestoreSource::Member;
            }
        }
    };
    assert!(seen(&other).contains("otherwise than was ordered"));
    assert_eq!(seen(&|_| {}), "");
}
