//! Gates that changes of clusters meet: a server that says yes or no, a Prometheus, a Job of the cluster.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
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
    /// Starts the one that `WINDLASS_TEST_PROMETHEUS` names, or that is on the path; without it there is none.
    fn start(world: &World) -> Result<Option<Prometheus>> {
        let named = std::env::var_os("WINDLASS_TEST_PROMETHEUS").map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut on_path = std::env::split_paths(&path).map(|dir| dir.join("prometheus"));
        let Some(program) = named.or_else(|| on_path.find(|program| program.is_file())) else {
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

/// Gates of a cluster: a server that says no at first, a query of Prometheus where the host has one, and a Job
/// that fails.
pub(crate) struct Gates {
    prometheus: Option<Prometheus>,
}

impl Gates {
    /// Puts gates into the spec of a cluster.
    pub(crate) fn put(world: &World, kubectl: &Kubectl, cluster: &str) -> Result<Gates> {
        let url = reluctant()?;
        let http = json!({"url": url, "timeoutSeconds": 30});
        let mut gates = vec![json!({"name": "shop", "http": http})];
        let prometheus = Prometheus::start(world)?;
        if let Some(prometheus) = &prometheus {
            let promql = json!({"url": prometheus.url, "query": "up{job=\"self\"} == 1",
                "intervalSeconds": 1, "timeoutSeconds": 30, "successThreshold": 2});
            gates.push(json!({"name": "scraped", "promql": promql}));
        }
        let job = json!({"namespace": "gates", "cronJob": "smoke", "timeoutSeconds": 120});
        gates.push(json!({"name": "smoke", "job": job}));
        let mut spec = world.json(&["cluster", "show", cluster])?["spec"].clone();
        spec["gates"] = json!(gates);
        let file = world.dir().join("gated.json");
        std::fs::write(&file, spec.to_string())?;
        let file = file.to_string_lossy().into_owned();
        world.run(&["cluster", "apply", "-f", &file, "--wait"])?;
        // The namespace is there since a gate names it.
        smoke(kubectl, "fail")?;
        Ok(Gates { prometheus })
    }

    /// Each gate was looked at by a task, and was open.
    pub(crate) fn were_open(&self, task: &Value) -> Result<()> {
        let steps = task["steps"].as_object().context("a task has steps")?;
        let gates = steps
            .iter()
            .filter(|(key, _)| key.ends_with("/await-gates"));
        let told: Vec<String> = gates.map(|(_, step)| step["changes"].to_string()).collect();
        let mut expected = vec![
            "gate shop is open",
            "gate smoke is open: Job gates/gate-smoke-",
        ];
        if self.prometheus.is_some() {
            expected.push("gate scraped is open after 2 looks");
        }
        for part in expected {
            let open = told.iter().any(|changes| changes.contains(part));
            ensure!(open, "{part} is not told: {told:?}");
        }
        Ok(())
    }
}

/// The URL of a server that answers 503 twice, and 200 from then on.
fn reluctant() -> Result<String> {
    let mut asked = 0;
    served(move || {
        asked += 1;
        asked > 2
    })
}

/// The URL of a server that answers 200 to those who come while it is `well`, and 503 to others.
pub(crate) fn served(mut well: impl FnMut() -> bool + Send + 'static) -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let url = format!("http://{}/", listener.local_addr()?);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let status = if well() {
                "200 OK"
            } else {
                "503 Service Unavailable"
            };
            let mut request = [0; 1024];
            let text = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            // A look that was given up is no matter of ours.
            let _ = stream.read(&mut request);
            let _ = stream.write_all(text.as_bytes());
        }
    });
    Ok(url)
}
