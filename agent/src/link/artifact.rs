//! Artifacts from any byte on: from the director, or from where the director says.

use std::ops::Deref;
use std::time::Duration;

use quinn::RecvStream;
use tokio::sync::watch;

use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::id::{Digest, Incarnation, MachineName};
use windlass_common::limits::{CHUNK_BYTES, FRAME_BYTES_MAX, PEER_FAILURES_MAX};
use windlass_common::wire::frame::{self, Frame, FrameError};
use windlass_common::wire::message::{
    ArtifactAsk, ArtifactHeader, ArtifactPeers, ArtifactRequest, ArtifactWait, Body, PeerFailure,
    PeerOffer, Refusal, RefusalCode, since,
};

use super::{LinkHandle, Live};
use crate::peer::{PeerError, Served};

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
    /// Enough copies are being made: ask again.
    #[error("{digest} is being copied to other machines of the cluster; asked again in {wait:?}")]
    Later {
        /// Which artifact.
        digest: Digest,
        /// After how long.
        wait: Duration,
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
            FetchError::Stopped | FetchError::Lost { .. } | FetchError::Later { .. } => {
                ErrorClass::Retry
            }
            FetchError::Refused { .. } => ErrorClass::Operator,
            FetchError::Protocol { .. } => ErrorClass::Bug,
        }
    }
}

/// Who sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The director.
    Director,
    /// This incarnation of a machine of the same cluster.
    Peer(MachineName, Incarnation),
}

/// The bytes of an artifact as they arrive.
#[derive(Debug)]
pub struct ArtifactStream {
    digest: Digest,
    bytes: u64,
    left: u64,
    origin: Origin,
    source: Source,
}

/// Where the bytes come out.
#[derive(Debug)]
enum Source {
    Director(RecvStream),
    Peer(Served),
}

impl ArtifactStream {
    /// Length of the whole artifact in bytes, as the director says.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Who sends it.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The next bytes, at most [`CHUNK_BYTES`]; `None` when all have come.
    ///
    /// Cancellation safe.
    pub async fn chunk(
        &mut self,
    ) -> Result<Option<impl Deref<Target = [u8]> + Send + use<>>, FetchError> {
        let recv = match &mut self.source {
            Source::Director(recv) => recv,
            Source::Peer(served) => &mut served.recv,
        };
        let chunk = recv.read_chunk(CHUNK_BYTES, true).await;
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
    current: watch::Receiver<Option<Live>>,
    digest: Digest,
    offset: u64,
) -> Result<ArtifactStream, FetchError> {
    let live = connected(current).await?;
    let request = ArtifactRequest { digest, offset };
    let (first, recv) = exchange(&live.connection, digest, &request).await?;
    from_director(digest, offset, &first, recv)
}

/// Asks where it is, and goes there. What peers do wrong is told with the next question; the director
/// serves in the end.
pub(super) async fn fetch_shared(
    handle: &LinkHandle,
    digest: Digest,
    offset: u64,
    failed: &[PeerFailure],
) -> Result<ArtifactStream, FetchError> {
    let live = connected(handle.current.clone()).await?;
    let mut failed = failed.to_vec();
    if since(ArtifactAsk::KIND) > live.protocol {
        return fetch(handle.current.clone(), digest, offset).await;
    }
    // As many questions as failures can be told, and one.
    for _ in 0..=PEER_FAILURES_MAX {
        let excess = failed.len().saturating_sub(PEER_FAILURES_MAX);
        let ask = ArtifactAsk {
            digest,
            offset,
            failed: failed.split_off(excess),
        };
        let (first, recv) = exchange(&live.connection, digest, &ask).await?;
        failed = ask.failed;
        let offers = match first.kind {
            ArtifactPeers::KIND => first.body::<ArtifactPeers>(),
            ArtifactWait::KIND => {
                let ArtifactWait { wait_ms } = first.body().map_err(|e| failure(digest, e))?;
                let wait = Duration::from_millis(wait_ms.into());
                return Err(FetchError::Later { digest, wait });
            }
            _ => return from_director(digest, offset, &first, recv),
        };
        let ArtifactPeers { bytes, peers } = offers.map_err(|e| failure(digest, e))?;
        for offer in peers.into_iter().take(PEER_FAILURES_MAX) {
            match handle.peers.open(&offer, digest, offset, bytes).await {
                Ok(served) => {
                    return Ok(ArtifactStream {
                        digest,
                        bytes,
                        left: bytes.saturating_sub(offset),
                        origin: Origin::Peer(offer.machine, offer.incarnation),
                        source: Source::Peer(served),
                    });
                }
                Err(error) => failed.push(unusable(&offer, digest, &error)),
            }
        }
    }
    fetch(handle.current.clone(), digest, offset).await
}

fn unusable(offer: &PeerOffer, digest: Digest, error: &PeerError) -> PeerFailure {
    let class = error.class();
    tracing::info!(
        peer = %offer.machine, address = %offer.address, artifact = %digest, ?class,
        error = %ErrorChain(error), "a peer is of no use"
    );
    PeerFailure {
        machine: offer.machine.clone(),
        incarnation: offer.incarnation,
        fault: error.fault(),
    }
}

async fn connected(mut current: watch::Receiver<Option<Live>>) -> Result<Live, FetchError> {
    let live = current
        .wait_for(Option::is_some)
        .await
        .map_err(|_| FetchError::Stopped)?
        .clone();
    // `wait_for` returned because there is one.
    live.ok_or(FetchError::Stopped)
}

/// Asks on a stream of its own; returns the first frame of the answer.
async fn exchange(
    connection: &quinn::Connection,
    digest: Digest,
    question: &impl Body,
) -> Result<(Frame, RecvStream), FetchError> {
    let failed = |source| failure(digest, source);
    let (mut send, mut recv) = connection
        .open_bi()
        .await
        .map_err(|source| lost(digest, source))?;
    frame::write(&mut send, question).await.map_err(failed)?;
    // Fails only if the connection is gone, which the read reports.
    let _ = send.finish();
    let frame = frame::read(&mut recv, FRAME_BYTES_MAX)
        .await
        .and_then(|frame| frame.ok_or(FrameError::Closed))
        .map_err(failed)?;
    Ok((frame, recv))
}

fn from_director(
    digest: Digest,
    offset: u64,
    first: &Frame,
    recv: RecvStream,
) -> Result<ArtifactStream, FetchError> {
    let failed = |source| failure(digest, source);
    if first.kind == Refusal::KIND {
        let refusal: Refusal = first.body().map_err(failed)?;
        return Err(FetchError::Refused {
            digest,
            code: refusal.code,
            message: refusal.message.chars().take(500).collect(),
        });
    }
    let ArtifactHeader { bytes } = first.body().map_err(failed)?;
    Ok(ArtifactStream {
        digest,
        bytes,
        left: bytes.saturating_sub(offset),
        origin: Origin::Director,
        source: Source::Director(recv),
    })
}

fn failure(digest: Digest, source: FrameError) -> FetchError {
    match source {
        FrameError::Io(_) | FrameError::Closed | FrameError::TooSlow { .. } => lost(digest, source),
        FrameError::TooLong { .. } | FrameError::Unexpected { .. } | FrameError::Body { .. } => {
            FetchError::Protocol { digest, source }
        }
    }
}

fn lost(digest: Digest, source: impl std::error::Error + Send + Sync + 'static) -> FetchError {
    FetchError::Lost {
        digest,
        source: Box::new(source),
    }
}
