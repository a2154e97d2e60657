//! A stream that was upgraded, with an operator's terminal on one end and a machine on the other.
//!
//! # Invariants
//! * What arrives from either end is one of the frames that belong there, and bounded; anything else ends
//!   the stream.
//! * It ends with either of its ends, and when the operator loses the role.

use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use windlass_common::error::ErrorChain;
use windlass_common::limits::CHUNK_BYTES;
use windlass_common::wire::frame::{self, FrameError};
use windlass_common::wire::message::Body;
use windlass_common::wire::session::{SessionEnd, SessionInput, SessionOutput, SessionResize};

use super::ApiState;
use super::kubernetes::UPGRADED_MAX;
use super::problem::Problem;
use crate::gateway;
use crate::service::{Reach, Standing};

/// What the upgrade is called.
pub const PROTOCOL: &str = "windlass-session";
/// Largest frame of a client: one piece of input.
const INPUT_BYTES_MAX: usize = CHUNK_BYTES + 16;

/// A request that may be upgraded, and a place for its stream.
pub(super) struct Door {
    upgrade: OnUpgrade,
    place: OwnedSemaphorePermit,
}

impl Door {
    /// # Errors
    /// When the request does not ask for this upgrade, or too many streams are open.
    pub(super) fn of(state: &ApiState, mut request: Request) -> Result<Door, Problem> {
        let asked = request.headers().get(header::UPGRADE);
        if asked.is_none_or(|protocol| protocol != PROTOCOL) {
            let message = format!("this takes `Connection: Upgrade` and `Upgrade: {PROTOCOL}`");
            return Err(Problem::new(426, "malformed", message));
        }
        let place = state.upgraded.clone().try_acquire_owned().map_err(|_| {
            let message = format!("{UPGRADED_MAX} streams are open; end one of them, or try later");
            Problem::new(503, "unavailable", message)
        })?;
        let upgrade = hyper::upgrade::on(&mut request);
        Ok(Door { upgrade, place })
    }

    /// The answer that upgrades; what follows it is relayed until it ends.
    pub(super) fn relay(self, reach: Reach, standing: Standing) -> Response {
        tokio::spawn(async move {
            let Reach {
                input,
                output,
                mut ending,
            } = reach;
            let outcome = match self.upgrade.await {
                Ok(stream) => tokio::select! {
                    outcome = both(stream, input, output) => outcome,
                    () = standing.lost() => "ended: the operator lost the role, or the CA of its certificate was dropped".to_owned(),
                },
                Err(error) => format!("ended: {error}"),
            };
            ending.set(outcome);
            drop(self.place);
        });
        let headers = [
            (header::CONNECTION, HeaderValue::from_static("Upgrade")),
            (header::UPGRADE, HeaderValue::from_static(PROTOCOL)),
        ];
        (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
    }
}

/// How it ended.
async fn both(
    stream: Upgraded,
    input: gateway::SessionInput,
    output: gateway::SessionOutput,
) -> String {
    let (from, to) = tokio::io::split(TokioIo::new(stream));
    tokio::select! {
        ended = typed(from, input) => match ended {
            Ok(()) | Err(FrameError::Io(_) | FrameError::Closed) => {
                "ended: the operator left".to_owned()
            }
            Err(error) => format!("ended: {}", ErrorChain(&error)),
        },
        ended = shown(output, to) => ended,
    }
}

async fn typed(
    mut from: impl AsyncRead + Unpin,
    mut input: gateway::SessionInput,
) -> Result<(), FrameError> {
    while let Some(frame) = frame::read(&mut from, INPUT_BYTES_MAX).await? {
        if !matches!(frame.kind, SessionInput::KIND | SessionResize::KIND) {
            return Err(FrameError::Unexpected {
                got: frame.kind,
                want: SessionInput::KIND,
            });
        }
        if input.send(&frame).await.is_err() {
            // What ran takes no more: what it sends says how it ended.
            return std::future::pending().await;
        }
    }
    Ok(())
}

async fn shown(mut output: gateway::SessionOutput, mut to: impl AsyncWrite + Unpin) -> String {
    loop {
        let frame = match output.next().await {
            Ok(frame) => frame,
            Err(error) => {
                let message = ErrorChain(&error).to_string();
                // Fails only when nobody is there to be told.
                let _ = frame::write(&mut to, &SessionEnd::Failed(message.clone())).await;
                let _ = to.shutdown().await;
                return format!("failed: {message}");
            }
        };
        let sent = frame::send(&mut to, &frame).await;
        if sent.is_err() || to.flush().await.is_err() {
            return "ended: the operator left".to_owned();
        }
        match frame.kind {
            SessionOutput::KIND => {}
            _ => {
                // What was sent is on its way whether or not this succeeds.
                let _ = to.shutdown().await;
                return match frame.body() {
                    Ok(SessionEnd::Exit(code)) => format!("exit {code}"),
                    Ok(SessionEnd::Failed(message)) => format!("failed: {message}"),
                    Err(error) => format!("failed: {}", ErrorChain(&error)),
                };
            }
        }
    }
}
