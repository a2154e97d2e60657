//! The link: the agent's end of the connection to its director.
//!
//! [`Link::run`] enrolls if there is no certificate, connects, says hello, sends reports and
//! heartbeats, hands steps to the [`Handler`], and comes back when the connection breaks. It decides
//! nothing about the machine.
//!
//! # Invariants
//! * The machine's key is made here, is on disk (0600) before anybody hears of it, and never leaves.
//! * The director is the one whose root CA has the pinned digest; once enrolled, the one whose root is
//!   among those it handed out last, also for enrolling again.
//! * At most [`STEPS_IN_FLIGHT_MAX`](windlass_common::limits::STEPS_IN_FLIGHT_MAX) steps run at a time,
//!   and one step id runs once: a step that is sent again while it runs is attached to.
//! * A broken connection stops no step; the director's cancel does.
//!
//! # After a crash
//! A key without a certificate enrolls again with the same key, which the token allows. A certificate
//! that was being renewed is the old one or the new one, whole.
//!
//! # Not here
//! What a step does and its journal, and the check of the epoch: the [`Handler`]'s.

mod answer;
mod artifact;
mod attempts;
mod connection;
mod enroll;
mod handler;
mod identity;
mod lapsed;
mod proof;
mod reconnect;
mod renewal;
mod resume;
mod silence;
mod source;
mod steps;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use windlass_common::clock::Clock;
use windlass_common::id::Digest;
use windlass_common::limits::PEER_SERVE_BYTES_PER_S;
use windlass_common::pki::MachineIdentity;
use windlass_common::settings::Settings;
use windlass_common::wire::message::PeerFailure;

use crate::artifacts::ArtifactStore;
use crate::peer::{PeerError, Peers, Sharing};
use attempts::Attempts;

pub use artifact::{ArtifactStream, FetchError, Origin};
pub use attempts::AttemptCounts;
pub use enroll::EnrollError;
pub use handler::{CancelToken, Handler, HelloFacts, ProgressSink, StepFuture};
pub use identity::IdentityError;
pub(crate) use identity::{Identity, IdentityStore};
pub use proof::LinkProof;
pub use reconnect::LinkError;
pub use source::LinkArtifacts;

/// Where the link keeps its state and what it may reach.
#[derive(Debug, Clone)]
pub struct LinkPaths {
    /// Directory of key, certificate and root CAs; made with mode 0700.
    pub identity_dir: PathBuf,
    /// The API server of this machine, the only address that a tunnel opens.
    pub api_server: SocketAddr,
}

impl LinkPaths {
    /// Where a machine has these things.
    pub fn standard() -> LinkPaths {
        LinkPaths {
            identity_dir: PathBuf::from("/var/lib/windlass/identity"),
            api_server: SocketAddr::from((Ipv4Addr::LOCALHOST, 6443)),
        }
    }
}

/// The connection there is, and what may be said on it.
#[derive(Debug, Clone)]
struct Live {
    connection: quinn::Connection,
    /// The protocol version agreed on: kinds of a newer one are not sent.
    protocol: u16,
}

/// The link of one machine.
pub struct Link {
    settings: Settings,
    paths: LinkPaths,
    clock: Clock,
    current: watch::Sender<Option<Live>>,
    attempts: Arc<Attempts>,
    sharing: Option<Sharing>,
    reread: Option<Reread>,
}

/// Reads the settings as they are now; `None` if they cannot be read.
type Reread = Box<dyn Fn() -> Option<Settings> + Send + Sync>;

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("machine", &self.settings.machine)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// A link that is not yet running.
    pub fn new(settings: Settings, paths: LinkPaths) -> Link {
        let (current, _) = watch::channel(None);
        Link {
            settings,
            paths,
            clock: Clock::system(),
            current,
            attempts: Arc::default(),
            sharing: None,
            reread: None,
        }
    }

    /// Has the settings read again whenever the machine needs a token, since a fresh one may have been put
    /// into them. With it comes the root to find the director by: the one that this machine was born with may
    /// have been dropped since. Nothing else of them is taken, and nothing of those of another machine.
    pub fn rereading(self, read: impl Fn() -> Option<Settings> + Send + Sync + 'static) -> Link {
        let reread: Option<Reread> = Some(Box::new(read));
        Link { reread, ..self }
    }

    /// Serves the artifacts in `store` to machines of the same cluster, as far as the director grants
    /// them, on the UDP address `listen`.
    pub fn sharing(self, store: ArtifactStore, listen: SocketAddr) -> Link {
        self.sharing_at(PEER_SERVE_BYTES_PER_S, store, listen)
    }

    /// The same, at this rate to all of them together.
    pub fn sharing_at(self, bytes_per_s: u64, store: ArtifactStore, listen: SocketAddr) -> Link {
        let sharing = Some(Sharing::new(store, listen, bytes_per_s));
        Link { sharing, ..self }
    }

    /// Goes by this clock instead of the system's.
    pub fn with_clock(self, clock: Clock) -> Link {
        Link { clock, ..self }
    }

    /// For steps that need something from the director.
    pub fn handle(&self) -> LinkHandle {
        LinkHandle {
            current: self.current.subscribe(),
            attempts: Arc::clone(&self.attempts),
            peers: self.peers(),
        }
    }

    /// For steps that could cut the link.
    pub fn proof(&self) -> LinkProof {
        LinkProof {
            peers: self.peers(),
            directors: self.settings.directors.clone(),
            clock: self.clock.clone(),
        }
    }

    fn peers(&self) -> Peers {
        Peers {
            me: self.me(),
            identity_dir: self.paths.identity_dir.clone(),
        }
    }

    fn me(&self) -> MachineIdentity {
        identity_of(&self.settings)
    }

    /// The settings with the token and the root of now.
    fn settings_now(&self) -> Settings {
        let mut settings = self.settings.clone();
        match self.reread.as_ref().and_then(|read| read()) {
            Some(found) if identity_of(&found) == self.me() => {
                (settings.token, settings.ca_digest) = (found.token, found.ca_digest);
            }
            Some(found) => {
                let found = identity_of(&found);
                tracing::warn!(%found, "the settings are of another machine now; they are not taken");
            }
            None => {}
        }
        settings
    }

    /// Runs until `shutdown` turns true (or its sender is gone), coming back after every failure.
    /// Fails only if the machine's own state cannot be used: see [`LinkError`].
    pub async fn run(
        self,
        handler: Arc<dyn Handler>,
        shutdown: watch::Receiver<bool>,
    ) -> Result<(), LinkError> {
        reconnect::run(self, handler, shutdown).await
    }
}

fn identity_of(settings: &Settings) -> MachineIdentity {
    MachineIdentity {
        director: settings.director_id.clone(),
        cluster: settings.cluster.clone(),
        machine: settings.machine.clone(),
        incarnation: settings.incarnation,
    }
}

/// Asks the director for things over whichever connection there is.
#[derive(Debug, Clone)]
pub struct LinkHandle {
    current: watch::Receiver<Option<Live>>,
    attempts: Arc<Attempts>,
    peers: Peers,
}

impl LinkHandle {
    /// Opens an artifact at a byte, from the director itself. Waits for a connection for as long as the caller does; dropping
    /// the stream ends the transfer, and [`FetchError::Lost`] is followed by another call with the
    /// offset reached. The bytes are not verified here.
    pub async fn fetch(&self, digest: Digest, offset: u64) -> Result<ArtifactStream, FetchError> {
        artifact::fetch(self.current.clone(), digest, offset).await
    }

    /// The same from wherever the director says: itself or a machine of the same cluster that has it.
    /// `failed` are the peers that were of no use so far. [`FetchError::Later`] asks to come again.
    pub async fn fetch_shared(
        &self,
        digest: Digest,
        offset: u64,
        failed: &[PeerFailure],
    ) -> Result<ArtifactStream, FetchError> {
        artifact::fetch_shared(self, digest, offset, failed).await
    }

    /// The protocol version agreed on with the director, while there is a connection.
    pub fn protocol(&self) -> Option<u16> {
        self.current.borrow().as_ref().map(|live| live.protocol)
    }

    /// Whether the machine of this cluster at an address hears the director.
    pub(crate) async fn peer_hears_director(&self, at: SocketAddr) -> Result<bool, PeerError> {
        self.peers.hears_director(at).await
    }

    /// What became of the attempts so far.
    pub fn attempts(&self) -> AttemptCounts {
        self.attempts.counts()
    }

    /// Whether there is a connection now.
    pub fn is_connected(&self) -> bool {
        self.current.borrow().is_some()
    }
}
