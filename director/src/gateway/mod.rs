//! The gateway: the director's end of the link to every machine.
//!
//! One UDP port, two protocols: `windlass-enroll/1` for machines that have no certificate yet and
//! `windlass/1` for those that have one. What the gateway may not decide by itself it asks: whether a
//! token counts ([`EnrollmentStore`]), whether an incarnation is current ([`IncarnationRegistry`]),
//! where an artifact is ([`ArtifactSource`]).
//!
//! # Invariants
//! * Nothing is sent to a peer before it is authenticated, except the answer to an enrollment.
//! * At most one session per machine; the newest connection wins, the older is told why.
//! * [`IncarnationRegistry::is_current`] is asked in the handshake, again once the session is in the
//!   table, and before each step and tunnel; [`Gateway::revoke`] closes what is open. So whatever the
//!   order in which a revocation and a connection meet, one of them sees the other.
//! * Every frame, queue and number of streams is bounded ([`windlass_common::limits`]).
//! * Every refusal adds one to the counter of its reason and has one line in the log, or is in the sum of
//!   an interval's further ones ([`Reason`]).
//!
//! # After a crash
//! Nothing is kept: agents reconnect by themselves. A step whose connection broke is
//! [`DeliveryError::Lost`]; sending it again is safe, since the agent's journal knows its id.
//!
//! # Not here
//! What a silent machine means (health), what to send (rollout), who issues (`pki`).

mod artifacts;
mod authorize;
mod control;
mod counters;
mod door;
mod enroll;
mod lapsed;
mod pace;
mod probe;
mod refuse;
mod server;
mod session;
mod silence;
mod socket;
mod step;
mod stream;
mod tickets;
mod trust;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;

use windlass_common::clock::Clock;
use windlass_common::condition::Conditions;
use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, Digest, Incarnation, MachineName};
use windlass_common::limits;
use windlass_common::pki::MachineIdentity;
use windlass_common::report::{FileSystems, Heartbeat, Report};
use windlass_common::step::{Progress, StepRequest, StepResult};
use windlass_common::wire::message::{Body, Hello, OutOfRange, Tune2, TunnelTarget, since};
use windlass_common::wire::probe::ProbeAsk;

use crate::epoch::CurrentEpoch;
use crate::pki::{DirectorCa, IssueError};

pub use counters::{CounterView, Reason, Total};
pub(crate) use pace::{SETTLES_WITHIN, host_budget};
pub use probe::{About, Found, ProbeError};
pub(crate) use server::widen;
pub use session::Tunnel;
pub use step::unwatched;
pub use stream::{SessionInput, SessionOutput};
pub use tickets::{TicketCounts, Tickets};

/// Decides about enrollment tokens. Called on a blocking thread.
pub trait EnrollmentStore: Send + Sync + 'static {
    /// Binds the token whose SHA-256 is `token_hash` to `claim` and `public_key` (an uncompressed P-256
    /// point), in one transaction.
    ///
    /// The first key that shows a token binds it: the same key may come again until its machine has had
    /// a session ([`EnrollmentStore::spend`]) or the token expires, any other is refused, also when both
    /// come at once.
    fn redeem(
        &self,
        token_hash: Digest,
        claim: &MachineIdentity,
        public_key: &[u8],
        now: Timestamp,
    ) -> Result<(), RedeemError>;

    /// Whether a token is bound to a key of this machine and not spent. Called for every session on a
    /// runtime thread: answers from memory, without blocking.
    fn is_bound(&self, machine: &MachineIdentity) -> bool;

    /// Spends the bound tokens of a machine for good: it has shown its certificate in a session, so it
    /// will not ask for its first one again.
    fn spend(&self, machine: &MachineIdentity) -> Result<(), RedeemError>;
}

/// Why a token does not count. The machine is only told that it does not; the log says why.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// No such token.
    #[error(
        "no token with this digest was issued; `windlass node enroll` gives a machine a fresh one"
    )]
    Unknown,
    /// Too late.
    #[error("the token expired at {0}; `windlass node enroll` gives its machine a fresh one")]
    Expired(Timestamp),
    /// Issued for another machine or incarnation.
    #[error("the token was issued for {0}, not for the machine that shows it")]
    OtherMachine(String),
    /// Another key came first.
    #[error("another key has used the token; recreate the machine, and find out who used it")]
    OtherKey,
    /// Its machine has had a session.
    #[error("the token is spent: the machine has connected with its certificate since")]
    Spent,
    /// The machine is not wanted any more.
    #[error("the incarnation is not current")]
    NotCurrent,
    /// The store failed; the machine may try again.
    #[error("the store cannot say whether the token counts")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl RedeemError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            RedeemError::Unknown
            | RedeemError::Expired(_)
            | RedeemError::OtherMachine(_)
            | RedeemError::OtherKey
            | RedeemError::Spent
            | RedeemError::NotCurrent => ErrorClass::Operator,
            RedeemError::Store(_) => ErrorClass::Retry,
        }
    }
}

/// Knows which incarnation of each machine is current. Called in the handshake, on a runtime thread:
/// answers from memory, without blocking.
pub trait IncarnationRegistry: Send + Sync + 'static {
    /// Whether this very incarnation of this machine of this cluster may connect now.
    fn is_current(&self, identity: &MachineIdentity) -> bool;

    /// Whether a later incarnation of this machine of this cluster is there instead. Its machine is told so, and
    /// ends what it runs: true only where a record says it. A machine that nobody knows, or that is newer than
    /// what a director knows that was restored from an old backup, is refused and not told.
    fn is_replaced(&self, identity: &MachineIdentity) -> bool;
}

/// Knows where artifacts are. Called on a blocking thread.
pub trait ArtifactSource: Send + Sync + 'static {
    /// The file that holds the artifact, if it is there and this machine may have it.
    fn locate(&self, digest: &Digest, machine: &MachineIdentity) -> Option<PathBuf>;
}

/// How fast artifacts leave the director, so that they never crowd out heartbeats and steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArtifactRates {
    /// To all agents together, bytes a second.
    pub total_bytes_per_s: u64,
    /// To one agent, bytes a second.
    pub agent_bytes_per_s: u64,
}

impl Default for ArtifactRates {
    /// 100 MiB/s, most of a gigabit link, and half of it for one agent. Machines of a cluster serve
    /// one another, so that it is enough for a few copies a cluster.
    fn default() -> ArtifactRates {
        ArtifactRates {
            total_bytes_per_s: 100 << 20,
            agent_bytes_per_s: 50 << 20,
        }
    }
}

/// Settings of the gateway.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// UDP address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What agents are told on connecting, unless there are too many of them for it.
    pub tune: Tune2,
    /// CPU time that heartbeats may take in a second: a fleet that takes more is told to beat less often.
    /// `None` leaves it at [`GatewayConfig::tune`].
    pub heartbeat_budget: Option<Duration>,
    /// Sessions at most; [`limits::SESSIONS_MAX`] by default.
    pub sessions_max: usize,
    /// Life of the certificates that agents get; [`limits::AGENT_CERTIFICATE_LIFE`] by default.
    pub certificate_life: Duration,
    /// How long after its end a certificate may be followed by another without a token; zero for never.
    pub lapsed_grace: Duration,
    /// What decides about dates: certificates, tokens, tickets; the system's by default.
    pub clock: Clock,
    /// Makes and opens session tickets; without it every handshake is a full one.
    pub tickets: Option<Arc<Tickets>>,
    /// How fast artifacts leave.
    pub artifacts: ArtifactRates,
}

impl GatewayConfig {
    /// The defaults, listening on `listen`.
    pub fn new(listen: SocketAddr) -> GatewayConfig {
        GatewayConfig {
            listen,
            tune: Tune2::default(),
            heartbeat_budget: None,
            sessions_max: limits::SESSIONS_MAX,
            certificate_life: limits::AGENT_CERTIFICATE_LIFE,
            lapsed_grace: limits::LAPSED_GRACE,
            clock: Clock::system(),
            tickets: None,
            artifacts: ArtifactRates::default(),
        }
    }
}

/// What the gateway knows about a connected machine.
#[derive(Debug, Clone)]
pub struct SessionView {
    /// Who.
    pub identity: MachineIdentity,
    /// Where its packets come from.
    pub address: SocketAddr,
    /// When it was welcomed.
    pub since: Timestamp,
    /// The last heartbeat and when it arrived.
    pub last_heartbeat: Option<(Timestamp, Heartbeat)>,
    /// The protocol version agreed on.
    pub protocol: u16,
    /// What it said on connecting.
    pub hello: Arc<Hello>,
    /// Whose certificate it holds, and whom it trusts.
    pub trust: SessionTrust,
    /// Its last report and when it arrived.
    pub report: Option<(Timestamp, Arc<Report>)>,
    /// What it said of its conditions last, and when that arrived.
    pub conditions: Option<(Timestamp, Arc<Conditions>)>,
    /// What it said of its file systems last, and when that arrived; agents of earlier releases say nothing.
    pub file_systems: Option<(Timestamp, Arc<FileSystems>)>,
    /// Whether it missed so many heartbeats that it may be dead; see [`limits::suspect_after`].
    pub suspect: bool,
}

/// What is heard of one incarnation of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkView {
    /// Whether there is a connection.
    pub connected: bool,
    /// Whether there is one and heartbeats arrive on it.
    pub beating: bool,
    /// Whether its heartbeats arrive and the last one is late, by half an interval.
    pub late: bool,
    /// How long ago it was last heard of; `None` if not since this director's start.
    pub silence: Option<Duration>,
}

/// What an agent has on its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionTrust {
    /// Generation of the CA that its certificate is of.
    pub certificate: Option<u32>,
    /// SHA-256 of the roots it trusts, sorted; `None` until it has said so.
    pub roots: Option<Vec<Digest>>,
}

/// Something changed. A subscriber that lags reads [`Gateway::connected`] again: events say *that*,
/// the table says *what*.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A machine was welcomed.
    Connected {
        /// Who.
        identity: MachineIdentity,
    },
    /// A session ended.
    Disconnected {
        /// Who.
        identity: MachineIdentity,
        /// Why, for people.
        reason: String,
    },
    /// A report arrived.
    ReportChanged {
        /// Whose.
        identity: MachineIdentity,
    },
    /// A heartbeat of a connected machine is late. That it is heard again is not told, nor that many are late at once.
    Late {
        /// Whose.
        identity: MachineIdentity,
    },
    /// A connected machine has fallen silent; its connection stands until the idle timeout.
    Suspected {
        /// Who.
        identity: MachineIdentity,
    },
    /// A suspect is heard again.
    Recovered {
        /// Who.
        identity: MachineIdentity,
    },
}

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port is taken or the address is not this machine's.
    #[error("cannot listen on UDP {listen}; choose another address or stop what uses it")]
    Bind {
        /// Address asked for.
        listen: SocketAddr,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The gateway's own certificate could not be issued.
    #[error("cannot issue the gateway's certificate")]
    Certificate(#[source] IssueError),
    /// The agents would refuse their settings.
    #[error("no agent reports as it is asked to")]
    Tune(#[source] OutOfRange),
    /// The TLS settings are refused.
    #[error("cannot set up TLS")]
    Tls(#[source] windlass_common::tls::TlsError),
}

impl StartError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            StartError::Bind { .. } | StartError::Tune(_) => ErrorClass::Operator,
            StartError::Certificate(_) | StartError::Tls(_) => ErrorClass::Bug,
        }
    }
}

/// Why a step or a tunnel did not reach its machine, or its outcome did not come back.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// No session with this incarnation.
    #[error("machine {machine} incarnation {incarnation} is not connected")]
    NotConnected {
        /// Which machine.
        machine: MachineName,
        /// Which incarnation.
        incarnation: Incarnation,
    },
    /// The incarnation is not current any more.
    #[error("machine {machine} incarnation {incarnation} is not current any more")]
    NotCurrent {
        /// Which machine.
        machine: MachineName,
        /// Which incarnation.
        incarnation: Incarnation,
    },
    /// The connection broke on the way; the step may be running or done. Send it again.
    #[error("the link to machine {machine} broke; whether it has acted is asked by sending again")]
    Lost {
        /// Which machine.
        machine: MachineName,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer within the deadline and its grace.
    #[error("machine {machine} did not answer step {step} within its deadline of {deadline_ms} ms")]
    Deadline {
        /// Which machine.
        machine: MachineName,
        /// Which step.
        step: String,
        /// The step's deadline, milliseconds.
        deadline_ms: u64,
    },
    /// The answer is to another step.
    #[error("machine {machine} answered step {answered} where {asked} was asked")]
    OtherStep {
        /// Which machine.
        machine: MachineName,
        /// The step that was sent.
        asked: String,
        /// The step that was answered.
        answered: String,
    },
    /// The agent refused to open a tunnel.
    #[error("machine {machine} refuses: {message}")]
    Refused {
        /// Which machine.
        machine: MachineName,
        /// The agent's words.
        message: String,
    },
    /// The agent speaks a protocol that does not have this.
    #[error(
        "the agent of machine {machine} speaks protocol {speaks}, this needs {needs}; upgrade the \
         agent"
    )]
    TooOld {
        /// Which machine.
        machine: MachineName,
        /// The version agreed on with it.
        speaks: u16,
        /// The oldest version that has what was to be sent.
        needs: u16,
    },
    /// The agent speaks the protocol, and is of before there was this.
    #[error("the agent of machine {machine} does not know how to {lacks}; upgrade the agent")]
    Unable {
        /// Which machine.
        machine: MachineName,
        /// The capability that it does not name.
        lacks: &'static str,
    },
    /// The agent does not read what it is sent; its session was closed.
    #[error(
        "machine {machine} left {} frames unread; its session was closed",
        limits::CONTROL_QUEUE
    )]
    Behind {
        /// Which machine.
        machine: MachineName,
    },
    /// The step cannot be encoded, or the agent's answer makes no sense.
    #[error("machine {machine} and this director do not understand each other")]
    Protocol {
        /// Which machine.
        machine: MachineName,
        /// Cause.
        #[source]
        source: windlass_common::wire::frame::FrameError,
    },
}

impl DeliveryError {
    /// Who acts. `Retry` means: the same request may be sent again, over a new connection.
    pub fn class(&self) -> ErrorClass {
        match self {
            DeliveryError::NotConnected { .. }
            | DeliveryError::Lost { .. }
            | DeliveryError::Deadline { .. }
            | DeliveryError::Behind { .. }
            | DeliveryError::Refused { .. } => ErrorClass::Retry,
            DeliveryError::NotCurrent { .. }
            | DeliveryError::TooOld { .. }
            | DeliveryError::Unable { .. } => ErrorClass::Operator,
            DeliveryError::Protocol { .. } | DeliveryError::OtherStep { .. } => ErrorClass::Bug,
        }
    }
}

/// Why a machine was not told how to report.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// No agent keeps this pace.
    #[error("the agent would refuse this pace")]
    OutOfRange(#[source] OutOfRange),
    /// It could not be told.
    #[error("cannot tell the agent")]
    Delivery(#[source] DeliveryError),
}

impl TuneError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            TuneError::OutOfRange(_) => ErrorClass::Operator,
            TuneError::Delivery(source) => source.class(),
        }
    }
}

/// A running gateway. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Gateway {
    shared: Arc<server::Shared>,
}

impl Gateway {
    /// Binds the port and serves until [`Gateway::shutdown`].
    pub async fn start(
        config: GatewayConfig,
        ca: Arc<DirectorCa>,
        enrollment: Arc<dyn EnrollmentStore>,
        registry: Arc<dyn IncarnationRegistry>,
        artifacts: Arc<dyn ArtifactSource>,
        epoch: impl Into<CurrentEpoch>,
    ) -> Result<Gateway, StartError> {
        let doors = server::Doors {
            ca,
            enrollment,
            registry,
            artifacts,
        };
        let shared = server::start(config, doors, epoch.into())?;
        Ok(Gateway { shared })
    }

    /// The address the gateway listens on; an error once it was shut down.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.shared.local_address()
    }

    /// Sends a step to a machine and waits for its result.
    ///
    /// Progress goes to `progress`; when nobody receives it any more it is dropped, the step goes on. The result waits for
    /// who receives it: where nobody does it is [`unwatched`].
    /// Dropping the future cancels the step: the agent stops it where it may be stopped, kills its
    /// processes and writes down what became of it (an agent of protocol 1 goes on). A connection that
    /// breaks cancels nothing. On [`DeliveryError::Lost`] the same request
    /// is sent again over the next connection: the agent answers from its journal, or goes on.
    pub async fn run_step(
        &self,
        machine: &MachineName,
        incarnation: Incarnation,
        request: StepRequest,
        progress: mpsc::Sender<Progress>,
    ) -> Result<StepResult, DeliveryError> {
        let session = self.shared.session(machine, incarnation)?;
        step::run(&session, request, progress).await
    }

    /// Waits until this incarnation is connected.
    pub async fn wait_connected(
        &self,
        machine: &MachineName,
        incarnation: Incarnation,
        deadline: Instant,
    ) -> Result<SessionView, DeliveryError> {
        let mut events = self.subscribe();
        loop {
            if let Ok(session) = self.shared.session(machine, incarnation) {
                return Ok(session.view());
            }
            match tokio::time::timeout_at(deadline, events.recv()).await {
                // Lagging means that something changed; closed cannot be, `self` holds the sender.
                Ok(Ok(_) | Err(_)) => {}
                Err(_) => {
                    return Err(DeliveryError::NotConnected {
                        machine: machine.clone(),
                        incarnation,
                    });
                }
            }
        }
    }

    /// Every machine that is connected now.
    pub fn connected(&self) -> BTreeMap<MachineName, SessionView> {
        self.shared.sessions.views()
    }

    /// What is heard of this incarnation of a machine.
    pub fn link(&self, machine: &MachineName, incarnation: Incarnation) -> LinkView {
        let sessions = &self.shared.sessions;
        sessions.link(machine, incarnation, Instant::now())
    }

    /// The session of this incarnation of a machine.
    pub fn session(&self, machine: &MachineName, incarnation: Incarnation) -> Option<SessionView> {
        let session = self.shared.sessions.get(machine, incarnation)?;
        Some(session.view())
    }

    /// How many machines are connected now.
    pub fn connected_count(&self) -> usize {
        self.shared.sessions.len()
    }

    /// What was refused and what went through since the start.
    pub fn counters(&self) -> CounterView {
        self.shared.counters()
    }

    /// Events from now on; see [`Event`] about lagging.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.shared.sessions.subscribe()
    }

    /// Connects with something on a machine, through its agent.
    pub async fn open_tunnel(
        &self,
        machine: &MachineName,
        incarnation: Incarnation,
        target: TunnelTarget,
    ) -> Result<Tunnel, DeliveryError> {
        let session = self.shared.session(machine, incarnation)?;
        step::open_tunnel(&session, target).await
    }

    /// The machines of a cluster whose heartbeats arrive, by name.
    pub fn beating(&self, cluster: &ClusterName) -> Vec<MachineIdentity> {
        self.shared.sessions.beating(cluster, 1)
    }

    /// The same without those whose agents do not know how to probe.
    pub fn probers(&self, cluster: &ClusterName) -> Vec<MachineIdentity> {
        self.shared.sessions.beating(cluster, since(ProbeAsk::KIND))
    }

    /// Has one machine look whether another one answers, and waits for what it finds, for `limit` and a
    /// moment. Asked of a machine of another cluster, it is refused.
    pub async fn probe(
        &self,
        through: &MachineIdentity,
        about: &About,
        limit: Duration,
    ) -> Result<Found, ProbeError> {
        probe::ask(&self.shared, through, about, limit).await
    }

    /// Queues a body for the control stream of a machine, behind those that are queued already, and
    /// returns at once. [`DeliveryError::TooOld`] if the agent's protocol does not have its kind; an
    /// agent that does not read is closed ([`DeliveryError::Behind`]).
    pub fn push<B: Body>(
        &self,
        machine: &MachineName,
        incarnation: Incarnation,
        body: &B,
    ) -> Result<(), DeliveryError> {
        self.shared.session(machine, incarnation)?.push(body)
    }

    /// Tells a machine how often and how much to report, from now on until its connection ends or the
    /// whole fleet is told otherwise ([`GatewayConfig::heartbeat_budget`]); the next connection starts as
    /// the fleet does.
    pub fn tune(
        &self,
        machine: &MachineName,
        incarnation: Incarnation,
        tune: Tune2,
    ) -> Result<(), TuneError> {
        tune.check().map_err(TuneError::OutOfRange)?;
        let session = self.shared.session(machine, incarnation);
        session
            .and_then(|session| session.tune(tune))
            .map_err(TuneError::Delivery)
    }

    /// How the fleet is told to report now.
    pub fn pace(&self) -> Tune2 {
        self.shared.pace()
    }

    /// The connected machines that have said they have this artifact, of all clusters.
    pub fn artifact_holders(&self, digest: &Digest) -> Vec<MachineIdentity> {
        self.shared.artifacts.holders(digest)
    }

    /// Bytes of artifacts that this director has sent since it started.
    pub fn artifact_bytes_sent(&self) -> u64 {
        self.shared.artifacts.sent()
    }

    /// Opens a session on a machine that begins with `request`; dropping what is returned ends it.
    pub async fn open_session<B: Body>(
        &self,
        machine: &MachineName,
        incarnation: Incarnation,
        request: &B,
    ) -> Result<(SessionInput, SessionOutput), DeliveryError> {
        let session = self.shared.session(machine, incarnation)?;
        stream::open(&session, request).await
    }

    /// Counts the changes of [`SessionView::trust`], connections included.
    pub fn trust_changes(&self) -> watch::Receiver<u64> {
        self.shared.sessions.trust_changes()
    }

    /// Pushes to every agent what it lacks of the CA as it is now, and closes the sessions whose
    /// certificate is of a generation that was dropped. For whoever has changed the CA's stage; an agent
    /// that connects later is brought up to date by itself.
    pub fn bring_up_to_date(&self) {
        trust::bring_all_up(&self.shared);
    }

    /// Closes the session of an incarnation that is not current any more. Make
    /// [`IncarnationRegistry::is_current`] say so first.
    pub fn revoke(&self, identity: &MachineIdentity) {
        self.shared.sessions.revoke(identity);
    }

    /// Closes every link at once. Steps that run go on: their callers are told that they are lost, and
    /// those that go from here on cancel nothing.
    pub fn close(&self) {
        server::close(&self.shared);
    }

    /// Tells every agent that the director restarts, so that they come back at once, and waits until
    /// they were told or `deadline` passed.
    pub async fn shutdown(&self, deadline: Duration) {
        server::shutdown(&self.shared, deadline).await;
    }
}
