//! The rollout: carries plans out, and makes no choices of its own.
//!
//! # Invariants
//! * A step is written down as running before its effect begins, and its end together with what it changed
//!   in the records before any step that waits for it is written down.
//! * A step that was running when the director died is begun again under the same attempt number, so that
//!   an agent recognises it; a new attempt gets a new number, written down first.
//! * Tasks of different clusters never wait for one another: each has its own driver.
//! * While the store cannot be written nothing new begins.
//! * An update that fails first gives the machines that do not come back with their new configuration the one
//!   that they had, makes those anew as they were that it has made anew and that are not through their gates, and has
//!   failed then. That too is written down before it begins.
//! * A task whose plan does not fit any more, since a machine died or came back, has the steps that run end, and
//!   goes on with a plan that does, inside what was approved. That is in the store before any of it begins.
//! * A task that pauses finishes the machines that it has begun with, and then nothing of it runs until it is
//!   told to go on; that is written down, and survives the director.
//! * A change of machines whose cluster's maintenance window is not open does the same, and goes on by itself
//!   when it opens. Creates, deletes and repairs, and the way back of a change, wait for no window.
//! * A task that goes on in stages has its next plan made once the one before is carried out, and written down before
//!   any step of it begins; its steps have keys of their own.
//!
//! # After a crash
//! [`Rollouts::resume`] goes on with every task that was not over.
//!
//! # Not here
//! Which steps there are (planner), and what each does to the world ([`Effects`]).

mod change;
mod drive;
mod pause;
mod step;
#[cfg(test)]
pub(crate) mod tests;
pub mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{broadcast, watch};
use windlass_common::clock::Clock;
use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::gate::{GATE_DELAY_MAX_SECONDS, GATE_TIMEOUT_MAX_SECONDS, GATES_MAX};
use windlass_common::id::{ClusterName, MachineName};
use windlass_common::maintenance::FreezeSpec;

use crate::model::{Action, Fault, Plan, StepKey, Task, TaskEvent, TaskId, TaskState};
use crate::store::{Records, StoreError};

pub use change::RecordChange;
pub(crate) use change::cluster_pki_name;
pub(crate) use pause::in_hand;

/// Events a watcher may fall behind before it gets a snapshot instead: a create of 3 machines sends about
/// 60.
const EVENT_QUEUE: usize = 512;
/// Steps of one task that run at once: 64 machines being made or configured keep a director busy without
/// drowning a provider.
const STEPS_IN_FLIGHT: usize = 64;

/// Begins the keys of a plan that a task goes on with; its number and a slash follow. In a later leg of an upgrade it
/// stands behind that of the leg.
pub(crate) const AGAIN: &str = "again-";
/// Begins the keys of the plan of a later leg; its number and a slash follow.
pub(crate) const LEG: &str = "leg-";

/// Splits the prefix of a later leg off a key; it is empty in the first one.
pub(crate) fn split_leg(key: &str) -> (&str, &str) {
    let is_leg = key.starts_with(LEG);
    let end = key.find('/').filter(|_| is_leg);
    key.split_at(end.map_or(0, |end| end + 1))
}

/// What steps do to the world.
pub trait Effects: Send + Sync + fmt::Debug {
    /// Carries out one step. Repeating it is safe, whatever an earlier attempt got done. Dropping the future
    /// gives up waiting; what was begun may still happen.
    fn perform(&self, order: StepOrder) -> BoxFuture<'_, Result<Done, EffectError>>;

    /// The plan that ends a cancelled task: it removes everything a create has made, its fresh disks
    /// included, or brings what an update has begun back to service and leaves the rest as it is.
    fn plan_cleanup<'a>(&'a self, task: &'a Task) -> BoxFuture<'a, Result<Plan, EffectError>>;

    /// Whether what is left of a task's plan still fits what there is. Reads only.
    fn fits<'a>(&'a self, task: &'a Task) -> BoxFuture<'a, Result<bool, EffectError>>;

    /// The plan that a task goes on with when its own does not fit any more: what is left to do inside what was
    /// approved, machines first that serve nobody. Repeating it is safe.
    fn plan_again<'a>(&'a self, task: &'a Task) -> BoxFuture<'a, Result<Plan, EffectError>>;

    /// The plan that comes after a task's plan that was carried out; `None` when the task is done. What has to be
    /// written down for it is. Repeating it is safe.
    fn plan_next<'a>(&'a self, task: &'a Task) -> BoxFuture<'a, Result<Option<Plan>, EffectError>>;

    /// The way back of machines to what they had, and were, before a change that has failed, as far as they do not come
    /// back with the new. Repeating it is safe.
    fn plan_rollback<'a>(&'a self, task: &'a Task) -> BoxFuture<'a, Result<Rollback, EffectError>>;
}

/// What is taken back of a change that has failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rollback {
    /// How; `None` where nothing is.
    pub plan: Option<Plan>,
    /// Machines that would have to go back and stay as they are: why, and what to do, for people.
    pub left: Vec<String>,
}

/// One step to carry out.
#[derive(Debug, Clone)]
pub struct StepOrder {
    /// The task it is of.
    pub task: TaskId,
    /// The cluster.
    pub cluster: ClusterName,
    /// Its name in the plan.
    pub key: StepKey,
    /// What to do.
    pub action: Action,
    /// 1 at first; grows when an attempt has failed, not when the director restarted.
    pub attempt: u32,
    /// How long it may take.
    pub limit: Duration,
    /// Where to say what is being done.
    pub progress: ProgressSink,
}

/// Where a step says what it is doing; nobody has to listen.
#[derive(Debug, Clone)]
pub struct ProgressSink {
    events: broadcast::Sender<TaskEvent>,
    key: StepKey,
}

impl ProgressSink {
    /// Says what is being done, for people.
    pub fn stage(&self, stage: impl Into<String>) {
        let event = TaskEvent::Progress {
            key: self.key.clone(),
            stage: stage.into(),
        };
        let _ = self.events.send(event); // nobody watches: nothing to tell
    }
}

/// A step succeeded.
#[derive(Debug, Clone, Default)]
pub struct Done {
    /// What it changed, one line each, without secrets.
    pub changes: Vec<String>,
    /// What the records have to say from now on.
    pub records: Vec<RecordChange>,
}

/// A step did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EffectError {
    /// Who acts.
    pub class: ErrorClass,
    /// The whole chain of causes.
    pub message: String,
    /// The step may be running or done where it was sent: it is sent again under the same id, and not
    /// begun anew.
    pub resend: bool,
}

impl EffectError {
    /// Takes over an error with all its causes.
    pub fn of(class: ErrorClass, error: &dyn std::error::Error) -> Self {
        Self::new(class, ErrorChain(error).to_string())
    }

    /// An error without a cause.
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
            resend: false,
        }
    }
}

impl From<EffectError> for Fault {
    fn from(error: EffectError) -> Fault {
        Fault {
            class: error.class,
            message: error.message,
        }
    }
}

impl From<StoreError> for EffectError {
    fn from(error: StoreError) -> Self {
        Self::of(error.class(), &error)
    }
}

/// How to stop a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Go on.
    No,
    /// Stop, and remove what a create has made.
    CleanUp,
    /// Stop, and leave everything as it is.
    Leave,
}

/// All tasks that run in this director. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rollouts {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    records: Records,
    effects: Arc<dyn Effects>,
    clock: Clock,
    /// Freezes of the whole director.
    freezes: watch::Sender<Vec<FreezeSpec>>,
    running: Mutex<BTreeMap<TaskId, Running>>,
}

#[derive(Debug, Clone)]
struct Running {
    events: broadcast::Sender<TaskEvent>,
    stop: watch::Sender<Stop>,
    pause: watch::Sender<bool>,
    ignore_window: watch::Sender<Option<String>>,
    look: watch::Sender<()>,
    over: watch::Receiver<bool>,
    abort: tokio::task::AbortHandle,
}

impl Rollouts {
    /// Carries tasks out with these effects.
    pub fn new(records: Records, effects: Arc<dyn Effects>) -> Self {
        Self::with_clock(records, effects, Clock::system())
    }

    /// Carries tasks out with these effects, in maintenance windows by this clock.
    pub fn with_clock(records: Records, effects: Arc<dyn Effects>, clock: Clock) -> Self {
        Self {
            shared: Arc::new(Shared {
                records,
                effects,
                clock,
                freezes: watch::Sender::default(),
                running: Mutex::default(),
            }),
        }
    }

    /// Sets in which times no cluster is changed, whatever the specs say; tasks that run keep to it from now on.
    pub fn freeze(&self, freezes: Vec<FreezeSpec>) {
        self.shared.freezes.send_replace(freezes);
    }

    /// The times in which no cluster is changed.
    pub fn freezes(&self) -> Vec<FreezeSpec> {
        self.shared.freezes.borrow().clone()
    }

    /// Goes on with every task that is not over; returns their ids.
    pub async fn resume(&self) -> Result<Vec<TaskId>, StoreError> {
        let mut tasks = self.shared.records.list_shared::<Task>().await?;
        tasks.retain(|task| !task.state.is_over());
        for task in &tasks {
            let paused = matches!(task.state, TaskState::Pausing | TaskState::Paused);
            self.drive(task.id.clone(), paused);
        }
        Ok(tasks.iter().map(|task| task.id.clone()).collect())
    }

    /// Begins a task that is in the store; one that runs is left alone.
    pub fn start(&self, id: TaskId) {
        self.drive(id, false);
    }

    fn drive(&self, id: TaskId, paused: bool) {
        let mut running = self.running();
        if running.contains_key(&id) {
            return;
        }
        let (events, _) = broadcast::channel(EVENT_QUEUE);
        let (stop, stopped) = watch::channel(Stop::No);
        let pause = watch::Sender::new(paused);
        let ignore_window = watch::Sender::new(None);
        let look = watch::Sender::new(());
        let (finish, over) = watch::channel(false);
        let driver = drive::Driver {
            id: id.clone(),
            records: self.shared.records.clone(),
            effects: self.shared.effects.clone(),
            events: events.clone(),
            stop: stopped,
            pause: pause.subscribe(),
            ignore_window: ignore_window.subscribe(),
            clock: self.shared.clock.clone(),
            freezes: self.shared.freezes.subscribe(),
            look: look.subscribe(),
        };
        let shared = Arc::downgrade(&self.shared);
        let key = id.clone();
        let handle = tokio::spawn(async move {
            driver.run().await;
            if let Some(shared) = shared.upgrade() {
                shared
                    .running
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&key);
            }
            let _ = finish.send(true); // nobody waits: nothing to tell
        });
        running.insert(
            id,
            Running {
                events,
                stop,
                pause,
                ignore_window,
                look,
                over,
                abort: handle.abort_handle(),
            },
        );
    }

    /// Asks a running task to stop; false when it does not run.
    pub fn stop(&self, id: &TaskId, how: Stop) -> bool {
        match self.running().get(id) {
            Some(running) => running.stop.send(how).is_ok(),
            None => false,
        }
    }

    /// Asks a running task to pause, or to go on; false when it does not run. Its state says when it does.
    pub fn pause(&self, id: &TaskId, pause: bool) -> bool {
        match self.running().get(id) {
            Some(running) => running.pause.send(pause).is_ok(),
            None => false,
        }
    }

    /// Has a running task look again whether its plan fits what the records say now; false when it does not run.
    pub fn look_again(&self, id: &TaskId) -> bool {
        match self.running().get(id) {
            Some(running) => running.look.send(()).is_ok(),
            None => false,
        }
    }

    /// Has a running task go on outside of its cluster's maintenance windows; false when it does not run. Its
    /// record says when it does.
    pub fn ignore_window(&self, id: &TaskId, reason: String) -> bool {
        match self.running().get(id) {
            Some(running) => running.ignore_window.send(Some(reason)).is_ok(),
            None => false,
        }
    }

    /// Waits until a task does not run any more.
    pub async fn wait(&self, id: &TaskId) {
        let over = self.running().get(id).map(|running| running.over.clone());
        if let Some(mut over) = over {
            // An error means that the driver is gone, which is what is waited for.
            let _ = over.wait_for(|over| *over).await;
        }
    }

    /// Events of a running task from now on.
    pub fn subscribe(&self, id: &TaskId) -> Option<broadcast::Receiver<TaskEvent>> {
        self.running()
            .get(id)
            .map(|running| running.events.subscribe())
    }

    /// Stops driving at once, as a crash would: what was begun is taken up by [`Rollouts::resume`].
    pub fn abandon(&self) {
        for running in std::mem::take(&mut *self.running()).into_values() {
            running.abort.abort();
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, BTreeMap<TaskId, Running>> {
        self.shared
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a step may take, retries included. Ample for a busy host: a deadline that fires is a failed
/// create, a slow step is not.
fn limit(action: &Action) -> Duration {
    let seconds = match action {
        Action::EnsureEndpoint
        | Action::CreateDisk { .. }
        | Action::AttachDisk { .. }
        | Action::DeleteDisk { .. }
        | Action::DeleteEndpoint
        | Action::ForgetCluster
        | Action::ForgetMachine { .. }
        | Action::Checkpoint { .. }
        | Action::LeaveEndpoint { .. }
        | Action::JoinEndpoint { .. } => 60,
        Action::MountDisk { .. }
        | Action::Configure { .. }
        | Action::AddRoutes { .. }
        | Action::PruneRoutes { .. }
        | Action::RenewCertificates { .. }
        | Action::Uncordon { .. } => 120,
        Action::CreateMachine { .. }
        | Action::DeleteMachine { .. }
        | Action::AwaitAgent { .. }
        | Action::StartComponents { .. }
        | Action::ApplyAddons
        | Action::AwaitApi
        | Action::StopComponents { .. }
        | Action::MoveLeader { .. }
        | Action::StopApi { .. }
        | Action::StopMember { .. }
        | Action::RestartKubelet { .. }
        | Action::RebootMachine { .. }
        | Action::SettleNodes
        | Action::Fence { .. } => 180,
        Action::AwaitControlPlane { .. }
        | Action::AwaitNode { .. }
        | Action::AddMember { .. }
        | Action::StartMember { .. }
        | Action::AwaitDns
        | Action::RemoveMember { .. } => 300,
        // A keyspace of 8 GiB at 10 MB/s.
        Action::PromoteMember { .. } | Action::SaveSnapshot { .. } => 900,
        // Half a gigabyte at 1 MB/s, while peers are served.
        Action::StageComponents { .. } => 900,
        // A snapshot of 8 GiB that comes at 10 MB/s, is made into data, and synced.
        Action::RestoreMember { .. } => 1800,
        // Data that a restore without an end has left is removed.
        Action::SetMemberAside { .. } => 300,
        // A file system of 100 GiB is checked before it grows where it cannot while it is mounted.
        Action::GrowDisk { .. } => 900,
        // Kubelets look at what they give to pods every minute or two.
        Action::SpreadTrust => 900,
        // Some hundred Secrets a second.
        Action::RewriteSecrets => 3600,
        // Volumes get four minutes to be detached.
        Action::DropNode { .. } => 360,
        Action::AwaitGates { .. } => {
            let each = GATE_DELAY_MAX_SECONDS + GATE_TIMEOUT_MAX_SECONDS + 60;
            GATES_MAX as u64 * u64::from(each) + 60
        }
        // Fetching, the trial of a minute, and the way back from one that failed.
        Action::UpgradeAgent { .. } => 300,
        // The longest time that a policy may give, the longest grace of pods in practice, and volumes.
        Action::Drain { .. } => 14_400 + 1200,
    };
    Duration::from_secs(seconds)
}

/// Whether a cancel may stop waiting for it: the provider's calls are short and are let finish, so that
/// what they make is seen by the plan that removes it.
fn may_be_dropped(action: &Action) -> bool {
    match action {
        Action::AwaitAgent { .. }
        | Action::MountDisk { .. }
        | Action::Configure { .. }
        | Action::StageComponents { .. }
        | Action::StartComponents { .. }
        | Action::AwaitControlPlane { .. }
        | Action::ApplyAddons
        | Action::AwaitNode { .. }
        | Action::DropNode { .. }
        | Action::AwaitApi
        | Action::AwaitGates { .. }
        | Action::Drain { .. }
        | Action::Uncordon { .. }
        | Action::StopComponents { .. }
        | Action::AddRoutes { .. }
        | Action::PruneRoutes { .. }
        | Action::RenewCertificates { .. }
        | Action::StartMember { .. }
        | Action::RestartKubelet { .. }
        | Action::SettleNodes
        | Action::SaveSnapshot { .. }
        | Action::SpreadTrust
        | Action::RewriteSecrets
        | Action::AwaitDns
        | Action::MoveLeader { .. } => true,
        Action::EnsureEndpoint
        | Action::CreateDisk { .. }
        | Action::GrowDisk { .. }
        | Action::CreateMachine { .. }
        | Action::AttachDisk { .. }
        | Action::Fence { .. }
        | Action::RebootMachine { .. }
        | Action::DeleteMachine { .. }
        | Action::DeleteDisk { .. }
        | Action::DeleteEndpoint
        | Action::ForgetCluster
        | Action::ForgetMachine { .. }
        | Action::LeaveEndpoint { .. }
        | Action::JoinEndpoint { .. }
        | Action::Checkpoint { .. }
        // Who is a member is written down when it is over.
        | Action::AddMember { .. }
        | Action::PromoteMember { .. }
        | Action::RemoveMember { .. }
        // A restore that has begun is let end.
        | Action::StopApi { .. }
        | Action::StopMember { .. }
        | Action::RestoreMember { .. }
        | Action::SetMemberAside { .. }
        // On trial it would be rolled back for nothing.
        | Action::UpgradeAgent { .. } => false,
    }
}

/// The machine an order is about, for logs.
fn machine_of(order: &StepOrder) -> &str {
    order.action.machine().map_or("", MachineName::as_str)
}
