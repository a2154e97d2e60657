//! Snapshots of the keyspace on the machine's data disk.
//!
//! A snapshot appears under its name once it is whole and verified: read through, its digest compared, and restored as
//! a trial where there is room; its name says what it holds, so that taking the same one twice leaves one. They lie
//! beside etcd's own directory, on the disk that survives the machine. One that is being sent ([`open`]) is read to its
//! end, also when it is removed meanwhile.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use windlass_common::id::{Digest, Hasher};
use windlass_common::limits::{CHUNK_BYTES, SNAPSHOT_BYTES_MAX};
use windlass_common::step::{EtcdSnapshot, OutputStream};

use super::parse::SnapshotStatus;
use super::{Context, EtcdError, Failure, Local, Run, data, parsed, run_program};
use crate::host::Host;

/// Where they are.
const DIRECTORY: &str = "/var/lib/etcd/snapshots";
/// Bytes of the SHA-256 of all before it, which etcd writes behind a snapshot that it streams.
const SEAL_BYTES: u64 = 32;
/// etcd's database comes in pages of a multiple of this, bytes.
const PAGE_BYTES: u64 = 512;
/// Where a snapshot is restored as a trial: on the machine's own disk, since etcd waits for each write on the other.
const TRIAL: &str = "/var/lib/windlass/etcd-trial";
/// What restored data takes beside the database, bytes: a segment of its log, and room for whoever else writes.
const TRIAL_BESIDE: u64 = 128 << 20;
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
    let path = directory.join(UNFINISHED);
    let (bytes, digest) = run.blocking(move || Ok(read_through(&path)?)).await?;
    let restored = restore_as_a_trial(context, run, local, &unfinished, &status, bytes).await?;
    let snapshot = EtcdSnapshot {
        name: name(&status),
        revision: status.revision,
        hash: status.hash,
        keys: status.total_key,
        bytes,
        digest,
        format: status.version,
        restored,
    };
    let name = snapshot.name.clone();
    run.changed(format!(
        "snapshot {name} of {bytes} bytes at revision {}",
        snapshot.revision
    ));
    run.blocking(move || Ok(publish(&directory, &name, keep)?))
        .await?;
    // Plain values with string keys: serialising cannot fail.
    let text = serde_json::to_vec(&snapshot).unwrap_or_default();
    run.progress.output(OutputStream::Stdout, &text).await;
    Ok(())
}

/// Opens a snapshot that has its name; returns its size in bytes.
pub(crate) fn open(host: &Host, name: &str) -> io::Result<(fs::File, u64)> {
    if !is_name(name) {
        let said = format!("{name:?} is no name of a snapshot");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, said));
    }
    let file = fs::File::open(host.path(DIRECTORY).join(name))?;
    let bytes = file.metadata()?.len();
    if bytes > SNAPSHOT_BYTES_MAX {
        let said = format!("it has {bytes} bytes, more than {SNAPSHOT_BYTES_MAX}");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, said));
    }
    Ok((file, bytes))
}

/// Reads all of a snapshot and compares it with the digest that etcd wrote behind it; returns its size and its
/// own digest.
fn read_through(path: &Path) -> Result<(u64, Digest), EtcdError> {
    let cannot = |source| file("read", path, source);
    let mut from = fs::File::open(path).map_err(cannot)?;
    let bytes = from.metadata().map_err(cannot)?.len();
    if bytes % PAGE_BYTES != SEAL_BYTES {
        return Err(EtcdError::Torn { bytes });
    }
    let (mut whole, mut database) = (Hasher::default(), Hasher::default());
    let (mut seal, mut left) = (Vec::new(), bytes - SEAL_BYTES);
    let mut piece = vec![0; CHUNK_BYTES];
    loop {
        let read = from.read(&mut piece).map_err(cannot)?;
        if read == 0 {
            break;
        }
        whole.update(&piece[..read]);
        let of_database = left.min(read as u64);
        left -= of_database;
        // At most a piece.
        let (page, rest) = piece[..read].split_at(of_database as usize);
        database.update(page);
        seal.extend_from_slice(rest);
    }
    if database.finish().as_bytes()[..] == seal[..] {
        Ok((bytes, whole.finish()))
    } else {
        Err(EtcdError::Torn { bytes })
    }
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

/// Makes data of a snapshot as a restore would, looks whether it holds the same, and removes it. Without the room for
/// it nothing is made, which is said; returns whether it was tried.
async fn restore_as_a_trial(
    context: &Context,
    run: &Run,
    local: &Local<'_>,
    snapshot: &str,
    status: &SnapshotStatus,
    bytes: u64,
) -> Result<bool, Failure> {
    let place = context.host.path(TRIAL);
    let parent = place.parent().unwrap_or(&place).to_owned();
    let (before, after) = (place.clone(), place.clone());
    // An agent that has died in the middle has left it.
    let free = run.blocking(move || {
        data::remove(&before)?;
        Ok(free_bytes(&parent)?)
    });
    let (free, takes) = (free.await?, bytes.saturating_add(TRIAL_BESIDE));
    if free < takes {
        run.changed(format!(
            "the snapshot was not restored as a trial, which takes {takes} bytes of the machine's own disk: {free} \
             are free"
        ));
        return Ok(false);
    }
    let place = place.to_string_lossy().into_owned();
    let tried = trial(local, snapshot, &place, status).await;
    run.blocking(move || Ok(data::remove(&after)?)).await?;
    tried?;
    Ok(true)
}

async fn trial(
    local: &Local<'_>,
    snapshot: &str,
    place: &str,
    status: &SnapshotStatus,
) -> Result<(), EtcdError> {
    let program = format!("{}/etcdutl", local.directory);
    let data = format!("--data-dir={place}");
    let output = run_program(&[&program, "snapshot", "restore", snapshot, &data]).await?;
    let unusable = |said| EtcdError::Unusable {
        what: format!("snapshot {}", name(status)),
        said,
    };
    if !output.status.success() {
        return Err(unusable(super::last_line(&output.stderr)));
    }
    let made = verify(local, &format!("{place}/member/snap/db")).await?;
    let holds = |status: &SnapshotStatus| (status.revision, status.total_key);
    if holds(&made) == holds(status) {
        return Ok(());
    }
    Err(unusable(format!(
        "restored, it has {} keys at revision {}, and not {} at {}",
        made.total_key, made.revision, status.total_key, status.revision
    )))
}

/// Sorts as revisions do.
fn name(status: &SnapshotStatus) -> String {
    format!("{:020}-{:08x}.db", status.revision, status.hash)
}

/// Whether [`name`] may have given it.
fn is_name(text: &str) -> bool {
    let Some((revision, hash)) = text
        .strip_suffix(".db")
        .and_then(|stem| stem.split_once('-'))
    else {
        return false;
    };
    let digits =
        |text: &str, count, radix| text.len() == count && text.chars().all(|c| c.is_digit(radix));
    digits(revision, 20, 10) && digits(hash, 8, 16)
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
        let free = free_bytes(directory)?;
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

/// Bytes that are free on the disk of a directory.
pub(super) fn free_bytes(directory: &Path) -> Result<u64, EtcdError> {
    let stat = nix::sys::statvfs::statvfs(directory)
        .map_err(|errno| file("look at", directory, errno.into()))?;
    Ok(stat.blocks_available() * stat.fragment_size())
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
        if entry.file_name().to_str().is_some_and(is_name) {
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
            total_key: 1,
            version: String::new(),
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

    #[test]
    fn a_snapshot_is_compared_with_what_etcd_wrote_behind_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(UNFINISHED);
        let database = vec![7; 3 * CHUNK_BYTES];
        let mut whole = database.clone();
        whole.extend_from_slice(Digest::of(&database).as_bytes());
        fs::write(&path, &whole).unwrap();
        let read = read_through(&path).unwrap();
        assert_eq!(read, (whole.len() as u64, Digest::of(&whole)));
        let mut cut = whole.clone();
        cut.truncate(whole.len() - 1);
        let mut turned = whole;
        turned[5] ^= 1;
        for bad in [cut, turned, Vec::new()] {
            fs::write(&path, &bad).unwrap();
            let error = read_through(&path).unwrap_err();
            assert!(matches!(error, EtcdError::Torn { .. }), "{error}");
        }
    }

    #[test]
    fn only_what_a_snapshot_may_be_called_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        let host = Host::open(directory.path()).unwrap();
        let place = host.path(DIRECTORY);
        fs::create_dir_all(&place).unwrap();
        let right = "00000000000000000100-00000007.db";
        fs::write(place.join(right), b"kept").unwrap();
        assert_eq!(open(&host, right).unwrap().1, 4);
        for wrong in [
            "",
            "../data/member",
            "unfinished.db",
            "00000000000000000100-0000000g.db",
            "../00000000000000000100-00000007.db",
        ] {
            assert!(open(&host, wrong).is_err(), "{wrong}");
        }
    }
}
