//! `etcd-data`: the data of the machine's own member, looked at and replaced without etcd's help.
//!
//! # Invariants
//! * Data is made beside the old, carries a mark of its restore, and is synced; then it gets its name in one move.
//!   What has the mark is whole, and the same restore again leaves it alone.
//! * The data that a member had lies beside it afterwards. The next restore that finds other data in place takes
//!   that name for it; what a restore without an end has put there is removed instead.
//!
//! # After a crash
//! Names and marks say how far it got: data that is made and not in place is put there, everything else begins
//! again. Nothing is removed that was not given another name first.
//!
//! # Not here
//! That no other member runs meanwhile, and that nobody begins with old data afterwards (the director's plan).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use windlass_common::step::{
    Etcd, EtcdAction, EtcdData, EtcdDataAction, EtcdDataReport, EtcdRestore, EtcdRestoreId,
    EtcdSource, Fetch, OutputStream, Payload,
};

use super::parse::EndpointStatus;
use super::snapshot::{self, file};
use super::{Context, EtcdError, Failure, Local, Run, last_line, run_program};
use crate::host::Host;
use crate::steps::fetch;
use crate::units::Job;

/// Where the data disk is mounted.
const DISK: &str = "/var/lib/etcd";
/// etcd's own directory on it.
const DATA: &str = "data";
/// What is being made.
const MADE: &str = "restoring";
/// What a member had before.
const BEFORE: &str = "before-restore";
/// What is being removed.
const REMOVED: &str = "removed";
/// A copy that is looked at.
const COPY: &str = "looked-at.db";
/// The mark, a file beside etcd's own in its directory.
const MARK: &str = "windlass-restore.json";
/// Its unit.
const UNIT: &str = "etcd.service";
/// Room for the log of a member that begins: two segments, and one that it writes next.
const LOG_BYTES: u64 = 3 * 64_000_000;
/// Longest mark that is read, bytes.
const MARK_BYTES_MAX: u64 = 4096;
/// How long a database may take to be looked at: 8 GiB at 100 MB/s.
const LOOK: Duration = Duration::from_secs(90);

/// Says which restore data is of.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    restore: String,
}

/// What is found under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Data without a mark, or what was not finished.
    Unmarked,
    Marked(String),
}

/// What a restore does with the data that is in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Old {
    /// There is none.
    None,
    /// It is kept beside.
    Keep,
    /// Nobody used it.
    Remove,
}

/// What is left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// It is in place.
    Nothing,
    /// It is made, and not in place.
    Put(Old),
    /// It has to be made.
    Make(Old),
}

fn decide(restore: &EtcdRestoreId, data: &Found, made: &Found) -> Left {
    let ours = |found: &Found| matches!(found, Found::Marked(id) if *id == restore.id);
    if ours(data) {
        return Left::Nothing;
    }
    let old = match data {
        Found::Nothing => Old::None,
        Found::Marked(id) if restore.unfinished.contains(id) => Old::Remove,
        Found::Marked(_) | Found::Unmarked => Old::Keep,
    };
    if ours(made) {
        Left::Put(old)
    } else {
        Left::Make(old)
    }
}

pub(in crate::steps) async fn run(
    context: &Context,
    run: &Run,
    step: &EtcdData,
) -> Result<Payload, Failure> {
    let disk = context.host.path(DISK);
    match &step.action {
        EtcdDataAction::Inspect => {
            let report = inspect(context, run, step, &disk).await?;
            // Plain values with string keys: serialising cannot fail.
            let text = serde_json::to_vec(&report).unwrap_or_default();
            run.progress.output(OutputStream::Stdout, &text).await;
        }
        EtcdDataAction::SetAside(restore) => {
            put_in_place(context, run, &disk, restore, None).await?;
        }
        EtcdDataAction::Restore(restore) => {
            put_in_place(context, run, &disk, &restore.restore, Some(restore)).await?;
        }
    }
    Ok(Payload::None)
}

/// Replaces the data by what `from` says, or by nothing.
async fn put_in_place(
    context: &Context,
    run: &Run,
    disk: &Path,
    restore: &EtcdRestoreId,
    from: Option<&EtcdRestore>,
) -> Result<(), Failure> {
    let (place, id) = (disk.to_owned(), restore.clone());
    let look = move || {
        remove(&place.join(REMOVED))?;
        let (data, made) = (found(&place.join(DATA))?, found(&place.join(MADE))?);
        Ok(decide(&id, &data, &made))
    };
    let left = run.blocking(look).await?;
    let old = match left {
        Left::Nothing => return Ok(()),
        Left::Put(old) | Left::Make(old) => old,
    };
    stop(context, run).await?;
    if matches!(left, Left::Make(_)) {
        let place = disk.to_owned();
        run.blocking(move || Ok(discard(&place, MADE)?)).await?;
        if let Some(from) = from {
            make(context, run, disk, from).await?;
        }
        let (place, id) = (disk.to_owned(), restore.id.clone());
        run.blocking(move || Ok(mark(&place, &id)?)).await?;
    }
    let place = disk.to_owned();
    run.blocking(move || Ok(put(&place, old)?)).await?;
    run.changed(match from {
        Some(from) => format!("etcd's data is what {} says", told(&from.source)),
        None => "etcd begins without data".to_owned(),
    });
    match old {
        Old::Keep => run.changed(format!("what it had before is kept in {DISK}/{BEFORE}")),
        Old::Remove => run.changed("what a restore without an end had put there is removed"),
        Old::None => {}
    }
    if let Some(EtcdSource::Snapshot { digest, .. }) = from.map(|from| &from.source) {
        // It holds what the data holds, and is of no more use.
        let artifact = context.host.path(&Host::artifact_path(digest));
        run.blocking(move || Ok(snapshot::remove(&artifact)?))
            .await?;
    }
    Ok(())
}

fn told(source: &EtcdSource) -> String {
    match source {
        EtcdSource::Snapshot { digest, .. } => format!("snapshot {digest}"),
        EtcdSource::Own => "its own database".to_owned(),
    }
}

/// The member ends, whoever has started it again.
async fn stop(context: &Context, run: &Run) -> Result<(), Failure> {
    let state = context.units.state(UNIT).await?;
    if !matches!(state.active_state.as_str(), "inactive" | "failed") {
        context.units.queue(Job::Stop, UNIT).await?.done().await?;
        run.changed(format!("{UNIT}: stopped"));
    }
    Ok(())
}

/// Makes the data that `restore` asks for, without its mark.
async fn make(
    context: &Context,
    run: &Run,
    disk: &Path,
    restore: &EtcdRestore,
) -> Result<(), Failure> {
    let (snapshot, bytes) = match &restore.source {
        EtcdSource::Snapshot { digest, bytes } => {
            let fetch = Fetch {
                digest: *digest,
                bytes: *bytes,
            };
            fetch::run(context, run, &fetch).await?;
            (context.host.path(&Host::artifact_path(digest)), *bytes)
        }
        EtcdSource::Own => {
            let database = database(disk);
            let length = fs::metadata(&database).map(|meta| meta.len());
            let bytes = length.map_err(|source| file("look at", &database, source))?;
            (database, bytes)
        }
    };
    room(disk, bytes)?;
    run.stage(format!("making data from {bytes} bytes"));
    let program = context.host.path(super::DIRECTORY).join("etcdutl");
    let written = |peer: &windlass_common::step::EtcdPeer| format!("{}={}", peer.name, peer.url);
    let members: Vec<String> = restore.members.iter().map(written).collect();
    let mut argv = vec![
        text(&program),
        "snapshot".to_owned(),
        "restore".to_owned(),
        text(&snapshot),
        format!("--name={}", restore.member.name),
        format!("--initial-advertise-peer-urls={}", restore.member.url),
        format!("--initial-cluster={}", members.join(",")),
        format!("--initial-cluster-token={}", restore.token),
        format!("--data-dir={}", text(&disk.join(MADE))),
        format!("--bump-revision={}", restore.bump_revision),
        "--mark-compacted".to_owned(),
    ];
    if restore.source == EtcdSource::Own {
        // A database in use has no digest behind it.
        argv.push("--skip-hash-check".to_owned());
    }
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let output = run_program(&argv).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(EtcdError::Unusable {
        what: told(&restore.source),
        said: last_line(&output.stderr),
    }
    .into())
}

/// Marks what was made as whole. What is to be nothing is made here.
fn mark(disk: &Path, restore: &str) -> Result<(), EtcdError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = disk.join(MADE);
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(&made)
        .map_err(|source| file("make", &made, source))?;
    sync_disk(disk)?;
    let mark = Mark {
        restore: restore.to_owned(),
    };
    let path = made.join(MARK);
    let text = serde_json::to_vec(&mark).unwrap_or_default();
    let written = File::create(&path).and_then(|mut file| {
        io::Write::write_all(&mut file, &text)?;
        file.sync_all()
    });
    written.map_err(|source| file("write", &path, source))?;
    sync(&made)
}

/// Gives what was made its place.
fn put(disk: &Path, old: Old) -> Result<(), EtcdError> {
    match old {
        Old::None => {}
        Old::Remove => discard(disk, DATA)?,
        Old::Keep => {
            discard(disk, BEFORE)?;
            name(disk, DATA, BEFORE)?;
        }
    }
    name(disk, MADE, DATA)
}

fn name(disk: &Path, from: &str, to: &str) -> Result<(), EtcdError> {
    let (from, to) = (disk.join(from), disk.join(to));
    fs::rename(&from, &to).map_err(|source| file("move", &from, source))?;
    sync(disk)
}

/// Removes a directory: under another name first, so that half of it is never taken for the whole.
fn discard(disk: &Path, what: &str) -> Result<(), EtcdError> {
    if found(&disk.join(what))? == Found::Nothing {
        return Ok(());
    }
    remove(&disk.join(REMOVED))?;
    name(disk, what, REMOVED)?;
    remove(&disk.join(REMOVED))
}

pub(super) fn remove(directory: &Path) -> Result<(), EtcdError> {
    match fs::remove_dir_all(directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(file("remove", directory, source))
        }
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> Result<(), EtcdError> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|source| file("write", directory, source))
}

/// Everything that a program has written there.
fn sync_disk(disk: &Path) -> Result<(), EtcdError> {
    let opened = File::open(disk).map_err(|source| file("open", disk, source))?;
    nix::unistd::syncfs(opened).map_err(|errno| file("write", disk, errno.into()))
}

fn found(directory: &Path) -> Result<Found, EtcdError> {
    if !directory.exists() {
        return Ok(Found::Nothing);
    }
    let path = directory.join(MARK);
    let mut text = String::new();
    let read = File::open(&path).and_then(|file| {
        io::Read::read_to_string(&mut io::Read::take(file, MARK_BYTES_MAX), &mut text)
    });
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Unmarked),
        Err(source) => return Err(file("read", &path, source)),
    }
    // One that was cut off is none.
    let mark = serde_json::from_str(&text);
    Ok(mark.map_or(Found::Unmarked, |mark: Mark| Found::Marked(mark.restore)))
}

/// Refuses what would fill the disk.
fn room(disk: &Path, bytes: u64) -> Result<(), EtcdError> {
    let stat =
        nix::sys::statvfs::statvfs(disk).map_err(|errno| file("look at", disk, errno.into()))?;
    let free = stat.blocks_available() * stat.fragment_size();
    if free < bytes.saturating_add(LOG_BYTES) {
        let before = format!("{DISK}/{BEFORE}");
        return Err(EtcdError::NoRoomToRestore {
            bytes,
            free,
            before,
        });
    }
    Ok(())
}

async fn inspect(
    context: &Context,
    run: &Run,
    step: &EtcdData,
    disk: &Path,
) -> Result<EtcdDataReport, Failure> {
    let (place, looked) = (disk.to_owned(), disk.join(DATA));
    let look = move || {
        Ok(EtcdDataReport {
            db_bytes: fs::metadata(database(&place)).ok().map(|meta| meta.len()),
            last_write_ms: last_write(&place.join(DATA).join("member/wal")),
            restored: match found(&looked)? {
                Found::Marked(id) => Some(id),
                Found::Nothing | Found::Unmarked => None,
            },
            ..EtcdDataReport::default()
        })
    };
    let mut report = run.blocking(look).await?;
    let etcd = Etcd {
        address: step.address,
        ca_path: step.ca_path.clone(),
        client: step.client.clone(),
        action: EtcdAction::Report,
    };
    let local = Local::new(context, &etcd);
    // Asks this member alone, which answers without a majority.
    let status: Result<Vec<EndpointStatus>, EtcdError> = local.json(&["endpoint", "status"]).await;
    if let Some(status) = status.ok().as_ref().and_then(|list| list.first()) {
        status.add_to(&mut report);
        return Ok(report);
    }
    if report.db_bytes.is_some() {
        report.revision = offline(&local, run, disk).await?;
    }
    Ok(report)
}

/// Revision of a database whose member does not answer; `None` when it cannot be read.
async fn offline(local: &Local<'_>, run: &Run, disk: &Path) -> Result<Option<u64>, Failure> {
    // A member that runs and waits for the others holds its database locked: a copy is looked at.
    let (from, copy) = (database(disk), disk.join(COPY));
    let bytes = fs::metadata(&from).map_or(0, |meta| meta.len());
    if room(disk, bytes).is_err() {
        return Ok(None); // not known is not lost
    }
    let to = copy.clone();
    let copied = move || match fs::copy(&from, &to) {
        Ok(_) => Ok(()),
        Err(source) => Err(file("copy", &from, source).into()),
    };
    run.blocking(copied).await?;
    let path = text(&copy);
    let looked = tokio::time::timeout(LOOK, snapshot::verify(local, &path)).await;
    run.blocking(move || Ok(snapshot::remove(&copy)?)).await?;
    Ok(looked
        .ok()
        .and_then(Result::ok)
        .map(|status| status.revision))
}

fn database(disk: &Path) -> PathBuf {
    disk.join(DATA).join("member/snap/db")
}

/// When the newest file of the log was written to.
fn last_write(log: &Path) -> Option<u64> {
    let entries = fs::read_dir(log).ok()?;
    let written = |entry: io::Result<fs::DirEntry>| entry.ok()?.metadata().ok()?.modified().ok();
    let newest = entries.filter_map(written).max()?;
    let since = newest.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restore(id: &str, unfinished: &[&str]) -> EtcdRestoreId {
        EtcdRestoreId {
            id: id.to_owned(),
            unfinished: unfinished.iter().map(|id| (*id).to_owned()).collect(),
        }
    }

    #[test]
    fn what_is_found_says_what_is_left() {
        let marked = |id: &str| Found::Marked(id.to_owned());
        let (nothing, unmarked) = (Found::Nothing, Found::Unmarked);
        let ours = restore("t3", &["t2", "t1"]);
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("at first",                      unmarked.clone(), nothing.clone(),  Left::Make(Old::Keep)),
            ("cut off while it was made",     unmarked.clone(), unmarked.clone(), Left::Make(Old::Keep)),
            ("another one's, never put",      unmarked.clone(), marked("t2"),     Left::Make(Old::Keep)),
            ("made",                          unmarked.clone(), marked("t3"),     Left::Put(Old::Keep)),
            ("cut off between the two moves", nothing.clone(),  marked("t3"),     Left::Put(Old::None)),
            ("in place",                      marked("t3"),     nothing.clone(),  Left::Nothing),
            ("in place, and something else",  marked("t3"),     unmarked.clone(), Left::Nothing),
            ("a new disk",                    nothing.clone(),  nothing.clone(),  Left::Make(Old::None)),
            ("of one that was used",          marked("t0"),     nothing.clone(),  Left::Make(Old::Keep)),
            ("of one without an end",         marked("t2"),     nothing.clone(),  Left::Make(Old::Remove)),
            ("the same, made",                marked("t1"),     marked("t3"),     Left::Put(Old::Remove)),
        ];
        for (name, data, made, want) in cases {
            assert_eq!(decide(&ours, &data, &made), want, "{name}");
        }
    }

    /// A disk with data of a member, as `disk` says.
    fn disk() -> tempfile::TempDir {
        let disk = tempfile::tempdir().unwrap();
        fs::create_dir_all(disk.path().join("data/member")).unwrap();
        fs::write(disk.path().join("data/member/db"), b"old").unwrap();
        disk
    }

    fn made(disk: &Path, id: &str, content: &[u8]) {
        fs::create_dir_all(disk.join(MADE).join("member")).unwrap();
        fs::write(disk.join(MADE).join("member/db"), content).unwrap();
        mark(disk, id).unwrap();
    }

    fn read(disk: &Path, of: &str) -> Vec<u8> {
        fs::read(disk.join(of).join("member/db")).unwrap()
    }

    #[test]
    fn what_was_before_is_kept_through_restores_without_an_end() {
        let rig = disk();
        let disk = rig.path();
        made(disk, "t1", b"first");
        put(disk, Old::Keep).unwrap();
        assert_eq!(found(&disk.join(DATA)).unwrap(), Found::Marked("t1".into()));
        assert_eq!(
            (read(disk, DATA), read(disk, BEFORE)),
            (b"first".to_vec(), b"old".to_vec())
        );
        // It never came to its end: the next one removes what it has put there.
        made(disk, "t2", b"second");
        let data = found(&disk.join(DATA)).unwrap();
        let left = decide(
            &restore("t2", &["t1"]),
            &data,
            &found(&disk.join(MADE)).unwrap(),
        );
        assert_eq!(left, Left::Put(Old::Remove));
        put(disk, Old::Remove).unwrap();
        assert_eq!(
            (read(disk, DATA), read(disk, BEFORE)),
            (b"second".to_vec(), b"old".to_vec())
        );
        // It did, and was used: the next one keeps that.
        made(disk, "t3", b"third");
        put(disk, Old::Keep).unwrap();
        assert_eq!(
            (read(disk, DATA), read(disk, BEFORE)),
            (b"third".to_vec(), b"second".to_vec())
        );
        assert!(!disk.join(REMOVED).exists() && !disk.join(MADE).exists());
    }

    #[test]
    fn a_crash_between_any_two_moves_is_gone_on_from() {
        let ours = restore("t1", &[]);
        let go_on = |disk: &Path| {
            remove(&disk.join(REMOVED)).unwrap();
            match decide(
                &ours,
                &found(&disk.join(DATA)).unwrap(),
                &found(&disk.join(MADE)).unwrap(),
            ) {
                Left::Nothing => {}
                Left::Put(old) => put(disk, old).unwrap(),
                Left::Make(old) => {
                    discard(disk, MADE).unwrap();
                    made(disk, "t1", b"new");
                    put(disk, old).unwrap();
                }
            }
        };
        // The moves of a restore that finds data of before, and what an earlier one had kept.
        let moves: [&dyn Fn(&Path); 5] = [
            &|disk| fs::create_dir_all(disk.join(MADE).join("member")).unwrap(),
            &|disk| made(disk, "t1", b"new"),
            &|disk| name(disk, BEFORE, REMOVED).unwrap(),
            &|disk| name(disk, DATA, BEFORE).unwrap(),
            &|disk| name(disk, MADE, DATA).unwrap(),
        ];
        for cut in 0..=moves.len() {
            let rig = disk();
            let disk = rig.path();
            fs::create_dir_all(disk.join(BEFORE).join("member")).unwrap();
            fs::write(disk.join(BEFORE).join("member/db"), b"older").unwrap();
            for act in &moves[..cut] {
                act(disk);
            }
            go_on(disk);
            go_on(disk);
            assert_eq!(read(disk, DATA), b"new", "cut after {cut}");
            assert_eq!(read(disk, BEFORE), b"old", "cut after {cut}");
            assert!(!disk.join(REMOVED).exists(), "cut after {cut}");
        }
    }

    #[test]
    fn what_is_set_aside_leaves_a_member_without_data() {
        let rig = disk();
        mark(rig.path(), "t1").unwrap();
        put(rig.path(), Old::Keep).unwrap();
        assert_eq!(
            found(&rig.path().join(DATA)).unwrap(),
            Found::Marked("t1".into())
        );
        assert!(!rig.path().join("data/member").exists());
        assert_eq!(read(rig.path(), BEFORE), b"old");
    }
}
