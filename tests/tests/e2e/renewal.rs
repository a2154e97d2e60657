//! What a cluster proves itself with is renewed and rotated in place, under a cluster that serves.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use windlass_tests::canaries::places::Watch;
use windlass_tests::kubectl::Kubectl;
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::lifecycle::{healthy, items, machine_of, with_world};
use crate::load::{IMAGE, Traffic, finished};
use crate::secrets;

/// How long components may take to read a certificate anew: API servers and kubelets look once a minute.
const RELOAD: Duration = Duration::from_secs(100);
/// Units of a control-plane machine that nothing may restart while leaves are renewed.
const UNITS: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "containerd",
];

/// Every server of a cluster shows a new certificate after a renewal, and no unit was restarted. What is secret of it is
/// seen nowhere, from its creation on.
pub(crate) fn certificates() -> Result<()> {
    with_world(|world| {
        let watch = Watch::start();
        world.run(&["cluster", "create", "leaves", "--workers", "1", "--wait"])?;
        let kubectl = world.kubectl("leaves")?;
        let plan = world.json(&["cluster", "renew-certificates", "leaves", "--dry-run"])?;
        let before = (served(world, "leaves")?, units(world, "leaves")?);
        let hash = plan["hash"].as_str().context("a plan has a hash")?;
        world.run(&[
            "cluster",
            "renew-certificates",
            "leaves",
            "--plan",
            hash,
            "--wait",
        ])?;
        until("every server shows its new certificate", RELOAD, || {
            let now = served(world, "leaves")?;
            let renewed = before.0.iter().all(|(who, old)| now[who] != *old);
            Ok(renewed.then_some(()))
        })?;
        ensure!(
            before.1 == units(world, "leaves")?,
            "a unit was restarted: {:#?}, {:#?}",
            before.1,
            units(world, "leaves")?
        );
        healthy(&kubectl, 2)?;
        for machine in machines(world, "leaves")? {
            let certified = &machine["certified"];
            ensure!(certified["expiresAt"].is_string(), "{machine:#}");
        }
        secrets::are_nowhere(world, "leaves", &watch.stop()?)?;
        world.run(&["cluster", "delete", "leaves", "--yes", "--wait"])?;
        Ok(())
    })
}

fn machines(world: &World, cluster: &str) -> Result<Vec<Value>> {
    Ok(items(&world.json(&["node", "list", "--cluster", cluster])?)?.clone())
}

/// The certificate that each server of a cluster shows, verified with the authority that its machine trusts.
fn served(world: &World, cluster: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    let shown = world.json(&["cluster", "show", cluster])?;
    let endpoint = shown["endpoint"]["name"].as_str().context("a name")?;
    let mut served = BTreeMap::new();
    for machine in machines(world, cluster)? {
        let name = machine["name"].as_str().context("a name")?;
        let node = machine["nodeName"].as_str().context("a node")?;
        let mut ports = vec![(10250, node, "ca")];
        if machine["role"]["kind"] == "controlPlane" {
            ports.extend([
                (6443, endpoint, "ca"),
                (2379, node, "etcd-ca"),
                (2380, node, "etcd-ca"),
            ]);
        }
        for (port, server, authority) in ports {
            let path = format!("/etc/kubernetes/pki/{authority}.crt");
            let roots = world.run(&["node", "exec", name, "--", "cat", &path])?;
            let address = machine["address"].as_str().context("an address")?;
            let address = SocketAddr::new(address.parse()?, port);
            let leaf = certificate(address, server, &roots)
                .with_context(|| format!("port {port} of {name}"))?;
            served.insert(format!("{name}:{port}"), leaf);
        }
    }
    Ok(served)
}

/// The certificate that a server shows; an error when these roots do not verify it.
pub(crate) fn certificate(address: SocketAddr, server: &str, roots: &str) -> Result<Vec<u8>> {
    let mut store = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    let name = ServerName::try_from(server.to_owned())?;
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name)?;
    let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    // A server that wants a certificate of ours refuses after it has shown its own.
    while tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
    }
    let shown = tls.peer_certificates().and_then(|chain| chain.first());
    Ok(shown.context("no certificate")?.to_vec())
}

/// When each unit of each machine was started.
fn units(world: &World, cluster: &str) -> Result<BTreeMap<String, String>> {
    let mut started = BTreeMap::new();
    for machine in machines(world, cluster)? {
        let name = machine["name"].as_str().context("a name")?;
        let mut command = vec![
            "node",
            "exec",
            name,
            "--",
            "systemctl",
            "show",
            "--property=Id,ExecMainPID",
        ];
        command.extend(UNITS);
        started.insert(name.to_owned(), world.run(&command)?);
    }
    Ok(started)
}

/// How long a rotation may take with four machines under load.
const ROTATION: Duration = Duration::from_secs(900);
/// The Secret that has to be written again.
const SECRET: &str = "kept";

/// The encryption key and the authorities of a cluster are rotated while clients use it: none of their requests
/// fails, and what was valid before is refused afterwards.
pub(crate) fn rotations() -> Result<()> {
    with_world(|world| {
        world.run(&[
            "cluster",
            "create",
            "turned",
            "--control-plane",
            "3",
            "--workers",
            "2",
            "--wait",
        ])?;
        let mut kubectl = world.kubectl("turned")?;
        // The next credentials are written over these.
        let before = world.dir().join("before.kubeconfig");
        std::fs::copy(&kubectl.kubeconfig, &before)?;
        kubectl.kubeconfig = before;
        healthy(&kubectl, 5)?;
        let inside = client_inside(&kubectl)?;
        let traffic = Traffic::start(world, &kubectl, "turned")?;
        encryption_key(world, &kubectl, &traffic)?;
        let old = served(world, "turned")?;
        let old_root = root(world, "turned")?;
        rotate(world, &traffic, &["rotate-ca", "turned", "--prepare"])?;
        // Clients get their credentials anew, and the others end.
        let renewed = world.kubectl("turned")?;
        let after = Traffic::start(world, &renewed, "turned")?;
        traffic.stop()?.flawless()?;
        rotate(world, &after, &["rotate-ca", "turned"])?;
        until("every server shows its new certificate", RELOAD, || {
            after.follow(world)?;
            let now = served(world, "turned")?;
            Ok(old
                .iter()
                .all(|(who, leaf)| now[who] != *leaf)
                .then_some(()))
        })?;
        after.stop()?.flawless()?;
        let new_root = root(world, "turned")?;
        ensure!(
            !new_root.contains(old_root.trim()),
            "the old authority is trusted"
        );
        old_credentials_are_refused(&kubectl)?;
        let said = renewed.run(&["logs", &inside])?;
        let failed = said.lines().filter(|line| line.contains("status=failed"));
        ensure!(
            failed.count() == 0,
            "the client in the cluster failed: {said}"
        );
        ensure!(said.contains("calling /healthz"), "{said}");
        let shown = world.json(&["cluster", "show", "turned"])?;
        ensure!(shown["rotation"]["stage"] == "trust-new", "{shown:#}");
        healthy(&renewed, 5)?;
        world.run(&["cluster", "delete", "turned", "--yes", "--wait"])?;
        Ok(())
    })
}

/// Rotates the encryption key: the Secret is stored under the new one, readable, and the old one is gone.
fn encryption_key(world: &World, kubectl: &Kubectl, traffic: &Traffic) -> Result<()> {
    kubectl.run(&[
        "create",
        "secret",
        "generic",
        SECRET,
        "--from-literal=word=before",
    ])?;
    let member = machine_of(world, "turned", "control")?;
    let stored = stored(world, &member)?;
    ensure!(stored.contains("k8s:enc:secretbox:v1:key1:"), "{stored}");
    rotate(world, traffic, &["rotate-encryption-key", "turned"])?;
    let stored = self::stored(world, &member)?;
    ensure!(stored.contains("k8s:enc:secretbox:v1:key2:"), "{stored}");
    let word = kubectl.get(&["secret", SECRET])?["data"]["word"].clone();
    ensure!(word == "YmVmb3Jl", "{word}");
    for machine in machines(world, "turned")? {
        if machine["role"]["kind"] != "controlPlane" {
            continue;
        }
        let name = machine["name"].as_str().context("a name")?;
        let path = "/etc/kubernetes/encryption.yaml";
        let keys = world.run(&["node", "exec", name, "--", "grep", "name:", path])?;
        ensure!(
            keys.trim().ends_with("key2") && !keys.contains("key1"),
            "{keys}"
        );
    }
    let shown = world.json(&["cluster", "show", "turned"])?;
    ensure!(shown["rotation"].is_null(), "{shown:#}");
    Ok(())
}

/// Orders a rotation and waits for its end, which no client notices.
fn rotate(world: &World, traffic: &Traffic, order: &[&str]) -> Result<()> {
    let began = std::time::Instant::now();
    let task = world.json(&[&["cluster"], order].concat())?;
    let task = task["id"].as_str().context("a task has an id")?.to_owned();
    finished(world, &task, traffic, ROTATION)?;
    eprintln!(
        "{}: {:.1} s",
        order.join(" "),
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// A pod that asks the API once a second, as it finds it from inside.
fn client_inside(kubectl: &Kubectl) -> Result<String> {
    kubectl.apply(&json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "inside", "namespace": "default", "labels": {"app": "inside"}},
        "spec": {"containers": [{"name": "inside", "image": IMAGE,
            "args": ["inclusterclient", "--poll-interval=1"]}]}}))?;
    kubectl.pods_ready("app=inside", 1)?;
    Ok("inside".to_owned())
}

/// What etcd holds of the Secret, as far as it is text.
fn stored(world: &World, machine: &str) -> Result<String> {
    let script = format!(
        "cd /etc/kubernetes/pki && /opt/windlass/components/etcd/current/etcdctl \
         --endpoints=https://127.0.0.1:2379 --cacert=etcd-ca.crt --cert=apiserver-etcd-client.crt \
         --key=apiserver-etcd-client.key get /registry/secrets/default/{SECRET} --print-value-only \
         | head -c 64 | tr -cd '[:print:]'"
    );
    world.run(&["node", "exec", machine, "--", "sh", "-c", &script])
}

/// The authorities that the machines of a cluster trust.
fn root(world: &World, cluster: &str) -> Result<String> {
    let machine = machine_of(world, cluster, "control")?;
    let path = "/etc/kubernetes/pki/ca.crt";
    world.run(&["node", "exec", &machine, "--", "cat", path])
}

/// The certificate of a kubeconfig of before is good for nothing, whatever authority the client trusts.
fn old_credentials_are_refused(old: &Kubectl) -> Result<()> {
    let said = old.refused(&["get", "--raw", "/readyz"])?;
    ensure!(
        said.contains("x509"),
        "the old authority verifies a server: {said}"
    );
    let said = old.refused(&["--insecure-skip-tls-verify=true", "auth", "whoami"])?;
    ensure!(
        said.contains("Unauthorized") || said.contains("logged in") || said.contains("certificate"),
        "{said}"
    );
    Ok(())
}
