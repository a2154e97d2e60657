//! Clusters come back: from a snapshot, and from the last member that is left.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use windlass_tests::kubectl::Kubectl;
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::changes::{deploy, done};
use crate::etcd::voting;
use crate::lifecycle::{healthy, items, with_world};
use crate::repair;

/// What the Secret holds.
const WORD: &str = "xyzzy";
/// How long a restore may take: it stops and starts a control plane of three, on a busy host.
const LONG: Duration = Duration::from_secs(600);

/// A cluster of three goes back to a backup; its director dies on the way. What the snapshot holds is there, what
/// came later is not, and controllers and kubelets that had seen later revisions work.
pub(crate) fn from_a_snapshot() -> Result<()> {
    with_world(|world| {
        let create = ["cluster", "create", "back", "--control-plane", "3"];
        world.run(&[&create[..], &["--workers", "1", "--wait"]].concat())?;
        let kubectl = world.kubectl("back")?;
        healthy(&kubectl, 4)?;
        keep_a_secret(&kubectl)?;
        kubectl.run(&["create", "configmap", "kept", "--from-literal=from=before"])?;
        deploy(&kubectl, 1)?;
        let snapshot = snapshot(world, "back-cp-0")?;
        let backup = world.json(&["cluster", "backup", "back"])?;
        let backup = backup["name"].as_str().context("a backup has a name")?;
        kubectl.run(&["create", "configmap", "later", "--from-literal=from=after"])?;
        kubectl.run(&["delete", "secret", "kept"])?;
        deploy(&kubectl, 2)?;

        let from = snapshot.to_str().context("a path of text")?;
        let plan = world.json(&["cluster", "restore", "back", "--from", from, "--dry-run"])?;
        ensure!(members(&plan)?.len() == 3, "from a file: {plan:#}");
        let restore = ["cluster", "restore", "back", "--from-backup", backup];
        let plan = world.json(&[&restore[..], &["--dry-run"]].concat())?;
        let losses = plan["restore"]["losses"]
            .as_array()
            .context("it says what is lost")?;
        ensure!(!losses.is_empty(), "nothing is lost: {plan:#}");
        let fates: Vec<&Value> = members(&plan)?.iter().map(|m| &m["fate"]).collect();
        ensure!(fates == ["begins", "begins", "begins"], "members: {plan:#}");
        refused(world, &restore, "--accept-loss")?;
        let hash = plan["hash"].as_str().context("a plan has a hash")?;
        let task = world.json(&[&restore[..], &["--plan", hash, "--accept-loss"]].concat())?;
        let task = task["id"].as_str().context("a task has an id")?.to_owned();
        until("an API server is stopped", LONG, || {
            let seen = world.json(&["task", "show", &task])?;
            let steps = seen["steps"].as_object().context("a task has steps")?;
            Ok(steps
                .keys()
                .any(|key| key.ends_with("/stop-api"))
                .then_some(()))
        })?;
        refused(
            world,
            &["task", "cancel", &task],
            "only its end brings them back",
        )?;
        world.crash_director()?;
        ended(world, &task)?;

        healthy(&kubectl, 4)?;
        the_secret_is_kept(&kubectl)?;
        let kept = kubectl.get(&["configmap", "kept"])?;
        ensure!(kept["data"]["from"] == "before", "data of before: {kept}");
        kubectl.refused(&["get", "configmap", "later"])?;
        // The Deployment is the snapshot's; what follows is for controllers, scheduler and kubelets.
        kubectl.run(&["scale", "deployment/web", "--replicas=3"])?;
        kubectl.pods_ready("app=web", 3)?;
        ensure!(voting(world, "back")?.len() == 3, "all have a vote");
        let before = ["node", "exec", "back-cp-1", "--", "ls"];
        world.run(
            &[
                &before[..],
                &["/var/lib/etcd/before-restore/member/snap/db"],
            ]
            .concat(),
        )?;
        done(world, "back")?;
        world.run(&["cluster", "delete", "back", "--yes", "--wait"])?;
        Ok(())
    })
}

/// A cluster that is gone with all its disks is made again from its backup; its director dies on the way. Credentials
/// of before are good for it, its Secrets are readable, its workload runs on nodes that the backup does not know.
pub(crate) fn made_again() -> Result<()> {
    let world = &World::start("made")?;
    let create = ["cluster", "create", "gone", "--workers", "1", "--wait"];
    world.run(&create)?;
    let kubectl = world.kubectl("gone")?;
    healthy(&kubectl, 2)?;
    keep_a_secret(&kubectl)?;
    deploy(&kubectl, 1)?;
    let backup = world.json(&["cluster", "backup", "gone"])?;
    ensure!(
        backup["snapshot"]["restored"] == true,
        "its snapshot was not restored as a trial: {backup:#}"
    );
    let backup = backup["name"].as_str().context("a backup has a name")?;
    let restore = ["cluster", "restore", "gone", "--from-backup", backup];
    refused(
        world,
        &[&restore[..], &["--as", "gone"]].concat(),
        "there is a cluster gone already",
    )?;
    let drill = world.json(&["cluster", "backups", "drill", "gone", backup])?;
    let read = &drill["end"]["census"];
    ensure!(
        read["secrets"].as_u64() > Some(0) && read["deployments"].as_u64() > Some(1),
        "{drill:#}"
    );
    eprintln!(
        "drill: backup {} ms old, control plane back in {} ms",
        drill["ageMs"], drill["end"]["tookMs"]
    );
    let scratch = drill["scratch"].as_str().context("a drill has a cluster")?;
    until("the drill's cluster is gone", LONG, || {
        let clusters = world.json(&["cluster", "list"])?;
        let named = |cluster: &Value| cluster["spec"]["name"] == scratch;
        Ok((!items(&clusters)?.iter().any(named)).then_some(()))
    })?;
    world.run(&["cluster", "delete", "gone", "--yes", "--wait"])?;

    let plan = world.json(&[&restore[..], &["--dry-run"]].concat())?;
    let losses = plan["restore"]["losses"].as_array();
    ensure!(losses.is_some_and(|losses| !losses.is_empty()), "{plan:#}");
    let task = world.json(&restore)?;
    ensure!(task["kind"] == "createCluster", "{task:#}");
    let task = task["id"].as_str().context("a task has an id")?.to_owned();
    ended(world, &task)?;
    world.crash_director()?;
    let show = ["cluster", "show", "gone"];
    until("its data is restored", LONG, || {
        let seen = world.json(&show)?;
        let done = seen["madeFrom"]["restored"] == true && seen["task"].is_null();
        Ok(done.then_some(()))
    })?;

    healthy(&kubectl, 2)?;
    the_secret_is_kept(&kubectl)?;
    let nodes = kubectl.run(&["get", "nodes", "-o", "name"])?;
    let mut nodes: Vec<&str> = nodes.lines().collect();
    nodes.sort_unstable();
    ensure!(
        nodes == ["node/gone-cp-1-i1", "node/gone-workers-1-i1"],
        "{nodes:?}"
    );
    kubectl.run(&["scale", "deployment/web", "--replicas=2"])?;
    kubectl.pods_ready("app=web", 2)?;
    done(world, "gone")?;
    world.json(&["cluster", "backup", "gone"])?;
    world.run(&["cluster", "delete", "gone", "--yes", "--wait"])?;
    Ok(())
}

/// Two of three control-plane machines are lost with their disks: nothing is done before an operator has seen what
/// is left, and the cluster comes back around the last member.
pub(crate) fn from_the_last_member() -> Result<()> {
    let world = repair::world("qloss")?;
    let create = ["cluster", "create", "qloss", "--control-plane", "3"];
    world.run(&[&create[..], &["--workers", "1", "--wait"]].concat())?;
    let kubectl = world.kubectl("qloss")?;
    healthy(&kubectl, 4)?;
    keep_a_secret(&kubectl)?;
    deploy(&kubectl, 1)?;
    let restore = ["cluster", "restore", "qloss", "--from-member"];
    refused(
        &world,
        &[&restore[..], &["--dry-run"]].concat(),
        "etcd has its majority",
    )?;
    for machine in ["qloss-cp-0", "qloss-cp-2"] {
        let shown = world.json(&["node", "show", machine])?;
        let disk = shown["dataDisk"].as_str().context("a member has a disk")?;
        world.delete_behind(machine)?;
        world.delete_disk_behind(disk)?;
    }
    let plan = until("the last member sees no leader", LONG, || {
        let output = world.output(&[&restore[..], &["--dry-run", "--json"]].concat())?;
        if !output.status.success() {
            return Ok(None);
        }
        let plan: Value = serde_json::from_slice(&output.stdout)?;
        Ok(Some(plan))
    })?;
    let first = members(&plan)?.first().context("members are ranked")?;
    ensure!(
        first["machine"] == "qloss-cp-1" && first["fate"] == "begins",
        "{plan:#}"
    );
    ensure!(
        first["revision"].as_u64() > Some(0),
        "it is known how far it goes: {first}"
    );
    let lost = plan["restore"]["losses"].to_string();
    ensure!(
        lost.contains("qloss-cp-0") && lost.contains("qloss-cp-2"),
        "{lost}"
    );
    let task = world.json(&[&restore[..], &["--accept-loss"]].concat())?;
    let task = task["id"].as_str().context("a task has an id")?.to_owned();
    ended(&world, &task)?;
    healthy(&kubectl, 4)?;
    the_secret_is_kept(&kubectl)?;
    ensure!(voting(&world, "qloss")?.len() == 3, "all have a vote");
    for machine in ["qloss-cp-0", "qloss-cp-2"] {
        ensure!(
            repair::incarnation(&world, machine)? == 2,
            "{machine} is another one"
        );
    }
    kubectl.run(&["scale", "deployment/web", "--replicas=3"])?;
    kubectl.pods_ready("app=web", 3)?;
    done(&world, "qloss")
}

pub(crate) fn members(plan: &Value) -> Result<&Vec<Value>> {
    plan["restore"]["members"]
        .as_array()
        .context("a restore has members")
}

/// A snapshot that etcd itself makes, brought to where the director runs.
fn snapshot(world: &World, machine: &str) -> Result<PathBuf> {
    let script = "cd /etc/kubernetes/pki && \
        /opt/windlass/components/etcd/current/etcdctl --endpoints=https://127.0.0.1:2379 \
        --cacert=etcd-ca.crt --cert=apiserver-etcd-client.crt --key=apiserver-etcd-client.key \
        snapshot save /var/lib/etcd/e2e.db >/dev/null 2>&1 && exec base64 -w0 /var/lib/etcd/e2e.db";
    let text = world.run(&["node", "exec", machine, "--", "sh", "-c", script])?;
    let bytes = STANDARD.decode(text.trim()).context("no base64")?;
    let path = world.dir().join("snapshot.db");
    std::fs::write(&path, bytes)?;
    Ok(path)
}

/// A command fails, and says this.
pub(crate) fn refused(world: &World, arguments: &[&str], why: &str) -> Result<()> {
    let output = world.output(arguments)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        !output.status.success() && said.contains(why),
        "{arguments:?}: {output:?}"
    );
    Ok(())
}

pub(crate) fn ended(world: &World, task: &str) -> Result<()> {
    let task = world.task_ended(task, LONG)?;
    if task["state"] != "Succeeded" {
        bail!("the restore: {task:#}");
    }
    Ok(())
}

/// A Secret that has to outlive what follows.
fn keep_a_secret(kubectl: &Kubectl) -> Result<()> {
    let literal = format!("--from-literal=word={WORD}");
    kubectl.run(&["create", "secret", "generic", "kept", &literal])?;
    Ok(())
}

fn the_secret_is_kept(kubectl: &Kubectl) -> Result<()> {
    let secret = kubectl.get(&["secret", "kept"])?;
    let word = &secret["data"]["word"];
    ensure!(*word == STANDARD.encode(WORD), "the Secret: {secret}");
    Ok(())
}
