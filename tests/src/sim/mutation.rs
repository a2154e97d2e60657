//! Guards that are broken on purpose, to show that the simulation would notice.
//!
//! None of them needs a hook in the product: each is a plan with edges or steps taken out, or a part of
//! the world that does what a careless one would.

use clap::ValueEnum;
use windlass_director::model::{Action, Plan, StepKey};

/// One broken guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mutation {
    /// Control-plane machines do not wait for one another.
    ControlPlaneAtOnce,
    /// Workers of a pool do not wait for one another.
    BudgetIgnored,
    /// Machines that serve are not drained.
    DrainSkipped,
    /// Pods are deleted instead of evicted.
    PodBudgetsIgnored,
    /// Workers do not wait for the control plane.
    KubeletsFirst,
    /// A disk is attached before the machine that has it is gone.
    AttachedEarly,
    /// The store says that it has written what it has not.
    StoreLies,
    /// A disk is deleted that no order names.
    DiskUnnamed,
    /// An enrollment token is logged.
    TokenLogged,
    /// Nobody looks whether a machine has come back before it is shut out.
    CameBackUnseen,
    /// Nodes are dropped before their machines are gone.
    NodeDroppedEarly,
    /// Agents carry out what a director of any epoch orders.
    EpochsIgnored,
    /// Agents begin with an empty journal each time they start.
    JournalForgotten,
    /// A node is said to be Ready by what was heard of it at any time.
    ReportsTakenOnTrust,
    /// A machine serves by what its node has ever said, whatever else is known of it.
    NodesTakenOnTrust,
    /// A director that takes over deletes machines that nothing in its records tells it to.
    TidiesUp,
    /// Machines are begun with outside of the windows of their cluster.
    WindowsIgnored,
}

impl Mutation {
    /// The invariant that it breaks.
    pub fn breaks(self) -> u8 {
        match self {
            Self::ControlPlaneAtOnce => 1,
            Self::NodeDroppedEarly => 2,
            Self::AttachedEarly
            | Self::StoreLies
            | Self::EpochsIgnored
            | Self::WindowsIgnored
            | Self::JournalForgotten => 6,
            Self::BudgetIgnored | Self::NodesTakenOnTrust => 3,
            Self::DrainSkipped | Self::PodBudgetsIgnored | Self::CameBackUnseen => 4,
            Self::KubeletsFirst => 5,
            Self::DiskUnnamed => 7,
            Self::ReportsTakenOnTrust => 8,
            Self::TokenLogged => 9,
            Self::TidiesUp => 10,
        }
    }

    /// Takes its guard out of a plan.
    pub fn spoil(self, plan: &mut Plan) {
        match self {
            Self::ControlPlaneAtOnce => cut(plan, |of, after| {
                is_member(of) && (is_member(after) && of != after || after.is_empty())
            }),
            Self::BudgetIgnored => cut(plan, |of, after| {
                !of.is_empty() && !is_member(of) && !is_member(after) && of != after
            }),
            Self::KubeletsFirst => cut(plan, |of, after| {
                !of.is_empty() && !is_member(of) && is_member(after)
            }),
            Self::AttachedEarly => {
                for step in &mut plan.steps {
                    if let Action::AttachDisk { .. } = step.action {
                        step.after.retain(|key| key.0.starts_with("disk/"));
                    }
                }
            }
            Self::NodeDroppedEarly => {
                for step in &mut plan.steps {
                    if let Action::DropNode { .. } = step.action {
                        step.after.clear();
                    }
                }
            }
            Self::DrainSkipped => {
                let drains = |step: &Action| matches!(step, Action::Drain { .. });
                let skipped: Vec<(StepKey, Vec<StepKey>)> = plan
                    .steps
                    .iter()
                    .filter(|step| drains(&step.action))
                    .map(|step| (step.key.clone(), step.after.clone()))
                    .collect();
                plan.steps.retain(|step| !drains(&step.action));
                for step in &mut plan.steps {
                    for (key, before) in &skipped {
                        if step.after.contains(key) {
                            step.after.retain(|after| after != key);
                            step.after.extend(before.iter().cloned());
                        }
                    }
                }
            }
            Self::PodBudgetsIgnored
            | Self::StoreLies
            | Self::DiskUnnamed
            | Self::TokenLogged
            | Self::CameBackUnseen
            | Self::EpochsIgnored
            | Self::JournalForgotten
            | Self::ReportsTakenOnTrust
            | Self::NodesTakenOnTrust
            | Self::WindowsIgnored
            | Self::TidiesUp => {}
        }
    }
}

/// Cuts edges by the machine of a step and that of the step it waits for; empty for no machine's.
fn cut(plan: &mut Plan, which: impl Fn(&str, &str) -> bool) {
    for step in &mut plan.steps {
        let of = machine(&step.key);
        let kept: Vec<StepKey> = step
            .after
            .iter()
            .filter(|after| !which(of, machine(after)))
            .cloned()
            .collect();
        step.after = kept;
    }
}

fn machine(key: &StepKey) -> &str {
    let rest = key.0.split_once("machine/").map(|(_, rest)| rest);
    rest.and_then(|rest| rest.split('/').next()).unwrap_or("")
}

fn is_member(machine: &str) -> bool {
    machine.contains("-cp-")
}
