//! What a scenario has to see or break on the host itself.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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
