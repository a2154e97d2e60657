//! Clusters come up, are looked at, reboot, and go without a trace.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use windlass_tests::host;
use windlass_tests::kubectl::Kubectl;
use windlass_tests::wait::until;
use windlass_tests::world::World;

/// The cluster that the scenarios share.
pub(crate) const SHARED: &str = "shared";

static WORLD: Mutex<Option<World>> = Mutex::new(None);

/// The director that the scenarios share, started by whoever needs it first.
pub(crate) fn with_world<T>(scenario: impl FnOnce(&World) -> Result<T>) -> Result<T> {
    let mut world: MutexGuard<'_, _> = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    if world.is_none() {
        *world = Some(World::start("e2e")?);
    }
    scenario(world.as_ref().context("started above")?)
}

/// Ends the shared director; its clusters go with it.
pub(crate) fn forget_worlds() {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner).take();
}

/// The shared cluster, created if it is not there, and healthy.
pub(crate) fn shared_cluster(world: &World) -> Result<Kubectl> {
    if !world.output(&["cluster", "show", SHARED])?.status.success() {
        world.run(&["cluster", "create", SHARED, "--workers", "2", "--wait"])?;
    }
    let kubectl = world.kubectl(SHARED)?;
    healthy(&kubectl, 3)?;
    Ok(kubectl)
}

/// The gate between two scenarios: every node Ready and CoreDNS answering.
pub(crate) fn healthy(kubectl: &Kubectl, nodes: usize) -> Result<()> {
    until(
        &format!("{nodes} nodes Ready"),
        Duration::from_secs(60),
        || Ok((kubectl.ready_nodes()?.len() == nodes).then_some(())),
    )?;
    until("CoreDNS available", Duration::from_secs(60), || {
        let dns = kubectl.get(&["deployment", "coredns", "-n", "kube-system"])?;
        Ok((dns["status"]["availableReplicas"].as_u64() >= Some(1)).then_some(()))
    })
}

pub(crate) fn comes_up() -> Result<()> {
    with_world(|world| {
        let kubectl = shared_cluster(world)?;
        let nodes = kubectl.get(&["nodes"])?;
        let nodes = nodes["items"].as_array().context("no nodes")?;
        let control_planes: Vec<_> = nodes
            .iter()
            .filter(|n| {
                n["metadata"]["labels"]
                    .get("node-role.kubernetes.io/control-plane")
                    .is_some()
            })
            .collect();
        ensure!(
            control_planes.len() == 1,
            "one node has the control-plane label"
        );
        let taints = control_planes[0]["spec"]["taints"].to_string();
        ensure!(
            taints.contains("node-role.kubernetes.io/control-plane"),
            "taints: {taints}"
        );
        let pod_networks: BTreeSet<_> = nodes
            .iter()
            .filter_map(|n| n["spec"]["podCIDR"].as_str())
            .collect();
        ensure!(
            pod_networks.len() == 3,
            "each node has a pod network of its own: {pod_networks:?}"
        );
        for node in nodes {
            let version = &node["status"]["nodeInfo"]["kubeletVersion"];
            ensure!(version == "v1.37.2", "kubelet is {version}");
            let runtime = &node["status"]["nodeInfo"]["containerRuntimeVersion"];
            ensure!(
                runtime
                    .as_str()
                    .is_some_and(|r| r.starts_with("containerd://2.")),
                "{runtime}"
            );
        }
        // The kubeconfig names the cluster's endpoint, which is no machine's address.
        let config = std::fs::read_to_string(&kubectl.kubeconfig)?;
        for node in nodes {
            for address in node["status"]["addresses"].as_array().into_iter().flatten() {
                let address = address["address"].as_str().context("address")?;
                ensure!(
                    !config.contains(&format!("{address}:")),
                    "kubeconfig names {address}"
                );
            }
        }
        let list = world.json(&["node", "list"])?;
        ensure!(items(&list)?.len() == 3, "node list: {list}");
        Ok(())
    })
}

pub(crate) fn bad_input() -> Result<()> {
    with_world(|world| {
        let file = world.dir().join("bad.yaml");
        std::fs::write(
            &file,
            "name: Bad_Name\ncolour: blue\nkubernetesVersion: 9.9.9\ncontrolPlane:\n  count: 2\n\
             network:\n  podCidr: 10.96.0.0/16\n  serviceCidr: 10.96.0.0/16\n",
        )?;
        let path = file.to_string_lossy().into_owned();
        let output = world.output(&["cluster", "create", "-f", &path])?;
        ensure!(
            output.status.code() == Some(2),
            "exit code {:?}",
            output.status.code()
        );
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        for key in [
            "name",
            "colour",
            "kubernetesVersion",
            "controlPlane.count",
            "Cidr",
        ] {
            ensure!(said.contains(key), "{key} is not named in: {said}");
        }
        Ok(())
    })
}

pub(crate) fn node_logs_and_exec() -> Result<()> {
    with_world(|world| {
        shared_cluster(world)?;
        let node = machine_of(world, SHARED, "worker")?;
        let logs = world.run(&["node", "logs", &node, "--unit", "kubelet", "-n", "50"])?;
        ensure!(logs.contains("kubelet"), "logs of the kubelet: {logs}");
        let said = world.run(&["node", "exec", &node, "--", "cat", "/etc/hostname"])?;
        ensure!(said.contains(&node), "hostname of {node}: {said}");
        let failed = world.output(&["node", "exec", &node, "--", "sh", "-c", "exit 7"])?;
        ensure!(
            failed.status.code() == Some(7),
            "exit code {:?}",
            failed.status.code()
        );
        input_of_exec(world, &node)?;
        interrupted_exec(world, &node)
    })
}

/// What is put into a command on a node comes out of it, whole.
fn input_of_exec(world: &World, node: &str) -> Result<()> {
    let given: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let path = world.dir().join("input");
    std::fs::write(&path, &given)?;
    let output = world
        .command(&["node", "exec", "-i", node, "--", "cat"])
        .stdin(std::fs::File::open(&path)?)
        .output()
        .context("cannot start windlass")?;
    ensure!(output.status.success(), "exec -i: {:?}", output.status);
    ensure!(
        output.stdout == given,
        "{} of {} bytes came back",
        output.stdout.len(),
        given.len()
    );
    Ok(())
}

/// Ctrl-C of a command on a node ends it there.
fn interrupted_exec(world: &World, node: &str) -> Result<()> {
    let mut asking = world
        .command(&["node", "exec", node, "--", "sh", "-c", "sleep 3600 & wait"])
        .spawn()
        .context("cannot start windlass")?;
    let sleeps = || host::machine_processes(node, "sleep");
    let patience = Duration::from_secs(30);
    until("the command runs", patience, || {
        Ok((!sleeps()?.is_empty()).then_some(()))
    })?;
    let cli = i32::try_from(asking.id()).context("process id")?;
    host::interrupt(cli)?;
    asking.wait().context("cannot wait for windlass")?;
    until("the command is gone from the node", patience, || {
        Ok(sleeps()?.is_empty().then_some(()))
    })
}

pub(crate) fn reboot() -> Result<()> {
    with_world(|world| {
        let kubectl = shared_cluster(world)?;
        for (role, unit) in [("worker", "kubelet"), ("control", "kube-apiserver")] {
            let machine = machine_of(world, SHARED, role)?;
            let boot = || -> Result<String> {
                // The start time of the machine's first process, in clock ticks, tells one boot
                // from the next (proc(5)).
                let cut = ["cut", "-d", " ", "-f", "22", "/proc/1/stat"];
                world.run(&[&["node", "exec", &machine, "--"], &cut[..]].concat())
            };
            let before = boot()?;
            // The command may be cut off by the reboot it causes.
            world.output(&["node", "exec", &machine, "--", "systemctl", "reboot"])?;
            until(
                "the machine has booted again",
                Duration::from_secs(60),
                || Ok((boot()? != before).then_some(())),
            )?;
            // Nobody tells it what to start: it knows.
            until(&format!("{unit} runs"), Duration::from_secs(60), || {
                world
                    .run(&[
                        "node",
                        "exec",
                        &machine,
                        "--",
                        "systemctl",
                        "is-active",
                        unit,
                    ])
                    .map(Some)
            })?;
            healthy(&kubectl, 3)?;
        }
        Ok(())
    })
}

pub(crate) fn helpers_come_back() -> Result<()> {
    with_world(|world| {
        let kubectl = shared_cluster(world)?;
        let dir = world.dir().to_string_lossy().into_owned();
        for kind in [" endpoint ", "machine-monitor"] {
            let ours = || -> Result<Vec<i32>> {
                let lines = host::processes(&dir)?.into_iter();
                Ok(lines
                    .filter(|(_, line)| line.contains(kind))
                    .map(|(pid, _)| pid)
                    .collect())
            };
            let before = ours()?;
            ensure!(!before.is_empty(), "no{kind}process runs");
            for pid in &before {
                host::kill_hard(*pid)?;
            }
            until(
                &format!("{kind} processes are back"),
                Duration::from_secs(30),
                || {
                    let now = ours()?;
                    let new = now.iter().filter(|pid| !before.contains(pid)).count();
                    Ok((new == before.len()).then_some(()))
                },
            )?;
        }
        healthy(&kubectl, 3)
    })
}

pub(crate) fn delete() -> Result<()> {
    with_world(|world| {
        shared_cluster(world)?;
        world.run(&["cluster", "delete", SHARED, "--yes", "--wait"])?;
        let left: Vec<_> = world
            .traces()?
            .into_iter()
            .filter(|trace| trace.contains(SHARED) && !trace.contains("kubeconfig"))
            .collect();
        ensure!(left.is_empty(), "left behind:\n{}", left.join("\n"));
        let clusters = world.json(&["cluster", "list"])?;
        ensure!(items(&clusters)?.is_empty(), "clusters: {clusters}");
        let output = world.output(&["cluster", "show", SHARED])?;
        ensure!(output.status.code() == Some(3), "not found is exit code 3");
        Ok(())
    })
}

pub(crate) fn highly_available() -> Result<()> {
    with_world(|world| {
        world.run(&[
            "cluster",
            "create",
            "ha",
            "--control-plane",
            "3",
            "--workers",
            "1",
            "--wait",
        ])?;
        let kubectl = world.kubectl("ha")?;
        healthy(&kubectl, 4)?;
        let machine = machine_of(world, "ha", "control")?;
        let members = etcd_members(world, &machine)?;
        ensure!(members.len() == 3, "members: {members:?}");
        ensure!(
            members.iter().all(|m| m["isLearner"] != true),
            "no learner is left: {members:?}"
        );
        // The endpoint outlives any one API server.
        let pids = host::machine_processes(&machine, "kube-apiserver")?;
        ensure!(pids.len() == 1, "one API server on {machine}: {pids:?}");
        host::kill_hard(pids[0])?;
        until("the endpoint answers", Duration::from_secs(10), || {
            kubectl.run(&["get", "--raw", "/readyz"]).map(Some)
        })?;
        nodes_live_by_themselves(world, &kubectl, &machine)?;
        world.run(&["cluster", "delete", "ha", "--yes", "--wait"])?;
        Ok(())
    })
}

/// Nodes work without director, agents and endpoint, and with one API server gone.
fn nodes_live_by_themselves(world: &World, kubectl: &Kubectl, gone: &str) -> Result<()> {
    let machines = world.json(&["node", "list", "--cluster", "ha"])?;
    let other = items(&machines)?
        .iter()
        .find(|m| m["name"] != gone && m["role"].to_string().contains("control"))
        .and_then(|m| m["address"].as_str())
        .context("another control plane has an address")?
        .to_owned();
    world.run(&[
        "node",
        "exec",
        gone,
        "--",
        "systemctl",
        "stop",
        "kube-apiserver.service",
    ])?;
    host::kill_hard(world.director_pid()?)?;
    let dir = world.dir().to_string_lossy().into_owned();
    for (pid, line) in host::processes(&dir)? {
        if line.contains(" endpoint ") {
            host::kill_hard(pid)?;
        }
    }
    for pid in host::machine_processes("ha-", "windlass-agent")? {
        host::kill_hard(pid)?;
    }
    kubectl.refused(&["get", "--raw", "/readyz"])?;
    let direct = kubectl.at(
        &format!("https://{other}:6443"),
        "ha.clusters.windlass.internal",
    );
    let leases = || -> Result<Vec<String>> {
        let list = direct.get(&["leases", "-n", "kube-node-lease"])?;
        let renewed = |lease: &Value| lease["spec"]["renewTime"].as_str().map(str::to_owned);
        Ok(items(&list)?.iter().filter_map(renewed).collect())
    };
    // A kubelet that is older than the namespace of leases makes its own a few seconds late.
    let before = until("every node has a lease", Duration::from_secs(30), || {
        Ok(Some(leases()?).filter(|leases| leases.len() == 4))
    })?;
    until(
        "every node renewed its lease",
        Duration::from_secs(60),
        || {
            let now = leases()?;
            let renewed = now.iter().filter(|at| !before.contains(at)).count();
            Ok((renewed == 4).then_some(()))
        },
    )?;
    // Controllers, scheduler and kubelets do their work.
    direct.run(&[
        "create",
        "deployment",
        "alone",
        "--image=registry.windlass.internal/pause:1",
        "--replicas=2",
    ])?;
    direct.pods_ready("app=alone", 2)?;
    direct.run(&["delete", "deployment", "alone"])?;
    world.run(&["director", "start"])?;
    until("the endpoint is back", Duration::from_secs(30), || {
        kubectl.run(&["get", "--raw", "/readyz"]).map(Some)
    })?;
    Ok(())
}

pub(crate) fn reset() -> Result<()> {
    let world = World::start("gone")?;
    world.run(&["cluster", "create", "gone", "--workers", "0", "--wait"])?;
    let pid = world.director_pid()?;
    host::kill_hard(pid)?;
    world.run(&["director", "reset", "--yes"])?;
    let left = world.traces()?;
    ensure!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    Ok(())
}

/// The entries of a list.
pub(crate) fn items(list: &Value) -> Result<&Vec<Value>> {
    list.as_array()
        .or_else(|| list["items"].as_array())
        .context("no list")
}

/// The name of a machine of a cluster whose role contains `role`.
pub(crate) fn machine_of(world: &World, cluster: &str, role: &str) -> Result<String> {
    let list = world.json(&["node", "list", "--cluster", cluster])?;
    for machine in items(&list)? {
        let name = machine["name"].as_str().context("a machine has a name")?;
        if machine["role"].to_string().to_lowercase().contains(role) {
            return Ok(name.to_owned());
        }
    }
    bail!("no {role} machine in {list}")
}

pub(crate) fn etcd_members(world: &World, machine: &str) -> Result<Vec<Value>> {
    let script = "cd /etc/kubernetes/pki && exec \
        /opt/windlass/components/etcd/current/etcdctl --endpoints=https://127.0.0.1:2379 \
        --cacert=etcd-ca.crt --cert=apiserver-etcd-client.crt --key=apiserver-etcd-client.key \
        member list -w json";
    let text = world.run(&["node", "exec", machine, "--", "sh", "-c", script])?;
    let list: Value = serde_json::from_str(text.trim()).context("etcdctl answered no JSON")?;
    Ok(list["members"].as_array().context("no members")?.clone())
}
