//! What becomes of machines, etcd and versions in the course of a plan: a forecast for people. Pure.
//!
//! Steps are taken in the order in which the plan lists them, one after the other.
//!
//! # Not here
//! Whether every order that the plan allows keeps the invariants: [`super::check`].

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::id::{Incarnation, MachineName, PoolName};

use super::duration::Measured;
use crate::kubernetes::facts::minor_of;
use crate::model::{Action, ChangeForecast, Moment, Plan, StepKey};
use crate::planner::{Desired, DesiredMachine, DesiredState, Observed, ObservedMachine};

/// What a plan comes to.
pub fn forecast(
    plan: &Plan,
    desired: &Desired,
    observed: &Observed,
    measured: &Measured,
) -> ChangeForecast {
    let none = BTreeMap::new();
    let wanted = match &desired.state {
        DesiredState::Present { machines, .. } => machines,
        DesiredState::Absent { .. } => &none,
    };
    let of = |pick: fn(&Action) -> bool| -> Vec<MachineName> {
        let steps = plan.steps.iter().filter(|step| pick(&step.action));
        steps.filter_map(|s| s.action.machine().cloned()).collect()
    };
    let made = of(|action| matches!(action, Action::CreateMachine { .. }));
    let later = |machine: &&MachineName| {
        let found = wanted.get(*machine);
        found.is_some_and(|m| m.incarnation != Incarnation::FIRST)
    };
    let (replaced, created): (Vec<_>, Vec<_>) = made.iter().cloned().partition(|m| later(&m));
    let goes_on = |machine: &MachineName| !made.contains(machine);
    let mut restarted = of(|action| {
        matches!(
            action,
            Action::StartComponents { .. } | Action::RebootMachine { .. }
        )
    });
    restarted.dedup();
    restarted.retain(goes_on);
    let mut deleted = of(|action| matches!(action, Action::DeleteMachine { .. }));
    deleted.retain(goes_on);
    ChangeForecast {
        surge: surge(&created, &deleted, wanted, observed),
        created,
        replaced,
        restarted,
        deleted,
        moments: moments(plan, wanted, observed),
        seconds: measured.seconds(plan),
    }
}

/// New machines that come for others of their pool that go: the last of them, since those that are missing come first.
fn surge(
    created: &[MachineName],
    deleted: &[MachineName],
    wanted: &BTreeMap<MachineName, DesiredMachine>,
    observed: &Observed,
) -> BTreeMap<PoolName, Vec<MachineName>> {
    let mut surge: BTreeMap<PoolName, Vec<MachineName>> = BTreeMap::new();
    for name in created {
        if let Some(pool) = wanted.get(name).and_then(|m| m.pool.clone()) {
            surge.entry(pool).or_default().push(name.clone());
        }
    }
    surge.retain(|pool, names| {
        let of = |name: &&MachineName| {
            let found = observed.machines.get(*name);
            found.and_then(|m| m.pool.as_ref()) == Some(pool)
        };
        let going = deleted.iter().filter(of).count();
        names.drain(..names.len().saturating_sub(going));
        !names.is_empty()
    });
    surge
}

/// What runs at one point of a plan.
struct Walk<'a> {
    wanted: &'a BTreeMap<MachineName, DesiredMachine>,
    /// Members of etcd that have a vote.
    members: BTreeSet<&'a MachineName>,
    running: BTreeSet<&'a MachineName>,
    /// Minors of API servers, as what they are to their clients.
    servers: BTreeMap<&'a MachineName, u32>,
    kubelets: BTreeMap<&'a MachineName, u32>,
}

fn moments(
    plan: &Plan,
    wanted: &BTreeMap<MachineName, DesiredMachine>,
    observed: &Observed,
) -> Vec<Moment> {
    let mut walk = Walk::begin(wanted, observed);
    let mut moments = vec![walk.moment(None)];
    for step in &plan.steps {
        walk.take(&step.action);
        let now = walk.moment(None);
        let before = moments.last().map(|last| Moment {
            step: None,
            ..last.clone()
        });
        if before.as_ref() != Some(&now) {
            moments.push(Moment {
                step: Some(step.key.clone()),
                ..now
            });
        }
    }
    moments
}

impl<'a> Walk<'a> {
    fn begin(wanted: &'a BTreeMap<MachineName, DesiredMachine>, observed: &'a Observed) -> Self {
        let found = || observed.machines.iter().filter(|(_, m)| m.available());
        let voters = wanted.iter().filter(|(_, m)| m.control_plane());
        let voters = voters.map(|(name, _)| name);
        // Of a cluster that goes nothing is wanted, and its members are what there is.
        let found_voters = observed.machines.iter().filter(|(_, m)| m.pool.is_none());
        let found_voters = found_voters.map(|(name, _)| name);
        let members: BTreeSet<_> = voters
            .chain(found_voters)
            .chain(&observed.leaving)
            .filter(|name| !observed.outside.contains(*name))
            .collect();
        let server = |(name, m): (&'a MachineName, &'a ObservedMachine)| {
            Some((name, m.api_minor().filter(|_| m.pool.is_none())?))
        };
        let kubelet = |(name, m): (&'a MachineName, &'a ObservedMachine)| {
            Some((name, minor_of(&m.kubernetes_version)?))
        };
        let runs = |name: &&&MachineName| observed.member_runs(name);
        Self {
            wanted,
            running: members.iter().filter(runs).copied().collect(),
            members,
            servers: found().filter_map(server).collect(),
            kubelets: found().filter_map(kubelet).collect(),
        }
    }

    /// What there is while a step is carried out that takes something down, and after one that brings it up.
    fn take(&mut self, action: &'a Action) {
        match action {
            Action::StopComponents { machine } | Action::RebootMachine { machine, .. } => {
                self.running.remove(machine);
                self.servers.remove(machine);
            }
            Action::StopApi { machine } => {
                self.servers.remove(machine);
            }
            Action::StopMember { machine } => {
                self.running.remove(machine);
            }
            Action::Fence { machine } | Action::DeleteMachine { machine } => {
                self.running.remove(machine);
                self.servers.remove(machine);
                self.kubelets.remove(machine);
            }
            Action::RemoveMember { machine } | Action::SetMemberAside { machine } => {
                self.members.remove(machine);
                self.running.remove(machine);
            }
            Action::PromoteMember { machine } => {
                self.members.insert(machine);
                self.running.insert(machine);
            }
            Action::RestoreMember { members, .. } => {
                self.members = members.iter().collect();
                self.running.retain(|name| self.members.contains(name));
            }
            Action::StartComponents { machine } => self.start(machine),
            Action::AwaitControlPlane { machine } => {
                if self.members.contains(machine) {
                    self.running.insert(machine);
                }
                let wanted = self.wanted.get(machine);
                let acts = wanted.and_then(DesiredMachine::api_minor);
                self.servers.extend(acts.map(|acts| (machine, acts)));
            }
            Action::EnsureEndpoint
            | Action::CreateDisk { .. }
            | Action::CreateMachine { .. }
            | Action::AttachDisk { .. }
            | Action::AwaitAgent { .. }
            | Action::MountDisk { .. }
            | Action::GrowDisk { .. }
            | Action::Configure { .. }
            | Action::StageComponents { .. }
            | Action::ApplyAddons
            | Action::AwaitNode { .. }
            | Action::DropNode { .. }
            | Action::DeleteDisk { .. }
            | Action::DeleteEndpoint
            | Action::ForgetCluster
            | Action::AwaitApi
            | Action::LeaveEndpoint { .. }
            | Action::JoinEndpoint { .. }
            | Action::Drain { .. }
            | Action::Uncordon { .. }
            | Action::AddRoutes { .. }
            | Action::PruneRoutes { .. }
            | Action::ForgetMachine { .. }
            | Action::AwaitGates { .. }
            | Action::UpgradeAgent { .. }
            | Action::RenewCertificates { .. }
            | Action::AddMember { .. }
            | Action::StartMember { .. }
            | Action::MoveLeader { .. }
            | Action::SaveSnapshot { .. }
            | Action::SpreadTrust
            | Action::RewriteSecrets
            | Action::AwaitDns
            | Action::Checkpoint { .. }
            | Action::RestartKubelet { .. }
            | Action::SettleNodes => {}
        }
    }

    fn start(&mut self, machine: &'a MachineName) {
        // One that joined a moment ago goes on beside what is started; one that serves is started anew.
        if self.servers.remove(machine).is_some() {
            self.running.remove(machine);
        }
        let wanted = self.wanted.get(machine);
        let kubelet = wanted.and_then(|m| minor_of(&m.kubernetes_version));
        self.kubelets.extend(kubelet.map(|minor| (machine, minor)));
    }

    fn moment(&self, step: Option<StepKey>) -> Moment {
        let span = |minors: &BTreeMap<&MachineName, u32>| {
            let (oldest, newest) = (minors.values().min(), minors.values().max());
            Some((*oldest?, *newest?))
        };
        Moment {
            step,
            members: self.members.len(),
            running: self.running.len(),
            api_servers: span(&self.servers),
            kubelets: span(&self.kubelets),
        }
    }
}
