//! Bare handshakes: full mutual TLS over QUIC with an agent's identity, and nothing after it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use windlass_common::pki::gateway_name;
use windlass_common::settings::Settings;
use windlass_common::transport;

use crate::{Failed, count_failures, identity};

/// One handshake with each identity, from a socket of its own as agents do it.
pub(crate) async fn run(
    settings: &[Settings],
    dir: &Path,
    address: SocketAddr,
    at_once: usize,
) -> Result<Failed> {
    let places = Arc::new(Semaphore::new(at_once));
    let mut tasks = JoinSet::new();
    let mut held = Vec::new();
    let mut outcomes = Vec::new();
    for settings in settings {
        let place = Arc::clone(&places).acquire_owned().await?;
        let config = transport::client_config(identity::tls(dir, settings)?)?;
        let name = gateway_name(&settings.director_id);
        tasks.spawn(async move {
            let connected = handshake(config, address, &name).await;
            drop(place);
            connected
        });
    }
    while let Some(joined) = tasks.join_next().await {
        outcomes.push(joined?.map(|connected| held.push(connected)));
    }
    // All stand until the last one does: so does a fleet's.
    drop(held);
    Ok(count_failures(outcomes))
}

async fn handshake(
    config: quinn::ClientConfig,
    address: SocketAddr,
    name: &str,
) -> Result<(quinn::Endpoint, quinn::Connection)> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let endpoint = quinn::Endpoint::client(any).context("cannot open a socket")?;
    let connection = endpoint.connect_with(config, address, name)?.await?;
    Ok((endpoint, connection))
}
