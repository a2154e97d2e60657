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
    /// Say what became of the attempts to connect; answered with [`FleetAnswer::Attempts`].
    Attempts,
    /// Stop all of it.
    Stop,
}

/// What became of the attempts of the agents that run, since each began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    /// Sessions that stood.
    pub welcomed: u64,
    /// Nobody answered.
    pub silent: u64,
    /// The director answered, and did not come to it in time.
    pub unserved: u64,
    /// The director said no, or what it said was of no use.
    pub failed: u64,
}

impl Attempts {
    /// Those of two fleets.
    pub fn plus(self, other: Attempts) -> Attempts {
        Attempts {
            welcomed: self.welcomed + other.welcomed,
            silent: self.silent + other.silent,
            unserved: self.unserved + other.unserved,
            failed: self.failed + other.failed,
        }
    }

    /// Those since `before`.
    pub fn since(self, before: Attempts) -> Attempts {
        Attempts {
            welcomed: self.welcomed.saturating_sub(before.welcomed),
            silent: self.silent.saturating_sub(before.silent),
            unserved: self.unserved.saturating_sub(before.unserved),
            failed: self.failed.saturating_sub(before.failed),
        }
    }
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
    /// See [`FleetOrder::Attempts`].
    Attempts(Attempts),
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
        /// What the gateway did in each second since it was opened.
        course: Vec<Moment>,
    },
    Usage {
        resident_bytes: u64,
        cpu_us: u64,
        heartbeats: u64,
        connected: usize,
        suspects: usize,
        /// Sessions that began without a full handshake.
        resumed: u64,
        /// Between two heartbeats, as agents are told at this moment; 0 where none beat.
        interval_ms: u32,
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

/// What a gateway has done up to one moment; counts are totals since it was opened.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Moment {
    /// Since it was opened.
    pub(super) seconds: f64,
    pub(super) connected: usize,
    /// Handshakes under way at this moment.
    pub(super) under_way: usize,
    /// First packets in line for a place at this moment.
    pub(super) waiting: usize,
    /// Handshakes that were begun, and those that were done.
    pub(super) begun: u64,
    pub(super) done: u64,
    /// Sessions that were resumed, and tickets that could not be opened.
    pub(super) resumed: u64,
    pub(super) tickets_refused: u64,
    /// First packets that were answered by asking for a proof of the address.
    pub(super) retried: u64,
    /// First packets that were dropped, since the line was full or they had waited for too long; and handshakes
    /// that gave way.
    pub(super) crowded: u64,
    /// First packets that were refused, since too many attempts of their address had failed.
    pub(super) source_busy: u64,
    /// Handshakes that were not over in time, and those that failed.
    pub(super) timed_out: u64,
    pub(super) failed: u64,
    /// Datagrams that were read, and those that the kernel dropped since its buffer was full.
    pub(super) datagrams: u64,
    pub(super) dropped: u64,
    /// CPU time of the director.
    pub(super) cpu_ms: u64,
}

/// Now.
pub fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as u64)
}
