//! Handshakes that are begun and left: strangers with addresses of their own, who prove them when asked, and say no
//! more once they are answered. One that repeated itself would begin anew each time that its handshake has given way
//! to another one: three quarters of the director's places would be taken by those that had one already.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, EndpointConfig, UdpPoller};
use tokio::time::sleep;
use windlass_common::limits::FAILURES_PER_SOURCE;
use windlass_common::pki::gateway_name;
use windlass_common::settings::Settings;
use windlass_common::transport;

use crate::identity;

/// Pause between two looks at what was answered.
const LOOK: Duration = Duration::from_millis(2);
/// Handshakes from one address: fewer than it may fail with before it is refused unseen.
const EACH: usize = FAILURES_PER_SOURCE.burst as usize / 2;
/// How long nothing has to move before others begin instead of those that are not answered: one that the director did not come to is dropped by it, and
/// gives up itself.
const IN_VAIN: Duration = Duration::from_secs(1);
/// How long nothing may move.
const PATIENCE: Duration = Duration::from_secs(20);

/// Handshakes that stand half open for as long as the other end bears them.
pub(crate) struct HalfOpen {
    _connecting: Vec<quinn::Connecting>,
    _endpoints: Vec<quinn::Endpoint>,
}

/// Begins handshakes, at most `at_once` of them unanswered, until `count` are answered, and leaves each when its server
/// has answered with its own part. One in ten may be begun in vain: the director serves the newest first, and a stranger
/// that it does not come to in time is dropped.
pub(crate) async fn run(
    settings: &Settings,
    dir: &Path,
    address: SocketAddr,
    count: usize,
    at_once: usize,
) -> Result<HalfOpen> {
    let config = transport::client_config(identity::tls(dir, settings)?)?;
    let name = gateway_name(&settings.director_id);
    let most = count + count / 10;
    let (endpoints, ears): (Vec<_>, Vec<_>) = (0..most.div_ceil(EACH))
        .map(stranger)
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .unzip();
    let mut connecting = Vec::with_capacity(most);
    let (mut answered, mut moved) = (0, Instant::now());
    while answered < count {
        let begun = connecting.len();
        let (end, unanswered) = match moved.elapsed() > IN_VAIN {
            true => (most, 2 * at_once),
            false => (count, at_once),
        };
        if begun < end && begun < answered + unanswered {
            let endpoint = &endpoints[begun / EACH];
            connecting.push(endpoint.connect_with(config.clone(), address, &name)?);
            // So that the packet leaves.
            tokio::task::yield_now().await;
            continue;
        }
        sleep(LOOK).await;
        let now = ears.iter().map(|deaf| deaf.answered()).sum();
        if now > answered {
            (answered, moved) = (now, Instant::now());
        } else if moved.elapsed() > PATIENCE {
            bail!("{answered} of {count} handshakes were answered, and then no more");
        }
    }
    Ok(HalfOpen {
        _connecting: connecting,
        _endpoints: endpoints,
    })
}

/// One on an address of its own: all of 127.0.0.0/8 is this host.
fn stranger(number: usize) -> Result<(quinn::Endpoint, Arc<Deaf>)> {
    let address = Ipv4Addr::from(0x7f01_0001 + u32::try_from(number)?);
    let runtime = quinn::default_runtime().context("no runtime")?;
    let socket = UdpSocket::bind((address, 0)).context("cannot open a socket")?;
    let deaf = Arc::new(Deaf {
        inner: runtime.wrap_udp_socket(socket)?,
        answered: Mutex::default(),
    });
    let socket = Arc::clone(&deaf) as Arc<dyn AsyncUdpSocket>;
    let settings = EndpointConfig::default();
    let endpoint = quinn::Endpoint::new_with_abstract_socket(settings, None, socket, runtime)?;
    Ok((endpoint, deaf))
}

/// A socket that lets the question for an address through, notes who was answered otherwise, and brings nothing of
/// those any more.
struct Deaf {
    inner: Arc<dyn AsyncUdpSocket>,
    answered: Mutex<HashSet<Vec<u8>>>,
}

impl Deaf {
    fn answered(&self) -> usize {
        let answered = self.answered.lock();
        answered.unwrap_or_else(PoisonError::into_inner).len()
    }

    fn note(&self, datagram: &[u8]) {
        if let Some((id, _)) = ids(datagram) {
            let answered = self.answered.lock();
            let mut answered = answered.unwrap_or_else(PoisonError::into_inner);
            answered.insert(id.to_vec());
        }
    }

    /// Whether the one that says this was answered.
    fn says_no_more(&self, datagram: &[u8]) -> bool {
        let answered = self.answered.lock();
        let answered = answered.unwrap_or_else(PoisonError::into_inner);
        ids(datagram).is_some_and(|(_, id)| answered.contains(id))
    }
}

/// RFC 9000, 17.2.5: a long header of type 3.
fn is_retry(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0xf0 == 0xf0)
}

/// Whom a long header (RFC 9000, 17.2) is for, and who says it: the connection ids.
fn ids(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = (datagram.first()?, datagram.get(5..)?);
    let (length, rest) = rest.split_first()?;
    let (destination, rest) = rest.split_at_checked(usize::from(*length))?;
    let (length, rest) = rest.split_first()?;
    let source = rest.get(..usize::from(*length))?;
    (first & 0x80 != 0).then_some((destination, source))
}

impl fmt::Debug for Deaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl AsyncUdpSocket for Deaf {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // What leaves at once is of one connection.
        if self.says_no_more(transmit.contents) {
            return Ok(());
        }
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(cx, bufs, meta))?;
        for (buffer, meta) in bufs.iter().zip(meta.iter_mut()).take(count) {
            // Datagrams that arrived together are of one length, the last one may be shorter.
            let datagrams = &buffer[..meta.len.min(buffer.len())];
            if is_retry(datagrams) {
                continue;
            }
            for datagram in datagrams.chunks(meta.stride.max(1)) {
                self.note(datagram);
            }
            meta.len = 0;
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
