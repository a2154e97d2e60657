//! Enrollment: a token and a certificate request, or a lapsed certificate, against a certificate.
//!
//! The peer is a stranger until its token is redeemed: it gets one stream, one small frame, five
//! seconds, and one of few places. It is never told *why* its token does not count.

use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::timeout;

use windlass_common::error::ErrorClass;
use windlass_common::id::DirectorId;
use windlass_common::lapsed::channel;
use windlass_common::limits::{ENROLL_FRAME_BYTES_MAX, ENROLLMENTS_MAX, HELLO_TIMEOUT};
use windlass_common::pki::{Leaf, MachineIdentity, PublicKey, RequestError};
use windlass_common::transport::Close;
use windlass_common::wire::frame::{self, FrameError, OPTIONAL};
use windlass_common::wire::message::{
    Body, EnrollRequest, EnrollResponse, LapsedRequest, Refusal, RefusalCode,
};

use crate::pki::{EnrollmentToken, IssueError};

use super::RedeemError;
use super::counters::{Reason, Total};
use super::lapsed::{self, LapsedError};
use super::refuse::{Peer, frame_reason};
use super::server::{Shared, log_failure};

/// What a stranger says it is, before why it is refused: not to be mistaken for a machine.
#[derive(Debug, thiserror::Error)]
#[error("who claims to be {machine} is not enrolled")]
struct Claimed<'a> {
    machine: &'a str,
    source: &'a EnrollError,
}

#[derive(Debug, thiserror::Error)]
enum EnrollError {
    #[error("{ENROLLMENTS_MAX} enrollments are under way already")]
    Full,
    #[error("the enrollment request cannot be read")]
    Frame(#[source] FrameError),
    #[error("the connection broke before the enrollment request came")]
    Connection(#[source] quinn::ConnectionError),
    #[error("no enrollment request within {HELLO_TIMEOUT:?}")]
    TooSlow,
    #[error("the certificate request is refused")]
    Request(#[source] RequestError),
    #[error("the token does not count")]
    Token(#[source] RedeemError),
    #[error("the lapsed certificate does not count")]
    Lapsed(#[source] LapsedError),
    #[error("the incarnation is not current")]
    NotCurrent,
    #[error("the certificate cannot be issued")]
    Issue(#[source] IssueError),
    #[error("the thread that asked the store is gone")]
    Thread(#[source] tokio::task::JoinError),
}

impl EnrollError {
    fn class(&self) -> ErrorClass {
        match self {
            EnrollError::Frame(_) | EnrollError::Request(_) | EnrollError::NotCurrent => {
                ErrorClass::Operator
            }
            EnrollError::Full | EnrollError::Connection(_) | EnrollError::TooSlow => {
                ErrorClass::Retry
            }
            EnrollError::Token(source) => source.class(),
            EnrollError::Lapsed(source) => source.class(),
            EnrollError::Issue(source) => source.class(),
            EnrollError::Thread(_) => ErrorClass::Bug,
        }
    }

    /// The counter, unless the peer went away by itself.
    fn reason(&self) -> Option<Reason> {
        Some(match self {
            EnrollError::Frame(source) => {
                return frame_reason(source).map(|_| Reason::EnrollmentMalformed);
            }
            EnrollError::Connection(_) => return None,
            EnrollError::Full => Reason::EnrollmentsFull,
            EnrollError::TooSlow => Reason::HandshakeTimeout,
            EnrollError::Request(_) => Reason::EnrollmentMalformed,
            EnrollError::Token(source) => match source {
                RedeemError::Unknown => Reason::TokenUnknown,
                RedeemError::Expired(_) => Reason::TokenExpired,
                RedeemError::OtherMachine(_) => Reason::TokenOtherMachine,
                RedeemError::OtherKey => Reason::TokenOtherKey,
                RedeemError::Spent => Reason::TokenSpent,
                RedeemError::NotCurrent => Reason::NotCurrent,
                RedeemError::Store(_) => Reason::Internal,
            },
            EnrollError::Lapsed(source) => source.reason(),
            EnrollError::NotCurrent => Reason::NotCurrent,
            EnrollError::Issue(_) | EnrollError::Thread(_) => Reason::Internal,
        })
    }

    /// Counts and logs it; `machine` is what the peer claims to be.
    fn tell(&self, shared: &Shared, peer: SocketAddr, machine: Option<&str>) {
        match self.reason() {
            Some(reason) => {
                // What is our own fault is on nobody's account.
                if !matches!(reason, Reason::Internal | Reason::EnrollmentsFull) {
                    shared.door.failed(peer.ip());
                }
                let peer = Peer::stranger(peer);
                let claimed = Claimed {
                    machine: machine.unwrap_or("-"),
                    source: self,
                };
                shared.refusals.refuse(reason, peer, self.class(), &claimed);
            }
            None => log_failure(peer, machine, self.class(), self, "enrollment ended"),
        }
    }

    fn refusal(&self) -> (RefusalCode, &'static str) {
        match self {
            EnrollError::Frame(_)
            | EnrollError::Connection(_)
            | EnrollError::TooSlow
            | EnrollError::Request(_) => (
                RefusalCode::Malformed,
                "the enrollment request is malformed",
            ),
            EnrollError::Token(RedeemError::Store(_))
            | EnrollError::Full
            | EnrollError::Issue(_)
            | EnrollError::Thread(_) => (
                RefusalCode::Busy,
                "the director cannot enroll machines at the moment; its log says why",
            ),
            EnrollError::Lapsed(_) => (
                RefusalCode::Incarnation,
                "the certificate cannot be followed by another; the director's log says why",
            ),
            EnrollError::Token(_) | EnrollError::NotCurrent => (
                RefusalCode::Token,
                "the token does not count; the director's log says why",
            ),
        }
    }
}

pub(super) async fn serve(shared: &Arc<Shared>, connection: quinn::Connection) {
    let peer = connection.remote_address();
    let Ok(_place) = shared.enrollments.try_acquire() else {
        EnrollError::Full.tell(shared, peer, None);
        Close::Busy.close(&connection);
        return;
    };
    let first = async {
        let (send, mut recv) = connection
            .accept_bi()
            .await
            .map_err(EnrollError::Connection)?;
        let asked = Asked::read(&mut recv).await.map_err(EnrollError::Frame)?;
        Ok((send, asked))
    };
    let first = timeout(HELLO_TIMEOUT, first)
        .await
        .unwrap_or(Err(EnrollError::TooSlow));
    let (send, asked) = match first {
        Ok(first) => first,
        Err(error) => {
            error.tell(shared, peer, None);
            let why = match error {
                EnrollError::TooSlow => Close::TimedOut,
                _ => Close::Malformed,
            };
            why.close(&connection);
            return;
        }
    };
    answer(shared, &connection, send, asked).await;
    // The agent closes once it has read the answer.
    if timeout(HELLO_TIMEOUT, connection.closed()).await.is_err() {
        Close::TimedOut.close(&connection);
    }
}

async fn answer(
    shared: &Arc<Shared>,
    connection: &quinn::Connection,
    mut send: quinn::SendStream,
    asked: Asked,
) {
    let peer = connection.remote_address();
    let claim = asked.claim(shared.doors.ca.director());
    let decided = match asked {
        Asked::Token(request) => decide(shared, request).await,
        Asked::Lapsed(request) => follow(shared, connection, &request),
    };
    let answered = match decided {
        Ok(response) => {
            shared.count(Total::Enrollments);
            tracing::info!(%peer, machine = %claim, "machine enrolled");
            frame::write(&mut send, &response).await
        }
        Err(error) => {
            error.tell(shared, peer, Some(&claim));
            let (code, message) = error.refusal();
            let refusal = Refusal {
                code,
                message: message.to_owned(),
            };
            frame::write(&mut send, &refusal).await
        }
    };
    if let Err(error) = answered {
        log_failure(peer, None, error.class(), &error, "enrollment not answered");
    }
    // Fails only if the peer has gone.
    let _ = send.finish();
}

async fn decide(
    shared: &Arc<Shared>,
    request: EnrollRequest,
) -> Result<EnrollResponse, EnrollError> {
    let now = shared.config.clock.now();
    let claim = claimed(&request, shared.doors.ca.director());
    // Proof of possession first: a token is not bound to a key that nobody holds.
    let EnrollRequest {
        token, request_der, ..
    } = request;
    let key = PublicKey::from_request(&request_der).map_err(EnrollError::Request)?;
    if !shared.doors.registry.is_current(&claim) {
        return Err(EnrollError::NotCurrent);
    }
    let (gateway, claim_of) = (Arc::clone(shared), claim.clone());
    tokio::task::spawn_blocking(move || {
        let hash = EnrollmentToken::hash_of(&token);
        gateway
            .doors
            .enrollment
            .redeem(hash, &claim_of, key.as_bytes(), now)
    })
    .await
    .map_err(EnrollError::Thread)?
    .map_err(EnrollError::Token)?;
    issue(shared, &claim, &request_der, now)
}

/// A certificate that follows one that lapsed.
fn follow(
    shared: &Shared,
    connection: &quinn::Connection,
    request: &LapsedRequest,
) -> Result<EnrollResponse, EnrollError> {
    let now = shared.config.clock.now();
    let channel =
        channel(connection).map_err(|error| EnrollError::Lapsed(LapsedError::Channel(error)))?;
    let grace = shared.config.lapsed_grace;
    let identity = lapsed::judge(request, &channel, &shared.agents, grace, now)
        .map_err(EnrollError::Lapsed)?;
    issue(shared, &identity, &request.request_der, now)
}

fn issue(
    shared: &Shared,
    identity: &MachineIdentity,
    request_der: &[u8],
    now: Timestamp,
) -> Result<EnrollResponse, EnrollError> {
    let ca = &shared.doors.ca;
    let chain = ca
        .issue_agent(request_der, identity, shared.config.certificate_life, now)
        .map_err(EnrollError::Issue)?;
    Ok(EnrollResponse {
        chain_der: chain.to_der(),
        roots_der: ca.roots_der(),
    })
}

fn claimed(request: &EnrollRequest, director: &DirectorId) -> MachineIdentity {
    MachineIdentity {
        director: director.clone(),
        cluster: request.cluster.clone(),
        machine: request.machine.clone(),
        incarnation: request.incarnation,
    }
}

/// What a stranger may ask for.
enum Asked {
    Token(EnrollRequest),
    Lapsed(LapsedRequest),
}

impl Asked {
    async fn read(recv: &mut quinn::RecvStream) -> Result<Asked, FrameError> {
        loop {
            let frame = frame::read(recv, ENROLL_FRAME_BYTES_MAX)
                .await?
                .ok_or(FrameError::Closed)?;
            match frame.kind {
                LapsedRequest::KIND => return frame.body().map(Asked::Lapsed),
                kind if kind != EnrollRequest::KIND && kind & OPTIONAL != 0 => {}
                _ => return frame.body().map(Asked::Token),
            }
        }
    }

    /// Who it says it is, for the log.
    fn claim(&self, director: &DirectorId) -> String {
        match self {
            Asked::Token(request) => claimed(request, director).to_string(),
            Asked::Lapsed(request) => request
                .chain_der
                .first()
                .and_then(|der| Leaf::parse(der).ok()?.machine().ok())
                .map_or_else(|| "-".to_owned(), |identity| identity.to_string()),
        }
    }
}
