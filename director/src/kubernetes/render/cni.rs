//! Pod network of one machine: reference plugins, addresses from the machine's own pod network.
//!
//! The director assigns the pod network, so the file is complete before the node registers and a
//! kubelet is Ready without waiting for a controller.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Serialize;

use super::super::facts::MachineFacts;

/// Its configuration file.
pub(super) const CONFIG_PATH: &str = "/etc/cni/net.d/10-windlass.conflist";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Conflist {
    cni_version: &'static str,
    name: &'static str,
    plugins: (Bridge, Portmap),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Bridge {
    r#type: &'static str,
    bridge: &'static str,
    is_gateway: bool,
    /// A pod that reaches itself through a Service.
    hairpin_mode: bool,
    /// Off: it would hide pods from pods of other machines. See `super::network::rules`.
    ip_masq: bool,
    ipam: HostLocal,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HostLocal {
    r#type: &'static str,
    /// On tmpfs: after a reboot no pod is left, and no address may stay taken.
    data_dir: &'static str,
    ranges: [[Range; 1]; 1],
    routes: [Destination; 1],
}

#[derive(Serialize)]
struct Range {
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
}

#[derive(Serialize)]
struct Destination {
    dst: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Portmap {
    r#type: &'static str,
    /// The same back end as kube-proxy; left alone, the plugin looks for iptables first.
    backend: &'static str,
    capabilities: Capabilities,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Capabilities {
    port_mappings: bool,
}

/// The configuration file.
pub(super) fn config(machine: &MachineFacts) -> String {
    let gateway = Ipv4Addr::from(u32::from(machine.pod_cidr.network()) + 1);
    let conflist = Conflist {
        cni_version: "1.0.0",
        name: "windlass",
        plugins: (
            Bridge {
                r#type: "bridge",
                bridge: "cni0",
                is_gateway: true,
                hairpin_mode: true,
                ip_masq: false,
                ipam: HostLocal {
                    r#type: "host-local",
                    data_dir: "/run/cni",
                    ranges: [[Range {
                        subnet: machine.pod_cidr,
                        gateway,
                    }]],
                    routes: [Destination { dst: "0.0.0.0/0" }],
                },
            },
            Portmap {
                r#type: "portmap",
                backend: "nftables",
                capabilities: Capabilities {
                    port_mappings: true,
                },
            },
        ),
    };
    let mut text = serde_json::to_string_pretty(&conflist).expect("plain values serialise to JSON");
    text.push('\n');
    text
}
