//! Every refusal that there is: a real peer provokes it once, it is counted once and said once, nothing else is,
//! and an honest machine beside it does not notice.
//!
//! [`provoke`] has a row for each [`Reason`]; one that is added without a row does not compile. What else is to be
//! said of a refusal (how the connection ends, which bytes it takes) is in the tables of the other files.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use quinn::{Connection, RecvStream, SendStream};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

use windlass_common::clock::{Clock, later};
use windlass_common::id::{Digest, DirectorId, Incarnation};
use windlass_common::limits::{
    CONTROL_FRAME_TIMEOUT, ENROLL_FRAME_BYTES_MAX, ENROLLMENT_TOKEN_LIFE, ENROLLMENTS_MAX,
    FAILURES_PER_SOURCE, FRAME_BYTES_MAX, FRAMES_PER_AGENT, HANDSHAKE_GIVES_WAY_AFTER,
    HANDSHAKES_MAX, PROBE_LIMIT, RENEWALS_PER_AGENT, REPORTS_PER_AGENT, SESSIONS_PER_MACHINE,
};
use windlass_common::pki::{MachineIdentity, PrivateKey, gateway_name, pem, profile};
use windlass_common::probe::Nonce;
use windlass_common::report::Report;
use windlass_common::secret::Secret;
use windlass_common::wire::PROTOCOL;
use windlass_common::wire::frame::{self, Frame, OPTIONAL};
use windlass_common::wire::message::{
    ArtifactRequest, Body, EnrollRequest, RenewRequest, RenewResponse,
};
use windlass_common::wire::probe::{EchoAnswer, ProbeAnswer, ProbeAsk, ProbeFound};
use windlass_common::{tls, transport};
use windlass_director::gateway::{About, Reason};
use windlass_director::pki::{DirectorCa, Stage};

use crate::certificates::{Credentials, agent, client, connect, fate, welcomed};
use crate::forge;
use crate::half_open::HalfOpen;
use crate::hostile::{closed, greeted, header, heartbeat, hello, stranger};
use crate::log::Log;
use crate::tokens::enroll;
use crate::world::{Director, Neighbour, PATIENCE, identity, wait_for};

/// Life of the certificates that [`agent`] issues.
const LIFE: Duration = Duration::from_secs(3600);
/// Rows that are tried at a time: those that wait for the director's patience do nothing meanwhile.
const AT_ONCE: usize = 4;

/// What panicked on the threads of the rows, also in tasks that nobody asks how they ended.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// The beginning of the names of these threads.
const THREAD: &str = "refusal ";

fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let thread = thread::current();
            if let Some(name) = thread.name().filter(|name| name.starts_with(THREAD)) {
                PANICS.lock().unwrap().push(format!("{name}: {info}"));
            }
            before(info);
        }));
    });
}

#[test]
fn every_refusal_is_counted_and_said_once_and_a_neighbour_does_not_notice() {
    note_panics();
    let rows = Mutex::new(Reason::ALL.iter());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(reason) = { rows.lock().unwrap().next() } {
                    let row = thread::Builder::new().name(format!("{THREAD}{}", reason.name()));
                    // How it ended is in `PANICS`.
                    let _ = row.spawn(|| alone(*reason)).unwrap().join();
                }
            });
        }
    });
    let panics = PANICS.lock().unwrap();
    assert!(panics.is_empty(), "{}", panics.join("\n"));
}

/// One row, on a thread of its own, so that the log is of it alone.
fn alone(reason: Reason) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let run = AssertUnwindSafe(|| runtime.block_on(row(reason)));
    if let Err(panic) = panic::catch_unwind(run) {
        runtime.shutdown_background();
        panic::resume_unwind(panic);
    }
}

async fn row(reason: Reason) {
    let (log, _logging) = Log::of_this_thread();
    let clock = Clock::by_hand(Timestamp::now());
    let director = Director::start_with(|config| {
        config.clock = clock.clone();
        if reason == Reason::SessionsFull {
            config.sessions_max = 1;
        }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    // One that the neighbour is not to share the fate of.
    let earlier = match reason {
        Reason::CaDropped => {
            let session = greeted(&director, "hostile").await;
            let older = director.ca.stage().newest().clone();
            let newer = Arc::new(director.ca.next_generation(clock.now()).unwrap());
            director.ca.enter(Stage::Reissue { older, newer });
            Some(session)
        }
        _ => None,
    };
    let neighbour = Neighbour::boot(&director, dir.path()).await;
    assert_eq!(director.refused_but_for(None), 0, "{reason:?}: before it");
    let row = Row {
        director: &director,
        clock: &clock,
        me: identity("hostile", 1),
    };
    if reason != Reason::NotCurrent {
        director.records.make_current(&row.me);
    }
    // What holds its connections open.
    let _held = row.provoke(reason).await;
    wait_for(reason.name(), || {
        (director.refused(reason) > 0).then_some(())
    })
    .await;
    neighbour.unharmed(&director).await;
    assert_eq!(director.refused(reason), 1, "{reason:?}: counted");
    assert_eq!(log.refusals(reason), 1, "{reason:?}: lines");
    let others = Reason::ALL
        .iter()
        .filter(|other| **other != reason && !on_the_way(reason).contains(other));
    for other in others {
        let (counted, lines) = (director.refused(*other), log.refusals(*other));
        assert_eq!((counted, lines), (0, 0), "{other:?} instead of {reason:?}");
    }
    drop(earlier);
}

/// Refusals that it takes to provoke another one, or that come of waiting for it on a busy host.
fn on_the_way(reason: Reason) -> &'static [Reason] {
    match reason {
        Reason::SourceBusy => &[Reason::NotCurrent],
        Reason::EnrollmentsFull | Reason::HandshakesFull => &[Reason::HandshakeTimeout],
        _ => &[],
    }
}

/// Held until the row is over.
type Held = Box<dyn Any>;

struct Row<'a> {
    director: &'a Director,
    clock: &'a Clock,
    me: MachineIdentity,
}

impl Row<'_> {
    /// Has a real peer do what is refused for this reason, once.
    async fn provoke(&self, reason: Reason) -> Held {
        let (director, ca, now) = (self.director, &self.director.ca, self.clock.now());
        let at = |seconds: i64| Timestamp::from_second(now.as_second() + seconds).unwrap();
        let long = FRAME_BYTES_MAX as u32 + 1;
        match reason {
            Reason::StrayDatagram => {
                let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
                socket.send_to(&[0x41], director.address).await.unwrap();
                Box::new(socket)
            }
            Reason::SourceBusy => self.fails_until_unseen().await,
            Reason::HandshakesFull => self.half_open_until_full().await,
            Reason::HandshakeTimeout => {
                // It shows who it is, and says nothing.
                let connected = connect(director, Some(agent(ca, &self.me, now))).await;
                let connection = connected.unwrap();
                closed(&connection).await;
                Box::new(connection)
            }
            Reason::HandshakeFailed => {
                // It takes the director for another one, and says so.
                let tls = tls::enroll_client(Digest::of(b"another root")).unwrap();
                self.handshake(tls).await
            }
            Reason::NoProtocol => {
                let (chain, key) = agent(ca, &self.me, now);
                let mut tls = client(director, chain, key);
                tls.alpn_protocols = vec![b"h3".to_vec()];
                self.handshake(tls).await
            }
            Reason::NoCertificate => self.shows(None).await,
            Reason::UnknownIssuer => {
                let id = DirectorId::new("d2").unwrap();
                let elsewhere = DirectorCa::create(id.clone(), now).unwrap();
                let foreign = MachineIdentity {
                    director: id,
                    ..self.me.clone()
                };
                self.shows(Some(agent(&elsewhere, &foreign, now))).await
            }
            Reason::CertificateExpired => self.shows(Some(agent(ca, &self.me, at(-7200)))).await,
            Reason::CertificateNotYetValid => self.shows(Some(agent(ca, &self.me, at(7200)))).await,
            Reason::CertificatePurpose => {
                let names = [gateway_name(ca.director())];
                let server = ca.issue_server(&names, &[], LIFE, now).unwrap();
                self.shows(Some((server.chain.0, server.key))).await
            }
            Reason::CertificateInvalid => {
                // Another machine's certificate, which is no secret, without its key.
                let other = identity("other", 1);
                director.records.make_current(&other);
                let stolen = (agent(ca, &other, now).0, agent(ca, &self.me, now).1);
                self.shows(Some(stolen)).await
            }
            Reason::OtherDirector => {
                let foreign = MachineIdentity {
                    director: DirectorId::new("d2").unwrap(),
                    ..self.me.clone()
                };
                self.shows(Some(misissued(ca, &foreign, now))).await
            }
            Reason::NotCurrent => self.shows(Some(agent(ca, &self.me, now))).await,
            Reason::CaDropped => {
                let newest = ca.stage().newest().clone();
                ca.enter(Stage::Alone(newest));
                director.gateway().bring_up_to_date();
                Box::new(())
            }
            Reason::Version => {
                let connected = connect(director, Some(agent(ca, &self.me, now))).await;
                let connection = connected.unwrap();
                let (mut send, mut recv) = connection.open_bi().await.unwrap();
                frame::write(&mut send, &hello(vec![99])).await.unwrap();
                // The director waits until its words were read.
                frame::read(&mut recv, FRAME_BYTES_MAX).await.unwrap();
                Box::new(())
            }
            Reason::SessionsFull => {
                let connected = connect(director, Some(agent(ca, &self.me, now))).await;
                let connection = connected.unwrap();
                let (mut send, mut recv) = connection.open_bi().await.unwrap();
                frame::write(&mut send, &hello(vec![PROTOCOL]))
                    .await
                    .unwrap();
                frame::read(&mut recv, FRAME_BYTES_MAX).await.unwrap();
                Box::new(())
            }
            Reason::SessionRate => self.comes_again_and_again().await,
            Reason::FrameTooLong => self.says(&header(Report::KIND, long)).await,
            Reason::FrameTruncated => {
                self.says(&[header(Report::KIND, 100), vec![0; 10]].concat())
                    .await
            }
            Reason::FrameSlow => {
                let session = self.session().await;
                let Session(_, mut send, _) = session;
                send.write_all(&header(Report::KIND, 100)).await.unwrap();
                tokio::time::timeout(CONTROL_FRAME_TIMEOUT + PATIENCE, send.stopped())
                    .await
                    .expect("the director has enough")
                    .expect_err("the session is over");
                Box::new(send)
            }
            Reason::FrameUnexpected => self.says(&header(0x0777, 0)).await,
            Reason::FrameMalformed => {
                self.says(&[header(Report::KIND, 3), vec![0xff; 3]].concat())
                    .await
            }
            Reason::SlowReader => {
                let session = self.session().await;
                let large = RenewResponse {
                    chain_der: vec![vec![0; 60_000]],
                    roots_der: Vec::new(),
                };
                let gateway = director.gateway();
                let push = || gateway.push(&self.me.machine, Incarnation(1), &large).err();
                wait_for("the queue to be full", push).await;
                Box::new(session)
            }
            Reason::ControlClosed => self.says(&[]).await,
            Reason::TransportViolation => {
                let credentials = agent(ca, &self.me, now);
                let (connection, forgery) = forge::connect(director, credentials).await;
                let _control = welcomed(&connection).await;
                self.has_session().await;
                // RFC 9000, 19.8: a byte of stream 4 × 4,000, where a dozen were given.
                forgery.say(&[0x0a, 0x7e, 0x80, 0x01, 0xff]);
                let beat = Frame::of(&heartbeat(1)).unwrap().to_bytes();
                connection.send_datagram(beat.into()).unwrap();
                closed(&connection).await;
                Box::new(connection)
            }
            Reason::DatagramMalformed => {
                let session = self.session().await;
                session.0.send_datagram(vec![0xff; 900].into()).unwrap();
                Box::new(session)
            }
            Reason::FrameRate => {
                let optional = Frame {
                    kind: OPTIONAL | 0x42,
                    body: vec![0; 10],
                };
                self.floods(&optional, FRAMES_PER_AGENT.burst).await
            }
            Reason::ReportRate => {
                let report = Frame::of(&crate::world::report(7)).unwrap();
                self.floods(&report, REPORTS_PER_AGENT.burst).await
            }
            Reason::RenewalRate => {
                let request_der = PrivateKey::generate().unwrap().request().unwrap();
                let renewal = Frame::of(&RenewRequest { request_der }).unwrap();
                self.floods(&renewal, RENEWALS_PER_AGENT.burst).await
            }
            Reason::DatagramRate => {
                let session = self.session().await;
                let beat = Frame::of(&heartbeat(1)).unwrap().to_bytes();
                while session
                    .0
                    .send_datagram_wait(beat.clone().into())
                    .await
                    .is_ok()
                {
                    tokio::task::yield_now().await;
                }
                Box::new(session)
            }
            Reason::RenewalRefused => {
                let unsigned = RenewRequest {
                    request_der: vec![0; 100],
                };
                self.says(&Frame::of(&unsigned).unwrap().to_bytes()).await
            }
            Reason::CertificateLapsed => {
                let session = self.session().await;
                self.clock.advance(LIFE);
                closed(&session.0).await;
                Box::new(session)
            }
            Reason::ArtifactRequest => {
                let session = self.session().await;
                let (mut send, recv) = session.0.open_bi().await.unwrap();
                send.write_all(&header(ArtifactRequest::KIND, 0))
                    .await
                    .unwrap();
                Box::new((session, send, recv))
            }
            Reason::ProbeUnasked => {
                let mut session = self.session().await;
                let answer = ProbeAnswer {
                    nonce: Nonce([9; 16]),
                    found: ProbeFound::Nobody,
                };
                frame::write(&mut session.1, &answer).await.unwrap();
                Box::new(session)
            }
            Reason::ProbeUnproven => self.claims_that_another_answered().await,
            Reason::EnrollmentsFull => {
                let mut strangers = Vec::new();
                for _ in 0..=ENROLLMENTS_MAX {
                    strangers.push(stranger(director).await);
                }
                Box::new(strangers)
            }
            Reason::EnrollmentMalformed => {
                let connection = stranger(director).await;
                let (mut send, _recv) = connection.open_bi().await.unwrap();
                let long = header(EnrollRequest::KIND, ENROLL_FRAME_BYTES_MAX as u32 + 1);
                send.write_all(&long).await.unwrap();
                closed(&connection).await;
                Box::new(connection)
            }
            Reason::TokenUnknown => self.enrolls(&self.me, &Secret::new("0".repeat(64))).await,
            Reason::TokenExpired => {
                let token = director.records.issue(&self.me, at(-1));
                self.enrolls(&self.me, &token).await
            }
            Reason::TokenOtherMachine => {
                let other = identity("other", 1);
                director.records.make_current(&other);
                self.enrolls(&other, &self.token()).await
            }
            Reason::TokenOtherKey => {
                let token = self.token();
                let first = PrivateKey::generate().unwrap().request().unwrap();
                let first = enroll(director, &self.me, &token, first).await;
                assert!(first.is_ok(), "{first:?}");
                self.enrolls(&self.me, &token).await
            }
            Reason::TokenSpent => {
                let token = self.token();
                let request = PrivateKey::generate().unwrap().request().unwrap();
                let first = enroll(director, &self.me, &token, request.clone()).await;
                assert!(first.is_ok(), "{first:?}");
                let session = self.session().await;
                let again = enroll(director, &self.me, &token, request).await;
                assert!(again.is_err(), "{again:?}");
                Box::new(session)
            }
            Reason::Internal => {
                director.records.break_down();
                self.enrolls(&self.me, &self.token()).await
            }
        }
    }

    fn token(&self) -> Secret {
        let expires = later(self.clock.now(), ENROLLMENT_TOKEN_LIFE);
        self.director.records.issue(&self.me, expires)
    }

    /// Shows a certificate, and is not let in.
    async fn shows(&self, credentials: Option<Credentials>) -> Held {
        let error = fate(connect(self.director, credentials).await).await;
        Box::new(error)
    }

    /// A handshake that fails.
    async fn handshake(&self, tls: rustls::ClientConfig) -> Held {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = transport::client_config(tls).unwrap();
        let host = gateway_name(self.director.ca.director());
        let connecting = endpoint.connect_with(config, self.director.address, &host);
        let refused = connecting.unwrap().await;
        Box::new((endpoint, refused.unwrap_err()))
    }

    /// Asks for a certificate with a new key, and gets none.
    async fn enrolls(&self, claim: &MachineIdentity, token: &Secret) -> Held {
        let request = PrivateKey::generate().unwrap().request().unwrap();
        let answer = enroll(self.director, claim, token, request).await;
        Box::new(answer.unwrap_err())
    }

    /// A session that the director knows of.
    async fn session(&self) -> Session {
        let (connection, send, recv) = greeted(self.director, self.me.machine.as_str()).await;
        self.has_session().await;
        Session(connection, send, recv)
    }

    async fn has_session(&self) {
        wait_for("the session", || {
            self.director.gateway().connected().remove(&self.me.machine)
        })
        .await;
    }

    /// Says this on its control stream, and no more.
    async fn says(&self, bytes: &[u8]) -> Held {
        let Session(connection, mut send, recv) = self.session().await;
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();
        closed(&connection).await;
        Box::new((connection, send, recv))
    }

    /// Says this more often than it may, and reads what is answered.
    async fn floods(&self, frame: &Frame, burst: u32) -> Held {
        let Session(connection, mut send, mut recv) = self.session().await;
        let reads = tokio::spawn(async move {
            while let Ok(Some(_)) = frame::read(&mut recv, FRAME_BYTES_MAX).await {}
        });
        for _ in 0..2 * burst {
            if frame::send(&mut send, frame).await.is_err() {
                break;
            }
        }
        closed(&connection).await;
        Box::new((connection, reads))
    }

    /// Fails from an address of its own until it is not looked at any more.
    async fn fails_until_unseen(&self) -> Held {
        let endpoint = quinn::Endpoint::client("127.0.0.9:0".parse().unwrap()).unwrap();
        let replaced = identity("replaced", 1);
        let (chain, key) = agent(&self.director.ca, &replaced, self.clock.now());
        let tls = client(self.director, chain, key);
        let config = transport::client_config(tls).unwrap();
        let host = gateway_name(self.director.ca.director());
        for _ in 0..4 * FAILURES_PER_SOURCE.burst {
            let connecting = endpoint.connect_with(config.clone(), self.director.address, &host);
            if let Ok(connection) = connecting.unwrap().await {
                closed(&connection).await;
            }
            if self.director.refused(Reason::SourceBusy) > 0 {
                return Box::new(endpoint);
            }
        }
        panic!("never refused unseen");
    }

    /// Takes all places for handshakes, and one more. The clock of this thread stands still meanwhile, so that no
    /// handshake runs out of time before the last one comes.
    async fn half_open_until_full(&self) -> Held {
        let (go_on, stopped) = std::sync::mpsc::channel::<()>();
        // Tokio's clock is not advanced to the next timer while somebody works on a thread of their own.
        let standing = tokio::task::spawn_blocking(move || stopped.recv());
        tokio::time::pause();
        let handshakes = || self.director.gateway().counters().handshakes;
        let mut strangers = HalfOpen::new(self.director);
        for number in 0..HANDSHAKES_MAX {
            strangers.begin().await;
            turn_until("a place for one more", || handshakes() > number).await;
        }
        strangers.begin().await;
        let counters = || self.director.gateway().counters();
        turn_until("one to wait", || counters().waiting == 1).await;
        assert_eq!(self.director.refused(Reason::HandshakesFull), 0);
        // Timers go by whole milliseconds.
        let time = HANDSHAKE_GIVES_WAY_AFTER + Duration::from_millis(10);
        tokio::time::advance(time).await;
        turn_until("the oldest to give way", || {
            self.director.refused(Reason::HandshakesFull) > 0
        })
        .await;
        assert_eq!((counters().waiting, handshakes()), (0, HANDSHAKES_MAX));
        drop(strangers);
        // Those whose time is over at once when it goes on would be refused for it.
        tokio::time::resume();
        drop(go_on);
        let _ = standing.await.unwrap();
        Box::new(())
    }

    /// Opens sessions until it is put off.
    async fn comes_again_and_again(&self) -> Held {
        let credentials = agent(&self.director.ca, &self.me, self.clock.now());
        for _ in 0..3 * SESSIONS_PER_MACHINE.burst {
            let credentials = (credentials.0.clone(), credentials.1.clone_key());
            let connection = connect(self.director, Some(credentials)).await.unwrap();
            if crate::certificates::greet(&connection).await.is_none() {
                return Box::new(closed(&connection).await);
            }
        }
        panic!("never put off");
    }

    /// Is asked about another machine, and has no proof for what it says.
    async fn claims_that_another_answered(&self) -> Held {
        let mut session = self.session().await;
        let subject = identity("subject", 1);
        self.director.records.make_current(&subject);
        let nowhere = "127.0.0.1:1".parse().unwrap();
        let about = About {
            identity: subject,
            agent: nowhere,
            kubelet: nowhere,
        };
        let question = self.director.gateway().probe(&self.me, &about, PROBE_LIMIT);
        let told = async {
            let asked: ProbeAsk = frame::expect(&mut session.2, FRAME_BYTES_MAX)
                .await
                .unwrap();
            let answer = ProbeAnswer {
                nonce: asked.nonce,
                found: ProbeFound::Agent(EchoAnswer {
                    chain_der: Vec::new(),
                    signature: Vec::new(),
                }),
            };
            frame::write(&mut session.1, &answer).await.unwrap();
        };
        let (found, ()) = tokio::join!(question, told);
        found.unwrap_err();
        Box::new(session)
    }
}

/// The connection of a session, and its control stream.
struct Session(Connection, SendStream, RecvStream);

/// What an issuer that went astray would sign: a certificate of this CA with the identity of a machine of another
/// director.
fn misissued(ca: &DirectorCa, identity: &MachineIdentity, now: Timestamp) -> Credentials {
    let text = ca.to_pem();
    // The root, then the issuer of agents, each with its key.
    let issuer = pem::certificates(text.expose()).unwrap().remove(1);
    let key = PrivatePkcs8KeyDer::pem_slice_iter(text.expose()).nth(1);
    let key = PrivateKey::from_der(key.unwrap().unwrap().secret_pkcs8_der()).unwrap();
    let signer = rcgen::Issuer::from_ca_cert_der(&issuer, key.into_signer()).unwrap();
    let own = PrivateKey::generate().unwrap();
    let name = identity.machine.as_str();
    let params = profile::client(name, &identity.to_string(), LIFE, now).unwrap();
    let leaf = params.signed_by(own.signer(), &signer).unwrap();
    (vec![leaf.der().clone(), issuer], own.to_der())
}

/// Lets the tasks of this thread go on until `look` is content, while its clock stands still.
async fn turn_until(what: &str, mut look: impl FnMut() -> bool) {
    let began = Instant::now();
    while !look() {
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        tokio::task::yield_now().await;
    }
}
