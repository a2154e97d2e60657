//! Bodies of probes: the director asks machines whether they reach another one of their cluster.
//!
//! [`ProbeAsk`] goes down a control stream and [`ProbeAnswer`] up it. Between the two, the machine that was
//! asked opens a stream to the other's peer endpoint with [`Echo`], which answers [`EchoAnswer`]; and it
//! begins a TLS handshake with the other's kubelet. Sent from protocol version 2 on.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::id::{Incarnation, MachineName};
use crate::probe::Nonce;

/// Asks a machine to look whether another one answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeAsk {
    /// Tells this question from all others; random.
    pub nonce: Nonce,
    /// Which machine. Its director and cluster are those of the machine that is asked.
    pub machine: MachineName,
    /// Which incarnation of it; another one at the same address does not count.
    pub incarnation: Incarnation,
    /// Its agent's peer endpoint, UDP.
    pub agent: SocketAddr,
    /// Its kubelet, TCP.
    pub kubelet: SocketAddr,
    /// How long to try, milliseconds from the arrival of this on, at most
    /// [`crate::limits::PROBE_LIMIT`].
    pub deadline_ms: u32,
}

/// What a machine that was asked found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeAnswer {
    /// Of the question.
    pub nonce: Nonce,
    /// What was found.
    pub found: ProbeFound,
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeFound {
    /// The agent answered, with this proof.
    Agent(EchoAnswer),
    /// The agent did not, and a TLS handshake with the kubelet came to its end.
    Kubelet,
    /// Neither did.
    Nobody,
    /// It was not tried, and why.
    NotTried(String),
}

/// Asks the agent of a machine to show that it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    /// Of the director's question.
    pub nonce: Nonce,
}

/// Asks the agent of a machine of the same cluster whether it hears its director. An agent of a release that does not
/// know the question resets the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectorAsk {
    /// Tells this question from all others; random.
    pub nonce: Nonce,
}

/// Whether it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectorAnswer {
    /// Of the question.
    pub nonce: Nonce,
    /// Whether its link is up: something was heard within [`crate::limits::LINK_IDLE_TIMEOUT`].
    pub heard: bool,
}

/// Shows that an agent runs: its signature of [`crate::probe::statement`], which the machine that asked
/// cannot make itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EchoAnswer {
    /// Its certificate, leaf first, then its issuer; DER.
    pub chain_der: Vec<Vec<u8>>,
    /// By the certificate's key.
    pub signature: Vec<u8>,
}
