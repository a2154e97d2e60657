//! Certificates are renewed one machine after the other.

use super::change::serving;
use super::*;
use crate::planner::renewal;

#[test]
fn one_machine_shows_its_certificates_before_the_next_gets_any() {
    let (desired, mut observed) = serving(3, 2);
    let all: Vec<MachineName> = observed.machines.keys().cloned().collect();
    let plan = renewal::plan(&desired, &observed, &all);
    check(&plan, &desired, &observed).unwrap();
    let order = ["c-w-0", "c-w-1", "c-cp-0", "c-cp-1", "c-cp-2"];
    let key = |machine: &str, verb: &str| format!("machine/{machine}/{verb}");
    let steps = order.map(|m| [key(m, "await-agent"), key(m, "renew-certificates")]);
    assert_eq!(keys(&plan), steps.concat(), "workers first");
    let awaits = |machine: &str| after(&plan, &key(machine, "await-agent"));
    assert!(awaits("c-w-0").is_empty());
    for pair in order.windows(2) {
        assert_eq!(awaits(pair[1]), [key(pair[0], "renew-certificates")]);
    }
    assert!(
        plan.steps
            .iter()
            .all(|step| step.disrupts == Disruption::Nothing)
    );
    carry_out(&desired, &mut observed, &plan, &[0], usize::MAX);
}

#[test]
fn machines_that_do_not_exist_have_no_certificates() {
    let (desired, observed) = serving(1, 1);
    let names = [name("c-w-0"), name("c-w-7")];
    let plan = renewal::plan(&desired, &observed, &names);
    assert_eq!(
        keys(&plan),
        [
            "machine/c-w-0/await-agent",
            "machine/c-w-0/renew-certificates"
        ]
    );
}
