//! Any cluster, any half-done change, any legal order, any interruption: safe at every moment, and done at
//! the end.

use super::change::{gone, machines, reborn};
use super::membership::resize;
use super::*;
use crate::model::Reboot;

/// What happens to one machine of a cluster in service.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Stays,
    Reborn,
    Goes,
    /// Its components are to run with another configuration.
    Restarts,
    /// It becomes one of a later minor, and emulates what it was; a worker is reborn.
    Emulates,
    /// It is of a later minor already, and stops emulating what was before it; a worker is reborn.
    Raises,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        Just(Fate::Stays),
        Just(Fate::Reborn),
        Just(Fate::Goes),
        Just(Fate::Restarts),
        Just(Fate::Emulates),
        Just(Fate::Raises)
    ]
}

#[derive(Debug, Clone)]
struct Case {
    members: usize,
    workers: Vec<Fate>,
    /// What all members become.
    control_plane: Fate,
    /// How many members there are to be; those there are when they become others.
    members_after: usize,
    joining: usize,
    newer: bool,
    max_unavailable: u32,
    canaries: u32,
    /// Zones of the workers, by turns; none is in one where there are none.
    zones: Vec<Option<&'static str>>,
    /// Which of the machines there were are restarted besides, by turns.
    reboots: Vec<Option<Reboot>>,
}

fn reboot() -> impl Strategy<Value = Option<Reboot>> {
    let how = (any::<bool>(), any::<bool>());
    prop::option::weighted(
        0.3,
        how.prop_map(|(drain, silent)| Reboot {
            boots: 1,
            drain,
            silent,
        }),
    )
}

prop_compose! {
    fn case()(
        members in prop_oneof![Just(1usize), Just(3), Just(5)],
        workers in prop::collection::vec(fate(), 0..6),
        control_plane in fate(),
        members_after in prop_oneof![Just(1usize), Just(3), Just(5)],
        joining in 0usize..3,
        newer in any::<bool>(),
        max_unavailable in 0u32..4,
        canaries in 0u32..3,
        zones in prop::collection::vec(
            prop_oneof![1 => Just(None), 3 => Just(Some("a")), 3 => Just(Some("b")), 2 => Just(Some("c"))],
            0..5,
        ),
        reboots in prop::collection::vec(reboot(), 0..6),
    ) -> Case {
        Case {
            members, workers, control_plane, members_after, joining, newer, max_unavailable, canaries, zones, reboots,
        }
    }
}

/// The cluster before, brought up by its own plan, and as it is wanted.
fn build(case: &Case) -> (Desired, Observed) {
    let mut before = present(case.members, case.workers.len());
    let members = machines(&mut before).values_mut();
    for member in
        members.filter(|m| m.control_plane() && matches!(case.control_plane, Fate::Raises))
    {
        (member.kubernetes_version, member.emulates) = ("1.38.0".into(), Some(37));
    }
    let mut observed = Observed {
        records: true,
        ..Observed::default()
    };
    let all = plan(&before, &observed).unwrap();
    carry_out(&before, &mut observed, &all, &[0], usize::MAX);
    let mut desired = before;
    // Workers become newer only together with the control plane.
    let newer = case.newer && matches!(case.control_plane, Fate::Reborn | Fate::Raises);
    let version = if newer { "1.38.0" } else { "1.37.2" };
    let other = |desired: &mut Desired, text: &str| {
        let wanted = machines(desired).get_mut(&name(text)).unwrap();
        wanted.components = Digest::of(b"other components");
        wanted.configuration = Digest::of(b"other configuration");
    };
    for i in 0..case.members {
        let text = format!("c-cp-{i}");
        match case.control_plane {
            Fate::Reborn => reborn(&mut desired, &text, version),
            Fate::Restarts => other(&mut desired, &text),
            Fate::Emulates => {
                reborn(&mut desired, &text, "1.38.0");
                machines(&mut desired)
                    .get_mut(&name(&text))
                    .unwrap()
                    .emulates = Some(37);
            }
            Fate::Raises => {
                other(&mut desired, &text);
                machines(&mut desired)
                    .get_mut(&name(&text))
                    .unwrap()
                    .emulates = None;
            }
            Fate::Stays | Fate::Goes => {}
        }
    }
    // A control plane gets another size, or other API servers, not both at once.
    let servers = matches!(
        case.control_plane,
        Fate::Reborn | Fate::Emulates | Fate::Raises
    );
    if !servers && case.members_after != case.members {
        resize(
            &mut desired,
            &mut observed,
            case.members,
            case.members_after,
        );
    }
    for (i, fate) in case.workers.iter().enumerate() {
        let text = format!("c-w-{i}");
        match fate {
            Fate::Stays => {}
            Fate::Reborn | Fate::Emulates | Fate::Raises => reborn(&mut desired, &text, version),
            Fate::Goes => gone(&mut desired, &mut observed, &text),
            Fate::Restarts => other(&mut desired, &text),
        }
    }
    for i in 0..case.joining {
        let (joins, mut wanted) = machine(&format!("c-w-{}", case.workers.len() + i), false);
        wanted.kubernetes_version = version.into();
        machines(&mut desired).insert(joins, wanted);
    }
    for (i, zone) in (0..case.workers.len() + case.joining).zip(case.zones.iter().cycle()) {
        let zone = zone.map(|zone| ZoneName::new(zone).unwrap());
        let of = name(&format!("c-w-{i}"));
        observed.zones.extend(zone.map(|zone| (of, zone)));
    }
    let there = |(name, wanted): &(&MachineName, &mut DesiredMachine)| {
        let found = observed.machines.get(*name);
        found.is_some_and(|found| found.incarnation == wanted.incarnation)
    };
    let stay = machines(&mut desired).iter_mut().filter(there);
    for ((_, wanted), reboot) in stay.zip(case.reboots.iter().cycle()) {
        wanted.reboot = *reboot;
    }
    if let DesiredState::Present { budgets, .. } = &mut desired.state {
        let budget = Budget {
            max_unavailable: case.max_unavailable,
            canaries: case.canaries,
        };
        budgets.insert(pool(), budget);
    }
    (desired, observed)
}

fn is_as_it_should_be(desired: &Desired, observed: &Observed) {
    let DesiredState::Present {
        machines, addons, ..
    } = &desired.state
    else {
        panic!("it is present");
    };
    assert!(observed.endpoint && observed.endpoint_current && observed.addons == Some(*addons));
    assert_eq!(observed.machines.len(), machines.len());
    assert!(observed.surplus.is_empty() && observed.departed.is_empty());
    assert!(observed.out_of_endpoint.is_empty());
    assert!(observed.outside.is_empty() && observed.leaving.is_empty());
    for (name, wanted) in machines {
        let found = &observed.machines[name];
        assert_eq!(found.incarnation, wanted.incarnation);
        assert_eq!(found.started, Some(wanted.components));
        assert_eq!(found.emulates, wanted.emulates);
        assert_eq!(found.configured, Some(wanted.configuration));
        let serves = found.ready && !found.cordoned;
        assert!(
            serves && (wanted.disk.is_none() || found.mounted),
            "{name}: {found:?}"
        );
    }
    assert_eq!(keys(&plan(desired, observed).unwrap()), [""; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_change_is_safe_in_any_order_and_through_interruptions(
        case in case(),
        choices in prop::collection::vec(any::<usize>(), 1..60),
        stops in prop::collection::vec(0usize..60, 0..5),
    ) {
        let (mut desired, mut observed) = build(&case);
        for most in stops.into_iter().chain([usize::MAX]) {
            let plan = match plan(&desired, &observed) {
                Ok(plan) => plan,
                // Nothing is touched when there is no machine to spare.
                Err(PlanError::Spare { .. }) => return Ok(()),
                Err(error) => panic!("{error}"),
            };
            prop_assert_eq!(check(&plan, &desired, &observed), Ok(()));
            let done = carry_out(&desired, &mut observed, &plan, &choices, most);
            for step in plan.steps.iter().filter(|step| done.contains(&step.key)) {
                if let Action::RebootMachine { machine, .. } = &step.action {
                    machines(&mut desired).get_mut(machine).unwrap().reboot = None;
                }
            }
        }
        is_as_it_should_be(&desired, &observed);
    }

    /// An operator changes their mind in the middle of it: whatever was begun, the other way is safe too.
    #[test]
    fn a_change_that_is_given_up_goes_back_to_service(
        case in case(),
        choices in prop::collection::vec(any::<usize>(), 1..60),
        most in 0usize..80,
    ) {
        let (desired, mut observed) = build(&case);
        let Ok(first) = plan(&desired, &observed) else { return Ok(()) };
        carry_out(&desired, &mut observed, &first, &choices, most);
        // What still is what it was stays so, and what only was about to join is given up. Members of etcd
        // that join stay or go together, and one that has left does not come back.
        let mut back = desired.clone();
        let wanted = machines(&mut back);
        wanted.values_mut().for_each(|wanted| wanted.reboot = None);
        let new = |(name, wanted): &(&MachineName, &DesiredMachine)| {
            let found = observed.machines.get(*name);
            wanted.incarnation == Incarnation::FIRST && found.is_none_or(|f| f.labelled.is_none())
        };
        let newcomers = wanted.iter().filter(|(_, m)| m.control_plane()).filter(new);
        let newcomers: Vec<_> = newcomers.map(|(name, _)| name.clone()).collect();
        let vote = newcomers.iter().all(|name| !observed.outside.contains(name));
        // Nobody was told yet of members that do not come.
        for (name, wanted) in wanted.iter_mut().filter(|(_, m)| m.control_plane() && !vote) {
            let found = observed.machines.get(name);
            if let Some((found, started)) = found.and_then(|found| Some((found, found.started?))) {
                (wanted.components, wanted.emulates) = (started, found.emulates);
            }
        }
        for name in newcomers.iter().filter(|_| !vote) {
            wanted.remove(name);
            observed.surplus.insert(name.clone());
            observed.leaving.insert(name.clone());
        }
        for (name, found) in &observed.machines {
            let member = found.pool.is_none();
            let left = observed.surplus.contains(name) && observed.outside.contains(name);
            if member && (left || newcomers.contains(name)) {
                continue;
            }
            let joins = found.incarnation == Incarnation::FIRST && found.labelled.is_none();
            if joins {
                wanted.remove(name);
                observed.surplus.insert(name.clone());
                continue;
            }
            observed.surplus.remove(name);
            observed.leaving.remove(name);
            let now = wanted.entry(name.clone()).or_insert_with(|| machine(name.as_str(), member).1);
            if now.incarnation != found.incarnation {
                (now.incarnation, now.node) = (found.incarnation, found.node.clone());
                now.kubernetes_version.clone_from(&found.kubernetes_version);
                now.emulates = found.emulates;
            }
        }
        let joining = |(name, m): (&MachineName, &mut DesiredMachine)| {
            let joins = m.incarnation == Incarnation::FIRST
                && !observed.machines.contains_key(name)
                && !m.control_plane();
            joins.then(|| name.clone())
        };
        let never: Vec<_> = wanted.iter_mut().filter_map(joining).collect();
        for name in never {
            wanted.remove(&name);
            observed.surplus.insert(name);
        }
        let plan = match plan(&back, &observed) {
            Ok(plan) => plan,
            Err(PlanError::Spare { .. }) => return Ok(()),
            Err(error) => panic!("{error}"),
        };
        prop_assert_eq!(check(&plan, &back, &observed), Ok(()));
        carry_out(&back, &mut observed, &plan, &choices, usize::MAX);
        is_as_it_should_be(&back, &observed);
    }

    #[test]
    fn any_cluster_can_be_deleted_in_any_order_and_through_interruptions(
        case in case(),
        choices in prop::collection::vec(any::<usize>(), 1..40),
        most in 0usize..60,
        stops in prop::collection::vec(0usize..12, 0..4),
        all_disks in any::<bool>(),
    ) {
        let (wanted, mut observed) = build(&case);
        if let Ok(plan) = plan(&wanted, &observed) {
            carry_out(&wanted, &mut observed, &plan, &choices, most);
        }
        let disks: BTreeSet<_> = observed.disks.keys().filter(|_| all_disks).cloned().collect();
        let kept = observed.disks.len() - disks.len();
        let desired = Desired {
            state: DesiredState::Absent { disks },
            ..absent(&[])
        };
        for most in stops.into_iter().chain([usize::MAX]) {
            let plan = plan(&desired, &observed).unwrap();
            prop_assert_eq!(check(&plan, &desired, &observed), Ok(()));
            carry_out(&desired, &mut observed, &plan, &choices, most);
        }
        prop_assert!(observed.machines.is_empty() && !observed.endpoint && !observed.records);
        prop_assert_eq!(observed.disks.len(), kept);
        prop_assert!(plan(&desired, &observed).unwrap().steps.is_empty());
    }

    #[test]
    fn a_new_cluster_comes_up_in_any_order_and_through_interruptions(
        members in prop_oneof![Just(1usize), Just(3), Just(5)],
        workers in 0usize..5,
        choices in prop::collection::vec(any::<usize>(), 1..40),
        stops in prop::collection::vec(0usize..30, 0..4),
    ) {
        let desired = present(members, workers);
        let mut observed = Observed { records: true, ..Observed::default() };
        for most in stops.into_iter().chain([usize::MAX]) {
            let plan = plan(&desired, &observed).unwrap();
            prop_assert_eq!(check(&plan, &desired, &observed), Ok(()));
            carry_out(&desired, &mut observed, &plan, &choices, most);
        }
        is_as_it_should_be(&desired, &observed);
    }

    #[test]
    fn the_same_input_gives_the_same_plan(case in case()) {
        let (desired, observed) = build(&case);
        let text = |plan: Result<Plan, PlanError>| {
            plan.map(|plan| serde_json::to_vec(&plan).unwrap()).map_err(|error| error.to_string())
        };
        prop_assert_eq!(
            text(plan(&desired, &observed)),
            text(plan(&desired.clone(), &observed.clone()))
        );
    }

    #[test]
    fn explanations_are_no_decisions(case in case()) {
        let (desired, observed) = build(&case);
        let Ok(mut plan) = plan(&desired, &observed) else { return Ok(()) };
        for step in &mut plan.steps {
            step.why = "told otherwise".into();
        }
        prop_assert_eq!(check(&plan, &desired, &observed), Ok(()));
    }
}
