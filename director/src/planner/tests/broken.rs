//! Changes and repairs that somebody broke: the checker has to see each, and for the right reason.

use super::change::{budget, checked, dead, gone, machines, reborn, serving, why};
use super::*;

/// Plans that somebody broke: each has to be seen, and for the right reason.
#[test]
fn the_checker_sees_broken_changes() {
    let (mut desired, mut observed) = serving(3, 3);
    for machine in ["c-cp-0", "c-cp-1", "c-cp-2", "c-w-0", "c-w-1"] {
        reborn(&mut desired, machine, "1.38.0");
    }
    gone(&mut desired, &mut observed, "c-w-2");
    let (extra, mut machine) = machine("c-w-3", false);
    machine.kubernetes_version = "1.38.0".into();
    machines(&mut desired).insert(extra, machine);
    let good = checked(&desired, &observed);
    let broken = |change: &dyn Fn(&mut Vec<PlanStep>)| {
        let mut plan = good.clone();
        change(&mut plan.steps);
        plan.hash = super::super::hash(&desired, plan.goal, &plan.steps);
        why(&plan, &desired, &observed)
    };
    let without = |verb: &'static str, machine: &'static str| {
        broken(&|steps: &mut Vec<PlanStep>| {
            let key = StepKey::from(format!("machine/{machine}/{verb}"));
            let above = steps.iter().find(|s| s.key == key).unwrap().after.clone();
            steps.retain(|step| step.key != key);
            for step in steps.iter_mut().filter(|s| s.after.contains(&key)) {
                step.after.retain(|k| *k != key);
                step.after.extend(above.iter().cloned());
            }
        })
    };
    let early = |key: &'static str| {
        broken(&|steps: &mut Vec<PlanStep>| {
            let step = steps.iter_mut().find(|s| *s.key.0 == *key).unwrap();
            step.after = vec![StepKey("api/await".into())];
        })
    };
    let too_new = broken(&|steps| {
        for (verb, after) in [
            ("create", "api/await"),
            ("await-agent", "machine/c-w-3/create"),
        ] {
            let key = StepKey::from(format!("machine/c-w-3/{verb}"));
            let step = steps.iter_mut().find(|s| s.key == key).unwrap();
            step.after = vec![StepKey(after.into())];
        }
    });
    #[rustfmt::skip] // one case a line, so that a missing one shows
    let cases = [
        ("two members at once",             early("machine/c-cp-1/drain"),       Invariant::EtcdQuorum),
        ("an API server clients use",       without("leave-endpoint", "c-cp-1"), Invariant::EtcdQuorum),
        ("two workers at once",             early("machine/c-w-1/drain"),        Invariant::Budget),
        ("a worker before the surge",       early("machine/c-w-0/drain"),        Invariant::Budget),
        ("a removal beside the others",     early("machine/c-w-2/drain"),        Invariant::Budget),
        ("pods that were not told",         without("drain", "c-w-0"),           Invariant::PodBudgets),
        ("a kubelet before its API server", too_new,                             Invariant::VersionSkew),
        ("two incarnations at once",        early("machine/c-w-0/create"),       Invariant::OneIncarnation),
        ("a node that may still run",       early("node/c-w-0-i1/drop"),         Invariant::OneIncarnation),
        ("an address that is in use",       early("machine/c-w-2/forget"),       Invariant::OneIncarnation),
        ("clients before it answers",       early("machine/c-cp-0/join-endpoint"), Invariant::StepEnds),
    ];
    for (what, found, wanted) in cases {
        assert!(found.contains(&wanted), "{what}: {found:?}");
    }
    let empty_disk = broken(&|steps| {
        steps[0].action = Action::CreateDisk {
            disk: disk("c-cp-0-data"),
            machine: name("c-cp-0"),
        };
    });
    assert!(
        empty_disk.contains(&Invariant::EtcdQuorum),
        "{empty_disk:?}"
    );
}

/// Plans of a repair that somebody broke.
#[test]
fn the_checker_sees_repairs_that_do_not_wait_for_the_proof() {
    for machine in ["c-w-0", "c-cp-0"] {
        let (desired, observed) = dead(3, machine);
        let good = checked(&desired, &observed);
        let broken = |change: &dyn Fn(&mut Vec<PlanStep>)| {
            let mut plan = good.clone();
            change(&mut plan.steps);
            plan.hash = super::super::hash(&desired, plan.goal, &plan.steps);
            why(&plan, &desired, &observed)
        };
        let early = |key: String| {
            broken(&|steps: &mut Vec<PlanStep>| {
                let step = steps.iter_mut().find(|s| *s.key.0 == *key).unwrap();
                step.after = vec![StepKey("api/await".into())];
            })
        };
        let unfenced = broken(&|steps: &mut Vec<PlanStep>| {
            let key = StepKey::from(format!("machine/{machine}/fence"));
            steps.retain(|step| step.key != key);
            for step in steps.iter_mut() {
                step.after.retain(|k| *k != key);
            }
        });
        let mut cases = vec![
            ("no proof at all", unfenced),
            (
                "a Node before the proof",
                early(format!("node/{machine}-i1/drop")),
            ),
            (
                "a deletion before the proof",
                early(format!("machine/{machine}/delete")),
            ),
            (
                "a successor before the deletion",
                early(format!("machine/{machine}/create")),
            ),
        ];
        if machine == "c-cp-0" {
            let disk = early(format!("machine/{machine}/attach-disk"));
            cases.push(("a disk before the deletion", disk));
        }
        for (what, found) in cases {
            assert!(
                found.contains(&Invariant::OneIncarnation),
                "{machine}, {what}: {found:?}"
            );
        }
    }
}

#[test]
fn versions_that_do_not_go_together_are_seen() {
    let cases = [
        ("1.39.0", "1.37.2"), // API servers two minors apart
        ("1.36.3", "1.36.3"), // API servers that go back
    ];
    for (servers, workers) in cases {
        let (mut desired, observed) = serving(3, 1);
        budget(&mut desired, 1, 0);
        for machine in ["c-cp-0", "c-cp-1", "c-cp-2"] {
            reborn(&mut desired, machine, servers);
        }
        reborn(&mut desired, "c-w-0", workers);
        let plan = plan(&desired, &observed).unwrap();
        let found = why(&plan, &desired, &observed);
        assert!(
            found.contains(&Invariant::VersionSkew),
            "{servers}: {found:?}"
        );
    }
}

#[test]
fn a_kubelet_that_is_too_old_for_what_comes_is_seen_although_it_is_replaced() {
    for (kubelet, too_old) in [("1.35.0", false), ("1.34.9", true)] {
        let (mut desired, mut observed) = serving(3, 1);
        budget(&mut desired, 1, 0);
        for machine in ["c-cp-0", "c-cp-1", "c-cp-2", "c-w-0"] {
            reborn(&mut desired, machine, "1.38.0");
        }
        let worker = observed.machines.get_mut(&name("c-w-0")).unwrap();
        worker.kubernetes_version = kubelet.into();
        let plan = plan(&desired, &observed).unwrap();
        let found = why(&plan, &desired, &observed);
        let wanted = match too_old {
            true => vec![Invariant::VersionSkew],
            false => Vec::new(),
        };
        assert_eq!(found, wanted, "{kubelet}");
    }
}
