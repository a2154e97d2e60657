//! What operators do on single machines: run a command, read logs.

use std::collections::BTreeMap;

use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::mpsc;
use windlass_common::error::ErrorChain;
use windlass_common::id::MachineName;
use windlass_common::step::{Collect, Exec, Progress, Step, StepId, StepRequest};
use windlass_common::wire::step::{OPERATOR, REQUEST};

use super::draft::random_u32;
use super::{Inner, NodeEvent, ServiceError, ServiceResult};
use crate::model::{Caller, Machine};
use crate::store::Act;

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
        action: &str,
        detail: &str,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, NodeEvent>> {
        let machine = self.machine_record(name).await?;
        let (high, low) = (random_u32()?, random_u32()?);
        let id = StepId(format!("{}/{high:08x}{low:08x}", step.kind()));
        let act = Act {
            action,
            subject: &format!("machine/{name}"),
            detail: &format!("{id}: {detail}"),
            outcome: "",
        };
        self.note(caller, act).await?;
        let request = StepRequest {
            id,
            epoch: self.epoch.get(),
            deadline_ms: LIMIT_MS,
            step,
            labels: labels(caller),
        };
        Ok(self.stream(machine, request))
    }

    fn stream(&self, machine: Machine, request: StepRequest) -> BoxStream<'static, NodeEvent> {
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
                Ok(result) => NodeEvent::Result(Box::new(result)),
                Err(error) => NodeEvent::Lost(ErrorChain(&error).to_string()),
            };
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

/// Says on the machine who asked.
fn labels(caller: &Caller) -> BTreeMap<String, String> {
    [(OPERATOR, &caller.operator), (REQUEST, &caller.request)]
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .into()
}
