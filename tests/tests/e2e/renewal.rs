//! What a cluster proves itself with is renewed and rotated in place, under a cluster that serves.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::lifecycle::{healthy, items, with_world};

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

/// Every server of a cluster shows a new certificate after a renewal, and no unit was restarted.
pub(crate) fn certificates() -> Result<()> {
    with_world(|world| {
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
