//! Directors and agents die in the middle of a create; the cluster comes up all the same. Each scenario has a director
//! of its own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use windlass_tests::host;
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::lifecycle::{healthy, items};

/// The Kubernetes version before the newest one.
const OLDER: &str = "1.36.3";

pub(crate) fn director_five_times() -> Result<()> {
    let world = &World::start("crash")?;
    let task = start_create(world, "crash", "1")?;
    let mut progress = 0;
    for crash in 1..=5 {
        // Each crash comes as soon as more of the plan is done than at the one before, or in the
        // middle of a step that takes longer than this.
        let since = Instant::now();
        let seen = until("the create goes on", Duration::from_secs(60), || {
            let seen = world.json(&["task", "show", &task])?;
            let moved = steps_done(&seen) > progress;
            Ok((moved || since.elapsed() > Duration::from_millis(700)).then_some(seen))
        })?;
        ensure!(
            seen["state"] == "Running",
            "crash {crash} came too late: {}",
            seen["state"]
        );
        progress = steps_done(&seen);
        world.crash_director()?;
    }
    let ended = world.task_ended(&task, Duration::from_secs(180))?;
    ensure!(ended["state"] == "Succeeded", "task: {ended:#}");
    let kubectl = world.kubectl("crash")?;
    healthy(&kubectl, 2)?;
    let machines = world.json(&["node", "list", "--cluster", "crash"])?;
    ensure!(items(&machines)?.len() == 2, "machines: {machines}");
    world.run(&["cluster", "delete", "crash", "--yes", "--wait"])?;
    Ok(())
}

pub(crate) fn agent_during_configure() -> Result<()> {
    let world = &World::start("agent")?;
    // The older of the two minors, so that both are seen to come up.
    let task = world.json(&[
        "cluster",
        "create",
        "agents",
        "--workers",
        "1",
        "--kubernetes-version",
        OLDER,
    ])?;
    let task = task["id"].as_str().context("a task has an id")?.to_owned();
    let mut cut_off: Vec<(String, usize)> = Vec::new();
    while cut_off.len() < 2 {
        let seen = kill_while_configuring("agents-", &cut_off)?;
        cut_off.push(seen);
    }
    let ended = world.task_ended(&task, Duration::from_secs(180))?;
    ensure!(ended["state"] == "Succeeded", "task: {ended:#}");
    for (hostname, before) in &cut_off {
        let agents = host::machine_processes(hostname, "windlass-agent")?;
        let agent = agents.first().context("the agent runs again")?;
        let now = configuration_files(*agent);
        ensure!(
            *before < now,
            "{hostname} had all of its {now} files when its agent died"
        );
    }
    let kubectl = world.kubectl("agents")?;
    healthy(&kubectl, 2)?;
    let version: Value = serde_json::from_str(&kubectl.run(&["get", "--raw", "/version"])?)?;
    ensure!(
        version["gitVersion"] == format!("v{OLDER}"),
        "API server: {version}"
    );
    world.run(&["cluster", "delete", "agents", "--yes", "--wait"])?;
    Ok(())
}

pub(crate) fn cancel() -> Result<()> {
    let world = &World::start("undo")?;
    let task = start_create(world, "cancel", "1")?;
    until("machines are there", Duration::from_secs(60), || {
        Ok((steps_done(&world.json(&["task", "show", &task])?) > 2).then_some(()))
    })?;
    world.run(&["task", "cancel", &task])?;
    let ended = world.task_ended(&task, Duration::from_secs(60))?;
    ensure!(ended["state"] == "Cancelled", "task: {ended:#}");
    let left: Vec<_> = world
        .traces()?
        .into_iter()
        .filter(|trace| trace.contains("cancel-"))
        .collect();
    ensure!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    let clusters = world.json(&["cluster", "list"])?;
    ensure!(
        !clusters.to_string().contains("\"cancel\""),
        "clusters: {clusters}"
    );
    Ok(())
}

/// Kills an agent of these machines the moment the first file of its configuration appears; returns
/// its machine's host name and how many files there were. Machines in `done` are left alone.
fn kill_while_configuring(prefix: &str, done: &[(String, usize)]) -> Result<(String, usize)> {
    let started = Instant::now();
    let mut agents = Vec::new();
    let mut looked = Instant::now();
    while started.elapsed() < Duration::from_secs(30) {
        // Finding processes is slow beside writing files: look for new ones now and then only.
        if agents.is_empty() || looked.elapsed() > Duration::from_millis(100) {
            agents = host::machine_processes(prefix, "windlass-agent")?;
            looked = Instant::now();
        }
        for pid in &agents {
            let files = configuration_files(*pid);
            let hostname = std::fs::read_to_string(format!("/proc/{pid}/root/etc/hostname"));
            if let (true, Ok(hostname)) = (files > 0, hostname)
                && !done.iter().any(|(killed, _)| killed == hostname.trim())
            {
                host::kill_hard(*pid)?;
                return Ok((hostname.trim().to_owned(), files));
            }
        }
    }
    anyhow::bail!("no agent was seen configuring")
}

/// Certificates and configuration files in the machine of this process.
fn configuration_files(pid: i32) -> usize {
    let count = |dir: &str| {
        // A machine that is going, or a directory that is not made yet, has none.
        let entries = std::fs::read_dir(format!("/proc/{pid}/root/etc/{dir}"));
        entries
            .into_iter()
            .flatten()
            .flatten()
            .filter(|e| e.path().is_file())
            .count()
    };
    ["kubernetes", "kubernetes/pki", "windlass/units"]
        .iter()
        .map(|dir| count(dir))
        .sum()
}

fn start_create(world: &World, name: &str, workers: &str) -> Result<String> {
    let task = world.json(&["cluster", "create", name, "--workers", workers])?;
    Ok(task["id"].as_str().context("a task has an id")?.to_owned())
}

fn steps_done(task: &Value) -> usize {
    let steps = task["steps"].as_object();
    steps.map_or(0, |steps| {
        steps
            .values()
            .filter(|step| step["state"] == "Succeeded")
            .count()
    })
}
