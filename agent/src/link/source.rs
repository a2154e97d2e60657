//! Artifacts for steps, over whichever connection there is.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use windlass_common::error::ErrorChain;
use windlass_common::id::Digest;
use windlass_common::limits::{PEER_BYTES_PER_S_MIN, PEER_IDLE_TIMEOUT};
use windlass_common::wire::message::{PeerFault, RefusalCode};

use super::{FetchError, LinkHandle, Origin};
use crate::artifacts::ArtifactStore;
use crate::steps::fetch::{
    ArtifactSource, ArtifactStream, Chunks, NextChunk, Opening, SourceError, Wanted,
};

/// How long a peer may take before its rate is looked at.
const RATE_LOOK: Duration = Duration::from_secs(10);

/// The link as a source of artifacts. What was stored is announced.
#[derive(Debug)]
pub struct LinkArtifacts {
    link: LinkHandle,
    store: ArtifactStore,
}

impl LinkArtifacts {
    /// Fetches over this link, for this store.
    pub fn new(link: LinkHandle, store: ArtifactStore) -> LinkArtifacts {
        LinkArtifacts { link, store }
    }
}

impl ArtifactSource for LinkArtifacts {
    fn open(&self, wanted: Wanted) -> Opening<'_> {
        Box::pin(async move {
            let stream = self
                .link
                .fetch_shared(wanted.digest, wanted.offset, &wanted.failed)
                .await
                .map_err(source_error)?;
            Ok(ArtifactStream {
                bytes: stream.bytes(),
                origin: stream.origin().clone(),
                chunks: Box::new(LinkChunks {
                    stream,
                    began: Instant::now(),
                    got: 0,
                }),
            })
        })
    }

    fn stored(&self, digest: Digest) {
        self.store.add(digest);
    }
}

struct LinkChunks {
    stream: super::ArtifactStream,
    began: Instant,
    got: u64,
}

impl LinkChunks {
    async fn chunk(&mut self) -> Result<Option<Vec<u8>>, SourceError> {
        let chunk = self.stream.chunk().await.map_err(source_error)?;
        Ok(chunk.map(|bytes| bytes.to_vec()))
    }

    /// The same from a peer, which has to keep up: the director is faster than one that does not.
    async fn chunk_of_peer(&mut self) -> Result<Option<Vec<u8>>, SourceError> {
        let peer = |fault, message: String| SourceError::Peer { fault, message };
        let slow = || peer(PeerFault::Slow, format!("{} bytes so far", self.got));
        let chunk = match timeout(PEER_IDLE_TIMEOUT, self.stream.chunk()).await {
            Ok(Ok(chunk)) => chunk.map(|bytes| bytes.to_vec()),
            Ok(Err(error)) => {
                return Err(peer(PeerFault::Broke, ErrorChain(&error).to_string()));
            }
            Err(_) => return Err(slow()),
        };
        if too_slow(self.began.elapsed(), self.got) {
            return Err(slow());
        }
        self.got += chunk.as_ref().map_or(0, Vec::len) as u64;
        Ok(chunk)
    }
}

fn too_slow(elapsed: Duration, got: u64) -> bool {
    elapsed > RATE_LOOK && got < PEER_BYTES_PER_S_MIN.saturating_mul(elapsed.as_secs())
}

impl Chunks for LinkChunks {
    fn next(&mut self) -> NextChunk<'_> {
        Box::pin(async move {
            match self.stream.origin() {
                Origin::Director => self.chunk().await,
                Origin::Peer(..) => self.chunk_of_peer().await,
            }
        })
    }
}

fn source_error(error: FetchError) -> SourceError {
    let message = ErrorChain(&error).to_string();
    match &error {
        FetchError::Later { wait, .. } => SourceError::Later(*wait),
        FetchError::Refused { code, .. } if *code != RefusalCode::Busy => {
            SourceError::NotFound(message)
        }
        FetchError::Refused { .. }
        | FetchError::Stopped
        | FetchError::Lost { .. }
        | FetchError::Protocol { .. } => SourceError::Unavailable(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_given_time_before_it_is_too_slow() {
        let rate = PEER_BYTES_PER_S_MIN;
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            (1,  0,             false),
            (10, 0,             false),
            (11, 0,             true),
            (11, 11 * rate - 1, true),
            (11, 11 * rate,     false),
        ];
        for (seconds, got, wanted) in cases {
            assert_eq!(
                too_slow(Duration::from_secs(seconds), got),
                wanted,
                "{seconds} {got}"
            );
        }
    }
}
