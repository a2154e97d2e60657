//! Asking etcd outside of a task: through the agent of one control-plane machine.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;
use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::step::{
    EtcdAction, EtcdReport, Outcome, Step, StepId, StepRequest, StepResult,
};

use super::Inner;
use super::draft::random_u32;
use crate::gateway::DeliveryError;
use crate::kubernetes::render;
use crate::model::Machine;
use crate::rollout::world::ask;

/// How long a report may take: members that are off are given two seconds each.
pub(super) const REPORT_LIMIT: Duration = Duration::from_secs(30);

/// Why a machine's member of etcd did not do what it was asked. `Display` never repeats the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The machine was not reached.
    #[error("its agent was not reached")]
    Delivery(#[source] DeliveryError),
    /// It was not done there.
    #[error("machine {machine}: {message}")]
    Failed {
        /// Who acts.
        class: ErrorClass,
        /// Which machine.
        machine: String,
        /// Why.
        message: String,
    },
    /// Its answer is not understood.
    #[error("machine {machine} said something that is not understood; upgrade its agent")]
    Answer {
        /// Which machine.
        machine: String,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// No randomness.
    #[error("the operating system gave no random bytes")]
    Random,
}

impl AskError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Delivery(source) => source.class(),
            Self::Failed { class, .. } => *class,
            Self::Answer { .. } => ErrorClass::Operator,
            Self::Random => ErrorClass::Retry,
        }
    }
}

/// What a member did, and what it said.
#[derive(Debug)]
pub(super) struct Answer {
    /// What was changed, one line each.
    pub(super) changes: Vec<String>,
    /// What it said.
    pub(super) said: Vec<u8>,
}

impl Answer {
    /// What it said, as JSON.
    pub(super) fn json<T: serde::de::DeserializeOwned>(
        &self,
        machine: &Machine,
    ) -> Result<T, AskError> {
        serde_json::from_slice(&self.said).map_err(|source| AskError::Answer {
            machine: machine.name.to_string(),
            source,
        })
    }
}

impl Inner {
    /// Waits until one of [`Inner::voters`] is connected: after the director has started, agents take a moment.
    pub(super) async fn await_voter(&self, machines: &[Machine], limit: Duration) {
        let deadline = Instant::now() + limit;
        let agents = &self.world.agents;
        let mut waits: FuturesUnordered<_> = machines
            .iter()
            .filter(|machine| may_be_asked(machine))
            .map(|m| agents.wait_connected(&m.name, m.incarnation, deadline))
            .collect();
        while let Some(connected) = waits.next().await {
            if connected.is_ok() {
                return;
            }
        }
    }

    /// Control-plane machines with a vote that stay and are connected.
    pub(super) fn voters<'a>(&self, machines: &'a [Machine]) -> Vec<&'a Machine> {
        let sessions = self.gateway.connected();
        let connected = |machine: &Machine| {
            sessions
                .get(&machine.name)
                .is_some_and(|session| session.identity.incarnation == machine.incarnation)
        };
        machines
            .iter()
            .filter(|machine| may_be_asked(machine) && connected(machine))
            .collect()
    }

    /// What etcd looks like from a machine.
    pub(super) async fn etcd_report(&self, machine: &Machine) -> Result<EtcdReport, AskError> {
        let action = EtcdAction::Report;
        self.ask_etcd(machine, action, REPORT_LIMIT)
            .await?
            .json(machine)
    }

    /// Has the member of a machine do something.
    pub(super) async fn ask_etcd(
        &self,
        machine: &Machine,
        action: EtcdAction,
        limit: Duration,
    ) -> Result<Answer, AskError> {
        let random = || random_u32().map_err(|_| AskError::Random);
        let (high, low) = (random()?, random()?);
        let request = StepRequest {
            id: StepId(format!("etcd/{high:08x}{low:08x}")),
            epoch: self.epoch.get(),
            deadline_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            step: Step::Etcd(render::etcd_step(action)),
            labels: BTreeMap::new(),
        };
        let (result, said) = ask(&*self.world.agents, machine, request).await;
        let result = result.map_err(AskError::Delivery)?;
        let changes = done(machine, result)?;
        Ok(Answer { changes, said })
    }
}

/// Whether its member counts and stays.
fn may_be_asked(machine: &Machine) -> bool {
    machine.votes() && !machine.fenced && !machine.condemned && !machine.is_surplus()
}

fn done(machine: &Machine, result: StepResult) -> Result<Vec<String>, AskError> {
    let (class, message) = match result.outcome {
        Outcome::Converged | Outcome::Changed => return Ok(result.changes),
        Outcome::Failed { class, message } => (class, message),
        Outcome::Unknown { message } => (ErrorClass::Retry, message),
        Outcome::Refused { message } => (ErrorClass::Operator, message),
    };
    Err(AskError::Failed {
        class,
        machine: machine.name.to_string(),
        message,
    })
}

/// Faults of several machines in one line.
pub(super) fn several(faults: &[AskError]) -> String {
    let faults = faults.iter().map(|fault| ErrorChain(fault).to_string());
    faults.collect::<Vec<_>>().join("; ")
}
