//! Drills: a backup proves that a cluster can be made of it, in a cluster of its own.
//!
//! The cluster has one control-plane machine and no workers, so that none of its pods runs anywhere. Once its data is
//! restored everything is read through its API server, Secrets included; then it is deleted, whatever was found.
//!
//! # Invariants
//! * How a drill ended is written down before its cluster is deleted.
//! * One drill of a cluster at a time.
//!
//! # After a crash
//! The drill goes on from the records: [`look`] is the same in each round.
//!
//! # Not here
//! How a cluster is made from a backup: [`super::remake`].

use windlass_common::cluster::ClusterSpec;
use windlass_common::error::ErrorChain;
use windlass_common::id::ClusterName;

use super::super::draft::random_u32;
use super::super::{Inner, ServiceError, ServiceResult};
use super::remake::actor;
use crate::backup::cluster::BackupName;
use crate::backup::record::{BackupRecord, Census, Drill, DrillEnd};
use crate::model::{Caller, Cluster, ClusterPhase, Timestamp};
use crate::store::Commit;

/// What a drill is to do next with its cluster.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// It is being made, restored or deleted.
    Wait,
    /// Its data is there.
    Read,
    /// Something failed, for this reason.
    GiveUp(String),
}

/// What a cluster's spec leaves for a drill.
pub(super) fn reduce(spec: &mut ClusterSpec) {
    spec.control_plane.count = 1;
    spec.pools.clear();
    spec.backup.every_minutes = 0;
    spec.gates.clear();
}

fn next(phase: ClusterPhase, restored: bool, message: Option<&str>) -> Next {
    match phase {
        ClusterPhase::Creating | ClusterPhase::Updating | ClusterPhase::Deleting => Next::Wait,
        ClusterPhase::Ready if restored => Next::Read,
        ClusterPhase::Ready => Next::Wait,
        ClusterPhase::Degraded | ClusterPhase::Failed => {
            Next::GiveUp(message.unwrap_or("no reason was given").to_owned())
        }
    }
}

impl Inner {
    /// Orders a drill of a backup; of the newest one when none is named.
    pub(in crate::service) async fn order_drill(
        &self,
        of: &ClusterName,
        backup: Option<&BackupName>,
        caller: &Caller,
    ) -> ServiceResult<BackupRecord> {
        let _order = self.orders.lock().await;
        self.cluster(of).await?;
        let found: Option<BackupRecord> = self.records.get(of.as_str()).await?;
        let mut record = found.unwrap_or_else(|| BackupRecord::new(of.clone()));
        if let Some(drill) = record.drill.as_ref().filter(|drill| drill.end.is_none()) {
            return Err(ServiceError::Conflict {
                message: format!(
                    "a drill of backup {} is under way in cluster {}; `windlass cluster show {}` shows how far it is",
                    drill.backup, drill.scratch, drill.scratch
                ),
            });
        }
        let newest = match backup {
            Some(backup) => Some(self.backup(of, backup).await?),
            None => self.backups(of).await?.items.into_iter().next(),
        };
        let Some(newest) = newest else {
            return Err(ServiceError::Conflict {
                message: format!(
                    "cluster {of} has no backup; `windlass cluster backup {of}` makes one"
                ),
            });
        };
        let backup = newest.manifest.name;
        let scratch =
            ClusterName::new(format!("drill-{:08x}", random_u32()?)).map_err(|error| {
                ServiceError::Bug {
                    what: "the cluster of a drill cannot be named".to_owned(),
                    source: Some(Box::new(error)),
                }
            })?;
        let remake = self.draft_from(of, &backup, &scratch, true).await?;
        let now = Timestamp::now();
        record.drill = Some(Drill {
            backup,
            scratch,
            ordered_by: caller.operator.clone(),
            ordered_at: now,
            age_ms: now.ms_since(newest.manifest.taken_at),
            end: None,
        });
        let mut commit = Commit::default();
        commit.put(&record)?;
        record.revision = self.records.commit(commit).await?;
        if let Err(error) = self.order_remake(remake, None, caller).await {
            // Nothing was made: the next drill need not wait for this one.
            let why = ErrorChain(&error).to_string();
            self.end_drill(of, Err(why)).await?;
            return Err(error);
        }
        Ok(record)
    }

    /// Writes down how the drill of a cluster's backup ended, unless that was done.
    async fn end_drill(
        &self,
        of: &ClusterName,
        outcome: Result<Census, String>,
    ) -> ServiceResult<()> {
        let found: Option<BackupRecord> = self.records.get(of.as_str()).await?;
        // Without it the cluster was deleted meanwhile, and nobody asks any more.
        let Some(mut record) = found else {
            return Ok(());
        };
        let Some(drill) = record.drill.as_mut().filter(|drill| drill.end.is_none()) else {
            return Ok(());
        };
        let now = Timestamp::now();
        let (census, failure) = match outcome {
            Ok(census) => (Some(census), None),
            Err(why) => (None, Some(why)),
        };
        drill.end = Some(DrillEnd {
            at: now,
            took_ms: now.ms_since(drill.ordered_at),
            census,
            failure,
        });
        let mut commit = Commit::default();
        commit.put(&record)?;
        self.records.commit(commit).await?;
        Ok(())
    }
}

/// Goes on with the drill that a cluster is for, if it is for one.
pub(super) async fn look(director: &Inner, cluster: &Cluster) -> ServiceResult<()> {
    let Some(from) = cluster.made_from.as_ref().filter(|from| from.drill) else {
        return Ok(());
    };
    if cluster.task.is_some() {
        return Ok(());
    }
    let name = &cluster.spec.name;
    let outcome = match next(cluster.phase, from.restored, cluster.message.as_deref()) {
        Next::Wait => return Ok(()),
        Next::Read => match director.world.census(name).await {
            Ok(census) => Ok(census),
            Err(error) => Err(format!("the restored cluster cannot be read: {error}")),
        },
        Next::GiveUp(why) => Err(why),
    };
    tracing::info!(cluster = %from.cluster, backup = %from.backup, ?outcome, "a drill ends");
    director.end_drill(&from.cluster, outcome).await?;
    director.delete_cluster(name, None, &actor()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_reads_what_is_restored_and_gives_up_what_failed() {
        use ClusterPhase::{Creating, Degraded, Deleting, Failed, Ready, Updating};
        for (phase, restored, message, want) in [
            (Creating, false, None, Next::Wait),
            (Ready, false, None, Next::Wait),
            (Updating, false, None, Next::Wait),
            (Ready, true, None, Next::Read),
            (Deleting, true, None, Next::Wait),
            (
                Degraded,
                false,
                Some("cut off"),
                Next::GiveUp("cut off".into()),
            ),
            (
                Failed,
                false,
                Some("no room"),
                Next::GiveUp("no room".into()),
            ),
        ] {
            assert_eq!(next(phase, restored, message), want, "{phase}");
        }
    }

    #[test]
    fn a_drill_makes_the_least_that_shows_the_data() {
        let mut spec = crate::backup::fixtures::spec();
        reduce(&mut spec);
        assert_eq!((spec.control_plane.count, spec.pools.len()), (1, 0));
        assert_eq!(spec.backup.every_minutes, 0);
    }
}
