//! Who may connect: the chain, the identity in it, and whether that incarnation is current.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use windlass_common::clock::Clock;
use windlass_common::id::DirectorId;
use windlass_common::pki::{Leaf, LeafError, MachineIdentity, gateway_name};

use crate::pki::{DirectorCa, IssueError, ServerDoor};

use super::IncarnationRegistry;
use super::counters::Reason;

/// Why a certificate whose chain is in order is refused.
#[derive(thiserror::Error)]
pub(super) enum Unauthorized {
    #[error("no certificate was shown")]
    NoCertificate,
    #[error("no issuer of agents that is trusted now has signed the certificate")]
    Chain(#[source] Error),
    #[error("the certificate is over")]
    Expired(#[source] Error),
    #[error("the certificate names no machine")]
    NoMachine(#[source] LeafError),
    #[error("{0} is a machine of another director")]
    OtherDirector(MachineIdentity),
    #[error("{0} is not current; this incarnation was replaced or deleted")]
    NotCurrent(MachineIdentity),
    #[error("{0} is not current; this incarnation was replaced by a later one")]
    Replaced(MachineIdentity),
}

impl Unauthorized {
    /// The counter.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Unauthorized::NoCertificate => Reason::NoCertificate,
            Unauthorized::Chain(_) => Reason::UnknownIssuer,
            Unauthorized::Expired(_) => Reason::CertificateExpired,
            Unauthorized::NoMachine(_) => Reason::CertificatePurpose,
            Unauthorized::OtherDirector(_) => Reason::OtherDirector,
            Unauthorized::NotCurrent(_) | Unauthorized::Replaced(_) => Reason::NotCurrent,
        }
    }

    /// What TLS tells the peer, and [`super::refuse::handshake_reason`] reads again.
    fn alert(self) -> Error {
        Error::InvalidCertificate(match self {
            Unauthorized::Chain(error) | Unauthorized::Expired(error) => return error,
            // The one alert that makes an agent stop its kubelet.
            Unauthorized::Replaced(_) => CertificateError::Revoked,
            Unauthorized::OtherDirector(_) => CertificateError::ApplicationVerificationFailure,
            Unauthorized::NoMachine(_) => CertificateError::InvalidPurpose,
            Unauthorized::NotCurrent(_) | Unauthorized::NoCertificate => {
                CertificateError::Other(OtherError(Arc::new(self)))
            }
        })
    }
}

// TLS prints causes by `Debug`, and these are for people.
impl fmt::Debug for Unauthorized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which generation of the CA issued the certificate of a connection that was admitted; `None` when it
/// was dropped since.
pub(super) fn generation_of(connection: &quinn::Connection, ca: &DirectorCa) -> Option<u32> {
    let chain = connection.peer_identity()?;
    let chain = chain.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    ca.agent_generation(chain.first()?)
}

/// Verifies clients in the handshake. A client without a certificate gets through, for enrollment;
/// `windlass/1` turns it away.
pub(super) struct AgentVerifier {
    chains: Arc<dyn ClientCertVerifier>,
    director: DirectorId,
    registry: Arc<dyn IncarnationRegistry>,
}

impl fmt::Debug for AgentVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentVerifier")
            .field("director", &self.director)
            .finish_non_exhaustive()
    }
}

impl AgentVerifier {
    pub(super) fn new(
        ca: &DirectorCa,
        registry: Arc<dyn IncarnationRegistry>,
    ) -> Result<AgentVerifier, windlass_common::tls::TlsError> {
        Ok(AgentVerifier {
            chains: ca.agent_verifier()?,
            director: ca.director().clone(),
            registry,
        })
    }

    /// Whether a certificate counts now: its chain, its dates, the identity in it, and whether that is
    /// current.
    pub(super) fn authorize(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(MachineIdentity, Leaf), Unauthorized> {
        self.chains
            .verify_client_cert(end_entity, intermediates, now)
            .map_err(refused)?;
        let leaf = Leaf::parse(end_entity).map_err(Unauthorized::NoMachine)?;
        let identity = leaf.machine().map_err(Unauthorized::NoMachine)?;
        if identity.director != self.director {
            return Err(Unauthorized::OtherDirector(identity));
        }
        if !self.registry.is_current(&identity) {
            return Err(if self.registry.is_replaced(&identity) {
                Unauthorized::Replaced(identity)
            } else {
                Unauthorized::NotCurrent(identity)
            });
        }
        Ok((identity, leaf))
    }

    /// The same for a connection whose handshake is over. What TLS took from a session ticket was true
    /// when the ticket was made: the issuer may have been dropped since, the date have passed, the
    /// machine have been replaced.
    pub(super) fn admit(
        &self,
        connection: &quinn::Connection,
        clock: &Clock,
    ) -> Result<(MachineIdentity, Leaf), Unauthorized> {
        let chain = connection
            .peer_identity()
            .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
            .ok_or(Unauthorized::NoCertificate)?;
        let (leaf, intermediates) = chain.split_first().ok_or(Unauthorized::NoCertificate)?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(clock.unix_seconds()));
        self.authorize(leaf, intermediates, now)
    }
}

fn refused(error: Error) -> Unauthorized {
    match error {
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => Unauthorized::Expired(error),
        _ => Unauthorized::Chain(error),
    }
}

impl ClientCertVerifier for AgentVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.authorize(end_entity, intermediates, now) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(error) => Err(error.alert()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        self.chains
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        self.chains
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Life of the gateway's own certificate.
const SERVER_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the gateway shows to its clients.
pub(super) fn server_door(ca: Arc<DirectorCa>, clock: Clock) -> Result<ServerDoor, IssueError> {
    let name = gateway_name(ca.director());
    ServerDoor::new(ca, vec![name], Vec::new(), SERVER_LIFE, clock)
}
