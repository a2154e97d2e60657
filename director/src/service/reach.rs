//! Sessions of operators on machines: following logs, a shell, a command with input, usage as it is.
//!
//! # Invariants
//! * Each is in the audit log twice: when it begins, with what was asked, and when it ends, with how.
//! * A session ends with its reader: dropping what is returned closes the stream, and the agent ends
//!   what it had started.

use std::time::Instant;

use futures_util::stream::{self, BoxStream, StreamExt};
use windlass_common::error::ErrorChain;
use windlass_common::id::{ClusterName, MachineName};
use windlass_common::step::Progress;
use windlass_common::wire::frame::Frame;
use windlass_common::wire::message::Body;
use windlass_common::wire::session::{
    FollowLogs, OpenShell, Origin, RunCommand, SessionEnd, SessionOutput as Output, VitalsSample,
    WatchVitals,
};

use super::{Inner, NodeEvent, ServiceError, ServiceResult};
use crate::gateway::{DeliveryError, Gateway, SessionInput, SessionOutput};
use crate::health;
use crate::model::{Caller, Machine, Usage};
use crate::store::{Act, Commit, Records};

/// Machines whose usage one request may watch: each is a stream of the link and one sample in an
/// interval, of about 300 bytes.
pub(crate) const WATCHED_MAX: usize = 512;

/// What an operator's terminal is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminal {
    /// Its kind, as in `TERM`.
    pub term: String,
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// A session under way. Says in the audit log how it ended, when it is dropped at the latest.
#[derive(Debug)]
pub struct Reach {
    /// To the machine.
    pub input: SessionInput,
    /// From the machine.
    pub output: SessionOutput,
    /// For the end.
    pub ending: Ending,
}

/// Writes the line of the audit log that says how a session ended.
#[derive(Debug)]
pub struct Ending {
    records: Records,
    caller: Caller,
    action: &'static str,
    subject: String,
    began: Instant,
    outcome: String,
}

impl Ending {
    /// Says how it ended; without, the operator has gone.
    pub fn set(&mut self, outcome: impl Into<String>) {
        self.outcome = outcome.into();
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let seconds = self.began.elapsed().as_secs();
        let mut commit = Commit::default();
        let act = Act {
            action: self.action,
            subject: &self.subject,
            detail: &format!("after {seconds} s"),
            outcome: &self.outcome,
        };
        self.records.audit_caller(&mut commit, &self.caller, act);
        let records = self.records.clone();
        // Dropped outside of a runtime only when the process ends.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = records.commit(commit).await {
                    tracing::error!(error = %ErrorChain(&error), "cannot write the audit log");
                }
            });
        }
    }
}

impl Inner {
    pub(super) async fn follow_logs(
        &self,
        name: &MachineName,
        units: Vec<String>,
        lines: u32,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, NodeEvent>> {
        let detail = format!("follows {} after {lines} lines", or_all(&units));
        let request = FollowLogs {
            origin: self.origin(caller),
            units,
            lines,
        };
        let reach = self
            .reach(name, &request, ("node.logs", &detail), caller)
            .await?;
        Ok(events(reach))
    }

    pub(super) async fn open_shell(
        &self,
        name: &MachineName,
        terminal: Terminal,
        caller: &Caller,
    ) -> ServiceResult<Reach> {
        let request = OpenShell {
            origin: self.origin(caller),
            term: terminal.term,
            rows: terminal.rows,
            columns: terminal.columns,
        };
        self.reach(name, &request, ("node.shell", "a shell as root"), caller)
            .await
    }

    pub(super) async fn run_command(
        &self,
        name: &MachineName,
        argv: Vec<String>,
        caller: &Caller,
    ) -> ServiceResult<Reach> {
        let words = argv.join(" ").chars().take(1000).collect::<String>();
        let detail = format!("with input: {words}");
        let request = RunCommand {
            origin: self.origin(caller),
            argv,
        };
        self.reach(name, &request, ("node.exec", &detail), caller)
            .await
    }

    /// Usage of machines as it is, until the stream is dropped. A machine that is away is told so once;
    /// one whose agent has no sessions is left out.
    pub(super) async fn watch_usage(
        &self,
        machines: Vec<Machine>,
        interval_ms: u32,
        subject: String,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, Usage>> {
        let detail = format!("usage of {} machine(s)", machines.len());
        let ending = self
            .note_begin("node.top", subject, &detail, caller)
            .await?;
        let request = WatchVitals {
            origin: self.origin(caller),
            interval_ms,
        };
        let gateway = self.gateway.clone();
        let each = stream::iter(machines).map(move |machine| {
            let (gateway, request) = (gateway.clone(), request.clone());
            stream::once(async move {
                let opened = gateway
                    .open_session(&machine.name, machine.incarnation, &request)
                    .await;
                match opened {
                    Ok((input, output)) => samples(gateway, machine, (input, output)),
                    Err(error) => {
                        let message = ErrorChain(&error).to_string();
                        let machine = machine.name.to_string();
                        stream::iter([Usage::Away { machine, message }]).boxed()
                    }
                }
            })
            .flatten()
            .boxed()
        });
        let each = each.flatten_unordered(WATCHED_MAX).boxed();
        Ok(stream::unfold(Some((each, ending)), usage_or_end).boxed())
    }

    pub(super) async fn watched(
        &self,
        cluster: Option<&ClusterName>,
        machine: Option<&MachineName>,
    ) -> ServiceResult<Vec<Machine>> {
        let machines = match (cluster, machine) {
            (_, Some(name)) => vec![self.machine_record(name).await?],
            (Some(name), None) => {
                self.cluster(name).await?;
                self.records.machines_of(name.as_str()).await?
            }
            (None, None) => self.records.list().await?,
        };
        if machines.len() > WATCHED_MAX {
            return Err(ServiceError::Conflict {
                message: format!(
                    "{} machines are more than can be watched at once ({WATCHED_MAX}); name a cluster",
                    machines.len()
                ),
            });
        }
        Ok(machines)
    }

    fn origin(&self, caller: &Caller) -> Origin {
        Origin {
            operator: caller.operator.clone(),
            request: caller.request.clone(),
            epoch: self.epoch.get(),
        }
    }

    /// Says in the audit log what begins; what is returned says how it ended.
    pub(super) async fn note_begin(
        &self,
        action: &'static str,
        subject: String,
        detail: &str,
        caller: &Caller,
    ) -> ServiceResult<Ending> {
        let act = Act {
            action,
            subject: &subject,
            detail,
            outcome: "",
        };
        self.note(caller, act).await?;
        Ok(Ending {
            records: self.records.clone(),
            caller: caller.clone(),
            action,
            subject,
            began: Instant::now(),
            outcome: "ended: the operator left".to_owned(),
        })
    }

    async fn reach<B: Body>(
        &self,
        name: &MachineName,
        request: &B,
        (action, detail): (&'static str, &str),
        caller: &Caller,
    ) -> ServiceResult<Reach> {
        let machine = self.machine_record(name).await?;
        let subject = format!("machine/{name}");
        let mut ending = self.note_begin(action, subject, detail, caller).await?;
        let opened = self
            .gateway
            .open_session(&machine.name, machine.incarnation, request)
            .await;
        match opened {
            Ok((input, output)) => Ok(Reach {
                input,
                output,
                ending,
            }),
            Err(error) => {
                ending.set(format!("failed: {}", ErrorChain(&error)));
                Err(unavailable(error))
            }
        }
    }
}

/// The next usage of any machine; when none of them says more, how the watching ended.
async fn usage_or_end(
    watching: Option<(BoxStream<'static, Usage>, Ending)>,
) -> Option<(Usage, Option<(BoxStream<'static, Usage>, Ending)>)> {
    let (mut each, mut ending) = watching?;
    match each.next().await {
        Some(usage) => Some((usage, Some((each, ending)))),
        None => {
            ending.set("ended: no machine is left to watch");
            None
        }
    }
}

fn or_all(units: &[String]) -> String {
    match units {
        [] => "all units".to_owned(),
        units => units.join(" "),
    }
}

fn unavailable(error: DeliveryError) -> ServiceError {
    match error {
        DeliveryError::Refused { .. } => ServiceError::Conflict {
            message: error.to_string(),
        },
        other => ServiceError::of(other.class(), "the machine cannot be reached", other),
    }
}

/// A session's output as the events of a step.
fn events(reach: Reach) -> BoxStream<'static, NodeEvent> {
    stream::unfold(Some(reach), |reach| async {
        let mut reach = reach?;
        let event = match reach.output.next().await {
            Ok(frame) => event(&frame),
            Err(error) => NodeEvent::Lost(ErrorChain(&error).to_string()),
        };
        let outcome = match &event {
            NodeEvent::Progress(_) => return Some((event, Some(reach))),
            NodeEvent::Ended(SessionEnd::Exit(code)) => format!("exit {code}"),
            NodeEvent::Ended(SessionEnd::Failed(message)) | NodeEvent::Lost(message) => {
                format!("failed: {message}")
            }
            NodeEvent::Result(_) => "done".to_owned(),
        };
        reach.ending.set(outcome);
        Some((event, None))
    })
    .boxed()
}

fn event(frame: &Frame) -> NodeEvent {
    let read = match frame.kind {
        Output::KIND => frame.body().map(|Output { stream, bytes }| {
            NodeEvent::Progress(Progress::Output { stream, bytes })
        }),
        _ => frame.body().map(NodeEvent::Ended),
    };
    read.unwrap_or_else(|error| NodeEvent::Lost(ErrorChain(&error).to_string()))
}

fn samples(
    gateway: Gateway,
    of: Machine,
    (input, output): (SessionInput, SessionOutput),
) -> BoxStream<'static, Usage> {
    let state = Some((gateway, of, input, output));
    stream::unfold(state, |state| async {
        let (gateway, of, input, mut output) = state?;
        let machine = of.name.to_string();
        let sample = match output.next().await {
            Ok(frame) => frame
                .body::<VitalsSample>()
                .map_err(|error| ErrorChain(&error).to_string()),
            Err(error) => Err(ErrorChain(&error).to_string()),
        };
        Some(match sample {
            Ok(VitalsSample { at_unix_ms, vitals }) => {
                let session = gateway.session(&of.name, of.incarnation);
                let root = session.as_ref().and_then(health::root_scope);
                let usage = Usage::Sample {
                    machine,
                    at_unix_ms,
                    measured: health::of_vitals(&vitals, root, 0),
                    vitals,
                };
                (usage, Some((gateway, of, input, output)))
            }
            Err(message) => (Usage::Away { machine, message }, None),
        })
    })
    .boxed()
}
