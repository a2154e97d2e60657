//! Snapshots of the keyspace on the machine's data disk.
//!
//! A snapshot appears under its name once it is whole and verified; its name says what it holds, so that
//! taking the same one twice leaves one. They lie beside etcd's own directory, on the disk that survives the
//! machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::parse::SnapshotStatus;
use super::{Context, EtcdError, Failure, Local, Run, parsed, run_program};

/// Where they are.
const DIRECTORY: &str = "/var/lib/etcd/snapshots";
/// The one that is being saved.
const UNFINISHED: &str = "unfinished.db";
/// How long saving may take: 8 GiB at 30 MB/s.
const SAVING: Duration = Duration::from_secs(300);

pub(super) async fn take(
    context: &Context,
    run: &Run,
    local: &Local<'_>,
    keep: u32,
) -> Result<(), Failure> {
    let directory = context.host.path(DIRECTORY);
    let keep = usize::try_from(keep).unwrap_or(usize::MAX);
    let report = local.report().await?;
    let own = report.members.iter().find(|m| m.id == report.member_id);
    let bytes = own
        .and_then(|m| m.status.as_ref())
        .map_or(0, |s| s.db_bytes);
    let place = directory.clone();
    run.blocking(move || Ok(make_room(&place, bytes, keep)?))
        .await?;
    let unfinished = directory.join(UNFINISHED).to_string_lossy().into_owned();
    local
        .ctl(SAVING, &["snapshot", "save", &unfinished])
        .await?;
    let status = verify(local, &unfinished).await?;
    let name = name(&status);
    run.changed(format!(
        "snapshot {name} of {} bytes at revision {}",
        status.total_size, status.revision
    ));
    run.blocking(move || Ok(publish(&directory, &name, keep)?))
        .await
}

/// Reads all of it: hash and structure.
pub(super) async fn verify(local: &Local<'_>, path: &str) -> Result<SnapshotStatus, EtcdError> {
    let program = format!("{}/etcdutl", local.directory);
    let argv = [&program, "snapshot", "status", path, "-w", "json"];
    let output = run_program(&argv).await?;
    if !output.status.success() {
        return Err(EtcdError::Refused {
            what: "etcdutl snapshot status".to_owned(),
            said: super::last_line(&output.stderr),
        });
    }
    parsed("etcdutl snapshot status", &output.stdout)
}

/// Sorts as revisions do.
fn name(status: &SnapshotStatus) -> String {
    format!("{:020}-{:08x}.db", status.revision, status.hash)
}

/// Makes the directory, removes what was not finished, and older snapshots while a new one would not fit.
fn make_room(directory: &Path, bytes: u64, keep: usize) -> Result<(), EtcdError> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(directory)
        .map_err(|source| file("make", directory, source))?;
    for name in [UNFINISHED.to_owned(), format!("{UNFINISHED}.part")] {
        remove(&directory.join(name))?;
    }
    // The one that is about to come counts.
    let mut left = prune(directory, keep)?;
    loop {
        let stat = nix::sys::statvfs::statvfs(directory)
            .map_err(|errno| file("look at", directory, errno.into()))?;
        let free = stat.blocks_available() * stat.fragment_size();
        // etcd itself goes on writing meanwhile: a segment of its log is 64 MB.
        if free >= bytes.saturating_add(64 << 20) {
            return Ok(());
        }
        // The newest stays until there is a newer one.
        if left.len() <= 1 {
            return Err(EtcdError::NoRoom { bytes, free });
        }
        remove(&left.remove(0))?;
    }
}

/// Gives the snapshot its name, and removes those beyond the number that is kept.
fn publish(directory: &Path, name: &str, keep: usize) -> Result<(), EtcdError> {
    let (from, to) = (directory.join(UNFINISHED), directory.join(name));
    let saved = fs::File::open(&from).and_then(|file| file.sync_all());
    saved.map_err(|source| file("write", &from, source))?;
    fs::rename(&from, &to).map_err(|source| file("name", &to, source))?;
    let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|source| file("write", directory, source))?;
    prune(directory, keep)?;
    Ok(())
}

/// Removes the oldest until `keep` are left; returns those, the oldest first.
fn prune(directory: &Path, keep: usize) -> Result<Vec<PathBuf>, EtcdError> {
    let cannot = |source| file("list", directory, source);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let name = entry.file_name();
        let ours = name
            .to_str()
            .and_then(|name| name.strip_suffix(".db"))
            .is_some_and(|stem| stem.len() == 29 && stem.as_bytes()[20] == b'-');
        if ours {
            names.push(entry.path());
        }
    }
    names.sort();
    while names.len() > keep {
        remove(&names.remove(0))?;
    }
    Ok(names)
}

pub(super) fn remove(path: &Path) -> Result<(), EtcdError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(file("remove", path, source))
        }
        _ => Ok(()),
    }
}

pub(super) fn file(action: &'static str, path: &Path, source: std::io::Error) -> EtcdError {
    EtcdError::File {
        action,
        path: path.display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_nothing_else_is_touched() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let status = |revision| SnapshotStatus {
            hash: 7,
            revision,
            total_size: 1,
        };
        for revision in [9, 10, 100] {
            fs::write(at(&name(&status(revision))), b"kept").unwrap();
        }
        fs::write(at("mine.db"), b"an operator's").unwrap();
        fs::write(at(UNFINISHED), b"cut off").unwrap();
        make_room(directory.path(), 1, 3).unwrap();
        assert!(!at(UNFINISHED).exists(), "what was cut off is removed");
        fs::write(at(UNFINISHED), b"new").unwrap();
        publish(directory.path(), &name(&status(101)), 3).unwrap();
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut want = [10, 100, 101]
            .map(|revision| name(&status(revision)))
            .to_vec();
        want.push("mine.db".to_owned());
        assert_eq!(left, want);
        // The same one again is the same file.
        fs::write(at(UNFINISHED), b"new").unwrap();
        publish(directory.path(), &name(&status(101)), 3).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_snapshot_that_cannot_fit_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = make_room(directory.path(), u64::MAX / 2, 3).unwrap_err();
        assert!(matches!(error, EtcdError::NoRoom { .. }), "{error}");
    }
}
