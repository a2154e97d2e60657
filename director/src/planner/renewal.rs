//! Plans the renewal of certificates in place, one machine after the other, and the stages of rotations that
//! restart nothing.
//!
//! Nothing that runs is disturbed, so no budget is drawn on. One at a time all the same: a machine whose new
//! certificates are not accepted ends the task, and is the only one. Workers go first.

use windlass_common::id::MachineName;

use super::steps::{Key, Steps, Verb};
use super::{Desired, DesiredState, Observed, made};
use crate::model::{Action, Disruption, Goal, Invariant, Plan, Rotation, Stage};

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
    let mut before: Option<Key> = None;
    for name in machines {
        let machine = || name.clone();
        steps.add(
            Verb::AwaitAgent.of(name),
            Action::AwaitAgent { machine: machine() },
            "its agent has to be connected to be told anything",
            Invariant::StepEnds,
            Disruption::Nothing,
            before.take(),
        );
        steps.add(
            Verb::RenewCertificates.of(name),
            Action::RenewCertificates { machine: machine() },
            "its certificates are signed anew for the keys that it has; its components read them by themselves",
            Invariant::StepEnds,
            Disruption::Nothing,
            [Verb::AwaitAgent.of(name)],
        );
        before = Some(Verb::RenewCertificates.of(name));
    }
    made(desired, Goal::Present, steps.list)
}

/// Plans a stage of a rotation that has one step; the other stages are plans like any other.
pub fn stage(desired: &Desired, observed: &Observed, rotation: &Rotation) -> Plan {
    let mut steps = Steps::default();
    if rotation.done {
        return made(desired, Goal::Present, steps.list);
    }
    let why = rotation.stage.says();
    let mut add = |key: Key, action: Action, after: Vec<Key>| {
        let (guard, disrupts) = (Invariant::StepEnds, Disruption::Nothing);
        steps.add(key, action, why, guard, disrupts, after);
    };
    let dns = Key::Cluster("dns/await");
    match rotation.stage {
        Stage::Spread => {
            let agents: Vec<Key> = observed
                .machines
                .keys()
                .map(|name| Verb::AwaitAgent.of(name))
                .collect();
            for (name, key) in observed.machines.keys().zip(&agents) {
                let machine = name.clone();
                add(key.clone(), Action::AwaitAgent { machine }, Vec::new());
            }
            let key = Key::Cluster("pods/spread-trust");
            add(key, Action::SpreadTrust, agents);
        }
        Stage::Rewrite => {
            add(Key::API, Action::AwaitApi, Vec::new());
            let key = Key::Cluster("secrets/rewrite");
            add(key, Action::RewriteSecrets, vec![Key::API]);
        }
        Stage::RestartDns => {
            add(Key::API, Action::AwaitApi, Vec::new());
            add(Key::ADDONS, Action::ApplyAddons, vec![Key::API]);
            add(dns, Action::AwaitDns, vec![Key::ADDONS]);
        }
        Stage::AddKey
        | Stage::UseKey
        | Stage::DropKey
        | Stage::TrustBoth
        | Stage::SignNew
        | Stage::TrustNew
        | Stage::DropTokens => {}
    }
    made(desired, Goal::Present, steps.list)
}
