//! Machines die, hang and are cut off; the director judges them and heals those that do not work, and no
//! others. Times are printed, not asserted.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use windlass_tests::host::{self, Stopped};
use windlass_tests::kubectl::Kubectl;
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::changes;
use crate::lifecycle::{healthy, items};
use crate::zombie::{Controllers, EtcdKeys, Zombie, boots_again, control_plane_boots_again};

const IMAGE: &str = "registry.windlass.internal/agnhost:1.37.2";
/// Patience for a whole repair on a busy host.
pub(crate) const LONG: Duration = Duration::from_secs(240);

/// A director of its own, less patient than by default so that a scenario does not wait for minutes.
pub(crate) fn world(name: &str) -> Result<World> {
    let world = World::start(name)?;
    world.configure(&[
        ("watch_first_s", "3"),
        ("degraded_s", "20"),
        ("agent_lost_s", "20"),
        ("reboot_s", "30"),
        ("replace_first_s", "20"),
    ])?;
    Ok(world)
}

pub(crate) fn why(world: &World, machine: &str) -> Result<Value> {
    world.json(&["node", "why", machine])
}

/// How long the damage may have taken that a machine is judged for: what it was judged to be before that is of another one.
const DAMAGE_MS: i64 = 10_000;

/// Waits until a machine is healthy, or until it is judged to be something else for what was done to it just now, which
/// may be over soon.
pub(crate) fn verdict(world: &World, machine: &str, wanted: &str) -> Result<Duration> {
    let began = Instant::now();
    let since_ms = Timestamp::now().as_millisecond() - DAMAGE_MS;
    until(&format!("{machine} is {wanted}"), LONG, || {
        let said = why(world, machine)?;
        let was = judgements(&said, since_ms).any(|judged| judged["verdict"] == wanted);
        let is = said["verdict"] == wanted;
        Ok((is || (was && wanted != "healthy")).then_some(()))
    })?;
    Ok(began.elapsed())
}

/// What a machine was judged to be since a moment, Unix milliseconds.
pub(crate) fn judged_since(world: &World, machine: &str, began_ms: i64) -> Result<Vec<Value>> {
    let said = why(world, machine)?;
    Ok(judgements(&said, began_ms).cloned().collect())
}

/// Those of a machine's history, in which nothing is while nothing was ever wrong with it.
fn judgements(said: &Value, since_ms: i64) -> impl Iterator<Item = &Value> {
    let history = said["case"]["history"].as_array().into_iter().flatten();
    history.filter(move |judged| judged["atMs"].as_i64() >= Some(since_ms))
}

/// Waits until another incarnation of a machine is in service; returns it.
pub(crate) fn reborn(world: &World, machine: &str, before: u64) -> Result<u64> {
    until(&format!("{machine} is replaced and Ready"), LONG, || {
        let seen = world.json(&["node", "show", machine])?;
        let incarnation = seen["incarnation"].as_u64().unwrap_or(0);
        Ok((incarnation > before && seen["phase"] == "Ready").then_some(incarnation))
    })
}

pub(crate) fn incarnation(world: &World, machine: &str) -> Result<u64> {
    let seen = world.json(&["node", "show", machine])?;
    seen["incarnation"]
        .as_u64()
        .context("a machine has an incarnation")
}

/// The newest repair of a cluster.
pub(crate) fn repair_of(world: &World, cluster: &str) -> Result<Option<Value>> {
    let tasks = world.json(&["task", "list"])?;
    let repairs = items(&tasks)?.iter();
    Ok(repairs
        .clone()
        .find(|t| t["cluster"] == cluster && t["kind"] == "repairCluster")
        .cloned())
}

/// Where a pod runs that is Ready.
fn runs_on(kubectl: &Kubectl, pod: &str) -> Result<Option<String>> {
    let found = kubectl.get(&["pod", pod])?;
    let conditions = found["status"]["conditions"].as_array();
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Ready" && c["status"] == "True");
    let gone = !found["metadata"]["deletionTimestamp"].is_null();
    let node = found["spec"]["nodeName"].as_str().map(str::to_owned);
    Ok(node.filter(|_| ready && !gone))
}

fn workloads(kubectl: &Kubectl) -> Result<()> {
    for (kind, name, replicas) in [("Deployment", "web", 2), ("StatefulSet", "db", 1)] {
        let labels = json!({"app": name});
        let mut spec = json!({"replicas": replicas, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"terminationGracePeriodSeconds": 2, "containers": [{
                "name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "args": ["pause"]}]}}});
        if kind == "StatefulSet" {
            spec["serviceName"] = json!(name);
        }
        kubectl.apply(&json!({"apiVersion": "apps/v1", "kind": kind,
            "metadata": {"name": name, "namespace": "default"}, "spec": spec}))?;
        kubectl.pods_ready(&format!("app={name}"), replicas)?;
    }
    Ok(())
}

/// A worker is gone: it is replaced, and its pods run elsewhere before that.
pub(crate) fn lost_worker() -> Result<()> {
    let world = world("lost")?;
    world.run(&["cluster", "create", "lost", "--workers", "2", "--wait"])?;
    let kubectl = world.kubectl("lost")?;
    healthy(&kubectl, 3)?;
    workloads(&kubectl)?;
    let node = runs_on(&kubectl, "db-0")?.context("db-0 runs")?;
    let machine = node
        .rsplit_once("-i")
        .context("nodes carry their incarnation")?
        .0
        .to_owned();
    let zombie = Zombie::of(&machine, &node, &kubectl)?;
    attach_volume(&kubectl, &node)?;
    world.delete_behind(&machine)?;
    let began = Instant::now();
    let since = |what: &str| eprintln!("  {what}: {:.1} s", began.elapsed().as_secs_f64());
    verdict(&world, &machine, "machineGone")?;
    since("judged");
    let elsewhere = until("the StatefulSet's pod runs elsewhere", LONG, || {
        Ok(runs_on(&kubectl, "db-0")?.filter(|on| *on != node))
    })?;
    since(&format!("StatefulSet's pod Ready on {elsewhere}"));
    detach_volume(&world, &kubectl, &node)?;
    since("volume detached, and the Node gone");
    reborn(&world, &machine, 1)?;
    since("replacement Ready");
    healthy(&kubectl, 3)?;
    kubectl.pods_ready("app=web", 2)?;
    let nodes = kubectl.ready_nodes()?;
    ensure!(!nodes.contains(&node), "the dead node is left: {nodes:?}");
    ensure!(nodes.contains(&format!("{machine}-i2")), "nodes: {nodes:?}");
    verdict(&world, &machine, "healthy")?;
    let task = repair_of(&world, "lost")?.context("there was a repair")?;
    ensure!(task["state"] == "Succeeded", "task: {task:#}");
    let plan = world.json(&["cluster", "plan", "lost"])?;
    ensure!(
        plan["steps"].as_array().is_some_and(Vec::is_empty),
        "left to do: {plan:#}"
    );
    let etcd = world.json(&["node", "show", "lost-cp-0"])?;
    let etcd = etcd["address"].as_str().context("an address")?;
    zombie.is_refused(&world, &kubectl, etcd)?;
    zombie.gives_way(&world, &machine, &["kubelet"])?;
    healthy(&kubectl, 3)?;
    verdict(&world, &machine, "healthy")?;
    frozen_worker(&world, &kubectl)?;
    killed_kubelet(&world, &kubectl)?;
    crash_in_the_middle(&world, &kubectl)?;
    operators(&world, &kubectl)?;
    Ok(())
}

/// What a driver leaves for a volume that it has attached. There is no driver here, so that nobody but this scenario
/// takes it away again.
const ATTACHED: &str = "csi-e2e";

fn attach_volume(kubectl: &Kubectl, node: &str) -> Result<()> {
    kubectl.apply(
        &json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
        "metadata": {"name": ATTACHED},
        "spec": {"attacher": "e2e.windlass.internal", "nodeName": node,
            "source": {"persistentVolumeName": "pv-e2e"}}}),
    )
}

/// The Node is out of service and there as long as its volume is attached, and goes after it.
fn detach_volume(world: &World, kubectl: &Kubectl, node: &str) -> Result<()> {
    let there = kubectl.get(&["node", node])?;
    let taints = there["spec"]["taints"].as_array();
    let says = |taint: &Value| {
        taint["key"] == "node.kubernetes.io/out-of-service" && taint["effect"] == "NoExecute"
    };
    ensure!(
        taints.into_iter().flatten().any(says),
        "not out of service: {:#}",
        there["spec"]
    );
    kubectl.run(&["delete", "volumeattachment", ATTACHED])?;
    let dropped = until("the Node is dropped", LONG, || {
        let repair = repair_of(world, "lost")?.context("there is a repair")?;
        let step = &repair["steps"][format!("node/{node}/drop")];
        Ok((step["state"] == "Succeeded").then(|| step["changes"].to_string()))
    })?;
    ensure!(
        dropped.contains("1 volumes were detached"),
        "dropped: {dropped}"
    );
    Ok(())
}

/// A worker is gone in the middle of an upgrade: the upgrade replaces it next, and takes no other machine
/// meanwhile.
pub(crate) fn joins_an_upgrade() -> Result<()> {
    let world = world("joins")?;
    let kubectl = changes::older(&world, "joins", "1", "3")?;
    let upgrade = ["cluster", "upgrade", "joins", "--to", changes::NEWER];
    let task = world.json(&[&upgrade[..], &["--accept-downtime"]].concat())?;
    let task = task["id"].as_str().context("a task has an id")?.to_owned();
    until("the first worker is replaced", LONG, || {
        let seen = world.json(&["task", "show", &task])?;
        Ok((changes::succeeded(&seen, "/delete") >= 2).then_some(()))
    })?;
    let listed = world.json(&["node", "list", "--cluster", "joins"])?;
    let waits = |machine: &&Value| {
        machine["wanted"]["kind"] == "reborn" && machine["role"]["kind"] == "worker"
    };
    let machine = items(&listed)?.iter().rfind(waits);
    let machine = machine.context("a worker waits for its turn")?["name"].clone();
    let machine = machine.as_str().context("a name")?.to_owned();
    world.delete_behind(&machine)?;
    let began = Instant::now();
    verdict(&world, &machine, "machineGone")?;
    eprintln!("  judged: {:.1} s", began.elapsed().as_secs_f64());
    let told = until("the upgrade takes it in", LONG, || {
        let shown = world.json(&["cluster", "show", "joins"])?;
        let message = shown["message"].to_string();
        Ok(message.contains("replaced first").then_some(message))
    })?;
    ensure!(told.contains(&machine), "nobody says who: {told}");
    reborn(&world, &machine, 1)?;
    eprintln!("  replaced: {:.1} s", began.elapsed().as_secs_f64());
    let seen = world.json(&["task", "show", &task])?;
    ensure!(seen["state"] == "Running", "it waited: {}", seen["state"]);
    let ended = world.task_ended(&task, Duration::from_secs(600))?;
    ensure!(ended["state"] == "Succeeded", "task: {:#}", ended["error"]);
    eprintln!("  upgraded: {:.1} s", began.elapsed().as_secs_f64());
    kept_its_budget(&ended, &machine)?;
    ensure!(repair_of(&world, "joins")?.is_none(), "a task of its own");
    changes::upgraded(&world, &kubectl, "joins", 4)?;
    world.run(&["cluster", "delete", "joins", "--yes", "--wait"])?;
    Ok(())
}

/// What was gone was shut out, not drained, and nothing else was drained before it was back.
fn kept_its_budget(task: &Value, machine: &str) -> Result<()> {
    let steps = task["steps"].as_object().context("a task has steps")?;
    let again = |verb: &str| format!("again-1/machine/{machine}/{verb}");
    ensure!(
        steps.contains_key(&again("fence")) && !steps.contains_key(&again("drain")),
        "steps: {:?}",
        steps.keys()
    );
    let back = &steps[&again("await-node")]["endedAt"];
    let back = back.as_str().context("it was waited for")?;
    for (key, step) in steps {
        let drains = key.starts_with("again-") && key.ends_with("/drain");
        let at = step["startedAt"].as_str().unwrap_or_default();
        ensure!(!drains || at >= back, "{key} began at {at}, before {back}");
    }
    Ok(())
}

/// A worker hangs: it is restarted, and is the same incarnation after it.
fn frozen_worker(world: &World, kubectl: &Kubectl) -> Result<()> {
    let machine = "lost-workers-1";
    let before = incarnation(world, machine)?;
    let earlier = attempts(world, machine)?.len();
    world.freeze(machine)?;
    let began = Instant::now();
    verdict(world, machine, "nodeHung")?;
    eprintln!("  frozen, judged: {:.1} s", began.elapsed().as_secs_f64());
    verdict(world, machine, "healthy")?;
    eprintln!(
        "  frozen, Healthy again: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    ensure!(
        incarnation(world, machine)? == before,
        "it was replaced, not restarted"
    );
    let tried = attempts(world, machine)?.split_off(earlier);
    ensure!(
        matches!(&tried[..], [once] if once["rung"] == "reboot"),
        "tried: {tried:?}"
    );
    healthy(kubectl, 3)
}

/// What was tried with a machine so far, over all its incarnations, oldest first.
fn attempts(world: &World, machine: &str) -> Result<Vec<Value>> {
    let said = why(world, machine)?;
    Ok(said["case"]["case"]["attempts"]
        .as_array()
        .cloned()
        .unwrap_or_default())
}

/// A kubelet that dies again and again is systemd's to restart.
fn killed_kubelet(world: &World, kubectl: &Kubectl) -> Result<()> {
    let machine = "lost-workers-0";
    let before = incarnation(world, machine)?;
    for _ in 0..4 {
        let kubelet = until("the kubelet runs", Duration::from_secs(60), || {
            Ok(host::machine_processes(machine, "kubelet")?
                .first()
                .copied())
        })?;
        host::kill_hard(kubelet)?;
        until("it is gone", Duration::from_secs(10), || {
            let left = host::machine_processes(machine, "kubelet")?;
            Ok((!left.contains(&kubelet)).then_some(()))
        })?;
    }
    healthy(kubectl, 3)?;
    verdict(world, machine, "healthy")?;
    ensure!(incarnation(world, machine)? == before, "it was replaced");
    Ok(())
}

/// The director dies while it replaces a machine, at each of its steps' first moments.
fn crash_in_the_middle(world: &World, kubectl: &Kubectl) -> Result<()> {
    let machine = "lost-workers-0";
    let before = incarnation(world, machine)?;
    let last = repair_of(world, "lost")?.context("there was a repair")?["id"].clone();
    world.delete_behind(machine)?;
    let task = until("a repair begins", LONG, || {
        Ok(repair_of(world, "lost")?.filter(|task| task["id"] != last))
    })?;
    let id = task["id"].as_str().context("a task has an id")?.to_owned();
    for step in ["fence", "create", "start"] {
        until(&format!("{step} has begun"), LONG, || {
            let seen = world.json(&["task", "show", &id])?;
            let key = format!("machine/{machine}/{step}");
            Ok((!seen["steps"][&key].is_null()).then_some(()))
        })?;
        world.crash_director()?;
    }
    let ended = world.task_ended(&id, LONG)?;
    ensure!(ended["state"] == "Succeeded", "task: {:#}", ended["error"]);
    let now = reborn(world, machine, before)?;
    ensure!(
        now == before + 1,
        "replaced more than once: {before} → {now}"
    );
    healthy(kubectl, 3)
}

/// What operators hold is left alone; what they order is done.
fn operators(world: &World, kubectl: &Kubectl) -> Result<()> {
    let machine = "lost-workers-1";
    let before = incarnation(world, machine)?;
    world.run(&["node", "hold", machine, "--reason", "forensics"])?;
    world.delete_behind(machine)?;
    verdict(world, machine, "machineGone")?;
    let said = until("it is refused", LONG, || {
        let said = why(world, machine)?;
        Ok((said["outlook"]["kind"] == "refused").then_some(said))
    })?;
    ensure!(
        said["outlook"]["why"].to_string().contains("operator"),
        "{said:#}"
    );
    world.run(&["node", "release", machine])?;
    let now = reborn(world, machine, before)?;
    let keep = ["--keep", "--reason", "why does it die"];
    world.run(&[&["node", "recreate", machine, "--yes", "--wait"][..], &keep].concat())?;
    ensure!(
        incarnation(world, machine)? == now + 1,
        "recreate makes the next incarnation"
    );
    kept(world, kubectl, machine, now)?;
    let refused = world.output(&["node", "recreate", "lost-cp-0", "--yes"])?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(text.contains("--accept-downtime"), "no consent: {text}");
    Ok(())
}

/// What there was of a machine can be looked into, and even be booted, until it is deleted by its name.
fn kept(world: &World, kubectl: &Kubectl, machine: &str, incarnation: u64) -> Result<()> {
    let list = || world.json(&["node", "kept", "list"]);
    let all = list()?;
    let [kept] = items(&all)?.as_slice() else {
        anyhow::bail!("kept: {all:#}");
    };
    ensure!(
        kept["machine"] == machine && kept["incarnation"] == incarnation,
        "kept: {kept:#}"
    );
    let place = kept["place"].as_str().context("it is somewhere")?;
    let kubelet = std::path::Path::new(place).join("upper/etc/kubernetes/pki/kubelet-client.crt");
    ensure!(kubelet.exists(), "{} is not there", kubelet.display());
    boots_again(world, kubectl, machine, kept)?;
    let name = kept["name"].as_str().context("it has a name")?;
    world.run(&["node", "kept", "delete", name, "--yes"])?;
    ensure!(!std::path::Path::new(place).exists(), "{place} is left");
    let all = list()?;
    ensure!(items(&all)?.is_empty(), "kept: {all:#}");
    Ok(())
}

/// The director cannot reach anybody, or only one: nothing is restarted or replaced.
pub(crate) fn cut_off() -> Result<()> {
    let world = world("cut")?;
    world.run(&["cluster", "create", "cut", "--workers", "3", "--wait"])?;
    let kubectl = world.kubectl("cut")?;
    healthy(&kubectl, 4)?;
    let list = world.json(&["node", "list"])?;
    let all: Vec<(String, String)> = items(&list)?
        .iter()
        .filter_map(|m| {
            Some((
                m["name"].as_str()?.to_owned(),
                m["address"].as_str()?.to_owned(),
            ))
        })
        .collect();
    let (one, address) = all.last().context("there are machines")?;
    let cut = world.cut(std::slice::from_ref(address))?;
    let took = verdict(&world, one, "partitioned")?;
    eprintln!("  cut off alone, judged: {:.1} s", took.as_secs_f64());
    drop(cut);
    verdict(&world, one, "healthy")?;
    let addresses: Vec<String> = all.iter().map(|(_, address)| address.clone()).collect();
    let cut = world.cut(&addresses)?;
    for (name, _) in &all {
        verdict(&world, name, "unknown")?;
    }
    // Longer than any patience of this director.
    until(
        "a minute has passed in the storm",
        Duration::from_secs(90),
        {
            let began = Instant::now();
            move || Ok((began.elapsed() > Duration::from_secs(60)).then_some(()))
        },
    )?;
    drop(cut);
    for (name, _) in &all {
        verdict(&world, name, "healthy")?;
        let seen = why(&world, name)?;
        let tried = seen["case"]["case"]["attempts"].as_array();
        ensure!(
            tried.is_none_or(Vec::is_empty),
            "something was done: {seen:#}"
        );
    }
    ensure!(
        repair_of(&world, "cut")?.is_none(),
        "something was replaced"
    );
    healthy(&kubectl, 4)
}

/// A worker that hears neither the director nor an API server, while another machine hears the director, restarts, once;
/// one whose peers are cut off as well does not.
pub(crate) fn self_fence() -> Result<()> {
    let world = world("alone")?;
    // What restarts here is no act of the director.
    world.configure(&[("mode", "\"observe\"")])?;
    world.run(&["cluster", "create", "alone", "--workers", "2", "--wait"])?;
    let kubectl = world.kubectl("alone")?;
    healthy(&kubectl, 3)?;
    let mut spec = world.json(&["cluster", "show", "alone"])?["spec"].clone();
    spec["pools"]["workers"]["selfFence"] = json!({"afterSeconds": 30});
    let file = world.dir().join("alone.json");
    std::fs::write(&file, spec.to_string())?;
    let file = file.to_string_lossy().into_owned();
    let runtime = |machine: &str| host::machine_processes(machine, "containerd");
    let machines = ["alone-workers-0", "alone-workers-1"];
    let before = [runtime(machines[0])?, runtime(machines[1])?];
    world.run(&["cluster", "apply", "-f", &file, "--wait"])?;
    let after = [runtime(machines[0])?, runtime(machines[1])?];
    ensure!(before == after, "a machine was restarted for the setting");
    let [_, was] = before;
    let mut addresses = Vec::new();
    for machine in ["alone-cp-0", machines[0], machines[1]] {
        let seen = world.json(&["node", "show", machine])?;
        addresses.push(seen["address"].as_str().context("an address")?.to_owned());
    }
    let alone = machines[1];
    let api = Outgoing::blocked(alone, "tcp dport 6443")?;
    // All are cut off from the director: nobody says that it is this machine alone.
    let cut = world.cut(&addresses)?;
    let storm = Instant::now();
    until("a minute has passed", Duration::from_secs(90), || {
        Ok((storm.elapsed() > Duration::from_secs(60)).then_some(()))
    })?;
    ensure!(
        runtime(alone)? == was,
        "it restarted although all are cut off"
    );
    drop(cut);
    verdict(&world, alone, "healthy")?;
    let cut = world.cut(std::slice::from_ref(&addresses[2]))?;
    let began = Instant::now();
    until("it restarts", Duration::from_secs(120), || {
        let now = runtime(alone)?;
        Ok((!now.is_empty() && now != was).then_some(()))
    })?;
    eprintln!(
        "  restarted by itself: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    // Of the silence of before, when all were cut off, nothing counts.
    ensure!(began.elapsed() > Duration::from_secs(30), "too early");
    drop(cut);
    drop(api);
    until("its node is Ready again", LONG, || {
        Ok((kubectl.ready_nodes()?.len() == 3).then_some(()))
    })?;
    let gone = [
        "node",
        "exec",
        alone,
        "--",
        "test",
        "!",
        "-e",
        "/var/lib/windlass/self-fenced",
    ];
    world
        .run(&gone)
        .context("heard again, it may do so again")?;
    fenced_by_its_watchdog(&world, alone, &addresses[2])?;
    until("its node is Ready again", LONG, || {
        Ok((kubectl.ready_nodes()?.len() == 3).then_some(()))
    })
}

/// Cut off once more, its agent and its init stand still while the agent counts: the machine's monitor restarts it.
fn fenced_by_its_watchdog(world: &World, machine: &str, address: &str) -> Result<()> {
    let dir = world.dir().join("provider/machines").join(machine);
    let log = dir.join("monitor.log");
    let lines =
        |what: &str| -> Result<usize> { Ok(std::fs::read_to_string(&log)?.matches(what).count()) };
    let (counts, never) = ("restarts the machine in", "did not take back");
    let before = lines(counts)?;
    ensure!(lines(never)? == 0, "its own restart has hung");
    let _api = Outgoing::blocked(machine, "tcp dport 6443")?;
    let _cut = world.cut(&[address.to_owned()])?;
    let began = Instant::now();
    until("its agent counts", LONG, || {
        Ok((lines(counts)? > before).then_some(()))
    })?;
    let agent = host::machine_processes(machine, "windlass-agent")?;
    let agent = agent.first().copied().context("its agent runs")?;
    let was = host::machine_processes(machine, "containerd")?;
    // Before its agent, which it would start again.
    let _init = Stopped::process(host::machine_init(&dir)?)?;
    let _agent = Stopped::process(agent)?;
    until("it is restarted", Duration::from_secs(180), || {
        let now = host::machine_processes(machine, "containerd")?;
        Ok((!now.is_empty() && now != was).then_some(()))
    })?;
    ensure!(lines(never)? == 1, "another restarted it");
    ensure!(began.elapsed() > Duration::from_secs(30), "too early");
    eprintln!(
        "  agent and init hung, restarted by its monitor: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Packets that a machine's processes send are dropped, until this is dropped or the machine restarts.
pub(crate) struct Outgoing {
    machine: String,
}

impl Outgoing {
    pub(crate) fn blocked(machine: &str, rule: &str) -> Result<Outgoing> {
        let blocked = Outgoing {
            machine: machine.to_owned(),
        };
        blocked.nft(&format!(
            "table inet wl_test {{ chain out {{ type filter hook output priority -300; {rule} drop; }}; }}"
        ))?;
        Ok(blocked)
    }

    fn nft(&self, rules: &str) -> Result<()> {
        let agents = host::machine_processes(&self.machine, "windlass-agent")?;
        let agent = agents.first().context("its agent runs")?.to_string();
        let output = Command::new("nsenter")
            .args(["--target", &agent, "--net", "nft", rules])
            .output()
            .context("cannot start nsenter")?;
        ensure!(output.status.success(), "nft refuses {rules:?}: {output:?}");
        Ok(())
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // Gone already where the restart has made the machine's network anew.
        if let Err(error) = self.nft("delete table inet wl_test") {
            eprintln!("  its network was made anew: {error:#}");
        }
    }
}

/// What acts for a control-plane machine in its cluster, in the order of its start.
pub(crate) const ACTS: [&str; 5] = [
    "etcd",
    "kube-apiserver",
    "kube-scheduler",
    "kube-controller-manager",
    "kubelet",
];

/// Members of a control plane: one is gone and comes back with its disk, and keys that it had are refused at each door;
/// one hangs.
pub(crate) fn control_plane() -> Result<()> {
    let world = world("heal")?;
    world.run(&[
        "cluster",
        "create",
        "heal",
        "--control-plane",
        "3",
        "--workers",
        "1",
        "--wait",
    ])?;
    let kubectl = world.kubectl("heal")?;
    healthy(&kubectl, 4)?;
    kubectl.run(&["create", "configmap", "kept", "--from-literal=from=before"])?;
    let members = ["heal-cp-0", "heal-cp-1", "heal-cp-2"].map(|name| {
        let seen = world.json(&["node", "show", name])?;
        let address = seen["address"].as_str().context("an address")?;
        Ok((name, address.to_owned()))
    });
    let members = members.into_iter().collect::<Result<Vec<_>>>()?;
    let addresses: Vec<String> = members.iter().map(|(_, address)| address.clone()).collect();
    let zombie = Zombie::of("heal-cp-1", "heal-cp-1-i1", &kubectl)?;
    let controllers = Controllers::of("heal-cp-1", &kubectl, &addresses[0])?;
    let old = EtcdKeys::of("heal-cp-1")?;
    old.open(&addresses)
        .context("its keys count as long as it is current")?;
    world.delete_behind("heal-cp-1")?;
    let began = Instant::now();
    verdict(&world, "heal-cp-1", "machineGone")?;
    eprintln!("  judged: {:.1} s", began.elapsed().as_secs_f64());
    reborn(&world, "heal-cp-1", 1)?;
    eprintln!("  member back: {:.1} s", began.elapsed().as_secs_f64());
    healthy(&kubectl, 4)?;
    let kept = kubectl.get(&["configmap", "kept"])?;
    ensure!(kept["data"]["from"] == "before", "data of before: {kept}");
    old.are_refused(&world, &members)?;
    EtcdKeys::of("heal-cp-1")?.open(&addresses)?;
    zombie.is_refused(&world, &kubectl, &addresses[0])?;
    controllers.are_refused(&addresses[0])?;
    Controllers::of("heal-cp-1", &kubectl, &addresses[0]).context("its successor's controllers")?;
    workloads(&kubectl)?;
    zombie.gives_way(&world, "heal-cp-1", &ACTS)?;
    healthy(&kubectl, 4)?;
    verdict(&world, "heal-cp-1", "healthy")?;
    world.freeze("heal-cp-2")?;
    verdict(&world, "heal-cp-2", "nodeHung")?;
    verdict(&world, "heal-cp-2", "healthy")?;
    healthy(&kubectl, 4)?;
    // Not the one that was told before: its journal says so.
    kept_member(&world, &kubectl, "heal-cp-0", &members[1])?;
    healthy(&kubectl, 4)?;
    disks_grow(&world, &kubectl, "heal", 3)
}

/// A control-plane machine is made anew, and its old disk boots again beside its successor. `other` is another member.
fn kept_member(
    world: &World,
    kubectl: &Kubectl,
    machine: &str,
    (other, address): &(&str, String),
) -> Result<()> {
    let keep = ["--keep", "--reason", "why does it die"];
    world.run(&[&["node", "recreate", machine, "--yes", "--wait"][..], &keep].concat())?;
    healthy(kubectl, 4)?;
    let all = world.json(&["node", "kept", "list"])?;
    let [kept] = items(&all)?.as_slice() else {
        anyhow::bail!("kept: {all:#}");
    };
    let member = EtcdKeys::of(other)?;
    control_plane_boots_again(world, kubectl, machine, kept, (&member, address))?;
    let name = kept["name"].as_str().context("it has a name")?;
    world.run(&["node", "kept", "delete", name, "--yes"])?;
    Ok(())
}

/// Data disks of a control plane grow, and etcd goes on with what it had on the machines that there were.
fn disks_grow(world: &World, kubectl: &Kubectl, cluster: &str, members: usize) -> Result<()> {
    let machines: Vec<String> = (0..members).map(|i| format!("{cluster}-cp-{i}")).collect();
    let mut before = Vec::new();
    for machine in &machines {
        before.push(incarnation(world, machine)?);
    }
    let mut spec = world.json(&["cluster", "show", cluster])?["spec"].clone();
    let has = spec["controlPlane"]["size"]["diskMib"].as_u64();
    let has = has.context("a control plane has disks")?;
    let mut order = |mib: u64| -> Result<String> {
        spec["controlPlane"]["size"]["diskMib"] = json!(mib);
        let file = world.dir().join("grown.json");
        std::fs::write(&file, spec.to_string())?;
        Ok(file.to_string_lossy().into_owned())
    };
    let smaller = order(has - 1)?;
    let refused = world.output(&["cluster", "apply", "-f", &smaller, "--wait"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        !refused.status.success() && said.contains("do not shrink"),
        "{refused:?}"
    );
    let wanted = has + 2048;
    let larger = order(wanted)?;
    let began = Instant::now();
    world.run(&["cluster", "apply", "-f", &larger, "--wait"])?;
    eprintln!("  disks grown: {:.1} s", began.elapsed().as_secs_f64());
    let disks = world.json(&["disk", "list"])?;
    for (machine, before) in machines.iter().zip(before) {
        ensure!(
            incarnation(world, machine)? == before,
            "{machine} was made anew"
        );
        let disk = items(&disks)?
            .iter()
            .find(|disk| disk["machine"] == **machine);
        let bytes = disk.and_then(|disk| disk["bytes"].as_u64());
        ensure!(bytes == Some(wanted << 20), "{machine}: {disks:#}");
        let size = "stat --file-system --format '%b %S' /var/lib/etcd";
        let said = world.run(&["node", "exec", machine, "--", "sh", "-c", size])?;
        let numbers: Vec<u64> = said
            .split_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect();
        let holds: u64 = numbers.iter().product();
        ensure!(
            numbers.len() == 2 && holds > (has + 1024) << 20,
            "{machine} has a file system of {said}"
        );
    }
    let kept = kubectl.get(&["configmap", "kept"])?;
    ensure!(kept["data"]["from"] == "before", "data of before: {kept}");
    healthy(kubectl, members + 1)
}

/// Replacements that die like what they replace: the pool is left to an operator.
pub(crate) fn poison() -> Result<()> {
    let world = world("pois")?;
    world.configure(&[("replace_first_s", "1"), ("poison_after", "2")])?;
    world.run(&["cluster", "create", "pois", "--workers", "1", "--wait"])?;
    let machine = "pois-workers-0";
    for before in 1..=2 {
        world.delete_behind(machine)?;
        reborn(&world, machine, before)?;
    }
    world.delete_behind(machine)?;
    let said = until("the pool is left alone", LONG, || {
        let said = why(&world, machine)?;
        Ok((said["outlook"]["kind"] == "refused").then_some(said))
    })?;
    ensure!(
        said["outlook"]["why"]
            .to_string()
            .contains("replacements died"),
        "{said:#}"
    );
    ensure!(incarnation(&world, machine)? == 3, "it was replaced again");
    // Both were there and then not: nobody knows more, and the cluster says so.
    let shown = world.json(&["cluster", "show", "pois"])?;
    let stopped = &shown["stoppedPools"][0];
    ensure!(
        stopped["died"] == 2
            && stopped["kind"] == "none"
            && stopped["why"] == said["outlook"]["why"],
        "{stopped:#}"
    );
    let log = world.json(&["audit", "--action", "pool.stop"])?;
    ensure!(items(&log)?.len() == 1, "{log:#}");
    world.run(&["node", "release", machine])?;
    reborn(&world, machine, 3)?;
    let shown = world.json(&["cluster", "show", "pois"])?;
    ensure!(shown["stoppedPools"] == json!([]), "{shown:#}");
    Ok(())
}
