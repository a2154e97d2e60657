//! Drives one task from where it is to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio::task::{JoinError, JoinSet};
use windlass_common::clock::Clock;
use windlass_common::error::ErrorClass;
use windlass_common::id::MachineName;
use windlass_common::maintenance::MaintenanceSpec;

use super::change;
use super::pause;
use super::step::{End, Runner, stopped};
use super::{Effects, ProgressSink, STEPS_IN_FLIGHT, StepOrder, Stop, limit};
use crate::maintenance::{self, Outlook, WindowView};
use crate::model::{
    Action, Cluster, ClusterPhase, Fault, Plan, PlanStep, StepKey, StepRecord, StepState, Task,
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

    async fn give_up(&self, task: &mut Task, fault: Fault) {
        let state = match task.kind {
            TaskKind::UpdateCluster => TaskState::RollingBack,
            TaskKind::CreateCluster
            | TaskKind::RepairCluster
            | TaskKind::DeleteCluster
            | TaskKind::RestoreCluster
            | TaskKind::RenewCertificates
            | TaskKind::RotateSecrets
            | TaskKind::UpgradeAgents => TaskState::Failed,
        };
        self.set_state(task, state, Some(fault)).await;
    }

    /// Whether what is left of the task's plan fits what the records say.
    async fn fits(&self, task: &Task) -> bool {
        loop {
            match self.effects.fits(task).await {
                Ok(fits) => return fits,
                Err(error) => {
                    tracing::error!(task = %task.id, %error, "it cannot be told whether the plan fits; the task waits");
                    tokio::time::sleep(STORE_PAUSE).await;
                }
            }
        }
    }

    /// Writes down the plan that the task goes on with.
    async fn plan_again(&self, task: &mut Task) {
        let stop = *self.stop.borrow();
        if stop != Stop::No {
            self.begin_to_cancel(task, stop).await;
            if task.state != TaskState::Cancelling {
                self.set_state(task, TaskState::Cancelled, None).await;
            }
            return;
        }
        match self.effects.plan_again(task).await {
            Ok(plan) => {
                tracing::info!(task = %task.id, cluster = %task.cluster, steps = plan.steps.len(), "task is planned anew");
                task.again = Some(plan);
                task.rounds += 1;
                let pausing = *self.pause.borrow();
                let state = if pausing {
                    TaskState::Pausing
                } else {
                    TaskState::Running
                };
                self.set_state(task, state, None).await;
                self.tell(TaskEvent::Snapshot {
                    task: Box::new(task.clone()),
                });
            }
            Err(error) if error.class == ErrorClass::Retry => {
                tracing::warn!(task = %task.id, %error, "the task cannot be planned anew yet");
                tokio::time::sleep(STORE_PAUSE).await;
            }
            Err(error) => {
                let class = error.class;
                let message = format!(
                    "machines have changed on the way, and there is no plan to go on with: {error}"
                );
                self.give_up(task, Fault { class, message }).await;
            }
        }
    }

    /// Goes on with the next stage of a task whose plan is carried out, or ends it.
    async fn go_on(&self, task: &mut Task) {
        match task.kind {
            TaskKind::RotateSecrets => {}
            TaskKind::CreateCluster
            | TaskKind::DeleteCluster
            | TaskKind::UpdateCluster
            | TaskKind::RepairCluster
            | TaskKind::UpgradeAgents
            | TaskKind::RestoreCluster
            | TaskKind::RenewCertificates => {
                return self.set_state(task, TaskState::Succeeded, None).await;
            }
        }
        match self.effects.plan_next(task).await {
            Ok(Some(plan)) => {
                task.plan = plan;
                let state = task.state;
                self.set_state(task, state, None).await;
                self.tell(TaskEvent::Snapshot {
                    task: Box::new(task.clone()),
                });
            }
            Ok(None) => self.set_state(task, TaskState::Succeeded, None).await,
            Err(error) if error.class == ErrorClass::Retry => {
                tracing::warn!(task = %task.id, %error, "cannot plan the next stage yet");
                tokio::time::sleep(STORE_PAUSE).await;
            }
            Err(error) => {
                let fault = Some(Fault::from(error));
                self.set_state(task, TaskState::Failed, fault).await;
            }
        }
    }

    /// Takes back what keeps machines from coming back, then fails as the task has failed. That it rolls back is
    /// in the store before anything is, so that no crash makes it go on with what it takes back.
    async fn roll_back(&self, task: &mut Task) {
        if task.cleanup.is_none() {
            match self.effects.plan_rollback(task).await {
                Ok(Some(plan)) => {
                    task.cleanup = Some(plan);
                    let fault = task.error.clone();
                    self.set_state(task, TaskState::RollingBack, fault).await;
                }
                Ok(None) => {
                    let fault = task.error.clone();
                    return self.set_state(task, TaskState::Failed, fault).await;
                }
                Err(error) if error.class == ErrorClass::Retry => {
                    tracing::warn!(task = %task.id, %error, "cannot plan the way back yet");
                    tokio::time::sleep(STORE_PAUSE).await;
                    return;
                }
                Err(error) => return self.fail(task, &format!("no way back: {error}")).await,
            }
        }
        let Some(plan) = task.cleanup.clone() else {
            return;
        };
        let names: BTreeSet<&str> = plan
            .steps
            .iter()
            .filter_map(|step| step.action.machine())
            .map(MachineName::as_str)
            .collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let note = match self.run_plan(task, &plan, true).await {
            Outcome::Succeeded => format!(
                "rolled back: {names} serves with its former kubelet settings, and no machine takes those of the \
                 spec before the next `windlass cluster apply`"
            ),
            Outcome::Stopped | Outcome::Unfit => format!("the way back of {names} was stopped"),
            Outcome::Failed(fault) => format!("the way back of {names} failed: {}", fault.message),
        };
        self.fail(task, &note).await;
    }

    /// Fails a task as it has failed before, with what came of it since.
    async fn fail(&self, task: &mut Task, note: &str) {
        let before = task.error.clone();
        let fault = Fault {
            class: before
                .as_ref()
                .map_or(ErrorClass::Operator, |fault| fault.class),
            message: before.map_or_else(
                || note.to_owned(),
                |fault| format!("{}; {note}", fault.message),
            ),
        };
        self.set_state(task, TaskState::Failed, Some(fault)).await;
    }

    async fn clean_up(&self, task: &mut Task) {
        if task.cleanup.is_none() {
            match self.effects.plan_cleanup(task).await {
                Ok(plan) => {
                    task.cleanup = Some(plan);
                    self.set_state(task, TaskState::Cancelling, None).await;
                }
                Err(error) if error.class == ErrorClass::Retry => {
                    tracing::warn!(task = %task.id, %error, "cannot plan the clean-up yet");
                    tokio::time::sleep(STORE_PAUSE).await;
                    return;
                }
                Err(error) => {
                    let fault = Some(Fault::from(error));
                    return self.set_state(task, TaskState::Failed, fault).await;
                }
            }
        }
        let Some(plan) = task.cleanup.clone() else {
            return;
        };
        match self.run_plan(task, &plan, true).await {
            Outcome::Succeeded | Outcome::Stopped | Outcome::Unfit => {
                self.set_state(task, TaskState::Cancelled, None).await;
            }
            Outcome::Failed(fault) => self.set_state(task, TaskState::Failed, Some(fault)).await,
        }
    }

    /// Carries out what is left of a plan. A clean-up is not stopped by the cancel that led to it.
    async fn run_plan(&self, task: &mut Task, plan: &Plan, cleanup: bool) -> Outcome {
        let mut halt = Halt::default();
        let mut flight = Flight::default();
        let mut running: JoinSet<Ended> = JoinSet::new();
        let windows = match cleanup {
            true => MaintenanceSpec::default(),
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
            let outlook = match task.ignore_window {
                Some(_) => Outlook::Open { until: None },
                None => maintenance::outlook(&windows, self.clock.now()),
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

    /// Writes down that a create or an update is being cancelled, so that a restart does not forget it.
    async fn begin_to_cancel(&self, task: &mut Task, stop: Stop) {
        let cleans = match task.kind {
            TaskKind::CreateCluster
            | TaskKind::UpdateCluster
            | TaskKind::RepairCluster
            | TaskKind::RotateSecrets => true,
            TaskKind::DeleteCluster
            | TaskKind::UpgradeAgents
            | TaskKind::RestoreCluster
            | TaskKind::RenewCertificates => false,
        };
        let clean = stop == Stop::CleanUp && cleans;
        let runs = match task.state {
            TaskState::Running | TaskState::Pausing | TaskState::Paused | TaskState::Waiting => {
                true
            }
            TaskState::Queued
            | TaskState::RollingBack
            | TaskState::Cancelling
            | TaskState::Succeeded
            | TaskState::Failed
            | TaskState::Cancelled => false,
        };
        if clean && runs {
            self.set_state(task, TaskState::Cancelling, None).await;
        }
    }

    /// When the machines of a task may be begun with: at any time where it changes none that serve, or heals.
    async fn windows(&self, task: &Task) -> MaintenanceSpec {
        match task.kind {
            TaskKind::UpdateCluster | TaskKind::UpgradeAgents => {}
            TaskKind::CreateCluster
            | TaskKind::RepairCluster
            | TaskKind::RestoreCluster
            | TaskKind::RenewCertificates
            | TaskKind::RotateSecrets
            | TaskKind::DeleteCluster => return MaintenanceSpec::default(),
        }
        loop {
            match self.records.get::<Cluster>(task.cluster.as_str()).await {
                // The spec does not change before the task is over.
                Ok(cluster) => {
                    return cluster.map_or_else(Default::default, |c| c.spec.maintenance);
                }
                Err(error) => wait_for_store(&error).await,
            }
        }
    }

    /// Writes down that a task goes on outside of windows, so that a restart does not forget it.
    async fn note_ignored(&self, task: &mut Task) {
        let reason = self.ignore_window.borrow().clone();
        if task.ignore_window.is_none() && reason.is_some() {
            task.ignore_window = reason;
            self.set_state(task, task.state, None).await;
        }
    }

    /// Writes down that a task pauses, is held by its window or goes on, so that a restart does not forget it.
    async fn note_pause(&self, task: &mut Task, pausing: bool, held: Option<String>) {
        let changed = task.held != held;
        task.held = held;
        let state = match (task.state, pausing) {
            (TaskState::Running | TaskState::Waiting, true) => TaskState::Pausing,
            (TaskState::Pausing | TaskState::Paused, false) => TaskState::Running,
            (TaskState::Waiting, false) if task.held.is_none() => TaskState::Running,
            (state, _) => state,
        };
        if changed || state != task.state {
            self.set_state(task, state, None).await;
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

/// Whether a step has found its machine back, so that what was planned for it does not hold.
fn spared((_, _, end): &Ended) -> bool {
    match end {
        End::Succeeded(done) => {
            let mut records = done.records.iter();
            records.any(|change| matches!(change, change::RecordChange::Returned(_)))
        }
        End::Failed(_) | End::Stopped => false,
    }
}

/// What the state of its task means for a cluster.
fn settle(cluster: &mut Cluster, task: &Task) {
    cluster.task = (!task.state.is_over()).then(|| task.id.clone());
    let fault = task.error.as_ref().map(|fault| fault.message.clone());
    let cancelled = || Some(format!("{} was cancelled", task.id));
    let rests = match task.state {
        TaskState::Pausing => Some(format!(
            "{} pauses once the machines that it has begun with are done",
            task.id
        )),
        TaskState::Paused => Some(format!(
            "{id} is paused; `windlass task resume {id}` goes on with it",
            id = task.id
        )),
        TaskState::Waiting => Some(format!(
            "{id} waits for the maintenance window: {}; `windlass task resume {id} --ignore-window REASON` goes \
             on with it now",
            task.held.as_deref().unwrap_or("it is looked at"),
            id = task.id
        )),
        TaskState::Running => match (&task.held, &task.again) {
            (Some(held), _) => Some(format!(
                "{} finishes the machines that it has begun with; the maintenance window has closed: {held}",
                task.id
            )),
            (None, again) => again.as_ref().map(|plan| repairs(task, plan)),
        },
        TaskState::RollingBack => Some(format!(
            "{} has failed, and machines get back what they had: {}",
            task.id,
            fault.as_deref().unwrap_or("no reason was given")
        )),
        TaskState::Queued
        | TaskState::Cancelling
        | TaskState::Succeeded
        | TaskState::Failed
        | TaskState::Cancelled => None,
    };
    (cluster.phase, cluster.message) = match task.kind {
        TaskKind::CreateCluster => match task.state {
            TaskState::Succeeded => (ClusterPhase::Ready, None),
            TaskState::Queued
            | TaskState::Running
            | TaskState::Pausing
            | TaskState::Paused
            | TaskState::Waiting
            | TaskState::RollingBack => (ClusterPhase::Creating, rests),
            TaskState::Cancelling => (ClusterPhase::Deleting, None),
            TaskState::Failed => (ClusterPhase::Failed, fault),
            TaskState::Cancelled => (ClusterPhase::Failed, cancelled()),
        },
        TaskKind::UpdateCluster
        | TaskKind::RepairCluster
        | TaskKind::RestoreCluster
        | TaskKind::RotateSecrets => match task.state {
            TaskState::Succeeded => (ClusterPhase::Ready, None),
            TaskState::Queued
            | TaskState::Running
            | TaskState::Pausing
            | TaskState::Paused
            | TaskState::Waiting
            | TaskState::RollingBack
            | TaskState::Cancelling => (ClusterPhase::Updating, rests),
            TaskState::Failed => (ClusterPhase::Degraded, fault),
            TaskState::Cancelled => {
                let name = &task.cluster;
                let left = match &cluster.rotation {
                    Some(rotation) => format!(
                        "{} was cancelled while {}; old and new get on with one another, and `windlass \
                         cluster {} {name}` goes on",
                        task.id,
                        rotation.stage.says(),
                        rotation.stage.kind().command()
                    ),
                    None => format!(
                        "{} was cancelled; `windlass cluster plan {name}` shows what is left of it",
                        task.id
                    ),
                };
                (ClusterPhase::Ready, Some(left))
            }
        },
        // The cluster is what it was, whichever agents and certificates its machines have.
        TaskKind::UpgradeAgents | TaskKind::RenewCertificates => {
            (cluster.phase, fault.or(cluster.message.take()))
        }
        TaskKind::DeleteCluster => match task.state {
            TaskState::Queued
            | TaskState::Running
            | TaskState::Pausing
            | TaskState::Paused
            | TaskState::Waiting
            | TaskState::RollingBack
            | TaskState::Cancelling => (ClusterPhase::Deleting, rests),
            TaskState::Failed => (ClusterPhase::Failed, fault),
            TaskState::Cancelled | TaskState::Succeeded => (ClusterPhase::Failed, cancelled()),
        },
    };
}

/// Why a task was planned anew, and what comes first.
fn repairs(task: &Task, plan: &Plan) -> String {
    let fenced = |step: &PlanStep| match &step.action {
        Action::Fence { machine } => Some(machine.to_string()),
        _ => None,
    };
    let names: Vec<String> = plan.steps.iter().filter_map(fenced).collect();
    if names.is_empty() {
        return format!(
            "{} was planned anew, since machines have changed on the way",
            task.id
        );
    }
    format!(
        "{} died while {} ran, and is replaced first; the rest of the change waits for it",
        names.join(", "),
        task.id
    )
}

/// Returns when a task that pauses or does not is to do the other.
async fn turned(pause: &mut watch::Receiver<bool>, pausing: bool) {
    if pause.wait_for(|pause| *pause != pausing).await.is_err() {
        // Nobody is left who could say so.
        std::future::pending::<()>().await;
    }
}

/// Returns when somebody says that the plan has to be looked at.
async fn called(look: &mut watch::Receiver<()>) {
    if look.changed().await.is_err() {
        // Nobody is left who could say so.
        std::future::pending::<()>().await;
    }
}

/// Returns when an operator has the task go on outside of its window.
async fn ordered(ignore: &mut watch::Receiver<Option<String>>) {
    if ignore.wait_for(Option::is_some).await.is_err() {
        // Nobody is left who could say so.
        std::future::pending::<()>().await;
    }
}

/// Returns when the window has turned; never when it does not.
async fn turned_at(clock: &Clock, at: Option<jiff::Timestamp>) {
    match at {
        Some(at) => clock.reached(at).await,
        None => std::future::pending().await,
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
