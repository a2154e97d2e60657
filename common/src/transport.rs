//! QUIC settings of both ends of the link, and the codes with which one closes it.
//!
//! Congestion control is CUBIC, quinn's default: its BBR is experimental and gains nothing on the
//! links between a director and its machines.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{hkdf, hmac};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ConnectionError, ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, TransportConfig, VarInt,
};
use quinn_proto::InvalidCid;

use crate::limits::{
    ADDRESS_PROOF_LIFE, DATAGRAM_BUFFER_BYTES, ENROLL_FRAME_BYTES_MAX, FIRST_FLIGHT_BYTES_MAX,
    FROM_AGENT_WINDOW_BYTES, HANDSHAKES_WAITING_MAX, LINK_IDLE_TIMEOUT, PEER_CONNECTIONS_MAX,
    PEER_IDLE_TIMEOUT, PEER_RECEIVE_WINDOW_BYTES, PEER_SEND_WINDOW_BYTES,
    STREAM_FROM_AGENT_WINDOW_BYTES, STREAM_TO_AGENT_WINDOW_BYTES, STREAMS_FROM_AGENT_MAX,
    STREAMS_TO_AGENT_MAX, TO_AGENT_WINDOW_BYTES,
};
use crate::tls::TlsError;

/// Why one end closes the link; the other end acts on it. Codes are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// All is said.
    Done,
    /// The director restarts: come back at once.
    Shutdown,
    /// A newer connection of the same machine took over.
    Superseded,
    /// The incarnation is not current.
    Revoked,
    /// A certificate is needed here.
    Unauthenticated,
    /// No protocol version in common.
    Version,
    /// Bytes that make no sense.
    Malformed,
    /// Too many peers; come back later.
    Busy,
    /// The certificate expired and was not renewed.
    Expired,
    /// The peer was too slow.
    TimedOut,
}

impl Close {
    const ALL: [(Close, u32, &str); 10] = [
        (Close::Done, 0, "done"),
        (
            Close::Shutdown,
            1,
            "the director restarts, come back at once",
        ),
        (
            Close::Superseded,
            2,
            "a newer connection of this machine took over",
        ),
        (Close::Revoked, 3, "this incarnation is not current"),
        (Close::Unauthenticated, 4, "a certificate is needed here"),
        (Close::Version, 5, "no protocol version in common"),
        (Close::Malformed, 6, "bytes that make no sense"),
        (Close::Busy, 7, "too many peers, come back later"),
        (
            Close::Expired,
            8,
            "the certificate expired and was not renewed",
        ),
        (Close::TimedOut, 9, "the peer was too slow"),
    ];

    fn row(self) -> (Close, u32, &'static str) {
        // Every variant has a row; a test says so.
        Close::ALL
            .into_iter()
            .find(|(close, ..)| *close == self)
            .unwrap_or(Close::ALL[0])
    }

    /// The application error code.
    pub fn code(self) -> VarInt {
        VarInt::from_u32(self.row().1)
    }

    /// Closes a connection for this reason.
    pub fn close(self, connection: &quinn::Connection) {
        connection.close(self.code(), self.row().2.as_bytes());
    }

    /// Why the peer closed, if it said so in a code of ours.
    pub fn of(error: &ConnectionError) -> Option<Close> {
        let ConnectionError::ApplicationClosed(closed) = error else {
            return None;
        };
        Close::ALL
            .into_iter()
            .find(|(_, code, _)| VarInt::from_u32(*code) == closed.error_code)
            .map(|(close, ..)| close)
    }
}

impl fmt::Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.row().2)
    }
}

/// The director's end. A peer that is not yet authenticated may open one stream and send one small
/// frame on it; [`open_up`] lifts that.
pub fn server_config(tls: rustls::ServerConfig) -> Result<quinn::ServerConfig, TlsError> {
    let crypto = QuicServerConfig::try_from(tls).map_err(|_| TlsError::Provider)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = base();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(STREAM_FROM_AGENT_WINDOW_BYTES))
        .send_window(u64::from(TO_AGENT_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(2 * ENROLL_FRAME_BYTES_MAX as u32));
    // With it each connection keeps a buffer of ten packets from its handshake on: 13 KiB, a quarter of
    // what a session costs, for bulk that few sessions send at a time.
    transport.enable_segmentation_offload(false);
    config
        .transport_config(Arc::new(transport))
        // Beyond it quinn refuses by itself; those that wait and those not yet looked at.
        .max_incoming(2 * HANDSHAKES_WAITING_MAX)
        .retry_token_lifetime(ADDRESS_PROOF_LIFE)
        // So that peers that repeat themselves take no room from the second packet of another one, without which
        // its handshake stands still once it has begun.
        .incoming_buffer_size(FIRST_FLIGHT_BYTES_MAX as u64)
        .incoming_buffer_size_total((HANDSHAKES_WAITING_MAX * FIRST_FLIGHT_BYTES_MAX) as u64);
    Ok(config)
}

/// Has the proofs of address that a director asks for (QUIC Retry) outlive it: an agent proves its address once
/// in an attempt, and one whose proof a director that was started again does not know would wait in vain.
pub fn keep_proofs(config: &mut quinn::ServerConfig, secret: &[u8; 32]) {
    config.token_key(Arc::new(proof_key(secret)));
}

fn proof_key(secret: &[u8; 32]) -> hkdf::Prk {
    hkdf::Salt::new(hkdf::HKDF_SHA256, b"windlass proofs of address").extract(secret)
}

/// The director's socket. From the same secret come the same reset tokens: a director that was
/// killed tells its agents with one packet each that it knows them no more, and they come back at
/// their next heartbeat instead of after the idle timeout.
///
/// From the secret also come the connection ids, so that a packet of a connection that no director of
/// this secret ever had is dropped without an answer; `stray` is called for each.
pub fn server_endpoint(secret: &[u8; 32], stray: Arc<dyn Fn() + Send + Sync>) -> EndpointConfig {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let ids = hmac::sign(&key, b"windlass connection ids");
    let ids = hmac::Key::new(hmac::HMAC_SHA256, ids.as_ref());
    let mut config = EndpointConfig::new(Arc::new(key));
    config
        .cid_generator(move || {
            Box::new(SignedIds {
                key: ids.clone(),
                stray: Arc::clone(&stray),
            })
        })
        // Each packet has its answer, a shorter one: quinn has one time for all that it reads at once,
        // so that with any interval a fleet that beats together has one answer for 32 of them.
        .min_reset_interval(Duration::ZERO);
    config
}

/// Random connection ids that end in a part of their own MAC. Quinn's own are keyed by a random number
/// of the process, and packets with an id of another process are dropped there instead of being
/// answered by a reset.
struct SignedIds {
    key: hmac::Key,
    stray: Arc<dyn Fn() + Send + Sync>,
}

/// Half of what lies between the smallest packet of QUIC, 1200 bytes, and the largest of an Ethernet, 1452.
const MTU_STEP_BYTES: u16 = 126;

const CONNECTION_ID_BYTES: usize = 8;
/// Of these random: 20 000 connections of a few ids each meet by chance once in hundreds of fleets,
/// and then another one is drawn. The other 3 bytes let one of 16 million random packets through.
const CONNECTION_ID_RANDOM_BYTES: usize = 5;

impl SignedIds {
    fn sign(&self, id: &mut [u8; CONNECTION_ID_BYTES]) {
        let (random, mac) = id.split_at_mut(CONNECTION_ID_RANDOM_BYTES);
        let signed = hmac::sign(&self.key, random);
        mac.copy_from_slice(&signed.as_ref()[..mac.len()]);
    }
}

impl ConnectionIdGenerator for SignedIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_BYTES];
        // The kernel's random source does not fail once the system is up; no TLS without it either.
        aws_lc_rs::rand::fill(&mut id[..CONNECTION_ID_RANDOM_BYTES])
            .expect("the kernel's random source works");
        self.sign(&mut id);
        ConnectionId::new(&id)
    }

    /// Asked only about packets of no connection that there is.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let mut signed = [0; CONNECTION_ID_BYTES];
        if id.len() == signed.len() {
            signed.copy_from_slice(id);
            self.sign(&mut signed);
            if signed[..] == id[..] {
                return Ok(());
            }
        }
        (self.stray)();
        Err(InvalidCid)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Gives an authenticated agent its streams and window.
pub fn open_up(connection: &quinn::Connection) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS_FROM_AGENT_MAX));
    connection.set_receive_window(VarInt::from_u32(FROM_AGENT_WINDOW_BYTES));
}

/// The agent's end. It alone keeps the connection alive, so that an idle director sends nothing.
pub fn client_config(tls: rustls::ClientConfig) -> Result<quinn::ClientConfig, TlsError> {
    let crypto = QuicClientConfig::try_from(tls).map_err(|_| TlsError::Provider)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = base();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_TO_AGENT_MAX))
        .stream_receive_window(VarInt::from_u32(STREAM_TO_AGENT_WINDOW_BYTES))
        .send_window(u64::from(FROM_AGENT_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(TO_AGENT_WINDOW_BYTES))
        // Until the handshake is over, in which nothing may be heard while others have their turn; from then on the
        // director's counts, which is shorter.
        .max_idle_timeout(IdleTimeout::try_from(ADDRESS_PROOF_LIFE).ok())
        // Two may be lost before the other end gives up.
        .keep_alive_interval(Some(LINK_IDLE_TIMEOUT / 3))
        // What agents send is small: looking for a larger packet costs four more of them, and as many answers, each
        // time that a fleet comes back.
        .mtu_discovery_config(None);
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// The end of an agent that serves its peers: one stream at a time, small windows.
pub fn peer_server_config(tls: rustls::ServerConfig) -> Result<quinn::ServerConfig, TlsError> {
    let crypto = QuicServerConfig::try_from(tls).map_err(|_| TlsError::Provider)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = peer_base();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .receive_window(VarInt::from_u32(2 * ENROLL_FRAME_BYTES_MAX as u32));
    config
        .transport_config(Arc::new(transport))
        .max_incoming(PEER_CONNECTIONS_MAX)
        .incoming_buffer_size(16 << 10)
        .incoming_buffer_size_total(64 << 10);
    Ok(config)
}

/// The end of an agent that fetches from a peer.
pub fn peer_client_config(tls: rustls::ClientConfig) -> Result<quinn::ClientConfig, TlsError> {
    let crypto = QuicClientConfig::try_from(tls).map_err(|_| TlsError::Provider)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = peer_base();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(PEER_RECEIVE_WINDOW_BYTES))
        // Peers are on one network: a probe over a bad path repeats its first packet three times within
        // its deadline.
        .initial_rtt(Duration::from_millis(50))
        .keep_alive_interval(Some(PEER_IDLE_TIMEOUT / 3));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn peer_base() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(IdleTimeout::try_from(PEER_IDLE_TIMEOUT).ok())
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(PEER_RECEIVE_WINDOW_BYTES))
        .send_window(u64::from(PEER_SEND_WINDOW_BYTES))
        .datagram_receive_buffer_size(None);
    transport
}

/// With this code the director resets its half of a step's stream to cancel the step. From protocol 2
/// on: before, the half ends with the request.
pub const STEP_CANCELLED: VarInt = VarInt::from_u32(2);

/// What goes first when a path is narrow. Datagrams, which is heartbeats, go before all streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// The control stream: health, certificates, settings.
    Control,
    /// Steps: orders, progress and results. Artifacts and tunnels follow, with quinn's default.
    Step,
}

impl Priority {
    /// Gives a stream this priority. A stream that is gone has none; who uses it notices.
    pub fn set(self, stream: &quinn::SendStream) {
        let _ = stream.set_priority(match self {
            Priority::Control => 2,
            Priority::Step => 1,
        });
    }
}

fn base() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        // An unanswered first packet goes again after three times this, and doubling: a director
        // that restarts is found again within a third of a second, and a handshake that gave way is
        // forgotten after nine times this. A slower path costs one repeated packet.
        .initial_rtt(Duration::from_millis(100))
        .max_idle_timeout(IdleTimeout::try_from(LINK_IDLE_TIMEOUT).ok())
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        .mtu_discovery_config(Some(mtu_discovery()));
    transport
}

/// A larger packet is looked for in two probes instead of four: a director has as many connections as machines, and
/// artifacts to send over a few of them.
fn mtu_discovery() -> MtuDiscoveryConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.minimum_change(MTU_STEP_BYTES);
    discovery
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_id_of_this_secret_is_known_and_no_other() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let strays = Arc::new(AtomicU32::new(0));
        let ids = |secret: u8| {
            let counter = Arc::clone(&strays);
            SignedIds {
                key: hmac::Key::new(hmac::HMAC_SHA256, &[secret; 32]),
                stray: Arc::new(move || {
                    counter.fetch_add(1, Ordering::Relaxed);
                }),
            }
        };
        let (mut before, after, other) = (ids(1), ids(1), ids(2));
        for _ in 0..100 {
            let id = before.generate_cid();
            assert_eq!(id.len(), CONNECTION_ID_BYTES);
            after.validate(&id).unwrap();
            other.validate(&id).unwrap_err();
        }
        before.validate(&ConnectionId::new(&[])).unwrap_err();
        before.validate(&ConnectionId::new(&[7; 20])).unwrap_err();
        assert_eq!(strays.load(Ordering::Relaxed), 102);
    }

    #[test]
    fn a_proof_of_address_is_known_with_this_secret_and_no_other() {
        use quinn::crypto::HandshakeTokenKey;
        let nonce = [7; 32];
        let mut proof = b"192.0.2.1".to_vec();
        let key = |secret: u8| proof_key(&[secret; 32]).aead_from_hkdf(&nonce);
        key(1).seal(&mut proof, &[]).unwrap();
        assert_eq!(key(1).open(&mut proof.clone(), &[]).unwrap(), b"192.0.2.1");
        assert!(key(2).open(&mut proof, &[]).is_err());
    }

    #[test]
    fn each_reason_has_one_code() {
        for (at, (close, code, _)) in Close::ALL.into_iter().enumerate() {
            assert_eq!(u32::try_from(at).unwrap(), code);
            assert_eq!(close.row().0, close);
            assert_eq!(close.code(), VarInt::from_u32(code));
        }
        // A new variant without a row would be printed as the first one.
        let variants = |close: Close| match close {
            Close::Done
            | Close::Shutdown
            | Close::Superseded
            | Close::Revoked
            | Close::Unauthenticated
            | Close::Version
            | Close::Malformed
            | Close::Busy
            | Close::Expired
            | Close::TimedOut => 10,
        };
        assert_eq!(variants(Close::Done), Close::ALL.len());
    }
}
