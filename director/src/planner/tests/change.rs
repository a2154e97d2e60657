//! Changes and repairs of clusters in service.

use windlass_common::gate::{GateCheck, GateSpec, HttpGate};

use super::*;

/// A cluster that is as it should be at this version.
pub(super) fn serving(control_planes: usize, workers: usize) -> (Desired, Observed) {
    let desired = present(control_planes, workers);
    let mut observed = Observed {
        records: true,
        ..Observed::default()
    };
    let all = plan(&desired, &observed).unwrap();
    carry_out(&desired, &mut observed, &all, &[0], usize::MAX);
    (desired, observed)
}

pub(super) fn machines(desired: &mut Desired) -> &mut BTreeMap<MachineName, DesiredMachine> {
    match &mut desired.state {
        DesiredState::Present { machines, .. } => machines,
        DesiredState::Absent { .. } => panic!("it is present"),
    }
}

pub(super) fn budget(desired: &mut Desired, max_unavailable: u32, canaries: u32) {
    if let DesiredState::Present { budgets, .. } = &mut desired.state {
        let budget = Budget {
            max_unavailable,
            canaries,
        };
        budgets.insert(pool(), budget);
    }
}

/// Wants the next incarnation of a machine, at this version.
pub(super) fn reborn(desired: &mut Desired, machine: &str, version: &str) {
    let name = name(machine);
    let wanted = machines(desired).get_mut(&name).unwrap();
    wanted.incarnation = Incarnation(wanted.incarnation.0 + 1);
    wanted.node = name.node_name(wanted.incarnation).unwrap();
    wanted.kubernetes_version = version.into();
    let told = |what: &str| Digest::of(format!("{} {what}", wanted.node).as_bytes());
    (wanted.configuration, wanted.components) = (told("configuration"), told("components"));
}

/// Wants nothing of a machine any more.
pub(super) fn gone(desired: &mut Desired, observed: &mut Observed, machine: &str) {
    machines(desired).remove(&name(machine));
    observed.surplus.insert(name(machine));
}

fn all_of(plan: &Plan, verb: &str) -> Vec<String> {
    let steps = plan.steps.iter().filter(|s| s.action.name() == verb);
    steps
        .map(|s| s.action.machine().unwrap().to_string())
        .collect()
}

pub(super) fn why(plan: &Plan, desired: &Desired, observed: &Observed) -> Vec<Invariant> {
    let violations = check(plan, desired, observed).err().unwrap_or_default();
    violations.into_iter().map(|v| v.invariant).collect()
}

pub(super) fn checked(desired: &Desired, observed: &Observed) -> Plan {
    let plan = plan(desired, observed).unwrap();
    assert_eq!(check(&plan, desired, observed), Ok(()));
    plan
}

#[test]
fn a_worker_is_drained_deleted_and_made_anew_and_its_old_node_dropped() {
    let (mut desired, observed) = serving(1, 2);
    reborn(&mut desired, "c-w-0", "1.37.2");
    budget(&mut desired, 1, 0);
    let plan = checked(&desired, &observed);
    assert_eq!(
        keys(&plan),
        [
            "api/await",
            "machine/c-w-0/drain",
            "machine/c-w-0/delete",
            "machine/c-w-0/create",
            "machine/c-w-0/await-agent",
            "machine/c-w-0/configure",
            "machine/c-w-0/start",
            "machine/c-w-0/await-node",
            "node/c-w-0-i1/drop",
        ]
    );
    assert_eq!(
        after(&plan, "machine/c-w-0/create"),
        ["machine/c-w-0/delete"]
    );
}

#[test]
fn a_member_that_was_about_to_be_stopped_is_stopped_before_it_goes() {
    for newer in [false, true] {
        let (mut desired, mut observed) = serving(3, 1);
        let found = observed.machines.get_mut(&name("c-cp-1")).unwrap();
        (found.started, found.stopping) = (None, true);
        if newer {
            reborn(&mut desired, "c-cp-1", "1.37.2");
        }
        let mut plan = checked(&desired, &observed);
        let stop = "machine/c-cp-1/stop-components";
        let touched = if newer { "fence" } else { "await-agent" };
        assert!(after(&plan, &format!("machine/c-cp-1/{touched}")).contains(&stop));
        // Who makes a plan without it takes what may be a member that serves.
        plan.steps.retain(|step| *step.key.0 != *stop);
        for step in &mut plan.steps {
            step.after.retain(|key| *key.0 != *stop);
        }
        plan.hash = crate::planner::hash(&desired, plan.goal, &plan.steps);
        assert!(why(&plan, &desired, &observed).contains(&Invariant::EtcdQuorum));
    }
}

#[test]
fn a_worker_that_was_not_seen_in_service_yet_is_drained_before_it_is_given_up() {
    let (mut desired, mut observed) = serving(1, 2);
    let found = observed.machines.get_mut(&name("c-w-1")).unwrap();
    (found.ready, found.labelled) = (false, None);
    gone(&mut desired, &mut observed, "c-w-1");
    let mut plan = checked(&desired, &observed);
    assert_eq!(
        keys(&plan)[1..4],
        ["drain", "fence", "delete"].map(|verb| format!("machine/c-w-1/{verb}"))
    );
    plan.steps.retain(|step| step.action.name() != "drain");
    for step in &mut plan.steps {
        step.after.retain(|key| !key.0.ends_with("/drain"));
    }
    plan.hash = crate::planner::hash(&desired, plan.goal, &plan.steps);
    assert!(why(&plan, &desired, &observed).contains(&Invariant::PodBudgets));
    // What is dead is asked nothing.
    observed.machines.get_mut(&name("c-w-1")).unwrap().running = false;
    assert!(all_of(&checked(&desired, &observed), "drain").is_empty());
}

#[test]
fn gates_stand_between_one_machine_and_the_next() {
    let (mut desired, observed) = serving(3, 2);
    for name in ["c-cp-0", "c-cp-1", "c-w-0", "c-w-1"] {
        reborn(&mut desired, name, "1.37.2");
    }
    budget(&mut desired, 1, 0);
    let open = checked(&desired, &observed);
    assert!(all_of(&open, "await-gates").is_empty());
    if let DesiredState::Present { gates, .. } = &mut desired.state {
        gates.push(GateSpec {
            name: "shop".into(),
            check: GateCheck::Http(HttpGate {
                url: "http://shop/".into(),
                timeout_seconds: 60,
                success_threshold: 1,
            }),
        });
    }
    let plan = checked(&desired, &observed);
    assert_ne!(plan.hash, open.hash, "gates are decisions");
    assert_eq!(
        all_of(&plan, "await-gates"),
        ["c-cp-0", "c-cp-1", "c-w-0", "c-w-1"]
    );
    for (next, before) in [
        ("machine/c-cp-1/drain", "machine/c-cp-0/await-gates"),
        ("machine/c-w-0/drain", "machine/c-cp-1/await-gates"),
        ("machine/c-w-1/drain", "machine/c-w-0/await-gates"),
    ] {
        assert!(
            after(&plan, next).contains(&before),
            "{next} waits for {before}"
        );
    }
}

#[test]
fn a_pool_without_a_machine_to_spare_is_not_touched() {
    let (mut desired, observed) = serving(1, 2);
    reborn(&mut desired, "c-w-0", "1.37.2");
    let error = plan(&desired, &observed).unwrap_err();
    assert!(
        matches!(
            error,
            PlanError::Spare {
                floor: 2,
                available: 2,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn an_upgrade_takes_the_control_plane_one_at_a_time_and_the_workers_after_it() {
    let (mut desired, mut observed) = serving(3, 2);
    for name in ["c-cp-0", "c-cp-1", "c-cp-2", "c-w-0"] {
        reborn(&mut desired, name, "1.38.0");
    }
    let (extra, mut machine) = machine("c-w-2", false);
    machine.kubernetes_version = "1.38.0".into();
    machines(&mut desired).insert(extra, machine);
    gone(&mut desired, &mut observed, "c-w-1");
    let plan = checked(&desired, &observed);
    assert_eq!(
        all_of(&plan, "leave-endpoint"),
        ["c-cp-0", "c-cp-1", "c-cp-2"]
    );
    assert_eq!(
        after(&plan, "machine/c-cp-1/drain"),
        [
            "machine/c-cp-0/await-node",
            "machine/c-cp-0/join-endpoint",
            "machine/c-cp-1/add-routes"
        ]
    );
    assert_eq!(
        after(&plan, "machine/c-cp-0/stop-components"),
        ["machine/c-cp-0/move-leader", "machine/c-cp-0/save-snapshot"]
    );
    assert_eq!(
        after(&plan, "machine/c-cp-0/move-leader"),
        ["machine/c-cp-0/leave-endpoint"]
    );
    assert!(after(&plan, "machine/c-w-2/create").contains(&"machine/c-cp-2/await-node"));
    assert!(after(&plan, "machine/c-w-0/drain").contains(&"checkpoint/w-made"));
    assert!(after(&plan, "machine/c-w-1/drain").contains(&"machine/c-w-0/await-node"));
    assert!(
        plan.steps
            .iter()
            .all(|step| step.disrupts != Disruption::Api)
    );
    // The disks stay: nothing makes or deletes one.
    assert!(all_of(&plan, "create-disk").is_empty());
    assert_eq!(all_of(&plan, "attach-disk"), ["c-cp-0", "c-cp-1", "c-cp-2"]);
}

#[test]
fn a_control_plane_of_one_says_that_its_api_will_be_down() {
    let (mut desired, observed) = serving(1, 1);
    reborn(&mut desired, "c-cp-0", "1.38.0");
    let plan = checked(&desired, &observed);
    let down: Vec<_> = plan
        .steps
        .iter()
        .filter(|step| step.disrupts == Disruption::Api)
        .map(|step| &*step.key.0)
        .collect();
    assert_eq!(down, ["machine/c-cp-0/stop-components"]);
    assert_eq!(
        after(&plan, "node/c-cp-0-i1/drop"),
        [
            "api/await",
            "machine/c-cp-0/await-control-plane",
            "machine/c-cp-0/delete"
        ]
    );
}

#[test]
fn machines_that_are_down_go_first_and_cost_nothing() {
    let (mut desired, mut observed) = serving(1, 3);
    budget(&mut desired, 1, 0);
    for name in ["c-w-0", "c-w-1", "c-w-2"] {
        reborn(&mut desired, name, "1.37.2");
    }
    observed.machines.get_mut(&name("c-w-2")).unwrap().running = false;
    let plan = checked(&desired, &observed);
    assert_eq!(
        all_of(&plan, "drain"),
        ["c-w-0", "c-w-1"],
        "nobody can leave the dead one"
    );
    assert!(after(&plan, "machine/c-w-0/drain").contains(&"checkpoint/w-made"));
    assert_eq!(after(&plan, "machine/c-w-2/fence"), ["api/await"]);
}

/// A cluster in which one machine serves nobody and is to be made anew.
pub(super) fn dead(members: usize, machine: &str) -> (Desired, Observed) {
    let (mut desired, mut observed) = serving(members, 2);
    reborn(&mut desired, machine, "1.37.2");
    observed.machines.get_mut(&name(machine)).unwrap().running = false;
    (desired, observed)
}

#[test]
fn a_dead_worker_is_shut_out_before_its_pods_and_its_name_are_given_away() {
    let (desired, observed) = dead(1, "c-w-0");
    let plan = checked(&desired, &observed);
    assert_eq!(
        keys(&plan),
        [
            "api/await",
            "machine/c-w-0/fence",
            "machine/c-w-0/delete",
            "machine/c-w-0/create",
            "machine/c-w-0/await-agent",
            "machine/c-w-0/configure",
            "machine/c-w-0/start",
            "machine/c-w-0/await-node",
            "checkpoint/w-made",
            "node/c-w-0-i1/drop",
        ]
    );
    // Its pods need not wait until it is deleted, and its successor not until they have gone.
    assert_eq!(
        after(&plan, "node/c-w-0-i1/drop"),
        ["api/await", "machine/c-w-0/fence"]
    );
    assert_eq!(
        after(&plan, "machine/c-w-0/delete"),
        ["machine/c-w-0/fence"]
    );
    assert_eq!(
        after(&plan, "machine/c-w-0/create"),
        ["api/await", "machine/c-w-0/delete"]
    );
}

#[test]
fn a_fence_that_was_cut_off_is_repeated_before_anything_else() {
    let (desired, mut observed) = dead(1, "c-w-0");
    let half = plan(&desired, &observed).unwrap();
    carry_out(&desired, &mut observed, &half, &[0], 2);
    let found = observed.machines.get_mut(&name("c-w-0")).unwrap();
    assert!(found.fenced);
    // It was written down, and the power was not cut yet.
    found.running = true;
    let plan = checked(&desired, &observed);
    assert_eq!(all_of(&plan, "fence"), ["c-w-0"]);
    assert_eq!(
        after(&plan, "node/c-w-0-i1/drop"),
        ["api/await", "machine/c-w-0/fence"]
    );
    carry_out(&desired, &mut observed, &plan, &[0], usize::MAX);
    assert_eq!(super::super::plan(&desired, &observed).unwrap().steps, []);
}

#[test]
fn a_dead_member_comes_back_with_its_disk_and_without_a_change_of_membership() {
    for members in [1, 3, 5] {
        let (desired, mut observed) = dead(members, "c-cp-0");
        let plan = checked(&desired, &observed);
        assert_eq!(all_of(&plan, "fence"), ["c-cp-0"]);
        assert_eq!(all_of(&plan, "attach-disk"), ["c-cp-0"]);
        assert!(all_of(&plan, "create-disk").is_empty());
        carry_out(&desired, &mut observed, &plan, &[0], usize::MAX);
        assert_eq!(super::super::plan(&desired, &observed).unwrap().steps, []);
    }
}

#[test]
fn a_lost_majority_is_brought_back_without_asking_its_api_first() {
    let (mut desired, mut observed) = dead(3, "c-cp-0");
    reborn(&mut desired, "c-cp-1", "1.37.2");
    observed.machines.get_mut(&name("c-cp-1")).unwrap().running = false;
    let plan = checked(&desired, &observed);
    assert_eq!(all_of(&plan, "fence"), ["c-cp-0", "c-cp-1"]);
    assert!(after(&plan, "machine/c-cp-0/fence").is_empty());
    assert!(!keys(&plan).contains(&"api/await"));
    carry_out(&desired, &mut observed, &plan, &[0], usize::MAX);
    assert_eq!(super::super::plan(&desired, &observed).unwrap().steps, []);
}

#[test]
fn a_repair_touches_nothing_but_what_it_names() {
    let (mut desired, mut observed) = dead(3, "c-w-0");
    // Everything else that could be done: another dead worker, an upgrade, one that goes, one that joins.
    reborn(&mut desired, "c-w-1", "1.37.2");
    observed.machines.get_mut(&name("c-w-1")).unwrap().running = false;
    reborn(&mut desired, "c-cp-1", "1.37.2");
    let (joins, joining) = machine("c-w-7", false);
    machines(&mut desired).insert(joins, joining);
    observed.out_of_endpoint.insert(name("c-cp-2"));
    observed.departed.insert(
        name("c-w-1"),
        [name("c-w-1").node_name(Incarnation(9)).unwrap()].into(),
    );
    observed.addons = None;
    let only = [name("c-w-0")].into();
    super::super::narrow(&mut desired, &mut observed, &only, &BTreeSet::new());
    let plan = checked(&desired, &observed);
    assert_eq!(all_of(&plan, "fence"), ["c-w-0"]);
    for step in plan.steps.iter().filter(|s| s.action.name() != "await-api") {
        let machine = step.action.machine();
        assert!(machine.is_none_or(|m| *m == name("c-w-0")), "{step:?}");
    }
    assert!(!keys(&plan).contains(&"addons/apply"));
}

#[test]
fn a_repair_takes_one_machine_of_a_pool_that_may_lack_none() {
    let (mut desired, observed) = serving(1, 3);
    budget(&mut desired, 0, 0);
    reborn(&mut desired, "c-w-1", "1.37.2");
    let only = BTreeSet::from([name("c-w-1")]);
    assert!(matches!(
        plan(&desired, &observed),
        Err(PlanError::Spare { changing: 1, .. })
    ));
    let (mut narrowed, mut seen) = (desired.clone(), observed.clone());
    super::super::narrow(&mut narrowed, &mut seen, &only, &BTreeSet::new());
    assert_eq!(all_of(&checked(&narrowed, &seen), "drain"), ["c-w-1"]);
    // Another one serves nobody: that was the one to spare.
    let (mut narrowed, mut seen) = (desired, observed);
    super::super::narrow(&mut narrowed, &mut seen, &only, &[name("c-w-2")].into());
    assert!(matches!(
        plan(&narrowed, &seen),
        Err(PlanError::Spare { changing: 1, .. })
    ));
}

#[test]
fn canaries_come_before_the_others() {
    let (mut desired, observed) = serving(1, 4);
    budget(&mut desired, 2, 1);
    for i in 0..4 {
        reborn(&mut desired, &format!("c-w-{i}"), "1.37.2");
    }
    let plan = checked(&desired, &observed);
    assert_eq!(
        after(&plan, "checkpoint/w-canaries"),
        ["machine/c-w-0/await-node"]
    );
    for i in 1..4 {
        let drain = format!("machine/c-w-{i}/drain");
        assert!(after(&plan, &drain).contains(&"checkpoint/w-canaries"));
    }
}

#[test]
fn components_are_restarted_in_place_one_machine_of_a_pool_at_a_time() {
    let (mut desired, observed) = serving(3, 3);
    budget(&mut desired, 0, 0);
    for machine in machines(&mut desired).values_mut() {
        machine.configuration = Digest::of(b"other");
        machine.components = Digest::of(b"other");
    }
    let plan = checked(&desired, &observed);
    assert!(all_of(&plan, "drain").is_empty() && all_of(&plan, "delete").is_empty());
    assert_eq!(all_of(&plan, "start-components").len(), 6);
    for (machine, before) in [("c-w-1", "c-w-0"), ("c-w-2", "c-w-1"), ("c-cp-1", "c-cp-0")] {
        let after = after(&plan, &format!("machine/{machine}/start"));
        let agent = self::after(&plan, &format!("machine/{machine}/await-agent"));
        let ends = format!("machine/{before}/await-node");
        let leaves = format!("machine/{machine}/leave-endpoint");
        let waits = [after, agent].concat();
        let left = keys(&plan).contains(&leaves.as_str());
        let gated = left && self::after(&plan, &leaves).contains(&ends.as_str());
        assert!(
            gated || waits.contains(&ends.as_str()),
            "{machine}: {waits:?}"
        );
    }
    // Two at once break the budget of none.
    let mut broken = plan;
    for step in broken
        .steps
        .iter_mut()
        .filter(|s| s.key.0.starts_with("machine/c-w-1/"))
    {
        step.after
            .retain(|key| !key.0.starts_with("machine/c-w-0/"));
    }
    broken.hash = super::super::hash(&desired, broken.goal, &broken.steps);
    assert_eq!(why(&broken, &desired, &observed), [Invariant::Budget]);
}

#[test]
fn the_only_member_saves_what_it_holds_before_it_starts_anew() {
    let (mut desired, observed) = serving(1, 1);
    for machine in machines(&mut desired).values_mut() {
        machine.configuration = Digest::of(b"other");
        machine.components = Digest::of(b"other");
    }
    let plan = checked(&desired, &observed);
    assert_eq!(all_of(&plan, "save-snapshot"), ["c-cp-0"]);
    assert!(after(&plan, "machine/c-cp-0/await-agent").contains(&"machine/c-cp-0/save-snapshot"));
    let begins = ["configure", "start"].map(|verb| format!("machine/c-cp-0/{verb}"));
    for step in begins {
        assert!(after(&plan, &step).contains(&"machine/c-cp-0/await-agent"));
    }
}

/// A cluster in service whose machines are to get other components in place.
fn refitted() -> (Desired, Observed) {
    let (mut desired, observed) = serving(3, 3);
    budget(&mut desired, 0, 0);
    for machine in machines(&mut desired).values_mut() {
        machine.configuration = Digest::of(b"other");
        machine.components = Digest::of(b"other");
        machine.refit = Some(Refit {
            stemcell: "s2".into(),
            changes: "containerd 2.2.9 to 2.3.7".into(),
        });
    }
    (desired, observed)
}

#[test]
fn components_are_staged_before_anything_stops_and_nothing_is_replaced() {
    let (desired, observed) = refitted();
    let plan = checked(&desired, &observed);
    assert!(all_of(&plan, "drain").is_empty() && all_of(&plan, "delete").is_empty());
    assert_eq!(all_of(&plan, "stage-components").len(), 6);
    for machine in ["c-cp-0", "c-cp-1", "c-w-0", "c-w-1"] {
        let key = |verb: &str| format!("machine/{machine}/{verb}");
        let stage = key("stage");
        assert!(after(&plan, &key("configure")).contains(&stage.as_str()));
        let first = if machine.contains("cp") {
            "leave-endpoint"
        } else {
            "await-agent"
        };
        assert!(
            after(&plan, &key(first)).contains(&stage.as_str()),
            "{machine}"
        );
        let step = plan
            .steps
            .iter()
            .find(|step| *step.key.0 == *stage)
            .unwrap();
        assert!(
            step.why.contains("containerd 2.2.9 to 2.3.7"),
            "{}",
            step.why
        );
    }
    // One at a time: staged after the one before is back.
    for (machine, before) in [("c-w-1", "c-w-0"), ("c-cp-1", "c-cp-0")] {
        let ends = format!("machine/{before}/await-node");
        let stages = format!("machine/{machine}/stage");
        assert!(after(&plan, &stages).contains(&ends.as_str()), "{machine}");
    }
    // Told as it will be, for the sake of routes, and not switched.
    let mut told = observed.clone();
    for found in told.machines.values_mut() {
        found.configured = Some(Digest::of(b"other"));
    }
    assert_eq!(all_of(&checked(&desired, &told), "configure").len(), 6);
}

#[test]
fn the_checker_sees_links_that_lead_nowhere() {
    let (mut desired, observed) = refitted();
    let good = checked(&desired, &observed);
    let without = |verb: &str| {
        let mut plan = good.clone();
        let key = StepKey::from(format!("machine/c-w-0/{verb}"));
        let above = plan
            .steps
            .iter()
            .find(|s| s.key == key)
            .unwrap()
            .after
            .clone();
        plan.steps.retain(|step| step.key != key);
        for step in plan.steps.iter_mut().filter(|s| s.after.contains(&key)) {
            step.after.retain(|k| *k != key);
            step.after.extend(above.iter().cloned());
        }
        plan.hash = super::super::hash(&desired, plan.goal, &plan.steps);
        why(&plan, &desired, &observed)
    };
    assert_eq!(without("stage"), [Invariant::StepEnds]);
    assert_eq!(without("configure"), [Invariant::StepEnds]);
    // Another stemcell's than is wanted.
    let mut plan = good.clone();
    for machine in machines(&mut desired).values_mut() {
        machine.refit.as_mut().unwrap().stemcell = "s3".into();
    }
    plan.hash = super::super::hash(&desired, plan.goal, &plan.steps);
    assert!(why(&plan, &desired, &observed).contains(&Invariant::StepEnds));
}

#[test]
fn disks_grow_in_place_one_member_after_the_other_before_anything_counts_on_it() {
    for (members, told) in [(3, true), (3, false), (1, true), (1, false)] {
        let (mut desired, mut observed) = serving(members, 1);
        for (machine, wanted) in machines(&mut desired).iter_mut() {
            if wanted.control_plane() {
                observed.short_of_disk.insert(machine.clone());
                if !told {
                    wanted.configuration = Digest::of(b"other");
                    wanted.components = Digest::of(b"other");
                }
            }
        }
        let plan = checked(&desired, &observed);
        assert!(all_of(&plan, "delete").is_empty(), "in place");
        assert_eq!(all_of(&plan, "grow-disk").len(), members);
        for i in 0..members {
            let grow = format!("machine/c-cp-{i}/grow-disk");
            let start = format!("machine/c-cp-{i}/start");
            assert!(after(&plan, &start).contains(&grow.as_str()));
            if !told {
                let configure = format!("machine/c-cp-{i}/configure");
                assert!(after(&plan, &configure).contains(&grow.as_str()));
            }
        }
        if members > 1 {
            let leaves = after(&plan, "machine/c-cp-1/leave-endpoint");
            assert!(leaves.contains(&"machine/c-cp-0/await-node"), "{leaves:?}");
        }
        let grown = plan;
        carry_out(&desired, &mut observed, &grown, &[0], usize::MAX);
        assert!(observed.short_of_disk.is_empty());
        assert!(super::plan(&desired, &observed).unwrap().steps.is_empty());
    }
}

#[test]
fn quorum_is_not_spent_on_a_change() {
    let (mut desired, mut observed) = serving(3, 0);
    reborn(&mut desired, "c-cp-0", "1.37.2");
    observed.machines.get_mut(&name("c-cp-1")).unwrap().running = false;
    let error = plan(&desired, &observed).unwrap_err();
    assert!(
        matches!(
            error,
            PlanError::Quorum {
                left: 1,
                quorum: 2,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_member_whose_disk_is_gone_is_not_made_anew_from_nothing() {
    let (mut desired, mut observed) = serving(3, 0);
    reborn(&mut desired, "c-cp-0", "1.37.2");
    observed.disks.remove(&disk("c-cp-0-data"));
    let error = plan(&desired, &observed).unwrap_err();
    assert!(matches!(error, PlanError::DiskLost { .. }), "{error}");
}

#[test]
fn members_do_not_go_disks_are_not_stolen_and_later_incarnations_not_killed() {
    let (mut desired, mut observed) = serving(3, 0);
    let stolen = observed.disks.get_mut(&disk("c-cp-0-data")).unwrap();
    stolen.attached_to = Some(name("stranger"));
    reborn(&mut desired, "c-cp-0", "1.37.2");
    let error = plan(&desired, &observed).unwrap_err();
    assert!(matches!(error, PlanError::DiskHeld { .. }), "{error}");
    let (mut desired, mut observed) = serving(3, 0);
    gone(&mut desired, &mut observed, "c-cp-2");
    let error = plan(&desired, &observed).unwrap_err();
    assert!(
        matches!(error, PlanError::ControlPlaneMachine { .. }),
        "{error}"
    );
    let (desired, mut observed) = serving(1, 1);
    observed
        .machines
        .get_mut(&name("c-w-0"))
        .unwrap()
        .incarnation = Incarnation(2);
    let error = plan(&desired, &observed).unwrap_err();
    assert!(
        matches!(error, PlanError::LaterIncarnation { .. }),
        "{error}"
    );
}

#[test]
fn machines_that_join_have_routes_before_pods_and_those_that_went_lose_theirs() {
    let (mut desired, mut observed) = serving(1, 2);
    let (extra, machine) = machine("c-w-2", false);
    machines(&mut desired).insert(extra, machine);
    for wanted in machines(&mut desired).values_mut() {
        wanted.configuration = Digest::of(wanted.node.as_str().as_bytes());
    }
    let plan_up = checked(&desired, &observed);
    assert_eq!(all_of(&plan_up, "add-routes"), ["c-cp-0", "c-w-0", "c-w-1"]);
    assert!(after(&plan_up, "machine/c-w-2/start").contains(&"checkpoint/routes"));
    assert!(all_of(&plan_up, "prune-routes").is_empty());
    carry_out(&desired, &mut observed, &plan_up, &[0], usize::MAX);
    assert_eq!(keys(&checked(&desired, &observed)), [""; 0]);
    gone(&mut desired, &mut observed, "c-w-2");
    for wanted in machines(&mut desired).values_mut() {
        wanted.configuration = Digest::of(b"two workers again");
    }
    let plan_down = checked(&desired, &observed);
    assert_eq!(all_of(&plan_down, "drain"), ["c-w-2"]);
    assert_eq!(
        all_of(&plan_down, "prune-routes"),
        ["c-cp-0", "c-w-0", "c-w-1"]
    );
    assert_eq!(
        after(&plan_down, "machine/c-w-2/forget"),
        ["machine/c-w-2/delete", "node/c-w-2-i1/drop"]
    );
    carry_out(&desired, &mut observed, &plan_down, &[0], usize::MAX);
    assert_eq!(keys(&checked(&desired, &observed)), [""; 0]);
}

#[test]
fn a_node_that_was_to_go_and_stays_is_opened_again() {
    let (desired, mut observed) = serving(3, 1);
    observed.machines.get_mut(&name("c-w-0")).unwrap().cordoned = true;
    observed.out_of_endpoint.insert(name("c-cp-1"));
    let plan = checked(&desired, &observed);
    assert_eq!(
        keys(&plan),
        [
            "api/await",
            "machine/c-w-0/uncordon",
            "machine/c-cp-1/await-agent",
            "machine/c-cp-1/await-control-plane",
            "machine/c-cp-1/join-endpoint",
        ]
    );
}

/// 10 000 machines in 100 clusters: the work has to grow with the machines, not with their square.
#[test]
fn plans_grow_with_their_machines() {
    let steps = |workers: usize| {
        let (mut desired, observed) = serving(3, workers);
        budget(&mut desired, 3, 1);
        for i in 0..workers {
            reborn(&mut desired, &format!("c-w-{i}"), "1.37.2");
        }
        let plan = plan(&desired, &observed).unwrap();
        let edges: usize = plan.steps.iter().map(|step| step.after.len()).sum();
        (plan.steps.len(), edges)
    };
    let ((few, few_edges), (many, many_edges)) = (steps(10), steps(100));
    assert!(
        many <= 10 * few,
        "{many} steps for ten times the machines of {few}"
    );
    assert!(
        many_edges <= 11 * few_edges,
        "{many_edges} edges, {few_edges} of a tenth"
    );
}

#[test]
fn more_that_were_begun_with_than_may_be_missing_come_back_before_others_go() {
    let (mut desired, mut observed) = serving(1, 5);
    for i in 0..5 {
        reborn(&mut desired, &format!("c-w-{i}"), "1.37.2");
    }
    // Two may be missing, and an earlier plan has begun with three.
    if let DesiredState::Present { budgets, .. } = &mut desired.state {
        let budget = Budget {
            max_unavailable: 2,
            canaries: 0,
        };
        budgets.insert(pool(), budget);
    }
    for i in 1..4 {
        let begun = name(&format!("c-w-{i}"));
        observed.machines.get_mut(&begun).unwrap().cordoned = true;
    }
    let plan = plan(&desired, &observed).unwrap();
    assert_eq!(check(&plan, &desired, &observed), Ok(()));
    carry_out(&desired, &mut observed, &plan, &[0], usize::MAX);
    assert!(keys(&super::plan(&desired, &observed).unwrap()).is_empty());
}
