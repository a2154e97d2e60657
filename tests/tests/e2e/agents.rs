//! Agents are upgraded in place while pods run, and broken ones are rolled back by their machines.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use windlass_tests::kubectl::Kubectl;
use windlass_tests::stemcells::{Shelf, given};
use windlass_tests::wait::until;
use windlass_tests::world::{World, required};

use crate::changes::{deploy, succeeded};
use crate::lifecycle::{healthy, items};

const CLUSTER: &str = "up";
const MACHINES: usize = 3;

/// An agent that says its version, and then does this.
fn script(then: &str) -> Vec<u8> {
    format!("#!/bin/sh\n[ \"$1\" = --version ] && echo windlass-agent 9.9.9 && exit\n{then}\n")
        .into()
}

pub(crate) fn in_place() -> Result<()> {
    let shelf = Shelf::beside(&given()?)?;
    let next = required("WINDLASS_TEST_NEXT_AGENT")?;
    let next = std::fs::read(&next).with_context(|| format!("cannot read {next:?}"))?;
    let next = shelf.add_agent("next", &next)?;
    let crashes = shelf.add_agent("crashes", &script("exit 1"))?;
    let hangs = shelf.add_agent("hangs", &script("exec sleep 3600"))?;
    let world = World::start_with("agup", shelf.path())?;
    world.run(&["cluster", "create", CLUSTER, "--workers", "2", "--wait"])?;
    let kubectl = world.kubectl(CLUSTER)?;
    healthy(&kubectl, MACHINES)?;
    deploy(&kubectl, 4)?;
    let before = Running::look(&world, &kubectl)?;
    let first = versions(&world)?;

    let upgrade = ["cluster", "upgrade-agents", CLUSTER, "--stemcell"];
    let plan = world.json(&[&upgrade[..], &[&next, "--dry-run"]].concat())?;
    let steps = plan["steps"].as_array().context("a plan has steps")?;
    ensure!(steps.len() == MACHINES, "plan: {plan:#}");
    let hash = plan["hash"].as_str().context("a plan has a hash")?;
    let task = world.json(&[&upgrade[..], &[&next, "--plan", hash]].concat())?;
    let task = task["id"].as_str().context("a task has an id")?.to_owned();
    for done in 1..MACHINES {
        until("agents are upgraded", Duration::from_secs(120), || {
            let seen = world.json(&["task", "show", &task])?;
            Ok((succeeded(&seen, "/upgrade-agent") >= done).then_some(()))
        })?;
        world.crash_director()?;
    }
    let ended = world.task_ended(&task, Duration::from_secs(200))?;
    ensure!(ended["state"] == "Succeeded", "task: {:#}", ended["error"]);
    let second = versions(&world)?;
    for (machine, version) in &second {
        ensure!(version.ends_with("+next"), "{machine} has {version}");
        ensure!(Some(version) != first.get(machine), "{machine}: {version}");
    }
    before.unchanged(&world, &kubectl)?;

    for (broken, why) in [
        (
            &crashes,
            "ended 5 times before the director could confirm it",
        ),
        (&hangs, "could not confirm it within 60 s"),
    ] {
        let refused = world.output(&[&upgrade[..], &[broken, "--wait"]].concat())?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1), "{broken}: {refused:?}");
        ensure!(said.contains("rolled back to agent"), "{broken}: {said}");
        ensure!(said.contains(why), "{broken}: {said}");
        // The first that failed was the last that was tried.
        let tasks = world.json(&["task", "list"])?;
        let last = items(&tasks)?.first().context("there are tasks")?;
        ensure!(
            last["steps"]
                .as_object()
                .is_some_and(|steps| steps.len() == 1),
            "{last:#}"
        );
        ensure!(versions(&world)? == second, "agents after {broken}");
        before.unchanged(&world, &kubectl)?;
    }
    // Back to the first one, one machine by the command for one.
    let machine = second.keys().next().context("there are machines")?;
    let cluster = world.json(&["cluster", "show", CLUSTER])?;
    let stemcell = cluster["stemcell"].as_str().context("a stemcell")?;
    let one = ["node", "upgrade-agent", machine, "--stemcell", stemcell];
    world.run(&[&one[..], &["--wait"]].concat())?;
    ensure!(
        versions(&world)?.get(machine) == first.get(machine),
        "the first agent is back"
    );
    before.unchanged(&world, &kubectl)?;
    world.run(&["cluster", "delete", CLUSTER, "--yes", "--wait"])?;
    Ok(())
}

/// Versions of the agents, all of which answer.
fn versions(world: &World) -> Result<BTreeMap<String, String>> {
    let list = world.json(&["node", "list", "--cluster", CLUSTER])?;
    let mut versions = BTreeMap::new();
    for machine in items(&list)? {
        let name = machine["name"].as_str().context("a machine has a name")?;
        let said = world.run(&["node", "exec", name, "--", "echo", "here"])?;
        ensure!(said == "here\n", "{name}: {said}");
        let version = machine["agent"]["version"].as_str();
        let version = version.with_context(|| format!("{name} has no agent"))?;
        versions.insert(name.to_owned(), version.to_owned());
    }
    Ok(versions)
}

/// What must not notice anything: containers with their restarts, and components with their processes.
struct Running {
    containers: BTreeMap<String, Value>,
    components: BTreeMap<String, String>,
}

/// All containers of a cluster, by pod and id, with how often each was restarted.
pub(crate) fn containers(kubectl: &Kubectl) -> Result<BTreeMap<String, Value>> {
    let mut containers = BTreeMap::new();
    for pod in items(&kubectl.get(&["pods", "-A"])?)? {
        let uid = pod["metadata"]["uid"].as_str().context("a uid")?;
        let status = &pod["status"]["containerStatuses"];
        for container in status.as_array().context("containers")? {
            let id = container["containerID"].as_str().context("an id")?;
            let restarts = container["restartCount"].clone();
            containers.insert(format!("{uid}/{id}"), restarts);
        }
    }
    Ok(containers)
}

impl Running {
    fn look(world: &World, kubectl: &Kubectl) -> Result<Running> {
        let containers = containers(kubectl)?;
        ensure!(containers.len() > 4, "containers: {containers:?}");
        let list = world.json(&["node", "list", "--cluster", CLUSTER])?;
        let mut components = BTreeMap::new();
        for machine in items(&list)? {
            let name = machine["name"].as_str().context("a machine has a name")?;
            let units = "systemctl show -p Id,MainPID,NRestarts containerd kubelet kube-proxy etcd kube-apiserver";
            let argv = [&["node", "exec", name, "--"][..], &["sh", "-c", units]].concat();
            components.insert(name.to_owned(), world.run(&argv)?);
        }
        Ok(Running {
            containers,
            components,
        })
    }

    fn unchanged(&self, world: &World, kubectl: &Kubectl) -> Result<()> {
        let now = Running::look(world, kubectl)?;
        let (then, now_) = (&self.containers, &now.containers);
        ensure!(
            then == now_,
            "containers were\n{then:#?}\nand are\n{now_:#?}"
        );
        let (then, now) = (&self.components, &now.components);
        ensure!(then == now, "components were\n{then:#?}\nand are\n{now:#?}");
        healthy(kubectl, MACHINES)
    }
}
