//! Artifacts from the director, from any byte on.

use std::ops::Deref;

use quinn::RecvStream;
use tokio::sync::watch;

use windlass_common::error::ErrorClass;
use windlass_common::id::Digest;
use windlass_common::limits::{CHUNK_BYTES, FRAME_BYTES_MAX};
use windlass_common::wire::frame::{self, FrameError};
use windlass_common::wire::message::{ArtifactHeader, ArtifactRequest, Body, Refusal, RefusalCode};

use super::Live;

/// Why an artifact does not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The link is not running any more.
    #[error("the link to the director has stopped")]
    Stopped,
    /// The connection broke; ask again from the byte reached.
    #[error("the transfer of {digest} broke; it goes on over the next connection")]
    Lost {
        /// Which artifact.
        digest: Digest,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The director does not give it.
    #[error("the director does not give {digest} ({code:?}): {message}")]
    Refused {
        /// Which artifact.
        digest: Digest,
        /// Kind of reason.
        code: RefusalCode,
        /// The director's words.
        message: String,
    },
    /// The answer makes no sense.
    #[error("the director's answer about {digest} makes no sense")]
    Protocol {
        /// Which artifact.
        digest: Digest,
        /// Cause.
        #[source]
        source: FrameError,
    },
}

impl FetchError {
    /// Who acts. `Retry`: ask again from the byte reached.
    pub fn class(&self) -> ErrorClass {
        match self {
            FetchError::Stopped | FetchError::Lost { .. } => ErrorClass::Retry,
            FetchError::Refused { .. } => ErrorClass::Operator,
            FetchError::Protocol { .. } => ErrorClass::Bug,
        }
    }
}

/// The bytes of an artifact as they arrive.
#[derive(Debug)]
pub struct ArtifactStream {
    digest: Digest,
    bytes: u64,
    left: u64,
    recv: RecvStream,
}

impl ArtifactStream {
    /// Length of the whole artifact in bytes, as the director says.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next bytes, at most [`CHUNK_BYTES`]; `None` when all have come.
    ///
    /// Cancellation safe.
    pub async fn chunk(
        &mut self,
    ) -> Result<Option<impl Deref<Target = [u8]> + Send + use<>>, FetchError> {
        let chunk = self.recv.read_chunk(CHUNK_BYTES, true).await;
        match chunk {
            Ok(Some(chunk)) => {
                let length = chunk.bytes.len() as u64;
                if length > self.left {
                    return Err(FetchError::Protocol {
                        digest: self.digest,
                        source: FrameError::TooLong {
                            kind: ArtifactHeader::KIND,
                            bytes: chunk.bytes.len(),
                            max: usize::try_from(self.left).unwrap_or(usize::MAX),
                        },
                    });
                }
                self.left -= length;
                Ok(Some(chunk.bytes))
            }
            Ok(None) if self.left == 0 => Ok(None),
            Ok(None) => Err(lost(self.digest, FrameError::Closed)),
            Err(error) => Err(lost(self.digest, error)),
        }
    }
}

pub(super) async fn fetch(
    mut current: watch::Receiver<Option<Live>>,
    digest: Digest,
    offset: u64,
) -> Result<ArtifactStream, FetchError> {
    let live = current
        .wait_for(Option::is_some)
        .await
        .map_err(|_| FetchError::Stopped)?
        .clone();
    // `wait_for` returned because there is one.
    let Live { connection, .. } = live.ok_or(FetchError::Stopped)?;
    let failed = |source: FrameError| match source {
        FrameError::Io(_) | FrameError::Closed => lost(digest, source),
        FrameError::TooLong { .. } | FrameError::Unexpected { .. } | FrameError::Body { .. } => {
            FetchError::Protocol { digest, source }
        }
    };
    let (mut send, mut recv) = connection
        .open_bi()
        .await
        .map_err(|source| lost(digest, source))?;
    frame::write(&mut send, &ArtifactRequest { digest, offset })
        .await
        .map_err(failed)?;
    // Fails only if the connection is gone, which the read reports.
    let _ = send.finish();
    let frame = frame::read(&mut recv, FRAME_BYTES_MAX)
        .await
        .and_then(|frame| frame.ok_or(FrameError::Closed))
        .map_err(failed)?;
    if frame.kind == Refusal::KIND {
        let refusal: Refusal = frame.body().map_err(failed)?;
        return Err(FetchError::Refused {
            digest,
            code: refusal.code,
            message: refusal.message.chars().take(500).collect(),
        });
    }
    let ArtifactHeader { bytes } = frame.body().map_err(failed)?;
    Ok(ArtifactStream {
        digest,
        bytes,
        left: bytes.saturating_sub(offset),
        recv,
    })
}

fn lost(digest: Digest, source: impl std::error::Error + Send + Sync + 'static) -> FetchError {
    FetchError::Lost {
        digest,
        source: Box::new(source),
    }
}
