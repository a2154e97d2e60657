//! The gateway's UDP socket, which counts.
//!
//! It changes nothing on the way: quinn drops what is no packet. Here it is only noticed that
//! something was dropped.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use windlass_common::error::ErrorClass;

use super::counters::{Reason, Total};
use super::refuse::{Peer, Refusals};

/// A bit of the first byte: a long header, as the packets of a handshake have.
const LONG_HEADER: u8 = 0x80;
/// Shortest packet with a short header that names a connection: first byte and connection id. What is
/// longer is judged by that id, and counted where it does not fit.
const SHORTEST_BYTES: usize = 1 + 8;
/// QUIC version 1, the only one there is between directors and agents.
const VERSION_1: u32 = 1;

#[derive(Debug, thiserror::Error)]
#[error("a datagram of {bytes} bytes is no QUIC packet")]
struct Stray {
    bytes: usize,
}

pub(super) struct CountingSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    refusals: Arc<Refusals>,
}

impl CountingSocket {
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>, refusals: Arc<Refusals>) -> CountingSocket {
        CountingSocket { inner, refusals }
    }

    /// Counts what arrived in one buffer: datagrams of `stride` bytes, the last one shorter.
    fn received(&self, bytes: &[u8], stride: usize, from: SocketAddr) {
        let datagrams = bytes.len().div_ceil(stride.max(1)).max(1) as u64;
        let counters = &self.refusals.counters;
        counters.add(Total::DatagramsReceived, datagrams);
        counters.add(Total::BytesReceived, bytes.len() as u64);
        let empty = bytes.is_empty().then_some(bytes);
        for datagram in empty.into_iter().chain(bytes.chunks(stride.max(1))) {
            if is_stray(datagram) {
                let stray = Stray {
                    bytes: datagram.len(),
                };
                let peer = Peer::stranger(from);
                self.refusals
                    .refuse(Reason::StrayDatagram, peer, ErrorClass::Operator, &stray);
            }
        }
    }
}

/// Whether this is certainly no packet for a director. Random bytes behind a short header pass here;
/// their connection id does not fit.
fn is_stray(datagram: &[u8]) -> bool {
    match datagram {
        [first, a, b, c, d, ..] if first & LONG_HEADER != 0 => {
            u32::from_be_bytes([*a, *b, *c, *d]) != VERSION_1
        }
        _ => datagram.len() < SHORTEST_BYTES,
    }
}

impl fmt::Debug for CountingSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl AsyncUdpSocket for CountingSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)?;
        let bytes = transmit.contents.len() as u64;
        self.refusals.counters.add(Total::BytesSent, bytes);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(cx, bufs, meta))?;
        for (buffer, meta) in bufs.iter().zip(meta.iter()).take(count) {
            let end = meta.len.min(buffer.len());
            self.received(&buffer[..end], meta.stride, meta.addr);
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_packet_is_noticed() {
        let long = |version: u32, bytes: usize| {
            let mut packet = vec![0xc3; bytes];
            packet[1..5].copy_from_slice(&version.to_be_bytes());
            packet
        };
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("empty",                      vec![],                     true),
            ("one byte",                   vec![0x40],                 true),
            ("a long header cut short",    vec![0xc3, 0, 0],           true),
            ("a short header cut short",   vec![0x43; 8],              true),
            ("a short header",             vec![0x43; 9],              false),
            ("an initial packet",          long(1, 1200),              false),
            ("another version",            long(0xff00_001d, 1200),    true),
            ("a version nobody has",       long(0x1a2a_3a4a, 1200),    true),
            ("version negotiation",        long(0, 40),                true),
        ];
        for (name, datagram, stray) in cases {
            assert_eq!(is_stray(&datagram), stray, "{name}");
        }
    }
}
