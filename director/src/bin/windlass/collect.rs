//! `windlass node collect`: gathers what is known of machines into one archive.

use std::path::Path;
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use serde_json::{Value, json};
use windlass_director::api::NodeOutput;
use windlass_director::client::{Client, ClientError};
use windlass_director::model::{MachineView, Timestamp};

use crate::Session;
use crate::bundle::{Bundle, PART_BYTES_MAX};
use crate::cluster::segment;
use crate::failure::{Failure, NOT_FOUND};
use crate::output::note;

/// Units whose journals are looked at on their own, where a machine has them.
const UNITS: [&str; 8] = [
    "windlass-agent",
    "containerd",
    "kubelet",
    "kube-proxy",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
];
/// Machines of one bundle.
const MACHINES_MAX: usize = 64;

pub(crate) async fn run(
    session: &Session,
    client: &Client,
    (name, cluster): (Option<&str>, Option<&str>),
    output: &Path,
    lines: u32,
) -> Result<ExitCode, Failure> {
    let machines = machines(client, name, cluster).await?;
    let now = Timestamp::now();
    let cannot = |error: std::io::Error| {
        Failure::failed(format!("cannot write {}: {error}", output.display()))
    };
    let mut bundle = Bundle::create(output, now.unix_ms() / 1000).map_err(cannot)?;
    let mut parts = Parts {
        client,
        bundle: &mut bundle,
        missing: Vec::new(),
    };
    parts.director(&machines).await.map_err(cannot)?;
    for machine in &machines {
        let name = machine.machine.name.as_str();
        note(&format!("collecting {name}"));
        parts.machine(machine, lines).await.map_err(cannot)?;
    }
    let missing = std::mem::take(&mut parts.missing);
    let summary = json!({"at": now, "machines": machines.len(), "missing": missing});
    bundle
        .add("bundle.json", &format!("{summary:#}\n"))
        .map_err(cannot)?;
    bundle.finish().map_err(cannot)?;
    let answer = json!({"path": output, "machines": machines.len(), "missing": missing});
    session.output.answer(&answer, || {
        let mut text = format!(
            "wrote {} with {} machine(s)",
            output.display(),
            machines.len()
        );
        for part in &missing {
            text.push_str(&format!("\nmissing: {part}"));
        }
        text
    });
    Ok(ExitCode::SUCCESS)
}

async fn machines(
    client: &Client,
    name: Option<&str>,
    cluster: Option<&str>,
) -> Result<Vec<MachineView>, Failure> {
    let path = match (name, cluster) {
        (Some(name), _) => {
            let answer = client
                .get(&format!("/v1/machines/{}", segment(name)))
                .await?;
            return Ok(vec![client.typed(&answer)?]);
        }
        (None, Some(cluster)) => format!("/v1/machines?cluster={}", segment(cluster)),
        (None, None) => "/v1/machines".to_owned(),
    };
    let answer = client.get(&path).await?;
    let mut machines: Vec<MachineView> = client.typed(&answer["items"])?;
    if machines.is_empty() {
        return Err(Failure::new(
            NOT_FOUND,
            "there is no machine to collect from",
        ));
    }
    machines.truncate(MACHINES_MAX);
    Ok(machines)
}

/// The parts of a bundle; what cannot be had is named and the others follow.
struct Parts<'a> {
    client: &'a Client,
    bundle: &'a mut Bundle,
    missing: Vec<String>,
}

impl Parts<'_> {
    /// What the director knows of the clusters these machines are of.
    async fn director(&mut self, machines: &[MachineView]) -> std::io::Result<()> {
        let mut clusters: Vec<&str> = machines
            .iter()
            .map(|view| view.machine.cluster.as_str())
            .collect();
        clusters.sort_unstable();
        clusters.dedup();
        self.answer("director/status.json", "/v1/status").await?;
        for cluster in clusters {
            let path = format!("/v1/clusters/{}", segment(cluster));
            self.answer(&format!("clusters/{cluster}/cluster.json"), &path)
                .await?;
            let mut tasks = match self.client.get("/v1/tasks").await {
                Ok(answer) => answer["items"].as_array().cloned().unwrap_or_default(),
                Err(error) => {
                    self.missing.push(format!("tasks of {cluster}: {error}"));
                    continue;
                }
            };
            tasks.retain(|task| task["cluster"] == cluster);
            let text = format!("{:#}\n", Value::Array(tasks));
            self.bundle
                .add(&format!("clusters/{cluster}/tasks.json"), &text)?;
        }
        Ok(())
    }

    async fn machine(&mut self, view: &MachineView, lines: u32) -> std::io::Result<()> {
        let name = view.machine.name.as_str();
        let path = format!("/v1/machines/{}", segment(name));
        self.answer(&format!("{name}/machine.json"), &path).await?;
        let audit = format!(
            "/v1/audit?limit=1000&subject={}",
            segment(&format!("machine/{name}"))
        );
        self.answer(&format!("{name}/audit.json"), &audit).await?;
        let state = format!("{path}/logs?lines={lines}&diagnostics=true");
        self.logs(&format!("{name}/state-and-journal.txt"), &state)
            .await?;
        for unit in UNITS {
            let known = |report: &windlass_common::report::Report| {
                report.units.contains_key(&format!("{unit}.service"))
            };
            // The agent does not watch itself.
            if unit == "windlass-agent" || view.report.as_ref().is_none_or(known) {
                let logs = format!("{path}/logs?lines={lines}&unit={unit}");
                self.logs(&format!("{name}/journal/{unit}.log"), &logs)
                    .await?;
            }
        }
        Ok(())
    }

    async fn answer(&mut self, part: &str, path: &str) -> std::io::Result<()> {
        match self.client.get(path).await {
            Ok(answer) => self.bundle.add(part, &format!("{answer:#}\n")),
            Err(error) => {
                self.missing.push(format!("{part}: {error}"));
                Ok(())
            }
        }
    }

    async fn logs(&mut self, part: &str, path: &str) -> std::io::Result<()> {
        match self.read(path).await {
            Ok(bytes) => self.bundle.add(part, &String::from_utf8_lossy(&bytes)),
            Err(fault) => {
                self.missing.push(format!("{part}: {fault}"));
                Ok(())
            }
        }
    }

    /// What a machine says, at most as long as a part may be.
    async fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        let text = |error: ClientError| error.to_string();
        let mut lines = self
            .client
            .lines(Method::GET, path, None, &[])
            .await
            .map_err(text)?;
        let mut bytes = Vec::new();
        while let Some(line) = lines.next().await.map_err(text)? {
            let value: Value = serde_json::from_str(&line).map_err(|error| error.to_string())?;
            match self.client.typed::<NodeOutput>(&value).map_err(text)? {
                NodeOutput::Stage { .. } => {}
                NodeOutput::Output { data, .. } if bytes.len() < PART_BYTES_MAX => {
                    bytes.extend(STANDARD.decode(data).map_err(|error| error.to_string())?);
                }
                NodeOutput::Output { .. } => {}
                NodeOutput::Exit { .. } => return Ok(bytes),
                NodeOutput::Failed { message, .. } => return Err(message),
            }
        }
        Err("the answer ended in the middle".to_owned())
    }
}
