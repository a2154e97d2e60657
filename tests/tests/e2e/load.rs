//! Clusters change while people use them: clients that never try again count every request that failed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use windlass_tests::host;
use windlass_tests::kubectl::Kubectl;
use windlass_tests::load::{
    Backend, Balancer, Connections, Load, Method, NUMBER, PATIENCE, Secure, Tally, Target, Watch,
};
use windlass_tests::parts;
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::changes;
use crate::lifecycle::{SHARED, healthy, items, shared_cluster, with_world};

pub(crate) const IMAGE: &str = "registry.windlass.internal/agnhost:1.37.2";
/// Pods behind the Service.
const REPLICAS: usize = 4;
/// How long a pod serves on after it was told to end: longer than endpoints take to be known everywhere, and
/// than clients keep a connection.
const PRE_STOP: Duration = Duration::from_secs(8);
/// How long clients keep a connection to the Service.
const KEPT: Duration = Duration::from_secs(4);
/// How long clients keep a connection to the API: an API server that ends serves on for longer.
const API_KEPT: Duration = Duration::from_secs(3);
/// Port on which each kube-proxy says how its node is.
const KUBE_PROXY_HEALTH_PORT: u16 = 10256;
/// What the clients write to, read and watch.
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Clients of a cluster: of a Service, through a load balancer outside, and of its API, through its endpoint.
pub(crate) struct Traffic {
    cluster: String,
    port: u16,
    balancer: Balancer,
    loads: Vec<(&'static str, Load)>,
    watch: Watch,
}

/// What the clients saw.
pub(crate) struct Seen {
    tallies: Vec<(&'static str, Tally)>,
    /// Bytes of events.
    events: u64,
}

impl Traffic {
    /// Deploys a Service with several pods, waits until it answers on every node, and begins.
    pub(crate) fn start(world: &World, kubectl: &Kubectl, cluster: &str) -> Result<Traffic> {
        let port = deploy(kubectl)?;
        let balancer = Balancer::start(&backends(world, cluster, port)?)?;
        all_open(&balancer, backends(world, cluster, port)?.len())?;
        let service = Target {
            address: balancer.address(),
            path: "/hostname".to_owned(),
            secure: None,
            method: Method::Get,
        };
        let read = api(world, kubectl, cluster)?;
        let write = Target {
            method: Method::MergePatch(format!(r#"{{"data":{{"written":"{NUMBER}"}}}}"#)),
            ..read.clone()
        };
        let list = Target {
            path: CONFIG_MAPS.to_owned(),
            ..read.clone()
        };
        let (kept, api_kept) = (Connections::Kept(KEPT), Connections::Kept(API_KEPT));
        // Name, target, connections, requests a second, threads.
        let flows = [
            ("service, new", &service, Connections::New, 20, 4),
            ("service, kept", &service, kept, 20, 4),
            ("API reads, new", &read, Connections::New, 4, 2),
            ("API reads, kept", &read, api_kept, 10, 2),
            ("API writes", &write, api_kept, 20, 4),
        ];
        let loads = flows.map(|(name, target, connections, rate, threads)| {
            (name, Load::start(name, target, connections, rate, threads))
        });
        Ok(Traffic {
            cluster: cluster.to_owned(),
            port,
            balancer,
            loads: loads.into(),
            watch: Watch::start(&list),
        })
    }

    /// Requests that have failed so far; a watch that was cut is none before it is listed again.
    pub(crate) fn failed(&self) -> u64 {
        self.loads.iter().map(|(_, load)| load.failed()).sum()
    }

    /// Tells the load balancer which nodes there are now.
    pub(crate) fn follow(&self, world: &World) -> Result<()> {
        self.balancer
            .learn(backends(world, &self.cluster, self.port)?);
        Ok(())
    }

    /// Waits until the load balancer trusts every worker again: one alone takes it a moment.
    fn all_serve(&self, world: &World) -> Result<()> {
        self.follow(world)?;
        all_open(&self.balancer, workers(world, &self.cluster)?.len())
    }

    pub(crate) fn stop(self) -> Result<Seen> {
        let mut tallies = Vec::new();
        for (name, load) in self.loads {
            tallies.push((name, load.stop()?));
        }
        let (watched, events) = self.watch.stop()?;
        tallies.push(("watch", watched));
        Ok(Seen { tallies, events })
    }
}

fn all_open(balancer: &Balancer, nodes: usize) -> Result<()> {
    until("every node serves", Duration::from_secs(60), || {
        Ok((balancer.open().len() == nodes).then_some(()))
    })
}

impl Seen {
    /// Fails unless every client sent requests, and all of them were answered.
    pub(crate) fn flawless(&self) -> Result<()> {
        let mut failures = Vec::new();
        for (name, tally) in &self.tallies {
            if let Err(error) = tally.flawless() {
                failures.push(format!("{name}: {error}"));
            }
        }
        ensure!(failures.is_empty(), "{}", failures.join("\n"));
        ensure!(self.events > 0, "the watch saw no event");
        Ok(())
    }

    /// Requests that failed, of the clients whose name begins so.
    fn failed(&self, of: &str) -> u64 {
        let clients = self.tallies.iter().filter(|(name, _)| name.starts_with(of));
        clients.map(|(_, tally)| tally.failed).sum()
    }
}

/// The whole of a cluster of six machines at the next minor, and no request fails.
pub(crate) fn upgrade() -> Result<()> {
    with_world(|world| {
        let kubectl = six(world, "busy", "1.36.3")?;
        let order = ["cluster", "upgrade", "busy", "--to", "1.37.2"];
        unnoticed(world, &kubectl, "busy", &order)?;
        healthy(&kubectl, 6)?;
        changes::emulates(world, &kubectl, "busy", None)?;
        world.run(&["cluster", "delete", "busy", "--yes", "--wait"])?;
        Ok(())
    })
}

/// All machines of a cluster anew, of workers one more than wanted at a time, and no request fails. Then one
/// dies undrained, and requests do.
pub(crate) fn replacement() -> Result<()> {
    with_world(|world| {
        let kubectl = six(world, "anew", "1.37.2")?;
        let mut spec = world.json(&["cluster", "show", "anew"])?["spec"].clone();
        for size in ["/controlPlane/size", "/pools/workers/size"] {
            let size = spec.pointer_mut(size).context("a size")?;
            size["memoryMib"] = json!(2304);
        }
        let file = world.dir().join("anew.json");
        std::fs::write(&file, spec.to_string())?;
        let file = file.to_string_lossy().into_owned();
        unnoticed(world, &kubectl, "anew", &["cluster", "apply", "-f", &file])?;
        healthy(&kubectl, 6)?;
        control(world, &kubectl, "anew")?;
        world.run(&["cluster", "delete", "anew", "--yes", "--wait"])?;
        Ok(())
    })
}

fn six(world: &World, name: &str, version: &str) -> Result<Kubectl> {
    let create = [
        "cluster",
        "create",
        name,
        "--control-plane",
        "3",
        "--workers",
        "3",
    ];
    world.run(&[&create[..], &["--kubernetes-version", version, "--wait"]].concat())?;
    world.kubectl(name)
}

/// Orders a change and waits for its end, which no client notices.
fn unnoticed(world: &World, kubectl: &Kubectl, name: &str, order: &[&str]) -> Result<()> {
    let traffic = Traffic::start(world, kubectl, name)?;
    let task = world.json(order)?;
    let task = task["id"].as_str().context("a task has an id")?.to_owned();
    finished(world, &task, &traffic, Duration::from_secs(900))?;
    traffic.stop()?.flawless()
}

/// Waits for the end of a change under way, and prints what each machine took.
pub(crate) fn finished(
    world: &World,
    task: &str,
    traffic: &Traffic,
    deadline: Duration,
) -> Result<()> {
    let ended = until("the task has ended", deadline, || {
        traffic.follow(world)?;
        let seen = world.json(&["task", "show", task])?;
        Ok((!seen["endedAt"].is_null()).then_some(seen))
    })?;
    print_times(&ended);
    ensure!(ended["state"] == "Succeeded", "task: {:#}", ended["error"]);
    Ok(())
}

/// Seconds that each machine took, by what was done with it.
fn print_times(task: &Value) {
    for (machine, parts) in parts::of(task) {
        let (drain, make) = (parts.drain, parts.make);
        let (switch, ready) = (parts.switch, parts.ready);
        eprintln!(
            "seconds of {machine}: drain {drain:.1}, make {make:.1}, switch {switch:.1}, Ready {ready:.1}"
        );
    }
}

/// Machines die with everything on them, and nobody drained them: the clients have to notice.
pub(crate) fn control(world: &World, kubectl: &Kubectl, cluster: &str) -> Result<()> {
    let traffic = Traffic::start(world, kubectl, cluster)?;
    let workers = workers(world, cluster)?;
    let worker = workers.first().context("a worker")?;
    let name = worker["name"].as_str().context("a machine has a name")?;
    for pid in host::machine_processes(name, "/init")? {
        host::kill_hard(pid)?;
    }
    until(
        "a client notices that a worker died: otherwise they prove nothing",
        PATIENCE * 3,
        || Ok((traffic.failed() > 0).then_some(())),
    )?;
    traffic.stop()?;
    Ok(())
}

/// Workers are made anew one after the other, by the same order. Drained, and no request fails; undrained, and requests
/// do: each goes while it serves, with its pods, and neither the cluster nor the load balancer is told before.
pub(crate) fn undrained() -> Result<()> {
    with_world(|world| {
        let kubectl = shared_cluster(world)?;
        let workers: Vec<String> = workers(world, SHARED)?
            .iter()
            .filter_map(|machine| machine["name"].as_str().map(str::to_owned))
            .collect();
        ensure!(workers.len() == 2, "workers: {workers:?}");
        // One is enough for that: a drain takes as long as pods and load balancers are given.
        let seen = anew(world, &kubectl, &workers[..1], true)?;
        seen.flawless()?;
        let seen = anew(world, &kubectl, &workers, false)?;
        let failed = seen.failed("service");
        ensure!(
            failed > 0,
            "nobody noticed that {workers:?} were not drained: the clients prove nothing"
        );
        eprintln!("undrained: {failed} requests to the Service failed");
        kubectl.run(&["delete", "deployment,service,poddisruptionbudget", "served"])?;
        Ok(())
    })
}

/// Makes workers anew under load, one after the other. No product's option skips a drain, so that undrained ones are
/// deleted on the platform, as a change deletes what it has drained, and the change finds nobody left to ask.
fn anew(world: &World, kubectl: &Kubectl, workers: &[String], drained: bool) -> Result<Seen> {
    let traffic = Traffic::start(world, kubectl, SHARED)?;
    for worker in workers {
        if !drained {
            // Else the director's own repair might be faster than the order.
            world.run(&[
                "node",
                "hold",
                worker,
                "--reason",
                "it is made anew by hand",
            ])?;
            world.delete_behind(worker)?;
        }
        let task = world.json(&["node", "recreate", worker, "--yes"])?;
        let task = task["id"].as_str().context("a task has an id")?.to_owned();
        finished(world, &task, &traffic, Duration::from_secs(180))?;
        let task = world.json(&["task", "show", &task])?;
        let drains = changes::succeeded(&task, &format!("{worker}/drain"));
        ensure!(
            drains == usize::from(drained),
            "drains of {worker}: {task:#}"
        );
        ensure!(
            changes::succeeded(&task, &format!("{worker}/await-node")) == 1,
            "{worker} was not made anew: {task:#}"
        );
        if !drained {
            world.run(&["node", "release", worker])?;
        }
        healthy(kubectl, 3)?;
        traffic.all_serve(world)?;
    }
    traffic.stop()
}

/// The Service that clients use; returns its port on every node.
fn deploy(kubectl: &Kubectl) -> Result<u16> {
    let labels = json!({"app": "served"});
    let spread = json!({"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": labels}});
    kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ConfigMap",
         "metadata": {"name": "used", "namespace": "default"}, "data": {"written": "before"}},
        {"apiVersion": "apps/v1", "kind": "Deployment",
         "metadata": {"name": "served", "namespace": "default"},
         "spec": {"replicas": REPLICAS, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "topologySpreadConstraints": [spread],
                "terminationGracePeriodSeconds": 20, "containers": [{
                    "name": "served", "image": IMAGE, "args": ["netexec", "--http-port=8080"],
                    "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP.as_secs()}}},
                    "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
                }]}}}},
        {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
         "metadata": {"name": "served", "namespace": "default"},
         "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}}},
        {"apiVersion": "v1", "kind": "Service",
         "metadata": {"name": "served", "namespace": "default"},
         "spec": {"type": "NodePort", "selector": labels,
            "ports": [{"port": 80, "targetPort": 8080}]}},
    ]}))?;
    kubectl.pods_ready("app=served", REPLICAS)?;
    let service = kubectl.get(&["service", "served"])?;
    let port = service["spec"]["ports"][0]["nodePort"].as_u64();
    u16::try_from(port.context("a port on the nodes")?).context("a port")
}

fn workers(world: &World, cluster: &str) -> Result<Vec<Value>> {
    let machines = world.json(&["node", "list", "--cluster", cluster])?;
    let worker = |m: &&Value| !m["role"].to_string().to_lowercase().contains("control");
    Ok(items(&machines)?.iter().filter(worker).cloned().collect())
}

fn backends(world: &World, cluster: &str, port: u16) -> Result<Vec<Backend>> {
    let of = |machine: Value| -> Result<Backend> {
        let address = machine["address"].as_str().context("an address")?.parse()?;
        Ok(Backend {
            address: SocketAddr::new(address, port),
            health: SocketAddr::new(address, KUBE_PROXY_HEALTH_PORT),
        })
    };
    workers(world, cluster)?.into_iter().map(of).collect()
}

/// A read of the API, as the operator of the kubeconfig.
fn api(world: &World, kubectl: &Kubectl, cluster: &str) -> Result<Target> {
    let config = kubectl.run(&["config", "view", "--raw", "-o", "json"])?;
    let config: Value = serde_json::from_str(&config)?;
    let pem = |of: &Value| -> Result<Vec<u8>> {
        Ok(BASE64_STANDARD.decode(of.as_str().context("no such field in the kubeconfig")?)?)
    };
    let user = &config["users"][0]["user"];
    let authority = pem(&config["clusters"][0]["cluster"]["certificate-authority-data"])?;
    let chain = pem(&user["client-certificate-data"])?;
    let key = pem(&user["client-key-data"])?;
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&authority) {
        roots.add(root?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(
            CertificateDer::pem_slice_iter(&chain).collect::<Result<_, _>>()?,
            PrivateKeyDer::from_pem_slice(&key)?,
        )?;
    let shown = world.json(&["cluster", "show", cluster])?;
    let endpoint = &shown["endpoint"];
    let name = endpoint["name"].as_str().context("a name")?.to_owned();
    let address = endpoint["address"].as_str().context("an address")?;
    let port = endpoint["port"].as_u64().context("a port")?;
    Ok(Target {
        address: SocketAddr::new(address.parse()?, u16::try_from(port)?),
        path: format!("{CONFIG_MAPS}/used"),
        secure: Some(Secure {
            config: Arc::new(tls),
            name: ServerName::try_from(name)?,
        }),
        method: Method::Get,
    })
}
