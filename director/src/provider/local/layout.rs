//! Where everything of one provider is: names on the host and files in its data directory.
//!
//! ```text
//! <dir>/machines/<machine>/machine.json   what it is (written first and last during creation)
//!                          power          desired power: `running` or `stopped`
//!                          boots          how often it was started
//!                          upper, work    its changes to the stemcell's root (overlay)
//!                          root           where the monitor mounts it, in the monitor's own mount namespace
//!                          data/<path>    directories that must not be on an overlay (containerd, kubelet)
//!                          files/         meminfo and swaps as the machine sees them; watchdog, a pipe of its own
//!                          config.json    the OCI configuration of the last start
//!                          init.pid       its init process, as runc wrote it
//!                          monitor.lock   held by the monitor as long as it lives
//!                          console.log, runc.log, monitor.log
//! <dir>/kept/<name>/       a machine that was set aside: its directory as it was, with kept.json
//! <dir>/disks/<disk>/      disk.json, image (sparse)
//! <dir>/endpoints/         <cluster>.json, <cluster>.lock, <cluster>.log
//! /run/windlass-<name>/    <machine>.sock (control of the monitor), runc/ (runc's own state)
//! ```
//!
//! Host names: bridge `wl-<name>`, its ports `w<name>-<hex>` (the offset of the machine's address in
//! the network, which is unique), containers `wl-<name>-<machine>`, cgroups `/windlass-<name>/<machine>`,
//! nftables table `wl_<name>`. The machine's network namespace has no name: it ends with the machine.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use windlass_common::id::{ClusterName, DiskName, MachineName};

/// Longest provider name: `w` + name + `-` + 4 hex digits must fit the 15 bytes of an interface name.
pub(crate) const NAME_MAX: usize = 8;
/// Widest network: 16 host bits are the 4 hex digits of a port's name.
pub(crate) const PREFIX_MIN: u8 = 16;
/// Narrowest network: the gateway and five machines or endpoints.
pub(crate) const PREFIX_MAX: u8 = 29;

/// Names and paths of one provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// The data directory, canonical.
    pub(crate) dir: PathBuf,
    /// The prefix of every name on the host.
    pub(crate) name: String,
    /// The network.
    pub(crate) cidr: Ipv4Net,
}

impl Layout {
    pub(crate) fn bridge(&self) -> String {
        format!("wl-{}", self.name)
    }

    /// The host's end of the machine's link.
    pub(crate) fn port(&self, address: Ipv4Addr) -> String {
        let offset = u32::from(address).wrapping_sub(u32::from(self.cidr.network()));
        format!("{}{offset:x}", self.port_prefix())
    }

    pub(crate) fn port_prefix(&self) -> String {
        format!("w{}-", self.name)
    }

    /// The host's own address on the bridge: the first of the network.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.cidr.network()).wrapping_add(1))
    }

    pub(crate) fn nft_table(&self) -> String {
        format!("wl_{}", self.name)
    }

    pub(crate) fn container(&self, machine: &MachineName) -> String {
        format!("wl-{}-{machine}", self.name)
    }

    /// The parent of all machines' cgroups, absolute within each hierarchy.
    pub(crate) fn cgroup_parent(&self) -> String {
        format!("/windlass-{}", self.name)
    }

    pub(crate) fn cgroup(&self, machine: &MachineName) -> String {
        format!("{}/{machine}", self.cgroup_parent())
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        PathBuf::from(format!("/run/windlass-{}", self.name))
    }

    pub(crate) fn runc_root(&self) -> PathBuf {
        self.run_dir().join("runc")
    }

    pub(crate) fn socket(&self, machine: &MachineName) -> PathBuf {
        self.run_dir().join(format!("{machine}.sock"))
    }

    pub(crate) fn machines(&self) -> PathBuf {
        self.dir.join("machines")
    }

    pub(crate) fn machine(&self, machine: &MachineName) -> MachineDir {
        MachineDir(self.machines().join(machine.as_str()))
    }

    /// Where machines are that were set aside.
    pub(crate) fn kept(&self) -> PathBuf {
        self.dir.join("kept")
    }

    pub(crate) fn disks(&self) -> PathBuf {
        self.dir.join("disks")
    }

    pub(crate) fn disk(&self, disk: &DiskName) -> PathBuf {
        self.disks().join(disk.as_str())
    }

    pub(crate) fn endpoints(&self) -> PathBuf {
        self.dir.join("endpoints")
    }

    pub(crate) fn endpoint_file(&self, cluster: &ClusterName, extension: &str) -> PathBuf {
        self.endpoints().join(format!("{cluster}.{extension}"))
    }
}

/// The files of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MachineDir(pub(crate) PathBuf);

impl MachineDir {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
    pub(crate) fn record(&self) -> PathBuf {
        self.0.join("machine.json")
    }
    pub(crate) fn power(&self) -> PathBuf {
        self.0.join("power")
    }
    pub(crate) fn boots(&self) -> PathBuf {
        self.0.join("boots")
    }
    pub(crate) fn upper(&self) -> PathBuf {
        self.0.join("upper")
    }
    pub(crate) fn work(&self) -> PathBuf {
        self.0.join("work")
    }
    pub(crate) fn root(&self) -> PathBuf {
        self.0.join("root")
    }
    /// The host directory behind an absolute path of the machine.
    pub(crate) fn data(&self, path: &Path) -> PathBuf {
        self.0
            .join("data")
            .join(path.strip_prefix("/").unwrap_or(path))
    }
    pub(crate) fn files(&self) -> PathBuf {
        self.0.join("files")
    }
    /// The pipe through which the machine speaks to its watchdog.
    pub(crate) fn watchdog(&self) -> PathBuf {
        self.files().join("watchdog")
    }
    pub(crate) fn config(&self) -> PathBuf {
        self.0.join("config.json")
    }
    pub(crate) fn init_pid(&self) -> PathBuf {
        self.0.join("init.pid")
    }
    pub(crate) fn lock(&self) -> PathBuf {
        self.0.join("monitor.lock")
    }
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_fit_and_differ() {
        let layout = Layout {
            dir: "/d".into(),
            name: "abcdefgh".into(),
            cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 9, 0, 0), PREFIX_MIN),
        };
        let last = layout.port(Ipv4Addr::new(10, 9, 255, 254));
        assert_eq!(last, "wabcdefgh-fffe");
        assert!(
            last.len() <= 15,
            "{last} is longer than an interface name may be"
        );
        assert_ne!(last, layout.port(Ipv4Addr::new(10, 9, 255, 253)));
        assert!(layout.bridge().len() <= 15);
        assert_eq!(layout.gateway(), Ipv4Addr::new(10, 9, 0, 1));
    }

    #[test]
    fn the_longest_machine_name_fits_a_socket_path() {
        let machine = MachineName::new("m".repeat(63)).unwrap();
        let layout = Layout {
            dir: "/d".into(),
            name: "abcdefgh".into(),
            cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 9, 0, 0), 24),
        };
        assert!(layout.socket(&machine).as_os_str().len() < 108);
    }
}
