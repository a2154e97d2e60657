//! Clusters change in service: their size, their version; directors die and operators change their minds.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use windlass_tests::kubectl::Kubectl;
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::lifecycle::{healthy, items, with_world};

/// The Kubernetes version before the newest one.
const OLDER: &str = "1.36.3";
const NEWER: &str = "1.37.2";
const IMAGE: &str = "registry.windlass.internal/agnhost:1.37.2";

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
        world.run(&["cluster", "scale", "size", "--pool", "workers=1", "--wait"])?;
        healthy(&kubectl, 2)?;
        kubectl.pods_ready("app=web", 3)?;
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

/// A control plane of one machine: consent, then all of it at the newer version, with its data.
pub(crate) fn upgrade_of_one() -> Result<()> {
    with_world(|world| {
        let kubectl = older(world, "one", "1", "2")?;
        let upgrade = ["cluster", "upgrade", "one", "--to", NEWER];
        let refused = world.output(&upgrade)?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(said.contains("--accept-downtime"), "no consent: {said}");
        world.run(&[&upgrade[..], &["--accept-downtime", "--wait"]].concat())?;
        upgraded(world, &kubectl, "one", 3)?;
        world.run(&["cluster", "delete", "one", "--yes", "--wait"])?;
        Ok(())
    })
}

/// Three control-plane machines: no consent needed; the director dies in the middle.
pub(crate) fn upgrade_of_three() -> Result<()> {
    with_world(|world| {
        let kubectl = older(world, "three", "3", "2")?;
        let task = world.json(&["cluster", "upgrade", "three", "--to", NEWER])?;
        let task = task["id"].as_str().context("a task has an id")?.to_owned();
        for deleted in 1..=3 {
            until("machines are replaced", Duration::from_secs(180), || {
                let seen = world.json(&["task", "show", &task])?;
                Ok((succeeded(&seen, "/delete") >= deleted).then_some(()))
            })?;
            world.crash_director()?;
        }
        let ended = world.task_ended(&task, Duration::from_secs(400))?;
        ensure!(ended["state"] == "Succeeded", "task: {:#}", ended["error"]);
        upgraded(world, &kubectl, "three", 5)?;
        world.run(&["cluster", "delete", "three", "--yes", "--wait"])?;
        Ok(())
    })
}

/// Cancelled after the first machine: the cluster serves, and the same upgrade goes on from there.
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
        world.run(&["cluster", "upgrade", "back", "--to", NEWER, "--wait"])?;
        upgraded(world, &kubectl, "back", 4)?;
        world.run(&["cluster", "delete", "back", "--yes", "--wait"])?;
        Ok(())
    })
}

/// A cluster of the older version with something in it.
fn older(world: &World, name: &str, members: &str, workers: &str) -> Result<Kubectl> {
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

fn deploy(kubectl: &Kubectl, replicas: usize) -> Result<()> {
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
fn succeeded(task: &Value, verb: &str) -> usize {
    let steps = task["steps"].as_object().into_iter().flatten();
    steps
        .filter(|(key, step)| key.ends_with(verb) && step["state"] == "Succeeded")
        .count()
}

/// Every node at the newer version, the data of before, pods in service, and nothing left to do.
fn upgraded(world: &World, kubectl: &Kubectl, name: &str, nodes: usize) -> Result<()> {
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
    done(world, name)
}

/// A cluster that is as it should be needs no plan.
fn done(world: &World, name: &str) -> Result<()> {
    let plan = world.json(&["cluster", "plan", name])?;
    let steps = plan["steps"].as_array().context("a plan has steps")?;
    ensure!(steps.is_empty(), "left to do: {plan:#}");
    Ok(())
}
