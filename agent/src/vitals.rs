//! Usage of the machine, each figure with whose it is.
//!
//! In a system container some files of the kernel show the host. There, memory and CPU time come
//! from the machine's own cgroup (v1 or v2); the load average is the host's and says so.
//!
//! A look reads four small files; nothing is kept open.

use std::fs;
use std::path::Path;

use sysinfo::{MemoryRefreshKind, System};
use windlass_common::report::{Scope, Vitals};

use crate::host::Host;

/// Clock ticks a second in `/proc` (USER_HZ), the same on every Linux architecture we build for.
const TICKS_PER_SECOND: u64 = 100;

/// Looks at usage. Holds only where to look.
#[derive(Debug, Clone)]
pub struct Gauge {
    host: Host,
    scope: Scope,
}

/// Identity and age of this boot of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Kernel boot id; in a system container followed by the start of its first process.
    pub id: String,
    /// Host's uptime at which the machine booted, in hundredths of a second.
    started_ticks: u64,
}

impl Gauge {
    /// A gauge for this machine.
    pub fn new(host: &Host) -> Self {
        let container = host.is_container();
        Self {
            host: host.clone(),
            scope: if container {
                Scope::Host
            } else {
                Scope::Machine
            },
        }
    }

    /// Usage now. A figure that cannot be read is 0.
    pub fn look(&self) -> Vitals {
        let (memory_used_bytes, memory_total_bytes, memory_scope) = self.memory();
        let (cpu_used_ms, cpu_scope) = self.cpu();
        let (disk_used_bytes, disk_total_bytes) = disk(self.host.root());
        Vitals {
            memory_used_bytes,
            memory_total_bytes,
            memory_scope,
            cpu_used_ms,
            cpu_scope,
            disk_used_bytes,
            disk_total_bytes,
            load1_centi: load1_centi(),
            load_scope: self.scope,
        }
    }

    /// Which boot this is.
    pub fn boot(&self) -> Boot {
        let kernel = self.read("/proc/sys/kernel/random/boot_id");
        let kernel = kernel.trim().to_owned();
        match self.scope {
            Scope::Machine => Boot {
                id: kernel,
                started_ticks: 0,
            },
            Scope::Host => {
                let started_ticks = start_ticks(&self.read("/proc/1/stat")).unwrap_or(0);
                Boot {
                    id: format!("{kernel}-{started_ticks}"),
                    started_ticks,
                }
            }
        }
    }

    fn memory(&self) -> (u64, u64, Scope) {
        let (available, total) = kernel_memory().unwrap_or((0, 0));
        match (self.scope, self.cgroup_memory()) {
            (Scope::Host, Some((used, limit))) => (used, limit.min(total), Scope::Machine),
            (scope, _) => (total.saturating_sub(available), total, scope),
        }
    }

    /// Working set, as the kubelet counts it, and limit of the machine's cgroup.
    fn cgroup_memory(&self) -> Option<(u64, u64)> {
        let v2 = |file| format!("/sys/fs/cgroup/{file}");
        let v1 = |file| format!("/sys/fs/cgroup/memory/{file}");
        let (used, limit, stat, inactive) = if self.host.path(&v1("memory.stat")).exists() {
            (
                v1("memory.usage_in_bytes"),
                v1("memory.limit_in_bytes"),
                v1("memory.stat"),
                "total_inactive_file",
            )
        } else {
            (
                v2("memory.current"),
                v2("memory.max"),
                v2("memory.stat"),
                "inactive_file",
            )
        };
        let used: u64 = self.read(&used).trim().parse().ok()?;
        // `max` is no number: without limit, the host's memory is.
        let limit = self.read(&limit).trim().parse().unwrap_or(u64::MAX);
        let inactive = field(&self.read(&stat), inactive).unwrap_or(0);
        Some((used.saturating_sub(inactive), limit))
    }

    fn cpu(&self) -> (u64, Scope) {
        let v1 = self.read("/sys/fs/cgroup/cpuacct/cpuacct.usage");
        let v2 = self.read("/sys/fs/cgroup/cpu.stat");
        let own = v1
            .trim()
            .parse::<u64>()
            .ok()
            .map(|nanoseconds| nanoseconds / 1_000_000)
            .or_else(|| field(&v2, "usage_usec").map(|microseconds| microseconds / 1000));
        match (self.scope, own) {
            (Scope::Host, Some(own)) => (own, Scope::Machine),
            (scope, _) => (cpu_used_ms(&self.read("/proc/stat")).unwrap_or(0), scope),
        }
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.host.path(path)).unwrap_or_default()
    }
}

impl Boot {
    /// Seconds since the machine booted.
    pub fn uptime_s(&self) -> u64 {
        let uptime_s = System::uptime().unwrap_or(0);
        uptime_s.saturating_sub(self.started_ticks / TICKS_PER_SECOND)
    }
}

/// What the kernel says is available and there, in bytes.
fn kernel_memory() -> Result<(u64, u64), sysinfo::Error> {
    let mut system = System::new()?;
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    Ok((system.available_memory(), system.total_memory()))
}

fn disk(root: &Path) -> (u64, u64) {
    let Ok(stat) = nix::sys::statvfs::statvfs(root) else {
        return (0, 0);
    };
    let (blocks, free) = (stat.blocks(), stat.blocks_free());
    let block = stat.fragment_size();
    (blocks.saturating_sub(free) * block, blocks * block)
}

fn load1_centi() -> u32 {
    let load = System::load_average().map_or(0.0, |load| load.one);
    // The cast saturates, and no machine has a load of 40 million.
    (load * 100.0).max(0.0) as u32
}

/// Value of `name` in a file of lines `name value`.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

/// CPU time in use, from the first line of `/proc/stat`; guest time is part of user time there.
fn cpu_used_ms(stat: &str) -> Option<u64> {
    let ticks: Vec<u64> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace()
        .map_while(|n| n.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal
    let used: u64 = [0, 1, 2, 5, 6].iter().filter_map(|i| ticks.get(*i)).sum();
    Some(used * 1000 / TICKS_PER_SECOND)
}

/// Field 22 of `/proc/<pid>/stat`, counted behind the name, which may hold spaces.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Gauge) {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let gauge = Gauge::new(&Host::open(dir.path()).unwrap());
        (dir, gauge)
    }

    const STAT: &str = "cpu  100 20 30 4000 500 6 7 0 0 0\ncpu0 1 2 3\n";

    #[test]
    fn a_container_shows_its_own_cgroup_and_the_hosts_load() {
        let boot = ("proc/sys/kernel/random/boot_id", "abc\n");
        let init = (
            "proc/1/stat",
            "1 (a (b) c) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 1 2\n",
        );
        let container = ("run/systemd/container", "oci\n");
        let v2 = [
            boot,
            init,
            container,
            ("proc/stat", STAT),
            ("sys/fs/cgroup/memory.current", "1000000\n"),
            ("sys/fs/cgroup/memory.max", "4000000\n"),
            (
                "sys/fs/cgroup/memory.stat",
                "anon 5\ninactive_file 300000\n",
            ),
            ("sys/fs/cgroup/cpu.stat", "usage_usec 5000\nuser_usec 1\n"),
        ];
        let v1 = [
            boot,
            init,
            container,
            ("proc/stat", STAT),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "4000000\n"),
            (
                "sys/fs/cgroup/memory/memory.stat",
                "inactive_file 1\ntotal_inactive_file 300000\n",
            ),
            ("sys/fs/cgroup/cpuacct/cpuacct.usage", "5000000\n"),
        ];
        for files in [v1, v2] {
            let (_dir, gauge) = machine(&files);
            let vitals = gauge.look();
            assert_eq!(vitals.memory_used_bytes, 700_000);
            assert_eq!(vitals.memory_total_bytes, 4_000_000);
            assert_eq!(vitals.cpu_used_ms, 5);
            assert_eq!(
                (vitals.memory_scope, vitals.cpu_scope),
                (Scope::Machine, Scope::Machine)
            );
            assert_eq!(vitals.load_scope, Scope::Host);
            assert!(
                vitals.disk_total_bytes >= vitals.disk_used_bytes && vitals.disk_total_bytes > 0
            );
            assert_eq!(gauge.boot().id, "abc-777");
        }
    }

    #[test]
    fn a_vm_shows_the_kernels_figures() {
        let (_dir, gauge) = machine(&[
            ("proc/stat", STAT),
            ("proc/sys/kernel/random/boot_id", "abc\n"),
        ]);
        let vitals = gauge.look();
        assert_eq!(vitals.cpu_used_ms, 1630);
        assert!(vitals.memory_total_bytes > vitals.memory_used_bytes);
        assert_eq!(
            (vitals.memory_scope, vitals.load_scope),
            (Scope::Machine, Scope::Machine)
        );
        assert_eq!(gauge.boot().id, "abc");
    }

    #[test]
    fn a_container_without_its_own_figures_says_whose_they_are() {
        let (_dir, gauge) = machine(&[("run/systemd/container", "oci"), ("proc/stat", STAT)]);
        let vitals = gauge.look();
        assert_eq!(
            (vitals.memory_scope, vitals.cpu_scope),
            (Scope::Host, Scope::Host)
        );
    }
}
