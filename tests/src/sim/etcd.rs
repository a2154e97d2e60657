//! etcd: its members as they know each other, and how they change.
//!
//! # Invariants
//! * A change is refused as etcd 3.6 refuses it with `--strict-reconfig-check`: by what the member that is asked has seen
//!   of the others, by who has ever started, and only then by what a majority says. The cases that the real one is run
//!   against hold here, too (`windlass_common::contract::etcd`).
//! * A member is connected to another since the later of them has begun to run. Whoever is not connected is missed at
//!   once, and has not been there for the health interval when it comes back.
//!
//! # Not here
//! Who leads. A member that has just started and has not met another yet takes that one for down, as etcd does, for
//! less time than anything here takes.

use windlass_common::contract::etcd::Answer;
use windlass_common::id::MachineName;

use super::state::{State, Vm};

/// Its unit.
pub const ETCD: &str = "etcd.service";
/// How long a connection counts for nothing.
pub const HEALTH_INTERVAL_MS: u64 = 5_000;
/// How long a learner takes to catch up.
const SYNC_MS: u64 = 3_000;
/// Learners that there may be.
const LEARNERS_MAX: usize = 1;

/// A member as the others know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// It has no vote yet.
    pub learner: bool,
    /// It has ever run: etcd knows its name.
    pub started: bool,
    /// It has caught up with the others.
    pub in_sync: bool,
}

impl Member {
    /// One that a cluster begins with.
    pub const FIRST: Self = Self {
        learner: false,
        started: true,
        in_sync: true,
    };
    const LEARNER: Self = Self {
        learner: true,
        started: false,
        in_sync: false,
    };
}

/// How many of so many are a majority.
fn majority(of: usize) -> usize {
    of / 2 + 1
}

impl Vm {
    /// Whether its member of etcd runs.
    pub(super) fn has_member(&self, now: u64) -> bool {
        self.mounted && self.has(ETCD, now)
    }
}

impl State {
    /// Whether a member of etcd runs.
    pub fn member_up(&self, name: &MachineName) -> bool {
        let vm = self.vms.get(name);
        vm.is_some_and(|vm| vm.has_member(self.now))
    }

    /// Members with a vote.
    pub fn voters(&self) -> impl Iterator<Item = &MachineName> + Clone {
        let members = self.cluster.members.iter();
        members
            .filter(|(_, member)| !member.learner)
            .map(|(name, _)| name)
    }

    /// Members with a vote that run.
    pub fn members_up(&self) -> usize {
        self.voters().filter(|name| self.member_up(name)).count()
    }

    /// Whether a majority runs.
    pub fn quorum(&self) -> bool {
        let members = self.voters().count();
        members > 0 && self.members_up() >= majority(members)
    }

    /// Members learn of each other what has become of them.
    pub(super) fn settle_members(&mut self) {
        let (vms, now) = (&self.vms, self.now);
        for (name, member) in &mut self.cluster.members {
            let vm = vms.get(name).filter(|vm| vm.mounted);
            member.started |= vm.is_some_and(|vm| vm.has(ETCD, now));
            member.in_sync |= vm.is_some_and(|vm| vm.has_for(ETCD, now, SYNC_MS));
        }
    }

    /// Since when a member is connected to another.
    fn connected_since(&self, one: &MachineName, other: &MachineName) -> Option<u64> {
        let since = |name: &MachineName| {
            let vm = self.vms.get(name).filter(|_| self.member_up(name))?;
            Some(vm.units.get(ETCD)?.since.max(vm.frozen_until))
        };
        Some(since(one)?.max(since(other)?))
    }

    /// Members with a vote that this one has been connected to for the health interval, itself among them.
    fn connected(&self, of: &MachineName) -> usize {
        let long = |other: &&MachineName| {
            let since = self.connected_since(of, other);
            *other == of || since.is_some_and(|since| since + HEALTH_INTERVAL_MS < self.now)
        };
        self.voters().filter(long).count()
    }

    /// Members with a vote other than this one, and how many of them have ever started.
    fn started_beside(&self, name: &MachineName) -> (usize, usize) {
        let members = self.cluster.members.iter();
        let others = members.filter(|(other, member)| *other != name && !member.learner);
        let started = others.clone().filter(|(_, member)| member.started);
        (others.count(), started.count())
    }

    /// Asks a member to add a learner.
    pub fn add_learner(&mut self, of: &MachineName, name: &MachineName) -> Answer {
        let members = self.voters().count();
        if !self.member_up(of) {
            return Answer::Silent;
        }
        if members > 1 && self.connected(of) < majority(members + 1) {
            return Answer::Unhealthy;
        }
        if !self.quorum() {
            return Answer::Silent;
        }
        let learners = self.cluster.members.values().filter(|m| m.learner);
        if self.cluster.members.contains_key(name) {
            Answer::KnownAddress
        } else if learners.count() >= LEARNERS_MAX {
            Answer::TooMany
        } else {
            self.cluster.members.insert(name.clone(), Member::LEARNER);
            self.tell(format!("etcd has the learner {name}"));
            Answer::Done
        }
    }

    /// Asks a member to give a learner its vote.
    pub fn promote_member(&mut self, of: &MachineName, name: &MachineName) -> Answer {
        if !self.member_up(of) || !self.quorum() {
            return Answer::Silent;
        }
        let (members, started) = self.started_beside(name);
        match self.cluster.members.get_mut(name) {
            None => Answer::Unknown,
            Some(member) if !member.in_sync => Answer::NotInSync,
            Some(_) if started + 1 < majority(members + 1) => Answer::NotStarted,
            Some(member) if !member.learner => Answer::NoLearner,
            Some(member) => {
                member.learner = false;
                self.tell(format!("member {name} has a vote"));
                Answer::Done
            }
        }
    }

    /// Asks a member to remove one.
    pub fn remove_member(&mut self, of: &MachineName, name: &MachineName) -> Answer {
        if !self.member_up(of) {
            return Answer::Silent;
        }
        let found = self.cluster.members.get(name).copied();
        if found.is_none_or(|member| !member.learner) {
            let (members, started) = self.started_beside(name);
            if started < majority(members) {
                return Answer::NotStarted;
            }
            let there = name == of || found.is_some() && self.connected_since(of, name).is_some();
            let left = self.voters().count().saturating_sub(1);
            if there && self.connected(of) < 1 + majority(left) {
                return Answer::Unhealthy;
            }
        }
        if !self.quorum() {
            return Answer::Silent;
        }
        match self.cluster.members.remove(name) {
            Some(_) => {
                self.tell(format!("etcd has member {name} no more"));
                Answer::Done
            }
            None => Answer::Unknown,
        }
    }
}
