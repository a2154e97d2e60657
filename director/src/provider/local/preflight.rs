//! What the host lacks, all at once and before anything is changed.
//!
//! Where it can, a check tries the thing itself in a namespace that is thrown away, instead of guessing
//! from versions: an overlay on the data directory, a bridge with a veth pair, a NAT rule.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Uid, access};
use windlass_common::error::ErrorChain;

use super::cgroup::Hierarchies;
use super::network::BridgeOwner;
use super::process::run;
use super::{Inner, network, oci};
use crate::provider::{PreflightFault, Severity};

/// What a tool may take to print its version.
const TOOL_LIMIT: Duration = Duration::from_secs(10);
/// Least free space: the changes of one machine's root and its logs.
const FREE_BYTES_MIN: u64 = 2 * 1024 * 1024 * 1024;
/// Capabilities without which no machine starts, by number and name.
const NEEDED: [(u32, &str); 6] = [
    (1, "CAP_DAC_OVERRIDE"),
    (12, "CAP_NET_ADMIN"),
    (18, "CAP_SYS_CHROOT"),
    (21, "CAP_SYS_ADMIN"),
    (22, "CAP_SYS_BOOT"),
    (27, "CAP_MKNOD"),
];
/// Controllers that limit and hold a machine.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Collects what is wrong.
#[derive(Debug, Default)]
struct Faults(Vec<PreflightFault>);

impl Faults {
    fn add(&mut self, severity: Severity, subject: &str, message: String, remedy: &str) {
        self.0.push(PreflightFault {
            subject: subject.to_owned(),
            message,
            remedy: remedy.to_owned(),
            severity,
        });
    }

    fn fatal(&mut self, subject: &str, message: String, remedy: &str) {
        self.add(Severity::Fatal, subject, message, remedy);
    }

    fn degraded(&mut self, subject: &str, message: String, remedy: &str) {
        self.add(Severity::Degraded, subject, message, remedy);
    }
}

/// Everything that is wrong.
pub(super) fn faults(inner: &Inner) -> Vec<PreflightFault> {
    let mut faults = Faults::default();
    tools(inner, &mut faults);
    if !Uid::effective().is_root() {
        let message = format!("running as user {}", Uid::effective());
        faults.fatal(
            "user",
            message,
            "start the director as root; machines need it",
        );
        // Everything below would only repeat that.
        return faults.0;
    }
    capabilities(&mut faults);
    cgroups(&mut faults);
    data_directory(inner, &mut faults);
    links(inner, &mut faults);
    nat(inner, &mut faults);
    if !Path::new("/dev/loop-control").exists() {
        let message = "/dev/loop-control does not exist".to_owned();
        faults.fatal(
            "loop devices",
            message,
            "load the kernel module `loop`; disks need it",
        );
    }
    if !Path::new("/dev/kmsg").exists() {
        let message = "/dev/kmsg does not exist".to_owned();
        faults.fatal(
            "kernel log",
            message,
            "give the director's environment /dev/kmsg",
        );
    }
    faults.0
}

fn tools(inner: &Inner, faults: &mut Faults) {
    let runc = inner.runc.display().to_string();
    let tools: [(&str, &str, &str); 2] = [
        (
            "runc",
            &runc,
            "install the package `runc`, or name its path in the configuration",
        ),
        (
            "losetup",
            "losetup",
            "install the package `util-linux` (or `mount`)",
        ),
    ];
    for (subject, program, remedy) in tools {
        let mut command = Command::new(program);
        command.arg("--version");
        let limit = Instant::now() + TOOL_LIMIT;
        if let Err(error) = run(&mut command, "asking for its version", limit) {
            faults.fatal(subject, ErrorChain(&error).to_string(), remedy);
        }
    }
    if !inner.director_exe.is_file() {
        let message = format!("{} is not a program", inner.director_exe.display());
        faults.fatal("director", message, "name the director's own program");
    }
}

fn capabilities(faults: &mut Faults) {
    let set = match oci::bounding_set() {
        Ok(set) => set,
        Err(error) => {
            let message = ErrorChain(&error).to_string();
            return faults.fatal("capabilities", message, "mount /proc");
        }
    };
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(number, _)| set >> number & 1 == 0)
        .map(|(_, name)| *name)
        .collect();
    if !missing.is_empty() {
        let message = format!("root lacks {}", missing.join(", "));
        faults.fatal(
            "capabilities",
            message,
            "run on a host, or in a privileged container",
        );
    }
    if set >> 24 & 1 == 0 {
        let message =
            "root lacks CAP_SYS_RESOURCE: processes cannot be protected from the OOM killer, \
                       nor limits raised"
                .to_owned();
        let remedy = "nothing to do: machines are set up to do without (restrict_oom_score_adj)";
        faults.degraded("capabilities", message, remedy);
    }
}

fn cgroups(faults: &mut Faults) {
    let hierarchies = match Hierarchies::detect() {
        Ok(hierarchies) if !hierarchies.is_empty() => hierarchies,
        Ok(_) | Err(_) => {
            let message = "no cgroup hierarchy is mounted".to_owned();
            return faults.fatal("cgroups", message, "mount /sys/fs/cgroup");
        }
    };
    let missing: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|c| !hierarchies.has_controller(c))
        .collect();
    if !missing.is_empty() {
        let message = format!("the controllers {} are missing", missing.join(", "));
        faults.fatal(
            "cgroups",
            message,
            "enable them on the kernel's command line",
        );
    }
    if !hierarchies.writable() {
        let message = "the cgroup hierarchies are not writable".to_owned();
        faults.fatal("cgroups", message, "mount /sys/fs/cgroup read-write");
    }
}

/// The data directory, or the nearest ancestor that exists.
fn existing(path: &Path) -> PathBuf {
    let mut path = path;
    while !path.exists() {
        match path.parent() {
            Some(parent) => path = parent,
            None => break,
        }
    }
    path.to_owned()
}

fn data_directory(inner: &Inner, faults: &mut Faults) {
    let wanted = &inner.layout.dir;
    let dir = existing(wanted);
    let shown = wanted.display();
    if !dir.is_dir() {
        let message = format!("{} is not a directory", dir.display());
        return faults.fatal("data directory", message, "name another one");
    }
    if wanted.as_os_str().len() > 512 {
        let message = format!("the path {shown} is longer than 512 bytes");
        return faults.fatal("data directory", message, "name a shorter one");
    }
    if access(&dir, nix::unistd::AccessFlags::W_OK).is_err() {
        let message = format!("{} is not writable", dir.display());
        return faults.fatal(
            "data directory",
            message,
            "make it writable, or name another one",
        );
    }
    if let Ok(stat) = statvfs(&dir) {
        let free = stat.blocks_available() * stat.fragment_size();
        if free < FREE_BYTES_MIN {
            let message = format!("{free} bytes are free in {shown}, {FREE_BYTES_MIN} are needed");
            faults.fatal(
                "space",
                message,
                "free some, or name a directory on another disk",
            );
        }
    }
    if let Err(error) = probe_overlay(&dir) {
        let message = format!("cannot mount an overlay with its changes in {shown}: {error}");
        let remedy = "load the kernel module `overlay`; the directory itself must not be on an overlay \
                      (a container's own root is one), nor on a network file system";
        faults.fatal("overlay", message, remedy);
    }
}

/// Mounts an overlay in a mount namespace of a thread's own, and removes every trace.
fn probe_overlay(dir: &Path) -> io::Result<()> {
    let probe = dir.join(format!(".windlass-probe-{}", std::process::id()));
    let [lower, upper, work, root] = ["lower", "upper", "work", "root"].map(|n| probe.join(n));
    let try_it = || -> io::Result<()> {
        for path in [&lower, &upper, &work, &root] {
            fs::create_dir_all(path)?;
        }
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        let text = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let options = CString::new(text)?;
        let overlay = Some("overlay");
        mount(
            overlay,
            &root,
            overlay,
            MsFlags::empty(),
            Some(options.as_c_str()),
        )?;
        Ok(())
    };
    let result = std::thread::scope(|scope| scope.spawn(try_it).join())
        .unwrap_or_else(|_| Err(io::Error::other("the probing thread panicked")));
    let removed = fs::remove_dir_all(&probe);
    result.and(removed)
}

fn links(inner: &Inner, faults: &mut Faults) {
    if let Err(error) = network::probe_links() {
        let message = format!("cannot make a bridge with a veth pair: {error}");
        faults.fatal(
            "bridge",
            message,
            "load the kernel modules `bridge` and `veth`",
        );
    }
    match network::bridge_owner(&inner.layout) {
        Some(BridgeOwner::Ours) => {}
        Some(BridgeOwner::Other(alias)) => {
            let bridge = inner.layout.bridge();
            let message = format!("bridge {bridge} exists and belongs to {alias:?}");
            faults.fatal("name", message, "give this director another provider name");
        }
        None => address_conflicts(inner, faults),
    }
}

/// The network must be nobody else's, or machines or the host lose their way.
fn address_conflicts(inner: &Inner, faults: &mut Faults) {
    let cidr = inner.layout.cidr;
    match network::host_networks() {
        Ok(networks) => {
            for (link, other) in networks {
                if cidr.contains(&other.network()) || other.contains(&cidr.network()) {
                    let message = format!("{cidr} overlaps {other} on {link}");
                    faults.fatal("network", message, "give the machines another network");
                }
            }
        }
        Err(error) => {
            let message = format!("cannot list the host's networks: {error}");
            faults.fatal("network", message, "mount /proc");
        }
    }
}

fn nat(inner: &Inner, faults: &mut Faults) {
    if let Err(error) = network::probe_nat(&inner.layout) {
        let message = format!(
            "machines will not reach the outside, no NAT: {}",
            ErrorChain(&error)
        );
        faults.degraded("nat", message, "install the package `nftables`");
    }
    let forward = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap_or_default();
    let writable = access(
        "/proc/sys/net/ipv4/ip_forward",
        nix::unistd::AccessFlags::W_OK,
    )
    .is_ok();
    if forward.trim() != "1" && !writable {
        let message =
            "machines will not reach the outside, net.ipv4.ip_forward is off and read-only";
        faults.degraded("nat", message.to_owned(), "set it to 1 on the host");
    }
}
