//! Director and cluster apart: a director without a route to its cluster does its work through the agents, and a
//! cluster whose director is gone comes back from its reboots by itself. Times are printed, not asserted.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use windlass_tests::damage::Isolation;
use windlass_tests::host;
use windlass_tests::kubectl::Kubectl;
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::changes::newest_task;
use crate::lifecycle::{SHARED, healthy, items, shared_cluster, with_world};
use crate::reach::tar;
use crate::repair::judged_since;
use crate::workloads::{IMAGE, echo, name};

const ROUTELESS: &str = "far";
const CONTROL: &str = "far-cp-0";
const WORKER: &str = "far-workers-0";
/// Where API servers and kubelets listen.
const LISTENERS: [(&str, u16); 2] = [(CONTROL, 6443), (WORKER, 10250)];
/// How long a connection may take that nobody refuses.
const NO_ANSWER: Duration = Duration::from_secs(2);
/// Patience for what takes seconds on an idle host.
const PATIENCE: Duration = Duration::from_secs(120);

/// From before the first machine is there until after the last look at it, the only packets between this host and the
/// machines are those of the agents' connections, which agents open. The cluster's endpoint is a process of this host
/// too and reaches no API server: what stands for a load balancer of a platform is nothing that a director needs.
pub(crate) fn without_a_route() -> Result<()> {
    with_world(|world| {
        let isolation = world.isolate_but_for_agents()?;
        let began = Instant::now();
        let since = |what: &str| eprintln!("  {what}: {:.1} s", began.elapsed().as_secs_f64());
        world.run(&["cluster", "create", ROUTELESS, "--workers", "1", "--wait"])?;
        since("created");
        no_way(world, &isolation)?;
        let kubectl = world.kubectl_through_director(ROUTELESS, None)?;
        healthy(&kubectl, 2)?;
        a_pod(&kubectl)?;
        nodes(world)?;
        // Credentials for the endpoint are given out all the same.
        let direct = world.kubectl(ROUTELESS)?;
        let ready = ["get", "--raw", "/readyz"];
        direct.refused(&ready)?;
        audited(world)?;
        since("pods and nodes looked at");
        reconfigured(world, &kubectl)?;
        since("a setting of kubelets changed");
        world.run(&[
            "cluster",
            "scale",
            ROUTELESS,
            "--pool",
            "workers=2",
            "--wait",
        ])?;
        healthy(&kubectl, 3)?;
        since("a worker added");
        let plan = world.json(&["cluster", "plan", ROUTELESS])?;
        ensure!(
            plan["steps"].as_array().is_some_and(Vec::is_empty),
            "left to do: {plan:#}"
        );
        no_way(world, &isolation)?;
        drop(isolation);
        // It was the rules that kept connections from being made, and nothing else.
        for (machine, port) in LISTENERS {
            let listener = SocketAddr::new(address(world, machine)?, port);
            TcpStream::connect_timeout(&listener, NO_ANSWER)
                .with_context(|| format!("{machine} at {listener} once there is a way"))?;
        }
        until("the endpoint reaches the API server", PATIENCE, || {
            direct.run(&ready).map(Some)
        })?;
        world.run(&["cluster", "delete", ROUTELESS, "--yes", "--wait"])?;
        since("deleted");
        Ok(())
    })
}

fn address(world: &World, machine: &str) -> Result<IpAddr> {
    let shown = world.json(&["node", "show", machine])?;
    let address = shown["address"].as_str().context("no address")?;
    address.parse().with_context(|| format!("{address:?}"))
}

/// Neither side opens a connection to the other, and packets of both were dropped for it.
fn no_way(world: &World, isolation: &Isolation) -> Result<()> {
    let (from, to) = isolation.dropped()?;
    for (machine, port) in LISTENERS {
        let listener = SocketAddr::new(address(world, machine)?, port);
        let tried = TcpStream::connect_timeout(&listener, NO_ANSWER);
        ensure!(tried.is_err(), "this host reaches {listener} of {machine}");
    }
    // The endpoint's address is this host's.
    let cluster = world.json(&["cluster", "show", ROUTELESS])?;
    let endpoint = &cluster["endpoint"];
    let (host, port) = (endpoint["address"].as_str(), endpoint["port"].as_u64());
    let (host, port) = (host.context("an address")?, port.context("a port")?);
    let connect = format!("exec 3<>/dev/tcp/{host}/{port}");
    let asked = ["node", "exec", WORKER, "--", "timeout", "2", "bash", "-c"];
    let tried = world.output(&[&asked[..], &[&connect]].concat())?;
    // That of timeout(1) for a command that it had to end.
    let code = tried.status.code();
    ensure!(code == Some(124), "{WORKER} to {host}: {tried:?}");
    let (from_now, to_now) = isolation.dropped()?;
    ensure!(
        from_now > from && to_now > to,
        "dropped: {from} and {from_now} packets of machines, {to} and {to_now} to them"
    );
    Ok(())
}

/// A pod is made, runs and says so: the API server reaches its kubelet.
fn a_pod(kubectl: &Kubectl) -> Result<()> {
    kubectl.apply(&json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "far", "namespace": "default", "labels": {"app": "far"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
            "name": "far", "image": IMAGE, "args": ["netexec", "--http-port=8080"]}]}}))?;
    kubectl.pods_ready("app=far", 1)?;
    until("the pod's logs are there", PATIENCE, || {
        let logs = kubectl.run(&["logs", "far"])?;
        Ok(logs.contains("8080").then_some(()))
    })
}

/// Whatever an operator looks at on machines comes over their agents' connections, and is in the audit log.
fn nodes(world: &World) -> Result<()> {
    let logs = world.run(&["node", "logs", WORKER, "--unit", "kubelet", "-n", "20"])?;
    ensure!(logs.contains("kubelet"), "logs of the kubelet: {logs}");
    let said = world.run(&["node", "exec", WORKER, "--", "cat", "/etc/hostname"])?;
    ensure!(said.contains(WORKER), "hostname: {said}");
    let rows = world.json(&["node", "top", ROUTELESS, "--once", "--interval", "1"])?;
    ensure!(rows.as_array().is_some_and(|r| r.len() == 2), "{rows:#}");
    let bundle = world.dir().join("far.tar.gz");
    let path = bundle.to_string_lossy().into_owned();
    let collected = world.json(&["node", "collect", CONTROL, "-o", &path, "-n", "50"])?;
    let missing = collected["missing"].as_array();
    ensure!(missing.is_some_and(Vec::is_empty), "{collected:#}");
    let names = tar(&["-tzf"], &bundle)?;
    let journal = format!("{CONTROL}/journal/kube-apiserver.log");
    ensure!(names.contains(&journal), "{journal} is not in {names}");
    Ok(())
}

/// What was looked at has its line: who, at what, and, where it ends with its request, how it has ended.
fn audited(world: &World) -> Result<()> {
    let machine = |name| format!("machine/{name}");
    let cluster = format!("cluster/{ROUTELESS}");
    for (action, subject, detail) in [
        ("node.logs", machine(WORKER), "20 lines of kubelet"),
        ("node.exec", machine(WORKER), "cat /etc/hostname"),
        ("node.logs", machine(CONTROL), "50 lines of kube-apiserver"),
        ("node.top", cluster.clone(), "usage of 2 machine(s)"),
        ("cluster.credentials", cluster, ""),
    ] {
        let asked = ["audit", "--action", action, "--subject", &subject];
        let log = world.json(&asked)?;
        let told = items(&log)?.iter().any(|entry| {
            let said = entry["detail"].as_str().is_some_and(|d| d.contains(detail));
            said && entry["actor"] == "admin"
        });
        ensure!(told, "{action} of {subject}, {detail:?}: {log:#}");
    }
    Ok(())
}

/// Kubelets take over a setting, which restarts them.
fn reconfigured(world: &World, kubectl: &Kubectl) -> Result<()> {
    let mut spec = world.json(&["cluster", "show", ROUTELESS])?["spec"].clone();
    spec["pools"]["workers"]["kubelet"] = json!({"maxPods": 61});
    let file = world.dir().join("far.json");
    std::fs::write(&file, spec.to_string())?;
    let file = file.to_string_lossy().into_owned();
    world.run(&["cluster", "apply", "-f", &file, "--wait"])?;
    let node = kubectl.get(&["node", &format!("{WORKER}-i1")])?;
    let pods = &node["status"]["capacity"]["pods"];
    ensure!(pods == "61", "pods of {WORKER}: {pods}");
    Ok(())
}

/// A machine as the director knows it, for the comparison of before and after.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    machine: String,
    incarnation: Value,
    /// How often something was tried with it.
    attempts: usize,
}

fn known(world: &World) -> Result<Vec<Known>> {
    let list = world.json(&["node", "list", "--cluster", SHARED])?;
    let machines = items(&list)?.iter();
    machines
        .map(|machine| {
            let name = machine["name"].as_str().context("a name")?;
            let why = world.json(&["node", "why", name])?;
            Ok(Known {
                machine: name.to_owned(),
                incarnation: machine["incarnation"].clone(),
                attempts: why["case"]["case"]["attempts"]
                    .as_array()
                    .map_or(0, Vec::len),
            })
        })
        .collect()
}

/// The director dies, and every machine reboots: pods, Services and the API are served again, through the endpoint that
/// they always had. A director that starts after it finds all agents, and nothing to do.
pub(crate) fn without_a_director() -> Result<()> {
    with_world(|world| {
        let kubectl = shared_cluster(world)?;
        echo(&kubectl)?;
        let before = known(world)?;
        let task = newest_task(world)?;
        let boots = |known: &Known| world.boots(&known.machine);
        let booted = before.iter().map(boots).collect::<Result<Vec<u64>>>()?;
        let pods_before = restarts(&kubectl)?;
        let pid = world.director_pid()?;
        host::kill_hard(pid)?;
        until("the director is gone", PATIENCE, || {
            Ok(world.director_pid().is_err().then_some(()))
        })?;
        let began = Instant::now();
        let since = |what: &str| eprintln!("  {what}: {:.1} s", began.elapsed().as_secs_f64());
        for known in &before {
            world.reboot_at_console(&known.machine)?;
        }
        for (known, booted) in before.iter().zip(&booted) {
            until(&format!("{} boots again", known.machine), PATIENCE, || {
                Ok((world.boots(&known.machine)? > *booted).then_some(()))
            })?;
        }
        since("all machines have booted again");
        until("the endpoint answers", PATIENCE, || {
            kubectl.run(&["get", "--raw", "/readyz"]).map(Some)
        })?;
        since("the API answers through the endpoint");
        let pods = until("pods run again", PATIENCE, || {
            let now = restarts(&kubectl)?;
            let again = |(pod, before): &(String, u64)| {
                now.iter().any(|(other, now)| other == pod && now > before)
            };
            Ok(pods_before.iter().all(again).then_some(()))
        })
        .and_then(|()| kubectl.pods_ready("app=echo", pods_before.len()))?;
        since("pods run again");
        for (from, to) in [(0, 1), (1, 0)] {
            let address = pods[to]["status"]["podIP"].as_str().context("pod IP")?;
            for target in [format!("{address}:8080"), "echo:80".to_owned()] {
                until(&format!("{target} answers"), PATIENCE, || {
                    let connect = ["/agnhost", "connect", "--timeout=2s", &target];
                    let exec = ["exec", name(&pods[from])?, "--"];
                    kubectl.run(&[&exec[..], &connect].concat()).map(Some)
                })?;
            }
        }
        healthy(&kubectl, before.len())?;
        since("pods and Services are served");
        ensure!(world.director_pid().is_err(), "a director had a part in it");

        let began = Instant::now();
        let began_ms = Timestamp::now().as_millisecond();
        world.run(&["director", "start"])?;
        for known in &before {
            let machine = &known.machine;
            until(&format!("the agent of {machine} is back"), PATIENCE, || {
                let shown = world.json(&["node", "show", machine])?;
                let back = shown["agent"]["connected"] == true && shown["verdict"] == "healthy";
                Ok(back.then_some(()))
            })?;
            // Its session carries work.
            world.run(&["node", "exec", machine, "--", "true"])?;
        }
        eprintln!(
            "  all agents are back, and Healthy: {:.1} s",
            began.elapsed().as_secs_f64()
        );
        let now = known(world)?;
        ensure!(now == before, "before: {before:#?}, now: {now:#?}");
        for (known, booted) in before.iter().zip(&booted) {
            let machine = &known.machine;
            let now = world.boots(machine)?;
            ensure!(
                now == booted + 1,
                "{machine} was restarted: {booted}, {now}"
            );
            // Of whom a new director has not heard yet it knows nothing, and says so.
            let judged = judged_since(world, machine, began_ms)?;
            let verdicts = judged.iter().map(|judged| &judged["verdict"]);
            let calm = verdicts.clone().all(|v| v == "unknown" || v == "healthy");
            ensure!(calm, "{machine} was judged: {judged:#?}");
        }
        let now = newest_task(world)?;
        ensure!(now == task, "task {now} was begun");
        healthy(&kubectl, before.len())
    })
}

/// How often the containers of the pods were started again, by the pods' names.
fn restarts(kubectl: &Kubectl) -> Result<Vec<(String, u64)>> {
    let pods = kubectl.get(&["pods", "-l", "app=echo"])?;
    let mut restarts = Vec::new();
    for pod in items(&pods)? {
        let status = &pod["status"]["containerStatuses"][0];
        let count = status["restartCount"].as_u64().context("a container")?;
        restarts.push((name(pod)?.to_owned(), count));
    }
    Ok(restarts)
}
