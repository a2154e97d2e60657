//! What a process uses, as the kernel counts it.

use std::fs;
use std::io;

use nix::sys::resource::{UsageWho, getrusage};

use super::error::BenchError;

/// A tick of `utime` and `stime`, microseconds: USER_HZ is 100 on every Linux we run on.
const TICK_US: u64 = 10_000;

/// Resident bytes of a process (`self` or its id), exact: `VmRSS` may be some hundred pages behind.
pub(super) fn resident_bytes(pid: &str) -> io::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Rss:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib << 10)
        .ok_or_else(|| io::Error::other("smaps_rollup has no Rss"))
}

/// The most that was ever resident of a process, bytes.
pub(super) fn peak_bytes(pid: u32) -> Result<u64, BenchError> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).map_err(BenchError::io("read", &path))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib << 10)
        .ok_or_else(|| io::Error::other("it has no VmHWM"))
        .map_err(BenchError::io("read", &path))
}

/// CPU time of this process so far, user and system, microseconds.
pub(super) fn own_cpu_us() -> u64 {
    let us = |time: nix::sys::time::TimeVal| {
        u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0)
    };
    // Cannot fail for the process itself.
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(0, |usage| us(usage.user_time()) + us(usage.system_time()))
}

/// CPU time of another process so far, in steps of [`TICK_US`].
fn cpu_us(pid: &str) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // proc(5): utime and stime are fields 14 and 15; the third is the first after the name.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    match (ticks(14), ticks(15)) {
        (Some(user), Some(system)) => Ok((user + system) * TICK_US),
        _ => Err(io::Error::other("stat has no utime and stime")),
    }
}

/// Resident bytes and CPU time of a child.
pub(super) fn of(pid: u32) -> Result<(u64, u64), BenchError> {
    let pid = pid.to_string();
    let path = format!("/proc/{pid}");
    let resident = resident_bytes(&pid).map_err(BenchError::io("read", &path))?;
    let cpu = cpu_us(&pid).map_err(BenchError::io("read", &path))?;
    Ok((resident, cpu))
}
