//! What each witness says about one machine.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What all witnesses say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// The machine's own connection.
    pub link: Link,
    /// Machines of the same cluster that were asked to probe it.
    pub peers: Peers,
    /// Its node's Lease.
    pub lease: Lease,
    /// The provider.
    pub power: Power,
    /// What its agent reports of its units and conditions, while it does.
    pub work: Work,
}

/// The connection of a machine's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Link {
    /// Heartbeats arrive.
    Beating,
    /// None arrived for longer than the interval and its jitter explain, or the connection is gone.
    Silent,
}

impl Link {
    /// What it shows beside the answers of peers. A machine whose agent answers them lives; while its connection
    /// `stands`, heartbeats are all that is missing, which packets that are lost explain.
    pub fn beside(self, stands: bool, peers: Peers) -> Link {
        match (self, stands, peers) {
            (Link::Silent, true, Peers::Agent) | (Link::Beating, _, _) => Link::Beating,
            (Link::Silent, true, Peers::Kubelet | Peers::Nobody | Peers::Unknown)
            | (Link::Silent, false, _) => Link::Silent,
        }
    }
}

/// What peers of a machine found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Peers {
    /// Its agent answered one of them: user space runs, and the network between them works.
    Agent,
    /// Its agent did not, but its kubelet answered a TLS handshake.
    Kubelet,
    /// Nothing in its user space answered any of them.
    Nobody,
    /// Nobody could be asked, or not enough of those who were have answered.
    Unknown,
}

/// What one peer found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Probe {
    /// The agent answered with the nonce.
    Agent,
    /// Only the kubelet answered.
    Kubelet,
    /// Neither did.
    Nobody,
    /// The peer itself did not answer in time.
    Unanswered,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Probe::Agent => "agent",
            Probe::Kubelet => "kubelet",
            Probe::Nobody => "nobody",
            Probe::Unanswered => "-",
        })
    }
}

/// Peers whose silence counts when more of them could be asked: one may be cut off by itself.
const SILENT_PEERS_MIN: usize = 2;

impl Peers {
    /// Sums up what the peers that were asked found.
    pub fn of(probes: &[Probe]) -> Peers {
        let count = |wanted: Probe| probes.iter().filter(|probe| **probe == wanted).count();
        if count(Probe::Agent) > 0 {
            Peers::Agent
        } else if count(Probe::Kubelet) > 0 {
            Peers::Kubelet
        } else if count(Probe::Nobody) >= SILENT_PEERS_MIN.min(probes.len()).max(1) {
            Peers::Nobody
        } else {
            Peers::Unknown
        }
    }
}

/// The Lease of a machine's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Lease {
    /// It was seen to change after the link fell silent. Clocks are not compared.
    Renewed,
    /// It was not seen to change, or cannot be read.
    Unknown,
}

/// What the provider says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Power {
    /// The machine is powered on.
    Running,
    /// It is powered off.
    Stopped,
    /// It does not exist.
    Absent,
    /// The provider does not say.
    Unknown,
}

/// What an agent reports of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Work {
    /// All that it watches is as it should be.
    #[default]
    Well,
    /// Something it watches is not.
    Impaired,
    /// Something is not that no restart and no other machine in its place would mend: a full disk, an alarm
    /// of etcd, a clock that is wrong.
    Strained,
}
