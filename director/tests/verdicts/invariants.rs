//! What may never happen, seen from how things really are; and the guards that keep it from happening, each of which
//! can be broken, so that it shows that it would be missed.

use std::collections::BTreeMap;

use windlass_common::id::MachineName;
use windlass_director::resurrector::{
    CauseKind, Evidence, Fleet, Link, Policy, Role, Rung, Verdict, poisoned,
};

use crate::world::{Body, Truth, World, cluster};

/// Within this after its network is back a machine may still be judged by what was.
const BACK_MS: u64 = 90_000;

/// A guard that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guard {
    /// What looks hung gets time to show that it is only cut off.
    Patience,
    /// A director that has just begun only watches.
    Young,
    /// Nor does it conclude anything from silence.
    Doubt,
    /// Heartbeats that are lost are no silence while peers reach the agent.
    Loss,
    /// Nothing is done while the provider does not answer.
    Provider,
    /// Nor while much is silent at once.
    Storm,
    /// A pool has its budget.
    Budget,
    /// One zone of it at a time.
    Zone,
    /// What a task has in hand is left to it.
    InHand,
    /// What an operator holds is left alone.
    Hold,
    /// What an operator ignores is not even judged.
    Ignore,
    /// Replacements that die stop their pool.
    Poison,
    /// Why they do is told.
    Cause,
}

impl Guard {
    pub(crate) const ALL: [Guard; 13] = [
        Guard::Patience,
        Guard::Young,
        Guard::Doubt,
        Guard::Loss,
        Guard::Provider,
        Guard::Storm,
        Guard::Budget,
        Guard::Zone,
        Guard::InHand,
        Guard::Hold,
        Guard::Ignore,
        Guard::Poison,
        Guard::Cause,
    ];

    /// What is said of the invariant that breaks without it.
    pub(crate) fn breaks(self) -> &'static str {
        match self {
            Guard::Patience => "which is well",
            Guard::Young => "by a director that has just begun",
            Guard::Doubt | Guard::Loss => "is judged",
            Guard::Provider => "without the provider",
            Guard::Storm => "in a storm",
            Guard::Budget => "beyond the budget",
            Guard::Zone => "in two zones",
            Guard::InHand => "which is being made anew",
            Guard::Hold | Guard::Ignore => "which an operator holds",
            Guard::Poison => "whose pool's replacements die",
            Guard::Cause => "the cause of the deaths",
        }
    }

    /// A policy under which it does nothing.
    pub(crate) fn weaken(self, mut policy: Policy) -> Policy {
        match self {
            Guard::Patience => policy.ladder.hung_ms = 0,
            Guard::Young => policy.guard.watch_first_ms = 0,
            Guard::Storm => policy.guard.storm_min = u32::MAX,
            Guard::Budget => policy.guard.pool_max_unavailable = u32::MAX,
            Guard::Poison => policy.guard.poison_after = u32::MAX,
            Guard::Doubt
            | Guard::Loss
            | Guard::Provider
            | Guard::Zone
            | Guard::InHand
            | Guard::Hold
            | Guard::Ignore
            | Guard::Cause => {}
        }
        policy
    }
}

/// What was seen in one round of the machines that were looked at.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) evidence: BTreeMap<MachineName, Evidence>,
}

fn keep(kept: bool, broken: impl FnOnce() -> String) -> Result<(), String> {
    if kept { Ok(()) } else { Err(broken()) }
}

impl World {
    /// Nobody is judged to be what it cannot be.
    pub(crate) fn is_judged_right(
        &self,
        name: &MachineName,
        evidence: &Evidence,
    ) -> Result<(), String> {
        let (body, said) = (&self.bodies[name], self.records[name].case.verdict);
        let way = body.cut_until_ms.max(self.isolated_until_ms);
        let reached = body.truth == Truth::Well && self.now_ms >= way + BACK_MS;
        let right = match said {
            Verdict::Healthy | Verdict::Unknown => true,
            Verdict::MachineGone => matches!(body.truth, Truth::Off { .. } | Truth::Lost),
            Verdict::Degraded | Verdict::AgentLost | Verdict::NodeHung | Verdict::Partitioned => {
                !reached
            }
        };
        keep(right, || {
            let truth = body.truth;
            format!("{name}, which is {truth:?} and reached, is judged {said}: {evidence:?}")
        })
    }

    /// What an act may never be.
    pub(crate) fn may_act(
        &self,
        seen: &Seen,
        name: &MachineName,
        rung: Rung,
    ) -> Result<(), String> {
        let (body, record) = (&self.bodies[name], &self.records[name]);
        let told = |what: &str| format!("{rung} of {name}, {what}: {:?}", record.case);
        let of = |broken: bool, what: &str| keep(!broken, || told(what));
        of(record.hold.is_some(), "which an operator holds")?;
        of(body.truth == Truth::Full, "which no remedy mends")?;
        if rung < Rung::Reboot {
            return Ok(());
        }
        // The invariant of invariants: what works is left alone, whoever cannot see it.
        of(body.replacing.is_some(), "which is being made anew")?;
        of(
            matches!(body.truth, Truth::Starting { .. }),
            "which is starting",
        )?;
        of(body.truth == Truth::Well, "which is well")?;
        let young = self.now_ms < self.whole_since_ms + self.wanted.guard.watch_first_ms;
        of(young, "by a director that has just begun")?;
        of(
            self.now_ms < self.provider_down_until_ms,
            "without the provider",
        )?;
        self.storm(seen, || told("in a storm"))?;
        self.quorum(name, || told("costs etcd its majority"))?;
        self.budget(name, rung)?;
        let alike = self.bodies.values().filter(|other| other.role == body.role);
        let died = alike.map(|other| other.young_deaths).sum::<u32>();
        let poisoned = died >= self.wanted.guard.poison_after;
        of(
            rung == Rung::Replace && poisoned,
            "whose pool's replacements die",
        )
    }

    /// While much is silent that is not proven gone, the cause is elsewhere.
    fn storm(&self, seen: &Seen, told: impl FnOnce() -> String) -> Result<(), String> {
        let silent = |(name, evidence): &(&MachineName, &Evidence)| {
            let gone = self.records[*name].case.verdict == Verdict::MachineGone;
            evidence.link == Link::Silent && !gone
        };
        let silent = seen.evidence.iter().filter(silent).count();
        let ignored = self
            .records
            .values()
            .filter(|record| record.ignored())
            .count();
        let machines = self.bodies.len() - ignored;
        keep(silent < 3 || silent * 2 < machines, told)
    }

    /// Taking this one costs no majority that there is.
    fn quorum(&self, name: &MachineName, told: impl FnOnce() -> String) -> Result<(), String> {
        let of = |(_, body): &(&MachineName, &Body)| body.role == Role::ControlPlane;
        if self.bodies[name].role != Role::ControlPlane {
            return Ok(());
        }
        let all = self.bodies.iter().filter(of).count();
        let others = || {
            self.bodies
                .iter()
                .filter(of)
                .filter(|(other, _)| *other != name)
        };
        let after = others().filter(|(_, body)| body.truth.serves()).count();
        let before = after + usize::from(self.bodies[name].truth.serves());
        let majority = all / 2 + 1;
        // Witnesses see a death a moment late; what is asked is that nothing we know of is spent.
        let down = |name: &MachineName| self.records[name].case.verdict.is_down();
        let known_down = others().any(|(other, _)| down(other));
        let spent = before >= majority && after < majority && known_down;
        keep(down(name) || !spent || all == 1, told)
    }

    /// What serves is taken within the budget of its pool, and in one zone of it.
    fn budget(&self, name: &MachineName, rung: Rung) -> Result<(), String> {
        let body = &self.bodies[name];
        let down = |name: &MachineName| self.records[name].case.verdict.is_down();
        if body.role == Role::ControlPlane || down(name) {
            return Ok(());
        }
        let others = || {
            let of = self.bodies.iter().filter(|(other, _)| *other != name);
            // What is ignored is as if it were not there.
            of.filter(|(name, other)| other.role == body.role && !self.records[*name].ignored())
        };
        let taken = |other: &Body| {
            other.replacing.is_some() || matches!(other.truth, Truth::Starting { .. })
        };
        let missed = others()
            .filter(|(name, other)| taken(other) || down(name))
            .count();
        let most = self.wanted.guard.pool_max_unavailable as usize;
        keep(missed < most, || {
            format!("{rung} of {name} beyond the budget of {most}: {missed} others are missed")
        })?;
        let elsewhere = others().find(|(name, other)| {
            let zoned = other.zone.is_some() && body.zone.is_some();
            taken(other) && !down(name) && zoned && other.zone != body.zone
        });
        keep(elsewhere.is_none(), || {
            format!(
                "{rung} of {name} in two zones: {} is taken",
                elsewhere.unwrap().0
            )
        })
    }

    pub(crate) fn one_member_at_a_time(&self) -> Result<(), String> {
        let taken = self.bodies.values().filter(|body| {
            let starts = matches!(body.truth, Truth::Starting { .. });
            body.role == Role::ControlPlane && (starts || body.replacing.is_some())
        });
        keep(taken.count() <= 1, || {
            "two control-plane machines are worked on".to_owned()
        })
    }

    /// Why a pool is stopped is told as it is.
    pub(crate) fn is_poison_explained(&self, fleet: &Fleet) -> Result<(), String> {
        let Some((role, kind)) = &self.curse else {
            return Ok(());
        };
        let pool = (cluster(), role.clone());
        if !poisoned(fleet, &self.policy.guard).contains_key(&pool) {
            return Ok(());
        }
        let wanted = match kind {
            // Where none works there is nothing to compare with.
            CauseKind::Stemcell if self.working(role).is_empty() => CauseKind::None,
            kind => *kind,
        };
        let told = &fleet.causes[&pool];
        keep(told.kind() == wanted, || {
            format!(
                "the cause of the deaths is {}, and this is told: {told}",
                wanted.name()
            )
        })
    }
}
