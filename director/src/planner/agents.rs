//! Plans the upgrade of agents in place: the first machine by itself, the others behind it.
//!
//! Nothing that runs is disturbed, so no budget is drawn on; what has to be bounded is how many machines
//! are out of the director's reach while their new agents are on trial. Workers go first: one of them that
//! shows a new agent to be broken costs nothing else.

use windlass_common::id::MachineName;

use super::steps::{Key, Steps, Verb};
use super::{Desired, DesiredState, Observed};
use crate::model::{Action, Disruption, Goal, Invariant, Plan};

/// An order to upgrade agents.
#[derive(Debug, Clone, Copy)]
pub struct AgentUpgrades<'a> {
    /// The stemcell whose agent is wanted.
    pub stemcell: &'a str,
    /// The machines; those that do not exist are left out.
    pub machines: &'a [MachineName],
    /// How many at a time, once the first has succeeded; at least one.
    pub at_a_time: usize,
}

/// Plans it. `desired` is what the cluster is to be anyway.
pub fn plan(desired: &Desired, observed: &Observed, order: AgentUpgrades<'_>) -> Plan {
    let mut steps = Steps::default();
    let control_plane = |name: &MachineName| match &desired.state {
        DesiredState::Present { machines, .. } => {
            machines.get(name).is_some_and(|m| m.control_plane())
        }
        DesiredState::Absent { .. } => false,
    };
    let mut machines: Vec<&MachineName> = order
        .machines
        .iter()
        .filter(|name| observed.machines.contains_key(*name))
        .collect();
    machines.sort_by_key(|name| (control_plane(name), *name));
    machines.dedup();
    let keys: Vec<Key> = machines
        .iter()
        .map(|name| Verb::UpgradeAgent.of(name))
        .collect();
    for (i, name) in machines.into_iter().enumerate() {
        let before = (i > 0).then(|| i.saturating_sub(order.at_a_time.max(1)));
        let action = Action::UpgradeAgent {
            machine: name.clone(),
            stemcell: order.stemcell.to_owned(),
        };
        steps.add(
            keys[i].clone(),
            action,
            match i {
                0 => {
                    "its agent is to be this stemcell's; the first shows whether the new one works"
                }
                _ => "its agent is to be this stemcell's",
            },
            Invariant::StepEnds,
            Disruption::Nothing,
            before.map(|before| keys[before].clone()),
        );
    }
    super::made(desired, Goal::Present, steps.list)
}
