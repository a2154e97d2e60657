//! Reads an object piece by piece, each tried again by itself, so that a long download survives what breaks one
//! connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use hyper::body::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

use super::client::Client;
use super::error::S3Error;

/// Bytes of an object that are asked for at a time, and in memory for each that is read.
const PIECE_BYTES: usize = 4 << 20;

/// How many bytes of those that are left are asked for next.
pub(super) fn piece_bytes(left: u64) -> usize {
    usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES))
}

/// An object that is read from its first byte on.
pub(super) struct Fetch {
    client: Arc<Client>,
    key: Arc<str>,
    /// Its size, bytes.
    bytes: u64,
    /// How many of them were asked for.
    asked: u64,
    piece: Bytes,
    next: Option<BoxFuture<'static, Result<Bytes, S3Error>>>,
}

impl Fetch {
    /// An object of this size.
    pub(super) fn new(client: Arc<Client>, key: String, bytes: u64) -> Self {
        Self {
            client,
            key: key.into(),
            bytes,
            asked: 0,
            piece: Bytes::new(),
            next: None,
        }
    }
}

impl AsyncRead for Fetch {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        while own.piece.is_empty() {
            if own.asked == own.bytes && own.next.is_none() {
                return Poll::Ready(Ok(()));
            }
            let next = own.next.get_or_insert_with(|| {
                let (client, key, from) = (own.client.clone(), own.key.clone(), own.asked);
                let count = piece_bytes(own.bytes - from);
                own.asked += count as u64;
                Box::pin(async move { client.get_piece(&key, from, count).await })
            });
            let piece = ready!(next.as_mut().poll(context));
            own.next = None;
            own.piece = piece.map_err(io::Error::other)?;
        }
        let count = own.piece.len().min(buffer.remaining());
        buffer.put_slice(&own.piece.split_to(count));
        Poll::Ready(Ok(()))
    }
}
