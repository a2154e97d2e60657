//! Agents are upgraded the first by itself, the others so many at a time.

use super::change::serving;
use super::*;
use crate::planner::agents::{self, AgentUpgrades};

fn upgrades(desired: &Desired, observed: &Observed, names: &[&str], at_a_time: usize) -> Plan {
    let machines: Vec<MachineName> = names.iter().map(|text| name(text)).collect();
    let order = AgentUpgrades {
        stemcell: "s2",
        machines: &machines,
        at_a_time,
    };
    let plan = agents::plan(desired, observed, order);
    check(&plan, desired, observed).unwrap();
    plan
}

#[test]
fn one_is_tried_before_the_others() {
    let (desired, mut observed) = serving(1, 4);
    let all = ["c-cp-0", "c-w-0", "c-w-1", "c-w-2", "c-w-3"];
    let key = |machine: &str| format!("machine/{machine}/upgrade-agent");
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        (1, [None, Some("c-w-0"), Some("c-w-1"), Some("c-w-2"), Some("c-w-3")]),
        (2, [None, Some("c-w-0"), Some("c-w-0"), Some("c-w-1"), Some("c-w-2")]),
        (9, [None, Some("c-w-0"), Some("c-w-0"), Some("c-w-0"), Some("c-w-0")]),
    ];
    for (at_a_time, want) in cases {
        let plan = upgrades(&desired, &observed, &all, at_a_time);
        let order = ["c-w-0", "c-w-1", "c-w-2", "c-w-3", "c-cp-0"];
        assert_eq!(keys(&plan), order.map(key), "workers first");
        for (machine, before) in order.into_iter().zip(want) {
            let before: Vec<String> = before.map(key).into_iter().collect();
            assert_eq!(after(&plan, &key(machine)), before, "{at_a_time} at a time");
        }
        carry_out(&desired, &mut observed, &plan, &[0], usize::MAX);
    }
}

#[test]
fn what_is_decided_is_in_the_hash() {
    let (desired, observed) = serving(1, 2);
    let plan = |names: &[&str], at_a_time| upgrades(&desired, &observed, names, at_a_time).hash;
    let one = plan(&["c-w-0", "c-w-1", "c-cp-0"], 1);
    assert_eq!(one, plan(&["c-cp-0", "c-w-1", "c-w-0"], 1));
    assert_ne!(one, plan(&["c-w-0", "c-w-1", "c-cp-0"], 2));
    assert_ne!(one, plan(&["c-w-0", "c-w-1"], 1));
}

#[test]
fn a_machine_that_is_not_there_has_no_step() {
    let (desired, observed) = serving(1, 1);
    let plan = upgrades(&desired, &observed, &["c-w-0", "c-w-7"], 1);
    assert_eq!(keys(&plan), ["machine/c-w-0/upgrade-agent"]);
}
