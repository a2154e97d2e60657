//! Backups and restores of clusters, and their disks.

use windlass_common::id::{ClusterName, DiskName};

use crate::backup::cluster::BackupName;
use crate::backup::record::BackupRecord;
use crate::backup::repository::{Archive, BackupEntry};
use crate::model::{Caller, Plan, Role, Task};
use crate::service::backups::{BackupCounts, ClusterBackups};
use crate::service::disks::Disk;
use crate::service::restore::RestoreRequest;
use crate::service::{Director, ServiceResult, allow};

impl Director {
    /// Orders a backup of a cluster. Returns at once; the record says which, and later how it ended.
    pub async fn order_backup(
        &self,
        name: &ClusterName,
        caller: &Caller,
    ) -> ServiceResult<BackupRecord> {
        allow(caller, Role::Operator, "back clusters up")?;
        self.inner.order_backup(name, caller).await
    }

    /// Orders a drill of a backup, the newest when none is named. Returns at once; the record says later how it ended.
    pub async fn order_drill(
        &self,
        name: &ClusterName,
        backup: Option<&BackupName>,
        caller: &Caller,
    ) -> ServiceResult<BackupRecord> {
        allow(caller, Role::Admin, "drill restores")?;
        self.inner.not_on_hold("drill restores")?;
        self.inner.order_drill(name, backup, caller).await
    }

    /// The backups of a cluster, also of one that is gone.
    pub async fn backups(&self, name: &ClusterName) -> ServiceResult<ClusterBackups> {
        self.inner.backups(name).await
    }

    /// One backup of a cluster.
    pub async fn backup(
        &self,
        cluster: &ClusterName,
        name: &BackupName,
    ) -> ServiceResult<BackupEntry> {
        self.inner.backup(cluster, name).await
    }

    /// The encrypted archive of a backup.
    pub async fn backup_archive(
        &self,
        cluster: &ClusterName,
        name: &BackupName,
        caller: &Caller,
    ) -> ServiceResult<Archive> {
        allow(caller, Role::Admin, "fetch backups")?;
        self.inner.backup_archive(cluster, name, caller).await
    }

    /// Deletes one backup of a cluster for good.
    pub async fn delete_backup(
        &self,
        cluster: &ClusterName,
        name: &BackupName,
        caller: &Caller,
    ) -> ServiceResult<BackupEntry> {
        allow(caller, Role::Admin, "delete backups")?;
        self.inner.delete_backup(cluster, name, caller).await
    }

    /// What the backups of all clusters come to.
    pub fn backup_counts(&self) -> BackupCounts {
        self.inner.backup_counts()
    }

    /// What restoring a cluster would do and lose, without doing it. Takes the role that restoring takes: it reads
    /// a file of the director's host.
    pub async fn plan_restore(
        &self,
        name: &ClusterName,
        request: &RestoreRequest,
        caller: &Caller,
    ) -> ServiceResult<Plan> {
        allow(caller, Role::Admin, "restore clusters")?;
        self.inner.plan_restore(name, request).await
    }

    /// Orders a cluster to be restored. Returns the task at once.
    pub async fn restore_cluster(
        &self,
        name: &ClusterName,
        request: &RestoreRequest,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        allow(caller, Role::Admin, "restore clusters")?;
        self.inner.restore_cluster(name, request, caller).await
    }

    /// Persistent disks, with the machines whose data they hold.
    pub async fn disks(&self) -> ServiceResult<Vec<Disk>> {
        self.inner.disks().await
    }

    /// Deletes a disk that no machine has, and its data. Returns what it was.
    pub async fn delete_disk(&self, name: &DiskName, caller: &Caller) -> ServiceResult<Disk> {
        allow(caller, Role::Operator, "delete disks")?;
        self.inner.delete_disk(name, caller).await
    }
}
