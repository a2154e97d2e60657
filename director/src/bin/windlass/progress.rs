//! Waiting for a task with live progress: a line for each machine on a terminal, a line for each step
//! that ended otherwise. All of it on standard error.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use windlass_director::client::Client;
use windlass_director::client::watch::{Watched, follow};
use windlass_director::model::{
    Plan, PlanStep, StepKey, StepRecord, StepState, Task, TaskEvent, TaskId, TaskKind, TaskState,
};

use crate::Session;
use crate::failure::{Failure, INTERRUPTED};
use crate::output::{duration, note, watched};

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// Waits for the end of a task; succeeds when it did.
pub(crate) async fn wait(
    session: &Session,
    client: &Client,
    id: &TaskId,
) -> Result<ExitCode, Failure> {
    let task = until_over(client, id).await?;
    let value = serde_json::to_value(&task).map_err(|error| Failure::of(&error))?;
    match task.state {
        TaskState::Succeeded => {
            session.output.answer(&value, || succeeded(&task));
            Ok(ExitCode::SUCCESS)
        }
        TaskState::Cancelled => Err(Failure::failed(format!("task {id} was cancelled"))),
        TaskState::Failed
        | TaskState::Queued
        | TaskState::Running
        | TaskState::Pausing
        | TaskState::Paused
        | TaskState::Waiting
        | TaskState::RollingBack
        | TaskState::Cancelling => {
            let why = task
                .error
                .map_or("no reason was given".to_owned(), |error| error.message);
            let cluster = &task.cluster;
            let next = match task.kind {
                TaskKind::CreateCluster => format!(
                    "`windlass task retry {id}` goes on from there; `windlass cluster delete {cluster}` removes it"
                ),
                TaskKind::UpdateCluster => format!(
                    "the cluster serves as far as `windlass cluster show {cluster}` says; `windlass task retry {id}` goes on from there"
                ),
                TaskKind::RepairCluster => {
                    "`windlass node why NODE` says what comes next".to_owned()
                }
                TaskKind::UpgradeAgents => format!(
                    "`windlass node list --cluster {cluster}` shows whose agents are connected"
                ),
                TaskKind::RestoreCluster => format!(
                    "`windlass cluster restore {cluster}` orders it again once the cause is out of the way; what was replaced on machines is kept there"
                ),
                TaskKind::RenewCertificates => format!(
                    "the machines that are left keep theirs; `windlass task retry {id}` tries again"
                ),
                TaskKind::RotateSecrets => format!(
                    "old and new get on with one another; `windlass cluster show {cluster}` says how far it is, \
                     `windlass task retry {id}` goes on"
                ),
                TaskKind::DeleteCluster => {
                    format!("`windlass task retry {id}` tries again")
                }
            };
            Err(Failure::failed(format!(
                "task {id} failed: {why}\n`windlass task show {id}` shows its steps; {next}"
            )))
        }
    }
}

/// Waits for the end of a task that is being cancelled; succeeds when it is.
pub(crate) async fn cancelled(
    session: &Session,
    client: &Client,
    id: &TaskId,
) -> Result<ExitCode, Failure> {
    let task = until_over(client, id).await?;
    let value = serde_json::to_value(&task).map_err(|error| Failure::of(&error))?;
    match task.state {
        TaskState::Cancelled => {
            session
                .output
                .answer(&value, || format!("task {id} is cancelled"));
            Ok(ExitCode::SUCCESS)
        }
        state => Err(Failure::failed(format!(
            "task {id} is {state}: it had ended before the cancel reached it, or its clean-up failed; `windlass task show {id}` shows its steps"
        ))),
    }
}

fn succeeded(task: &Task) -> String {
    let took = match (task.started_at, task.ended_at) {
        (Some(started), Some(ended)) => format!(" in {}", duration(ended.ms_since(started))),
        _ => String::new(),
    };
    let cluster = &task.cluster;
    match task.kind {
        TaskKind::CreateCluster => {
            format!(
                "cluster {cluster} is ready{took}; `windlass cluster credentials {cluster}` gives access"
            )
        }
        TaskKind::UpdateCluster => format!("cluster {cluster} is as it should be{took}"),
        TaskKind::RepairCluster => format!("cluster {cluster} is repaired{took}"),
        TaskKind::UpgradeAgents => format!("the agents of cluster {cluster} are upgraded{took}"),
        TaskKind::RestoreCluster => format!("cluster {cluster} is restored{took}"),
        TaskKind::RenewCertificates => {
            format!("the certificates of cluster {cluster} are renewed{took}")
        }
        TaskKind::RotateSecrets => format!(
            "the rotation of cluster {cluster} went as far as it goes now{took}; `windlass cluster show {cluster}` \
             says what is left"
        ),
        TaskKind::DeleteCluster => format!("cluster {cluster} is deleted{took}"),
    }
}

/// Waits until nothing of a task that pauses runs; succeeds when it is paused.
pub(crate) async fn paused(
    session: &Session,
    client: &Client,
    id: &TaskId,
) -> Result<ExitCode, Failure> {
    let rests = |state| state == TaskState::Paused;
    let task = until(client, id, rests).await?;
    let value = serde_json::to_value(&task).map_err(|error| Failure::of(&error))?;
    if task.state != TaskState::Paused {
        return Err(Failure::failed(format!(
            "task {id} is {}: it had ended before it could pause",
            task.state
        )));
    }
    session.output.answer(&value, || {
        format!("task {id} is paused: `windlass task resume {id}` goes on with it")
    });
    Ok(ExitCode::SUCCESS)
}

/// Waits until a task is over, showing what it does.
pub(crate) async fn until_over(client: &Client, id: &TaskId) -> Result<Task, Failure> {
    until(client, id, |_| false).await
}

/// Follows a task until it is over, or in a state that is enough.
async fn until(
    client: &Client,
    id: &TaskId,
    enough: impl Fn(TaskState) -> bool,
) -> Result<Task, Failure> {
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    let mut view = View::new();
    let mut watch = follow(client, id);
    loop {
        let next = tokio::select! {
            next = watch.next() => next,
            _ = &mut interrupt => {
                view.clear();
                return Err(interrupted(id));
            }
        };
        match next? {
            Watched::Event(event) => {
                let state = match &event {
                    TaskEvent::Snapshot { task } => Some(task.state),
                    TaskEvent::State { state, .. } => Some(*state),
                    TaskEvent::Step { .. } | TaskEvent::Progress { .. } => None,
                };
                view.event(event);
                if state.is_some_and(&enough) {
                    view.clear();
                    let answer = client.get(&format!("/v1/tasks/{id}")).await?;
                    return Ok(client.typed(&answer)?);
                }
            }
            Watched::Away => view.say("the director is away; waiting for it to come back"),
            Watched::Ended => {
                let answer = client.get(&format!("/v1/tasks/{id}")).await;
                // Gone again already: the watch finds out and waits.
                let Ok(answer) = answer else { continue };
                let task: Task = client.typed(&answer)?;
                if task.state.is_over() {
                    view.snapshot(&task);
                    view.clear();
                    return Ok(task);
                }
                // The stream was cut, for example by a director that stopped.
                tokio::time::sleep(TICK).await;
            }
        }
    }
}

fn interrupted(id: &TaskId) -> Failure {
    let message = format!(
        "interrupted; task {id} goes on\n  follow it:  windlass task watch {id}\n  stop it:    windlass task cancel {id}\n  \
         after it failed or was cancelled, the same command starts it again"
    );
    Failure::new(INTERRUPTED, message)
}

/// What is shown.
struct View {
    began: Instant,
    /// Lines of a terminal by machine; `None` when nobody looks.
    lines: Option<(MultiProgress, BTreeMap<String, ProgressBar>)>,
    /// Plans seen, the one that is carried out last.
    plans: Vec<Plan>,
    states: BTreeMap<StepKey, StepRecord>,
    stages: BTreeMap<StepKey, String>,
}

impl View {
    fn new() -> View {
        View {
            began: Instant::now(),
            lines: watched().then(|| (MultiProgress::new(), BTreeMap::new())),
            plans: Vec::new(),
            states: BTreeMap::new(),
            stages: BTreeMap::new(),
        }
    }

    fn event(&mut self, event: TaskEvent) {
        match event {
            TaskEvent::Snapshot { task } => self.snapshot(&task),
            TaskEvent::Step { key, record } => self.step(key, record),
            TaskEvent::Progress { key, stage } => {
                self.keep_command(&key, &stage);
                self.stages.insert(key.clone(), stage);
                self.draw(&self.owner(&key));
            }
            TaskEvent::State { state, error } => {
                let why = error.map_or(String::new(), |error| format!(": {}", error.message));
                self.say(&format!("task is {state}{why}"));
            }
        }
    }

    fn snapshot(&mut self, task: &Task) {
        let first = self.plans.is_empty();
        self.plans = std::iter::once(&task.plan)
            .chain(&task.again)
            .chain(&task.cleanup)
            .cloned()
            .collect();
        if first {
            // What was done before anybody looked is counted, not told.
            let (done, all) = task.progress();
            self.say(&format!(
                "task {} ({}): {done} of {all} steps done",
                task.id, task.kind
            ));
            let ended = task
                .steps
                .iter()
                .filter(|(_, record)| record.ended_at.is_some());
            self.states
                .extend(ended.map(|(key, record)| (key.clone(), record.clone())));
        }
        for (key, record) in &task.steps {
            if self.states.get(key) != Some(record) {
                self.step(key.clone(), record.clone());
            }
        }
        let owners: BTreeSet<String> = self.current().map(owner_of).collect();
        for owner in owners {
            self.draw(&owner);
        }
    }

    /// Steps of the plan that is carried out.
    fn current(&self) -> impl Iterator<Item = &PlanStep> {
        self.plans.last().into_iter().flat_map(|plan| &plan.steps)
    }

    /// A step of any plan seen.
    fn find(&self, key: &StepKey) -> Option<&PlanStep> {
        self.plans
            .iter()
            .flat_map(|plan| &plan.steps)
            .find(|step| step.key == *key)
    }

    fn step(&mut self, key: StepKey, record: StepRecord) {
        let before = self.states.insert(key.clone(), record.clone());
        let owner = self.owner(&key);
        if self.lines.is_some() {
            self.draw(&owner);
            return;
        }
        let fresh = before.as_ref().map(|before| before.state) != Some(record.state);
        let again = before.map(|before| before.error) != Some(record.error.clone());
        let took = || {
            duration(
                record
                    .ended_at
                    .unwrap_or(record.started_at)
                    .ms_since(record.started_at),
            )
        };
        let name = self.name(&key);
        let what = match (record.state, &record.error) {
            (StepState::Succeeded, _) if fresh => format!("done in {}", took()),
            (StepState::Failed, error) if fresh => {
                let why = error.as_ref().map_or("", |error| error.message.as_str());
                format!("failed after {}: {why}", took())
            }
            (StepState::Cancelled, _) if fresh => "cancelled".to_owned(),
            (StepState::Running, Some(error)) if again => {
                format!("trying again: {}", error.message)
            }
            _ => return,
        };
        self.say(&format!("{owner:<24} {name:<20} {what}"));
    }

    /// Says a stage in a line that stays whose command an operator may want to take over, and who has not seen it:
    /// the line of a machine is as long as the terminal is wide, and drawn anew.
    fn keep_command(&self, key: &StepKey, stage: &str) {
        let command = |stage: &str| stage.find("kubectl ").map(|at| stage[at..].to_owned());
        let before = self.stages.get(key).map(String::as_str).and_then(command);
        let now = command(stage);
        if now.is_some() && now != before {
            let (owner, name) = (self.owner(key), self.name(key));
            self.say(&format!("{owner:<24} {name:<20} {stage}"));
        }
    }

    /// The machine a step acts on, or the cluster.
    fn owner(&self, key: &StepKey) -> String {
        self.find(key).map_or("cluster".to_owned(), owner_of)
    }

    fn name(&self, key: &StepKey) -> String {
        self.find(key)
            .map_or(key.to_string(), |step| step.action.name().to_owned())
    }

    /// A line that stays.
    fn say(&self, text: &str) {
        let text = format!(
            "[{:>7}] {text}",
            duration(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX))
        );
        match &self.lines {
            // A terminal that went away is no error of ours.
            Some((all, _)) => drop(all.println(text)),
            None => note(&text),
        }
    }

    /// Draws the line of a machine (or the cluster) anew.
    fn draw(&mut self, owner: &str) {
        if self.lines.is_none() {
            return;
        }
        let steps: Vec<&PlanStep> = self
            .current()
            .filter(|step| owner_of(step) == owner)
            .collect();
        let state = |key| self.states.get(key).map(|record: &StepRecord| record.state);
        let done = steps
            .iter()
            .filter(|step| state(&step.key) == Some(StepState::Succeeded))
            .count();
        let message = steps
            .iter()
            .filter_map(|step| {
                let record = self.states.get(&step.key)?;
                let name = step.action.name();
                match record.state {
                    StepState::Running => {
                        let why = record
                            .error
                            .as_ref()
                            .map(|error| format!(" (again: {})", error.message));
                        let stage = self
                            .stages
                            .get(&step.key)
                            .map(|stage| format!(" ({stage})"));
                        Some(format!("{name}{}", why.or(stage).unwrap_or_default()))
                    }
                    StepState::Failed => Some(format!("{name} failed")),
                    StepState::Succeeded | StepState::Cancelled => None,
                }
            })
            .collect::<Vec<_>>()
            .join(", ");
        let all = steps.len();
        let finished = done == all;
        let Some((screen, lines)) = &mut self.lines else {
            return;
        };
        let line = lines
            .entry(owner.to_owned())
            .or_insert_with(|| new_line(screen, owner));
        let message = if finished { "done".to_owned() } else { message };
        line.set_message(format!("{done:>2}/{all:<2} {message}"));
        if finished && !line.is_finished() {
            let text = format!("{done:>2}/{all:<2} done");
            line.finish_with_message(text);
        }
    }

    /// Ends the drawing; what was drawn stays.
    fn clear(&mut self) {
        let Some((_, lines)) = &mut self.lines else {
            return;
        };
        for line in lines.values().filter(|line| !line.is_finished()) {
            line.abandon();
        }
        if !lines.is_empty() {
            // The last line that was drawn has no end.
            note("");
        }
    }
}

/// The machine a step acts on, or the cluster.
fn owner_of(step: &PlanStep) -> String {
    step.action
        .machine()
        .map_or("cluster".to_owned(), ToString::to_string)
}

fn new_line(screen: &MultiProgress, owner: &str) -> ProgressBar {
    let line = screen.add(ProgressBar::new_spinner());
    // The template is a constant; a wrong one would only look plain.
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} {prefix:<24} {elapsed:>4} {wide_msg}")
    {
        line.set_style(style);
    }
    line.set_prefix(owner.to_owned());
    line.enable_steady_tick(TICK);
    line
}
