//! Checks a plan against the invariants, whoever made it, knowing nothing of how it was made.
//!
//! # Invariants checked (numbers of `docs/architecture.md`, §8)
//! 1. A control-plane machine is deleted only with its whole cluster.
//! 2. A machine is created only when no other incarnation of it exists or after that one is deleted; a
//!    disk is attached only to the one machine that wants it.
//! 5. No kubelet is newer than an API server of its cluster.
//! 6. The graph is acyclic and complete; every step of a machine comes after what it needs.
//! 7. A persistent disk is deleted only when the order names it, and never while a machine has it.
//!
//! # Not here
//! Budgets and PodDisruptionBudgets (3, 4): no plan of this release drains.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::id::{DiskName, MachineName};

use crate::model::{Action, Goal, Invariant, Plan, PlanStep, StepKey};
use crate::planner::{Desired, DesiredMachine, DesiredState, Observed};

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
    let mut checker = Checker {
        plan,
        desired,
        observed,
        ancestors: BTreeMap::new(),
        violations: Vec::new(),
    };
    checker.graph();
    if checker.violations.is_empty() {
        checker.plan_as_a_whole();
        for step in &plan.steps {
            checker.step(step);
        }
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
    ancestors: BTreeMap<&'a StepKey, BTreeSet<&'a StepKey>>,
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

    /// Keys are unique and each step waits only for earlier ones: so there is no cycle.
    fn graph(&mut self) {
        for step in &self.plan.steps {
            let mut all = BTreeSet::new();
            for key in &step.after {
                match self.ancestors.get(key) {
                    Some(above) => {
                        all.extend(above.iter().copied());
                        all.insert(key);
                    }
                    None => self.fail(
                        &step.key,
                        Invariant::StepEnds,
                        format!("it waits for {key}, which is not an earlier step"),
                    ),
                }
            }
            if self.ancestors.insert(&step.key, all).is_some() {
                self.fail(&step.key, Invariant::StepEnds, "its key is used twice");
            }
        }
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
        let whole = StepKey("(plan)".to_owned());
        if hash != self.plan.hash
            || goal != self.plan.goal
            || self.plan.cluster != self.desired.cluster
        {
            self.fail(
                &whole,
                Invariant::StepEnds,
                "it is not the plan of this desired state",
            );
        }
        self.skew(&whole);
    }

    fn skew(&mut self, whole: &StepKey) {
        let DesiredState::Present { machines, .. } = &self.desired.state else {
            return;
        };
        let oldest_api = machines
            .values()
            .filter(|m| m.control_plane)
            .map(|m| minor(&m.kubernetes_version))
            .min();
        let newest_kubelet = machines
            .values()
            .map(|m| minor(&m.kubernetes_version))
            .max();
        if newest_kubelet > oldest_api {
            self.fail(
                whole,
                Invariant::VersionSkew,
                "a kubelet would be newer than an API server",
            );
        }
    }

    fn step(&mut self, step: &'a PlanStep) {
        let absent = self.plan.goal == Goal::Absent;
        match &step.action {
            Action::EnsureEndpoint | Action::CreateDisk { .. } => {}
            Action::CreateMachine { machine } => self.create_machine(step, machine),
            Action::AttachDisk { disk, machine } => self.attach_disk(step, disk, machine),
            Action::AwaitAgent { machine } => self.needs_machine(step, machine),
            Action::MountDisk { machine }
            | Action::Configure { machine }
            | Action::StartComponents { machine }
            | Action::AwaitControlPlane { machine } => self.agent_step(step, machine),
            Action::AwaitNode { machine, .. } => {
                self.needs_api(step);
                self.needs_if_planned(step, &start(machine));
            }
            Action::ApplyAddons => self.needs_api(step),
            Action::DropNode { machine, .. } => {
                self.needs_api(step);
                if !self.deleted_before(step, machine) {
                    self.fail(
                        &step.key,
                        Invariant::OneIncarnation,
                        "its machine may still run",
                    );
                }
            }
            Action::DeleteMachine { machine } => self.delete_machine(step, machine),
            Action::DeleteDisk { disk } => self.delete_disk(step, disk),
            Action::DeleteEndpoint => {
                if !absent {
                    self.fail(&step.key, Invariant::StepEnds, "the cluster is to stay");
                }
            }
            Action::ForgetCluster => {
                let last = self.ancestors[&step.key].len() == self.plan.steps.len() - 1;
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
            Action::StartComponents { .. } => {
                let configure = Action::Configure {
                    machine: machine.clone(),
                };
                self.needs_if_planned(step, &configure);
                self.needs_if_planned(step, &Action::MountDisk { machine });
            }
            Action::AwaitControlPlane { .. } => self.needs_if_planned(step, &start(&machine)),
            _ => {}
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
        if found.is_none() {
            self.needs(
                step,
                |a| matches!(a, Action::CreateDisk { disk: d, .. } if d == disk),
            );
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
        let control_plane = wanted.is_some_and(|m| m.control_plane)
            || self
                .observed
                .disks
                .values()
                .any(|d| d.attached_to.as_ref() == Some(machine));
        if control_plane {
            self.fail(
                &step.key,
                Invariant::EtcdQuorum,
                "it may be a member of etcd",
            );
        }
        if wanted.map(|m| m.incarnation) == found.map(|m| m.incarnation) {
            self.fail(
                &step.key,
                Invariant::OneIncarnation,
                "it is wanted as it is",
            );
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

    fn has_before(&self, step: &PlanStep, wanted: impl Fn(&Action) -> bool) -> bool {
        let above = &self.ancestors[&step.key];
        self.plan
            .steps
            .iter()
            .any(|other| above.contains(&other.key) && wanted(&other.action))
    }

    fn deleted_before(&self, step: &PlanStep, machine: &MachineName) -> bool {
        self.has_before(
            step,
            |a| matches!(a, Action::DeleteMachine { machine: m } if m == machine),
        )
    }

    fn needs(&mut self, step: &PlanStep, wanted: impl Fn(&Action) -> bool) {
        if !self.has_before(step, wanted) {
            self.fail(
                &step.key,
                Invariant::StepEnds,
                "something it needs does not come before it",
            );
        }
    }

    fn needs_if_planned(&mut self, step: &PlanStep, action: &Action) {
        if self.plan.steps.iter().any(|other| &other.action == action) {
            self.needs(step, |a| a == action);
        }
    }

    /// The machine exists, or is created before.
    fn needs_machine(&mut self, step: &PlanStep, machine: &MachineName) {
        let there = self.observed.machines.get(machine).is_some_and(|found| {
            found.complete && Some(found.incarnation) == self.wanted(machine).map(|m| m.incarnation)
        });
        if !there {
            self.needs(
                step,
                |a| matches!(a, Action::CreateMachine { machine: m } if m == machine),
            );
        }
    }

    fn needs_agent(&mut self, step: &PlanStep, machine: &MachineName) {
        self.needs(
            step,
            |a| matches!(a, Action::AwaitAgent { machine: m } if m == machine),
        );
    }

    fn needs_api(&mut self, step: &PlanStep) {
        self.needs(step, |a| matches!(a, Action::AwaitControlPlane { .. }));
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
