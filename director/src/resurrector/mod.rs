//! The resurrector's judgement: what is known about a machine, what it means, and what may be done.
//!
//! Pure parts, asked in this order. [`verdict()`] turns the evidence of independent witnesses into a
//! [`Verdict`], by one exhaustive table. [`next`] climbs the ladder: which remedy comes next for a verdict,
//! given what was tried. [`allow`] guards: whether it may be done now, given everything else. [`decide()`]
//! puts the last two together for all machines at once. What is decided becomes changed desired state, which
//! the planner plans like any other.
//!
//! # Invariants
//! * A missing witness is `Unknown`, never "no": it proves neither life nor death.
//! * A Lease proves life and never death, since kubelets renew it every ten seconds.
//! * Only the provider proves that a machine is gone. Silence alone replaces nothing.
//! * While much is silent at once, or the director has just begun, nothing disruptive is done: then the
//!   director suspects itself.
//!
//! # After a crash
//! Cases are records of the store; evidence is gathered anew.
//!
//! # Not here
//! Gathering evidence ([`witness`]) and carrying out remedies; fencing, which belongs to the plan of a replacement.

mod cause;
mod decide;
mod evidence;
mod guard;
mod ladder;
mod record;
#[cfg(test)]
mod tests;
mod verdict;
mod watch;
pub mod witness;

pub use cause::{Cause, CauseKind, DEATHS_MAX, Death, ERROR_MAX, Factor, FailedStep, common};
pub use decide::{Outlook, Policy, decide};
pub use evidence::{Evidence, Lease, Link, Peers, Power, Probe, Work};
pub use guard::{Director, Fleet, GuardPolicy, Member, Refusal, Role, allow, poisoned};
pub use ladder::{ATTEMPTS_MAX, Attempt, Case, LadderPolicy, Move, Rung, next};
pub use record::{ACTOR, Begun, CaseRecord, HISTORY_MAX, Hold, HoldKind, Mode, VerdictChange};
pub use verdict::{Verdict, in_doubt, verdict};
pub use watch::{Distrust, HELD_UP, JUMP, Watch};
