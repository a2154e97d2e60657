//! Rotating the director's CA: a new root beside the old one, everybody moved over, the old one dropped.
//!
//! `phase` decides; [`Rotations`] looks, writes down and carries out. The store's record is the truth:
//! each look begins by bringing the CA in memory to the stage that the record speaks of, so that a start, a
//! resumption after a crash and a step forward are the same code.
//!
//! # Invariants
//! * The old CA is dropped only when every incarnation that is not deleted, and that no operator gave up,
//!   holds the new root and a certificate of the new CA on its disk.
//! * The record and the keys change in one commit: a new generation is there before anybody hears of it,
//!   and the old one's keys are gone when it is dropped.
//! * One rotation at a time; asking again joins the one under way.
//!
//! # After a crash
//! Whatever was committed goes on from there; what agents had done they say again on connecting.
//!
//! # Not here
//! Certificates ([`crate::pki`]), and how agents are told ([`crate::gateway`]).

mod phase;
mod record;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Mutex, Notify, watch};
use tokio::time::sleep;
use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::id::{Digest, Incarnation, MachineName};
use windlass_common::wire::message::{Body, TrustBundle, since};

use crate::backup::hold::Hold;
use crate::gateway::{Gateway, SessionView};
use crate::model::{CaRotation, CaStatus, Caller, Machine, Operator, Timestamp, Waiting};
use crate::pki::DirectorCa;
use crate::store::{Act, Commit, Expect, Kind, Records, StoreError};

use phase::{Follower, Next};
use record::{CaRecord, Finished, Followed, Rotation};

pub use phase::{Phase, Progress};
pub use record::{CaStoreError, load};

/// Longest between two looks while a rotation is under way: agents that could not do what they were told
/// are told again.
const LOOK: Duration = Duration::from_secs(2);
/// Shortest between two looks: a fleet that follows at once is looked at a few times a second.
const PAUSE: Duration = Duration::from_millis(100);
/// Subject in the audit log.
const SUBJECT: &str = "director/ca";

/// The agents, as the rotation sees them.
pub trait Links: Send + Sync + 'static {
    /// Every agent that is connected.
    fn agents(&self) -> BTreeMap<MachineName, SessionView>;
    /// Tells each what it lacks of the CA as it is now, and closes those whose CA was dropped.
    fn bring_up_to_date(&self);
    /// Counts what may be news.
    fn changes(&self) -> watch::Receiver<u64>;
}

impl Links for Gateway {
    fn agents(&self) -> BTreeMap<MachineName, SessionView> {
        self.connected()
    }

    fn bring_up_to_date(&self) {
        Gateway::bring_up_to_date(self);
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.trust_changes()
    }
}

/// Why a rotation was not ordered.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The store or the CA.
    #[error("the CA's record cannot be read or written")]
    Store(#[from] CaStoreError),
    /// There is no machine of this name.
    #[error("there is no machine {0} to abandon; `windlass node list` shows those there are")]
    NoMachine(String),
}

impl From<StoreError> for RotationError {
    fn from(error: StoreError) -> Self {
        RotationError::Store(error.into())
    }
}

impl RotationError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            RotationError::Store(source) => source.class(),
            RotationError::NoMachine(_) => ErrorClass::Operator,
        }
    }
}

/// The rotations of one director. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Rotations {
    inner: Arc<Inner>,
}

impl fmt::Debug for Rotations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rotations").finish_non_exhaustive()
    }
}

struct Inner {
    records: Records,
    ca: Arc<DirectorCa>,
    links: Arc<dyn Links>,
    /// One change of the record at a time.
    turn: Mutex<()>,
    wake: Notify,
}

impl Rotations {
    /// Rotations of `ca`, which [`load`] has read; goes on with one that is under way.
    pub fn start(
        records: Records,
        ca: Arc<DirectorCa>,
        links: Arc<dyn Links>,
        hold: &Hold,
    ) -> Rotations {
        let rotations = Rotations::idle(records, ca, links);
        let (inner, over) = (Arc::downgrade(&rotations.inner), hold.over());
        tokio::spawn(async move {
            // A director that is on hold does not know who has followed.
            over.await;
            run(inner).await;
        });
        rotations
    }

    /// The same without a task of its own.
    fn idle(records: Records, ca: Arc<DirectorCa>, links: Arc<dyn Links>) -> Rotations {
        Rotations {
            inner: Arc::new(Inner {
                records,
                ca,
                links,
                turn: Mutex::new(()),
                wake: Notify::new(),
            }),
        }
    }

    /// Begins a rotation, or joins the one under way; in both cases without waiting for `abandon`.
    /// Returns once that is durable, and the CA in memory has the new generation: who asks for the roots next gets its
    /// root, too.
    ///
    /// # Errors
    /// [`RotationError`]; nothing was changed.
    pub async fn order(
        &self,
        abandon: &[MachineName],
        caller: &Caller,
    ) -> Result<CaStatus, RotationError> {
        let inner = &self.inner;
        {
            let _turn = inner.turn.lock().await;
            inner.order(abandon, caller).await?;
            let (_, record) = record::read(&inner.records).await?;
            inner.apply(&record).await?;
        }
        inner.wake.notify_one();
        self.status().await
    }

    /// How things are.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn status(&self) -> Result<CaStatus, RotationError> {
        self.inner.status().await
    }

    /// An operator showed a certificate of this generation.
    pub async fn operator_seen(&self, name: &str, generation: u32) {
        let stage = self.inner.ca.stage();
        if stage.older().is_none() || generation != stage.newest().number() {
            return;
        }
        let entry = record::of_operator(name);
        let mut commit = Commit::default();
        commit.value(Kind::Trust, &entry, Expect::Absent, &true);
        match self.inner.records.commit(commit).await {
            // Written down already, with each request but the first.
            Ok(_) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => {
                tracing::warn!(operator = name, error = %ErrorChain(&error), "cannot write down who renewed");
            }
        }
    }
}

/// Looks until the director is gone.
async fn run(rotations: Weak<Inner>) {
    let Some(inner) = rotations.upgrade() else {
        return;
    };
    let mut changes = inner.links.changes();
    drop(inner);
    loop {
        let Some(inner) = rotations.upgrade() else {
            return;
        };
        if let Err(error) = inner.look().await {
            tracing::warn!(error = %ErrorChain(&error), "the CA's rotation does not go on; trying again");
        }
        tokio::select! {
            () = inner.wake.notified() => {}
            changed = changes.changed() => if changed.is_err() { return },
            () = sleep(LOOK) => {}
        }
        drop(inner);
        sleep(PAUSE).await;
    }
}

/// One incarnation and how it follows.
struct Member {
    machine: Machine,
    connected: bool,
    recorded: Option<Followed>,
    follower: Follower,
}

impl Inner {
    async fn order(&self, abandon: &[MachineName], caller: &Caller) -> Result<(), RotationError> {
        let (expect, mut record) = record::read(&self.records).await?;
        let mut commit = Commit::default();
        let mut abandoned = BTreeMap::new();
        for name in abandon {
            let found: Option<Machine> = self.records.get(name.as_str()).await?;
            let machine = found.ok_or_else(|| RotationError::NoMachine(name.to_string()))?;
            abandoned.insert(machine.name, machine.incarnation);
        }
        let names: Vec<&str> = abandoned.keys().map(MachineName::as_str).collect();
        let detail = match names[..] {
            [] => String::new(),
            _ => format!("abandons {}", names.join(", ")),
        };
        match &mut record.rotation {
            Some(_) if abandoned.is_empty() => return Ok(()),
            Some(rotation) => rotation.abandoned.extend(abandoned),
            None => record.rotation = Some(self.begin(abandoned, caller, &mut commit).await?),
        }
        commit.value(Kind::Meta, record::RECORD, expect, &record);
        let act = Act {
            action: "director.rotate-ca",
            subject: SUBJECT,
            detail: &detail,
            ..Act::default()
        };
        self.records.audit_caller(&mut commit, caller, act);
        self.records.commit(commit).await?;
        Ok(())
    }

    /// Makes the new generation, into the commit.
    async fn begin(
        &self,
        abandoned: BTreeMap<MachineName, Incarnation>,
        caller: &Caller,
        commit: &mut Commit,
    ) -> Result<Rotation, CaStoreError> {
        let newer = self.ca.next_generation(jiff::Timestamp::now())?;
        let name = record::secret_of(newer.number());
        self.records
            .put_secret(commit, &name, newer.to_pem().expose())?;
        if self.records.secret(record::SEED).await?.is_none() {
            let seed = self.ca.seed().expose();
            self.records.put_secret(commit, record::SEED, seed)?;
        }
        Ok(Rotation {
            to: newer.number(),
            phase: Phase::Overlap,
            started_by: caller.operator.clone(),
            started_at: Timestamp::now(),
            abandoned,
        })
    }

    /// Goes on as far as it can.
    async fn look(&self) -> Result<(), CaStoreError> {
        while self.step().await? {}
        Ok(())
    }

    /// One look: writes down who has followed, and goes on to the next phase if that is due. Returns
    /// whether it did.
    async fn step(&self) -> Result<bool, CaStoreError> {
        let _turn = self.turn.lock().await;
        let (expect, record) = record::read(&self.records).await?;
        self.apply(&record).await?;
        let Some(rotation) = record.rotation.clone() else {
            return Ok(false);
        };
        self.links.bring_up_to_date();
        let members = self.members(&rotation).await?;
        self.write_down(&members).await?;
        let followers = members.iter().map(|member| &member.follower);
        let next = match phase::next(rotation.phase, followers) {
            Next::Stay => return Ok(false),
            Next::Reissue => self.reissue(expect, record, rotation).await?,
            Next::Drop => self.drop_older(expect, record, rotation, &members).await?,
        };
        self.apply(&next).await?;
        Ok(true)
    }

    /// Brings the CA in memory to the stage of the record.
    async fn apply(&self, record: &CaRecord) -> Result<(), CaStoreError> {
        let held = self.ca.stage();
        let wanted = match &record.rotation {
            None => (record.generation, None),
            Some(rotation) => (rotation.to, Some((record.generation, rotation.phase))),
        };
        if held.numbers() == wanted {
            return Ok(());
        }
        let now = jiff::Timestamp::now();
        let stage = record::stage(&self.records, self.ca.director(), record, now).await?;
        tracing::info!(?stage, "the CA changes its stage");
        self.ca.enter(stage);
        self.links.bring_up_to_date();
        Ok(())
    }

    async fn reissue(
        &self,
        expect: Expect,
        mut record: CaRecord,
        rotation: Rotation,
    ) -> Result<CaRecord, CaStoreError> {
        record.rotation = Some(Rotation {
            phase: Phase::Reissue,
            ..rotation
        });
        let mut commit = Commit::default();
        commit.value(Kind::Meta, record::RECORD, expect, &record);
        self.records.commit(commit).await?;
        Ok(record)
    }

    async fn drop_older(
        &self,
        expect: Expect,
        record: CaRecord,
        rotation: Rotation,
        members: &[Member],
    ) -> Result<CaRecord, CaStoreError> {
        let left = members
            .iter()
            .filter(|member| member.follower.progress != Progress::Renewed);
        let abandoned: Vec<String> = left.map(|member| member.machine.name.to_string()).collect();
        let operators = self.operators_behind().await?;
        let next = CaRecord {
            generation: rotation.to,
            rotation: None,
            last: Some(Finished {
                finished_at: Timestamp::now(),
                abandoned: abandoned.clone(),
                operators: operators.clone(),
            }),
        };
        let mut commit = Commit::default();
        commit.value(Kind::Meta, record::RECORD, expect, &next);
        commit.delete_value(Kind::Secret, &record::secret_of(record.generation));
        for (name, _) in self.trust_entries().await? {
            commit.delete_value(Kind::Trust, &name);
        }
        let detail = format!(
            "generation {} dropped; machines left: {}; operators who have not renewed: {}",
            record.generation,
            list(&abandoned),
            list(&operators)
        );
        self.records.audit(
            &mut commit,
            "director",
            "director.ca.drop",
            SUBJECT,
            &detail,
        );
        self.records.commit(commit).await?;
        Ok(next)
    }

    async fn trust_entries(&self) -> Result<Vec<(String, serde_json::Value)>, StoreError> {
        self.records.values(Kind::Trust, "").await
    }

    /// Every incarnation that is not deleted.
    async fn members(&self, rotation: &Rotation) -> Result<Vec<Member>, StoreError> {
        let machines: Vec<Machine> = self.records.list().await?;
        let prefix = "machine/";
        let recorded: BTreeMap<String, Followed> = self
            .records
            .values(Kind::Trust, prefix)
            .await?
            .into_iter()
            .map(|(name, followed)| (name[prefix.len()..].to_owned(), followed))
            .collect();
        let sessions = self.links.agents();
        let root = self.ca.root_digest();
        let member = |machine: Machine| {
            let recorded = recorded
                .get(machine.name.as_str())
                .filter(|followed| followed.incarnation == machine.incarnation)
                .copied();
            let session = sessions
                .get(&machine.name)
                .filter(|session| session.identity.incarnation == machine.incarnation);
            Member {
                connected: session.is_some(),
                follower: follower(&machine, recorded, session, rotation, &root),
                recorded,
                machine,
            }
        };
        Ok(machines.into_iter().map(member).collect())
    }

    async fn write_down(&self, members: &[Member]) -> Result<(), StoreError> {
        let mut commit = Commit::default();
        let mut changed = false;
        for member in members {
            let now = Followed {
                incarnation: member.machine.incarnation,
                progress: member.follower.progress,
            };
            let was = member.recorded.map(|followed| followed.progress);
            if was.unwrap_or(Progress::Behind) != now.progress {
                let name = record::of_machine(&member.machine.name);
                commit.value(Kind::Trust, &name, Expect::Any, &now);
                changed = true;
            }
        }
        if changed {
            self.records.commit(commit).await?;
        }
        Ok(())
    }

    /// Operators who are not known to have a certificate of the new CA.
    async fn operators_behind(&self) -> Result<Vec<String>, StoreError> {
        let prefix = "operator/";
        let renewed: BTreeSet<String> = self
            .records
            .values::<bool>(Kind::Trust, prefix)
            .await?
            .into_iter()
            .map(|(name, _)| name[prefix.len()..].to_owned())
            .collect();
        let operators: Vec<Operator> = self.records.list().await?;
        Ok(operators
            .into_iter()
            .filter(|operator| operator.active_role().is_some())
            .map(|operator| operator.name)
            .filter(|name| !renewed.contains(name))
            .collect())
    }

    async fn status(&self) -> Result<CaStatus, RotationError> {
        let (_, record) = record::read(&self.records).await?;
        let rotation = match &record.rotation {
            None => None,
            Some(rotation) => Some(self.describe(rotation).await?),
        };
        let (abandoned, operators_left) = match record.last {
            Some(last) => (last.abandoned, last.operators),
            None => (Vec::new(), Vec::new()),
        };
        Ok(CaStatus {
            generation: record.generation,
            rotation,
            abandoned,
            operators_left,
            roots: self.ca.root_pem(),
        })
    }

    async fn describe(&self, rotation: &Rotation) -> Result<CaRotation, StoreError> {
        let members = self.members(rotation).await?;
        let count = |progress: Progress| {
            let done = members.iter().filter(|m| m.follower.progress >= progress);
            u32::try_from(done.count()).unwrap_or(u32::MAX)
        };
        let behind = |member: &&Member| member.follower.progress != Progress::Renewed;
        let (abandoned, waiting): (Vec<&Member>, Vec<&Member>) = members
            .iter()
            .filter(behind)
            .partition(|member| member.follower.abandoned);
        Ok(CaRotation {
            to: rotation.to,
            phase: rotation.phase,
            started_by: rotation.started_by.clone(),
            started_at: rotation.started_at,
            machines: count(Progress::Behind),
            trusting: count(Progress::Trusts),
            renewed: count(Progress::Renewed),
            waiting: waiting.into_iter().map(waits).collect(),
            abandoned: abandoned
                .iter()
                .map(|m| m.machine.name.to_string())
                .collect(),
            operators: self.operators_behind().await?,
        })
    }
}

fn follower(
    machine: &Machine,
    recorded: Option<Followed>,
    session: Option<&SessionView>,
    rotation: &Rotation,
    root: &Digest,
) -> Follower {
    let seen = session.map(|session| {
        let trusts = session
            .trust
            .roots
            .as_ref()
            .map(|roots| roots.contains(root));
        (session.trust.certificate, trusts)
    });
    let recorded = recorded.map_or(Progress::Behind, |followed| followed.progress);
    Follower {
        progress: phase::progress(recorded, seen, rotation.to),
        reachable: session.is_some_and(|session| since(TrustBundle::KIND) <= session.protocol),
        abandoned: rotation.abandoned.get(&machine.name) == Some(&machine.incarnation),
    }
}

fn waits(member: &Member) -> Waiting {
    let why = match (
        member.connected,
        member.follower.reachable,
        member.follower.progress,
    ) {
        (false, ..) => "it is not connected",
        (true, false, _) => {
            "its agent is too old to be told; it follows when it renews and comes back"
        }
        (true, true, Progress::Behind) => "it has not acknowledged the new root",
        (true, true, _) => "it has not got its new certificate",
    };
    Waiting {
        machine: member.machine.name.clone(),
        incarnation: member.machine.incarnation,
        progress: member.follower.progress,
        why: why.to_owned(),
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.join(", ")
}
