//! A session: hello, then reports, heartbeats and renewals until one end closes.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use quinn::{ConnectionError, RecvStream, SendStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use windlass_common::clock::{Clock, later};
use windlass_common::condition::Conditions;
use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::id::Digest;
use windlass_common::limits::{
    ARTIFACTS_PER_AGENT_MAX, CONTROL_FRAME_TIMEOUT, DATAGRAMS_PER_AGENT, FRAME_BYTES_MAX,
    FRAMES_PER_AGENT, HEARTBEAT_BYTES_MAX, HELLO_TIMEOUT, RENEWALS_PER_AGENT, REPORTS_PER_AGENT,
    SESSIONS_PER_MACHINE, STREAMS_PER_AGENT,
};
use windlass_common::pki::{Leaf, MachineIdentity};
use windlass_common::rate::{Allowance, Pace, Rate};
use windlass_common::report::{FileSystems, Heartbeat, Report};
use windlass_common::transport::{self, Close, Priority};
use windlass_common::wire::frame::{self, Frame, FrameError, OPTIONAL};
use windlass_common::wire::message::{
    ArtifactsHeld, Body, Detail, Hello, Refusal, RefusalCode, RenewRequest, RenewResponse,
    TrustHeld, Tune2, Welcome,
};
use windlass_common::wire::probe::ProbeAnswer;
use windlass_common::wire::{PROTOCOLS, common_protocol};

use crate::pki::IssueError;

use super::authorize::{Unauthorized, generation_of};
use super::counters::{Reason, Total};
use super::door::Place;
use super::refuse::{Peer, frame_reason};
use super::server::{Shared, log_failure};
use super::session::Session;
use super::{DeliveryError, Event, RedeemError, artifacts, probe, trust};

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the connection ended")]
    Connection(#[source] ConnectionError),
    #[error("the director closed it: {0}")]
    Closed(Close),
    #[error("the agent sent what makes no sense here")]
    Frame(#[source] FrameError),
    #[error("the agent does not say hello within {HELLO_TIMEOUT:?}")]
    TooSlow,
    #[error("the agent speaks protocols {theirs:?}, this director {ours:?}; upgrade the older one")]
    Version {
        theirs: Vec<u16>,
        ours: &'static [u16],
    },
    #[error("there are {0} sessions already")]
    Full(usize),
    #[error("the machine's token cannot be spent")]
    Token(#[source] RedeemError),
    #[error("the thread that asked the store is gone")]
    Thread(#[source] tokio::task::JoinError),
    #[error("the machine opens sessions faster than {SESSIONS_PER_MACHINE}")]
    Again,
    #[error("the agent sends faster than {rate}")]
    Flood { reason: Reason, rate: Rate },
    #[error("the incarnation is not current any more")]
    NotCurrent,
    #[error("the CA of its certificate was dropped")]
    Dropped,
    #[error("the certificate expired and was not renewed")]
    Expired,
    #[error("a new certificate cannot be issued")]
    Renewal(#[source] IssueError),
    #[error("the new certificate cannot be sent")]
    Push(#[source] DeliveryError),
    #[error("the agent closed its control stream")]
    ControlClosed,
}

impl Ended {
    fn class(&self) -> ErrorClass {
        match self {
            Ended::Connection(_)
            | Ended::Closed(_)
            | Ended::TooSlow
            | Ended::Full(_)
            | Ended::Again
            | Ended::Flood { .. }
            | Ended::ControlClosed => ErrorClass::Retry,
            Ended::Frame(source) => source.class(),
            Ended::Version { .. } | Ended::NotCurrent | Ended::Dropped | Ended::Expired => {
                ErrorClass::Operator
            }
            Ended::Renewal(source) => source.class(),
            Ended::Push(source) => source.class(),
            Ended::Token(source) => source.class(),
            Ended::Thread(_) => ErrorClass::Bug,
        }
    }

    /// The counter, unless it is no refusal.
    fn reason(&self) -> Option<Reason> {
        match self {
            Ended::Connection(ConnectionError::TransportError(_)) => {
                Some(Reason::TransportViolation)
            }
            Ended::Connection(_) => None,
            Ended::Closed(why) => match why {
                Close::Revoked => Some(Reason::NotCurrent),
                Close::TimedOut => Some(Reason::SlowReader),
                Close::Unauthenticated => Some(Reason::CaDropped),
                _ => None,
            },
            Ended::Frame(source) => frame_reason(source),
            Ended::TooSlow => Some(Reason::HandshakeTimeout),
            Ended::Version { .. } => Some(Reason::Version),
            Ended::Full(_) => Some(Reason::SessionsFull),
            Ended::Token(_) | Ended::Thread(_) => Some(Reason::Internal),
            Ended::Again => Some(Reason::SessionRate),
            Ended::Flood { reason, .. } => Some(*reason),
            Ended::NotCurrent => Some(Reason::NotCurrent),
            Ended::Dropped => Some(Reason::CaDropped),
            Ended::Expired => Some(Reason::CertificateLapsed),
            Ended::Renewal(source) => Some(match source.class() {
                ErrorClass::Operator => Reason::RenewalRefused,
                ErrorClass::Retry | ErrorClass::Bug => Reason::Internal,
            }),
            Ended::Push(_) => Some(Reason::SlowReader),
            Ended::ControlClosed => Some(Reason::ControlClosed),
        }
    }

    fn close(&self) -> Close {
        match self {
            Ended::Connection(_) | Ended::ControlClosed => Close::Done,
            Ended::Closed(why) => *why,
            Ended::TooSlow | Ended::Push(_) | Ended::Frame(FrameError::TooSlow { .. }) => {
                Close::TimedOut
            }
            Ended::Frame(_) | Ended::Renewal(_) => Close::Malformed,
            Ended::Version { .. } => Close::Version,
            Ended::Full(_)
            | Ended::Token(_)
            | Ended::Thread(_)
            | Ended::Again
            | Ended::Flood { .. } => Close::Busy,
            Ended::NotCurrent => Close::Revoked,
            Ended::Dropped => Close::Unauthenticated,
            Ended::Expired => Close::Expired,
        }
    }
}

/// Serves a connection of `windlass/1` to its end. `place` is given back once the peer has shown who it is.
pub(super) async fn serve(shared: &Arc<Shared>, connection: quinn::Connection, place: Place) {
    let peer = connection.remote_address();
    // Every connection, whatever its handshake was: one that resumes a session passed no verifier, and
    // one without a certificate passed it.
    let authorized = shared.agents.admit(&connection, &shared.config.clock);
    let (identity, leaf) = match authorized {
        Ok(authorized) => authorized,
        Err(error) => {
            shared.door.failed(peer.ip());
            let stranger = Peer::stranger(peer);
            shared
                .refusals
                .refuse(error.reason(), stranger, ErrorClass::Operator, &error);
            let why = match error {
                Unauthorized::NotCurrent(_) | Unauthorized::Replaced(_) => Close::Revoked,
                Unauthorized::Expired(_) => Close::Expired,
                Unauthorized::NoCertificate
                | Unauthorized::Chain(_)
                | Unauthorized::NoMachine(_)
                | Unauthorized::OtherDirector(_) => Close::Unauthenticated,
            };
            why.close(&connection);
            return;
        }
    };
    drop(place);
    let ended = session(shared, &connection, (&identity, &leaf)).await;
    ended.close().close(&connection);
    let machine = identity.to_string();
    match ended.reason() {
        Some(reason) => {
            let peer = Peer {
                address: peer,
                machine: Some(&machine),
            };
            shared.refusals.refuse(reason, peer, ended.class(), &ended);
        }
        None => log_failure(peer, Some(&machine), ended.class(), &ended, "session ended"),
    }
}

async fn session(
    shared: &Arc<Shared>,
    connection: &quinn::Connection,
    (identity, leaf): (&MachineIdentity, &Leaf),
) -> Ended {
    if !shared.door.admits_session(&identity.machine) {
        return Ended::Again;
    }
    shared.door.vouched(connection.remote_address().ip());
    let Some(generation) = generation_of(connection, &shared.doors.ca) else {
        return Ended::Dropped;
    };
    // In a box, which is gone when the session begins.
    let greeting = timeout(HELLO_TIMEOUT, Box::pin(greet(shared, connection, identity)));
    let greeting = match greeting.await.unwrap_or(Err(Ended::TooSlow)) {
        Ok(greeting) => greeting,
        Err(ended) => return ended,
    };
    transport::open_up(connection);
    Priority::Control.set(&greeting.send);
    let now = shared.config.clock.now();
    let session = Session::new(
        (identity.clone(), generation),
        connection.clone(),
        greeting.hello,
        greeting.protocol,
        greeting.tune,
        now,
    );
    let session = Arc::new(session);
    shared.sessions.insert(&session);
    // The welcome said the intervals; and what changed since then, nobody told a session out of the table.
    let pace = shared.pace();
    let told = if pace == greeting.tune && pace.detail != Detail::Full {
        session.tune(pace)
    } else if pace != greeting.tune {
        session.pace(pace)
    } else {
        Ok(())
    };
    if let Err(error) = told {
        tracing::debug!(machine = %identity, %error, "the agent is not told how to report");
    }
    shared.count(Total::Sessions);
    shared.sessions.trust_changed();
    tracing::info!(machine = %identity, peer = %connection.remote_address(), "machine connected");
    shared.sessions.emit(Event::Connected {
        identity: identity.clone(),
    });
    // From here on `revoke` and a drop of the CA find the session; what was before is seen here.
    let ended = if !shared.doors.registry.is_current(identity) {
        Ended::NotCurrent
    } else if !trust::is_trusted(&shared.doors.ca, &session) {
        Ended::Dropped
    } else {
        let streams = (greeting.send, greeting.recv);
        converse(shared, &session, leaf, streams).await
    };
    session.hang_up();
    let ended = session.closed().map_or(ended, Ended::Closed);
    shared.sessions.remove(&session);
    shared.artifacts.gone(&session);
    shared.sessions.emit(Event::Disconnected {
        identity: identity.clone(),
        reason: ErrorChain(&ended).to_string(),
    });
    ended
}

/// The control stream after hello and welcome.
struct Greeting {
    send: SendStream,
    recv: RecvStream,
    hello: Hello,
    protocol: u16,
    /// How it was told to report.
    tune: Tune2,
}

async fn greet(
    shared: &Arc<Shared>,
    connection: &quinn::Connection,
    identity: &MachineIdentity,
) -> Result<Greeting, Ended> {
    let (mut send, mut recv) = connection.accept_bi().await.map_err(Ended::Connection)?;
    let hello: Hello = frame::expect(&mut recv, FRAME_BYTES_MAX)
        .await
        .map_err(|error| broken(connection, error))?;
    let Some(protocol) = common_protocol(&hello.protocols) else {
        let ended = Ended::Version {
            theirs: hello.protocols.into_iter().take(8).collect(),
            ours: PROTOCOLS,
        };
        refuse(&mut send, connection, RefusalCode::Version, &ended).await;
        return Err(ended);
    };
    if shared.sessions.len() >= shared.config.sessions_max {
        let ended = Ended::Full(shared.config.sessions_max);
        refuse(&mut send, connection, RefusalCode::Busy, &ended).await;
        return Err(ended);
    }
    // Before the welcome: a machine that was welcomed never enrolls with its token again.
    if shared.doors.enrollment.is_bound(identity) {
        spend_token(shared, identity).await?;
    }
    let tune = shared.pace();
    let welcome = Welcome {
        protocol,
        epoch: shared.epoch.get(),
        tune: tune.intervals(),
    };
    frame::write(&mut send, &welcome)
        .await
        .map_err(|error| broken(connection, error))?;
    Ok(Greeting {
        send,
        recv,
        hello,
        protocol,
        tune,
    })
}

async fn spend_token(shared: &Arc<Shared>, identity: &MachineIdentity) -> Result<(), Ended> {
    let (gateway, machine) = (Arc::clone(shared), identity.clone());
    tokio::task::spawn_blocking(move || gateway.doors.enrollment.spend(&machine))
        .await
        .map_err(Ended::Thread)?
        .map_err(Ended::Token)
}

/// Says why in words before the code says it; the agent closes once it has read them.
async fn refuse(
    send: &mut SendStream,
    connection: &quinn::Connection,
    code: RefusalCode,
    why: &Ended,
) {
    let refusal = Refusal {
        code,
        message: why.to_string(),
    };
    if frame::write(send, &refusal).await.is_ok() && send.finish().is_ok() {
        connection.closed().await;
    }
}

/// All that goes on in a session at once; what ends first ends it.
async fn converse(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    leaf: &Leaf,
    (send, recv): (SendStream, RecvStream),
) -> Ended {
    let expires = Expiry(Mutex::new(leaf.not_after));
    // None of these is ever polled again after one has ended, so it does not matter that reading a
    // frame cannot be taken up again.
    tokio::select! {
        ended = listen(shared, session, &expires, recv) => ended,
        ended = tell(session, send) => ended,
        ended = datagrams(shared, session) => ended,
        ended = streams(shared, session) => ended,
        () = expires.reached(&shared.config.clock) => Ended::Expired,
    }
}

/// What the agent says on the control stream.
async fn listen(
    shared: &Shared,
    session: &Session,
    expires: &Expiry,
    mut recv: RecvStream,
) -> Ended {
    let mut frames = Meter::new(Reason::FrameRate, FRAMES_PER_AGENT);
    let mut reports = Meter::new(Reason::ReportRate, REPORTS_PER_AGENT);
    let mut renewals = Meter::new(Reason::RenewalRate, RENEWALS_PER_AGENT);
    loop {
        let read = frame::read_within(&mut recv, FRAME_BYTES_MAX, CONTROL_FRAME_TIMEOUT).await;
        let frame = match read {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ended::ControlClosed,
            Err(error) => return broken(&session.connection, error),
        };
        let passed = frames.pass().and_then(|()| match frame.kind {
            Report::KIND | Conditions::KIND | FileSystems::KIND => reports.pass(),
            RenewRequest::KIND => renewals.pass(),
            _ => Ok(()),
        });
        if let Err(flood) = passed {
            return flood;
        }
        let done = match frame.kind {
            Report::KIND => took_report(shared, session, frame),
            RenewRequest::KIND => match frame.body() {
                Ok(request) => match renew(shared, session, expires, &request) {
                    Ok(()) => Ok(()),
                    Err(ended) => return ended,
                },
                Err(error) => Err(error),
            },
            Conditions::KIND => frame
                .body()
                .map(|conditions| took_conditions(shared, session, conditions)),
            FileSystems::KIND => frame
                .body()
                .map(|said| session.file_systems(said, shared.config.clock.now())),
            ArtifactsHeld::KIND => frame
                .body()
                .map(|held| shared.artifacts.held(session, held)),
            ProbeAnswer::KIND => frame
                .body()
                .map(|answer| probe::answered(shared, session, answer)),
            TrustHeld::KIND => frame
                .body()
                .map(|held| trust::took_held(shared, session, held)),
            kind if kind & OPTIONAL != 0 => Ok(()),
            got => Err(FrameError::Unexpected {
                got,
                want: Report::KIND,
            }),
        };
        if let Err(error) = done {
            return broken(&session.connection, error);
        }
    }
}

/// What the director says on the control stream: what was pushed, in its order.
async fn tell(session: &Session, mut send: SendStream) -> Ended {
    loop {
        let frame = session.pushed().await;
        if let Err(error) = frame::send(&mut send, &frame).await {
            return broken(&session.connection, error);
        }
    }
}

fn took_report(shared: &Shared, session: &Session, frame: Frame) -> Result<(), FrameError> {
    session.report(frame, shared.config.clock.now())?;
    shared.count(Total::Reports);
    shared.sessions.emit(Event::ReportChanged {
        identity: session.identity.clone(),
    });
    Ok(())
}

fn took_conditions(shared: &Shared, session: &Session, conditions: Conditions) {
    session.conditions(conditions, shared.config.clock.now());
    shared.sessions.emit(Event::ReportChanged {
        identity: session.identity.clone(),
    });
}

fn renew(
    shared: &Shared,
    session: &Session,
    expires: &Expiry,
    request: &RenewRequest,
) -> Result<(), Ended> {
    if !shared.doors.registry.is_current(&session.identity) {
        return Err(Ended::NotCurrent);
    }
    let (life, now) = (shared.config.certificate_life, shared.config.clock.now());
    let ca = &shared.doors.ca;
    let chain = ca
        .issue_agent(&request.request_der, &session.identity, life, now)
        .map_err(Ended::Renewal)?;
    expires.set(later(now, life));
    shared.count(Total::Renewals);
    if let Some(leaf) = chain.0.first()
        && let Some(generation) = ca.agent_generation(leaf)
    {
        session.standing().issued(Digest::of(leaf), generation);
    }
    let response = RenewResponse {
        chain_der: chain.to_der(),
        roots_der: ca.roots_der(),
    };
    session.push(&response).map_err(Ended::Push)?;
    tracing::debug!(machine = %session.identity, "certificate renewed");
    Ok(())
}

async fn datagrams(shared: &Shared, session: &Session) -> Ended {
    let mut meter = Meter::new(Reason::DatagramRate, DATAGRAMS_PER_AGENT);
    loop {
        let datagram = match session.connection.read_datagram().await {
            Ok(datagram) => datagram,
            Err(error) => return Ended::Connection(error),
        };
        if let Err(flood) = meter.pass() {
            return flood;
        }
        let heartbeat = Frame::from_datagram(&datagram, HEARTBEAT_BYTES_MAX)
            .and_then(|frame| frame.body::<Heartbeat>());
        match heartbeat {
            Ok(heartbeat) => {
                shared.count(Total::Heartbeats);
                if session.heartbeat(heartbeat, shared.config.clock.now()) {
                    tracing::info!(machine = %session.identity, "suspect is heard again");
                    let identity = session.identity.clone();
                    shared.sessions.emit(Event::Recovered { identity });
                }
            }
            // Unknown kinds may be of a newer agent, and a datagram ends nothing.
            Err(error) => {
                let machine = session.identity.to_string();
                let peer = Peer {
                    address: session.connection.remote_address(),
                    machine: Some(&machine),
                };
                let class = ErrorClass::Operator;
                shared
                    .refusals
                    .refuse(Reason::DatagramMalformed, peer, class, &error);
            }
        }
    }
}

async fn streams(shared: &Arc<Shared>, session: &Arc<Session>) -> Ended {
    let pace = Arc::new(Pace::new(shared.config.artifacts.agent_bytes_per_s));
    let mut transfers = JoinSet::new();
    let (mut allowance, since) = (Allowance::default(), Instant::now());
    loop {
        // A full set takes no further stream until one is done: the agent waits, others do not.
        while transfers.len() >= ARTIFACTS_PER_AGENT_MAX {
            transfers.join_next().await;
        }
        tokio::select! {
            stream = session.connection.accept_bi() => match stream {
                Ok((send, recv)) => {
                    // One that comes too fast waits as well.
                    while let Err(wait) = allowance.take(STREAMS_PER_AGENT, since.elapsed()) {
                        tokio::time::sleep(wait).await;
                    }
                    let (shared, session) = (Arc::clone(shared), Arc::clone(session));
                    let pace = Arc::clone(&pace);
                    transfers.spawn(async move {
                        artifacts::serve(&shared, &session, &pace, send, recv).await;
                    });
                }
                Err(error) => return Ended::Connection(error),
            },
            Some(_) = transfers.join_next() => {}
        }
    }
}

/// Notices who sends faster than any agent does.
struct Meter {
    reason: Reason,
    rate: Rate,
    since: Instant,
    allowance: Allowance,
}

impl Meter {
    fn new(reason: Reason, rate: Rate) -> Meter {
        Meter {
            reason,
            rate,
            since: Instant::now(),
            allowance: Allowance::default(),
        }
    }

    fn pass(&mut self) -> Result<(), Ended> {
        let (reason, rate) = (self.reason, self.rate);
        self.allowance
            .take(rate, self.since.elapsed())
            .map_err(|_| Ended::Flood { reason, rate })
    }
}

/// When the newest certificate of a session is over.
struct Expiry(Mutex<Timestamp>);

impl Expiry {
    fn get(&self) -> Timestamp {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, until: Timestamp) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Returns when the certificate is over, however often it was renewed meanwhile.
    async fn reached(&self, clock: &Clock) {
        loop {
            let until = self.get();
            clock.reached(until).await;
            if self.get() == until {
                return;
            }
        }
    }
}

/// A stream that failed because its connection did ended with the connection.
fn broken(connection: &quinn::Connection, error: FrameError) -> Ended {
    match connection.close_reason() {
        Some(reason) => Ended::Connection(reason),
        None => Ended::Frame(error),
    }
}
