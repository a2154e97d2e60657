//! Serving peers: who is let in, and the bytes.

use std::convert::Infallible;
use std::io::{self, SeekFrom};
use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use windlass_common::error::ErrorChain;
use windlass_common::id::Digest;
use windlass_common::limits::{
    CHUNK_BYTES, ENROLL_FRAME_BYTES_MAX, HELLO_TIMEOUT, PEER_CONNECTIONS_MAX, PEER_GRANT_WAIT,
    PEER_IDLE_TIMEOUT, PEER_UPLOADS_MAX,
};
use windlass_common::pki::{MachineIdentity, RequestError};
use windlass_common::probe::{Nonce, statement};
use windlass_common::rate::Pace;
use windlass_common::tls::TlsError;
use windlass_common::transport::{self, Close};
use windlass_common::wire::frame::{self, FrameError};
use windlass_common::wire::message::{
    ArtifactHeader, ArtifactRequest, ArtifactsHeld, Body, Refusal, RefusalCode,
};
use windlass_common::wire::probe::{DirectorAnswer, DirectorAsk, Echo};

use super::grants::Grants;
use super::{Sharing, other_end};
use crate::artifacts::ArtifactStore;
use crate::link::{Identity, IdentityError, IdentityStore};

/// Before a port that cannot be opened is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("this machine's identity cannot be used towards peers")]
    Identity(#[source] IdentityError),
    #[error("cannot set up TLS towards peers")]
    Tls(#[source] TlsError),
    #[error("the peer did not ask, or took no chunk, within {PEER_IDLE_TIMEOUT:?}")]
    TooSlow,
    #[error("the peer's request makes no sense, or cannot be answered")]
    Frame(#[source] FrameError),
    #[error("{0} was not granted to the peer")]
    NotGranted(Digest),
    #[error("the peer asked for byte {offset} of {bytes}")]
    Offset { offset: u64, bytes: u64 },
    #[error("the answer to a probe cannot be signed")]
    Sign(#[source] RequestError),
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the peer stopped the transfer")]
    Stopped(#[source] quinn::WriteError),
}

/// Serves peers for as long as it is polled. Waits for an identity, follows its changes, and says what
/// is shared once the port is open.
pub(crate) async fn serve(
    sharing: &Sharing,
    identities: &IdentityStore,
    me: &MachineIdentity,
    hears_director: impl Fn() -> bool + Send + Sync + Clone + 'static,
) -> Infallible {
    let mut written = identities.written();
    loop {
        written.borrow_and_update();
        match settings(identities, me) {
            Ok(Some((server, identity))) => match bind(sharing, server) {
                Ok(endpoint) => {
                    let hears = Box::new(hears_director.clone());
                    let serving = Serving::new(sharing, me, identity, hears);
                    return accept(sharing, identities, serving, endpoint, written).await;
                }
                Err(error) => {
                    tracing::warn!(address = %sharing.listen, %error, "peers cannot be served");
                    sleep(BIND_AGAIN).await;
                    continue;
                }
            },
            Ok(None) => {}
            Err(error) => tracing::warn!(error = %ErrorChain(&error), "peers cannot be served"),
        }
        // The store outlives this, and with it the sender.
        let _ = written.changed().await;
    }
}

fn settings(
    identities: &IdentityStore,
    me: &MachineIdentity,
) -> Result<Option<(quinn::ServerConfig, Identity)>, ServeError> {
    let Some(identity) = identities.saved(me).map_err(ServeError::Identity)? else {
        return Ok(None);
    };
    let tls = identity.peer_server().map_err(ServeError::Identity)?;
    let config = transport::peer_server_config(tls).map_err(ServeError::Tls)?;
    Ok(Some((config, identity)))
}

fn bind(sharing: &Sharing, server: quinn::ServerConfig) -> io::Result<quinn::Endpoint> {
    let socket = UdpSocket::bind(sharing.listen)?;
    let runtime = quinn::default_runtime()
        .ok_or_else(|| io::Error::other("peers are served outside of a tokio runtime"))?;
    quinn::Endpoint::new(
        quinn::EndpointConfig::default(),
        Some(server),
        socket,
        runtime,
    )
}

async fn accept(
    sharing: &Sharing,
    identities: &IdentityStore,
    serving: Serving,
    endpoint: quinn::Endpoint,
    mut written: watch::Receiver<u64>,
) -> Infallible {
    let serving = Arc::new(serving);
    let places = Arc::new(Semaphore::new(PEER_CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut held = sharing.store.held();
    held.mark_changed();
    loop {
        tokio::select! {
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => {
                    if let Some((incoming, place)) = admit(incoming, &places) {
                        connections.spawn(connection(Arc::clone(&serving), incoming, place));
                    }
                }
                // Only an endpoint that was closed accepts nothing, and nobody closes this one.
                None => std::future::pending::<()>().await,
            },
            Some(_) = connections.join_next() => {}
            Ok(()) = held.changed() => {
                let digests = held.borrow_and_update().clone();
                let port = endpoint.local_addr().map_or(sharing.listen.port(), |a| a.port());
                let held = ArtifactsHeld { port, digests };
                sharing.announcement.send_replace(Some(held));
            }
            Ok(()) = written.changed() => match settings(identities, &serving.me) {
                Ok(Some((server, identity))) => {
                    endpoint.set_server_config(Some(server));
                    serving.identity.send_replace(Arc::new(identity));
                }
                Ok(None) => {}
                // The old one is good until it expires.
                Err(error) => tracing::warn!(error = %ErrorChain(&error), "peers see the old identity"),
            },
        }
    }
}

/// Lets a connection in if there is a place; once half of them are taken, a peer has to prove its
/// address first.
fn admit(
    incoming: quinn::Incoming,
    places: &Arc<Semaphore>,
) -> Option<(quinn::Incoming, OwnedSemaphorePermit)> {
    let unproven = !incoming.remote_address_validated() && incoming.may_retry();
    if unproven && places.available_permits() <= PEER_UPLOADS_MAX {
        // Fails only for a peer that cannot be asked, which `may_retry` excludes.
        let _ = incoming.retry();
        return None;
    }
    let Ok(place) = Arc::clone(places).try_acquire_owned() else {
        tracing::info!(peer = %incoming.remote_address(), "too many peers, this one is refused");
        incoming.refuse();
        return None;
    };
    Some((incoming, place))
}

/// What all connections share.
struct Serving {
    me: MachineIdentity,
    /// In memory: a probe is answered whatever the disk does.
    identity: watch::Sender<Arc<Identity>>,
    store: ArtifactStore,
    grants: watch::Receiver<Grants>,
    pace: Pace,
    /// Whether this agent hears its director.
    hears_director: Box<dyn Fn() -> bool + Send + Sync>,
}

async fn connection(
    serving: Arc<Serving>,
    incoming: quinn::Incoming,
    _place: OwnedSemaphorePermit,
) {
    let address = incoming.remote_address();
    let refused = |error: &dyn std::error::Error| {
        tracing::info!(peer = %address, error = %ErrorChain(error), "handshake of a peer refused");
    };
    let connection = match incoming.accept() {
        Ok(connecting) => match timeout(HELLO_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return refused(&error),
            Err(elapsed) => return refused(&elapsed),
        },
        Err(error) => return refused(&error),
    };
    let who = other_end(&connection);
    let mine = |who: &MachineIdentity| {
        who.director == serving.me.director && who.cluster == serving.me.cluster
    };
    let Some(who) = who.filter(mine) else {
        tracing::info!(peer = %address, "a peer that is no machine of this cluster is refused");
        Close::Unauthenticated.close(&connection);
        return;
    };
    // One after the other: a second stream waits, and a peer that asks for nothing goes.
    while let Ok(Ok((mut send, mut recv))) =
        timeout(PEER_IDLE_TIMEOUT, connection.accept_bi()).await
    {
        if let Err(error) = serving.answer(&who, &mut send, &mut recv).await {
            tracing::info!(peer = %who, error = %ErrorChain(&error), "a peer gets no answer");
            // Not finished: the peer must not take what it has for the whole.
            let _ = send.reset(quinn::VarInt::from_u32(1));
        }
    }
    Close::Done.close(&connection);
}

impl Serving {
    fn new(
        sharing: &Sharing,
        me: &MachineIdentity,
        identity: Identity,
        hears_director: Box<dyn Fn() -> bool + Send + Sync>,
    ) -> Serving {
        Serving {
            me: me.clone(),
            identity: watch::Sender::new(Arc::new(identity)),
            store: sharing.store.clone(),
            grants: sharing.grants.subscribe(),
            pace: Pace::new(sharing.bytes_per_s),
            hears_director,
        }
    }

    async fn answer(
        &self,
        who: &MachineIdentity,
        send: &mut SendStream,
        recv: &mut RecvStream,
    ) -> Result<(), ServeError> {
        let first = timeout(HELLO_TIMEOUT, frame::read(recv, ENROLL_FRAME_BYTES_MAX))
            .await
            .map_err(|_| ServeError::TooSlow)?
            .and_then(|frame| frame.ok_or(FrameError::Closed))
            .map_err(ServeError::Frame)?;
        if first.kind == Echo::KIND {
            let Echo { nonce } = first.body().map_err(ServeError::Frame)?;
            return self.echo(who, nonce, send).await;
        }
        if first.kind == DirectorAsk::KIND {
            let DirectorAsk { nonce } = first.body().map_err(ServeError::Frame)?;
            let heard = (self.hears_director)();
            frame::write(send, &DirectorAnswer { nonce, heard })
                .await
                .map_err(ServeError::Frame)?;
            // Fails only if the peer has gone.
            let _ = send.finish();
            return Ok(());
        }
        let request: ArtifactRequest = first.body().map_err(ServeError::Frame)?;
        if !self.granted(who, request.digest).await {
            // The peer is told no more than that; it may not even learn what is here.
            let error = ServeError::NotGranted(request.digest);
            return refuse(who, send, "this was not granted", &error).await;
        }
        let path = self.store.path(&request.digest);
        let fault = |source| ServeError::Read {
            path: path.clone(),
            source,
        };
        let mut file = match tokio::fs::File::open(&path).await {
            Ok(file) => file,
            Err(error) => {
                return refuse(who, send, "it is not here any more", &fault(error)).await;
            }
        };
        let bytes = file.metadata().await.map_err(fault)?.len();
        if request.offset > bytes {
            let error = ServeError::Offset {
                offset: request.offset,
                bytes,
            };
            return refuse(who, send, "it is not that long", &error).await;
        }
        file.seek(SeekFrom::Start(request.offset))
            .await
            .map_err(fault)?;
        frame::write(send, &ArtifactHeader { bytes })
            .await
            .map_err(ServeError::Frame)?;
        let mut left = bytes - request.offset;
        let mut chunk = vec![0; CHUNK_BYTES];
        while left > 0 {
            let want = usize::try_from(left)
                .unwrap_or(CHUNK_BYTES)
                .min(CHUNK_BYTES);
            file.read_exact(&mut chunk[..want]).await.map_err(fault)?;
            self.pace.pass(want).await;
            timeout(PEER_IDLE_TIMEOUT, send.write_all(&chunk[..want]))
                .await
                .map_err(|_| ServeError::TooSlow)?
                .map_err(ServeError::Stopped)?;
            left -= want as u64;
        }
        // Fails only if the peer has gone.
        let _ = send.finish();
        Ok(())
    }

    /// Shows to the director, by way of the machine that asks, that this agent runs.
    async fn echo(
        &self,
        who: &MachineIdentity,
        nonce: Nonce,
        send: &mut SendStream,
    ) -> Result<(), ServeError> {
        let identity = Arc::clone(&self.identity.borrow());
        let said = statement(nonce, &self.me, who);
        let answer = identity.sign(&said).map_err(ServeError::Sign)?;
        frame::write(send, &answer)
            .await
            .map_err(ServeError::Frame)?;
        // Fails only if the peer has gone.
        let _ = send.finish();
        Ok(())
    }

    /// Whether there is a grant, or comes one in a moment.
    async fn granted(&self, who: &MachineIdentity, digest: Digest) -> bool {
        let mut grants = self.grants.clone();
        let allowed = grants.wait_for(|grants| {
            grants.allows(&who.machine, who.incarnation, digest, Instant::now())
        });
        matches!(timeout(PEER_GRANT_WAIT, allowed).await, Ok(Ok(_)))
    }
}

/// Logs why, and tells the peer in words of its own.
async fn refuse(
    who: &MachineIdentity,
    send: &mut SendStream,
    why: &str,
    error: &ServeError,
) -> Result<(), ServeError> {
    tracing::info!(peer = %who, error = %ErrorChain(error), "a peer is refused");
    let refusal = Refusal {
        code: RefusalCode::NotFound,
        message: why.to_owned(),
    };
    frame::write(send, &refusal)
        .await
        .map_err(ServeError::Frame)?;
    let _ = send.finish();
    Ok(())
}
