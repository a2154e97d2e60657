//! Whether anybody answers at the director's address.
//!
//! quinn says nothing about a handshake until it is far along. A socket in between notices the first
//! datagram, so that an agent tells a director that is away, which it asks again soon, from one that is
//! busy, which it leaves in peace.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, EndpointConfig, UdpPoller};
use tokio::sync::Notify;
use tokio::time::timeout;

/// An endpoint on a socket of its own, and its ear.
pub(super) fn endpoint(bind: SocketAddr) -> io::Result<(quinn::Endpoint, Arc<Ear>)> {
    let runtime = quinn::default_runtime()
        .ok_or_else(|| io::Error::other("a link is opened outside of a tokio runtime"))?;
    let ear = Arc::new(Ear::default());
    let socket = Arc::new(Listening {
        inner: runtime.wrap_udp_socket(UdpSocket::bind(bind)?)?,
        ear: Arc::clone(&ear),
    });
    let settings = EndpointConfig::default();
    let endpoint = quinn::Endpoint::new_with_abstract_socket(settings, None, socket, runtime)?;
    Ok((endpoint, ear))
}

/// Hears the first datagram.
#[derive(Debug, Default)]
pub(super) struct Ear {
    heard: AtomicBool,
    first: Notify,
}

impl Ear {
    /// Ends when nothing was heard for `patience` from now; never, once something was.
    pub(super) async fn silence(&self, patience: Duration) {
        if timeout(patience, self.first.notified()).await.is_ok() {
            std::future::pending().await
        }
    }

    fn hear(&self) {
        if !self.heard.swap(true, Ordering::Relaxed) {
            self.first.notify_one();
        }
    }
}

struct Listening {
    inner: Arc<dyn AsyncUdpSocket>,
    ear: Arc<Ear>,
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
        self.inner.try_send(transmit)
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
