//! What is kept about one machine: its case, the evidence of each change of its verdict, and what operators
//! said about it.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::{Incarnation, MachineName};

use super::{Case, DEATHS_MAX, Death, Evidence, LadderPolicy, Rung, Verdict};
use crate::model::Revision;

/// Who repairs, in the audit log and as the owner of tasks.
pub const ACTOR: &str = "resurrector";
/// Judgements that are kept for each machine; 100 bytes each.
pub const HISTORY_MAX: usize = 32;

/// What the resurrector does about what it sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing is judged.
    Off,
    /// Machines are judged, and nothing is done.
    Observe,
    /// Machines are judged and healed.
    #[default]
    On,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mode::Off => "off",
            Mode::Observe => "observe",
            Mode::On => "on",
        })
    }
}

/// What is kept about one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaseRecord {
    /// Which.
    #[schema(value_type = String)]
    pub machine: MachineName,
    /// Which rebirth of it the verdict is about.
    #[schema(value_type = u32)]
    pub incarnation: Incarnation,
    /// The verdict and what was tried.
    pub case: Case,
    /// Changes of the verdict with their evidence, oldest first, at most [`HISTORY_MAX`].
    pub history: Vec<VerdictChange>,
    /// Replacements that died before they had proven themselves, oldest first, at most [`DEATHS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deaths: Vec<Death>,
    /// What an operator said about it.
    pub hold: Option<Hold>,
    /// A remedy that was begun by a direct order to the provider, until its end was seen.
    pub begun: Option<Begun>,
    /// Why the last remedy could not be done.
    pub failure: Option<String>,
    /// Revision of this record.
    pub revision: Revision,
}

/// One change of a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerdictChange {
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// Which rebirth of the machine.
    #[schema(value_type = u32)]
    pub incarnation: Incarnation,
    /// What was concluded.
    pub verdict: Verdict,
    /// From what.
    pub evidence: Evidence,
}

/// A restart that the provider was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Begun {
    /// What.
    pub rung: Rung,
    /// How often the machine had been started before: one more shows that it was done.
    pub boots: Option<u64>,
}

/// What an operator said about a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hold {
    /// What.
    pub kind: HoldKind,
    /// Who.
    pub operator: String,
    /// When, Unix milliseconds.
    pub since_ms: u64,
    /// Why, in the operator's words; may be empty.
    #[serde(default)]
    pub reason: String,
}

/// How much is left to the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HoldKind {
    /// It is judged, and nothing is done to it.
    Hold,
    /// It is not judged either, and its silence says nothing about its cluster.
    Ignore,
}

impl fmt::Display for HoldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            HoldKind::Hold => "held",
            HoldKind::Ignore => "ignored",
        })
    }
}

impl CaseRecord {
    /// Of a machine about which nothing is known.
    pub fn new(machine: MachineName, incarnation: Incarnation, now_ms: u64) -> CaseRecord {
        CaseRecord {
            machine,
            incarnation,
            case: Case::new(now_ms),
            history: Vec::new(),
            deaths: Vec::new(),
            hold: None,
            begun: None,
            failure: None,
            revision: Revision(0),
        }
    }

    /// Whether an operator keeps remedies from it.
    pub fn held(&self) -> bool {
        self.hold.is_some()
    }

    /// Whether an operator does not want it to be looked at.
    pub fn ignored(&self) -> bool {
        let kind = self.hold.as_ref().map(|hold| hold.kind);
        kind == Some(HoldKind::Ignore)
    }

    /// Whether this incarnation of the machine serves nobody; what was said of another one does not count.
    pub fn is_down(&self, incarnation: Incarnation) -> bool {
        self.incarnation == incarnation && self.case.verdict.is_down()
    }

    /// What is said from now on is of the replacement that was ordered, once it is there, or once nobody works on
    /// it any more.
    pub fn arrive(&mut self, incarnation: Incarnation, awaited: bool) {
        if incarnation != self.incarnation || !awaited {
            self.case.expects = false;
        }
    }

    /// Takes a verdict with its evidence; true when it says something new, which is worth writing down.
    pub fn judge(
        &mut self,
        incarnation: Incarnation,
        verdict: Verdict,
        evidence: Evidence,
        now_ms: u64,
        ladder: &LadderPolicy,
        poison_ms: u64,
    ) -> bool {
        let before = (self.case.clone(), self.incarnation);
        let fresh = self.history.is_empty();
        self.set_back(now_ms);
        self.incarnation = incarnation;
        self.case.judge(verdict, evidence.power, now_ms, ladder);
        self.case.work = evidence.work;
        self.case.prove(now_ms, poison_ms);
        let outlived = self.case.proven && !self.deaths.is_empty();
        if self.case.proven {
            self.deaths.clear();
        }
        if fresh || self.case.verdict != before.0.verdict || incarnation != before.1 {
            if self.history.len() >= HISTORY_MAX {
                self.history.remove(0);
            }
            self.history.push(VerdictChange {
                at_ms: now_ms,
                incarnation,
                verdict,
                evidence,
            });
        }
        before != (self.case.clone(), self.incarnation) || fresh || outlived
    }

    /// What was noted while the clock was ahead is moved back with it, in its order and before `now_ms`: nobody waits
    /// for a time that was never true.
    fn set_back(&mut self, now_ms: u64) {
        let tried = self.case.attempts.iter_mut().map(|tried| &mut tried.at_ms);
        let died = self.deaths.iter_mut().map(|death| &mut death.at_ms);
        let mut noted: Vec<&mut u64> = tried.chain(died).collect();
        noted.push(&mut self.case.since_ms);
        let latest = noted.iter().map(|at_ms| **at_ms).max();
        let Some(latest) = latest.filter(|latest| *latest > now_ms) else {
            return;
        };
        for at_ms in noted {
            *at_ms = at_ms.saturating_sub(latest - now_ms + 1);
        }
    }

    /// Lets it go: it is judged and healed again, and what was tried before is forgotten.
    pub fn release(&mut self) {
        self.hold = None;
        self.case.attempts.clear();
        (self.case.stillborn, self.case.died, self.case.proven) = (0, false, false);
        self.deaths.clear();
        self.failure = None;
    }

    /// Whether the replacement that was ordered last has died young, and nothing was written down of how.
    pub fn died_untold(&self) -> bool {
        let told = self.deaths.last().map(|death| death.at_ms);
        let died = self.case.stillborn() > self.case.stillborn;
        died && told.is_none_or(|at_ms| Some(at_ms) <= self.case.replaced_at_ms())
    }

    /// Keeps how the replacement that there is has died.
    pub fn tell_death(&mut self, death: Death) {
        if self.deaths.len() >= DEATHS_MAX {
            self.deaths.remove(0);
        }
        self.deaths.push(death);
    }
}
