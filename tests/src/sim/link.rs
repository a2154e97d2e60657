//! Agents as a director reaches them: over a network that loses, repeats and delays.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Duration, Instant, sleep, sleep_until};
use windlass_common::id::{Incarnation, MachineName};
use windlass_common::limits::STEP_ANSWER_GRACE;
use windlass_common::pki::MachineIdentity;
use windlass_common::step::{OutputStream, Progress, Step, StepRequest, StepResult};
use windlass_director::gateway::{DeliveryError, IncarnationRegistry};
use windlass_director::kubernetes::client::ByteStream;
use windlass_director::model::Timestamp;
use windlass_director::rollout::world::{AgentFuture, Agents};

use super::coverage::{Fault, Point};
use super::fixtures::{self, Fixtures};
use super::life::{Life, action};
use super::mutation::Mutation;
use super::state::Site;

/// How often somebody who waits for a machine looks again.
const LOOK: Duration = Duration::from_millis(500);

impl Life {
    /// Whether this incarnation would be let in.
    fn admits(&self, machine: &MachineName, incarnation: Incarnation) -> bool {
        let (Ok(director), Ok(cluster)) = (fixtures::director(), fixtures::cluster()) else {
            return false;
        };
        let identity = MachineIdentity {
            director,
            cluster,
            machine: machine.clone(),
            incarnation,
        };
        let registry = self.registry.get();
        registry.is_some_and(|registry| registry.is_current(&identity))
    }

    /// Agents connect to a director that has taken over, and are told its epoch.
    pub fn hear(&self) {
        let there: Vec<(MachineName, Incarnation)> = {
            let state = self.site.lock();
            let vms = state.vms.iter();
            vms.map(|(name, vm)| (name.clone(), vm.incarnation))
                .collect()
        };
        for (machine, incarnation) in there {
            self.connected(&machine, incarnation);
        }
    }

    /// Whether it is connected; tells it the epoch.
    fn connected(&self, machine: &MachineName, incarnation: Incarnation) -> bool {
        if !self.admits(machine, incarnation) {
            return false;
        }
        let epoch = self.epoch.get().copied().unwrap_or(0);
        let mut state = self.site.lock();
        let now = state.now;
        let Some(vm) = state.vms.get_mut(machine) else {
            return false;
        };
        let there = vm.incarnation == incarnation && vm.connected(now);
        if there {
            vm.agent.see_epoch(epoch);
            vm.epoch = vm.epoch.max(epoch);
        }
        there
    }

    /// The step is written down as running, under the attempt in its id, before it is sent.
    fn check_intent(&self, request: &StepRequest) {
        let id = &request.id.0;
        if id.starts_with("exec/") {
            return;
        }
        let (step, attempt) = id.split_once('~').unwrap_or((id, "1"));
        // What a step has an agent do besides is of that step.
        let besides = |part: &str| {
            [
                "keys",
                "serves",
                "proxy",
                "proxy-still",
                "evict",
                "healthy",
                "saved",
                "leads",
                "hold",
            ]
            .contains(&part)
                || part.starts_with("refuses-")
                || part.starts_with("fetch-")
        };
        let name = match step.rsplit_once('/') {
            Some((name, part)) if besides(part) => name,
            _ => step,
        };
        let mut state = self.site.lock();
        let running = state.running.get(name);
        let written = running.is_some_and(|attempts| attempts.to_string() == attempt);
        if !written {
            state.violated(6, format!("{id} is sent before it is written down"));
        }
    }

    async fn send(
        &self,
        machine: &MachineName,
        incarnation: Incarnation,
        request: StepRequest,
    ) -> Result<StepResult, DeliveryError> {
        self.check_intent(&request);
        let sent = Sent {
            machine: machine.clone(),
            incarnation,
            request: request.clone(),
            action: action(),
        };
        let _underway = Underway::new(self, &sent);
        self.point(Point::BeforeEffect).await;
        let not_connected = || DeliveryError::NotConnected {
            machine: machine.clone(),
            incarnation,
        };
        let lost = || DeliveryError::Lost {
            machine: machine.clone(),
            source: "the connection ended".into(),
        };
        if !self.connected(machine, incarnation) {
            return Err(not_connected());
        }
        let Some((ends, ended)) = self.link_of(machine) else {
            return Err(not_connected());
        };
        let faults = [Fault::RequestLost, Fault::Duplicated, Fault::Delayed];
        let strike = self.strike(Point::BeforeEffect, &faults);
        let mut ms = self.site.lock().dice.within(1..=40);
        match strike {
            Some(Fault::RequestLost) => {
                self.cut(machine);
                return Err(lost());
            }
            Some(Fault::Duplicated) => {
                let late = self.site.lock().dice.within(1_000..=200_000);
                post(&self.site, &self.fixtures, sent.clone(), late);
            }
            Some(_) => ms += self.site.lock().dice.within(1_000..=90_000),
            None => {}
        }
        let limit = Duration::from_millis(request.deadline_ms.saturating_add(ms));
        let deadline = Instant::now() + limit + STEP_ANSWER_GRACE;
        let id = request.id.0.clone();
        let late = || DeliveryError::Deadline {
            machine: machine.clone(),
            step: id.clone(),
            deadline_ms: request.deadline_ms,
        };
        let mut order = Order {
            life: self,
            machine,
            id: id.clone(),
            over: false,
            link: ends,
        };
        let arrived = post(&self.site, &self.fixtures, sent, ms);
        let answer = async {
            let mut result = arrived.await.ok().flatten()?;
            let result = result.wait_for(Option::is_some).await.ok()?;
            result.clone()
        };
        let result = tokio::select! {
            biased;
            _ = ended => Err(lost()),
            result = answer => result.ok_or_else(lost),
            () = sleep_until(deadline) => Err(late()),
        };
        order.over = result.is_ok();
        drop(order);
        self.point(Point::AfterEffect).await;
        if self
            .strike(Point::AfterEffect, &[Fault::AnswerLost])
            .is_some()
        {
            self.cut(machine);
            return Err(lost());
        }
        result
    }

    fn link_of(&self, machine: &MachineName) -> Option<(u64, oneshot::Receiver<()>)> {
        let mut state = self.site.lock();
        let vm = state.vms.get_mut(machine)?;
        Some((vm.link.ends, vm.link.ended()))
    }

    fn cut(&self, machine: &MachineName) {
        let mut state = self.site.lock();
        let ms = state.dice.within(500..=90_000);
        state.break_link(machine, ms);
    }
}

/// A request to an agent.
#[derive(Debug, Clone)]
pub struct Sent {
    /// To which machine.
    pub machine: MachineName,
    /// And which of its incarnations.
    pub incarnation: Incarnation,
    /// The request.
    pub request: StepRequest,
    /// The kind of step that it is of.
    pub action: &'static str,
}

/// What is on its way when its sender dies arrives nevertheless.
pub fn post(
    site: &Site,
    fixtures: &Arc<Fixtures>,
    sent: Sent,
    ms: u64,
) -> oneshot::Receiver<Option<watch::Receiver<Option<StepResult>>>> {
    let (sender, receiver) = oneshot::channel();
    let (site, fixtures) = (site.clone(), Arc::clone(fixtures));
    tokio::spawn(async move {
        sleep(Duration::from_millis(ms)).await;
        let running = site.deliver(&fixtures, sent);
        let _ = sender.send(running); // who sent it may have died
    });
    receiver
}

/// A request that a life knows to be on its way.
struct Underway<'a>(&'a Life, String);

impl<'a> Underway<'a> {
    fn new(life: &'a Life, sent: &Sent) -> Self {
        life.sends(sent);
        Self(life, sent.request.id.0.clone())
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.0.arrived(&self.1);
    }
}

/// A step that is waited for. Dropped before it is over, on a link that lives, it is cancelled.
struct Order<'a> {
    life: &'a Life,
    machine: &'a MachineName,
    id: String,
    over: bool,
    link: u64,
}

impl Drop for Order<'_> {
    fn drop(&mut self) {
        if self.over || self.life.is_dead() {
            return;
        }
        let state = self.life.site.lock();
        if let Some(vm) = state.vms.get(self.machine)
            && vm.link.ends == self.link
        {
            vm.agent.cancel(&self.id);
        }
    }
}

impl Agents for Life {
    fn wait_connected<'a>(
        &'a self,
        machine: &'a MachineName,
        incarnation: Incarnation,
        deadline: Instant,
    ) -> AgentFuture<'a, ()> {
        Box::pin(async move {
            self.point(Point::BeforeEffect).await;
            loop {
                self.alive().await;
                if self.connected(machine, incarnation) {
                    break;
                }
                if Instant::now() + LOOK > deadline {
                    return Err(DeliveryError::NotConnected {
                        machine: machine.clone(),
                        incarnation,
                    });
                }
                sleep(LOOK).await;
            }
            self.point(Point::AfterEffect).await;
            Ok(())
        })
    }

    fn run_step<'a>(
        &'a self,
        machine: &'a MachineName,
        incarnation: Incarnation,
        request: StepRequest,
        progress: mpsc::Sender<Progress>,
    ) -> AgentFuture<'a, StepResult> {
        Box::pin(async move {
            let evicts = matches!(request.step, Step::Evict(_));
            let result = self.send(machine, incarnation, request).await?;
            let said = self.site.lock().said.remove(machine);
            if let Some(bytes) = said.filter(|_| evicts) {
                let stream = OutputStream::Stdout;
                // Who listens no more knows nothing of them.
                let _ = progress.send(Progress::Output { stream, bytes }).await;
            }
            Ok(result)
        })
    }

    fn open_tunnel<'a>(
        &'a self,
        machine: &'a MachineName,
        _incarnation: Incarnation,
    ) -> AgentFuture<'a, Box<dyn ByteStream>> {
        // The API is simulated above the tunnel.
        let machine = machine.clone();
        Box::pin(async move {
            let message = "no tunnels here".to_owned();
            Err(DeliveryError::Refused { machine, message })
        })
    }

    fn is_heard(&self, machine: &MachineName, incarnation: Incarnation) -> bool {
        let blind = self.site.lock().mutation == Some(Mutation::CameBackUnseen);
        !blind && self.connected(machine, incarnation)
    }

    fn booted(&self, machine: &MachineName, incarnation: Incarnation) -> Option<Timestamp> {
        let trusted = self.site.lock().mutation == Some(Mutation::NodesTakenOnTrust);
        let heard = trusted || self.connected(machine, incarnation);
        let state = self.site.lock();
        let booted = state.vms.get(machine).filter(|_| heard)?.booted;
        // Of all that was said since the world began it is known then, at whichever boot.
        Some(Timestamp::from_unix_ms(if trusted { 0 } else { booted }))
    }

    fn revoke(&self, identity: &MachineIdentity) {
        self.site.lock().break_link(&identity.machine, 0);
    }
}

/// So that a life can be handed to whoever needs agents.
pub fn agents(life: &Arc<Life>) -> Arc<dyn Agents> {
    life.clone()
}
