//! Network of one machine outside the pods: routes, kernel parameters, masquerading.

use std::collections::BTreeMap;

use windlass_common::step::{NETWORK_RULES_PATH, Route};

use super::super::facts::{ClusterFacts, MachineFacts};

/// nftables rules that [`UNIT`] loads.
pub(super) const RULES_PATH: &str = NETWORK_RULES_PATH;
/// File of [`UNIT`].
pub(super) const UNIT_PATH: &str = "/etc/systemd/system/windlass-network.service";
/// Loads the rules. It does not remove them when it stops: a restart must not interrupt pods, and
/// loading replaces the whole table in one transaction.
pub(super) const UNIT: &str = "\
[Unit]
Description=Masquerading of pods that leave the cluster
Before=kubelet.service kube-proxy.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f /etc/windlass/network.nft

[Install]
WantedBy=multi-user.target
";

/// Routes to the pods of every other machine.
pub(super) fn routes(cluster: &ClusterFacts, machine: &MachineFacts) -> Vec<Route> {
    let others = cluster
        .machines
        .iter()
        .filter(|other| other.name != machine.name);
    let route = |other: &MachineFacts| Route {
        destination: other.pod_cidr,
        via: other.address,
    };
    let mut routes: Vec<Route> = others.map(route).collect();
    routes.sort();
    routes
}

/// Kernel parameters, all of the machine's own network namespace.
pub(super) fn sysctls() -> BTreeMap<String, String> {
    [
        // Pods reach other machines through this one.
        ("net.ipv4.ip_forward", "1"),
        // A Service whose endpoint is on the same bridge: without it the answer bypasses the
        // translation and is dropped by the client.
        ("net.bridge.bridge-nf-call-iptables", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// Rules that give traffic of this machine's pods to the outside the machine's address, since nobody
/// outside the cluster has a route to pods. Pods keep their own address towards other pods.
pub(super) fn rules(cluster: &ClusterFacts, machine: &MachineFacts) -> String {
    let (own, all) = (machine.pod_cidr, cluster.spec.network.pod_cidr);
    format!(
        "\
table ip windlass {{}}
delete table ip windlass
table ip windlass {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {own} ip daddr != {{ {all}, 224.0.0.0/4 }} masquerade fully-random
  }}
}}
"
    )
}
