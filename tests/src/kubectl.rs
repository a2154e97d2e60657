//! `kubectl` against one cluster.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::wait::until;

/// `kubectl` with the operator's kubeconfig.
#[derive(Debug, Clone)]
pub struct Kubectl {
    /// The program.
    pub program: PathBuf,
    /// Credentials that the director gave out.
    pub kubeconfig: PathBuf,
    /// Another address than the kubeconfig's, and the name that is verified there.
    pub server: Option<(String, String)>,
}

impl Kubectl {
    /// The same credentials at another address, whose server still has to prove `name`.
    pub fn at(&self, server: &str, name: &str) -> Kubectl {
        Kubectl {
            server: Some((server.to_owned(), name.to_owned())),
            ..self.clone()
        }
    }

    /// A command with the kubeconfig set.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--request-timeout=20s");
        if let Some((server, name)) = &self.server {
            command.arg(format!("--server={server}"));
            command.arg(format!("--tls-server-name={name}"));
        }
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a line of `kubectl` commands as somebody types it who has this program and these credentials; each has to
    /// succeed.
    pub fn typed(&self, line: &str) -> Result<String> {
        let place = self.program.parent().context("kubectl is nowhere")?;
        if self.program.file_name() != Some("kubectl".as_ref()) {
            bail!("{} is not what people type", self.program.display());
        }
        let mut path = place.as_os_str().to_owned();
        path.push(":/usr/bin:/bin");
        let output = Command::new("/bin/sh")
            .args(["-ec", line])
            .env("PATH", path)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .output()
            .context("cannot start a shell")?;
        if !output.status.success() {
            bail!(
                "{line:?}: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Standard output of a command that has to succeed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(arguments)
            .output()
            .context("cannot start kubectl")?;
        if !output.status.success() {
            bail!(
                "kubectl {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Standard error of a command that has to fail.
    pub fn refused(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(arguments)
            .output()
            .context("cannot start kubectl")?;
        if output.status.success() {
            bail!("kubectl {} was not refused", arguments.join(" "));
        }
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The answer of `get … -o json`.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).context("kubectl answered no JSON")
    }

    /// Applies objects.
    pub fn apply(&self, objects: &Value) -> Result<()> {
        let mut child = self
            .command(&["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start kubectl")?;
        let mut input = child
            .stdin
            .take()
            .context("kubectl has no standard input")?;
        input.write_all(objects.to_string().as_bytes())?;
        drop(input);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("kubectl apply: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Nodes that are Ready, by name.
    pub fn ready_nodes(&self) -> Result<Vec<String>> {
        let nodes = self.get(&["nodes"])?;
        let ready = |node: &Value| {
            node["status"]["conditions"]
                .as_array()
                .is_some_and(|conditions| {
                    conditions
                        .iter()
                        .any(|c| c["type"] == "Ready" && c["status"] == "True")
                })
        };
        let items = nodes["items"].as_array().context("no list of nodes")?;
        Ok(items
            .iter()
            .filter(|node| ready(node))
            .filter_map(|node| Some(node["metadata"]["name"].as_str()?.to_owned()))
            .collect())
    }

    /// Waits until every pod with a label is Ready and there are `count` of them; returns them.
    pub fn pods_ready(&self, selector: &str, count: usize) -> Result<Vec<Value>> {
        until(
            &format!("{count} pods {selector} Ready"),
            Duration::from_secs(90),
            || {
                let pods = self.get(&["pods", "-A", "-l", selector])?;
                let items = pods["items"].as_array().context("no list of pods")?;
                let ready = items.iter().filter(|pod| pod_ready(pod)).count();
                Ok((ready == count && items.len() == count).then(|| items.clone()))
            },
        )
    }
}

fn pod_ready(pod: &Value) -> bool {
    pod["status"]["conditions"]
        .as_array()
        .is_some_and(|conditions| {
            conditions
                .iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        })
}
