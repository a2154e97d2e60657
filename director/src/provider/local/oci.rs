//! The OCI configuration of a machine: what runc is told.
//!
//! The machine is a system container: root of its own process, mount, network, uts, ipc and cgroup
//! namespaces, not of a user namespace. It separates machines from one another's accidents; it is no
//! boundary against a hostile root in one.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use windlass_common::fence::WATCHDOG;

use super::files::What;
use super::record::Record;
use crate::provider::ProviderError;

/// Every capability, in the order of its number (`linux/capability.h`).
#[rustfmt::skip] // the index is the number
const CAPABILITIES: [&str; 41] = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
];
/// The period over which processor time is counted, in µs; the kernel's own default.
const CPU_PERIOD_US: u64 = 100_000;
/// Device nodes a machine gets if the host has them, besides those every container has.
const DEVICES: [&str; 2] = ["/dev/fuse", "/dev/net/tun"];

/// A block device the machine gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlockDevice {
    pub(crate) path: String,
    pub(crate) major: u64,
    pub(crate) minor: u64,
}

/// The bounding set of this process, as a bit mask.
pub(crate) fn bounding_set() -> Result<u64, ProviderError> {
    let path = "/proc/self/status";
    let text = fs::read_to_string(path).what(|| format!("cannot read {path}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .ok_or_else(|| ProviderError::Bug(format!("{path} has no CapBnd")))
}

/// Which of the given capabilities a set has, by name; asking runc for one that is not there fails.
pub(crate) fn capabilities(set: u64) -> Vec<String> {
    CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(number, _)| set >> number & 1 == 1)
        .map(|(_, name)| format!("CAP_{name}"))
        .collect()
}

/// The configuration for the next start.
pub(crate) fn config(
    record: &Record,
    netns: &Path,
    disks: &[BlockDevice],
) -> Result<Value, ProviderError> {
    let caps = capabilities(bounding_set()?);
    let namespaces: Vec<Value> = ["pid", "ipc", "uts", "mount", "cgroup"]
        .iter()
        .map(|kind| json!({ "type": kind }))
        .chain([json!({ "type": "network", "path": netns })])
        .collect();
    let devices: Vec<Value> = disks
        .iter()
        .map(|d| {
            json!({ "path": d.path, "type": "b", "major": d.major, "minor": d.minor,
                    "fileMode": 0o600, "uid": 0, "gid": 0 })
        })
        .collect();
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/sbin/init"],
            "cwd": "/",
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "container=oci"],
            "capabilities": { "bounding": caps, "effective": caps, "permitted": caps, "inheritable": caps },
            "noNewPrivileges": false,
        },
        "root": { "path": record.dir().root() },
        "hostname": record.hostname,
        "mounts": mounts(record),
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": record.cgroup(),
            "rootfsPropagation": "shared",
            "resources": {
                "devices": [{ "allow": true, "access": "rwm" }],
                "memory": { "limit": record.size.memory_bytes },
                "cpu": {
                    "period": CPU_PERIOD_US,
                    "quota": u64::from(record.size.cpu_millis) * CPU_PERIOD_US / 1000,
                    "shares": (u64::from(record.size.cpu_millis) * 1024 / 1000).max(2),
                },
            },
            "devices": devices,
            "sysctl": sysctls(),
            "maskedPaths": [],
            "readonlyPaths": [],
        },
    }))
}

/// Settings of the machine's network namespace; those the host's kernel does not have are left out.
fn sysctls() -> Value {
    let mut map = serde_json::Map::new();
    for key in ["net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables"] {
        if Path::new("/proc/sys").join(key.replace('.', "/")).exists() {
            map.insert(key.to_owned(), Value::from("1"));
        }
    }
    Value::Object(map)
}

fn mount(to: impl AsRef<Path>, kind: &str, from: impl AsRef<Path>, options: &[&str]) -> Value {
    json!({ "destination": to.as_ref(), "type": kind, "source": from.as_ref(), "options": options })
}

/// What every machine has mounted: where, type, source, options.
#[rustfmt::skip] // a table
const MOUNTS: [(&str, &str, &str, &[&str]); 10] = [
    ("/proc",          "proc",   "proc",   &["nosuid", "noexec", "nodev"]),
    ("/sys",           "sysfs",  "sysfs",  &["nosuid", "noexec", "nodev", "rw"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "rw"]),
    ("/dev",           "tmpfs",  "tmpfs",  &["nosuid", "mode=755"]),
    ("/dev/pts",       "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm",       "tmpfs",  "shm",    &["nosuid", "nodev", "mode=1777"]),
    ("/dev/mqueue",    "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/run",           "tmpfs",  "tmpfs",  &["nosuid", "nodev", "mode=755"]),
    ("/run/lock",      "tmpfs",  "tmpfs",  &["nosuid", "noexec", "nodev", "mode=1777"]),
    ("/tmp",           "tmpfs",  "tmpfs",  &["nosuid", "nodev", "mode=1777"]),
];

fn mounts(record: &Record) -> Vec<Value> {
    let dir = record.dir();
    let files = dir.files();
    let mut mounts: Vec<Value> = MOUNTS
        .iter()
        .map(|(to, kind, from, options)| mount(to, kind, from, options))
        .collect();
    mounts.push(mount("/dev/kmsg", "bind", "/dev/kmsg", &["bind", "rw"]));
    for file in ["meminfo", "swaps"] {
        mounts.push(mount(
            format!("/proc/{file}"),
            "bind",
            files.join(file),
            &["bind", "ro"],
        ));
    }
    mounts.push(mount(WATCHDOG, "bind", dir.watchdog(), &["bind", "rw"]));
    for device in DEVICES.into_iter().filter(|d| Path::new(d).exists()) {
        mounts.push(mount(device, "bind", device, &["bind", "rw"]));
    }
    for seed in &record.seeds {
        mounts.push(mount(
            &seed.path,
            "bind",
            dir.data(&seed.path),
            &["rbind", "rw", "rshared"],
        ));
        let stemcell = record.stemcell.join("rootfs");
        let from = stemcell.join(seed.path.strip_prefix("/").unwrap_or(&seed.path));
        for part in &seed.read_only {
            mounts.push(mount(
                seed.path.join(part),
                "bind",
                from.join(part),
                &["bind", "ro"],
            ));
        }
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_those_of_the_set() {
        assert_eq!(capabilities(0b101), ["CAP_CHOWN", "CAP_DAC_READ_SEARCH"]);
        assert_eq!(capabilities(1 << 21), ["CAP_SYS_ADMIN"]);
        assert_eq!(capabilities(1 << 40), ["CAP_CHECKPOINT_RESTORE"]);
        assert!(
            capabilities(!(1 << 24))
                .iter()
                .all(|c| c != "CAP_SYS_RESOURCE")
        );
    }
}
