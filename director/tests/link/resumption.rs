//! Sessions that are resumed: the short handshake, and that it opens no door that is shut.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use windlass_common::clock::Clock;
use windlass_common::id::Epoch;
use windlass_common::limits::{AGENT_CERTIFICATE_LIFE, TICKET_KEY_PERIOD, TICKETS_PER_CONNECTION};
use windlass_common::pki::{MachineIdentity, PrivateKey, gateway_name};
use windlass_common::transport::Close;
use windlass_common::wire::{ALPN, ALPN_ENROLL};
use windlass_common::{tls, transport};
use windlass_director::pki::Stage;

use crate::certificates::{fate, greet, welcomed};
use crate::world::{Director, Machine, identity, vault, wait_for};

/// Verifies as the agent does, and counts how often: not at all when a session is resumed.
#[derive(Debug)]
struct Counting {
    verifier: Arc<WebPkiServerVerifier>,
    full: Arc<AtomicU32>,
}

impl ServerCertVerifier for Counting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.full.fetch_add(1, Ordering::Relaxed);
        self.verifier
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// An agent's TLS, by hand.
struct Client {
    tls: rustls::ClientConfig,
    full: Arc<AtomicU32>,
}

impl Client {
    fn new(director: &Director, me: &MachineIdentity, life: Duration) -> Client {
        let key = PrivateKey::generate().unwrap();
        let now = director.config.clock.now();
        let issued = director
            .ca
            .issue_agent(&key.request().unwrap(), me, life, now);
        let roots = director.ca.roots();
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::new(tls::root_store(&roots).unwrap()),
            tls::provider(),
        );
        let full = Arc::new(AtomicU32::new(0));
        let mut tls = tls::agent_client(&roots, issued.unwrap().0, key.to_der()).unwrap();
        tls.dangerous().set_certificate_verifier(Arc::new(Counting {
            verifier: verifier.build().unwrap(),
            full: Arc::clone(&full),
        }));
        tls.resumption = Resumption::in_memory_sessions(TICKETS_PER_CONNECTION);
        Client { tls, full }
    }

    async fn connect(
        &self,
        director: &Director,
    ) -> Result<quinn::Connection, quinn::ConnectionError> {
        self.connecting(director).await
    }

    fn connecting(&self, director: &Director) -> quinn::Connecting {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint
            .connect_with(
                transport::client_config(self.tls.clone()).unwrap(),
                director.address,
                &gateway_name(director.ca.director()),
            )
            .unwrap()
    }

    fn full_handshakes(&self) -> u32 {
        self.full.load(Ordering::Relaxed)
    }
}

/// How the second connection went.
#[derive(Debug, PartialEq, Eq)]
enum Second {
    /// Welcomed after a short handshake.
    Resumed,
    /// Welcomed after a full handshake.
    Full,
    /// The session was resumed, and closed before any frame.
    Closed(Close),
}

async fn restart(director: &mut Director) {
    director.gateway().shutdown(Duration::from_secs(5)).await;
    director.start_again(Epoch(2)).await;
}

/// What happens between the first connection and the second.
#[derive(Debug, Clone, Copy)]
enum Meanwhile {
    Nothing,
    Restart,
    RestartWithAnotherSealKey,
    RestartAfterOneKeyPeriod,
    TwoKeyPeriods,
    Revoked,
    Expired,
    CaDropped,
    CaDroppedAndRestart,
}

impl Meanwhile {
    async fn happen(self, director: &mut Director, clock: &Clock, me: &MachineIdentity) {
        match self {
            Meanwhile::Nothing => {}
            Meanwhile::Restart => restart(director).await,
            Meanwhile::RestartWithAnotherSealKey => {
                director.vault = vault(director.dir.path(), 8).await;
                restart(director).await;
            }
            Meanwhile::RestartAfterOneKeyPeriod => {
                clock.advance(TICKET_KEY_PERIOD);
                restart(director).await;
            }
            Meanwhile::TwoKeyPeriods => clock.advance(TICKET_KEY_PERIOD * 2),
            Meanwhile::Revoked => {
                let next = identity(me.machine.as_str(), 2);
                director.records.make_current(&next);
            }
            Meanwhile::Expired => clock.advance(LIFE + Duration::from_secs(1)),
            Meanwhile::CaDropped | Meanwhile::CaDroppedAndRestart => {
                let next = director.ca.next_generation(clock.now()).unwrap();
                director.ca.enter(Stage::Alone(Arc::new(next)));
                if matches!(self, Meanwhile::CaDroppedAndRestart) {
                    restart(director).await;
                }
            }
        }
    }
}

/// Short: over before the ticket's key is.
const LIFE: Duration = Duration::from_secs(3600);
/// Longer than any key of tickets.
const LONG: Duration = Duration::from_secs(72 * 3600);

async fn second(meanwhile: Meanwhile, life: Duration) -> Second {
    let clock = Clock::by_hand(Timestamp::now());
    let mut director = Director::start_with(|config| config.clock = clock.clone()).await;
    let me = identity("demo-w-0", 1);
    director.records.make_current(&me);
    let client = Client::new(&director, &me, life);
    let first = client.connect(&director).await.unwrap();
    let _control = welcomed(&first).await;
    assert_eq!(client.full_handshakes(), 1);
    let sealed = director.config.tickets.as_ref().unwrap().counts().sealed;
    assert_eq!(sealed, TICKETS_PER_CONNECTION as u64);
    meanwhile.happen(&mut director, &clock, &me).await;

    let before = director.config.tickets.as_ref().unwrap().counts();
    let connection = client.connect(&director).await.unwrap();
    let after = director.config.tickets.as_ref().unwrap().counts();
    let resumed = client.full_handshakes() == 1;
    // Both ends agree.
    assert_eq!(after.opened - before.opened, u64::from(resumed));
    assert_eq!(after.refused - before.refused, u64::from(!resumed));
    let greeted = greet(&connection).await.is_some();
    match (greeted, resumed) {
        (true, true) => Second::Resumed,
        (true, false) => Second::Full,
        (false, true) => Second::Closed(Close::of(&fate(Ok(connection)).await).unwrap()),
        (false, false) => panic!("a full handshake that is closed: {meanwhile:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_session_is_authorised_as_if_it_were_new() {
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        (Meanwhile::Nothing,                   LONG, Second::Resumed),
        (Meanwhile::Restart,                   LONG, Second::Resumed),
        (Meanwhile::RestartAfterOneKeyPeriod,  LONG, Second::Resumed),
        (Meanwhile::TwoKeyPeriods,             LONG, Second::Full),
        (Meanwhile::RestartWithAnotherSealKey, LONG, Second::Full),
        (Meanwhile::Revoked,                   LONG, Second::Closed(Close::Revoked)),
        (Meanwhile::Expired,                   LIFE, Second::Closed(Close::Expired)),
        (Meanwhile::CaDropped,                 LONG, Second::Closed(Close::Unauthenticated)),
        (Meanwhile::CaDroppedAndRestart,       LONG, Second::Closed(Close::Unauthenticated)),
    ];
    for (meanwhile, life, wanted) in cases {
        assert_eq!(second(meanwhile, life).await, wanted, "{meanwhile:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_of_a_stranger_opens_nothing() {
    let director = Director::start().await;
    // No certificate; the tickets of this handshake say so.
    let mut stranger = tls::enroll_client(director.ca.root_digest()).unwrap();
    stranger.resumption = Resumption::in_memory_sessions(TICKETS_PER_CONNECTION);
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let name = gateway_name(director.ca.director());
    let connect = |alpn: &[u8]| {
        let mut tls = stranger.clone();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let config = transport::client_config(tls).unwrap();
        endpoint
            .connect_with(config, director.address, &name)
            .unwrap()
    };
    let opened = || director.config.tickets.as_ref().unwrap().counts().opened;
    let first = connect(ALPN_ENROLL).await.unwrap();
    // Tickets come after the handshake; a second one uses one as soon as it is there.
    let mut tries = 0;
    while opened() == 0 {
        assert!(tries < 100, "no ticket came");
        tries += 1;
        let connected = connect(ALPN).await;
        let error = fate(connected).await;
        assert_eq!(Close::of(&error), Some(Close::Unauthenticated));
    }
    Close::Done.close(&first);
    assert!(director.gateway().connected().is_empty());
}

/// Its first packets could be sent again by whoever has seen them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_sends_nothing_before_the_handshake_is_over() {
    let director = Director::start().await;
    let me = identity("demo-w-0", 1);
    director.records.make_current(&me);
    let mut client = Client::new(&director, &me, LONG);
    client.tls.enable_early_data = true;
    let first = client.connect(&director).await.unwrap();
    let _control = welcomed(&first).await;
    let connecting = client.connecting(&director);
    let Err(connecting) = connecting.into_0rtt() else {
        panic!("the director's ticket allows 0-RTT");
    };
    // There was a ticket, and the session is resumed with it.
    let second = connecting.await.unwrap();
    let _control = welcomed(&second).await;
    assert_eq!(client.full_handshakes(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_resume_after_a_restart_and_start_anew_with_a_new_certificate() {
    let clock = Clock::by_hand(Timestamp::now());
    let mut director = Director::start_with(|config| config.clock = clock.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::boot_at(&clock, director.settings("demo-w-0", 1), dir.path());
    director.connected(&machine).await;
    let opened = |director: &Director| director.config.tickets.as_ref().unwrap().counts().opened;
    for _ in 0..3 {
        restart(&mut director).await;
        director.connected(&machine).await;
        assert_eq!(opened(&director), 1);
    }
    let read = || std::fs::read_to_string(dir.path().join("identity.pem")).unwrap();
    let held = read();
    clock.advance(AGENT_CERTIFICATE_LIFE * 3 / 4);
    wait_for("a new certificate", || (read() != held).then_some(())).await;
    restart(&mut director).await;
    director.connected(&machine).await;
    assert_eq!(opened(&director), 0);
    // From then on, again.
    restart(&mut director).await;
    director.connected(&machine).await;
    assert_eq!(opened(&director), 1);
}
