//! Self-fencing: a worker that alone is cut off ends its own pods.
//!
//! Wanted for a pool (`selfFence`), never for machines of a control plane: these are not told of it. While neither the
//! director nor, through the machine's own proxy, an API server is heard, other machines of the cluster are asked at each
//! look whether they hear the director. Once one did at every look for as long as its pool says, this machine restarts:
//! its kubelet runs no pod until an API server answers it.
//!
//! # Invariants
//! * Peers that are cut off as well, that do not answer, and a director that is away end nothing, and the time in which it
//!   was so does not count ([`rule`]).
//! * A machine that can be heard again when its peers are has longer for it than an agent takes to come back.
//! * A machine does this once, until it has heard of the director or an API server again: it is written down before.
//!
//! # After a crash
//! The count begins anew with the agent: it takes longer then, never shorter.
//!
//! # Not here
//! A machine whose agent hangs; proof for others, which only the provider can give: this makes pods that nobody can
//! tell anything stop serving sooner, and frees no volume and no name.

mod rule;

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use windlass_common::error::ErrorChain;
use windlass_common::fence::{self, PEERS_MAX, SelfFenceOrders};

use crate::host::{Host, STATE_DIR, command};
use crate::link::LinkHandle;
use crate::peer::greet;
use rule::{Alone, Look, Peer};

/// Between two looks. While the director is silent each is a handshake through the machine's own proxy, and a question to
/// a few peers when that fails.
const LOOK: Duration = Duration::from_secs(5);
/// How long an API server, or a peer, gets to answer.
const ANSWER: Duration = Duration::from_secs(3);

/// Looks for as long as it is polled.
pub(crate) async fn run(host: &Host, link: LinkHandle) -> Infallible {
    if host.root() != Path::new("/") {
        // In a directory of tests, the machine is somebody else's.
        return std::future::pending().await;
    }
    let mut alone = Alone::default();
    let mut last = Instant::now();
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let now = Instant::now();
        let passed = now.saturating_duration_since(last);
        last = now;
        alone = match look(host, &link, alone, passed).await {
            Ok(alone) => alone,
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "self-fencing does not work");
                Alone::default()
            }
        };
    }
}

/// One look, so long after the one before; returns for how long this machine has been alone after it.
async fn look(host: &Host, link: &LinkHandle, alone: Alone, passed: Duration) -> io::Result<Alone> {
    let heard = alone.after(passed, Look::Heard);
    if link.is_connected() {
        forget(host)?;
        return Ok(heard);
    }
    let Some(orders) = read(host)? else {
        return Ok(heard);
    };
    let Some(after_seconds) = orders.after_seconds else {
        return Ok(heard);
    };
    if timeout(ANSWER, greet(orders.api)).await.is_ok() {
        forget(host)?;
        return Ok(heard);
    }
    if host.path(&mark()).exists() {
        // Nothing has come back that could be ended.
        return Ok(heard);
    }
    let peers = orders.peers.iter().take(PEERS_MAX);
    let answers = join_all(peers.map(|peer| ask(link, *peer))).await;
    let alone = alone.after(passed, Look::Unheard(&answers));
    tracing::info!(
        ?answers,
        alone_s = alone.time().as_secs(),
        "neither the director nor an API server is heard"
    );
    if alone.ends_pods(Duration::from_secs(after_seconds.into())) {
        fence(host, alone).await?;
    }
    Ok(alone)
}

async fn ask(link: &LinkHandle, peer: SocketAddr) -> Peer {
    match timeout(ANSWER, link.peer_hears_director(peer)).await {
        Ok(Ok(true)) => Peer::HearsDirector,
        Ok(Ok(false)) => Peer::HearsNobody,
        Ok(Err(error)) => {
            tracing::info!(%peer, error = %ErrorChain(&error), "a peer does not say whom it hears");
            Peer::Silent
        }
        Err(_) => Peer::Silent,
    }
}

/// What this machine is told; nothing where it never was.
fn read(host: &Host) -> io::Result<Option<SelfFenceOrders>> {
    match std::fs::read(host.path(fence::PATH)) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where it is written down that this machine has ended its pods.
fn mark() -> String {
    format!("{STATE_DIR}/self-fenced")
}

fn forget(host: &Host) -> io::Result<()> {
    match std::fs::remove_file(host.path(&mark())) {
        Ok(()) => {
            tracing::info!("heard again after the restart that ended the pods of this machine");
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Ends all pods by a restart that waits for none of them.
async fn fence(host: &Host, alone: Alone) -> io::Result<()> {
    let mut mark = File::create(host.path(&mark()))?;
    let text = format!("alone for {} s\n", alone.time().as_secs());
    mark.write_all(text.as_bytes())?;
    mark.sync_all()?;
    tracing::error!(
        alone_s = alone.time().as_secs(),
        "this machine alone is cut off: it restarts, so that its pods end"
    );
    let said = command::run(&["systemctl", "reboot", "--force"], None).await?;
    if said.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the machine does not restart: {}",
        said.stderr.trim()
    )))
}
