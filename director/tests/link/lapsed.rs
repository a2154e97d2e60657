//! Certificates that lapsed: who comes back with one, and who does not; and a director that was away.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;

use windlass_common::clock::{Clock, later};
use windlass_common::id::{Digest, Epoch, OperatorName};
use windlass_common::lapsed::{Channel, channel, statement};
use windlass_common::limits::{AGENT_CERTIFICATE_LIFE, LAPSED_GRACE};
use windlass_common::pki::{Leaf, MachineIdentity, PrivateKey, gateway_name, pem};
use windlass_common::secret::SecretBytes;
use windlass_common::transport::Close;
use windlass_common::wire::frame;
use windlass_common::wire::message::{Body, EnrollResponse, LapsedRequest, Refusal, RefusalCode};
use windlass_common::{tls, transport};
use windlass_director::gateway::{Reason, Total};
use windlass_director::pki::{DirectorCa, Stage};

use crate::log::Log;
use crate::world::{Director, Machine, identity, wait_for};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A machine's last certificate with its key.
struct Last {
    chain: Vec<Vec<u8>>,
    key: PrivateKey,
}

impl Last {
    fn issue(ca: &DirectorCa, me: &MachineIdentity, now: Timestamp) -> Last {
        let key = PrivateKey::generate().unwrap();
        let request = key.request().unwrap();
        let chain = ca
            .issue_agent(&request, me, AGENT_CERTIFICATE_LIFE, now)
            .unwrap();
        let chain = chain.to_der();
        Last { chain, key }
    }

    fn operator(ca: &DirectorCa, now: Timestamp) -> Last {
        let name = OperatorName::new("admin").unwrap();
        let issued = ca
            .issue_operator(name, AGENT_CERTIFICATE_LIFE, now)
            .unwrap();
        let chain = pem::certificates(issued.certificate_pem.as_bytes()).unwrap();
        Last {
            chain: chain.iter().map(|der| der.to_vec()).collect(),
            key: PrivateKey::from_pem(&issued.key_pem).unwrap(),
        }
    }
}

async fn stranger(director: &Director) -> quinn::Connection {
    let mut tls = tls::enroll_client_trusting(&director.ca.roots()).unwrap();
    // Late enough for the director's certificate, which may be of before its clock was set back.
    let at = director.config.clock.now().max(Timestamp::now());
    tls.time_provider = Arc::new(Clock::by_hand(at));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let name = gateway_name(director.ca.director());
    endpoint
        .connect_with(
            transport::client_config(tls).unwrap(),
            director.address,
            &name,
        )
        .unwrap()
        .await
        .unwrap()
}

/// An honest request.
fn request(last: &Last, next: &PrivateKey, channel: &Channel) -> LapsedRequest {
    let request_der = next.request().unwrap();
    let said = statement(channel, &last.chain[0], &request_der);
    LapsedRequest {
        chain_der: last.chain.clone(),
        last_signature: last.key.sign(&said).unwrap(),
        next_signature: next.sign(&said).unwrap(),
        request_der,
    }
}

async fn ask(
    connection: &quinn::Connection,
    request: &LapsedRequest,
) -> Result<EnrollResponse, RefusalCode> {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    frame::write(&mut send, request).await.unwrap();
    let answer = frame::read(&mut recv, 1 << 20).await.unwrap().unwrap();
    Close::Done.close(connection);
    if answer.kind == Refusal::KIND {
        return Err(answer.body::<Refusal>().unwrap().code);
    }
    Ok(answer.body().unwrap())
}

/// What is wrong, if anything.
#[derive(Debug, Clone, Copy)]
enum Case {
    /// This long after the certificate's issue.
    After(Duration),
    /// The director's clock has been set back since.
    ClockBack(Duration),
    NeverGrace,
    OldIncarnation,
    Deleted,
    OtherMachinesKey,
    NewKeyOfAnother,
    OtherRequest,
    Replayed,
    OtherIssuer,
    CaDropped,
    CaOverlaps,
    Operator,
    NoChain,
    ChainTooLong,
}

async fn outcome(case: Case) -> (Result<(), RefusalCode>, Option<Reason>) {
    let clock = Clock::by_hand(Timestamp::now());
    let director = Director::start_with(|config| {
        config.clock = clock.clone();
        if matches!(case, Case::NeverGrace) {
            config.lapsed_grace = Duration::ZERO;
        }
    })
    .await;
    let (ca, now) = (&director.ca, clock.now());
    let me = identity("demo-w-0", 2);
    director.records.make_current(&me);
    let mut last = match case {
        Case::OtherIssuer => {
            let rogue = DirectorCa::create(ca.director().clone(), now).unwrap();
            Last::issue(&rogue, &me, now)
        }
        Case::OldIncarnation => Last::issue(ca, &identity("demo-w-0", 1), now),
        Case::Operator => Last::operator(ca, now),
        _ => Last::issue(ca, &me, now),
    };
    match case {
        Case::After(passed) => clock.advance(passed),
        Case::ClockBack(by) => clock.set(now.checked_sub(by).unwrap()),
        _ => clock.advance(AGENT_CERTIFICATE_LIFE + SECOND),
    }
    match case {
        Case::Deleted => director.records.make_current(&identity("demo-w-0", 3)),
        Case::OtherMachinesKey => last.key = PrivateKey::generate().unwrap(),
        Case::CaDropped | Case::CaOverlaps => {
            let older = ca.stage().newest().clone();
            let newer = Arc::new(ca.next_generation(clock.now()).unwrap());
            ca.enter(match case {
                Case::CaOverlaps => Stage::Reissue { older, newer },
                _ => Stage::Alone(newer),
            });
        }
        Case::ChainTooLong => last.chain.push(ca.root_der().to_vec()),
        _ => {}
    }
    let connection = stranger(&director).await;
    let next = PrivateKey::generate().unwrap();
    let mut asked = request(&last, &next, &channel(&connection).unwrap());
    match case {
        Case::Replayed => {
            let other = stranger(&director).await;
            asked = request(&last, &next, &channel(&other).unwrap());
        }
        Case::NewKeyOfAnother => asked.next_signature = asked.last_signature.clone(),
        Case::OtherRequest => {
            asked.request_der = PrivateKey::generate().unwrap().request().unwrap()
        }
        Case::NoChain => asked.chain_der.clear(),
        _ => {}
    }
    let answer = ask(&connection, &asked).await;
    if let Ok(response) = &answer {
        let leaf = Leaf::parse(&response.chain_der[0]).unwrap();
        assert_eq!(leaf.machine().unwrap(), me);
        assert_eq!(
            leaf.not_after.as_second(),
            later(clock.now(), AGENT_CERTIFICATE_LIFE).as_second()
        );
    }
    let refusals = director.gateway().counters().refusals;
    let reason = refusals.into_iter().find(|(_, count)| *count > 0);
    (answer.map(|_| ()), reason.map(|(reason, _)| reason))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lapsed_certificate_brings_back_its_machine_and_nobody_else() {
    let life = AGENT_CERTIFICATE_LIFE;
    let taken = (Ok(()), None);
    let refused = |reason| (Err(RefusalCode::Incarnation), Some(reason));
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        (Case::After(life + SECOND),                       taken),
        (Case::After(life + LAPSED_GRACE - SECOND),        taken),
        (Case::After(life + LAPSED_GRACE + SECOND),        refused(Reason::CertificateExpired)),
        (Case::After(life + 365 * DAY),                    refused(Reason::CertificateExpired)),
        // The machine's clock is ahead: it believes that its certificate is over.
        (Case::After(life / 2),                            taken),
        // The director's clock is a day ahead, and a day behind.
        (Case::After(life + DAY),                          taken),
        (Case::ClockBack(DAY),                             refused(Reason::UnknownIssuer)),
        (Case::NeverGrace,                                 refused(Reason::CertificateExpired)),
        (Case::OldIncarnation,                             refused(Reason::NotCurrent)),
        (Case::Deleted,                                    refused(Reason::NotCurrent)),
        (Case::OtherMachinesKey,                           refused(Reason::CertificateInvalid)),
        (Case::NewKeyOfAnother,                            refused(Reason::CertificateInvalid)),
        (Case::OtherRequest,                               refused(Reason::CertificateInvalid)),
        (Case::Replayed,                                   refused(Reason::CertificateInvalid)),
        (Case::OtherIssuer,                                refused(Reason::UnknownIssuer)),
        (Case::CaDropped,                                  refused(Reason::UnknownIssuer)),
        (Case::CaOverlaps,                                 taken),
        (Case::Operator,                                   refused(Reason::UnknownIssuer)),
        (Case::NoChain,                                    refused(Reason::EnrollmentMalformed)),
        (Case::ChainTooLong,                               refused(Reason::EnrollmentMalformed)),
    ];
    for (case, wanted) in cases {
        assert_eq!(outcome(case).await, wanted, "{case:?}");
    }
}

async fn goes_away(director: &Director) {
    director.gateway().shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_come_back_by_themselves_after_the_director_was_away_for_three_days() {
    let clock = Clock::by_hand(Timestamp::now());
    let mut director = Director::start_with(|config| config.clock = clock.clone()).await;
    let names = ["demo-cp-0", "demo-w-0", "demo-w-1", "demo-w-2"];
    let dirs = names.map(|_| tempfile::tempdir().unwrap());
    let mut machines = Vec::new();
    for (name, dir) in names.iter().zip(&dirs) {
        let machine = Machine::boot_at(&clock, director.settings(name, 1), dir.path());
        director.connected(&machine).await;
        machines.push(machine);
    }
    let enrolled = director.records.redemptions().len();
    goes_away(&director).await;
    wait_for("the agents to notice", || {
        let alone = machines.iter().all(|machine| !machine.link.is_connected());
        alone.then_some(())
    })
    .await;
    clock.advance(3 * DAY);
    director.start_again(Epoch(2)).await;
    for machine in &machines {
        director.connected(machine).await;
        let read = std::fs::read(dirs[0].path().join("identity.pem")).unwrap();
        let chain = pem::certificates(&read).unwrap();
        assert!(Leaf::parse(&chain[0]).unwrap().not_after > clock.now());
    }
    // Nobody needed a token.
    assert_eq!(director.records.redemptions().len(), enrolled);
    // One that was replaced meanwhile stays out, with whatever it has.
    goes_away(&director).await;
    clock.advance(3 * DAY);
    director.records.make_current(&identity("demo-w-2", 2));
    director.start_again(Epoch(3)).await;
    for machine in &machines[..3] {
        director.connected(machine).await;
    }
    wait_for("the refusals", || {
        let refused = director.gateway().counters().refused(Reason::NotCurrent);
        (refused >= 2).then_some(())
    })
    .await;
    assert_eq!(director.gateway().connected().len(), 3);
}

// One thread, so that the log is of this test alone.
#[tokio::test]
async fn after_the_grace_window_the_agent_says_what_to_do_and_a_fresh_token_brings_it_back() {
    let (log, _logging) = Log::of_this_thread();
    let clock = Clock::by_hand(Timestamp::now());
    let mut director = Director::start_with(|config| config.clock = clock.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let settings = director.settings("demo-w-0", 1);
    let placed = Arc::new(Mutex::new(settings.clone()));
    let machine = Machine::boot_rereading(&clock, settings, dir.path(), Arc::clone(&placed));
    director.connected(&machine).await;
    goes_away(&director).await;
    clock.advance(AGENT_CERTIFICATE_LIFE + LAPSED_GRACE + DAY);
    director.start_again(Epoch(2)).await;
    wait_for("the agent's advice", || {
        log.contains("a fresh token with `windlass node enroll demo-w-0`")
            .then_some(())
    })
    .await;
    assert!(log.contains("the last certificate does not count"));
    assert!(director.gateway().connected().is_empty());

    // Settings of another machine in the place of its own bring nobody in.
    let enrolled = director.records.redemptions().len();
    *placed.lock().unwrap() = director.settings("demo-w-1", 1);
    wait_for("the refusal to take them", || {
        log.contains("the settings are of another machine now")
            .then_some(())
    })
    .await;
    assert!(director.gateway().connected().is_empty());

    // Its own with a fresh token do, without a restart, and it keeps the key that it has.
    let held = || {
        let pem = std::fs::read(dir.path().join("identity.pem")).unwrap();
        PrivateKey::from_pem(&SecretBytes::new(pem)).unwrap()
    };
    let key = held().public_key();
    *placed.lock().unwrap() = director.settings("demo-w-0", 1);
    director.connected(&machine).await;
    assert_eq!(held().public_key().as_bytes(), key.as_bytes());
    let redeemed = director.records.redemptions().split_off(enrolled);
    assert!(redeemed.iter().any(Result::is_ok), "{redeemed:?}");
    machine.stop().await;
}

/// It has lost the bundle of its CA with its identity, and was born before that CA.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_without_identity_finds_its_director_by_the_root_in_fresh_settings() {
    let clock = Clock::by_hand(Timestamp::now());
    let director = Director::start_with(|config| config.clock = clock.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let fresh = director.settings("demo-w-0", 1);
    let mut born_with = fresh.clone();
    born_with.ca_digest = Digest::of(b"a root that was dropped since");
    let placed = Arc::new(Mutex::new(born_with.clone()));
    let machine = Machine::boot_rereading(&clock, born_with, dir.path(), Arc::clone(&placed));
    wait_for("a handshake that the machine gives up", || {
        let begun = director.gateway().counters().total(Total::HandshakesBegun);
        (begun > 0).then_some(())
    })
    .await;
    assert!(director.gateway().connected().is_empty());
    *placed.lock().unwrap() = fresh;
    director.connected(&machine).await;
    machine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_clock_is_behind_believes_the_director_that_its_certificate_is_over() {
    let clock = Clock::by_hand(Timestamp::now());
    let behind = Clock::by_hand(clock.now());
    let mut director = Director::start_with(|config| config.clock = clock.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::boot_at(&behind, director.settings("demo-w-0", 1), dir.path());
    director.connected(&machine).await;
    let enrolled = director.records.redemptions().len();
    goes_away(&director).await;
    // A day and more for the director; its certificate is from before, so the machine takes it.
    clock.advance(AGENT_CERTIFICATE_LIFE + SECOND);
    behind.advance(AGENT_CERTIFICATE_LIFE - DAY / 2);
    let held = clock.now();
    clock.set(behind.now());
    director.start_again(Epoch(2)).await;
    clock.set(held);
    director.connected(&machine).await;
    assert_eq!(director.records.redemptions().len(), enrolled);
}
