//! The kinds of step, one file each: observe, plan, apply, observe.
//!
//! # Invariants
//! * [`check`] refuses a step before anything is done, naming every fault.
//! * Each step reads the machine first and changes only what differs; after changing it looks again.
//! * What a step changed is reported also when it then failed ([`Run::changes`]).
//! * Running a step twice changes nothing the second time ([`Exec`](windlass_common::step::Exec)
//!   excepted, which the runner never repeats).
//!
//! # After a crash
//! The runner runs the step again when the director sends it again; nothing here remembers.
//!
//! # Not here
//! Journal, deadlines, locks ([`crate::runner`]).

pub mod check;
pub mod collect;
pub mod configure;
pub mod disk;
pub mod etcd;
pub mod evict;
pub mod exec;
pub mod fetch;
pub mod gate;
pub mod hold;
mod https;
pub mod keys;
mod progress;
pub mod service;
#[cfg(test)]
mod testing;
pub mod upgrade;

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::step::{Outcome, Payload, Step, StepId};

pub use fetch::ArtifactSource;
pub use progress::Reporter;

use crate::history::History;
use crate::host::Host;
use crate::units::Units;
use crate::units::watch::Watched;

/// Most changes of one step that are reported, in bytes: a quarter of a frame.
const CHANGES_BYTES_MAX: usize = 256 << 10;

/// Whether the director was reached; why not, for people.
pub type Reached<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// Shows that this machine and its director can reach each other now.
pub trait Reach: std::fmt::Debug + Send + Sync {
    /// Makes a connection of its own with the director, and ends it.
    fn director(&self) -> Reached<'_>;

    /// How long that may take, again and again, before the link counts as cut.
    fn within(&self) -> Duration {
        configure::trial::PROVEN_WITHIN
    }
}

/// What steps work with.
#[derive(Debug, Clone)]
pub struct Context {
    /// Files and subprocesses.
    pub host: Host,
    /// systemd.
    pub units: Arc<Units>,
    /// Where artifacts come from.
    pub artifacts: Arc<dyn ArtifactSource>,
    /// The agent's memory.
    pub history: Arc<Mutex<History>>,
    /// Units whose states are reported.
    pub watched: watch::Sender<Watched>,
    /// Turned true, it ends the agent in peace; its unit starts it again.
    pub leave: watch::Sender<bool>,
    /// How the link is proven that a step could cut; `None` where steps do not come over one.
    pub director: Option<Arc<dyn Reach>>,
}

/// One run of one step.
#[derive(Debug, Clone)]
pub struct Run {
    /// Where progress goes.
    pub progress: Reporter,
    changes: Arc<Mutex<Changes>>,
    // What the step touches stays held while its file work runs, which a deadline cannot stop.
    holding: Option<Arc<dyn Any + Send + Sync>>,
}

#[derive(Debug, Default)]
struct Changes {
    lines: Vec<String>,
    bytes: usize,
    waiting: Option<String>,
}

/// Why a step failed, as the director is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// How the step ended: `Failed` or `Unknown`.
    pub outcome: Outcome,
    /// What it returns nevertheless.
    pub payload: Payload,
}

impl Failure {
    /// A failure with its message.
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Failed {
                class,
                message: message.into(),
            },
            payload: Payload::None,
        }
    }

    fn from_error(class: ErrorClass, error: &dyn std::error::Error) -> Self {
        Self::new(class, ErrorChain(error).to_string())
    }
}

macro_rules! failure_from {
    ($($error:ty),+ $(,)?) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::from_error(error.class(), &error)
            }
        })+
    };
}

failure_from!(
    crate::host::tree::TreeError,
    crate::units::UnitError,
    configure::ConfigureError,
    disk::DiskError,
    etcd::EtcdError,
    fetch::FetchError,
    keys::KeysError,
    upgrade::UpgradeError,
);

impl From<crate::history::HistoryError> for Failure {
    fn from(error: crate::history::HistoryError) -> Self {
        Self::from_error(ErrorClass::Retry, &error)
    }
}

impl From<tokio::task::JoinError> for Failure {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::from_error(ErrorClass::Bug, &error)
    }
}

impl Run {
    /// A run whose progress goes there.
    pub fn new(progress: Reporter) -> Self {
        Self {
            progress,
            changes: Arc::default(),
            holding: None,
        }
    }

    /// What is done for this run, and is none of its changes.
    pub(crate) fn apart(&self, progress: Reporter) -> Self {
        Self {
            progress,
            changes: Arc::default(),
            holding: self.holding.clone(),
        }
    }

    /// The same run, holding what its step touches until all of its work is over.
    #[must_use]
    pub fn holding(&self, held: impl Any + Send + Sync) -> Self {
        Self {
            holding: Some(Arc::new(held)),
            ..self.clone()
        }
    }

    /// Runs file work off the runtime's thread. Dropping the future does not stop work that has begun;
    /// what the step holds stays held until it is over.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let holding = self.holding.clone();
        let work = move || {
            let done = work();
            drop(holding);
            done
        };
        blocking(work).await
    }

    /// Notes one change. Beyond a quarter of a frame, further ones are only counted as cut.
    pub fn changed(&self, line: impl Into<String>) {
        let line = line.into();
        let mut changes = self.lock();
        if changes.bytes + line.len() <= CHANGES_BYTES_MAX {
            changes.bytes += line.len();
            changes.lines.push(line);
        } else if changes.bytes < CHANGES_BYTES_MAX {
            changes.bytes = CHANGES_BYTES_MAX;
            changes
                .lines
                .push("… (further changes are not shown)".to_owned());
        }
    }

    /// What was changed so far.
    pub fn changes(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// Says what the step waits for, at once and again if its deadline ends it.
    pub fn stage(&self, what: String) {
        self.lock().waiting = Some(what.clone());
        self.progress.stage(what);
    }

    /// What the step was last waiting for.
    pub fn waits_for(&self) -> Option<String> {
        self.lock().waiting.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a checked step. Dropping the future stops it where it may be stopped: between two effects;
/// subprocesses are killed.
pub async fn run(
    context: &Context,
    run: &Run,
    id: &StepId,
    step: &Step,
) -> Result<Payload, Failure> {
    match step {
        Step::Fetch(fetch) => fetch::run(context, run, fetch).await,
        Step::Keys(keys) => keys::run(context, run, keys).await,
        Step::Configure(configure) => configure::run(context, run, configure).await,
        Step::Disk(disk) => disk::run(context, run, disk).await,
        Step::Service(service) => service::run(context, run, service).await,
        Step::Gate(gate) => gate::run(context, run, gate).await,
        Step::Collect(collect) => collect::run(context, run, collect).await,
        Step::Exec(exec) => exec::run(run, exec).await,
        Step::AgentUpgrade(upgrade) => upgrade::run(context, run, id, upgrade).await,
        Step::Etcd(etcd) => etcd::run(context, run, etcd).await,
        Step::EtcdData(data) => etcd::data::run(context, run, data).await,
        Step::Evict(evict) => evict::run(context, run, evict).await,
        Step::Hold(hold) => hold::run(context, run, hold).await,
    }
}

/// Runs file work that no step holds anything for off the runtime's thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await?
}

/// Locks the agent's memory; for short, blocking use.
pub(crate) fn lock(history: &Mutex<History>) -> MutexGuard<'_, History> {
    // A panic while it was held left it as it was before the failed call: entries are recorded on
    // disk first and applied in one move.
    history.lock().unwrap_or_else(PoisonError::into_inner)
}
