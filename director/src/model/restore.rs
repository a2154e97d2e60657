//! What a restore of a cluster's etcd makes it from, and what that costs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::{Digest, MachineName};

use super::Timestamp;

/// What etcd is made from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "from")]
pub enum RestoreSource {
    /// A snapshot that the director has.
    Snapshot {
        /// Its digest.
        #[schema(value_type = String)]
        digest: Digest,
    },
    /// The data of the member itself.
    Member,
}

/// What a restore is expected to cost: a forecast, which the hash of a plan does not cover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreForecast {
    /// What etcd is made from, for people.
    pub source: String,
    /// Revision of the keyspace that etcd has afterwards, before it is raised; not known of every snapshot.
    pub revision: Option<u64>,
    /// When that was the keyspace.
    pub taken_at: Option<Timestamp>,
    /// What is lost, one line each; never empty.
    pub losses: Vec<String>,
    /// The members, the one that goes furthest first.
    pub members: Vec<MemberRank>,
}

/// How far the data of one member goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberRank {
    /// Its machine.
    #[schema(value_type = String)]
    pub machine: MachineName,
    /// What becomes of its data.
    pub fate: MemberFate,
    /// Last entry of its log that is known to be agreed on; said by a member that answers.
    pub raft_index: Option<u64>,
    /// Its raft term; said by a member that answers.
    pub raft_term: Option<u64>,
    /// Revision of its keyspace.
    pub revision: Option<u64>,
    /// Size of its database, bytes.
    pub db_bytes: Option<u64>,
    /// When its log was written to last.
    pub last_write_at: Option<Timestamp>,
    /// Why nothing of it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What becomes of a member's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum MemberFate {
    /// etcd begins with it: its data is made anew, and what it had is kept beside.
    Begins,
    /// Its data is set aside, and it joins again.
    Joins,
    /// It cannot be reached: it is proven off, its machine made anew, and it joins again.
    Replaced,
}

impl MemberFate {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Begins => "begins",
            Self::Joins => "joins again",
            Self::Replaced => "is replaced",
        }
    }
}
