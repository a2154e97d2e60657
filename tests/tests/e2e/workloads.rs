//! What users of a cluster do: pods that talk, exec, logs, webhooks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};
use windlass_tests::kubectl::Kubectl;
use windlass_tests::wait::until;

use crate::lifecycle::{SHARED, machine_of, shared_cluster, with_world};

pub(crate) const IMAGE: &str = "registry.windlass.internal/agnhost:1.37.2";

/// A server on every worker and a Service in front of them.
pub(crate) fn echo(kubectl: &Kubectl) -> Result<Vec<Value>> {
    let labels = json!({"app": "echo"});
    kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "apps/v1", "kind": "DaemonSet",
         "metadata": {"name": "echo", "namespace": "default"},
         "spec": {"selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
                "name": "echo", "image": IMAGE, "args": ["netexec", "--http-port=8080"],
                "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}}]}}}},
        {"apiVersion": "v1", "kind": "Service",
         "metadata": {"name": "echo", "namespace": "default"},
         "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]}},
    ]}))?;
    kubectl.pods_ready("app=echo", 2)
}

pub(crate) fn name(pod: &Value) -> Result<&str> {
    pod["metadata"]["name"].as_str().context("a pod has a name")
}

pub(crate) fn pods_talk() -> Result<()> {
    with_world(|world| {
        let kubectl = shared_cluster(world)?;
        let pods = echo(&kubectl)?;
        ensure!(
            pods[0]["spec"]["nodeName"] != pods[1]["spec"]["nodeName"],
            "on both workers"
        );
        for (from, to) in [(0, 1), (1, 0)] {
            let address = pods[to]["status"]["podIP"].as_str().context("pod IP")?;
            for target in [
                format!("{address}:8080"),
                "echo:80".to_owned(),
                "echo.default.svc.cluster.local:80".to_owned(),
            ] {
                until(
                    &format!("{target} answers"),
                    Duration::from_secs(20),
                    || {
                        kubectl
                            .run(&[
                                "exec",
                                name(&pods[from])?,
                                "--",
                                "/agnhost",
                                "connect",
                                "--timeout=2s",
                                &target,
                            ])
                            .map(Some)
                    },
                )?;
            }
        }
        // A name that does not exist is refused: the answers above came from DNS.
        kubectl.refused(&[
            "exec",
            name(&pods[0])?,
            "--",
            "/agnhost",
            "connect",
            "--timeout=2s",
            "absent:80",
        ])?;
        Ok(())
    })
}

pub(crate) fn exec_logs_port_forward() -> Result<()> {
    with_world(|world| {
        let kubectl = shared_cluster(world)?;
        let pods = echo(&kubectl)?;
        let pod = name(&pods[0])?;
        let help = kubectl.run(&["exec", pod, "--", "/agnhost", "help"])?;
        ensure!(help.contains("netexec"), "exec: {help}");
        let forward = Forward::start(&kubectl, pod)?;
        let answer = forward.get("/hostname")?;
        ensure!(
            answer.ends_with(pod),
            "port-forward reached {answer:?} instead of {pod}"
        );
        let logs = kubectl.run(&["logs", pod])?;
        ensure!(logs.contains("8080"), "logs: {logs}");
        Ok(())
    })
}

/// A running `kubectl port-forward`; ended when dropped.
pub(crate) struct Forward {
    child: Child,
    /// Kept open: kubectl writes a line for each connection, and dies when nobody can read it.
    _output: BufReader<ChildStdout>,
    port: u16,
}

impl Forward {
    pub(crate) fn start(kubectl: &Kubectl, pod: &str) -> Result<Forward> {
        let mut child = kubectl
            .command(&[
                "port-forward",
                &format!("pod/{pod}"),
                ":8080",
                "--address=127.0.0.1",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start kubectl port-forward")?;
        let mut line = String::new();
        let output = child.stdout.take().context("no standard output")?;
        let mut output = BufReader::new(output);
        output.read_line(&mut line)?;
        // "Forwarding from 127.0.0.1:41234 -> 8080"
        let port = line
            .split("127.0.0.1:")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("no port in {line:?}"));
        let mut forward = Forward {
            child,
            _output: output,
            port: 0,
        };
        forward.port = port?;
        Ok(forward)
    }

    pub(crate) fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: echo\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn webhook() -> Result<()> {
    with_world(|world| {
        let kubectl = shared_cluster(world)?;
        let server = rcgen::generate_simple_self_signed(["webhook.default.svc".to_owned()])?;
        let certificate = server.cert.pem();
        let labels = json!({"app": "webhook"});
        kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
             "metadata": {"name": "webhook", "namespace": "default"},
             "stringData": {"tls.crt": certificate, "tls.key": server.signing_key.serialize_pem()}},
            {"apiVersion": "v1", "kind": "Pod",
             "metadata": {"name": "webhook", "namespace": "default", "labels": labels},
             "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
                "name": "webhook", "image": IMAGE,
                "args": ["webhook", "--tls-cert-file=/tls/tls.crt",
                         "--tls-private-key-file=/tls/tls.key", "--port=8443"],
                "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
                "volumeMounts": [{"name": "tls", "mountPath": "/tls", "readOnly": true}]}],
                "volumes": [{"name": "tls", "secret": {"secretName": "webhook"}}]}},
            {"apiVersion": "v1", "kind": "Service",
             "metadata": {"name": "webhook", "namespace": "default"},
             "spec": {"selector": labels, "ports": [{"port": 443, "targetPort": 8443}]}},
        ]}))?;
        kubectl.pods_ready("app=webhook", 1)?;
        let selector = json!({"matchLabels": {"windlass.test/deny": "yes"}});
        kubectl.apply(&json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "deny"},
            "webhooks": [{
                "name": "deny.windlass.test", "failurePolicy": "Fail", "sideEffects": "None",
                "admissionReviewVersions": ["v1"], "objectSelector": selector,
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                           "resources": ["configmaps"]}],
                "clientConfig": {"caBundle": BASE64_STANDARD.encode(&certificate), "service": {
                    "name": "webhook", "namespace": "default", "path": "/always-deny"}}}]}))?;
        let refused = until("the webhook denies", Duration::from_secs(20), || {
            let denied = kubectl.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "denied", "namespace": "default",
                             "labels": {"windlass.test/deny": "yes"}}}));
            let said = denied.err().map(|e| format!("{e:#}")).unwrap_or_default();
            Ok(said.contains("denied the request").then_some(said))
        });
        kubectl.run(&["delete", "validatingwebhookconfiguration", "deny"])?;
        kubectl.run(&["delete", "pod,service,secret", "webhook", "-n", "default"])?;
        refused.map(|_| ())
    })
}

pub(crate) fn anonymous_kubelet() -> Result<()> {
    with_world(|world| {
        shared_cluster(world)?;
        let machine = machine_of(world, SHARED, "worker")?;
        let shown = world.json(&["node", "show", &machine])?;
        let address = shown["address"]
            .as_str()
            .context("a machine has an address")?;
        let output = std::process::Command::new("curl")
            .args([
                "-sk",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "--max-time",
                "10",
            ])
            .arg(format!("https://{address}:10250/pods"))
            .output()
            .context("cannot start curl")?;
        let code = String::from_utf8_lossy(&output.stdout);
        ensure!(code.trim() == "401", "an anonymous caller got {code}");
        Ok(())
    })
}
