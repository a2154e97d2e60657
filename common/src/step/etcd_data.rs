//! What a director asks about the data of the member of etcd of a control-plane machine, whether or not etcd
//! answers: looking at it, and putting other data into its place.
//!
//! # Invariants
//! * Data that a member had is moved aside, and stays on its disk until the next restore moves other data there.
//! * Data that was put into place carries the id of the restore that put it there: the same restore again does
//!   nothing.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{ClientFiles, EtcdPeer};
use crate::id::Digest;

/// Longest id of a restore, bytes: a task's.
pub const RESTORE_ID_MAX: usize = 64;
/// Most restores without an end that a step names: more of them in a row are an operator's to look at.
pub const UNFINISHED_RESTORES_MAX: usize = 32;

/// Acts on the data of this machine's member of etcd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdData {
    /// Where the machine's own member answers its clients; on loopback.
    pub address: SocketAddr,
    /// PEM bundle that the member's certificate is verified against.
    pub ca_path: String,
    /// Client certificate and key.
    pub client: ClientFiles,
    /// What to do.
    pub action: EtcdDataAction,
}

/// What to do with a member's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EtcdDataAction {
    /// Say how far the data goes: an [`EtcdDataReport`] as JSON, in one piece of output. Needs no majority, and
    /// no member that runs.
    Inspect,
    /// Move the data aside: the member begins without any. Its unit is stopped before.
    SetAside(EtcdRestoreId),
    /// Put restored data into the place of what there is, which is moved aside. Its unit is stopped before.
    Restore(EtcdRestore),
}

/// Which restore puts data into place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdRestoreId {
    /// Its id, the same on all members and on every attempt.
    pub id: String,
    /// Earlier restores that never came to their end: what they put into place was of use to nobody, and is
    /// removed instead of moved aside, so that what was before them is kept.
    pub unfinished: Vec<String>,
}

/// How a member's data is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdRestore {
    /// Which restore this is.
    pub restore: EtcdRestoreId,
    /// What the data is made from.
    pub source: EtcdSource,
    /// The member, one of `members`.
    pub member: EtcdPeer,
    /// All members that etcd begins with.
    pub members: Vec<EtcdPeer>,
    /// Goes into the ids of cluster and members: data of before has other ones, and is not talked to.
    pub token: String,
    /// How much is added to the revision, so that none that was given out is given out again.
    pub bump_revision: u64,
}

/// What a member's data is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EtcdSource {
    /// A snapshot, an artifact.
    Snapshot {
        /// Which.
        digest: Digest,
        /// Its length in bytes.
        bytes: u64,
    },
    /// The machine's own data as it is.
    Own,
}

/// How far the data of a member goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EtcdDataReport {
    /// Whether the member answered; otherwise its data was looked at without it, or there is none.
    pub running: bool,
    /// Revision of the keyspace: everything up to it is there.
    pub revision: Option<u64>,
    /// Raft term; said by a member that answers.
    pub raft_term: Option<u64>,
    /// Last entry of the log that is known to be agreed on; said by a member that answers.
    pub raft_index: Option<u64>,
    /// Whether it sees a leader: etcd has a majority then. Said by a member that answers.
    pub leader: Option<bool>,
    /// Size of the database, bytes.
    pub db_bytes: Option<u64>,
    /// When the log was written to last, Unix milliseconds.
    pub last_write_ms: Option<u64>,
    /// Which restore put the data there.
    pub restored: Option<String>,
}
