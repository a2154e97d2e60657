//! kube-proxy: `KubeProxyConfiguration` (kubeproxy.config.k8s.io/v1alpha1), nftables mode.

use serde::Serialize;

use super::super::facts::{ClusterFacts, MachineFacts};
use super::super::{KUBE_PROXY_HEALTH_PORT, KUBE_PROXY_METRICS_PORT};
use super::flags::Flags;
use super::yaml;

/// Its configuration file.
pub(super) const CONFIG_PATH: &str = "/etc/kubernetes/kube-proxy.yaml";
/// Its kubeconfig.
pub(super) const KUBECONFIG_PATH: &str = "/etc/kubernetes/kube-proxy.kubeconfig";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KubeProxyConfiguration<'a> {
    api_version: &'static str,
    kind: &'static str,
    mode: &'static str,
    client_connection: ClientConnection,
    hostname_override: &'a str,
    detect_local_mode: &'static str,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: String,
    /// On all addresses: load balancers outside ask it whether the node has local endpoints.
    healthz_bind_address: String,
    metrics_bind_address: String,
    #[serde(rename = "oomScoreAdj", skip_serializing_if = "Option::is_none")]
    oom_score_adj: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conntrack: Option<Conntrack>,
}

#[derive(Serialize)]
struct ClientConnection {
    kubeconfig: &'static str,
}

/// Zero leaves a kernel parameter as it is.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Conntrack {
    max_per_core: u32,
    min: u32,
    tcp_established_timeout: &'static str,
    tcp_close_wait_timeout: &'static str,
}

/// The configuration file.
pub(super) fn config(cluster: &ClusterFacts, machine: &MachineFacts) -> String {
    yaml(&KubeProxyConfiguration {
        api_version: "kubeproxy.config.k8s.io/v1alpha1",
        kind: "KubeProxyConfiguration",
        mode: "nftables",
        client_connection: ClientConnection {
            kubeconfig: KUBECONFIG_PATH,
        },
        hostname_override: machine.node_name.as_str(),
        detect_local_mode: "ClusterCIDR",
        cluster_cidr: cluster.spec.network.pod_cidr.to_string(),
        healthz_bind_address: format!("0.0.0.0:{KUBE_PROXY_HEALTH_PORT}"),
        metrics_bind_address: format!("127.0.0.1:{KUBE_PROXY_METRICS_PORT}"),
        oom_score_adj: machine.host.restrict_oom_score_adj.then_some(0),
        conntrack: machine.host.read_only_conntrack.then_some(Conntrack {
            max_per_core: 0,
            min: 0,
            tcp_established_timeout: "0s",
            tcp_close_wait_timeout: "0s",
        }),
    })
}

/// Its flags.
pub(super) fn flags() -> Flags {
    Flags::default().set("config", CONFIG_PATH)
}
