//! Clusters that are gone, made again from a backup: with its authorities and keys, then with its data.
//!
//! # Invariants
//! * The cluster is made like any other, empty, with what the backup says that it should be; its data is restored by an
//!   order of its own, placed by rule once it serves. Each of the two goes on by itself after a crash, and can be
//!   ordered again when it failed.
//! * No machine is called as one of the backup's: nodes that the snapshot knows are others, and go; and what is left of
//!   their machines somewhere is nobody here.
//! * Until its data is there, no state of the cluster is backed up.
//!
//! # Not here
//! The restore itself: the rest of this module.

use std::sync::Weak;
use std::time::Duration;

use windlass_common::error::ErrorChain;
use windlass_common::id::{ClusterName, Digest, MachineName};

use super::super::draft::{Draft, Numbers};
use super::super::shown::Planned;
use super::super::{Inner, ServiceError, ServiceResult, rounds};
use super::{RestoreFrom, RestoreRequest, drill};
use crate::backup::cluster::{BackupName, Manifest};
use crate::kubernetes::pki::ClusterPki;
use crate::model::{
    Caller, Cluster, ClusterPhase, MadeFrom, RestoreForecast, Role, Task, Timestamp,
};
use crate::store::Commit;

/// Between two looks for clusters that were made and wait for their data.
const PERIOD: Duration = Duration::from_secs(1);
/// Who orders the restore, as audit log and tasks show it.
pub(super) const ACTOR: &str = "restore";

/// A cluster that is to be made from a backup.
pub(super) struct Remake {
    draft: Draft,
    pki: ClusterPki,
    manifest: Manifest,
}

impl Inner {
    /// What is to be made, when the cluster of a request is gone or another one is asked for.
    pub(super) async fn remake(
        &self,
        of: &ClusterName,
        request: &RestoreRequest,
    ) -> ServiceResult<Option<Remake>> {
        let name = request.new_name.as_ref().unwrap_or(of);
        let there: Option<Cluster> = self.records.get(name.as_str()).await?;
        let RestoreFrom::Backup(backup) = &request.from else {
            return Ok(None);
        };
        match (there, &request.new_name) {
            (None, _) => self.draft_from(of, backup, name, false).await.map(Some),
            (Some(_), None) => Ok(None),
            (Some(_), Some(name)) => Err(ServiceError::Conflict {
                message: format!(
                    "there is a cluster {name} already; name one that is not there, or restore {of} itself"
                ),
            }),
        }
    }

    /// Drafts a cluster `name` from a backup `of` a cluster; with `drill`, the least of it that shows whether the backup
    /// is good.
    pub(super) async fn draft_from(
        &self,
        of: &ClusterName,
        backup: &BackupName,
        name: &ClusterName,
        drill: bool,
    ) -> ServiceResult<Remake> {
        let opened = self.open_backup(of, backup).await?;
        // Opened once more when it is restored; what is left is removed at the next start.
        let _ = tokio::fs::remove_file(&opened.snapshot).await;
        let manifest = opened.manifest;
        let mut spec = manifest.spec.clone();
        spec.name = name.clone();
        if drill {
            super::drill::reduce(&mut spec);
        }
        let known = manifest.machines.iter().map(|machine| &machine.name);
        let drafter = self.world.drafter();
        let mut draft = drafter.draft(&spec, &unused(name, known)).await?;
        draft.cluster.made_from = Some(MadeFrom {
            cluster: of.clone(),
            cluster_created_at: manifest.cluster_created_at,
            backup: backup.clone(),
            restored: false,
            drill,
        });
        Ok(Remake {
            draft,
            pki: opened.secrets,
            manifest,
        })
    }

    /// What making it takes, and what it will not have.
    pub(super) async fn plan_remake(&self, remake: &Remake) -> ServiceResult<Planned> {
        let mut planned = self.create_plan(&remake.draft).await?;
        planned.plan.restore = Some(forecast(&remake.manifest, Timestamp::now()));
        Ok(planned)
    }

    pub(super) async fn order_remake(
        &self,
        remake: Remake,
        shown: Option<Digest>,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        if shown.is_some() {
            return Err(ServiceError::Conflict {
                message: format!(
                    "cluster {} does not exist; only the plan of a change can be held to",
                    remake.draft.cluster.spec.name
                ),
            });
        }
        let mut task = self.create_task(&remake.draft, caller).await?;
        task.plan.restore = Some(forecast(&remake.manifest, Timestamp::now()));
        let Remake { draft, pki, .. } = remake;
        self.order_new(draft, task, &pki, "cluster.remake", caller)
            .await
    }

    /// Orders the restore of a cluster that was made and is empty.
    async fn give_data(&self, cluster: &Cluster, from: &MadeFrom) -> ServiceResult<()> {
        let name = &cluster.spec.name;
        self.all_reached(name).await?;
        let request = RestoreRequest {
            from: RestoreFrom::Backup(from.backup.clone()),
            // There is nothing in it that could be.
            accept_loss: true,
            plan: None,
            new_name: None,
        };
        let task = self.restore_cluster(name, &request, &actor()).await?;
        tracing::info!(cluster = %name, task = %task.id, backup = %from.backup, "its data is restored");
        Ok(())
    }

    /// A machine that is not reached is not told to register its node again, and this director may just have started:
    /// agents are waited for. One that is gone is replaced meanwhile, as in any cluster.
    async fn all_reached(&self, name: &ClusterName) -> ServiceResult<()> {
        let machines = self.records.machines_of(name.as_str()).await?;
        let reached = self.reached(&machines);
        let away: Vec<&str> = machines
            .iter()
            .map(|machine| &machine.name)
            .filter(|name| !reached.contains(*name))
            .map(MachineName::as_str)
            .collect();
        if away.is_empty() {
            return Ok(());
        }
        Err(ServiceError::Unavailable {
            what: format!("the agents of {} are not connected", away.join(", ")),
            source: None,
        })
    }

    /// Says in the cluster's record why it is empty still.
    async fn tell(&self, name: &ClusterName, message: String) -> ServiceResult<()> {
        let _order = self.orders.lock().await;
        let mut cluster = self.cluster(name).await?;
        let waits = cluster.awaits_restore().is_some() && cluster.task.is_none();
        if waits && cluster.message.as_ref() != Some(&message) {
            cluster.message = Some(message);
            let mut commit = Commit::default();
            commit.put(&cluster)?;
            self.records.commit(commit).await?;
        }
        Ok(())
    }
}

/// The rule as somebody who orders.
pub(super) fn actor() -> Caller {
    Caller {
        operator: ACTOR.to_owned(),
        role: Role::Admin,
        request: String::new(),
    }
}

/// Looks for clusters that were made and are empty; ends with the director.
pub(in crate::service) fn start(director: Weak<Inner>) {
    tokio::spawn(rounds::every(director, PERIOD, async |director| {
        if let Err(error) = round(director).await {
            tracing::warn!(error = %ErrorChain(&error), "clusters that wait for their data cannot be looked for");
        }
    }));
}

async fn round(director: &Inner) -> ServiceResult<()> {
    let clusters: Vec<Cluster> = director.records.list().await?;
    for cluster in &clusters {
        drill::look(director, cluster).await?;
        let Some(from) = cluster.awaits_restore() else {
            continue;
        };
        // One whose restore failed is an operator's.
        let waits = cluster.task.is_none() && cluster.phase == ClusterPhase::Ready;
        if !waits {
            continue;
        }
        if let Err(error) = director.give_data(cluster, from).await {
            let message = format!(
                "it is empty: backup {} cannot be restored yet: {}",
                from.backup,
                ErrorChain(&error)
            );
            tracing::warn!(cluster = %cluster.spec.name, message);
            director.tell(&cluster.spec.name, message).await?;
        }
    }
    Ok(())
}

/// The first number of each pool that no machine of the backup has, under the name of the cluster that is made.
fn unused<'a>(name: &ClusterName, machines: impl IntoIterator<Item = &'a MachineName>) -> Numbers {
    let mut first = Numbers::new();
    for machine in machines {
        let of = machine.as_str();
        let Some(rest) = of
            .strip_prefix(name.as_str())
            .and_then(|r| r.strip_prefix('-'))
        else {
            continue;
        };
        if let Some((pool, number)) = rest.rsplit_once('-')
            && let Ok(number) = number.parse::<u32>()
        {
            let next = first.entry(pool.to_owned()).or_default();
            *next = (*next).max(number.saturating_add(1));
        }
    }
    first
}

fn forecast(manifest: &Manifest, now: Timestamp) -> RestoreForecast {
    let age = Duration::from_millis(now.ms_since(manifest.taken_at));
    RestoreForecast {
        source: format!("backup {} of cluster {}", manifest.name, manifest.cluster),
        revision: Some(manifest.snapshot.revision),
        taken_at: Some(manifest.taken_at),
        losses: vec![
            format!(
                "what was written after {}, in the {} s since",
                manifest.taken_at,
                age.as_secs()
            ),
            "what is on volumes and behind load balancers outside of etcd is not in a backup"
                .to_owned(),
        ],
        members: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_take_numbers_that_the_backup_does_not_know() {
        let known = ["a-b-cp-0", "a-b-cp-2", "a-b-big-pool-7", "a-web-0"];
        let known = known.map(|name| MachineName::new(name).unwrap());
        let name = ClusterName::new("a-b").unwrap();
        let first = unused(&name, &known);
        let want = [("big-pool".to_owned(), 8), ("cp".to_owned(), 3)];
        assert_eq!(first, want.into());
        let other = ClusterName::new("other").unwrap();
        assert!(unused(&other, &known).is_empty());
    }
}
