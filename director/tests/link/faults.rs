//! Faults of the path, by a relay in user space between real agents and a real gateway: what is lost,
//! late, out of order, twice, too large or cut off in one direction costs time and nothing else.
//!
//! Each fault goes on for the whole of its test; which datagrams it hits is told by a seed.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::UdpSocket;
use tokio::task::{JoinHandle, JoinSet};

use windlass_common::clock::Clock;
use windlass_common::limits::{AGENT_CERTIFICATE_LIFE, HEARTBEAT_INTERVAL};
use windlass_director::gateway::{Event, Total};

use crate::world::{Director, Machine, runs_once, wait_for, wait_long};

/// What a path does to the datagrams of one direction.
#[derive(Debug, Clone, Copy, Default)]
struct Fault {
    /// Of a hundred, how many are lost.
    lost: u64,
    /// Of a hundred, how many arrive twice.
    twice: u64,
    /// Each is late by up to this, so that they overtake one another.
    jitter: Duration,
    /// Longer ones are lost; payload bytes.
    largest: Option<usize>,
}

impl Fault {
    const NONE: Fault = Fault {
        lost: 0,
        twice: 0,
        jitter: Duration::ZERO,
        largest: None,
    };
    const CUT: Fault = Fault {
        lost: 100,
        ..Fault::NONE
    };
}

/// Both directions, and the random numbers.
#[derive(Debug)]
struct Path {
    up: Fault,
    down: Fault,
    state: u64,
}

impl Path {
    /// When the copies of a datagram arrive.
    fn arrivals(&mut self, fault: Fault, bytes: usize) -> Vec<Duration> {
        if fault.largest.is_some_and(|largest| bytes > largest) {
            return Vec::new();
        }
        let copies = match self.random() % 100 {
            chance if chance < fault.lost => 0,
            chance if chance < fault.lost + fault.twice => 2,
            _ => 1,
        };
        let jitter_ms = fault.jitter.as_millis() as u64;
        (0..copies)
            .map(|_| Duration::from_millis(self.random() % (jitter_ms + 1)))
            .collect()
    }

    /// Xorshift.
    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state >> 16
    }
}

/// A relay for one machine.
struct Relay {
    address: SocketAddr,
    path: Arc<Mutex<Path>>,
    outward: Arc<Mutex<Arc<UdpSocket>>>,
    agent: Arc<Mutex<Option<SocketAddr>>>,
    inward: Arc<UdpSocket>,
    tasks: Arc<Mutex<JoinSet<()>>>,
    up: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.up.abort();
        self.tasks.lock().unwrap().abort_all();
    }
}

impl Relay {
    async fn start(director: SocketAddr, seed: u64) -> Relay {
        let inward = Arc::new(socket(Ipv4Addr::LOCALHOST).await);
        let outward = Arc::new(Mutex::new(Arc::new(socket(Ipv4Addr::LOCALHOST).await)));
        let path = Arc::new(Mutex::new(Path {
            up: Fault::NONE,
            down: Fault::NONE,
            state: seed | 1,
        }));
        let agent = Arc::new(Mutex::new(None));
        let tasks = Arc::new(Mutex::new(JoinSet::new()));
        let up = {
            let (inward, outward) = (Arc::clone(&inward), Arc::clone(&outward));
            let (path, agent) = (Arc::clone(&path), Arc::clone(&agent));
            tokio::spawn(async move {
                let mut buffer = vec![0; 65_536];
                while let Ok((bytes, from)) = inward.recv_from(&mut buffer).await {
                    *agent.lock().unwrap() = Some(from);
                    let arrivals = {
                        let mut path = path.lock().unwrap();
                        let fault = path.up;
                        path.arrivals(fault, bytes)
                    };
                    let outward = Arc::clone(&outward.lock().unwrap());
                    for late in arrivals {
                        deliver(&outward, buffer[..bytes].to_vec(), director, late);
                    }
                }
            })
        };
        let relay = Relay {
            address: inward.local_addr().unwrap(),
            path,
            outward,
            agent,
            inward,
            tasks,
            up,
        };
        relay.listen_outward();
        relay
    }

    /// Carries what comes back on the outward socket of now.
    fn listen_outward(&self) {
        let outward = Arc::clone(&self.outward.lock().unwrap());
        let (inward, path) = (Arc::clone(&self.inward), Arc::clone(&self.path));
        let agent = Arc::clone(&self.agent);
        self.tasks.lock().unwrap().spawn(async move {
            let mut buffer = vec![0; 65_536];
            while let Ok((bytes, _)) = outward.recv_from(&mut buffer).await {
                let Some(agent) = *agent.lock().unwrap() else {
                    continue;
                };
                let arrivals = {
                    let mut path = path.lock().unwrap();
                    let fault = path.down;
                    path.arrivals(fault, bytes)
                };
                for late in arrivals {
                    deliver(&inward, buffer[..bytes].to_vec(), agent, late);
                }
            }
        });
    }

    fn set(&self, up: Fault, down: Fault) {
        let mut path = self.path.lock().unwrap();
        (path.up, path.down) = (up, down);
    }

    /// As when a NAT forgets a mapping, or a machine moves: packets come from elsewhere from now on,
    /// and what is sent to the old place is lost.
    async fn move_outward(&self, from: Ipv4Addr) {
        let fresh = Arc::new(socket(from).await);
        self.tasks.lock().unwrap().abort_all();
        *self.outward.lock().unwrap() = fresh;
        self.listen_outward();
    }
}

async fn socket(address: Ipv4Addr) -> UdpSocket {
    UdpSocket::bind((address, 0)).await.unwrap()
}

fn deliver(socket: &Arc<UdpSocket>, bytes: Vec<u8>, to: SocketAddr, late: Duration) {
    let socket = Arc::clone(socket);
    tokio::spawn(async move {
        if !late.is_zero() {
            tokio::time::sleep(late).await;
        }
        // A receiver that is gone is one more loss.
        let _ = socket.send_to(&bytes, to).await;
    });
}

/// A machine behind a relay.
struct Far {
    clock: Clock,
    director: Director,
    relay: Relay,
    machine: Machine,
    _dir: tempfile::TempDir,
}

impl Far {
    /// Enrolls and connects over a path that is in order, unless `fault` says so from the start.
    async fn start(seed: u64, up: Fault, down: Fault) -> Far {
        let clock = Clock::by_hand(Timestamp::now());
        let director = Director::start_with(|config| config.clock = clock.clone()).await;
        let dir = tempfile::tempdir().unwrap();
        let relay = Relay::start(director.address, seed).await;
        relay.set(up, down);
        let mut settings = director.settings("demo-w-0", 1);
        settings.directors = vec![relay.address];
        let machine = Machine::boot_at(&clock, settings, dir.path());
        wait_long("the connection", || {
            (!director.gateway().connected().is_empty()).then_some(())
        })
        .await;
        Far {
            clock,
            director,
            relay,
            machine,
            _dir: dir,
        }
    }

    async fn step(&self, id: &str) {
        runs_once(&self.director, &self.machine, id, 20).await;
    }

    /// All that a link is for.
    async fn works(&self, what: &str) {
        for number in 0..5 {
            self.step(&format!("{what}/{number}")).await;
        }
        let count = |total| self.director.gateway().counters().total(total);
        let before = count(Total::Heartbeats);
        wait_long("heartbeats", || {
            (count(Total::Heartbeats) > before + 1).then_some(())
        })
        .await;
        let before = count(Total::Renewals);
        self.clock.advance(AGENT_CERTIFICATE_LIFE * 3 / 4);
        wait_long("a renewal", || {
            (count(Total::Renewals) > before).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_loses_delays_reorders_and_doubles_costs_time_alone() {
    let lossy = Fault {
        lost: 30,
        ..Fault::NONE
    };
    let late = Fault {
        jitter: Duration::from_millis(500),
        ..Fault::NONE
    };
    let twice = Fault {
        twice: 50,
        jitter: Duration::from_millis(20),
        ..Fault::NONE
    };
    // A QUIC datagram of at most 1252 bytes fits an IPv4 packet of 1280.
    let narrow = Fault {
        largest: Some(1280 - 28),
        ..Fault::NONE
    };
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("30 % loss",               lossy),
        ("jitter of 500 ms",        late),
        ("doubled and out of order", twice),
        ("MTU 1280",                narrow),
    ];
    for (number, (name, fault)) in cases.into_iter().enumerate() {
        let far = Far::start(number as u64 + 11, fault, fault).await;
        far.works(name).await;
        far.machine.stop().await;
    }
}

/// Heartbeats that each machine gets through a path that loses a third.
const BEATS: u64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_loses_a_third_makes_no_machine_suspect() {
    let lossy = Fault {
        lost: 30,
        ..Fault::NONE
    };
    // As by default: the path and this test get as much time as on real machines.
    let beat_ms = HEARTBEAT_INTERVAL.as_millis() as u32;
    let director = Director::start_with(|config| config.tune.heartbeat_interval_ms = beat_ms).await;
    let dir = tempfile::tempdir().unwrap();
    let mut events = director.gateway().subscribe();
    let mut machines = Vec::new();
    for number in 0..6 {
        let name = format!("demo-w-{number}");
        let relay = Relay::start(director.address, number + 101).await;
        let mut settings = director.settings(&name, 1);
        settings.directors = vec![relay.address];
        let machine = Machine::boot(settings, &dir.path().join(&name));
        director.connected(&machine).await;
        relay.set(lossy, lossy);
        machines.push((machine, relay));
    }
    let beat = || {
        let views = director.gateway().connected();
        let beats = views
            .values()
            .filter_map(|view| Some(view.last_heartbeat?.1.sequence));
        beats
            .min()
            .filter(|least| views.len() == 6 && *least >= BEATS)
    };
    wait_long("heartbeats", beat).await;
    while let Ok(event) = events.try_recv() {
        let healthy = match &event {
            Event::Connected { .. } | Event::ReportChanged { .. } | Event::Late { .. } => true,
            Event::Disconnected { .. } | Event::Suspected { .. } | Event::Recovered { .. } => false,
        };
        assert!(healthy, "{event:?}");
    }
    // What is cut off is suspect still.
    let (machine, relay) = &machines[0];
    relay.set(Fault::CUT, Fault::CUT);
    loop {
        if let Event::Suspected { identity } = events.recv().await.unwrap()
            && identity.machine == machine.name
        {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_cut_in_one_direction_ends_the_session_and_it_comes_back() {
    for (name, up, down) in [
        ("nothing goes up", Fault::CUT, Fault::NONE),
        ("nothing comes down", Fault::NONE, Fault::CUT),
    ] {
        let far = Far::start(7, Fault::NONE, Fault::NONE).await;
        far.step(&format!("{name}/before")).await;
        far.relay.set(up, down);
        wait_long("the end of the session", || {
            far.director.gateway().connected().is_empty().then_some(())
        })
        .await;
        far.relay.set(Fault::NONE, Fault::NONE);
        wait_long("the session to come back", || {
            (!far.director.gateway().connected().is_empty()).then_some(())
        })
        .await;
        far.works(name).await;
        far.machine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_address_changes_keeps_its_connection() {
    let far = Far::start(3, Fault::NONE, Fault::NONE).await;
    far.step("moved/before").await;
    let view = || {
        far.director
            .gateway()
            .connected()
            .remove(&far.machine.name)
            .unwrap()
    };
    let (since, mut address) = (view().since, view().address);
    // Another port, then another address.
    for (number, from) in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 8)]
        .into_iter()
        .enumerate()
    {
        far.relay.move_outward(from).await;
        wait_for("the new address", || {
            (view().address != address).then_some(())
        })
        .await;
        address = view().address;
        assert_eq!(address.ip(), std::net::IpAddr::V4(from));
        far.step(&format!("moved/{number}")).await;
        assert_eq!(view().since, since, "the connection was lost");
    }
    let sessions = far.director.gateway().counters().total(Total::Sessions);
    assert_eq!(sessions, 1);
}
