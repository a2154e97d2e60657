//! Probes: what a machine is said to be by others of its cluster, whatever some of them claim.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use quinn::{RecvStream, SendStream};
use tokio::net::TcpListener;
use windlass_agent::artifacts::ArtifactStore;
use windlass_agent::host::Host;
use windlass_common::id::{ClusterName, Incarnation};
use windlass_common::limits::{FRAME_BYTES_MAX, PROBE_LIMIT, PROBES_IN_FLIGHT_MAX};
use windlass_common::pki::{MachineIdentity, PrivateKey};
use windlass_common::probe::{Nonce, statement};
use windlass_common::tls::{self, PEER_NAME};
use windlass_common::transport::{self, Close};
use windlass_common::wire::PROTOCOL;
use windlass_common::wire::frame::{self, FrameError};
use windlass_common::wire::probe::{Echo, EchoAnswer, ProbeAnswer, ProbeAsk, ProbeFound};
use windlass_director::gateway::{About, DeliveryError, Found, ProbeError, Reason};

use crate::certificates::{Credentials, agent, connect};
use crate::hostile::{closed, hello};
use crate::world::{Director, Machine, Neighbour, PATIENCE, identity, wait_for};

/// Long enough for everything on loopback that answers at all.
const LIMIT: Duration = Duration::from_millis(800);

/// An address where nothing is, over UDP and TCP.
fn nowhere() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 1))
}

fn here(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn about(who: &MachineIdentity, agent: SocketAddr, kubelet: SocketAddr) -> About {
    About {
        identity: who.clone(),
        agent,
        kubelet,
    }
}

/// A machine whose agent answers peers at `port`.
struct Peer {
    /// Its link ends with it.
    _machine: Machine,
    who: MachineIdentity,
    port: u16,
    root: tempfile::TempDir,
}

impl Peer {
    async fn boot(director: &Director, who: MachineIdentity) -> Peer {
        director.records.make_current(&who);
        let expires = Timestamp::from_second(Timestamp::now().as_second() + 3600).unwrap();
        let token = director.records.issue(&who, expires);
        let settings = director.settings_with(&who, token);
        let root = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(&Host::open(root.path()).unwrap());
        let port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|socket| socket.local_addr())
            .unwrap()
            .port();
        let dir = root.path().join("identity");
        let machine = Machine::boot_sharing(settings, &dir, store, port);
        director.connected(&machine).await;
        Peer {
            _machine: machine,
            who,
            port,
            root,
        }
    }

    fn about(&self, kubelet: SocketAddr) -> About {
        about(&self.who, here(self.port), kubelet)
    }
}

/// A kubelet as far as a handshake goes.
async fn kubelet() -> SocketAddr {
    let listener = TcpListener::bind(here(0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["node".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    tokio::time::sleep(PATIENCE).await;
                    drop(stream);
                }
            });
        }
    });
    address
}

/// What is left of a machine whose processes do not run: its kernel takes packets and connections.
struct Frozen {
    _udp: UdpSocket,
    _tcp: std::net::TcpListener,
    agent: SocketAddr,
    kubelet: SocketAddr,
}

impl Frozen {
    fn new() -> Frozen {
        let udp = UdpSocket::bind(here(0)).unwrap();
        let tcp = std::net::TcpListener::bind(here(0)).unwrap();
        Frozen {
            agent: udp.local_addr().unwrap(),
            kubelet: tcp.local_addr().unwrap(),
            _udp: udp,
            _tcp: tcp,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_tell_an_agent_a_kubelet_and_a_frozen_machine_apart() {
    let director = Director::start().await;
    let asker = Peer::boot(&director, identity("demo-w-1", 1)).await;
    let alive = Peer::boot(&director, identity("demo-w-0", 1)).await;
    let (frozen, kubelet) = (Frozen::new(), kubelet().await);
    let who = &alive.who;
    let connects = std::net::TcpStream::connect(frozen.kubelet);
    assert!(connects.is_ok(), "its kernel answers TCP by itself");
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("all is well",         alive.about(kubelet),                                Found::Agent),
        ("no kubelet yet",      alive.about(nowhere()),                              Found::Agent),
        ("the kubelet hangs",   alive.about(frozen.kubelet),                         Found::Agent),
        ("the agent is dead",   about(who, nowhere(), kubelet),                      Found::Kubelet),
        ("the agent hangs",     about(who, frozen.agent, kubelet),                   Found::Kubelet),
        ("the machine hangs",   about(who, frozen.agent, frozen.kubelet),            Found::Nobody),
        ("nothing is there",    about(who, nowhere(), nowhere()),                    Found::Nobody),
    ];
    for (name, about, wanted) in cases {
        let began = Instant::now();
        let found = director.gateway().probe(&asker.who, &about, LIMIT).await;
        let took = began.elapsed();
        assert_eq!(found.unwrap(), wanted, "{name}");
        println!("{name}: {wanted:?} after {} ms", took.as_millis());
    }
    assert_eq!(director.refused_but_for(None), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_incarnation_at_the_address_is_not_the_machine() {
    let director = Director::start().await;
    let asker = Peer::boot(&director, identity("demo-w-1", 1)).await;
    let old = Peer::boot(&director, identity("demo-w-0", 1)).await;
    let next = identity("demo-w-0", 2);
    // Its kubelet answers, and is the other incarnation's as well.
    let about = about(&next, here(old.port), kubelet().await);
    let found = director.gateway().probe(&asker.who, &about, LIMIT).await;
    assert_eq!(found.unwrap(), Found::Nobody);
    // What an old incarnation proves counts for nothing once it is not current.
    let about = old.about(nowhere());
    director.records.make_current(&next);
    let found = director.gateway().probe(&asker.who, &about, LIMIT).await;
    assert!(matches!(found, Err(ProbeError::Unproven(_))), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_of_another_cluster_are_not_asked_and_not_answered() {
    let director = Director::start().await;
    let alive = Peer::boot(&director, identity("demo-w-0", 1)).await;
    let stranger = MachineIdentity {
        cluster: ClusterName::new("other").unwrap(),
        ..identity("other-w-0", 1)
    };
    let asker = Peer::boot(&director, stranger.clone()).await;
    let about = alive.about(nowhere());
    for through in [&asker.who, &alive.who] {
        let found = director.gateway().probe(through, &about, LIMIT).await;
        let refused = matches!(found, Err(ProbeError::OtherCluster { .. }));
        assert!(refused, "{through}: {found:?}");
    }
    let beating = director.gateway().probers(&alive.who.cluster);
    assert_eq!(beating, std::slice::from_ref(&alive.who));

    // By itself it gets no answer either.
    let credentials = agent(&director.ca, &stranger, Timestamp::now());
    let answer = echo(&director, credentials, alive.port, Nonce([1; 16])).await;
    assert!(answer.is_err(), "{answer:?}");
}

/// Asks a machine's agent by hand.
async fn echo(
    director: &Director,
    (chain, key): Credentials,
    port: u16,
    nonce: Nonce,
) -> Result<EchoAnswer, FrameError> {
    let tls = tls::peer_client(&[director.ca.root_der().clone()], chain, key).unwrap();
    let endpoint = quinn::Endpoint::client(here(0)).unwrap();
    let connection = endpoint
        .connect_with(
            transport::peer_client_config(tls).unwrap(),
            here(port),
            PEER_NAME,
        )
        .unwrap()
        .await
        .map_err(|error| FrameError::Io(error.into()))?;
    let (mut send, mut recv) = connection
        .open_bi()
        .await
        .map_err(|error| FrameError::Io(error.into()))?;
    frame::write(&mut send, &Echo { nonce }).await?;
    frame::expect(&mut recv, FRAME_BYTES_MAX).await
}

/// An agent that says what it likes.
struct Liar {
    who: MachineIdentity,
    connection: quinn::Connection,
    send: SendStream,
    recv: RecvStream,
}

impl Liar {
    async fn connect(director: &Director, who: MachineIdentity, protocol: u16) -> Liar {
        director.records.make_current(&who);
        let credentials = agent(&director.ca, &who, Timestamp::now());
        let connection = connect(director, Some(credentials)).await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        frame::write(&mut send, &hello(vec![protocol]))
            .await
            .unwrap();
        let _: windlass_common::wire::message::Welcome =
            frame::expect(&mut recv, FRAME_BYTES_MAX).await.unwrap();
        wait_for("the session", || {
            director.gateway().connected().remove(&who.machine)
        })
        .await;
        Liar {
            who,
            connection,
            send,
            recv,
        }
    }

    async fn asked(&mut self) -> ProbeAsk {
        let asked = frame::expect(&mut self.recv, FRAME_BYTES_MAX);
        tokio::time::timeout(PATIENCE, asked)
            .await
            .unwrap()
            .unwrap()
    }

    async fn answer(&mut self, nonce: Nonce, found: ProbeFound) {
        let answer = ProbeAnswer { nonce, found };
        frame::write(&mut self.send, &answer).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_can_claim_that_a_dead_machine_lives() {
    let director = Director::start().await;
    let target = Peer::boot(&director, identity("demo-w-0", 1)).await;
    let mut liar = Liar::connect(&director, identity("demo-w-2", 1), PROTOCOL).await;
    let as_liar = || agent(&director.ca, &identity("demo-w-2", 1), Timestamp::now());

    // It keeps true answers of the time when the machine lived.
    let kept = echo(&director, as_liar(), target.port, Nonce([7; 16])).await;
    let kept = kept.unwrap();
    let gateway = director.gateway().clone();
    let (who, about) = (liar.who.clone(), target.about(nowhere()));
    let (chain, _) = as_liar();
    let own_chain: Vec<Vec<u8>> = chain.iter().map(|der| der.to_vec()).collect();
    let own = PrivateKey::generate().unwrap();
    #[rustfmt::skip] // one lie per line
    let lies: [(&str, &dyn Fn(Nonce) -> EchoAnswer); 6] = [
        ("an answer to another question", &|_| kept.clone()),
        ("no certificate", &|_| EchoAnswer { chain_der: Vec::new(), ..kept.clone() }),
        ("no signature", &|_| EchoAnswer { signature: Vec::new(), ..kept.clone() }),
        ("its own certificate", &|_| EchoAnswer { chain_der: own_chain.clone(), ..kept.clone() }),
        ("a key of its own", &|nonce| EchoAnswer {
            signature: own.sign(&statement(nonce, &target.who, &who)).unwrap(),
            ..kept.clone()
        }),
        ("no certificate at all", &|_| EchoAnswer {
            chain_der: vec![vec![0xff; 64]],
            signature: vec![0xff; 64],
        }),
    ];
    let count = lies.len() as u64;
    for (name, lie) in lies {
        let question = gateway.probe(&who, &about, PROBE_LIMIT);
        let told = async {
            let asked = liar.asked().await;
            liar.answer(asked.nonce, ProbeFound::Agent(lie(asked.nonce)))
                .await;
        };
        let (found, ()) = tokio::join!(question, told);
        assert!(
            matches!(found, Err(ProbeError::Unproven(_))),
            "{name}: {found:?}"
        );
    }
    assert_eq!(director.refused(Reason::ProbeUnproven), count);

    // The truth passes, through the same machine.
    let question = gateway.probe(&who, &about, PROBE_LIMIT);
    let told = async {
        let asked = liar.asked().await;
        let answer = echo(&director, as_liar(), target.port, asked.nonce).await;
        liar.answer(asked.nonce, ProbeFound::Agent(answer.unwrap()))
            .await;
    };
    let (found, ()) = tokio::join!(question, told);
    assert_eq!(found.unwrap(), Found::Agent);
    drop(target.root);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_counts_once_from_whoever_was_asked() {
    let director = Director::start().await;
    let mut asked = Liar::connect(&director, identity("demo-w-1", 1), PROTOCOL).await;
    let mut other = Liar::connect(&director, identity("demo-w-2", 1), PROTOCOL).await;
    let subject = identity("demo-w-0", 1);
    let about = about(&subject, nowhere(), nowhere());
    let gateway = director.gateway().clone();
    let who = asked.who.clone();
    let question = tokio::spawn(async move { gateway.probe(&who, &about, PROBE_LIMIT).await });
    let nonce = asked.asked().await.nonce;
    // One that was not asked answers first, with the right number.
    other.answer(nonce, ProbeFound::Nobody).await;
    let unasked = |wanted: u64| {
        wait_for("the refusal", {
            let director = &director;
            move || (director.refused(Reason::ProbeUnasked) == wanted).then_some(())
        })
    };
    unasked(1).await;
    asked.answer(nonce, ProbeFound::Kubelet).await;
    assert_eq!(question.await.unwrap().unwrap(), Found::Kubelet);
    // Again, and to a question that never was.
    asked.answer(nonce, ProbeFound::Nobody).await;
    asked.answer(Nonce([9; 16]), ProbeFound::Nobody).await;
    unasked(3).await;
    // Nobody is thrown out for it.
    assert!(asked.connection.close_reason().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_answers_ends_its_session_and_no_other() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let neighbour = Neighbour::boot(&director, dir.path()).await;
    let mut liar = Liar::connect(&director, identity("demo-w-1", 1), PROTOCOL).await;
    for number in 0..10_000_u64 {
        let mut nonce = Nonce([0; 16]);
        nonce.0[..8].copy_from_slice(&number.to_le_bytes());
        let found = ProbeFound::NotTried("x".repeat(100));
        let answer = ProbeAnswer { nonce, found };
        if frame::write(&mut liar.send, &answer).await.is_err() {
            break;
        }
    }
    let why = closed(&liar.connection).await;
    assert_eq!(Close::of(&why), Some(Close::Busy), "{why:?}");
    neighbour.unharmed(&director).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_makes_so_many_probes_at_a_time_and_says_so() {
    let director = Director::start().await;
    let asker = Peer::boot(&director, identity("demo-w-1", 1)).await;
    let about = about(&identity("demo-w-0", 1), nowhere(), nowhere());
    let probes =
        (0..PROBES_IN_FLIGHT_MAX + 5).map(|_| director.gateway().probe(&asker.who, &about, LIMIT));
    let found = futures_util::future::join_all(probes).await;
    let tried = found.iter().filter(|f| matches!(f, Ok(Found::Nobody)));
    assert_eq!(tried.count(), PROBES_IN_FLIGHT_MAX);
    let not_tried = found
        .iter()
        .filter(|f| matches!(f, Err(ProbeError::NotTried(_))));
    assert_eq!(not_tried.count(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_protocol_1_is_not_asked() {
    // Slow heartbeats: this one sends none, and is not to be suspect here.
    let director = Director::start_with(|config| config.tune.heartbeat_interval_ms = 60_000).await;
    let old = Liar::connect(&director, identity("demo-w-1", 1), 1).await;
    assert!(director.gateway().probers(&old.who.cluster).is_empty());
    assert_eq!(
        director.gateway().beating(&old.who.cluster),
        std::slice::from_ref(&old.who)
    );
    let about = about(&identity("demo-w-0", 1), nowhere(), nowhere());
    let found = director.gateway().probe(&old.who, &about, LIMIT).await;
    assert!(
        matches!(
            found,
            Err(ProbeError::Delivery(DeliveryError::TooOld { .. }))
        ),
        "{found:?}"
    );
    assert_eq!(old.who.incarnation, Incarnation(1));
}
