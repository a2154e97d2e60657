//! A machine that a change has made anew, and that does not come through a gate of the spec, is made anew once more as it
//! was; nobody else is touched, and once the gate is mended the same task goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use windlass_tests::kubectl::Kubectl;
use windlass_tests::stemcells::{Shelf, given};
use windlass_tests::world::World;

use crate::changes::{NEWER, deploy, done, newest_task, succeeded};
use crate::gates::served;
use crate::lifecycle::{healthy, items};
use crate::refit::{CONTAINERD, containerd};

const CLUSTER: &str = "anew";
const CONTROL_PLANE: &str = "anew-cp-0";
/// The worker whose turn comes first, and the one whose turn does not come.
const FIRST: &str = "anew-workers-0";
const OTHER: &str = "anew-workers-1";

pub(crate) fn goes_back() -> Result<()> {
    let shelf = Shelf::beside(&given()?)?;
    let world = World::start_with(CLUSTER, shelf.path())?;
    let mended = Arc::new(AtomicBool::new(false));
    let kubectl = created(&world, &shop(Arc::clone(&mended))?)?;
    deploy(&kubectl, 4)?;
    let former = stemcell(&world, FIRST)?;
    let other = Machine::look(&world, &kubectl, OTHER)?;
    let newer = shelf.repackage("anew2", NEWER, NEWER, &[containerd(CONTAINERD.1)])?;

    let began = std::time::Instant::now();
    let upgrade = ["cluster", "upgrade", CLUSTER, "--stemcell"];
    let failed = world.output(&[&upgrade[..], &["--accept-downtime", "--wait"]].concat())?;
    eprintln!("  rolled back: {:.1} s", began.elapsed().as_secs_f64());
    ensure!(failed.status.code() == Some(1), "not stopped: {failed:?}");
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    let id = newest_task(&world)?;
    let task = world.json(&["task", "show", &id])?;
    let shown = world.json(&["cluster", "show", CLUSTER])?;
    ensure!(
        shown["phase"] == "Degraded" && task["state"] == "Failed",
        "{shown:#}, {task:#}"
    );
    // Which and why, whoever is asked.
    let error = task["error"]["message"].to_string();
    for (who, said) in [
        ("the command", &said),
        ("the task", &error),
        ("the cluster", &shown["message"].to_string()),
    ] {
        for part in [
            "gate shop is not open",
            "after machine anew-workers-0 changed",
            "503",
            "rolled back: anew-workers-0 serves as before",
            "windlass task retry",
        ] {
            ensure!(said.contains(part), "{who} does not say {part:?}: {said}");
        }
    }
    // It was in service behind a shut gate, and its pods left it.
    ensure!(
        succeeded(&task, "rollback/machine/anew-workers-0/drain") == 1,
        "{task:#}"
    );
    other.untouched(&Machine::look(&world, &kubectl, OTHER)?)?;
    went_back(&world, &kubectl, &former)?;
    ensure!(stemcell(&world, CONTROL_PLANE)? == newer, "{shown:#}");

    mended.store(true, Ordering::SeqCst);
    world.run(&["task", "retry", &id, "--wait"])?;
    healthy(&kubectl, 3)?;
    for (machine, incarnation) in [(FIRST, 4), (OTHER, 2)] {
        let record = world.json(&["node", "show", machine])?;
        ensure!(
            record["incarnation"] == incarnation && record["stemcell"] == newer.as_str(),
            "{record:#}"
        );
        ensure!(record["former"].is_null(), "{record:#}");
        runs(&kubectl, &record, CONTAINERD.1)?;
    }
    let shown = world.json(&["cluster", "show", CLUSTER])?;
    ensure!(shown["phase"] == "Ready", "{shown:#}");
    kubectl.pods_ready("app=web", 4)?;
    done(&world, CLUSTER)?;
    world.run(&["cluster", "delete", CLUSTER, "--yes", "--wait"])?;
    Ok(())
}

/// The URL of a server that lets the control plane through, whose turn is the first, and nobody else until it is mended.
fn shop(mended: Arc<AtomicBool>) -> Result<String> {
    let mut asked = false;
    served(move || {
        let first = !std::mem::replace(&mut asked, true);
        first || mended.load(Ordering::SeqCst)
    })
}

/// A cluster of a gate, and of workers of which one after the other is made anew, without an additional one.
fn created(world: &World, url: &str) -> Result<Kubectl> {
    let update = json!({"maxSurge": 0, "maxUnavailable": 1});
    let spec = json!({
        "name": CLUSTER,
        "kubernetesVersion": NEWER,
        "controlPlane": {"count": 1},
        "pools": {"workers": {"count": 2, "update": update}},
        "gates": [{"name": "shop", "http": {"url": url, "timeoutSeconds": 4}}],
    });
    let file = world.dir().join("anew.json");
    std::fs::write(&file, spec.to_string())?;
    let file = file.to_string_lossy().into_owned();
    world.run(&["cluster", "create", "-f", &file, "--wait"])?;
    let kubectl = world.kubectl(CLUSTER)?;
    healthy(&kubectl, 3)?;
    Ok(kubectl)
}

fn stemcell(world: &World, machine: &str) -> Result<String> {
    let record = world.json(&["node", "show", machine])?;
    let stemcell = record["stemcell"].as_str().context("a stemcell")?;
    Ok(stemcell.to_owned())
}

/// The first worker is what it was, as its third incarnation, and takes pods; of the second nothing is left.
fn went_back(world: &World, kubectl: &Kubectl, former: &str) -> Result<()> {
    healthy(kubectl, 3)?;
    let record = world.json(&["node", "show", FIRST])?;
    for (field, wanted) in [
        ("stemcell", json!(former)),
        ("incarnation", json!(3)),
        ("phase", json!("Ready")),
        ("pinned", json!(true)),
        ("former", json!(null)),
    ] {
        ensure!(record[field] == wanted, "{field}: {record:#}");
    }
    runs(kubectl, &record, CONTAINERD.0)?;
    let nodes = kubectl.get(&["nodes"])?;
    let names = items(&nodes)?.iter().map(|node| &node["metadata"]["name"]);
    ensure!(names.count() == 3, "nodes of nobody: {nodes:#}");
    let closed = nodes.to_string().contains("unschedulable");
    ensure!(!closed, "a node is left cordoned: {nodes:#}");
    // All pods that left found a place, and so do more, on this node too.
    kubectl.pods_ready("app=web", 4)?;
    deploy(kubectl, 8)?;
    let pods = kubectl.get(&["pods", "-l", "app=web"])?;
    let here = |pod: &&Value| pod["spec"]["nodeName"] == record["nodeName"];
    ensure!(items(&pods)?.iter().any(|pod| here(&pod)), "{pods:#}");
    deploy(kubectl, 4)
}

/// What the node of a machine starts containers with, as its kubelet says.
fn runs(kubectl: &Kubectl, record: &Value, version: &str) -> Result<()> {
    let node = record["nodeName"].as_str().context("a node")?;
    let node = kubectl.get(&["node", node])?;
    let said = &node["status"]["nodeInfo"]["containerRuntimeVersion"];
    ensure!(said == &json!(format!("containerd://{version}")), "{said}");
    Ok(())
}

/// What a change leaves as it is of a machine that it does not touch.
#[derive(Debug)]
struct Machine {
    incarnation: Value,
    stemcell: Value,
    boots: u64,
    /// Of its node.
    uid: Value,
    /// Which its kubelet and its containerd are.
    processes: String,
    /// Restarts of each pod on it.
    pods: BTreeMap<String, Value>,
}

impl Machine {
    fn look(world: &World, kubectl: &Kubectl, name: &str) -> Result<Machine> {
        let record = world.json(&["node", "show", name])?;
        let node = record["nodeName"].as_str().context("a node")?;
        let units = [
            "systemctl",
            "show",
            "-p",
            "MainPID",
            "kubelet",
            "containerd",
        ];
        let here = format!("--field-selector=spec.nodeName={node}");
        let pods = kubectl.get(&["pods", "-A", &here])?;
        let pods = items(&pods)?.iter().map(|pod| {
            let uid = pod["metadata"]["uid"].as_str().context("a uid")?;
            let status = &pod["status"]["containerStatuses"];
            Ok((uid.to_owned(), status[0]["restartCount"].clone()))
        });
        Ok(Machine {
            incarnation: record["incarnation"].clone(),
            stemcell: record["stemcell"].clone(),
            boots: world.boots(name)?,
            uid: kubectl.get(&["node", node])?["metadata"]["uid"].clone(),
            processes: world.run(&[&["node", "exec", name, "--"], &units[..]].concat())?,
            pods: pods.collect::<Result<_>>()?,
        })
    }

    /// The same machine, with all pods that it had; those of others may have come.
    fn untouched(&self, now: &Machine) -> Result<()> {
        let pods = |pods: &BTreeMap<String, Value>| {
            let had = pods.iter().filter(|(uid, _)| self.pods.contains_key(*uid));
            had.map(|(uid, restarts)| (uid.clone(), restarts.clone()))
                .collect::<Vec<_>>()
        };
        let same = (&self.incarnation, &self.stemcell, self.boots, &self.uid)
            == (&now.incarnation, &now.stemcell, now.boots, &now.uid);
        ensure!(
            same && self.processes == now.processes && pods(&self.pods) == pods(&now.pods),
            "{OTHER} was\n{self:#?}\nand is\n{now:#?}"
        );
        ensure!(!self.pods.is_empty(), "no pods on {OTHER}: {self:#?}");
        Ok(())
    }
}
