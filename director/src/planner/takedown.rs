//! Takes machines of a cluster in service down, and brings them up again.
//!
//! # Invariants
//! * What is not in service is made first, and costs nothing. A member of etcd that was about to be stopped may run:
//!   it is stopped before anything else happens to its machine, which looks at the others first. A worker that may have pods although it was not seen in
//!   service is drained all the same before it goes.
//! * A control-plane machine begins when the one before it is back, its node included.
//! * Components that are only restarted leave pods running: one machine of a pool at a time may always be.
//! * Of a pool, at most *in service + coming − floor* machines are down at once, the floor being the number
//!   wanted less what the budget lets be missing. Machines that go for good come last, each in a lane of its
//!   own, so that they never add up with others.
//! * Of a pool, machines of one zone are done before the first of another is begun with.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use windlass_common::id::{MachineName, NodeName, PoolName};

use super::bring_up::{await_control_plane, await_node, bring_up, stage};
use super::present::{Need, Site, api_shown_by};
use super::steps::{Key, Steps, Verb};
use super::{Budget, ObservedMachine, PlanError};
use crate::model::{Action, Disruption, Invariant};

fn members<'a>(site: &Site<'a>, need: Need) -> Vec<&'a MachineName> {
    let wanted = site.machines.iter().filter(|(_, m)| m.control_plane());
    wanted
        .map(|(name, _)| name)
        .filter(|name| site.needs[*name] == need)
        .collect()
}

/// Makes what is missing of the control plane, up to API servers that answer.
pub(super) fn make_control_plane(site: &Site<'_>, steps: &mut Steps) -> Result<(), PlanError> {
    let (joining, made): (Vec<_>, Vec<_>) = members(site, Need::Make)
        .into_iter()
        .partition(|name| site.joining.contains(name));
    for name in &made {
        bring_up(site, name, &[Key::API], steps)?;
        await_control_plane(name, steps);
    }
    super::members::join(site, &joining, &made, steps)?;
    for name in joining {
        await_control_plane(name, steps);
    }
    Ok(())
}

/// Whether a member of etcd that does not count as one that serves may run, beside others: a stop that was begun with
/// may have stopped nothing.
pub(super) fn may_run(site: &Site<'_>, name: &MachineName) -> bool {
    let observed = site.observed;
    let votes = !observed.outside.contains(name) && !site.lost.contains(name);
    // Of one that was promoted nothing else was started, or was stopped: it serves.
    let alone = observed.promoted.contains(name);
    let found = site.found(name);
    site.members > 1 && votes && !alone && found.is_some_and(ObservedMachine::may_be_stopped)
}

/// Changes the machines of the control plane one at a time, after those that were missing. Returns the steps
/// after which all of it is as it should be.
pub(super) fn control_plane(site: &Site<'_>, steps: &mut Steps) -> Result<Vec<Key>, PlanError> {
    let made = members(site, Need::Make);
    for name in &made {
        into_service(site, name, steps);
    }
    // One that was taken out of the endpoint and stays after all.
    for name in members(site, Need::Nothing) {
        if site.observed.out_of_endpoint.contains(name) {
            await_control_plane(name, steps);
            join(site, name, steps);
        }
    }
    let waits = [Verb::AwaitNode, Verb::AwaitGates];
    // What fails its gates may do so for want of those that are made.
    let mut back = vec![api_shown_by(site)];
    back.extend(made.iter().map(|name| Verb::AwaitNode.of(name)));
    let asked = members(site, Need::Nothing);
    let asked = made.iter().copied().chain(asked);
    let asked: Vec<_> = asked.filter(|name| site.asks(name)).collect();
    for name in &asked {
        await_gates(site, name, &back, steps);
    }
    steps.checkpoint(
        "control-plane-made",
        "no machine is taken from a control plane that lacks one",
        Invariant::EtcdQuorum,
        made.iter()
            .chain(&asked)
            .flat_map(|name| waits.map(|verb| verb.of(name))),
    );
    let mut gate = vec![
        Key::checkpoint("control-plane-made"),
        api_shown_by(site),
        Key::ADDONS,
    ];
    // What an earlier plan has begun with is out of service already.
    let untouched =
        |name: &MachineName| !site.observed.out_of_endpoint.contains(name) && !cordoned(site, name);
    // What works badly goes first.
    let mut order = members(site, Need::Reboot);
    order.extend(members(site, Need::Replace));
    order.extend(members(site, Need::Restart));
    order.sort_by_key(|name| untouched(name));
    for name in order {
        quorum(site, name)?;
        change(site, name, &gate, steps)?;
        gate = done(name).into();
    }
    super::members::leave(site, gate, steps)
}

/// Refuses to take a control-plane machine when those left are no majority.
fn quorum(site: &Site<'_>, name: &MachineName) -> Result<(), PlanError> {
    let members = site.members;
    let up = |name: &MachineName| site.observed.member_runs(name);
    let in_service = site.machines.iter().filter(|(name, machine)| {
        machine.control_plane() && (up(name) || site.needs[name] == Need::Make)
    });
    let leaving = site.observed.leaving_voters().filter(|name| up(name));
    let available = in_service.count() + leaving.count();
    let (left, quorum) = (available.saturating_sub(1), members / 2 + 1);
    if members > 1 && left < quorum {
        return Err(PlanError::Quorum {
            machine: name.clone(),
            members,
            available,
            left,
            quorum,
        });
    }
    Ok(())
}

/// Machines of a pool by what has to happen to them.
#[derive(Default)]
struct Crew<'a> {
    make: Vec<&'a MachineName>,
    /// Those that need nothing.
    stay: Vec<&'a MachineName>,
    change: Vec<&'a MachineName>,
    /// Of them, those that are replaced or rebooted: their pods end.
    replace: usize,
    remove: Vec<&'a MachineName>,
    /// Nodes that are opened again.
    open: Vec<&'a MachineName>,
    /// Machines in service.
    available: usize,
    /// Machines wanted.
    count: usize,
}

/// Makes and changes workers, pool by pool; `control_plane` is waited for wherever a version changes.
pub(super) fn workers(
    site: &Site<'_>,
    control_plane: &[Key],
    steps: &mut Steps,
) -> Result<(), PlanError> {
    for (pool, crew) in crews(site) {
        // A kubelet is never newer than an API server: whatever is newer waits for the control plane.
        let at_once = vec![api_shown_by(site), Key::ADDONS];
        let mut gate = at_once.clone();
        gate.extend(control_plane.iter().cloned());
        for name in &crew.make {
            let gate = if site.newer(name) { &gate } else { &at_once };
            bring_up(site, name, gate, steps)?;
            into_service(site, name, steps);
        }
        let waits = [Verb::AwaitNode, Verb::AwaitGates];
        let mut back = vec![api_shown_by(site)];
        back.extend(crew.make.iter().map(|n| Verb::AwaitNode.of(n)));
        back.extend(control_plane.iter().cloned());
        let comes = crew.make.iter().chain(&crew.stay).copied();
        let asked: Vec<_> = comes.filter(|name| site.asks(name)).collect();
        for name in &asked {
            await_gates(site, name, &back, steps);
        }
        let made = format!("{pool}-made");
        steps.checkpoint(
            made.clone(),
            "machines that are missing come before any is taken down",
            Invariant::Budget,
            crew.make
                .iter()
                .chain(&asked)
                .flat_map(|name| waits.map(|verb| verb.of(name))),
        );
        gate.push(Key::checkpoint(made));
        for name in &site.surplus {
            let down = site
                .found(name)
                .is_some_and(|f| !f.available() && f.pool.as_ref() == Some(pool));
            if down {
                delete(site, name, "nothing of it is wanted", &[Key::API], steps);
            }
        }
        in_lanes(site, pool, &crew, gate, steps)?;
    }
    Ok(())
}

fn crews<'a>(site: &Site<'a>) -> BTreeMap<&'a PoolName, Crew<'a>> {
    let mut crews: BTreeMap<&PoolName, Crew<'_>> = BTreeMap::new();
    for (name, machine) in site.machines {
        let Some(pool) = &machine.pool else { continue };
        let crew = crews.entry(pool).or_default();
        crew.count += 1;
        match site.needs[name] {
            Need::Make => crew.make.push(name),
            Need::Replace | Need::Reboot => {
                crew.change.push(name);
                crew.replace += 1;
            }
            Need::Restart => crew.change.push(name),
            Need::Nothing => crew.stay.push(name),
        }
        if cordoned(site, name) && site.stays(name) && site.reboot(name).is_none() {
            crew.open.push(name);
        }
    }
    for (name, found) in &site.observed.machines {
        let Some(pool) = &found.pool else { continue };
        let crew = crews.entry(pool).or_default();
        if found.available() {
            crew.available += 1;
            if site.surplus.contains(name) {
                crew.remove.push(name);
            }
        }
    }
    crews
}

fn cordoned(site: &Site<'_>, name: &MachineName) -> bool {
    site.found(name).is_some_and(|found| found.cordoned)
}

/// Changes and removes the machines of a pool in as many lanes as its budget has room for. A lane goes from
/// one machine to the next as each comes back, and ends with one that does not.
fn in_lanes(
    site: &Site<'_>,
    pool: &PoolName,
    crew: &Crew<'_>,
    mut gate: Vec<Key>,
    steps: &mut Steps,
) -> Result<(), PlanError> {
    let mut order: Vec<_> = crew.change.iter().chain(&crew.remove).copied().collect();
    if order.is_empty() {
        return Ok(());
    }
    // What an earlier plan has begun with is out of service already, and goes first.
    let begun = |name: &MachineName| cordoned(site, name) && !crew.open.contains(&name);
    let leaves = |name: &MachineName| !site.machines.contains_key(name);
    let zone = |name: &MachineName| site.observed.zones.get(name);
    // So does what works badly, which is no canary of a change.
    let repaired = |name: &MachineName| site.reboot(name).is_some();
    order.sort_by_cached_key(|name| (!begun(name), !repaired(name), leaves(name), zone(name)));
    let budget = site.budgets.get(pool).copied().unwrap_or_default();
    let mut lanes: VecDeque<Vec<Key>> = vec![Vec::new(); lanes(pool, crew, budget)?].into();
    // More may have been begun with than may be down at once now: then no other is begun with before they are back.
    let begun = order.iter().filter(|name| begun(name)).count();
    let begun_done = format!("{pool}-begun");
    let in_excess = begun > lanes.len();
    let repairs = order.iter().filter(|name| repaired(name)).count();
    let canaries = match usize::try_from(budget.canaries).unwrap_or(usize::MAX) {
        0 => 0,
        canaries => canaries.saturating_add(repairs).min(crew.change.len()),
    };
    gate.extend(crew.open.iter().map(|name| Verb::Uncordon.of(name)));
    let mut ends: Vec<Key> = Vec::new();
    let proven = format!("{pool}-canaries");
    // The zone of the last machine that is known to be in one.
    let mut in_zone = None;
    for (i, name) in order.iter().enumerate() {
        if i == begun && in_excess {
            let why = "machines that were begun with are in service again; the others follow";
            steps.checkpoint(
                begun_done.clone(),
                why,
                Invariant::Budget,
                ends.iter().cloned(),
            );
            gate.push(Key::checkpoint(begun_done.clone()));
        }
        let last = in_zone;
        in_zone = zone(name).or(last);
        if last.is_some() && last != in_zone {
            let zone_done = format!("{pool}-zone-{i}");
            let why = "machines of one zone are in service again; those of the next follow";
            steps.checkpoint(
                zone_done.clone(),
                why,
                Invariant::Budget,
                ends.iter().cloned(),
            );
            gate.push(Key::checkpoint(zone_done));
        }
        if i == canaries && canaries > 0 {
            let why = "the canaries are in service; the others follow";
            steps.checkpoint(proven.clone(), why, Invariant::Budget, ends.iter().cloned());
        }
        let lane = lanes.pop_front().ok_or_else(|| spare(pool, crew, budget))?;
        let mut after = gate.clone();
        after.extend(lane);
        after.push(Key::checkpoint(proven.clone()));
        if site.machines.contains_key(*name) {
            change(site, name, &after, steps)?;
            let end = done(name);
            ends.extend(end.clone());
            lanes.push_back(end.into());
        } else {
            remove(site, name, &after, steps);
            ends.push(Verb::Delete.of(name));
        }
    }
    Ok(())
}

/// How many machines of a pool may be down at once.
fn lanes(pool: &PoolName, crew: &Crew<'_>, budget: Budget) -> Result<usize, PlanError> {
    let available = crew.available + crew.make.len();
    let restarts = crew.replace == 0 && crew.remove.is_empty();
    let lanes = available
        .saturating_sub(crew.floor(budget))
        .max(usize::from(restarts));
    if lanes == 0 || lanes < crew.remove.len() {
        return Err(spare(pool, crew, budget));
    }
    Ok(lanes)
}

impl Crew<'_> {
    /// The least number of machines in service.
    fn floor(&self, budget: Budget) -> usize {
        let missing = usize::try_from(budget.max_unavailable).unwrap_or(usize::MAX);
        self.count.saturating_sub(missing)
    }
}

fn spare(pool: &PoolName, crew: &Crew<'_>, budget: Budget) -> PlanError {
    PlanError::Spare {
        pool: pool.clone(),
        available: crew.available + crew.make.len(),
        floor: crew.floor(budget),
        changing: crew.change.len() + crew.remove.len(),
    }
}

/// Takes a machine that serves down and brings it up as it should be.
fn change(
    site: &Site<'_>,
    name: &MachineName,
    after: &[Key],
    steps: &mut Steps,
) -> Result<(), PlanError> {
    let member = site.machines[name].control_plane();
    let alone = member && site.members == 1;
    let replace = site.needs[name] == Need::Replace;
    let reboot = site.reboot(name);
    let silent = reboot.is_some_and(|reboot| reboot.silent);
    let mut gate = after.to_vec();
    if stage(site, name, &gate, steps) {
        gate = vec![Verb::Stage.of(name)];
    }
    if replace || reboot.is_some_and(|reboot| reboot.drain) {
        drain(site, name, &gate, steps);
        gate = vec![Verb::Drain.of(name)];
    }
    // One that is restarted keeps its disk, and may not be able to save anything.
    let saves = member && reboot.is_none();
    let saved = saves.then(|| save_snapshot(site, name, &gate, steps));
    if member && !alone {
        leave_endpoint(name, &gate, steps);
        gate = vec![Verb::LeaveEndpoint.of(name)];
        if !silent {
            move_leader(name, &gate, steps);
            gate = vec![Verb::MoveLeader.of(name)];
        }
    }
    if reboot.is_some() {
        if member && !silent {
            stop(name, alone, &gate, steps);
            gate = vec![Verb::StopComponents.of(name)];
        }
    } else if replace {
        if member {
            gate.extend(saved.flatten());
            stop(name, alone, &gate, steps);
            gate = vec![Verb::StopComponents.of(name)];
        }
        let why = match &site.machines[name].because {
            Some(because) => {
                format!("another incarnation of it is wanted, and not in place: {because}").into()
            }
            None => Cow::from("another incarnation of it is wanted"),
        };
        delete(site, name, why, &gate, steps);
        gate = vec![Verb::Delete.of(name)];
    } else if member && !alone {
        // Started anew all at once, an API server that ends its requests would miss its etcd.
        gate.extend(saved.flatten());
        stop(name, alone, &gate, steps);
        gate = vec![Verb::StopComponents.of(name)];
    } else {
        // The only member starts anew with the rest of its machine.
        gate.extend(saved.flatten());
    }
    bring_up(site, name, &gate, steps)?;
    into_service(site, name, steps);
    await_gates(site, name, &[], steps);
    Ok(())
}

/// What users want to be so before the next machine is taken.
fn await_gates(site: &Site<'_>, name: &MachineName, after: &[Key], steps: &mut Steps) {
    if !site.gated {
        return;
    }
    steps.add(
        Verb::AwaitGates.of(name),
        Action::AwaitGates {
            machine: name.clone(),
        },
        "the spec's gates have to be open before another machine is taken",
        Invariant::StepEnds,
        Disruption::Nothing,
        [Verb::AwaitNode.of(name), Verb::JoinEndpoint.of(name)]
            .into_iter()
            .chain(after.iter().cloned()),
    );
}

/// The steps after which a machine that changed is done with.
fn done(name: &MachineName) -> [Key; 4] {
    [
        Verb::AwaitNode,
        Verb::JoinEndpoint,
        Verb::AwaitGates,
        Verb::Uncordon,
    ]
    .map(|verb| verb.of(name))
}

/// Has the provider restart a machine, where that is wanted. Returns whether it is.
pub(super) fn reboot(
    site: &Site<'_>,
    name: &MachineName,
    after: &[Key],
    steps: &mut Steps,
) -> bool {
    let Some(reboot) = site.reboot(name) else {
        return false;
    };
    let only_member = site.members == 1 && site.machines[name].control_plane();
    let drained = steps.has(&Verb::Drain.of(name));
    let (state, disrupts) = match (only_member, drained) {
        (true, _) => (
            "the only API server: the API is down until it is back",
            Disruption::Api,
        ),
        (false, true) => ("drained", Disruption::Nothing),
        (false, false) if reboot.drain => ("not in service", Disruption::Pods),
        (false, false) => (
            "not drained, since nobody on it would end its pods",
            Disruption::Pods,
        ),
    };
    steps.add(
        Verb::Reboot.of(name),
        Action::RebootMachine {
            machine: name.clone(),
            boots: reboot.boots,
        },
        format!("reboot {name} ({state}): milder remedies did not mend it"),
        Invariant::Budget,
        disrupts,
        after.iter().cloned(),
    );
    true
}

/// Opens the node of a machine that was restarted, if it was us who closed it.
pub(super) fn reopen(site: &Site<'_>, name: &MachineName, steps: &mut Steps) {
    let Some(found) = site.found(name).filter(|_| site.reboot(name).is_some()) else {
        return;
    };
    if found.cordoned || steps.has(&Verb::Drain.of(name)) {
        steps.add(
            Verb::Uncordon.of(name),
            Action::Uncordon {
                machine: name.clone(),
                node: found.node.clone(),
            },
            "it was closed to be restarted, and is back",
            Invariant::StepEnds,
            Disruption::Nothing,
            [Verb::AwaitNode.of(name), api_shown_by(site)],
        );
    }
}

/// A machine that serves goes for good.
fn remove(site: &Site<'_>, name: &MachineName, after: &[Key], steps: &mut Steps) {
    drain(site, name, after, steps);
    let drained = [Verb::Drain.of(name)];
    delete(site, name, "nothing of it is wanted", &drained, steps);
}

/// Waits until a machine that came up serves.
fn into_service(site: &Site<'_>, name: &MachineName, steps: &mut Steps) {
    if site.machines[name].control_plane() {
        await_control_plane(name, steps);
        join(site, name, steps);
    }
    await_node(site, name, steps);
    reopen(site, name, steps);
}

/// Puts a machine's API server back into the endpoint, if it is out of it.
pub(super) fn join(site: &Site<'_>, name: &MachineName, steps: &mut Steps) {
    let out =
        site.observed.out_of_endpoint.contains(name) || steps.has(&Verb::LeaveEndpoint.of(name));
    if !out {
        return;
    }
    steps.add(
        Verb::JoinEndpoint.of(name),
        Action::JoinEndpoint {
            machine: name.clone(),
        },
        "its API server answers, and clients may use it",
        Invariant::StepEnds,
        Disruption::Nothing,
        [Verb::AwaitControlPlane.of(name), Key::API],
    );
}

pub(super) fn drain(site: &Site<'_>, name: &MachineName, after: &[Key], steps: &mut Steps) {
    let Some(found) = site.found(name) else {
        return;
    };
    steps.add(
        Verb::Drain.of(name),
        Action::Drain {
            machine: name.clone(),
            node: found.node.clone(),
        },
        "its pods move to other nodes, as their budgets allow, before it goes",
        Invariant::PodBudgets,
        Disruption::Pods,
        after.iter().cloned().chain([Verb::AddRoutes.of(name)]),
    );
}

/// Has another member lead before a machine's own stops: a write that meets a leader that ends waits for an
/// election.
pub(super) fn move_leader(name: &MachineName, after: &[Key], steps: &mut Steps) {
    steps.add(
        Verb::MoveLeader.of(name),
        Action::MoveLeader {
            machine: name.clone(),
        },
        "another member leads etcd before this one stops, so that no write waits for an election",
        Invariant::EtcdQuorum,
        Disruption::Nothing,
        after.iter().cloned(),
    );
}

/// Has a machine save what etcd holds on the disk that outlives it, before its member stops. Returns the step; none
/// where it has no member.
pub(super) fn save_snapshot(
    site: &Site<'_>,
    name: &MachineName,
    after: &[Key],
    steps: &mut Steps,
) -> Option<Key> {
    if site.observed.outside.contains(name) {
        return None;
    }
    let key = Verb::SaveSnapshot.of(name);
    steps.add(
        key.clone(),
        Action::SaveSnapshot {
            machine: name.clone(),
        },
        "what etcd holds is saved on its data disk before its member stops",
        Invariant::EtcdQuorum,
        Disruption::Nothing,
        after.iter().cloned(),
    );
    Some(key)
}

pub(super) fn leave_endpoint(name: &MachineName, after: &[Key], steps: &mut Steps) {
    steps.add(
        Verb::LeaveEndpoint.of(name),
        Action::LeaveEndpoint {
            machine: name.clone(),
        },
        "clients of the endpoint use the other API servers meanwhile",
        Invariant::EtcdQuorum,
        Disruption::Nothing,
        after.iter().cloned(),
    );
}

pub(super) fn stop(name: &MachineName, alone: bool, after: &[Key], steps: &mut Steps) {
    let (why, disrupts) = if alone {
        (
            "the only API server and the only member of etcd stop in peace: the API is down until they are back",
            Disruption::Api,
        )
    } else {
        (
            "requests end, watches move on and etcd hands over its leadership before the machine goes",
            Disruption::Nothing,
        )
    };
    steps.add(
        Verb::StopComponents.of(name),
        Action::StopComponents {
            machine: name.clone(),
        },
        why,
        Invariant::EtcdQuorum,
        disrupts,
        after.iter().cloned(),
    );
}

/// Deletes what there is of a machine.
pub(super) fn delete(
    site: &Site<'_>,
    name: &MachineName,
    why: impl Into<Cow<'static, str>>,
    after: &[Key],
    steps: &mut Steps,
) {
    let Some(found) = site.found(name) else {
        return;
    };
    if steps.has(&Verb::Delete.of(name)) {
        return;
    }
    let drained = steps.has(&Verb::Drain.of(name));
    let mut why = why.into();
    if let Some(kept) = &found.kept_as {
        why = format!("{why}; what there is of it is kept, off, as {kept}").into();
    }
    let mut after: Vec<Key> = after.to_vec();
    after.push(Verb::AddRoutes.of(name));
    if !drained && site.established && found.may_have_pods() {
        after.push(api_shown_by(site));
        drain(site, name, &after, steps);
        after = vec![Verb::Drain.of(name)];
    }
    if !drained && (found.registered() || found.fenced) {
        steps.add(
            Verb::Fence.of(name),
            Action::Fence {
                machine: name.clone(),
            },
            "nobody can ask it to leave: it has to be proven off before others get its pods, name and disk",
            Invariant::OneIncarnation,
            Disruption::Pods,
            after,
        );
        after = vec![Verb::Fence.of(name)];
    }
    steps.add(
        Verb::Delete.of(name),
        Action::DeleteMachine {
            machine: name.clone(),
        },
        why,
        Invariant::OneIncarnation,
        if drained || !found.ready {
            Disruption::Nothing
        } else {
            Disruption::Pods
        },
        after,
    );
}

/// Removes the Node object of an incarnation that is proven off, and its pods.
pub(super) fn drop_node(site: &Site<'_>, name: &MachineName, node: &NodeName, steps: &mut Steps) {
    let proof = if steps.has(&Verb::Fence.of(name)) {
        Verb::Fence.of(name)
    } else {
        Verb::Delete.of(name)
    };
    let mut after = vec![proof, api_shown_by(site)];
    if site.members == 1 {
        // The API is away together with its only machine.
        let member = site.machines.iter().find(|(_, m)| m.control_plane());
        after.extend(member.map(|(name, _)| Verb::AwaitControlPlane.of(name)));
    }
    steps.add(
        Key::DropNode(node.clone()),
        Action::DropNode {
            machine: name.clone(),
            node: node.clone(),
        },
        "its machine is off, so its pods have to be moved and its name given up",
        Invariant::OneIncarnation,
        Disruption::Pods,
        after,
    );
}

/// Forgets a machine of which nothing is left.
pub(super) fn forget(site: &Site<'_>, name: &MachineName, steps: &mut Steps) {
    let key = Verb::Forget.of(name);
    if steps.has(&key) {
        return;
    }
    let departed = site.observed.departed.get(name).into_iter().flatten();
    let nodes = departed.chain(site.found(name).map(|found| &found.node));
    let after: Vec<_> = nodes
        .map(|node| Key::DropNode(node.clone()))
        .chain([Verb::Delete, Verb::RemoveMember].map(|verb| verb.of(name)))
        .collect();
    steps.add(
        key,
        Action::ForgetMachine {
            machine: name.clone(),
        },
        "nothing of it is left; its address is given up last",
        Invariant::OneIncarnation,
        Disruption::Nothing,
        after,
    );
}
