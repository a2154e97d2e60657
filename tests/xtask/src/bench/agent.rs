//! Size, memory and idle CPU time of the agent, on the machines of a running cluster.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::director::Director;
use super::{Metric, Report, median};
use crate::shell::step;

/// How long idle CPU time is watched: a clock tick of 10 ms in 30 s is 0.03 % of a core.
const WATCH: Duration = Duration::from_secs(30);

pub(super) fn run() -> Result<Report> {
    let director = Director::start()?;
    step(
        "creating a cluster",
        &mut director.windlass(&["cluster", "create", "bench", "--wait"]),
    )?;
    let agents = agents(&director)?;
    ensure!(
        agents.len() == 3,
        "three machines run an agent each, not {}",
        agents.len()
    );
    println!(
        "==> watching {} idle agents for {} s",
        agents.len(),
        WATCH.as_secs()
    );
    let started = Instant::now();
    let before: Vec<u64> = agents
        .iter()
        .map(|pid| cpu_ticks(*pid))
        .collect::<Result<_>>()?;
    while let Some(left) = WATCH.checked_sub(started.elapsed()) {
        std::thread::park_timeout(left);
    }
    let seconds = started.elapsed().as_secs_f64();
    let mut percent = Vec::new();
    for (pid, before) in agents.iter().zip(before) {
        #[allow(clippy::cast_precision_loss)] // a few thousand ticks
        percent.push((cpu_ticks(*pid)? - before) as f64 / 100.0 / seconds * 100.0);
    }
    let resident = agents
        .iter()
        .map(|pid| resident_mib(*pid))
        .collect::<Result<Vec<_>>>()?;
    #[allow(clippy::cast_precision_loss)] // a few million bytes
    let binary = fs::metadata(&director.binaries.agent)?.len() as f64 / 1e6;
    Ok(Report {
        bench: "agent",
        metrics: vec![
            Metric::new("static binary, stripped", "MB", binary).goal(6.0),
            Metric::new("resident memory, median", "MiB", median(resident)).goal(8.0),
            Metric::new("idle CPU, median", "%", median(percent)).goal(0.1),
        ],
        notes: vec![
            "binary: length of the file. resident: VmRSS of /proc/<pid>/status.".to_owned(),
            format!(
                "idle CPU: utime + stime of /proc/<pid>/stat over {seconds:.0} s, per cent of a core, \
                 on the three machines of an idle cluster, heartbeats and reports included."
            ),
        ],
    })
}

/// Process ids of the agents on this director's machines.
fn agents(director: &Director) -> Result<Vec<i32>> {
    let names: Vec<String> = director
        .list(&["node", "list"])?
        .iter()
        .filter_map(|node| Some(node["nodeName"].as_str()?.to_owned()))
        .collect();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        // A process may end between the listing and the look.
        let Ok(program) = fs::read_link(path.join("exe")) else {
            continue;
        };
        let hostname = fs::read_to_string(path.join("root/etc/hostname")).unwrap_or_default();
        if program.ends_with("windlass-agent") && names.iter().any(|n| n == hostname.trim()) {
            let name = path
                .file_name()
                .context("a process has a name")?
                .to_string_lossy();
            found.push(name.parse()?);
        }
    }
    Ok(found)
}

fn cpu_ticks(pid: i32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    // proc(5): utime and stime are fields 14 and 15; the third is the first after the name.
    let ticks = |field: usize| -> Result<u64> {
        fields
            .get(field - 3)
            .context("too few fields")?
            .parse()
            .context("no number")
    };
    Ok(ticks(14)? + ticks(15)?)
}

fn resident_mib(pid: i32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .context("no VmRSS")?;
    let kib: f64 = line
        .split_whitespace()
        .nth(1)
        .context("no number")?
        .parse()?;
    Ok(kib / 1024.0)
}
