//! Holding a unit still for a moment.
//!
//! API servers that stand still ask nothing of etcd: a leader that hands over meanwhile drops nothing of theirs, and their
//! clients wait a moment longer for what they would otherwise be refused.
//!
//! # Invariants
//! * A unit that is held goes on by itself: once its time is over, once the director gives the step up, and also where
//!   the agent ends meanwhile.

use serde::{Deserialize, Serialize};

/// Longest time that a unit is held, milliseconds: a third of what clients of an API server wait at least.
pub const HOLD_MS_MAX: u32 = 3000;
/// The stage that tells that the unit stands still.
pub const HELD: &str = "held";

/// Holds all processes of a unit still. Says [`HELD`] once they are, and is done when they go on.
///
/// Sent only to agents that name the capability [`HOLD`](crate::wire::message::HOLD).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The unit, for example `kube-apiserver.service`.
    pub unit: String,
    /// For how long at most, milliseconds; 1 to [`HOLD_MS_MAX`].
    pub for_ms: u32,
}
