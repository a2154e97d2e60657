//! Control planes that grow, shrink and lose a member of etcd.

use super::change::{checked, gone, machines, reborn, serving, why};
use super::*;

/// Wants another number of members, and the others to be told.
pub(super) fn resize(desired: &mut Desired, observed: &mut Observed, from: usize, to: usize) {
    for i in from..to {
        let (joins, wanted) = machine(&format!("c-cp-{i}"), true);
        observed.outside.insert(joins.clone());
        observed.out_of_endpoint.insert(joins.clone());
        machines(desired).insert(joins, wanted);
    }
    for i in to..from {
        let goes = format!("c-cp-{i}");
        gone(desired, observed, &goes);
        observed.leaving.insert(name(&goes));
    }
    for i in 0..from.min(to) {
        let stays = machines(desired)
            .get_mut(&name(&format!("c-cp-{i}")))
            .unwrap();
        stays.components = Digest::of(format!("components with {to} members").as_bytes());
        stays.configuration = Digest::of(format!("configuration with {to} members").as_bytes());
    }
}

/// The verbs of the steps about members of etcd and API servers, in the plan's order.
fn about_members(plan: &Plan) -> Vec<String> {
    let verbs = [
        "add-member",
        "start-member",
        "promote-member",
        "remove-member",
        "move-leader",
        "stop-api",
        "stop-components",
        "start-components",
        "delete-machine",
        "fence",
        "create-disk",
    ];
    let of = plan
        .steps
        .iter()
        .filter(|s| verbs.contains(&s.action.name()));
    of.map(|s| {
        s.key
            .0
            .replace("machine/c-cp-", "")
            .replace("disk/c-cp-", "")
    })
    .collect()
}

#[test]
fn a_control_plane_grows_by_learners_one_at_a_time() {
    let (mut desired, mut observed) = serving(1, 1);
    resize(&mut desired, &mut observed, 1, 3);
    let plan = checked(&desired, &observed);
    assert_eq!(
        about_members(&plan),
        [
            "1-data/create",
            "2-data/create",
            "1/add-member",
            "1/start-member",
            "1/promote-member",
            "2/add-member",
            "2/start-member",
            "2/promote-member",
            "1/start",
            "2/start",
            "0/move-leader",
            "0/stop-components",
            "0/start",
        ]
    );
    assert!(after(&plan, "machine/c-cp-2/add-member").contains(&"machine/c-cp-1/promote-member"));
    assert!(after(&plan, "machine/c-cp-1/start").contains(&"machine/c-cp-1/promote-member"));
    assert!(after(&plan, "machine/c-cp-1/configure").contains(&"checkpoint/members-joined"));
    assert!(
        after(&plan, "machine/c-cp-0/leave-endpoint").contains(&"checkpoint/control-plane-made")
    );
    // Nothing of it needs the API to be down.
    assert!(
        plan.steps
            .iter()
            .all(|step| step.disrupts != Disruption::Api)
    );
}

#[test]
fn a_control_plane_shrinks_by_members_that_leave_before_they_stop() {
    let (mut desired, mut observed) = serving(3, 1);
    resize(&mut desired, &mut observed, 3, 1);
    let plan = checked(&desired, &observed);
    assert_eq!(
        about_members(&plan),
        [
            "0/move-leader",
            "0/stop-components",
            "0/start",
            "2/move-leader",
            "2/stop-api",
            "2/remove-member",
            "2/stop-components",
            "2/delete",
            "1/move-leader",
            "1/stop-api",
            "1/remove-member",
            "1/stop-components",
            "1/delete",
        ]
    );
    assert!(after(&plan, "machine/c-cp-2/drain").contains(&"machine/c-cp-0/await-node"));
    assert!(after(&plan, "machine/c-cp-1/drain").contains(&"machine/c-cp-2/delete"));
    assert!(
        plan.steps
            .iter()
            .all(|step| step.disrupts != Disruption::Api)
    );
}

#[test]
fn a_member_whose_disk_is_gone_leaves_and_joins_again() {
    let (mut desired, mut observed) = serving(3, 1);
    reborn(&mut desired, "c-cp-1", "1.37.2");
    observed.machines.get_mut(&name("c-cp-1")).unwrap().running = false;
    let kept = checked(&desired, &observed);
    assert_eq!(about_members(&kept), ["1/fence", "1/delete", "1/start"]);
    observed.disks.remove(&disk("c-cp-1-data"));
    let plan = checked(&desired, &observed);
    assert_eq!(
        about_members(&plan),
        [
            "1/fence",
            "1/delete",
            "1/remove-member",
            "1-data/create",
            "1/add-member",
            "1/start-member",
            "1/promote-member",
            "1/start",
        ]
    );
    assert!(after(&plan, "machine/c-cp-1/remove-member").contains(&"machine/c-cp-1/fence"));
    assert!(after(&plan, "disk/c-cp-1-data/create").contains(&"machine/c-cp-1/remove-member"));
    // Interrupted anywhere, the rest follows.
    for most in 0..plan.steps.len() {
        let mut observed = observed.clone();
        carry_out(&desired, &mut observed, &plan, &[0], most);
        let rest = checked(&desired, &observed);
        carry_out(&desired, &mut observed, &rest, &[0], usize::MAX);
        assert_eq!(
            keys(&super::super::plan(&desired, &observed).unwrap()),
            [""; 0]
        );
        assert!(observed.outside.is_empty());
    }
    // With a second one down there is no majority that could remove it.
    observed.machines.get_mut(&name("c-cp-2")).unwrap().running = false;
    let error = super::super::plan(&desired, &observed).unwrap_err();
    assert!(
        matches!(
            error,
            PlanError::DiskLost {
                others: 1,
                members: 2,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn the_only_member_is_not_made_anew_from_nothing() {
    let (mut desired, mut observed) = serving(1, 0);
    reborn(&mut desired, "c-cp-0", "1.37.2");
    observed.machines.get_mut(&name("c-cp-0")).unwrap().running = false;
    observed.disks.clear();
    let error = plan(&desired, &observed).unwrap_err();
    assert!(
        matches!(error, PlanError::DiskLost { members: 0, .. }),
        "{error}"
    );
}

#[test]
fn broken_changes_of_the_membership_are_seen() {
    let (mut desired, mut observed) = serving(3, 1);
    let (mut small, mut shrinking) = (desired.clone(), observed.clone());
    resize(&mut desired, &mut observed, 3, 5);
    resize(&mut small, &mut shrinking, 3, 1);
    let grown = checked(&desired, &observed);
    let shrunk = checked(&small, &shrinking);
    let broken = |good: &Plan, to: (&Desired, &Observed), key: &str, lost: &str| {
        let mut plan = good.clone();
        let step = plan
            .steps
            .iter_mut()
            .find(|step| *step.key.0 == *key)
            .unwrap();
        let had = step.after.len();
        step.after.retain(|key| *key.0 != *lost);
        assert_eq!(step.after.len(), had - 1, "{key} waits for {lost}");
        plan.hash = super::super::hash(to.0, plan.goal, &plan.steps);
        why(&plan, to.0, to.1)
    };
    let quorum = Invariant::EtcdQuorum;
    // Two learners at once.
    let (key, lost) = ("machine/c-cp-4/add-member", "machine/c-cp-3/promote-member");
    let seen = broken(&grown, (&desired, &observed), key, lost);
    assert!(seen.contains(&quorum), "{key} without {lost}: {seen:?}");
    for (key, lost) in [
        // It stops while it has a vote.
        (
            "machine/c-cp-2/stop-components",
            "machine/c-cp-2/remove-member",
        ),
        // Its API server asks a member that is none.
        ("machine/c-cp-2/remove-member", "machine/c-cp-2/stop-api"),
        // Clients are sent to it, and it may lead.
        ("machine/c-cp-2/stop-api", "machine/c-cp-2/move-leader"),
        // Two leave at once.
        ("machine/c-cp-1/drain", "machine/c-cp-2/remove-member"),
    ] {
        let mut plan = shrunk.clone();
        let also = StepKey("machine/c-cp-2/delete".into());
        if key.ends_with("drain") {
            let step = plan
                .steps
                .iter_mut()
                .find(|step| *step.key.0 == *key)
                .unwrap();
            step.after.retain(|key| *key != also);
        }
        let seen = broken(&plan, (&small, &shrinking), key, lost);
        assert!(seen.contains(&quorum), "{key} without {lost}: {seen:?}");
    }
}
