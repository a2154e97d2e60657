//! `windlass-repair`: kills machines of a real cluster and measures their repair, for `cargo xtask bench repair`.
//!
//! Prints one JSON object: for each run seconds from the kill to each moment of the repair, beside what a
//! fresh machine took to boot and join in the same run. It is told where things are as the scenarios are, in
//! its environment. Nothing is judged here.

#![allow(clippy::print_stdout, reason = "its result")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::{Value, json};
use windlass_tests::kubectl::Kubectl;
use windlass_tests::wait::until;
use windlass_tests::world::World;

/// Kills machines of a real cluster and measures their repair.
#[derive(Debug, Parser)]
struct Arguments {
    /// Machines that are killed, one after the other.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Machines of the control plane.
    #[arg(long, default_value_t = 1)]
    control_plane: u32,
    /// Workers of the cluster: the two that are not killed witness the third.
    #[arg(long, default_value_t = 3)]
    workers: u32,
}

const CLUSTER: &str = "bench";
/// A StatefulSet of one pod, and its pod: whoever dies in a run is the machine that it runs on.
const STATEFUL: (&str, &str) = ("db", "db-0");
/// An image that every stemcell carries.
const IMAGE: &str = "registry.windlass.internal/agnhost:1.37.2";
/// A repair that takes longer on any host has failed.
const LONG: Duration = Duration::from_secs(600);
/// A director heals nothing in its first minute, and says nothing about speed there.
const FIRST_MINUTE: Duration = Duration::from_secs(65);

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let world = World::start("mend")?;
    let started = Instant::now();
    let (control_plane, workers) = (arguments.control_plane, arguments.workers);
    world.run(&[
        "cluster",
        "create",
        CLUSTER,
        "--control-plane",
        &control_plane.to_string(),
        "--workers",
        &workers.to_string(),
        "--wait",
    ])?;
    until("the director watches for long enough", LONG, || {
        Ok((started.elapsed() > FIRST_MINUTE).then_some(()))
    })?;
    let kubectl = world.kubectl(CLUSTER)?;
    deploy(&kubectl)?;
    let mut runs = Vec::new();
    for run in 0..arguments.runs {
        let (fresh, fresh_steps) = fresh(&world, workers + run)?;
        let (node, _) = ready(&kubectl)?.context("the StatefulSet's pod is Ready")?;
        let (machine, _) = node
            .rsplit_once("-i")
            .context("nodes are named after machine and incarnation")?;
        let (times, steps) = killed(&world, &kubectl, machine, &node)?;
        // One that dies again soon waits for longer, so the pod goes elsewhere next time.
        for node in kubectl.ready_nodes()? {
            if node.starts_with(&format!("{machine}-i")) {
                kubectl.run(&["cordon", &node])?;
            }
        }
        eprintln!("run {}: fresh machine {fresh:.1} s, {times:?}", run + 1);
        eprintln!("  steps of the fresh machine {fresh_steps:?}");
        eprintln!("  steps of the replacement   {steps:?}");
        runs.push(json!({
            "fresh": fresh, "times": times, "freshSteps": fresh_steps, "steps": steps,
        }));
    }
    println!("{}", json!({"runs": runs}));
    Ok(())
}

/// Steps of a machine in the order of their beginning: name, and seconds of beginning and end.
type Steps = Vec<(String, f64, f64)>;

/// Seconds that a machine takes which joins the cluster, from the order of it to its node being Ready, and its
/// steps since then.
fn fresh(world: &World, there: u32) -> Result<(f64, Steps)> {
    let size = format!("workers={}", there + 1);
    world.run(&["cluster", "scale", CLUSTER, "--pool", &size, "--wait"])?;
    let task = newest(world, "")?.context("there is a task")?;
    let machine = format!("{CLUSTER}-workers-{there}");
    let began = step(&task, &machine, "create", "startedAt").context("it was created")?;
    let ready = step(&task, &machine, "await-node", "endedAt").context("it is Ready")?;
    Ok((ready - began, steps(&task, &machine, began)))
}

/// Kills a machine; seconds from then on to each moment, and to beginning and end of each step.
fn killed(
    world: &World,
    kubectl: &Kubectl,
    machine: &str,
    node: &str,
) -> Result<(BTreeMap<&'static str, f64>, Steps)> {
    let last = newest(world, "repairCluster")?.map(|task| task["id"].clone());
    let incarnation = world.json(&["node", "show", machine])?["incarnation"].as_u64();
    let incarnation = incarnation.context("an incarnation")?;
    let mut times = BTreeMap::new();
    let began = now();
    std::thread::scope(|scope| -> Result<()> {
        // The platform takes a while to remove what is left of it; it is dead from the first moment on.
        let deleted = scope.spawn(|| world.delete_behind(machine));
        until("it is suspected", LONG, || {
            Ok(world.doubted(machine, incarnation)?.then_some(()))
        })?;
        times.insert("suspected", now() - began);
        deleted
            .join()
            .map_err(|_| anyhow::anyhow!("the deletion panicked"))?
    })?;
    let task = until("its replacement is ordered", LONG, || {
        let task = newest(world, "repairCluster")?;
        Ok(task.filter(|task| Some(&task["id"]) != last.as_ref()))
    })?;
    let id = task["id"].as_str().context("a task has an id")?;
    let task = world.task_ended(id, LONG)?;
    let why = world.json(&["node", "why", machine])?;
    let history = why["case"]["history"].as_array();
    let mut gone = history.into_iter().flatten().filter(|change| {
        change["incarnation"] == incarnation && change["verdict"] == "machineGone"
    });
    let judged = gone.find_map(|change| Some(change["atMs"].as_f64()? / 1000.0));
    times.insert("judged", judged.context("it was judged")? - began);
    anyhow::ensure!(task["state"] == "Succeeded", "the repair failed: {task:#}");
    let moment = |name: &str, at: &str| step(&task, machine, name, at).map(|at| at - began);
    for (what, name, at) in [
        ("fence begun", "fence", "startedAt"),
        ("fenced", "fence", "endedAt"),
        ("replacement begun", "create", "startedAt"),
        ("replacement made", "create", "endedAt"),
        ("replacement Ready", "await-node", "endedAt"),
    ] {
        let at = moment(name, at).with_context(|| format!("no step {name}: {task:#}"))?;
        times.insert(what, at);
    }
    until("it is healthy", LONG, || {
        let why = world.json(&["node", "why", machine])?;
        Ok((why["verdict"] == "healthy").then_some(()))
    })?;
    let elsewhere = until("the StatefulSet's pod is Ready elsewhere", LONG, || {
        Ok(ready(kubectl)?.filter(|(on, _)| on != node))
    })?;
    times.insert("StatefulSet's pod Ready", elsewhere.1 - began);
    Ok((times, steps(&task, machine, began)))
}

fn deploy(kubectl: &Kubectl) -> Result<()> {
    let (name, _) = STATEFUL;
    let labels = json!({"app": name});
    kubectl.apply(&json!({"apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": 1, "serviceName": name, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{
                "name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "args": ["pause"]}]}}}}))?;
    kubectl.pods_ready(&format!("app={name}"), 1)?;
    Ok(())
}

/// The node on which the StatefulSet's pod is Ready, and since when, to the second as Kubernetes writes it.
fn ready(kubectl: &Kubectl) -> Result<Option<(String, f64)>> {
    let (_, pod) = STATEFUL;
    let pod = kubectl.get(&["pod", pod])?;
    let node = pod["spec"]["nodeName"].as_str().map(str::to_owned);
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.find(|c| c["type"] == "Ready" && c["status"] == "True");
    let since = ready.and_then(|ready| ready["lastTransitionTime"].as_str());
    let going = !pod["metadata"]["deletionTimestamp"].is_null();
    let Some((node, since)) = node.zip(since).filter(|_| !going) else {
        return Ok(None);
    };
    let since: jiff::Timestamp = since.parse()?;
    Ok(Some((node, since.as_millisecond() as f64 / 1000.0)))
}

/// The newest task of the cluster, of a kind if one is named.
fn newest(world: &World, kind: &str) -> Result<Option<Value>> {
    let list = world.json(&["task", "list"])?;
    let tasks = list["items"].as_array().context("a list of tasks")?;
    let of_kind = |task: &&Value| kind.is_empty() || task["kind"] == kind;
    let Some(found) = tasks.iter().find(of_kind) else {
        return Ok(None);
    };
    let id = found["id"].as_str().context("a task has an id")?;
    Ok(Some(world.json(&["task", "show", id])?))
}

/// All steps of a machine that were carried out, in seconds after `began`.
fn steps(task: &Value, machine: &str, began: f64) -> Steps {
    let prefix = format!("machine/{machine}/");
    let keys = task["steps"].as_object().into_iter().flatten();
    let names = keys.filter_map(|(key, _)| key.strip_prefix(&prefix));
    let times = names.filter_map(|name| {
        let at = |moment| step(task, machine, name, moment);
        Some((
            name.to_owned(),
            at("startedAt")? - began,
            at("endedAt")? - began,
        ))
    });
    let mut times: Steps = times.collect();
    times.sort_by(|a, b| a.1.total_cmp(&b.1));
    times
}

/// When a step of a machine began or ended, seconds since the Unix epoch.
fn step(task: &Value, machine: &str, name: &str, at: &str) -> Option<f64> {
    let at = task["steps"][format!("machine/{machine}/{name}")][at].as_str()?;
    let at: jiff::Timestamp = at.parse().ok()?;
    Some(at.as_millisecond() as f64 / 1000.0)
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}
