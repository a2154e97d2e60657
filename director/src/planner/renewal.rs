//! Plans the renewal of certificates in place, one machine after the other.
//!
//! Nothing that runs is disturbed, so no budget is drawn on. One at a time all the same: a machine whose new
//! certificates are not accepted ends the task, and is the only one. Workers go first.

use windlass_common::id::MachineName;

use super::steps::{Steps, machine_key};
use super::{Desired, DesiredState, Observed, hash};
use crate::model::{Action, Disruption, Goal, Invariant, Plan, StepKey};

/// Plans it for `machines`; those that do not exist are left out. `desired` is what the cluster is to be anyway.
pub fn plan(desired: &Desired, observed: &Observed, machines: &[MachineName]) -> Plan {
    let control_plane = |name: &MachineName| match &desired.state {
        DesiredState::Present { machines, .. } => {
            machines.get(name).is_some_and(|m| m.control_plane())
        }
        DesiredState::Absent { .. } => false,
    };
    let exists = |name: &&MachineName| observed.machines.contains_key(*name);
    let mut machines: Vec<&MachineName> = machines.iter().filter(exists).collect();
    machines.sort_by_key(|name| (control_plane(name), *name));
    machines.dedup();
    let mut steps = Steps::default();
    let mut before: Option<StepKey> = None;
    for name in machines {
        let machine = || name.clone();
        steps.add(
            machine_key(name, "await-agent"),
            Action::AwaitAgent { machine: machine() },
            "its agent has to be connected to be told anything",
            Invariant::StepEnds,
            Disruption::Nothing,
            before.take(),
        );
        steps.add(
            machine_key(name, "renew-certificates"),
            Action::RenewCertificates { machine: machine() },
            "its certificates are signed anew for the keys that it has; its components read them by themselves",
            Invariant::StepEnds,
            Disruption::Nothing,
            [machine_key(name, "await-agent")],
        );
        before = Some(machine_key(name, "renew-certificates"));
    }
    Plan {
        cluster: desired.cluster.clone(),
        goal: Goal::Present,
        hash: hash(desired, Goal::Present, &steps.list),
        steps: steps.list,
        drains: None,
    }
}
