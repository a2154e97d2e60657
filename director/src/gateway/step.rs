//! Steps and tunnels: the streams that the director opens.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use windlass_common::limits::{FRAME_BYTES_MAX, STEP_ANSWER_GRACE, TUNNEL_OPEN_TIMEOUT};
use windlass_common::step::{Progress, StepRequest, StepResult};
use windlass_common::transport::{Priority, STEP_CANCELLED};
use windlass_common::wire::frame::{self, FrameError, OPTIONAL};
use windlass_common::wire::message::{Body, Refusal, TunnelOpen, TunnelRequest, TunnelTarget};
use windlass_common::wire::step::to_frames;

use super::DeliveryError;
use super::session::{Session, Tunnel};

/// The director's half of a step's stream, once the request is on its way. Dropping it before the step
/// is over cancels the step.
struct Order {
    send: quinn::SendStream,
    over: bool,
}

impl Order {
    fn new(session: &Session, mut send: quinn::SendStream) -> Order {
        // An agent of protocol 1 knows no cancelling, and is told that nothing follows.
        let over = session.protocol < 2 && send.finish().is_ok();
        Order { send, over }
    }

    fn over(&mut self) {
        self.over = true;
        // Fails only when the stream is gone already.
        let _ = self.send.finish();
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        if !self.over {
            // On a connection that has ended nothing is sent, and the step goes on.
            let _ = self.send.reset(STEP_CANCELLED);
        }
    }
}

/// Where progress goes that nobody watches. A receiver that is kept and never read would hold the step's result up.
pub fn unwatched() -> mpsc::Sender<Progress> {
    mpsc::channel(1).0
}

/// Sends a step and waits for its result, for the step's deadline and a grace.
pub(super) async fn run(
    session: &Session,
    request: StepRequest,
    progress: mpsc::Sender<Progress>,
) -> Result<StepResult, DeliveryError> {
    let limit = Duration::from_millis(request.deadline_ms).saturating_add(STEP_ANSWER_GRACE);
    timeout(limit, exchange(session, &request, progress))
        .await
        .unwrap_or_else(|_| {
            Err(DeliveryError::Deadline {
                machine: session.identity.machine.clone(),
                step: request.id.to_string(),
                deadline_ms: request.deadline_ms,
            })
        })
}

async fn exchange(
    session: &Session,
    request: &StepRequest,
    progress: mpsc::Sender<Progress>,
) -> Result<StepResult, DeliveryError> {
    let failed = |source| framing(session, source);
    let frames = to_frames(request).map_err(failed)?;
    for frame in &frames {
        session.may_send(frame.kind)?;
    }
    let (mut send, mut recv) = session
        .connection
        .open_bi()
        .await
        .map_err(|source| lost(session, source))?;
    Priority::Step.set(&send);
    for frame in &frames {
        frame::send(&mut send, frame).await.map_err(failed)?;
    }
    let mut order = Order::new(session, send);
    loop {
        let frame = frame::read(&mut recv, FRAME_BYTES_MAX)
            .await
            .and_then(|frame| frame.ok_or(FrameError::Closed))
            .map_err(failed)?;
        match frame.kind {
            Progress::KIND => {
                let item = frame.body().map_err(failed)?;
                // Nobody listens any more: the result still counts.
                let _ = progress.send(item).await;
            }
            kind if kind != StepResult::KIND && kind & OPTIONAL != 0 => {}
            _ => {
                let result: StepResult = frame.body().map_err(failed)?;
                order.over();
                return check(session, request, result);
            }
        }
    }
}

fn check(
    session: &Session,
    request: &StepRequest,
    result: StepResult,
) -> Result<StepResult, DeliveryError> {
    if result.id == request.id {
        return Ok(result);
    }
    Err(DeliveryError::OtherStep {
        machine: session.identity.machine.clone(),
        asked: request.id.to_string(),
        answered: result.id.0.chars().take(200).collect(),
    })
}

/// Opens a stream to something on the machine.
pub(super) async fn open_tunnel(
    session: &Session,
    target: TunnelTarget,
) -> Result<Tunnel, DeliveryError> {
    timeout(TUNNEL_OPEN_TIMEOUT, connect(session, target))
        .await
        .unwrap_or_else(|_| {
            Err(DeliveryError::Refused {
                machine: session.identity.machine.clone(),
                message: format!("no tunnel within {TUNNEL_OPEN_TIMEOUT:?}"),
            })
        })
}

async fn connect(session: &Session, target: TunnelTarget) -> Result<Tunnel, DeliveryError> {
    let failed = |source| framing(session, source);
    session.may_send(TunnelRequest::KIND)?;
    let (mut send, mut recv) = session
        .connection
        .open_bi()
        .await
        .map_err(|source| lost(session, source))?;
    frame::write(&mut send, &TunnelRequest { target })
        .await
        .map_err(failed)?;
    let answer = frame::read(&mut recv, FRAME_BYTES_MAX)
        .await
        .and_then(|frame| frame.ok_or(FrameError::Closed))
        .map_err(failed)?;
    if answer.kind == Refusal::KIND {
        let refusal: Refusal = answer.body().map_err(failed)?;
        return Err(DeliveryError::Refused {
            machine: session.identity.machine.clone(),
            message: refusal.message.chars().take(500).collect(),
        });
    }
    let TunnelOpen {} = answer.body().map_err(failed)?;
    Ok(tokio::io::join(recv, send))
}

pub(super) fn lost(
    session: &Session,
    source: impl std::error::Error + Send + Sync + 'static,
) -> DeliveryError {
    DeliveryError::Lost {
        machine: session.identity.machine.clone(),
        source: Box::new(source),
    }
}

pub(super) fn framing(session: &Session, source: FrameError) -> DeliveryError {
    match source {
        FrameError::Io(_) | FrameError::Closed | FrameError::TooSlow { .. } => {
            lost(session, source)
        }
        FrameError::TooLong { .. } | FrameError::Unexpected { .. } | FrameError::Body { .. } => {
            DeliveryError::Protocol {
                machine: session.identity.machine.clone(),
                source,
            }
        }
    }
}
