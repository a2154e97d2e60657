//! Machines that serve are restarted: drained, out of the endpoint, and not leading etcd.

use super::change::{machines, reborn, serving};
use super::*;
use crate::model::Reboot;

/// A cluster in service of which one machine is to be restarted.
fn restarts(text: &str, drain: bool, silent: bool) -> (Desired, Observed) {
    let (mut desired, observed) = serving(3, 3);
    wants(&mut desired, text, drain, silent);
    (desired, observed)
}

fn wants(desired: &mut Desired, text: &str, drain: bool, silent: bool) {
    let wanted = machines(desired).get_mut(&name(text)).unwrap();
    wanted.reboot = Some(Reboot {
        boots: 7,
        drain,
        silent,
    });
    if let DesiredState::Present { budgets, .. } = &mut desired.state {
        budgets.entry(pool()).or_default().max_unavailable = 1;
    }
}

/// What a plan does to a machine, in the order of its steps.
fn verbs<'a>(plan: &'a Plan, text: &str) -> Vec<&'a str> {
    let prefix = format!("machine/{text}/");
    let keys = keys(plan).into_iter();
    keys.filter_map(|key| key.strip_prefix(prefix.as_str()))
        .collect()
}

#[test]
fn it_hands_over_before_and_is_opened_after() {
    type Row = (&'static str, bool, bool, &'static str);
    #[rustfmt::skip]
    let rows: [Row; 7] = [
        // machine, its pods can leave, its agent is lost: what is done
        ("c-w-1",  true,  false, "drain reboot await-agent await-node uncordon"),
        ("c-w-1",  true,  true,  "drain reboot await-agent await-node uncordon"),
        ("c-w-1",  false, false, "reboot await-agent await-node"),
        ("c-cp-1", true,  false, "drain leave-endpoint move-leader stop-components reboot await-agent start \
                                  await-control-plane join-endpoint await-node uncordon"),
        ("c-cp-1", false, false, "leave-endpoint move-leader stop-components reboot await-agent start \
                                  await-control-plane join-endpoint await-node"),
        ("c-cp-1", true,  true,  "drain leave-endpoint reboot await-agent await-control-plane join-endpoint \
                                  await-node uncordon"),
        ("c-cp-1", false, true,  "leave-endpoint reboot await-agent await-control-plane join-endpoint await-node"),
    ];
    for (machine, drain, silent, wanted) in rows {
        let (desired, observed) = restarts(machine, drain, silent);
        let plan = plan(&desired, &observed).unwrap();
        assert_eq!(check(&plan, &desired, &observed), Ok(()));
        let said = format!("{machine}, drain {drain}, silent {silent}");
        assert_eq!(verbs(&plan, machine).join(" "), wanted, "{said}");
        let touched = plan.steps.iter().filter_map(|step| step.action.machine());
        assert!(touched.into_iter().all(|m| *m == name(machine)), "{said}");
    }
}

#[test]
fn one_that_is_made_anew_anyway_is_not_restarted() {
    let (mut desired, observed) = restarts("c-w-1", true, false);
    reborn(&mut desired, "c-w-1", "1.37.2");
    let plan = plan(&desired, &observed).unwrap();
    assert_eq!(check(&plan, &desired, &observed), Ok(()));
    let verbs = verbs(&plan, "c-w-1");
    assert!(verbs.contains(&"delete") && !verbs.contains(&"reboot"));
}

#[test]
fn members_of_etcd_are_restarted_one_after_the_other() {
    let (mut desired, observed) = restarts("c-cp-0", true, false);
    wants(&mut desired, "c-cp-2", true, false);
    let plan = plan(&desired, &observed).unwrap();
    assert_eq!(check(&plan, &desired, &observed), Ok(()));
    let first = after(&plan, "machine/c-cp-2/drain");
    for done in ["await-node", "join-endpoint", "uncordon"] {
        let key = format!("machine/c-cp-0/{done}");
        assert!(first.contains(&key.as_str()), "{done}: {first:?}");
    }
}

/// Without what makes it safe, a plan is refused.
#[test]
fn the_checker_sees_what_is_missing() {
    let (desired, observed) = restarts("c-cp-1", true, false);
    let good = plan(&desired, &observed).unwrap();
    let without = |verb: &str| {
        let key = StepKey::from(format!("machine/c-cp-1/{verb}"));
        let mut plan = good.clone();
        let gone = plan.steps.iter().position(|step| step.key == key).unwrap();
        let gone = plan.steps.remove(gone);
        for step in &mut plan.steps {
            if let Some(at) = step.after.iter().position(|before| *before == key) {
                step.after.splice(at..=at, gone.after.clone());
            }
        }
        plan.hash = crate::planner::hash(&desired, plan.goal, &plan.steps);
        check(&plan, &desired, &observed).is_err()
    };
    for verb in ["drain", "leave-endpoint", "move-leader", "stop-components"] {
        assert!(without(verb), "{verb}");
    }
    assert!(!without("uncordon"), "it is opened by the next plan");
    // Nobody wants it, or another restart than that.
    let (undesired, _) = serving(3, 3);
    assert!(check(&good, &undesired, &observed).is_err());
    let mut other = good.clone();
    for step in &mut other.steps {
        if let Action::RebootMachine { boots, .. } = &mut step.action {
            *boots += 1;
        }
    }
    other.hash = crate::planner::hash(&desired, other.goal, &other.steps);
    assert!(check(&other, &desired, &observed).is_err());
}
