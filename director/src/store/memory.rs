//! A store in memory: the same contract without a disk, for simulation.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::sync::broadcast;

use super::{Change, Entry, Kind, Store, StoreError, StoreFuture, WATCH_QUEUE, Write};
use crate::model::Revision;

#[derive(Debug)]
pub(crate) struct Memory {
    state: Mutex<State>,
    changes: broadcast::Sender<Change>,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    entries: BTreeMap<(Kind, String), (Revision, Vec<u8>)>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            changes: broadcast::channel(WATCH_QUEUE).0,
        }
    }
}

impl Memory {
    /// What is stored, at once.
    pub(crate) fn entry(&self, kind: Kind, name: &str) -> Option<Entry> {
        let found = self.state.lock().unwrap().list(kind, name);
        found.into_iter().find(|entry| entry.name == name)
    }
}

impl State {
    fn list(&self, kind: Kind, prefix: &str) -> Vec<Entry> {
        self.entries
            .iter()
            .filter(|((k, name), _)| *k == kind && name.starts_with(prefix))
            .map(|((_, name), (revision, body))| Entry {
                name: name.clone(),
                revision: *revision,
                body: body.clone(),
            })
            .collect()
    }

    fn commit(&mut self, writes: &[Write]) -> Result<Revision, StoreError> {
        let revision = Revision(self.revision + 1);
        let mut entries = self.entries.clone();
        for write in writes {
            let key = (write.kind, write.name.clone());
            if !write.expect.meets(entries.get(&key).map(|(r, _)| *r)) {
                return Err(StoreError::Conflict {
                    kind: write.kind,
                    name: write.name.clone(),
                    expected: write.expect,
                });
            }
            match &write.body {
                Some(body) => entries.insert(key, (revision, body.clone())),
                None => entries.remove(&key),
            };
        }
        self.revision += 1;
        self.entries = entries;
        Ok(revision)
    }
}

impl Store for Memory {
    fn get<'a>(&'a self, kind: Kind, name: &'a str) -> StoreFuture<'a, Option<Entry>> {
        let found = self.entry(kind, name);
        Box::pin(async move { Ok(found) })
    }

    fn list<'a>(&'a self, kind: Kind, prefix: &'a str) -> StoreFuture<'a, Vec<Entry>> {
        let found = self.state.lock().unwrap().list(kind, prefix);
        Box::pin(async move { Ok(found) })
    }

    fn newest(&self, kind: Kind, limit: u32) -> StoreFuture<'_, Vec<Entry>> {
        let mut found = self.state.lock().unwrap().list(kind, "");
        found.reverse();
        found.truncate(limit as usize);
        Box::pin(async move { Ok(found) })
    }

    fn commit(&self, writes: Vec<Write>) -> StoreFuture<'_, Revision> {
        let result = self.state.lock().unwrap().commit(&writes);
        if let Ok(revision) = result {
            for write in writes {
                let _ = self.changes.send(Change {
                    kind: write.kind,
                    name: write.name,
                    revision,
                });
            }
        }
        Box::pin(async move { result })
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }
}
