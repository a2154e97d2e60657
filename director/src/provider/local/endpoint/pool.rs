//! The backends of an endpoint, and which of them accept connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::note;
use super::ready::Look;

/// How long a backend may take to accept a connection; it is one hop away on the same bridge.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How often each backend is tried.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// So many failures in a row make a backend unhealthy for its open connections: one may be a full
/// backlog. A new connection passes it over after one.
const FAILURES_TO_GIVE_UP: u32 = 3;
/// The same for a backend that left the spec: an API server that ends stops accepting while it finishes its
/// requests, for which its unit gives it 10 s.
const FAILURES_TO_GIVE_UP_LEFT: u32 = 20;

/// How long connections to a backend that left the spec may go on: an API server that is told to end lets
/// requests finish and tells its clients to come back, which ends their connections well before.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// What is known about a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Health {
    /// Failures since the last success.
    failures: u32,
    /// Whether it said at the last look that it is ready; taken for granted before the first.
    ready: bool,
    /// When it left the spec.
    left: Option<Instant>,
}

/// One API server.
#[derive(Debug)]
pub(super) struct Backend {
    address: SocketAddr,
    health: watch::Sender<Health>,
}

impl Health {
    fn dead(&self) -> bool {
        let most = match self.left {
            None => FAILURES_TO_GIVE_UP,
            Some(_) => FAILURES_TO_GIVE_UP_LEFT,
        };
        self.failures >= most
    }
}

impl Backend {
    fn new(address: SocketAddr) -> Backend {
        let health = watch::Sender::new(Health {
            failures: 0,
            ready: true,
            left: None,
        });
        Backend { address, health }
    }

    /// The lower, the sooner it gets connections: one that is ready, one that accepts them, one that does not.
    fn rank(&self) -> u8 {
        let health = self.health.borrow();
        match (health.failures, health.ready) {
            (0, true) => 0,
            (0, false) => 1,
            _ => 2,
        }
    }

    fn succeeded(&self) {
        self.health.send_if_modified(|health| {
            let was_down = health.failures > 0;
            health.failures = 0;
            was_down
        });
    }

    fn failed(&self) {
        self.health
            .send_modify(|health| health.failures = health.failures.saturating_add(1));
    }

    /// Ends when connections to this backend are to be closed: it does not answer any more, or it left the
    /// spec long ago.
    pub(super) async fn given_up(&self) {
        let mut health = self.health.subscribe();
        // The sender is `self`, which lives as long as these futures: no error can come.
        let dead = async |health: &mut watch::Receiver<Health>| {
            let _ = health.wait_for(Health::dead).await;
        };
        let mut leaves = health.clone();
        let drained = async {
            let left = leaves.wait_for(|h| h.left.is_some()).await;
            let since = left.ok().and_then(|h| h.left);
            sleep_until(since.unwrap_or_else(Instant::now) + DRAIN_LIMIT).await;
        };
        tokio::select! {
            () = dead(&mut health) => {}
            () = drained => {}
        }
    }

    async fn try_connect(&self) -> Option<TcpStream> {
        match timeout(CONNECT_LIMIT, TcpStream::connect(self.address)).await {
            Ok(Ok(stream)) => {
                self.succeeded();
                Some(stream)
            }
            Ok(Err(_)) | Err(_) => {
                self.failed();
                None
            }
        }
    }

    /// Tries the backend again and again until it is given up for having left.
    async fn watch(self: Arc<Backend>, look: Look) {
        let mut tick = interval(CHECK_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let left = self.health.borrow().left;
            if left.is_some_and(|left| left.elapsed() >= DRAIN_LIMIT) {
                return;
            }
            let before = self.rank();
            if let Some(stream) = self.try_connect().await {
                let ready = look.is_ready(stream, self.address).await;
                self.health.send_modify(|health| health.ready = ready);
            }
            let now = self.rank();
            if before != now {
                let state = match now {
                    0 => "is ready",
                    1 => "answers and is not ready",
                    _ => "does not answer",
                };
                note(&format!("backend {} {state}", self.address));
            }
        }
    }
}

/// The backends in use.
#[derive(Debug)]
pub(super) struct Pool {
    backends: Mutex<BTreeMap<SocketAddr, Arc<Backend>>>,
    look: Look,
    turn: AtomicUsize,
}

impl Pool {
    pub(super) fn new(look: Look) -> Pool {
        Pool {
            backends: Mutex::default(),
            look,
            turn: AtomicUsize::new(0),
        }
    }

    /// Takes over a new set: what stays is left alone, what is new is watched, the rest gets no new
    /// connections and time to end those it has.
    pub(super) fn replace(&self, addresses: &[SocketAddr]) {
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        backends.retain(|address, backend| {
            let stays = addresses.contains(address);
            if !stays {
                backend
                    .health
                    .send_modify(|health| health.left = Some(Instant::now()));
            }
            stays
        });
        for address in addresses {
            backends.entry(*address).or_insert_with(|| {
                let backend = Arc::new(Backend::new(*address));
                tokio::spawn(Arc::clone(&backend).watch(self.look.clone()));
                backend
            });
        }
    }

    /// A connection to the next backend that accepts one: those that are ready in turn, then the others.
    pub(super) async fn connect(&self) -> Option<(TcpStream, Arc<Backend>)> {
        for backend in self.candidates() {
            if let Some(stream) = backend.try_connect().await {
                return Some((stream, backend));
            }
        }
        None
    }

    fn candidates(&self) -> Vec<Arc<Backend>> {
        let backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        let mut order: Vec<Arc<Backend>> = backends.values().cloned().collect();
        drop(backends);
        if !order.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % order.len();
            order.rotate_left(turn);
        }
        order.sort_by_key(|backend| backend.rank()); // stable: turns are kept
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn connections_take_turns_and_pass_over_the_dead() {
        let (_one, first) = listener().await;
        let (_two, second) = listener().await;
        let (dead_listener, dead) = listener().await;
        drop(dead_listener);
        let pool = Pool::new(Look::new().unwrap());
        pool.replace(&[first, second, dead]);
        let mut seen = BTreeMap::new();
        for _ in 0..12 {
            let (stream, _) = pool.connect().await.unwrap();
            *seen.entry(stream.peer_addr().unwrap()).or_insert(0) += 1;
        }
        assert_eq!(seen.keys().copied().collect::<Vec<_>>(), {
            let mut both = vec![first, second];
            both.sort();
            both
        });
        assert!(seen.values().all(|n| *n >= 4), "{seen:?}");
        pool.replace(&[]);
        assert!(pool.connect().await.is_none());
    }

    #[tokio::test]
    async fn a_backend_that_dies_or_leaves_is_given_up() {
        let (one, first) = listener().await;
        let (_two, second) = listener().await;
        let pool = Pool::new(Look::new().unwrap());
        pool.replace(&[first]);
        let (_, backend) = pool.connect().await.unwrap();
        pool.replace(&[first, second]);
        let limit = Duration::from_secs(20);
        assert!(
            timeout(Duration::from_millis(1), backend.given_up())
                .await
                .is_err()
        );
        drop(one);
        timeout(limit, backend.given_up())
            .await
            .expect("given up when it stops answering");
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_left_may_stop_accepting_before_it_is_done() {
        let (one, first) = listener().await;
        let pool = Pool::new(Look::new().unwrap());
        pool.replace(&[first]);
        let (_, backend) = pool.connect().await.unwrap();
        pool.replace(&[]);
        drop(one);
        let before = Instant::now();
        backend.given_up().await;
        let after = before.elapsed();
        let refused = CHECK_INTERVAL * (FAILURES_TO_GIVE_UP_LEFT - 1);
        assert!(after >= refused && after < DRAIN_LIMIT, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_leaves_gets_time_to_end_its_connections() {
        let (_one, first) = listener().await;
        let (_two, second) = listener().await;
        let pool = Pool::new(Look::new().unwrap());
        pool.replace(&[first]);
        let (_, backend) = pool.connect().await.unwrap();
        pool.replace(&[second]);
        let (_, next) = pool.connect().await.unwrap();
        assert_eq!(next.address, second, "new connections go elsewhere");
        let before = Instant::now();
        backend.given_up().await;
        let after = before.elapsed();
        assert!(after >= DRAIN_LIMIT && after < DRAIN_LIMIT * 2, "{after:?}");
    }
}
