//! Plans a cluster that should be there: what each of its machines needs, and what is done for all of them.
//!
//! # Invariants
//! * What a machine needs follows from what is wanted and observed of it alone; what its change costs is judged with the
//!   others in sight ([`super::takedown`]).
//! * A cluster that nobody uses yet comes up at once. One that is used is first shown to answer, and its machines change
//!   in turn.
//! * Whoever may be a member of etcd without the records saying so is not taken away.
//! * Machines in service know the way to new ones before these have pods, and forget that to old ones once these are
//!   gone.
//!
//! # After a crash
//! Nothing is kept; plan again.
//!
//! # Not here
//! How one machine is brought up ([`super::bring_up`]), in which order those in service change
//! ([`super::takedown`]), and how members join etcd and leave it ([`super::members`]).

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;
use windlass_common::id::{ClusterName, Digest, Incarnation, MachineName, PoolName};

use super::bring_up::{await_control_plane, await_node, bring_up};
use super::steps::{Key, Steps, Verb};
use super::{Budget, DesiredMachine, Observed, ObservedMachine, PlanError, takedown};
use crate::kubernetes::facts::minor_of;
use crate::model::{Action, Disruption, Invariant, Reboot};

/// What a machine needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// It is as it should be, routes and labels apart.
    Nothing,
    /// It is not in service and has to come up, as another incarnation where one is down: costs nothing.
    Make,
    /// It serves, and another incarnation is wanted.
    Replace,
    /// It serves, and its components run with another configuration.
    Restart,
    /// It serves, and is restarted by its provider.
    Reboot,
}

/// The cluster as the planner sees it.
pub(super) struct Site<'a> {
    pub(super) machines: &'a BTreeMap<MachineName, DesiredMachine>,
    pub(super) budgets: &'a BTreeMap<PoolName, Budget>,
    pub(super) observed: &'a Observed,
    pub(super) needs: FxHashMap<&'a MachineName, Need>,
    /// Machines, whether or not they exist, of which nothing is wanted.
    pub(super) surplus: BTreeSet<&'a MachineName>,
    /// Members of etcd once those that join have joined, and before those that go have left.
    pub(super) members: usize,
    /// Control-plane machines that have to join etcd, now or again.
    pub(super) joining: BTreeSet<&'a MachineName>,
    /// Of these the ones that etcd knows still, although their data is gone.
    pub(super) lost: BTreeSet<&'a MachineName>,
    /// Users' gates stand between one machine that changes and the next.
    pub(super) gated: bool,
    /// The oldest minor that an API server is to its clients now; none where that of one cannot be read.
    servers: Option<u32>,
    addons: Option<Digest>,
    /// The control-plane machine that shows that the API answers when none is in service.
    first: &'a MachineName,
    /// Some of it was in service: people use it, whether or not its API answers now.
    pub(super) established: bool,
    /// A majority of the control plane is in service, so its API may be asked first.
    api: bool,
}

impl<'a> Site<'a> {
    pub(super) fn new(
        cluster: &ClusterName,
        machines: &'a BTreeMap<MachineName, DesiredMachine>,
        budgets: &'a BTreeMap<PoolName, Budget>,
        addons: Digest,
        observed: &'a Observed,
    ) -> Result<Self, PlanError> {
        let members = machines.iter().filter(|(_, m)| m.control_plane());
        let first = members
            .clone()
            .next()
            .map(|(name, _)| name)
            .ok_or_else(|| PlanError::NoControlPlane(cluster.clone()))?;
        let mut needs = FxHashMap::default();
        for (name, wanted) in machines {
            let found = observed.machines.get(name);
            let mut need = need(name, wanted, found)?;
            if need == Need::Nothing && short_of_disk(observed, name, wanted) {
                need = Need::Restart;
            }
            needs.insert(name, need);
        }
        let lost: BTreeSet<_> = members
            .clone()
            .filter(|(name, wanted)| {
                let found = observed.machines.get(*name);
                needs[*name] == Need::Make && data_lost(wanted, found, observed)
            })
            .map(|(name, _)| name)
            .collect();
        let votes = |name: &MachineName| !observed.outside.contains(name);
        let joins = |name: &&MachineName| !votes(name) || lost.contains(*name);
        let joining: BTreeSet<_> = members
            .clone()
            .map(|(name, _)| name)
            .filter(joins)
            .collect();
        let made =
            |(name, _): &(&MachineName, _)| needs[*name] == Need::Make && !joining.contains(*name);
        let first = members.clone().find(made).map_or(first, |(name, _)| name);
        let reborn = |(_, m): (_, &DesiredMachine)| m.incarnation != Incarnation::FIRST;
        let established = observed.machines.values().any(|m| m.ready)
            || !observed.departed.is_empty()
            || members.clone().any(reborn)
            || !joining.is_empty();
        let names = members.clone().map(|(name, _)| name);
        let voting: Vec<_> = names
            .filter(|name| votes(name))
            .chain(observed.leaving_voters())
            .collect();
        let answers = |name: &&&MachineName| {
            let found = observed.machines.get(**name);
            found.is_some_and(ObservedMachine::available)
        };
        let up = voting.iter().filter(|name| observed.member_runs(name));
        let api = up.count() > voting.len() / 2 && voting.iter().any(|name| answers(&name));
        let servers = members.clone().map(|(name, wanted)| {
            let found = observed.machines.get(name);
            found.map_or_else(|| wanted.api_minor(), ObservedMachine::api_minor)
        });
        let unwanted = observed.machines.keys().chain(&observed.surplus);
        let surplus = unwanted.filter(|name| !machines.contains_key(*name));
        Ok(Self {
            machines,
            budgets,
            observed,
            needs,
            surplus: surplus.collect(),
            members: members.count() + observed.leaving_voters().count(),
            joining,
            lost,
            gated: false,
            servers: servers.min().flatten(),
            addons: (observed.addons != Some(addons)).then_some(addons),
            first,
            established,
            api,
        })
    }

    pub(super) fn found(&self, name: &MachineName) -> Option<&'a ObservedMachine> {
        self.observed.machines.get(name)
    }

    /// Whether a machine is to be newer than an API server is now.
    pub(super) fn newer(&self, name: &MachineName) -> bool {
        let wanted = minor_of(&self.machines[name].kubernetes_version);
        wanted.is_none() || wanted > self.servers
    }

    /// Whether a machine that is made, or needs nothing more, has the spec's gates before it all the same.
    pub(super) fn asks(&self, name: &MachineName) -> bool {
        self.gated && self.observed.unasked.contains(name)
    }

    /// How a machine that goes on is restarted, if it is.
    pub(super) fn reboot(&self, name: &MachineName) -> Option<Reboot> {
        let reboot = self.machines.get(name)?.reboot?;
        self.stays(name).then_some(reboot)
    }

    /// Whether the incarnation that there is goes on.
    pub(super) fn stays(&self, name: &MachineName) -> bool {
        let wanted = self.machines.get(name).map(|m| m.incarnation);
        wanted.is_some() && wanted == self.found(name).map(|f| f.incarnation)
    }

    /// Members of etcd other than this machine that have a vote now, and how many of them are in service.
    pub(super) fn other_votes(&self, name: &MachineName) -> (usize, usize) {
        let wanted = self.machines.iter().filter(|(_, m)| m.control_plane());
        let names = wanted.map(|(name, _)| name).chain(&self.observed.leaving);
        let votes = |other: &&MachineName| {
            *other != name && !self.observed.outside.contains(*other) && !self.lost.contains(*other)
        };
        let up = |other: &&MachineName| self.observed.member_runs(other);
        let others: Vec<_> = names.filter(votes).collect();
        (others.len(), others.into_iter().filter(up).count())
    }

    /// Machines that join: their pods need routes on all others.
    fn additions(&self) -> bool {
        self.needs.iter().any(|(name, need)| {
            *need == Need::Make && self.machines[*name].incarnation == Incarnation::FIRST
        })
    }

    /// Whether anything has to be asked of the cluster's API.
    fn api_needed(&self) -> bool {
        let observed = self.observed;
        let due = |(name, found): (&MachineName, &ObservedMachine)| {
            found.cordoned
                || self
                    .machines
                    .get(name)
                    .is_some_and(|m| found.labelled != Some(m.labels))
        };
        self.addons.is_some()
            || !self.surplus.is_empty()
            || !observed.departed.is_empty()
            || self.needs.values().any(|need| *need != Need::Nothing)
            || observed.machines.iter().any(due)
    }
}

/// Whether a machine's data disk has to grow. What is told of its size, such as etcd's quota, is told afterwards.
pub(super) fn short_of_disk(
    observed: &Observed,
    name: &MachineName,
    wanted: &DesiredMachine,
) -> bool {
    wanted.disk.is_some() && observed.short_of_disk.contains(name)
}

fn need(
    name: &MachineName,
    wanted: &DesiredMachine,
    found: Option<&ObservedMachine>,
) -> Result<Need, PlanError> {
    let Some(found) = found else {
        return Ok(Need::Make);
    };
    if found.incarnation > wanted.incarnation {
        return Err(PlanError::LaterIncarnation {
            machine: name.clone(),
            found: found.incarnation,
            wanted: wanted.incarnation,
        });
    }
    Ok(if !found.available() {
        // What is as it should be and only stands still is not ours to start: that takes a verdict.
        let complete = found.incarnation == wanted.incarnation && found.complete && found.ready;
        let done = complete && found.started == Some(wanted.components) && wanted.reboot.is_none();
        if done { Need::Nothing } else { Need::Make }
    } else if found.incarnation != wanted.incarnation {
        Need::Replace
    } else if wanted.reboot.is_some() {
        Need::Reboot
    } else if found.started != Some(wanted.components) || (wanted.disk.is_some() && !found.mounted)
    {
        Need::Restart
    } else {
        Need::Nothing
    })
}

/// Whether the data of a member that there was is gone, so that nothing is left to go on with.
pub(super) fn data_lost(
    wanted: &DesiredMachine,
    found: Option<&ObservedMachine>,
    observed: &Observed,
) -> bool {
    let has = |disk| observed.disks.contains_key(disk);
    let began =
        wanted.incarnation != Incarnation::FIRST || found.is_some_and(ObservedMachine::registered);
    began && wanted.disk.as_ref().is_some_and(|disk| !has(disk))
}

pub(super) fn plan(site: &Site<'_>, steps: &mut Steps) -> Result<(), PlanError> {
    if !(site.observed.endpoint && site.observed.endpoint_current) {
        steps.add(
            Key::ENDPOINT,
            Action::EnsureEndpoint,
            "clients reach the cluster's API at its endpoint only",
            Invariant::StepEnds,
            Disruption::Nothing,
            [],
        );
    }
    refuse_unknown_members(site)?;
    if site.established {
        established(site, steps)?;
    } else {
        fresh(site, steps)?;
    }
    forget_departed(site, steps);
    prune_routes(site, steps);
    Ok(())
}

/// Whoever goes without having been a member by the records may be one all the same.
fn refuse_unknown_members(site: &Site<'_>) -> Result<(), PlanError> {
    let observed = site.observed;
    for name in &site.surplus {
        if observed.leaving.contains(*name) || observed.outside.contains(*name) {
            continue;
        }
        let member = site.found(name).is_some_and(|found| found.pool.is_none());
        let holds_data = |disk: &super::ObservedDisk| disk.attached_to.as_ref() == Some(*name);
        if member || observed.disks.values().any(holds_data) {
            return Err(PlanError::ControlPlaneMachine {
                machine: (*name).clone(),
            });
        }
    }
    Ok(())
}

/// A cluster without an API: all of it comes up at once.
fn fresh(site: &Site<'_>, steps: &mut Steps) -> Result<(), PlanError> {
    for name in &site.surplus {
        takedown::delete(site, name, "nothing of it is wanted", &[], steps);
    }
    for name in site.machines.keys() {
        if site.needs[name] == Need::Make {
            bring_up(site, name, &[], steps)?;
        }
    }
    let wanting: Vec<_> = site
        .machines
        .keys()
        .filter(|name| wants_node(site, name, steps))
        .collect();
    await_control_planes(site, !wanting.is_empty(), steps);
    apply_addons(site, Verb::AwaitControlPlane.of(site.first), steps);
    open_nodes(site, steps);
    for name in wanting {
        await_node(site, name, steps);
        takedown::reopen(site, name, steps);
    }
    Ok(())
}

/// A cluster that people use.
fn established(site: &Site<'_>, steps: &mut Steps) -> Result<(), PlanError> {
    if site.api && site.api_needed() {
        steps.add(
            Key::API,
            Action::AwaitApi,
            "nothing is touched while the cluster's API does not answer",
            Invariant::StepEnds,
            Disruption::Nothing,
            [Key::ENDPOINT],
        );
    }
    add_routes(site, steps);
    takedown::make_control_plane(site, steps)?;
    if !site.api && site.api_needed() {
        await_control_plane(site.first, steps);
    }
    apply_addons(site, api_shown_by(site), steps);
    open_nodes(site, steps);
    let done = takedown::control_plane(site, steps)?;
    takedown::workers(site, &done, steps)?;
    for name in site.machines.keys() {
        let planned = steps.has(&Verb::AwaitNode.of(name));
        if !planned && site.needs[name] == Need::Nothing && wants_node(site, name, steps) {
            await_node(site, name, steps);
        }
    }
    Ok(())
}

/// Opens nodes that a drain has closed and that stay after all.
fn open_nodes(site: &Site<'_>, steps: &mut Steps) {
    for (name, found) in &site.observed.machines {
        // One that is restarted is opened once it is back.
        if found.cordoned && site.stays(name) && site.reboot(name).is_none() {
            steps.add(
                Verb::Uncordon.of(name),
                Action::Uncordon {
                    machine: name.clone(),
                    node: found.node.clone(),
                },
                "it was to be drained, and stays",
                Invariant::StepEnds,
                Disruption::Nothing,
                [api_shown_by(site)],
            );
        }
    }
}

/// Machines in service learn the way to those that join, before these have pods.
fn add_routes(site: &Site<'_>, steps: &mut Steps) {
    if !site.additions() {
        return;
    }
    let mut told = Vec::new();
    for (name, found) in &site.observed.machines {
        let wanted = site.machines.get(name);
        let knows = wanted.is_some_and(|w| found.configured == Some(w.configuration));
        if knows || !found.available() {
            continue;
        }
        let key = Verb::AddRoutes.of(name);
        steps.add(
            key.clone(),
            Action::AddRoutes {
                machine: name.clone(),
            },
            "it has to know the way to the pods of machines that join",
            Invariant::StepEnds,
            Disruption::Nothing,
            [],
        );
        told.push(key);
    }
    let why = "every machine in service knows the way to those that join";
    steps.checkpoint(ROUTES, why, Invariant::StepEnds, told);
}

/// Name of the checkpoint after which new machines may have pods.
pub(super) const ROUTES: &str = "routes";

/// Removes the Node objects of incarnations that are gone or go, then forgets machines.
fn forget_departed(site: &Site<'_>, steps: &mut Steps) {
    for (name, found) in &site.observed.machines {
        if found.registered() && steps.has(&Verb::Delete.of(name)) {
            takedown::drop_node(site, name, &found.node, steps);
        }
    }
    for (name, nodes) in &site.observed.departed {
        for node in nodes {
            takedown::drop_node(site, name, node, steps);
        }
    }
    for name in &site.surplus {
        takedown::forget(site, name, steps);
    }
}

/// Machines lose their routes to those that are gone, at the very end.
fn prune_routes(site: &Site<'_>, steps: &mut Steps) {
    let gone = site.surplus.iter().map(|name| Verb::Forget.of(name));
    let why = "what was not wanted is gone";
    steps.checkpoint(GONE, why, Invariant::OneIncarnation, gone);
    let all = steps.has(&Key::checkpoint(GONE));
    for (name, wanted) in site.machines {
        let configures = [Verb::Configure, Verb::AddRoutes].map(|verb| steps.has(&verb.of(name)));
        let current = site
            .found(name)
            .is_some_and(|found| found.configured == Some(wanted.configuration));
        let stale = !current && site.found(name).is_some() && configures == [false, false];
        // One that stands still is told by whoever starts it.
        let reachable = site.needs[name] != Need::Nothing
            || site.found(name).is_some_and(|found| found.running);
        if !(reachable && (all || stale)) {
            continue;
        }
        steps.add(
            Verb::PruneRoutes.of(name),
            Action::PruneRoutes {
                machine: name.clone(),
            },
            "it knows the way to machines that are gone",
            Invariant::StepEnds,
            Disruption::Nothing,
            [
                Key::checkpoint(GONE),
                Verb::AddRoutes.of(name),
                Verb::Start.of(name),
                Verb::Reboot.of(name),
            ],
        );
    }
}

/// Name of the checkpoint after which nothing of the surplus is left.
const GONE: &str = "surplus-gone";

/// Whether a machine's node was not seen Ready, is about to change, or was told something else.
fn wants_node(site: &Site<'_>, name: &MachineName, steps: &Steps) -> bool {
    let labels = site.machines[name].labels;
    steps.has(&Verb::Start.of(name))
        || !site
            .found(name)
            .is_some_and(|f| f.ready && f.labelled == Some(labels))
}

/// Waits for each API server that is started, and for the first one whenever the API is needed.
fn await_control_planes(site: &Site<'_>, wanting: bool, steps: &mut Steps) {
    let needed = wanting
        || site.addons.is_some()
        || !site.surplus.is_empty()
        || !site.observed.departed.is_empty();
    for (name, machine) in site.machines {
        let started = machine.control_plane() && steps.has(&Verb::Start.of(name));
        let asked = needed && name == site.first;
        if !started && !asked {
            continue;
        }
        await_control_plane(name, steps);
        takedown::join(site, name, steps);
    }
}

fn apply_addons(site: &Site<'_>, after: Key, steps: &mut Steps) {
    if site.addons.is_some() {
        steps.add(
            Key::ADDONS,
            Action::ApplyAddons,
            "roles, cluster DNS and the other add-ons differ from what was applied last",
            Invariant::StepEnds,
            Disruption::Nothing,
            [after],
        );
    }
}

/// The step that shows that the API answers: any API server that is in service, or the first that comes.
pub(super) fn api_shown_by(site: &Site<'_>) -> Key {
    if site.api {
        Key::API
    } else {
        Verb::AwaitControlPlane.of(site.first)
    }
}
