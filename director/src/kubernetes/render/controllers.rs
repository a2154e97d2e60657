//! Controller manager and scheduler: flags only.

use super::super::facts::{ClusterFacts, MachineFacts};
use super::super::pki::{NO_FRONT_PROXY, Profile};
use super::super::{CONTROLLER_MANAGER_PORT, SCHEDULER_PORT};
use super::flags::{Flags, emulation};
use super::{FRONT_PROXY_CA_PATH, KUBERNETES_CA_PATH, SERVICE_ACCOUNT_KEY_PATH};

/// Kubeconfig of the controller manager.
pub(super) const CONTROLLER_MANAGER_KUBECONFIG_PATH: &str =
    "/etc/kubernetes/kube-controller-manager.kubeconfig";
/// Kubeconfig of the scheduler.
pub(super) const SCHEDULER_KUBECONFIG_PATH: &str = "/etc/kubernetes/kube-scheduler.kubeconfig";

/// Flags of the controller manager.
///
/// No signing key: certificates come from the director, so the controllers that approve and sign
/// requests are off. No pod networks: the director assigns them.
pub(super) fn controller_manager(cluster: &ClusterFacts, machine: &MachineFacts) -> Flags {
    common(
        (cluster, machine),
        Profile::ControllerManager,
        CONTROLLER_MANAGER_KUBECONFIG_PATH,
        CONTROLLER_MANAGER_PORT,
    )
    .set(
        "controllers",
        "*,-certificatesigningrequest-approving-controller,\
         -certificatesigningrequest-signing-controller",
    )
    .set("allocate-node-cidrs", false)
    .set("root-ca-file", KUBERNETES_CA_PATH)
    .set("service-account-private-key-file", SERVICE_ACCOUNT_KEY_PATH)
    .set("use-service-account-credentials", true)
    // Each of some forty controllers asks for its account and a token before the first of them runs:
    // at the default of 20 requests a second that takes 5 s, and no pod is made before.
    .set("kube-api-qps", 100)
    .set("kube-api-burst", 200)
}

/// Flags of the scheduler.
pub(super) fn scheduler(cluster: &ClusterFacts, machine: &MachineFacts) -> Flags {
    common(
        (cluster, machine),
        Profile::Scheduler,
        SCHEDULER_KUBECONFIG_PATH,
        SCHEDULER_PORT,
    )
}

fn common(
    (cluster, machine): (&ClusterFacts, &MachineFacts),
    profile: Profile,
    kubeconfig: &str,
    port: u16,
) -> Flags {
    emulation(Flags::default(), machine)
        .set("kubeconfig", kubeconfig)
        .set("authentication-kubeconfig", kubeconfig)
        .set("authorization-kubeconfig", kubeconfig)
        .set("client-ca-file", KUBERNETES_CA_PATH)
        .set("requestheader-client-ca-file", FRONT_PROXY_CA_PATH)
        .set("requestheader-allowed-names", NO_FRONT_PROXY)
        .set("bind-address", "127.0.0.1")
        .set("secure-port", port)
        .set("tls-cert-file", profile.certificate_path())
        .set("tls-private-key-file", profile.key_path())
        .set("tls-min-version", "VersionTLS13")
        // With one control-plane machine there is nobody to elect against, and a restart would wait
        // for its own lease of 15 s to run out.
        .set("leader-elect", cluster.control_planes().len() > 1)
        .set("profiling", false)
}
