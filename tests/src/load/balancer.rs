//! A load balancer in front of the nodes, as one stands outside of a cluster: it asks each kube-proxy
//! whether its node takes new connections, and leaves those that are open alone.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::http::{Connection, Method, Target};

/// Pause between two looks at a node's health.
const LOOK: Duration = Duration::from_millis(250);
/// A node gets connections after so many good answers in a row, two seconds: a kube-proxy that has just started
/// says that it is healthy before it has written its first rules, which is why no load balancer trusts one look.
const LOOKS_TO_TRUST: u32 = 8;
/// How long a node may take to say how it is, and to take a connection.
const ANSWER: Duration = Duration::from_secs(2);

/// One node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// Where its NodePort is.
    pub address: SocketAddr,
    /// Where its kube-proxy says how it is.
    pub health: SocketAddr,
}

/// A running load balancer; ends when dropped.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// All nodes it knows.
    backends: Mutex<Vec<Backend>>,
    /// Good answers of each node in a row.
    trust: Mutex<BTreeMap<SocketAddr, u32>>,
    /// Nodes that take new connections.
    open: Mutex<Vec<SocketAddr>>,
    turn: AtomicUsize,
}

impl Balancer {
    /// Listens on loopback and sends connections to the nodes that want them, in turns.
    pub fn start(backends: &[Backend]) -> Result<Balancer> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        *lock(&shared.backends) = backends.to_vec();
        shared.look();
        let looker = Arc::clone(&shared);
        let acceptor = Arc::clone(&shared);
        let threads = vec![
            std::thread::spawn(move || {
                while !looker.stop.load(Ordering::Relaxed) {
                    looker.look();
                    std::thread::sleep(LOOK);
                }
            }),
            std::thread::spawn(move || acceptor.accept(&listener)),
        ];
        Ok(Balancer {
            address,
            shared,
            threads,
        })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Learns which nodes there are now, as a cloud's controller tells it.
    pub fn learn(&self, backends: Vec<Backend>) {
        *lock(&self.shared.backends) = backends;
    }

    /// Nodes that take new connections now.
    pub fn open(&self) -> Vec<SocketAddr> {
        lock(&self.shared.open).clone()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread; fails only if it has ended.
        let _ = TcpStream::connect(self.address);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn look(&self) {
        let backends = lock(&self.backends).clone();
        let mut trust = lock(&self.trust);
        let mut open = Vec::new();
        for Backend { address, health } in backends {
            let looks = trust.entry(address).or_default();
            *looks = if healthy(health) { *looks + 1 } else { 0 };
            if *looks >= LOOKS_TO_TRUST {
                open.push(address);
            }
        }
        *lock(&self.open) = open;
    }

    fn accept(&self, listener: &TcpListener) {
        while let Ok((client, _)) = listener.accept() {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let Some(node) = self.next() else {
                continue; // closed at once: there is nobody to serve it
            };
            std::thread::spawn(move || {
                if let Err(error) = relay(&client, node) {
                    eprintln!("load balancer: {node}: {error}");
                }
            });
        }
    }

    fn next(&self) -> Option<SocketAddr> {
        let open = lock(&self.open);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        open.get(turn % open.len().max(1)).copied()
    }
}

fn healthy(health: SocketAddr) -> bool {
    let target = Target {
        address: health,
        path: "/healthz".to_owned(),
        secure: None,
        method: Method::Get,
    };
    let deadline = Instant::now() + ANSWER;
    Connection::open(&target, deadline)
        .and_then(|mut connection| connection.exchange(&target, false, deadline))
        .is_ok()
}

/// Carries bytes both ways until both sides are done.
fn relay(client: &TcpStream, node: SocketAddr) -> io::Result<()> {
    let server = TcpStream::connect_timeout(&node, ANSWER)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let up = {
        let (client, server) = (client.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || carry(&client, &server))
    };
    carry(&server, client);
    // One that panicked has said so.
    let _ = up.join();
    Ok(())
}

fn carry(mut from: &TcpStream, mut to: &TcpStream) {
    // Either end may go at any time; the other is told by the shutdown.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::{Connections, Load};
    use super::*;

    /// A node: answers its name, and says how it is.
    struct Node {
        backend: Backend,
        healthy: Arc<AtomicBool>,
        served: Arc<AtomicUsize>,
    }

    fn serve(answer: impl Fn() -> &'static str + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut request = [0; 1024];
                while matches!(stream.read(&mut request), Ok(1..)) {
                    if stream.write_all(answer().as_bytes()).is_err() {
                        break;
                    }
                }
            }
        });
        address
    }

    fn node() -> Node {
        let healthy = Arc::new(AtomicBool::new(true));
        let served = Arc::new(AtomicUsize::new(0));
        let (well, count) = (Arc::clone(&healthy), Arc::clone(&served));
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let backend = Backend {
            health: serve(move || {
                if well.load(Ordering::Relaxed) {
                    ok
                } else {
                    "HTTP/1.1 503 Gone\r\nContent-Length: 0\r\n\r\n"
                }
            }),
            address: serve(move || {
                count.fetch_add(1, Ordering::Relaxed);
                ok
            }),
        };
        Node {
            backend,
            healthy,
            served,
        }
    }

    fn until(what: &str, mut done: impl FnMut() -> bool) {
        let limit = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < limit, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_node_that_says_no_gets_no_new_connections_and_nothing_fails() {
        let (first, second) = (node(), node());
        let balancer = Balancer::start(&[first.backend, second.backend]).unwrap();
        until("both are trusted", || balancer.open().len() == 2);
        let target = Target {
            address: balancer.address(),
            path: "/".to_owned(),
            secure: None,
            method: Method::Get,
        };
        let new = Load::start("new", &target, Connections::New, 100, 2);
        let age = Duration::from_millis(100);
        let kept = Load::start("kept", &target, Connections::Kept(age), 100, 2);
        let served = |node: &Node| node.served.load(Ordering::Relaxed);
        until("both serve", || served(&first) > 5 && served(&second) > 5);
        first.healthy.store(false, Ordering::Relaxed);
        until("the first is out", || {
            balancer.open() == [second.backend.address]
        });
        // Connections that were kept run out within their age.
        let settled = served(&second) + 50;
        until("the second serves alone", || served(&second) > settled);
        let before = served(&first);
        let more = served(&second) + 50;
        until("the second still serves", || served(&second) > more);
        assert_eq!(served(&first), before);
        new.stop().unwrap().flawless().unwrap();
        kept.stop().unwrap().flawless().unwrap();
    }

    #[test]
    fn a_server_that_breaks_off_is_counted() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let target = Target {
            address: listener.local_addr().unwrap(),
            path: "/".to_owned(),
            secure: None,
            method: Method::Get,
        };
        let (heard, hears) = std::sync::mpsc::channel();
        std::thread::spawn(
            move || {
                while listener.accept().is_ok() && heard.send(()).is_ok() {}
            },
        );
        let load = Load::start("broken", &target, Connections::New, 50, 1);
        for _ in 0..3 {
            hears.recv_timeout(Duration::from_secs(20)).unwrap();
        }
        let tally = load.stop().unwrap();
        assert!(tally.failed > 0);
        assert_eq!(tally.failed, tally.sent);
        tally.flawless().unwrap_err();
    }
}
