//! What a plan takes out of service: quorum of etcd (1), budgets of pools (3), version skew (5).
//!
//! All of it is judged for the worst order that the plan's graph allows, not for the order in which its
//! steps are listed.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::id::{MachineName, PoolName};

use super::order::{Span, most_at_once};
use super::{Checker, minor};
use crate::kubernetes::KUBELET_OLDER_MAX;
use crate::model::{Action, Invariant, StepKey};
use crate::planner::{Budget, DesiredMachine, ObservedMachine};

/// Minors that two API servers of a cluster may be apart (the same policy).
const API_APART_MAX: u32 = 1;

/// Steps about one machine that matter here.
#[derive(Default, Clone, Copy)]
struct Life {
    /// The first step that keeps it from serving.
    down: Option<usize>,
    /// The step after which it serves.
    up: Option<usize>,
    /// The step after which a node that was closed takes pods again.
    open: Option<usize>,
    delete: Option<usize>,
    create: Option<usize>,
    /// Whether it is taken away, and not only its components restarted.
    leaves: bool,
    stop: Option<usize>,
    reboot: Option<usize>,
    start: Option<usize>,
    answers: Option<usize>,
}

/// An API server that may run.
#[derive(Clone, Copy)]
struct ApiServer {
    /// Its minor.
    own: u32,
    /// The minor that it is to its clients.
    acts: u32,
    /// The step after which it does not run any more.
    until: Option<usize>,
}

impl ApiServer {
    fn new(version: &str, emulates: Option<u32>, until: Option<usize>) -> Self {
        let own = minor(version);
        let acts = emulates.map_or(own, |emulated| emulated.min(own));
        Self { own, acts, until }
    }
}

/// One change of who has a vote.
struct Change<'a> {
    /// The step with which it begins.
    begins: usize,
    /// The step with which it is done.
    at: usize,
    machine: &'a MachineName,
    /// Whether it joins; it leaves otherwise.
    joins: bool,
}

/// A machine that serves and is down from one step to another, or for good.
#[derive(Clone, Copy)]
struct Outage<'a> {
    name: &'a MachineName,
    from: usize,
    to: Option<usize>,
}

impl Outage<'_> {
    fn span(&self) -> Span {
        Span {
            from: Some(self.from),
            to: self.to,
        }
    }
}

impl<'a> Checker<'a> {
    pub(super) fn service(
        &mut self,
        machines: &'a BTreeMap<MachineName, DesiredMachine>,
        budgets: &BTreeMap<PoolName, Budget>,
    ) {
        let lives = self.lives();
        self.quorum(machines, &lives);
        self.budgets(machines, budgets, &lives);
        self.skew(machines, &lives);
    }

    fn lives(&self) -> BTreeMap<&'a MachineName, Life> {
        let mut lives: BTreeMap<&MachineName, Life> = BTreeMap::new();
        for (i, step) in self.order.steps().iter().enumerate() {
            let Some(machine) = step.action.machine() else {
                continue;
            };
            let life = lives.entry(machine).or_default();
            let first = |place: &mut Option<usize>| {
                place.get_or_insert(i);
            };
            match &step.action {
                Action::Drain { .. } | Action::Fence { .. } => {
                    first(&mut life.down);
                    life.leaves = true;
                }
                Action::StopComponents { .. } => {
                    first(&mut life.stop);
                    first(&mut life.down);
                    life.leaves = true;
                }
                Action::RebootMachine { .. } => {
                    first(&mut life.reboot);
                    first(&mut life.down);
                    life.leaves = true;
                }
                Action::DeleteMachine { .. } => {
                    first(&mut life.delete);
                    first(&mut life.down);
                    life.leaves = true;
                }
                Action::StartComponents { .. } => {
                    first(&mut life.start);
                    first(&mut life.down);
                }
                Action::CreateMachine { .. } => first(&mut life.create),
                Action::AwaitControlPlane { .. } => first(&mut life.answers),
                Action::AwaitNode { .. } => life.up = Some(i),
                Action::Uncordon { .. } => life.open = Some(i),
                Action::EnsureEndpoint
                | Action::CreateDisk { .. }
                | Action::AttachDisk { .. }
                | Action::AwaitAgent { .. }
                | Action::MountDisk { .. }
                | Action::GrowDisk { .. }
                | Action::Configure { .. }
                | Action::StageComponents { .. }
                | Action::ApplyAddons
                | Action::DropNode { .. }
                | Action::DeleteDisk { .. }
                | Action::DeleteEndpoint
                | Action::ForgetCluster
                | Action::AwaitApi
                | Action::AwaitGates { .. }
                | Action::LeaveEndpoint { .. }
                | Action::JoinEndpoint { .. }
                | Action::AddRoutes { .. }
                | Action::PruneRoutes { .. }
                | Action::ForgetMachine { .. }
                | Action::UpgradeAgent { .. }
                | Action::SpreadTrust
                | Action::RewriteSecrets
                | Action::AwaitDns
                | Action::RenewCertificates { .. }
                | Action::AddMember { .. }
                | Action::StartMember { .. }
                | Action::PromoteMember { .. }
                | Action::MoveLeader { .. }
                | Action::SaveSnapshot { .. }
                | Action::RemoveMember { .. }
                // Those of a restore stand before all that is judged here: see `super::restore`.
                | Action::StopApi { .. }
                | Action::StopMember { .. }
                | Action::RestoreMember { .. }
                | Action::SetMemberAside { .. }
                | Action::RestartKubelet { .. }
                | Action::SettleNodes
                | Action::Checkpoint { .. } => {}
            }
        }
        lives
    }

    fn found(&self, name: &MachineName) -> Option<&'a ObservedMachine> {
        self.observed.machines.get(name)
    }

    fn serves(&self, name: &MachineName) -> bool {
        self.found(name).is_some_and(ObservedMachine::available)
    }

    fn key(&self, step: usize) -> StepKey {
        self.order.steps()[step].key.clone()
    }

    /// From three members on, a majority of etcd runs at every moment once it ran, whoever joins and leaves.
    fn quorum(
        &mut self,
        machines: &BTreeMap<MachineName, DesiredMachine>,
        lives: &BTreeMap<&MachineName, Life>,
    ) {
        let observed = self.observed;
        let wanted = machines.iter().filter(|(_, m)| m.control_plane());
        let votes: BTreeSet<&MachineName> = wanted
            .map(|(name, _)| name)
            .filter(|name| !observed.outside.contains(*name))
            .chain(observed.leaving_voters())
            .collect();
        let serving = votes
            .iter()
            .filter(|name| observed.member_runs(name))
            .count();
        if serving < votes.len() / 2 + 1 {
            return; // nothing to lose: it is down
        }
        let changes = self.changes();
        let spans: Vec<Outage<'_>> = votes
            .iter()
            .filter(|name| self.serves(name))
            .filter_map(|name| {
                let life = lives.get(*name)?;
                let from = life.stop.or(life.delete).or(life.reboot).or(life.start)?;
                let removed = |change: &Change<'_>| {
                    !change.joins && change.machine == *name && self.order.precedes(change.at, from)
                };
                let to = life.answers;
                (!changes.iter().any(removed)).then_some(Outage { name, from, to })
            })
            .collect();
        self.one_change_at_a_time(&changes, &spans);
        let all: Vec<Span> = spans.iter().map(Outage::span).collect();
        if let Some(first) = spans
            .first()
            .filter(|_| most_at_once(&all, &self.order) > 1)
        {
            let problem = "several members of etcd may be down at once; one changes at a time";
            self.fail(&self.key(first.from), Invariant::EtcdQuorum, problem);
        }
        for Outage { name, from, .. } in &spans {
            let (members, up) = self.electorate(&votes, &changes, lives, *from);
            // A cluster of one says that it will be down.
            let left = up.len() - usize::from(up.contains(name));
            if members > 1 && left < members / 2 + 1 {
                self.too_few(*from, name, left, members);
            }
        }
        for change in changes.iter().filter(|change| !change.joins) {
            let (members, up) = self.electorate(&votes, &changes, lives, change.at);
            let gone = votes.contains(change.machine);
            let after = members - usize::from(gone);
            let left = up.len() - usize::from(up.contains(change.machine));
            if up.len() < members / 2 + 1 || left < after / 2 + 1 {
                self.too_few(change.at, change.machine, left, after);
            }
        }
    }

    fn too_few(&mut self, at: usize, machine: &MachineName, left: usize, members: usize) {
        let problem = format!(
            "{left} of {members} members of etcd are left without {machine}, and it needs {}",
            members / 2 + 1
        );
        self.fail(&self.key(at), Invariant::EtcdQuorum, problem);
    }

    /// Steps that change who has a vote.
    fn changes(&self) -> Vec<Change<'a>> {
        let steps = self.order.steps().iter().enumerate();
        steps
            .filter_map(|(at, step)| {
                let (begins, machine, joins) = match &step.action {
                    Action::PromoteMember { machine } => {
                        let machine = machine.clone();
                        let add = self.planned.get(&Action::AddMember { machine });
                        (
                            add.map(|key| self.order.index(key)),
                            step.action.machine()?,
                            true,
                        )
                    }
                    Action::RemoveMember { machine } => (Some(at), machine, false),
                    _ => return None,
                };
                Some(Change {
                    begins: begins.unwrap_or(at),
                    at,
                    machine,
                    joins,
                })
            })
            .collect()
    }

    /// Changes of the membership come one after the other, and not while a member is down.
    fn one_change_at_a_time(&mut self, changes: &[Change<'a>], spans: &[Outage<'_>]) {
        for (i, change) in changes.iter().enumerate() {
            let apart = |from: usize, to: Option<usize>| {
                let later = to.is_some_and(|to| self.order.precedes(to, change.begins));
                later || self.order.precedes(change.at, from)
            };
            let others = changes.iter().enumerate().filter(|(j, _)| i != *j);
            let alone = others
                .map(|(_, other)| (other.begins, Some(other.at)))
                .chain(spans.iter().map(|outage| (outage.from, outage.to)))
                .all(|(from, to)| apart(from, to));
            if !alone {
                let problem = "another member of etcd may be changing at the same time";
                self.fail(&self.key(change.at), Invariant::EtcdQuorum, problem);
            }
        }
    }

    /// How many members there are before a step, and which of them run.
    fn electorate(
        &self,
        votes: &BTreeSet<&'a MachineName>,
        changes: &[Change<'a>],
        lives: &BTreeMap<&MachineName, Life>,
        step: usize,
    ) -> (usize, BTreeSet<&'a MachineName>) {
        let mut members = votes.clone();
        let mut up: BTreeSet<_> = votes
            .iter()
            .copied()
            .filter(|name| self.observed.member_runs(name))
            .collect();
        // Members that are down already come back before it, or they do not count.
        up.extend(votes.iter().copied().filter(|name| {
            let answers = lives.get(*name).and_then(|life| life.answers);
            !self.observed.member_runs(name)
                && answers.is_some_and(|at| self.order.precedes(at, step))
        }));
        let mut before: Vec<_> = changes
            .iter()
            .filter(|change| self.order.precedes(change.at, step))
            .collect();
        before.sort_by_key(|change| self.order.depth(change.at));
        for change in before {
            if change.joins {
                members.insert(change.machine);
                up.insert(change.machine);
            } else {
                members.remove(change.machine);
                up.remove(change.machine);
            }
        }
        (members.len(), up)
    }

    /// No more machines of a pool are down because of us than its budget says; one at a time whose components
    /// are only restarted, whatever it says, since its pods run on.
    fn budgets(
        &mut self,
        machines: &BTreeMap<MachineName, DesiredMachine>,
        budgets: &BTreeMap<PoolName, Budget>,
        lives: &BTreeMap<&MachineName, Life>,
    ) {
        let wanted = machines.values().filter_map(|m| m.pool.as_ref());
        let found = self.observed.machines.values();
        let pools: BTreeSet<&PoolName> = wanted
            .chain(found.filter_map(|m| m.pool.as_ref()))
            .collect();
        let mut by_pool: BTreeMap<&PoolName, Vec<&MachineName>> = BTreeMap::new();
        for name in machines.keys().chain(self.observed.machines.keys()) {
            if let Some(pool) = pool_of(name, machines, self.observed) {
                by_pool.entry(pool).or_default().push(name);
            }
        }
        for pool in pools {
            let mut names = by_pool.remove(pool).unwrap_or_default();
            names.sort();
            names.dedup();
            let count = names
                .iter()
                .filter(|name| machines.contains_key(**name))
                .count();
            let budget = budgets.get(pool).copied().unwrap_or_default();
            let missing = usize::try_from(budget.max_unavailable).unwrap_or(usize::MAX);
            self.budget(pool, &names, count.saturating_sub(missing), lives);
        }
    }

    fn budget(
        &mut self,
        pool: &PoolName,
        names: &[&MachineName],
        floor: usize,
        lives: &BTreeMap<&MachineName, Life>,
    ) {
        // A node that is closed is missed already.
        let closed = |name: &MachineName| self.found(name).is_some_and(|found| found.cordoned);
        let serves = |name: &MachineName| self.serves(name) && !closed(name);
        let serving = names.iter().filter(|name| serves(name)).count();
        let coming: Vec<usize> = names
            .iter()
            .filter(|name| !serves(name))
            .filter_map(|name| lives.get(*name))
            .filter_map(|life| life.open.or(life.up))
            .collect();
        let leaves = |name: &MachineName| lives.get(name).is_some_and(|life| life.leaves);
        let restarts = !names.iter().any(|name| self.serves(name) && leaves(name));
        // Opened before it is taken; one that is restarted is opened after, and missed until then.
        let opened = |name: &MachineName| {
            let before = |life: &Life| life.open.is_some() && life.reboot.is_none();
            lives.get(name).is_some_and(before)
        };
        let taken: Vec<Outage<'_>> = names
            .iter()
            .filter(|name| serves(name) || (self.serves(name) && opened(name)))
            .filter_map(|name| {
                let life = lives.get(*name)?;
                let opened = life.reboot.and(life.open);
                let (from, to) = (life.down?, opened.or(life.up));
                Some(Outage { name, from, to })
            })
            .collect();
        // Machines that come are missing from the first moment on.
        let missing = coming.iter().map(|up| Span {
            from: None,
            to: Some(*up),
        });
        let missing: Vec<Span> = missing.collect();
        let total = serving + missing.len();
        self.one_zone_at_a_time(pool, &taken, lives);
        for outage in &taken {
            let span = outage.span();
            // Only what may be missing together with this one counts: before it goes nothing was asked of anybody.
            let meets = |other: &Span| other.meets(&span, &self.order);
            let others = taken.iter().filter(|other| other.name != outage.name);
            let others: Vec<Span> = others.map(Outage::span).filter(meets).collect();
            if restarts && others.is_empty() {
                continue;
            }
            let mut all = others;
            all.extend(missing.iter().copied().filter(meets));
            let down = most_at_once(&all, &self.order) + 1;
            if total.saturating_sub(down) < floor {
                let problem = format!(
                    "{down} of {total} machines of pool {pool} may be missing at once; {floor} have to serve"
                );
                return self.fail(&self.key(outage.from), Invariant::Budget, problem);
            }
        }
    }

    /// Machines that serve and are in different zones are never taken together. One that goes for good is taken until
    /// it is deleted.
    fn one_zone_at_a_time(
        &mut self,
        pool: &PoolName,
        taken: &[Outage<'_>],
        lives: &BTreeMap<&MachineName, Life>,
    ) {
        let zones = &self.observed.zones;
        let zoned = taken.iter().filter_map(|outage| {
            let deleted = || lives.get(outage.name)?.delete;
            let to = outage.to.or_else(deleted);
            Some((zones.get(outage.name)?, Outage { to, ..*outage }))
        });
        let zoned: Vec<_> = zoned.collect();
        for (i, (zone, a)) in zoned.iter().enumerate() {
            let apart = |(other, _): &&(_, Outage<'_>)| other != zone;
            let meets = |(_, b): &&(_, Outage<'_>)| a.span().meets(&b.span(), &self.order);
            if let Some((_, b)) = zoned[i + 1..].iter().filter(apart).find(meets) {
                let problem = format!(
                    "{} and {} of pool {pool}, which are in different zones, may be missing at once",
                    a.name, b.name
                );
                return self.fail(&self.key(b.from), Invariant::Budget, problem);
            }
        }
    }

    /// No kubelet is newer than an API server it may meet, nor too old for one; API servers keep together.
    ///
    /// What an API server emulates counts for what it is (KEP-4330). The kubelet of a control-plane machine is not
    /// looked at: it asks the API server beside it, which is of its version.
    fn skew(
        &mut self,
        machines: &'a BTreeMap<MachineName, DesiredMachine>,
        lives: &BTreeMap<&MachineName, Life>,
    ) {
        // Every API server that may run: those that are there until they are stopped, those wanted for ever.
        let mut servers: Vec<ApiServer> = Vec::new();
        for (name, machine) in machines.iter().filter(|(_, m)| m.control_plane()) {
            let life = lives.get(name).copied().unwrap_or_default();
            let new = ApiServer::new(&machine.kubernetes_version, machine.emulates, None);
            servers.push(new);
            let Some(found) = self.found(name) else {
                continue;
            };
            let goes = life.stop.or(life.delete).or(life.start);
            let old = ApiServer::new(&found.kubernetes_version, found.emulates, goes);
            let stays = found.incarnation == machine.incarnation;
            if stays && (found.started.is_none() || old.acts == new.acts) {
                continue;
            }
            servers.push(old);
            if new.acts < old.acts {
                let step = self.key(life.create.or(life.start).unwrap_or(0));
                let problem = "an API server would go back by a minor";
                self.fail(&step, Invariant::VersionSkew, problem);
            }
        }
        let newest = servers.iter().map(|of| of.own).max().unwrap_or(0);
        let whole = StepKey("(plan)".into());
        let minors: [fn(&ApiServer) -> u32; 2] = [|of| of.own, |of| of.acts];
        for minor in minors {
            let newest = servers.iter().map(minor).max().unwrap_or(0);
            let oldest = servers.iter().map(minor).min().unwrap_or(0);
            if servers.len() > 1 && newest.abs_diff(oldest) > API_APART_MAX {
                let problem = "API servers would be more than one minor apart";
                self.fail(&whole, Invariant::VersionSkew, problem);
            }
        }
        for (name, machine) in machines.iter().filter(|(_, m)| !m.control_plane()) {
            let kubelet = minor(&machine.kubernetes_version);
            let starts = lives.get(name).and_then(|life| life.start);
            let met = servers.iter().filter(|of| match (of.until, starts) {
                (None, _) => true,
                (Some(until), Some(starts)) => !self.order.precedes(until, starts),
                (Some(_), None) => false,
            });
            let newer = met.clone().any(|server| kubelet > server.acts);
            let older = newest.saturating_sub(kubelet) > KUBELET_OLDER_MAX;
            let step = starts.map_or(whole.clone(), |starts| self.key(starts));
            if newer {
                let problem = format!("the kubelet of {name} would be newer than an API server");
                self.fail(&step, Invariant::VersionSkew, problem);
            }
            if older {
                let problem = format!("the kubelet of {name} would be too old for an API server");
                self.fail(&step, Invariant::VersionSkew, problem);
            }
        }
        // What is to go meets the API servers that come as long as it is there.
        let workers = self.observed.machines.iter();
        let workers = workers.filter(|(_, found)| found.pool.is_some() && found.available());
        for (name, found) in workers {
            let kubelet = minor(&found.kubernetes_version);
            if newest.saturating_sub(kubelet) > KUBELET_OLDER_MAX {
                let problem = format!(
                    "the kubelet of {name}, 1.{kubelet}, would be too old for an API server of 1.{newest} before \
                     it is replaced"
                );
                self.fail(&whole, Invariant::VersionSkew, problem);
            }
        }
    }
}

fn pool_of<'a>(
    name: &MachineName,
    machines: &'a BTreeMap<MachineName, DesiredMachine>,
    observed: &'a crate::planner::Observed,
) -> Option<&'a PoolName> {
    let wanted = machines.get(name).and_then(|m| m.pool.as_ref());
    let found = observed.machines.get(name).and_then(|m| m.pool.as_ref());
    wanted.or(found)
}
