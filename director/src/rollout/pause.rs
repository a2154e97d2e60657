//! Which steps may still begin while a task pauses. Pure.
//!
//! # Invariants
//! * A machine that was begun with is finished: no machine is left drained, stopped or half made.
//! * No other machine is begun with, and no data is destroyed.

use std::collections::BTreeMap;

use crate::model::{Action, Plan, PlanStep, StepKey, StepRecord};

/// Whether a step whose turn has come may begin although its task pauses.
pub(super) fn goes_on(plan: &Plan, steps: &BTreeMap<StepKey, StepRecord>, step: &PlanStep) -> bool {
    if !begins(&step.action) {
        return true;
    }
    let Some(machine) = step.action.machine() else {
        return false;
    };
    let mut of_machine = plan.steps.iter();
    of_machine.any(|other| {
        other.action.machine() == Some(machine)
            && begins(&other.action)
            && steps.contains_key(&other.key)
    })
}

/// Whether a machine changes by this, or something is destroyed. What only waits, tells or opens again may
/// always be done: it follows what changed, or changes nothing that is noticed.
fn begins(action: &Action) -> bool {
    match action {
        Action::CreateDisk { .. }
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
        | Action::Fence { .. }
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
        | Action::Checkpoint { .. } => false,
    }
}
