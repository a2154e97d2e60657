//! What a director asks of an agent, one step at a time.
//!
//! A step is *desired state of one thing on one machine*. Each converges: repeating it does nothing
//! more. Two kinds cannot, [`Exec`] and any step interrupted before its effect is known: they run at
//! most once and report [`Outcome::Unknown`] when interrupted.
//!
//! These types are wire bodies: once released, a field never changes (see [`crate::wire`]); new
//! content is a new kind.

mod etcd;
mod etcd_data;
mod evict;
mod hold;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::error::ErrorClass;
use crate::id::{Digest, Epoch};
use crate::secret::SecretBytes;

pub use etcd::{
    Etcd, EtcdAction, EtcdMemberReport, EtcdPeer, EtcdReport, EtcdSnapshot, EtcdStatus,
    MEMBERS_MAX, SNAPSHOTS_KEPT_MAX,
};
pub use etcd_data::{
    EtcdData, EtcdDataAction, EtcdDataReport, EtcdRestore, EtcdRestoreId, EtcdSource,
    RESTORE_ID_MAX, UNFINISHED_RESTORES_MAX,
};
pub use evict::{Evict, EvictAnswer, EvictHow, EvictOutcome, EvictPod};
pub use hold::{HELD, HOLD_MS_MAX, Hold};

/// Longest step id, in bytes.
pub const STEP_ID_MAX: usize = 200;

/// Names one step of one task, the same on every attempt: `<task>/<step key>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepId(pub String);

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One order to an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRequest {
    /// Names the step on every attempt; the agent's journal is keyed by it.
    pub id: StepId,
    /// Epoch of the director that orders it; a lower one than the highest seen is refused.
    pub epoch: Epoch,
    /// How long the step may take, in milliseconds from its arrival.
    pub deadline_ms: u64,
    /// What to do.
    pub step: Step,
    /// Who asked, for logs: an operator's name and request; at most [`crate::limits::STEP_LABELS_MAX`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Bring a content-addressed artifact onto the machine.
    Fetch(Fetch),
    /// Make private keys on the machine and return certificate requests for them.
    Keys(Keys),
    /// Write files, links, routes and sysctls.
    Configure(Configure),
    /// Format and mount a persistent disk.
    Disk(Disk),
    /// Start, stop or restart units through systemd.
    Service(Service),
    /// Wait until health checks pass.
    Gate(Gate),
    /// Gather logs and diagnostics; the output is streamed.
    Collect(Collect),
    /// Run a command for an operator, at most once; the output is streamed.
    Exec(Exec),
    /// Put another agent into the place of the one that runs; of protocol 2.
    AgentUpgrade(AgentUpgrade),
    /// Act on etcd through the machine's own member; of protocol 2.
    Etcd(Etcd),
    /// Look at the data of the machine's own member of etcd, or put other data into its place; of protocol 2.
    EtcdData(EtcdData),
    /// Tell pods of the machine's own node to leave; needs a capability.
    Evict(Evict),
    /// Have a unit stand still for a moment; needs a capability.
    Hold(Hold),
}

impl Step {
    /// The kind's name, as in logs, journals and the API.
    pub fn kind(&self) -> &'static str {
        match self {
            Step::Fetch(_) => "fetch",
            Step::Keys(_) => "keys",
            Step::Configure(_) => "configure",
            Step::Disk(_) => "disk",
            Step::Service(_) => "service",
            Step::Gate(_) => "gate",
            Step::Collect(_) => "collect",
            Step::Exec(_) => "exec",
            Step::AgentUpgrade(_) => "agent-upgrade",
            Step::Etcd(_) => "etcd",
            Step::EtcdData(_) => "etcd-data",
            Step::Evict(_) => "evict",
            Step::Hold(_) => "hold",
        }
    }

    /// Whether repeating the step after an interruption is safe.
    pub fn converges(&self) -> bool {
        match self {
            Step::Fetch(_)
            | Step::Keys(_)
            | Step::Configure(_)
            | Step::Disk(_)
            | Step::Service(_)
            | Step::Gate(_)
            | Step::Collect(_)
            | Step::AgentUpgrade(_)
            | Step::Etcd(_)
            | Step::EtcdData(_)
            | Step::Evict(_)
            | Step::Hold(_) => true,
            Step::Exec(_) => false,
        }
    }
}

/// Brings one artifact into the machine's store, `/var/lib/windlass/artifacts/sha256/<hex>`;
/// resumable at any byte, verified before it appears under its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// What to bring.
    pub digest: Digest,
    /// Its length in bytes; a longer one is refused while it streams.
    pub bytes: u64,
}

/// Makes private keys (ECDSA P-256, PKCS#8 PEM, mode 0600) that are not there yet, and returns a
/// certificate request for each. The names in a certificate are the director's choice: it takes the
/// public key and the proof of possession from the request and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// Which keys; at most 16.
    pub keys: Vec<KeySpec>,
}

/// One private key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySpec {
    /// Name by which the request is returned, for example `kubelet-client`.
    pub name: String,
    /// Absolute path of the key file.
    pub path: String,
}

/// nftables rules of a machine. An agent that has a link loads them when it writes them, and keeps them once the link
/// is proven; at each boot a unit does.
pub const NETWORK_RULES_PATH: &str = "/etc/windlass/network.nft";

/// Writes configuration; each file atomically, the whole in the order given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configure {
    /// Files that have to be there.
    pub files: Vec<FileSpec>,
    /// Symbolic links that have to be there, switched atomically: path to target.
    pub links: BTreeMap<String, String>,
    /// Absolute paths that must not be there.
    pub absent: Vec<String>,
    /// Routes that this machine has to have for other machines' pods; routes of ours that are not
    /// listed (protocol number 119) are removed. `None` leaves routes alone.
    pub routes: Option<Vec<Route>>,
    /// Kernel parameters, by dotted name.
    pub sysctls: BTreeMap<String, String>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSpec {
    /// Absolute path; missing parent directories are made with mode 0755.
    pub path: String,
    /// Permission bits, for example `0o600`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it holds.
    pub content: FileContent,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileContent {
    /// Text that may be shown in a diff.
    Text(String),
    /// Bytes that are never shown.
    Secret(SecretBytes),
    /// An artifact that a `fetch` step brought.
    Artifact(Digest),
}

/// A route to another machine's pods.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// Pods of the other machine.
    pub destination: Ipv4Net,
    /// Address of the other machine.
    pub via: Ipv4Addr,
}

/// Formats a block device if it holds no file system, and mounts it now and at every boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Device path inside the machine, as the provider gave it.
    pub device: String,
    /// Where to mount it; made with mode 0700 if missing.
    pub mount_path: String,
}

/// Brings units into a state through systemd's D-Bus API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Units in the order in which they are acted on.
    pub units: Vec<UnitGoal>,
}

/// What one unit should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitGoal {
    /// Unit name with suffix, for example `kubelet.service`.
    pub unit: String,
    /// The state to reach.
    pub state: UnitState,
    /// Whether the unit starts at boot.
    pub enabled: bool,
    /// Digest over what the unit reads. A running unit that was started for another one is
    /// restarted; `None` never restarts.
    pub configuration: Option<Digest>,
    /// Whether the step waits until systemd says the job is done (for `Type=notify` units: until
    /// they are ready) or only queues it.
    pub wait: bool,
}

/// State of a unit that a step asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnitState {
    /// Started.
    Active,
    /// Stopped.
    Inactive,
}

/// Waits until every check passes at once, or the step's deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// All of these; at most 16.
    pub checks: Vec<Check>,
    /// Pause between two looks, in milliseconds, 10 to 60 000.
    pub interval_ms: u32,
}

/// One health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The unit is active.
    UnitActive {
        /// Unit name with suffix.
        unit: String,
    },
    /// A TCP connection opens.
    TcpOpen {
        /// Where.
        address: SocketAddr,
    },
    /// `GET` answers 200.
    Https {
        /// Address to connect to.
        address: SocketAddr,
        /// Name that the server's certificate has to carry.
        server_name: String,
        /// Path and query, for example `/readyz`.
        path: String,
        /// PEM bundle that the server's certificate is verified against.
        ca_path: String,
        /// Client certificate and key, PEM.
        client: Option<ClientFiles>,
    },
}

/// Client certificate files of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientFiles {
    /// Certificate chain, PEM.
    pub certificate_path: String,
    /// Private key, PEM.
    pub key_path: String,
}

/// Gathers logs of units (from the journal) and, with `diagnostics`, the state of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collect {
    /// Units to take; empty means all.
    pub units: Vec<String>,
    /// Newest lines, 1 to 10 000.
    pub lines: u32,
    /// Adds processes, mounts, addresses, routes, disks and unit states.
    pub diagnostics: bool,
}

/// Runs a command as root for an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments; at most 256.
    pub argv: Vec<String>,
}

/// Puts another agent into the place of the one that runs: fetched, staged, switched to by a restart of
/// the agent's unit. The new one is on trial until this very step reaches it over a connection of its own,
/// which confirms it; otherwise the machine itself brings the old one back, which then answers the step.
///
/// Runs alone on its machine. Pods and components are not touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentUpgrade {
    /// The agent's program, an artifact.
    pub digest: Digest,
    /// Its length in bytes, at most [`crate::limits::AGENT_BYTES_MAX`].
    pub bytes: u64,
    /// Where it is from, for people: the stemcell's version, at most 100 bytes.
    pub origin: String,
    /// How long the trial may last on one boot of the machine, seconds, in
    /// [`crate::limits::AGENT_TRIAL_S`].
    pub trial_s: u32,
}

/// What an agent sends while a step runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// What is being done, for people.
    Stage(String),
    /// Output of `collect` and `exec`.
    Output {
        /// Which stream.
        stream: OutputStream,
        /// At most [`crate::limits::CHUNK_BYTES`].
        bytes: Vec<u8>,
    },
}

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepResult {
    /// The step.
    pub id: StepId,
    /// How it ended.
    pub outcome: Outcome,
    /// What it returns.
    pub payload: Payload,
    /// What was changed, one line each; secrets are named, never shown.
    pub changes: Vec<String>,
    /// How long it took on the machine, in milliseconds.
    pub elapsed_ms: u64,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All was as desired already.
    Converged,
    /// Something was changed and is as desired now.
    Changed,
    /// Not done.
    Failed {
        /// Who acts.
        class: ErrorClass,
        /// What failed, with which values, and what to do.
        message: String,
    },
    /// A step that cannot be repeated was interrupted: what it did is not known.
    Unknown {
        /// What is known.
        message: String,
    },
    /// Not begun, and nothing was changed.
    Refused {
        /// Why.
        message: String,
    },
}

/// What a step returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// Nothing.
    None,
    /// Certificate requests of a `keys` step, PKCS#10 DER by name.
    Requests(BTreeMap<String, Vec<u8>>),
    /// Exit code of an `exec` step; 128 + signal when killed by one.
    Exit(i32),
}
