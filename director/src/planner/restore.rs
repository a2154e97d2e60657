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

use super::steps::{Key, Steps, Verb};
use super::{Desired, Observed, PlanError, made};
use crate::model::{Action, Disruption, Goal, Invariant, MemberFate, Plan, RestoreSource, StepKey};

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
    let (goal, rest) = super::steps(desired, then)?;
    let mut steps = Steps::default();
    let lost = fences(order, &rest, &mut steps);
    make(order, &lost, &mut steps);
    start(order, &mut steps);
    bring_back(order, then, &rest, &mut steps);
    Ok(Restore {
        plan: made(desired, Goal::Present, steps.list),
        rest: made(desired, goal, rest.list),
    })
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

fn key(machine: &MachineName, verb: Verb) -> Key {
    Key::Restore(machine.clone(), verb)
}

/// Shuts out the machines that cannot be told to stop. Returns the steps after which they are off.
fn fences(order: &RestoreOrder, rest: &Steps, steps: &mut Steps) -> Vec<Key> {
    let lost = order
        .members
        .iter()
        .filter(|(_, fate)| **fate == MemberFate::Replaced);
    let mut keys = Vec::new();
    for (name, _) in lost {
        // The ordinary part knows of it when there is anything left to shut out.
        let planned = rest.has(&Verb::Fence.of(name));
        let key = if planned {
            Verb::Fence.of(name)
        } else {
            key(name, Verb::Fence)
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

/// Up to the data of the members that begin.
fn make(order: &RestoreOrder, lost: &[Key], steps: &mut Steps) {
    for name in order.stopped() {
        steps.add(
            key(&name, Verb::StopApi),
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
            .map(|name| key(name, Verb::StopApi))
            .chain(lost.iter().cloned()),
    );
    for name in &stopped {
        steps.add(
            key(name, Verb::StopMember),
            Action::StopMember {
                machine: name.clone(),
            },
            "a member that ends in peace has written down all that it has applied",
            Invariant::EtcdQuorum,
            Disruption::Api,
            [Key::checkpoint(SILENT)],
        );
    }
    steps.checkpoint(
        STOPPED,
        "no member of etcd runs: those with old data and those with new never meet",
        Invariant::EtcdQuorum,
        stopped.iter().map(|name| key(name, Verb::StopMember)),
    );
    let members = order.begin();
    for name in &members {
        steps.add(
            key(name, Verb::RestoreMember),
            Action::RestoreMember {
                machine: name.clone(),
                source: order.source.clone(),
                members: members.clone(),
            },
            "its data is made anew beside the old, with revisions that were never given out",
            Invariant::NamedDeletion,
            Disruption::Data,
            [Key::checkpoint(STOPPED)],
        );
    }
    steps.checkpoint(
        MADE,
        "all members that etcd begins with have the same data",
        Invariant::EtcdQuorum,
        members.iter().map(|name| key(name, Verb::RestoreMember)),
    );
}

/// Up to an API that answers.
fn start(order: &RestoreOrder, steps: &mut Steps) {
    for name in order.begin() {
        let machine = || name.clone();
        steps.add(
            key(&name, Verb::Configure),
            Action::Configure { machine: machine() },
            "it is told which members there are",
            Invariant::EtcdQuorum,
            Disruption::Nothing,
            [Key::checkpoint(MADE)],
        );
        steps.add(
            key(&name, Verb::Start),
            Action::StartComponents { machine: machine() },
            "etcd, then the API server, then the controllers, which read everything anew",
            Invariant::EtcdQuorum,
            Disruption::Nothing,
            [key(&name, Verb::Configure)],
        );
        steps.add(
            key(&name, Verb::AwaitControlPlane),
            Action::AwaitControlPlane { machine: machine() },
            "its member of etcd and its API server have to answer before anything else is done",
            Invariant::EtcdQuorum,
            Disruption::Nothing,
            [key(&name, Verb::Start)],
        );
    }
}

/// The ordinary part, with what a restore needs besides.
fn bring_back(order: &RestoreOrder, then: &Observed, rest: &Steps, steps: &mut Steps) {
    let answers = order
        .begin()
        .into_iter()
        .map(|name| key(&name, Verb::AwaitControlPlane));
    let early = |key: &Key| match key {
        Key::Machine(name, Verb::Fence) => order.members.get(name) == Some(&MemberFate::Replaced),
        _ => false,
    };
    let keys: BTreeMap<&StepKey, &Key> = rest.iter().map(|(key, step)| (&step.key, key)).collect();
    for (key, step) in rest.iter().filter(|(key, _)| !early(key)) {
        let mut after: Vec<Key> = step.after.iter().map(|name| keys[name].clone()).collect();
        if after.iter().all(early) {
            after.extend(answers.clone());
        }
        match &step.action {
            Action::StartMember { machine } => after.push(set_aside(machine, &after, steps)),
            Action::AwaitNode { machine, .. } if restarts(order, then, rest, machine) => {
                after.push(restart_kubelet(machine, steps));
            }
            _ => {}
        }
        let (action, why) = (step.action.clone(), step.why.clone());
        steps.add(key.clone(), action, why, step.guard, step.disrupts, after);
    }
    steps.add(
        Key::Cluster("nodes/settle"),
        Action::SettleNodes,
        "nodes that the snapshot knows may be gone since: they are not to come back",
        Invariant::OneIncarnation,
        Disruption::Pods,
        [Key::ADDONS, Key::API],
    );
}

/// Data of before would be another cluster's: it is set aside before the member starts.
fn set_aside(machine: &MachineName, after: &[Key], steps: &mut Steps) -> Key {
    let key = Verb::SetMemberAside.of(machine);
    steps.add(
        key.clone(),
        Action::SetMemberAside {
            machine: machine.clone(),
        },
        "its data is of a cluster that is no more; it gets that of the others",
        Invariant::EtcdQuorum,
        Disruption::Nothing,
        after.iter().cloned(),
    );
    key
}

/// Whether a machine's kubelet runs already when the API comes back, and so has seen what is no more.
fn restarts(order: &RestoreOrder, then: &Observed, rest: &Steps, machine: &MachineName) -> bool {
    let runs = then
        .machines
        .get(machine)
        .is_some_and(|found| found.running);
    runs && order.reached.contains(machine) && !rest.has(&Verb::Create.of(machine))
}

fn restart_kubelet(machine: &MachineName, steps: &mut Steps) -> Key {
    let key = Verb::RestartKubelet.of(machine);
    steps.add(
        key.clone(),
        Action::RestartKubelet {
            machine: machine.clone(),
        },
        "its node may not be in the snapshot, and is registered when its kubelet starts",
        Invariant::StepEnds,
        Disruption::Nothing,
        [
            Key::API,
            Verb::Start.of(machine),
            Verb::AwaitControlPlane.of(machine),
            Key::ADDONS,
        ],
    );
    key
}
