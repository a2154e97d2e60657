//! What a worker is told of ending its own pods when it alone is cut off.

use std::net::{Ipv4Addr, SocketAddr};

use windlass_common::fence::{PEERS_MAX, SelfFenceOrders};
use windlass_common::limits::PEER_PORT;

use super::super::API_PROXY_PORT;
use super::super::facts::{ClusterFacts, MachineFacts, Role};

/// The file; also where nothing is to be ended, so that an earlier one does not go on to count.
pub(super) fn orders(cluster: &ClusterFacts, machine: &MachineFacts) -> String {
    let others = cluster.machines.iter().filter(|m| m.name != machine.name);
    let mut peers: Vec<_> = others.collect();
    peers.sort_by_key(|peer| (peer.role != Role::ControlPlane, &peer.name));
    let orders = SelfFenceOrders {
        after_seconds: cluster.self_fence(machine).map(|of| of.after_seconds),
        api: SocketAddr::from((Ipv4Addr::LOCALHOST, API_PROXY_PORT)),
        peers: peers
            .into_iter()
            .take(PEERS_MAX)
            .map(|peer| SocketAddr::from((peer.address, PEER_PORT)))
            .collect(),
    };
    // Numbers and addresses.
    let mut text = serde_json::to_string_pretty(&orders).expect("plain values serialise to JSON");
    text.push('\n');
    text
}
