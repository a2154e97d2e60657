//! The bodies that are neither steps nor reports, and the number of every kind.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::{probe, session};
use crate::condition::Conditions;
use crate::id::{ClusterName, Digest, Epoch, Incarnation, MachineName};
use crate::limits::{
    HEARTBEAT_INTERVAL, HEARTBEAT_INTERVAL_MS, REPORT_INTERVAL, REPORT_INTERVAL_MS,
};
use crate::report::{FileSystems, Heartbeat, Report};
use crate::secret::Secret;
use crate::step::{self, Progress, StepId, StepResult};

use super::frame::{Frame, FrameError};

/// A type that travels as the body of one frame kind.
pub trait Body: Serialize + serde::de::DeserializeOwned + Send + Sync {
    /// The frame kind; never reused.
    const KIND: u16;
}

macro_rules! bodies {
    ($($kind:literal => $body:ty),+ $(,)?) => {
        $(impl Body for $body { const KIND: u16 = $kind; })+
        /// Every kind there is, for the test that none is used twice.
        pub const KINDS: &[(u16, &str)] = &[$(($kind, stringify!($body))),+];

        /// Decodes a frame as its kind says and encodes it again, for tests that go through every kind.
        /// A kind that is not known is [`FrameError::Unexpected`].
        pub fn recode(frame: &Frame) -> Result<Frame, FrameError> {
            match frame.kind {
                $(<$body as Body>::KIND => Frame::of(&frame.body::<$body>()?),)+
                got => Err(FrameError::Unexpected { got, want: StepHeader::KIND }),
            }
        }
    };
}

bodies! {
    0x0001 => EnrollRequest,
    0x0002 => EnrollResponse,
    0x0003 => Refusal,
    0x0010 => Hello,
    0x0011 => Welcome,
    0x0012 => Tune,
    0x0013 => RenewRequest,
    0x0014 => RenewResponse,
    0x0020 => Report,
    0x0021 => Heartbeat,
    0x0022 => Conditions,
    0x0030 => ArtifactRequest,
    0x0031 => ArtifactHeader,
    0x0040 => TunnelRequest,
    0x0041 => TunnelOpen,
    0x0050 => LapsedRequest,
    0x0060 => TrustBundle,
    0x0061 => RenewNow,
    0x0062 => TrustHeld,
    0x0070 => ArtifactsHeld,
    0x0071 => ArtifactAsk,
    0x0072 => ArtifactPeers,
    0x0073 => ArtifactWait,
    0x0074 => ArtifactGrant,
    0x0080 => session::FollowLogs,
    0x0081 => session::OpenShell,
    0x0082 => session::WatchVitals,
    0x0083 => session::SessionOpen,
    0x0084 => session::SessionInput,
    0x0085 => session::SessionOutput,
    0x0086 => session::SessionResize,
    0x0087 => session::SessionEnd,
    0x0088 => session::VitalsSample,
    0x0089 => session::RunCommand,
    0x008A => session::SendSnapshot,
    0x0090 => Tune2,
    0x00A0 => probe::ProbeAsk,
    0x00A1 => probe::ProbeAnswer,
    0x00A2 => probe::Echo,
    0x00A3 => probe::EchoAnswer,
    0x00A4 => probe::DirectorAsk,
    0x00A5 => probe::DirectorAnswer,
    0x0100 => StepHeader,
    0x0101 => Progress,
    0x0102 => StepResult,
    0x0110 => step::Fetch,
    0x0111 => step::Keys,
    0x0112 => step::Configure,
    0x0113 => step::Disk,
    0x0114 => step::Service,
    0x0115 => step::Gate,
    0x0116 => step::Collect,
    0x0117 => step::Exec,
    0x0118 => step::AgentUpgrade,
    0x0130 => step::Etcd,
    0x0138 => step::EtcdData,
    0x0140 => step::Evict,
    0x0148 => step::Hold,
    // With `frame::OPTIONAL`: whoever does not know it goes on without.
    0x8023 => FileSystems,
}

/// The oldest protocol version that has a kind: what is newer than the version agreed on is not sent.
pub fn since(kind: u16) -> u16 {
    match kind {
        0x0001..=0x0003
        | 0x0010..=0x0014
        | 0x0020..=0x0021
        | 0x0030..=0x0031
        | 0x0040..=0x0041
        | 0x0100..=0x0102
        | 0x0110..=0x0117 => 1,
        _ => 2,
    }
}

/// Name of the capability to tell pods of its own node to leave.
pub const EVICT: &str = "evict";
/// Name of the capability to have a unit stand still for a moment.
pub const HOLD: &str = "hold";
/// What agents of this release can do beyond the base of their protocol: names for [`Hello::capabilities`], sorted.
pub const CAPABILITIES: &[&str] = &[EVICT, HOLD];

/// The capability that an agent has to have named before it is sent a kind: one that came after the first agents of
/// its protocol version.
pub fn capability(kind: u16) -> Option<&'static str> {
    match kind {
        step::Evict::KIND => Some(EVICT),
        step::Hold::KIND => Some(HOLD),
        _ => None,
    }
}

/// First and only frame of a machine that has no certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollRequest {
    /// The one-time token from the settings.
    pub token: Secret,
    /// The cluster it was issued for.
    pub cluster: ClusterName,
    /// The machine it was issued for.
    pub machine: MachineName,
    /// The incarnation it was issued for.
    pub incarnation: Incarnation,
    /// PKCS#10, DER; only the public key and the proof of possession count.
    pub request_der: Vec<u8>,
}

/// First and only frame of a machine whose certificate lapsed: see [`crate::lapsed`]. The answer is
/// [`EnrollResponse`] or [`Refusal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapsedRequest {
    /// The last certificate, leaf first, then its issuer; DER.
    pub chain_der: Vec<Vec<u8>>,
    /// PKCS#10 for the new key, DER.
    pub request_der: Vec<u8>,
    /// The statement, signed by the last certificate's key.
    pub last_signature: Vec<u8>,
    /// The statement, signed by the new key.
    pub next_signature: Vec<u8>,
}

/// The machine's first certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollResponse {
    /// Leaf first, then intermediates; DER.
    pub chain_der: Vec<Vec<u8>>,
    /// Root CAs to trust from now on; DER.
    pub roots_der: Vec<Vec<u8>>,
}

/// The peer will not go on, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind of reason.
    pub code: RefusalCode,
    /// For people: what was refused, and what to do.
    pub message: String,
}

/// Reasons to refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalCode {
    /// No protocol version in common.
    Version,
    /// Token unknown, used, expired or of another machine.
    Token,
    /// Certificate of an incarnation that is not current.
    Incarnation,
    /// Too many requests; try later.
    Busy,
    /// Not found.
    NotFound,
    /// Malformed.
    Malformed,
    /// Cannot be reached from this machine.
    Unreachable,
}

/// First frame of the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol versions the agent understands, highest first.
    pub protocols: Vec<u16>,
    /// Agent version.
    pub agent_version: String,
    /// What the agent can do beyond the base: names, sorted.
    pub capabilities: Vec<String>,
    /// See [`Report::boot_id`].
    pub boot_id: String,
    /// Highest epoch the agent has seen.
    pub epoch: Epoch,
    /// Steps in the agent's journal that are not yet reported to be over, and how those that are
    /// over ended is asked by sending them again.
    pub unfinished: Vec<StepId>,
}

/// The director's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol version to speak.
    pub protocol: u16,
    /// The director's epoch.
    pub epoch: Epoch,
    /// See [`Tune`].
    pub tune: Tune,
}

/// How often and how much the agent reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tune {
    /// Between heartbeats, milliseconds, 50 to 60 000.
    pub heartbeat_interval_ms: u32,
    /// Between looks at what a report holds, milliseconds, 500 to 600 000.
    pub report_interval_ms: u32,
}

/// [`Tune`], and how much is worth a report. Holds until the next one, or the end of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tune2 {
    /// Between heartbeats, milliseconds, in [`HEARTBEAT_INTERVAL_MS`].
    pub heartbeat_interval_ms: u32,
    /// Between looks at what a report holds, milliseconds, in [`REPORT_INTERVAL_MS`].
    pub report_interval_ms: u32,
    /// What makes a report due.
    pub detail: Detail,
}

/// What makes a report due before its time. A report is always whole, and never older than 30 s or
/// the interval, whichever is longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Detail {
    /// A unit or a component changed, or usage moved noticeably.
    Full,
    /// A unit or a component changed; how usage moves, the heartbeats say.
    Units,
}

/// A pace that no agent keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{got_ms} ms between {what} are outside of {min_ms} to {max_ms} ms")]
pub struct OutOfRange {
    /// Heartbeats or reports.
    pub what: &'static str,
    /// Asked for.
    pub got_ms: u32,
    /// Shortest.
    pub min_ms: u32,
    /// Longest.
    pub max_ms: u32,
}

impl Default for Tune2 {
    /// What an agent does that was told nothing.
    fn default() -> Tune2 {
        Tune2 {
            heartbeat_interval_ms: HEARTBEAT_INTERVAL.as_millis() as u32,
            report_interval_ms: REPORT_INTERVAL.as_millis() as u32,
            detail: Detail::Full,
        }
    }
}

impl Tune2 {
    /// Whether both intervals are in their ranges. Both ends ask: one before it sends, the other
    /// before it obeys.
    pub fn check(&self) -> Result<(), OutOfRange> {
        let within = |what, got_ms: u32, range: RangeInclusive<u32>| {
            if range.contains(&got_ms) {
                return Ok(());
            }
            let (min_ms, max_ms) = range.into_inner();
            Err(OutOfRange {
                what,
                got_ms,
                min_ms,
                max_ms,
            })
        };
        within(
            "heartbeats",
            self.heartbeat_interval_ms,
            HEARTBEAT_INTERVAL_MS,
        )?;
        within("reports", self.report_interval_ms, REPORT_INTERVAL_MS)
    }

    /// What of it protocol 1 can say.
    pub fn intervals(&self) -> Tune {
        Tune {
            heartbeat_interval_ms: self.heartbeat_interval_ms,
            report_interval_ms: self.report_interval_ms,
        }
    }
}

impl From<Tune> for Tune2 {
    fn from(tune: Tune) -> Tune2 {
        Tune2 {
            heartbeat_interval_ms: tune.heartbeat_interval_ms,
            report_interval_ms: tune.report_interval_ms,
            detail: Detail::Full,
        }
    }
}

/// Asks for a new certificate over the live link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// PKCS#10, DER.
    pub request_der: Vec<u8>,
}

/// The new certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewResponse {
    /// As in [`EnrollResponse`].
    pub chain_der: Vec<Vec<u8>>,
    /// As in [`EnrollResponse`].
    pub roots_der: Vec<Vec<u8>>,
}

/// The root CAs to trust from now on, in the place of all others; answered by [`TrustHeld`] once they
/// are on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustBundle {
    /// One to [`crate::limits::ROOTS_MAX`]; DER.
    pub roots_der: Vec<Vec<u8>>,
}

/// Tells the agent to ask for a new certificate now, however young the one it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewNow {}

/// What is on the machine's disk, synced: said on connecting and after each change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustHeld {
    /// SHA-256 of the DER of each root CA that is trusted, sorted.
    pub roots: Vec<Digest>,
    /// SHA-256 of the DER of the machine's certificate.
    pub certificate: Digest,
}

/// Asks for an artifact from a byte on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRequest {
    /// Which.
    pub digest: Digest,
    /// First byte wanted.
    pub offset: u64,
}

/// Answers [`ArtifactRequest`]; the bytes follow raw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactHeader {
    /// Length of the whole artifact in bytes.
    pub bytes: u64,
}

/// What a machine has and serves to machines of its cluster; each one replaces the one before.
///
/// Since protocol version 2, as are the other bodies about peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactsHeld {
    /// UDP port of the agent's peer endpoint, at the address its packets come from.
    pub port: u16,
    /// Digests of the artifacts, at most [`crate::limits::ARTIFACTS_HELD_MAX`].
    pub digests: Vec<Digest>,
}

/// Asks where to get an artifact. The director answers as to [`ArtifactRequest`] (it sends the bytes
/// itself), with [`ArtifactPeers`] or with [`ArtifactWait`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactAsk {
    /// Which.
    pub digest: Digest,
    /// First byte wanted.
    pub offset: u64,
    /// Peers that failed for this artifact, at most [`crate::limits::PEER_FAILURES_MAX`].
    pub failed: Vec<PeerFailure>,
}

/// A peer that was of no use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerFailure {
    /// Which machine.
    pub machine: MachineName,
    /// Which incarnation of it.
    pub incarnation: Incarnation,
    /// In what way.
    pub fault: PeerFault,
}

/// In what way a peer failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerFault {
    /// No connection, or somebody else answered.
    Unreachable,
    /// It did not give the artifact.
    Refused,
    /// It broke off after some bytes.
    Broke,
    /// It was too slow.
    Slow,
    /// What it sent is not the artifact.
    Lied,
}

/// Peers of the same cluster that have the artifact and will give it to the machine that asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactPeers {
    /// Length of the whole artifact in bytes.
    pub bytes: u64,
    /// In the order in which to try them, at most [`crate::limits::PEER_FAILURES_MAX`].
    pub peers: Vec<PeerOffer>,
}

/// One peer. Its director and cluster are those of the machine that asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerOffer {
    /// Who has to answer there.
    pub machine: MachineName,
    /// Which incarnation of it.
    pub incarnation: Incarnation,
    /// Where.
    pub address: SocketAddr,
}

/// Enough copies are being made in the cluster: ask again later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactWait {
    /// How much later, milliseconds.
    pub wait_ms: u32,
}

/// Lets a machine of the same cluster have an artifact from this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactGrant {
    /// Which artifact.
    pub digest: Digest,
    /// Which machine.
    pub machine: MachineName,
    /// Which incarnation of it.
    pub incarnation: Incarnation,
    /// How long it may begin a transfer, milliseconds from the arrival of this on: the clocks of two
    /// machines need not agree.
    pub life_ms: u32,
}

/// Asks the agent to connect a stream with something on its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelRequest {
    /// With what.
    pub target: TunnelTarget,
}

/// What a tunnel may reach; an agent opens no other address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TunnelTarget {
    /// The API server of this machine (control-plane machines only).
    ApiServer,
}

/// The tunnel is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelOpen {}

/// First frame of a step stream; the step's own body follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepHeader {
    /// See [`step::StepRequest::id`].
    pub id: StepId,
    /// See [`step::StepRequest::epoch`].
    pub epoch: Epoch,
    /// See [`step::StepRequest::deadline_ms`].
    pub deadline_ms: u64,
    /// Labels for logs and audit, such as the operator's name; bounded to 16.
    pub labels: BTreeMap<String, String>,
}
