//! The UDP port: who is let in, and what becomes of them.

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::crypto::rustls::HandshakeData;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use windlass_common::error::ErrorChain;
use windlass_common::id::{Epoch, Incarnation, MachineName};
use windlass_common::limits::{
    ENROLLMENTS_MAX, HANDSHAKES_BEFORE_RETRY, HANDSHAKES_MAX, HELLO_TIMEOUT,
};
use windlass_common::transport::{self, Close};
use windlass_common::wire::{ALPN, ALPN_ENROLL};
use windlass_common::{error::ErrorClass, tls};

use crate::pki::DirectorCa;

use super::authorize::{AgentVerifier, server_door};
use super::session::{Session, Sessions};
use super::{
    ArtifactSource, DeliveryError, EnrollmentStore, GatewayConfig, IncarnationRegistry, StartError,
    control, enroll, silence,
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
    pub(super) doors: Doors,
    pub(super) epoch: Epoch,
    pub(super) sessions: Sessions,
    pub(super) enrollments: Semaphore,
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
    epoch: Epoch,
) -> Result<Arc<Shared>, StartError> {
    let verifier =
        AgentVerifier::new(&doors.ca, Arc::clone(&doors.registry)).map_err(StartError::Tls)?;
    let door = server_door(Arc::clone(&doors.ca), config.clock.clone())
        .map_err(StartError::Certificate)?;
    let mut tls =
        tls::gateway_server(Arc::new(verifier), Arc::new(door)).map_err(StartError::Tls)?;
    tls.time_provider = Arc::new(config.clock.clone());
    let server = transport::server_config(tls).map_err(StartError::Tls)?;
    let listen = config.listen;
    let secret = doors.ca.derive(b"gateway endpoint");
    let endpoint = bind(listen, transport::server_endpoint(&secret), server)
        .map_err(|source| StartError::Bind { listen, source })?;
    let shared = Arc::new(Shared {
        endpoint: Mutex::new(Some(endpoint.clone())),
        config,
        doors,
        epoch,
        sessions: Sessions::default(),
        enrollments: Semaphore::new(ENROLLMENTS_MAX),
    });
    tokio::spawn(silence::watch(Arc::downgrade(&shared)));
    tokio::spawn(accept(Arc::clone(&shared), endpoint));
    Ok(shared)
}

fn bind(
    listen: SocketAddr,
    endpoint: quinn::EndpointConfig,
    server: quinn::ServerConfig,
) -> io::Result<quinn::Endpoint> {
    let socket = UdpSocket::bind(listen)?;
    let runtime = quinn::default_runtime()
        .ok_or_else(|| io::Error::other("the gateway starts outside of a tokio runtime"))?;
    quinn::Endpoint::new(endpoint, Some(server), socket, runtime)
}

/// Tells every peer and waits for the telling.
pub(super) async fn shutdown(shared: &Shared, deadline: Duration) {
    let endpoint = shared
        .endpoint
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    // Otherwise it has been shut down already.
    let Some(endpoint) = endpoint else { return };
    endpoint.set_server_config(None);
    shared.sessions.close_all(Close::Shutdown);
    endpoint.close(
        Close::Shutdown.code(),
        Close::Shutdown.to_string().as_bytes(),
    );
    if timeout(deadline, endpoint.wait_idle()).await.is_err() {
        tracing::warn!("some agents could not be told that the director restarts");
    }
}

async fn accept(shared: Arc<Shared>, endpoint: quinn::Endpoint) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut connections = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            // Only takes finished tasks out; `accept` never ends because of it.
            Some(_) = connections.join_next() => continue,
        };
        let Some(incoming) = incoming else { break };
        let under_way = HANDSHAKES_MAX - handshakes.available_permits();
        let unproven = !incoming.remote_address_validated() && incoming.may_retry();
        if under_way >= HANDSHAKES_BEFORE_RETRY && unproven {
            // Fails only for a peer that cannot be asked, which `may_retry` excludes.
            let _ = incoming.retry();
            continue;
        }
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            tracing::warn!(peer = %incoming.remote_address(), "too many handshakes, peer refused");
            incoming.refuse();
            continue;
        };
        connections.spawn(serve(Arc::clone(&shared), incoming, permit));
    }
    connections.shutdown().await;
}

async fn serve(shared: Arc<Shared>, incoming: quinn::Incoming, permit: OwnedSemaphorePermit) {
    let peer = incoming.remote_address();
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => {
            tracing::info!(%peer, %error, "handshake refused");
            return;
        }
    };
    let connection = match timeout(HELLO_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::info!(%peer, error = %ErrorChain(&error), "handshake refused");
            return;
        }
        Err(_) => {
            tracing::info!(%peer, "handshake took too long");
            return;
        }
    };
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol);
    match protocol.as_deref() {
        Some(ALPN) => control::serve(&shared, connection, permit).await,
        Some(ALPN_ENROLL) => enroll::serve(&shared, connection).await,
        // TLS refuses other protocols by itself.
        _ => Close::Version.close(&connection),
    }
}

/// Logs a failure of a peer once: what a peer may cause is `info`, what we cause is `warn`.
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
