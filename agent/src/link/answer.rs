//! Whether anybody answers at the director's address.
//!
//! quinn says nothing about a handshake until it is far along. A socket in between notices the first
//! datagram, so that an agent tells a director that is away from one that is busy, whose turn it waits for.
//!
//! Until then the socket says again what was said first, at an even pace: QUIC's own doubles its pauses. So an
//! attempt finds a director that starts while it goes on as soon as a new attempt would, for a hundredth of the
//! work, and spends no session ticket.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, EndpointConfig, UdpPoller};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval, timeout};
use windlass_common::limits::KNOCK_AGAIN;

/// What is kept of the first flight, in sends: the hello of an agent is two packets, which leave in one or two.
const FLIGHT_SENDS_MAX: usize = 2;

/// An endpoint on a socket of its own, and the socket.
pub(super) fn endpoint(bind: SocketAddr) -> io::Result<(quinn::Endpoint, Arc<Listening>)> {
    let runtime = quinn::default_runtime()
        .ok_or_else(|| io::Error::other("a link is opened outside of a tokio runtime"))?;
    let socket = Arc::new(Listening {
        inner: runtime.wrap_udp_socket(UdpSocket::bind(bind)?)?,
        ear: Ear::default(),
        flight: Mutex::default(),
    });
    let (settings, ours) = (EndpointConfig::default(), Arc::clone(&socket));
    let endpoint = quinn::Endpoint::new_with_abstract_socket(settings, None, ours, runtime)?;
    Ok((endpoint, socket))
}

/// Hears the first datagram.
#[derive(Debug, Default)]
struct Ear {
    heard: AtomicBool,
    first: Notify,
}

impl Ear {
    /// Ends when nothing was heard for `patience` from now; never, once something was.
    async fn silence(&self, patience: Duration) {
        if timeout(patience, self.first.notified()).await.is_err() {
            // On a machine that is short of CPU time an answer may have arrived that nobody has read yet.
            yield_now().await;
            if !self.has_heard() {
                return;
            }
        }
        std::future::pending().await
    }

    fn has_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    fn hear(&self) {
        if !self.heard.swap(true, Ordering::Relaxed) {
            self.first.notify_one();
        }
    }
}

/// What was sent, to be sent again.
#[derive(Debug)]
struct Sent {
    destination: SocketAddr,
    contents: Vec<u8>,
    segment_size: Option<usize>,
}

/// A socket that hears whether it is answered.
pub(super) struct Listening {
    inner: Arc<dyn AsyncUdpSocket>,
    ear: Ear,
    /// Empty once something was heard.
    flight: Mutex<Vec<Sent>>,
}

impl Listening {
    /// Says again what was said first, each [`KNOCK_AGAIN`], until there is an answer. Ends when there was none for
    /// `patience` from now; never, once there was.
    pub(super) async fn silence(&self, patience: Duration) {
        let mut knocks = interval(KNOCK_AGAIN);
        knocks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one is now, when quinn says it.
        knocks.tick().await;
        let silence = self.ear.silence(patience);
        tokio::pin!(silence);
        loop {
            tokio::select! {
                biased;
                () = &mut silence => return,
                _ = knocks.tick(), if !self.ear.has_heard() => self.knock(),
            }
        }
    }

    /// Whether anything came back.
    pub(super) fn has_heard(&self) -> bool {
        self.ear.has_heard()
    }

    fn knock(&self) {
        for sent in self.flight().iter() {
            let transmit = Transmit {
                destination: sent.destination,
                ecn: None,
                contents: &sent.contents,
                segment_size: sent.segment_size,
                src_ip: None,
            };
            // One that is not sent is one that got lost.
            let _ = self.inner.try_send(&transmit);
        }
    }

    fn keep(&self, transmit: &Transmit<'_>) {
        let mut flight = self.flight();
        if self.ear.has_heard() {
            *flight = Vec::new();
        } else if flight.len() < FLIGHT_SENDS_MAX {
            flight.push(Sent {
                destination: transmit.destination,
                contents: transmit.contents.to_vec(),
                segment_size: transmit.segment_size,
            });
        }
    }

    /// Nothing panics while it holds it.
    fn flight(&self) -> std::sync::MutexGuard<'_, Vec<Sent>> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl AsyncUdpSocket for Listening {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)?;
        self.keep(transmit);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(cx, bufs, meta))?;
        self.ear.hear();
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

    const PATIENCE: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn what_was_said_first_is_said_again_at_an_even_pace_until_it_is_answered() {
        let director = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (_endpoint, socket) = endpoint("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut poller = Arc::clone(&socket).create_io_poller();
        std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx))
            .await
            .unwrap();
        let said = [b"hello, part one".as_slice(), b"hello, part two", b"again"];
        for contents in said {
            let transmit = Transmit {
                destination: director.local_addr().unwrap(),
                ecn: None,
                contents,
                segment_size: None,
                src_ip: None,
            };
            socket.try_send(&transmit).unwrap();
        }
        let hears = async {
            let (mut buffer, mut heard) = ([0; 64], Vec::new());
            while heard.len() < said.len() + 2 * FLIGHT_SENDS_MAX {
                let (bytes, _) = director.recv_from(&mut buffer).await.unwrap();
                heard.push(buffer[..bytes].to_vec());
            }
            heard
        };
        let heard = tokio::select! {
            heard = timeout(KNOCK_AGAIN * 40, hears) => heard.expect("it is said again"),
            () = socket.silence(KNOCK_AGAIN * 100) => panic!("it ends too early"),
        };
        assert_eq!(heard[..3], said);
        assert_eq!(heard[3..5], said[..2]);
        assert_eq!(heard[5..7], said[..2]);
        socket.ear.hear();
        socket.keep(&Transmit {
            destination: director.local_addr().unwrap(),
            ecn: None,
            contents: b"more",
            segment_size: None,
            src_ip: None,
        });
        assert!(socket.has_heard());
        assert!(socket.flight().is_empty(), "no memory is held for it");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_with_the_first_sound() {
        timeout(PATIENCE * 2, Ear::default().silence(PATIENCE))
            .await
            .expect("nothing was heard");
        let ear = Ear::default();
        ear.hear();
        ear.hear();
        timeout(PATIENCE * 100, ear.silence(PATIENCE))
            .await
            .expect_err("something was heard");
        let ear = Ear::default();
        let (listening, ()) = tokio::join!(timeout(PATIENCE * 100, ear.silence(PATIENCE)), async {
            tokio::time::sleep(PATIENCE / 2).await;
            ear.hear();
        });
        listening.expect_err("something was heard in time");
    }
}
