//! What operators do on single machines: run a command, read logs.

use std::collections::BTreeMap;

use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::mpsc;
use windlass_common::error::ErrorChain;
use windlass_common::id::MachineName;
use windlass_common::step::{
    Collect, Exec, Outcome, Payload, Progress, Step, StepId, StepRequest, StepResult,
};
use windlass_common::wire::step::{OPERATOR, REQUEST};

use super::draft::random_u32;
use super::reach::Ending;
use super::{Inner, NodeEvent, ServiceError, ServiceResult};
use crate::model::{Caller, Machine};

/// How long a command or a collection may take.
const LIMIT_MS: u64 = 15 * 60 * 1000;
/// Events that wait for a slow reader; the agent waits when it is full.
const QUEUE: usize = 64;
/// Longest command, in arguments.
const ARGUMENTS_MAX: usize = 256;

impl Inner {
    pub(super) async fn node_exec(
        &self,
        name: &MachineName,
        argv: Vec<String>,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, NodeEvent>> {
        if argv.is_empty() || argv.len() > ARGUMENTS_MAX {
            return Err(ServiceError::Invalid {
                faults: vec![crate::model::FieldFault::new(
                    "argv",
                    argv.len(),
                    format!("1 to {ARGUMENTS_MAX} arguments"),
                )],
            });
        }
        let detail = argv.join(" ").chars().take(1000).collect::<String>();
        let step = Step::Exec(Exec { argv });
        self.run(name, step, "node.exec", &detail, caller).await
    }

    pub(super) async fn node_logs(
        &self,
        name: &MachineName,
        collect: Collect,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, NodeEvent>> {
        let detail = format!("{} lines of {}", collect.lines, collect.units.join(" "));
        let step = Step::Collect(collect);
        self.run(name, step, "node.logs", &detail, caller).await
    }

    async fn run(
        &self,
        name: &MachineName,
        step: Step,
        action: &'static str,
        detail: &str,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, NodeEvent>> {
        let machine = self.machine_record(name).await?;
        let (high, low) = (random_u32()?, random_u32()?);
        let id = StepId(format!("{}/{high:08x}{low:08x}", step.kind()));
        let detail = format!("{id}: {detail}");
        let ending = self
            .note_begin(action, format!("machine/{name}"), &detail, caller)
            .await?;
        let request = StepRequest {
            id,
            epoch: self.epoch.get(),
            deadline_ms: LIMIT_MS,
            step,
            labels: labels(caller),
        };
        Ok(self.stream(machine, request, ending))
    }

    fn stream(
        &self,
        machine: Machine,
        request: StepRequest,
        mut ending: Ending,
    ) -> BoxStream<'static, NodeEvent> {
        let (events, receiver) = mpsc::channel(QUEUE);
        let (sender, mut progress) = mpsc::channel::<Progress>(QUEUE);
        let agents = self.world.agents.clone();
        let output = events.clone();
        tokio::spawn(async move {
            let call = agents.run_step(&machine.name, machine.incarnation, request, sender);
            let forward = async move {
                while let Some(progress) = progress.recv().await {
                    // Nobody reads any more: the other half below sees it.
                    let _ = output.send(NodeEvent::Progress(progress)).await;
                }
            };
            let both = async { tokio::join!(call, forward).0 };
            let result = tokio::select! {
                result = both => result,
                // Whoever asked has gone: dropping the call cancels the step.
                () = events.closed() => return,
            };
            let last = match result {
                Ok(result) => {
                    ending.set(outcome(&result));
                    NodeEvent::Result(Box::new(result))
                }
                Err(error) => {
                    let message = ErrorChain(&error).to_string();
                    ending.set(format!("failed: {message}"));
                    NodeEvent::Lost(message)
                }
            };
            drop(ending);
            let _ = events.send(last).await; // nobody reads: nothing to tell
        });
        stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|event| (event, receiver))
        })
        .boxed()
    }

    pub(super) async fn machine_record(&self, name: &MachineName) -> ServiceResult<Machine> {
        let found = self.records.get(name.as_str()).await?;
        found.ok_or_else(|| ServiceError::NotFound {
            kind: "node",
            name: name.to_string(),
        })
    }
}

/// How a step ended, for the audit log.
fn outcome(result: &StepResult) -> String {
    match (&result.outcome, &result.payload) {
        (Outcome::Converged | Outcome::Changed, Payload::Exit(code)) => format!("exit {code}"),
        (Outcome::Converged | Outcome::Changed, _) => "done".to_owned(),
        (Outcome::Failed { message, .. }, _) => format!("failed: {message}"),
        (Outcome::Refused { message, .. }, _) => format!("refused: {message}"),
        (Outcome::Unknown { message, .. }, _) => format!("unknown: {message}"),
    }
}

/// Says on the machine who asked.
fn labels(caller: &Caller) -> BTreeMap<String, String> {
    [(OPERATOR, &caller.operator), (REQUEST, &caller.request)]
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .into()
}
