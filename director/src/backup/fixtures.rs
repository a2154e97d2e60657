//! A small backup for the tests of this room.

use windlass_common::cluster::ClusterSpec;
use windlass_common::id::{ClusterName, Digest, DirectorId, Incarnation, MachineName};
use windlass_common::step::EtcdSnapshot;

use super::cluster::{BackupReason, FORMAT, MachineEntry, Manifest};
use crate::kubernetes::pki::ClusterPki;
use crate::model::{Endpoint, Timestamp};

/// What the cluster should be.
pub(crate) fn spec() -> ClusterSpec {
    let input = serde_json::json!({ "name": "demo", "kubernetesVersion": "1.37.2" });
    let around = crate::spec::Surroundings {
        kubernetes_versions: crate::spec::KubernetesVersion::new("1.37.2")
            .into_iter()
            .collect(),
        reserved: Vec::new(),
    };
    crate::spec::parse(&input, &around).unwrap()
}

/// The manifest of a backup of this snapshot.
pub(super) fn manifest(name: &str, snapshot: &[u8]) -> Manifest {
    let machine = MachineName::new("demo-cp-0").unwrap();
    Manifest {
        format: FORMAT,
        name: name.parse().unwrap(),
        reason: BackupReason::Scheduled,
        cluster: ClusterName::new("demo").unwrap(),
        cluster_created_at: Timestamp::from_unix_ms(1),
        spec: spec(),
        endpoint: Endpoint {
            name: "demo.windlass.internal".to_owned(),
            address: [10, 77, 0, 2].into(),
            port: 6443,
        },
        stemcell: "debian12-1.37.2-0".to_owned(),
        machines: vec![MachineEntry {
            name: machine.clone(),
            incarnation: Incarnation(1),
            control_plane: true,
            address: [10, 77, 0, 3].into(),
        }],
        director: DirectorId::new("d").unwrap(),
        director_version: "0.1.0".to_owned(),
        taken_at: Timestamp::from_unix_ms(1_900_000_000_000),
        taken_from: machine,
        snapshot: EtcdSnapshot {
            name: "00000000000000000100-00000007.db".to_owned(),
            revision: 100,
            hash: 7,
            keys: 12,
            bytes: snapshot.len() as u64,
            digest: Digest::of(snapshot),
            format: "3.6.0".to_owned(),
            restored: true,
        },
    }
}

/// Secrets of a cluster, made once.
pub(super) fn secrets() -> ClusterPki {
    static SECRETS: std::sync::OnceLock<ClusterPki> = std::sync::OnceLock::new();
    let make = || {
        let cluster = ClusterName::new("demo").unwrap();
        ClusterPki::generate(&cluster, jiff::Timestamp::UNIX_EPOCH).unwrap()
    };
    SECRETS.get_or_init(make).clone()
}
