//! etcd: one member a control-plane machine, configured by file.

use serde::Serialize;
use windlass_common::step::EtcdPeer;

use super::super::facts::{ClusterFacts, MachineFacts};
use super::super::pki::{ETCD_PEER_NAME, Profile};
use super::super::{ETCD_CLIENT_PORT, ETCD_PEER_PORT};
use super::flags::Flags;
use super::{ETCD_CA_PATH, ETCD_MOUNT_PATH, yaml};

/// Its configuration file.
pub(super) const CONFIG_PATH: &str = "/etc/etcd/etcd.yaml";

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct EtcdConfig<'a> {
    /// The machine's name, the same through all its incarnations: its data disk makes it the same member.
    name: &'a str,
    data_dir: String,
    listen_client_urls: String,
    advertise_client_urls: String,
    listen_peer_urls: String,
    initial_advertise_peer_urls: String,
    initial_cluster: String,
    initial_cluster_state: &'static str,
    /// Members of two clusters never talk to each other by mistake.
    initial_cluster_token: &'a str,
    strict_reconfig_check: bool,
    /// Milliseconds.
    heartbeat_interval: u32,
    /// Milliseconds.
    election_timeout: u32,
    client_transport_security: TransportSecurity,
    peer_transport_security: TransportSecurity,
    tls_min_version: &'static str,
    /// The JSON gateway would need the server's certificate to be a client's as well; nobody uses it.
    enable_grpc_gateway: bool,
    quota_backend_bytes: u64,
    log_level: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct TransportSecurity {
    cert_file: String,
    key_file: String,
    client_cert_auth: bool,
    trusted_ca_file: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allowed_cn: Vec<&'static str>,
}

/// 8 GiB, the largest that etcd recommends, or three quarters of the disk, so that a full keyspace is
/// an alarm that can be cleared and never a full disk.
pub(super) fn quota_bytes(disk_mib: u32) -> u64 {
    const MAX: u64 = 8 << 30;
    (u64::from(disk_mib) << 20)
        .saturating_mul(3)
        .div_euclid(4)
        .clamp(1, MAX)
}

/// The configuration file.
pub(super) fn config(cluster: &ClusterFacts, machine: &MachineFacts) -> String {
    let url = |address, port| format!("https://{address}:{port}");
    let client = url(machine.address, ETCD_CLIENT_PORT);
    let peer = url(machine.address, ETCD_PEER_PORT);
    let member = |m: &&MachineFacts| format!("{}={}", m.name, url(m.address, ETCD_PEER_PORT));
    let members: Vec<String> = cluster.etcd_members(machine).iter().map(member).collect();
    // Read before there is data, and never again.
    let (initial_cluster, initial_cluster_state) = match &machine.etcd.initial_cluster {
        Some(joined) => (joined.clone(), "existing"),
        None => (members.join(","), "new"),
    };
    // Defaults between machines. A single member elects itself, but only after up to one election
    // timeout; with nobody to hear heartbeats, a short one costs nothing and saves half a second of
    // every start. One that is about to be left alone is not alone yet.
    let (heartbeat_interval, election_timeout) = if cluster.one_member() {
        (25, 250)
    } else {
        (100, 1000)
    };
    let security = |profile: Profile, allowed_cn| TransportSecurity {
        cert_file: profile.certificate_path(),
        key_file: profile.key_path(),
        client_cert_auth: true,
        trusted_ca_file: ETCD_CA_PATH,
        allowed_cn,
    };
    yaml(&EtcdConfig {
        name: machine.name.as_str(),
        // Below the mount point, whose `lost+found` is not etcd's.
        data_dir: format!("{ETCD_MOUNT_PATH}/data"),
        listen_client_urls: format!("https://127.0.0.1:{ETCD_CLIENT_PORT},{client}"),
        advertise_client_urls: client,
        listen_peer_urls: peer.clone(),
        initial_advertise_peer_urls: peer,
        initial_cluster,
        initial_cluster_state,
        initial_cluster_token: cluster.spec.name.as_str(),
        strict_reconfig_check: true,
        heartbeat_interval,
        election_timeout,
        client_transport_security: security(Profile::EtcdServer, Vec::new()),
        peer_transport_security: security(Profile::EtcdPeer, vec![ETCD_PEER_NAME]),
        tls_min_version: "TLS1.3",
        enable_grpc_gateway: false,
        quota_backend_bytes: quota_bytes(cluster.spec.control_plane.size.disk_mib),
        log_level: "info",
    })
}

/// A machine's member as other members know it.
pub(super) fn peer(machine: &MachineFacts) -> EtcdPeer {
    EtcdPeer {
        name: machine.name.to_string(),
        url: format!("https://{}:{ETCD_PEER_PORT}", machine.address),
    }
}

/// Its flags.
pub(super) fn flags() -> Flags {
    Flags::default().set("config-file", CONFIG_PATH)
}
