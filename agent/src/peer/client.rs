//! Fetching from a peer: connect, see who answers, ask, read the header.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use quinn::RecvStream;
use tokio::time::timeout;
use windlass_common::error::ErrorClass;
use windlass_common::id::Digest;
use windlass_common::limits::{ENROLL_FRAME_BYTES_MAX, PEER_CONNECT_TIMEOUT, PEER_IDLE_TIMEOUT};
use windlass_common::pki::MachineIdentity;
use windlass_common::probe::Nonce;
use windlass_common::tls::{PEER_NAME, TlsError};
use windlass_common::transport;
use windlass_common::wire::frame::{self, FrameError};
use windlass_common::wire::message::{
    ArtifactHeader, ArtifactRequest, Body, PeerFault, PeerOffer, Refusal,
};
use windlass_common::wire::probe::{DirectorAnswer, DirectorAsk};

use super::other_end;
use crate::link::{IdentityError, IdentityStore};

/// Why a peer gives nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    #[error("this machine's identity cannot be used towards a peer")]
    Identity(#[source] IdentityError),
    #[error("this machine has no certificate to show to a peer")]
    NoIdentity,
    #[error("cannot set up TLS towards a peer")]
    Tls(#[source] TlsError),
    #[error("cannot open a UDP socket")]
    Socket(#[source] std::io::Error),
    #[error("cannot connect with {0}")]
    Address(SocketAddr, #[source] quinn::ConnectError),
    #[error("the handshake with {0} failed")]
    Handshake(SocketAddr, #[source] quinn::ConnectionError),
    #[error("{0} did not answer in time")]
    TooSlow(SocketAddr),
    #[error("{0} answers as another machine than the director named")]
    OtherMachine(SocketAddr),
    #[error("the request or its answer broke off")]
    Frame(#[source] FrameError),
    #[error("the operating system gave no random bytes")]
    Random,
    #[error("the peer does not give it: {0}")]
    Refused(String),
    #[error("the peer says that it has {got} bytes, the director says {want}")]
    Length { got: u64, want: u64 },
}

impl PeerError {
    /// What the director is told.
    pub(crate) fn fault(&self) -> PeerFault {
        match self {
            PeerError::Refused(_) | PeerError::Length { .. } | PeerError::Frame(_) => {
                PeerFault::Refused
            }
            PeerError::Identity(_)
            | PeerError::NoIdentity
            | PeerError::Tls(_)
            | PeerError::Socket(_)
            | PeerError::Address(..)
            | PeerError::Handshake(..)
            | PeerError::TooSlow(_)
            | PeerError::Random
            | PeerError::OtherMachine(_) => PeerFault::Unreachable,
        }
    }

    /// Who acts. The director serves instead, whatever it was.
    pub(crate) fn class(&self) -> ErrorClass {
        match self {
            PeerError::Identity(source) => source.class(),
            PeerError::Tls(source) => source.class(),
            PeerError::OtherMachine(_) | PeerError::Length { .. } => ErrorClass::Operator,
            PeerError::NoIdentity
            | PeerError::Random
            | PeerError::Socket(_)
            | PeerError::Address(..)
            | PeerError::Handshake(..)
            | PeerError::TooSlow(_)
            | PeerError::Frame(_)
            | PeerError::Refused(_) => ErrorClass::Retry,
        }
    }
}

/// The bytes that a peer is about to send. The connection lives as long as this.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) recv: RecvStream,
    // In this order: the connection is closed before its socket goes.
    _connection: quinn::Connection,
    _endpoint: quinn::Endpoint,
}

/// Fetches from peers in the name of this machine.
#[derive(Debug, Clone)]
pub(crate) struct Peers {
    pub(crate) me: MachineIdentity,
    pub(crate) identity_dir: PathBuf,
}

impl Peers {
    /// Asks a peer for the bytes of an artifact from `offset` on; it has to have `bytes` of it.
    pub(crate) async fn open(
        &self,
        offer: &PeerOffer,
        digest: Digest,
        offset: u64,
        bytes: u64,
    ) -> Result<Served, PeerError> {
        let (endpoint, connection) = self.connect(offer).await?;
        let slow = |_| PeerError::TooSlow(offer.address);
        let recv = timeout(PEER_IDLE_TIMEOUT, ask(&connection, digest, offset, bytes))
            .await
            .map_err(slow)??;
        Ok(Served {
            recv,
            _connection: connection,
            _endpoint: endpoint,
        })
    }

    /// Asks whichever machine of this cluster is at an address whether it hears the director.
    pub(crate) async fn hears_director(&self, address: SocketAddr) -> Result<bool, PeerError> {
        let (_endpoint, connection) = self.dial(address).await?;
        let mine = |who: MachineIdentity| {
            who.director == self.me.director && who.cluster == self.me.cluster
        };
        if !other_end(&connection).is_some_and(mine) {
            return Err(PeerError::OtherMachine(address));
        }
        let nonce = Nonce::random().map_err(|_| PeerError::Random)?;
        let (mut send, mut recv) = connection
            .open_bi()
            .await
            .map_err(|error| PeerError::Frame(FrameError::Io(error.into())))?;
        frame::write(&mut send, &DirectorAsk { nonce })
            .await
            .map_err(PeerError::Frame)?;
        // Fails only if the connection is gone, which the read reports.
        let _ = send.finish();
        let answer: DirectorAnswer = frame::expect(&mut recv, ENROLL_FRAME_BYTES_MAX)
            .await
            .map_err(PeerError::Frame)?;
        Ok(answer.heard && answer.nonce == nonce)
    }

    /// Connects with the machine that is named in the offer, and no other.
    pub(super) async fn connect(
        &self,
        offer: &PeerOffer,
    ) -> Result<(quinn::Endpoint, quinn::Connection), PeerError> {
        let (endpoint, connection) = self.dial(offer.address).await?;
        let expected = MachineIdentity {
            machine: offer.machine.clone(),
            incarnation: offer.incarnation,
            ..self.me.clone()
        };
        if other_end(&connection).as_ref() != Some(&expected) {
            return Err(PeerError::OtherMachine(offer.address));
        }
        Ok((endpoint, connection))
    }

    /// Connects with whoever shows a certificate of this director.
    async fn dial(
        &self,
        address: SocketAddr,
    ) -> Result<(quinn::Endpoint, quinn::Connection), PeerError> {
        // Read anew each time: a renewal or a new root counts at once.
        let identity = IdentityStore::open(&self.identity_dir)
            .and_then(|store| store.saved(&self.me))
            .map_err(PeerError::Identity)?
            .ok_or(PeerError::NoIdentity)?;
        let tls = identity.peer_client().map_err(PeerError::Identity)?;
        let config = transport::peer_client_config(tls).map_err(PeerError::Tls)?;
        let any = match address {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let endpoint = quinn::Endpoint::client(any).map_err(PeerError::Socket)?;
        let connecting = endpoint
            .connect_with(config, address, PEER_NAME)
            .map_err(|source| PeerError::Address(address, source))?;
        let connection = timeout(PEER_CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| PeerError::TooSlow(address))?
            .map_err(|source| PeerError::Handshake(address, source))?;
        Ok((endpoint, connection))
    }
}

async fn ask(
    connection: &quinn::Connection,
    digest: Digest,
    offset: u64,
    bytes: u64,
) -> Result<RecvStream, PeerError> {
    let (mut send, mut recv) = connection
        .open_bi()
        .await
        .map_err(|error| PeerError::Frame(FrameError::Io(error.into())))?;
    frame::write(&mut send, &ArtifactRequest { digest, offset })
        .await
        .map_err(PeerError::Frame)?;
    // Fails only if the connection is gone, which the read reports.
    let _ = send.finish();
    let answer = frame::read(&mut recv, ENROLL_FRAME_BYTES_MAX)
        .await
        .and_then(|frame| frame.ok_or(FrameError::Closed))
        .map_err(PeerError::Frame)?;
    if answer.kind == Refusal::KIND {
        let refusal: Refusal = answer.body().map_err(PeerError::Frame)?;
        return Err(PeerError::Refused(
            refusal.message.chars().take(500).collect(),
        ));
    }
    let header: ArtifactHeader = answer.body().map_err(PeerError::Frame)?;
    if header.bytes != bytes {
        return Err(PeerError::Length {
            got: header.bytes,
            want: bytes,
        });
    }
    Ok(recv)
}
