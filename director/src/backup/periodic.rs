//! OwnBackups of a running director: on order, as a stream, and by itself, into the repository.
//!
//! # Invariants
//! * One backup at a time: each copies the whole store.
//! * A scheduled backup counts once it was read back to its end and is in its place. Older ones are pruned after that
//!   alone, and nothing but what is named like them.
//! * A director that is on hold takes none by itself: what it was restored from may be the only good one.
//!
//! # After a crash
//! The store says when the last one was taken, so that the next one comes when it is due.

use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use windlass_common::error::ErrorChain;

use super::director::{self, BackupError};
use super::envelope::{Identity, Recipient};
use super::hold::Hold;
use super::own_name::{OwnName, surplus};
use super::repository::Repository;
use crate::config::{BackupConfig, DataDir};
use crate::model::Timestamp;
use crate::store::{Commit, Expect, Kind, Records, StoreError};

/// Name of the entry that says when the last backup was taken.
const LAST: &str = "backup";
/// Pieces of a stream that wait for their reader, and the size of each in bytes: 256 KiB.
const PIECES: usize = 4;
const PIECE_BYTES: usize = 64 << 10;
/// Pause after a scheduled backup that failed, at most.
const AGAIN: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Last {
    at: Timestamp,
}

/// Takes the backups of one director.
#[derive(Debug, Clone)]
pub struct OwnBackups {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: DataDir,
    key: Identity,
    config: BackupConfig,
    repository: Arc<dyn Repository>,
    records: Records,
    hold: Hold,
    /// One at a time.
    turn: Mutex<()>,
    last: Mutex<Option<Timestamp>>,
    failed: AtomicU64,
}

impl OwnBackups {
    /// OwnBackups of this data directory, sealed for its own key and for the configured recipients.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn new(
        dir: DataDir,
        key: &Identity,
        config: &BackupConfig,
        repository: Arc<dyn Repository>,
        records: Records,
        hold: Hold,
    ) -> Result<OwnBackups, StoreError> {
        let last: Option<(_, Last)> = records.value(Kind::Meta, LAST).await?;
        Ok(OwnBackups {
            inner: Arc::new(Inner {
                dir,
                key: key.clone(),
                config: config.clone(),
                repository,
                records,
                hold,
                turn: Mutex::default(),
                last: Mutex::new(last.map(|(_, last)| last.at)),
                failed: AtomicU64::new(0),
            }),
        })
    }

    /// When the last one was taken, and how many scheduled ones have failed since the start.
    pub fn last(&self) -> (Option<Timestamp>, u64) {
        let last = *self
            .inner
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        (last, self.inner.failed.load(Ordering::Relaxed))
    }

    /// A backup, piece by piece; one that is not whole ends with an error. Dropped, it ends.
    pub fn stream(&self) -> BoxStream<'static, Result<Vec<u8>, BackupError>> {
        let (sender, receiver) = mpsc::channel(PIECES);
        let (inner, runtime) = (self.inner.clone(), Handle::current());
        tokio::task::spawn_blocking(move || {
            let _turn = inner.turn.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Timestamp::now();
            let pieces = BufWriter::with_capacity(PIECE_BYTES, Pieces(sender.clone()));
            match director::write(&inner.dir, &inner.recipients(), now, pieces) {
                Ok(_) => runtime.block_on(inner.note(now)),
                Err(error) => {
                    tracing::warn!(error = %ErrorChain(&error), "a backup was not taken");
                    // The reader may be why it failed.
                    let _ = sender.blocking_send(Err(error));
                }
            }
        });
        let next = |mut receiver: mpsc::Receiver<_>| async move {
            let piece = receiver.recv().await?;
            Some((piece, receiver))
        };
        stream::unfold(receiver, next).boxed()
    }

    /// Takes backups by itself from now on, if the configuration says so; ends with the director.
    pub fn start(&self) {
        let Some(every) = self.inner.config.every else {
            return;
        };
        let (inner, over) = (Arc::downgrade(&self.inner), self.inner.hold.over());
        tokio::spawn(async move {
            over.await;
            rounds(inner, every).await;
        });
    }
}

async fn rounds(inner: Weak<Inner>, every: Duration) {
    let mut failed = false;
    loop {
        let Some(last) = inner
            .upgrade()
            .map(|inner| *inner.last.lock().unwrap_or_else(PoisonError::into_inner))
        else {
            return;
        };
        let pause = match failed {
            true => every.min(AGAIN),
            false => until_due(last, Timestamp::now(), every),
        };
        tokio::time::sleep(pause).await;
        let Some(inner) = inner.upgrade() else { return };
        let now = Timestamp::now();
        failed = match inner.take(now).await {
            Ok(name) => {
                inner.note(now).await;
                let place = inner.repository.location();
                tracing::info!(%name, place, "the director was backed up");
                inner.prune().await;
                false
            }
            Err(error) => {
                inner.failed.fetch_add(1, Ordering::Relaxed);
                tracing::error!(error = %ErrorChain(&error), "the director was not backed up");
                true
            }
        };
    }
}

/// How long it is until the next backup.
fn until_due(last: Option<Timestamp>, now: Timestamp, every: Duration) -> Duration {
    match last {
        // A clock that went back makes it wait for no longer than a whole period.
        Some(last) => every.saturating_sub(Duration::from_millis(now.ms_since(last))),
        None => Duration::ZERO,
    }
}

impl Inner {
    fn recipients(&self) -> Vec<Recipient> {
        let own = std::iter::once(self.key.recipient());
        own.chain(self.config.recipients.iter().cloned()).collect()
    }

    /// A scheduled backup: written, read back, and put in its place.
    async fn take(self: &Arc<Self>, now: Timestamp) -> Result<OwnName, BackupError> {
        let name = OwnName::at(now);
        let path = self.repository.unfinished().await?.join(name.as_str());
        let (own, to) = (self.clone(), path.clone());
        let made = tokio::task::spawn_blocking(move || {
            let _turn = own.turn.lock().unwrap_or_else(PoisonError::into_inner);
            director::write_file(&own.dir, &own.recipients(), now, &to)?;
            director::verify(&own.dir, &own.key, &to)
        });
        let stored = match made.await.map_err(BackupError::Lost)? {
            Ok(_) => self.repository.store_own(&path, &name).await,
            Err(error) => {
                // One that cannot be read back is none.
                let _ = tokio::fs::remove_file(&path).await;
                return Err(error);
            }
        };
        if stored.is_err() {
            // The reason is worth more than one for a failing clean-up.
            let _ = tokio::fs::remove_file(&path).await;
        }
        stored?;
        Ok(name)
    }

    /// Removes those that are too many. The new one is in its place all the same, and the next one tries again.
    async fn prune(&self) {
        let listed = match self.repository.list_own().await {
            Ok(listed) => listed,
            Err(error) => {
                let error = ErrorChain(&error);
                tracing::warn!(%error, "old backups of the director cannot be listed, and stay");
                return;
            }
        };
        for old in surplus(listed, self.config.keep) {
            match self.repository.delete_own(&old).await {
                Ok(_) => tracing::info!(name = %old, "an old backup of the director was removed"),
                Err(error) => {
                    let error = ErrorChain(&error);
                    tracing::warn!(name = %old, %error, "an old backup of the director stays");
                }
            }
        }
    }

    /// Writes down that a backup of this moment is whole.
    async fn note(&self, at: Timestamp) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
        let mut commit = Commit::default();
        commit.value(Kind::Meta, LAST, Expect::Any, &Last { at });
        if let Err(error) = self.records.commit(commit).await {
            let error = ErrorChain(&error);
            tracing::warn!(%error, "cannot write down when the director was backed up");
        }
    }
}

/// Hands on what is written, piece by piece.
struct Pieces(mpsc::Sender<Result<Vec<u8>, BackupError>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(bytes.to_vec()));
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::repository::Directory;
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_ms(seconds * 1000)
    }

    #[test]
    fn the_next_one_is_due_a_period_after_the_last() {
        let hour = Duration::from_secs(3600);
        let cases = [
            ("none yet", None, 0),
            ("just taken", Some(at(10_000)), 3600),
            ("half of it passed", Some(at(8_200)), 1800),
            ("overdue", Some(at(1)), 0),
            ("the clock went back", Some(at(20_000)), 3600),
        ];
        for (case, last, want) in cases {
            let got = until_due(last, at(10_000), hour);
            assert_eq!(got, Duration::from_secs(want), "{case}");
        }
    }

    async fn backups(root: &Path) -> OwnBackups {
        let dir = DataDir::new(&root.join("data")).unwrap();
        if !dir.config().exists() {
            crate::config::init(&dir, Default::default()).await.unwrap();
        }
        let key = Identity::load(&dir.backup_key()).unwrap();
        let config = BackupConfig {
            every: None,
            keep: 1,
            directory: root.join("kept"),
            s3: None,
            recipients: Vec::new(),
        };
        let now = jiff::Timestamp::now();
        let identity = crate::config::Identity::load(&dir, now).await.unwrap();
        let hold = Hold::load(&identity.records).await.unwrap();
        let repository = Arc::new(Directory::new(config.directory.clone()));
        OwnBackups::new(dir, &key, &config, repository, identity.records, hold)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_stream_is_a_whole_backup_and_is_written_down() {
        let root = tempfile::tempdir().unwrap();
        let backups = backups(root.path()).await;
        assert_eq!(backups.last(), (None, 0));
        let pieces: Vec<_> = backups.stream().collect().await;
        let bytes: Vec<u8> = pieces.into_iter().flat_map(Result::unwrap).collect();
        let file = root.path().join("streamed.age");
        std::fs::write(&file, bytes).unwrap();
        let inner = &backups.inner;
        let manifest = director::verify(&inner.dir, &inner.key, &file).unwrap();
        assert_eq!(backups.last().0, Some(manifest.taken_at));
        // The next director of this directory knows.
        let again = self::backups(root.path()).await;
        assert_eq!(again.last().0, Some(manifest.taken_at));
        // A reader that goes is no backup, and leaves nothing behind.
        drop(backups.stream());
        let failing = backups.stream().collect::<Vec<_>>().await;
        assert!(failing.iter().all(Result::is_ok), "the turn is free again");
        director::sweep(&inner.dir);
        let left = std::fs::read_dir(inner.dir.path()).unwrap().flatten();
        let scratch = left.filter(|e| e.file_name().to_string_lossy().starts_with(".backup-"));
        assert_eq!(scratch.count(), 0);
    }

    #[tokio::test]
    async fn a_scheduled_backup_is_read_back_and_older_ones_go() {
        let root = tempfile::tempdir().unwrap();
        let backups = backups(root.path()).await;
        let kept = || {
            let entries = std::fs::read_dir(root.path().join("kept"))
                .unwrap()
                .flatten();
            entries
                .map(|entry| entry.file_name().into_string().unwrap())
                .filter(|name| !name.starts_with('.'))
                .collect::<Vec<_>>()
        };
        let inner = &backups.inner;
        let first = inner.take(at(86_400)).await.unwrap();
        let path = root.path().join("kept").join(first.as_str());
        assert!(director::verify(&inner.dir, &inner.key, &path).is_ok());
        // Nothing takes the place of another.
        inner.take(at(86_400)).await.unwrap_err();
        let second = inner.take(at(2 * 86_400)).await.unwrap();
        inner.prune().await;
        assert_eq!(kept(), [second.as_str()]);
        // One that fails takes no older one with it.
        std::fs::remove_file(inner.dir.seal_key()).unwrap();
        assert!(inner.take(at(3 * 86_400)).await.is_err());
        assert_eq!(kept(), [second.as_str()]);
        let unfinished = root.path().join("kept/.unfinished");
        assert_eq!(std::fs::read_dir(unfinished).unwrap().count(), 0);
    }
}
