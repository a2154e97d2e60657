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

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};
use utoipa::ToSchema;
use windlass_common::cluster::BackupSpec;
use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::id::{ClusterName, MachineName};
use windlass_common::step::{EtcdAction, EtcdReport, EtcdSnapshot};
use windlass_common::wire::message::Body;
use windlass_common::wire::session::{Origin, SendSnapshot, SessionEnd, SessionOutput as Output};

use super::draft::random_u32;
use super::etcd::{AskError, several};
use super::{Inner, ServiceError, ServiceResult};
use crate::backup::cluster::{
    ArchiveError, BackupName, BackupReason, FORMAT, MachineEntry, Manifest, Opened, open,
};
use crate::backup::envelope::{EnvelopeError, Identity, Recipient};
use crate::backup::making::{Pieces, make, verify};
use crate::backup::record::{BackupRecord, BackupRun, BackupSuccess};
use crate::backup::repository::{
    Archive, ArchiveFacts, BackupEntry, Directory, Repository, RepositoryError,
};
use crate::backup::schedule::{Due, due, surplus};
use crate::config::{BackupConfig, DataDir};
use crate::gateway::DeliveryError;
use crate::kubernetes::pki::ClusterPki;
use crate::model::{Caller, Cluster, ClusterPhase, Machine, Timestamp};
use crate::rollout::world::SNAPSHOTS_KEPT;
use crate::store::{Act, Commit, StoreError};

/// Between two rounds.
const PERIOD: Duration = Duration::from_secs(3);
/// Backups under way at a time: each reads and writes the director's disk at its full speed.
const AT_A_TIME: usize = 2;
/// How long the first control-plane machine may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// How long a machine may take for its snapshot: as long as its agent gives etcd, and as long to verify it.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(900);
/// Longest silence of a machine that sends its snapshot.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How often the members are looked at until one has applied what all had, before the leader is taken.
const LOOKS: u32 = 5;
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
    /// When the next is due.
    pub due_at: Option<Timestamp>,
    /// Why a person has to act on the cluster's etcd.
    pub etcd_problem: Option<String>,
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
    pub(super) fn open(data: &DataDir, config: &BackupConfig) -> Result<Self, EnvelopeError> {
        let identity = Identity::load_or_create(&data.backup_key())?;
        let mut recipients = vec![identity.recipient()];
        recipients.extend(config.recipients.iter().cloned());
        Ok(Self {
            repository: Arc::new(Directory::new(config.directory.clone())),
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
            Self::Repository(source) => source.class(),
            Self::Lost(_) => ErrorClass::Bug,
        }
    }
}

/// Starts the rounds; they end with the director.
pub(super) fn start(director: Weak<Inner>) {
    tokio::spawn(async move {
        if let Some(director) = director.upgrade()
            && let Err(error) = director.backups.repository.tidy().await
        {
            tracing::warn!(error = %ErrorChain(&error), "what was unfinished cannot be removed");
        }
        let mut rounds = interval(PERIOD);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            let Some(director) = director.upgrade() else {
                return;
            };
            // On hold its records are not to be trusted.
            if director.hold.is_on() {
                continue;
            }
            if let Err(error) = round(&director).await {
                tracing::warn!(error = %ErrorChain(&error), "backups cannot be looked at");
            }
        }
    });
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

impl Inner {
    /// Orders a backup.
    pub(super) async fn order_backup(
        &self,
        name: &ClusterName,
        caller: &Caller,
    ) -> ServiceResult<BackupRecord> {
        let cluster = self.cluster(name).await?;
        if !serves(&cluster) {
            let message = format!(
                "cluster {name} is {} and has no etcd that could be backed up",
                cluster.phase
            );
            return Err(ServiceError::Conflict { message });
        }
        let found: Option<BackupRecord> = self.records.get(name.as_str()).await?;
        let mut record = found.unwrap_or_else(|| BackupRecord::new(name.clone()));
        if let Some(run) = &record.running {
            let message = format!(
                "backup {} of cluster {name} is under way; wait for it, `windlass cluster backups list {name}` \
                 shows it",
                run.name
            );
            return Err(ServiceError::Conflict { message });
        }
        let now = Timestamp::now();
        let run = BackupRun {
            name: BackupName::new(now, random_u32()?),
            reason: BackupReason::Ordered,
            ordered_by: caller.operator.clone(),
            ordered_at: now,
        };
        let act = Act {
            action: "cluster.backup",
            subject: &format!("cluster/{name}"),
            detail: run.name.as_str(),
            outcome: "",
        };
        let mut commit = Commit::default();
        self.records.audit_caller(&mut commit, caller, act);
        record.running = Some(run);
        commit.put(&record)?;
        record.revision = self.records.commit(commit).await?;
        Ok(record)
    }

    /// The backups of a cluster, also of one that is gone.
    pub(super) async fn backups(&self, name: &ClusterName) -> ServiceResult<ClusterBackups> {
        let cluster: Option<Cluster> = self.records.get(name.as_str()).await?;
        let state: Option<BackupRecord> = self.records.get(name.as_str()).await?;
        let items = self.listed(name).await?;
        if cluster.is_none() && items.is_empty() {
            self.cluster(name).await?;
        }
        let now = Timestamp::now();
        let due_at = cluster.as_ref().and_then(|cluster| {
            let none = BackupRecord::new(name.clone());
            let record = state.as_ref().unwrap_or(&none);
            match due(cluster.spec.backup, record, cluster.task.is_some(), now) {
                Due::Never => None,
                Due::At(at) => Some(at),
                Due::Now => Some(now),
            }
        });
        Ok(ClusterBackups {
            policy: cluster.map(|cluster| cluster.spec.backup),
            state,
            due_at,
            etcd_problem: self.care.problem(name),
            items,
        })
    }

    /// One backup.
    pub(super) async fn backup(
        &self,
        cluster: &ClusterName,
        name: &BackupName,
    ) -> ServiceResult<BackupEntry> {
        Ok(self.archive(cluster, name).await?.entry)
    }

    /// The archive of a backup.
    pub(super) async fn backup_archive(
        &self,
        cluster: &ClusterName,
        name: &BackupName,
        caller: &Caller,
    ) -> ServiceResult<Archive> {
        let archive = self.archive(cluster, name).await?;
        let act = Act {
            action: "cluster.backup.fetch",
            subject: &format!("cluster/{cluster}"),
            detail: name.as_str(),
            outcome: "",
        };
        self.note(caller, act).await?;
        Ok(archive)
    }

    /// Deletes a backup by name.
    pub(super) async fn delete_backup(
        &self,
        cluster: &ClusterName,
        name: &BackupName,
        caller: &Caller,
    ) -> ServiceResult<BackupEntry> {
        let entry = self.backup(cluster, name).await?;
        let act = Act {
            action: "cluster.backup.delete",
            subject: &format!("cluster/{cluster}"),
            detail: name.as_str(),
            outcome: "",
        };
        self.note(caller, act).await?;
        let deleted = self.backups.repository.delete(cluster, name).await;
        deleted.map_err(kept)?;
        Ok(entry)
    }

    /// What all clusters' backups come to.
    pub(super) fn backup_counts(&self) -> BackupCounts {
        self.backups.counts()
    }

    async fn listed(&self, cluster: &ClusterName) -> ServiceResult<Vec<BackupEntry>> {
        self.backups.repository.list(cluster).await.map_err(kept)
    }

    /// Opens a backup and writes its snapshot to a file of its own, which the caller removes.
    pub(super) async fn open_backup(
        &self,
        cluster: &ClusterName,
        name: &BackupName,
    ) -> ServiceResult<Opened> {
        let mut archive = self.archive(cluster, name).await?;
        let place = self.backups.repository.unfinished().await.map_err(kept)?;
        let place = place.join(format!("restore-{:08x}", random_u32()?));
        let (sealed, snapshot) = (place.with_extension("age"), place.with_extension("db"));
        let identity = self.backups.identity.clone();
        let copied = async {
            let mut file = tokio::fs::File::create(&sealed).await?;
            tokio::io::copy(&mut archive.from, &mut file).await?;
            file.sync_all().await
        };
        let opened = match copied.await {
            Ok(()) => {
                let from = sealed.clone();
                blocking(move || open(&from, &identity, &snapshot)).await
            }
            Err(source) => Err(BackupError::Archive(ArchiveError::Io {
                doing: "copy the archive",
                source,
            })),
        };
        // What is left is removed at the next start.
        let _ = tokio::fs::remove_file(&sealed).await;
        opened.map_err(|error| {
            let what = format!("backup {name} of cluster {cluster} cannot be opened");
            ServiceError::of(error.class(), &what, error)
        })
    }

    async fn archive(&self, cluster: &ClusterName, name: &BackupName) -> ServiceResult<Archive> {
        let found = self.backups.repository.open(cluster, name).await;
        found.map_err(kept)?.ok_or_else(|| ServiceError::NotFound {
            kind: "cluster backups",
            name: name.to_string(),
        })
    }

    /// Writes down how a backup ended.
    async fn end_backup(
        &self,
        cluster: &ClusterName,
        run: &BackupRun,
        made: Result<BackupSuccess, BackupError>,
    ) -> Result<(), StoreError> {
        let Some(mut record) = self.records.get::<BackupRecord>(cluster.as_str()).await? else {
            return Ok(()); // the cluster is gone
        };
        let act = match made {
            Ok(success) => {
                record.succeed(success);
                "cluster.backup.done"
            }
            Err(error) => {
                let message = ErrorChain(&error).to_string();
                record.fail(run.name.clone(), Timestamp::now(), message);
                "cluster.backup.failed"
            }
        };
        let mut commit = Commit::default();
        let subject = format!("cluster/{cluster}");
        let actor = &run.ordered_by;
        self.records
            .audit(&mut commit, actor, act, &subject, run.name.as_str());
        commit.put(&record)?;
        self.records.commit(commit).await?;
        Ok(())
    }

    async fn make_backup(
        &self,
        name: &ClusterName,
        run: &BackupRun,
    ) -> Result<BackupSuccess, BackupError> {
        let began = Timestamp::now();
        let of = |error| BackupError::Cluster(Box::new(error));
        let cluster = self.cluster(name).await.map_err(of)?;
        let repository = &self.backups.repository;
        let taken_at = match repository.open(name, &run.name).await? {
            // The director ended between putting it there and writing that down.
            Some(archive) => archive.entry.manifest.taken_at,
            None => self.take_backup(&cluster, run).await?,
        };
        let took_ms = Timestamp::now().ms_since(began);
        let listed = repository.list(name).await?;
        for old in surplus(cluster.spec.backup, &listed, cluster.created_at) {
            tracing::info!(cluster = %name, backup = %old, "an old backup is removed");
            // The new one is in its place all the same, and the next one tries again.
            if let Err(error) = repository.delete(name, &old).await {
                tracing::warn!(cluster = %name, backup = %old, error = %ErrorChain(&error), "it stays");
            }
        }
        Ok(BackupSuccess {
            name: run.name.clone(),
            taken_at,
            took_ms,
        })
    }

    /// Takes a backup and puts it in its place; says when its snapshot was asked for.
    async fn take_backup(
        &self,
        cluster: &Cluster,
        run: &BackupRun,
    ) -> Result<Timestamp, BackupError> {
        let name = &cluster.spec.name;
        let of = |error| BackupError::Cluster(Box::new(error));
        let secrets = self.cluster_pki(name).await.map_err(of)?;
        let machines = self.records.machines_of(name.as_str()).await?;
        let taken_at = Timestamp::now();
        let (machine, snapshot) = self.snapshot(name, &machines).await?;
        let manifest = Manifest {
            format: FORMAT,
            name: run.name.clone(),
            reason: run.reason,
            cluster: name.clone(),
            cluster_created_at: cluster.created_at,
            spec: cluster.spec.clone(),
            endpoint: cluster.endpoint.clone(),
            stemcell: cluster.stemcell.clone(),
            machines: machines.iter().map(entry).collect(),
            director: self.id.clone(),
            director_version: env!("CARGO_PKG_VERSION").to_owned(),
            taken_at,
            taken_from: machine.name.clone(),
            snapshot,
        };
        let repository = &self.backups.repository;
        let path = repository
            .unfinished()
            .await?
            .join(format!("{}.age", run.name));
        let stored = match self.sealed(machine, run, &manifest, &secrets, &path).await {
            Ok(archive) => {
                let entry = BackupEntry { manifest, archive };
                repository
                    .store(&path, &entry)
                    .await
                    .map_err(BackupError::from)
            }
            Err(error) => Err(error),
        };
        if stored.is_err() {
            // The reason is worth more than one for a failing clean-up.
            let _ = tokio::fs::remove_file(&path).await;
        }
        stored.map(|()| taken_at)
    }

    /// Has a machine take a snapshot: a follower that has applied all that any member had, or the leader.
    async fn snapshot<'a>(
        &self,
        cluster: &ClusterName,
        machines: &'a [Machine],
    ) -> Result<(&'a Machine, EtcdSnapshot), BackupError> {
        self.await_voter(machines, CONNECT_LIMIT).await;
        let voters = self.voters(machines);
        let mut faults: Vec<AskError> = Vec::new();
        let mut report = None;
        for machine in &voters {
            match self.etcd_report(machine).await {
                Ok(found) => {
                    report = Some((*machine, found));
                    break;
                }
                Err(fault) => faults.push(fault),
            }
        }
        let Some((asked, mut report)) = report else {
            let why = match faults.as_slice() {
                [] => "none is connected".to_owned(),
                faults => several(faults),
            };
            return Err(BackupError::NoMember {
                cluster: cluster.clone(),
                why,
            });
        };
        let least = applied(&report);
        for _ in 1..LOOKS {
            if voters.len() < 2 || givers(&report, least).iter().any(|(leads, _)| !leads) {
                break;
            }
            if let Ok(next) = self.etcd_report(asked).await {
                report = next;
            }
        }
        for (_, giver) in givers(&report, least) {
            let Some(machine) = voters.iter().find(|machine| machine.name.as_str() == giver) else {
                continue;
            };
            let action = EtcdAction::Snapshot {
                keep: SNAPSHOTS_KEPT,
            };
            let answer = self.ask_etcd(machine, action, SNAPSHOT_LIMIT).await;
            match answer.and_then(|answer| answer.json(machine)) {
                Ok(snapshot) => return Ok((machine, snapshot)),
                Err(fault) => faults.push(fault),
            }
        }
        let why = match faults.as_slice() {
            [] => "no member that is connected is well".to_owned(),
            faults => several(faults),
        };
        Err(BackupError::NoMember {
            cluster: cluster.clone(),
            why,
        })
    }

    /// Brings a snapshot here into an archive, and reads that back.
    async fn sealed(
        &self,
        machine: &Machine,
        run: &BackupRun,
        manifest: &Manifest,
        secrets: &ClusterPki,
        path: &Path,
    ) -> Result<ArchiveFacts, BackupError> {
        let (sender, pieces) = Pieces::channel();
        let recipients = self.backups.recipients.clone();
        let (about, own, to) = (manifest.clone(), secrets.clone(), path.to_owned());
        let making = blocking(move || make(&to, &about, &own, pieces, &recipients));
        let (fetched, made) =
            tokio::join!(self.fetch(machine, run, &manifest.snapshot, sender), making);
        // Where both failed, the one that failed by itself says why.
        let archive = match (fetched, made) {
            (Err(Stopped::Failed(error)), _) => return Err(error),
            (_, made) => made?,
        };
        let (about, own, at) = (manifest.clone(), secrets.clone(), PathBuf::from(path));
        let identity = self.backups.identity.clone();
        blocking(move || verify(&at, &identity, &about, &own)).await?;
        Ok(archive)
    }

    /// Hands the bytes of a snapshot on as they arrive.
    async fn fetch(
        &self,
        machine: &Machine,
        run: &BackupRun,
        snapshot: &EtcdSnapshot,
        to: mpsc::Sender<Vec<u8>>,
    ) -> Result<(), Stopped> {
        let request = SendSnapshot {
            origin: Origin {
                operator: run.ordered_by.clone(),
                request: run.name.to_string(),
                epoch: self.epoch.get(),
            },
            name: snapshot.name.clone(),
        };
        let failed = |message: String| {
            Stopped::Failed(BackupError::Sent {
                machine: machine.name.clone(),
                snapshot: snapshot.name.clone(),
                message,
            })
        };
        let delivered = |error| Stopped::Failed(BackupError::Delivery(error));
        let opened = self
            .gateway
            .open_session(&machine.name, machine.incarnation, &request)
            .await;
        // Dropping the input would end the session.
        let (_input, mut output) = opened.map_err(delivered)?;
        let mut left = snapshot.bytes;
        loop {
            let next = timeout(SILENCE_MAX, output.next()).await;
            let silent = |_| failed(format!("nothing has come for {SILENCE_MAX:?}"));
            let frame = next.map_err(silent)?.map_err(delivered)?;
            if frame.kind == Output::KIND {
                let piece: Output = frame.body().map_err(|error| failed(error.to_string()))?;
                left = left
                    .checked_sub(piece.bytes.len() as u64)
                    .ok_or_else(|| failed("more bytes came than it has".to_owned()))?;
                to.send(piece.bytes).await.map_err(|_| Stopped::NotTaken)?;
                continue;
            }
            return match frame.body().map_err(|error| failed(error.to_string()))? {
                SessionEnd::Exit(0) if left == 0 => Ok(()),
                SessionEnd::Exit(code) => {
                    Err(failed(format!("it ended with {code}, {left} bytes early")))
                }
                SessionEnd::Failed(message) => Err(failed(message)),
            };
        }
    }
}

/// Why no more of a snapshot is fetched.
enum Stopped {
    /// It does not arrive.
    Failed(BackupError),
    /// Nobody takes it: the archive failed.
    NotTaken,
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, BackupError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(BackupError::Lost)??)
}

fn kept(error: RepositoryError) -> ServiceError {
    ServiceError::of(error.class(), "the backups cannot be used", error)
}

fn entry(machine: &Machine) -> MachineEntry {
    MachineEntry {
        name: machine.name.clone(),
        incarnation: machine.incarnation,
        control_plane: machine.role.is_control_plane(),
        address: machine.address,
    }
}

/// The furthest that any member has applied: what was acknowledged to a client is below it.
fn applied(report: &EtcdReport) -> u64 {
    let statuses = report.members.iter().filter_map(|m| m.status.as_ref());
    statuses
        .map(|status| status.raft_applied)
        .max()
        .unwrap_or(0)
}

/// Members that may give a snapshot, by name, each with whether it leads; those that follow first. All have a vote,
/// are not corrupt, and have applied at least so much.
fn givers(report: &EtcdReport, least: u64) -> Vec<(bool, &str)> {
    let mut givers: Vec<(bool, &str)> = report
        .members
        .iter()
        .filter(|m| !m.learner && !m.alarms.iter().any(|alarm| alarm == "CORRUPT"))
        .filter_map(|m| Some((m.status.as_ref()?, m.name.as_str())))
        .filter(|(status, _)| status.raft_applied >= least)
        .map(|(status, name)| (status.leader, name))
        .collect();
    givers.sort_unstable();
    givers
}

#[cfg(test)]
mod tests {
    use windlass_common::step::{EtcdMemberReport, EtcdStatus};

    use super::*;

    fn member(name: &str, leader: bool, raft_applied: u64) -> EtcdMemberReport {
        EtcdMemberReport {
            id: name.to_owned(),
            name: name.to_owned(),
            peer_urls: Vec::new(),
            learner: false,
            alarms: Vec::new(),
            status: Some(EtcdStatus {
                version: "3.6.16".to_owned(),
                leader,
                db_bytes: 1,
                db_used_bytes: 1,
                raft_term: 2,
                raft_index: raft_applied,
                raft_applied,
                errors: Vec::new(),
            }),
        }
    }

    #[test]
    fn a_follower_that_has_applied_everything_gives_the_snapshot() {
        let mut report = EtcdReport {
            cluster_id: "1".to_owned(),
            member_id: "a".to_owned(),
            members: vec![
                member("a", true, 10),
                member("b", false, 10),
                member("c", false, 9),
            ],
        };
        let least = applied(&report);
        assert_eq!(least, 10);
        assert_eq!(givers(&report, least), [(false, "b"), (true, "a")]);
        // One that is corrupt, learns or is silent gives none.
        report.members[1].alarms = vec!["CORRUPT".to_owned()];
        assert_eq!(givers(&report, least), [(true, "a")]);
        report.members[1].alarms.clear();
        report.members[1].learner = true;
        assert_eq!(givers(&report, least), [(true, "a")]);
        report.members[1] = member("b", false, 10);
        report.members[0].status = None;
        assert_eq!(givers(&report, least), [(false, "b")]);
    }
}
