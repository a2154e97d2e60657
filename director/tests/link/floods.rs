//! Floods of hostile peers leave nothing behind: after four times as many of them a director holds as much memory as
//! after the first ones, and a machine beside them has not noticed.
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
use std::time::Duration;

use jiff::Timestamp;

use windlass_common::id::{Digest, DirectorId};
use windlass_common::limits::{FRAME_BYTES_MAX, HANDSHAKES_BYTES_MAX, STRANGERS_MAX};
use windlass_common::pki::{MachineIdentity, PrivateKey};
use windlass_common::report::Report;
use windlass_common::secret::{Secret, SecretBytes};
use windlass_common::transport::Close;
use windlass_common::wire::frame;
use windlass_common::wire::message::{ArtifactRequest, Body};
use windlass_director::pki::DirectorCa;

use crate::certificates::{agent, connect, fate};
use crate::half_open::HalfOpen;
use crate::hostile::{closed, garbage, greeted, header};
use crate::tokens::enroll;
use crate::world::{Director, Neighbour, PATIENCE, director_id, identity, wait_for};

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
/// What it runs.
const TEST: &str = "floods::floods_leave_no_memory_behind";

/// The system's allocator, which counts.
struct Counting;

static HELD: AtomicI64 = AtomicI64::new(0);

fn count(bytes: usize, sign: i64) {
    HELD.fetch_add(sign * bytes as i64, Ordering::Relaxed);
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

#[test]
fn floods_leave_no_memory_behind() {
    let run = |future: std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(future);
    };
    if let Some(dir) = std::env::var_os(DIRECTORY) {
        run(Box::pin(async move { be_flooded(Path::new(&dir)).await }));
        return;
    }
    let floods = std::sync::Mutex::new(FLOODS.iter());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(kind) = { floods.lock().unwrap().next() } {
                    run(Box::pin(flooded(*kind)));
                }
            });
        }
    });
}

/// The director's process: answers each line with what it holds, until there is nobody who asks.
async fn be_flooded(dir: &Path) {
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
        let counters = director.gateway().counters();
        let busy = counters.handshakes + counters.waiting + counters.sessions - 1;
        writeln!(said, "{} {busy}", HELD.load(Ordering::Relaxed)).unwrap();
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
    async fn start(dir: &Path) -> Flooded {
        let listener = UnixListener::bind(dir.join("ask")).unwrap();
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
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
        self.ask("held")
    }

    /// The same, once a step has run on the neighbour.
    fn unharmed(&mut self) -> Option<i64> {
        self.ask(UNHARMED)
    }

    fn ask(&mut self, what: &str) -> Option<i64> {
        writeln!(self.heard.get_mut(), "{what}").unwrap();
        let mut line = String::new();
        self.heard.read_line(&mut line).unwrap();
        let (held, busy) = line
            .trim()
            .split_once(' ')
            .expect("the director's process has ended: what it said is above");
        (busy == "0").then(|| held.parse().unwrap())
    }
}

async fn flooded(kind: Flood) {
    let dir = tempfile::tempdir().unwrap();
    let mut flooded = Flooded::start(dir.path()).await;
    kind.flood(&flooded.director, 0..FEW).await;
    flooded.unharmed();
    let mut after_few = i64::MAX;
    for _ in 0..LOOKS {
        let rests = wait_for("the director to rest", || flooded.held());
        after_few = rests.await.min(after_few);
    }
    kind.flood(&flooded.director, FEW..5 * FEW).await;
    flooded.unharmed();
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
