//! The endpoint of a cluster: one small process that spreads TCP connections over its API servers.
//!
//! It listens on the endpoint's address, passes bytes through without looking at them (TLS is between
//! client and API server), and knows which backends accept connections and say that they are ready. It outlives the
//! director.
//!
//! # Invariants
//! * A connection goes to a backend that accepts it: a backend that refuses or does not answer within
//!   `pool::CONNECT_LIMIT` is passed over for the next one. Those that say `/readyz` come before the others.
//! * A connection to a backend that stops answering is closed, so that its client comes back and finds
//!   another one. A backend that leaves the spec gets no new connections, and a minute for those it has:
//!   an API server that ends lets its requests finish. Others are never touched by a change of the spec.
//! * At most [`CONNECTIONS_MAX`] connections are open; more wait in the kernel's backlog.
//!
//! # After a crash
//! Its connections are cut. [`ensure_endpoint`](crate::provider::Provider::ensure_endpoint) starts it again
//! from its spec file. Health is found out anew; until then every backend counts as healthy.

mod pool;
mod ready;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use windlass_common::error::ErrorChain;

use self::pool::Pool;
use self::ready::Look;
use super::files::{What, read_json};
use super::monitor::READY;
use crate::provider::{EndpointRequest, ProviderError};

/// Most connections at once: 100 nodes with 40 each (kubelet, kube-proxy, controllers, operators); with
/// 16 KiB of buffers each that is 64 MiB.
pub const CONNECTIONS_MAX: usize = 4096;
/// How long open connections get to end when the endpoint is told to go.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// How often the spec file is looked at, besides at SIGHUP.
const SPEC_INTERVAL: Duration = Duration::from_secs(2);
/// Pause when no connection can be accepted (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Descriptors kept for other things than connections: listener, health checks, files.
const DESCRIPTORS_KEPT: u64 = 256;

/// Runs the endpoint: `endpoint --spec <file>`.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let spec = match args.as_slice() {
        [flag, file] if flag == "--spec" => PathBuf::from(file),
        _ => {
            tell("usage: endpoint --spec <file>");
            return ExitCode::from(2);
        }
    };
    match run(&spec) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = ErrorChain(&error).to_string().replace('\n', " ");
            tell(&format!("failed: {text}"));
            note(&text);
            ExitCode::FAILURE
        }
    }
}

fn tell(line: &str) {
    // If the provider is gone, nobody needs to hear it.
    let _ = writeln!(io::stdout(), "{line}");
}

/// A line in the endpoint's log.
fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{} {line}", jiff::Timestamp::now());
}

fn run(spec_path: &Path) -> Result<(), ProviderError> {
    // Fails if we lead a session already: all the same.
    let _ = nix::unistd::setsid();
    let lock_path = spec_path.with_extension("lock");
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .what(|| format!("cannot open {}", lock_path.display()))?;
    lock.try_lock().map_err(io::Error::other).what(|| {
        format!(
            "cannot lock {}: another endpoint serves it",
            lock_path.display()
        )
    })?;
    lock.set_len(0)
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .what(|| format!("cannot write {}", lock_path.display()))?;
    let spec = load(spec_path)?;
    let connections = connections_possible();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .what(|| "cannot start the runtime".to_owned())?;
    runtime.block_on(serve(spec_path, spec, connections))
}

fn load(path: &Path) -> Result<EndpointRequest, ProviderError> {
    read_json(path)?.ok_or_else(|| ProviderError::NotFound {
        kind: "endpoint",
        name: path.display().to_string(),
    })
}

/// Raises the limit of descriptors as far as it goes; says how many connections fit.
fn connections_possible() -> usize {
    let resource = Resource::RLIMIT_NOFILE;
    let Ok((soft, hard)) = getrlimit(resource) else {
        return CONNECTIONS_MAX;
    };
    let wanted = (CONNECTIONS_MAX as u64 * 2 + DESCRIPTORS_KEPT)
        .min(hard)
        .max(soft);
    let limit = if setrlimit(resource, wanted, hard).is_ok() {
        wanted
    } else {
        soft
    };
    let fit = limit.saturating_sub(DESCRIPTORS_KEPT) / 2; // two for each connection
    usize::try_from(fit)
        .unwrap_or(CONNECTIONS_MAX)
        .clamp(16, CONNECTIONS_MAX)
}

async fn serve(
    path: &Path,
    mut spec: EndpointRequest,
    connections: usize,
) -> Result<(), ProviderError> {
    let address = SocketAddr::from((spec.address, spec.port));
    let listener = TcpListener::bind(address)
        .await
        .what(|| format!("cannot listen on {address}; is the port taken?"))?;
    let watching = || "cannot watch for signals".to_owned();
    let mut hangup = signal(SignalKind::hangup()).what(watching)?;
    let mut terminate = signal(SignalKind::terminate()).what(watching)?;
    let look = Look::new()
        .map_err(io::Error::other)
        .what(|| "cannot prepare TLS to look at API servers".to_owned())?;
    let pool = Arc::new(Pool::new(look));
    pool.replace(&spec.backends);
    tell(READY);
    // The provider has heard what it waited for; from here on nobody reads.
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null); // worst case: the pipe stays open
    }
    let room = Arc::new(Semaphore::new(connections));
    let mut look = interval(SPEC_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = hangup.recv() => reload(path, &mut spec, &pool),
            _ = look.tick() => reload(path, &mut spec, &pool),
            () = accept(&listener, &room, &pool) => {}
        }
    }
    drop(listener);
    // All permits back means that no connection is left.
    let all = u32::try_from(connections).unwrap_or(u32::MAX);
    let _ = timeout(DRAIN_LIMIT, room.acquire_many(all)).await;
    Ok(())
}

fn reload(path: &Path, spec: &mut EndpointRequest, pool: &Pool) {
    match load(path) {
        Ok(new) if new == *spec => {}
        Ok(new) => {
            note(&format!("backends are now {:?}", new.backends));
            pool.replace(&new.backends);
            *spec = new;
        }
        // What was served goes on being served.
        Err(error) => note(&format!("cannot read the spec: {}", ErrorChain(&error))),
    }
}

/// Takes one connection, when there is room for it, and serves it on a task of its own.
async fn accept(listener: &TcpListener, room: &Arc<Semaphore>, pool: &Arc<Pool>) {
    let Ok(permit) = Arc::clone(room).acquire_owned().await else {
        return;
    };
    match listener.accept().await {
        Ok((client, _)) => {
            let pool = Arc::clone(pool);
            tokio::spawn(async move {
                pass(client, &pool).await;
                drop(permit);
            });
        }
        Err(error) => {
            note(&format!("cannot accept a connection: {error}"));
            sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// Passes bytes both ways until either side ends or the backend is given up.
async fn pass(mut client: TcpStream, pool: &Pool) {
    let Some((mut server, backend)) = pool.connect().await else {
        return;
    };
    // Small requests must not wait for acknowledgements.
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    tokio::select! {
        // An end or an error of either side ends both; there is nobody to tell.
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        () = backend.given_up() => {}
    }
}
