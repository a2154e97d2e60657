//! Bare handshakes: full mutual TLS over QUIC with an agent's identity, and nothing after it but what keeps
//! the connection alive.

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

/// How often a handshake is tried.
const ATTEMPTS: u32 = 5;

/// Connections, each with its socket, that stand until this is dropped.
pub(crate) type Held = Vec<(quinn::Endpoint, quinn::Connection)>;

/// One handshake with each identity, from a socket of its own as agents do it.
pub(crate) async fn run(
    settings: &[Settings],
    dir: &Path,
    address: SocketAddr,
    at_once: usize,
) -> Result<(Held, Failed)> {
    let places = Arc::new(Semaphore::new(at_once));
    let mut tasks = JoinSet::new();
    let mut held = Vec::new();
    let mut outcomes = Vec::new();
    for settings in settings {
        let place = Arc::clone(&places).acquire_owned().await?;
        let config = transport::client_config(identity::tls(dir, settings)?)?;
        let name = gateway_name(&settings.director_id);
        tasks.spawn(async move {
            let mut connected = handshake(config.clone(), address, &name).await;
            // On a busy host some time out, as agents' do, and are made again.
            for _ in 1..ATTEMPTS {
                if connected.is_ok() {
                    break;
                }
                connected = handshake(config.clone(), address, &name).await;
            }
            drop(place);
            connected
        });
    }
    while let Some(joined) = tasks.join_next().await {
        outcomes.push(joined?.map(|connected| held.push(connected)));
    }
    Ok((held, count_failures(outcomes)))
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
