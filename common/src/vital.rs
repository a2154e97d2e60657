//! What the figures about a machine are counted in, and where its agent reads them: one row a vital.
//!
//! Figures travel without either ([`crate::report`]): both follow from what a figure is, and whether the machine is a
//! system container. Only whose a figure is, the machine alone knows.
//!
//! # Not here
//! Reading (the agent); ages (the director).

use serde::{Deserialize, Serialize};

use crate::report::{Scope, Vitals};

/// A figure about a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vital {
    /// Memory in use.
    Memory,
    /// CPU time since the machine booted.
    Cpu,
    /// Load average over one minute.
    Load,
    /// Since the machine booted.
    Uptime,
    /// Space of a file system in use.
    Disk,
    /// Inodes of a file system in use.
    Inodes,
}

/// What a figure is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Hundredths of one.
    Hundredths,
    /// Things, one by one.
    Count,
}

impl Vital {
    /// All of them.
    pub const ALL: [Vital; 6] = [
        Vital::Memory,
        Vital::Cpu,
        Vital::Load,
        Vital::Uptime,
        Vital::Disk,
        Vital::Inodes,
    ];

    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Vital::Memory => "memory",
            Vital::Cpu => "cpu",
            Vital::Load => "load",
            Vital::Uptime => "uptime",
            Vital::Disk => "disk",
            Vital::Inodes => "inodes",
        }
    }

    /// What it is counted in.
    pub fn unit(self) -> Unit {
        match self {
            Vital::Memory | Vital::Disk => Unit::Bytes,
            Vital::Cpu => Unit::Milliseconds,
            Vital::Load => Unit::Hundredths,
            Vital::Uptime => Unit::Seconds,
            Vital::Inodes => Unit::Count,
        }
    }

    /// Where the agent of a machine reads it. `subject` is the mount point of a file system; `contained` is whether
    /// the machine is a system container, and `scope` whose the figure is: there, the machine's own are of its cgroup.
    pub fn source(self, subject: &str, contained: bool, scope: Scope) -> String {
        let own_cgroup = contained && scope == Scope::Machine;
        let source = match (self, own_cgroup) {
            (Vital::Memory, true) => {
                "cgroup: memory.current less inactive_file, memory.max (v1: memory.usage_in_bytes, limit_in_bytes)"
            }
            (Vital::Memory, false) => "/proc/meminfo by sysinfo",
            (Vital::Cpu, true) => "cgroup: cpu.stat (v1: cpuacct.usage)",
            (Vital::Cpu, false) => "/proc/stat",
            (Vital::Load, _) => "/proc/loadavg by sysinfo",
            (Vital::Uptime, _) if contained => {
                "/proc/uptime by sysinfo, less the start in /proc/1/stat"
            }
            (Vital::Uptime, _) => "/proc/uptime by sysinfo",
            (Vital::Disk | Vital::Inodes, _) => return format!("statvfs {subject}"),
        };
        source.to_owned()
    }
}

/// Whether they are of a system container: its load average is the host's.
pub fn contained(vitals: &Vitals) -> bool {
    vitals.load_scope == Scope::Host
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    #[rustfmt::skip] // one row a vital
    fn every_vital_has_a_unit_and_a_source_of_each_sort_of_machine() {
        let rows = [
            (Vital::Memory, Unit::Bytes,        "/proc/meminfo",         "memory.current"),
            (Vital::Cpu,    Unit::Milliseconds, "/proc/stat",            "cpu.stat"),
            (Vital::Load,   Unit::Hundredths,   "/proc/loadavg",         "/proc/loadavg"),
            (Vital::Uptime, Unit::Seconds,      "/proc/uptime",          "/proc/1/stat"),
            (Vital::Disk,   Unit::Bytes,        "statvfs /var/lib/etcd", "statvfs /var/lib/etcd"),
            (Vital::Inodes, Unit::Count,        "statvfs /var/lib/etcd", "statvfs /var/lib/etcd"),
        ];
        assert_eq!(rows.map(|row| row.0), Vital::ALL);
        for (vital, unit, machine, container) in rows {
            assert_eq!(vital.unit(), unit, "{vital:?}");
            let source = |contained| vital.source("/var/lib/etcd", contained, Scope::Machine);
            assert!(source(false).contains(machine), "{}", source(false));
            assert!(source(true).contains(container), "{}", source(true));
        }
        let names: BTreeSet<_> = Vital::ALL.map(Vital::name).into();
        assert_eq!(names.len(), Vital::ALL.len());
    }

    #[test]
    fn a_container_that_has_no_figures_of_its_own_says_that_they_are_the_kernels() {
        for vital in [Vital::Memory, Vital::Cpu] {
            let kernel = vital.source("", false, Scope::Machine);
            assert_eq!(vital.source("", true, Scope::Host), kernel);
            assert_ne!(vital.source("", true, Scope::Machine), kernel);
        }
    }
}
