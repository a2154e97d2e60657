//! Tables and properties. `world` is a model of what steps do, used by both.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use windlass_common::id::{ClusterName, Digest, DiskName, Incarnation, MachineName};

use super::{
    Desired, DesiredMachine, DesiredState, Observed, ObservedDisk, ObservedMachine, PlanError, plan,
};
use crate::model::{Action, Plan, PlanStep, StepKey};
use crate::plan::check;

fn name(text: &str) -> MachineName {
    MachineName::new(text).unwrap()
}

fn disk(text: &str) -> DiskName {
    DiskName::new(text).unwrap()
}

fn machine(text: &str, control_plane: bool) -> (MachineName, DesiredMachine) {
    let machine = DesiredMachine {
        control_plane,
        incarnation: Incarnation(1),
        node: name(text).node_name(Incarnation(1)).unwrap(),
        stemcell: "s1".into(),
        kubernetes_version: "1.37.2".into(),
        disk: control_plane.then(|| disk(&format!("{text}-data"))),
        configuration: Digest::of(text.as_bytes()),
    };
    (name(text), machine)
}

fn present(control_planes: usize, workers: usize) -> Desired {
    let machines = (0..control_planes)
        .map(|i| machine(&format!("c-cp-{i}"), true))
        .chain((0..workers).map(|i| machine(&format!("c-w-{i}"), false)))
        .collect();
    Desired {
        cluster: ClusterName::new("c").unwrap(),
        state: DesiredState::Present {
            endpoint: ("10.0.0.2".parse().unwrap(), 6443),
            machines,
            addons: Digest::of(b"addons"),
        },
    }
}

fn absent(disks: &[&str]) -> Desired {
    Desired {
        cluster: ClusterName::new("c").unwrap(),
        state: DesiredState::Absent {
            disks: disks.iter().map(|d| disk(d)).collect(),
        },
    }
}

/// A model of the world: what one step does to what is observed.
fn execute(desired: &Desired, observed: &mut Observed, action: &Action) {
    let wanted = |m: &MachineName| match &desired.state {
        DesiredState::Present { machines, .. } => machines[m].clone(),
        DesiredState::Absent { .. } => panic!("nothing is made of an absent cluster"),
    };
    match action {
        Action::EnsureEndpoint => (observed.endpoint, observed.endpoint_current) = (true, true),
        Action::CreateDisk { disk, .. } => {
            observed
                .disks
                .entry(disk.clone())
                .or_insert(ObservedDisk { attached_to: None });
        }
        Action::CreateMachine { machine } => {
            let wanted = wanted(machine);
            let made = ObservedMachine {
                incarnation: wanted.incarnation,
                node: wanted.node,
                complete: true,
                mounted: false,
                configured: None,
                started: None,
                ready: false,
            };
            let found = observed.machines.get(machine);
            assert!(found.is_none_or(|f| f.incarnation == made.incarnation && !f.complete));
            observed.machines.insert(machine.clone(), made);
        }
        Action::AttachDisk { disk, machine } => {
            assert!(observed.machines.contains_key(machine));
            let disk = observed.disks.get_mut(disk).unwrap();
            assert!(
                disk.attached_to
                    .as_ref()
                    .is_none_or(|holder| holder == machine)
            );
            disk.attached_to = Some(machine.clone());
        }
        Action::AwaitAgent { machine } => assert!(observed.machines[machine].complete),
        Action::MountDisk { machine } => {
            let data = wanted(machine).disk.unwrap();
            assert_eq!(observed.disks[&data].attached_to.as_ref(), Some(machine));
            observed.machines.get_mut(machine).unwrap().mounted = true;
        }
        Action::Configure { machine } => {
            let digest = wanted(machine).configuration;
            observed.machines.get_mut(machine).unwrap().configured = Some(digest);
        }
        Action::StartComponents { machine } => {
            let wanted = wanted(machine);
            let found = observed.machines.get_mut(machine).unwrap();
            assert!(
                wanted.disk.is_none() || found.mounted,
                "etcd would write to the root disk"
            );
            found.started = found.configured;
        }
        Action::AwaitControlPlane { machine } => {
            assert!(observed.machines[machine].started.is_some());
        }
        Action::ApplyAddons => {
            if let DesiredState::Present { addons, .. } = &desired.state {
                observed.addons = Some(*addons);
            }
        }
        Action::AwaitNode { machine, .. } => {
            observed.machines.get_mut(machine).unwrap().ready = true;
        }
        Action::DropNode { machine, node } => {
            assert!(
                observed
                    .machines
                    .get(machine)
                    .is_none_or(|m| m.node != *node)
            );
        }
        Action::DeleteMachine { machine } => {
            observed.machines.remove(machine);
            for disk in observed.disks.values_mut() {
                disk.attached_to.take_if(|holder| holder == machine);
            }
        }
        Action::DeleteDisk { disk } => {
            let gone = observed.disks.remove(disk).unwrap();
            assert_eq!(gone.attached_to, None);
        }
        Action::DeleteEndpoint => observed.endpoint = false,
        Action::ForgetCluster => {
            assert!(observed.machines.is_empty() && !observed.endpoint);
            observed.records = false;
        }
    }
}

/// Carries a plan out, choosing by `choices` which ready step comes next, for at most `most` steps.
fn carry_out(
    desired: &Desired,
    observed: &mut Observed,
    plan: &Plan,
    choices: &[usize],
    most: usize,
) {
    let mut done: BTreeSet<StepKey> = BTreeSet::new();
    for turn in 0..most {
        let ready: Vec<&PlanStep> = plan
            .steps
            .iter()
            .filter(|s| !done.contains(&s.key) && s.after.iter().all(|k| done.contains(k)))
            .collect();
        if ready.is_empty() {
            break;
        }
        let choice = choices
            .get(turn % choices.len().max(1))
            .copied()
            .unwrap_or(0);
        let step = ready[choice % ready.len()];
        execute(desired, observed, &step.action);
        done.insert(step.key.clone());
    }
}

fn keys(plan: &Plan) -> Vec<&str> {
    plan.steps.iter().map(|step| step.key.0.as_str()).collect()
}

fn after<'a>(plan: &'a Plan, key: &str) -> Vec<&'a str> {
    let step = plan.steps.iter().find(|step| step.key.0 == key).unwrap();
    step.after.iter().map(|key| key.0.as_str()).collect()
}

#[test]
fn a_new_cluster_starts_everything_at_once() {
    let desired = present(1, 2);
    let observed = Observed::default();
    let plan = plan(&desired, &observed).unwrap();
    assert_eq!(check(&plan, &desired, &observed), Ok(()));
    let first: Vec<_> = plan
        .steps
        .iter()
        .filter(|step| step.after.is_empty())
        .map(|step| step.key.0.as_str())
        .collect();
    assert_eq!(
        first,
        [
            "endpoint/ensure",
            "machine/c-cp-0/create",
            "disk/c-cp-0-data/create",
            "machine/c-w-0/create",
            "machine/c-w-1/create",
        ]
    );
    // A worker's components wait for nothing of the control plane.
    assert_eq!(
        after(&plan, "machine/c-w-1/configure"),
        ["machine/c-w-1/await-agent"]
    );
    assert_eq!(
        after(&plan, "machine/c-w-1/start"),
        ["machine/c-w-1/await-agent", "machine/c-w-1/configure"]
    );
    assert_eq!(plan.steps.len(), 21);
}

#[test]
fn members_of_etcd_are_not_made_to_wait_for_one_another() {
    let plan = plan(&present(3, 0), &Observed::default()).unwrap();
    for i in 0..3 {
        let start = after(&plan, &format!("machine/c-cp-{i}/start"));
        assert!(
            start.iter().all(|key| key.contains(&format!("c-cp-{i}"))),
            "{start:?}"
        );
    }
}

#[test]
fn what_is_as_it_should_be_needs_no_plan() {
    let desired = present(3, 2);
    let mut observed = Observed::default();
    let all = plan(&desired, &observed).unwrap();
    carry_out(&desired, &mut observed, &all, &[0], usize::MAX);
    assert_eq!(keys(&plan(&desired, &observed).unwrap()), [""; 0]);
}

#[test]
fn a_deletion_keeps_disks_that_it_does_not_name() {
    let desired = present(1, 1);
    let mut observed = Observed {
        records: true,
        ..Observed::default()
    };
    let all = plan(&desired, &observed).unwrap();
    carry_out(&desired, &mut observed, &all, &[0], usize::MAX);
    let unnamed = plan(&absent(&[]), &observed).unwrap();
    assert_eq!(
        keys(&unnamed),
        [
            "machine/c-cp-0/delete",
            "machine/c-w-0/delete",
            "endpoint/delete",
            "cluster/forget"
        ]
    );
    let named = absent(&["c-cp-0-data"]);
    let plan = plan(&named, &observed).unwrap();
    assert_eq!(
        after(&plan, "disk/c-cp-0-data/delete"),
        ["machine/c-cp-0/delete"]
    );
    assert_eq!(check(&plan, &named, &observed), Ok(()));
    assert!(check(&plan, &absent(&[]), &observed).is_err());
}

#[test]
fn another_incarnation_of_a_worker_is_replaced_and_its_node_dropped() {
    let desired = present(1, 1);
    let mut observed = Observed::default();
    let all = plan(&desired, &observed).unwrap();
    carry_out(&desired, &mut observed, &all, &[0], usize::MAX);
    let DesiredState::Present {
        mut machines,
        endpoint,
        addons,
    } = desired.state
    else {
        panic!("it is present");
    };
    let worker = machines.get_mut(&name("c-w-0")).unwrap();
    worker.incarnation = Incarnation(2);
    worker.node = name("c-w-0").node_name(Incarnation(2)).unwrap();
    let desired = Desired {
        state: DesiredState::Present {
            machines,
            endpoint,
            addons,
        },
        ..desired
    };
    let plan = plan(&desired, &observed).unwrap();
    assert_eq!(check(&plan, &desired, &observed), Ok(()));
    assert_eq!(
        after(&plan, "machine/c-w-0/create"),
        ["machine/c-w-0/delete"]
    );
    assert_eq!(
        after(&plan, "machine/c-w-0/drop-node"),
        ["machine/c-cp-0/await-control-plane", "machine/c-w-0/delete"]
    );
}

#[test]
fn members_of_etcd_are_not_replaced_and_disks_not_stolen() {
    let desired = present(1, 0);
    let mut observed = Observed::default();
    let all = plan(&desired, &observed).unwrap();
    carry_out(&desired, &mut observed, &all, &[0], usize::MAX);
    let mut other = observed.clone();
    other.machines.get_mut(&name("c-cp-0")).unwrap().incarnation = Incarnation(7);
    assert!(matches!(
        plan(&desired, &other),
        Err(PlanError::ControlPlaneMachine { .. })
    ));
    let mut stolen = observed;
    stolen
        .disks
        .get_mut(&disk("c-cp-0-data"))
        .unwrap()
        .attached_to = Some(name("stranger"));
    assert!(matches!(
        plan(&desired, &stolen),
        Err(PlanError::DiskHeld { .. })
    ));
}

/// Every way to break a plan that the checker must see: one entry each, with the step that is broken.
#[test]
fn the_checker_sees_broken_plans() {
    let desired = present(1, 1);
    let observed = Observed::default();
    let good = plan(&desired, &observed).unwrap();
    let broken = |key: &str, change: &dyn Fn(&mut PlanStep)| {
        let mut plan = good.clone();
        change(
            plan.steps
                .iter_mut()
                .find(|step| step.key.0 == key)
                .unwrap(),
        );
        plan.hash = super::hash(&desired, plan.goal, &plan.steps);
        check(&plan, &desired, &observed).is_err()
    };
    for key in [
        "machine/c-cp-0/attach-disk",
        "machine/c-w-0/await-agent",
        "machine/c-cp-0/mount-disk",
        "machine/c-w-0/configure",
        "machine/c-w-0/start",
        "machine/c-cp-0/await-control-plane",
        "addons/apply",
        "machine/c-w-0/await-node",
    ] {
        assert!(
            broken(key, &|step| step.after.clear()),
            "{key} without what it needs"
        );
        assert!(
            broken(key, &|step| step.after =
                vec![StepKey("addons/none".into())]),
            "{key} after a step that is not there"
        );
        assert!(
            broken(key, &|step| step.after.push(step.key.clone())),
            "{key} after itself"
        );
        assert!(
            broken(key, &|step| step.key = StepKey("endpoint/ensure".into())),
            "{key} twice"
        );
    }
    let delete = |m: &str| Action::DeleteMachine { machine: name(m) };
    assert!(broken("endpoint/ensure", &|step| step.action = delete("c-cp-0")));
    assert!(broken("endpoint/ensure", &|step| {
        step.action = Action::DeleteDisk {
            disk: disk("c-cp-0-data"),
        };
    }));
    assert!(broken("endpoint/ensure", &|step| step.action =
        Action::ForgetCluster));
    assert!(broken("endpoint/ensure", &|step| {
        step.action = Action::CreateMachine {
            machine: name("stranger"),
        };
    }));
    let mut forged = good.clone();
    forged.steps.pop();
    assert!(
        check(&forged, &desired, &observed).is_err(),
        "another plan under the same hash"
    );
}

#[test]
fn a_kubelet_newer_than_the_api_server_is_refused() {
    let mut desired = present(1, 1);
    if let DesiredState::Present { machines, .. } = &mut desired.state {
        machines.get_mut(&name("c-w-0")).unwrap().kubernetes_version = "1.38.0".into();
    }
    let observed = Observed::default();
    let plan = plan(&desired, &observed).unwrap();
    let violations = check(&plan, &desired, &observed).unwrap_err();
    assert!(
        violations.iter().any(|v| v.problem.contains("newer")),
        "{violations:?}"
    );
}

prop_compose! {
    fn desired_present()(
        control_planes in prop_oneof![Just(1usize), Just(3), Just(5)],
        workers in 0usize..5,
        reborn in prop::collection::vec(1u32..4, 5),
    ) -> Desired {
        let mut desired = present(control_planes, workers);
        if let DesiredState::Present { machines, .. } = &mut desired.state {
            let workers = machines.iter_mut().filter(|(_, m)| !m.control_plane);
            for ((name, machine), incarnation) in workers.zip(reborn) {
                machine.incarnation = Incarnation(incarnation);
                machine.node = name.node_name(machine.incarnation).unwrap();
            }
        }
        desired
    }
}

fn observed_machine() -> impl Strategy<Value = (u32, bool, bool, u8, u8, bool)> {
    (
        1u32..4,
        any::<bool>(),
        any::<bool>(),
        0u8..3,
        0u8..3,
        any::<bool>(),
    )
}

prop_compose! {
    /// Anything that a create or a replacement of workers can have left, also of workers not wanted now.
    fn observed_of()(
        (endpoint, endpoint_current) in any::<(bool, bool)>(),
        machines in prop::collection::btree_map(0usize..12, observed_machine(), 0..10),
        disks in prop::collection::btree_map(0usize..5, any::<bool>(), 0..5),
        addons in 0u8..3,
    ) -> Observed {
        let digest = |kind: u8, right: &str| match kind {
            0 => None,
            1 => Some(Digest::of(b"old")),
            _ => Some(Digest::of(right.as_bytes())),
        };
        let machines: BTreeMap<_, _> = machines
            .into_iter()
            .map(|(i, (incarnation, complete, mounted, configured, started, ready))| {
                let (text, incarnation) = match i {
                    0..5 => (format!("c-cp-{i}"), 1),
                    i => (format!("c-w-{}", i - 5), incarnation),
                };
                let configured = digest(configured, &text).filter(|_| complete);
                let machine = ObservedMachine {
                    incarnation: Incarnation(incarnation),
                    node: name(&text).node_name(Incarnation(incarnation)).unwrap(),
                    complete,
                    mounted: mounted && complete,
                    configured,
                    started: digest(started, &text).filter(|_| configured.is_some()),
                    ready,
                };
                (name(&text), machine)
            })
            .collect();
        let disks = disks
            .into_iter()
            .map(|(i, attached)| {
                let holder = name(&format!("c-cp-{i}"));
                let attached_to = Some(holder).filter(|h| attached && machines.contains_key(h));
                (disk(&format!("c-cp-{i}-data")), ObservedDisk { attached_to })
            })
            .collect();
        Observed { endpoint, endpoint_current, machines, disks, addons: digest(addons, "addons"), records: true }
    }
}

proptest! {
    #[test]
    fn any_state_converges_in_any_order_and_through_interruptions(
        desired in desired_present(),
        mut observed in observed_of(),
        choices in prop::collection::vec(any::<usize>(), 1..40),
        stops in prop::collection::vec(0usize..30, 0..4),
    ) {
        for most in stops.into_iter().chain([usize::MAX]) {
            let plan = match plan(&desired, &observed) {
                Ok(plan) => plan,
                // A surplus member of etcd: refused, never deleted.
                Err(PlanError::ControlPlaneMachine { .. }) => return Ok(()),
                Err(error) => panic!("{error}"),
            };
            prop_assert_eq!(check(&plan, &desired, &observed), Ok(()));
            carry_out(&desired, &mut observed, &plan, &choices, most);
        }
        let DesiredState::Present { machines, addons, .. } = &desired.state else {
            panic!("it is present");
        };
        prop_assert!(observed.endpoint && observed.endpoint_current && observed.addons == Some(*addons));
        prop_assert_eq!(observed.machines.len(), machines.len());
        for (name, wanted) in machines {
            let found = &observed.machines[name];
            prop_assert_eq!(found.incarnation, wanted.incarnation);
            prop_assert_eq!(found.started, Some(wanted.configuration));
            prop_assert!(found.ready && (wanted.disk.is_none() || found.mounted));
        }
        prop_assert!(plan(&desired, &observed).unwrap().steps.is_empty());
    }

    #[test]
    fn any_state_can_be_deleted_in_any_order_and_through_interruptions(
        mut observed in observed_of(),
        choices in prop::collection::vec(any::<usize>(), 1..40),
        stops in prop::collection::vec(0usize..12, 0..4),
        all_disks in any::<bool>(),
    ) {
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
    fn the_same_input_gives_the_same_plan(desired in desired_present(), observed in observed_of()) {
        let text = |plan: Result<Plan, PlanError>| {
            plan.map(|plan| serde_json::to_vec(&plan).unwrap()).map_err(|error| error.to_string())
        };
        prop_assert_eq!(
            text(plan(&desired, &observed)),
            text(plan(&desired.clone(), &observed.clone()))
        );
    }

    #[test]
    fn explanations_are_no_decisions(desired in desired_present()) {
        let observed = Observed::default();
        let mut plan = plan(&desired, &observed).unwrap();
        for step in &mut plan.steps {
            step.why = "told otherwise".into();
        }
        prop_assert_eq!(check(&plan, &desired, &observed), Ok(()));
    }
}
