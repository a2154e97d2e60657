//! Members of etcd that join and leave.
//!
//! # Invariants
//! * One membership changes at a time: each waits for the one before it.
//! * Whoever joins is a learner until it has caught up. Its API server starts once it has its vote, and with
//!   the members that there are by then: a learner answers no API server.
//! * A member whose data is gone leaves before it joins again: with one of three down, etcd takes no learner.
//! * A member that goes leaves etcd after its node is drained and its API server, which asks no other, has ended; it
//!   stops itself afterwards. By then those that stay run with a configuration that does not name it.
//!
//! # Not here
//! Whether those left are a majority is checked by [`crate::plan`] too, and by etcd itself
//! (`--strict-reconfig-check`).

use windlass_common::id::MachineName;

use super::bring_up::{await_agent, prepare, start_up};
use super::present::{Need, Site, api_shown_by};
use super::steps::{Key, Steps, Verb};
use super::{DesiredMachine, ObservedMachine, PlanError, takedown};
use crate::model::{Action, Disruption, Invariant};

/// Name of the checkpoint after which all who join have a vote.
pub(super) const JOINED: &str = "members-joined";

/// Has machines join etcd one after the other, then starts what else runs on them. `before` are members that
/// come back first.
pub(super) fn join(
    site: &Site<'_>,
    joining: &[&MachineName],
    before: &[&MachineName],
    steps: &mut Steps,
) -> Result<(), PlanError> {
    let mut gate: Vec<_> = before
        .iter()
        .map(|name| Verb::AwaitControlPlane.of(name))
        .collect();
    gate.push(api_shown_by(site));
    for name in joining.iter().filter(|name| site.lost.contains(**name)) {
        gate = one_lost(site, name, &gate, steps)?;
    }
    let mut agents = Vec::new();
    for name in joining {
        agents.push(prepare(site, name, &[Key::API], steps)?);
    }
    for (name, agent) in joining.iter().zip(&agents) {
        await_agent(name, agent.mount, &[Key::API], steps);
        one_joins(name, &gate, steps);
        gate = vec![Verb::PromoteMember.of(name)];
    }
    steps.checkpoint(
        JOINED,
        "all members of etcd have a vote; what uses them is told of all",
        Invariant::EtcdQuorum,
        joining.iter().map(|name| Verb::PromoteMember.of(name)),
    );
    for (name, agent) in joining.iter().zip(agents) {
        start_up(site, name, agent.whole(), &[Key::API], steps);
    }
    Ok(())
}

/// A member whose data is gone leaves, once nobody can write as it any more.
fn one_lost(
    site: &Site<'_>,
    name: &MachineName,
    gate: &[Key],
    steps: &mut Steps,
) -> Result<Vec<Key>, PlanError> {
    let (members, others) = site.other_votes(name);
    let votes = |name: &&&MachineName| !site.observed.outside.contains(**name);
    let all = members + site.lost.iter().filter(votes).count();
    let wanted = &site.machines[name];
    if let Some(disk) = wanted.disk.clone().filter(|_| others < all / 2 + 1) {
        return Err(PlanError::DiskLost {
            disk,
            machine: name.clone(),
            others,
            members,
        });
    }
    let another = |found: &ObservedMachine| found.incarnation != wanted.incarnation;
    if site.found(name).is_some_and(another) {
        let why = "another incarnation of it is wanted";
        takedown::delete(site, name, why, &[Key::API], steps);
    }
    let proof = [Verb::Fence, Verb::Delete].map(|verb| verb.of(name));
    let why = "its data is gone: what etcd holds is saved elsewhere, and it takes it in again once it has left";
    remove_member(
        name,
        why,
        gate.iter().cloned().chain(proof).collect(),
        steps,
    );
    Ok(vec![Verb::RemoveMember.of(name)])
}

fn one_joins(name: &MachineName, gate: &[Key], steps: &mut Steps) {
    let mounted = [Verb::AwaitAgent, Verb::MountDisk].map(|verb| verb.of(name));
    steps.add(
        Verb::AddMember.of(name),
        Action::AddMember {
            machine: name.clone(),
        },
        "what etcd holds is saved, and it learns of it as a learner, which has no vote yet",
        Invariant::EtcdQuorum,
        Disruption::Nothing,
        gate.iter().cloned().chain(mounted.clone()),
    );
    steps.add(
        Verb::StartMember.of(name),
        Action::StartMember {
            machine: name.clone(),
        },
        "the learner catches up before anything counts on it",
        Invariant::EtcdQuorum,
        Disruption::Nothing,
        mounted
            .into_iter()
            .chain([Verb::AddMember.of(name), Verb::AddRoutes.of(name)]),
    );
    steps.add(
        Verb::PromoteMember.of(name),
        Action::PromoteMember {
            machine: name.clone(),
        },
        "it has caught up, and gets its vote",
        Invariant::EtcdQuorum,
        Disruption::Nothing,
        [Verb::StartMember.of(name)],
    );
}

/// Has members leave that nothing is wanted of, one at a time, those that are down first. Returns the steps
/// after which they are gone.
pub(super) fn leave(
    site: &Site<'_>,
    mut gate: Vec<Key>,
    steps: &mut Steps,
) -> Result<Vec<Key>, PlanError> {
    let observed = site.observed;
    let up = |name: &MachineName| site.found(name).is_some_and(ObservedMachine::available);
    let outside = observed.outside.iter();
    let mut going: Vec<_> = observed
        .leaving
        .iter()
        .chain(outside.filter(|name| site.surplus.contains(name)))
        .collect();
    going.sort_by_key(|name| (up(name), std::cmp::Reverse(*name)));
    going.dedup();
    let votes = |name: &MachineName| !observed.outside.contains(name);
    // Those that stay have joined and are back by now.
    let stays = |(name, machine): &(&MachineName, &DesiredMachine)| {
        machine.control_plane() && (observed.member_runs(name) || site.needs[*name] == Need::Make)
    };
    let staying = site.machines.values().filter(|m| m.control_plane());
    let mut members = staying.count();
    let mut serving = site.machines.iter().filter(stays).count();
    for name in going.iter().filter(|name| votes(name)) {
        members += 1;
        serving += usize::from(observed.member_runs(name));
    }
    for name in going {
        if votes(name) {
            // Now, to have it removed, and afterwards.
            let (quorum, left) = (
                members / 2 + 1,
                serving - usize::from(observed.member_runs(name)),
            );
            members -= 1;
            if serving < quorum || left < members / 2 + 1 {
                return Err(PlanError::Quorum {
                    machine: name.clone(),
                    members: members + 1,
                    available: serving,
                    left,
                    quorum,
                });
            }
            serving = left;
        }
        one_leaves(site, name, &gate, steps);
        gate = vec![Verb::Delete.of(name), Verb::RemoveMember.of(name)];
        gate.retain(|key| steps.has(key));
        gate.extend([
            Key::checkpoint("control-plane-made"),
            api_shown_by(site),
            Key::ADDONS,
        ]);
    }
    Ok(gate)
}

fn one_leaves(site: &Site<'_>, name: &MachineName, gate: &[Key], steps: &mut Steps) {
    let serves = site.found(name).is_some_and(ObservedMachine::available);
    let mut gate = gate.to_vec();
    if serves {
        takedown::drain(site, name, &gate, steps);
        gate = vec![Verb::Drain.of(name)];
        takedown::leave_endpoint(name, &gate, steps);
        gate = vec![Verb::LeaveEndpoint.of(name)];
        takedown::move_leader(name, &gate, steps);
        gate = vec![Verb::MoveLeader.of(name)];
        let drained = [Verb::Drain.of(name)];
        gate.extend(takedown::save_snapshot(site, name, &drained, steps));
        if site.observed.leaving.contains(name) {
            stop_api(name, gate, steps);
            gate = vec![Verb::StopApi.of(name)];
        }
    }
    if site.observed.leaving.contains(name) {
        let why = "it goes for good: what etcd holds is saved elsewhere, and what is no member is no vote that is missed";
        remove_member(name, why, gate, steps);
        gate = vec![Verb::RemoveMember.of(name)];
    }
    if serves {
        takedown::stop(name, false, &gate, steps);
        gate = vec![Verb::StopComponents.of(name)];
    }
    takedown::delete(site, name, "nothing of it is wanted", &gate, steps);
}

fn stop_api(name: &MachineName, after: Vec<Key>, steps: &mut Steps) {
    steps.add(
        Verb::StopApi.of(name),
        Action::StopApi {
            machine: name.clone(),
        },
        "its API server asks the member beside it alone, and ends its requests before that one leaves",
        Invariant::EtcdQuorum,
        Disruption::Nothing,
        after,
    );
}

fn remove_member(name: &MachineName, why: &'static str, after: Vec<Key>, steps: &mut Steps) {
    steps.add(
        Verb::RemoveMember.of(name),
        Action::RemoveMember {
            machine: name.clone(),
        },
        why,
        Invariant::EtcdQuorum,
        Disruption::Nothing,
        after,
    );
}
