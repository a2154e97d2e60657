//! `windlass cluster backup` and `windlass cluster backups …`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};
use windlass_common::id::{Digest, Hasher};
use windlass_director::backup::record::{BackupRecord, Drill};
use windlass_director::backup::repository::BackupEntry;
use windlass_director::client::Client;
use windlass_director::model::Timestamp;
use windlass_director::service::ClusterBackups;

use crate::Session;
use crate::cluster::{confirm, pairs, segment};
use crate::failure::Failure;
use crate::output::{age, duration, note, table, watched};

#[derive(Debug, Subcommand)]
pub(crate) enum BackupsCommand {
    /// List the backups of a cluster, newest first, also of one that was deleted
    List {
        /// The cluster
        cluster: String,
    },
    /// Show one backup
    Show {
        /// The cluster
        cluster: String,
        /// The backup, as in `list`
        backup: String,
    },
    /// Copy the encrypted archive of one backup
    Fetch {
        /// The cluster
        cluster: String,
        /// The backup, as in `list`
        backup: String,
        /// To this file, or into this directory
        #[arg(long, value_name = "PATH")]
        to: PathBuf,
    },
    /// Prove a backup: restore it into a cluster of its own, read everything, and delete that again
    ///
    /// The cluster has one control-plane machine and no workers, so none of its pods runs anywhere. Says how old the
    /// backup is (what would be lost) and how long it took until the control plane had its data (recovery time).
    #[command(after_help = "\
Examples:
  windlass cluster backups drill prod
  windlass cluster backups drill prod 20300131-120000-00000001")]
    Drill {
        /// The cluster
        cluster: String,
        /// The backup, as in `list`; the newest when not given
        backup: Option<String>,
    },
    /// Delete one backup for good
    Delete {
        /// The cluster
        cluster: String,
        /// The backup, as in `list`
        backup: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// Between two looks at a backup that is waited for.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) async fn run(
    session: &Session,
    client: &Client,
    command: BackupsCommand,
) -> Result<ExitCode, Failure> {
    match command {
        BackupsCommand::List { cluster } => list(session, client, &cluster).await,
        BackupsCommand::Show { cluster, backup } => {
            let answer = client.get(&one(&cluster, &backup)).await?;
            show(session, client, &answer)
        }
        BackupsCommand::Fetch {
            cluster,
            backup,
            to,
        } => {
            let answer = client.get(&one(&cluster, &backup)).await?;
            let entry: BackupEntry = client.typed(&answer)?;
            let path = fetch(client, &entry, &to).await?;
            note(&format!("written to {}", path.display()));
            show(session, client, &answer)
        }
        BackupsCommand::Drill { cluster, backup } => {
            drill(session, client, &cluster, backup.as_deref()).await
        }
        BackupsCommand::Delete {
            cluster,
            backup,
            yes,
        } => delete(session, client, &cluster, &backup, yes).await,
    }
}

fn all(cluster: &str) -> String {
    format!("/v1/clusters/{}/backups", segment(cluster))
}

fn one(cluster: &str, backup: &str) -> String {
    format!("{}/{}", all(cluster), segment(backup))
}

/// Orders a backup, waits for it, and copies it if asked.
pub(crate) async fn back_up(
    session: &Session,
    client: &Client,
    cluster: &str,
    to: Option<&Path>,
) -> Result<ExitCode, Failure> {
    let record: BackupRecord = client.typed(&client.post(&all(cluster), String::new()).await?)?;
    let Some(run) = record.running else {
        return Err(Failure::failed(
            "the director did not say what it is called",
        ));
    };
    let name = run.name.as_str();
    if watched() {
        note(&format!("backup {name} of cluster {cluster} is being made"));
    }
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let backups: ClusterBackups = client.typed(&client.get(&all(cluster)).await?)?;
        let Some(state) = backups.state else {
            return Err(Failure::failed(format!("cluster {cluster} is gone")));
        };
        if state
            .running
            .is_some_and(|running| running.name == run.name)
        {
            continue;
        }
        match state.failed {
            Some(failed) if failed.name == run.name => return Err(Failure::failed(failed.message)),
            _ => break,
        }
    }
    let answer = client.get(&one(cluster, name)).await?;
    if let Some(to) = to {
        let entry: BackupEntry = client.typed(&answer)?;
        let path = fetch(client, &entry, to).await?;
        note(&format!("written to {}", path.display()));
    }
    show(session, client, &answer)
}

/// Orders a drill, and waits for its end.
async fn drill(
    session: &Session,
    client: &Client,
    cluster: &str,
    backup: Option<&str>,
) -> Result<ExitCode, Failure> {
    let mut path = format!("/v1/clusters/{}/drill", segment(cluster));
    if let Some(backup) = backup {
        path.push_str(&format!("?backup={}", segment(backup)));
    }
    let ordered: BackupRecord = client.typed(&client.post(&path, String::new()).await?)?;
    let Some(ordered) = ordered.drill else {
        return Err(Failure::failed("the director did not say what it drills"));
    };
    if watched() {
        note(&format!(
            "backup {} is restored into cluster {}; Ctrl-C ends the waiting, not the drill",
            ordered.backup, ordered.scratch
        ));
    }
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let answer = client.get(&all(cluster)).await?;
        let backups: ClusterBackups = client.typed(&answer)?;
        let found = backups.state.and_then(|state| state.drill);
        let Some(now) = found.filter(|now| now.scratch == ordered.scratch) else {
            return Err(Failure::failed(format!(
                "nothing is known of the drill in {} any more",
                ordered.scratch
            )));
        };
        let Some(end) = &now.end else {
            continue;
        };
        if let Some(failure) = &end.failure {
            return Err(Failure::failed(format!(
                "the drill of backup {} failed: {failure}",
                now.backup
            )));
        }
        session
            .output
            .answer(&answer["state"]["drill"], || format!("{}\n", drilled(&now)));
        return Ok(ExitCode::SUCCESS);
    }
}

/// How a drill ended, in one line.
fn drilled(drill: &Drill) -> String {
    match &drill.end {
        None => format!(
            "a drill of {} is under way in {}",
            drill.backup, drill.scratch
        ),
        Some(end) => match (&end.failure, &end.census) {
            (None, None) => format!(
                "nothing is known of how the drill of {} ended",
                drill.backup
            ),
            (Some(failure), _) => format!(
                "the DRILL of {} FAILED {} ago: {failure}",
                drill.backup,
                age(end.at)
            ),
            (None, Some(of)) => format!(
                "drill of {} {} ago: {} old then, its control plane back in {}, {} namespaces, {} Secrets, \
                 {} ConfigMaps, {} Deployments and {} Services read",
                drill.backup,
                age(end.at),
                duration(drill.age_ms),
                duration(end.took_ms),
                of.namespaces,
                of.secrets,
                of.config_maps,
                of.deployments,
                of.services
            ),
        },
    }
}

async fn list(session: &Session, client: &Client, cluster: &str) -> Result<ExitCode, Failure> {
    let answer = client.get(&all(cluster)).await?;
    let backups: ClusterBackups = client.typed(&answer)?;
    session.output.answer(&answer, || {
        let rows = backups.items.iter().map(|entry| {
            let of = &entry.manifest;
            vec![
                of.name.to_string(),
                of.reason.to_string(),
                age(of.taken_at),
                of.spec.kubernetes_version.clone(),
                of.snapshot.revision.to_string(),
                mib(entry.archive.bytes),
                of.taken_from.to_string(),
            ]
        });
        let header = [
            "NAME",
            "WHY",
            "AGE",
            "KUBERNETES",
            "REVISION",
            "MIB",
            "FROM",
        ];
        let place = match backups.location.as_str() {
            "" => String::new(), // of a director that does not say
            place => format!("\nkept in {place}"),
        };
        format!("{}{place}\n\n{}", describe(&backups), table(&header, rows))
    });
    // What is not listed may be there.
    Ok(match backups.unlisted {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
    })
}

/// How the backups of a cluster are, in one line.
pub(crate) fn describe(backups: &ClusterBackups) -> String {
    let mut parts = Vec::new();
    let state = backups.state.as_ref();
    if let Some(run) = state.and_then(|state| state.running.as_ref()) {
        parts.push(format!("{} is being made", run.name));
    }
    match state.and_then(|state| state.succeeded.as_ref()) {
        Some(last) => parts.push(format!("last {} ({} ago)", last.name, age(last.taken_at))),
        None => parts.push("none yet".to_owned()),
    }
    if let Some(failed) = state.and_then(|state| state.failed.as_ref()) {
        parts.push(format!(
            "FAILED {} in a row, {} ago: {}",
            failed.in_a_row,
            age(failed.at),
            failed.message
        ));
    }
    if let Some(drill) = state.and_then(|state| state.drill.as_ref()) {
        parts.push(drilled(drill));
    }
    match (backups.policy, backups.due_at) {
        (Some(policy), Some(at)) => parts.push(format!(
            "next in {}, {} scheduled ones are kept",
            duration(at.ms_since(Timestamp::now())),
            policy.keep
        )),
        (Some(_), None) => parts.push("none is scheduled".to_owned()),
        (None, _) => parts.push("the cluster is gone".to_owned()),
    }
    if let Some(why) = &backups.unlisted {
        parts.push(format!("CANNOT BE LISTED: {why}"));
    }
    parts.join("; ")
}

fn mib(bytes: u64) -> String {
    // Exact up to 8 PiB.
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

fn show(session: &Session, client: &Client, answer: &Value) -> Result<ExitCode, Failure> {
    let entry: BackupEntry = client.typed(answer)?;
    session.output.answer(answer, || {
        let (of, archive) = (&entry.manifest, &entry.archive);
        pairs(vec![
            ("Name", of.name.to_string()),
            ("Cluster", of.cluster.to_string()),
            ("Why", of.reason.to_string()),
            (
                "Taken",
                format!(
                    "{} ({} ago), from {}",
                    of.taken_at,
                    age(of.taken_at),
                    of.taken_from
                ),
            ),
            ("Kubernetes", of.spec.kubernetes_version.clone()),
            ("Stemcell", of.stemcell.clone()),
            (
                "Snapshot",
                format!(
                    "revision {}, hash {:08x}, {} keys, {} MiB, {}",
                    of.snapshot.revision,
                    of.snapshot.hash,
                    of.snapshot.keys,
                    mib(of.snapshot.bytes),
                    match of.snapshot.restored {
                        true => "restored as a trial",
                        false => "not restored as a trial",
                    }
                ),
            ),
            (
                "Archive",
                format!("{} MiB, {}", mib(archive.bytes), archive.digest),
            ),
        ])
    });
    Ok(ExitCode::SUCCESS)
}

async fn delete(
    session: &Session,
    client: &Client,
    cluster: &str,
    backup: &str,
    yes: bool,
) -> Result<ExitCode, Failure> {
    if !yes {
        let question = format!("Type the name of the backup ({backup}) to delete it: ");
        if !confirm(&question, backup)? {
            return Err(Failure::failed("not deleted"));
        }
    }
    let answer = client.delete(&one(cluster, backup)).await?;
    session.output.answer(&answer, || {
        format!("backup {backup} of cluster {cluster} is deleted")
    });
    Ok(ExitCode::SUCCESS)
}

/// Writes to a file and keeps count.
struct Checked {
    file: File,
    hasher: Hasher,
}

impl Write for Checked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Copies an archive; a file that is there is not written over. Returns where it is.
async fn fetch(client: &Client, entry: &BackupEntry, to: &Path) -> Result<PathBuf, Failure> {
    let of = &entry.manifest;
    let path = match to.is_dir() {
        true => to.join(format!("{}-{}.age", of.cluster, of.name)),
        false => to.to_owned(),
    };
    let failed =
        |error: io::Error| Failure::failed(format!("cannot write {}: {error}", path.display()));
    if path.exists() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .map_err(failed)?;
    let copied = copy(client, entry, file).await.and_then(|()| {
        // Fails where somebody made it meanwhile.
        std::fs::hard_link(&part, &path).map_err(failed)
    });
    // What counts is whether the copy has its name.
    let _ = std::fs::remove_file(&part);
    copied.map(|()| path)
}

async fn copy(client: &Client, entry: &BackupEntry, file: File) -> Result<(), Failure> {
    let of = &entry.manifest;
    let mut to = Checked {
        file,
        hasher: Hasher::default(),
    };
    let path = format!("{}/archive", one(of.cluster.as_str(), of.name.as_str()));
    let failed = |error: io::Error| Failure::failed(format!("cannot write the archive: {error}"));
    let bytes = client.download(&path, &mut to).await?.map_err(failed)?;
    to.file.sync_all().map_err(failed)?;
    let digest: Digest = to.hasher.finish();
    if (bytes, digest) == (entry.archive.bytes, entry.archive.digest) {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "{bytes} bytes with digest {digest} arrived, and the archive has {} with {}; try again, and if it stays so \
         the repository is damaged",
        entry.archive.bytes, entry.archive.digest
    )))
}
