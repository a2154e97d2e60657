//! Typed access to a store: records as JSON, secrets sealed, changes as commits.
//!
//! # Invariants
//! * A record is written over the revision it was read at; one that changed since is a conflict.
//! * A secret's body is sealed under its name before it is handed to the backend.
//! * A record is decoded once at each revision ([`super::known`]); whether it still has that revision is asked of the
//!   backend each time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use windlass_common::id::Epoch;
use zeroize::Zeroizing;

use super::known::Known;
use super::{Change, Entry, Expect, Kind, Sealer, Store, StoreError, Write};
use crate::backup::record::BackupRecord;
use crate::model::{
    AuditEntry, AuditFilter, Caller, Campaign, Cluster, Freeze, Machine, Operator, Revision, Role,
    StepKey, StepRecord, Task, TaskId, Timestamp,
};
use crate::resurrector::CaseRecord;

/// Name of the entry that holds the epoch.
const EPOCH: &str = "epoch";
/// Name of the entry that holds the number of the last task.
const TASK_NUMBER: &str = "task-number";
/// Name of the entry that holds the number of the last campaign.
const CAMPAIGN_NUMBER: &str = "campaign-number";
/// Most lines of the audit log in one answer.
const AUDIT_MAX: u32 = 1000;
/// Newest lines of the audit log that a filter is tried on: of about 300 bytes each, 6 MB.
const AUDIT_LOOKED_AT_MAX: u32 = 20_000;
/// Longest text in a line of the audit log, characters.
const AUDIT_TEXT_MAX: usize = 1000;

/// What goes into the audit log, besides who and when.
#[derive(Debug, Clone, Copy, Default)]
pub struct Act<'a> {
    /// See [`AuditEntry::action`].
    pub action: &'a str,
    /// See [`AuditEntry::subject`].
    pub subject: &'a str,
    /// See [`AuditEntry::detail`].
    pub detail: &'a str,
    /// See [`AuditEntry::outcome`].
    pub outcome: &'a str,
}

/// A record that is stored under its own name.
pub trait Record: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Where it is kept.
    const KIND: Kind;
    /// Under which name.
    fn name(&self) -> &str;
    /// The revision it was read at; zero when it is new.
    fn revision(&self) -> Revision;
    /// Sets the revision.
    fn set_revision(&mut self, revision: Revision);
}

macro_rules! record {
    ($type:ty, $kind:ident, |$r:ident| $name:expr) => {
        impl Record for $type {
            const KIND: Kind = Kind::$kind;
            fn name(&self) -> &str {
                let $r = self;
                $name
            }
            fn revision(&self) -> Revision {
                self.revision
            }
            fn set_revision(&mut self, revision: Revision) {
                self.revision = revision;
            }
        }
    };
}

record!(Cluster, Cluster, |r| r.spec.name.as_str());
record!(Machine, Machine, |r| r.name.as_str());
record!(Task, Task, |r| r.id.as_str());
record!(Campaign, Campaign, |r| r.id.as_str());
record!(Operator, Operator, |r| r.name.as_str());
record!(CaseRecord, Case, |r| r.machine.as_str());
record!(Freeze, Freeze, |r| r.name.as_str());
record!(BackupRecord, Backup, |r| r.cluster.as_str());

/// Typed access to a store. Cheap to clone.
#[derive(Clone)]
pub struct Records {
    store: Arc<dyn Store>,
    sealer: Arc<Sealer>,
    audit_sequence: Arc<AtomicU64>,
    known: Arc<Known>,
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Records({:?})", self.store)
    }
}

/// Writes that are made together or not at all.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    writes: Vec<Write>,
}

#[derive(Serialize, Deserialize)]
struct Counter {
    value: u64,
}

impl Records {
    /// Typed access to `store`, with secrets under `sealer`.
    pub async fn new(store: Arc<dyn Store>, sealer: Sealer) -> Result<Self, StoreError> {
        let newest = store.newest(Kind::Audit, 1).await?;
        let last = newest.first().map_or(0, |e| e.name.parse().unwrap_or(0));
        Ok(Self {
            store,
            sealer: Arc::new(sealer),
            audit_sequence: Arc::new(AtomicU64::new(last)),
            known: Arc::default(),
        })
    }

    /// The record of this name.
    pub async fn get<T: Record>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let record = self.get_shared::<T>(name).await?;
        Ok(record.map(Arc::unwrap_or_clone))
    }

    /// The record of this name, for those who only look at it: nothing is copied.
    pub async fn get_shared<T: Record>(&self, name: &str) -> Result<Option<Arc<T>>, StoreError> {
        let entry = self.store.get(T::KIND, name).await?;
        entry.map(|entry| self.record(&entry)).transpose()
    }

    /// All records of a type, by name.
    pub async fn list<T: Record>(&self) -> Result<Vec<T>, StoreError> {
        let records = self.list_shared::<T>().await?;
        Ok(records.into_iter().map(Arc::unwrap_or_clone).collect())
    }

    /// All records of a type, by name, for those who only look at them or choose some: nothing is copied.
    pub async fn list_shared<T: Record>(&self) -> Result<Vec<Arc<T>>, StoreError> {
        let entries = self.store.list(T::KIND, "").await?;
        entries.iter().map(|entry| self.record(entry)).collect()
    }

    fn record<T: Record>(&self, entry: &Entry) -> Result<Arc<T>, StoreError> {
        self.known.record_or(T::KIND, entry, decode_record)
    }

    /// The machines of a cluster, by name.
    pub async fn machines_of(&self, cluster: &str) -> Result<Vec<Machine>, StoreError> {
        let mut machines = self.list_shared::<Machine>().await?;
        machines.retain(|machine| machine.cluster.as_str() == cluster);
        Ok(machines.into_iter().map(Arc::unwrap_or_clone).collect())
    }

    /// A task with its steps.
    pub async fn task(&self, id: &TaskId) -> Result<Option<Task>, StoreError> {
        let Some(mut task) = self.get::<Task>(id.as_str()).await? else {
            return Ok(None);
        };
        let prefix = format!("{id}/");
        for entry in self.store.list(Kind::Step, &prefix).await? {
            let key = StepKey(entry.name[prefix.len()..].into());
            let record: StepRecord = decode(Kind::Step, &entry)?;
            task.steps.insert(key, record);
        }
        Ok(Some(task))
    }

    /// The secret of this name.
    pub async fn secret(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let Some(entry) = self.store.get(Kind::Secret, name).await? else {
            return Ok(None);
        };
        let opened = self.sealer.open(name, &entry.body);
        opened.map(Some).map_err(|source| StoreError::Seal {
            name: name.to_owned(),
            source,
        })
    }

    /// Adds a secret to a commit; an existing one must not be there.
    pub fn put_secret(
        &self,
        commit: &mut Commit,
        name: &str,
        plain: &[u8],
    ) -> Result<(), StoreError> {
        self.seal(commit, name, Expect::Absent, plain)
    }

    /// Adds a secret to a commit, in the place of one that may be there.
    pub fn replace_secret(
        &self,
        commit: &mut Commit,
        name: &str,
        plain: &[u8],
    ) -> Result<(), StoreError> {
        self.seal(commit, name, Expect::Any, plain)
    }

    fn seal(
        &self,
        commit: &mut Commit,
        name: &str,
        expect: Expect,
        plain: &[u8],
    ) -> Result<(), StoreError> {
        let sealed = self
            .sealer
            .seal(name, plain)
            .map_err(|source| StoreError::Seal {
                name: name.to_owned(),
                source,
            })?;
        commit.raw(Kind::Secret, name, expect, Some(sealed));
        Ok(())
    }

    /// Opens every secret, and says how many there are: whether this is the key of this store.
    pub async fn check_secrets(&self) -> Result<usize, StoreError> {
        let entries = self.store.list(Kind::Secret, "").await?;
        for entry in &entries {
            let opened = self.sealer.open(&entry.name, &entry.body);
            opened.map_err(|source| StoreError::Seal {
                name: entry.name.clone(),
                source,
            })?;
        }
        Ok(entries.len())
    }

    /// An untyped value of `kind`.
    pub async fn value<T: DeserializeOwned>(
        &self,
        kind: Kind,
        name: &str,
    ) -> Result<Option<(Revision, T)>, StoreError> {
        let entry = self.store.get(kind, name).await?;
        entry
            .map(|entry| Ok((entry.revision, decode(kind, &entry)?)))
            .transpose()
    }

    /// All untyped values of `kind` whose name starts with `prefix`.
    pub async fn values<T: DeserializeOwned>(
        &self,
        kind: Kind,
        prefix: &str,
    ) -> Result<Vec<(String, T)>, StoreError> {
        let entries = self.store.list(kind, prefix).await?;
        entries
            .into_iter()
            .map(|entry| {
                let value = decode(kind, &entry)?;
                Ok((entry.name, value))
            })
            .collect()
    }

    /// Makes all writes of a commit or none.
    pub async fn commit(&self, commit: Commit) -> Result<Revision, StoreError> {
        self.store.commit(commit.writes).await
    }

    /// Adds a line to the audit log with `commit`, so that what is done and what is logged agree; of
    /// what the director does by itself.
    pub fn audit(
        &self,
        commit: &mut Commit,
        actor: &str,
        action: &str,
        subject: &str,
        detail: &str,
    ) {
        let act = Act {
            action,
            subject,
            detail,
            ..Act::default()
        };
        self.audit_line(commit, (actor, None), "", act);
    }

    /// Adds a line to the audit log with `commit`, of what an operator asks for or was answered.
    pub fn audit_caller(&self, commit: &mut Commit, caller: &Caller, act: Act<'_>) {
        let role = Some(caller.role);
        self.audit_line(commit, (&caller.operator, role), &caller.request, act);
    }

    fn audit_line(
        &self,
        commit: &mut Commit,
        (actor, role): (&str, Option<Role>),
        request: &str,
        act: Act<'_>,
    ) {
        let sequence = self.audit_sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let entry = AuditEntry {
            sequence,
            at: Timestamp::now(),
            actor: actor.to_owned(),
            role,
            action: act.action.to_owned(),
            subject: act.subject.to_owned(),
            detail: act.detail.chars().take(AUDIT_TEXT_MAX).collect(),
            request: request.to_owned(),
            outcome: act.outcome.chars().take(AUDIT_TEXT_MAX).collect(),
        };
        commit.value(
            Kind::Audit,
            &format!("{sequence:020}"),
            Expect::Absent,
            &entry,
        );
    }

    /// The newest `limit` lines of the audit log that match, newest first; of the newest
    /// `AUDIT_LOOKED_AT_MAX`.
    pub async fn audit_log(
        &self,
        limit: u32,
        filter: &AuditFilter,
    ) -> Result<Vec<AuditEntry>, StoreError> {
        let limit = limit.min(AUDIT_MAX);
        let looked_at = match *filter == AuditFilter::default() {
            true => limit,
            false => AUDIT_LOOKED_AT_MAX,
        };
        let entries = self.store.newest(Kind::Audit, looked_at).await?;
        entries
            .iter()
            .map(|entry| decode(Kind::Audit, entry))
            .filter(|entry| entry.as_ref().map_or(true, |entry| filter.matches(entry)))
            .take(limit as usize)
            .collect()
    }

    /// Takes over: makes the epoch grow, and returns the new one.
    pub async fn next_epoch(&self) -> Result<Epoch, StoreError> {
        self.count(EPOCH).await.map(Epoch)
    }

    /// The epoch of the last take-over.
    pub async fn epoch(&self) -> Result<Epoch, StoreError> {
        let found: Option<(Revision, Counter)> = self.value(Kind::Meta, EPOCH).await?;
        Ok(Epoch(found.map_or(0, |(_, counter)| counter.value)))
    }

    /// Adds to a commit that the epoch is at least this one; returns what it is then. The commit fails if the
    /// epoch grows meanwhile.
    pub async fn raise_epoch(
        &self,
        commit: &mut Commit,
        least: Epoch,
    ) -> Result<Epoch, StoreError> {
        let found: Option<(Revision, Counter)> = self.value(Kind::Meta, EPOCH).await?;
        let (expect, value) = match found {
            Some((revision, counter)) => (Expect::At(revision), counter.value.max(least.0)),
            None => (Expect::Absent, least.0),
        };
        commit.value(Kind::Meta, EPOCH, expect, &Counter { value });
        Ok(Epoch(value))
    }

    /// A number that no task has.
    pub async fn next_task_number(&self) -> Result<u64, StoreError> {
        self.count(TASK_NUMBER).await
    }

    /// A number that no campaign has.
    pub async fn next_campaign_number(&self) -> Result<u64, StoreError> {
        self.count(CAMPAIGN_NUMBER).await
    }

    /// Every change from now on.
    pub fn watch(&self) -> tokio::sync::broadcast::Receiver<Change> {
        self.store.watch()
    }

    async fn count(&self, name: &str) -> Result<u64, StoreError> {
        loop {
            let found: Option<(Revision, Counter)> = self.value(Kind::Meta, name).await?;
            let (expect, value) = match found {
                Some((revision, counter)) => (Expect::At(revision), counter.value + 1),
                None => (Expect::Absent, 1),
            };
            let mut commit = Commit::default();
            commit.value(Kind::Meta, name, expect, &Counter { value });
            match self.commit(commit).await {
                Ok(_) => return Ok(value),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Commit {
    /// Whether it writes nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Writes a record over the revision it was read at.
    pub fn put<T: Record>(&mut self, record: &T) -> Result<(), StoreError> {
        let body = serde_json::to_vec(record).map_err(|source| StoreError::Damaged {
            kind: T::KIND,
            name: record.name().to_owned(),
            source: Box::new(source),
        })?;
        let expect = expect_of(record);
        self.raw(T::KIND, record.name(), expect, Some(body));
        Ok(())
    }

    /// Deletes a record if it is as it was read.
    pub fn delete<T: Record>(&mut self, record: &T) {
        self.raw(T::KIND, record.name(), expect_of(record), None);
    }

    /// Writes the state of one step.
    pub fn put_step(&mut self, task: &TaskId, key: &StepKey, record: &StepRecord) {
        self.value(Kind::Step, &format!("{task}/{key}"), Expect::Any, record);
    }

    /// Writes an untyped value.
    pub fn value<T: Serialize>(&mut self, kind: Kind, name: &str, expect: Expect, value: &T) {
        let body = serde_json::to_vec(value)
            .expect("records have string keys and no fallible parts: they serialise to JSON");
        self.raw(kind, name, expect, Some(body));
    }

    /// Deletes whatever is there.
    pub fn delete_value(&mut self, kind: Kind, name: &str) {
        self.raw(kind, name, Expect::Any, None);
    }

    fn raw(&mut self, kind: Kind, name: &str, expect: Expect, body: Option<Vec<u8>>) {
        self.writes.push(Write {
            kind,
            name: name.to_owned(),
            expect,
            body,
        });
    }
}

fn expect_of<T: Record>(record: &T) -> Expect {
    match record.revision() {
        Revision(0) => Expect::Absent,
        revision => Expect::At(revision),
    }
}

fn decode_record<T: Record>(entry: &Entry) -> Result<T, StoreError> {
    let mut record: T = decode(T::KIND, entry)?;
    record.set_revision(entry.revision);
    Ok(record)
}

fn decode<T: DeserializeOwned>(kind: Kind, entry: &Entry) -> Result<T, StoreError> {
    serde_json::from_slice(&entry.body).map_err(|source| StoreError::Damaged {
        kind,
        name: entry.name.clone(),
        source: Box::new(source),
    })
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memory;
    use super::*;

    async fn records(store: &Arc<Memory>, key: u8) -> Records {
        Records::new(store.clone(), Sealer::new(&[key; 32]).unwrap())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn secrets_are_unreadable_with_another_key_or_under_another_name() {
        let store = Arc::new(Memory::default());
        let right = records(&store, 1).await;
        let mut commit = Commit::default();
        right.put_secret(&mut commit, "ca", b"private").unwrap();
        right.commit(commit).await.unwrap();
        assert_eq!(&right.secret("ca").await.unwrap().unwrap()[..], b"private");
        let raw = store.get(Kind::Secret, "ca").await.unwrap().unwrap().body;
        assert!(!raw.windows(7).any(|w| w == b"private"));
        let wrong = records(&store, 2).await.secret("ca").await.unwrap_err();
        assert!(matches!(wrong, StoreError::Seal { .. }), "{wrong}");
    }

    fn caller(operator: &str) -> Caller {
        Caller {
            operator: operator.to_owned(),
            role: crate::model::Role::Admin,
            request: "r1".to_owned(),
        }
    }

    fn act(action: &str) -> Act<'_> {
        Act {
            action,
            subject: "cluster/demo",
            ..Act::default()
        }
    }

    #[tokio::test]
    async fn the_epoch_grows_and_the_audit_log_goes_on() {
        let store = Arc::new(Memory::default());
        let one = records(&store, 1).await;
        assert_eq!(one.next_epoch().await.unwrap(), Epoch(1));
        let mut commit = Commit::default();
        one.audit_caller(&mut commit, &caller("ann"), act("cluster.create"));
        one.commit(commit).await.unwrap();
        let two = records(&store, 1).await;
        assert_eq!(two.next_epoch().await.unwrap(), Epoch(2));
        let mut commit = Commit::default();
        two.audit_caller(&mut commit, &caller("bob"), act("cluster.delete"));
        two.commit(commit).await.unwrap();
        let log = two.audit_log(10, &AuditFilter::default()).await.unwrap();
        let seen: Vec<_> = log.iter().map(|e| (e.sequence, e.actor.as_str())).collect();
        assert_eq!(seen, [(2, "bob"), (1, "ann")]);
        let of_ann = AuditFilter {
            actor: Some("ann".to_owned()),
            ..AuditFilter::default()
        };
        let log = two.audit_log(1, &of_ann).await.unwrap();
        assert_eq!(log.len(), 1, "older lines are found behind newer ones");
    }
}
