//! Which steps may still begin while a task pauses. Pure.
//!
//! # Invariants
//! * A machine that was begun with is finished: no machine is left drained, stopped or half made.
//! * No other machine is begun with, and no data is destroyed. One that died meanwhile, or works badly, is repaired all the
//!   same.

use std::collections::BTreeSet;

use windlass_common::id::MachineName;

use super::{AGAIN, split_leg};
use crate::model::{Action, Plan, PlanStep, StepKey, StepState, Task};

/// Whether a step whose turn has come may begin although its task pauses.
pub(super) fn goes_on(plan: &Plan, task: &Task, step: &PlanStep) -> bool {
    if !begins(&step.action) {
        return true;
    }
    let Some(machine) = step.action.machine() else {
        return false;
    };
    // What has died since is repaired, and what works badly restarted: a pause is for the change.
    let repairs =
        |action: &Action| matches!(action, Action::Fence { .. } | Action::RebootMachine { .. });
    let repaired = |action: &Action| task.again.is_some() && repairs(action);
    let mut of_machine = plan.steps.iter();
    of_machine.any(|other| {
        other.action.machine() == Some(machine)
            && begins(&other.action)
            && (has_begun(task, other) || repaired(&other.action))
    })
}

/// Whether a step was begun, in this plan of its task or an earlier one of the same leg: what was done to a machine in
/// the leg before says nothing of this one.
fn has_begun(task: &Task, step: &PlanStep) -> bool {
    let root_of = root(&step.key);
    task.steps.keys().any(|key| root(key) == root_of)
}

/// What a step's key says in each plan of one leg.
fn root(key: &StepKey) -> (&str, &str) {
    let (leg, key) = split_leg(&key.0);
    let rest = key
        .strip_prefix(AGAIN)
        .and_then(|rest| rest.split_once('/'));
    (leg, rest.map_or(key, |(_, root)| root))
}

/// The machines that a task has begun with and is not done with, and those that it is to bring into service: what
/// waits for its turn and serves is nobody's yet. `serves` says which were in service.
pub(crate) fn in_hand(task: &Task, serves: impl Fn(&MachineName) -> bool) -> BTreeSet<MachineName> {
    let mut begun = BTreeSet::new();
    let mut left = BTreeSet::new();
    for step in &task.current().steps {
        let Some(machine) = step.action.machine() else {
            continue;
        };
        let record = task.steps.get(&step.key);
        if !serves(machine) || (begins(&step.action) && has_begun(task, step)) {
            begun.insert(machine.clone());
        }
        if record.is_none_or(|record| record.state != StepState::Succeeded) {
            left.insert(machine.clone());
        }
    }
    &begun & &left
}

/// Whether a machine changes by this, or something is destroyed. What only waits, tells or opens again may
/// always be done: it follows what changed, or changes nothing that is noticed.
fn begins(action: &Action) -> bool {
    match action {
        Action::CreateDisk { .. }
        | Action::GrowDisk { .. }
        | Action::CreateMachine { .. }
        | Action::Configure { .. }
        | Action::StartComponents { .. }
        | Action::Drain { .. }
        | Action::LeaveEndpoint { .. }
        | Action::StopComponents { .. }
        | Action::AddMember { .. }
        | Action::StartMember { .. }
        | Action::RemoveMember { .. }
        | Action::StopApi { .. }
        | Action::UpgradeAgent { .. }
        | Action::RenewCertificates { .. }
        | Action::Fence { .. }
        | Action::RebootMachine { .. }
        | Action::DeleteMachine { .. }
        | Action::DeleteDisk { .. }
        | Action::DeleteEndpoint
        | Action::ForgetCluster => true,
        Action::EnsureEndpoint
        | Action::AttachDisk { .. }
        | Action::AwaitAgent { .. }
        | Action::MountDisk { .. }
        | Action::AwaitControlPlane { .. }
        | Action::ApplyAddons
        | Action::AwaitNode { .. }
        | Action::AwaitGates { .. }
        | Action::DropNode { .. }
        | Action::AwaitApi
        | Action::JoinEndpoint { .. }
        | Action::Uncordon { .. }
        | Action::AddRoutes { .. }
        | Action::PruneRoutes { .. }
        | Action::ForgetMachine { .. }
        | Action::PromoteMember { .. }
        | Action::MoveLeader { .. }
        // A restore does not pause once an API server is stopped.
        | Action::StopMember { .. }
        | Action::RestoreMember { .. }
        | Action::SetMemberAside { .. }
        | Action::RestartKubelet { .. }
        | Action::SettleNodes
        | Action::SaveSnapshot { .. }
        // What runs goes on beside it.
        | Action::StageComponents { .. }
        | Action::SpreadTrust
        | Action::RewriteSecrets
        | Action::AwaitDns
        | Action::Checkpoint { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seed 6607 of the simulation: a machine that the first leg had changed was begun with outside of its window.
    #[test]
    fn what_was_begun_is_told_by_leg_also_after_the_plan_was_made_anew() {
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            // begun, asked, whether it was
            ("",              "",              true),
            ("",              "again-1/",      true),
            ("again-1/",      "again-2/",      true),
            ("",              "leg-2/",        false),
            ("",              "leg-2/again-2/", false),
            ("again-1/",      "leg-2/again-2/", false),
            ("leg-2/",        "leg-2/again-1/", true),
            ("leg-2/again-1/", "leg-2/again-2/", true),
            ("leg-2/again-1/", "leg-3/",        false),
        ];
        let configure =
            |prefix: &str| StepKey::from(format!("{prefix}machine/demo-cp-0/configure"));
        for (begun, asked, was) in cases {
            let same = root(&configure(begun)) == root(&configure(asked));
            assert_eq!(same, was, "{begun} {asked}");
        }
    }
}
