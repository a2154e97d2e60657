//! The director under test: gateway, tokens and machines of a real store, heartbeats paced as the daemon
//! paces them; no provider, no API, nothing that plans.
//!
//! With `--bare` it is the reference instead: a QUIC server with the same certificates that
//! completes handshakes and does nothing else.

use std::ffi::OsString;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use jiff::Timestamp;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::time::{Instant, timeout};
use windlass_common::error::ErrorChain;
use windlass_common::id::{Epoch, MachineName};
use windlass_common::limits::HELLO_TIMEOUT;
use windlass_common::pki::gateway_name;
use windlass_common::{tls, transport};

use crate::artifacts::Artifacts;
use crate::config::{DataDir, Identity};
use crate::gateway::{Gateway, GatewayConfig, host_budget, widen};
use crate::model::Machine;
use crate::rollout::world::Registry;
use crate::service::{Tokens, tickets};

use super::commands;
use super::course::Course;
use super::peer;
use super::process;
use super::protocol::{TargetAnswer, TargetOrder, now_us};

/// As for the daemon: how long agents are told that the director goes.
const SHUTDOWN: Duration = Duration::from_secs(2);
/// Life of the reference's certificate.
const SERVER_LIFE: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Parser)]
#[command(name = "windlass-director bench-target", hide = true)]
struct Arguments {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    interval_ms: u32,
    #[arg(long)]
    bare: bool,
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Runs the hidden command; `arguments` are what follows its name.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    let name = OsString::from("windlass-director bench-target");
    let arguments = Arguments::parse_from(std::iter::once(name).chain(arguments));
    // As the daemon logs: what logging costs is part of what is measured.
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new("info"))
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let ended = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Fault::from)
        .and_then(|runtime| runtime.block_on(run(&arguments)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            peer::reply::<TargetAnswer>(Err(ErrorChain(&*error).to_string()));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<(), Fault> {
    let data = DataDir::new(&arguments.dir)?;
    let identity = Identity::load(&data, Timestamp::now()).await?;
    if arguments.bare {
        return bare(&identity, arguments.listen).await;
    }
    let epoch = identity.records.next_epoch().await?;
    let machines: Vec<Machine> = identity.records.list().await?;
    let registry = Arc::new(Registry::new(identity.id.clone(), &machines));
    drop(machines);
    let resident_bytes = process::resident_bytes("self")?;
    let mut config = GatewayConfig::new(arguments.listen);
    config.tune.heartbeat_interval_ms = arguments.interval_ms;
    config.heartbeat_budget = Some(host_budget());
    let tickets = tickets(&identity.records, config.clock.clone()).await;
    config.tickets = Some(Arc::clone(&tickets));
    let gateway = Gateway::start(
        config,
        identity.ca.clone(),
        Arc::new(Tokens::load(identity.records.clone()).await?),
        registry,
        Arc::new(Artifacts::new(data.artifacts())),
        epoch,
    )
    .await?;
    peer::reply(Ok(TargetAnswer::Listening {
        at_us: now_us(),
        resident_bytes,
    }));
    let gateway = Arc::new(gateway);
    let course = Course::begin(Arc::clone(&gateway), tickets);
    let mut orders = peer::orders();
    while let Some(order) = orders.recv().await {
        let last = matches!(order, TargetOrder::Stop);
        peer::reply(obey(&gateway, &course, epoch, order).await);
        if last {
            break;
        }
    }
    Ok(())
}

async fn obey(
    gateway: &Gateway,
    course: &Course,
    epoch: Epoch,
    order: TargetOrder,
) -> Result<TargetAnswer, String> {
    match order {
        TargetOrder::AwaitConnected { count, patience_ms } => {
            Ok(connected(gateway, course, count, Duration::from_millis(patience_ms)).await)
        }
        TargetOrder::Usage => usage(gateway, course),
        TargetOrder::Commands { count, per_second } => {
            Ok(commands::measure(gateway, epoch, count, per_second).await)
        }
        TargetOrder::AwaitSuspect {
            machine,
            patience_ms,
        } => Ok(suspect(gateway, &machine, Duration::from_millis(patience_ms)).await),
        TargetOrder::Stop => {
            gateway.shutdown(SHUTDOWN).await;
            Ok(TargetAnswer::Stopped)
        }
    }
}

async fn connected(
    gateway: &Gateway,
    course: &Course,
    count: usize,
    patience: Duration,
) -> TargetAnswer {
    let deadline = Instant::now() + patience;
    loop {
        let connected = gateway.connected_count();
        if connected >= count || Instant::now() >= deadline {
            return TargetAnswer::Connected {
                count: connected,
                at_us: now_us(),
                course: course.moments(),
            };
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn usage(gateway: &Gateway, course: &Course) -> Result<TargetAnswer, String> {
    // Before the look at the sessions, which is none of the gateway's work.
    let cpu_us = process::own_cpu_us();
    let resident_bytes = process::resident_bytes("self").map_err(|error| error.to_string())?;
    let sessions = gateway.connected();
    let heartbeats = sessions
        .values()
        .filter_map(|view| view.last_heartbeat)
        .map(|(_, heartbeat)| heartbeat.sequence)
        .sum();
    Ok(TargetAnswer::Usage {
        resident_bytes,
        cpu_us,
        heartbeats,
        connected: sessions.len(),
        suspects: sessions.values().filter(|view| view.suspect).count(),
        resumed: course.now().resumed,
        interval_ms: gateway.pace().heartbeat_interval_ms,
    })
}

/// Waits until a machine is suspect or its session is over, whichever is noticed first.
async fn suspect(gateway: &Gateway, machine: &MachineName, patience: Duration) -> TargetAnswer {
    use crate::gateway::Event;
    let mut events = gateway.subscribe();
    let noticed = async {
        loop {
            match events.recv().await {
                Ok(Event::Suspected { identity } | Event::Disconnected { identity, .. })
                    if identity.machine == *machine =>
                {
                    return now_us();
                }
                // One that lags has missed nothing it could not miss again: the patience ends it.
                Ok(_) | Err(_) => {}
            }
        }
    };
    TargetAnswer::Suspect {
        at_us: timeout(patience, noticed).await.ok(),
    }
}

/// Shows one certificate.
#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl ResolvesServerCert for One {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Completes full mutual handshakes and holds the connections, until standard input ends.
async fn bare(identity: &Identity, listen: SocketAddr) -> Result<(), Fault> {
    let name = gateway_name(&identity.id);
    let certificate = identity
        .ca
        .issue_server(&[name], &[], SERVER_LIFE, Timestamp::now())?
        .certified_key()?;
    let tls = tls::gateway_server(identity.ca.agent_verifier()?, Arc::new(One(certificate)))?;
    let socket = UdpSocket::bind(listen)?;
    widen(&socket);
    let endpoint = quinn::Endpoint::new(
        quinn::EndpointConfig::default(),
        Some(transport::server_config(tls)?),
        socket,
        Arc::new(quinn::TokioRuntime),
    )?;
    let resident_bytes = process::resident_bytes("self")?;
    peer::reply(Ok(TargetAnswer::Listening {
        at_us: now_us(),
        resident_bytes,
    }));
    let mut orders = peer::orders();
    loop {
        tokio::select! {
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { return Ok(()) };
                tokio::spawn(async move {
                    if let Ok(Ok(connection)) = timeout(HELLO_TIMEOUT, incoming).await {
                        connection.closed().await;
                    }
                });
            }
            order = orders.recv() => match order {
                Some(TargetOrder::Usage) => peer::reply(Ok(TargetAnswer::Usage {
                    resident_bytes: process::resident_bytes("self")?,
                    cpu_us: process::own_cpu_us(),
                    heartbeats: 0,
                    connected: endpoint.open_connections(),
                    suspects: 0,
                    resumed: 0,
                    interval_ms: 0,
                })),
                Some(_) | None => return Ok(()),
            }
        }
    }
}
