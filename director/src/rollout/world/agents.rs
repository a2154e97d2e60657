//! Agents, as steps need them; the gateway is the real thing behind it.

use std::fmt;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::Instant;
use windlass_common::id::{Incarnation, MachineName};
use windlass_common::pki::MachineIdentity;
use windlass_common::step::{Progress, StepRequest, StepResult};
use windlass_common::wire::message::TunnelTarget;

use crate::gateway::{DeliveryError, Gateway};
use crate::kubernetes::client::ByteStream;
use crate::model::{Machine, Timestamp};

/// What a call to an agent returns.
pub type AgentFuture<'a, T> = BoxFuture<'a, Result<T, DeliveryError>>;

/// Agents.
pub trait Agents: Send + Sync + fmt::Debug {
    /// Waits until this incarnation is connected.
    fn wait_connected<'a>(
        &'a self,
        machine: &'a MachineName,
        incarnation: Incarnation,
        deadline: Instant,
    ) -> AgentFuture<'a, ()>;

    /// Sends a step and waits for its result; see [`Gateway::run_step`].
    fn run_step<'a>(
        &'a self,
        machine: &'a MachineName,
        incarnation: Incarnation,
        request: StepRequest,
        progress: mpsc::Sender<Progress>,
    ) -> AgentFuture<'a, StepResult>;

    /// Connects with the API server of a control-plane machine.
    fn open_tunnel<'a>(
        &'a self,
        machine: &'a MachineName,
        incarnation: Incarnation,
    ) -> AgentFuture<'a, Box<dyn ByteStream>>;

    /// Whether signs of life of this incarnation arrive now.
    fn is_heard(&self, machine: &MachineName, incarnation: Incarnation) -> bool;

    /// When the machine of this incarnation booted, by its own clock, as its agent says on connecting; `None` while
    /// that has said nothing, or no signs of life arrive.
    fn booted(&self, machine: &MachineName, incarnation: Incarnation) -> Option<Timestamp>;

    /// Closes the session of an incarnation that is not current any more.
    fn revoke(&self, identity: &MachineIdentity);
}

/// Longest answer, bytes: a report of [`windlass_common::step::MEMBERS_MAX`] members of etcd is 16 KiB, and
/// [`windlass_common::limits::EVICTIONS_MAX`] answers about pods 64 KiB.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// Progress that waits to be read.
const PROGRESS_QUEUE: usize = 16;

/// Sends a step that answers in words; returns what came of it and what it said by then, no more than is meant to be read.
pub(crate) async fn ask(
    agents: &dyn Agents,
    machine: &Machine,
    request: StepRequest,
) -> (Result<StepResult, DeliveryError>, Vec<u8>) {
    let (sender, mut progress) = mpsc::channel(PROGRESS_QUEUE);
    let call = agents.run_step(&machine.name, machine.incarnation, request, sender);
    let mut said = Vec::new();
    let listen = async {
        while let Some(progress) = progress.recv().await {
            if let Progress::Output { bytes, .. } = progress
                && said.len() + bytes.len() <= ANSWER_BYTES_MAX
            {
                said.extend_from_slice(&bytes);
            }
        }
    };
    let (result, ()) = tokio::join!(call, listen);
    (result, said)
}

impl Agents for Gateway {
    fn wait_connected<'a>(
        &'a self,
        machine: &'a MachineName,
        incarnation: Incarnation,
        deadline: Instant,
    ) -> AgentFuture<'a, ()> {
        Box::pin(async move {
            Gateway::wait_connected(self, machine, incarnation, deadline)
                .await
                .map(drop)
        })
    }

    fn run_step<'a>(
        &'a self,
        machine: &'a MachineName,
        incarnation: Incarnation,
        request: StepRequest,
        progress: mpsc::Sender<Progress>,
    ) -> AgentFuture<'a, StepResult> {
        Box::pin(Gateway::run_step(
            self,
            machine,
            incarnation,
            request,
            progress,
        ))
    }

    fn open_tunnel<'a>(
        &'a self,
        machine: &'a MachineName,
        incarnation: Incarnation,
    ) -> AgentFuture<'a, Box<dyn ByteStream>> {
        Box::pin(async move {
            let target = TunnelTarget::ApiServer;
            let tunnel = Gateway::open_tunnel(self, machine, incarnation, target).await?;
            Ok(Box::new(tunnel) as Box<dyn ByteStream>)
        })
    }

    fn is_heard(&self, machine: &MachineName, incarnation: Incarnation) -> bool {
        self.link(machine, incarnation).beating
    }

    fn booted(&self, machine: &MachineName, incarnation: Incarnation) -> Option<Timestamp> {
        let session = self.session(machine, incarnation)?;
        let (_, report) = session.report.filter(|_| !session.suspect)?;
        let up_ms = report.uptime_s.saturating_mul(1000);
        Some(Timestamp::from_unix_ms(
            report.at_unix_ms.saturating_sub(up_ms),
        ))
    }

    fn revoke(&self, identity: &MachineIdentity) {
        Gateway::revoke(self, identity);
    }
}
