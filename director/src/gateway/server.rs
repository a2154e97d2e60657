//! The UDP port: who is let in, and what becomes of them.

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use quinn::crypto::rustls::HandshakeData;
use rustls::server::ProducesTickets;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use windlass_common::error::ErrorChain;
use windlass_common::id::{Incarnation, MachineName};
use windlass_common::limits::{
    ENROLLMENTS_MAX, GATEWAY_RECEIVE_BUFFER_BYTES, HANDSHAKE_WAITS_MAX, HANDSHAKES_MAX,
    HANDSHAKES_WAITING_MAX, HELLO_TIMEOUT, LOG_INTERVAL, STRANGERS_MAX, TICKETS_PER_CONNECTION,
};
use windlass_common::transport::{self, Close};
use windlass_common::wire::message::Tune2;
use windlass_common::wire::{ALPN, ALPN_ENROLL};
use windlass_common::{error::ErrorClass, tls};

use crate::epoch::CurrentEpoch;
use crate::pki::DirectorCa;

use super::artifacts::Artifacts;
use super::authorize::{AgentVerifier, server_door};
use super::counters::{CounterView, Reason, Total};
use super::door::{Door, GaveWay, Line, Place, Verdict};
use super::probe::Probes;
use super::refuse::{Peer, Refusals, handshake_reason};
use super::session::{Session, Sessions};
use super::socket::CountingSocket;
use super::{
    ArtifactSource, DeliveryError, EnrollmentStore, GatewayConfig, IncarnationRegistry, StartError,
    control, enroll, pace, silence,
};

/// What the gateway asks.
pub(super) struct Doors {
    pub(super) ca: Arc<DirectorCa>,
    pub(super) enrollment: Arc<dyn EnrollmentStore>,
    pub(super) registry: Arc<dyn IncarnationRegistry>,
    pub(super) artifacts: Arc<dyn ArtifactSource>,
}

/// What all connections share.
pub(super) struct Shared {
    /// Taken by `shutdown`, so that the port is free after it whoever still holds the gateway.
    endpoint: Mutex<Option<quinn::Endpoint>>,
    pub(super) config: GatewayConfig,
    /// How the fleet reports now.
    pace: watch::Sender<Tune2>,
    pub(super) doors: Doors,
    pub(super) agents: Arc<AgentVerifier>,
    pub(super) epoch: CurrentEpoch,
    pub(super) sessions: Sessions,
    pub(super) artifacts: Artifacts,
    pub(super) probes: Probes,
    pub(super) enrollments: Semaphore,
    pub(super) door: Door,
    pub(super) refusals: Arc<Refusals>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("config", &self.config)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn local_address(&self) -> io::Result<SocketAddr> {
        let endpoint = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner);
        match &*endpoint {
            Some(endpoint) => endpoint.local_addr(),
            None => Err(io::Error::other("the gateway was shut down")),
        }
    }

    pub(super) fn pace(&self) -> Tune2 {
        *self.pace.borrow()
    }

    pub(super) fn set_pace(&self, tune: Tune2) {
        self.pace.send_replace(tune);
    }

    pub(super) fn counters(&self) -> CounterView {
        let (sessions, handshakes) = (self.sessions.len(), self.door.under_way());
        let waiting = self.door.waiting();
        self.refusals
            .counters
            .snapshot(sessions, handshakes, waiting)
    }

    fn refuse_handshake(&self, reason: Reason, peer: SocketAddr, error: &NoHandshake) {
        let peer = Peer::stranger(peer);
        self.refusals
            .refuse(reason, peer, ErrorClass::Operator, error);
    }

    pub(super) fn count(&self, total: Total) {
        self.refusals.counters.count(total);
    }

    /// The session of an incarnation that is connected and current.
    pub(super) fn session(
        &self,
        machine: &MachineName,
        incarnation: Incarnation,
    ) -> Result<Arc<Session>, DeliveryError> {
        let session =
            self.sessions
                .get(machine, incarnation)
                .ok_or_else(|| DeliveryError::NotConnected {
                    machine: machine.clone(),
                    incarnation,
                })?;
        if !self.doors.registry.is_current(&session.identity) {
            return Err(DeliveryError::NotCurrent {
                machine: machine.clone(),
                incarnation,
            });
        }
        Ok(session)
    }
}

/// Binds the port and starts to accept.
pub(super) fn start(
    config: GatewayConfig,
    doors: Doors,
    epoch: CurrentEpoch,
) -> Result<Arc<Shared>, StartError> {
    let agents = AgentVerifier::new(&doors.ca, Arc::clone(&doors.registry));
    let agents = Arc::new(agents.map_err(StartError::Tls)?);
    let door = server_door(Arc::clone(&doors.ca), config.clock.clone())
        .map_err(StartError::Certificate)?;
    let mut tls = tls::gateway_server(agents.clone(), Arc::new(door)).map_err(StartError::Tls)?;
    tls.time_provider = Arc::new(config.clock.clone());
    if let Some(tickets) = &config.tickets {
        tls.ticketer = Arc::clone(tickets) as Arc<dyn ProducesTickets>;
        tls.send_tls13_tickets = TICKETS_PER_CONNECTION;
    }
    let mut server = transport::server_config(tls).map_err(StartError::Tls)?;
    config.tune.check().map_err(StartError::Tune)?;
    let listen = config.listen;
    let secret = doors.ca.derive(b"gateway endpoint");
    transport::keep_proofs(&mut server, &secret);
    let refusals = Arc::new(Refusals::default());
    let counting = Arc::clone(&refusals);
    let stray = Arc::new(move || counting.refuse_nameless(Reason::StrayDatagram));
    let endpoint = transport::server_endpoint(&secret, stray);
    let endpoint = bind(listen, endpoint, server, &refusals)
        .map_err(|source| StartError::Bind { listen, source })?;
    let artifacts = Artifacts::new(config.artifacts);
    let shared = Arc::new(Shared {
        endpoint: Mutex::new(Some(endpoint.clone())),
        pace: watch::Sender::new(config.tune),
        config,
        doors,
        agents,
        epoch,
        sessions: Sessions::default(),
        artifacts,
        probes: Probes::default(),
        enrollments: Semaphore::new(ENROLLMENTS_MAX),
        door: Door::new(),
        refusals,
    });
    tokio::spawn(silence::watch(Arc::downgrade(&shared)));
    if let Some(budget) = shared.config.heartbeat_budget {
        tokio::spawn(pace::keep(Arc::downgrade(&shared), budget));
    }
    tokio::spawn(accept(Arc::clone(&shared), endpoint));
    Ok(shared)
}

fn bind(
    listen: SocketAddr,
    endpoint: quinn::EndpointConfig,
    server: quinn::ServerConfig,
    refusals: &Arc<Refusals>,
) -> io::Result<quinn::Endpoint> {
    let socket = UdpSocket::bind(listen)?;
    widen(&socket);
    let runtime = quinn::default_runtime()
        .ok_or_else(|| io::Error::other("the gateway starts outside of a tokio runtime"))?;
    let socket = runtime.wrap_udp_socket(socket)?;
    let socket = Arc::new(CountingSocket::new(socket, Arc::clone(refusals)));
    quinn::Endpoint::new_with_abstract_socket(endpoint, Some(server), socket, runtime)
}

/// Takes no more peers, and closes the links there are.
pub(super) fn close(shared: &Shared) {
    let endpoint = shared
        .endpoint
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    // Otherwise it has been shut down already.
    let Some(endpoint) = &*endpoint else { return };
    endpoint.set_server_config(None);
    shared.sessions.close_all(Close::Shutdown);
    endpoint.close(
        Close::Shutdown.code(),
        Close::Shutdown.to_string().as_bytes(),
    );
}

/// Tells every peer and waits for the telling.
pub(super) async fn shutdown(shared: &Shared, deadline: Duration) {
    close(shared);
    let endpoint = shared
        .endpoint
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let Some(endpoint) = endpoint else { return };
    if timeout(deadline, endpoint.wait_idle()).await.is_err() {
        tracing::warn!("some agents could not be told that the director restarts");
    }
}

/// Makes room for a fleet that comes all at once. A smaller buffer loses packets, which are sent again.
pub(crate) fn widen(socket: &UdpSocket) {
    let wanted = GATEWAY_RECEIVE_BUFFER_BYTES;
    // The first is for those that may pass the host's limit.
    let _ = setsockopt(socket, sockopt::RcvBufForce, &wanted)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &wanted));
    // The kernel doubles what it is asked for, for its own part.
    let bytes = getsockopt(socket, sockopt::RcvBuf).unwrap_or(0) / 2;
    if bytes < wanted {
        tracing::warn!(
            bytes,
            wanted,
            "the gateway's receive buffer is small: when many agents come at once some are answered \
             late; raise net.core.rmem_max"
        );
    }
}

async fn accept(shared: Arc<Shared>, endpoint: quinn::Endpoint) {
    let mut connections = JoinSet::new();
    let mut summary = interval(LOG_INTERVAL);
    let mut line = Line::new();
    loop {
        shared.door.set_waiting(line.len());
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            // Only takes finished tasks out; `accept` never ends because of it.
            Some(_) = connections.join_next() => continue,
            place = shared.door.entered(), if !line.is_empty() => {
                while let Some(gone) = line.given_up() {
                    turn_away(&shared, gone, &NoHandshake::Waited);
                }
                if let Some(next) = line.next() {
                    connections.spawn(serve(Arc::clone(&shared), next, place));
                }
                continue;
            }
            _ = summary.tick() => {
                shared.refusals.summarise();
                continue;
            }
        };
        let Some(incoming) = incoming else { break };
        let peer = incoming.remote_address();
        let proven = incoming.remote_address_validated() || !incoming.may_retry();
        match shared.door.judge(peer.ip(), proven) {
            Verdict::Accept if strangers(&shared, &endpoint) >= STRANGERS_MAX => {
                turn_away(&shared, incoming, &NoHandshake::Crowd);
            }
            Verdict::Accept
                if line.is_empty()
                    && let Ok(place) = shared.door.enter() =>
            {
                connections.spawn(serve(Arc::clone(&shared), incoming, place));
            }
            Verdict::Accept => {
                if let Some(oldest) = line.join(incoming) {
                    turn_away(&shared, oldest, &NoHandshake::Full);
                }
            }
            Verdict::Prove => {
                shared.count(Total::HandshakesRetried);
                // Fails only for a peer that cannot be asked, which counts as proven.
                let _ = incoming.retry();
            }
            Verdict::Refuse => {
                let why = NoHandshake::SourceBusy;
                shared.refuse_handshake(Reason::SourceBusy, peer, &why);
                incoming.refuse();
            }
        }
    }
    connections.shutdown().await;
    shared.refusals.summarise();
}

/// Drops a first packet without a word, so that it comes again in a moment.
fn turn_away(shared: &Shared, incoming: quinn::Incoming, why: &NoHandshake) {
    shared.refuse_handshake(Reason::HandshakesFull, incoming.remote_address(), why);
    incoming.ignore();
}

/// Connections that are no sessions: handshakes, and what is left of those that ended.
fn strangers(shared: &Shared, endpoint: &quinn::Endpoint) -> usize {
    endpoint
        .open_connections()
        .saturating_sub(shared.sessions.len())
}

/// Why a peer does not become a connection.
#[derive(Debug, thiserror::Error)]
enum NoHandshake {
    #[error("too many attempts of this address have failed; it may come again later")]
    SourceBusy,
    #[error("{HANDSHAKES_MAX} handshakes are under way, and {HANDSHAKES_WAITING_MAX} peers wait")]
    Full,
    #[error("{HANDSHAKES_MAX} handshakes were under way for {HANDSHAKE_WAITS_MAX:?}")]
    Waited,
    #[error("{STRANGERS_MAX} handshakes are under way or not yet forgotten")]
    Crowd,
    #[error("the handshake was not over")]
    GaveWay(#[source] GaveWay),
    #[error("the handshake was not over within {HELLO_TIMEOUT:?}")]
    TooSlow,
    #[error("the handshake failed")]
    Failed(#[source] quinn::ConnectionError),
}

impl NoHandshake {
    fn reason(&self) -> Reason {
        match self {
            NoHandshake::SourceBusy => Reason::SourceBusy,
            NoHandshake::Full
            | NoHandshake::Waited
            | NoHandshake::Crowd
            | NoHandshake::GaveWay(_) => Reason::HandshakesFull,
            NoHandshake::TooSlow => Reason::HandshakeTimeout,
            NoHandshake::Failed(source) => handshake_reason(source),
        }
    }
}

async fn serve(shared: Arc<Shared>, incoming: quinn::Incoming, mut place: Place) {
    let peer = incoming.remote_address();
    let proven = incoming.remote_address_validated();
    // In a box, which is gone when a session of days begins.
    let handshake = place.hold(Box::pin(handshake(&shared, incoming))).await;
    let connection = match handshake.unwrap_or_else(|error| Err(NoHandshake::GaveWay(error))) {
        Ok(connection) => connection,
        Err(error) => {
            let reason = error.reason();
            // A certificate is only looked at once the peer has answered.
            if proven || reason.is_of_certificate() {
                shared.door.failed(peer.ip());
            }
            shared.refuse_handshake(reason, peer, &error);
            return;
        }
    };
    shared.count(Total::Handshakes);
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol);
    match protocol.as_deref() {
        // Both in a box of their own: a handshake that is not over holds no memory for them.
        Some(ALPN) => Box::pin(control::serve(&shared, connection, place)).await,
        Some(ALPN_ENROLL) => {
            let enrolling = Box::pin(enroll::serve(&shared, connection));
            let enrolled = place.hold(enrolling).await;
            if let Err(error) = enrolled {
                let error = NoHandshake::GaveWay(error);
                shared.refuse_handshake(error.reason(), peer, &error);
            }
        }
        // TLS refuses other protocols by itself.
        _ => Close::Version.close(&connection),
    }
}

async fn handshake(
    shared: &Shared,
    incoming: quinn::Incoming,
) -> Result<quinn::Connection, NoHandshake> {
    shared.count(Total::HandshakesBegun);
    let connecting = incoming.accept().map_err(NoHandshake::Failed)?;
    timeout(HELLO_TIMEOUT, connecting)
        .await
        .map_err(|_| NoHandshake::TooSlow)?
        .map_err(NoHandshake::Failed)
}

/// Logs once what ended and was no refusal: what a peer may cause is `info`, what we cause is `warn`.
pub(super) fn log_failure(
    peer: SocketAddr,
    machine: Option<&str>,
    class: ErrorClass,
    error: &dyn std::error::Error,
    what: &str,
) {
    let machine = machine.unwrap_or("-");
    match class {
        ErrorClass::Bug => {
            tracing::warn!(%peer, machine, error = %ErrorChain(error), "{what}");
        }
        ErrorClass::Operator | ErrorClass::Retry => {
            tracing::info!(%peer, machine, error = %ErrorChain(error), "{what}");
        }
    }
}
