//! Gates that changes of clusters meet: a server that says yes or no, a Prometheus, a Job of the cluster.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use windlass_tests::kubectl::Kubectl;
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::changes::IMAGE;
use crate::lifecycle::items;

/// The CronJob that the Jobs of the gate `smoke` are made from; agnhost fails when it does not know the command.
pub(crate) fn smoke(kubectl: &Kubectl, command: &str) -> Result<()> {
    kubectl.apply(&json!({"apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"name": "smoke", "namespace": "gates"},
        "spec": {"schedule": "0 0 1 1 *", "suspend": true, "jobTemplate": {"spec": {
            "backoffLimit": 0, "template": {"spec": {"restartPolicy": "Never", "containers": [{
                "name": "smoke", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "args": [command]}]}}}}}}))
}

/// Jobs of gates are removed with their pods, and with the gates the rights that they took.
pub(crate) fn gates_are_gone(world: &World, kubectl: &Kubectl, cluster: &str) -> Result<()> {
    until("the Jobs are removed", Duration::from_secs(60), || {
        let left = kubectl.get(&["jobs,pods", "--namespace", "gates"])?;
        Ok(items(&left["items"])?.is_empty().then_some(()))
    })?;
    let role = ["role,rolebinding", "--namespace", "gates"];
    let granted = kubectl.get(&role)?;
    ensure!(items(&granted["items"])?.len() == 2, "rights: {granted:#}");
    let mut spec = world.json(&["cluster", "show", cluster])?["spec"].clone();
    spec["gates"] = json!([]);
    let file = world.dir().join("ungated.json");
    std::fs::write(&file, spec.to_string())?;
    let file = file.to_string_lossy().into_owned();
    world.run(&["cluster", "apply", "-f", &file, "--wait"])?;
    let granted = kubectl.get(&role)?;
    ensure!(items(&granted["items"])?.is_empty(), "rights: {granted:#}");
    Ok(())
}

/// A Prometheus that watches itself, where the host has one.
struct Prometheus {
    process: Child,
    url: String,
}

impl Prometheus {
    /// Starts the program that `WINDLASS_TEST_PROMETHEUS` names; without it there is none.
    fn start(world: &World) -> Result<Option<Prometheus>> {
        let Some(program) = std::env::var_os("WINDLASS_TEST_PROMETHEUS") else {
            return Ok(None);
        };
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let config = world.dir().join("prometheus.yml");
        let scrapes = format!(
            "scrape_configs: [{{job_name: self, scrape_interval: 1s, \
             static_configs: [{{targets: ['{address}']}}]}}]"
        );
        std::fs::write(&config, scrapes)?;
        let process = Command::new(program)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                world.dir().join("prometheus").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stderr(Stdio::null())
            .spawn()
            .context("prometheus does not start")?;
        let url = format!("http://{address}");
        Ok(Some(Prometheus { process, url }))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Gone already: nothing to end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a gate of a cluster looks at: answers 503, then 200. Beside it stand a query of Prometheus that holds,
/// where the host has one, and a Job that fails.
pub(crate) struct Gate {
    open: Arc<AtomicBool>,
    _prometheus: Option<Prometheus>,
}

impl Gate {
    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::Relaxed);
    }

    /// Puts a gate into the spec of a cluster that is shut at first.
    pub(crate) fn shut(world: &World, kubectl: &Kubectl, cluster: &str) -> Result<Gate> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let url = format!("http://{}/", listener.local_addr()?);
        let open = Arc::new(AtomicBool::new(false));
        let answers = Arc::clone(&open);
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let status = match answers.load(Ordering::Relaxed) {
                    true => "200 OK",
                    false => "503 Service Unavailable",
                };
                let mut request = [0; 1024];
                let text = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                // A look that was given up is no matter of ours.
                let _ = stream.read(&mut request);
                let _ = stream.write_all(text.as_bytes());
            }
        });
        let mut spec = world.json(&["cluster", "show", cluster])?["spec"].clone();
        let mut gates = vec![json!({"name": "shop", "http": {"url": url, "timeoutSeconds": 3}})];
        let prometheus = Prometheus::start(world)?;
        if let Some(prometheus) = &prometheus {
            let promql = json!({"url": prometheus.url, "query": "up{job=\"self\"} == 1",
                "intervalSeconds": 1, "timeoutSeconds": 30, "successThreshold": 2});
            gates.push(json!({"name": "scraped", "promql": promql}));
        }
        let job = json!({"namespace": "gates", "cronJob": "smoke", "timeoutSeconds": 120});
        gates.push(json!({"name": "smoke", "job": job}));
        spec["gates"] = json!(gates);
        let file = world.dir().join("gated.json");
        std::fs::write(&file, spec.to_string())?;
        let file = file.to_string_lossy().into_owned();
        world.run(&["cluster", "apply", "-f", &file, "--wait"])?;
        // The namespace is there since the gates name it.
        smoke(kubectl, "fail")?;
        Ok(Gate {
            open,
            _prometheus: prometheus,
        })
    }
}
