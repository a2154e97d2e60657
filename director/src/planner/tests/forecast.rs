//! What plans are said to come to.

use super::change::{budget, checked, gone, machines, reborn, serving};
use super::*;
use crate::model::ChangeForecast;
use crate::plan::duration::Measured;
use crate::plan::forecast;

fn told(desired: &Desired, observed: &Observed) -> ChangeForecast {
    let plan = checked(desired, observed);
    forecast(&plan, desired, observed, &Measured::default())
}

fn texts(names: &[MachineName]) -> Vec<&str> {
    names.iter().map(MachineName::as_str).collect()
}

/// Step, members that run of those that vote, minors of API servers and of kubelets.
fn moments(told: &ChangeForecast) -> Vec<String> {
    let span = |of: Option<(u32, u32)>| {
        of.map_or("-".into(), |(oldest, newest)| format!("{oldest}-{newest}"))
    };
    let moment = |moment: &crate::model::Moment| {
        format!(
            "{} {}/{} {} {}",
            moment.step.as_ref().map_or("now", |step| &step.0),
            moment.running,
            moment.members,
            span(moment.api_servers),
            span(moment.kubelets)
        )
    };
    told.moments.iter().map(moment).collect()
}

#[test]
fn machines_that_are_made_anew_are_replaced_and_the_last_new_ones_of_a_pool_are_its_surge() {
    let (mut desired, mut observed) = serving(1, 3);
    budget(&mut desired, 0, 0);
    // One more is wanted, and one goes once another has come for it.
    for text in ["c-w-3", "c-w-4"] {
        machines(&mut desired).extend([machine(text, false)]);
    }
    gone(&mut desired, &mut observed, "c-w-2");
    reborn(&mut desired, "c-w-0", "1.37.2");
    let told = told(&desired, &observed);
    assert_eq!(texts(&told.created), ["c-w-3", "c-w-4"]);
    assert_eq!(texts(&told.replaced), ["c-w-0"]);
    assert_eq!(texts(&told.deleted), ["c-w-2"]);
    assert_eq!(texts(&told.surge[&pool()]), ["c-w-4"]);
    // Others of the control plane only learn of routes.
    assert!(told.restarted.is_empty(), "{:?}", told.restarted);
}

#[test]
fn a_pool_that_grows_has_no_surge() {
    let (mut desired, observed) = serving(1, 1);
    machines(&mut desired).extend([machine("c-w-1", false)]);
    let told = told(&desired, &observed);
    assert_eq!(texts(&told.created), ["c-w-1"]);
    assert!(told.surge.is_empty(), "{:?}", told.surge);
    assert_eq!(moments(&told), ["now 1/1 37-37 37-37"]);
}

#[test]
fn an_upgrade_of_three_members_never_has_fewer_than_two_and_says_where_versions_differ() {
    let (mut desired, observed) = serving(3, 1);
    for text in ["c-cp-0", "c-cp-1", "c-cp-2", "c-w-0"] {
        reborn(&mut desired, text, "1.38.0");
    }
    budget(&mut desired, 1, 0);
    let told = told(&desired, &observed);
    let of = |member: &str, from: &str, to: &str| {
        [
            format!("machine/{member}/stop-components 2/3 {from} 37-{to}"),
            format!("machine/{member}/start 2/3 {from} 37-38"),
        ]
    };
    let said = moments(&told);
    assert_eq!(said[0], "now 3/3 37-37 37-37");
    let [stop, start] = of("c-cp-0", "37-37", "37");
    assert_eq!(said[1..3], [stop, start]);
    assert_eq!(
        said[3],
        "machine/c-cp-0/await-control-plane 3/3 37-38 37-38"
    );
    assert!(told.moments.iter().all(|m| m.running >= 2), "{said:?}");
    let last = said.last().unwrap();
    assert_eq!(last, "machine/c-w-0/delete 3/3 38-38 38-38");
}

#[test]
fn components_that_are_started_anew_in_place_take_their_member_down_for_a_while() {
    let (mut desired, observed) = serving(3, 0);
    let wanted = machines(&mut desired).get_mut(&name("c-cp-1")).unwrap();
    wanted.components = Digest::of(b"other");
    wanted.configuration = Digest::of(b"other");
    let told = told(&desired, &observed);
    assert_eq!(texts(&told.restarted), ["c-cp-1"]);
    assert_eq!(
        moments(&told),
        [
            "now 3/3 37-37 37-37",
            "machine/c-cp-1/stop-components 2/3 37-37 37-37",
            "machine/c-cp-1/await-control-plane 3/3 37-37 37-37",
        ]
    );
}

#[test]
fn members_that_join_and_leave_change_how_many_vote() {
    let (mut desired, mut observed) = serving(1, 0);
    for text in ["c-cp-1", "c-cp-2"] {
        machines(&mut desired).extend([machine(text, true)]);
        observed.outside.insert(name(text));
    }
    let grown = told(&desired, &observed);
    let votes = |told: &ChangeForecast| -> Vec<(usize, usize)> {
        told.moments
            .iter()
            .map(|m| (m.running, m.members))
            .collect()
    };
    assert_eq!(votes(&grown), [(1, 1), (2, 2), (3, 3)]);
}

#[test]
fn of_a_cluster_that_goes_nothing_runs_in_the_end() {
    let (_, observed) = serving(1, 1);
    let told = told(&absent(&["c-cp-0-data"]), &observed);
    assert_eq!(told.deleted.len(), 2);
    let said = moments(&told);
    assert_eq!(said[0], "now 1/1 37-37 37-37");
    assert!(said.last().unwrap().ends_with(" 0/1 - -"), "{said:?}");
}
