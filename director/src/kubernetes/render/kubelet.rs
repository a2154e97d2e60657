//! The kubelet: `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1) and its few flags.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::Serialize;

use super::super::facts::{ClusterFacts, MachineFacts, Role};
use super::super::pki::Profile;
use super::super::{CLUSTER_DOMAIN, KUBELET_HEALTH_PORT, KUBELET_PORT};
use super::flags::Flags;
use super::{KUBERNETES_CA_PATH, yaml};

/// Its configuration file.
pub(super) const CONFIG_PATH: &str = "/etc/kubernetes/kubelet.yaml";
/// Its kubeconfig.
pub(super) const KUBECONFIG_PATH: &str = "/etc/kubernetes/kubelet.kubeconfig";
/// Taint of control-plane nodes.
pub(in crate::kubernetes) const CONTROL_PLANE_TAINT: &str = "node-role.kubernetes.io/control-plane";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KubeletConfiguration<'a> {
    api_version: &'static str,
    kind: &'static str,
    address: &'static str,
    port: u16,
    read_only_port: u16,
    healthz_bind_address: &'static str,
    healthz_port: u16,
    tls_cert_file: String,
    tls_private_key_file: String,
    tls_min_version: &'static str,
    rotate_certificates: bool,
    #[serde(rename = "serverTLSBootstrap")]
    server_tls_bootstrap: bool,
    authentication: Authentication,
    authorization: Authorization,
    cgroup_driver: &'static str,
    container_runtime_endpoint: &'static str,
    #[serde(rename = "clusterDNS")]
    cluster_dns: [Ipv4Addr; 1],
    cluster_domain: &'static str,
    resolv_conf: &'static str,
    fail_swap_on: bool,
    /// From 1.35 on a kubelet refuses cgroup v1 unless told otherwise; set where it is needed only.
    #[serde(rename = "failCgroupV1", skip_serializing_if = "Option::is_none")]
    fail_cgroup_v1: Option<bool>,
    #[serde(rename = "oomScoreAdj", skip_serializing_if = "Option::is_none")]
    oom_score_adj: Option<i32>,
    /// How often the status is *computed*: a change, such as becoming Ready, is written at once.
    /// With the default of 10 s a node is Ready up to 10 s after everything it waits for.
    node_status_update_frequency: &'static str,
    /// How often an unchanged status is *written*. Kubernetes sets it to the frequency above when that
    /// is given; at 2 s it would make status writes the busiest traffic of a cluster. Liveness is the
    /// Lease.
    node_status_report_frequency: &'static str,
    serialize_image_pulls: bool,
    max_parallel_image_pulls: u32,
    /// 100 never deletes unused images.
    #[serde(
        rename = "imageGCHighThresholdPercent",
        skip_serializing_if = "Option::is_none"
    )]
    image_gc_high_threshold_percent: Option<u8>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    eviction_hard: BTreeMap<&'static str, &'static str>,
    /// Pods run under the runtime's default seccomp profile unless they ask otherwise.
    seccomp_default: bool,
    max_pods: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    register_with_taints: Vec<Taint<'a>>,
}

#[derive(Serialize)]
struct Authentication {
    anonymous: Enabled,
    webhook: Enabled,
    x509: X509,
}

#[derive(Serialize)]
struct Enabled {
    enabled: bool,
}

#[derive(Serialize)]
struct X509 {
    #[serde(rename = "clientCAFile")]
    client_ca_file: &'static str,
}

#[derive(Serialize)]
struct Authorization {
    mode: &'static str,
}

#[derive(Serialize)]
struct Taint<'a> {
    key: &'a str,
    effect: &'a str,
}

/// The configuration file: the director's fields, replaced by those that the machine is told besides.
pub(super) fn config(cluster: &ClusterFacts, machine: &MachineFacts) -> String {
    if machine.kubelet.is_empty() {
        return yaml(&directors(cluster, machine));
    }
    let mut config =
        serde_json::to_value(directors(cluster, machine)).expect("plain values serialise to JSON");
    for (field, value) in &machine.kubelet {
        config[field] = value.clone();
    }
    yaml(&config)
}

fn directors<'a>(cluster: &ClusterFacts, machine: &MachineFacts) -> KubeletConfiguration<'a> {
    KubeletConfiguration {
        api_version: "kubelet.config.k8s.io/v1beta1",
        kind: "KubeletConfiguration",
        address: "0.0.0.0",
        port: KUBELET_PORT,
        read_only_port: 0,
        healthz_bind_address: "127.0.0.1",
        healthz_port: KUBELET_HEALTH_PORT,
        tls_cert_file: Profile::KubeletServer.certificate_path(),
        tls_private_key_file: Profile::KubeletServer.key_path(),
        tls_min_version: "VersionTLS13",
        // The director signs; nothing in the cluster does.
        rotate_certificates: false,
        server_tls_bootstrap: false,
        authentication: Authentication {
            anonymous: Enabled { enabled: false },
            webhook: Enabled { enabled: true },
            x509: X509 {
                client_ca_file: KUBERNETES_CA_PATH,
            },
        },
        authorization: Authorization { mode: "Webhook" },
        cgroup_driver: "systemd",
        container_runtime_endpoint: "unix:///run/containerd/containerd.sock",
        cluster_dns: [cluster.dns_service_address()],
        cluster_domain: CLUSTER_DOMAIN,
        resolv_conf: "/etc/resolv.conf",
        fail_swap_on: false,
        fail_cgroup_v1: machine.host.cgroup_v1.then_some(false),
        oom_score_adj: machine.host.restrict_oom_score_adj.then_some(0),
        node_status_update_frequency: "2s",
        node_status_report_frequency: "5m",
        serialize_image_pulls: false,
        max_parallel_image_pulls: 4,
        image_gc_high_threshold_percent: machine.host.shared_disk.then_some(100),
        eviction_hard: eviction_hard(machine.host.shared_disk),
        seccomp_default: true,
        // A /24 has 254 addresses: room for as many pods again while old ones are torn down.
        max_pods: 110,
        register_with_taints: match machine.role {
            Role::ControlPlane => vec![Taint {
                key: CONTROL_PLANE_TAINT,
                effect: "NoSchedule",
            }],
            Role::Worker { .. } => Vec::new(),
        },
    }
}

/// Thresholds at which pods are evicted; empty means Kubernetes' defaults, 10 and 15 percent of the
/// disk. On a disk that is shared those would evict every pod of a machine because its host is 85 % full
/// of something else, and collect the images that the stemcell brought: absolute values instead.
fn eviction_hard(shared_disk: bool) -> BTreeMap<&'static str, &'static str> {
    if !shared_disk {
        return BTreeMap::new();
    }
    BTreeMap::from([
        ("memory.available", "100Mi"),
        ("nodefs.available", "500Mi"),
        ("nodefs.inodesFree", "10000"),
        ("imagefs.available", "500Mi"),
        ("imagefs.inodesFree", "10000"),
    ])
}

/// The flags that have no field in the configuration file.
pub(super) fn flags(machine: &MachineFacts) -> Flags {
    Flags::default()
        .set("config", CONFIG_PATH)
        .set("kubeconfig", KUBECONFIG_PATH)
        .set("hostname-override", &machine.node_name)
        .set("node-ip", machine.address)
}
