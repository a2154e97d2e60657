//! Puts a backup of a director into a data directory: here, or on another host.
//!
//! # Order
//! Look that nothing is there → lock → unpack beside its place (`.restoring`) → verify all of it, the key of the
//! store against every secret included → write the hold and the new epoch into the copy → move the files into
//! place, `director.toml` last.
//!
//! # Invariants
//! * Nothing is in its place before everything was verified.
//! * The restored director is [on hold](super::hold) from its first moment, and its epoch is above that of
//!   every director before it ([`epoch_after`]).
//!
//! # After a crash
//! A directory without `director.toml` was not restored to its end: no director starts in it, and restoring
//! again removes what the first attempt left and begins anew. Once `director.toml` is there it is done.
//!
//! # Not here
//! What is done about the world having changed since the backup (`adopt`).

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use windlass_common::error::ErrorClass;
use windlass_common::id::Epoch;

use super::director::{self, BackupError, FILES, Manifest, OPERATOR, STORE, file_error};
use super::envelope::Identity as Key;
use super::hold::{self, HoldRecord};
use crate::config::{Config, ConfigError, DataDir, Identity, IdentityError};
use crate::model::Timestamp;
use crate::store::{Commit, DirectoryLock, LockError, StoreError, snapshot};

/// Where an archive is unpacked, in the data directory.
const STAGE: &str = ".restoring";
/// What may be in a data directory that is restored into: what is no state of the director's own.
const OTHERS: [&str; 5] = [
    "stemcells",
    "provider",
    "artifacts",
    "lost+found",
    "director.lock",
];

/// Why a director was not restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// A director is there.
    #[error(
        "{} has the state of a director already; restore into another directory with --data-dir, or stop that director and move the directory away",
        .0.display()
    )]
    Exists(PathBuf),
    /// Something is there.
    #[error(
        "{} is not empty ({found}); restore into a new directory with --data-dir, or move what is there away (stemcells, provider and artifacts may stay)",
        dir.display()
    )]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// A file in it.
        found: String,
    },
    /// Somebody works in it.
    #[error("the data directory is in use")]
    Lock(#[from] LockError),
    /// The archive is of no use.
    #[error("the backup cannot be used; nothing was restored")]
    Backup(#[from] BackupError),
    /// The configuration in it is not usable.
    #[error("the configuration in the backup cannot be used; nothing was restored")]
    Config(#[from] ConfigError),
    /// The identity in it is not usable.
    #[error("the identity in the backup cannot be used; nothing was restored")]
    Identity(#[from] IdentityError),
    /// The store in it is not usable.
    #[error("the store in the backup cannot be used; nothing was restored")]
    Store(#[from] StoreError),
    /// A file does not get into its place.
    #[error("cannot put {} into its place; restore again, which begins anew", path.display())]
    Place {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl RestoreError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Backup(error) => error.class(),
            Self::Identity(error) => error.class(),
            Self::Store(error) => error.class(),
            Self::Exists(_)
            | Self::NotEmpty { .. }
            | Self::Lock(_)
            | Self::Config(_)
            | Self::Place { .. } => ErrorClass::Operator,
        }
    }
}

/// What was restored.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Restored {
    /// The data directory.
    pub data_dir: PathBuf,
    /// The director's id.
    pub id: String,
    /// The epoch below which no director of this id may act any more; the first start takes the next one.
    pub epoch: Epoch,
    /// What the archive says of itself.
    pub backup: Manifest,
}

/// What to restore.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// The archive.
    pub archive: PathBuf,
    /// An epoch that must be exceeded, when an operator knows one; see [`epoch_after`].
    pub above: Option<Epoch>,
    /// Now.
    pub now: Timestamp,
}

/// The epoch that a restored director begins with: above the backup's, above what an operator knows, and
/// not below the milliseconds since 1970.
///
/// A director's epoch grows by one at each start, and no director starts a thousand times a second. So every
/// epoch that was ever in use is below the milliseconds of its day, whether it came from starts or from an
/// earlier restore, as long as clocks are roughly right; what agents say of a wrong one is learned
/// before the hold ends ([`super::adopt`]). See `docs/adr/0004-restoring-a-director.md`.
pub fn epoch_after(backup: Epoch, above: Option<Epoch>, now: Timestamp) -> Epoch {
    let known = backup.0.max(above.map_or(0, |epoch| epoch.0));
    Epoch(known.saturating_add(1).max(now.unix_ms()))
}

/// Restores a backup into the data directory.
///
/// # Errors
/// [`RestoreError`]. The directory is then without a director, and the same call begins anew.
pub async fn restore(
    dir: &DataDir,
    key: &Key,
    request: &RestoreRequest,
) -> Result<Restored, RestoreError> {
    restore_through(dir, key, request, &mut |_| Ok(())).await
}

/// The same; `before` is called before each change of the file system, and may end it there.
async fn restore_through(
    dir: &DataDir,
    key: &Key,
    request: &RestoreRequest,
    before: &mut (dyn FnMut(&Path) -> io::Result<()> + Send),
) -> Result<Restored, RestoreError> {
    check_free(dir)?;
    let place = |path: &Path, source| RestoreError::Place {
        path: path.to_owned(),
        source,
    };
    make_dir(dir.path())?;
    let _lock = DirectoryLock::acquire(dir.path())?;
    let stage = dir.path().join(STAGE);
    before(&stage).map_err(|e| place(&stage, e))?;
    if stage.exists() {
        clear(dir).map_err(|e| place(&stage, e))?;
    }
    make_dir(&stage)?;
    let inner = stage.join("unpacked");
    make_dir(&inner)?;
    let inner = DataDir::new(&inner).map_err(|e| place(&stage, e))?;
    before(inner.path()).map_err(|e| place(inner.path(), e))?;
    let file = File::open(&request.archive).map_err(file_error("read", &request.archive))?;
    let manifest = director::unpack(key, io::BufReader::new(file), inner.path())?;
    director::check_store(&manifest, &inner.store())?;
    let config = fs::read_to_string(inner.config()).map_err(file_error("read", &inner.config()))?;
    Config::parse(&config, dir).map_err(|faults| ConfigError::Invalid {
        path: inner.config(),
        faults,
    })?;
    Key::load(&inner.backup_key()).map_err(BackupError::from)?;
    before(&inner.store()).map_err(|e| place(&inner.store(), e))?;
    let (id, epoch) = begin_hold(&inner, &manifest, request).await?;
    let store = stage.join(STORE);
    snapshot(&inner.store(), &store)?;
    for (from, name) in moves(&stage, &inner) {
        let to = dir.path().join(name);
        before(&to).map_err(|e| place(&to, e))?;
        fs::rename(&from, &to).map_err(|e| place(&to, e))?;
        sync(dir.path()).map_err(|e| place(&to, e))?;
    }
    // It is restored: what is left of the stage is a copy that nobody reads.
    if let Err(error) = fs::remove_dir_all(&stage) {
        tracing::warn!(path = %stage.display(), %error, "remove what the restore left");
    }
    Ok(Restored {
        data_dir: dir.path().to_owned(),
        id,
        epoch,
        backup: manifest,
    })
}

/// Every file that gets into place, in this order: what makes a data directory one comes last.
fn moves(stage: &Path, inner: &DataDir) -> Vec<(PathBuf, &'static str)> {
    let files = FILES.iter().map(|(name, _)| *name);
    let last = |name: &&str| *name == crate::config::FILE;
    let first = files.clone().filter(|name| !last(name)).chain([OPERATOR]);
    let mut moves = vec![(stage.join(STORE), STORE)];
    moves.extend(
        first
            .chain(files.filter(last))
            .map(|name| (inner.path().join(name), name)),
    );
    moves.retain(|(from, name)| *name == STORE || from.exists());
    moves
}

/// Writes into the copy of the store that its director is on hold, and its new epoch.
async fn begin_hold(
    inner: &DataDir,
    manifest: &Manifest,
    request: &RestoreRequest,
) -> Result<(String, Epoch), RestoreError> {
    let now = jiff::Timestamp::from_millisecond(request.now.unix_ms().cast_signed());
    let identity = Identity::load(inner, now.unwrap_or(jiff::Timestamp::UNIX_EPOCH)).await?;
    let records = &identity.records;
    records.check_secrets().await?;
    let mut commit = Commit::default();
    let least = epoch_after(records.epoch().await?, request.above, request.now);
    let epoch = records.raise_epoch(&mut commit, least).await?;
    let record = HoldRecord {
        since: request.now,
        backup_at: manifest.taken_at,
        backup_version: manifest.version.clone(),
    };
    hold::put(&mut commit, &record);
    let detail = format!("backup of {}, epoch {epoch}", manifest.taken_at);
    records.audit(
        &mut commit,
        "director",
        "director.restore",
        "director",
        &detail,
    );
    records.commit(commit).await?;
    Ok((identity.id.to_string(), epoch))
}

fn check_free(dir: &DataDir) -> Result<(), RestoreError> {
    if dir.config().exists() {
        return Err(RestoreError::Exists(dir.path().to_owned()));
    }
    let entries = match fs::read_dir(dir.path()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(file_error("read", dir.path())(source).into()),
    };
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let names: Vec<String> = names.collect();
    // An attempt that was cut off: all that it may have placed is removed before the next one.
    if names.iter().any(|name| name == STAGE) {
        return Ok(());
    }
    match names
        .into_iter()
        .find(|name| !OTHERS.contains(&name.as_str()))
    {
        None => Ok(()),
        Some(found) => Err(RestoreError::NotEmpty {
            dir: dir.path().to_owned(),
            found,
        }),
    }
}

/// Removes what an attempt left that was cut off; its stage last, since that is what tells.
fn clear(dir: &DataDir) -> io::Result<()> {
    let placed = FILES.iter().map(|(name, _)| *name).chain([STORE, OPERATOR]);
    for path in placed.map(|name| dir.path().join(name)) {
        let removed = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    sync(dir.path())?;
    fs::remove_dir_all(dir.path().join(STAGE))
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn make_dir(path: &Path) -> Result<(), RestoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    Ok(made.map_err(file_error("make", path))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::envelope::EnvelopeError;
    use crate::config::{InitRequest, init};

    fn at() -> Timestamp {
        Timestamp::from_unix_ms(1_800_000_000_000)
    }

    async fn made(path: &Path) -> (DataDir, Key) {
        let dir = DataDir::new(path).unwrap();
        init(&dir, InitRequest::default()).await.unwrap();
        let key = Key::load(&dir.backup_key()).unwrap();
        (dir, key)
    }

    fn request(archive: &Path) -> RestoreRequest {
        RestoreRequest {
            archive: archive.to_owned(),
            above: None,
            now: at(),
        }
    }

    async fn opened(dir: &DataDir) -> Identity {
        Identity::load(dir, jiff::Timestamp::now()).await.unwrap()
    }

    #[tokio::test]
    async fn another_directory_is_the_same_director_on_hold() {
        let root = tempfile::tempdir().unwrap();
        let (dir, key) = made(&root.path().join("old")).await;
        let before = opened(&dir).await;
        before.records.next_epoch().await.unwrap();
        let operator = super::super::envelope::Identity::generate();
        let archive = root.path().join("a.age");
        let recipients = [key.recipient(), operator.recipient()];
        let (manifest, bytes) = director::write_file(&dir, &recipients, at(), &archive).unwrap();
        assert_eq!(bytes, fs::metadata(&archive).unwrap().len());
        assert_eq!(director::verify(&dir, &key, &archive).unwrap(), manifest);
        // What comes later is not in it.
        before.records.next_epoch().await.unwrap();
        fs::remove_file(dir.seal_key()).unwrap();
        let new = DataDir::new(&root.path().join("new")).unwrap();
        let restored = restore(&new, &operator, &request(&archive)).await.unwrap();
        assert_eq!(restored.id, before.id.to_string());
        assert_eq!(restored.epoch, Epoch(at().unix_ms()));
        let after = opened(&new).await;
        assert_eq!(after.id, before.id);
        assert_eq!(after.ca.root_pem(), before.ca.root_pem());
        let held = hold::get(&after.records).await.unwrap().unwrap();
        assert_eq!((held.since, held.backup_at), (at(), at()));
        assert_eq!(
            after.records.next_epoch().await.unwrap().0,
            at().unix_ms() + 1
        );
        assert!(Config::load(&new).is_ok());
        assert_eq!(
            Key::load(&new.backup_key()).unwrap().recipient(),
            key.recipient()
        );
        assert!(!new.path().join(STAGE).exists());
        let again = restore(&new, &operator, &request(&archive))
            .await
            .unwrap_err();
        assert!(matches!(again, RestoreError::Exists(_)), "{again}");
    }

    #[tokio::test]
    async fn what_is_not_whole_or_not_ours_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let (dir, key) = made(&root.path().join("old")).await;
        let archive = root.path().join("a.age");
        director::write_file(&dir, &[key.recipient()], at(), &archive).unwrap();
        let twice = director::write_file(&dir, &[key.recipient()], at(), &archive).unwrap_err();
        assert!(matches!(twice, BackupError::File { .. }), "{twice}");
        let whole = fs::read(&archive).unwrap();
        let new = DataDir::new(&root.path().join("new")).unwrap();
        let stranger = Key::generate();
        let refused = restore(&new, &stranger, &request(&archive))
            .await
            .unwrap_err();
        assert!(
            matches!(
                &refused,
                RestoreError::Backup(BackupError::Envelope(EnvelopeError::WrongIdentity(who)))
                    if *who == stranger.recipient()
            ),
            "{refused:?}"
        );
        for cut in [10, whole.len() / 2, whole.len() - 1] {
            fs::write(&archive, &whole[..cut]).unwrap();
            assert!(restore(&new, &key, &request(&archive)).await.is_err());
            assert!(!new.config().exists() && !new.store().exists());
        }
        let mut altered = whole.clone();
        altered[whole.len() - 100] ^= 1;
        fs::write(&archive, &altered).unwrap();
        assert!(restore(&new, &key, &request(&archive)).await.is_err());
        // Nothing of the attempts is in the way of a good one.
        fs::write(&archive, &whole).unwrap();
        restore(&new, &key, &request(&archive)).await.unwrap();
        let used = DataDir::new(&root.path().join("used")).unwrap();
        fs::create_dir(used.path()).unwrap();
        fs::write(used.path().join("precious"), "x").unwrap();
        let refused = restore(&used, &key, &request(&archive)).await.unwrap_err();
        assert!(refused.to_string().contains("precious"), "{refused}");
        assert_eq!(fs::read_dir(used.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_crash_anywhere_leaves_no_director_or_the_whole_one() {
        let root = tempfile::tempdir().unwrap();
        let (dir, key) = made(&root.path().join("old")).await;
        let archive = root.path().join("a.age");
        director::write_file(&dir, &[key.recipient()], at(), &archive).unwrap();
        for dies_at in 0.. {
            let new = DataDir::new(&root.path().join(format!("new{dies_at}"))).unwrap();
            let mut step = 0;
            let died = restore_through(&new, &key, &request(&archive), &mut |_| {
                step += 1;
                match step > dies_at {
                    true => Err(io::ErrorKind::Interrupted.into()),
                    false => Ok(()),
                }
            })
            .await;
            if died.is_ok() {
                assert!(dies_at > 7, "there are that many steps: {dies_at}");
                return;
            }
            assert!(!new.config().exists(), "{dies_at}");
            restore(&new, &key, &request(&archive)).await.unwrap();
            assert!(
                hold::get(&opened(&new).await.records)
                    .await
                    .unwrap()
                    .is_some()
            );
            assert!(!new.path().join(STAGE).exists());
        }
    }

    #[test]
    fn the_epoch_is_above_every_one_before() {
        let now = at().unix_ms();
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("a few starts",             3,       None,          now),
            ("restored before",          now - 9, None,          now),
            ("the clock was set back",   now + 9, None,          now + 10),
            ("an operator knows better", 3,       Some(now + 9), now + 10),
        ];
        for (name, backup, above, want) in cases {
            let got = epoch_after(Epoch(backup), above.map(Epoch), at());
            assert_eq!(got, Epoch(want), "{name}");
        }
    }
}
