//! Control planes that emulate the minor before their own, and are raised.

use super::change::{budget, machines, reborn, serving, why};
use super::*;

const MEMBERS: [&str; 3] = ["c-cp-0", "c-cp-1", "c-cp-2"];

fn told(desired: &mut Desired, machine: &str, emulates: Option<u32>) {
    let wanted = machines(desired).get_mut(&name(machine)).unwrap();
    wanted.emulates = emulates;
    let text = format!("{machine} that emulates {emulates:?}");
    wanted.components = Digest::of(text.as_bytes());
    wanted.configuration = wanted.components;
}

/// A cluster of 1.37 whose control plane is to be of 1.38 and to emulate 1.37.
fn replaced() -> (Desired, Observed) {
    let (mut desired, observed) = serving(3, 2);
    budget(&mut desired, 1, 0);
    for machine in MEMBERS {
        reborn(&mut desired, machine, "1.38.0");
        told(&mut desired, machine, Some(37));
    }
    (desired, observed)
}

/// The same, once it is, and is to be raised with its workers after it.
fn raised() -> (Desired, Observed) {
    let (mut desired, mut observed) = replaced();
    let all = plan(&desired, &observed).unwrap();
    carry_out(&desired, &mut observed, &all, &[0], usize::MAX);
    for machine in MEMBERS {
        told(&mut desired, machine, None);
    }
    for machine in ["c-w-0", "c-w-1"] {
        reborn(&mut desired, machine, "1.38.0");
    }
    (desired, observed)
}

fn place(plan: &Plan, key: &str) -> usize {
    let mut keys = plan.steps.iter().map(|step| &*step.key.0);
    keys.position(|found| found == key)
        .unwrap_or_else(|| panic!("{key} of {:?}", keys_of(plan)))
}

fn keys_of(plan: &Plan) -> Vec<&str> {
    plan.steps.iter().map(|step| &*step.key.0).collect()
}

#[test]
fn api_servers_are_raised_in_place_one_after_the_other_and_workers_come_then() {
    let (desired, observed) = raised();
    let plan = plan(&desired, &observed).unwrap();
    assert_eq!(check(&plan, &desired, &observed), Ok(()));
    let started = MEMBERS.map(|machine| place(&plan, &format!("machine/{machine}/start")));
    assert!(started.is_sorted(), "{started:?}");
    for machine in MEMBERS {
        let created = format!("machine/{machine}/create");
        assert!(
            plan.steps.iter().all(|step| *step.key.0 != *created),
            "it stays"
        );
    }
    let drained = place(&plan, "machine/c-w-0/drain");
    assert!(drained > place(&plan, "machine/c-cp-2/await-node"));
}

#[test]
fn a_control_plane_that_was_never_raised_goes_back() {
    let (mut desired, mut observed) = replaced();
    let first = plan(&desired, &observed).unwrap();
    assert_eq!(check(&first, &desired, &observed), Ok(()));
    carry_out(&desired, &mut observed, &first, &[0], usize::MAX);
    for machine in MEMBERS {
        reborn(&mut desired, machine, "1.37.2");
        machines(&mut desired)
            .get_mut(&name(machine))
            .unwrap()
            .emulates = None;
    }
    let back = plan(&desired, &observed).unwrap();
    assert_eq!(check(&back, &desired, &observed), Ok(()));
    carry_out(&desired, &mut observed, &back, &[0], usize::MAX);
    let members = observed.machines.values().filter(|m| m.pool.is_none());
    assert!(members.clone().all(|m| m.kubernetes_version == "1.37.2"));
}

#[test]
fn what_an_api_server_emulates_counts_for_what_it_is() {
    let skew = |change: &dyn Fn(&mut Desired, &mut Observed), raise: bool| {
        let (mut desired, mut observed) = if raise { raised() } else { replaced() };
        change(&mut desired, &mut observed);
        let plan = plan(&desired, &observed).unwrap();
        why(&plan, &desired, &observed).contains(&Invariant::VersionSkew)
    };
    type Case<'a> = (&'a str, bool, bool, &'a dyn Fn(&mut Desired, &mut Observed));
    #[rustfmt::skip] // one case a line, so that a missing one shows
    let cases: [Case<'_>; 6] = [
        ("a control plane that emulates what was",  false, false, &|_, _| {}),
        ("a worker newer than what is emulated",    false, true,  &|d, _| reborn(d, "c-w-0", "1.38.0")),
        ("a raise",                                 true,  false, &|_, _| {}),
        ("a raise that leaves one out",             true,  true,  &|d, _| told(d, "c-cp-1", Some(37))),
        ("a raised one that emulates again",        true,  true,  &|d, o| {
            o.machines.get_mut(&name("c-cp-0")).unwrap().emulates = None;
            for machine in MEMBERS { told(d, machine, Some(37)); }
            for worker in ["c-w-0", "c-w-1"] { machines(d).get_mut(&name(worker)).unwrap().kubernetes_version = "1.37.2".into(); }
        }),
        ("back to less than what is emulated",      true,  true,  &|d, _| {
            for machine in MEMBERS { reborn(d, machine, "1.36.3"); }
            for worker in ["c-w-0", "c-w-1"] { machines(d).get_mut(&name(worker)).unwrap().kubernetes_version = "1.36.3".into(); }
        }),
    ];
    for (what, raise, wanted, change) in cases {
        assert_eq!(skew(change, raise), wanted, "{what}");
    }
}

#[test]
fn a_worker_that_is_missing_waits_for_the_raise_when_it_is_newer_than_what_is_emulated() {
    let (desired, mut observed) = raised();
    observed.machines.remove(&name("c-w-0"));
    let plan = plan(&desired, &observed).unwrap();
    assert_eq!(check(&plan, &desired, &observed), Ok(()));
    let created = place(&plan, "machine/c-w-0/create");
    assert!(created > place(&plan, "machine/c-cp-2/start"));
}

#[test]
fn a_worker_that_starts_before_the_raise_is_seen() {
    let (desired, observed) = raised();
    let mut plan = plan(&desired, &observed).unwrap();
    for verb in ["drain", "create", "await-agent"] {
        let key = format!("machine/c-w-0/{verb}");
        let step = plan
            .steps
            .iter_mut()
            .find(|step| *step.key.0 == *key)
            .unwrap();
        let before = match verb {
            "drain" => "api/await",
            "create" => "machine/c-w-0/delete",
            _ => "machine/c-w-0/create",
        };
        step.after = vec![StepKey(before.into())];
    }
    plan.hash = super::super::hash(&desired, plan.goal, &plan.steps);
    let found = why(&plan, &desired, &observed);
    assert!(found.contains(&Invariant::VersionSkew), "{found:?}");
}
