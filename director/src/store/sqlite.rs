//! The embedded store: SQLite in WAL mode, every commit synced, one thread that writes.
//!
//! # Invariants
//! * Commits that wait are put into one transaction, each in its own savepoint: one `fsync` for all of
//!   them, and a conflict of one leaves the others alone.
//! * Readers have a connection of their own and see every commit that has returned.
//! * Schema migrations go forward only; a store of a newer schema is refused before anything is written.
//!
//! # After a crash
//! SQLite replays or drops the tail of its log; a commit that had returned is there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Savepoint, params};
use tokio::sync::{broadcast, oneshot};

use super::{Change, Entry, Expect, Kind, Store, StoreError, StoreFuture, WATCH_QUEUE, Write};
use crate::model::Revision;

/// Each entry brings the schema from its index to the next; never changed once released.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE entry (
        kind TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (kind, name)
    ) WITHOUT ROWID;
    CREATE TABLE revision (last INTEGER NOT NULL);
    INSERT INTO revision VALUES (0);
"];
/// The newest schema this director understands.
const SCHEMA: u32 = 1;
/// Commits that may wait for the writer: each running step of a rollout has one at most.
const WRITE_QUEUE: usize = 1024;
/// Commits in one transaction; bounds how long a reader of the log waits.
const GROUP_MAX: usize = 64;

/// The embedded store.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    writer: mpsc::SyncSender<Order>,
    reader: mpsc::SyncSender<Query>,
    changes: broadcast::Sender<Change>,
}

struct Order {
    writes: Vec<Write>,
    reply: oneshot::Sender<Result<Revision, StoreError>>,
}

type Query = Box<dyn FnOnce(&Connection) + Send>;

impl Sqlite {
    /// Opens the store at `path`, making it if it is not there.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut write = connect(path)?;
        migrate(&mut write, path)?;
        let read = connect(path)?;
        let (changes, _) = broadcast::channel(WATCH_QUEUE);
        let (writer, orders) = mpsc::sync_channel(WRITE_QUEUE);
        let (reader, queries) = mpsc::sync_channel::<Query>(WRITE_QUEUE);
        let (own, notify) = (path.to_owned(), changes.clone());
        spawn("store-write", move || {
            write_loop(write, &own, &orders, &notify);
        });
        spawn("store-read", move || {
            while let Ok(query) = queries.recv() {
                query(&read);
            }
        });
        Ok(Self {
            path: path.to_owned(),
            writer,
            reader,
            changes,
        })
    }

    fn query<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Connection) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        let (reply, answer) = oneshot::channel();
        let sent = self.reader.send(Box::new(move |connection| {
            let _ = reply.send(ask(connection)); // nobody waits any more: nothing to tell
        }));
        Box::pin(async move {
            sent.map_err(|_| StoreError::Closed)?;
            answer
                .await
                .map_err(|_| StoreError::Closed)?
                .map_err(|source| StoreError::Sqlite {
                    doing: "read",
                    path: self.path.clone(),
                    source,
                })
        })
    }
}

impl Store for Sqlite {
    fn get<'a>(&'a self, kind: Kind, name: &'a str) -> StoreFuture<'a, Option<Entry>> {
        let name = name.to_owned();
        self.query(move |db| {
            db.prepare("SELECT name, revision, body FROM entry WHERE kind = ?1 AND name = ?2")?
                .query_row(params![kind.as_str(), name], entry)
                .optional()
        })
    }

    fn list<'a>(&'a self, kind: Kind, prefix: &'a str) -> StoreFuture<'a, Vec<Entry>> {
        let prefix = prefix.to_owned();
        self.query(move |db| {
            db.prepare(
                "SELECT name, revision, body FROM entry
                 WHERE kind = ?1 AND name >= ?2 AND substr(name, 1, length(?2)) = ?2 ORDER BY name",
            )?
            .query_map(params![kind.as_str(), prefix], entry)?
            .collect()
        })
    }

    fn newest(&self, kind: Kind, limit: u32) -> StoreFuture<'_, Vec<Entry>> {
        self.query(move |db| {
            db.prepare(
                "SELECT name, revision, body FROM entry WHERE kind = ?1 ORDER BY name DESC LIMIT ?2",
            )?
            .query_map(params![kind.as_str(), limit], entry)?
            .collect()
        })
    }

    fn commit(&self, writes: Vec<Write>) -> StoreFuture<'_, Revision> {
        let (reply, answer) = oneshot::channel();
        let sent = self.writer.send(Order { writes, reply });
        Box::pin(async move {
            sent.map_err(|_| StoreError::Closed)?;
            answer.await.map_err(|_| StoreError::Closed)?
        })
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }
}

/// Writes a consistent copy of the store at `from` to the new file `to`, synced and without a log beside it;
/// also while a director writes to it, which waits for nothing.
///
/// # Errors
/// [`StoreError::Sqlite`]; also when `from` is not there or `to` is.
pub fn snapshot(from: &Path, to: &Path) -> Result<(), StoreError> {
    let fail = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Sqlite {
            doing,
            path,
            source,
        }
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(from, flags).map_err(fail("open", from))?;
    let target = to.to_string_lossy();
    connection
        .busy_timeout(Duration::from_secs(5))
        .and_then(|()| connection.execute("VACUUM INTO ?1", [target.as_ref()]))
        .map_err(fail("copy", from))?;
    std::fs::File::open(to)
        .and_then(|file| file.sync_all())
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
        .map_err(fail("sync", to))
}

/// What a copy of a store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Its schema.
    pub schema: u32,
    /// Revision of its last commit.
    pub revision: Revision,
    /// Entries of each kind, by the kind's name.
    pub entries: BTreeMap<String, u64>,
}

/// Checks a copy of a store that nobody writes to, page by page, and counts what is in it.
///
/// # Errors
/// [`StoreError::Newer`], [`StoreError::Corrupt`] or [`StoreError::Sqlite`].
pub fn inspect(path: &Path) -> Result<Inventory, StoreError> {
    let fail = |source| StoreError::Sqlite {
        doing: "check",
        path: path.to_owned(),
        source,
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(fail)?;
    let schema: u32 = db
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(fail)?;
    if schema > SCHEMA {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found: schema,
            known: SCHEMA,
        });
    }
    let verdict: String = db
        .pragma_query_value(None, "integrity_check", |row| row.get(0))
        .map_err(fail)?;
    if verdict != "ok" {
        return Err(StoreError::Corrupt {
            path: path.to_owned(),
            verdict: verdict.chars().take(200).collect(),
        });
    }
    let counted = (|| {
        let revision = db.query_row("SELECT last FROM revision", [], |row| row.get(0))?;
        let entries = db
            .prepare("SELECT kind, count(*) FROM entry GROUP BY kind")?
            .query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))?
            .map(|row| row.map(|(kind, count)| (kind, count.cast_unsigned())))
            .collect::<Result<_, _>>()?;
        Ok(Inventory {
            schema,
            revision: stored(revision),
            entries,
        })
    })();
    counted.map_err(fail)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) {
    // The two threads end when the store is dropped, since their queues close then.
    if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(body) {
        tracing::error!(thread = name, %error, "cannot start a thread of the store");
    }
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let fail = |doing| {
        move |source| StoreError::Sqlite {
            doing,
            path: path.to_owned(),
            source,
        }
    };
    let connection = Connection::open(path).map_err(fail("open"))?;
    connection
        .busy_timeout(Duration::from_secs(5))
        .and_then(|()| connection.pragma_update(None, "journal_mode", "WAL"))
        .and_then(|()| connection.pragma_update(None, "synchronous", "FULL"))
        .map_err(fail("set up"))?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let fail = |source| StoreError::Sqlite {
        doing: "migrate",
        path: path.to_owned(),
        source,
    };
    let found: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(fail)?;
    if found > SCHEMA {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known: SCHEMA,
        });
    }
    for (from, step) in (0..SCHEMA).zip(MIGRATIONS).skip(found as usize) {
        let transaction = connection.transaction().map_err(fail)?;
        transaction.execute_batch(step).map_err(fail)?;
        transaction
            .pragma_update(None, "user_version", from + 1)
            .map_err(fail)?;
        transaction.commit().map_err(fail)?;
    }
    Ok(())
}

fn write_loop(
    mut connection: Connection,
    path: &Path,
    orders: &mpsc::Receiver<Order>,
    changes: &broadcast::Sender<Change>,
) {
    while let Ok(first) = orders.recv() {
        let mut group = vec![first];
        while group.len() < GROUP_MAX {
            match orders.try_recv() {
                Ok(order) => group.push(order),
                Err(_) => break,
            }
        }
        write_group(&mut connection, path, group, changes);
    }
}

/// Writes a group in one transaction. When the transaction itself fails, everyone in it is told.
fn write_group(
    connection: &mut Connection,
    path: &Path,
    group: Vec<Order>,
    changes: &broadcast::Sender<Change>,
) {
    let mut outcomes = Vec::with_capacity(group.len());
    let result = (|| {
        let mut transaction = connection.transaction()?;
        for order in &group {
            outcomes.push(write_one(transaction.savepoint()?, &order.writes)?);
        }
        transaction.commit()
    })();
    if let Err(source) = result {
        let code = source.sqlite_error_code();
        tracing::error!(store = %path.display(), ?code, "commit failed");
        let mut source = Some(source);
        for order in group {
            let source = source.take().unwrap_or(rusqlite::Error::InvalidQuery);
            let _ = order.reply.send(Err(StoreError::Sqlite {
                doing: "write",
                path: path.to_owned(),
                source,
            }));
        }
        return;
    }
    for (order, outcome) in group.into_iter().zip(outcomes) {
        if let Ok(revision) = outcome {
            for write in &order.writes {
                let _ = changes.send(Change {
                    kind: write.kind,
                    name: write.name.clone(),
                    revision,
                }); // no watcher: nothing to tell
            }
        }
        let _ = order.reply.send(outcome);
    }
}

/// One commit: the outer error is the database's, the inner one a conflict.
fn write_one(
    savepoint: Savepoint<'_>,
    writes: &[Write],
) -> Result<Result<Revision, StoreError>, rusqlite::Error> {
    let revision: i64 = savepoint
        .prepare("UPDATE revision SET last = last + 1 RETURNING last")?
        .query_row([], |row| row.get(0))?;
    for write in writes {
        let kind = write.kind.as_str();
        let found: Option<i64> = savepoint
            .prepare("SELECT revision FROM entry WHERE kind = ?1 AND name = ?2")?
            .query_row(params![kind, write.name], |row| row.get(0))
            .optional()?;
        if !write.expect.meets(found.map(stored)) {
            drop(savepoint); // rolls back this commit alone
            return Ok(Err(StoreError::Conflict {
                kind: write.kind,
                name: write.name.clone(),
                expected: write.expect,
            }));
        }
        match &write.body {
            Some(body) => savepoint
                .prepare("INSERT OR REPLACE INTO entry VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![kind, write.name, revision, body])?,
            None => savepoint
                .prepare("DELETE FROM entry WHERE kind = ?1 AND name = ?2")?
                .execute(params![kind, write.name])?,
        };
    }
    savepoint.commit()?;
    Ok(Ok(stored(revision)))
}

/// SQLite's integers are signed; a revision never gets that far.
fn stored(revision: i64) -> Revision {
    Revision(revision.cast_unsigned())
}

impl Expect {
    /// Whether what is there is what was expected.
    pub(super) fn meets(self, found: Option<Revision>) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => found.is_none(),
            Self::At(revision) => found == Some(revision),
        }
    }
}

fn entry(row: &rusqlite::Row<'_>) -> Result<Entry, rusqlite::Error> {
    Ok(Entry {
        name: row.get(0)?,
        revision: stored(row.get(1)?),
        body: row.get(2)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_newer_store_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.sqlite");
        drop(Sqlite::open(&path).unwrap());
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        drop(connection);
        let error = Sqlite::open(&path).unwrap_err();
        assert!(matches!(
            error,
            StoreError::Newer {
                found: 99,
                known: SCHEMA,
                ..
            }
        ));
        let version: u32 = Connection::open(&path)
            .unwrap()
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap();
        assert_eq!(version, 99);
    }

    #[tokio::test]
    async fn a_copy_is_whole_while_the_store_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.sqlite");
        let store = Sqlite::open(&path).unwrap();
        for n in 0..50 {
            let write = |name: String| Write {
                kind: Kind::Meta,
                name,
                expect: Expect::Absent,
                body: Some(vec![7; 1000]),
            };
            // Two entries a commit: a copy has both or none.
            let commit = store.commit(vec![write(format!("a{n}")), write(format!("b{n}"))]);
            if n % 10 == 5 {
                let to = dir.path().join(format!("copy{n}"));
                snapshot(&path, &to).unwrap();
                let inventory = inspect(&to).unwrap();
                let entries = inventory.entries["meta"];
                assert_eq!(entries, 2 * inventory.revision.0);
                assert!(snapshot(&path, &to).is_err(), "a copy is never overwritten");
            }
            commit.await.unwrap();
        }
        assert!(snapshot(&dir.path().join("none"), &dir.path().join("x")).is_err());
        let copy = dir.path().join("copy45");
        let mut bytes = std::fs::read(&copy).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 4096].fill(0xff);
        std::fs::write(&copy, bytes).unwrap();
        assert!(inspect(&copy).is_err());
    }

    #[tokio::test]
    async fn commits_outlive_the_process_and_are_synced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.sqlite");
        let store = Sqlite::open(&path).unwrap();
        let write = Write {
            kind: Kind::Meta,
            name: "a".into(),
            expect: Expect::Absent,
            body: Some(b"1".to_vec()),
        };
        let revision = store.commit(vec![write]).await.unwrap();
        let again = Sqlite::open(&path).unwrap(); // the first is still open, as after a kill
        let found = again.get(Kind::Meta, "a").await.unwrap().unwrap();
        assert_eq!((found.revision, found.body), (revision, b"1".to_vec()));
        let connection = connect(&path).unwrap();
        let synchronous: u32 = connection
            .pragma_query_value(None, "synchronous", |row| row.get(0))
            .unwrap();
        let mode: String = connection
            .pragma_query_value(None, "journal_mode", |row| row.get(0))
            .unwrap();
        assert_eq!((synchronous, mode.as_str()), (2, "wal"));
    }
}
