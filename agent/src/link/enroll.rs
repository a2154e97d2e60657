//! Enrollment: one request over a connection that trusts the pinned root.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::timeout;

use windlass_common::clock::Clock;
use windlass_common::error::ErrorClass;
use windlass_common::limits::{FRAME_BYTES_MAX, HELLO_TIMEOUT};
use windlass_common::pki::{MachineIdentity, PrivateKey, RequestError, gateway_name};
use windlass_common::settings::Settings;
use windlass_common::tls::{self, TlsError};
use windlass_common::transport::{self, Close};
use windlass_common::wire::frame::{self, FrameError};
use windlass_common::wire::message::{Body, EnrollRequest, EnrollResponse, Refusal, RefusalCode};

use super::connection::{self, ConnectError};
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
    /// What it sent is of no use.
    #[error("the director's answer is of no use")]
    Answer(#[source] IdentityError),
}

impl EnrollError {
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
            EnrollError::Tls(_) | EnrollError::Request(_) | EnrollError::Answer(_) => {
                ErrorClass::Bug
            }
        }
    }
}

/// Asks the director at `address` for a certificate for `key`, which is on disk already.
pub(super) async fn enroll(
    settings: &Settings,
    me: &MachineIdentity,
    key: PrivateKey,
    address: SocketAddr,
    clock: &Clock,
) -> Result<Identity, EnrollError> {
    let mut tls = tls::enroll_client(settings.ca_digest).map_err(EnrollError::Tls)?;
    tls.time_provider = Arc::new(clock.clone());
    let config = transport::client_config(tls).map_err(EnrollError::Tls)?;
    let (_endpoint, connection) =
        connection::connect(config, address, &gateway_name(&settings.director_id))
            .await
            .map_err(EnrollError::Connect)?;
    let answer = timeout(HELLO_TIMEOUT * 2, exchange(settings, &key, &connection))
        .await
        .unwrap_or(Err(EnrollError::TooSlow));
    // Sent by the endpoint's own task, which outlives the handle: the link need not wait for it.
    Close::Done.close(&connection);
    let answer = answer?;
    Identity::accept(me, key, answer.chain_der, answer.roots_der).map_err(EnrollError::Answer)
}

async fn exchange(
    settings: &Settings,
    key: &PrivateKey,
    connection: &quinn::Connection,
) -> Result<EnrollResponse, EnrollError> {
    let request = EnrollRequest {
        token: settings.token.clone(),
        cluster: settings.cluster.clone(),
        machine: settings.machine.clone(),
        incarnation: settings.incarnation,
        request_der: key.request().map_err(EnrollError::Request)?,
    };
    let (mut send, mut recv) = connection
        .open_bi()
        .await
        .map_err(EnrollError::Connection)?;
    frame::write(&mut send, &request)
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
