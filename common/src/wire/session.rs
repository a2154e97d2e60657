//! Bodies of sessions: streams of the director that live as long as somebody listens.
//!
//! The first frame says what for ([`FollowLogs`], [`OpenShell`], [`RunCommand`], [`WatchVitals`],
//! [`SendSnapshot`]); the agent answers [`SessionOpen`] or a refusal, then sends output or samples, and
//! [`SessionEnd`] last if it ends by itself. The director closes its side to end it. Sent from protocol version 2 on.

use serde::{Deserialize, Serialize};

use crate::id::Epoch;
use crate::report::Vitals;
use crate::step::OutputStream;

/// Who asked for a session; for the machine's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The operator.
    pub operator: String,
    /// The request, as in the director's audit log.
    pub request: String,
    /// Epoch of the director; a lower one than the highest seen is refused.
    pub epoch: Epoch,
}

/// Follows the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowLogs {
    /// Who asked.
    pub origin: Origin,
    /// Units to follow; empty means all.
    pub units: Vec<String>,
    /// Newest lines to begin with, 0 to 10 000.
    pub lines: u32,
}

/// Starts a login shell as root on a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenShell {
    /// Who asked.
    pub origin: Origin,
    /// Kind of terminal, as in `TERM`.
    pub term: String,
    /// Lines of the terminal.
    pub rows: u16,
    /// Columns of the terminal.
    pub columns: u16,
}

/// Runs a command as root, without a terminal, on what the operator sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunCommand {
    /// Who asked.
    pub origin: Origin,
    /// Program and arguments; no shell is involved.
    pub argv: Vec<String>,
}

/// Sends usage at an interval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchVitals {
    /// Who asked.
    pub origin: Origin,
    /// Between two samples, milliseconds; see [`crate::limits::VITALS_INTERVAL_MS`].
    pub interval_ms: u32,
}

/// Sends a snapshot of etcd that is on the machine's data disk: its bytes as [`SessionOutput`], then
/// [`SessionEnd::Exit`] with 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendSnapshot {
    /// Who asked.
    pub origin: Origin,
    /// Which: the name in the [`crate::step::EtcdSnapshot`] that the step said which took it.
    pub name: String,
}

/// The session is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOpen {}

/// Typed by the operator, or read from what a command is given; one without bytes is the end of a command's
/// input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInput {
    /// At most [`crate::limits::CHUNK_BYTES`].
    pub bytes: Vec<u8>,
}

/// Written on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOutput {
    /// Where it came from; a terminal has standard output alone.
    pub stream: OutputStream,
    /// At most [`crate::limits::CHUNK_BYTES`].
    pub bytes: Vec<u8>,
}

/// The operator's terminal has another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionResize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// The session ended by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionEnd {
    /// What ran has ended: its exit code; 128 + signal when killed by one.
    Exit(i32),
    /// It cannot go on, and why.
    Failed(String),
}

/// Usage of the machine at a moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VitalsSample {
    /// Agent's wall clock, milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// Usage.
    pub vitals: Vitals,
}
