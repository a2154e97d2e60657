//! Backups of clusters: ordered or due, taken, verified, put in their place, and removed when they are old.
//!
//! A reconciler: each round looks at the records anew. What is begun is written down before; a director that
//! starts again goes on with it under the same name.
//!
//! # Invariants
//! * One backup of a cluster at a time, and [`AT_A_TIME`] of all.
//! * A backup has its name once its archive was read from beginning to end with the director's own key; older ones
//!   are removed after that, never before.
//! * The snapshot holds every write that was acknowledged before it was asked for: it comes from a member that has
//!   applied all that any member had.
//!
//! # After a crash
//! The same backup is begun anew, or found in its place.
//!
//! # Not here
//! What is due and what is kept ([`crate::backup::schedule`]), what an archive is ([`crate::backup::cluster`]).

mod orders;
mod taking;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use utoipa::ToSchema;
use windlass_common::cluster::BackupSpec;
use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::id::{ClusterName, MachineName};

use super::draft::random_u32;
use super::{Inner, ServiceError, rounds};
use crate::backup::cluster::{ArchiveError, BackupName, BackupReason};
use crate::backup::envelope::{EnvelopeError, Identity, Recipient};
use crate::backup::record::{BackupRecord, BackupRun};
use crate::backup::repository::{BackupEntry, Repository, RepositoryError};
use crate::backup::schedule::{Due, due};
use crate::config::{BackupConfig, DataDir};
use crate::gateway::DeliveryError;
use crate::model::{Cluster, ClusterPhase, Timestamp};
use crate::store::{Commit, StoreError};

/// Between two rounds.
const PERIOD: Duration = Duration::from_secs(3);
/// Between two looks for what unfinished uploads left in an object store.
const SWEEP_PERIOD: Duration = Duration::from_secs(6 * 3600);
/// Backups under way at a time: each reads and writes the director's disk at its full speed.
const AT_A_TIME: usize = 2;
/// Who orders what is due.
const DIRECTOR: &str = "director";

/// Backups of one cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterBackups {
    /// How often it is backed up, and how many backups are kept; nothing when the cluster is gone.
    #[schema(value_type = Option<crate::spec::RawBackup>)]
    pub policy: Option<BackupSpec>,
    /// The one under way, and how the last ones ended.
    pub state: Option<BackupRecord>,
    /// Where they are: a directory of the director's host, or `s3://BUCKET/PREFIX at ENDPOINT`.
    #[serde(default)]
    pub location: String,
    /// When the next is due.
    pub due_at: Option<Timestamp>,
    /// Why a person has to act on the cluster's etcd.
    pub etcd_problem: Option<String>,
    /// Why those there are cannot be listed; none is then.
    #[serde(default)]
    pub unlisted: Option<String>,
    /// Those there are, newest first.
    pub items: Vec<BackupEntry>,
}

/// What all clusters' backups come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BackupCounts {
    /// Clusters whose last backup failed.
    pub failing: u64,
    /// Clusters whose last backup is older than two intervals.
    pub overdue: u64,
}

/// The backups of this director.
#[derive(Debug)]
pub(super) struct Backups {
    repository: Arc<dyn Repository>,
    identity: Identity,
    recipients: Vec<Recipient>,
    /// Clusters of which this process has one under way.
    under_way: Mutex<BTreeSet<ClusterName>>,
    places: Semaphore,
    failing: AtomicU64,
    overdue: AtomicU64,
}

impl Backups {
    /// Those of a data directory; makes the director's key where there is none.
    pub(super) fn open(
        data: &DataDir,
        config: &BackupConfig,
        repository: Arc<dyn Repository>,
    ) -> Result<Self, EnvelopeError> {
        let identity = Identity::load_or_create(&data.backup_key())?;
        let mut recipients = vec![identity.recipient()];
        recipients.extend(config.recipients.iter().cloned());
        Ok(Self {
            repository,
            identity,
            recipients,
            under_way: Mutex::default(),
            places: Semaphore::new(AT_A_TIME),
            failing: AtomicU64::new(0),
            overdue: AtomicU64::new(0),
        })
    }

    fn counts(&self) -> BackupCounts {
        BackupCounts {
            failing: self.failing.load(Ordering::Relaxed),
            overdue: self.overdue.load(Ordering::Relaxed),
        }
    }

    /// Claims a cluster for this process, until the claim is dropped.
    fn claim(self: &Arc<Self>, name: &ClusterName) -> Option<Claim> {
        let mut names = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        names.insert(name.clone()).then(|| Claim {
            backups: self.clone(),
            name: name.clone(),
        })
    }
}

/// That this process has a backup of a cluster under way.
struct Claim {
    backups: Arc<Backups>,
    name: ClusterName,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let names = self.backups.under_way.lock();
        names
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.name);
    }
}

/// Why a backup was not made. `Display` never repeats the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The store cannot be read.
    #[error("the store cannot be read")]
    Store(#[from] StoreError),
    /// What the cluster is made of cannot be read.
    #[error("what the cluster is made of cannot be read")]
    Cluster(#[source] Box<ServiceError>),
    /// Nobody can give a snapshot.
    #[error("no control-plane machine of cluster {cluster} gives a snapshot of etcd: {why}")]
    NoMember {
        /// Which cluster.
        cluster: ClusterName,
        /// What each said.
        why: String,
    },
    /// The snapshot did not arrive.
    #[error("snapshot {snapshot} did not arrive from machine {machine}: {message}")]
    Sent {
        /// Which machine.
        machine: MachineName,
        /// Which snapshot.
        snapshot: String,
        /// Why.
        message: String,
    },
    /// The link did not carry it.
    #[error("the snapshot did not arrive")]
    Delivery(#[from] DeliveryError),
    /// It was not sealed, or does not open.
    #[error("the archive was not made")]
    Archive(#[from] ArchiveError),
    /// The repository did not take it.
    #[error("the archive was not put in its place")]
    Repository(#[from] RepositoryError),
    /// The repository has it, and it cannot be read.
    #[error("the archive is not read")]
    Unread(#[source] RepositoryError),
    /// A task of the runtime was lost.
    #[error("the archive was not made: its thread was lost")]
    Lost(#[source] tokio::task::JoinError),
}

impl BackupError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Store(source) => source.class(),
            Self::Cluster(source) => source.class(),
            Self::NoMember { .. } | Self::Sent { .. } => ErrorClass::Retry,
            Self::Delivery(source) => source.class(),
            Self::Archive(source) => source.class(),
            Self::Repository(source) | Self::Unread(source) => source.class(),
            Self::Lost(_) => ErrorClass::Bug,
        }
    }
}

/// Starts the rounds, once nothing unfinished is left on this host; they end with the director.
pub(super) async fn start(director: &Arc<Inner>) {
    if let Err(error) = director.backups.repository.tidy().await {
        tracing::warn!(error = %ErrorChain(&error), "what was unfinished cannot be removed");
    }
    let weak = || Arc::downgrade(director);
    tokio::spawn(rounds::every(weak(), SWEEP_PERIOD, sweep));
    tokio::spawn(rounds::every(weak(), PERIOD, look));
}

/// Removes what uploads left that were cut off.
async fn sweep(director: &Arc<Inner>) {
    let repository = &director.backups.repository;
    let place = repository.location();
    match repository.sweep().await {
        Ok(0) => {}
        Ok(count) => tracing::info!(place, count, "what unfinished uploads left was removed"),
        Err(error) => {
            let (class, error) = (error.class(), ErrorChain(&error));
            tracing::warn!(place, ?class, %error, "the place of backups cannot be used");
        }
    }
}

async fn look(director: &Arc<Inner>) {
    if let Err(error) = round(director).await {
        tracing::warn!(error = %ErrorChain(&error), "backups cannot be looked at");
    }
}

async fn round(director: &Arc<Inner>) -> Result<(), StoreError> {
    let clusters: Vec<Cluster> = director.records.list().await?;
    let records: Vec<BackupRecord> = director.records.list().await?;
    let now = Timestamp::now();
    let mut counts = BackupCounts::default();
    for cluster in clusters.iter().filter(|cluster| serves(cluster)) {
        let name = &cluster.spec.name;
        let known = records.iter().find(|record| record.cluster == *name);
        let record = match known {
            Some(record) => record.clone(),
            None => BackupRecord::new(name.clone()),
        };
        counts.failing += u64::from(record.failed.is_some());
        counts.overdue += u64::from(is_overdue(cluster, &record, now));
        let Some(claim) = director.backups.claim(name) else {
            continue;
        };
        match &record.running {
            Some(run) => go_on(director, claim, run.clone()),
            None if due(cluster.spec.backup, &record, cluster.task.is_some(), now) == Due::Now => {
                begin(director, claim, record).await?;
            }
            None => {}
        }
    }
    let backups = &director.backups;
    backups.failing.store(counts.failing, Ordering::Relaxed);
    backups.overdue.store(counts.overdue, Ordering::Relaxed);
    for record in &records {
        let gone = !clusters.iter().any(|of| of.spec.name == record.cluster);
        if gone && let Some(_claim) = director.backups.claim(&record.cluster) {
            let mut commit = Commit::default();
            commit.delete(record);
            director.records.commit(commit).await?;
        }
    }
    Ok(())
}

fn serves(cluster: &Cluster) -> bool {
    if cluster.awaits_restore().is_some() {
        return false;
    }
    match cluster.phase {
        ClusterPhase::Ready | ClusterPhase::Updating | ClusterPhase::Degraded => true,
        ClusterPhase::Creating | ClusterPhase::Failed | ClusterPhase::Deleting => false,
    }
}

/// Whether its last backup is older than two intervals; where there is none, whether the cluster is.
fn is_overdue(cluster: &Cluster, record: &BackupRecord, now: Timestamp) -> bool {
    let interval_ms = u64::from(cluster.spec.backup.every_minutes) * 60_000;
    let last = record.succeeded.as_ref().map(|last| last.taken_at);
    let age_ms = now.ms_since(last.unwrap_or(cluster.created_at));
    interval_ms > 0 && age_ms > 2 * interval_ms
}

/// Writes down that one that is due is begun, and begins it.
async fn begin(
    director: &Arc<Inner>,
    claim: Claim,
    mut record: BackupRecord,
) -> Result<(), StoreError> {
    let Ok(random) = random_u32() else {
        return Ok(()); // the next round tries again
    };
    let now = Timestamp::now();
    let run = BackupRun {
        name: BackupName::new(now, random),
        reason: BackupReason::Scheduled,
        ordered_by: DIRECTOR.to_owned(),
        ordered_at: now,
    };
    record.running = Some(run.clone());
    let mut commit = Commit::default();
    commit.put(&record)?;
    match director.records.commit(commit).await {
        Ok(_) => go_on(director, claim, run),
        Err(StoreError::Conflict { .. }) => {} // an order came first
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Makes a backup that is written down, and writes down how it ended.
fn go_on(director: &Arc<Inner>, claim: Claim, run: BackupRun) {
    let director = director.clone();
    tokio::spawn(async move {
        let Ok(_place) = director.backups.places.acquire().await else {
            return; // never closed
        };
        let cluster = claim.name.clone();
        let made = director.make_backup(&cluster, &run).await;
        match &made {
            Ok(success) => {
                tracing::info!(%cluster, backup = %run.name, took_ms = success.took_ms, "a backup is in its place");
            }
            Err(error) => {
                let class = error.class();
                tracing::warn!(%cluster, backup = %run.name, ?class, error = %ErrorChain(error), "a backup failed");
            }
        }
        if let Err(error) = director.end_backup(&cluster, &run, made).await {
            tracing::warn!(%cluster, error = %ErrorChain(&error), "cannot write down how a backup ended");
        }
        drop(claim);
    });
}
