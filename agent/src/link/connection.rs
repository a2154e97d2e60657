//! One connection: hello, then everything that goes on over it until it ends.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectionError, RecvStream, SendStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use windlass_common::clock::{Clock, later};
use windlass_common::error::ErrorClass;
use windlass_common::limits::{FRAME_BYTES_MAX, HELLO_TIMEOUT, LINK_IDLE_TIMEOUT, TURN_TIMEOUT};
use windlass_common::pki::{MachineIdentity, RequestError};
use windlass_common::transport::{Close, Priority};
use windlass_common::wire::frame::{self, Frame, FrameError, OPTIONAL};
use windlass_common::wire::message::{
    ArtifactGrant, ArtifactsHeld, Body, Hello, Refusal, RefusalCode, RenewNow, RenewResponse,
    TrustBundle, Tune, Tune2, Welcome, since,
};
use windlass_common::wire::probe::{ProbeAnswer, ProbeAsk};
use windlass_common::wire::{PROTOCOLS, common_protocol};

use super::answer::{self, Listening};
use super::attempts::{Attempts, Outcome};
use super::identity::{Identity, IdentityError, IdentityStore};
use super::renewal::Renewal;
use super::resume::Resumable;
use super::silence;
use super::steps::{self, Steps};
use super::{Handler, Live};
use crate::peer::{Peers, Probes, Sharing};

/// Pause between two requests for a new certificate that is due: a clock that is ahead of the director's
/// makes each new one due at once.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);
/// How long a close may take to be sent.
const LINGER: Duration = Duration::from_millis(500);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No UDP socket.
    #[error("cannot open a UDP socket")]
    Socket(#[source] io::Error),
    /// The address or the name is of no use.
    #[error("cannot connect with {address}; check the directors in the settings")]
    Address {
        /// Where to.
        address: SocketAddr,
        /// Cause.
        #[source]
        source: quinn::ConnectError,
    },
    /// The handshake failed.
    #[error("the handshake with {address} failed")]
    Handshake {
        /// Where to.
        address: SocketAddr,
        /// Cause.
        #[source]
        source: ConnectionError,
    },
    /// The handshake began and did not end.
    #[error("the handshake with {address} was not over within {HELLO_TIMEOUT:?}")]
    TooSlow {
        /// Where to.
        address: SocketAddr,
    },
    /// Somebody answered, and the handshake did not begin.
    #[error(
        "{address} serves others: the turn of this machine did not come within {TURN_TIMEOUT:?}"
    )]
    NoTurn {
        /// Where to.
        address: SocketAddr,
    },
    /// Not a single datagram came back.
    #[error("nobody has answered at {address} within {within:?}")]
    Silent {
        /// Where to.
        address: SocketAddr,
        /// For how long it was waited.
        within: Duration,
    },
}

/// Whether a handshake was ended with the alert for a machine that was replaced. TLS lets a client see it after
/// the director has proven itself, so that nobody else can say it.
fn told_replaced(error: &ConnectionError) -> bool {
    // RFC 9001: a TLS alert, here certificate_revoked, in the range of QUIC's codes for them.
    const CERTIFICATE_REVOKED: u64 = 0x100 + 44;
    matches!(error, ConnectionError::ConnectionClosed(closed)
        if u64::from(closed.error_code) == CERTIFICATE_REVOKED)
}

impl ConnectError {
    /// See [`Ended::replaced`].
    pub(super) fn replaced(&self) -> bool {
        matches!(self, ConnectError::Handshake { source, .. } if told_replaced(source))
    }
}

/// Whom an attempt tries.
#[derive(Debug, Clone, Copy)]
pub(super) struct To {
    pub(super) address: SocketAddr,
    /// How long it may stay silent.
    pub(super) patience: Duration,
}

/// A connection whose handshake is over at this end.
pub(super) struct Dialled {
    pub(super) endpoint: quinn::Endpoint,
    pub(super) connection: quinn::Connection,
    socket: Arc<Listening>,
}

impl Dialled {
    /// Does what is done first on it. What ends the handshake may be lost; it is repeated until this is answered.
    pub(super) async fn first<T>(&self, exchange: impl Future<Output = T>) -> T {
        let done = tokio::select! {
            biased;
            done = exchange => done,
            never = self.socket.repeat() => match never {},
        };
        self.socket.over();
        done
    }
}

/// Connects from a socket of its own: a new attempt starts with nothing of an old one. One that was answered waits for
/// its turn for [`TURN_TIMEOUT`]; a handshake that has begun is given up after [`HELLO_TIMEOUT`].
pub(super) async fn connect(
    config: quinn::ClientConfig,
    To { address, patience }: To,
    name: &str,
) -> Result<Dialled, ConnectError> {
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let (endpoint, socket) = answer::endpoint(any).map_err(ConnectError::Socket)?;
    let mut connecting = endpoint
        .connect_with(config, address, name)
        .map_err(|source| ConnectError::Address { address, source })?;
    let begun = tokio::select! {
        biased;
        begun = timeout(TURN_TIMEOUT, connecting.handshake_data()) => begun,
        () = socket.silence(patience) => {
            return Err(ConnectError::Silent { address, within: patience });
        }
    };
    let failed = |source| ConnectError::Handshake { address, source };
    begun
        .map_err(|_| ConnectError::NoTurn { address })?
        .map_err(failed)?;
    let connection = tokio::select! {
        biased;
        connected = timeout(HELLO_TIMEOUT, connecting) => connected,
        never = socket.repeat() => match never {},
    };
    let connection = connection
        .map_err(|_| ConnectError::TooSlow { address })?
        .map_err(failed)?;
    Ok(Dialled {
        endpoint,
        connection,
        socket,
    })
}

/// Waits until a close was sent.
pub(super) async fn linger(endpoint: &quinn::Endpoint) {
    // The other end notices by itself if it takes longer.
    let _ = timeout(LINGER, endpoint.wait_idle()).await;
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the agent stops")]
    Stopped,
    #[error("the connection ended")]
    Connection(#[source] ConnectionError),
    #[error("the director sent what makes no sense here")]
    Frame(#[source] FrameError),
    #[error("nothing was heard of the director for {LINK_IDLE_TIMEOUT:?}")]
    Silent,
    #[error("the director did not answer the hello within {HELLO_TIMEOUT:?}")]
    TooSlow,
    #[error("the director refuses this agent ({code:?}): {message}")]
    Refused { code: RefusalCode, message: String },
    #[error("the director speaks protocol {0}, this agent {PROTOCOLS:?}; upgrade the older one")]
    Version(u16),
    #[error("the renewed certificate is of no use or cannot be saved")]
    Renewal(#[source] IdentityError),
    #[error("the request for a new certificate cannot be made")]
    Request(#[source] RequestError),
}

impl Ended {
    pub(super) fn class(&self) -> ErrorClass {
        match self {
            Ended::Stopped | Ended::Connection(_) | Ended::Silent | Ended::TooSlow => {
                ErrorClass::Retry
            }
            Ended::Frame(source) => source.class(),
            Ended::Refused { .. } | Ended::Version(_) => ErrorClass::Operator,
            Ended::Renewal(source) => source.class(),
            Ended::Request(_) => ErrorClass::Bug,
        }
    }

    /// Whether the director would have nothing of the certificate: it was dropped, or is over.
    pub(super) fn disowned(&self) -> bool {
        let Ended::Connection(error) = self else {
            return false;
        };
        matches!(
            Close::of(error),
            Some(Close::Unauthenticated | Close::Expired | Close::Revoked)
        )
    }

    /// Whether the director says that a later incarnation of this machine is there.
    pub(super) fn replaced(&self) -> bool {
        matches!(self, Ended::Connection(error) if told_replaced(error))
    }

    /// Whether the director says that the certificate is over, whatever the clock of this machine shows.
    pub(super) fn lapsed(&self) -> bool {
        // RFC 9001: a TLS alert, here certificate_expired, in the range of QUIC's codes for them.
        const CERTIFICATE_EXPIRED: u64 = 0x100 + 45;
        match self {
            Ended::Connection(ConnectionError::ConnectionClosed(closed)) => {
                u64::from(closed.error_code) == CERTIFICATE_EXPIRED
            }
            Ended::Connection(error) => Close::of(error) == Some(Close::Expired),
            _ => false,
        }
    }

    /// Whether the director asked to come back at once.
    pub(super) fn director_restarts(&self) -> bool {
        matches!(self, Ended::Connection(error)
            if Close::of(error) == Some(Close::Shutdown) || matches!(error, ConnectionError::Reset))
    }
}

/// What a connection needs of the link.
pub(super) struct Context<'a> {
    pub(super) me: &'a MachineIdentity,
    pub(super) store: &'a IdentityStore,
    pub(super) handler: &'a Arc<dyn Handler>,
    pub(super) steps: &'a Arc<Steps>,
    /// Where those who want a connection find it.
    pub(super) current: &'a watch::Sender<Option<Live>>,
    pub(super) clock: &'a Clock,
    pub(super) attempts: &'a Attempts,
    /// What this machine shares with its peers, if anything.
    pub(super) sharing: Option<&'a Sharing>,
    pub(super) resumable: &'a Resumable,
    /// Asks other machines, in the name of this one.
    pub(super) peers: &'a Peers,
}

/// Says hello and serves the connection to its end.
pub(super) async fn run(
    context: &Context<'_>,
    dialled: &Dialled,
    identity: &Identity,
    stop: &mut watch::Receiver<bool>,
) -> Ended {
    let connection = &dialled.connection;
    let greeting = timeout(HELLO_TIMEOUT, greet(&**context.handler, connection));
    let greeting = dialled.first(greeting).await;
    let greeting = greeting.unwrap_or(Err(Ended::TooSlow));
    let (send, recv, welcome) = match greeting {
        Ok(greeting) => greeting,
        Err(ended) => return finish(connection, ended),
    };
    tracing::info!(director = %connection.remote_address(), epoch = %welcome.epoch, "connected");
    context.attempts.count(Outcome::Welcomed);
    context.handler.epoch_seen(welcome.epoch);
    context.current.send_replace(Some(Live {
        connection: connection.clone(),
        protocol: welcome.protocol,
    }));
    let (tune, tuned) = watch::channel(Tune2::default());
    obey(&**context.handler, welcome.tune.into(), &tune);
    let renewal = Renewal::new(identity, welcome.protocol);
    let (probes, probed) = Probes::new(context.peers.clone());
    // None of these is polled again after one has ended: a frame read in part is of no concern.
    let ended = tokio::select! {
        // The reason of the close counts more than what broke because of it.
        biased;
        error = connection.closed() => Ended::Connection(error),
        () = silence::of(|| connection.stats().udp_rx.datagrams) => Ended::Silent,
        // A sender that is gone stops the agent as well.
        _ = stop.wait_for(|stop| *stop) => Ended::Stopped,
        ended = listen(context, recv, &tune, &renewal, probes) => ended,
        ended = tell(context, send, &renewal, probed, welcome.protocol) => ended,
        ended = beat(&**context.handler, connection, tuned) => ended,
        ended = accept(context, connection) => ended,
    };
    context.current.send_replace(None);
    finish(connection, ended)
}

fn finish(connection: &quinn::Connection, ended: Ended) -> Ended {
    let why = match ended {
        Ended::Frame(_) | Ended::Renewal(_) => Close::Malformed,
        Ended::Silent | Ended::TooSlow => Close::TimedOut,
        Ended::Version(_) => Close::Version,
        Ended::Stopped | Ended::Connection(_) | Ended::Refused { .. } | Ended::Request(_) => {
            Close::Done
        }
    };
    // The peer's reason, if it closed first, explains what broke here.
    let ended = match (ended, connection.close_reason()) {
        (Ended::Frame(_) | Ended::TooSlow, Some(reason)) => Ended::Connection(reason),
        (ended, _) => ended,
    };
    why.close(connection);
    ended
}

async fn greet(
    handler: &dyn Handler,
    connection: &quinn::Connection,
) -> Result<(SendStream, RecvStream, Welcome), Ended> {
    let facts = handler.hello();
    let hello = Hello {
        protocols: PROTOCOLS.to_vec(),
        agent_version: facts.agent_version,
        capabilities: facts.capabilities,
        boot_id: facts.boot_id,
        epoch: facts.epoch,
        unfinished: facts.unfinished,
    };
    let (mut send, mut recv) = connection.open_bi().await.map_err(Ended::Connection)?;
    Priority::Control.set(&send);
    frame::write(&mut send, &hello)
        .await
        .map_err(Ended::Frame)?;
    let frame = frame::read(&mut recv, FRAME_BYTES_MAX)
        .await
        .and_then(|frame| frame.ok_or(FrameError::Closed))
        .map_err(Ended::Frame)?;
    if frame.kind == Refusal::KIND {
        let refusal: Refusal = frame.body().map_err(Ended::Frame)?;
        return Err(Ended::Refused {
            code: refusal.code,
            message: refusal.message.chars().take(500).collect(),
        });
    }
    let welcome: Welcome = frame.body().map_err(Ended::Frame)?;
    if common_protocol(&[welcome.protocol]).is_none() {
        return Err(Ended::Version(welcome.protocol));
    }
    Ok((send, recv, welcome))
}

/// What the director says on the control stream.
async fn listen(
    context: &Context<'_>,
    mut recv: RecvStream,
    tune: &watch::Sender<Tune2>,
    renewal: &Renewal,
    mut probes: Probes,
) -> Ended {
    loop {
        let frame = match frame::read(&mut recv, FRAME_BYTES_MAX).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ended::Frame(FrameError::Closed),
            Err(error) => return Ended::Frame(error),
        };
        let done = match frame.kind {
            Tune::KIND => frame
                .body()
                .map(|new: Tune| obey(&**context.handler, new.into(), tune)),
            Tune2::KIND => frame.body().map(|new| obey(&**context.handler, new, tune)),
            RenewResponse::KIND => match frame.body() {
                Ok(response) => match renewal.end(context, response) {
                    Ok(()) => Ok(()),
                    Err(ended) => return ended,
                },
                Err(error) => Err(error),
            },
            RenewNow::KIND => frame.body().map(|RenewNow {}| renewal.order()),
            TrustBundle::KIND => frame
                .body()
                .map(|bundle| renewal.trust(context.store, bundle)),
            ArtifactGrant::KIND => frame.body().map(|grant| {
                if let Some(sharing) = context.sharing {
                    sharing.grant(grant);
                }
            }),
            ProbeAsk::KIND => frame.body().map(|ask| probes.begin(ask)),
            kind if kind & OPTIONAL != 0 => Ok(()),
            got => Err(FrameError::Unexpected {
                got,
                want: Tune::KIND,
            }),
        };
        if let Err(error) = done {
            return Ended::Frame(error);
        }
    }
}

/// Reports as the director says, from now on; what no agent keeps is left, and the old pace stays.
fn obey(handler: &dyn Handler, tune: Tune2, pace: &watch::Sender<Tune2>) {
    if let Err(error) = tune.check() {
        tracing::warn!(%error, "the director asks for a pace that is refused");
        return;
    }
    handler.tuned(tune);
    pace.send_replace(tune);
}

/// What the agent says on the control stream: reports, what probes found, and what its renewal has to
/// say.
async fn tell(
    context: &Context<'_>,
    mut send: SendStream,
    renewal: &Renewal,
    mut probed: mpsc::Receiver<ProbeAnswer>,
    protocol: u16,
) -> Ended {
    let mut reports = context.handler.reports();
    reports.mark_changed();
    let shares = context
        .sharing
        .filter(|_| since(ArtifactsHeld::KIND) <= protocol);
    let mut announcement = shares.map(Sharing::announcement);
    if let Some(announcement) = &mut announcement {
        announcement.mark_changed();
    }
    let mut conditions = spoken(context.handler.conditions(), protocol);
    let mut file_systems = spoken(context.handler.file_systems(), protocol);
    let mut pause = context.clock.now();
    loop {
        let said = tokio::select! {
            changed = reports.changed() => {
                if changed.is_err() {
                    return Ended::Stopped;
                }
                let report = reports.borrow_and_update().clone();
                frame::write(&mut send, &*report).await
            }
            Some(answer) = probed.recv() => frame::write(&mut send, &answer).await,
            found = looked_at(&mut conditions) => frame::write(&mut send, &*found).await,
            used = looked_at(&mut file_systems) => frame::write(&mut send, &*used).await,
            held = announced(&mut announcement) => frame::write(&mut send, &held).await,
            () = renewal.due(context.clock, pause) => {
                pause = later(context.clock.now(), RENEWAL_PAUSE);
                renewal.order();
                continue;
            }
            () = renewal.wake.notified() => match renewal.say(&mut send).await {
                Ok(()) => Ok(()),
                Err(ended) => return ended,
            },
        };
        if let Err(error) = said {
            return Ended::Frame(error);
        }
    }
}

/// What somebody looks at, told once on connecting; nothing where this `protocol` has no word for it.
fn spoken<T: Body>(
    looked: Option<watch::Receiver<Arc<T>>>,
    protocol: u16,
) -> Option<watch::Receiver<Arc<T>>> {
    let mut looked = looked.filter(|_| since(T::KIND) <= protocol)?;
    looked.mark_changed();
    Some(looked)
}

/// What was seen of the machine, when it is said anew. Cancellation safe.
async fn looked_at<T>(looked: &mut Option<watch::Receiver<Arc<T>>>) -> Arc<T> {
    if let Some(looked) = looked
        && looked.changed().await.is_ok()
    {
        return looked.borrow_and_update().clone();
    }
    // Nobody looks, or nobody looks any more.
    std::future::pending().await
}

/// What this machine shares, when it has changed. Cancellation safe.
async fn announced(
    announcement: &mut Option<watch::Receiver<Option<ArtifactsHeld>>>,
) -> ArtifactsHeld {
    let Some(announcement) = announcement else {
        return std::future::pending().await;
    };
    while announcement.changed().await.is_ok() {
        if let Some(held) = announcement.borrow_and_update().clone() {
            return held;
        }
    }
    // The link holds the sender for as long as it runs.
    std::future::pending().await
}

/// Heartbeats, as often as the director wants them.
async fn beat(
    handler: &dyn Handler,
    connection: &quinn::Connection,
    mut tuned: watch::Receiver<Tune2>,
) -> Ended {
    let pace = |tune: &Tune2| {
        let ms = u64::from(tune.heartbeat_interval_ms);
        let mut ticks = interval(Duration::from_millis(ms));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    };
    let mut ticks = pace(&tuned.borrow_and_update());
    let mut sequence = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = tuned.changed() => {
                if changed.is_err() {
                    return Ended::Stopped;
                }
                ticks = pace(&tuned.borrow_and_update());
                continue;
            }
        }
        sequence += 1;
        let mut heartbeat = handler.heartbeat();
        heartbeat.sequence = sequence;
        let datagram = match Frame::of(&heartbeat) {
            Ok(frame) => frame.to_bytes(),
            Err(error) => return Ended::Frame(error),
        };
        match connection.send_datagram(datagram.into()) {
            Ok(()) => {}
            Err(quinn::SendDatagramError::ConnectionLost(error)) => {
                return Ended::Connection(error);
            }
            // A path too narrow for a heartbeat: the reports and keep-alives still go.
            Err(error) => tracing::debug!(%error, "heartbeat not sent"),
        }
    }
}

/// The streams that the director opens; how many at a time, the transport's settings say.
async fn accept(context: &Context<'_>, connection: &quinn::Connection) -> Ended {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_bi() => match stream {
                Ok((send, recv)) => {
                    streams.spawn(steps::serve(Arc::clone(context.steps), send, recv));
                }
                Err(error) => return Ended::Connection(error),
            },
            Some(_) = streams.join_next() => {}
        }
    }
}
