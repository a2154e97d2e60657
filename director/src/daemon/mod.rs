//! The director's process: configuration, lock, identity, gateway, API, and an orderly end.
//!
//! # Order
//! Start: configuration → lock → preflight → identity and store → director (gateway, resumed tasks) →
//! API. Stop (SIGTERM or SIGINT): API → director → lock.
//!
//! # After a crash
//! The kernel drops the lock and the sockets; the next start resumes what the store has.
//!
//! # Not here
//! Going into the background and waiting for readiness: that is `windlass director start`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use windlass_common::clock::Clock;
use windlass_common::error::ErrorChain;
use windlass_common::tls::TlsError;

use crate::api::{Server, ServerError, server_tls};
use crate::config::{Config, ConfigError, DataDir, Identity, IdentityError};
use crate::pki::{IssueError, ServerDoor};
use crate::provider::ProviderError;
use crate::provider::local::{LocalConfig, LocalProvider};
use crate::service::{Director, StartError};
use crate::store::{DirectoryLock, LockError};

/// Life of the API's certificate; a new one is made at each start, and at half of this.
const API_CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long a held lock may be somebody's who only looks, which takes well under a millisecond.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);
/// Pause between two attempts at the lock.
const LOCK_AGAIN: Duration = Duration::from_millis(10);

/// The Windlass director. `windlass director start` runs it in the background.
#[derive(Debug, Parser)]
#[command(
    name = "windlass-director",
    version,
    after_help = "`windlass-director backup --help`: back a data directory up, also of a director that does not run.\n\
                  `windlass-director restore --help`: put a backup into a data directory.\n\
                  `windlass-director bench fleet --help`: what a fleet of agents costs a director."
)]
struct Arguments {
    /// Data directory, made by `windlass director init`
    #[arg(
        long,
        env = "WINDLASS_DIR",
        default_value = "/var/lib/windlass",
        value_name = "DIR"
    )]
    data_dir: PathBuf,
    /// Leave the terminal's session
    #[arg(long, hide = true)]
    detached: bool,
}

/// Why a director does not run.
#[derive(Debug, thiserror::Error)]
enum DaemonError {
    #[error("the data directory's path is not usable")]
    DataDir(#[source] std::io::Error),
    #[error("the configuration is not usable")]
    Config(#[from] ConfigError),
    #[error("the data directory is in use")]
    Lock(#[from] LockError),
    #[error("the director's identity is not usable")]
    Identity(#[from] IdentityError),
    #[error("the API's certificate cannot be issued")]
    Issue(#[from] IssueError),
    #[error("operators' certificates cannot be verified")]
    Verifier(#[from] TlsError),
    #[error("the API cannot be served")]
    Server(#[from] ServerError),
    #[error("the local provider cannot be used")]
    Provider(#[from] ProviderError),
    #[error("the director cannot start")]
    Service(#[from] StartError),
    #[error("the system refuses to {doing}")]
    System {
        doing: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// Runs the daemon until it is told to stop.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.detached
        && let Err(errno) = nix::unistd::setsid()
    {
        // Fails only for a leader of a group, which has left its session's terminal already.
        eprintln!("cannot leave the session: {errno}");
    }
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", ErrorChain(&error));
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> Result<(), DaemonError> {
    let dir = DataDir::new(&arguments.data_dir).map_err(DaemonError::DataDir)?;
    let config = Config::load(&dir)?;
    let filter = tracing_subscriber::EnvFilter::new(&config.log);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let lock = lock(&dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|source| DaemonError::System {
        doing: "start threads",
        source,
    })?;
    runtime.block_on(run(&lock, &dir, &config))
}

/// Locks the data directory. Who looks whether a director runs holds the lock for a moment, so one that
/// is held is tried again before it counts as another director's.
fn lock(dir: &DataDir) -> Result<DirectoryLock, LockError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match DirectoryLock::acquire(dir.path()) {
            Err(LockError::Held { .. }) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_AGAIN);
            }
            locked => return locked,
        }
    }
}

async fn run(lock: &DirectoryLock, dir: &DataDir, config: &Config) -> Result<(), DaemonError> {
    let stop = Stop::watch()?;
    let identity = Identity::load(dir, Timestamp::now()).await?;
    let tls = api_tls(config, &identity)?;
    let server = Server::bind(config.api.listen, tls, identity.id.clone()).await?;
    let id = identity.id.clone();
    let director = director(lock, dir, config, identity).await?;
    tracing::info!(
        director = %id, version = env!("CARGO_PKG_VERSION"), api = %config.api.listen,
        gateway = %config.gateway.listen, "director is up"
    );
    server
        .serve(director.clone(), config.reserved_networks(), stop.0)
        .await;
    director.shutdown().await;
    tracing::info!(director = %id, "director is stopped");
    Ok(())
}

async fn director(
    lock: &DirectoryLock,
    dir: &DataDir,
    config: &Config,
    identity: Identity,
) -> Result<Director, DaemonError> {
    let exe = std::env::current_exe().map_err(|source| DaemonError::System {
        doing: "say where this program is",
        source,
    })?;
    let provider = LocalProvider::new(LocalConfig {
        dir: config.local.directory.clone(),
        name: config.local.name.clone(),
        cidr: config.local.cidr,
        director_exe: exe,
        runc: config.local.runc.clone(),
        zones: config.local.zones.clone(),
    })?;
    Ok(Director::start(lock, dir, config, identity, Arc::new(provider)).await?)
}

/// The API's TLS, with a certificate for the addresses and names clients may use.
fn api_tls(config: &Config, identity: &Identity) -> Result<Arc<rustls::ServerConfig>, DaemonError> {
    let names: Vec<String> = std::iter::once("localhost".to_owned())
        .chain(config.api.names.iter().cloned())
        .collect();
    let door = ServerDoor::new(
        identity.ca.clone(),
        names,
        addresses(config.api.listen),
        API_CERTIFICATE_LIFE,
        Clock::system(),
    )?;
    let verifier = identity.ca.operator_verifier()?;
    Ok(server_tls(door, verifier)?)
}

/// Addresses under which a listener is reached.
fn addresses(listen: SocketAddr) -> Vec<IpAddr> {
    if !listen.ip().is_unspecified() {
        return vec![listen.ip()];
    }
    let interfaces = nix::ifaddrs::getifaddrs().map(|all| {
        all.filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect::<Vec<_>>()
    });
    // A host that does not list its addresses still has this one.
    interfaces.unwrap_or_else(|_| vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])
}

/// Becomes true when the process is told to stop.
struct Stop(watch::Receiver<bool>);

impl Stop {
    fn watch() -> Result<Stop, DaemonError> {
        let system = |source| DaemonError::System {
            doing: "watch signals",
            source,
        };
        let mut terminate = signal(SignalKind::terminate()).map_err(system)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system)?;
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("told to stop");
            sender.send_replace(true);
        });
        Ok(Stop(receiver))
    }
}
