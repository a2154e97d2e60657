//! A model of what steps do, tables of new and deleted clusters, and how they may be broken.

mod again;
mod agents;
mod broken;
mod change;
mod emulation;
mod forecast;
mod legs;
mod membership;
mod properties;
mod reboot;
mod renewal;
mod restore;
mod zones;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use windlass_common::id::{
    ClusterName, Digest, DiskName, Incarnation, MachineName, NodeName, PoolName, ZoneName,
};

use super::{
    Budget, Desired, DesiredMachine, DesiredState, Observed, ObservedDisk, ObservedMachine,
    PlanError, Refit, plan,
};
use crate::model::{Action, Disruption, Invariant, Plan, PlanStep, StepKey};
use crate::plan::check;

fn name(text: &str) -> MachineName {
    MachineName::new(text).unwrap()
}

fn disk(text: &str) -> DiskName {
    DiskName::new(text).unwrap()
}

fn pool() -> PoolName {
    PoolName::new("w").unwrap()
}

fn machine(text: &str, control_plane: bool) -> (MachineName, DesiredMachine) {
    let machine = DesiredMachine {
        pool: (!control_plane).then(pool),
        incarnation: Incarnation(1),
        node: name(text).node_name(Incarnation(1)).unwrap(),
        stemcell: "s1".into(),
        kubernetes_version: "1.37.2".into(),
        emulates: None,
        disk: control_plane.then(|| disk(&format!("{text}-data"))),
        configuration: Digest::of(text.as_bytes()),
        components: Digest::of(format!("{text} components").as_bytes()),
        labels: Digest::of(b"labels"),
        refit: None,
        because: None,
        reboot: None,
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
            budgets: BTreeMap::new(),
            addons: Digest::of(b"addons"),
            drain: Default::default(),
            gates: Vec::new(),
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

/// What every machine is told while some of which nothing is wanted are still there.
fn interim() -> Digest {
    Digest::of(b"with routes to machines that go")
}

/// A model of the world: what one step does to what is observed.
fn execute(desired: &Desired, observed: &mut Observed, action: &Action) {
    let wanted = |m: &MachineName| match &desired.state {
        DesiredState::Present { machines, .. } => machines[m].clone(),
        DesiredState::Absent { .. } => panic!("nothing is made of an absent cluster"),
    };
    let surplus = !observed.surplus.is_empty();
    match action {
        Action::EnsureEndpoint => (observed.endpoint, observed.endpoint_current) = (true, true),
        Action::CreateDisk { disk, .. } => {
            observed
                .disks
                .entry(disk.clone())
                .or_insert(ObservedDisk { attached_to: None });
        }
        Action::CreateMachine { machine } => create(observed, machine, wanted(machine)),
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
        Action::GrowDisk { machine, disk } => {
            assert!(observed.machines[machine].mounted);
            assert_eq!(observed.disks[disk].attached_to.as_ref(), Some(machine));
            observed.short_of_disk.remove(machine);
        }
        Action::AddRoutes { machine } => {
            let found = observed.machines.get_mut(machine).unwrap();
            assert!(found.complete);
            found.configured = Some(interim());
            if let DesiredState::Present { machines, .. } = &desired.state
                && let Some(wanted) = machines.get(machine)
                && wanted.incarnation == found.incarnation
                && !surplus
            {
                found.configured = Some(wanted.configuration);
            }
        }
        Action::Configure { machine } | Action::PruneRoutes { machine } => {
            let wanted = wanted(machine);
            let found = observed.machines.get_mut(machine).unwrap();
            assert_eq!(found.incarnation, wanted.incarnation);
            found.configured = Some(if surplus {
                interim()
            } else {
                wanted.configuration
            });
        }
        Action::StageComponents { machine, stemcell } => {
            let (wanted, found) = (wanted(machine), &observed.machines[machine]);
            assert!(found.complete && found.incarnation == wanted.incarnation);
            assert_eq!(&wanted.refit.unwrap().stemcell, stemcell);
        }
        Action::StartComponents { machine } => {
            let wanted = wanted(machine);
            assert!(
                !observed.short_of_disk.contains(machine),
                "etcd may fill its disk"
            );
            let found = observed.machines.get_mut(machine).unwrap();
            assert!(
                wanted.disk.is_none() || found.mounted,
                "etcd would write to the root disk"
            );
            assert!(found.configured.is_some());
            let outside = observed.outside.contains(machine);
            assert!(!outside, "{machine} has no vote yet");
            (found.started, found.stopping) = (Some(wanted.components), false);
            found.emulates = wanted.emulates;
            found.ready = false;
            observed.promoted.remove(machine);
        }
        Action::AwaitControlPlane { machine } => {
            assert!(observed.machines[machine].started.is_some());
        }
        Action::AwaitApi => {
            let mut members = observed.machines.values().filter(|m| m.pool.is_none());
            assert!(members.any(|member| member.started.is_some()));
        }
        Action::ApplyAddons => {
            if let DesiredState::Present { addons, .. } = &desired.state {
                observed.addons = Some(*addons);
            }
        }
        Action::AwaitNode { machine, .. } => {
            let wanted = wanted(machine);
            let found = observed.machines.get_mut(machine).unwrap();
            assert_eq!(found.started, Some(wanted.components));
            (found.ready, found.labelled) = (true, Some(wanted.labels));
        }
        Action::DropNode { machine, node } => {
            let found = observed.machines.get(machine);
            assert!(found.is_none_or(|m| m.node != *node || (m.fenced && !m.running)));
            if let Some(nodes) = observed.departed.get_mut(machine) {
                nodes.remove(node);
                if nodes.is_empty() {
                    observed.departed.remove(machine);
                }
            }
        }
        Action::DeleteMachine { machine } => delete(observed, machine),
        Action::Fence { machine } => {
            let found = observed.machines.get_mut(machine).unwrap();
            assert!(!found.available(), "what serves is drained and not fenced");
            if found.registered() {
                let departed = observed.departed.entry(machine.clone()).or_default();
                departed.insert(found.node.clone());
            }
            (found.fenced, found.running) = (true, false);
        }
        Action::Drain { machine, node } => {
            let found = observed.machines.get_mut(machine).unwrap();
            assert_eq!(found.node, *node);
            found.cordoned = true;
        }
        Action::Uncordon { machine, .. } => {
            observed.machines.get_mut(machine).unwrap().cordoned = false;
        }
        Action::LeaveEndpoint { machine } => {
            observed.out_of_endpoint.insert(machine.clone());
        }
        Action::JoinEndpoint { machine } => {
            assert!(observed.machines[machine].started.is_some());
            observed.out_of_endpoint.remove(machine);
        }
        Action::RebootMachine { machine, boots } => {
            assert_eq!(wanted(machine).reboot.unwrap().boots, *boots);
            let found = observed.machines.get_mut(machine).unwrap();
            assert!(found.complete);
            found.ready = false;
        }
        Action::StopComponents { machine } => {
            let found = observed.machines.get_mut(machine).unwrap();
            // Whether it did stop is not written down.
            (found.started, found.stopping) = (None, true);
            observed.promoted.remove(machine);
        }
        Action::ForgetMachine { machine } => {
            assert!(!observed.machines.contains_key(machine));
            assert!(!observed.departed.contains_key(machine), "its Node is left");
            assert!(!observed.leaving.contains(machine), "etcd waits for it");
            observed.surplus.remove(machine);
            observed.outside.remove(machine);
            observed.out_of_endpoint.remove(machine);
        }
        Action::AddMember { machine } => assert!(observed.outside.contains(machine)),
        Action::StartMember { machine } => assert!(observed.machines[machine].mounted),
        Action::PromoteMember { machine } => {
            assert!(observed.outside.remove(machine));
            observed.promoted.insert(machine.clone());
        }
        Action::MoveLeader { .. } | Action::SaveSnapshot { .. } => {}
        Action::RemoveMember { machine } => {
            observed.leaving.remove(machine);
            observed.outside.insert(machine.clone());
        }
        Action::AwaitGates { machine } => assert!(observed.machines[machine].ready),
        Action::UpgradeAgent { machine, .. } | Action::RenewCertificates { machine } => {
            assert!(observed.machines[machine].complete);
        }
        Action::SpreadTrust
        | Action::RewriteSecrets
        | Action::AwaitDns
        | Action::Checkpoint { .. } => {}
        Action::StopApi { machine } => {
            observed.machines.get_mut(machine).unwrap().started = None;
            observed.promoted.insert(machine.clone());
        }
        Action::StopMember { .. }
        | Action::RestoreMember { .. }
        | Action::SetMemberAside { .. }
        | Action::RestartKubelet { .. }
        | Action::SettleNodes => unreachable!("nobody orders a restore here"),
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

fn create(observed: &mut Observed, machine: &MachineName, wanted: DesiredMachine) {
    let made = ObservedMachine {
        pool: wanted.pool,
        incarnation: wanted.incarnation,
        node: wanted.node,
        kubernetes_version: wanted.kubernetes_version,
        emulates: None,
        complete: true,
        running: true,
        mounted: false,
        configured: None,
        started: None,
        stopping: false,
        ready: false,
        labelled: None,
        cordoned: false,
        fenced: false,
        kept_as: None,
    };
    let found = observed.machines.get(machine);
    assert!(found.is_none_or(|f| f.incarnation == made.incarnation && !f.complete));
    observed.machines.insert(machine.clone(), made);
}

fn delete(observed: &mut Observed, machine: &MachineName) {
    observed.promoted.remove(machine);
    if let Some(gone) = observed.machines.remove(machine)
        && gone.registered()
    {
        let departed = observed.departed.entry(machine.clone()).or_default();
        departed.insert(gone.node);
    }
    for disk in observed.disks.values_mut() {
        disk.attached_to.take_if(|holder| holder == machine);
    }
}

/// Carries a plan out, choosing by `choices` which ready step comes next, for at most `most` steps. Returns what was done.
fn carry_out(
    desired: &Desired,
    observed: &mut Observed,
    plan: &Plan,
    choices: &[usize],
    most: usize,
) -> BTreeSet<StepKey> {
    let mut done: BTreeSet<StepKey> = BTreeSet::new();
    let before = Before::new(desired, observed);
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
        before.guard(desired, observed, &step.key);
        done.insert(step.key.clone());
    }
    done
}

/// How a cluster was before a plan: what is less already is not made less.
struct Before {
    had_quorum: bool,
    serving: BTreeMap<PoolName, usize>,
    /// Incarnations that were in service.
    up: BTreeSet<NodeName>,
}

impl Before {
    fn new(desired: &Desired, observed: &Observed) -> Self {
        let votes = voting(desired, observed);
        let mut serving = BTreeMap::new();
        for machine in observed.machines.values() {
            if let Some(pool) = &machine.pool
                && machine.available()
                && !machine.cordoned
            {
                *serving.entry(pool.clone()).or_insert(0) += 1;
            }
        }
        let up = votes.iter().filter(|name| runs(observed, name)).count();
        Self {
            had_quorum: votes.len() > 1 && up > votes.len() / 2,
            serving,
            up: observed
                .machines
                .values()
                .filter(|machine| machine.available())
                .map(|machine| machine.node.clone())
                .collect(),
        }
    }

    /// What has to hold at every moment, looked at without knowing any plan.
    fn guard(&self, desired: &Desired, observed: &Observed, step: &StepKey) {
        let DesiredState::Present {
            machines, budgets, ..
        } = &desired.state
        else {
            return;
        };
        let votes = voting(desired, observed);
        let up = |name: &&MachineName| runs(observed, name);
        assert!(
            !self.had_quorum || votes.iter().filter(up).count() > votes.len() / 2,
            "{step}: quorum is lost"
        );
        let servers = servers(observed);
        let started = |m: &&ObservedMachine| m.pool.is_some() && m.started.is_some() && !m.ready;
        for kubelet in observed.machines.values().filter(started) {
            let kubelet = minor(&kubelet.kubernetes_version);
            assert!(
                servers.iter().all(|server| kubelet <= *server),
                "{step}: a kubelet is newer than an API server"
            );
        }
        for (pool, serving) in Before::new(desired, observed).serving {
            let of = |m: &&DesiredMachine| m.pool.as_ref() == Some(&pool);
            let wanted = machines.values().filter(of).count();
            let budget = budgets.get(&pool).copied().unwrap_or_default();
            let floor = wanted.saturating_sub(budget.max_unavailable as usize);
            let floor = floor.min(self.serving.get(&pool).copied().unwrap_or(0));
            // Components of one that was in service are being restarted: its pods run on.
            let restarts = |m: &&ObservedMachine| {
                let runs = m.running && m.started.is_some() && !m.cordoned;
                m.pool.as_ref() == Some(&pool) && runs && !m.ready && self.up.contains(&m.node)
            };
            let restarting = observed.machines.values().filter(restarts).count();
            assert!(
                serving + restarting.min(1) >= floor,
                "{step}: {serving} of {floor} serve in {pool}"
            );
        }
    }
}

/// Machines with a vote in etcd.
fn voting(desired: &Desired, observed: &Observed) -> BTreeSet<MachineName> {
    let DesiredState::Present { machines, .. } = &desired.state else {
        return BTreeSet::new();
    };
    let wanted = machines.iter().filter(|(_, m)| m.control_plane());
    let names = wanted.map(|(name, _)| name).chain(&observed.leaving);
    names
        .filter(|name| !observed.outside.contains(*name))
        .cloned()
        .collect()
}

fn runs(observed: &Observed, name: &MachineName) -> bool {
    let found = observed.machines.get(name);
    let started = |f: &ObservedMachine| f.started.is_some() || observed.promoted.contains(name);
    found.is_some_and(|found| started(found) && found.running)
}

/// Minors that the API servers that run are to their clients.
fn servers(observed: &Observed) -> Vec<u32> {
    let members = observed.machines.values().filter(|m| m.pool.is_none());
    members
        .filter(|m| m.started.is_some() && m.running)
        .map(|m| minor(&m.kubernetes_version).min(m.emulates.unwrap_or(u32::MAX)))
        .collect()
}

fn minor(version: &str) -> u32 {
    version.split('.').nth(1).unwrap().parse().unwrap()
}

fn keys(plan: &Plan) -> Vec<&str> {
    plan.steps.iter().map(|step| &*step.key.0).collect()
}

fn after<'a>(plan: &'a Plan, key: &str) -> Vec<&'a str> {
    let step = plan.steps.iter().find(|step| *step.key.0 == *key).unwrap();
    step.after.iter().map(|key| &*key.0).collect()
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
        .map(|step| &*step.key.0)
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

/// A director that dies between attaching a disk and writing down where it is has to be told again.
#[test]
fn a_disk_that_is_attached_and_not_mounted_is_attached_again() {
    let desired = present(1, 0);
    let mut observed = Observed::default();
    let all = plan(&desired, &observed).unwrap();
    carry_out(&desired, &mut observed, &all, &[0], usize::MAX);
    for machine in observed.machines.values_mut() {
        (machine.mounted, machine.started) = (false, None);
    }
    let again = plan(&desired, &observed).unwrap();
    check(&again, &desired, &observed).unwrap();
    let before = after(&again, "machine/c-cp-0/mount-disk");
    assert!(before.contains(&"machine/c-cp-0/attach-disk"), "{before:?}");
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
                .find(|step| *step.key.0 == *key)
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
