//! Drives one task from where it is to its end.

mod again;
mod back;
mod settle;
mod stages;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio::task::{JoinError, JoinSet};
use windlass_common::clock::Clock;
use windlass_common::error::ErrorClass;
use windlass_common::maintenance::FreezeSpec;

use self::again::{called, spared};
use self::settle::settle;
use self::window::{ordered, turned, turned_at};
use super::change;
use super::pause;
use super::step::{End, Runner, stopped};
use super::{Effects, ProgressSink, STEPS_IN_FLIGHT, StepOrder, Stop, limit};
use crate::maintenance::{self, Outlook, WindowView};
use crate::model::{
    Cluster, Fault, Machine, MachinePhase, Plan, PlanStep, StepKey, StepRecord, StepState, Task,
    TaskEvent, TaskId, TaskKind, TaskState, Timestamp,
};
use crate::store::{Commit, Records, StoreError};

/// Pause between two tries to write to a store that refuses.
const STORE_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Driver {
    pub(super) id: TaskId,
    pub(super) records: Records,
    pub(super) effects: Arc<dyn Effects>,
    pub(super) events: broadcast::Sender<TaskEvent>,
    pub(super) stop: watch::Receiver<Stop>,
    pub(super) pause: watch::Receiver<bool>,
    pub(super) ignore_window: watch::Receiver<Option<String>>,
    pub(super) freezes: watch::Receiver<Vec<FreezeSpec>>,
    pub(super) clock: Clock,
    pub(super) look: watch::Receiver<()>,
}

/// How a plan ended.
enum Outcome {
    Succeeded,
    Failed(Fault),
    Stopped,
    /// What is left of it does not fit any more.
    Unfit,
}

type Ended = (StepOrder, StepRecord, End);

/// What is going on while a plan is carried out.
#[derive(Default)]
struct Flight {
    begun: BTreeSet<StepKey>,
    ended: Vec<Ended>,
    failure: Option<Fault>,
    /// The plan does not fit any more.
    unfit: bool,
}

/// Has the steps that run end.
#[derive(Default)]
struct Halt {
    begun: bool,
    steps: Vec<watch::Sender<Stop>>,
}

impl Halt {
    /// Who tells one more step.
    fn one(&mut self) -> watch::Receiver<Stop> {
        self.steps.retain(|step| !step.is_closed());
        let (step, halted) = watch::channel(Stop::No);
        self.steps.push(step);
        halted
    }

    /// Tells all of them, in the order in which they began.
    fn all(&mut self) {
        self.begun = true;
        for step in &self.steps {
            step.send_replace(Stop::Leave);
        }
    }
}

impl Flight {
    fn land(&mut self, end: Result<Ended, JoinError>) {
        match end {
            Ok(end) => self.ended.push(end),
            Err(error) => {
                self.failure.get_or_insert_with(|| Fault {
                    class: ErrorClass::Bug,
                    message: format!("a step ended without an answer: {error}"),
                });
            }
        }
    }
}

impl Driver {
    /// Returns when the task is over.
    pub(super) async fn run(self) {
        let Some(mut task) = self.load().await else {
            tracing::error!(task = %self.id, "a task that is not in the store was started");
            return;
        };
        tracing::info!(task = %task.id, kind = %task.kind, cluster = %task.cluster, state = %task.state, "task begins or goes on");
        while !task.state.is_over() {
            match task.state {
                TaskState::Queued => {
                    task.started_at = Some(Timestamp::now());
                    self.set_state(&mut task, TaskState::Running, None).await;
                }
                TaskState::Running
                | TaskState::Pausing
                | TaskState::Paused
                | TaskState::Waiting => {
                    self.carry_out(&mut task).await;
                }
                TaskState::Cancelling => self.clean_up(&mut task).await,
                TaskState::RollingBack => self.roll_back(&mut task).await,
                TaskState::Succeeded | TaskState::Failed | TaskState::Cancelled => {}
            }
        }
        tracing::info!(task = %task.id, cluster = %task.cluster, state = %task.state, "task is over");
    }

    async fn load(&self) -> Option<Task> {
        loop {
            match self.records.task(&self.id).await {
                Ok(task) => return task,
                Err(error) => wait_for_store(&error).await,
            }
        }
    }

    async fn carry_out(&self, task: &mut Task) {
        let outcome = if self.fits(task).await {
            let plan = task.current().clone();
            self.run_plan(task, &plan, false).await
        } else {
            Outcome::Unfit
        };
        if task.state == TaskState::Cancelling {
            return; // however far it got, the clean-up comes next
        }
        match outcome {
            // What was repaired before its turn may be left.
            Outcome::Succeeded if !self.fits(task).await => self.plan_again(task).await,
            Outcome::Succeeded => self.go_on(task).await,
            Outcome::Failed(_) if !self.fits(task).await => self.plan_again(task).await,
            Outcome::Failed(fault) => self.give_up(task, fault).await,
            Outcome::Stopped => self.set_state(task, TaskState::Cancelled, None).await,
            Outcome::Unfit => self.plan_again(task).await,
        }
    }

    /// Carries out what is left of a plan. A clean-up is not stopped by the cancel that led to it.
    async fn run_plan(&self, task: &mut Task, plan: &Plan, cleanup: bool) -> Outcome {
        let mut halt = Halt::default();
        let mut flight = Flight::default();
        let mut running: JoinSet<Ended> = JoinSet::new();
        let windows = match cleanup {
            true => None,
            false => self.windows(task).await,
        };
        let mut look = self.look.clone();
        loop {
            note_ends(task, &flight.ended, &mut flight.failure);
            flight.unfit |= !cleanup && flight.ended.iter().any(spared);
            let stop = *self.stop.borrow();
            // Only the end of the cluster ends a restore that has begun.
            let deaf = stop == Stop::CleanUp && task.has_to_end();
            if !cleanup && stop != Stop::No && !deaf {
                self.begin_to_cancel(task, stop).await;
                halt.all();
            }
            if flight.failure.is_some() || flight.unfit {
                halt.all();
            }
            let pausing = !cleanup && *self.pause.borrow();
            let halted_now = halt.begun;
            if !cleanup && !halted_now {
                self.note_ignored(task).await;
            }
            let mut freezes = self.freezes.clone();
            let outlook = match (&windows, &task.ignore_window) {
                (Some(windows), None) => {
                    let windows = windows.with_freezes(&freezes.borrow_and_update());
                    maintenance::outlook(&windows, self.clock.now())
                }
                (None, _) | (_, Some(_)) => Outlook::Open { until: None },
            };
            let held = match &outlook {
                Outlook::Open { .. } => None,
                Outlook::Closed { .. } => Some(WindowView::from(outlook.clone()).to_string()),
            };
            if !cleanup && !halted_now {
                self.note_pause(task, pausing, held).await;
            }
            let pausing_now = pausing || task.held.is_some();
            let next = if halted_now {
                Vec::new()
            } else {
                let free = STEPS_IN_FLIGHT.saturating_sub(running.len());
                let goes_on = |step: &PlanStep| !pausing_now || pause::goes_on(plan, task, step);
                ready(plan, &task.steps, &flight.begun, free, goes_on)
            };
            let orders: Vec<StepOrder> = next.iter().map(|step| self.order(task, step)).collect();
            note_intents(task, &orders);
            self.write(task, &flight.ended, &orders).await;
            flight.ended.clear();
            for order in orders {
                flight.begun.insert(order.key.clone());
                let record = task.steps[&order.key].clone();
                running.spawn(self.runner(halt.one()).run(order, record));
            }
            let resting = pausing_now && !halted_now && !complete(plan, &task.steps);
            if running.is_empty() && !resting {
                break;
            }
            match task.state {
                TaskState::Pausing if running.is_empty() => {
                    self.set_state(task, TaskState::Paused, None).await;
                }
                TaskState::Running if running.is_empty() => {
                    self.set_state(task, TaskState::Waiting, None).await;
                }
                _ => {}
            }
            let mut stop = self.stop.clone();
            let mut pause = self.pause.clone();
            let mut ignore = self.ignore_window.clone();
            let ignored = task.ignore_window.is_some();
            let turns = outlook.until();
            let calm = cleanup || halt.begun || deaf;
            tokio::select! {
                biased;
                Some(end) = running.join_next() => flight.land(end),
                () = stopped(&mut stop), if !calm => {}
                () = turned(&mut pause, pausing), if !calm => {}
                () = ordered(&mut ignore), if !calm && !ignored => {}
                () = turned_at(&self.clock, turns), if !calm => {}
                Ok(()) = freezes.changed(), if !calm => {}
                () = called(&mut look), if !calm => flight.unfit = !self.fits(task).await,
            }
            while let Some(end) = running.try_join_next() {
                flight.land(end);
            }
        }
        let stop = *self.stop.borrow();
        match flight.failure {
            _ if flight.unfit && stop == Stop::No => Outcome::Unfit,
            Some(fault) => Outcome::Failed(fault),
            None if complete(plan, &task.steps) => Outcome::Succeeded,
            None => Outcome::Stopped,
        }
    }

    fn runner(&self, stop: watch::Receiver<Stop>) -> Runner {
        Runner {
            records: self.records.clone(),
            effects: self.effects.clone(),
            events: self.events.clone(),
            stop,
        }
    }

    fn order(&self, task: &Task, step: &PlanStep) -> StepOrder {
        StepOrder {
            task: task.id.clone(),
            cluster: task.cluster.clone(),
            key: step.key.clone(),
            action: step.action.clone(),
            attempt: task
                .steps
                .get(&step.key)
                .map_or(1, |record| record.attempts),
            limit: limit(&step.action),
            progress: ProgressSink {
                events: self.events.clone(),
                key: step.key.clone(),
            },
        }
    }

    /// Writes ends with what they changed and intents, in one commit, and tells the watchers.
    async fn write(&self, task: &Task, ended: &[Ended], orders: &[StepOrder]) {
        if ended.is_empty() && orders.is_empty() {
            return;
        }
        let keys: Vec<&StepKey> = ended
            .iter()
            .map(|(order, _, _)| &order.key)
            .chain(orders.iter().map(|order| &order.key))
            .collect();
        let changes: Vec<_> = ended
            .iter()
            .filter_map(|(_, _, end)| match end {
                End::Succeeded(done) => Some(done.records.iter().cloned()),
                End::Failed(_) | End::Stopped => None,
            })
            .flatten()
            .chain(orders.iter().filter_map(|o| change::intent(&o.action)))
            .collect();
        loop {
            let mut commit = Commit::default();
            for key in &keys {
                commit.put_step(&task.id, key, &task.steps[*key]);
            }
            let result = async {
                change::apply(&self.records, &task.cluster, &changes, &mut commit).await?;
                self.records.commit(commit).await
            };
            match result.await {
                Ok(_) => break,
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => wait_for_store(&error).await,
            }
        }
        for key in keys {
            self.tell(TaskEvent::Step {
                key: key.clone(),
                record: task.steps[key].clone(),
            });
        }
    }

    /// Writes the task's state, and what it means for its cluster.
    async fn set_state(&self, task: &mut Task, state: TaskState, error: Option<Fault>) {
        task.state = state;
        task.error = error;
        if state.is_over() {
            task.ended_at = Some(Timestamp::now());
        }
        if matches!(state, TaskState::RollingBack | TaskState::Cancelling) || state.is_over() {
            task.held = None;
        }
        loop {
            match self.write_state(task).await {
                Ok(()) => break,
                // An earlier commit may have been made although its answer was lost.
                Err(StoreError::Conflict { .. }) => {
                    match self.records.get::<Task>(task.id.as_str()).await {
                        Ok(found) => {
                            task.revision = found.map_or(task.revision, |found| found.revision)
                        }
                        Err(error) => wait_for_store(&error).await,
                    }
                }
                Err(error) => wait_for_store(&error).await,
            }
        }
        if let Some(fault) = &task.error {
            tracing::error!(task = %task.id, cluster = %task.cluster, error = %fault.message, error_class = ?fault.class, "task failed");
        }
        self.tell(TaskEvent::State {
            state,
            error: task.error.clone(),
        });
    }

    async fn write_state(&self, task: &mut Task) -> Result<(), StoreError> {
        let mut commit = Commit::default();
        let mut header = task.clone();
        header.steps = BTreeMap::new();
        commit.put(&header)?;
        if let Some(mut cluster) = self.records.get::<Cluster>(task.cluster.as_str()).await? {
            settle(&mut cluster, task);
            commit.put(&cluster)?;
        }
        let ended = matches!(task.state, TaskState::Succeeded | TaskState::Cancelled);
        if ended && task.kind == TaskKind::UpdateCluster {
            let mut machines = self.records.machines_of(task.cluster.as_str()).await?;
            // Nothing goes back any more.
            let through = |m: &&mut Machine| m.former.is_some() && m.phase == MachinePhase::Ready;
            for machine in machines.iter_mut().filter(through) {
                machine.former = None;
                commit.put(machine)?;
            }
        }
        if task.state.is_over() {
            let subject = format!("cluster/{}", task.cluster);
            let detail = format!("{} is {}", task.id, task.state);
            self.records
                .audit(&mut commit, "director", "task.end", &subject, &detail);
        }
        task.revision = self.records.commit(commit).await?;
        Ok(())
    }

    fn tell(&self, event: TaskEvent) {
        let _ = self.events.send(event); // nobody watches: nothing to tell
    }
}

fn ready<'a>(
    plan: &'a Plan,
    steps: &BTreeMap<StepKey, StepRecord>,
    begun: &BTreeSet<StepKey>,
    most: usize,
    may_begin: impl Fn(&PlanStep) -> bool,
) -> Vec<&'a PlanStep> {
    let succeeded = |key| {
        steps
            .get(key)
            .is_some_and(|r| r.state == StepState::Succeeded)
    };
    plan.steps
        .iter()
        .filter(|step| !begun.contains(&step.key) && !succeeded(&step.key))
        .filter(|step| step.after.iter().all(succeeded))
        .filter(|step| may_begin(step))
        .take(most)
        .collect()
}

fn complete(plan: &Plan, steps: &BTreeMap<StepKey, StepRecord>) -> bool {
    plan.steps.iter().all(|step| {
        steps
            .get(&step.key)
            .is_some_and(|r| r.state == StepState::Succeeded)
    })
}

fn note_ends(task: &mut Task, ended: &[Ended], failure: &mut Option<Fault>) {
    for (order, record, end) in ended {
        let mut record = record.clone();
        record.ended_at = Some(Timestamp::now());
        match end {
            End::Succeeded(done) => {
                record.state = StepState::Succeeded;
                record.error = None;
                record.changes.clone_from(&done.changes);
            }
            End::Failed(error) => {
                record.state = StepState::Failed;
                record.error = Some(Fault::from(error.clone()));
                failure.get_or_insert_with(|| Fault {
                    class: error.class,
                    message: format!("step {}: {}", order.key, error.message),
                });
            }
            End::Stopped => record.state = StepState::Cancelled,
        }
        task.steps.insert(order.key.clone(), record);
    }
}

/// A step that was running when the director died keeps its record, and so its attempt number.
fn note_intents(task: &mut Task, orders: &[StepOrder]) {
    for order in orders {
        let record = task.steps.entry(order.key.clone()).or_insert(StepRecord {
            state: StepState::Running,
            attempts: 1,
            started_at: Timestamp::now(),
            ended_at: None,
            error: None,
            changes: Vec::new(),
        });
        record.state = StepState::Running;
    }
}

/// Commits, and waits for the store when it refuses: nothing goes on without it.
pub(super) async fn insist(records: &Records, commit: impl Fn() -> Commit) {
    loop {
        match records.commit(commit()).await {
            Ok(_) => return,
            Err(error) => wait_for_store(&error).await,
        }
    }
}

async fn wait_for_store(error: &StoreError) {
    tracing::error!(
        error = %windlass_common::error::ErrorChain(error), error_class = ?error.class(),
        "the store cannot be used; work waits for it"
    );
    tokio::time::sleep(STORE_PAUSE).await;
}
