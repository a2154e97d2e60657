//! Conditions of a machine: what an agent looks at beyond the states of units, with source, scope and age.
//!
//! A unit can be active and its program hang; a disk fills while all units run. Conditions are names, not an
//! enum, so that an agent may report one that its director does not know: that one is shown and counts for
//! nothing.
//!
//! # Invariants
//! * A condition says whose it is. What is the host's says nothing about one machine, and is never evidence.
//! * A condition is bad after several looks in a row ([`BAD_AFTER_MS`]), so that a restart is none.
//!
//! # Not here
//! Looking (the agent); what a bad one means (the director).

use serde::{Deserialize, Serialize};

use crate::report::Scope;

/// The kubelet answers at its health port.
pub const KUBELET: &str = "kubelet";
/// containerd answers a question about its version.
pub const CONTAINERD: &str = "containerd";
/// The member of etcd answers for itself; whether the cluster has a quorum is not asked.
pub const ETCD: &str = "etcd";
/// containerd has a network for pods: its CNI plugins are there and configured.
pub const CNI: &str = "cni";
/// etcd has raised no alarm: its space is not used up, and its data is whole.
pub const ETCD_ALARM: &str = "etcd-alarm";
/// A file system has room.
pub const DISK_SPACE: &str = "disk-space";
/// A file system has inodes left.
pub const DISK_INODES: &str = "disk-inodes";
/// The kernel has made no file system read-only, and seen no task hang. That it killed for want of memory is no fault of
/// the machine: that is how it keeps the rest alive.
pub const KERNEL_LOG: &str = "kernel-log";
/// Work does not stand still for want of memory, or of input and output (PSI).
pub const PRESSURE: &str = "pressure";
/// The machine's clock and the director's agree; the director finds out by itself.
pub const CLOCK: &str = "clock";

/// All names of this release.
pub const NAMES: [&str; 10] = [
    KUBELET,
    CONTAINERD,
    CNI,
    ETCD,
    ETCD_ALARM,
    DISK_SPACE,
    DISK_INODES,
    KERNEL_LOG,
    PRESSURE,
    CLOCK,
];

/// Where etcd's authority is on a control-plane machine.
pub const ETCD_CA_PATH: &str = "/etc/kubernetes/pki/etcd-ca.crt";
/// The certificate with which etcd's health is asked for.
pub const ETCD_CERTIFICATE_PATH: &str = "/etc/kubernetes/pki/apiserver-etcd-client.crt";
/// Its key.
pub const ETCD_KEY_PATH: &str = "/etc/kubernetes/pki/apiserver-etcd-client.key";
/// Port of etcd's clients on loopback.
pub const ETCD_PORT: u16 = 2379;
/// Port of the kubelet's health on loopback.
pub const KUBELET_PORT: u16 = 10248;

/// Between two looks, milliseconds: a look is a few local questions and system calls.
pub const LOOK_INTERVAL_MS: u32 = 5_000;
/// A look that is not answered in this time has failed, milliseconds.
pub const LOOK_LIMIT_MS: u32 = 3_000;
/// What fails for this long, in every look, is bad: systemd restarts a program in less, milliseconds.
pub const BAD_AFTER_MS: u64 = 15_000;
/// What was said longer ago than this counts for nothing: twice the time after which all is said again.
pub const AGE_MAX_MS: u64 = 90_000;
/// A file system with less than this share free is full, in hundredths of a percent. The kubelet evicts pods
/// from 10 % on; this is where that did not help.
pub const FREE_MIN_BP: u64 = 500;
/// A machine on which everything stands still for want of memory for a larger share of a minute cannot work,
/// hundredths of a percent: it reads again from its disk what it just threw out.
pub const MEMORY_FULL_MAX_BP: u32 = 2_000;
/// The same for input and output. Machines that write much stand still for a third of the time and are well.
pub const IO_FULL_MAX_BP: u32 = 8_000;
/// A clock that differs from the director's by more is wrong, milliseconds: certificates are issued an hour
/// back, but Leases and tokens are compared. What a heartbeat takes is part of the difference.
pub const CLOCK_MAX_MS: u64 = 10_000;
/// Conditions that one machine reports: six kinds of one, three of pressure, two for each of eight file systems,
/// and some to spare.
pub const CONDITIONS_MAX: usize = 32;
/// Longest text of a condition, bytes.
pub const SAYS_MAX: usize = 200;

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Good,
    /// Not as it should be, for long enough to count.
    Bad,
    /// It cannot be told.
    Unknown,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which kind, of [`NAMES`] or of a newer release.
    pub name: String,
    /// Which one of its kind, such as a mount point; empty where there is one.
    pub subject: String,
    /// How it is.
    pub state: State,
    /// What was seen, at most [`SAYS_MAX`] bytes.
    pub says: String,
    /// What was asked, for people.
    pub source: String,
    /// Whose it is.
    pub scope: Scope,
    /// Agent's wall clock at the look, milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// Since when it is in this state, by the same clock.
    pub since_unix_ms: u64,
}

/// All conditions of a machine; each one replaces the one before. Since protocol version 2.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Conditions {
    /// Agent's wall clock when it was said, milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// At most [`CONDITIONS_MAX`].
    pub conditions: Vec<Condition>,
}

/// `text` in at most [`SAYS_MAX`] bytes and without control characters.
pub fn shown(text: &str) -> String {
    let mut shown = String::new();
    for char in text.chars() {
        let char = if char.is_control() { ' ' } else { char };
        if shown.len() + char.len_utf8() > SAYS_MAX {
            break;
        }
        shown.push(char);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_short_and_printable() {
        assert_eq!(shown("a\nb"), "a b");
        assert_eq!(shown(&"ä".repeat(150)).len(), SAYS_MAX);
        let odd = format!("x{}", "ä".repeat(150));
        assert_eq!(shown(&odd).len(), SAYS_MAX - 1, "no half of a character");
    }

    #[test]
    fn names_are_distinct() {
        let distinct: std::collections::BTreeSet<_> = NAMES.into_iter().collect();
        assert_eq!(distinct.len(), NAMES.len());
    }
}
