//! What an agent says it observes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::Epoch;

/// Whose a value is: in a system container some files of the kernel show the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The machine's own.
    Machine,
    /// The host's; never evidence about one machine.
    Host,
}

impl Scope {
    /// Both.
    pub const ALL: [Scope; 2] = [Scope::Machine, Scope::Host];

    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Machine => "machine",
            Scope::Host => "host",
        }
    }
}

/// Usage of a machine. Where each figure is read, and in what it is counted: [`crate::vital`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vitals {
    /// Memory in use, bytes, with its limit and whose it is.
    pub memory_used_bytes: u64,
    /// Memory the machine may use, bytes.
    pub memory_total_bytes: u64,
    /// Whose the memory figures are.
    pub memory_scope: Scope,
    /// CPU time the machine used since it booted, milliseconds.
    pub cpu_used_ms: u64,
    /// Whose the CPU time is.
    pub cpu_scope: Scope,
    /// Root file system: bytes used.
    pub disk_used_bytes: u64,
    /// Root file system: size in bytes.
    pub disk_total_bytes: u64,
    /// Load average over one minute, in hundredths.
    pub load1_centi: u32,
    /// Whose the load average is.
    pub load_scope: Scope,
}

/// File systems that one machine tells of: the one at its root, and eight more.
pub const FILE_SYSTEMS_MAX: usize = 9;

/// Use of one mounted file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// Where it is mounted.
    pub point: String,
    /// Bytes used.
    pub used_bytes: u64,
    /// Size in bytes.
    pub total_bytes: u64,
    /// Inodes used.
    pub inodes_used: u64,
    /// Inodes there are; 0 where they are made as they are needed.
    pub inodes_total: u64,
    /// Whose it is: a directory of the host's file system is as full as the host makes it.
    pub scope: Scope,
}

/// The file systems of a machine; each one replaces the one before. Since protocol version 2; a director that does
/// not know it skips it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FileSystems {
    /// Agent's wall clock at the look, milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// At most [`FILE_SYSTEMS_MAX`], that of the root first.
    pub file_systems: Vec<FileSystem>,
}

/// State of one systemd unit, in systemd's own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitReport {
    /// `active`, `activating`, `failed`, …
    pub active_state: String,
    /// `running`, `auto-restart`, …
    pub sub_state: String,
    /// Automatic restarts since the unit was loaded.
    pub restarts: u32,
}

/// The whole observed state; sent when something in it changed, and on connecting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Agent's wall clock, milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// Kernel boot id, or for a system container the machine's own id of this boot.
    pub boot_id: String,
    /// Seconds since the machine booted.
    pub uptime_s: u64,
    /// Agent version.
    pub agent_version: String,
    /// Component name to version, from the component switch on disk.
    pub components: BTreeMap<String, String>,
    /// The units the agent watches.
    pub units: BTreeMap<String, UnitReport>,
    /// Usage.
    pub vitals: Vitals,
}

/// The small periodic sign of life, sent as a QUIC datagram.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Grows by one with each heartbeat of a connection.
    pub sequence: u64,
    /// Agent's wall clock, milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// Units that are failed or restarting.
    pub units_unhealthy: u16,
    /// Memory in use, hundredths of a percent.
    pub memory_used_bp: u16,
    /// Root file system in use, hundredths of a percent.
    pub disk_used_bp: u16,
    /// Highest epoch the agent has seen.
    pub epoch: Epoch,
}
