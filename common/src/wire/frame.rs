//! Frames: how bodies follow one another on a stream.
//!
//! ```text
//! kind: u16 big endian | length: u32 big endian | body: length bytes
//! ```

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::codec::{self, CodecError};
use super::message::Body;

/// A kind with this bit is skipped by a peer that does not know it.
pub const OPTIONAL: u16 = 0x8000;
/// Bytes before the body.
pub const HEADER_BYTES: usize = 6;

/// One frame as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the body is.
    pub kind: u16,
    /// The encoded body.
    pub body: Vec<u8>,
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed.
    #[error("the stream failed")]
    Io(#[source] io::Error),
    /// The stream ended where a frame was due.
    #[error("the peer closed the stream where a frame was due")]
    Closed,
    /// Begun, and not ended in time.
    #[error("a frame that the peer began did not end within {limit:?}")]
    TooSlow {
        /// How long it had.
        limit: Duration,
    },
    /// Longer than allowed here.
    #[error("a frame of kind {kind:#06x} announces {bytes} bytes, {max} are allowed here")]
    TooLong {
        /// Kind announced.
        kind: u16,
        /// Length announced.
        bytes: usize,
        /// Limit in bytes.
        max: usize,
    },
    /// Not the kind that is due here.
    #[error("a frame of kind {got:#06x} arrived where {want:#06x} was due")]
    Unexpected {
        /// Kind that arrived.
        got: u16,
        /// Kind that was due.
        want: u16,
    },
    /// The body is not what the kind says.
    #[error("a frame of kind {kind:#06x} does not hold what its kind says")]
    Body {
        /// Kind that arrived.
        kind: u16,
        /// Cause.
        #[source]
        source: CodecError,
    },
}

impl FrameError {
    /// Who acts: a broken stream is tried again, bytes that make no sense are a defect of a peer.
    pub fn class(&self) -> crate::error::ErrorClass {
        match self {
            FrameError::Io(_) | FrameError::Closed | FrameError::TooSlow { .. } => {
                crate::error::ErrorClass::Retry
            }
            FrameError::TooLong { .. }
            | FrameError::Unexpected { .. }
            | FrameError::Body { .. } => crate::error::ErrorClass::Bug,
        }
    }
}

impl Frame {
    /// Puts a body into a frame.
    pub fn of<B: Body>(body: &B) -> Result<Frame, FrameError> {
        let body = codec::encode(body).map_err(|source| FrameError::Body {
            kind: B::KIND,
            source,
        })?;
        Ok(Frame {
            kind: B::KIND,
            body,
        })
    }

    /// Takes the body out, if the frame is of its kind.
    pub fn body<B: Body>(&self) -> Result<B, FrameError> {
        if self.kind != B::KIND {
            return Err(FrameError::Unexpected {
                got: self.kind,
                want: B::KIND,
            });
        }
        codec::decode(&self.body).map_err(|source| FrameError::Body {
            kind: self.kind,
            source,
        })
    }

    /// The frame's bytes, for a datagram or a golden test.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.body.len());
        bytes.extend_from_slice(&self.kind.to_be_bytes());
        // A frame is made by `of` or `read`, which both cap the body far below 4 GiB.
        bytes.extend_from_slice(
            &u32::try_from(self.body.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// Parses a datagram: exactly one frame of at most `max` body bytes.
    pub fn from_datagram(bytes: &[u8], max: usize) -> Result<Frame, FrameError> {
        let (header, body) = bytes
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or(FrameError::Closed)?;
        let (kind, length) = parse_header(header);
        if length > max || length != body.len() {
            return Err(FrameError::TooLong {
                kind,
                bytes: length.max(body.len()),
                max,
            });
        }
        Ok(Frame {
            kind,
            body: body.to_vec(),
        })
    }
}

/// Writes one body as a frame.
pub async fn write<B: Body>(
    stream: &mut (impl AsyncWrite + Unpin),
    body: &B,
) -> Result<(), FrameError> {
    stream
        .write_all(&Frame::of(body)?.to_bytes())
        .await
        .map_err(FrameError::Io)
}

/// Writes a frame that is already made.
pub async fn send(stream: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> Result<(), FrameError> {
    stream
        .write_all(&frame.to_bytes())
        .await
        .map_err(FrameError::Io)
}

/// Reads the next frame of at most `max` body bytes, skipping nothing; `None` at a clean end.
///
/// Not cancellation safe: a call dropped in the middle loses the bytes it has read.
pub async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> Result<Option<Frame>, FrameError> {
    match begin(stream).await? {
        Some(first) => rest(first, stream, max).await.map(Some),
        None => Ok(None),
    }
}

/// [`read`], of a peer that may begin a frame and never end it: it has `limit` from the first byte on.
pub async fn read_within(
    stream: &mut (impl AsyncRead + Unpin),
    max: usize,
    limit: Duration,
) -> Result<Option<Frame>, FrameError> {
    let Some(first) = begin(stream).await? else {
        return Ok(None);
    };
    timeout(limit, rest(first, stream, max))
        .await
        .unwrap_or(Err(FrameError::TooSlow { limit }))
        .map(Some)
}

/// Waits for the first byte of the next frame.
async fn begin(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<u8>, FrameError> {
    let mut first = [0];
    let read = stream.read(&mut first).await.map_err(FrameError::Io)?;
    Ok((read > 0).then_some(first[0]))
}

async fn rest(
    first: u8,
    stream: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> Result<Frame, FrameError> {
    let mut header = [first; HEADER_BYTES];
    stream
        .read_exact(&mut header[1..])
        .await
        .map_err(FrameError::Io)?;
    let (kind, length) = parse_header(&header);
    if length > max {
        return Err(FrameError::TooLong {
            kind,
            bytes: length,
            max,
        });
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(FrameError::Io)?;
    Ok(Frame { kind, body })
}

/// Reads the one body that is due here; unknown optional frames before it are skipped.
pub async fn expect<B: Body>(
    stream: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> Result<B, FrameError> {
    loop {
        let frame = read(stream, max).await?.ok_or(FrameError::Closed)?;
        if frame.kind != B::KIND && frame.kind & OPTIONAL != 0 {
            continue;
        }
        return frame.body();
    }
}

fn parse_header(header: &[u8; HEADER_BYTES]) -> (u16, usize) {
    let [k0, k1, l0, l1, l2, l3] = *header;
    (
        u16::from_be_bytes([k0, k1]),
        u32::from_be_bytes([l0, l1, l2, l3]) as usize,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::{KINDS, Tune};

    #[tokio::test]
    async fn frames_follow_one_another_and_unknown_optional_ones_are_skipped() {
        let tune = Tune {
            heartbeat_interval_ms: 500,
            report_interval_ms: 2000,
        };
        let unknown = Frame {
            kind: OPTIONAL | 0x77,
            body: vec![1, 2, 3],
        };
        let mut bytes = unknown.to_bytes();
        bytes.extend(Frame::of(&tune).unwrap().to_bytes());
        let mut stream = bytes.as_slice();
        assert_eq!(expect::<Tune>(&mut stream, 100).await.unwrap(), tune);
        assert_eq!(read(&mut stream, 100).await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_announced_length_over_the_limit_is_refused_before_it_is_read() {
        let mut bytes = vec![0, 0x12];
        bytes.extend(u32::MAX.to_be_bytes());
        let refused = read(&mut bytes.as_slice(), 100).await;
        assert!(matches!(refused, Err(FrameError::TooLong { max: 100, .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_may_be_long_in_coming_and_not_in_ending() {
        const LIMIT: Duration = Duration::from_secs(10);
        let frame = Frame {
            kind: 0x12,
            body: vec![7; 3],
        };
        let bytes = frame.to_bytes();
        for (pause, in_time) in [(LIMIT / 9, true), (LIMIT / 7, false)] {
            let (mut peer, mut stream) = tokio::io::duplex(1);
            let dripping = bytes.clone();
            tokio::spawn(async move {
                tokio::time::sleep(10 * LIMIT).await;
                for byte in dripping {
                    peer.write_all(&[byte]).await.unwrap();
                    tokio::time::sleep(pause).await;
                }
            });
            match read_within(&mut stream, 100, LIMIT).await {
                Ok(read) => assert!(in_time && read.as_ref() == Some(&frame), "{read:?}"),
                Err(FrameError::TooSlow { limit }) => assert!(!in_time && limit == LIMIT),
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn no_kind_is_used_twice() {
        let mut kinds: Vec<u16> = KINDS.iter().map(|(kind, _)| *kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), KINDS.len());
    }
}
