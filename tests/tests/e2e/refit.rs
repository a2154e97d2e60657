//! Components of machines that go on are changed in place; those that do not run are rolled back by themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use windlass_tests::kubectl::Kubectl;
use windlass_tests::stemcells::{Part, Program, Shelf, given};
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::agents::containers;
use crate::changes::{NEWER, deploy, done, succeeded};
use crate::lifecycle::{healthy, items};

const CLUSTER: &str = "refit";
/// Of the same length as [`NEWER`], which programs say.
const PATCH: &str = "1.37.3";
/// Versions that the given stemcells have, and what becomes of them.
pub(crate) const CONTAINERD: (&str, &str) = ("2.2.9", "2.3.9");
const ETCD: (&str, &str) = ("3.6.16", "3.6.17");

/// Another containerd, one that ends at once, and a patch of Kubernetes and etcd.
pub(crate) fn of_one() -> Result<()> {
    let shelf = Shelf::beside(&given()?)?;
    let world = World::start_with(CLUSTER, shelf.path())?;
    let kubectl = created(&world, 1, 2)?;
    deploy(&kubectl, 4)?;
    let before = Running::look(&world, &kubectl)?;
    let newer = shelf.repackage("parts2", NEWER, NEWER, &[containerd(CONTAINERD.1)])?;
    let upgrade = ["cluster", "upgrade", CLUSTER, "--accept-downtime"];
    let to_newest = [&upgrade[..], &["--stemcell"]].concat();
    let plan = world.json(&[&to_newest[..], &["--dry-run"]].concat())?;
    in_place(&plan, 3)?;
    world.run(&[&to_newest[..], &["--wait"]].concat())?;
    healthy(&kubectl, 3)?;
    before.unchanged(&world, &kubectl)?;
    let runs = |version: &str| -> Result<()> {
        runtimes(&kubectl, version)?;
        for machine in machines(&world)? {
            let name = machine["name"].as_str().context("a name")?;
            ensure!(machine["runs"] == newer.as_str(), "{machine:#}");
            ensure!(
                machine["components"]["containerd"] == version,
                "{machine:#}"
            );
            let program = "/opt/windlass/components/containerd/current/containerd";
            let said = world.run(&["node", "exec", name, "--", program, "--version"])?;
            ensure!(said.contains(version), "{name}: {said}");
        }
        Ok(())
    };
    runs(CONTAINERD.1)?;
    done(&world, CLUSTER)?;
    world.crash_director()?;
    until("agents are back", Duration::from_secs(60), || {
        let nodes = world.json(&["node", "list", "--cluster", CLUSTER])?;
        let back = |node: &Value| node["agent"]["connected"] == true;
        Ok(items(&nodes)?.iter().all(back).then_some(()))
    })?;
    runs(CONTAINERD.1)?;

    let broken = Part {
        name: "containerd",
        version: "2.4.0",
        program: Program::Is("#!/bin/sh\nexit 1\n"),
    };
    shelf.repackage("parts3", NEWER, NEWER, &[broken])?;
    let began = std::time::Instant::now();
    let failed = world.output(&[&to_newest[..], &["--wait"]].concat())?;
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    ensure!(failed.status.code() == Some(1), "not stopped: {failed:?}");
    for part in ["containerd.service", "rolled back: refit-cp-0 serves"] {
        ensure!(said.contains(part), "{part} is not told: {said}");
    }
    eprintln!("  rolled back: {:.1} s", began.elapsed().as_secs_f64());
    healthy(&kubectl, 3)?;
    runs(CONTAINERD.1)?;
    before.unchanged(&world, &kubectl)?;
    let tasks = world.json(&["task", "list"])?;
    let newest = items(&tasks)?.first().context("a task")?;
    let steps = newest["steps"].as_object().context("it has steps")?;
    let workers = steps.keys().filter(|key| key.contains("refit-workers-"));
    ensure!(workers.count() == 0, "workers were touched: {steps:#?}");

    // The same stemcell is not tried again by itself; a later one is, with all else that can change in place.
    let mut parts = kubernetes();
    parts.push(etcd());
    let patched = shelf.repackage("parts4", &newer, PATCH, &parts)?;
    let to_patch = [&upgrade[..], &["--to", PATCH]].concat();
    in_place(&world.json(&[&to_patch[..], &["--dry-run"]].concat())?, 3)?;
    world.run(&[&to_patch[..], &["--wait"]].concat())?;
    patched_in_place(&world, &kubectl, 3, &patched)?;
    before.unchanged(&world, &kubectl)?;
    // What is not run any more and was not run before either is gone, and what was tried last with it.
    let list = "ls /opt/windlass/components/containerd /opt/windlass/components/kubelet";
    for machine in ["refit-cp-0", "refit-workers-0"] {
        let said = world.run(&["node", "exec", machine, "--", "sh", "-c", list])?;
        let there: Vec<&str> = said.split_whitespace().collect();
        for version in [CONTAINERD.1, NEWER, PATCH] {
            ensure!(
                there.contains(&version),
                "{version} is not on {machine}: {said}"
            );
        }
        for version in [CONTAINERD.0, "2.4.0"] {
            ensure!(
                !there.contains(&version),
                "{version} is left on {machine}: {said}"
            );
        }
    }
    // A machine that is made anew comes from what it ran.
    world.run(&["node", "recreate", "refit-workers-0", "--yes", "--wait"])?;
    healthy(&kubectl, 3)?;
    let shown = world.json(&["node", "show", "refit-workers-0"])?;
    ensure!(shown["stemcell"] == patched.as_str(), "{shown:#}");
    ensure!(
        shown["incarnation"] == 2 && shown["fitted"].is_null(),
        "{shown:#}"
    );
    done(&world, CLUSTER)?;
    world.run(&["cluster", "delete", CLUSTER, "--yes", "--wait"])?;
    Ok(())
}

/// A patch of Kubernetes and etcd on three control-plane machines, one at a time, while the director dies.
pub(crate) fn of_three() -> Result<()> {
    let shelf = Shelf::beside(&given()?)?;
    let world = World::start_with(CLUSTER, shelf.path())?;
    let kubectl = created(&world, 3, 1)?;
    deploy(&kubectl, 2)?;
    let before = Running::look(&world, &kubectl)?;
    let mut parts = kubernetes();
    parts.extend([containerd(CONTAINERD.1), etcd()]);
    let patched = shelf.repackage("parts2", NEWER, PATCH, &parts)?;
    let upgrade = ["cluster", "upgrade", CLUSTER, "--to", PATCH];
    in_place(&world.json(&[&upgrade[..], &["--dry-run"]].concat())?, 4)?;
    let task = world.json(&upgrade)?;
    let task = task["id"].as_str().context("a task has an id")?.to_owned();
    for started in 1..=3 {
        until("machines are changed", Duration::from_secs(200), || {
            let seen = world.json(&["task", "show", &task])?;
            Ok((succeeded(&seen, "/start") >= started).then_some(()))
        })?;
        world.crash_director()?;
    }
    let ended = world.task_ended(&task, Duration::from_secs(300))?;
    ensure!(ended["state"] == "Succeeded", "task: {:#}", ended["error"]);
    patched_in_place(&world, &kubectl, 4, &patched)?;
    before.unchanged(&world, &kubectl)?;
    done(&world, CLUSTER)?;
    world.run(&["cluster", "delete", CLUSTER, "--yes", "--wait"])?;
    Ok(())
}

/// A cluster whose machines are changed in place.
fn created(world: &World, control_plane: u32, workers: u32) -> Result<Kubectl> {
    let update = json!({"strategy": "inPlace"});
    let spec = json!({
        "name": CLUSTER,
        "kubernetesVersion": NEWER,
        "controlPlane": {"count": control_plane, "update": update},
        "pools": {"workers": {"count": workers, "update": update}},
    });
    let file = world.dir().join("refit.json");
    std::fs::write(&file, spec.to_string())?;
    let file = file.to_string_lossy().into_owned();
    world.run(&["cluster", "create", "-f", &file, "--wait"])?;
    let kubectl = world.kubectl(CLUSTER)?;
    healthy(&kubectl, (control_plane + workers) as usize)?;
    Ok(kubectl)
}

pub(crate) fn containerd(version: &'static str) -> Part {
    Part {
        name: "containerd",
        version,
        program: Program::Says(CONTAINERD.0, version),
    }
}

fn etcd() -> Part {
    Part {
        name: "etcd",
        version: ETCD.1,
        program: Program::Says(ETCD.0, ETCD.1),
    }
}

/// The components of Kubernetes, a patch later.
fn kubernetes() -> Vec<Part> {
    let names = [
        "kube-apiserver",
        "kube-controller-manager",
        "kube-proxy",
        "kube-scheduler",
        "kubectl",
        "kubelet",
    ];
    let patched = |name| Part {
        name,
        version: PATCH,
        program: Program::Says(NEWER, PATCH),
    };
    names.map(patched).into()
}

/// A plan that brings components to all machines and takes none away.
fn in_place(plan: &Value, machines: usize) -> Result<()> {
    let steps = plan["steps"].as_array().context("a plan has steps")?;
    let of = |verb: &str| {
        let keys = steps.iter().filter_map(|step| step["key"].as_str());
        keys.filter(|key| key.ends_with(verb)).count()
    };
    ensure!(of("/stage") == machines, "plan: {plan:#}");
    for verb in ["/drain", "/delete", "/create"] {
        ensure!(of(verb) == 0, "{verb} in {plan:#}");
    }
    Ok(())
}

fn machines(world: &World) -> Result<Vec<Value>> {
    let shown = world.json(&["cluster", "show", CLUSTER])?;
    Ok(items(&shown["machines"])?.clone())
}

/// What kubelets say that they start containers with.
fn runtimes(kubectl: &Kubectl, version: &str) -> Result<()> {
    for node in items(&kubectl.get(&["nodes"])?)? {
        let said = &node["status"]["nodeInfo"]["containerRuntimeVersion"];
        ensure!(said == &json!(format!("containerd://{version}")), "{said}");
    }
    Ok(())
}

/// Everything at the patch, as the processes say themselves.
fn patched_in_place(world: &World, kubectl: &Kubectl, nodes: usize, stemcell: &str) -> Result<()> {
    healthy(kubectl, nodes)?;
    for node in items(&kubectl.get(&["nodes"])?)? {
        let said = &node["status"]["nodeInfo"]["kubeletVersion"];
        ensure!(said == &json!(format!("v{PATCH}")), "kubelet: {said}");
    }
    let said: Value = serde_json::from_str(&kubectl.run(&["get", "--raw", "/version"])?)?;
    ensure!(said["gitVersion"] == format!("v{PATCH}"), "API: {said}");
    let runs = "readlink /proc/$(pidof etcd)/exe; readlink /proc/$(pidof kube-apiserver)/exe";
    for machine in machines(world)? {
        ensure!(machine["runs"] == stemcell, "{machine:#}");
        ensure!(machine["kubernetesVersion"] == PATCH, "{machine:#}");
        if machine["role"]["kind"] != "controlPlane" {
            continue;
        }
        let name = machine["name"].as_str().context("a name")?;
        let said = world.run(&["node", "exec", name, "--", "sh", "-c", runs])?;
        for version in [ETCD.1, PATCH] {
            ensure!(said.contains(version), "{name} runs {said}");
        }
    }
    Ok(())
}

/// What a change in place does not touch: the containers of the workload, and which machines there are.
struct Running {
    containers: BTreeMap<String, Value>,
    machines: BTreeMap<String, Value>,
}

impl Running {
    fn look(world: &World, kubectl: &Kubectl) -> Result<Running> {
        let containers = containers(kubectl)?;
        ensure!(containers.len() > 2, "containers: {containers:?}");
        let list = world.json(&["node", "list", "--cluster", CLUSTER])?;
        let mut machines = BTreeMap::new();
        for machine in items(&list)? {
            let name = machine["name"].as_str().context("a name")?;
            machines.insert(name.to_owned(), machine["nodeName"].clone());
        }
        Ok(Running {
            containers,
            machines,
        })
    }

    fn unchanged(&self, world: &World, kubectl: &Kubectl) -> Result<()> {
        let now = Running::look(world, kubectl)?;
        let (then, now_) = (&self.containers, &now.containers);
        ensure!(
            then == now_,
            "containers were\n{then:#?}\nand are\n{now_:#?}"
        );
        ensure!(
            self.machines == now.machines,
            "machines were {:?} and are {:?}",
            self.machines,
            now.machines
        );
        Ok(())
    }
}
