//! Directors and agents die in the middle of a create; the cluster comes up all the same.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use windlass_tests::host;
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::lifecycle::{healthy, items, with_world};

/// The Kubernetes version before the newest one.
const OLDER: &str = "1.36.3";

pub(crate) fn director_five_times() -> Result<()> {
    with_world(|world| {
        let task = start_create(world, "crash", "1")?;
        let mut progress = 0;
        for crash in 1..=5 {
            // Each crash comes after more of the plan is done than at the one before.
            progress = until("the create goes on", Duration::from_secs(60), || {
                let done = steps_done(&world.json(&["task", "show", &task])?);
                Ok((done > progress || crash == 1).then_some(done))
            })?;
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
    })
}

pub(crate) fn agent_during_configure() -> Result<()> {
    with_world(|world| {
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
        // Kill the agent of each machine as soon as it is seen, three times over.
        let mut killed = BTreeSet::new();
        until("six agents were killed", Duration::from_secs(60), || {
            for pid in host::machine_processes("agents-", "windlass-agent")? {
                if killed.insert(pid) {
                    host::kill_hard(pid)?;
                }
            }
            Ok((killed.len() >= 6).then_some(()))
        })?;
        let ended = world.task_ended(&task, Duration::from_secs(180))?;
        ensure!(ended["state"] == "Succeeded", "task: {ended:#}");
        let kubectl = world.kubectl("agents")?;
        healthy(&kubectl, 2)?;
        let version: Value = serde_json::from_str(&kubectl.run(&["get", "--raw", "/version"])?)?;
        ensure!(
            version["gitVersion"] == format!("v{OLDER}"),
            "API server: {version}"
        );
        world.run(&["cluster", "delete", "agents", "--yes", "--wait"])?;
        Ok(())
    })
}

pub(crate) fn cancel() -> Result<()> {
    with_world(|world| {
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
    })
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
