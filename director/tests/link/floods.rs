//! Floods of hostile peers leave nothing behind: after four times as many of them a director holds as much memory as
//! after the first ones, and a machine beside them has not noticed. Of ten thousand hellos that come at once and go no
//! further, each is counted once, few are logged, and the memory and places that they take are bounded.
//!
//! The director is a process of its own, this executable again, whose allocator counts; it is asked over a socket in
//! a directory that both know.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use windlass_common::id::{Digest, DirectorId};
use windlass_common::limits::{
    FRAME_BYTES_MAX, HANDSHAKES_BYTES_MAX, HANDSHAKES_MAX, HANDSHAKES_WAITING_MAX, KNOCK_AGAIN,
    LOG_INTERVAL, LOG_LINES_PER_REASON, STRANGERS_MAX,
};
use windlass_common::pki::{MachineIdentity, PrivateKey};
use windlass_common::report::Report;
use windlass_common::secret::{Secret, SecretBytes};
use windlass_common::transport::Close;
use windlass_common::wire::frame;
use windlass_common::wire::message::{ArtifactRequest, Body};
use windlass_director::gateway::Reason;
use windlass_director::pki::DirectorCa;

use crate::certificates::{agent, connect, fate};
use crate::half_open::HalfOpen;
use crate::hellos::Hellos;
use crate::hostile::{closed, garbage, greeted, header};
use crate::log::Log;
use crate::tokens::enroll;
use crate::world::{
    Director, Machine, Neighbour, PATIENCE, director_id, identity, wait_for, wait_long,
};

/// Peers of the first flood; the second has four times as many.
const FEW: usize = 24;
/// Datagrams of one peer of the flood that is made of them alone.
const DATAGRAMS_EACH: usize = 200;
/// Peers of a flood at a time.
const AT_A_TIME: usize = 8;
/// Floods that are tried at a time: some of them wait for the director's patience.
const AT_ONCE: usize = 3;
/// Looks at a director that rests. Between two of them its neighbour's heart beats, 100 ms: all together
/// twice as long as QUIC keeps a connection that has ended, 0.9 s. Where a busy host takes longer, what was
/// held after the first flood is taken for more than it is, which hides what is left and finds nothing that is not.
const LOOKS: usize = 20;
/// What may be held in addition after the second flood, of 96 peers: what two handshakes cost (64 KiB each). Three
/// connections of them that are kept are found (46 kB each, and all that a session adds), and so is a note of 1,400
/// bytes on each peer. What is held by right is less: 14 to 57 kB were measured, of tables and queues that have grown
/// to their size, and as much after a third flood.
const MORE_BYTES_MAX: i64 = 2 * (HANDSHAKES_BYTES_MAX / STRANGERS_MAX) as i64;

/// Names the directory to the process that is the director.
const DIRECTORY: &str = "WINDLASS_TEST_FLOODED";
/// Asks whether the neighbour has noticed anything.
const UNHARMED: &str = "unharmed";
/// Where the settings of one more machine are, in that directory.
const ANOTHER: &str = "another.json";
/// Hellos of the flood that is made of them alone.
const HELLOS: usize = 10_000;
/// What may be held in addition once as many have come again and are over: a hundred bytes for each.
const AFTER_HELLOS_BYTES_MAX: i64 = 100 * HELLOS as i64;

/// The system's allocator, which counts.
struct Counting;

static HELD: AtomicI64 = AtomicI64::new(0);
/// The most that was held.
static PEAK: AtomicI64 = AtomicI64::new(0);

fn count(bytes: usize, sign: i64) {
    let change = sign * bytes as i64;
    let held = HELD.fetch_add(change, Ordering::Relaxed) + change;
    PEAK.fetch_max(held, Ordering::Relaxed);
}

#[expect(unsafe_code, reason = "an allocator is unsafe to implement")]
// SAFETY: each call goes to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(layout.size(), -1);
        count(bytes, 1);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What the peers of a flood do.
#[derive(Debug, Clone, Copy)]
enum Flood {
    GarbageDatagrams,
    HalfOpenHandshakes,
    GuessedTokens,
    NoCertificate,
    ForeignCertificate,
    OversizedFrames,
    TruncatedFrames,
    SlowWriters,
    SlowReaders,
}

const FLOODS: &[Flood] = &[
    Flood::HalfOpenHandshakes,
    Flood::GarbageDatagrams,
    Flood::GuessedTokens,
    Flood::NoCertificate,
    Flood::ForeignCertificate,
    Flood::OversizedFrames,
    Flood::TruncatedFrames,
    Flood::SlowWriters,
    Flood::SlowReaders,
];

/// An artifact that takes more than the windows of QUIC.
fn artifact() -> Vec<u8> {
    vec![7; 4 << 20]
}

/// The machines of the first flood come again in the second, so that what a director remembers of a machine, and
/// forgets as late as it may, is there already.
fn hostile(number: usize) -> MachineIdentity {
    identity(&format!("hostile-{}", number % FEW), 1)
}

fn run(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(future);
}

#[test]
fn floods_leave_no_memory_behind() {
    const TEST: &str = "floods::floods_leave_no_memory_behind";
    if let Some(dir) = std::env::var_os(DIRECTORY) {
        // What is logged would be held too.
        return run(be_flooded(Path::new(&dir), &Log::default()));
    }
    let floods = std::sync::Mutex::new(FLOODS.iter());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(kind) = { floods.lock().unwrap().next() } {
                    run(flooded(TEST, *kind));
                }
            });
        }
    });
}

#[test]
fn ten_thousand_hellos_at_once_find_a_bound_and_keep_nobody_out() {
    const TEST: &str = "floods::ten_thousand_hellos_at_once_find_a_bound_and_keep_nobody_out";
    if let Some(dir) = std::env::var_os(DIRECTORY) {
        let (log, _logging) = Log::of_this_thread();
        return run(be_flooded(Path::new(&dir), &log));
    }
    // The other machine runs while a thread waits for the director's process.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.unwrap().block_on(hellos(TEST));
}

/// What the director's process says of itself.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Seen {
    held: i64,
    /// The most that was held since it was asked before.
    peak: i64,
    handshakes: usize,
    waiting: usize,
    sessions: usize,
    /// Handshakes that did not come to their end in time, or gave way, and first packets that were turned away.
    full: u64,
    timed_out: u64,
    /// Refusals for any other reason.
    others: u64,
    /// Lines about those two, and how many of them are in a line with others.
    lines: u64,
    further: u64,
    /// Everything in its log.
    all_lines: u64,
}

/// The reasons for which a hello that goes no further is refused.
const GOES_NO_FURTHER: [Reason; 2] = [Reason::HandshakesFull, Reason::HandshakeTimeout];

impl Seen {
    fn of(director: &Director, log: &Log) -> Seen {
        let counters = director.gateway().counters();
        let [full, timed_out] = GOES_NO_FURTHER.map(|reason| counters.refused(reason));
        let held = HELD.load(Ordering::Relaxed);
        Seen {
            held,
            peak: PEAK.swap(held, Ordering::Relaxed),
            handshakes: counters.handshakes,
            waiting: counters.waiting,
            sessions: counters.sessions,
            full,
            timed_out,
            others: director.refused_but_for(None) - full - timed_out,
            lines: GOES_NO_FURTHER
                .map(|reason| log.refusals(reason))
                .iter()
                .sum(),
            further: GOES_NO_FURTHER
                .map(|reason| log.further_refusals(reason))
                .iter()
                .sum(),
            all_lines: log.lines(&[]),
        }
    }

    fn goes_no_further(&self) -> u64 {
        self.full + self.timed_out
    }

    fn served_another(&self) -> bool {
        self.sessions == 2
    }

    /// Whether no peer but the neighbour is there.
    fn rests(&self) -> bool {
        self.handshakes + self.waiting == 0 && self.sessions == 1
    }
}

/// The director's process: answers each line with what it has come to, until there is nobody who asks.
async fn be_flooded(dir: &Path, log: &Log) {
    let director = Director::start().await;
    for number in 0..FEW {
        director.records.make_current(&hostile(number));
    }
    let file = dir.join("artifact");
    std::fs::write(&file, artifact()).unwrap();
    let digest = Digest::of(&artifact());
    director
        .records
        .artifacts
        .lock()
        .unwrap()
        .insert(digest, file);
    let neighbour = Neighbour::boot(&director, &dir.join("neighbour")).await;
    let another = serde_json::to_vec(&director.settings("another", 1)).unwrap();
    std::fs::write(dir.join(ANOTHER), another).unwrap();
    std::fs::write(dir.join("ca"), director.ca.to_pem().expose()).unwrap();
    let mut said = UnixStream::connect(dir.join("ask")).unwrap();
    writeln!(said, "{}", director.address).unwrap();
    let mut heard = BufReader::new(said.try_clone().unwrap());
    loop {
        let asked = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            heard.read_line(&mut line).unwrap();
            (line, heard)
        });
        let line;
        (line, heard) = asked.await.unwrap();
        match line.trim() {
            "" => return,
            // A step stays in the machine's journal, which is in this process too.
            UNHARMED => neighbour.unharmed(&director).await,
            _ => drop(neighbour.beats(&director).await),
        }
        let seen = serde_json::to_string(&Seen::of(&director, log)).unwrap();
        writeln!(said, "{seen}").unwrap();
    }
}

/// The director's process, as its peers see it.
struct Flooded {
    director: Director,
    heard: BufReader<UnixStream>,
    process: Child,
}

impl Drop for Flooded {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Flooded {
    async fn start(test: &str, dir: &Path) -> Flooded {
        let listener = UnixListener::bind(dir.join("ask")).unwrap();
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(DIRECTORY, dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut heard = BufReader::new(stream);
        let mut address = String::new();
        heard.read_line(&mut address).unwrap();
        let text = SecretBytes::new(std::fs::read(dir.join("ca")).unwrap());
        let ca = DirectorCa::from_pem(director_id(), &text, Timestamp::now()).unwrap();
        let director = Director::elsewhere(address.trim().parse().unwrap(), ca).await;
        Flooded {
            director,
            heard,
            process,
        }
    }

    /// The bytes it holds, if no peer but the neighbour is there.
    fn held(&mut self) -> Option<i64> {
        let seen = self.ask("held");
        seen.rests().then_some(seen.held)
    }

    fn ask(&mut self, what: &str) -> Seen {
        writeln!(self.heard.get_mut(), "{what}").unwrap();
        let mut line = String::new();
        self.heard.read_line(&mut line).unwrap();
        serde_json::from_str(&line)
            .expect("the director's process has ended: what it said is above")
    }
}

/// The least that the director holds while no peer but the neighbour is there.
async fn rested(flooded: &mut Flooded) -> i64 {
    let mut least = i64::MAX;
    for _ in 0..LOOKS {
        let rests = wait_for("the director to rest", || flooded.held());
        least = rests.await.min(least);
    }
    least
}

async fn hellos(test: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut flooded = Flooded::start(test, dir.path()).await;
    // Tables and queues are as large after as many as they become.
    Hellos::new(&flooded.director).say(HELLOS);
    let after_few = rested(&mut flooded).await;
    let before = flooded.ask(UNHARMED);
    let began = Instant::now();
    let mut hellos = Hellos::new(&flooded.director);
    let (half, half_is_said) = std::sync::mpsc::channel();
    let saying = thread::spawn(move || {
        hellos.say(HELLOS / 2);
        // Nobody hears it where the test has failed.
        let _ = half.send(());
        hellos.say(HELLOS - HELLOS / 2);
        hellos
    });
    let (mut peak, mut looks) = (0, 0);
    let mut look = |flooded: &mut Flooded| {
        let seen = flooded.ask(UNHARMED);
        peak = seen.peak.max(peak);
        looks += 1;
        assert!(seen.handshakes <= HANDSHAKES_MAX, "{seen:?}");
        assert!(seen.waiting <= HANDSHAKES_WAITING_MAX, "{seen:?}");
        seen
    };
    let comes = wait_for("half of the hellos", || {
        look(&mut flooded);
        half_is_said.try_recv().ok().map(|()| Instant::now())
    })
    .await;
    let settings = std::fs::read(dir.path().join(ANOTHER)).unwrap();
    let settings = serde_json::from_slice(&settings).unwrap();
    let another = Machine::boot(settings, &dir.path().join("another"));
    wait_for("another machine to be served", || {
        look(&mut flooded).served_another().then_some(())
    })
    .await;
    let came = comes.elapsed();
    another.stop().await;
    let open = tokio::task::spawn_blocking(|| saying.join().unwrap())
        .await
        .unwrap();
    // Each is over, and has a line or is counted in that of others.
    let mut over = Seen::default();
    wait_long("the last hello to be over", || {
        over = look(&mut flooded);
        (over.rests() && over.lines + over.further == over.goes_no_further()).then_some(())
    })
    .await;
    drop(open);
    let intervals = began.elapsed().as_secs() / LOG_INTERVAL.as_secs() + 1;
    let refused = over.goes_no_further() - before.goes_no_further();
    // A machine that is turned away as well knocks again.
    let knocks = (came.as_millis() / KNOCK_AGAIN.as_millis()) as u64 + 2;
    let once = HELLOS as u64..=HELLOS as u64 + knocks;
    assert!(once.contains(&refused), "{refused}: {before:?}, {over:?}");
    assert_eq!(over.others, 0, "{over:?}");
    // For each of two reasons, and in the interval that had begun.
    let lines_max = 2 * u64::from(LOG_LINES_PER_REASON) * (intervals + 1);
    assert!(
        over.lines - before.lines <= lines_max,
        "{before:?}, {over:?}"
    );
    // Summaries, and what is said of the machine that came.
    let all_max = lines_max + 2 * (intervals + 1) + 10;
    let all = over.all_lines - before.all_lines;
    assert!(all <= all_max, "{before:?}, {over:?}");
    assert!(peak - after_few <= HANDSHAKES_BYTES_MAX as i64, "{peak}");
    let held = rested(&mut flooded).await;
    eprintln!(
        "  {looks} looks at the neighbour, another machine came in {came:?}; {} bytes more at most, {} for good",
        peak - after_few,
        held - after_few
    );
    assert!(
        held <= after_few + AFTER_HELLOS_BYTES_MAX,
        "{after_few} bytes before {HELLOS} hellos, {held} after them"
    );
}

async fn flooded(test: &str, kind: Flood) {
    let dir = tempfile::tempdir().unwrap();
    let mut flooded = Flooded::start(test, dir.path()).await;
    kind.flood(&flooded.director, 0..FEW).await;
    flooded.ask(UNHARMED);
    let after_few = rested(&mut flooded).await;
    kind.flood(&flooded.director, FEW..5 * FEW).await;
    flooded.ask(UNHARMED);
    let mut held = 0;
    let less = wait_for("what is left of the flood to go", || {
        held = flooded.held()?;
        (held <= after_few + MORE_BYTES_MAX).then_some(())
    });
    // Before the wait itself ends, so that the figures are told.
    let less = tokio::time::timeout(PATIENCE - Duration::from_secs(1), less).await;
    assert!(
        less.is_ok(),
        "{kind:?}: {after_few} bytes after {FEW} peers, {held} after {} more",
        4 * FEW
    );
}

impl Flood {
    async fn flood(self, director: &Director, peers: std::ops::Range<usize>) {
        if let Flood::HalfOpenHandshakes = self {
            let mut strangers = HalfOpen::new(director);
            for _ in peers {
                strangers.begin().await;
                // So that its packet leaves.
                tokio::task::yield_now().await;
            }
            strangers.answered().await;
            return;
        }
        let elsewhere = DirectorCa::create(DirectorId::new("d2").unwrap(), Timestamp::now());
        let elsewhere = &elsewhere.unwrap();
        let mut peers = peers.peekable();
        while peers.peek().is_some() {
            let some = peers.by_ref().take(AT_A_TIME);
            let all = some.map(|number| self.one(director, elsewhere, number));
            futures_util::future::join_all(all).await;
        }
    }

    async fn one(self, director: &Director, elsewhere: &DirectorCa, number: usize) {
        let me = hostile(number);
        let session = || greeted(director, me.machine.as_str());
        match self {
            Flood::HalfOpenHandshakes => {}
            Flood::GarbageDatagrams => {
                let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
                for seed in 0..DATAGRAMS_EACH {
                    let bytes = 1 + (seed * 37) % 1_400;
                    let datagram = garbage((number * DATAGRAMS_EACH + seed) as u64, bytes);
                    socket.send_to(&datagram, director.address).await.unwrap();
                }
            }
            Flood::GuessedTokens => {
                let request = PrivateKey::generate().unwrap().request().unwrap();
                let guess = Secret::new(format!("{number:064x}"));
                let answer = enroll(director, &me, &guess, request).await;
                assert!(answer.is_err(), "{answer:?}");
            }
            Flood::NoCertificate => {
                fate(connect(director, None).await).await;
            }
            Flood::ForeignCertificate => {
                let foreign = MachineIdentity {
                    director: elsewhere.director().clone(),
                    ..me
                };
                let credentials = agent(elsewhere, &foreign, Timestamp::now());
                fate(connect(director, Some(credentials)).await).await;
            }
            Flood::OversizedFrames => {
                let (connection, mut send, _recv) = session().await;
                let long = header(Report::KIND, FRAME_BYTES_MAX as u32 + 1);
                send.write_all(&long).await.unwrap();
                closed(&connection).await;
            }
            Flood::TruncatedFrames => {
                let (connection, mut send, _recv) = session().await;
                let cut = [header(Report::KIND, 1 << 19), vec![0; 100_000]].concat();
                send.write_all(&cut).await.unwrap();
                send.finish().unwrap();
                closed(&connection).await;
            }
            Flood::SlowWriters => {
                // A long report and requests for artifacts, none of which ends.
                let (connection, mut send, _recv) = session().await;
                let begun = [header(Report::KIND, 1 << 19), vec![0; 100_000]].concat();
                send.write_all(&begun).await.unwrap();
                let mut streams = Vec::new();
                for _ in 0..4 {
                    let mut stream = connection.open_bi().await.unwrap();
                    let begun = [header(ArtifactRequest::KIND, 1_000), vec![0; 500]].concat();
                    stream.0.write_all(&begun).await.unwrap();
                    streams.push(stream);
                }
                Close::Done.close(&connection);
            }
            Flood::SlowReaders => {
                // The first bytes of an artifact, and no more.
                let (connection, _send, _recv) = session().await;
                let (mut send, mut recv) = connection.open_bi().await.unwrap();
                let request = ArtifactRequest {
                    digest: Digest::of(&artifact()),
                    offset: 0,
                };
                frame::write(&mut send, &request).await.unwrap();
                let mut first = [0; 1_000];
                recv.read_exact(&mut first).await.unwrap();
                Close::Done.close(&connection);
            }
        }
    }
}
