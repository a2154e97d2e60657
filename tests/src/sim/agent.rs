//! Agents: the real runner and its journal, on a simulated machine, disk and network.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Duration, sleep};
use windlass_agent::history::History;
use windlass_agent::link::{CancelToken, ProgressSink};
use windlass_agent::runner::{Machine, Runner};
use windlass_agent::steps::{Failure, Reporter, Run};
use windlass_common::error::ErrorClass;
use windlass_common::id::{Digest, Epoch, Incarnation, MachineName};
use windlass_common::journal::sim::SimDisk;
use windlass_common::step::{
    EtcdAction, EtcdDataAction, Outcome, Payload, Step, StepId, StepResult,
};
use windlass_common::wire::codec;

use super::coverage::{Fault, Point};
use super::fixtures::Fixtures;
use super::link::Sent;
use super::mutation::Mutation;
use super::state::{Site, State, Vm};

/// The agent of one machine.
#[derive(Debug, Default)]
pub struct Agent {
    disk: SimDisk,
    runner: Option<Arc<Runner<Simulated>>>,
    running: BTreeMap<String, Running>,
    tasks: Vec<AbortHandle>,
}

/// A step that runs, and who may listen to it.
#[derive(Debug)]
struct Running {
    content: Digest,
    epoch: Arc<AtomicU64>,
    result: watch::Receiver<Option<StepResult>>,
    cancel: watch::Sender<bool>,
}

/// The machine that a runner acts on.
#[derive(Debug)]
pub struct Simulated {
    site: Site,
    fixtures: Arc<Fixtures>,
    name: MachineName,
    incarnation: Incarnation,
    history: Arc<Mutex<History>>,
}

/// What is known of a request besides itself.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The kind of step that it is of.
    pub action: &'static str,
    id: String,
    content: Digest,
    /// The highest in which it was asked for.
    epoch: Arc<AtomicU64>,
}

impl Delivery {
    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }
}

tokio::task_local! {
    static DELIVERY: Delivery;
}

impl Agent {
    /// Whether it runs.
    pub fn is_up(&self) -> bool {
        self.runner.is_some()
    }

    /// Has it stop a step.
    pub fn cancel(&self, id: &str) {
        if let Some(running) = self.running.get(id) {
            running.cancel.send_replace(true);
        }
    }

    /// The director has said its epoch.
    pub fn see_epoch(&self, epoch: u64) {
        if let Some(runner) = &self.runner {
            runner.see_epoch(Epoch(epoch));
        }
    }

    fn stop(&mut self) {
        self.runner = None;
        self.running.clear();
        for task in self.tasks.drain(..) {
            task.abort();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Site {
    /// Starts the agent of a machine, if that incarnation is there and runs.
    pub fn start_agent(&self, fixtures: &Arc<Fixtures>, name: &MachineName, of: Incarnation) {
        let mut state = self.lock();
        let now = state.now;
        let forgets = state.mutation == Some(Mutation::JournalForgotten);
        let Some(vm) = state.vms.get_mut(name).filter(|vm| vm.incarnation == of) else {
            return;
        };
        if vm.agent.is_up() || !vm.runs(now) {
            return;
        }
        if forgets {
            vm.agent.disk = SimDisk::default();
        }
        match History::open(vm.agent.disk.clone()) {
            Ok(history) => {
                let forgotten = forgotten(vm, &history);
                // What was told and not acted on may be forgotten.
                vm.epoch = vm.begun_epoch.max(history.epoch().0);
                let machine = Simulated {
                    site: self.clone(),
                    fixtures: Arc::clone(fixtures),
                    name: name.clone(),
                    incarnation: of,
                    history: Arc::new(Mutex::new(history)),
                };
                vm.agent.runner = Some(Arc::new(Runner::new(machine)));
                state.tell(format!("agent of {name} starts"));
                if let Some(what) = forgotten {
                    state.violated(6, format!("the journal of {name} has forgotten {what}"));
                }
            }
            Err(error) => {
                let problem = format!("the journal of {name} cannot be opened: {error:?}");
                state.violated(6, problem);
            }
        }
    }

    /// Kills an agent; systemd starts it again.
    pub fn kill_agent(&self, fixtures: &Arc<Fixtures>, name: &MachineName) {
        let mut state = self.lock();
        let (now, wait) = (state.now, state.dice.within(1_000..=15_000));
        let Some(vm) = state.vms.get_mut(name) else {
            return;
        };
        vm.agent.stop();
        // Nothing starts on a machine that stands still.
        let wait = wait + vm.frozen_until.saturating_sub(now);
        let of = vm.incarnation;
        state.break_link(name, 0);
        state.tell(format!("agent of {name} is killed"));
        drop(state);
        self.later(wait, fixtures, name, move |site, fixtures, name| {
            site.start_agent(fixtures, name, of);
        });
    }

    /// Cuts a machine's power; its monitor starts it again.
    pub fn kill_machine(&self, fixtures: &Arc<Fixtures>, name: &MachineName) {
        let mut state = self.lock();
        let wait = state.dice.within(5_000..=400_000);
        let seed = state.dice.roll();
        let now = state.now;
        let Some(vm) = state.vms.get_mut(name) else {
            return;
        };
        vm.agent.stop();
        vm.agent.disk = vm.agent.disk.after_power_cut(seed);
        vm.units.clear();
        vm.view.power = windlass_director::provider::Power::Stopped;
        vm.down_since.get_or_insert(now);
        let of = vm.incarnation;
        state.break_link(name, 0);
        state.tell(format!("machine {name} loses its power"));
        drop(state);
        self.later(wait, fixtures, name, move |site, fixtures, name| {
            site.boot(fixtures, name, of, false);
        });
    }

    /// Lets a machine stand still for a while.
    pub fn freeze_machine(&self, name: &MachineName) {
        let mut state = self.lock();
        let ms = state.dice.within(5_000..=200_000);
        let now = state.now;
        if let Some(vm) = state.vms.get_mut(name) {
            vm.frozen_until = now + ms;
            vm.down_since.get_or_insert(now);
            state.break_link(name, ms);
            state.tell(format!("machine {name} stands still for {ms} ms"));
        }
    }

    /// Starts a machine that has no power, unless it was stopped by an order.
    pub fn boot(&self, fixtures: &Arc<Fixtures>, name: &MachineName, of: Incarnation, first: bool) {
        use windlass_director::provider::Power;
        let mut state = self.lock();
        let (now, wait) = (state.now, state.dice.within(500..=8_000));
        let Some(vm) = state.vms.get_mut(name).filter(|vm| vm.incarnation == of) else {
            return;
        };
        if !first {
            if vm.view.power == Power::Running || vm.off {
                return;
            }
            vm.view.power = Power::Running;
            vm.view.boots += 1;
            vm.booted = now;
            let booted = |(name, configuration): (&String, &Option<Digest>)| {
                let unit = super::state::Unit {
                    since: now,
                    configuration: *configuration,
                };
                (name.clone(), unit)
            };
            vm.units = vm.enabled.iter().map(booted).collect();
            vm.emulates.1 = vm.emulates.0;
        }
        state.tell(format!("machine {name} boots"));
        drop(state);
        self.later(wait, fixtures, name, move |site, fixtures, name| {
            site.start_agent(fixtures, name, of);
        });
    }

    fn later(
        &self,
        ms: u64,
        fixtures: &Arc<Fixtures>,
        name: &MachineName,
        then: impl FnOnce(&Site, &Arc<Fixtures>, &MachineName) + Send + 'static,
    ) {
        let (site, fixtures, name) = (self.clone(), Arc::clone(fixtures), name.clone());
        tokio::spawn(async move {
            sleep(Duration::from_millis(ms)).await;
            then(&site, &fixtures, &name);
        });
    }

    /// A request arrives at an agent. `None`: nobody is there, or the id runs with other content.
    pub fn deliver(
        &self,
        fixtures: &Arc<Fixtures>,
        sent: Sent,
    ) -> Option<watch::Receiver<Option<StepResult>>> {
        let Sent {
            machine: ref name,
            incarnation: of,
            mut request,
            action,
        } = sent;
        let mut state = self.lock();
        let now = state.now;
        let content = Digest::of(&codec::encode(&request.step).ok()?);
        let delivery = Delivery {
            action,
            id: request.id.0.clone(),
            content,
            epoch: Arc::new(AtomicU64::new(request.epoch.0)),
        };
        let ignores = state.mutation == Some(Mutation::EpochsIgnored);
        let vm = state.vms.get_mut(name).filter(|vm| vm.incarnation == of)?;
        if !vm.runs(now) {
            return None;
        }
        let runner = Arc::clone(vm.agent.runner.as_ref()?);
        if ignores {
            request.epoch = request.epoch.max(runner.epoch());
        }
        let seen = vm.epoch;
        let (epoch, looks) = (delivery.epoch(), looks(&request.step));
        if let Some(running) = vm.agent.running.get(&delivery.id) {
            let same = running.content == content;
            if same {
                running.epoch.fetch_max(epoch, Ordering::Relaxed);
                runner.asked_again(&request.id, request.epoch);
            }
            return same.then(|| running.result.clone());
        }
        let (sender, result) = watch::channel(None);
        let (cancel, token) = CancelToken::channel();
        let running = Running {
            content,
            epoch: Arc::clone(&delivery.epoch),
            result: result.clone(),
            cancel,
        };
        vm.agent.running.insert(delivery.id.clone(), running);
        state.tell(format!(
            "{name} is asked for {} in epoch {}",
            delivery.id, epoch
        ));
        let (site, at, fixtures) = (self.clone(), name.clone(), Arc::clone(fixtures));
        let carry = async move {
            let id = delivery.id.clone();
            // Before its journal knows anything of the step, and once it knows its end and nobody else does.
            let dies = [Fault::AgentDies, Fault::MachineDies];
            let strike = site.lock().strike(action, Point::BeforeIntent, &dies);
            site.suffer(&fixtures, &at, strike).await;
            let (sink, _) = ProgressSink::channel(1);
            let step = runner.step(request, Reporter::new(sink), token);
            let over = DELIVERY.scope(delivery, step).await;
            let strike = {
                let mut state = site.lock();
                let told = format!("{:?} {:?}", over.outcome, over.changes);
                state.search("a step's result", &told);
                state.tell(format!("{at} ends {id}: {}", outcome(&over.outcome)));
                if epoch < seen && !matches!(over.outcome, Outcome::Refused { .. }) {
                    let problem =
                        format!("{at} does not refuse {id} of epoch {epoch}, and had seen {seen}");
                    state.violated(6, problem);
                }
                if let Some(vm) = state.vms.get_mut(&at).filter(|vm| vm.incarnation == of) {
                    vm.agent.running.remove(&id);
                    let done = matches!(over.outcome, Outcome::Converged | Outcome::Changed);
                    if done && !looks {
                        vm.done.insert(id, content);
                    }
                }
                state.strike(action, Point::AfterEnd, &dies)
            };
            site.suffer(&fixtures, &at, strike).await;
            sender.send_replace(Some(over));
        };
        let task = tokio::spawn(carry).abort_handle();
        if let Some(vm) = state.vms.get_mut(name) {
            vm.agent.tasks.push(task);
        }
        Some(result)
    }
}

/// What a journal ought to remember and does not: the epoch of each step that began, and the last steps that were
/// said to be done.
fn forgotten(vm: &Vm, history: &History) -> Option<String> {
    if history.epoch().0 < vm.begun_epoch {
        return Some(format!("epoch {}", vm.begun_epoch));
    }
    // One that was begun anew with other content is another step.
    let lost = |(id, content): &(&String, &Digest)| {
        let known = history.step(&StepId((*id).clone()));
        known.is_none_or(|known| known.result.is_none() && known.content == **content)
    };
    // The journal keeps 256 steps that are over; more than half as many are not looked for.
    let found = vm.done.iter().find(lost).filter(|_| vm.done.len() < 128);
    found.map(|(id, _)| format!("that {id} is done"))
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

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Converged => "converged".to_owned(),
        Outcome::Changed => "changed".to_owned(),
        Outcome::Failed { message, .. } => format!("failed: {message}"),
        Outcome::Unknown { message } => format!("unknown: {message}"),
        Outcome::Refused { message } => format!("refused: {message}"),
    }
}

impl Machine for Simulated {
    fn history(&self) -> &Arc<Mutex<History>> {
        &self.history
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        work()
    }

    async fn carry_out(&self, run: &Run, _id: &StepId, step: &Step) -> Result<Payload, Failure> {
        let delivery = DELIVERY.get();
        let (site, name) = (&self.site, &self.name);
        let (strike, pause) = {
            let mut state = site.lock();
            state.begins(name, &delivery, step);
            let faults = [
                Fault::AgentDies,
                Fault::MachineDies,
                Fault::MachineFrozen,
                Fault::StepFails,
                Fault::StepSlow,
            ];
            let strike = state.strike(delivery.action, Point::BeforeEffect, &faults);
            let most = match step {
                Step::Service(_) | Step::Exec(_) => 8_000,
                Step::Gate(_) => 50,
                Step::Fetch(_)
                | Step::Etcd(_)
                | Step::EtcdData(_)
                | Step::Evict(_)
                | Step::Hold(_)
                | Step::Keys(_)
                | Step::Configure(_)
                | Step::Disk(_)
                | Step::AgentUpgrade(_)
                | Step::Collect(_) => 800,
            };
            (strike, state.dice.within(10..=most))
        };
        sleep(Duration::from_millis(pause)).await;
        match strike {
            Some(Fault::StepFails) => {
                return Err(Failure::new(ErrorClass::Retry, "not this time"));
            }
            Some(Fault::StepSlow) => sleep(Duration::from_secs(4_000)).await,
            other => site.suffer(&self.fixtures, name, other).await,
        }
        let done = loop {
            let frozen = {
                let state = site.lock();
                let until = state.vms.get(name).map_or(0, |vm| vm.frozen_until);
                until.saturating_sub(state.now)
            };
            if frozen > 0 {
                sleep(Duration::from_millis(frozen)).await;
                continue;
            }
            let of = self.incarnation;
            let fixtures = &self.fixtures;
            if let Some(done) = site.act(|state| state.apply(fixtures, name, of, step)) {
                break done;
            }
            sleep(Duration::from_secs(1)).await;
        };
        let strike = {
            let mut state = site.lock();
            let faults = [Fault::AgentDies, Fault::MachineDies, Fault::MachineFrozen];
            state.strike(delivery.action, Point::AfterEffect, &faults)
        };
        site.suffer(&self.fixtures, name, strike).await;
        let (payload, changes) = done?;
        for change in changes {
            run.changed(change);
        }
        Ok(payload)
    }
}

impl Site {
    /// What becomes of a machine that is in the middle of a step.
    async fn suffer(&self, fixtures: &Arc<Fixtures>, name: &MachineName, fault: Option<Fault>) {
        match fault {
            Some(Fault::AgentDies) => self.kill_agent(fixtures, name),
            Some(Fault::MachineDies) => self.kill_machine(fixtures, name),
            Some(Fault::MachineFrozen) => return self.freeze_machine(name),
            _ => return,
        }
        // This very task was stopped.
        std::future::pending::<()>().await;
    }
}

impl State {
    /// A step is about to be carried out.
    fn begins(&mut self, name: &MachineName, delivery: &Delivery, step: &Step) {
        let Some(vm) = self.vms.get_mut(name) else {
            return;
        };
        let (seen, epoch) = (vm.epoch, delivery.epoch());
        vm.epoch = vm.epoch.max(epoch);
        vm.begun_epoch = vm.begun_epoch.max(epoch);
        let again = vm.done.get(&delivery.id) == Some(&delivery.content);
        if epoch < seen {
            let problem = format!(
                "{name} carries out {} of epoch {}, and has seen {seen}",
                delivery.id, epoch
            );
            self.violated(6, problem);
        }
        if again && !looks(step) {
            let problem = format!("{name} carries out {} again, which was done", delivery.id);
            self.violated(6, problem);
        }
        if !step.converges() {
            let runs = self.ran_once.entry(delivery.id.clone()).or_default();
            *runs += 1;
            if *runs > 1 {
                let problem = format!("{name} runs {} again, which runs only once", delivery.id);
                self.violated(6, problem);
            }
        }
    }
}
