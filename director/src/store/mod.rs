//! Durable state of the director: versioned entries with compare-and-swap and watch.
//!
//! [`Store`] is what any backend offers: entries `(kind, name) → body`, each with the revision of the
//! commit that wrote it, and commits that change several entries at once or none. [`Records`] is the typed
//! layer above it, the same for every backend: records as JSON, secrets sealed.
//!
//! # Invariants
//! * A commit is on disk (file synced) when the call returns; either all its writes are there or none.
//! * Revisions grow with every commit and are never used twice.
//! * A write that expects another revision than the stored one fails the whole commit.
//! * Bodies of [`Kind::Secret`] reach a backend sealed only.
//!
//! # After a crash
//! The last commit that returned is there; one that did not return is there as a whole or not at all.
//!
//! # Not here
//! What the records mean (model), and who may change them (service, rollout).

mod known;
mod lock;
#[cfg(test)]
pub(crate) mod memory;
mod records;
mod seal;
mod sqlite;
#[cfg(test)]
mod suite;
mod token;

use std::fmt;
use std::path::PathBuf;

use futures_util::future::BoxFuture;
use tokio::sync::broadcast;
use windlass_common::error::ErrorClass;

use crate::model::Revision;

pub use lock::{DirectoryLock, LockError};
pub use records::{Act, Commit, Record, Records};
pub use seal::{SealError, Sealer};
pub use sqlite::{Inventory, Sqlite, inspect, snapshot};
pub use token::Token;

/// Changes a watcher may fall behind before it has to read again: a create of 100 machines makes about
/// 1 500 commits; a watcher that is a thousand behind is better off reading anew.
pub const WATCH_QUEUE: usize = 1024;

/// What every call of a store returns.
pub type StoreFuture<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// A backend.
pub trait Store: Send + Sync + fmt::Debug {
    /// The entry of this name, if there is one.
    fn get<'a>(&'a self, kind: Kind, name: &'a str) -> StoreFuture<'a, Option<Entry>>;

    /// All entries of a kind whose name starts with `prefix`, by name.
    fn list<'a>(&'a self, kind: Kind, prefix: &'a str) -> StoreFuture<'a, Vec<Entry>>;

    /// The last `limit` entries of a kind, last name first.
    fn newest(&self, kind: Kind, limit: u32) -> StoreFuture<'_, Vec<Entry>>;

    /// Makes all writes or none; returns the revision they have. Once called it is carried out, also when
    /// the future is dropped.
    fn commit(&self, writes: Vec<Write>) -> StoreFuture<'_, Revision>;

    /// Every change from now on; a receiver that lags has to read again.
    fn watch(&self) -> broadcast::Receiver<Change>;
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Facts about the store itself.
    Meta,
    /// Clusters.
    Cluster,
    /// Machines.
    Machine,
    /// Addresses in use, by address.
    Address,
    /// Tasks, without their steps.
    Task,
    /// Steps that were touched, by `<task>/<step key>`.
    Step,
    /// Sealed secrets.
    Secret,
    /// Certificates issued to a machine's components, by machine.
    Certificates,
    /// Enrollment tokens, by digest.
    Token,
    /// The audit log, by sequence number.
    Audit,
    /// Operators, by name.
    Operator,
    /// Who has followed a rotation of the CA, while it lasts: `machine/<name>` and `operator/<name>`.
    Trust,
    /// Campaigns over many clusters, by id.
    Campaign,
    /// What is known of machines that do not or did not work, by machine.
    Case,
    /// Backups under way and how the last ones ended, by cluster.
    Backup,
    /// Times in which no cluster is changed, by name.
    Freeze,
    /// What a cluster's etcd refuses, by cluster.
    Revocations,
}

impl Kind {
    /// Name in the backend; never changed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Cluster => "cluster",
            Self::Machine => "machine",
            Self::Address => "address",
            Self::Task => "task",
            Self::Step => "step",
            Self::Secret => "secret",
            Self::Certificates => "certificates",
            Self::Token => "token",
            Self::Audit => "audit",
            Self::Operator => "operator",
            Self::Trust => "trust",
            Self::Campaign => "campaign",
            Self::Case => "case",
            Self::Backup => "backup",
            Self::Freeze => "freeze",
            Self::Revocations => "revocations",
        }
    }
}

/// One entry.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Revision of the commit that wrote it.
    pub revision: Revision,
    /// What it holds.
    pub body: Vec<u8>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}@{} ({} bytes)",
            self.name,
            self.revision,
            self.body.len()
        )
    }
}

/// One write of a commit.
#[derive(Clone, PartialEq, Eq)]
pub struct Write {
    /// What it writes.
    pub kind: Kind,
    /// Which.
    pub name: String,
    /// What has to be there now.
    pub expect: Expect,
    /// The new body; `None` deletes.
    pub body: Option<Vec<u8>>,
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.body.is_some() { "put" } else { "delete" };
        write!(
            f,
            "{verb} {}/{} if {:?}",
            self.kind.as_str(),
            self.name,
            self.expect
        )
    }
}

/// What a write expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Anything or nothing.
    Any,
    /// Nothing.
    Absent,
    /// The entry at this revision.
    At(Revision),
}

/// An entry was written or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What.
    pub kind: Kind,
    /// Which.
    pub name: String,
    /// By which commit.
    pub revision: Revision,
}

/// Why the store did not do what was asked. `Display` never repeats the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A write expected something else; nothing of its commit was written.
    #[error("{kind} {name} changed in the meantime (expected {expected:?}); read it and try again", kind = .kind.as_str())]
    Conflict {
        /// What.
        kind: Kind,
        /// Which.
        name: String,
        /// What was expected.
        expected: Expect,
    },
    /// A newer director wrote this store.
    #[error(
        "the store {path} has schema {found}, this director understands up to {known}; \
         start the director version that wrote it, or a newer one"
    )]
    Newer {
        /// The store.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The newest schema known.
        known: u32,
    },
    /// A copy of a store is damaged.
    #[error("{path} is damaged: {verdict}; take another copy")]
    Corrupt {
        /// The copy.
        path: PathBuf,
        /// SQLite's first finding.
        verdict: String,
    },
    /// The file system or SQLite refused.
    #[error("the store could not {doing} {path}; check that the disk has space and is writable")]
    Sqlite {
        /// What was tried.
        doing: &'static str,
        /// The store.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: rusqlite::Error,
    },
    /// The thread that owns the database is gone.
    #[error("the store is closed")]
    Closed,
    /// An entry does not hold what is written into it.
    #[error("{kind} {name} in the store is damaged", kind = .kind.as_str())]
    Damaged {
        /// What.
        kind: Kind,
        /// Which.
        name: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A secret could not be sealed or opened.
    #[error("secret {name}")]
    Seal {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: SealError,
    },
}

impl StoreError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Conflict { .. } => ErrorClass::Retry,
            Self::Newer { .. }
            | Self::Corrupt { .. }
            | Self::Sqlite { .. }
            | Self::Damaged { .. }
            | Self::Seal { .. } => ErrorClass::Operator,
            Self::Closed => ErrorClass::Bug,
        }
    }
}
