//! Who tells pods to leave: their own node while its agent can be asked, the director's role when it cannot. Seen from
//! outside, in the audit log of the API server.

use std::fs::File;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use windlass_tests::kubectl::Kubectl;
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::changes::IMAGE;
use crate::lifecycle::items;
use crate::rotation::systemctl;

/// Longest wait for what takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// The director's user in clusters.
const DIRECTOR: &str = "windlass:director";

/// One request to have a pod leave.
#[derive(Debug)]
pub(crate) struct Told {
    user: String,
    agent: String,
    pod: String,
    code: u64,
    evicted: bool,
}

/// What the API server of a cluster of one has written about pods of namespace `default` that were told to leave.
pub(crate) fn told(world: &World, control_plane: &str) -> Result<Vec<Told>> {
    let look = r#"grep -hE '"verb":"(create|delete)".*"resource":"pods".*"namespace":"default"' \
        /var/log/kubernetes/audit*.log | grep -E '"subresource":"eviction"|"verb":"delete"' || true"#;
    let log = world.run(&["node", "exec", control_plane, "--", "sh", "-c", look])?;
    let mut told = Vec::new();
    for line in log.lines().filter(|line| line.starts_with('{')) {
        let entry: Value = serde_json::from_str(line).context("an audit log is JSON")?;
        let text = |pointer: &str| entry.pointer(pointer).and_then(Value::as_str);
        let text = |pointer: &str| text(pointer).unwrap_or_default().to_owned();
        told.push(Told {
            user: text("/user/username"),
            agent: text("/userAgent"),
            pod: text("/objectRef/name"),
            code: entry["responseStatus"]["code"].as_u64().unwrap_or(0),
            evicted: text("/objectRef/subresource") == "eviction",
        });
    }
    Ok(told)
}

/// Pods that were told to leave so far were told by agents, with the identities of their nodes; one at least was
/// evicted, one refused, one deleted.
pub(crate) fn told_by_nodes(world: &World, control_plane: &str) -> Result<()> {
    let told = told(world, control_plane)?;
    let ours: Vec<&Told> = told
        .iter()
        .filter(|told| told.agent == "windlass-agent")
        .collect();
    let nodes = |told: &&Told| told.user.starts_with("system:node:size-workers-");
    ensure!(ours.iter().all(nodes), "told by others: {told:#?}");
    // Of pods that have ended, the director removes what is left once their machine is gone.
    let left = |of: &Told| {
        let ended = |told: &&Told| told.pod == of.pod && told.code < 300;
        !of.evicted && ours.iter().any(ended)
    };
    let mut by_director = told.iter().filter(|told| told.user == DIRECTOR);
    ensure!(by_director.all(left), "told by the director: {told:#?}");
    let any = |evicted: bool, codes: std::ops::Range<u64>| {
        ours.iter()
            .any(|told| told.evicted == evicted && codes.contains(&told.code))
    };
    ensure!(any(true, 429..430), "nobody was refused: {told:#?}");
    ensure!(any(false, 200..300), "nobody was deleted: {told:#?}");
    Ok(())
}

/// Makes a budget that lets none of the three pods `web` go, and waits until it counts.
pub(crate) fn strict(kubectl: &Kubectl) -> Result<()> {
    kubectl.run(&[
        "create",
        "poddisruptionbudget",
        "strict",
        "--selector=app=web",
        "--min-available=3",
    ])?;
    until("the budget counts", PATIENCE, || {
        let budget = kubectl.get(&["poddisruptionbudget", "strict"])?;
        Ok((budget["status"]["currentHealthy"] == 3).then_some(()))
    })?;
    Ok(())
}

/// A process that follows a task, with what it says; ended when dropped.
struct Watch {
    child: Child,
    said: std::path::PathBuf,
}

impl Watch {
    fn start(world: &World, task: &str, name: &str) -> Result<Watch> {
        let said = world.dir().join(name);
        let child = world
            .command(&["task", "watch", task])
            .stdout(Stdio::null())
            .stderr(File::create(&said).context("cannot write what is said")?)
            .spawn()
            .context("cannot start windlass")?;
        Ok(Watch { child, said })
    }

    /// The last line with all of these words; without one, all that was said is the reason.
    fn line(&self, words: &[&str]) -> Result<Option<String>> {
        let said = std::fs::read_to_string(&self.said).context("cannot read what is said")?;
        let mut lines = said.lines().rev();
        let found = lines.find(|line| words.iter().all(|word| line.contains(word)));
        let found = found.with_context(|| format!("no line of {words:?} in {said}"))?;
        Ok(Some(found.to_owned()))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Fails when it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Nodes of a cluster of two workers: the one that stays when it shrinks, and the one that goes.
fn workers(kubectl: &Kubectl) -> Result<(String, String)> {
    let workers = kubectl.get(&["nodes", "-l", "windlass.internal/pool=workers"])?;
    let names = items(&workers)?.iter();
    let names: Vec<&str> = names
        .filter_map(|n| n["metadata"]["name"].as_str())
        .collect();
    ensure!(names.len() == 2, "workers: {names:?}");
    let stays = names.iter().min().context("there are workers")?;
    let goes = names.iter().max().context("there are workers")?;
    Ok(((*stays).to_owned(), (*goes).to_owned()))
}

/// What progress tells people to type.
fn commands(line: &str) -> Result<&str> {
    let (_, commands) = line
        .split_once("; to let them go: ")
        .with_context(|| format!("no command in {line:?}"))?;
    Ok(commands)
}

/// Pods that nothing makes again, that are not Ready, or that two budgets cover, stay until somebody types what progress
/// says. Wants a cluster `size` of two workers, leaves one.
pub(crate) fn let_go(world: &World, kubectl: &Kubectl) -> Result<()> {
    let (stays, goes) = &workers(kubectl)?;
    kept(kubectl, stays, goes)?;
    let mut spec = world.json(&["cluster", "show", "size"])?["spec"].clone();
    spec["drain"] = json!({"timeoutSeconds": 600, "onTimeout": "delete", "evictUnmanaged": true});
    spec["pools"]["workers"]["count"] = json!(1);
    let file = world.dir().join("let-go.json");
    std::fs::write(&file, spec.to_string())?;
    let task = world.json(&["cluster", "apply", "-f", &file.to_string_lossy()])?;
    let task = task["id"].as_str().context("a task has an id")?.to_owned();
    let first = Watch::start(world, &task, "first")?;
    let shown = [
        "pods to leave",
        "patch poddisruptionbudget bare ",
        "patch poddisruptionbudget sick ",
        "delete poddisruptionbudget twice-",
    ];
    let said = "progress says what to do";
    until(said, PATIENCE, || first.line(&shown))?;
    // Nothing changes any more, and somebody comes to see what it waits for.
    let later = Watch::start(world, &task, "later")?;
    let line = until(&format!("{said} to who comes later"), PATIENCE, || {
        later.line(&shown)
    })?;
    let there = kubectl.get(&["pods", "-l", "kept"])?;
    let ends = |pod: &Value| !pod["metadata"]["deletionTimestamp"].is_null();
    let there = items(&there)?;
    ensure!(
        there.len() == 3 && !there.iter().any(ends),
        "some left by themselves: {there:#?}"
    );
    kubectl.typed(commands(&line)?)?;
    let ended = world.task_ended(&task, Duration::from_secs(180))?;
    ensure!(ended["state"] == "Succeeded", "it ended so: {ended:#}");
    let steps = ended["steps"].to_string();
    for pod in ["bare", "sick-", "twice"] {
        let left = format!("evicted default/{pod}");
        ensure!(steps.contains(&left), "{left:?} is not there: {ended:#}");
    }
    ensure!(!steps.contains("past its budget"), "deleted: {ended:#}");
    kubectl.run(&["delete", "deployment,poddisruptionbudget", "-l", "kept"])?;
    Ok(())
}

/// Has three pods on a node, each kept by a budget in another way.
fn kept(kubectl: &Kubectl, stays: &str, goes: &str) -> Result<()> {
    let labels = |of: &str| json!({"kept": of});
    let pod = |name: &str, probe: Value| {
        let container = json!({"name": "kept", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
            "args": ["pause"], "readinessProbe": probe});
        json!({"metadata": {"name": name, "labels": labels(name)},
            "spec": {"terminationGracePeriodSeconds": 2, "containers": [container]}})
    };
    let bare = |name: &str| {
        let mut pod = pod(name, Value::Null);
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["spec"]["nodeName"] = json!(goes);
        pod
    };
    let budget = |name: &str, of: &str, least: u32| {
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": {"name": name, "labels": labels(of)},
            "spec": {"minAvailable": least, "selector": {"matchLabels": labels(of)}}})
    };
    // Nobody listens there.
    let never = json!({"tcpSocket": {"port": 9}, "periodSeconds": 1});
    let sick = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "sick", "labels": labels("sick")},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels("sick")}, "template": pod("sick", never)}});
    kubectl.run(&["cordon", stays])?;
    let apply =
        |items: Value| kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}));
    apply(json!([bare("bare"), bare("twice"), sick]))?;
    until("all three run", PATIENCE, || {
        let pods = kubectl.get(&["pods", "-l", "kept"])?;
        let runs = |pod: &&Value| {
            pod["spec"]["nodeName"] == goes
                && pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
        };
        Ok((items(&pods)?.iter().filter(runs).count() == 3).then_some(()))
    })?;
    kubectl.run(&[
        "wait",
        "--for=condition=Ready",
        "pods/bare",
        "pods/twice",
        "--timeout=60s",
    ])?;
    // Of two budgets that cover a pod only one is told when it becomes Ready.
    apply(json!([
        budget("bare", "bare", 1),
        budget("sick", "sick", 1),
        budget("twice-a", "twice", 0),
        budget("twice-b", "twice", 0),
    ]))?;
    until("budgets count", PATIENCE, || {
        let budgets = kubectl.get(&["poddisruptionbudgets", "-l", "kept"])?;
        let healthy = |budget: &Value| budget["status"]["currentHealthy"].as_u64();
        let healthy: Vec<u64> = items(&budgets)?.iter().filter_map(healthy).collect();
        Ok((healthy == [1, 0, 1, 1]).then_some(()))
    })?;
    kubectl.run(&["uncordon", stays])?;
    Ok(())
}

/// The agent of a node that is drained is lost in the middle: the director's role goes on. The command that progress
/// shows lets the pods go. Wants a cluster `size` of one worker with three pods `web`, leaves it so.
pub(crate) fn lost_agent(world: &World, kubectl: &Kubectl) -> Result<()> {
    world.run(&["cluster", "scale", "size", "--pool", "workers=2", "--wait"])?;
    let (stays, goes) = &workers(kubectl)?;
    let machine = goes.rsplit_once("-i").context("nodes have incarnations")?.0;
    // All there, so that somebody has to leave.
    kubectl.run(&["cordon", stays])?;
    kubectl.run(&["delete", "pods", "-l", "app=web"])?;
    kubectl.pods_ready("app=web", 3)?;
    kubectl.run(&["uncordon", stays])?;
    strict(kubectl)?;
    let before = told(world, "size-cp-0")?.len();
    // A plan that would wait in vain is refused; one that deletes in the end is not.
    let mut spec = world.json(&["cluster", "show", "size"])?["spec"].clone();
    spec["drain"] = json!({"timeoutSeconds": 600, "onTimeout": "delete"});
    spec["pools"]["workers"]["count"] = json!(1);
    let file = world.dir().join("lost-agent.json");
    std::fs::write(&file, spec.to_string())?;
    let task = world.json(&["cluster", "apply", "-f", &file.to_string_lossy()])?;
    let task = task["id"].as_str().context("a task has an id")?.to_owned();
    let watch = Watch::start(world, &task, "watch")?;
    let refused = |user: &str| {
        until(&format!("{user} is refused"), PATIENCE, || {
            let told = told(world, "size-cp-0")?;
            let mut since = told[before..].iter();
            let kept = |told: &Told| told.evicted && told.code == 429 && told.user == user;
            Ok(since.any(kept).then_some(()))
        })
    };
    refused(&format!("system:node:{goes}"))?;
    let shown = ["told by the node itself", "default/web-", "default/strict"];
    let line = until("progress says what to do", PATIENCE, || watch.line(&shown))?;
    // Nobody is to mend it meanwhile.
    world.run(&["node", "hold", machine, "--reason", "its agent is off"])?;
    systemctl(machine, "stop")?;
    refused(DIRECTOR)?;
    kubectl.typed(commands(&line)?)?;
    let ended = world.task_ended(&task, Duration::from_secs(180))?;
    ensure!(ended["state"] == "Succeeded", "it ended so: {ended:#}");
    let steps = ended["steps"].to_string();
    for part in [
        "the director told pods itself: its agent is not heard of",
        "evicted default/web-",
        "as windlass:director",
    ] {
        ensure!(steps.contains(part), "{part:?} is not recorded: {ended:#}");
    }
    let told = told(world, "size-cp-0")?;
    let left = told[before..].iter();
    let left: Vec<&Told> = left
        .filter(|told| told.evicted && told.code < 300)
        .collect();
    ensure!(left.len() == 3, "evicted: {left:#?}");
    let director = |told: &&Told| told.user == DIRECTOR && told.pod.starts_with("web-");
    ensure!(left.iter().all(director), "evicted by others: {left:#?}");
    kubectl.run(&["delete", "poddisruptionbudget", "strict"])?;
    kubectl.pods_ready("app=web", 3)?;
    Ok(())
}
