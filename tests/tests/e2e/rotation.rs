//! The director's CA is rotated under a cluster that serves.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use windlass_tests::host;
use windlass_tests::kubectl::Kubectl;
use windlass_tests::load::{Connections, Load, Method, Target};
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::lifecycle::{SHARED, healthy, items, machine_of, shared_cluster, with_world};
use crate::workloads::{echo, name};

/// Longest wait for a phase of the rotation, and for agents to come back.
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests a second of each load.
const RATE: u32 = 20;

/// One agent is off and the director is killed while the CA is rotated. No request to a Service fails, no
/// connection of an agent breaks, no machine is made anew, and the old certificates are good for nothing.
pub(crate) fn the_ca_is_rotated() -> Result<()> {
    with_world(|world| {
        let kubectl = shared_cluster(world)?;
        let (target, pods) = (service(world, &kubectl, SHARED)?, pods(&kubectl)?);
        let old = old_context(world)?;
        let asleep = machine_of(world, SHARED, "worker")?;
        let before = machines(world)?;
        let loads = [
            Load::start("new connections", &target, Connections::New, RATE, 2),
            Load::start(
                "kept connections",
                &target,
                Connections::Kept(PATIENCE),
                RATE,
                2,
            ),
        ];
        let generation = ca(world)?["generation"].as_u64().context("a generation")?;
        systemctl(&asleep, "stop")?;
        world.run(&["director", "rotate-ca"])?;
        let status = until("the others have followed", PATIENCE, || {
            let status = ca(world)?;
            Ok((status["rotation"]["renewed"] == 2).then_some(status))
        })?;
        let waiting = items(&status["rotation"]["waiting"])?;
        ensure!(
            waiting.len() == 1 && waiting[0]["machine"] == asleep,
            "{status:#}"
        );
        for (machine, (incarnation, connected)) in &machines(world)? {
            let (born, since) = &before[machine];
            let kept = *machine == asleep || since == connected;
            ensure!(
                born == incarnation && kept,
                "{machine} connected again at {connected}"
            );
        }
        world.crash_director()?;
        joined(world, || systemctl(&asleep, "start"))?;
        let status = ca(world)?;
        ensure!(
            status["generation"] == generation + 1 && status["rotation"].is_null(),
            "{status:#}"
        );
        until("all agents are connected", PATIENCE, || {
            let now = machines(world)?;
            let back = now.values().all(|(_, connected)| !connected.is_null());
            Ok(back.then_some(()))
        })?;
        for (machine, (incarnation, _)) in machines(world)? {
            ensure!(before[&machine].0 == incarnation, "{machine} was made anew");
            world.run(&["node", "exec", &machine, "--", "true"])?;
        }
        let context = old.path().join("context.toml");
        let refused = world.output(&["--context", &context.to_string_lossy(), "node", "list"])?;
        ensure!(
            !refused.status.success(),
            "the old certificate is good: {refused:?}"
        );
        healthy(&kubectl, 3)?;
        ensure!(pods == self::pods(&kubectl)?, "pods were restarted");
        for load in loads {
            load.stop()?.flawless()?;
        }
        Ok(())
    })
}

/// Joins the rotation and waits for its end. `meanwhile` is done once it has joined: a rotation that is over by then
/// would be followed by another one.
fn joined(world: &World, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut command = world.command(&["director", "rotate-ca", "--wait"]);
    let mut waits = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start windlass")?;
    let mut said = BufReader::new(waits.stderr.take().context("standard error")?).lines();
    let first = said.next().context("it says how far it is")??;
    let done = meanwhile();
    let rest = said.collect::<Result<Vec<_>, _>>()?;
    let ended = waits.wait()?;
    done?;
    ensure!(ended.success(), "rotate-ca --wait: {first}: {rest:?}");
    Ok(())
}

fn ca(world: &World) -> Result<Value> {
    world.json(&["director", "rotate-ca", "--status"])
}

/// Incarnation of each machine, and since when its agent is connected.
fn machines(world: &World) -> Result<BTreeMap<String, (Value, Value)>> {
    let listed = world.json(&["node", "list", "--cluster", SHARED])?;
    let one = |machine: &Value| {
        let name = machine["name"].as_str().context("a machine has a name")?;
        let (born, since) = (&machine["incarnation"], &machine["agent"]["connectedAt"]);
        Ok((name.to_owned(), (born.clone(), since.clone())))
    };
    items(&listed)?.iter().map(one).collect()
}

/// A server on each worker, behind a port of every node.
pub(crate) fn service(world: &World, kubectl: &Kubectl, cluster: &str) -> Result<Target> {
    echo(kubectl)?;
    kubectl.apply(&json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "outside", "namespace": "default"},
        "spec": {"type": "NodePort", "selector": {"app": "echo"},
                 "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}]}}))?;
    let listed = world.json(&["node", "list", "--cluster", cluster])?;
    let worker = machine_of(world, cluster, "worker")?;
    let found = items(&listed)?
        .iter()
        .find(|machine| machine["name"] == worker);
    let address = found.and_then(|machine| machine["address"].as_str());
    let target = Target {
        address: format!("{}:30080", address.context("a machine has an address")?).parse()?,
        method: Method::Get,
        path: "/hostname".to_owned(),
        secure: None,
    };
    until("the port of the node answers", PATIENCE, || {
        let answered = std::net::TcpStream::connect_timeout(&target.address, PATIENCE / 30);
        Ok(answered.is_ok().then_some(()))
    })?;
    Ok(target)
}

/// Each pod of the Service with the restarts of its containers.
pub(crate) fn pods(kubectl: &Kubectl) -> Result<BTreeMap<String, Value>> {
    let found = kubectl.get(&["pods", "-l", "app=echo"])?;
    let one = |pod: &Value| {
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        Ok((name(pod)?.to_owned(), restarts.clone()))
    };
    items(&found)?.iter().map(one).collect()
}

/// The operator's context as it is before the rotation.
fn old_context(world: &World) -> Result<tempfile::TempDir> {
    let copy = tempfile::tempdir().context("cannot make a directory")?;
    let status = Command::new("cp")
        .arg("-r")
        .args([
            world.dir().join("context.toml"),
            world.dir().join("operator"),
        ])
        .arg(copy.path())
        .status()
        .context("cannot copy the context")?;
    ensure!(status.success(), "cannot copy the context");
    Ok(copy)
}

/// Starts or stops the agent of a machine, from outside.
pub(crate) fn systemctl(machine: &str, verb: &str) -> Result<()> {
    inside(machine, &["systemctl", verb, "windlass-agent"])?;
    Ok(())
}

/// Runs a command on a machine as its hypervisor could: its agent is not asked.
fn inside(machine: &str, command: &[&str]) -> Result<String> {
    let kubelets = host::machine_processes(machine, "kubelet")?;
    let kubelet = kubelets.first().context("its kubelet runs")?;
    ensure!(
        Path::new("/usr/bin/nsenter").exists(),
        "nsenter (package util-linux) is missing"
    );
    let output = Command::new("nsenter")
        .args(["-t", &kubelet.to_string(), "-m", "-u", "-i", "-n", "-p"])
        .args(command)
        .output()
        .context("cannot run nsenter")?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A machine that lost its identity is refused with the token of its birth, and comes back with a fresh one:
/// the same incarnation, and its kubelet is the same process.
pub(crate) fn enrolled_again() -> Result<()> {
    with_world(|world| {
        let kubectl = shared_cluster(world)?;
        let worker = machine_of(world, SHARED, "worker")?;
        let born = machines(world)?[&worker].0.clone();
        let kubelets = host::machine_processes(&worker, "kubelet")?;
        let refused = world.output(&["node", "enroll", &worker])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success(), "{worker} is connected");
        ensure!(said.contains("renews its certificate by itself"), "{said}");
        world.run(&["node", "hold", &worker, "--reason", "it loses its identity"])?;
        systemctl(&worker, "stop")?;
        inside(&worker, &["rm", "-r", "/var/lib/windlass/identity"])?;
        systemctl(&worker, "start")?;
        until("the spent token is refused", PATIENCE, || {
            let journal = [
                "journalctl",
                "-u",
                "windlass-agent",
                "-n",
                "20",
                "-o",
                "cat",
            ];
            let journal = inside(&worker, &journal)?;
            Ok(journal.contains("cannot enroll").then_some(()))
        })?;
        let cut = world.output(&["node", "exec", &worker, "--", "true"])?;
        ensure!(!cut.status.success(), "{worker} has a link: {cut:?}");
        world.run(&["node", "enroll", &worker])?;
        until("its agent is back", PATIENCE, || {
            let back = world.output(&["node", "exec", &worker, "--", "true"])?;
            Ok(back.status.success().then_some(()))
        })?;
        ensure!(machines(world)?[&worker].0 == born, "it was made anew");
        ensure!(
            host::machine_processes(&worker, "kubelet")? == kubelets,
            "its kubelet was restarted"
        );
        world.run(&["node", "release", &worker])?;
        healthy(&kubectl, 3)
    })
}
