//! Sessions on machines: streams that last as long as the director holds them.
//!
//! Dropping either half closes it; the agent then ends what the session had started.

use tokio::time::timeout;

use windlass_common::error::ErrorClass;
use windlass_common::id::MachineName;
use windlass_common::limits::{FRAME_BYTES_MAX, TUNNEL_OPEN_TIMEOUT};
use windlass_common::wire::frame::{self, Frame, FrameError};
use windlass_common::wire::message::{Body, Refusal};
use windlass_common::wire::session::SessionOpen;

use super::DeliveryError;
use super::session::Session;
use super::step::{framing, lost};

/// What a machine sends in a session.
#[derive(Debug)]
pub struct SessionOutput {
    machine: MachineName,
    recv: quinn::RecvStream,
}

/// What a machine is sent in a session.
#[derive(Debug)]
pub struct SessionInput {
    send: quinn::SendStream,
}

impl SessionOutput {
    /// The next frame. Not cancellation safe.
    pub async fn next(&mut self) -> Result<Frame, DeliveryError> {
        frame::read(&mut self.recv, FRAME_BYTES_MAX)
            .await
            .and_then(|frame| frame.ok_or(FrameError::Closed))
            .map_err(|source| match source.class() {
                ErrorClass::Retry => DeliveryError::Lost {
                    machine: self.machine.clone(),
                    source: Box::new(source),
                },
                ErrorClass::Operator | ErrorClass::Bug => DeliveryError::Protocol {
                    machine: self.machine.clone(),
                    source,
                },
            })
    }
}

impl SessionInput {
    /// Sends a frame. Not cancellation safe.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), FrameError> {
        frame::send(&mut self.send, frame).await
    }
}

/// Opens a session that begins with `request`.
pub(super) async fn open<B: Body>(
    session: &Session,
    request: &B,
) -> Result<(SessionInput, SessionOutput), DeliveryError> {
    let refused = |message: String| DeliveryError::Refused {
        machine: session.identity.machine.clone(),
        message,
    };
    session.may_send(B::KIND)?;
    timeout(TUNNEL_OPEN_TIMEOUT, begin(session, request))
        .await
        .unwrap_or_else(|_| {
            Err(refused(format!(
                "no session within {TUNNEL_OPEN_TIMEOUT:?}"
            )))
        })
}

async fn begin<B: Body>(
    session: &Session,
    request: &B,
) -> Result<(SessionInput, SessionOutput), DeliveryError> {
    let failed = |source| framing(session, source);
    let (mut send, mut recv) = session
        .connection
        .open_bi()
        .await
        .map_err(|source| lost(session, source))?;
    frame::write(&mut send, request).await.map_err(failed)?;
    let answer = frame::read(&mut recv, FRAME_BYTES_MAX)
        .await
        .and_then(|frame| frame.ok_or(FrameError::Closed))
        .map_err(failed)?;
    let machine = session.identity.machine.clone();
    if answer.kind == Refusal::KIND {
        let refusal: Refusal = answer.body().map_err(failed)?;
        let message = refusal.message.chars().take(500).collect();
        return Err(DeliveryError::Refused { machine, message });
    }
    let SessionOpen {} = answer.body().map_err(failed)?;
    Ok((SessionInput { send }, SessionOutput { machine, recv }))
}
