//! Steps that ask a machine's agent.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use windlass_common::error::ErrorClass;
use windlass_common::id::MachineName;
use windlass_common::step::{
    Configure, Outcome, Payload, Progress, Service, Step, StepId, StepRequest, StepResult,
};

use super::context::ClusterContext;
use super::{Done, EffectError, RecordChange, StepOrder, World, data_device, refit};
use crate::gateway::DeliveryError;
use crate::kubernetes::pki::{Certificates, ClusterPki, Validity, machine_certificates};
use crate::kubernetes::render::{self, Phase, Trust};
use crate::model::{Certified, Machine, MachinePhase};
use crate::store::{Commit, Expect, Kind};

/// Progress that may wait to be shown; what is more is dropped by the gateway.
pub(super) const PROGRESS_QUEUE: usize = 64;
/// How long it counts that other members of etcd were seen to serve: a machine that stands still must not stop its own
/// when it goes on. The unit that takes longest to stop, etcd's, has half of it.
const LOOK_COUNTS: Duration = Duration::from_secs(60);
/// How often the provider is asked for a machine whose agent is awaited.
const GONE_LOOK: Duration = Duration::from_secs(5);
/// How long a machine has to be gone for its agent not to be awaited any more: whoever repairs it judges so sooner, and
/// has the task go on with its successor.
const GONE_FOR: Duration = Duration::from_secs(30);

impl World {
    pub(super) async fn await_agent(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        limit: Duration,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        let deadline = Instant::now() + limit;
        self.let_in(machine).await;
        self.keep_token(machine, limit).await?;
        tokio::select! {
            biased;
            connected = self.agents.wait_connected(name, machine.incarnation, deadline) => connected?,
            () = self.gone(name) => return Err(EffectError::new(
                ErrorClass::Operator,
                format!(
                    "waited for the agent of machine {name}, which the provider has not had for {} s; find out who \
                     deletes its machines, and order the change again to have it made anew",
                    GONE_FOR.as_secs()
                ),
            )),
        }
        Ok(Done {
            changes: Vec::new(),
            records: vec![RecordChange::AgentConnected(name.clone())],
        })
    }

    /// Returns once the provider has said for [`GONE_FOR`] that it has no such machine. One that does not answer says
    /// nothing.
    async fn gone(&self, name: &MachineName) {
        let mut since = None;
        loop {
            tokio::time::sleep(GONE_LOOK).await;
            since = match self.provider.machine(name).await {
                Ok(Some(_)) => None,
                Ok(None) => Some(since.unwrap_or_else(Instant::now)),
                Err(_) => since,
            };
            if since.is_some_and(|since: Instant| since.elapsed() >= GONE_FOR) {
                return;
            }
        }
    }

    /// One that was to go may have been shut out already, and its removal have failed: what is to be told anything is
    /// let in again, unless it is fenced.
    async fn let_in(&self, machine: &Machine) {
        if machine.fenced {
            return;
        }
        self.registry.admit(machine);
        // What is known of it may be old. Who fences it writes that down before shutting it out: one of both sees the
        // other.
        match self.records.get::<Machine>(machine.name.as_str()).await {
            Ok(Some(now)) if !now.fenced => self.registry.admit(&now),
            _ => self.expel(&machine.name),
        }
    }

    pub(super) async fn mount_disk(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        let device = data_device(machine)?;
        let step = render::disk_step(context.machine_facts(name)?, device);
        let step = step.ok_or_else(|| {
            EffectError::new(
                ErrorClass::Bug,
                format!("{name} is not of a control plane and has no data disk"),
            )
        })?;
        let result = self.send(machine, order, "", Step::Disk(step)).await?;
        Ok(done(result, RecordChange::DiskMounted(name.clone())))
    }

    /// Writes a machine's configuration. With `switches`, the links to its components as well: units that run other
    /// ones are to be started anew right after it.
    pub(super) async fn configure(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
        switches: bool,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        let certificates = self.certificates(context, machine, order).await?;
        let mut step = configure_step(context, machine, &certificates)?;
        step.links = if switches {
            refit::links(context, machine)?
        } else {
            BTreeMap::new()
        };
        self.tell_refused(context, machine, order).await?;
        let result = self.send(machine, order, "", Step::Configure(step)).await?;
        let digest = context.configuration(machine)?.whole;
        let mut done = done(result, RecordChange::Configured(name.clone(), digest));
        done.records.extend(certified(name, &certificates));
        Ok(done)
    }

    /// What the kubelet of a machine that is in the cluster has said last, before it is restarted. A cluster whose
    /// API does not answer is not asked: a kubelet has nobody to have told anything then.
    pub(super) async fn heartbeat(
        &self,
        context: &ClusterContext,
        name: &MachineName,
    ) -> Result<Option<RecordChange>, EffectError> {
        if context.machine(name)?.labelled.is_none() {
            return Ok(None); // it never joined
        }
        let before = match self.kubernetes.heartbeat(context, name).await {
            Ok(before) => before,
            Err(error) => {
                tracing::warn!(machine = %name, %error, "what its kubelet has said last is not known");
                None
            }
        };
        Ok(Some(RecordChange::Heartbeat(name.clone(), before)))
    }

    /// Certificates of a machine, issued now if they never were, are due, or are of authorities that sign no more.
    pub(super) async fn certificates(
        &self,
        context: &ClusterContext,
        machine: &Machine,
        order: &StepOrder,
    ) -> Result<Certificates, EffectError> {
        match self.issued(machine).await? {
            Some(issued) if keeps(&context.pki, &issued) => Ok(issued),
            _ => self.issue(context, machine, order).await,
        }
    }

    /// Certificates that were issued to this incarnation.
    pub(super) async fn issued(
        &self,
        machine: &Machine,
    ) -> Result<Option<Certificates>, EffectError> {
        let found: Option<(_, (u32, Certificates))> = self
            .records
            .value(Kind::Certificates, machine.name.as_str())
            .await?;
        let found = found.map(|(_, issued)| issued);
        Ok(found
            .filter(|(incarnation, _)| *incarnation == machine.incarnation.0)
            .map(|(_, certificates)| certificates))
    }

    /// Has the machine make its keys, and issues a certificate for each.
    pub(super) async fn issue(
        &self,
        context: &ClusterContext,
        machine: &Machine,
        order: &StepOrder,
    ) -> Result<Certificates, EffectError> {
        let facts = context.machine_facts(&machine.name)?;
        let keys = Step::Keys(render::keys_step(facts));
        let result = self.send(machine, order, "/keys", keys).await?;
        let requests: BTreeMap<String, Vec<u8>> = match result.payload {
            Payload::Requests(requests) => requests,
            Payload::None | Payload::Exit(_) => BTreeMap::new(),
        };
        let now = jiff::Timestamp::now();
        let certificates =
            machine_certificates(&context.pki, &context.facts, facts, &requests, now)
                .map_err(|error| EffectError::of(error.class(), &error))?;
        let write = |commit: &mut Commit| {
            let issued = (machine.incarnation.0, &certificates);
            let name = machine.name.as_str();
            commit.value(Kind::Certificates, name, Expect::Any, &issued);
        };
        if machine.role.is_control_plane() {
            // What was issued before, perhaps by a director that kept no ledger, counts until it expires.
            let before = self.issued(machine).await?;
            let (name, incarnation) = (&machine.name, machine.incarnation);
            let cluster = &context.cluster.spec.name;
            self.revise(cluster, &context.pki, |ledger, commit| {
                for certificates in before.iter().chain([&certificates]) {
                    ledger.note(name, incarnation, certificates);
                }
                write(commit);
            })
            .await?;
        } else {
            let mut commit = Commit::default();
            write(&mut commit);
            self.records.commit(commit).await?;
        }
        Ok(certificates)
    }

    pub(super) async fn start(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        let certificates = self.issued(machine).await?.ok_or_else(|| {
            EffectError::new(
                ErrorClass::Bug,
                format!("{name} is to be started and has no certificates"),
            )
        })?;
        let configure = configure_step(context, machine, &certificates)?;
        let phases = Phase::of(&context.machine_facts(name)?.role);
        let units = phases
            .iter()
            .flat_map(|phase| render::service(*phase, &configure).units)
            .collect();
        let step = Step::Service(Service { units });
        let result = self.send(machine, order, "", step).await?;
        self.await_health(context, machine, order).await?;
        let digest = context.configuration(machine)?.components;
        let restarted = result
            .changes
            .iter()
            .any(|line| starts(line, "kubelet.service"));
        let proxied = result
            .changes
            .iter()
            .any(|line| starts(line, "kube-proxy.service"));
        let mut done = done(result, RecordChange::Started(name.clone(), digest));
        if proxied && machine.phase == MachinePhase::Ready {
            done.records
                .push(RecordChange::ProxyRestarted(name.clone()));
        }
        let emulates = context.machine_facts(name)?.emulates;
        done.records
            .push(RecordChange::Emulates(name.clone(), emulates));
        if !restarted && !self.rebooted(name, order).await? {
            // It runs on, so what it has said last counts.
            let heartbeat = RecordChange::Heartbeat(name.clone(), None);
            done.records.push(heartbeat);
        }
        Ok(done)
    }

    /// Gives load balancers outside the time to trust a worker again whose kube-proxy was started anew: while they do
    /// not, the next worker must not be lost to them too. What watches from outside cannot be asked.
    pub(super) async fn await_balancers(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<(), EffectError> {
        let machine = context.machine(name)?;
        let time = Duration::from_secs(context.cluster.spec.drain.load_balancer_seconds.into());
        let worker = !machine.role.is_control_plane();
        if !worker || !machine.proxy_restarted || time.is_zero() {
            return Ok(());
        }
        if !self.kubernetes.reached_from_outside(context, name).await? {
            return Ok(());
        }
        let gate = || Step::Gate(render::proxy_gate());
        self.send(machine, order, "/proxy", gate()).await?;
        order
            .progress
            .stage("load balancers get time to trust it again".to_owned());
        tokio::time::sleep(time).await;
        self.send(machine, order, "/proxy-still", gate()).await?;
        Ok(())
    }

    /// Stops a control plane's components, the API server first so that it can still finish, etcd last so
    /// that it hands over its leadership.
    pub(super) async fn stop(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        let connects = Instant::now() + order.limit;
        self.let_in(machine).await;
        self.agents
            .wait_connected(name, machine.incarnation, connects)
            .await?;
        // Another member may be rewriting its database, and answers nobody meanwhile.
        let _turn = self.etcd_turns.take(&context.cluster.spec.name).await;
        self.others_serve(context, name, order).await?;
        let looked = Instant::now();
        self.note(RecordChange::Stopping(name.clone()), &machine.cluster)
            .await?;
        let step = Step::Service(render::stop_control_plane());
        let mut stop = order.clone();
        stop.limit = order
            .limit
            .min(LOOK_COUNTS.saturating_sub(looked.elapsed()));
        let result = self.send(machine, &stop, "", step).await?;
        Ok(Done {
            changes: result.changes,
            records: Vec::new(),
        })
    }

    pub(super) async fn await_control_plane(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        let gate = Step::Gate(render::control_plane_gate());
        self.send(machine, order, "", gate).await?;
        Ok(Done::default())
    }

    /// Sends one step and turns everything that is not success into an error.
    pub(super) async fn send(
        &self,
        machine: &Machine,
        order: &StepOrder,
        suffix: &str,
        step: Step,
    ) -> Result<StepResult, EffectError> {
        let result = self.deliver(machine, order, suffix, step).await?;
        succeeded(machine, result)
    }

    /// What is sent to an agent for a step of an order, which has this much time left.
    pub(super) fn request(
        &self,
        order: &StepOrder,
        suffix: &str,
        step: Step,
        left: Duration,
    ) -> StepRequest {
        let attempt = match order.attempt {
            1 => String::new(),
            attempt => format!("~{attempt}"),
        };
        StepRequest {
            labels: Default::default(),
            id: StepId(format!("{}/{}{suffix}{attempt}", order.task, order.key)),
            epoch: self.birth.epoch.get(),
            deadline_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            step,
        }
    }

    /// Sends one step; returns how it ended on the machine.
    pub(super) async fn deliver(
        &self,
        machine: &Machine,
        order: &StepOrder,
        suffix: &str,
        step: Step,
    ) -> Result<StepResult, DeliveryError> {
        let deadline = Instant::now() + order.limit;
        if order.action.machine() == Some(&machine.name) {
            self.let_in(machine).await;
        }
        self.agents
            .wait_connected(&machine.name, machine.incarnation, deadline)
            .await?;
        let left = deadline.saturating_duration_since(Instant::now());
        let request = self.request(order, suffix, step, left);
        let (sender, mut progress) = mpsc::channel(PROGRESS_QUEUE);
        let call = self
            .agents
            .run_step(&machine.name, machine.incarnation, request, sender);
        let show = async {
            while let Some(progress) = progress.recv().await {
                if let Progress::Stage(stage) = progress {
                    order.progress.stage(stage);
                }
            }
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            result = call => result,
            never = show => match never {},
        }
    }
}

pub(super) fn configure_step(
    context: &ClusterContext,
    machine: &Machine,
    certificates: &Certificates,
) -> Result<Configure, EffectError> {
    let trust = Trust::from(&context.pki);
    let of = context.machine_facts(&machine.name)?;
    let mut step = render::configure_step(&context.facts_for(machine), of, &trust, certificates)
        .map_err(|error| EffectError::of(error.class(), &error))?;
    step.links = refit::switched(context, machine)?;
    Ok(step)
}

/// Whether a machine goes on with certificates that it was given before.
pub(super) fn keeps(pki: &ClusterPki, issued: &Certificates) -> bool {
    let now = jiff::Timestamp::now();
    let due = Validity::of(issued).is_none_or(|validity| validity.is_due(now));
    !due && pki.signed(issued)
}

/// What the records say of the certificates that a machine has been given.
pub(super) fn certified(name: &MachineName, certificates: &Certificates) -> Option<RecordChange> {
    let certified = Certified::from(Validity::of(certificates)?);
    Some(RecordChange::Certified(name.clone(), certified))
}

impl From<Validity> for Certified {
    fn from(validity: Validity) -> Self {
        Self {
            issued_at: validity.from.into(),
            renew_at: validity.renew_at().into(),
            expires_at: validity.until.into(),
        }
    }
}

pub(super) fn succeeded(machine: &Machine, result: StepResult) -> Result<StepResult, EffectError> {
    let (class, message) = match &result.outcome {
        Outcome::Converged | Outcome::Changed => return Ok(result),
        Outcome::Failed { class, message } => (*class, message),
        Outcome::Unknown { message } => (ErrorClass::Retry, message),
        Outcome::Refused { message } => (ErrorClass::Operator, message),
    };
    Err(EffectError::new(
        class,
        format!("machine {}: {message}", machine.name),
    ))
}

/// Whether an agent says in this line of a `service` step that it has started a unit, or started it again.
fn starts(line: &str, unit: &str) -> bool {
    let said = line
        .strip_prefix(unit)
        .and_then(|rest| rest.strip_prefix(": "));
    said.is_some_and(|said| said.starts_with("started") || said.starts_with("restarted"))
}

fn done(result: StepResult, change: RecordChange) -> Done {
    Done {
        changes: result.changes,
        records: vec![change],
    }
}

impl From<DeliveryError> for EffectError {
    fn from(error: DeliveryError) -> Self {
        let resend = match &error {
            DeliveryError::Lost { .. }
            | DeliveryError::NotConnected { .. }
            | DeliveryError::Behind { .. }
            | DeliveryError::Deadline { .. } => true,
            DeliveryError::NotCurrent { .. }
            | DeliveryError::TooOld { .. }
            | DeliveryError::Unable { .. }
            | DeliveryError::OtherStep { .. }
            | DeliveryError::Refused { .. }
            | DeliveryError::Protocol { .. } => false,
        };
        Self {
            resend,
            ..Self::of(error.class(), &error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::starts;

    #[test]
    fn a_unit_that_was_started_is_told_from_one_that_was_not() {
        for line in [
            "kubelet.service: started",
            "kubelet.service: restarted for another configuration",
        ] {
            assert!(starts(line, "kubelet.service"), "{line}");
        }
        for line in [
            "kubelet.service: stopped",
            "kubelet.service: enabled at boot",
            "etcd.service: started",
            "kubelet.service",
        ] {
            assert!(!starts(line, "kubelet.service"), "{line}");
        }
    }
}
