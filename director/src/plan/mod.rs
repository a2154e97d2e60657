//! Checks a plan against the invariants, whoever made it, knowing nothing of how it was made.
//!
//! # Invariants checked (numbers of `docs/architecture.md`, §8)
//! 1. From three members of etcd on, a majority runs at every moment, and one changes at a time. Nobody serves
//!    before it has a vote, and a machine of the control plane is deleted for good only after its member was
//!    removed; a later incarnation has its disk, or joins anew after its member was removed. A member that was about
//!    to be stopped counts as one that is down, and is stopped before its machine is touched.
//! 2. A machine is created only when no other incarnation of it exists or after that one is deleted; a
//!    disk is attached only to the one machine that wants it, and only after its other incarnation is deleted;
//!    a Node is deleted only after its machine is proven off, and so is a machine that cannot be drained.
//! 3. At no moment of any order that the plan allows are more machines of a pool out of service because of
//!    us than its budget says.
//! 4. A machine that serves, or may have pods, is drained before it is deleted.
//! 5. No kubelet of a worker is newer than what an API server is that it may meet, or emulates, nor too old for one.
//! 6. The graph is acyclic and complete; every step of a machine comes after what it needs.
//! 7. A persistent disk is deleted only when the order names it, and never while a machine has it.
//!
//! # Cost
//! A plan of n steps takes n²/64 words; pools of m machines that change take m² looks at them.

pub mod duration;
mod forecast;
mod order;
pub mod restore;
mod service;

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::id::{DiskName, Incarnation, MachineName};

pub use self::forecast::forecast;
use self::order::Order;
use crate::model::{Action, Goal, Invariant, Plan, PlanStep, StepKey};
use crate::planner::{Desired, DesiredMachine, DesiredState, Observed, ObservedMachine};

/// A plan breaks an invariant; a bug of whoever made it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("step {step} breaks the invariant {invariant:?}: {problem}")]
pub struct Violation {
    /// The step.
    pub step: StepKey,
    /// The invariant.
    pub invariant: Invariant,
    /// What is wrong.
    pub problem: String,
}

/// Every violation of an invariant in `plan`.
pub fn check(plan: &Plan, desired: &Desired, observed: &Observed) -> Result<(), Vec<Violation>> {
    let order = Order::new(&plan.steps).map_err(|faults| {
        let violation = |fault: order::Fault<'_>| Violation {
            step: fault.step.clone(),
            invariant: Invariant::StepEnds,
            problem: fault.problem,
        };
        faults.into_iter().map(violation).collect::<Vec<_>>()
    })?;
    let shows =
        |action: &Action| matches!(action, Action::AwaitControlPlane { .. } | Action::AwaitApi);
    let api = plan.steps.iter().enumerate();
    let mut checker = Checker {
        api: api
            .filter(|(_, s)| shows(&s.action))
            .map(|(i, _)| i)
            .collect(),
        plan,
        desired,
        observed,
        planned: plan.steps.iter().map(|s| (&s.action, &s.key)).collect(),
        order,
        violations: Vec::new(),
    };
    checker.plan_as_a_whole();
    for step in &plan.steps {
        checker.step(step);
    }
    if let DesiredState::Present {
        machines, budgets, ..
    } = &desired.state
    {
        checker.service(machines, budgets);
    }
    if checker.violations.is_empty() {
        Ok(())
    } else {
        Err(checker.violations)
    }
}

struct Checker<'a> {
    plan: &'a Plan,
    desired: &'a Desired,
    observed: &'a Observed,
    planned: BTreeMap<&'a Action, &'a StepKey>,
    /// Steps that show that the API answers.
    api: Vec<usize>,
    order: Order<'a>,
    violations: Vec<Violation>,
}

impl<'a> Checker<'a> {
    fn fail(&mut self, step: &StepKey, invariant: Invariant, problem: impl Into<String>) {
        self.violations.push(Violation {
            step: step.clone(),
            invariant,
            problem: problem.into(),
        });
    }

    fn plan_as_a_whole(&mut self) {
        let mut seen = BTreeSet::new();
        for step in &self.plan.steps {
            if !seen.insert(&step.action) {
                self.fail(&step.key, Invariant::StepEnds, "its action is there twice");
            }
        }
        let hash = crate::planner::hash(self.desired, self.plan.goal, &self.plan.steps);
        let goal = match self.desired.state {
            DesiredState::Present { .. } => Goal::Present,
            DesiredState::Absent { .. } => Goal::Absent,
        };
        if hash != self.plan.hash
            || goal != self.plan.goal
            || self.plan.cluster != self.desired.cluster
        {
            self.fail(
                &StepKey("(plan)".into()),
                Invariant::StepEnds,
                "it is not the plan of this desired state",
            );
        }
    }

    fn step(&mut self, step: &'a PlanStep) {
        let absent = self.plan.goal == Goal::Absent;
        match &step.action {
            Action::EnsureEndpoint
            | Action::AwaitApi
            | Action::AwaitGates { .. }
            | Action::SpreadTrust
            | Action::Checkpoint { .. }
            | Action::LeaveEndpoint { .. }
            | Action::Fence { .. }
            | Action::MoveLeader { .. }
            | Action::SaveSnapshot { .. }
            | Action::AddRoutes { .. }
            | Action::PruneRoutes { .. } => {}
            Action::StopApi { machine } => self.stop_api(step, machine),
            Action::StopMember { .. }
            | Action::RestoreMember { .. }
            | Action::SetMemberAside { .. }
            | Action::RestartKubelet { .. }
            | Action::SettleNodes => {
                let problem = "nobody ordered a restore";
                self.fail(&step.key, Invariant::EtcdQuorum, problem);
            }
            Action::RebootMachine { machine, boots } => self.reboot(step, machine, *boots),
            Action::AddMember { machine } => self.add_member(step, machine),
            Action::StartMember { machine } => self.start_member(step, machine),
            Action::PromoteMember { machine } => {
                let machine = machine.clone();
                self.needs(step, &Action::StartMember { machine });
            }
            Action::RemoveMember { machine } => self.remove_member(step, machine),
            Action::CreateDisk { disk, machine } => self.create_disk(step, disk, machine),
            Action::CreateMachine { machine } => self.create_machine(step, machine),
            Action::AttachDisk { disk, machine } => self.attach_disk(step, disk, machine),
            Action::AwaitAgent { machine } | Action::UpgradeAgent { machine, .. } => {
                self.needs_machine(step, machine);
            }
            Action::StageComponents { machine, stemcell } => {
                self.stage_components(step, machine, stemcell);
            }
            Action::MountDisk { machine }
            | Action::GrowDisk { machine, .. }
            | Action::RenewCertificates { machine }
            | Action::Configure { machine }
            | Action::StartComponents { machine }
            | Action::AwaitControlPlane { machine } => self.agent_step(step, machine),
            Action::AwaitNode { machine, .. } => {
                self.needs_api(step);
                self.needs_if_planned(step, &start(machine));
            }
            Action::ApplyAddons
            | Action::RewriteSecrets
            | Action::AwaitDns
            | Action::Drain { .. }
            | Action::Uncordon { .. } => {
                self.needs_api(step);
            }
            Action::JoinEndpoint { machine } => self.join_endpoint(step, machine),
            Action::StopComponents { machine } => self.out_of_endpoint(step, machine),
            Action::DropNode { machine, .. } => self.drop_node(step, machine),
            Action::DeleteMachine { machine } => self.delete_machine(step, machine),
            Action::ForgetMachine { machine } => self.forget_machine(step, machine),
            Action::DeleteDisk { disk } => self.delete_disk(step, disk),
            Action::DeleteEndpoint => {
                if !absent {
                    self.fail(&step.key, Invariant::StepEnds, "the cluster is to stay");
                }
            }
            Action::ForgetCluster => {
                let at = self.order.index(&step.key);
                let last = self.order.depth(at) == self.plan.steps.len() - 1;
                if !(absent && last) {
                    let problem = "it is not the last step of a deletion";
                    self.fail(&step.key, Invariant::OneIncarnation, problem);
                }
            }
        }
    }

    /// A step that its machine's agent carries out, in the order that a machine needs.
    fn agent_step(&mut self, step: &PlanStep, machine: &MachineName) {
        self.needs_agent(step, machine);
        let machine = machine.clone();
        match &step.action {
            Action::GrowDisk { .. } => {
                // Its member may have to stop for it.
                self.out_of_endpoint(step, &machine);
                self.needs_if_planned(step, &Action::MountDisk { machine });
            }
            Action::StartComponents { .. } => {
                self.out_of_endpoint(step, &machine);
                self.has_its_vote(step, &machine);
                let found = self.observed.machines.get(&machine);
                if found.is_some_and(ObservedMachine::may_be_stopped) {
                    self.is_stopped(step, &machine);
                }
                let configure = Action::Configure {
                    machine: machine.clone(),
                };
                // Units that were switched to other components read their configuration.
                match self.refit(&machine) {
                    Some(_) => self.needs(step, &configure),
                    None => self.needs_if_planned(step, &configure),
                }
                self.needs_if_planned(step, &Action::MountDisk { machine });
            }
            Action::Configure { .. } => {
                // Links are switched to what is there.
                if let Some(stage) = self.refit(&machine) {
                    self.needs(step, &stage);
                }
            }
            Action::AwaitControlPlane { .. } => self.needs_if_planned(step, &start(&machine)),
            _ => {}
        }
    }

    /// Components come in place to the machine that is to have them, and goes on.
    fn stage_components(&mut self, step: &PlanStep, machine: &MachineName, stemcell: &str) {
        self.needs_machine(step, machine);
        let wanted = self.wanted(machine);
        let refit = wanted.and_then(|wanted| wanted.refit.as_ref());
        if refit.is_none_or(|refit| refit.stemcell != stemcell) {
            let problem = "nobody wants these components on it";
            self.fail(&step.key, Invariant::StepEnds, problem);
        }
        let found = self.observed.machines.get(machine);
        let stays = |(wanted, found): (&DesiredMachine, &ObservedMachine)| {
            wanted.incarnation == found.incarnation
        };
        if !wanted.zip(found).is_some_and(stays) {
            let problem = "components come in place to a machine that goes on, and it does not";
            self.fail(&step.key, Invariant::OneIncarnation, problem);
        }
    }

    /// The components that a machine is to get in place, if it is.
    fn refit(&self, machine: &MachineName) -> Option<Action> {
        let refit = self.wanted(machine)?.refit.as_ref()?;
        Some(Action::StageComponents {
            machine: machine.clone(),
            stemcell: refit.stemcell.clone(),
        })
    }

    /// A later incarnation of a member of etcd finds its disk; an empty one would be another member.
    fn create_disk(&mut self, step: &PlanStep, disk: &DiskName, machine: &MachineName) {
        let later = self
            .wanted(machine)
            .is_some_and(|m| m.incarnation != Incarnation::FIRST);
        let joins = self.is_outside(step, machine);
        if (later && !joins) || self.observed.disks.contains_key(disk) {
            let problem = "the machine's data would be replaced by an empty disk";
            self.fail(&step.key, Invariant::EtcdQuorum, problem);
        }
    }

    fn attach_disk(&mut self, step: &PlanStep, disk: &DiskName, machine: &MachineName) {
        let wanted = self
            .wanted(machine)
            .is_some_and(|m| m.disk.as_ref() == Some(disk));
        let found = self.observed.disks.get(disk);
        let holder = found.and_then(|found| found.attached_to.as_ref());
        let free =
            holder.is_none_or(|holder| holder == machine || self.deleted_before(step, holder));
        if !wanted || !free {
            self.fail(
                &step.key,
                Invariant::OneIncarnation,
                "the disk is not this machine's",
            );
        }
        let old = self.observed.machines.get(machine);
        let old =
            old.filter(|old| Some(old.incarnation) != self.wanted(machine).map(|w| w.incarnation));
        if old.is_some() && !self.deleted_before(step, machine) {
            let problem = "another incarnation of its machine may still write to the disk";
            self.fail(&step.key, Invariant::OneIncarnation, problem);
        }
        if found.is_none() {
            let create = Action::CreateDisk {
                disk: disk.clone(),
                machine: machine.clone(),
            };
            self.needs(step, &create);
        }
        self.needs_machine(step, machine);
    }

    fn create_machine(&mut self, step: &PlanStep, machine: &MachineName) {
        let Some(wanted) = self.wanted(machine) else {
            return self.fail(&step.key, Invariant::OneIncarnation, "it is not wanted");
        };
        let Some(found) = self.observed.machines.get(machine) else {
            return;
        };
        let same = found.incarnation == wanted.incarnation;
        if same && found.complete {
            self.fail(&step.key, Invariant::OneIncarnation, "it exists");
        }
        if found.incarnation > wanted.incarnation {
            let problem = "a later incarnation of it exists";
            self.fail(&step.key, Invariant::OneIncarnation, problem);
        }
        if !same && !self.deleted_before(step, machine) {
            self.fail(
                &step.key,
                Invariant::OneIncarnation,
                "another incarnation of it may still run",
            );
        }
    }

    fn delete_machine(&mut self, step: &PlanStep, machine: &MachineName) {
        if self.plan.goal == Goal::Absent {
            return;
        }
        let wanted = self.wanted(machine);
        let found = self.observed.machines.get(machine);
        let member = found.is_some_and(|found| found.pool.is_none());
        let has_disk = |d: &crate::planner::ObservedDisk| d.attached_to.as_ref() == Some(machine);
        let holds_data = self.observed.disks.values().any(has_disk);
        if (member || holds_data) && wanted.is_none() && !self.is_outside(step, machine) {
            self.fail(
                &step.key,
                Invariant::EtcdQuorum,
                "it may be a member of etcd",
            );
        }
        if wanted.is_some_and(|w| found.is_none_or(|f| f.incarnation >= w.incarnation)) {
            self.fail(
                &step.key,
                Invariant::OneIncarnation,
                "it is wanted as it is",
            );
        }
        if found.is_some_and(ObservedMachine::may_be_stopped) {
            self.is_stopped(step, machine);
        }
        let Some(found) = found.filter(|found| found.available()) else {
            self.is_left(step, machine);
            let joined = found.is_some_and(|found| found.registered() || found.fenced);
            if joined && !self.fenced_before(step, machine) {
                let problem = "nothing shows that it is off, and it was not drained either";
                self.fail(&step.key, Invariant::OneIncarnation, problem);
            }
            return;
        };
        let drain = Action::Drain {
            machine: machine.clone(),
            node: found.node.clone(),
        };
        if !self.has_before(step, &drain) {
            let problem = "it serves, and is not drained before";
            self.fail(&step.key, Invariant::PodBudgets, problem);
        }
        let saved = Action::SaveSnapshot {
            machine: machine.clone(),
        };
        if member && !self.observed.outside.contains(machine) && !self.has_before(step, &saved) {
            let problem = "what its member holds is not saved on its disk before";
            self.fail(&step.key, Invariant::EtcdQuorum, problem);
        }
        self.out_of_endpoint(step, machine);
    }

    /// A member of etcd that may run although it does not count as one that serves is stopped before its machine is
    /// touched, beside others.
    fn is_stopped(&mut self, step: &PlanStep, machine: &MachineName) {
        let DesiredState::Present { machines, .. } = &self.desired.state else {
            return;
        };
        let wanted = machines.values().filter(|m| m.control_plane()).count();
        let members = wanted + self.observed.leaving_voters().count();
        let machine = || machine.clone();
        let remove = Action::RemoveMember { machine: machine() };
        let outside = self.observed.outside.contains(&machine());
        // Of one that was promoted nothing else was started.
        let alone = self.observed.promoted.contains(&machine());
        if outside || alone || self.planned.contains_key(&remove) {
            return; // it has no vote that would be missed
        }
        let stop = Action::StopComponents { machine: machine() };
        if members > 1 && !self.has_before(step, &stop) {
            let problem = "its member may run, and was not stopped before";
            self.fail(&step.key, Invariant::EtcdQuorum, problem);
        }
    }

    /// A worker that may have pods although it was not seen in service is drained before it is deleted.
    fn is_left(&mut self, step: &PlanStep, machine: &MachineName) {
        let found = self.observed.machines.get(machine);
        let serves = self.observed.machines.values().any(|found| found.ready);
        let Some(found) = found.filter(|found| serves && found.may_have_pods()) else {
            return;
        };
        let drain = Action::Drain {
            machine: machine.clone(),
            node: found.node.clone(),
        };
        if !self.has_before(step, &drain) {
            let problem = "it may have pods, and is not drained before";
            self.fail(&step.key, Invariant::PodBudgets, problem);
        }
    }

    /// An API server that clients use is out of the endpoint before it is touched, unless it is the only one.
    fn out_of_endpoint(&mut self, step: &PlanStep, machine: &MachineName) {
        let observed = self.observed;
        let goes = observed.leaving.contains(machine) || observed.outside.contains(machine);
        let member = goes || self.wanted(machine).is_some_and(|m| m.control_plane());
        let serves = self
            .observed
            .machines
            .get(machine)
            .is_some_and(ObservedMachine::available);
        let DesiredState::Present { machines, .. } = &self.desired.state else {
            return;
        };
        let wanted = machines.values().filter(|m| m.control_plane()).count();
        let alone = wanted + observed.leaving_voters().count() == 1;
        if !member || !serves || alone {
            return;
        }
        let leave = Action::LeaveEndpoint {
            machine: machine.clone(),
        };
        if !self.has_before(step, &leave) {
            let problem = "clients of the endpoint may still use its API server";
            self.fail(&step.key, Invariant::EtcdQuorum, problem);
        }
        let moved = Action::MoveLeader {
            machine: machine.clone(),
        };
        // Of one whose agent is lost nobody can ask that.
        let reboot = self.wanted(machine).and_then(|wanted| wanted.reboot);
        let asked = !reboot.is_some_and(|reboot| reboot.silent);
        if asked && !observed.outside.contains(machine) && !self.has_before(step, &moved) {
            let problem = "it may lead etcd still";
            self.fail(&step.key, Invariant::EtcdQuorum, problem);
        }
    }

    /// A machine is restarted that goes on and is to be; drained before, out of the endpoint, and not leading etcd.
    fn reboot(&mut self, step: &PlanStep, machine: &MachineName, boots: u64) {
        let wanted = self.wanted(machine);
        let Some(reboot) = wanted.and_then(|wanted| wanted.reboot) else {
            let problem = "nobody wants it restarted";
            return self.fail(&step.key, Invariant::StepEnds, problem);
        };
        if reboot.boots != boots {
            let problem = "it is not the restart that was ordered";
            self.fail(&step.key, Invariant::StepEnds, problem);
        }
        let found = self.observed.machines.get(machine);
        let stays = |(wanted, found): (&DesiredMachine, &ObservedMachine)| {
            found.complete && wanted.incarnation == found.incarnation
        };
        if !wanted.zip(found).is_some_and(stays) {
            let problem = "what is restarted goes on, and it does not";
            self.fail(&step.key, Invariant::OneIncarnation, problem);
        }
        let serves = found.filter(|found| found.available());
        if let Some(found) = serves.filter(|_| reboot.drain) {
            let (machine, node) = (machine.clone(), found.node.clone());
            if !self.has_before(step, &Action::Drain { machine, node }) {
                let problem = "it serves, and is not drained before";
                self.fail(&step.key, Invariant::PodBudgets, problem);
            }
        }
        let member = wanted.is_some_and(DesiredMachine::control_plane);
        if serves.is_some() && member && !reboot.silent {
            let machine = machine.clone();
            self.needs(step, &Action::StopComponents { machine });
        }
        self.out_of_endpoint(step, machine);
    }

    /// Whether etcd does not know a machine by then.
    fn is_outside(&self, step: &PlanStep, machine: &MachineName) -> bool {
        let remove = Action::RemoveMember {
            machine: machine.clone(),
        };
        let observed = self.observed;
        let never = observed.outside.contains(machine) && !observed.leaving.contains(machine);
        never || self.has_before(step, &remove)
    }

    /// What a control plane is made of starts only beside a member that has a vote.
    fn has_its_vote(&mut self, step: &PlanStep, machine: &MachineName) {
        let machine = || machine.clone();
        let remove = Action::RemoveMember { machine: machine() };
        let without =
            self.observed.outside.contains(&machine()) || self.planned.contains_key(&remove);
        if without {
            self.needs(step, &Action::PromoteMember { machine: machine() });
        }
    }

    fn add_member(&mut self, step: &PlanStep, machine: &MachineName) {
        let member = self.wanted(machine).is_some_and(|m| m.control_plane());
        if !member || !self.is_outside(step, machine) {
            let problem = "it is not wanted in etcd, or is in it already";
            self.fail(&step.key, Invariant::EtcdQuorum, problem);
        }
    }

    fn start_member(&mut self, step: &PlanStep, machine: &MachineName) {
        self.needs_agent(step, machine);
        let machine = machine.clone();
        self.needs_if_planned(
            step,
            &Action::MountDisk {
                machine: machine.clone(),
            },
        );
        self.needs(step, &Action::AddMember { machine });
    }

    /// A member is removed when it is to go, or when its data is gone and nobody can write as it.
    fn stop_api(&mut self, step: &PlanStep, machine: &MachineName) {
        if self.wanted(machine).is_some() {
            let problem = "it stays, and nobody ordered a restore";
            self.fail(&step.key, Invariant::EtcdQuorum, problem);
        }
        self.out_of_endpoint(step, machine);
    }

    fn remove_member(&mut self, step: &PlanStep, machine: &MachineName) {
        let wanted = self.wanted(machine);
        let has = |disk: &DiskName| self.observed.disks.contains_key(disk);
        let data = wanted
            .and_then(|wanted| wanted.disk.as_ref())
            .is_some_and(has);
        if data {
            let problem = "it is wanted, and its data is there";
            self.fail(&step.key, Invariant::EtcdQuorum, problem);
        }
        let found = self.observed.machines.get(machine);
        let off = self.fenced_before(step, machine) || self.deleted_before(step, machine);
        if found.is_some_and(ObservedMachine::available) && !off {
            let machine = machine.clone();
            self.needs(step, &Action::StopApi { machine });
        }
        if wanted.is_some() && found.is_some_and(ObservedMachine::registered) && !off {
            let problem = "it may run, and write as a member that nobody knows any more";
            self.fail(&step.key, Invariant::OneIncarnation, problem);
        }
        self.out_of_endpoint(step, machine);
    }

    fn join_endpoint(&mut self, step: &PlanStep, machine: &MachineName) {
        let answers = Action::AwaitControlPlane {
            machine: machine.clone(),
        };
        self.needs(step, &answers);
    }

    fn drop_node(&mut self, step: &PlanStep, machine: &MachineName) {
        self.needs_api(step);
        let departed = self.observed.departed.get(machine);
        let found = self.observed.machines.get(machine);
        // One that is being shut out is among the departed, and may run on.
        let known = matches!(&step.action, Action::DropNode { node, .. }
            if departed.is_some_and(|nodes| nodes.contains(node))
                && found.is_none_or(|found| found.node != *node));
        let proven = self.fenced_before(step, machine) || self.deleted_before(step, machine);
        if !known && found.is_some() && !proven {
            self.fail(
                &step.key,
                Invariant::OneIncarnation,
                "its machine may still run",
            );
        }
    }

    fn forget_machine(&mut self, step: &PlanStep, machine: &MachineName) {
        let exists = self.observed.machines.contains_key(machine);
        if self.wanted(machine).is_some() || (exists && !self.deleted_before(step, machine)) {
            let problem = "its address may still be in use";
            self.fail(&step.key, Invariant::OneIncarnation, problem);
        }
        if self.observed.leaving.contains(machine) && !self.is_outside(step, machine) {
            let problem = "etcd may still wait for its vote";
            self.fail(&step.key, Invariant::EtcdQuorum, problem);
        }
    }

    fn delete_disk(&mut self, step: &PlanStep, disk: &DiskName) {
        let named = match &self.desired.state {
            DesiredState::Present { .. } => false,
            DesiredState::Absent { disks } => disks.contains(disk),
        };
        if !named {
            self.fail(
                &step.key,
                Invariant::NamedDeletion,
                "no order names this disk",
            );
        }
        let holder = self
            .observed
            .disks
            .get(disk)
            .and_then(|d| d.attached_to.as_ref());
        if holder.is_some_and(|holder| !self.deleted_before(step, holder)) {
            self.fail(
                &step.key,
                Invariant::NamedDeletion,
                "a machine may still have it",
            );
        }
    }

    fn wanted(&self, machine: &MachineName) -> Option<&'a DesiredMachine> {
        match &self.desired.state {
            DesiredState::Present { machines, .. } => machines.get(machine),
            DesiredState::Absent { .. } => None,
        }
    }

    fn has_before(&self, step: &PlanStep, action: &Action) -> bool {
        let at = self.order.index(&step.key);
        self.planned
            .get(action)
            .is_some_and(|key| self.order.precedes(self.order.index(key), at))
    }

    fn fenced_before(&self, step: &PlanStep, machine: &MachineName) -> bool {
        let fence = Action::Fence {
            machine: machine.clone(),
        };
        self.has_before(step, &fence)
    }

    fn deleted_before(&self, step: &PlanStep, machine: &MachineName) -> bool {
        let delete = Action::DeleteMachine {
            machine: machine.clone(),
        };
        self.has_before(step, &delete)
    }

    fn needs(&mut self, step: &PlanStep, action: &Action) {
        if !self.has_before(step, action) {
            self.fail(
                &step.key,
                Invariant::StepEnds,
                format!("{} does not come before it", action.name()),
            );
        }
    }

    fn needs_if_planned(&mut self, step: &PlanStep, action: &Action) {
        if self.planned.contains_key(action) {
            self.needs(step, action);
        }
    }

    /// The machine exists, or is created before.
    fn needs_machine(&mut self, step: &PlanStep, machine: &MachineName) {
        let there = self.observed.machines.get(machine).is_some_and(|found| {
            found.complete && Some(found.incarnation) == self.wanted(machine).map(|m| m.incarnation)
        });
        if !there {
            let create = Action::CreateMachine {
                machine: machine.clone(),
            };
            self.needs(step, &create);
        }
    }

    fn needs_agent(&mut self, step: &PlanStep, machine: &MachineName) {
        let agent = Action::AwaitAgent {
            machine: machine.clone(),
        };
        self.needs(step, &agent);
    }

    fn needs_api(&mut self, step: &PlanStep) {
        let at = self.order.index(&step.key);
        if !self.api.iter().any(|shown| self.order.precedes(*shown, at)) {
            let problem = "it asks an API that may not answer";
            self.fail(&step.key, Invariant::StepEnds, problem);
        }
    }
}

fn start(machine: &MachineName) -> Action {
    Action::StartComponents {
        machine: machine.clone(),
    }
}

/// Minor version; what cannot be read counts as the newest, so that it is never taken to be in order.
fn minor(version: &str) -> u32 {
    let minor = version.split('.').nth(1).and_then(|part| part.parse().ok());
    minor.unwrap_or(u32::MAX)
}
