//! etcd: one member a control-plane machine, configured by flags.

use windlass_common::step::EtcdPeer;

use super::super::facts::{ClusterFacts, MachineFacts};
use super::super::pki::{ETCD_PEER_NAME, Profile};
use super::super::{ETCD_CLIENT_PORT, ETCD_PEER_PORT};
use super::flags::Flags;
use super::{ETCD_CA_PATH, ETCD_CRL_PATH, ETCD_MOUNT_PATH};

/// 8 GiB, the largest that etcd recommends, or three quarters of the disk, so that a full keyspace is
/// an alarm that can be cleared and never a full disk.
pub(super) fn quota_bytes(disk_mib: u32) -> u64 {
    const MAX: u64 = 8 << 30;
    (u64::from(disk_mib) << 20)
        .saturating_mul(3)
        .div_euclid(4)
        .clamp(1, MAX)
}

/// Its flags: its configuration file knows no revocation lists, and etcd reads one or the other.
pub(super) fn flags(cluster: &ClusterFacts, machine: &MachineFacts) -> Flags {
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
    // Defaults between machines, in milliseconds. A single member elects itself, but only after up to one election
    // timeout; with nobody to hear heartbeats, a short one costs nothing and saves half a second of
    // every start. One that is about to be left alone is not alone yet.
    let (heartbeat_interval, election_timeout) = if cluster.one_member() {
        (25, 250)
    } else {
        (100, 1000)
    };
    let quota = quota_bytes(cluster.spec.control_plane.size.disk_mib);
    Flags::default()
        // The machine's name, the same through all its incarnations: its data disk makes it the same member.
        .set("name", &machine.name)
        // Below the mount point, whose `lost+found` is not etcd's.
        .set("data-dir", format!("{ETCD_MOUNT_PATH}/data"))
        .set(
            "listen-client-urls",
            format!("https://127.0.0.1:{ETCD_CLIENT_PORT},{client}"),
        )
        .set("advertise-client-urls", client)
        .set("listen-peer-urls", &peer)
        .set("initial-advertise-peer-urls", peer)
        .set("initial-cluster", initial_cluster)
        .set("initial-cluster-state", initial_cluster_state)
        // Members of two clusters never talk to each other by mistake.
        .set("initial-cluster-token", &cluster.spec.name)
        .set("strict-reconfig-check", true)
        .set("heartbeat-interval", heartbeat_interval)
        .set("election-timeout", election_timeout)
        .set("cert-file", Profile::EtcdServer.certificate_path())
        .set("key-file", Profile::EtcdServer.key_path())
        .set("client-cert-auth", true)
        .set("trusted-ca-file", ETCD_CA_PATH)
        .set("client-crl-file", ETCD_CRL_PATH)
        .set("peer-cert-file", Profile::EtcdPeer.certificate_path())
        .set("peer-key-file", Profile::EtcdPeer.key_path())
        .set("peer-client-cert-auth", true)
        .set("peer-trusted-ca-file", ETCD_CA_PATH)
        .set("peer-cert-allowed-cn", ETCD_PEER_NAME)
        .set("peer-crl-file", ETCD_CRL_PATH)
        .set("tls-min-version", "TLS1.3")
        // The JSON gateway would need the server's certificate to be a client's as well; nobody uses it.
        .set("enable-grpc-gateway", false)
        .set("quota-backend-bytes", quota)
        .set("log-level", "info")
}

/// A machine's member as other members know it.
pub(super) fn peer(machine: &MachineFacts) -> EtcdPeer {
    EtcdPeer {
        name: machine.name.to_string(),
        url: format!("https://{}:{ETCD_PEER_PORT}", machine.address),
    }
}
