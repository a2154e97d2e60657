//! Which remedy comes next for a machine, given what was tried.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Power, Verdict, Work};

/// A remedy, mildest first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum Rung {
    /// Restart the units that fail.
    Units,
    /// Restart kubelet and containerd; pods go on.
    Runtime,
    /// Have the provider restart the machine, or start it.
    Reboot,
    /// Make the machine anew, with the next incarnation.
    Replace,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Rung::Units => "restart its failing units",
            Rung::Runtime => "restart kubelet and containerd",
            Rung::Reboot => "reboot it",
            Rung::Replace => "replace it",
        })
    }
}

/// What is known about a machine over time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Case {
    /// The last verdict.
    pub verdict: Verdict,
    /// The provider's word when it was given.
    pub power: Power,
    /// What its agent said of its units and conditions when it was given.
    #[serde(default)]
    pub work: Work,
    /// Since when the verdict stands, Unix milliseconds.
    pub since_ms: u64,
    /// What was tried, oldest first; at most [`ATTEMPTS_MAX`].
    pub attempts: Vec<Attempt>,
    /// Replacements that died before they had proven themselves, in a row.
    #[serde(default)]
    pub stillborn: u32,
    /// Whether the replacement that there is was seen dead before it had proven itself, and not well since.
    #[serde(default)]
    pub died: bool,
    /// Whether it has served long enough since it was replaced last.
    #[serde(default)]
    pub proven: bool,
    /// Whether a replacement is ordered of which nothing was said yet: what is known is of the one before it.
    #[serde(default)]
    pub expects: bool,
}

/// Attempts that are kept: at the longest pause between replacements, more than a day of them.
pub const ATTEMPTS_MAX: usize = 32;

/// One remedy that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Which.
    pub rung: Rung,
    /// When it was begun, or a reboot by a task was carried out, Unix milliseconds.
    pub at_ms: u64,
}

/// How patient the ladder is. All times in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LadderPolicy {
    /// How long something may be degraded before anything is done: systemd restarts units by itself.
    pub degraded_ms: u64,
    /// How long an agent may be lost: systemd restarts it as well.
    pub agent_lost_ms: u64,
    /// How long a machine may look hung: its Lease, renewed every ten seconds, gets time to show that it is
    /// only cut off.
    pub hung_ms: u64,
    /// How long a restart of units, kubelet or containerd may take to show.
    pub settle_ms: u64,
    /// How long a reboot may take to show.
    pub reboot_ms: u64,
    /// Pause after the first replacement; doubles with each further one up to the cap.
    pub replace_first_ms: u64,
    /// Longest pause between replacements.
    pub replace_cap_ms: u64,
    /// How long a machine has to be healthy for its attempts to be forgotten.
    pub forget_ms: u64,
}

impl Default for LadderPolicy {
    fn default() -> Self {
        const SECOND: u64 = 1000;
        Self {
            degraded_ms: 30 * SECOND,
            agent_lost_ms: 60 * SECOND,
            hung_ms: 15 * SECOND,
            settle_ms: 30 * SECOND,
            reboot_ms: 90 * SECOND,
            replace_first_ms: 180 * SECOND,
            replace_cap_ms: 3600 * SECOND,
            forget_ms: 3600 * SECOND,
        }
    }
}

/// What to do about a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// Nothing is wrong.
    Rest,
    /// Nothing before this time.
    Wait {
        /// Unix milliseconds.
        until_ms: u64,
        /// What is waited for.
        why: &'static str,
    },
    /// This, if the guards allow it.
    Act(Rung),
    /// Nothing by itself: an operator decides.
    Stay {
        /// Why.
        why: &'static str,
    },
}

impl Case {
    /// A machine about which nothing is known.
    pub fn new(now_ms: u64) -> Case {
        Case {
            verdict: Verdict::Unknown,
            power: Power::Unknown,
            work: Work::Well,
            since_ms: now_ms,
            attempts: Vec::new(),
            stillborn: 0,
            died: false,
            proven: false,
            expects: false,
        }
    }

    /// Takes a verdict. Attempts are kept across verdicts, so that a machine that hangs, recovers and
    /// hangs again climbs; they are forgotten after health that lasts.
    pub fn judge(&mut self, verdict: Verdict, power: Power, now_ms: u64, policy: &LadderPolicy) {
        if verdict != self.verdict {
            self.verdict = verdict;
            self.since_ms = now_ms;
        }
        self.power = power;
        let healthy = verdict == Verdict::Healthy;
        if healthy && now_ms.saturating_sub(self.since_ms) >= policy.forget_ms {
            self.attempts.clear();
        }
    }

    /// Notes whether it has been healthy for `poison_ms`: then its replacement was no stillbirth. One that was is not
    /// unsaid by a witness that does not answer afterwards.
    pub fn prove(&mut self, now_ms: u64, poison_ms: u64) {
        let healthy = self.verdict == Verdict::Healthy;
        if healthy && now_ms.saturating_sub(self.since_ms) >= poison_ms {
            (self.proven, self.stillborn) = (true, 0);
        }
        self.died = !healthy && self.dies();
    }

    /// Replacements that died before they had proven themselves, in a row, with the one there is.
    pub fn stillborn(&self) -> u32 {
        self.stillborn.saturating_add(u32::from(self.dies()))
    }

    fn dies(&self) -> bool {
        let degraded = self.verdict == Verdict::Degraded && self.work != Work::Strained;
        let down = self.verdict.is_down() || degraded;
        let young = !self.proven && !self.expects && self.times(Rung::Replace) > 0;
        self.died || (down && young)
    }

    /// Whether a restart of the machine gets time to show.
    pub fn reboots(&self, now_ms: u64, policy: &LadderPolicy) -> bool {
        let last = self.attempts.last();
        self.verdict != Verdict::Healthy
            && last.is_some_and(|last| {
                last.rung == Rung::Reboot && now_ms < last.at_ms.saturating_add(policy.reboot_ms)
            })
    }

    /// Notes that a remedy is begun. Time to show begins now.
    pub fn tried(&mut self, rung: Rung, now_ms: u64) {
        if rung == Rung::Replace {
            self.stillborn = self.stillborn();
            (self.died, self.proven, self.expects) = (false, false, true);
        }
        if self.attempts.len() >= ATTEMPTS_MAX {
            self.attempts.remove(0);
        }
        self.attempts.push(Attempt {
            rung,
            at_ms: now_ms,
        });
    }

    /// Notes that the remedy that was begun last is carried out now, if it is this one: time to show begins now. Returns
    /// whether it is.
    pub fn carried_out(&mut self, rung: Rung, now_ms: u64) -> bool {
        let last = self.attempts.last_mut();
        let Some(last) = last.filter(|last| last.rung == rung) else {
            return false;
        };
        last.at_ms = last.at_ms.max(now_ms);
        true
    }

    /// Notes that the remedy that was begun last was not carried out after all, if it is this one.
    pub fn not_tried(&mut self, rung: Rung) {
        self.attempts.pop_if(|last| last.rung == rung);
    }

    /// When the last replacement was ordered, Unix milliseconds.
    pub fn replaced_at_ms(&self) -> Option<u64> {
        let mut tried = self.attempts.iter().rev();
        let last = tried.find(|attempt| attempt.rung == Rung::Replace);
        last.map(|attempt| attempt.at_ms)
    }

    fn times(&self, rung: Rung) -> u32 {
        let tried = self.attempts.iter().filter(|attempt| attempt.rung == rung);
        u32::try_from(tried.count()).unwrap_or(u32::MAX)
    }
}

/// The next move about a machine at `now_ms`.
pub fn next(case: &Case, now_ms: u64, policy: &LadderPolicy) -> Move {
    let rungs: &[Rung] = match (case.verdict, case.power) {
        (Verdict::Healthy, _) => return Move::Rest,
        (Verdict::Degraded, _) if case.work == Work::Strained => {
            return Move::Stay {
                why: "what is wrong with it is not mended by a restart, nor by another machine in its place",
            };
        }
        (Verdict::Degraded, _) => &[Rung::Units, Rung::Runtime, Rung::Reboot, Rung::Replace],
        (Verdict::MachineGone, Power::Absent) => &[Rung::Replace],
        (Verdict::AgentLost | Verdict::NodeHung, _) | (Verdict::MachineGone, _) => {
            &[Rung::Reboot, Rung::Replace]
        }
        (Verdict::Partitioned, _) => {
            return Move::Stay {
                why: "it serves, and the network between it and the director does not work",
            };
        }
        (Verdict::Unknown, _) => {
            return Move::Stay {
                why: "too few witnesses answer to tell whether it lives",
            };
        }
    };
    if let Some((until_ms, why)) = patience(case, policy).filter(|(until, _)| now_ms < *until) {
        return Move::Wait { until_ms, why };
    }
    // Each rung once; the last one again and again, with its growing pause.
    let untried = rungs.iter().find(|rung| case.times(**rung) == 0);
    let rung = untried.or(rungs.last()).copied();
    rung.map_or(Move::Rest, Move::Act)
}

/// Until when nothing is done, and why: what was tried gets time to show, and each verdict, also one that comes
/// back, time to be true.
fn patience(case: &Case, policy: &LadderPolicy) -> Option<(u64, &'static str)> {
    let tried = case.attempts.last().map(|last| {
        let (pause, why) = match last.rung {
            Rung::Units | Rung::Runtime => (policy.settle_ms, "the restart gets time to show"),
            Rung::Reboot => (policy.reboot_ms, "the reboot gets time to show"),
            Rung::Replace => {
                let doublings = case.times(Rung::Replace).saturating_sub(1).min(32);
                let pause = policy.replace_first_ms.saturating_mul(1 << doublings);
                (
                    pause.min(policy.replace_cap_ms),
                    "replacing it did not help; the pause grows each time",
                )
            }
        };
        (last.at_ms.saturating_add(pause), why)
    });
    let judged = match case.verdict {
        Verdict::Degraded => Some((
            policy.degraded_ms,
            "systemd gets time to restart what fails",
        )),
        Verdict::AgentLost => Some((
            policy.agent_lost_ms,
            "systemd gets time to restart the agent",
        )),
        Verdict::NodeHung => Some((
            policy.hung_ms,
            "its Lease gets time to show that it is only cut off",
        )),
        Verdict::Healthy | Verdict::MachineGone | Verdict::Partitioned | Verdict::Unknown => None,
    };
    let judged = judged.map(|(pause, why)| (case.since_ms.saturating_add(pause), why));
    tried
        .into_iter()
        .chain(judged)
        .max_by_key(|(until, _)| *until)
}
