//! What operators ask about backups, and order.

use std::time::Duration;

use tokio::time::timeout;
use windlass_common::error::ErrorChain;
use windlass_common::id::ClusterName;

use super::taking::{blocking, kept};
use super::{BackupCounts, BackupError, ClusterBackups, serves};
use crate::backup::cluster::{ArchiveError, BackupName, BackupReason, Opened, open};
use crate::backup::record::{BackupRecord, BackupRun};
use crate::backup::repository::{Archive, BackupEntry, RepositoryError};
use crate::backup::schedule::{Due, due};
use crate::model::{Caller, Cluster, Timestamp};
use crate::service::draft::random_u32;
use crate::service::{Inner, ServiceError, ServiceResult};
use crate::store::{Act, Commit};

/// How long who looks at a cluster waits for the list of its backups.
const LIST_LIMIT: Duration = Duration::from_secs(15);

impl Inner {
    /// Orders a backup.
    pub(in crate::service) async fn order_backup(
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
    pub(in crate::service) async fn backups(
        &self,
        name: &ClusterName,
    ) -> ServiceResult<ClusterBackups> {
        let cluster: Option<Cluster> = self.records.get(name.as_str()).await?;
        let state: Option<BackupRecord> = self.records.get(name.as_str()).await?;
        let (items, unlisted) = match self.listed(name).await {
            Ok(items) => (items, None),
            // What else is known of a cluster is shown while an object store is away.
            Err(error) if cluster.is_some() => (Vec::new(), Some(ErrorChain(&error).to_string())),
            Err(error) => return Err(error),
        };
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
            location: self.backups.repository.location(),
            due_at,
            etcd_problem: self.care.problem(name),
            unlisted,
            items,
        })
    }

    /// One backup.
    pub(in crate::service) async fn backup(
        &self,
        cluster: &ClusterName,
        name: &BackupName,
    ) -> ServiceResult<BackupEntry> {
        Ok(self.archive(cluster, name).await?.entry)
    }

    /// The archive of a backup.
    pub(in crate::service) async fn backup_archive(
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
    pub(in crate::service) async fn delete_backup(
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
    pub(in crate::service) fn backup_counts(&self) -> BackupCounts {
        self.backups.counts()
    }

    async fn listed(&self, cluster: &ClusterName) -> ServiceResult<Vec<BackupEntry>> {
        let repository = &self.backups.repository;
        match timeout(LIST_LIMIT, repository.list(cluster)).await {
            Ok(listed) => listed.map_err(kept),
            Err(_) => Err(ServiceError::Unavailable {
                what: format!(
                    "{} does not say within {LIST_LIMIT:?} which backups it has",
                    repository.location()
                ),
                source: None,
            }),
        }
    }

    /// Opens a backup and writes its snapshot to a file of its own, which the caller removes.
    pub(in crate::service) async fn open_backup(
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
            Err(source) => Err(match RepositoryError::of_reading(name, source) {
                Ok(error) => BackupError::Unread(error),
                Err(source) => BackupError::Archive(ArchiveError::Io {
                    doing: "copy the archive",
                    source,
                }),
            }),
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
}
