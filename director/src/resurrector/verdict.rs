//! The table of evidence and verdict.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Evidence, Lease, Link, Peers, Power, Work};

/// What the evidence about a machine means.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It works.
    Healthy,
    /// It is reached, and something on it does not work.
    Degraded,
    /// It serves, and its agent does not answer.
    AgentLost,
    /// It is powered on, and nothing in its user space answers anybody.
    NodeHung,
    /// It is powered off or does not exist.
    MachineGone,
    /// It lives, and the network between it and the director does not work.
    Partitioned,
    /// Not enough is known, or witnesses contradict one another.
    Unknown,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Verdict; 7] = [
        Verdict::Healthy,
        Verdict::Degraded,
        Verdict::AgentLost,
        Verdict::NodeHung,
        Verdict::MachineGone,
        Verdict::Partitioned,
        Verdict::Unknown,
    ];

    /// Whether the machine is known to serve, if not well.
    pub fn serves(self) -> bool {
        !self.is_down() && self != Verdict::Unknown
    }

    /// Whether the machine serves nobody, so that acting on it disturbs nothing.
    pub fn is_down(self) -> bool {
        match self {
            Verdict::NodeHung | Verdict::MachineGone => true,
            Verdict::Healthy
            | Verdict::Degraded
            | Verdict::AgentLost
            | Verdict::Partitioned
            | Verdict::Unknown => false,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Healthy => "Healthy",
            Verdict::Degraded => "Degraded",
            Verdict::AgentLost => "AgentLost",
            Verdict::NodeHung => "NodeHung",
            Verdict::MachineGone => "MachineGone",
            Verdict::Partitioned => "Partitioned",
            Verdict::Unknown => "Unknown",
        })
    }
}

/// What the evidence means. No arm stands for "anything else": a new answer of a witness has to be judged.
pub fn verdict(evidence: &Evidence) -> Verdict {
    match evidence.link {
        Link::Beating => beating(evidence.power, evidence.work),
        Link::Silent => silent(evidence.power, evidence.peers, evidence.lease),
    }
}

/// What the evidence means to a director that has only just begun to watch, or stood still: agents are on their way
/// back, those that are back answer first, and silence shows nothing new. What was concluded `before` stands if it
/// would be concluded again.
pub fn in_doubt(evidence: &Evidence, before: Option<Verdict>) -> Verdict {
    match verdict(evidence) {
        known @ (Verdict::Healthy | Verdict::Degraded | Verdict::MachineGone) => known,
        of_silence @ (Verdict::AgentLost
        | Verdict::NodeHung
        | Verdict::Partitioned
        | Verdict::Unknown) => match before == Some(of_silence) {
            true => of_silence,
            false => Verdict::Unknown,
        },
    }
}

fn beating(power: Power, work: Work) -> Verdict {
    match (power, work) {
        (Power::Running | Power::Unknown, Work::Well) => Verdict::Healthy,
        (Power::Running | Power::Unknown, Work::Impaired | Work::Strained) => Verdict::Degraded,
        // Authenticated signs of life from what the provider says is off: somebody is wrong.
        (Power::Stopped | Power::Absent, Work::Well | Work::Impaired | Work::Strained) => {
            Verdict::Unknown
        }
    }
}

fn silent(power: Power, peers: Peers, lease: Lease) -> Verdict {
    match (power, peers, lease) {
        // Its agent answers others with a fresh nonce while the provider says it is off.
        (Power::Stopped | Power::Absent, Peers::Agent, Lease::Renewed | Lease::Unknown) => {
            Verdict::Unknown
        }
        // The Lease may have been renewed before the power went; the provider says how it is now.
        (
            Power::Stopped | Power::Absent,
            Peers::Kubelet | Peers::Nobody | Peers::Unknown,
            Lease::Renewed | Lease::Unknown,
        ) => Verdict::MachineGone,
        (Power::Running | Power::Unknown, Peers::Agent, Lease::Renewed | Lease::Unknown) => {
            Verdict::Partitioned
        }
        (Power::Running | Power::Unknown, Peers::Kubelet, Lease::Renewed | Lease::Unknown) => {
            Verdict::AgentLost
        }
        // It reaches its API server, and neither its peers nor the director reach it.
        (Power::Running | Power::Unknown, Peers::Nobody, Lease::Renewed) => Verdict::Partitioned,
        (Power::Running | Power::Unknown, Peers::Unknown, Lease::Renewed) => Verdict::AgentLost,
        (Power::Running, Peers::Nobody, Lease::Unknown) => Verdict::NodeHung,
        // Cut off from all of us, or dead: without the provider nobody can tell.
        (Power::Unknown, Peers::Nobody, Lease::Unknown) => Verdict::Unknown,
        (Power::Running | Power::Unknown, Peers::Unknown, Lease::Unknown) => Verdict::Unknown,
    }
}
