//! Artifacts: a few copies from the director, the rest from machine to machine, whatever peers do.

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;

use windlass_agent::artifacts::ArtifactStore;
use windlass_agent::history::History;
use windlass_agent::host::Host;
use windlass_agent::link::{LinkArtifacts, Origin, ProgressSink};
use windlass_agent::steps::{self, Context, Reporter, Run};
use windlass_agent::units::Units;
use windlass_common::id::{ClusterName, Digest, Epoch, Incarnation};
use windlass_common::journal::DirStorage;
use windlass_common::limits::{FRAME_BYTES_MAX, PEER_SERVE_BYTES_PER_S, STREAMS_PER_AGENT};
use windlass_common::pki::MachineIdentity;
use windlass_common::step::{Fetch, Step, StepId};
use windlass_common::transport::Close;
use windlass_common::wire::frame::{self, Frame};
use windlass_common::wire::message::{
    ArtifactGrant, ArtifactHeader, ArtifactRequest, ArtifactsHeld, Body, Hello, Refusal,
    RefusalCode, Welcome,
};
use windlass_common::{tls, transport};

use crate::certificates::{agent, connect, welcomed};
use crate::world::{Director, Machine, Neighbour, PATIENCE, identity, wait_for};

const MIB: usize = 1 << 20;

/// Bytes in which no piece equals another.
fn content(bytes: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut content = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend(state.to_le_bytes());
    }
    content.truncate(bytes);
    content
}

/// Puts an artifact where the director finds it.
fn publish(director: &Director, dir: &std::path::Path, content: &[u8]) -> Digest {
    let digest = Digest::of(content);
    let path = dir.join(digest.hex());
    std::fs::write(&path, content).unwrap();
    let mut artifacts = director.records.artifacts.lock().unwrap();
    artifacts.insert(digest, path);
    digest
}

fn free_port() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.local_addr().unwrap().port()
}

/// A machine that fetches as the agent does and serves its peers.
struct Peer {
    machine: Machine,
    context: Context,
    root: tempfile::TempDir,
    port: u16,
}

impl Peer {
    fn boot(director: &Director, name: &str) -> Peer {
        Peer::boot_as(director, &identity(name, 1))
    }

    fn boot_as(director: &Director, who: &MachineIdentity) -> Peer {
        Peer::boot_at(PEER_SERVE_BYTES_PER_S, director, who)
    }

    /// One that serves at this rate.
    fn boot_at(bytes_per_s: u64, director: &Director, who: &MachineIdentity) -> Peer {
        director.records.make_current(who);
        let expires = Timestamp::from_second(Timestamp::now().as_second() + 3600).unwrap();
        let token = director.records.issue(who, expires);
        let settings = director.settings_with(who, token);
        let root = tempfile::tempdir().unwrap();
        let host = Host::open(root.path()).unwrap();
        let store = ArtifactStore::open(&host);
        let port = free_port();
        let dir = root.path().join("identity");
        let machine = Machine::boot_sharing_at(bytes_per_s, settings, &dir, store.clone(), port);
        let journal = root.path().join("journal");
        let history = History::open(DirStorage::open(&journal).unwrap()).unwrap();
        let context = Context {
            host,
            units: Arc::new(Units::default()),
            artifacts: Arc::new(LinkArtifacts::new(machine.link.clone(), store)),
            history: Arc::new(Mutex::new(history)),
            watched: watch::channel(BTreeMap::new()).0,
            leave: watch::channel(false).0,
            director: None,
        };
        Peer {
            machine,
            context,
            root,
            port,
        }
    }

    fn file(&self, digest: Digest) -> PathBuf {
        let path = Host::artifact_path(&digest);
        self.root.path().join(path.trim_start_matches('/'))
    }

    fn partial(&self, digest: Digest) -> PathBuf {
        let path = format!("var/lib/windlass/artifacts/partial/{}", digest.hex());
        self.root.path().join(path)
    }

    /// Runs the step.
    async fn fetch(&self, digest: Digest, bytes: usize) {
        let step = Step::Fetch(Fetch {
            digest,
            bytes: bytes as u64,
        });
        let run = Run::new(Reporter::new(ProgressSink::channel(1).0));
        let id = StepId("t/fetch".to_owned());
        let fetching = steps::run(&self.context, &run, &id, &step);
        let done = tokio::time::timeout(3 * PATIENCE, fetching);
        done.await.expect("the fetch ends").unwrap();
    }

    fn has(&self, digest: Digest) -> bool {
        std::fs::read(self.file(digest)).is_ok_and(|bytes| Digest::of(&bytes) == digest)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_costs_the_director_a_few_copies() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let bytes = 8 * MIB;
    let digest = publish(&director, dir.path(), &content(bytes));
    let peers: Vec<Arc<Peer>> = (0..24)
        .map(|number| Arc::new(Peer::boot(&director, &format!("demo-w-{number}"))))
        .collect();
    for peer in &peers {
        director.connected(&peer.machine).await;
    }
    let mut fetches = tokio::task::JoinSet::new();
    for peer in &peers {
        let peer = Arc::clone(peer);
        fetches.spawn(async move { peer.fetch(digest, bytes).await });
    }
    while let Some(done) = fetches.join_next().await {
        done.unwrap();
    }
    assert!(peers.iter().all(|peer| peer.has(digest)));
    let sent = director.gateway().artifact_bytes_sent();
    assert!(sent >= bytes as u64);
    assert!(sent <= 4 * bytes as u64, "{sent} bytes for 24 machines");
    // A machine of another cluster is no peer of theirs.
    let other = MachineIdentity {
        cluster: ClusterName::new("other").unwrap(),
        ..identity("other-w-0", 1)
    };
    let other = Peer::boot_as(&director, &other);
    other.fetch(digest, bytes).await;
    assert!(other.has(digest));
    let more = director.gateway().artifact_bytes_sent() - sent;
    assert_eq!(more, bytes as u64);
}

/// What a peer answers to a request: the header, the refusal's words, or the close.
#[derive(Debug, PartialEq)]
enum Answer {
    Bytes(u64),
    Refused,
    Closed(Option<Close>),
    Reset,
}

/// Asks a peer by hand.
async fn ask(director: &Director, who: &MachineIdentity, port: u16, question: Frame) -> Answer {
    let (chain, key) = agent(&director.ca, who, Timestamp::now());
    let roots = [director.ca.root_der().clone()];
    let client = tls::peer_client(&roots, chain, key).unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = transport::peer_client_config(client).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let connection = endpoint
        .connect_with(config, address, tls::PEER_NAME)
        .unwrap()
        .await
        .unwrap();
    let exchange = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|_| ())?;
        frame::send(&mut send, &question).await.map_err(|_| ())?;
        frame::read(&mut recv, FRAME_BYTES_MAX)
            .await
            .map_err(|_| ())
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await.unwrap();
    match (answer, connection.close_reason()) {
        (Ok(Some(frame)), _) if frame.kind == Refusal::KIND => Answer::Refused,
        (Ok(Some(frame)), _) => Answer::Bytes(frame.body::<ArtifactHeader>().unwrap().bytes),
        (_, Some(reason)) => Answer::Closed(Close::of(&reason)),
        (_, None) => Answer::Reset,
    }
}

fn request(digest: Digest, offset: u64) -> Frame {
    Frame::of(&ArtifactRequest { digest, offset }).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_serves_what_was_granted_to_whom_it_was_granted() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = publish(&director, dir.path(), &content(MIB));
    let peer = Peer::boot(&director, "demo-w-0");
    peer.fetch(digest, MIB).await;
    let grant = |who: &MachineIdentity, digest, life_ms| {
        let grant = ArtifactGrant {
            digest,
            machine: who.machine.clone(),
            incarnation: who.incarnation,
            life_ms,
        };
        let gateway = director.gateway();
        gateway.push(&peer.machine.name, peer.machine.incarnation, &grant)
    };
    let friend = identity("demo-w-1", 1);
    let other = Digest::of(b"other");
    assert_eq!(
        ask(&director, &friend, peer.port, request(digest, 0)).await,
        Answer::Refused
    );
    grant(&friend, digest, 60_000).unwrap();
    grant(&friend, other, 60_000).unwrap();
    let stranger = MachineIdentity {
        cluster: ClusterName::new("other").unwrap(),
        ..friend.clone()
    };
    let reborn = MachineIdentity {
        incarnation: Incarnation(2),
        ..friend.clone()
    };
    let unknown = Frame {
        kind: 0x0078,
        body: Vec::new(),
    };
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("granted",              &friend,   request(digest, 0),                Answer::Bytes(MIB as u64)),
        ("granted, from a byte", &friend,   request(digest, 77),               Answer::Bytes(MIB as u64)),
        ("beyond the end",       &friend,   request(digest, MIB as u64 + 1),   Answer::Refused),
        ("granted, not here",    &friend,   request(other, 0),                 Answer::Refused),
        ("another incarnation",  &reborn,   request(digest, 0),                Answer::Refused),
        ("another cluster",      &stranger, request(digest, 0),                Answer::Closed(Some(Close::Unauthenticated))),
        ("another question",     &friend,   unknown,                           Answer::Reset),
    ];
    for (name, who, question, wanted) in cases {
        assert_eq!(
            ask(&director, who, peer.port, question).await,
            wanted,
            "{name}"
        );
    }
    // It replaces the one before and is over when the question has waited for it.
    grant(&friend, digest, 1).unwrap();
    tokio::time::timeout(PATIENCE, async {
        while ask(&director, &friend, peer.port, request(digest, 0)).await != Answer::Refused {}
    })
    .await
    .expect("a grant expires");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_of_a_peer_are_thrown_away_and_it_is_not_asked_again() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = publish(&director, dir.path(), &content(MIB));
    let liar = Peer::boot(&director, "demo-w-0");
    liar.fetch(digest, MIB).await;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .open(liar.file(digest))
        .unwrap();
    file.seek(SeekFrom::Start(500_000)).unwrap();
    file.write_all(b"lies").unwrap();
    let sent = || director.gateway().artifact_bytes_sent();
    held(&director, digest, 1).await;
    let before = sent();
    let victim = Peer::boot(&director, "demo-w-1");
    victim.fetch(digest, MIB).await;
    assert!(victim.has(digest));
    // All of it again, from the director.
    assert_eq!(sent() - before, MIB as u64);
    held(&director, digest, 2).await;
    let third = Peer::boot(&director, "demo-w-2");
    third.fetch(digest, MIB).await;
    assert!(third.has(digest));
    // From the victim, which is honest.
    assert_eq!(sent() - before, MIB as u64);
}

/// Waits until the director has heard that this many machines have the artifact.
async fn held(director: &Director, digest: Digest, machines: usize) {
    wait_for("machines that say what they have", || {
        let holders = director.gateway().artifact_holders(&digest);
        (holders.len() >= machines).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_not_there_is_passed_over() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = publish(&director, dir.path(), &content(MIB));
    let me = identity("demo-w-0", 1);
    director.records.make_current(&me);
    // By hand: it says that it serves, on a port where nobody does.
    let credentials = agent(&director.ca, &me, Timestamp::now());
    let connection = connect(&director, Some(credentials)).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    frame::write(&mut send, &hello(vec![2])).await.unwrap();
    let welcome: Welcome = frame::expect(&mut recv, FRAME_BYTES_MAX).await.unwrap();
    assert_eq!(welcome.protocol, 2);
    let announcement = ArtifactsHeld {
        port: free_port(),
        digests: vec![digest],
    };
    frame::write(&mut send, &announcement).await.unwrap();
    let grants = tokio::spawn(async move {
        let grant: ArtifactGrant = frame::expect(&mut recv, FRAME_BYTES_MAX).await.unwrap();
        grant
    });
    held(&director, digest, 1).await;
    let honest = Peer::boot(&director, "demo-w-1");
    honest.fetch(digest, MIB).await;
    assert!(honest.has(digest));
    let grant = tokio::time::timeout(PATIENCE, grants)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (grant.machine, grant.digest),
        (honest.machine.name.clone(), digest)
    );
    drop(connection);
}

fn hello(protocols: Vec<u16>) -> Hello {
    Hello {
        protocols,
        agent_version: "0".to_owned(),
        capabilities: Vec::new(),
        boot_id: "b".to_owned(),
        epoch: Epoch(0),
        unfinished: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_protocol_1_is_served_by_the_director() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let digest = publish(&director, dir.path(), &content(MIB));
    let peer = Peer::boot(&director, "demo-w-0");
    peer.fetch(digest, MIB).await;
    let me = identity("demo-w-1", 1);
    director.records.make_current(&me);
    let credentials = agent(&director.ca, &me, Timestamp::now());
    let connection = connect(&director, Some(credentials)).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    frame::write(&mut send, &hello(vec![1])).await.unwrap();
    let welcome: Welcome = frame::expect(&mut recv, FRAME_BYTES_MAX).await.unwrap();
    assert_eq!(welcome.protocol, 1);
    let (mut asks, mut answer) = connection.open_bi().await.unwrap();
    frame::send(&mut asks, &request(digest, 3)).await.unwrap();
    let header: ArtifactHeader = frame::expect(&mut answer, FRAME_BYTES_MAX).await.unwrap();
    assert_eq!(header.bytes, MIB as u64);
    let got = answer.read_to_end(MIB).await.unwrap();
    assert_eq!(got, content(MIB)[3..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_is_cut_at_any_byte_goes_on_there_from_anybody() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let content = content(MIB);
    let digest = publish(&director, dir.path(), &content);
    let first = Peer::boot(&director, "demo-w-0");
    first.fetch(digest, MIB).await;
    held(&director, digest, 1).await;
    let second = Peer::boot(&director, "demo-w-1");
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut got, mut from_peer, mut from_director) = (Vec::new(), 0, 0);
    for turn in 0.. {
        if got.len() == MIB {
            break;
        }
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let take = (random >> 33) as usize % 150_000;
        let link = &second.machine.link;
        // A peer and the director in turn: each goes on where the other was cut.
        let mut stream = if turn % 2 == 0 {
            link.fetch_shared(digest, got.len() as u64, &[])
                .await
                .unwrap()
        } else {
            link.fetch(digest, got.len() as u64).await.unwrap()
        };
        match stream.origin() {
            Origin::Director => from_director += 1,
            Origin::Peer(..) => from_peer += 1,
        }
        let end = (got.len() + take).min(MIB);
        while got.len() < end {
            let chunk = stream.chunk().await.unwrap().unwrap();
            let room = end - got.len();
            got.extend_from_slice(&chunk[..chunk.len().min(room)]);
        }
    }
    assert_eq!(Digest::of(&got), digest);
    assert!(
        from_peer > 0 && from_director > 0,
        "{from_peer} {from_director}"
    );
    // What was there before the step began counts as well.
    let third = Peer::boot(&director, "demo-w-2");
    let partial = third.partial(digest);
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::fs::write(&partial, &content[..MIB - 12_345]).unwrap();
    third.fetch(digest, MIB).await;
    assert!(third.has(digest) && !partial.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_outlives_the_director_and_keeps_to_the_rate() {
    let mut director = Director::start_with(|config| {
        config.artifacts.agent_bytes_per_s = 2 << 20;
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let digest = publish(&director, dir.path(), &content(4 * MIB));
    let peer = Arc::new(Peer::boot(&director, "demo-w-0"));
    director.connected(&peer.machine).await;
    let began = Instant::now();
    let fetch = {
        let peer = Arc::clone(&peer);
        tokio::spawn(async move { peer.fetch(digest, 4 * MIB).await })
    };
    let partial = peer.partial(digest);
    wait_for("some bytes", || {
        let meta = std::fs::metadata(&partial).ok()?;
        (meta.len() > MIB as u64).then_some(())
    })
    .await;
    director.gateway().shutdown(Duration::from_secs(5)).await;
    director.start_again(Epoch(2)).await;
    fetch.await.unwrap();
    assert!(peer.has(digest));
    // Two bursts of a quarter of a MiB are free.
    assert!(
        began.elapsed() > Duration::from_millis(1_500),
        "{:?}",
        began.elapsed()
    );
    // Not from the beginning: the second director sent the rest.
    let rest = director.gateway().artifact_bytes_sent();
    assert!(rest < 3 * MIB as u64 + 512 * 1024, "{rest}");
}

/// Machines of two clusters, which are no peers: what they get together keeps to the director's rate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_machines_together_get_no_more_than_the_director_gives() {
    const RATE: usize = 4 * MIB;
    let director = Director::start_with(|config| {
        config.artifacts.total_bytes_per_s = RATE as u64;
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let bytes = 3 * MIB;
    let digest = publish(&director, dir.path(), &content(bytes));
    let elsewhere = MachineIdentity {
        cluster: ClusterName::new("other").unwrap(),
        ..identity("other-w-0", 1)
    };
    let one = Peer::boot(&director, "demo-w-0");
    let two = Peer::boot_as(&director, &elsewhere);
    let began = Instant::now();
    tokio::join!(one.fetch(digest, bytes), two.fetch(digest, bytes));
    let sent = director.gateway().artifact_bytes_sent();
    assert_eq!(sent, 2 * bytes as u64);
    // A burst of a quarter of a MiB is free, and either may have been sent a piece that is not paid for yet.
    let paid = (2 * bytes - MIB / 2) as f64 / RATE as f64;
    assert!(began.elapsed().as_secs_f64() > paid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_serves_no_faster_than_its_machine_can_spare() {
    const RATE: usize = 2 * MIB;
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let bytes = 3 * MIB;
    let digest = publish(&director, dir.path(), &content(bytes));
    let first = Peer::boot_at(RATE as u64, &director, &identity("demo-w-0", 1));
    first.fetch(digest, bytes).await;
    held(&director, digest, 1).await;
    let sent = director.gateway().artifact_bytes_sent();
    let second = Peer::boot(&director, "demo-w-1");
    let began = Instant::now();
    second.fetch(digest, bytes).await;
    let took = began.elapsed().as_secs_f64();
    assert!(second.has(digest));
    let more = director.gateway().artifact_bytes_sent() - sent;
    assert_eq!(more, 0, "the director helped");
    // A burst of a quarter of a MiB is free.
    let paid = (bytes - MIB / 2) as f64 / RATE as f64;
    assert!(took > paid, "{took} s");
}

/// Requests for what is not there: the cheapest there are, and as many as one likes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_asks_again_and_again_waits_for_its_turn() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let neighbour = Neighbour::boot(&director, dir.path()).await;
    let me = identity("demo-w-0", 1);
    director.records.make_current(&me);
    let credentials = agent(&director.ca, &me, Timestamp::now());
    let connection = connect(&director, Some(credentials)).await.unwrap();
    let _control = welcomed(&connection).await;
    let nothing = request(Digest::of(b"nothing"), 0);
    let further = 50;
    let began = Instant::now();
    for _ in 0..STREAMS_PER_AGENT.burst + further {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        frame::send(&mut send, &nothing).await.unwrap();
        let answer: Refusal = frame::expect(&mut recv, FRAME_BYTES_MAX).await.unwrap();
        assert_eq!(answer.code, RefusalCode::NotFound);
    }
    assert!(began.elapsed() >= STREAMS_PER_AGENT.every * (further - 1));
    assert_eq!(connection.close_reason(), None, "it waits, and that is all");
    neighbour.unharmed(&director).await;
}
