//! Takes one backup: a snapshot from a member that has applied everything, sealed, put in its place and read back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use windlass_common::error::ErrorChain;
use windlass_common::id::ClusterName;
use windlass_common::step::{EtcdAction, EtcdReport, EtcdSnapshot};
use windlass_common::wire::message::Body;
use windlass_common::wire::session::{Origin, SendSnapshot, SessionEnd, SessionOutput as Output};

use super::BackupError;
use crate::backup::cluster::{ArchiveError, FORMAT, MachineEntry, Manifest};
use crate::backup::making::{Pieces, make, verify};
use crate::backup::record::{BackupRecord, BackupRun, BackupSuccess};
use crate::backup::repository::{ArchiveFacts, BackupEntry, RepositoryError};
use crate::backup::schedule::surplus;
use crate::kubernetes::pki::ClusterPki;
use crate::model::{Cluster, Machine, Timestamp};
use crate::rollout::world::SNAPSHOTS_KEPT;
use crate::service::etcd::{AskError, several};
use crate::service::{Inner, ServiceError};
use crate::store::{Commit, StoreError};

/// How often the members are looked at until one has applied what all had, before the leader is taken.
const LOOKS: u32 = 5;
/// Longest silence of a machine that sends its snapshot.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a machine may take for its snapshot: as long as its agent gives etcd, and as long to verify it.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(900);
/// How long the first control-plane machine may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);

impl Inner {
    /// Writes down how a backup ended.
    pub(super) async fn end_backup(
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

    pub(super) async fn make_backup(
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
        self.prune_backups(&cluster).await;
        Ok(BackupSuccess {
            name: run.name.clone(),
            taken_at,
            took_ms,
        })
    }

    /// Removes backups that the policy does not keep. The new one is in its place all the same, and the next one tries
    /// again.
    async fn prune_backups(&self, cluster: &Cluster) {
        let (repository, name) = (&self.backups.repository, &cluster.spec.name);
        let listed = match repository.list(name).await {
            Ok(listed) => listed,
            Err(error) => {
                let error = ErrorChain(&error);
                tracing::warn!(cluster = %name, %error, "old backups cannot be listed, and stay");
                return;
            }
        };
        for old in surplus(cluster.spec.backup, &listed, cluster.created_at) {
            tracing::info!(cluster = %name, backup = %old, "an old backup is removed");
            if let Err(error) = repository.delete(name, &old).await {
                tracing::warn!(cluster = %name, backup = %old, error = %ErrorChain(&error), "it stays");
            }
        }
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

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, BackupError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(BackupError::Lost)??)
}

pub(super) fn kept(error: RepositoryError) -> ServiceError {
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
