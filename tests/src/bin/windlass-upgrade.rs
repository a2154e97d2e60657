//! `windlass-upgrade`: upgrades the workers of a real cluster and measures it, for `cargo xtask bench upgrade`.
//!
//! Prints one JSON object: seconds of each worker by part, beside what the same worker took by hand just before: drained
//! by `kubectl drain`, its containerd and kubelet restarted, its node Ready and uncordoned. It is told where things are
//! as the scenarios are, in its environment. Nothing is judged here.
//!
//! The pool has no surge: a worker more would be made before the first one is drained, and the last one would go without
//! a successor, so that no worker had all the parts.

#![allow(clippy::print_stdout, reason = "its result")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::{Value, json};
use windlass_tests::kubectl::Kubectl;
use windlass_tests::parts;
use windlass_tests::wait::until;
use windlass_tests::world::World;

/// Upgrades the workers of a real cluster and measures it.
#[derive(Debug, Parser)]
struct Arguments {
    /// Version that the cluster is made with.
    #[arg(long)]
    from: String,
    /// Version that it is upgraded to.
    #[arg(long)]
    to: String,
    /// Its workers, of which each is measured.
    #[arg(long, default_value_t = 3)]
    workers: u32,
}

const CLUSTER: &str = "bench";
const IMAGE: &str = "registry.windlass.internal/agnhost:1.37.2";
/// What takes longer on any host has failed.
const LONG: Duration = Duration::from_secs(600);

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let world = World::start("raise")?;
    // Without a surge, so that each worker is drained, made anew and waited for, as it is by hand.
    let update = json!({"maxSurge": 0, "maxUnavailable": 1});
    let spec = json!({
        "name": CLUSTER,
        "kubernetesVersion": arguments.from,
        "controlPlane": {"count": 1},
        "pools": {"workers": {"count": arguments.workers, "update": update}},
    });
    let file = world.dir().join("bench.json");
    std::fs::write(&file, spec.to_string())?;
    let file = file.to_string_lossy().into_owned();
    world.run(&["cluster", "create", "-f", &file, "--wait"])?;
    let kubectl = world.kubectl(CLUSTER)?;
    deploy(&kubectl, 2 * arguments.workers as usize)?;
    let mut hand = Vec::new();
    for index in 0..arguments.workers {
        let machine = format!("{CLUSTER}-workers-{index}");
        let seconds = by_hand(&world, &kubectl, &machine)?;
        eprintln!("by hand: {seconds}");
        hand.push(seconds);
    }
    let upgrade = ["cluster", "upgrade", CLUSTER, "--to", &arguments.to];
    let task = world.json(&[&upgrade[..], &["--accept-downtime"]].concat())?;
    let task = task["id"].as_str().context("a task has an id")?.to_owned();
    let task = world.task_ended(&task, LONG)?;
    anyhow::ensure!(task["state"] == "Succeeded", "the upgrade: {task:#}");
    let upgraded: Vec<Value> = parts::of(&task)
        .into_iter()
        .filter(|(machine, _)| machine.starts_with(&format!("{CLUSTER}-workers-")))
        .map(|(machine, parts)| {
            json!({"machine": machine, "drain": parts.drain, "make": parts.make,
                "switch": parts.switch, "ready": parts.ready})
        })
        .collect();
    anyhow::ensure!(
        upgraded.len() == hand.len(),
        "workers by hand: {hand:?}, by the director: {upgraded:?}"
    );
    println!("{}", json!({"workers": upgraded, "hand": hand}));
    world.run(&["cluster", "delete", CLUSTER, "--yes", "--wait"])?;
    Ok(())
}

/// Two pods a worker, which leave at once and one at a time.
fn deploy(kubectl: &Kubectl, replicas: usize) -> Result<()> {
    let labels = json!({"app": "moved"});
    let spread = json!({"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": labels}});
    kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "apps/v1", "kind": "Deployment",
         "metadata": {"name": "moved", "namespace": "default"},
         "spec": {"replicas": replicas, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "topologySpreadConstraints": [spread], "terminationGracePeriodSeconds": 2,
                "containers": [{"name": "moved", "image": IMAGE, "args": ["pause"]}]}}}},
        {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
         "metadata": {"name": "moved", "namespace": "default"},
         "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}}},
    ]}))?;
    kubectl.pods_ready("app=moved", replicas)?;
    Ok(())
}

/// Seconds of one worker, done by hand. Its programs stay what they are: to put others beside them takes no downtime.
fn by_hand(world: &World, kubectl: &Kubectl, machine: &str) -> Result<Value> {
    let node = world.json(&["node", "show", machine])?["nodeName"].clone();
    let node = node.as_str().context("it has a node")?;
    let begun = Instant::now();
    let drain = ["drain", node, "--ignore-daemonsets"];
    kubectl.run(&[&drain[..], &["--delete-emptydir-data", "--timeout=300s"]].concat())?;
    let drain = begun.elapsed().as_secs_f64();
    let before = said_ready(kubectl, node)?;
    let begun = Instant::now();
    let restart = ["systemctl", "restart", "containerd", "kubelet"];
    world.run(&[&["node", "exec", machine, "--"], &restart[..]].concat())?;
    let switch = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    // A kubelet says how its node is as soon as it runs.
    until("its node is Ready again", LONG, || {
        let ready = said_ready(kubectl, node)?;
        Ok((ready.is_some() && ready != before).then_some(()))
    })?;
    kubectl.run(&["uncordon", node])?;
    let ready = begun.elapsed().as_secs_f64();
    Ok(json!({"machine": machine, "drain": drain, "make": 0.0, "switch": switch, "ready": ready}))
}

/// When a node said last that it is Ready, if it does.
fn said_ready(kubectl: &Kubectl, node: &str) -> Result<Option<String>> {
    let node = kubectl.get(&["node", node])?;
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    Ok(ready.and_then(|ready| Some(ready["lastHeartbeatTime"].as_str()?.to_owned())))
}
