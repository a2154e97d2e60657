//! Lets machines with a lapsed certificate come back, by the rule of [`windlass_common::lapsed`].

use std::time::Duration;

use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, UnixTime};

use windlass_common::clock::later;
use windlass_common::error::ErrorClass;
use windlass_common::lapsed::{Channel, ChannelError, statement};
use windlass_common::limits::LAPSED_CHAIN_MAX;
use windlass_common::pki::{Leaf, LeafError, MachineIdentity, PublicKey, RequestError};
use windlass_common::wire::message::LapsedRequest;

use super::authorize::{AgentVerifier, Unauthorized};
use super::counters::Reason;

/// Why a lapsed certificate does not bring its machine back.
#[derive(Debug, thiserror::Error)]
pub(super) enum LapsedError {
    #[error("the connection cannot be bound to")]
    Channel(#[source] ChannelError),
    #[error("the chain has {0} certificates, 1 or {LAPSED_CHAIN_MAX} are due")]
    Chain(usize),
    #[error("the certificate cannot be read")]
    Certificate(#[source] LeafError),
    #[error("the certificate's key is of no use")]
    CertificateKey(#[source] RequestError),
    #[error("the certificate does not count")]
    Unauthorized(#[source] Unauthorized),
    #[error(
        "the certificate was over at {over}, and could be followed until {until}; recreate the machine, \
         or give it a fresh token"
    )]
    TooLate { over: Timestamp, until: Timestamp },
    #[error("the request for a new certificate is refused")]
    Request(#[source] RequestError),
    #[error("possession of the {0} key is not proven for this connection")]
    Proof(&'static str),
}

impl LapsedError {
    pub(super) fn class(&self) -> ErrorClass {
        match self {
            LapsedError::Channel(source) => source.class(),
            LapsedError::Chain(_)
            | LapsedError::Certificate(_)
            | LapsedError::CertificateKey(_)
            | LapsedError::Unauthorized(_)
            | LapsedError::TooLate { .. }
            | LapsedError::Request(_)
            | LapsedError::Proof(_) => ErrorClass::Operator,
        }
    }

    /// The counter.
    pub(super) fn reason(&self) -> Reason {
        match self {
            LapsedError::Channel(_) => Reason::Internal,
            LapsedError::Chain(_) | LapsedError::Request(_) => Reason::EnrollmentMalformed,
            LapsedError::Certificate(_) | LapsedError::CertificateKey(_) => {
                Reason::CertificateInvalid
            }
            LapsedError::Unauthorized(source) => source.reason(),
            LapsedError::TooLate { .. } => Reason::CertificateExpired,
            LapsedError::Proof(_) => Reason::CertificateInvalid,
        }
    }
}

/// Who may have a new certificate for the key in the request, if anybody.
pub(super) fn judge(
    request: &LapsedRequest,
    channel: &Channel,
    agents: &AgentVerifier,
    grace: Duration,
    now: Timestamp,
) -> Result<MachineIdentity, LapsedError> {
    let chain: Vec<CertificateDer<'_>> = request
        .chain_der
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    let (certificate, intermediates) = chain
        .split_first()
        .filter(|_| chain.len() <= LAPSED_CHAIN_MAX)
        .ok_or(LapsedError::Chain(chain.len()))?;
    let leaf = Leaf::parse(certificate).map_err(LapsedError::Certificate)?;
    // All that the date decides is decided below; the rest is as for a certificate that is not over.
    let seconds = now.min(leaf.not_after).as_second();
    let at = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let (identity, leaf) = agents
        .authorize(certificate, intermediates, UnixTime::since_unix_epoch(at))
        .map_err(LapsedError::Unauthorized)?;
    let (over, until) = (leaf.not_after, later(leaf.not_after, grace));
    if now >= until && now > over {
        return Err(LapsedError::TooLate { over, until });
    }
    let last = PublicKey::from_certificate(certificate).map_err(LapsedError::CertificateKey)?;
    let next = PublicKey::from_request(&request.request_der).map_err(LapsedError::Request)?;
    let said = statement(channel, certificate, &request.request_der);
    if !last.has_signed(&said, &request.last_signature) {
        return Err(LapsedError::Proof("certificate's"));
    }
    if !next.has_signed(&said, &request.next_signature) {
        return Err(LapsedError::Proof("new"));
    }
    Ok(identity)
}
