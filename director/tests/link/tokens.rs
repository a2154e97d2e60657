//! Enrollment tokens, honest and otherwise.

use jiff::Timestamp;

use windlass_agent::link::{Link, LinkPaths};
use windlass_common::id::Incarnation;
use windlass_common::pki::{MachineIdentity, PrivateKey, gateway_name, pem};
use windlass_common::secret::Secret;
use windlass_common::settings::Settings;
use windlass_common::wire::frame;
use windlass_common::wire::message::{Body, EnrollRequest, EnrollResponse, Refusal, RefusalCode};
use windlass_common::{tls, transport};
use windlass_director::gateway::{Reason, Total};

use crate::log::Log;
use crate::world::{Director, Machine, identity, machine_name, wait_for};

/// Enrolls by hand.
pub(crate) async fn enroll(
    director: &Director,
    claim: &MachineIdentity,
    token: &Secret,
    request_der: Vec<u8>,
) -> Result<EnrollResponse, RefusalCode> {
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    enroll_from(&endpoint, director, claim, token, &request_der)
        .await
        .expect("the director answers")
}

/// Enrolls by hand from an address that may be refused unseen.
pub(crate) async fn enroll_from(
    endpoint: &quinn::Endpoint,
    director: &Director,
    claim: &MachineIdentity,
    token: &Secret,
    request_der: &[u8],
) -> Option<Result<EnrollResponse, RefusalCode>> {
    let tls = tls::enroll_client(director.ca.root_digest()).unwrap();
    let connecting = endpoint
        .connect_with(
            transport::client_config(tls).unwrap(),
            director.address,
            &gateway_name(director.ca.director()),
        )
        .unwrap();
    let connection = connecting.await.ok()?;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let request = EnrollRequest {
        token: token.clone(),
        cluster: claim.cluster.clone(),
        machine: claim.machine.clone(),
        incarnation: claim.incarnation,
        request_der: request_der.to_vec(),
    };
    frame::write(&mut send, &request).await.unwrap();
    let answer = frame::read(&mut recv, 1 << 20).await.unwrap().unwrap();
    if answer.kind == Refusal::KIND {
        return Some(Err(answer.body::<Refusal>().unwrap().code));
    }
    Some(Ok(answer.body().unwrap()))
}

fn later(seconds: i64) -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second() + seconds).unwrap()
}

// One thread, so that the log is of this test alone.
#[tokio::test]
async fn a_token_counts_for_one_machine_one_incarnation_and_one_key() {
    let (log, _logging) = Log::of_this_thread();
    let director = Director::start().await;
    let me = identity("demo-cp-0", 2);
    let old = identity("demo-cp-0", 1);
    let other = identity("demo-cp-1", 1);
    director.records.make_current(&me);
    director.records.make_current(&other);
    let token = director.records.issue(&me, later(3600));
    let late = director.records.issue(&me, later(-1));
    let mine = PrivateKey::generate().unwrap();
    let thief = PrivateKey::generate().unwrap();
    let forged = {
        // The thief's request with my key in it.
        let mut request = thief.request().unwrap();
        let (theirs, mine) = (thief.public_key(), mine.public_key());
        let length = theirs.as_bytes().len();
        let at = request
            .windows(length)
            .position(|bytes| bytes == theirs.as_bytes())
            .unwrap();
        request[at..at + length].copy_from_slice(mine.as_bytes());
        request
    };
    let unknown = Secret::new("0".repeat(64));
    let empty = Secret::new(String::new());
    let nothing = Vec::new();
    let (by_me, by_thief) = (mine.request().unwrap(), thief.request().unwrap());
    let token_refused = Err(RefusalCode::Token);
    let malformed = Err(RefusalCode::Malformed);
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("unknown token",            &me,    &unknown, &by_me,    token_refused, Some(Reason::TokenUnknown)),
        ("empty token",              &me,    &empty,   &by_me,    token_refused, Some(Reason::TokenUnknown)),
        ("expired",                  &me,    &late,    &by_me,    token_refused, Some(Reason::TokenExpired)),
        ("for another machine",      &other, &token,   &by_me,    token_refused, Some(Reason::TokenOtherMachine)),
        ("for an old incarnation",   &old,   &token,   &by_me,    token_refused, Some(Reason::NotCurrent)),
        ("no possession of the key", &me,    &token,   &forged,   malformed,     Some(Reason::EnrollmentMalformed)),
        ("no request at all",        &me,    &token,   &nothing,  malformed,     Some(Reason::EnrollmentMalformed)),
        ("the first key",            &me,    &token,   &by_me,    Ok(()),        None),
        ("another key afterwards",   &me,    &token,   &by_thief, token_refused, Some(Reason::TokenOtherKey)),
        ("the first key again",      &me,    &token,   &by_me,    Ok(()),        None),
    ];
    for (name, claim, token, request, wanted, reason) in cases {
        let before = director.refusals(&log, reason.unwrap_or(Reason::Internal));
        let answer = enroll(&director, claim, token, request.clone()).await;
        assert_eq!(answer.map(|_| ()), wanted, "{name}");
        match reason {
            Some(reason) => director.refuses_once(name, &log, reason, before).await,
            None => assert_eq!(director.refusals(&log, Reason::Internal), before, "{name}"),
        }
    }
    assert_eq!(director.gateway().counters().total(Total::Enrollments), 2);
    // The refusals do not tell a stranger which of these it was; the director's log does.
    let reasons = director.records.redemptions();
    assert_eq!(reasons.iter().filter(|reason| reason.is_ok()).count(), 2);
    assert!(reasons.iter().any(|reason| {
        reason
            .as_ref()
            .is_err_and(|why| why.contains("another key has used the token"))
    }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_two_keys_race_for_a_token_one_wins() {
    let director = Director::start().await;
    for round in 0..10 {
        let me = identity("demo-cp-0", round + 1);
        director.records.make_current(&me);
        let token = director.records.issue(&me, later(3600));
        let request = || PrivateKey::generate().unwrap().request().unwrap();
        let (first, second) = tokio::join!(
            enroll(&director, &me, &token, request()),
            enroll(&director, &me, &token, request()),
        );
        assert!(first.is_ok() != second.is_ok(), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_crashed_before_it_saved_its_certificate_is_not_stranded() {
    let director = Director::start().await;
    let me = identity("demo-w-0", 1);
    let settings = director.settings("demo-w-0", 1);
    // Its key is on disk, the director's answer never was.
    let key = PrivateKey::generate().unwrap();
    for _ in 0..2 {
        let request = key.request().unwrap();
        let answer = enroll(&director, &me, &settings.token, request).await;
        assert!(answer.is_ok(), "the same key may come again: {answer:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("identity.pem");
    std::fs::write(&file, key.to_pem().expose()).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let machine = Machine::boot(settings.clone(), dir.path());
    director.connected(&machine).await;
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(
        text.as_bytes().starts_with(key.to_pem().expose()),
        "the same key"
    );
    assert_eq!(pem::certificates(text.as_bytes()).unwrap().len(), 2);
    machine.stop().await;

    // From its first session on the token is spent, for the same key as well.
    let again = enroll(&director, &me, &settings.token, key.request().unwrap()).await;
    assert_eq!(again.unwrap_err(), RefusalCode::Token);
    assert_eq!(director.refused(Reason::TokenSpent), 1);

    // A second machine with the same settings: a copied disk image.
    let copy = tempfile::tempdir().unwrap();
    let machine = Machine::boot(settings, copy.path());
    wait_for("the refusal", || {
        let all = director.records.redemptions();
        all.last()?
            .as_ref()
            .err()
            .filter(|why| why.contains("another key"))
            .cloned()
    })
    .await;
    assert!(!machine.link.is_connected());
    assert!(director.gateway().connected().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_shows_its_token_to_no_other_director() {
    let wanted = Director::start().await;
    let other = Director::start().await;
    let mut settings: Settings = wanted.settings("demo-w-0", 1);
    other.records.make_current(&identity("demo-w-0", 1));
    settings.directors = vec![other.address];
    let tls = tls::enroll_client(settings.ca_digest).unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let refused = endpoint
        .connect_with(
            transport::client_config(tls).unwrap(),
            other.address,
            &gateway_name(other.ca.director()),
        )
        .unwrap()
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("no root CA"), "{refused}");

    // The same by the agent itself, which goes on trying, and finds the right one.
    settings.directors = vec![other.address, wanted.address];
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::boot(settings, dir.path());
    wanted.connected(&machine).await;
    assert_eq!(other.records.redemptions(), []);
    assert_eq!(machine.name, machine_name("demo-w-0"));
    assert_eq!(machine.incarnation, Incarnation(1));
}

#[test]
fn settings_without_a_director_are_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let director = Director::start().await;
        let dir = tempfile::tempdir().unwrap();
        let mut settings = director.settings("demo-w-0", 1);
        settings.directors.clear();
        let paths = LinkPaths {
            identity_dir: dir.path().to_owned(),
            api_server: director.address,
        };
        let link = Link::new(settings, paths);
        let (_stop, stopped) = tokio::sync::watch::channel(false);
        let handler = std::sync::Arc::new(crate::world::Steps::new());
        assert!(link.run(handler, stopped).await.is_err());
    });
}
