//! Faults that no unit shows, and faults that a machine bears: what is judged, what is healed, and what is
//! left to an operator. One cluster, several faults at a time. Times are printed, not asserted.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use windlass_tests::host::{self, Stopped};
use windlass_tests::kubectl::Kubectl;
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::changes::deploy;
use crate::lifecycle::{healthy, items};
use crate::repair::{LONG, incarnation, repair_of, verdict, why, world};

const CONTROL: &str = "fault-cp-0";
const HUNG: &str = "fault-workers-0";
const KILLED: &str = "fault-workers-1";

/// One condition of a machine, as its agent says.
fn condition(world: &World, machine: &str, name: &str, subject: &str) -> Result<Option<Value>> {
    let seen = world.json(&["node", "show", machine])?;
    let all = seen["conditions"].as_array();
    let found = all
        .into_iter()
        .flatten()
        .find(|one| one["name"] == name && one["subject"] == subject);
    Ok(found.cloned())
}

/// Waits until a condition of a machine is so.
pub(crate) fn is(world: &World, machine: &str, what: (&str, &str), state: &str) -> Result<()> {
    let (name, subject) = what;
    until(&format!("{name} of {machine} is {state}"), LONG, || {
        let found = condition(world, machine, name, subject)?;
        Ok(found.filter(|one| one["state"] == state).map(drop))
    })
}

/// What was tried with a machine, one word a remedy.
fn tried(world: &World, machine: &str) -> Result<Vec<String>> {
    let said = why(world, machine)?;
    let attempts = said["case"]["case"]["attempts"].as_array();
    let rungs = attempts.into_iter().flatten();
    Ok(rungs
        .filter_map(|attempt| Some(attempt["rung"].as_str()?.to_owned()))
        .collect())
}

/// The main process of a machine's program.
fn process(machine: &str, program: &str) -> Result<i32> {
    let found = host::machine_processes(machine, program)?;
    found
        .first()
        .copied()
        .with_context(|| format!("{program} runs on {machine}"))
}

pub(crate) fn borne_or_healed() -> Result<()> {
    let world = world("fault")?;
    // What a remedy takes on a busy host is not what is asked: the next one waits until the first was given up.
    world.configure(&[("settle_s", "240"), ("reboot_s", "240")])?;
    world.run(&["cluster", "create", "fault", "--workers", "2", "--wait"])?;
    let kubectl = world.kubectl("fault")?;
    healthy(&kubectl, 3)?;
    for machine in [CONTROL, HUNG, KILLED] {
        is(&world, machine, ("kubelet", ""), "good")?;
        is(&world, machine, ("containerd", ""), "good")?;
        is(&world, machine, ("cni", ""), "good")?;
        is(&world, machine, ("pressure", "memory"), "good")?;
        is(&world, machine, ("clock", ""), "good")?;
    }
    is(&world, CONTROL, ("etcd", ""), "good")?;
    is(&world, CONTROL, ("etcd-alarm", ""), "good")?;
    figures_say_whose_they_are(&world)?;

    neighbours_notice_nothing(&world, [CONTROL, HUNG], || {
        agent_killed_again_and_again(&world)
    })?;
    let began = Instant::now();
    let hung = Stopped::process(process(HUNG, "containerd")?)?;
    let disk = fill(&world)?;
    containerd_hangs(&world, began)?;
    // systemd has ended what was stopped.
    drop(hung);
    disk_full(&world, &disk, began)?;
    agent_ends(&world, &kubectl)?;
    for machine in [CONTROL, HUNG, KILLED] {
        verdict(&world, machine, "healthy")?;
        ensure!(incarnation(&world, machine)? == 1, "{machine} was replaced");
    }
    healthy(&kubectl, 3)?;
    change_meets_a_dead_machine(&world, &kubectl)?;
    neighbours_notice_nothing(&world, [CONTROL, HUNG], || out_of_memory(&world, &kubectl))
}

/// A system container's root directory is on its host's disk, and its data disk its own.
fn figures_say_whose_they_are(world: &World) -> Result<()> {
    let disk = |measured: &[Value], point: &str| {
        let mut disks = measured.iter().filter(|one| one["name"] == "disk");
        disks.find(|one| one["subject"] == point).cloned()
    };
    let measured = until("file systems are told of", LONG, || {
        let seen = world.json(&["node", "show", CONTROL])?;
        let measured = seen["measured"].as_array().cloned().unwrap_or_default();
        Ok(disk(&measured, "/var/lib/etcd").map(|_| measured))
    })?;
    for (point, scope) in [("/", "host"), ("/var/lib/etcd", "machine")] {
        let one = disk(&measured, point).context("a disk")?;
        ensure!(one["scope"] == scope, "{one:#}");
        ensure!(one["source"] == format!("statvfs {point}"), "{one:#}");
    }
    for one in &measured {
        let told = ["value", "unit", "source", "scope", "ageMs"].iter();
        let missing: Vec<_> = told.filter(|field| one[**field].is_null()).collect();
        ensure!(missing.is_empty(), "{missing:?} missing: {one:#}");
    }
    Ok(())
}

/// A change takes a machine that hangs first, and shuts it out where others are drained. Its name is given to
/// another machine later, which begins with the first incarnation and is not taken for the old one.
fn change_meets_a_dead_machine(world: &World, kubectl: &Kubectl) -> Result<()> {
    let began = Instant::now();
    world.run(&[
        "node",
        "hold",
        HUNG,
        "--reason",
        "what a change does about it",
    ])?;
    world.freeze(HUNG)?;
    verdict(world, HUNG, "nodeHung")?;
    world.run(&["cluster", "scale", "fault", "--pool", "workers=1", "--wait"])?;
    let tasks = world.json(&["task", "list"])?;
    let newest = tasks["items"][0]["id"].as_str().context("a task")?;
    let task = world.json(&["task", "show", newest])?;
    let step = |name: &str| !task["steps"][format!("machine/{HUNG}/{name}")].is_null();
    ensure!(step("fence") && !step("drain"), "it was drained: {task:#}");
    eprintln!(
        "  hangs, taken out by a change: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    healthy(kubectl, 2)?;
    world.run(&["cluster", "scale", "fault", "--pool", "workers=2", "--wait"])?;
    healthy(kubectl, 3)?;
    let nodes = kubectl.ready_nodes()?;
    let again = format!("{HUNG}-i1");
    ensure!(nodes.contains(&again), "nodes: {nodes:?}");
    Ok(())
}

/// A containerd that hangs holds its socket, and its unit is active: only its silence tells.
fn containerd_hangs(world: &World, began: Instant) -> Result<()> {
    verdict(world, HUNG, "degraded")?;
    eprintln!(
        "  containerd hangs, judged: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    verdict(world, HUNG, "healthy")?;
    eprintln!(
        "  containerd hangs, healed: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let tried = tried(world, HUNG)?;
    ensure!(tried == ["units"], "tried: {tried:?}");
    Ok(())
}

/// Fills the disk of etcd but for what etcd itself is going to need; returns the file that does.
fn fill(world: &World) -> Result<String> {
    let file = "/var/lib/etcd/filler".to_owned();
    let script = format!(
        "set -e; free=$(df --output=avail -k /var/lib/etcd | tail -1); all=$(df --output=size -k \
         /var/lib/etcd | tail -1); fallocate -l $((free - all / 50))K {file}"
    );
    world.run(&["node", "exec", CONTROL, "--", "sh", "-c", &script])?;
    Ok(file)
}

/// What no restart mends is shown, and nothing is restarted.
fn disk_full(world: &World, file: &str, began: Instant) -> Result<()> {
    is(world, CONTROL, ("disk-space", "/var/lib/etcd"), "bad")?;
    verdict(world, CONTROL, "degraded")?;
    eprintln!(
        "  disk full, judged: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let said = until("it is left to an operator", LONG, || {
        let said = why(world, CONTROL)?;
        let full = said["gathered"]
            .to_string()
            .contains("disk-space /var/lib/etcd");
        Ok(full.then_some(said))
    })?;
    ensure!(said["outlook"]["kind"] != "act", "{said:#}");
    world.run(&["node", "exec", CONTROL, "--", "rm", file])?;
    verdict_now(world, CONTROL, "healthy")?;
    let tried = tried(world, CONTROL)?;
    ensure!(tried.is_empty(), "tried: {tried:?}");
    Ok(())
}

fn verdict_now(world: &World, machine: &str, wanted: &str) -> Result<()> {
    until(&format!("{machine} is {wanted}"), LONG, || {
        Ok((why(world, machine)?["verdict"] == wanted).then_some(()))
    })
}

/// systemd starts it again each time, and nobody else does anything.
fn agent_killed_again_and_again(world: &World) -> Result<()> {
    for _ in 0..4 {
        let agent = until("the agent runs", Duration::from_secs(60), || {
            Ok(process(KILLED, "windlass-agent").ok())
        })?;
        host::kill_hard(agent)?;
        until("it is gone", Duration::from_secs(10), || {
            let left = host::machine_processes(KILLED, "windlass-agent")?;
            Ok((!left.contains(&agent)).then_some(()))
        })?;
    }
    verdict_now(world, KILLED, "healthy")?;
    let tried = tried(world, KILLED)?;
    ensure!(tried.is_empty(), "tried: {tried:?}");
    Ok(())
}

/// The agent has ended and its kubelet goes on: pods leave the machine by the director's own right, it is restarted, and
/// its node is opened again.
fn agent_ends(world: &World, kubectl: &Kubectl) -> Result<()> {
    deploy(kubectl, 4)?;
    let node = format!("{KILLED}-i1");
    let drained = pods_on(kubectl, &node)?;
    ensure!(!drained.is_empty(), "nothing to drain");
    end_agent(world, KILLED)?;
    let began = Instant::now();
    let since = |what: &str| {
        let seconds = began.elapsed().as_secs_f64();
        eprintln!("  agent ended, {what}: {seconds:.1} s");
    };
    verdict(world, KILLED, "agentLost")?;
    since("judged");
    let step = |verb: &str| format!("machine/{KILLED}/{verb}");
    let done = |verb: &str| {
        until(&step(verb), LONG, || {
            let task = repair_of(world, "fault")?;
            Ok(task.filter(|task| task["steps"][step(verb)]["state"] == "Succeeded"))
        })
    };
    done("drain")?;
    since("drained");
    // By now it may be in service again, and others on it.
    let mut left = pods_on(kubectl, &node)?;
    left.retain(|pod| drained.contains(pod));
    ensure!(left.is_empty(), "pods were left on {node}: {left:?}");
    done("reboot")?;
    since("restarted");
    let task = done("uncordon")?;
    since("in service");
    ensure!(task["operator"] == "resurrector", "{task:#}");
    verdict_now(world, KILLED, "healthy")?;
    healthy(kubectl, 3)?;
    kubectl.pods_ready("app=web", 4)?;
    let tried = tried(world, KILLED)?;
    ensure!(tried == ["reboot"], "tried: {tried:?}");
    let seen = kubectl.get(&["node", &node])?;
    ensure!(seen["spec"]["unschedulable"] != true, "{node} is closed");
    Ok(())
}

/// Has the agent of a machine end for good: it is started again with the machine. One that hangs or dies is started again by
/// systemd at once.
pub(crate) fn end_agent(world: &World, machine: &str) -> Result<()> {
    let end = ["systemctl", "stop", "--no-block", "windlass-agent.service"];
    // Whoever it is that answers is ended by it.
    world.output(&[&["node", "exec", machine, "--"][..], &end].concat())?;
    until("the agent has ended", Duration::from_secs(60), || {
        let left = host::machine_processes(machine, "windlass-agent")?;
        Ok(left.is_empty().then_some(()))
    })
}

/// Pods of the workload that are on a node, but for those that have ended: a drain waits for no more, and their objects
/// go when their kubelet says so.
fn pods_on(kubectl: &Kubectl, node: &str) -> Result<Vec<String>> {
    let field = format!("spec.nodeName={node}");
    let found = kubectl.get(&["pods", "-l", "app=web", "--field-selector", &field])?;
    let over = |pod: &&Value| {
        matches!(
            pod["status"]["phase"].as_str(),
            Some("Succeeded" | "Failed")
        )
    };
    let names = items(&found)?.iter().filter(|pod| !over(pod));
    Ok(names
        .filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned()))
        .collect())
}

/// One machine uses all of its memory: the kernel ends what does, and the others notice nothing. The last of the
/// faults: if its kubelet looks just then, the node takes no pods for five minutes (`evictionPressureTransitionPeriod`).
fn out_of_memory(world: &World, kubectl: &Kubectl) -> Result<()> {
    let ended = world.output(&["node", "exec", KILLED, "--", "tail", "/dev/zero"])?;
    if ended.status.success() {
        bail!("a program may use more memory than there is");
    }
    ensure!(kubectl.ready_nodes()?.len() >= 2, "others suffered");
    verdict_now(world, KILLED, "healthy")
}

/// Whether neighbours of a fault are `Healthy`, and were not judged anew while it happened.
fn neighbours_notice_nothing(
    world: &World,
    neighbours: [&str; 2],
    fault: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let judged = || -> Result<Vec<Value>> {
        let history = |machine| Ok(why(world, machine)?["case"]["history"].clone());
        neighbours.into_iter().map(history).collect()
    };
    let before = judged()?;
    fault()?;
    for neighbour in neighbours {
        let said = why(world, neighbour)?;
        ensure!(said["verdict"] == "healthy", "the neighbour: {said:#}");
    }
    let after = judged()?;
    ensure!(before == after, "neighbours were judged: {after:#?}");
    Ok(())
}
