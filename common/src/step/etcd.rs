//! What a director asks of the member of etcd that runs on a control-plane machine.
//!
//! Members are told apart by their peer URL: it is the machine's address, the same through all its
//! incarnations, where ids are given by etcd and names are empty until a member has started.
//!
//! # Invariants
//! * Each action looks first and does nothing when what it leads to is so already.
//! * An action that changes who is a member changes one member, and names the others beside which it does.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::ClientFiles;
use crate::id::Digest;

/// Most members that a step names: etcd advises at most seven, a control plane has at most five.
pub const MEMBERS_MAX: usize = 16;
/// Most snapshots that a machine keeps: the disk holds a keyspace of three quarters of its size.
pub const SNAPSHOTS_KEPT_MAX: u32 = 16;

/// Acts on etcd through the member of this machine, with the `etcdctl` of the component that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Etcd {
    /// Where the machine's own member answers its clients; on loopback.
    pub address: SocketAddr,
    /// PEM bundle that the member's certificate is verified against.
    pub ca_path: String,
    /// Client certificate and key.
    pub client: ClientFiles,
    /// What to do.
    pub action: EtcdAction,
}

/// One member, as it is configured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EtcdPeer {
    /// Its name: the machine's.
    pub name: String,
    /// Where other members reach it, for example `https://10.77.0.2:2380`.
    pub url: String,
}

/// What to do with etcd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EtcdAction {
    /// Say what the cluster looks like from here: an [`EtcdReport`] as JSON, in one piece of output.
    Report,
    /// Add a member that has no vote yet. Refused while the voting members are others than `beside`: what
    /// the director knows of the cluster is not so then.
    AddLearner {
        /// Who joins.
        peer: EtcdPeer,
        /// All voting members, in any order.
        beside: Vec<EtcdPeer>,
    },
    /// Give a learner its vote, once it has caught up.
    Promote {
        /// Who.
        peer: EtcdPeer,
    },
    /// Remove a member, voting or not. Never the machine's own: another one is asked for that.
    Remove {
        /// Who.
        peer: EtcdPeer,
    },
    /// Have another member lead, if this one does: the one that has applied the most.
    MoveLeader,
    /// Rewrite the machine's own database without its holes. Its member answers nobody meanwhile.
    Defragment,
    /// Put alarms out. They go off again when their cause is still there.
    DisarmAlarms,
    /// Save the keyspace on the machine's data disk, verify what was saved, and remove older ones. Says what it
    /// is: an [`EtcdSnapshot`] as JSON, in one piece of output.
    Snapshot {
        /// How many are kept, this one included; 1 to [`SNAPSHOTS_KEPT_MAX`].
        keep: u32,
    },
}

/// What etcd looks like from one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EtcdReport {
    /// Id of the cluster, hexadecimal.
    pub cluster_id: String,
    /// Id of the member that was asked, hexadecimal.
    pub member_id: String,
    /// Its members, ordered by peer URL.
    pub members: Vec<EtcdMemberReport>,
}

impl EtcdReport {
    /// Whether the member that was asked leads.
    pub fn leads(&self) -> bool {
        self.members.iter().any(|member| {
            let leader = member.status.as_ref().is_some_and(|status| status.leader);
            leader && member.id == self.member_id
        })
    }
}

/// One member in a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EtcdMemberReport {
    /// Its id, hexadecimal.
    pub id: String,
    /// Its name; empty until it has started.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Whether it has no vote.
    pub learner: bool,
    /// Names of the alarms that are on.
    pub alarms: Vec<String>,
    /// What it says of itself; nothing when it did not answer.
    pub status: Option<EtcdStatus>,
}

/// What a member says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EtcdStatus {
    /// Version of etcd.
    pub version: String,
    /// Whether it leads.
    pub leader: bool,
    /// Size of its database, bytes.
    pub db_bytes: u64,
    /// Of that in use, bytes.
    pub db_used_bytes: u64,
    /// Raft term.
    pub raft_term: u64,
    /// Last entry of its log.
    pub raft_index: u64,
    /// Last entry that it has applied.
    pub raft_applied: u64,
    /// What it finds wrong with itself, in its own words.
    pub errors: Vec<String>,
}

/// A snapshot of the keyspace that was verified: its structure, and the digest that etcd wrote behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EtcdSnapshot {
    /// Name of its file.
    pub name: String,
    /// Revision of the keyspace.
    pub revision: u64,
    /// Over all keys and values, as `etcdutl snapshot status` says it.
    pub hash: u32,
    /// Keys, all their kept revisions counted.
    pub keys: u64,
    /// Size of the file, bytes.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Version of etcd whose format it has; empty when it does not say so.
    #[serde(default)]
    pub format: String,
    /// Whether it was restored as a trial and held the same. Not where the machine lacked the room for that, nor by
    /// agents that know of no trial.
    #[serde(default)]
    pub restored: bool,
}
