//! Sessions: streams of the director that live as long as somebody listens. Following logs, a shell, a
//! command that reads the operator's input, usage as it is, and a snapshot of etcd on its way to a backup.
//!
//! # Invariants
//! * What a session started on the machine ends with it: when the director closes the stream, when the
//!   link breaks and when the agent stops.
//! * At most [`SESSIONS_ON_MACHINE_MAX`] at a time; a director of an older epoch gets none.
//! * A session is not journaled: it is for somebody who watches, and never comes back by itself.
//!
//! # Not here
//! Who may have one: the director says who asked, and it is logged here.

mod command;
mod logs;
mod shell;
mod snapshot;
mod vitals;

use std::sync::Arc;

use quinn::{RecvStream, SendStream};
use tokio::sync::Semaphore;

use windlass_common::limits::{CHUNK_BYTES, SESSIONS_ON_MACHINE_MAX};
use windlass_common::step::OutputStream;
use windlass_common::wire::frame::{self, Frame, FrameError};
use windlass_common::wire::message::{Body, Refusal, RefusalCode};
use windlass_common::wire::session::{
    FollowLogs, OpenShell, Origin, RunCommand, SendSnapshot, SessionEnd, SessionOpen,
    SessionOutput, WatchVitals,
};

use crate::link::Handler;

/// The sessions of a machine.
pub(crate) struct Sessions {
    handler: Arc<dyn Handler>,
    places: Semaphore,
}

/// What a session is for.
enum Request {
    Logs(FollowLogs),
    Shell(OpenShell),
    Command(RunCommand),
    Snapshot(SendSnapshot),
    Vitals(WatchVitals),
}

impl Request {
    fn read(first: &Frame) -> Result<Request, FrameError> {
        match first.kind {
            FollowLogs::KIND => first.body().map(Request::Logs),
            OpenShell::KIND => first.body().map(Request::Shell),
            RunCommand::KIND => first.body().map(Request::Command),
            SendSnapshot::KIND => first.body().map(Request::Snapshot),
            _ => first.body().map(Request::Vitals),
        }
    }

    fn origin(&self) -> &Origin {
        match self {
            Request::Logs(FollowLogs { origin, .. })
            | Request::Shell(OpenShell { origin, .. })
            | Request::Command(RunCommand { origin, .. })
            | Request::Snapshot(SendSnapshot { origin, .. })
            | Request::Vitals(WatchVitals { origin, .. }) => origin,
        }
    }

    fn what(&self) -> &'static str {
        match self {
            Request::Logs(_) => "logs",
            Request::Shell(_) => "shell",
            Request::Command(_) => "command",
            Request::Snapshot(_) => "snapshot",
            Request::Vitals(_) => "vitals",
        }
    }
}

/// How a session went.
enum Ended {
    /// It could not begin; nothing was started.
    NotBegun(String),
    /// By itself.
    Over(SessionEnd),
    /// The director closed the stream.
    Left,
}

impl Sessions {
    pub(crate) fn new(handler: Arc<dyn Handler>) -> Sessions {
        Sessions {
            handler,
            places: Semaphore::new(SESSIONS_ON_MACHINE_MAX),
        }
    }

    /// Whether a stream that begins so is one.
    pub(crate) fn begin_with(kind: u16) -> bool {
        matches!(
            kind,
            FollowLogs::KIND
                | OpenShell::KIND
                | RunCommand::KIND
                | SendSnapshot::KIND
                | WatchVitals::KIND
        )
    }

    /// Serves a session to its end.
    pub(crate) async fn serve(
        &self,
        first: &Frame,
        send: &mut SendStream,
        recv: &mut RecvStream,
    ) -> Result<(), FrameError> {
        let request = Request::read(first)?;
        let Origin {
            operator,
            request: number,
            epoch,
        } = request.origin();
        let (operator, number) = (printable(operator), printable(number));
        let what = request.what();
        let seen = self.handler.hello().epoch;
        if *epoch < seen {
            let message = format!("a director of epoch {epoch} asks; the newest seen is {seen}");
            return refuse(send, RefusalCode::Malformed, message).await;
        }
        let Ok(_place) = self.places.try_acquire() else {
            let message = format!(
                "{SESSIONS_ON_MACHINE_MAX} sessions are open on this machine; end one of them"
            );
            return refuse(send, RefusalCode::Busy, message).await;
        };
        tracing::info!(session = what, operator, request = number, "session begins");
        let ended = match &request {
            Request::Logs(logs) => logs::serve(logs, send, recv).await?,
            Request::Shell(shell) => shell::serve(shell, send, recv).await?,
            Request::Command(command) => command::serve(command, send, recv).await?,
            Request::Snapshot(request) => {
                snapshot::serve(request, &self.handler, send, recv).await?
            }
            Request::Vitals(watch) => vitals::serve(watch, &self.handler, send, recv).await?,
        };
        tracing::info!(session = what, operator, request = number, "session ends");
        match ended {
            Ended::NotBegun(message) => refuse(send, RefusalCode::Unreachable, message).await,
            Ended::Left => Ok(()),
            Ended::Over(end) => {
                frame::write(send, &end).await?;
                // Fails only if the director has gone.
                let _ = send.finish();
                Ok(())
            }
        }
    }
}

async fn refuse(
    send: &mut SendStream,
    code: RefusalCode,
    message: String,
) -> Result<(), FrameError> {
    tracing::info!(?code, message, "session refused");
    frame::write(send, &Refusal { code, message }).await?;
    let _ = send.finish();
    Ok(())
}

/// Says that the session is open.
async fn open(send: &mut SendStream) -> Result<(), FrameError> {
    frame::write(send, &SessionOpen {}).await
}

async fn output(
    send: &mut SendStream,
    stream: OutputStream,
    bytes: &[u8],
) -> Result<(), FrameError> {
    debug_assert!(bytes.len() <= CHUNK_BYTES);
    let bytes = bytes.to_vec();
    frame::write(send, &SessionOutput { stream, bytes }).await
}

/// Returns when the director has closed its side; what it sends until then is of no use.
async fn left(recv: &mut RecvStream) {
    while let Ok(Some(_)) = recv.read_chunk(CHUNK_BYTES, true).await {}
}

/// A name of the director's, fit for a line of the log.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}
