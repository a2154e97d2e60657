//! What a scenario has to see or break on the host itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::until;

/// Processes whose command line contains `needle`, with that line; never this one.
pub fn processes(needle: &str) -> Result<Vec<(i32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        // A process that ended since the listing is no process.
        let Ok(bytes) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&bytes).replace('\0', " ");
        if line.contains(needle) && pid != nix::unistd::getpid().as_raw() {
            found.push((pid, line.trim().to_owned()));
        }
    }
    Ok(found)
}

/// Processes of one machine, by the name of their program.
pub fn machine_processes(hostname_prefix: &str, program: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for (pid, line) in processes(program)? {
        let is_program = line
            .split_whitespace()
            .next()
            .is_some_and(|argv0| argv0.ends_with(program));
        if !is_program {
            continue;
        }
        // The process sees its machine's own /etc/hostname.
        let hostname = fs::read_to_string(format!("/proc/{pid}/root/etc/hostname"));
        if hostname.is_ok_and(|name| name.trim().starts_with(hostname_prefix)) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The first process of a machine, whose directory the provider keeps at `machine`.
pub fn machine_init(machine: &Path) -> Result<i32> {
    let path = machine.join("init.pid");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let pid = text.trim().parse();
    pid.with_context(|| format!("{} holds no process number", path.display()))
}

/// Interrupts a process, as Ctrl-C does.
pub fn interrupt(pid: i32) -> Result<()> {
    kill(Pid::from_raw(pid), Signal::SIGINT).with_context(|| format!("cannot interrupt {pid}"))
}

/// Ends a process at once; one that is gone already is fine.
pub fn kill_hard(pid: i32) -> Result<()> {
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot kill process {pid}")),
    }
}

/// A machine whose processes do not run, until this is dropped.
#[derive(Debug)]
pub struct Frozen(PathBuf, &'static str);

impl Frozen {
    /// Freezes a machine of the director named `director`.
    pub fn machine(director: &str, machine: &str) -> Result<Frozen> {
        let group = format!("windlass-{director}/{machine}");
        let v1 = Path::new("/sys/fs/cgroup/freezer").join(&group);
        let v2 = Path::new("/sys/fs/cgroup").join(&group);
        let (file, freeze, thaw) = if v1.is_dir() {
            (v1.join("freezer.state"), "FROZEN", "THAWED")
        } else {
            (v2.join("cgroup.freeze"), "1", "0")
        };
        fs::write(&file, freeze).with_context(|| format!("cannot write {}", file.display()))?;
        let frozen = Frozen(file, thaw);
        if freeze == "FROZEN" {
            until("the machine is frozen", Duration::from_secs(5), || {
                Ok((fs::read_to_string(&frozen.0)?.trim() == freeze).then_some(()))
            })?;
        }
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.0, self.1) {
            eprintln!("cannot thaw {}: {error}", self.0.display());
        }
    }
}

/// A process that does not run, until this is dropped.
#[derive(Debug)]
pub struct Stopped(i32);

impl Stopped {
    /// Stops a process.
    pub fn process(pid: i32) -> Result<Stopped> {
        kill(Pid::from_raw(pid), Signal::SIGSTOP)
            .with_context(|| format!("cannot stop process {pid}"))?;
        Ok(Stopped(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        match kill(Pid::from_raw(self.0), Signal::SIGCONT) {
            // Its watchdog may have ended it.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => eprintln!("cannot continue process {}: {error}", self.0),
        }
    }
}

/// Packets of one machine to one UDP port of this host are dropped, until this is dropped.
#[derive(Debug)]
pub struct Blocked(String);

impl Blocked {
    /// Drops what comes from `address` to UDP `port`.
    pub fn udp(address: &str, port: u16) -> Result<Blocked> {
        let table = format!("windlass_test_{}", std::process::id());
        let blocked = Blocked(table.clone());
        nft(&format!(
            "table inet {table} {{ chain input {{ type filter hook input priority -300; \
             ip saddr {address} udp dport {port} drop; }}; }}"
        ))?;
        Ok(blocked)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        if let Err(error) = nft(&format!("delete table inet {}", self.0)) {
            eprintln!("cannot let packets through again: {error:#}");
        }
    }
}

fn nft(rules: &str) -> Result<()> {
    let output = Command::new("nft").arg(rules).output();
    let output = output.context("cannot start nft")?;
    if output.status.success() {
        return Ok(());
    }
    bail!(
        "nft refuses {rules:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Everything on this host that names `dir` or carries `prefix`: processes, mounts, links, network
/// namespaces, cgroups, loop devices.
pub fn traces(dir: &Path, prefix: &str) -> Result<Vec<String>> {
    let needle = dir.to_string_lossy().into_owned();
    let mut traces: Vec<String> = processes(&needle)?
        .into_iter()
        .map(|(pid, line)| format!("process {pid}: {line}"))
        .collect();
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    traces.extend(
        mounts
            .lines()
            .filter(|l| l.contains(&needle))
            .map(|l| format!("mount {l}")),
    );
    for (what, place) in [
        ("link", "/sys/class/net"),
        ("network namespace", "/run/netns"),
    ] {
        traces.extend(
            named(place, prefix)
                .into_iter()
                .map(|name| format!("{what} {name}")),
        );
    }
    let controllers = named("/sys/fs/cgroup", "");
    let groups = controllers
        .iter()
        .map(|name| format!("/sys/fs/cgroup/{name}"))
        .chain(std::iter::once("/sys/fs/cgroup".to_owned()));
    for place in groups {
        let ours = named(
            &place,
            &format!("windlass-{}", prefix.trim_start_matches("wl-")),
        );
        traces.extend(
            ours.into_iter()
                .map(|name| format!("cgroup {place}/{name}")),
        );
    }
    for device in named("/sys/block", "loop") {
        let backing = fs::read_to_string(format!("/sys/block/{device}/loop/backing_file"));
        if backing.is_ok_and(|file| file.contains(&needle)) {
            traces.push(format!("loop device {device}"));
        }
    }
    Ok(traces)
}

fn named(place: &str, prefix: &str) -> Vec<String> {
    // A place that does not exist holds nothing.
    let Ok(entries) = fs::read_dir(place) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}
