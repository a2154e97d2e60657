//! What a worker is told of ending its own pods when it alone is cut off.
//!
//! The director writes it to [`PATH`] with the rest of a machine's configuration; its agent reads it anew whenever it
//! matters. It speeds up that pods of a machine nobody hears stop serving, and proves nothing: what they held is given
//! to others once the machine is proven off, as ever.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Where a worker finds it.
pub const PATH: &str = "/etc/windlass/self-fence.json";
/// Most machines that are asked: control planes have five at most.
pub const PEERS_MAX: usize = 5;

/// What a worker is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SelfFenceOrders {
    /// How long neither the director nor an API server may have been heard while peers hear the director, seconds;
    /// absent where pods are not to be ended.
    pub after_seconds: Option<u32>,
    /// Where API servers answer on this machine: its proxy, TCP.
    pub api: SocketAddr,
    /// Peer endpoints of other machines of the cluster, control planes first, at most [`PEERS_MAX`]; UDP.
    pub peers: Vec<SocketAddr>,
}
