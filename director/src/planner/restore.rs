//! Plans a restore: etcd is made anew from a snapshot or from one member's data, and the cluster comes back
//! around it.
//!
//! # Invariants
//! * Every API server has ended before the first member does, and every member before the first has other data.
//!   A machine that cannot be told to stop is proven off instead.
//! * All members that etcd begins with are made from the same source, before any of them starts.
//! * Everything else is what [`super::plan`] makes of the cluster as it is then: members that etcd does not begin
//!   with join as learners, machines that were lost are made anew, nodes are waited for. A member that joins has
//!   its data set aside before it starts.
//! * Kubelets are started again once the API answers: a node that the snapshot does not know is registered when
//!   its kubelet starts, and only then.
//!
//! # Not here
//! Which member is the best, and what is lost (the service).

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::id::MachineName;

use super::steps::{Steps, addons_key, api_key, checkpoint_key, machine_key};
use super::{Desired, Observed, PlanError, hash};
use crate::model::{
    Action, Disruption, Goal, Invariant, MemberFate, Plan, PlanStep, RestoreSource, StepKey,
};

/// An order to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreOrder {
    /// What etcd is made from.
    pub source: RestoreSource,
    /// What becomes of each member: all machines of the control plane, at least one of which etcd begins with.
    pub members: BTreeMap<MachineName, MemberFate>,
    /// Machines whose agents answer, workers too.
    pub reached: BTreeSet<MachineName>,
}

impl RestoreOrder {
    /// The machines whose members etcd begins with.
    pub fn begin(&self) -> Vec<MachineName> {
        self.of(|fate| fate == MemberFate::Begins)
    }

    /// The machines that are told to stop.
    pub fn stopped(&self) -> Vec<MachineName> {
        self.of(|fate| fate != MemberFate::Replaced)
    }

    fn of(&self, which: impl Fn(MemberFate) -> bool) -> Vec<MachineName> {
        let of = self.members.iter().filter(|(_, fate)| which(**fate));
        of.map(|(name, _)| name.clone()).collect()
    }
}

/// A restore with the part of it that is an ordinary plan, for its checkers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    /// All of it.
    pub plan: Plan,
    /// What is done once etcd answers, by itself.
    pub rest: Plan,
}

/// Name of the checkpoint after which no API server runs.
const SILENT: &str = "api-stopped";
/// Name of the checkpoint after which no member runs.
const STOPPED: &str = "etcd-stopped";
/// Name of the checkpoint after which all data is made.
const MADE: &str = "etcd-made";

/// Plans it. `then` is what there will be of the cluster once etcd and the API servers of the members that begin
/// answer, [narrowed](narrow): other members of which nothing runs, and the machines around them as they are.
///
/// # Errors
/// As [`super::plan`]: what has to be done then cannot be planned.
pub fn plan(
    desired: &Desired,
    then: &Observed,
    order: &RestoreOrder,
) -> Result<Restore, PlanError> {
    if order.begin().is_empty() {
        return Err(PlanError::NoControlPlane(desired.cluster.clone()));
    }
    let rest = super::plan(desired, then)?;
    let mut steps = Steps::default();
    let lost = fences(order, &rest, &mut steps);
    make(order, &lost, &mut steps);
    start(order, &mut steps);
    bring_back(order, then, &rest, &mut steps);
    let hash = hash(desired, Goal::Present, &steps.list);
    let plan = Plan {
        cluster: desired.cluster.clone(),
        goal: Goal::Present,
        hash,
        steps: steps.list,
        drains: None,
        changes: None,
        hazards: Vec::new(),
        window: None,
        restore: None,
        upgrade: None,
    };
    Ok(Restore { plan, rest })
}

/// Leaves of a cluster what a restore brings back: changes that were under way are given up, and everything that
/// the snapshot may say otherwise is told anew.
pub fn narrow(desired: &mut Desired, then: &mut Observed, order: &RestoreOrder) {
    let members: BTreeSet<MachineName> = order.members.keys().cloned().collect();
    super::narrow(desired, then, &members, &BTreeSet::new());
    then.addons = None;
    for (name, found) in &mut then.machines {
        // By then nothing of it runs, or it has begun.
        found.stopping = false;
        if order.reached.contains(name) {
            found.labelled = None;
        }
    }
}

fn key(machine: &MachineName, verb: &str) -> StepKey {
    StepKey(format!("restore/{machine}/{verb}"))
}

/// Shuts out the machines that cannot be told to stop. Returns the steps after which they are off.
fn fences(order: &RestoreOrder, rest: &Plan, steps: &mut Steps) -> Vec<StepKey> {
    let lost = order
        .members
        .iter()
        .filter(|(_, fate)| **fate == MemberFate::Replaced);
    let mut keys = Vec::new();
    for (name, _) in lost {
        // The ordinary part knows of it when there is anything left to shut out.
        let planned = rest.steps.iter().any(|step| is_fence(step, name));
        let key = if planned {
            machine_key(name, "fence")
        } else {
            key(name, "fence")
        };
        steps.add(
            key.clone(),
            Action::Fence {
                machine: name.clone(),
            },
            "it does not answer: two members that are cut off and alive would go on by themselves",
            Invariant::OneIncarnation,
            Disruption::Api,
            [],
        );
        keys.push(key);
    }
    keys
}

fn is_fence(step: &PlanStep, machine: &MachineName) -> bool {
    matches!(&step.action, Action::Fence { machine: of } if of == machine)
}

/// Up to the data of the members that begin.
fn make(order: &RestoreOrder, lost: &[StepKey], steps: &mut Steps) {
    for name in order.stopped() {
        steps.add(
            key(&name, "stop-api"),
            Action::StopApi {
                machine: name.clone(),
            },
            "nobody reads what is about to be replaced, or writes what would be lost",
            Invariant::OneIncarnation,
            Disruption::Api,
            lost.iter().cloned(),
        );
    }
    let stopped = order.stopped();
    steps.checkpoint(
        SILENT,
        "no API server and no controller of the cluster runs",
        Invariant::OneIncarnation,
        stopped
            .iter()
            .map(|name| key(name, "stop-api"))
            .chain(lost.iter().cloned()),
    );
    for name in &stopped {
        steps.add(
            key(name, "stop-member"),
            Action::StopMember {
                machine: name.clone(),
            },
            "a member that ends in peace has written down all that it has applied",
            Invariant::EtcdQuorum,
            Disruption::Api,
            [checkpoint_key(SILENT)],
        );
    }
    steps.checkpoint(
        STOPPED,
        "no member of etcd runs: those with old data and those with new never meet",
        Invariant::EtcdQuorum,
        stopped.iter().map(|name| key(name, "stop-member")),
    );
    let members = order.begin();
    for name in &members {
        steps.add(
            key(name, "restore-member"),
            Action::RestoreMember {
                machine: name.clone(),
                source: order.source.clone(),
                members: members.clone(),
            },
            "its data is made anew beside the old, with revisions that were never given out",
            Invariant::NamedDeletion,
            Disruption::Data,
            [checkpoint_key(STOPPED)],
        );
    }
    steps.checkpoint(
        MADE,
        "all members that etcd begins with have the same data",
        Invariant::EtcdQuorum,
        members.iter().map(|name| key(name, "restore-member")),
    );
}

/// Up to an API that answers.
fn start(order: &RestoreOrder, steps: &mut Steps) {
    for name in order.begin() {
        let machine = || name.clone();
        steps.add(
            key(&name, "configure"),
            Action::Configure { machine: machine() },
            "it is told which members there are",
            Invariant::EtcdQuorum,
            Disruption::Nothing,
            [checkpoint_key(MADE)],
        );
        steps.add(
            key(&name, "start"),
            Action::StartComponents { machine: machine() },
            "etcd, then the API server, then the controllers, which read everything anew",
            Invariant::EtcdQuorum,
            Disruption::Nothing,
            [key(&name, "configure")],
        );
        steps.add(
            key(&name, "await-control-plane"),
            Action::AwaitControlPlane { machine: machine() },
            "its member of etcd and its API server have to answer before anything else is done",
            Invariant::EtcdQuorum,
            Disruption::Nothing,
            [key(&name, "start")],
        );
    }
}

/// The ordinary part, with what a restore needs besides.
fn bring_back(order: &RestoreOrder, then: &Observed, rest: &Plan, steps: &mut Steps) {
    let answers: Vec<StepKey> = order
        .begin()
        .iter()
        .map(|name| key(name, "await-control-plane"))
        .collect();
    let fenced = |step: &PlanStep| order.members.keys().any(|name| is_fence(step, name));
    let early: BTreeSet<&StepKey> = rest
        .steps
        .iter()
        .filter(|step| fenced(step))
        .map(|step| &step.key)
        .collect();
    for step in rest.steps.iter().filter(|step| !early.contains(&step.key)) {
        let mut step = step.clone();
        if step.after.iter().all(|key| early.contains(key)) {
            step.after.extend(answers.iter().cloned());
        }
        match step.action.clone() {
            Action::StartMember { machine } => {
                step.after.push(set_aside(&machine, &step, steps));
            }
            Action::AwaitNode { machine, .. } if restarts(order, then, rest, &machine) => {
                step.after.push(restart_kubelet(&machine, steps));
            }
            _ => {}
        }
        step.after.sort();
        step.after.dedup();
        steps.take(step);
    }
    steps.add(
        StepKey("nodes/settle".to_owned()),
        Action::SettleNodes,
        "nodes that the snapshot knows may be gone since: they are not to come back",
        Invariant::OneIncarnation,
        Disruption::Pods,
        [addons_key(), api_key()],
    );
}

/// Data of before would be another cluster's: it is set aside before the member starts.
fn set_aside(machine: &MachineName, start: &PlanStep, steps: &mut Steps) -> StepKey {
    let key = machine_key(machine, "set-member-aside");
    steps.add(
        key.clone(),
        Action::SetMemberAside {
            machine: machine.clone(),
        },
        "its data is of a cluster that is no more; it gets that of the others",
        Invariant::EtcdQuorum,
        Disruption::Nothing,
        start.after.iter().cloned(),
    );
    key
}

/// Whether a machine's kubelet runs already when the API comes back, and so has seen what is no more.
fn restarts(order: &RestoreOrder, then: &Observed, rest: &Plan, machine: &MachineName) -> bool {
    let made = |step: &PlanStep| matches!(&step.action, Action::CreateMachine { machine: of } if of == machine);
    let runs = then
        .machines
        .get(machine)
        .is_some_and(|found| found.running);
    runs && order.reached.contains(machine) && !rest.steps.iter().any(made)
}

fn restart_kubelet(machine: &MachineName, steps: &mut Steps) -> StepKey {
    let key = machine_key(machine, "restart-kubelet");
    steps.add(
        key.clone(),
        Action::RestartKubelet {
            machine: machine.clone(),
        },
        "its node may not be in the snapshot, and is registered when its kubelet starts",
        Invariant::StepEnds,
        Disruption::Nothing,
        [
            api_key(),
            machine_key(machine, "start"),
            machine_key(machine, "await-control-plane"),
            addons_key(),
        ],
    );
    key
}
