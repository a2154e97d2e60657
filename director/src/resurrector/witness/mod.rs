//! Witnesses: what fills [`Evidence`], each from a source that does not depend on the others.
//!
//! | witness | asked | answers within |
//! | --- | --- | --- |
//! | link | the gateway's sessions, in memory | at once |
//! | provider | always | [`POWER_DEADLINE`] |
//! | report | the agent's last report and heartbeat, in memory | at once |
//! | peers | three machines of the cluster, once the link is silent | [`PROBE_DEADLINE`], [`PROBE_DEADLINE_GONE`] once the provider says that it is off |
//! | lease | the API server, through a control-plane machine that is heard of, once the link is silent | [`LEASE_DEADLINE`] |
//!
//! All are asked in parallel, but for the provider's head start of [`POWER_EARLY`]. Of a machine that is heard of nothing
//! is asked but the provider. If it says that one whose heartbeat is late is off, the others are asked at once, and that
//! the machine is not heard meanwhile is silence.
//!
//! # Invariants
//! * A witness that does not answer in time, or fails, says "unknown"; why is in its statement.
//! * Asking changes nothing on the machine, nor at the provider.
//! * Whatever is passed on says how old it is; clocks of two machines are never compared.
//!
//! # After a crash
//! Nothing is kept: what was heard of a machine before this director's start is not known, and Leases are
//! watched anew.
//!
//! # Not here
//! What the evidence means ([`super::verdict()`]), and when to ask (whoever watches
//! [`Witnesses::changes`]).

mod circle;
mod lease;
mod peers;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::pki::MachineIdentity;

use super::{Evidence, Link, Probe, Verdict, verdict};
use crate::model::{Machine, Timestamp};

pub use circle::Circle;
pub use lease::RENEWAL_AGE_MAX;
pub use peers::{PEERS_MAX, PROBE_DEADLINE, PROBE_DEADLINE_GONE};

/// How long the provider may take to say whether a machine runs: a look at the local one takes
/// milliseconds, a cloud's API a second.
pub const POWER_DEADLINE: Duration = Duration::from_secs(2);
/// How long its word is waited for before others are asked about a silent machine: what it says decides how
/// long they get.
pub const POWER_EARLY: Duration = Duration::from_millis(100);
/// How long reading a Lease may take, the wait for a turn included.
pub const LEASE_DEADLINE: Duration = Duration::from_millis(2_500);
/// A report older than this says nothing about units any more; the heartbeat's count stands for it.
/// Agents send one every 30 s at least, unless they are told to look less often.
pub const REPORT_AGE_MAX: Duration = Duration::from_secs(120);

/// Whoever can be asked about machines.
pub trait Witnesses: Send + Sync + fmt::Debug {
    /// What is heard of a machine's current incarnation; from memory, at once.
    fn link(&self, machine: &Machine) -> Link;

    /// Whether it is heard of, and its heartbeat is late; from memory, at once.
    fn late(&self, machine: &Machine) -> bool;

    /// Changes from now on. What is so already is not told: look at [`Witnesses::link`] of each machine
    /// once, after subscribing.
    fn changes(&self) -> BoxStream<'static, LinkChange>;

    /// Asks all witnesses about the current incarnation of a machine, in parallel and with deadlines.
    /// Never fails: who does not answer is unknown.
    fn evidence<'a>(&'a self, machine: &'a Machine) -> BoxFuture<'a, Gathered>;
}

/// Something about a machine's link changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChange {
    /// Its heartbeat is late.
    Late(MachineIdentity),
    /// It fell silent, or its connection is gone.
    Silent(MachineIdentity),
    /// Heartbeats arrive, again or for the first time.
    Beating(MachineIdentity),
    /// Its agent reports something else of its units or conditions.
    Reported(MachineIdentity),
    /// Changes were missed: look at every machine.
    Missed,
}

/// What all witnesses said about a machine at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gathered {
    /// What it comes to.
    pub evidence: Evidence,
    /// When they were asked.
    pub at: Timestamp,
    /// How long the slowest took, milliseconds.
    pub took_ms: u64,
    /// For how long nothing was heard of the machine when they were asked, milliseconds; absent if
    /// nothing was since the director's start.
    pub silent_ms: Option<u64>,
    /// For how long the Lease has been watched for a change in this silence, milliseconds. While it is
    /// less than the kubelet's interval of 10 s, that it was not seen to change says nothing.
    pub lease_watched_ms: Option<u64>,
    /// What each said.
    pub statements: Vec<Statement>,
    /// What each peer that was asked found.
    pub probes: Vec<ProbeView>,
}

/// What one witness said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    /// Who.
    pub witness: Witness,
    /// What, for people.
    pub says: String,
    /// How old what it goes by is, milliseconds; absent if it goes by nothing.
    pub age_ms: Option<u64>,
    /// How long it took to answer, milliseconds.
    pub took_ms: u64,
}

/// A witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Witness {
    /// The connection of the machine's agent.
    Link,
    /// Other machines of the cluster.
    Peers,
    /// The Lease of its node.
    Lease,
    /// The provider.
    Provider,
    /// The agent's report.
    Report,
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Witness::Link => "link",
            Witness::Peers => "peers",
            Witness::Lease => "lease",
            Witness::Provider => "provider",
            Witness::Report => "report",
        })
    }
}

/// What one peer found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProbeView {
    /// Which machine was asked.
    pub peer: String,
    /// What it found.
    pub found: Probe,
    /// Why it could not be asked, or its answer does not count.
    pub why: Option<String>,
    /// How long it took to answer, milliseconds.
    pub took_ms: u64,
}

/// What is known about a machine at a moment, and what it means by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    /// What the evidence means; what came before, and what else goes on, is not looked at.
    pub verdict: Verdict,
    /// The evidence.
    #[serde(flatten)]
    pub gathered: Gathered,
}

impl From<Gathered> for Judgement {
    fn from(gathered: Gathered) -> Judgement {
        let verdict = verdict(&gathered.evidence);
        Judgement { verdict, gathered }
    }
}

impl Gathered {
    /// What a witness said.
    pub fn statement(&self, witness: Witness) -> Option<&Statement> {
        self.statements.iter().find(|said| said.witness == witness)
    }
}
