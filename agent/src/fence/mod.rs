//! Self-fencing: a worker that alone is cut off ends its own pods.
//!
//! Wanted for a pool (`selfFence`), never for machines of a control plane: these are not told of it. While neither the
//! director nor, through the machine's own proxy, an API server is heard, other machines of the cluster are asked at each
//! look whether they hear the director. Once one did at every look for as long as its pool says, this machine restarts:
//! its kubelet runs no pod until an API server answers it. While it counts, the machine's [`watchdog`] is told when to
//! restart it from outside, so that pods end as well where agent, init or the restart hang.
//!
//! # Invariants
//! * Peers that are cut off as well, that do not answer, and a director that is away end nothing, and the time in which it
//!   was so does not count ([`rule`]).
//! * A machine that can be heard again when its peers are has longer for it than an agent takes to come back.
//! * A machine does this once, until it has heard of the director or an API server again: it is written down before.
//! * The watchdog restarts nothing before this machine would have, and nothing that a later look has found otherwise.
//!
//! # After a crash
//! The count begins anew with the agent: it takes longer then, never shorter. What the watchdog was told holds until the
//! first look of the next agent, which tells it anew or takes it back.
//!
//! # Not here
//! A machine whose agent hung before it was cut off, which systemd starts again (`WatchdogSec` of its unit); proof for
//! others, which only the provider can give: this makes pods that nobody can tell anything stop serving sooner, and
//! frees no volume and no name.

mod rule;
mod watchdog;

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
use watchdog::Watchdog;

/// Between two looks. While the director is silent each is a handshake through the machine's own proxy, and a question to
/// a few peers when that fails.
const LOOK: Duration = Duration::from_secs(5);
/// How long an API server, or a peer, gets to answer.
const ANSWER: Duration = Duration::from_secs(3);
/// What the machine's own restart gets, from the end of the count, before the watchdog does it.
const RESTARTS: Duration = Duration::from_secs(30);

/// Looks for as long as it is polled.
pub(crate) async fn run(host: &Host, link: LinkHandle) -> Infallible {
    if host.root() != Path::new("/") {
        // In a directory of tests, the machine is somebody else's.
        return std::future::pending().await;
    }
    let mut alone = Alone::default();
    let mut watchdog = Watchdog::default();
    let mut last = Instant::now();
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let now = Instant::now();
        let passed = now.saturating_duration_since(last);
        last = now;
        let looked = look(host, &link, alone, passed).await;
        let stand = looked.unwrap_or_else(|error| {
            tracing::error!(error = %ErrorChain(&error), "self-fencing does not work");
            Stand::Heard
        });
        alone = match stand {
            Stand::Heard => {
                watchdog.off(host);
                alone.after(passed, Look::Heard)
            }
            Stand::Counts(alone, left) => {
                watchdog.restart_in(host, left.saturating_add(RESTARTS));
                alone
            }
            Stand::Fenced => Alone::default(),
        };
    }
}

/// What a look comes to.
#[derive(Debug)]
enum Stand {
    /// Nothing is to end: somebody is heard, nobody can say that this machine is alone, or nobody wants to know.
    Heard,
    /// This machine has been alone for so long; its pods are to end in so long.
    Counts(Alone, Duration),
    /// It restarts, or has, and nobody was heard since. What the watchdog was told holds.
    Fenced,
}

/// One look, so long after the one before.
async fn look(host: &Host, link: &LinkHandle, alone: Alone, passed: Duration) -> io::Result<Stand> {
    if link.is_connected() {
        forget(host)?;
        return Ok(Stand::Heard);
    }
    let Some(orders) = read(host)? else {
        return Ok(Stand::Heard);
    };
    let Some(after_seconds) = orders.after_seconds else {
        return Ok(Stand::Heard);
    };
    let wanted = Duration::from_secs(after_seconds.into());
    if timeout(ANSWER, greet(orders.api)).await.is_ok() {
        forget(host)?;
        return Ok(Stand::Heard);
    }
    if host.path(&mark()).exists() {
        // Nothing has come back that could be ended.
        return Ok(Stand::Fenced);
    }
    let peers = orders.peers.iter().take(PEERS_MAX);
    let answers = join_all(peers.map(|peer| ask(link, *peer))).await;
    let alone = alone.after(passed, Look::Unheard(&answers));
    tracing::info!(
        ?answers,
        alone_s = alone.time().as_secs(),
        "neither the director nor an API server is heard"
    );
    match alone.left(wanted) {
        None => Ok(Stand::Heard),
        Some(Duration::ZERO) => {
            mark_down(host, alone)?;
            restart(alone).await;
            Ok(Stand::Fenced)
        }
        Some(left) => Ok(Stand::Counts(alone, left)),
    }
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

/// Writes down that the pods of this machine end now.
fn mark_down(host: &Host, alone: Alone) -> io::Result<()> {
    let mut mark = File::create(host.path(&mark()))?;
    let text = format!("alone for {} s\n", alone.time().as_secs());
    mark.write_all(text.as_bytes())?;
    mark.sync_all()
}

/// Ends all pods by a restart that waits for none of them. Where it fails or hangs, the watchdog does it.
async fn restart(alone: Alone) {
    tracing::error!(
        alone_s = alone.time().as_secs(),
        "this machine alone is cut off: it restarts, so that its pods end"
    );
    match command::run(&["systemctl", "reboot", "--force"], None).await {
        Ok(said) if said.status.success() => {}
        Ok(said) => tracing::error!(said = said.stderr.trim(), "the machine does not restart"),
        Err(error) => {
            tracing::error!(error = %ErrorChain(&error), "the machine does not restart");
        }
    }
}
