//! Peers that take their time or come in numbers: each finds a bound, and a neighbour does not notice.

use std::time::Duration;

use jiff::Timestamp;

use windlass_common::limits::{ENROLLMENTS_MAX, FAILURES_PER_SOURCE, FRAME_BYTES_MAX};
use windlass_common::pki::{PrivateKey, gateway_name};
use windlass_common::report::Report;
use windlass_common::secret::Secret;
use windlass_common::transport::Close;
use windlass_common::wire::PROTOCOL;
use windlass_common::wire::frame::{self, Frame};
use windlass_common::wire::message::{
    ArtifactRequest, Body, EnrollRequest, Hello, Refusal, RefusalCode,
};
use windlass_common::{tls, transport};
use windlass_director::gateway::{Reason, Total};

use crate::certificates::{agent, connect};
use crate::hostile::{closed, greeted, header, heartbeat, hello, stranger};
use crate::log::Log;
use crate::tokens::enroll_from;
use crate::world::{Director, Machine, Neighbour, identity, wait_for};

/// Sends a byte after the other and, on a session, keeps beating; until the director has had enough.
async fn drip(connection: &quinn::Connection, send: &mut quinn::SendStream, bytes: &[u8]) {
    let beat = Frame::of(&heartbeat(1)).unwrap().to_bytes();
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    for byte in bytes {
        pace.tick().await;
        // A stranger's is ignored; one that cannot go any more has ended.
        let _ = connection.send_datagram(beat.clone().into());
        if send.write_all(&[*byte]).await.is_err() {
            return;
        }
    }
    panic!("the director took every byte");
}

#[tokio::test]
async fn a_peer_that_begins_a_frame_and_does_not_end_it_is_not_waited_for() {
    let (log, _logging) = Log::of_this_thread();
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let neighbour = Neighbour::boot(&director, dir.path()).await;
    let slow = |kind: u16| [header(kind, 1_000), vec![0; 1_000]].concat();
    let hello = async {
        let me = identity("slow-to-greet", 1);
        director.records.make_current(&me);
        let credentials = agent(&director.ca, &me, Timestamp::now());
        let connection = connect(&director, Some(credentials)).await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        drip(&connection, &mut send, &slow(Hello::KIND)).await;
        Close::of(&closed(&connection).await)
    };
    let enrollment = async {
        let connection = stranger(&director).await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        drip(&connection, &mut send, &slow(EnrollRequest::KIND)).await;
        Close::of(&closed(&connection).await)
    };
    let report = async {
        let (connection, mut send, _recv) = greeted(&director, "slow-to-report").await;
        drip(&connection, &mut send, &slow(Report::KIND)).await;
        Close::of(&closed(&connection).await)
    };
    // Only that stream ends.
    let artifact = async {
        let (connection, _send, _recv) = greeted(&director, "slow-to-ask").await;
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        drip(&connection, &mut send, &slow(ArtifactRequest::KIND)).await;
        let read = frame::read(&mut recv, FRAME_BYTES_MAX).await;
        assert!(read.is_err(), "{read:?}");
        connection.close_reason().map(|_| ())
    };
    let (hello, enrollment, report, artifact) = tokio::join!(hello, enrollment, report, artifact);
    assert_eq!(hello, Some(Close::TimedOut), "hello");
    assert_eq!(enrollment, Some(Close::TimedOut), "enrollment");
    assert_eq!(report, Some(Close::TimedOut), "report");
    assert_eq!(artifact, None, "the session of a slow request");
    let counts = [
        (Reason::HandshakeTimeout, 2),
        (Reason::FrameSlow, 1),
        (Reason::ArtifactRequest, 1),
    ];
    for (reason, count) in counts {
        wait_for(reason.name(), || {
            (director.refused(reason) == count).then_some(())
        })
        .await;
        assert_eq!(log.refusals(reason), count, "{reason:?}");
    }
    assert_eq!(director.refused_but_for(None), 4);
    neighbour.unharmed(&director).await;
}

#[tokio::test]
async fn a_director_that_is_full_says_so_and_keeps_who_is_there() {
    let (log, _logging) = Log::of_this_thread();
    let director = Director::start_with(|config| config.sessions_max = 1).await;
    let dir = tempfile::tempdir().unwrap();
    let neighbour = Neighbour::boot(&director, dir.path()).await;
    let before = director.refusals(&log, Reason::SessionsFull);
    let me = identity("one-too-many", 1);
    director.records.make_current(&me);
    let credentials = agent(&director.ca, &me, Timestamp::now());
    let connection = connect(&director, Some(credentials)).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    frame::write(&mut send, &hello(vec![PROTOCOL]))
        .await
        .unwrap();
    let refusal: Refusal = frame::expect(&mut recv, FRAME_BYTES_MAX).await.unwrap();
    assert_eq!(refusal.code, RefusalCode::Busy);
    Close::Done.close(&connection);
    director
        .refuses_once("one too many", &log, Reason::SessionsFull, before)
        .await;
    neighbour.unharmed(&director).await;
}

#[tokio::test]
async fn strangers_that_dawdle_hold_a_bounded_number_of_places() {
    let (log, _logging) = Log::of_this_thread();
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let neighbour = Neighbour::boot(&director, dir.path()).await;
    let mut dawdlers = Vec::new();
    for _ in 0..ENROLLMENTS_MAX {
        dawdlers.push(stranger(&director).await);
    }
    let before = director.refusals(&log, Reason::EnrollmentsFull);
    let further = stranger(&director).await;
    assert_eq!(Close::of(&closed(&further).await), Some(Close::Busy));
    director
        .refuses_once("one more", &log, Reason::EnrollmentsFull, before)
        .await;
    neighbour.unharmed(&director).await;
    // Their places are free again when they go, or have said nothing for long enough.
    drop(dawdlers);
    let machine = Machine::boot(director.settings("demo-w-0", 1), &dir.path().join("late"));
    director.connected(&machine).await;
}

/// Attempts, always the same, until the director does not look at them any more.
async fn until_unseen<F: Future<Output = ()>>(director: &Director, attempt: impl Fn() -> F) -> u32 {
    let mut attempts = 0;
    while director.refused(Reason::SourceBusy) == 0 {
        attempts += 1;
        assert!(attempts < 4 * FAILURES_PER_SOURCE.burst, "never refused");
        attempt().await;
    }
    attempts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_whose_attempts_fail_is_refused_unseen_and_no_other_one() {
    let me = identity("replaced", 1);
    for reason in [Reason::NotCurrent, Reason::TokenUnknown] {
        let director = Director::start().await;
        let dir = tempfile::tempdir().unwrap();
        let neighbour = Neighbour::boot(&director, dir.path()).await;
        // From another address than everybody else here.
        let endpoint = quinn::Endpoint::client("127.0.0.9:0".parse().unwrap()).unwrap();
        let attempts = if reason == Reason::TokenUnknown {
            director.records.make_current(&me);
            let request = PrivateKey::generate().unwrap().request().unwrap();
            let guess = Secret::new("0".repeat(64));
            until_unseen(&director, || async {
                let answer = enroll_from(&endpoint, &director, &me, &guess, &request).await;
                assert!(answer.is_none_or(|answer| answer.is_err()));
            })
            .await
        } else {
            let (chain, key) = agent(&director.ca, &me, Timestamp::now());
            let roots = [director.ca.root_der().clone()];
            let tls = tls::agent_client(&roots, chain, key).unwrap();
            let config = transport::client_config(tls).unwrap();
            let name = gateway_name(director.ca.director());
            until_unseen(&director, || async {
                let connecting = endpoint.connect_with(config.clone(), director.address, &name);
                if let Ok(connection) = connecting.unwrap().await {
                    closed(&connection).await;
                }
            })
            .await
        };
        assert!(attempts > FAILURES_PER_SOURCE.burst, "{reason:?}");
        assert!(director.refused(reason) >= u64::from(FAILURES_PER_SOURCE.burst));
        // It had to prove its address before it was judged by it.
        let counters = director.gateway().counters();
        assert!(counters.total(Total::HandshakesRetried) > 0);
        neighbour.unharmed(&director).await;
        let settings = director.settings("demo-w-9", 1);
        let another = Machine::boot(settings, &dir.path().join("another"));
        director.connected(&another).await;
    }
}
