//! What happens about each machine now: the ladder's next move, if the guards allow it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::MachineName;

use super::{Case, Fleet, GuardPolicy, LadderPolicy, Move, Role, Rung, allow, next};

/// How the resurrector decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// How patient the ladder is.
    pub ladder: LadderPolicy,
    /// What repairs may do.
    pub guard: GuardPolicy,
}

/// What happens about a machine next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Outlook {
    /// Nothing is wrong with it.
    Rest,
    /// Nothing before this time.
    Wait {
        /// Unix milliseconds.
        until_ms: u64,
        /// What is waited for.
        why: String,
    },
    /// Nothing by itself: an operator decides.
    Stay {
        /// Why.
        why: String,
    },
    /// This would come next, and a guard refuses it for now.
    Refused {
        /// What would be done.
        rung: Rung,
        /// What speaks against it.
        why: String,
    },
    /// This is done now.
    Act {
        /// What.
        rung: Rung,
    },
}

/// What happens about each machine of `cases` at `now_ms`. Machines that serve nobody are looked at first:
/// acting on them costs nothing. What is to be done to one counts when the next one is looked at, so that
/// all of it together keeps the budgets.
pub fn decide(
    cases: &BTreeMap<MachineName, Case>,
    fleet: &Fleet,
    now_ms: u64,
    policy: &Policy,
) -> BTreeMap<MachineName, Outlook> {
    let mut fleet = fleet.clone();
    for (name, case) in cases {
        if case.reboots(now_ms, &policy.ladder)
            && let Some(member) = fleet.machines.get_mut(name)
        {
            // A machine that is being restarted by us is out of service because of us.
            member.in_hand = true;
        }
    }
    let mut order: Vec<(&MachineName, &Case)> = cases.iter().collect();
    let worker = |name: &MachineName| {
        let member = fleet.machines.get(name);
        member.is_none_or(|member| member.role != Role::ControlPlane)
    };
    order.sort_by_key(|(name, case)| (!case.verdict.is_down(), worker(name), *name));
    let mut outlooks = BTreeMap::new();
    for (name, case) in order {
        let outlook = outlook(name, case, &fleet, now_ms, policy);
        if matches!(outlook, Outlook::Act { .. })
            && let Some(member) = fleet.machines.get_mut(name)
        {
            member.in_hand = true;
        }
        outlooks.insert(name.clone(), outlook);
    }
    outlooks
}

fn outlook(
    name: &MachineName,
    case: &Case,
    fleet: &Fleet,
    now_ms: u64,
    policy: &Policy,
) -> Outlook {
    let member = fleet.machines.get(name);
    // What a task has begun to take away is not restarted first, nor is what is shut out: it does not come back.
    let going = member.is_some_and(|member| {
        let taken = member.in_hand && member.joins && member.verdict.is_down();
        member.fenced || taken
    });
    let rung = match next(case, now_ms, &policy.ladder) {
        Move::Rest => return Outlook::Rest,
        Move::Wait { until_ms, why } => {
            let why = why.to_owned();
            return Outlook::Wait { until_ms, why };
        }
        Move::Stay { why } => {
            let why = why.to_owned();
            return Outlook::Stay { why };
        }
        Move::Act(_) if going => Rung::Replace,
        Move::Act(rung) => rung,
    };
    match allow(fleet, name, rung, now_ms, &policy.guard) {
        Ok(()) => Outlook::Act { rung },
        Err(refusal) => Outlook::Refused {
            rung,
            why: refusal.to_string(),
        },
    }
}
