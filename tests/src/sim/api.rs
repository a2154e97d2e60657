//! The cluster's API as a director reaches it: through the machines of its control plane.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use tokio::time::{Duration, Instant, sleep};
use windlass_common::error::ErrorClass;
use windlass_common::gate::ServicePort;
use windlass_common::id::{ClusterName, Incarnation, MachineName, NodeName};
use windlass_director::backup::record::Census;
use windlass_director::drain::{
    Answer, Course, DrainPolicy, Engine, Escalation, How, NodeRehearsal, Order, OwnNode, Rehearsal,
    Turn,
};
use windlass_director::model::{Stage, Timestamp};
use windlass_director::planner::inputs;
use windlass_director::provider::Power;
use windlass_director::rollout::world::{ClusterContext, JobOrder, KubeApi, LeaseMark};
use windlass_director::rollout::{Done, EffectError, ProgressSink, RecordChange};

use super::coverage::{Fault, Point};
use super::draft::GATE_SECONDS;
use super::eviction::Refusal;
use super::invariants::DRAINING;
use super::life::Life;
use super::mutation::Mutation;
use super::state::{State, Vm};

/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(1);

impl Life {
    /// One request: refused while no API server is reached; its answer may be lost.
    async fn ask<T>(&self, act: impl FnOnce(&mut State) -> T) -> Result<T, EffectError> {
        self.point(Point::BeforeEffect).await;
        self.site.pause(2..=100).await;
        let faults = [Fault::ApiRefuses, Fault::MachineDies];
        match self.strike(Point::BeforeEffect, &faults) {
            Some(Fault::ApiRefuses) => {
                let mut state = self.site.lock();
                let ms = state.dice.within(1_000..=120_000);
                state.cluster.refuses_until = state.now + ms;
            }
            Some(_) => {
                let victim = {
                    let mut state = self.site.lock();
                    let names: Vec<MachineName> = state.vms.keys().cloned().collect();
                    let at: Vec<usize> = (0..names.len()).collect();
                    state.dice.pick(&at).map(|at| names[at].clone())
                };
                if let Some(victim) = victim {
                    self.site.kill_machine(&self.fixtures, &victim);
                }
            }
            None => {}
        }
        self.alive().await;
        let reached = self.site.lock().api_reached();
        if !reached {
            return Err(retry("no API server answers"));
        }
        let result = self.site.act(act);
        if self
            .strike(Point::AfterEffect, &[Fault::ApiAnswerLost])
            .is_some()
        {
            return Err(retry("the API server hung up"));
        }
        self.point(Point::AfterEffect).await;
        Ok(result)
    }

    /// Asks again until the API server has answered.
    async fn look<T>(&self, act: impl Fn(&mut State) -> T) -> Result<T, EffectError> {
        self.alive().await;
        let mut state = self.site.lock();
        if !state.api_reached() {
            return Err(retry("no API server answers"));
        }
        Ok(act(&mut state))
    }

    fn policy(&self) -> DrainPolicy {
        let mut policy = DrainPolicy::default();
        if self.site.lock().mutation == Some(Mutation::PodBudgetsIgnored) {
            policy.deadline_ms = 1;
            policy.escalation = Escalation::Delete;
        }
        policy
    }

    async fn empty(&self, node: &NodeName, own: &dyn OwnNode) -> Result<(), EffectError> {
        let began = Instant::now();
        let mut engine = Engine::new(self.policy());
        loop {
            let pods = self.look(|state| state.drain_view(node)).await?;
            let orders = match engine.look(began.elapsed(), &pods, &[]) {
                Turn::Go(orders) => orders,
                Turn::Done(_) => return Ok(()),
                Turn::Refused(blocked) | Turn::Late(blocked) => {
                    let message = format!("node {node} is not empty: {}", blocked.len());
                    return Err(EffectError::new(ErrorClass::Operator, message));
                }
            };
            let said = match orders.is_empty() {
                true => Vec::new(),
                false => own.tell(&orders).await,
            };
            for (order, said) in orders.iter().zip(said) {
                let answer = match said {
                    Ok(answer) => answer,
                    Err(_) => self.look(|state| tell(state, order)).await?,
                };
                engine.answered(began.elapsed(), order, answer);
            }
            sleep(LOOK).await;
        }
    }
}

impl State {
    /// The Job of a gate, which is made if there is none; whether it has succeeded, once it is over.
    fn gate(&mut self, name: &str, fails: bool) -> Option<bool> {
        let (now, takes) = (self.now, self.dice.within(1_000..=60_000));
        let jobs = &mut self.cluster.jobs;
        let made = || (now + takes, fails);
        let (over_at, fails) = *jobs.entry(name.to_owned()).or_insert_with(made);
        (over_at <= now).then_some(!fails)
    }
}

/// What an API server does that the director asks.
fn tell(state: &mut State, order: &Order) -> Answer {
    let name = &order.pod.name;
    match order.how {
        How::Evict => match state.evict(name, &order.pod.uid) {
            Ok(()) => Answer::Accepted,
            Err(Refusal::Gone | Refusal::Namesake) => Answer::Gone,
            Err(why @ (Refusal::Kept | Refusal::TwoBudgets)) => Answer::NotNow {
                why: why.message().to_owned(),
                again_after: None,
            },
        },
        How::Delete if state.delete_pod(name) => Answer::Accepted,
        How::Delete => Answer::Gone,
    }
}

/// When a kubelet has spoken, as its Node tells it.
fn words(said: u64) -> String {
    Timestamp::from_unix_ms(said).to_string()
}

fn retry(message: &str) -> EffectError {
    EffectError::new(ErrorClass::Retry, message)
}

fn recorded(change: RecordChange) -> Done {
    Done {
        changes: Vec::new(),
        records: vec![change],
    }
}

impl KubeApi for Life {
    fn apply_addons<'a>(
        &'a self,
        context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.ask(|state| state.cluster.addons = true).await?;
            let digest = inputs::addons_digest(&context.future);
            Ok(recorded(RecordChange::Addons(digest)))
        })
    }

    fn await_node<'a>(
        &'a self,
        context: &'a ClusterContext,
        machine: &'a MachineName,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            let of = context.machine(machine)?.incarnation;
            let labels = context.configuration(context.machine(machine)?)?.labels;
            let before = context.machine(machine)?.heartbeat.clone();
            let deadline = Instant::now() + limit;
            self.ask(|_| ()).await?;
            if self.site.lock().mutation == Some(Mutation::ReportsTakenOnTrust) {
                return Ok(recorded(RecordChange::NodeReady(machine.clone(), labels)));
            }
            loop {
                let ready = self.look(|state| {
                    // What the kubelet that was there before has said does not count.
                    let anew = |said: u64| before.as_ref().is_none_or(|it| *it != words(said));
                    let ready = state
                        .says_ready(machine)
                        .is_some_and(|node| anew(node.said));
                    let vm = state.vms.get_mut(machine);
                    let Some(vm) = vm.filter(|vm| ready && vm.incarnation == of) else {
                        return false;
                    };
                    let node = vm.node.clone();
                    let back = state.available(machine) || !state.cluster.nodes.contains_key(&node);
                    if back && let Some(vm) = state.vms.get_mut(machine) {
                        vm.by_us = false;
                    }
                    true
                });
                if ready.await? {
                    return Ok(recorded(RecordChange::NodeReady(machine.clone(), labels)));
                }
                if Instant::now() + LOOK >= deadline {
                    let message = format!("node of {machine} is not Ready");
                    return Err(EffectError::new(ErrorClass::Operator, message));
                }
                sleep(LOOK).await;
            }
        })
    }

    fn census<'a>(
        &'a self,
        _context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Census, EffectError>> {
        Box::pin(async { Ok(Census::default()) })
    }

    fn reached_from_outside<'a>(
        &'a self,
        _context: &'a ClusterContext,
        _machine: &'a MachineName,
    ) -> BoxFuture<'a, Result<bool, EffectError>> {
        Box::pin(async { Ok(true) })
    }

    fn heartbeat<'a>(
        &'a self,
        _context: &'a ClusterContext,
        machine: &'a MachineName,
    ) -> BoxFuture<'a, Result<Option<String>, EffectError>> {
        Box::pin(async move {
            self.ask(|state| {
                let node = &state.vms.get(machine)?.node;
                let found = state.cluster.nodes.get(node)?;
                Some(words(found.said))
            })
            .await
        })
    }

    fn drop_node<'a>(
        &'a self,
        _context: &'a ClusterContext,
        machine: &'a MachineName,
        node: &'a NodeName,
        _limit: Duration,
        _progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.ask(|state| {
                let powered = |vm: &Vm| vm.view.power == Power::Running;
                let lives = |vm: &Vm| vm.node == *node && powered(vm);
                if state.vms.values().any(lives) {
                    let problem = format!("node {node} is dropped while its machine runs");
                    state.violated(2, problem);
                }
                state.cluster.nodes.remove(node);
                state.tell(format!("node {node} is dropped"));
            })
            .await?;
            let change = RecordChange::NodeDropped(machine.clone(), node.clone());
            Ok(recorded(change))
        })
    }

    fn settle_nodes<'a>(
        &'a self,
        _context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        // Nobody orders a restore here.
        Box::pin(async { Ok(Done::default()) })
    }

    fn lease<'a>(
        &'a self,
        _context: &'a ClusterContext,
        node: &'a NodeName,
        _through: &'a [(MachineName, Incarnation)],
    ) -> BoxFuture<'a, Result<Option<LeaseMark>, EffectError>> {
        Box::pin(async move {
            self.look(|state| {
                let found = state.cluster.nodes.get(node)?;
                Some(LeaseMark {
                    uid: node.to_string(),
                    renewed: found.seen.to_string(),
                })
            })
            .await
        })
    }

    fn await_api<'a>(
        &'a self,
        _context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.ask(|_| ()).await?;
            Ok(Done::default())
        })
    }

    fn rehearse<'a>(
        &'a self,
        _context: &'a ClusterContext,
        course: &'a Course,
    ) -> BoxFuture<'a, Result<Rehearsal, EffectError>> {
        // Forecasts decide nothing.
        Box::pin(async move {
            let nodes = course.sequence.iter().flatten().map(|node| NodeRehearsal {
                node: node.clone(),
                ..NodeRehearsal::default()
            });
            Ok(Rehearsal {
                nodes: nodes.collect(),
                ..Rehearsal::default()
            })
        })
    }

    fn serving<'a>(
        &'a self,
        _context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<BTreeMap<NodeName, String>, EffectError>> {
        Box::pin(async move {
            self.ask(|state| {
                if state.mutation == Some(Mutation::BudgetIgnored) {
                    return BTreeMap::new(); // who is not in service is not missed
                }
                let nodes = state.cluster.nodes.iter();
                // Where nobody takes back what Nodes say, they say it for ever.
                let trusted = state.mutation == Some(Mutation::NodesTakenOnTrust);
                let ready = |node: &super::cluster::Node| node.ready || trusted;
                let serving = nodes.filter(|(_, node)| ready(node) && !node.cordoned);
                serving
                    .map(|(name, node)| (name.clone(), words(node.said)))
                    .collect()
            })
            .await
        })
    }

    fn drain<'a>(
        &'a self,
        _context: &'a ClusterContext,
        node: &'a NodeName,
        own: &'a dyn OwnNode,
        _progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            let held = self.strike(Point::BeforeEffect, &[Fault::PodsHeld]);
            self.ask(|state| {
                if held.is_some() {
                    let ms = state.dice.within(10_000..=900_000);
                    state.cluster.held_until = state.now + ms;
                }
                let Some(found) = state.cluster.nodes.get(node) else {
                    return;
                };
                let machine = found.machine.clone();
                state.taking(&machine, DRAINING);
                state.tell(format!("node {node} is cordoned"));
                if let Some(found) = state.cluster.nodes.get_mut(node) {
                    found.cordoned = true;
                }
            })
            .await?;
            self.empty(node, own).await?;
            Ok(Done::default())
        })
    }

    fn uncordon<'a>(
        &'a self,
        _context: &'a ClusterContext,
        machine: &'a MachineName,
        node: &'a NodeName,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.ask(|state| {
                if let Some(found) = state.cluster.nodes.get_mut(node) {
                    found.cordoned = false;
                }
                if let Some(vm) = state.vms.get_mut(machine) {
                    vm.by_us = false;
                }
                state.tell(format!("node {node} is open"));
            })
            .await?;
            Ok(recorded(RecordChange::Uncordoned(machine.clone())))
        })
    }

    fn ask_service<'a>(
        &'a self,
        _context: &'a ClusterContext,
        _service: &'a ServicePort,
        _path: &'a str,
    ) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        unreachable!("no gate here asks a Service")
    }

    fn run_job<'a>(
        &'a self,
        _context: &'a ClusterContext,
        job: &'a JobOrder,
        _progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let name = job.to_string();
            let deadline = Instant::now() + Duration::from_secs(GATE_SECONDS);
            let fault = [Fault::GateShut];
            let shut = self.strike(Point::BeforeEffect, &fault).is_some();
            let mut last = self.ask(|state| state.gate(&name, shut)).await;
            loop {
                match last {
                    Ok(Some(open)) => {
                        self.site.act(|state| state.cluster.jobs.remove(&name));
                        return open.then_some(()).ok_or_else(|| "failed".to_owned());
                    }
                    Ok(None) | Err(_) if Instant::now() + LOOK > deadline => {
                        return Err("is not done".to_owned());
                    }
                    Ok(None) | Err(_) => sleep(LOOK).await,
                }
                last = self.look(|state| state.gate(&name, shut)).await;
            }
        })
    }

    fn rewrite_secrets<'a>(
        &'a self,
        _context: &'a ClusterContext,
        _progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.ask(|_| ()).await?;
            Ok(Done {
                changes: Vec::new(),
                records: vec![RecordChange::StageDone(Stage::Rewrite)],
            })
        })
    }

    fn await_dns<'a>(
        &'a self,
        _context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.ask(|_| ()).await?;
            Ok(Done {
                changes: Vec::new(),
                records: vec![RecordChange::StageDone(Stage::RestartDns)],
            })
        })
    }

    fn forget(&self, _cluster: &ClusterName) {
        self.site.lock().cluster.clear();
    }
}
