//! Members of etcd join, leave and are lost, while clients use the cluster.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::changes::{deploy, done};
use crate::lifecycle::{etcd_members, healthy, items, with_world};
use crate::load::{Traffic, finished};
use crate::repair;

/// A control plane of one becomes one of three and goes back, and no request fails.
pub(crate) fn grows_and_shrinks() -> Result<()> {
    with_world(|world| {
        world.run(&["cluster", "create", "grow", "--workers", "1", "--wait"])?;
        let kubectl = world.kubectl("grow")?;
        healthy(&kubectl, 2)?;
        kubectl.run(&["create", "configmap", "kept", "--from-literal=from=before"])?;
        let scale = ["cluster", "scale", "grow", "--control-plane"];
        let even = world.output(&[&scale[..], &["2"]].concat())?;
        let said = String::from_utf8_lossy(&even.stderr).into_owned();
        ensure!(!even.status.success(), "an even number: {even:?}");
        ensure!(said.contains("majority"), "nobody says why: {said}");
        for (count, nodes) in [(3, 4), (1, 2)] {
            let traffic = Traffic::start(world, &kubectl, "grow")?;
            let order = count.to_string();
            let task = world.json(&[&scale[..], &[&order]].concat())?;
            let task = task["id"].as_str().context("a task has an id")?.to_owned();
            finished(world, &task, &traffic, Duration::from_secs(400))?;
            traffic.stop()?.flawless()?;
            healthy(&kubectl, nodes)?;
            let voting = voting(world, "grow")?;
            ensure!(voting.len() == count, "members: {voting:?}");
            let machines = world.json(&["node", "list", "--cluster", "grow"])?;
            ensure!(items(&machines)?.len() == nodes, "machines: {machines}");
            done(world, "grow")?;
            let kept = kubectl.get(&["configmap", "kept"])?;
            ensure!(kept["data"]["from"] == "before", "data of before: {kept}");
        }
        world.run(&["cluster", "delete", "grow", "--yes", "--wait"])?;
        Ok(())
    })
}

/// A member's machine and its disk are gone: it leaves etcd, joins again as another, and has the data.
pub(crate) fn lost_disk() -> Result<()> {
    let world = repair::world("ldisk")?;
    let create = ["cluster", "create", "ldisk", "--control-plane", "3"];
    world.run(&[&create[..], &["--workers", "1", "--wait"]].concat())?;
    let kubectl = world.kubectl("ldisk")?;
    healthy(&kubectl, 4)?;
    kubectl.run(&["create", "configmap", "kept", "--from-literal=from=before"])?;
    let before = voting(&world, "ldisk")?;
    ensure!(before.len() == 3, "members: {before:?}");
    let machine = "ldisk-cp-1";
    let shown = world.json(&["node", "show", machine])?;
    let disk = shown["dataDisk"].as_str().context("a member has a disk")?;
    world.delete_behind(machine)?;
    world.delete_disk_behind(disk)?;
    repair::reborn(&world, machine, 1)?;
    healthy(&kubectl, 4)?;
    let after = voting(&world, "ldisk")?;
    ensure!(after.len() == 3, "members: {after:?}");
    ensure!(
        before.intersection(&after).count() == 2,
        "one is another: {before:?}, {after:?}"
    );
    let task = repair::repair_of(&world, "ldisk")?.context("there was a repair")?;
    let steps = task["steps"].as_object().context("a task has steps")?;
    for verb in ["remove-member", "add-member", "promote-member"] {
        let key = format!("machine/{machine}/{verb}");
        ensure!(steps[&key]["state"] == "Succeeded", "{key}: {task:#}");
    }
    // The one that was lost counts: another one may go now.
    until(
        "it answers with the two others",
        Duration::from_secs(30),
        || {
            let kept = kubectl.get(&["configmap", "kept"])?;
            Ok((kept["data"]["from"] == "before").then_some(()))
        },
    )?;
    deploy(&kubectl, 2)?;
    done(&world, "ldisk")
}

/// Ids of the members that have a vote, as etcd itself says; each machine has to agree.
pub(crate) fn voting(world: &World, cluster: &str) -> Result<BTreeSet<u64>> {
    let machines = world.json(&["node", "list", "--cluster", cluster])?;
    let mut seen = BTreeSet::new();
    for machine in items(&machines)? {
        if !machine["role"].to_string().contains("ontrol") {
            continue;
        }
        let name = machine["name"].as_str().context("a machine has a name")?;
        let members = etcd_members(world, name)?;
        ensure!(
            members.iter().all(|m| m["isLearner"] != true),
            "a learner is left: {members:?}"
        );
        let id = |member: &Value| member["ID"].as_u64();
        let ids: BTreeSet<u64> = members.iter().filter_map(id).collect();
        ensure!(
            seen.is_empty() || seen == ids,
            "{name} says {ids:?}, not {seen:?}"
        );
        seen = ids;
    }
    Ok(seen)
}
