//! Enrollment: one request over a connection that trusts the pinned root.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use windlass_common::clock::Clock;
use windlass_common::error::ErrorClass;
use windlass_common::id::DirectorId;
use windlass_common::lapsed::ChannelError;
use windlass_common::limits::{FRAME_BYTES_MAX, HELLO_TIMEOUT};
use windlass_common::pki::{MachineIdentity, PrivateKey, RequestError, gateway_name};
use windlass_common::settings::Settings;
use windlass_common::tls::{self, TlsError};
use windlass_common::transport::{self, Close};
use windlass_common::wire::frame::{self, FrameError};
use windlass_common::wire::message::{Body, EnrollRequest, EnrollResponse, Refusal, RefusalCode};

use super::connection::{self, ConnectError, To};
use super::identity::{Identity, IdentityError};

/// Why the machine got no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// No connection.
    #[error("cannot reach the director to enroll")]
    Connect(#[source] ConnectError),
    /// TLS.
    #[error("cannot set up TLS to enroll")]
    Tls(#[source] TlsError),
    /// The request cannot be made.
    #[error("cannot make the certificate request")]
    Request(#[source] RequestError),
    /// The exchange broke.
    #[error("the exchange with the director broke")]
    Frame(#[source] FrameError),
    /// The stream cannot be opened.
    #[error("the connection broke while enrolling")]
    Connection(#[source] quinn::ConnectionError),
    /// No answer.
    #[error("the director did not answer within {:?}", HELLO_TIMEOUT * 2)]
    TooSlow,
    /// The director said no.
    #[error("the director refuses to enroll this machine ({code:?}): {message}")]
    Refused {
        /// Kind of reason.
        code: RefusalCode,
        /// The director's words.
        message: String,
    },
    /// The connection has nothing to bind a proof to.
    #[error("cannot prove possession of the last key")]
    Channel(#[source] ChannelError),
    /// What it sent is of no use.
    #[error("the director's answer is of no use")]
    Answer(#[source] IdentityError),
}

impl EnrollError {
    /// Whether asking again for the same is of no use: the director has said no.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, EnrollError::Refused { code, .. } if *code != RefusalCode::Busy)
    }

    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            EnrollError::Connect(_) | EnrollError::Connection(_) | EnrollError::TooSlow => {
                ErrorClass::Retry
            }
            EnrollError::Frame(source) => source.class(),
            EnrollError::Refused { code, .. } => match code {
                RefusalCode::Busy => ErrorClass::Retry,
                RefusalCode::Version
                | RefusalCode::Token
                | RefusalCode::Incarnation
                | RefusalCode::NotFound
                | RefusalCode::Malformed
                | RefusalCode::Unreachable => ErrorClass::Operator,
            },
            EnrollError::Channel(source) => source.class(),
            EnrollError::Tls(_) | EnrollError::Request(_) | EnrollError::Answer(_) => {
                ErrorClass::Bug
            }
        }
    }
}

/// Asks the director that is tried for a certificate for `key`, which is on disk already.
///
/// The director is the one that `roots` verify, which it handed out last; without any, the one whose
/// root has the digest in the settings.
pub(super) async fn enroll(
    settings: &Settings,
    me: &MachineIdentity,
    key: PrivateKey,
    roots: &[CertificateDer<'_>],
    to: To,
    clock: &Clock,
) -> Result<Identity, EnrollError> {
    let tls = if roots.is_empty() {
        tls::enroll_client(settings.ca_digest)
    } else {
        tls::enroll_client_trusting(roots)
    };
    let mut tls = tls.map_err(EnrollError::Tls)?;
    tls.time_provider = Arc::new(clock.clone());
    let answer: EnrollResponse = ask(tls, &settings.director_id, to, |_| {
        Ok(EnrollRequest {
            token: settings.token.clone(),
            cluster: settings.cluster.clone(),
            machine: settings.machine.clone(),
            incarnation: settings.incarnation,
            request_der: key.request().map_err(EnrollError::Request)?,
        })
    })
    .await?;
    Identity::accept(me, key, answer.chain_der, answer.roots_der).map_err(EnrollError::Answer)
}

/// Connects, asks what `request` says for this connection, and reads the answer.
pub(super) async fn ask<Q: Body, A: Body>(
    tls: rustls::ClientConfig,
    director: &DirectorId,
    to: To,
    request: impl FnOnce(&quinn::Connection) -> Result<Q, EnrollError>,
) -> Result<A, EnrollError> {
    let config = transport::client_config(tls).map_err(EnrollError::Tls)?;
    let dialled = connection::connect(config, to, &gateway_name(director))
        .await
        .map_err(EnrollError::Connect)?;
    let connection = &dialled.connection;
    let request = request(connection)?;
    let answer = timeout(HELLO_TIMEOUT * 2, exchange(&request, connection));
    let answer = dialled.first(answer).await;
    let answer = answer.unwrap_or(Err(EnrollError::TooSlow));
    // A director of an older release closes the connection instead of answering.
    let closed = connection.close_reason();
    // Sent by the endpoint's own task, which outlives the handle: the link need not wait for it.
    Close::Done.close(connection);
    match closed.as_ref().and_then(Close::of) {
        Some(why @ Close::Malformed) if answer.is_err() => Err(EnrollError::Refused {
            code: RefusalCode::Malformed,
            message: why.to_string(),
        }),
        _ => answer,
    }
}

async fn exchange<Q: Body, A: Body>(
    request: &Q,
    connection: &quinn::Connection,
) -> Result<A, EnrollError> {
    let (mut send, mut recv) = connection
        .open_bi()
        .await
        .map_err(EnrollError::Connection)?;
    frame::write(&mut send, request)
        .await
        .map_err(EnrollError::Frame)?;
    // Fails only if the director has gone, which the read reports.
    let _ = send.finish();
    let frame = frame::read(&mut recv, FRAME_BYTES_MAX)
        .await
        .and_then(|frame| frame.ok_or(FrameError::Closed))
        .map_err(EnrollError::Frame)?;
    if frame.kind == Refusal::KIND {
        let refusal: Refusal = frame.body().map_err(EnrollError::Frame)?;
        return Err(EnrollError::Refused {
            code: refusal.code,
            message: refusal.message.chars().take(500).collect(),
        });
    }
    frame.body().map_err(EnrollError::Frame)
}
