//! What the processes of a benchmark tell one another.
//!
//! Moments are microseconds of the host's wall clock: all processes share it.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use windlass_common::id::MachineName;

/// What a fleet process is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FleetOrder {
    /// Run the link of every agent; answered with [`FleetAnswer::Done`] when each was connected.
    Run {
        /// Agents that are not yet connected, at most.
        at_once: usize,
    },
    /// Bare handshakes, one by each agent's identity, all kept until [`FleetOrder::Stop`].
    Handshakes {
        /// Of the server.
        address: SocketAddr,
        /// Handshakes under way, at most.
        at_once: usize,
    },
    /// Begin handshakes from one address and leave them when they are answered; answered with
    /// [`FleetAnswer::Done`] when all were, and left like that until [`FleetOrder::Stop`].
    HalfOpen {
        /// Of the server.
        address: SocketAddr,
        /// How many.
        count: usize,
        /// Unanswered ones, at most.
        at_once: usize,
    },
    /// Connect with NATS and publish heartbeats; answered with [`FleetAnswer::Done`] when all are
    /// connected.
    Publish {
        /// Of the NATS server.
        address: SocketAddr,
        /// Between two heartbeats of one client.
        interval_ms: u32,
        /// Clients that are not yet connected, at most.
        at_once: usize,
    },
    /// Stop all of it.
    Stop,
}

/// What a fleet process answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FleetAnswer {
    /// Done.
    Done {
        /// First moment of the work.
        began_us: u64,
        /// Last moment of the work.
        ended_us: u64,
        /// Agents for which it failed, with the first failure in words.
        failed: Option<(usize, String)>,
    },
}

/// What the director under test is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum TargetOrder {
    /// Wait until so many sessions stand.
    AwaitConnected { count: usize, patience_ms: u64 },
    /// Say what was used so far.
    Usage,
    /// Send commands, spread over the fleet.
    Commands { count: u32, per_second: u32 },
    /// Wait until this machine is suspect.
    AwaitSuspect {
        machine: MachineName,
        patience_ms: u64,
    },
    /// Shut down in order, as a restart of the director does, and end.
    Stop,
}

/// What the director under test answers; unasked, it says [`TargetAnswer::Listening`] first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum TargetAnswer {
    Listening {
        at_us: u64,
        /// Resident bytes before the port was opened, the store and its machines loaded.
        resident_bytes: u64,
    },
    Connected {
        count: usize,
        at_us: u64,
    },
    Usage {
        resident_bytes: u64,
        cpu_us: u64,
        heartbeats: u64,
        connected: usize,
        suspects: usize,
        /// Sessions that began without a full handshake.
        resumed: u64,
    },
    Commands {
        answered: u32,
        p50_us: u64,
        p99_us: u64,
        max_us: u64,
    },
    Suspect {
        /// When it was noticed; none if it was not.
        at_us: Option<u64>,
    },
    Stopped,
}

/// Now.
pub fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as u64)
}
