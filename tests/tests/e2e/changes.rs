//! Clusters change in service: their size, their version; directors die and operators change their minds.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use windlass_tests::kubectl::Kubectl;
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::drains::{let_go, lost_agent, strict, told_by_nodes};
use crate::gates::{Gates, gates_are_gone, smoke};
use crate::lifecycle::{healthy, items, with_world};
use crate::load::{Traffic, control, finished};

/// The Kubernetes version before the newest one.
const OLDER: &str = "1.36.3";
pub(crate) const NEWER: &str = "1.37.2";
pub(crate) const IMAGE: &str = "registry.windlass.internal/agnhost:1.37.2";

/// Pools grow and shrink; what is on machines that go moves.
pub(crate) fn scale() -> Result<()> {
    with_world(|world| {
        world.run(&["cluster", "create", "size", "--workers", "1", "--wait"])?;
        let kubectl = world.kubectl("size")?;
        healthy(&kubectl, 2)?;
        let plan = world.json(&[
            "cluster",
            "scale",
            "size",
            "--pool",
            "workers=3",
            "--dry-run",
        ])?;
        let hash = plan["hash"].as_str().context("a plan has a hash")?;
        let up = ["cluster", "scale", "size", "--pool", "workers=3", "--wait"];
        world.run(&[&up[..], &["--plan", hash]].concat())?;
        healthy(&kubectl, 4)?;
        deploy(&kubectl, 3)?;
        blocked(world, &kubectl)?;
        told_by_nodes(world, "size-cp-0")?;
        healthy(&kubectl, 2)?;
        kubectl.pods_ready("app=web", 3)?;
        reconfigured(world, &kubectl)?;
        let_go(world, &kubectl)?;
        healthy(&kubectl, 2)?;
        kubectl.pods_ready("app=web", 3)?;
        lost_agent(world, &kubectl)?;
        healthy(&kubectl, 2)?;
        let machines = world.json(&["node", "list", "--cluster", "size"])?;
        ensure!(items(&machines)?.len() == 2, "machines: {machines}");
        done(world, "size")?;
        // Another change is not what was shown.
        let other = ["cluster", "scale", "size", "--pool", "workers=2"];
        let stale = world.output(&[&other[..], &["--plan", hash]].concat())?;
        ensure!(stale.status.code() == Some(4), "a stale plan: {stale:?}");
        world.run(&["cluster", "delete", "size", "--yes", "--wait"])?;
        Ok(())
    })
}

/// Kubelet settings are taken over in place; those that keep a node from being Ready are rolled back, the rest
/// of the pool is not touched, and pods run all the while. Wants a cluster `size` of one worker, leaves it with two.
fn reconfigured(world: &World, kubectl: &Kubectl) -> Result<()> {
    world.run(&["cluster", "scale", "size", "--pool", "workers=2", "--wait"])?;
    healthy(kubectl, 3)?;
    let told = |settings: Value| -> Result<String> {
        let mut spec = world.json(&["cluster", "show", "size"])?["spec"].clone();
        spec["pools"]["workers"]["kubelet"] = settings;
        let file = world.dir().join("kubelet.json");
        std::fs::write(&file, spec.to_string())?;
        Ok(file.to_string_lossy().into_owned())
    };
    let pods = || kubectl.get(&["pods", "-l", "app=web"]);
    let alive = |pods: &Value| -> Vec<Value> {
        let pods = pods["items"].as_array().into_iter().flatten();
        pods.map(|pod| {
            json!([
                pod["metadata"]["uid"],
                pod["status"]["containerStatuses"][0]["restartCount"]
            ])
        })
        .collect()
    };
    let capacity = || -> Result<Vec<Value>> {
        let nodes = kubectl.get(&["nodes", "-l", "windlass.internal/pool=workers"])?;
        let nodes = nodes["items"].as_array().cloned().context("nodes")?;
        Ok(nodes
            .iter()
            .map(|node| node["status"]["capacity"]["pods"].clone())
            .collect())
    };
    let before = alive(&pods()?);
    let file = told(json!({"maxPods": 61}))?;
    world.run(&["cluster", "apply", "-f", &file, "--wait"])?;
    ensure!(capacity()? == ["61", "61"], "capacity: {:?}", capacity()?);
    done(world, "size")?;
    let began = std::time::Instant::now();
    let file = told(json!({"systemReserved": {"memory": "999Ti"}}))?;
    let failed = world.output(&["cluster", "apply", "-f", &file, "--wait"])?;
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    ensure!(
        !failed.status.success(),
        "no kubelet starts with that: {failed:?}"
    );
    ensure!(said.contains("rolled back: size-workers-"), "said: {said}");
    eprintln!("  rolled back: {:.1} s", began.elapsed().as_secs_f64());
    healthy(kubectl, 3)?;
    ensure!(capacity()? == ["61", "61"], "capacity: {:?}", capacity()?);
    ensure!(
        alive(&pods()?) == before,
        "pods were touched: {:#}",
        pods()?
    );
    let shown = world.json(&["cluster", "show", "size"])?;
    ensure!(shown["phase"] == "Degraded", "phase: {shown:#}");
    let tasks = world.json(&["task", "list"])?;
    let newest = items(&tasks)?.first().context("a task")?;
    let starts = newest["steps"].as_object().context("it has steps")?;
    let begun: Vec<_> = starts
        .keys()
        .filter(|key| key.starts_with("machine/") && key.ends_with("/start"))
        .collect();
    ensure!(
        begun.len() == 1,
        "more than one machine was touched: {begun:?}"
    );
    // The spec is mended, and the cluster is as it says again.
    let file = told(json!({"maxPods": 62}))?;
    world.run(&["cluster", "apply", "-f", &file, "--wait"])?;
    ensure!(capacity()? == ["62", "62"], "capacity: {:?}", capacity()?);
    ensure!(
        alive(&pods()?) == before,
        "pods were touched: {:#}",
        pods()?
    );
    done(world, "size")
}

/// A budget that lets nobody go is named before anything is touched, and what a policy does about it is
/// recorded. Leaves one worker of three.
fn blocked(world: &World, kubectl: &Kubectl) -> Result<()> {
    strict(kubectl)?;
    let down = ["cluster", "scale", "size", "--pool", "workers=1"];
    let shown = world.json(&[&down[..], &["--dry-run"]].concat())?;
    let findings = &shown["drains"]["rehearsal"]["findings"];
    let said = findings.to_string();
    for part in ["default/strict", "kubectl -n default patch", "default"] {
        ensure!(said.contains(part), "{part} is not in {shown:#}");
    }
    let refused = world.output(&down)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(4), "not refused: {refused:?}");
    ensure!(said.contains("default/strict"), "nobody is named: {said}");
    let closed = kubectl.get(&["nodes"])?.to_string();
    ensure!(!closed.contains("unschedulable"), "a node was touched");
    // The same with a policy that deletes after a while.
    let mut spec = world.json(&["cluster", "show", "size"])?["spec"].clone();
    spec["drain"] = json!({"timeoutSeconds": 3, "onTimeout": "delete"});
    spec["pools"]["workers"]["count"] = json!(1);
    let file = world.dir().join("size.json");
    std::fs::write(&file, spec.to_string())?;
    let file = file.to_string_lossy().into_owned();
    world.run(&["cluster", "apply", "-f", &file, "--wait"])?;
    let tasks = world.json(&["task", "list"])?;
    let newest = items(&tasks)?.first().context("a task")?;
    let steps = newest["steps"].to_string();
    ensure!(
        steps.contains("deleted past its budget default/web")
            && steps.contains("as system:node:size-workers-"),
        "not recorded: {newest:#}"
    );
    kubectl.run(&["delete", "poddisruptionbudget", "strict"])?;
    Ok(())
}

/// A control plane of one machine: consent, then all of it at the newer version, with its data.
pub(crate) fn upgrade_of_one() -> Result<()> {
    with_world(|world| {
        let kubectl = older(world, "one", "1", "2")?;
        let upgrade = ["cluster", "upgrade", "one", "--to", NEWER];
        let refused = world.output(&upgrade)?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(said.contains("--accept-downtime"), "no consent: {said}");
        let gates = Gates::put(world, &kubectl, "one")?;
        let shut = world.output(&[&upgrade[..], &["--accept-downtime", "--wait"]].concat())?;
        let said = String::from_utf8_lossy(&shut.stderr).into_owned();
        ensure!(shut.status.code() == Some(1), "not stopped: {shut:?}");
        for part in ["gate smoke", "BackoffLimitExceeded", "unknown command"] {
            ensure!(said.contains(part), "{part} is not told: {said}");
        }
        untouched(world, &kubectl)?;
        smoke(&kubectl, "help")?;
        world.run(&["task", "retry", &newest_task(world)?, "--wait"])?;
        gates.were_open(&world.json(&["task", "show", &newest_task(world)?])?)?;
        upgraded(world, &kubectl, "one", 3)?;
        gates_are_gone(world, &kubectl, "one")?;
        world.run(&["cluster", "delete", "one", "--yes", "--wait"])?;
        Ok(())
    })
}

/// A shut gate stops a change after its first machine: the others are what they were, and serve.
fn untouched(world: &World, kubectl: &Kubectl) -> Result<()> {
    healthy(kubectl, 3)?;
    let shown = world.json(&["cluster", "show", "one"])?;
    ensure!(shown["phase"] == "Degraded", "cluster: {shown:#}");
    emulates(world, kubectl, "one", Some(36))?;
    for machine in items(&shown["machines"])? {
        let member = machine["role"].to_string().contains("ontrol");
        let wanted = if member { NEWER } else { OLDER };
        ensure!(
            machine["kubernetesVersion"] == wanted,
            "machine: {machine:#}"
        );
        // Workers come in a later leg.
        ensure!(machine["next"].is_null(), "machine: {machine:#}");
    }
    kubectl.pods_ready("app=web", 2)?;
    Ok(())
}

pub(crate) fn newest_task(world: &World) -> Result<String> {
    let tasks = world.json(&["task", "list"])?;
    let newest = items(&tasks)?.first().and_then(|task| task["id"].as_str());
    Ok(newest.context("there is a task")?.to_owned())
}

/// Three control-plane machines: no consent needed; the director dies in the middle, and no request fails.
pub(crate) fn upgrade_of_three() -> Result<()> {
    with_world(|world| {
        let kubectl = older(world, "three", "3", "2")?;
        let traffic = Traffic::start(world, &kubectl, "three")?;
        let task = world.json(&["cluster", "upgrade", "three", "--to", NEWER])?;
        let task = task["id"].as_str().context("a task has an id")?.to_owned();
        for deleted in 1..=3 {
            until("machines are replaced", Duration::from_secs(180), || {
                traffic.follow(world)?;
                let seen = world.json(&["task", "show", &task])?;
                Ok((succeeded(&seen, "/delete") >= deleted).then_some(()))
            })?;
            if deleted == 2 {
                paused(world, &kubectl, &task)?;
            } else {
                world.crash_director()?;
            }
        }
        finished(world, &task, &traffic, Duration::from_secs(400))?;
        traffic.stop()?.flawless()?;
        upgraded(world, &kubectl, "three", 5)?;
        control(world, &kubectl, "three")?;
        world.run(&["cluster", "delete", "three", "--yes", "--wait"])?;
        Ok(())
    })
}

/// A change that pauses leaves every machine in service, rests through the death of its director, and goes on.
fn paused(world: &World, kubectl: &Kubectl, task: &str) -> Result<()> {
    world.run(&["task", "pause", task, "--wait"])?;
    healthy(kubectl, 5)?;
    let rests = || -> Result<()> {
        let shown = world.json(&["cluster", "show", "three"])?;
        let told = shown["message"].to_string().contains("task resume");
        ensure!(told, "nobody says that it is paused: {shown:#}");
        let seen = world.json(&["task", "show", task])?;
        ensure!(seen["state"] == "Paused", "task: {}", seen["state"]);
        ensure!(succeeded(&seen, "/delete") == 2, "it went on: {seen:#}");
        Ok(())
    };
    rests()?;
    world.crash_director()?;
    rests()?;
    world.run(&["task", "resume", task])?;
    Ok(())
}

/// What a cluster's API servers emulate, as the director says and as one of them says itself.
pub(crate) fn emulates(
    world: &World,
    kubectl: &Kubectl,
    name: &str,
    minor: Option<u32>,
) -> Result<()> {
    let shown = world.json(&["cluster", "show", name])?;
    ensure!(shown["emulates"] == json!(minor), "cluster: {shown:#}");
    let version: Value = serde_json::from_str(&kubectl.run(&["get", "--raw", "/version"])?)?;
    let wanted = minor.unwrap_or(37).to_string();
    ensure!(version["emulationMinor"] == wanted, "API server: {version}");
    Ok(())
}

/// Cancelled after the first machine: the cluster serves, goes back to what it was, and the same upgrade goes on.
pub(crate) fn cancelled_upgrade() -> Result<()> {
    with_world(|world| {
        let kubectl = older(world, "back", "3", "1")?;
        let task = world.json(&["cluster", "upgrade", "back", "--to", NEWER])?;
        let task = task["id"].as_str().context("a task has an id")?.to_owned();
        until("a machine is gone", Duration::from_secs(180), || {
            let seen = world.json(&["task", "show", &task])?;
            Ok((succeeded(&seen, "/delete") >= 1).then_some(()))
        })?;
        world.run(&["task", "cancel", &task, "--wait"])?;
        healthy(&kubectl, 4)?;
        deploy(&kubectl, 2)?;
        let closed = kubectl
            .get(&["nodes"])?
            .to_string()
            .contains("unschedulable");
        ensure!(!closed, "a node is left cordoned");
        let shown = world.json(&["cluster", "show", "back"])?;
        ensure!(shown["phase"] == "Ready", "cluster: {shown:#}");
        ensure!(
            shown["message"].to_string().contains("cancelled"),
            "cluster: {shown:#}"
        );
        // One API server is newer, and emulates the others: what was written meanwhile is theirs to read.
        ensure!(shown["emulates"] == json!(36), "cluster: {shown:#}");
        world.run(&["cluster", "upgrade", "back", "--to", OLDER, "--wait"])?;
        healthy(&kubectl, 4)?;
        let shown = world.json(&["cluster", "show", "back"])?;
        ensure!(shown["emulates"].is_null(), "cluster: {shown:#}");
        for machine in items(&shown["machines"])? {
            ensure!(machine["kubernetesVersion"] == OLDER, "{machine:#}");
        }
        kubectl.pods_ready("app=web", 2)?;
        done(world, "back")?;
        world.run(&["cluster", "upgrade", "back", "--to", NEWER, "--wait"])?;
        upgraded(world, &kubectl, "back", 4)?;
        world.run(&["cluster", "delete", "back", "--yes", "--wait"])?;
        Ok(())
    })
}

/// A cluster of the older version with something in it.
pub(crate) fn older(world: &World, name: &str, members: &str, workers: &str) -> Result<Kubectl> {
    world.run(&[
        "cluster",
        "create",
        name,
        "--control-plane",
        members,
        "--workers",
        workers,
        "--kubernetes-version",
        OLDER,
        "--wait",
    ])?;
    let kubectl = world.kubectl(name)?;
    kubectl.run(&["create", "configmap", "kept", "--from-literal=from=before"])?;
    deploy(&kubectl, 2)?;
    Ok(kubectl)
}

pub(crate) fn deploy(kubectl: &Kubectl, replicas: usize) -> Result<()> {
    let labels = json!({"app": "web"});
    kubectl.apply(&json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"terminationGracePeriodSeconds": 2, "containers": [{
                "name": "web", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "args": ["pause"]}]}}}}))?;
    kubectl.pods_ready("app=web", replicas)?;
    Ok(())
}

/// Steps of this kind that succeeded.
pub(crate) fn succeeded(task: &Value, verb: &str) -> usize {
    let steps = task["steps"].as_object().into_iter().flatten();
    steps
        .filter(|(key, step)| key.ends_with(verb) && step["state"] == "Succeeded")
        .count()
}

/// Every node at the newer version, the data of before, pods in service, and nothing left to do.
pub(crate) fn upgraded(world: &World, kubectl: &Kubectl, name: &str, nodes: usize) -> Result<()> {
    healthy(kubectl, nodes)?;
    let list = kubectl.get(&["nodes"])?;
    for node in items(&list)? {
        let version = &node["status"]["nodeInfo"]["kubeletVersion"];
        ensure!(
            version == &json!(format!("v{NEWER}")),
            "kubelet is {version}"
        );
    }
    ensure!(items(&list)?.len() == nodes, "old nodes are left: {list}");
    let kept = kubectl.get(&["configmap", "kept"])?;
    ensure!(kept["data"]["from"] == "before", "data of before: {kept}");
    kubectl.pods_ready("app=web", 2)?;
    emulates(world, kubectl, name, None)?;
    done(world, name)
}

/// A cluster that is as it should be needs no plan.
pub(crate) fn done(world: &World, name: &str) -> Result<()> {
    let plan = world.json(&["cluster", "plan", name])?;
    let steps = plan["steps"].as_array().context("a plan has steps")?;
    ensure!(steps.is_empty(), "left to do: {plan:#}");
    Ok(())
}
