//! One zone of a pool after the other.

use super::change::{reborn, serving};
use super::*;

/// Six workers, in zones a, b and c by turns, three of which may be missing; those named get another stemcell.
fn six(changed: &[usize]) -> (Desired, Observed) {
    let (mut desired, mut observed) = serving(1, 6);
    for (i, zone) in (0..6).zip(["a", "b", "c"].iter().cycle()) {
        let zone = ZoneName::new(*zone).unwrap();
        observed.zones.insert(name(&format!("c-w-{i}")), zone);
    }
    for i in changed {
        reborn(&mut desired, &format!("c-w-{i}"), "1.37.2");
    }
    if let DesiredState::Present { budgets, .. } = &mut desired.state {
        let budget = Budget {
            max_unavailable: 3,
            canaries: 0,
        };
        budgets.insert(pool(), budget);
    }
    (desired, observed)
}

fn drained(plan: &Plan) -> Vec<String> {
    let drains = keys(plan).into_iter().filter(|key| key.ends_with("/drain"));
    let number = |key: &str| key.replace("/drain", "").replace("machine/c-w-", "");
    drains.map(number).collect()
}

#[test]
fn zones_follow_one_another_and_machines_of_one_go_together() {
    let (desired, observed) = six(&[0, 1, 2, 3, 4, 5]);
    let plan = plan(&desired, &observed).unwrap();
    assert_eq!(check(&plan, &desired, &observed), Ok(()));
    assert_eq!(drained(&plan), ["0", "3", "1", "4", "2", "5"]);
    let after = |key: &str| {
        let step = plan.steps.iter().find(|step| *step.key.0 == *key).unwrap();
        let gates = step.after.iter().filter(|key| key.0.contains("-zone-"));
        gates.map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(after("machine/c-w-3/drain"), [""; 0]);
    let done = ["checkpoint/w-zone-2".to_owned()];
    assert_eq!(after("machine/c-w-1/drain"), done);
    assert_eq!(after("machine/c-w-4/drain"), done);
}

#[test]
fn what_was_begun_with_goes_first_and_nothing_else_beside_it() {
    let (desired, mut observed) = six(&[0, 1, 2]);
    observed.machines.get_mut(&name("c-w-2")).unwrap().cordoned = true;
    let plan = plan(&desired, &observed).unwrap();
    assert_eq!(check(&plan, &desired, &observed), Ok(()));
    assert_eq!(drained(&plan), ["2", "0", "1"]);
}

#[test]
fn a_plan_that_takes_two_zones_at_once_is_found_out() {
    let (desired, mut observed) = six(&[0, 1]);
    let zones = std::mem::take(&mut observed.zones);
    let plan = plan(&desired, &observed).unwrap();
    assert_eq!(
        check(&plan, &desired, &observed),
        Ok(()),
        "nobody is in a zone"
    );
    observed.zones = zones;
    let faults = check(&plan, &desired, &observed).unwrap_err();
    let apart = |fault: &crate::plan::Violation| fault.problem.contains("in different zones");
    assert!(faults.iter().any(apart), "{faults:?}");
}
