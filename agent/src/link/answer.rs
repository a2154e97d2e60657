//! Whether anybody answers at the director's address.
//!
//! quinn says nothing about a handshake until it is far along. A socket in between notices the first
//! datagram, so that an agent tells a director that is away from one that is busy, whose turn it waits for.
//!
//! Until the handshake is over the socket repeats what was said itself, at an even pace, and while it waits for its turn
//! it swallows QUIC's own repetitions, which come in bursts and then in ever longer pauses. So an attempt finds a
//! director that starts while it goes on as soon as a new attempt would, and a fleet that waits in line takes from its
//! director neither the time nor the room in its socket that those need whose turn it is.

use std::convert::Infallible;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, EndpointConfig, UdpPoller};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use windlass_common::limits::{KNOCK_AGAIN, KNOCK_IN_LINE};

/// What is kept of each side of a handshake, in sends: a hello is two packets, or three with a ticket, which leave in as
/// many sends or fewer.
const FLIGHT_SENDS_MAX: usize = 4;
/// Within this all packets of a hello leave; before QUIC repeats the first one, after 0.3 s.
const HELLO_LEAVES_WITHIN: Duration = Duration::from_millis(200);

/// An endpoint on a socket of its own, and the socket.
pub(super) fn endpoint(bind: SocketAddr) -> io::Result<(quinn::Endpoint, Arc<Listening>)> {
    let runtime = quinn::default_runtime()
        .ok_or_else(|| io::Error::other("a link is opened outside of a tokio runtime"))?;
    let socket = Arc::new(Listening {
        inner: runtime.wrap_udp_socket(UdpSocket::bind(bind)?)?,
        ear: Ear::default(),
        flight: Mutex::new(Flight::new(Phase::Unanswered)),
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

/// How far an attempt has come, by what was heard last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing.
    Unanswered,
    /// A Retry: the director asked for a proof of address, which it does when many come at once. This one is in line.
    InLine,
    /// Anything else: the handshake goes on, and QUIC repeats what it needs. After a long wait its pauses are long, so
    /// that what ends the handshake is repeated here as well.
    Begun,
    /// Both ends have finished it.
    Over,
}

impl Phase {
    /// Between two repetitions.
    fn pause(self) -> Duration {
        match self {
            Phase::Unanswered | Phase::Begun | Phase::Over => KNOCK_AGAIN,
            Phase::InLine => KNOCK_IN_LINE,
        }
    }
}

/// The connection id that a hello is sent to, with its length before it as it stands there (RFC 9000, section 17.2).
fn asked(hello: &[u8]) -> &[u8] {
    let end = hello.get(5).map_or(0, |bytes| 6 + usize::from(*bytes));
    hello.get(5..end).unwrap_or_default()
}

/// Whether a datagram is a Retry of QUIC version 1 (RFC 9000, section 17.2.5) that answers what was sent to this
/// connection id: it has the tag that only who has seen the hello can make (RFC 9001, section 5.8). Nobody else can have
/// an agent wait for a turn that never comes.
fn is_retry(datagram: &[u8], asked: &[u8]) -> bool {
    const KEY: [u8; 16] = 0xbe0c_690b_9f66_575a_1d76_6b54_e368_c84e_u128.to_be_bytes();
    const NONCE: [u8; 12] = [
        0x46, 0x15, 0x99, 0xd3, 0x5d, 0x63, 0x2b, 0xf2, 0x23, 0x98, 0x25, 0xbb,
    ];
    let long_retry = datagram.first().is_some_and(|first| first >> 4 == 0b1111);
    if !long_retry || datagram.get(1..5) != Some(&1_u32.to_be_bytes()[..]) {
        return false;
    }
    let (Some((said, tag)), Ok(key)) = (
        datagram.split_last_chunk::<16>(),
        UnboundKey::new(&AES_128_GCM, &KEY),
    ) else {
        return false;
    };
    let nonce = Nonce::assume_unique_for_key(NONCE);
    LessSafeKey::new(key)
        .open_in_place(nonce, Aad::from([asked, said].concat()), &mut tag.clone())
        .is_ok()
}

/// What is repeated, and whether QUIC repeats it as well.
#[derive(Debug)]
struct Flight {
    phase: Phase,
    /// When the first packet of the hello left.
    since: Option<Instant>,
    hello: Vec<Sent>,
    /// Whom the first hello was sent to; see [`asked`].
    asked: Vec<u8>,
    /// Only the first packet of the hello was sent again: whoever answers it lacks the others.
    knocked: bool,
    /// What was sent first once the handshake had begun: our end of it.
    end: Vec<Sent>,
}

impl Flight {
    fn new(phase: Phase) -> Flight {
        Flight {
            phase,
            since: None,
            hello: Vec::new(),
            asked: Vec::new(),
            knocked: false,
            end: Vec::new(),
        }
    }

    /// Whether something that QUIC sends now leaves at all. Its hello does; what it repeats of it does not, until the
    /// handshake goes on.
    fn leaves(&mut self, transmit: &Transmit<'_>, now: Instant) -> bool {
        let (flight, counts) = match self.phase {
            Phase::Over => return true,
            Phase::Begun => (&mut self.end, true),
            Phase::Unanswered | Phase::InLine => {
                if self.asked.is_empty() {
                    self.asked = asked(transmit.contents).to_vec();
                }
                let since = *self.since.get_or_insert(now);
                let within = now.saturating_duration_since(since) < HELLO_LEAVES_WITHIN;
                (&mut self.hello, within)
            }
        };
        let kept = counts && flight.len() < FLIGHT_SENDS_MAX;
        if kept {
            flight.push(Sent {
                destination: transmit.destination,
                contents: transmit.contents.to_vec(),
                segment_size: transmit.segment_size,
            });
        }
        kept || self.phase == Phase::Begun
    }

    fn hear(&mut self, datagram: &[u8]) {
        match self.phase {
            Phase::Unanswered | Phase::InLine if !is_retry(datagram, &self.asked) => {
                self.phase = Phase::Begun;
            }
            // It makes QUIC say hello anew, with the proof.
            Phase::Unanswered => {
                let asked = std::mem::take(&mut self.asked);
                *self = Flight::new(Phase::InLine);
                self.asked = asked;
            }
            // There is one for each packet of the hello, of which QUIC takes the first.
            Phase::InLine | Phase::Begun | Phase::Over => {}
        }
    }

    /// What is to be repeated now. While nobody has answered it is one packet: a director that asks for a proof of
    /// address asks for one with each.
    fn due(&mut self) -> impl Iterator<Item = &Sent> {
        let hello = match self.phase {
            Phase::Unanswered => {
                self.knocked = true;
                self.hello.get(..1).unwrap_or_default()
            }
            Phase::InLine | Phase::Begun | Phase::Over => &self.hello[..],
        };
        hello.iter().chain(&self.end)
    }

    /// What whoever has answered a knock lacks, once.
    fn missing(&mut self) -> &[Sent] {
        let lacks = std::mem::take(&mut self.knocked) && self.phase == Phase::Begun;
        if lacks {
            self.hello.get(1..).unwrap_or_default()
        } else {
            &[]
        }
    }
}

/// A socket that hears whether it is answered.
pub(super) struct Listening {
    inner: Arc<dyn AsyncUdpSocket>,
    ear: Ear,
    flight: Mutex<Flight>,
}

impl Listening {
    /// Repeats what has to be. Ends when there was no answer for `patience` from now; never, once there was.
    pub(super) async fn silence(&self, patience: Duration) {
        tokio::select! {
            biased;
            () = self.ear.silence(patience) => {}
            never = self.repeat() => match never {},
        }
    }

    /// Repeats what has to be, for as long as it is polled.
    pub(super) async fn repeat(&self) -> Infallible {
        loop {
            let phase = self.flight().phase;
            sleep(phase.pause()).await;
            // On a machine that is short of CPU time an answer may have arrived that nobody has read yet.
            yield_now().await;
            let mut flight = self.flight();
            if flight.phase == phase {
                flight.due().for_each(|sent| self.send(sent));
            }
        }
    }

    fn send(&self, sent: &Sent) {
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

    /// Both ends have finished the handshake.
    pub(super) fn over(&self) {
        *self.flight() = Flight::new(Phase::Over);
    }

    fn hear(&self, datagram: &[u8]) {
        let mut flight = self.flight();
        flight.hear(datagram);
        flight.missing().iter().for_each(|sent| self.send(sent));
        drop(flight);
        self.ear.hear();
    }

    /// Nothing panics while it holds it.
    fn flight(&self) -> std::sync::MutexGuard<'_, Flight> {
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
        if self.flight().leaves(transmit, Instant::now()) {
            self.inner.try_send(transmit)
        } else {
            Ok(())
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(cx, bufs, meta))?;
        for (buffer, meta) in bufs.iter().zip(&*meta).take(count) {
            let datagrams = &buffer[..meta.len.min(buffer.len())];
            for datagram in datagrams.chunks(meta.stride.max(1)) {
                self.hear(datagram);
            }
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

    const PATIENCE: Duration = Duration::from_secs(1);

    /// A hello to the connection id of RFC 9001, appendix A, and the Retry there that answers it.
    const HELLO: &[u8] = b"\xc0\x00\x00\x00\x01\x08\x83\x94\xc8\xf0\x3e\x51\x57\x08 hello";
    const RETRY: &[u8] = b"\xff\x00\x00\x00\x01\x00\x08\xf0\x67\xa5\x50\x2a\x42\x62\xb5token\
        \x04\xa2\x65\xba\x2e\xff\x4d\x82\x90\x58\xfb\x3f\x0f\x24\x96\xba";
    const INITIAL: &[u8] = b"\xc0\x00\x00\x00\x01\x08";

    #[test]
    fn a_retry_to_this_hello_is_told_from_everything_else() {
        let with = |at: usize, byte: u8| {
            let mut datagram = RETRY.to_vec();
            datagram[at] = byte;
            datagram
        };
        #[rustfmt::skip] // one case per line
        let cases: [(Vec<u8>, &[u8], bool); 10] = [
            (RETRY.to_vec(),          HELLO,        true),
            (RETRY.to_vec(),          INITIAL,      false), // to another one, cut off
            (RETRY.to_vec(),          b"",          false),
            (INITIAL.to_vec(),        HELLO,        false),
            (with(0, 0xef),           HELLO,        false), // of a handshake
            (with(0, 0x7f),           HELLO,        false), // a short header
            (with(4, 2),              HELLO,        false), // of another version
            (with(15, b'T'),          HELLO,        false), // by somebody else
            (RETRY[..12].to_vec(),    HELLO,        false),
            (Vec::new(),              HELLO,        false),
        ];
        for (datagram, hello, wanted) in cases {
            assert_eq!(is_retry(&datagram, asked(hello)), wanted, "{datagram:?}");
        }
    }

    /// Somebody who listens, and a socket that may send to it.
    async fn opposite() -> (tokio::net::UdpSocket, quinn::Endpoint, Arc<Listening>) {
        let director = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (endpoint, socket) = endpoint("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut poller = Arc::clone(&socket).create_io_poller();
        std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx))
            .await
            .unwrap();
        (director, endpoint, socket)
    }

    fn say(socket: &Listening, to: &tokio::net::UdpSocket, contents: &[u8]) {
        let transmit = Transmit {
            destination: to.local_addr().unwrap(),
            ecn: None,
            contents,
            segment_size: None,
            src_ip: None,
        };
        socket.try_send(&transmit).unwrap();
    }

    async fn heard(by: &tokio::net::UdpSocket, packets: usize) -> Vec<Vec<u8>> {
        let (mut buffer, mut heard) = ([0; 64], Vec::new());
        while heard.len() < packets {
            let (bytes, _) = by.recv_from(&mut buffer).await.unwrap();
            heard.push(buffer[..bytes].to_vec());
        }
        heard
    }

    #[tokio::test]
    async fn the_hello_is_repeated_at_an_even_pace_and_nothing_else_until_the_handshake_goes_on() {
        let (director, _endpoint, socket) = opposite().await;
        let first = [HELLO, b"hello, part two"];
        let proven = [b"proven, part one".as_slice(), b"proven, part two"];
        let knocks = async {
            for contents in first {
                say(&socket, &director, contents);
            }
            assert_eq!(heard(&director, 3).await, [first[0], first[1], first[0]]);
            // What QUIC repeats on its own.
            say(&socket, &director, b"again");
            assert_eq!(heard(&director, 1).await, [first[0]], "it knocks");
            socket.hear(RETRY);
            for contents in proven {
                say(&socket, &director, contents);
            }
            assert_eq!(heard(&director, 4).await, [proven, proven].concat());
            say(&socket, &director, b"again");
            socket.hear(RETRY);
            assert_eq!(heard(&director, 2).await, proven);
            socket.hear(INITIAL);
            let said = [proven[0], proven[1], b"end"];
            say(&socket, &director, b"end");
            assert_eq!(heard(&director, 1).await[0], b"end", "QUIC goes on");
            assert_eq!(heard(&director, 6).await, [said, said].concat());
        };
        tokio::select! {
            done = timeout(KNOCK_IN_LINE * 20, knocks) => done.expect("it is repeated"),
            () = socket.silence(KNOCK_AGAIN * 20) => panic!("it ends too early"),
        };
        assert!(socket.ear.has_heard());
        socket.over();
        say(&socket, &director, b"more");
        let kept = socket.flight();
        assert!(
            kept.hello.is_empty() && kept.end.is_empty(),
            "nothing is kept of it"
        );
    }

    #[tokio::test]
    async fn whoever_answers_a_knock_gets_the_rest_of_the_hello_at_once() {
        let (director, _endpoint, socket) = opposite().await;
        for contents in [b"one".as_slice(), b"two", b"three"] {
            say(&socket, &director, contents);
        }
        let knocked = async {
            let said = heard(&director, 4).await;
            assert_eq!(said, [b"one".as_slice(), b"two", b"three", b"one"]);
            socket.hear(INITIAL);
            assert_eq!(heard(&director, 2).await, [b"two".as_slice(), b"three"]);
            socket.hear(INITIAL);
        };
        tokio::select! {
            done = timeout(KNOCK_AGAIN * 20, knocked) => done.expect("it is sent"),
            () = socket.silence(KNOCK_AGAIN * 20) => panic!("it ends too early"),
        };
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
