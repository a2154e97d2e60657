//! Admits steps, runs them, and remembers how they ended.
//!
//! # Invariants
//! * A step of a lower epoch than the highest ever seen is refused, also one that has waited for its turn since, unless
//!   the director in charge asks for it too; the highest is on disk before a step begins.
//! * A step's begin is on disk before its effect, its end before its result is returned.
//! * A step that cannot be repeated runs at most once, whatever is sent how often.
//! * Two steps never touch the same thing at once (`locks`).
//! * Every step ends by its deadline, and soon after it is cancelled: between two effects, its processes
//!   killed with their groups, what became of it written down.
//!
//! # After a crash
//! The director sends the step again. One that had ended answers from the journal; one that had not
//! converges; one that cannot be repeated was ended as unknown when the journal was opened.
//!
//! # Cancellation
//! The link runs each step on a task of its own. Dropping the future of [`Runner::step`] is like a
//! crash: the step has begun and not ended.
//!
//! # Not here
//! What steps do ([`crate::steps`]); attaching a second sender to a running step ([`crate::link`]).

mod locks;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use windlass_common::error::ErrorClass;
use windlass_common::id::{Digest, Epoch};
use windlass_common::limits::{STEP_DEADLINE_MAX, STEPS_IN_FLIGHT_MAX};
use windlass_common::step::{
    EtcdAction, EtcdDataAction, NETWORK_RULES_PATH, Outcome, Payload, Step, StepId, StepRequest,
    StepResult,
};
use windlass_common::wire::codec;
use windlass_common::wire::step::{OPERATOR, REQUEST};

use crate::history::History;
use crate::link::{CancelToken, ProgressSink};
use crate::steps::configure::trial;
use crate::steps::{self, Context, Failure, Reporter, Run, blocking, check::check, lock};

use locks::{Locks, Thing};

/// Between attempts to bring back what a reboot lost.
const RESTORE_RETRY: Duration = Duration::from_secs(2);

/// How long the end of a cancelled step's file work is waited for: writing one file, mostly.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// What the steps of a runner act on: the machine it is on, or one that exists only in a simulation.
pub trait Machine: Send + Sync {
    /// What must be remembered.
    fn history(&self) -> &Arc<Mutex<History>>;

    /// Carries out a checked step; see [`steps::run`].
    fn carry_out(
        &self,
        run: &Run,
        id: &StepId,
        step: &Step,
    ) -> impl Future<Output = Result<Payload, Failure>> + Send;

    /// Runs work that blocks, such as writing the journal, where it keeps nothing else waiting. Work that
    /// has begun ends, also when the future is dropped.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> impl Future<Output = Result<T, Failure>> + Send;
}

impl Machine for Context {
    fn history(&self) -> &Arc<Mutex<History>> {
        &self.history
    }

    async fn carry_out(&self, run: &Run, id: &StepId, step: &Step) -> Result<Payload, Failure> {
        steps::run(self, run, id, step).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        blocking(work).await
    }
}

/// Runs the steps of one machine.
#[derive(Debug)]
pub struct Runner<M = Context> {
    machine: M,
    locks: Locks,
    slots: Semaphore,
    running: Mutex<BTreeMap<StepId, Epoch>>,
    epoch: AtomicU64,
    changed: watch::Sender<u64>,
}

/// What became of a request before anything was done.
enum Admission {
    /// It runs; the digest of what it asks for.
    Run(Digest),
    /// It was over before.
    Over(StepResult),
    /// It does not run.
    Refuse(String),
}

impl Runner {
    /// What the steps work with.
    pub fn context(&self) -> &Context {
        &self.machine
    }

    /// Puts back what was on trial of the network, and brings back routes and kernel parameters that a reboot lost,
    /// trying until it succeeds: early in a boot the network is not up yet.
    pub async fn restore(&self) {
        loop {
            let things = {
                let unproven = trial::is_under_way(&self.machine.host);
                let history = lock(&self.machine.history);
                let network = history.network();
                if network.routes.is_none() && network.sysctls.is_empty() && !unproven {
                    return;
                }
                let sysctls = network.sysctls.keys().cloned().map(Thing::Sysctl);
                let rules = Thing::Path(NETWORK_RULES_PATH.to_owned());
                sysctls.chain([Thing::Routes, rules]).collect()
            };
            let silent = Run::new(Reporter::new(ProgressSink::channel(1).0));
            let run = silent.holding(self.locks.acquire(things).await);
            let restored = steps::configure::restore(&self.machine, &run).await;
            for change in run.changes() {
                tracing::info!(change, "brought back");
            }
            match restored {
                Ok(()) => return,
                Err(failure) => tracing::warn!(?failure, "cannot bring back what a reboot lost"),
            }
            drop((run, silent));
            tokio::time::sleep(RESTORE_RETRY).await;
        }
    }
}

impl<M: Machine> Runner<M> {
    /// A runner with nothing to do.
    pub fn new(machine: M) -> Self {
        let epoch = lock(machine.history()).epoch();
        Self {
            machine,
            locks: Locks::default(),
            slots: Semaphore::new(STEPS_IN_FLIGHT_MAX as usize),
            running: Mutex::default(),
            epoch: AtomicU64::new(epoch.0),
            changed: watch::channel(0).0,
        }
    }

    /// From now on, steps of a lower epoch are refused. The disk follows before the next step begins.
    pub fn see_epoch(&self, epoch: Epoch) {
        self.epoch.fetch_max(epoch.0, Ordering::Relaxed);
    }

    /// A director of this epoch asks for a step that is here already: it may begin, although who sent it is not in charge
    /// any more.
    pub fn asked_again(&self, id: &StepId, epoch: Epoch) {
        if let Some(asked) = entries(&self.running).get_mut(id) {
            *asked = epoch.max(*asked);
        }
    }

    /// Highest epoch seen.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Relaxed))
    }

    /// Tells of each step that changed something.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Carries out a step, or says how it ended before.
    pub async fn step(
        &self,
        request: StepRequest,
        progress: Reporter,
        cancel: CancelToken,
    ) -> StepResult {
        let started = Instant::now();
        let deadline = started + Duration::from_millis(request.deadline_ms).min(STEP_DEADLINE_MAX);
        let run = Run::new(progress);
        let Some(running) = Running::enter(&self.running, &request) else {
            let message = "it is running already".to_owned();
            return result(
                &request.id,
                started,
                Outcome::Refused { message },
                Payload::None,
                &run,
            );
        };
        let content = match self.admit(&request).await {
            Ok(Admission::Run(content)) => content,
            Ok(Admission::Over(result)) => return result,
            Ok(Admission::Refuse(message)) => {
                tracing::warn!(step = %request.id, message, "refused a step");
                let outcome = Outcome::Refused { message };
                return result(&request.id, started, outcome, Payload::None, &run);
            }
            Err(failure) => {
                return result(&request.id, started, failure.outcome, failure.payload, &run);
            }
        };
        if let Some(operator) = request.labels.get(OPERATOR) {
            // Written as a debug string: a name from elsewhere makes no lines of its own.
            let number = request.labels.get(REQUEST);
            tracing::info!(step = %request.id, ?operator, request = ?number, "an operator asks");
        }
        let (outcome, payload) = self
            .execute(&request, &running, deadline, cancel, &run)
            .await;
        let result = result(&request.id, started, outcome, payload, &run);
        tracing::info!(
            step = %result.id,
            kind = request.step.kind(),
            outcome = ?result.outcome,
            changes = result.changes.len(),
            elapsed_ms = result.elapsed_ms,
            "a step is over"
        );
        self.remember_end(content, &request, &result).await;
        if !result.changes.is_empty() {
            self.changed.send_modify(|steps| *steps += 1);
        }
        result
    }

    async fn admit(&self, request: &StepRequest) -> Result<Admission, Failure> {
        let faults = check(&request.id, &request.step);
        if !faults.is_empty() {
            return Ok(Admission::Refuse(faults.join("; ")));
        }
        let encoded = codec::encode(&request.step);
        let content = match encoded {
            Ok(bytes) => Digest::of(&bytes),
            Err(error) => return Ok(Admission::Refuse(error.to_string())),
        };
        let history = self.machine.history().clone();
        let (id, epoch) = (request.id.clone(), request.epoch);
        let once = !request.step.converges();
        let looks = looks(&request.step);
        self.see_epoch(epoch);
        let highest = self.epoch();
        let admit = move || {
            let mut history = lock(&history);
            if epoch < highest {
                return Ok(Admission::Refuse(over(epoch, highest)));
            }
            history.see_epoch(highest)?;
            let known = history.step(&id);
            if let Some(admission) =
                known.and_then(|known| admit_again(known, content, once, looks))
            {
                return Ok(admission);
            }
            if !looks {
                // What only looks leaves nothing behind that a crash could make unclear.
                history.begin(&id, content, once)?;
            }
            Ok(Admission::Run(content))
        };
        self.machine.blocking(admit).await
    }

    async fn execute(
        &self,
        request: &StepRequest,
        running: &Running<'_>,
        deadline: Instant,
        mut cancel: CancelToken,
        run: &Run,
    ) -> (Outcome, Payload) {
        let begun = AtomicBool::new(false);
        let cancel_pending = cancel.clone();
        let work = async {
            let _slots = self.slots.acquire_many(slots(&request.step)).await;
            let held = self.locks.acquire(locks::of(&request.step)).await;
            if cancel_pending.is_cancelled() {
                return std::future::pending().await;
            }
            let (asked, highest) = (running.asked(), self.epoch());
            if asked < highest {
                let message = format!(
                    "it waited for its turn, and nothing was changed: {}",
                    over(asked, highest)
                );
                return Err(Failure {
                    outcome: Outcome::Refused { message },
                    payload: Payload::None,
                });
            }
            begun.store(true, Ordering::Relaxed);
            let run = run.holding(held);
            self.machine
                .carry_out(&run, &request.id, &request.step)
                .await
        };
        let ended = {
            tokio::pin!(work);
            tokio::select! {
                biased;
                ended = timeout_at(deadline, &mut work) => Some(ended),
                () = cancel.cancelled() => None,
            }
        };
        // The work is dropped: its processes are gone.
        let Some(ended) = ended else {
            if begun.load(Ordering::Relaxed) {
                self.settle(&request.step, deadline).await;
                return (stopped(request), Payload::None);
            }
            let message = "cancelled before it began; nothing was changed".to_owned();
            return (Outcome::Refused { message }, Payload::None);
        };
        match ended {
            Ok(Ok(payload)) if run.changes().is_empty() => (Outcome::Converged, payload),
            Ok(Ok(payload)) => (Outcome::Changed, payload),
            Ok(Err(failure)) => (failure.outcome, failure.payload),
            Err(_) => (overdue(request, run), Payload::None),
        }
    }

    /// Waits until the file work of a step that was dropped is over, so that what it changed is known.
    async fn settle(&self, step: &Step, deadline: Instant) {
        let patience = deadline.min(Instant::now() + SETTLE_MAX);
        // Late: what it holds stays held, and the changes that were noted by now are reported.
        let _ = timeout_at(patience, self.locks.acquire(locks::of(step))).await;
    }

    async fn remember_end(&self, content: Digest, request: &StepRequest, result: &StepResult) {
        if matches!(request.step, Step::Gate(_) | Step::Collect(_)) {
            return;
        }
        let history = self.machine.history().clone();
        let (once, result) = (!request.step.converges(), result.clone());
        let end = move || Ok(lock(&history).end(content, once, &result)?);
        let ended: Result<(), Failure> = self.machine.blocking(end).await;
        if let Err(failure) = ended {
            // The result is true all the same. Without its end, a step that converges runs again when
            // it is sent again, and one that cannot is reported as unknown.
            tracing::error!(step = %request.id, ?failure, "cannot remember how a step ended");
        }
    }
}

/// Whether what a step answers is true of that moment alone: asked again, it looks, or asks the API, again.
fn looks(step: &Step) -> bool {
    match step {
        Step::Gate(_) | Step::Collect(_) | Step::Evict(_) => true,
        Step::Etcd(etcd) => etcd.action == EtcdAction::Report,
        Step::EtcdData(data) => data.action == EtcdDataAction::Inspect,
        Step::Fetch(_)
        | Step::Keys(_)
        | Step::Configure(_)
        | Step::Disk(_)
        | Step::Service(_)
        | Step::Exec(_)
        | Step::AgentUpgrade(_)
        | Step::Hold(_) => false,
    }
}

/// How many of the places for steps one takes. The end of the agent would cut off what else runs: its
/// upgrade waits for that, and what comes later waits for it.
fn slots(step: &Step) -> u32 {
    match step {
        Step::AgentUpgrade(_) => STEPS_IN_FLIGHT_MAX,
        Step::Fetch(_)
        | Step::Keys(_)
        | Step::Configure(_)
        | Step::Disk(_)
        | Step::Service(_)
        | Step::Gate(_)
        | Step::Collect(_)
        | Step::Exec(_)
        | Step::Etcd(_)
        | Step::EtcdData(_)
        | Step::Evict(_)
        | Step::Hold(_) => 1,
    }
}

/// What a request for a step that is known already gets; `None`: it runs (again).
fn admit_again(
    known: &crate::history::Known,
    content: Digest,
    once: bool,
    looks: bool,
) -> Option<Admission> {
    if once {
        return Some(match &known.result {
            _ if known.content != content => Admission::Refuse(
                "a step of this id ran with other content, and this kind runs only once".to_owned(),
            ),
            Some(result) => Admission::Over(result.clone()),
            // Begun in this process and dropped: not running, since the caller entered.
            None => Admission::Refuse("it was begun and given up, and runs only once".to_owned()),
        });
    }
    if looks || known.content != content {
        return None;
    }
    match &known.result {
        Some(result) if matches!(result.outcome, Outcome::Converged | Outcome::Changed) => {
            Some(Admission::Over(result.clone()))
        }
        Some(_) | None => None,
    }
}

/// How a step ended that was cancelled after it had begun.
fn stopped(request: &StepRequest) -> Outcome {
    if !request.step.converges() {
        return Outcome::Unknown {
            message: "cancelled and killed; what it had done by then is not known".to_owned(),
        };
    }
    Outcome::Failed {
        class: ErrorClass::Operator,
        message: "cancelled; what it had changed by then is listed, and sending it again goes on"
            .to_owned(),
    }
}

fn overdue(request: &StepRequest, run: &Run) -> Outcome {
    let deadline_ms = request.deadline_ms;
    if !request.step.converges() {
        return Outcome::Unknown {
            message: format!(
                "killed at its deadline of {deadline_ms} ms; what it had done by then is not known"
            ),
        };
    }
    let waited = run
        .waits_for()
        .map_or_else(String::new, |what| format!("; waiting for {what}"));
    Outcome::Failed {
        class: ErrorClass::Retry,
        message: format!("not done within its deadline of {deadline_ms} ms{waited}"),
    }
}

fn result(
    id: &StepId,
    started: Instant,
    outcome: Outcome,
    payload: Payload,
    run: &Run,
) -> StepResult {
    StepResult {
        id: id.clone(),
        outcome,
        payload,
        changes: run.changes(),
        elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    }
}

fn over(epoch: Epoch, highest: Epoch) -> String {
    format!(
        "epoch {epoch} is over, this machine has seen {highest}; the director that sent this is not in charge any more"
    )
}

/// Marks a step as running while it lives, with the highest epoch in which it was asked for.
struct Running<'a> {
    running: &'a Mutex<BTreeMap<StepId, Epoch>>,
    id: StepId,
}

fn entries(running: &Mutex<BTreeMap<StepId, Epoch>>) -> MutexGuard<'_, BTreeMap<StepId, Epoch>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Running<'a> {
    fn enter(running: &'a Mutex<BTreeMap<StepId, Epoch>>, request: &StepRequest) -> Option<Self> {
        let mut ids = entries(running);
        let Entry::Vacant(place) = ids.entry(request.id.clone()) else {
            return None;
        };
        place.insert(request.epoch);
        drop(ids);
        Some(Self {
            running,
            id: request.id.clone(),
        })
    }

    fn asked(&self) -> Epoch {
        entries(self.running)
            .get(&self.id)
            .copied()
            .unwrap_or_default()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        entries(self.running).remove(&self.id);
    }
}
