//! Artifacts: bytes of a file from an offset on, raw after one header.

use std::io::SeekFrom;
use std::path::PathBuf;
use std::sync::Arc;

use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::time::timeout;

use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::limits::{CHUNK_BYTES, ENROLL_FRAME_BYTES_MAX, HELLO_TIMEOUT};
use windlass_common::wire::frame::{self, FrameError};
use windlass_common::wire::message::{ArtifactHeader, ArtifactRequest, Refusal, RefusalCode};

use super::counters::Reason;
use super::refuse::{Peer, frame_reason};
use super::server::Shared;
use super::session::Session;

#[derive(Debug, thiserror::Error)]
enum TransferError {
    #[error("the request for an artifact cannot be read, or the answer not be sent")]
    Frame(#[source] FrameError),
    #[error("no request within {HELLO_TIMEOUT:?}")]
    TooSlow,
    #[error("the thread that looked for the artifact is gone")]
    Thread(#[source] tokio::task::JoinError),
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the agent stopped the transfer")]
    Stopped(#[source] quinn::WriteError),
}

impl TransferError {
    fn tell(&self, shared: &Shared, session: &Session) {
        let machine = session.identity.to_string();
        let refused = match self {
            TransferError::Frame(source) => frame_reason(source).is_some(),
            TransferError::TooSlow => true,
            TransferError::Thread(_) | TransferError::Read { .. } | TransferError::Stopped(_) => {
                false
            }
        };
        if refused {
            let peer = Peer {
                address: session.connection.remote_address(),
                machine: Some(&machine),
            };
            let class = ErrorClass::Operator;
            shared
                .refusals
                .refuse(Reason::ArtifactRequest, peer, class, self);
        } else {
            tracing::info!(machine, error = %ErrorChain(self), "artifact not sent");
        }
    }
}

/// Answers one request.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    session: &Session,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    if let Err(error) = transfer(shared, session, &mut send, &mut recv).await {
        error.tell(shared, session);
        // Not finished: the agent must not take what it has for the whole.
        let _ = send.reset(quinn::VarInt::from_u32(1));
    }
}

async fn transfer(
    shared: &Arc<Shared>,
    session: &Session,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<(), TransferError> {
    let request: ArtifactRequest =
        timeout(HELLO_TIMEOUT, frame::expect(recv, ENROLL_FRAME_BYTES_MAX))
            .await
            .map_err(|_| TransferError::TooSlow)?
            .map_err(TransferError::Frame)?;
    let (gateway, identity) = (Arc::clone(shared), session.identity.clone());
    let found = tokio::task::spawn_blocking(move || {
        gateway.doors.artifacts.locate(&request.digest, &identity)
    })
    .await
    .map_err(TransferError::Thread)?;
    let Some(path) = found else {
        let message = format!("there is no artifact {}", request.digest);
        return refuse(send, RefusalCode::NotFound, message).await;
    };
    let fault = |source| TransferError::Read {
        path: path.clone(),
        source,
    };
    let mut file = tokio::fs::File::open(&path).await.map_err(fault)?;
    let bytes = file.metadata().await.map_err(fault)?.len();
    if request.offset > bytes {
        let message = format!(
            "{} has {bytes} bytes, none at {}",
            request.digest, request.offset
        );
        return refuse(send, RefusalCode::Malformed, message).await;
    }
    file.seek(SeekFrom::Start(request.offset))
        .await
        .map_err(fault)?;
    frame::write(send, &ArtifactHeader { bytes })
        .await
        .map_err(TransferError::Frame)?;
    let mut left = bytes - request.offset;
    let mut chunk = vec![0; CHUNK_BYTES];
    while left > 0 {
        let want = usize::try_from(left)
            .unwrap_or(CHUNK_BYTES)
            .min(CHUNK_BYTES);
        file.read_exact(&mut chunk[..want]).await.map_err(fault)?;
        send.write_all(&chunk[..want])
            .await
            .map_err(TransferError::Stopped)?;
        left -= want as u64;
    }
    // Fails only if the agent has gone.
    let _ = send.finish();
    Ok(())
}

async fn refuse(
    send: &mut SendStream,
    code: RefusalCode,
    message: String,
) -> Result<(), TransferError> {
    frame::write(send, &Refusal { code, message })
        .await
        .map_err(TransferError::Frame)?;
    let _ = send.finish();
    Ok(())
}
