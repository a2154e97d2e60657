//! Plans the renewal of certificates in place, one machine after the other, and the stages of rotations that
//! restart nothing.
//!
//! Nothing that runs is disturbed, so no budget is drawn on. One at a time all the same: a machine whose new
//! certificates are not accepted ends the task, and is the only one. Workers go first.

use windlass_common::id::MachineName;

use super::steps::{Steps, addons_key, api_key, machine_key};
use super::{Desired, DesiredState, Observed, hash};
use crate::model::{Action, Disruption, Goal, Invariant, Plan, Rotation, Stage, StepKey};

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
    made(desired, steps)
}

/// Plans a stage of a rotation that has one step; the other stages are plans like any other.
pub fn stage(desired: &Desired, observed: &Observed, rotation: &Rotation) -> Plan {
    let mut steps = Steps::default();
    if rotation.done {
        return made(desired, steps);
    }
    let why = rotation.stage.says();
    let mut add = |key: StepKey, action: Action, after: Vec<StepKey>| {
        let (guard, disrupts) = (Invariant::StepEnds, Disruption::Nothing);
        steps.add(key, action, why, guard, disrupts, after);
    };
    let dns = StepKey("dns/await".to_owned());
    match rotation.stage {
        Stage::Spread => {
            let agents: Vec<StepKey> = observed
                .machines
                .keys()
                .map(|name| machine_key(name, "await-agent"))
                .collect();
            for (name, key) in observed.machines.keys().zip(&agents) {
                let machine = name.clone();
                add(key.clone(), Action::AwaitAgent { machine }, Vec::new());
            }
            let key = StepKey("pods/spread-trust".to_owned());
            add(key, Action::SpreadTrust, agents);
        }
        Stage::Rewrite => {
            add(api_key(), Action::AwaitApi, Vec::new());
            let key = StepKey("secrets/rewrite".to_owned());
            add(key, Action::RewriteSecrets, vec![api_key()]);
        }
        Stage::RestartDns => {
            add(api_key(), Action::AwaitApi, Vec::new());
            add(addons_key(), Action::ApplyAddons, vec![api_key()]);
            add(dns, Action::AwaitDns, vec![addons_key()]);
        }
        Stage::AddKey
        | Stage::UseKey
        | Stage::DropKey
        | Stage::TrustBoth
        | Stage::SignNew
        | Stage::TrustNew
        | Stage::DropTokens => {}
    }
    made(desired, steps)
}

fn made(desired: &Desired, steps: Steps) -> Plan {
    Plan {
        cluster: desired.cluster.clone(),
        goal: Goal::Present,
        hash: hash(desired, Goal::Present, &steps.list),
        steps: steps.list,
        drains: None,
        changes: None,
        hazards: Vec::new(),
        window: None,
        restore: None,
        upgrade: None,
    }
}
