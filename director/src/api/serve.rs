//! The listener: TLS 1.3 with client certificates, bounded in connections, time and size.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ipnet::Ipv4Net;
use rustls::server::danger::ClientCertVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::id::DirectorId;

use super::access::Peer;
use super::identity::{CallerError, operator_of};
use super::metrics::{Refusal, Refusals};
use super::problem::Problem;
use super::{ApiState, router};
use crate::pki::{DirectorCa, ServerDoor};
use crate::service::Director;

/// Connections at once. Each holds at most the 256 KiB of one body and its TLS buffers, so all of them
/// stay below 100 MiB; operators and their watches are a few dozen.
const CONNECTIONS_MAX: usize = 256;
/// From the TCP connection to the end of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From the first byte of a request, or the end of the one before, to the end of its header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// From the header of a request to the header of its answer; streams may take longer to end.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest header of a request, bytes.
const HEADER_BYTES_MAX: usize = 32 << 10;
/// How long requests that run may go on when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after the system refused to accept a connection, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The address is taken or not ours.
    #[error(
        "cannot listen on {address} (TCP) for the API; change api.listen in director.toml or free it"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The certificates do not make a server.
    #[error("the API's certificates are not usable")]
    Certificates(#[source] rustls::Error),
}

impl ServerError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Listen { .. } => ErrorClass::Operator,
            Self::Certificates(_) => ErrorClass::Bug,
        }
    }
}

/// Makes the TLS configuration: 1.3 only, no resumption, so that each connection passes the verifier.
///
/// `operators` verifies certificates of operators. It may let clients without one through: they are
/// told 401 and nothing else.
///
/// # Errors
/// [`ServerError::Certificates`].
pub fn server_tls(
    door: ServerDoor,
    operators: Arc<dyn ClientCertVerifier>,
) -> Result<Arc<rustls::ServerConfig>, ServerError> {
    let mut config = rustls::ServerConfig::builder_with_provider(windlass_common::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ServerError::Certificates)?
        .with_client_cert_verifier(operators)
        .with_cert_resolver(Arc::new(door));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The API, listening.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    director_id: DirectorId,
}

impl Server {
    /// Binds the address; nobody is served yet.
    ///
    /// # Errors
    /// [`ServerError::Listen`].
    pub async fn bind(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        director_id: DirectorId,
    ) -> Result<Server, ServerError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ServerError::Listen { address, source })?;
        Ok(Server {
            listener,
            tls,
            director_id,
        })
    }

    /// The address that is listened on.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is true, then lets requests that run end.
    pub async fn serve(
        self,
        director: Director,
        reserved: Vec<(String, Ipv4Net)>,
        mut stop: watch::Receiver<bool>,
    ) {
        let ca = director.ca().clone();
        let state = ApiState::new(director, reserved);
        let refusals = Arc::clone(&state.refusals);
        let routes = router(state);
        let acceptor = TlsAcceptor::from(self.tls);
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                accepted = accept(&self.listener, &slots) => accepted,
                () = stopped(&mut stop) => break,
            };
            let (stream, peer, slot) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let connection = Connection {
                acceptor: acceptor.clone(),
                routes: routes.clone(),
                director_id: self.director_id.clone(),
                ca: ca.clone(),
                peer,
                stop: stop.clone(),
                refusals: Arc::clone(&refusals),
            };
            connections.spawn(async move {
                connection.run(stream).await;
                drop(slot);
            });
        }
        drop(self.listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::info!("closing connections that are still open");
        }
    }
}

/// Returns when the server is to stop, or nobody is left who could say so.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

/// Takes a slot, then a connection: beyond the limit, clients wait in the listen queue.
async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> std::io::Result<Accepted> {
    let slot = slots
        .clone()
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, slot))
}

struct Connection {
    acceptor: TlsAcceptor,
    routes: Router,
    director_id: DirectorId,
    ca: Arc<DirectorCa>,
    peer: SocketAddr,
    stop: watch::Receiver<bool>,
    refusals: Arc<Refusals>,
}

impl Connection {
    /// Counts a refusal; see [`Refusals::count`].
    fn refused(&self, refusal: Refusal) -> Option<u64> {
        self.refusals.count(refusal, std::time::Instant::now())
    }

    async fn run(mut self, stream: TcpStream) {
        // Small answers go out at once.
        let _ = stream.set_nodelay(true);
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream));
        let stream = match handshake.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                if let Some(unlogged) = self.refused(Refusal::Handshake) {
                    tracing::info!(peer = %self.peer, %error, unlogged, "refused a connection");
                }
                return;
            }
            Err(_) => {
                if let Some(unlogged) = self.refused(Refusal::Timeout) {
                    tracing::info!(peer = %self.peer, unlogged, "a handshake took too long");
                }
                return;
            }
        };
        let chain = stream.get_ref().1.peer_certificates();
        let leaf = chain.and_then(<[_]>::first);
        let generation = leaf.and_then(|leaf| self.ca.operator_generation(leaf));
        let routes = match operator_of(chain, &self.director_id) {
            Ok(name) => {
                tracing::debug!(peer = %self.peer, operator = %name, "operator connected");
                self.routes.layer(Extension(Peer { name, generation }))
            }
            Err(error) => {
                if let Some(unlogged) = self.refused(Refusal::Caller) {
                    let error = ErrorChain(&error);
                    tracing::warn!(peer = %self.peer, %error, unlogged, "refused a caller");
                }
                nobody(&error)
            }
        };
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
            .with_upgrades();
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = stopped(&mut self.stop) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %self.peer, %error, "connection ended");
        }
    }
}

/// What a caller without a good certificate is told, whatever it asks.
fn nobody(error: &CallerError) -> Router {
    let message = format!(
        "{}; connect with an operator's certificate of this director",
        ErrorChain(error)
    );
    let problem = Problem::new(401, "unauthenticated", message);
    Router::new().fallback(move || std::future::ready(problem))
}

/// Answers 504 when no answer begins in time. An API server knows by itself what may take longer, such
/// as the logs of a pod that says nothing.
pub(super) async fn in_time(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    if route.is_some_and(|route| super::kubernetes::ROUTES.contains(&route.as_str())) {
        return next.run(request).await;
    }
    let path = request.uri().path().to_owned();
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let seconds = REQUEST_TIMEOUT.as_secs();
            let message =
                format!("{path} did not answer within {seconds} s; look at the director's log");
            Problem {
                class: ErrorClass::Retry,
                ..Problem::new(504, "timeout", message)
            }
            .into_response()
        }
    }
}
