//! Who is let in with which certificate, and who is thrown out.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use quinn::ConnectionError;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use windlass_common::clock::Clock;
use windlass_common::id::{DirectorId, Epoch, Incarnation, OperatorName};
use windlass_common::limits::FRAME_BYTES_MAX;
use windlass_common::pki::{MachineIdentity, PrivateKey, gateway_name, pem};
use windlass_common::step::Outcome;
use windlass_common::transport::Close;
use windlass_common::wire::frame;
use windlass_common::wire::message::{Hello, Welcome};
use windlass_common::wire::{ALPN, PROTOCOL};
use windlass_common::{tls, transport};
use windlass_director::gateway::{DeliveryError, Event, Reason};
use windlass_director::pki::{DirectorCa, Stage};

use crate::log::Log;
use crate::world::{Director, Machine, Neighbour, exec, identity, no_progress, wait_for};

const LIFE: Duration = Duration::from_secs(3600);

/// A chain with its key.
pub(crate) type Credentials = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

pub(crate) fn agent(ca: &DirectorCa, identity: &MachineIdentity, now: Timestamp) -> Credentials {
    let key = PrivateKey::generate().unwrap();
    let request = key.request().unwrap();
    let chain = ca.issue_agent(&request, identity, LIFE, now).unwrap();
    (chain.0, key.to_der())
}

/// An agent's TLS that does not look whether chain and key belong together.
pub(crate) fn client(
    director: &Director,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> rustls::ClientConfig {
    #[derive(Debug)]
    struct Shows(Arc<CertifiedKey>);

    impl ResolvesClientCert for Shows {
        fn resolve(
            &self,
            _root_hint_subjects: &[&[u8]],
            _schemes: &[rustls::SignatureScheme],
        ) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }

        fn has_certs(&self) -> bool {
            true
        }
    }

    let key = tls::provider().key_provider.load_private_key(key).unwrap();
    let roots = tls::root_store(&[director.ca.root_der().clone()]).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(Shows(Arc::new(CertifiedKey::new(chain, key)))));
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

/// Connects as an agent by hand.
pub(crate) async fn connect(
    director: &Director,
    credentials: Option<Credentials>,
) -> Result<quinn::Connection, ConnectionError> {
    let tls = match credentials {
        Some((chain, key)) => client(director, chain, key),
        None => {
            let mut tls = tls::enroll_client(director.ca.root_digest()).unwrap();
            tls.alpn_protocols = vec![ALPN.to_vec()];
            tls
        }
    };
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint
        .connect_with(
            transport::client_config(tls).unwrap(),
            director.address,
            &gateway_name(director.ca.director()),
        )
        .unwrap()
        .await
}

/// How the director ends a connection that may already count as established on the client's side:
/// in TLS 1.3 the client is done before its certificate is looked at.
pub(crate) async fn fate(connected: Result<quinn::Connection, ConnectionError>) -> ConnectionError {
    match connected {
        Ok(connection) => {
            // Nothing comes before the end.
            tokio::select! {
                biased;
                error = connection.closed() => error,
                stream = connection.accept_bi() => match stream {
                    Ok(_) => panic!("the director opened a stream to a stranger"),
                    Err(error) => error,
                }
            }
        }
        Err(error) => error,
    }
}

/// Says hello and reads the welcome: only then has the director looked at the certificate. The session
/// lasts as long as the control stream that this returns.
pub(crate) async fn welcomed(
    connection: &quinn::Connection,
) -> (quinn::SendStream, quinn::RecvStream) {
    greet(connection)
        .await
        .expect("the director welcomes this agent")
}

/// The same, for who may be turned away.
pub(crate) async fn greet(
    connection: &quinn::Connection,
) -> Option<(quinn::SendStream, quinn::RecvStream)> {
    let hello = Hello {
        protocols: vec![PROTOCOL],
        agent_version: "0".to_owned(),
        capabilities: Vec::new(),
        boot_id: "b".to_owned(),
        epoch: Epoch(0),
        unfinished: Vec::new(),
    };
    let (mut send, mut recv) = connection.open_bi().await.ok()?;
    frame::write(&mut send, &hello).await.ok()?;
    let _: Welcome = frame::expect(&mut recv, FRAME_BYTES_MAX).await.ok()?;
    Some((send, recv))
}

// One thread, so that the log is of this test alone.
#[tokio::test]
async fn only_current_machines_of_this_director_get_in() {
    let (log, _logging) = Log::of_this_thread();
    let director = Director::start().await;
    let me = identity("demo-cp-0", 2);
    director.records.make_current(&me);
    let now = Timestamp::now();
    let at = |seconds: i64| Timestamp::from_second(now.as_second() + seconds).unwrap();
    let ca = &director.ca;
    // The same names under another root.
    let stranger = DirectorCa::create(ca.director().clone(), now).unwrap();
    let elsewhere = DirectorCa::create(DirectorId::new("d2").unwrap(), now).unwrap();
    let foreign = MachineIdentity {
        director: elsewhere.director().clone(),
        ..me.clone()
    };
    let operator = {
        let name = OperatorName::new("admin").unwrap();
        let issued = ca.issue_operator(name, LIFE, now).unwrap();
        let chain = pem::certificates(issued.certificate_pem.as_bytes()).unwrap();
        let key = PrivateKey::from_pem(&issued.key_pem).unwrap();
        (chain, key.to_der())
    };
    let server = {
        let issued = ca.issue_server(&[me.to_string()], &[], LIFE, now);
        // A URI is no DNS name; so with an honest one.
        assert!(issued.is_ok());
        let issued = ca
            .issue_server(&[gateway_name(ca.director())], &[], LIFE, now)
            .unwrap();
        (issued.chain.0, issued.key)
    };
    // A copy of another machine's certificate, which is no secret, without its key.
    let other = identity("demo-cp-1", 1);
    director.records.make_current(&other);
    let stolen = (agent(ca, &other, now).0, agent(ca, &me, now).1);
    let mut mixed = agent(ca, &me, now);
    mixed.0.remove(1);
    let dir = tempfile::tempdir().unwrap();
    let neighbour = Neighbour::boot(&director, dir.path()).await;
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("no certificate",         None,                                            Some(Reason::NoCertificate)),
        ("expired",                Some(agent(ca, &me, at(-7200))),                 Some(Reason::CertificateExpired)),
        ("expired a day ago",      Some(agent(ca, &me, at(-86_400))),               Some(Reason::CertificateExpired)),
        ("not yet valid",          Some(agent(ca, &me, at(7200))),                  Some(Reason::CertificateNotYetValid)),
        ("valid from tomorrow",    Some(agent(ca, &me, at(86_400))),                Some(Reason::CertificateNotYetValid)),
        ("old incarnation",        Some(agent(ca, &identity("demo-cp-0", 1), now)), Some(Reason::NotCurrent)),
        ("later incarnation",      Some(agent(ca, &identity("demo-cp-0", 3), now)), Some(Reason::NotCurrent)),
        ("unknown machine",        Some(agent(ca, &identity("demo-cp-9", 2), now)), Some(Reason::NotCurrent)),
        ("other root, same names", Some(agent(&stranger, &me, now)),                Some(Reason::CertificateInvalid)),
        ("other director",         Some(agent(&elsewhere, &foreign, now)),          Some(Reason::UnknownIssuer)),
        ("operator",               Some(operator),                                  Some(Reason::UnknownIssuer)),
        ("server",                 Some(server),                                    Some(Reason::CertificatePurpose)),
        ("another's key",          Some(stolen),                                    Some(Reason::CertificateInvalid)),
        ("leaf without its issuer", Some(mixed),                                    None),
        ("current",                Some(agent(ca, &me, now)),                       None),
    ];
    for (name, credentials, reason) in cases {
        let anonymous = credentials.is_none();
        let before = director.refusals(&log, reason.unwrap_or(Reason::Internal));
        let connected = connect(&director, credentials).await;
        let Some(reason) = reason else {
            let connection = connected.unwrap_or_else(|error| panic!("{name}: {error}"));
            let _control = welcomed(&connection).await;
            assert_eq!(connection.close_reason(), None, "{name}");
            assert_eq!(director.refusals(&log, Reason::Internal), before, "{name}");
            continue;
        };
        let error = fate(connected).await;
        match error {
            ConnectionError::ConnectionClosed(_) if !anonymous => {}
            ConnectionError::ApplicationClosed(_) if anonymous => {
                assert_eq!(Close::of(&error), Some(Close::Unauthenticated));
            }
            other => panic!("{name}: {other:?}"),
        }
        director.refuses_once(name, &log, reason, before).await;
    }
    wait_for("the connections of this test to end", || {
        (director.gateway().connected().len() == 1).then_some(())
    })
    .await;
    neighbour.unharmed(&director).await;
}

/// What ends the right of a machine to the session that it has.
#[derive(Debug, Clone, Copy)]
enum Ends {
    Revocation,
    DropOfTheCa,
    Date,
}

#[tokio::test]
async fn a_session_ends_with_the_right_to_it() {
    let (log, _logging) = Log::of_this_thread();
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        (Ends::Revocation,  Close::Revoked,         Reason::NotCurrent),
        (Ends::DropOfTheCa, Close::Unauthenticated, Reason::CaDropped),
        (Ends::Date,        Close::Expired,         Reason::CertificateLapsed),
    ];
    for (ends, close, reason) in cases {
        let clock = Clock::by_hand(Timestamp::now());
        let director = Director::start_with(|config| config.clock = clock.clone()).await;
        let me = identity("demo-w-0", 1);
        director.records.make_current(&me);
        let credentials = agent(&director.ca, &me, clock.now());
        let connection = connect(&director, Some(credentials)).await.unwrap();
        let _control = welcomed(&connection).await;
        wait_for("the session", || {
            director.gateway().connected().remove(&me.machine)
        })
        .await;
        let before = director.refusals(&log, reason);
        match ends {
            Ends::Revocation => {
                director.records.make_current(&identity("demo-w-0", 2));
                director.gateway().revoke(&me);
            }
            Ends::DropOfTheCa => {
                let next = director.ca.next_generation(clock.now()).unwrap();
                director.ca.enter(Stage::Alone(Arc::new(next)));
                director.gateway().bring_up_to_date();
            }
            Ends::Date => clock.advance(LIFE),
        }
        let end = connection.closed().await;
        assert_eq!(Close::of(&end), Some(close), "{ends:?}");
        let name = format!("{ends:?}");
        director.refuses_once(&name, &log, reason, before).await;
        assert!(director.gateway().connected().is_empty(), "{ends:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_closes_an_open_connection_and_the_door() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::boot(director.settings("demo-w-0", 1), dir.path());
    director.connected(&machine).await;
    let mut events = director.gateway().subscribe();
    let me = identity("demo-w-0", 1);
    let gateway = director.gateway().clone();
    let running = {
        let (gateway, name) = (gateway.clone(), machine.name.clone());
        tokio::spawn(async move {
            let request = exec("t1/hold", &["hold"]);
            gateway
                .run_step(&name, Incarnation(1), request, no_progress())
                .await
        })
    };
    wait_for("the step to begin", || {
        (machine.steps.begun("t1/hold") == 1).then_some(())
    })
    .await;

    director.records.make_current(&identity("demo-w-0", 2));
    // Even before it is closed, nothing new goes there.
    let refused = gateway
        .run_step(
            &machine.name,
            Incarnation(1),
            exec("t1/x", &[]),
            no_progress(),
        )
        .await;
    assert!(matches!(refused, Err(DeliveryError::NotCurrent { .. })));
    gateway.revoke(&me);
    assert!(gateway.connected().is_empty());
    assert!(matches!(
        running.await.unwrap(),
        Err(DeliveryError::Lost { .. })
    ));
    loop {
        match events.recv().await.unwrap() {
            Event::Disconnected { identity, .. } => {
                assert_eq!(identity, me);
                break;
            }
            Event::Connected { .. }
            | Event::ReportChanged { .. }
            | Event::Late { .. }
            | Event::Suspected { .. }
            | Event::Recovered { .. } => {}
        }
    }
    wait_for("the counter", || {
        (director.refused(Reason::NotCurrent) > 0).then_some(())
    })
    .await;
    // It knocks again, with the certificate it has, and is not let in.
    let credentials = agent(&director.ca, &me, Timestamp::now());
    let error = fate(connect(&director, Some(credentials)).await).await;
    assert!(
        matches!(error, ConnectionError::ConnectionClosed(_)),
        "{error:?}"
    );
    assert!(gateway.connected().is_empty());
    assert_eq!(machine.steps.begun("t1/x"), 0);
}

/// What it is told ends its kubelet: so nobody is told whom a director refuses that knows less than it did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_machine_that_was_replaced_is_told_so() {
    const REFUSALS: u64 = 5;
    for (now_current, told) in [("demo-w-0", 4, 1), ("demo-w-0", 2, 0), ("demo-w-1", 4, 0)]
        .map(|(machine, incarnation, told)| (identity(machine, incarnation), told))
    {
        let director = Director::start().await;
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::boot(director.settings("demo-w-0", 3), dir.path());
        director.connected(&machine).await;
        director.records.forget("demo-w-0");
        director.records.make_current(&now_current);
        director.gateway().revoke(&identity("demo-w-0", 3));
        wait_for("it to knock again and again", || {
            (director.refused(Reason::NotCurrent) >= REFUSALS).then_some(())
        })
        .await;
        assert_eq!(
            *machine.steps.replaced.lock().unwrap(),
            told,
            "{now_current}"
        );
        machine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_connection_of_a_machine_wins() {
    let director = Director::start().await;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let settings = director.settings("demo-w-0", 1);
    let first = Machine::boot(settings.clone(), one.path());
    director.connected(&first).await;
    first.stop().await;
    // A snapshot of the machine: the same certificate.
    for file in ["identity.pem", "roots.pem"] {
        std::fs::copy(one.path().join(file), two.path().join(file)).unwrap();
    }
    let first = Machine::boot(settings.clone(), one.path());
    director.connected(&first).await;
    let address = director.gateway().connected()[&first.name].address;
    let second = Machine::boot(settings, two.path());
    wait_for("the newer connection", || {
        let view = director.gateway().connected().remove(&second.name)?;
        (view.address != address).then_some(())
    })
    .await;
    assert_eq!(director.gateway().connected().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_in_the_chain_does_not_help_who_is_not_below_it() {
    let director = Director::start().await;
    let now = Timestamp::now();
    // Somebody who copied the director's root off the wire, and signs by himself.
    let rogue = DirectorCa::create(director.ca.director().clone(), now).unwrap();
    let name = gateway_name(director.ca.director());
    let mut issued = rogue
        .issue_server(std::slice::from_ref(&name), &[], LIFE, now)
        .unwrap();
    issued.chain.0.push(director.ca.root_der().clone());
    let tls = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(issued.chain.0, issued.key)
        .unwrap();
    let mut tls = tls;
    tls.alpn_protocols = vec![windlass_common::wire::ALPN_ENROLL.to_vec()];
    let server = transport::server_config(tls).unwrap();
    let server = quinn::Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = server.local_addr().unwrap();
    let accepting = Arc::new(server);
    let task = {
        let server = Arc::clone(&accepting);
        tokio::spawn(async move { server.accept().await.unwrap().await.map(|_| ()) })
    };
    let client = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let pinned = tls::enroll_client(director.ca.root_digest()).unwrap();
    let refused = client
        .connect_with(transport::client_config(pinned).unwrap(), address, &name)
        .unwrap()
        .await;
    let error = refused.unwrap_err();
    // The names fit, the signature does not.
    assert!(error.to_string().contains("BadSignature"), "{error}");
    assert!(task.await.unwrap().is_err());
}

#[test]
fn the_ca_survives_pem_and_knows_its_own() {
    use windlass_common::secret::SecretBytes;
    use windlass_director::pki::CaError;
    let now = Timestamp::now();
    let d1 = DirectorId::new("d1").unwrap();
    let ca = DirectorCa::create(d1.clone(), now).unwrap();
    let text = ca.to_pem();
    let again = DirectorCa::from_pem(d1.clone(), &text, now).unwrap();
    assert_eq!(again.root_digest(), ca.root_digest());
    assert_eq!(again.derive(b"x"), ca.derive(b"x"));
    assert_ne!(again.derive(b"x"), ca.derive(b"y"));
    // What the one issues the other verifies.
    let me = identity("demo-cp-0", 1);
    let (chain, _) = agent(&again, &me, now);
    let verifier = ca.agent_verifier().unwrap();
    let at = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(
        now.as_second().try_into().unwrap(),
    ));
    verifier
        .verify_client_cert(&chain[0], &chain[1..], at)
        .unwrap();

    let d2 = DirectorId::new("d2").unwrap();
    let other = DirectorCa::from_pem(d2, &text, now);
    assert!(matches!(other, Err(CaError::OtherDirector(_))));
    let half = SecretBytes::new(text.expose()[..text.expose().len() / 2].to_vec());
    assert!(DirectorCa::from_pem(d1.clone(), &half, now).is_err());
    // Two records mixed up: keys that do not fit.
    let second = DirectorCa::create(d1.clone(), now).unwrap().to_pem();
    let (first, second) = (
        String::from_utf8(text.expose().to_vec()).unwrap(),
        String::from_utf8(second.expose().to_vec()).unwrap(),
    );
    let key = "-----BEGIN PRIVATE KEY-----";
    let at = |text: &str| text.rfind(key).unwrap();
    let mixed = format!("{}{}", &first[..at(&first)], &second[at(&second)..]);
    let mixed = DirectorCa::from_pem(d1, &SecretBytes::new(mixed.into_bytes()), now);
    assert!(matches!(mixed, Err(CaError::Damaged(_))), "{mixed:?}");
}

/// A machine that believes it is yesterday takes nobody's certificate; one that believes it is tomorrow is
/// let in by the director's clock. Neither harms anybody, and the first comes in when its clock is right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_clock_is_a_day_off_waits_for_the_right_time_or_goes_by_the_directors() {
    const DAY_S: i64 = 24 * 3600;
    for (name, off_s, gets_in) in [("behind", -DAY_S, false), ("ahead", DAY_S, true)] {
        let director = Director::start().await;
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let neighbour = Neighbour::boot(&director, other.path()).await;
        let right = Timestamp::now();
        let off = Timestamp::from_second(right.as_second() + off_s).unwrap();
        let clock = Clock::by_hand(off);
        let machine = Machine::boot_at(&clock, director.settings("demo-w-0", 1), dir.path());
        if !gets_in {
            wait_for("its refusal of the director's certificate", || {
                (director.refused(Reason::HandshakeFailed) > 1).then_some(())
            })
            .await;
            assert_eq!(director.gateway().connected().len(), 1, "{name}");
            clock.set(right);
        }
        director.connected(&machine).await;
        let ran = director
            .gateway()
            .run_step(
                &machine.name,
                machine.incarnation,
                exec("clock/0", &[]),
                no_progress(),
            )
            .await;
        assert_eq!(ran.unwrap().outcome, Outcome::Changed, "{name}");
        neighbour.unharmed(&director).await;
        machine.stop().await;
    }
}
