//! What the director sends down the control stream after its welcome.

use jiff::Timestamp;

use windlass_common::error::ErrorClass;
use windlass_common::id::Incarnation;
use windlass_common::limits::FRAME_BYTES_MAX;
use windlass_common::transport::Close;
use windlass_common::wire::PROTOCOL;
use windlass_common::wire::frame::{self, Frame};
use windlass_common::wire::message::{Detail, RenewResponse, Tune, Tune2, Welcome};
use windlass_director::gateway::{DeliveryError, Reason, TuneError};

use crate::certificates::{agent, connect};
use crate::hostile::{closed, hello};
use crate::world::{Director, Machine, identity, machine_name, wait_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_agent_is_tuned_and_the_next_one_is_not() {
    let director = Director::start_with(|config| {
        config.tune.heartbeat_interval_ms = 60_000;
    })
    .await;
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let machine = Machine::boot(director.settings("demo-w-0", 1), dir.path());
    let other = Machine::boot(director.settings("demo-w-1", 1), other_dir.path());
    director.connected(&machine).await;
    director.connected(&other).await;

    let tune = Tune2 {
        heartbeat_interval_ms: 50,
        report_interval_ms: 700,
        detail: Detail::Units,
    };
    director
        .gateway()
        .tune(&machine.name, machine.incarnation, tune)
        .unwrap();
    // The first beat goes at once; the fifth would be minutes away.
    wait_for("the fifth heartbeat", || {
        let view = director.gateway().connected().remove(&machine.name)?;
        (view.last_heartbeat?.1.sequence >= 5).then_some(())
    })
    .await;
    let first = director.config.tune;
    assert_eq!(*machine.steps.tunes.lock().unwrap(), [first, tune]);
    assert_eq!(*other.steps.tunes.lock().unwrap(), [first]);

    let gone = machine_name("demo-w-9");
    let nobody = director.gateway().tune(&gone, Incarnation(1), tune);
    let not_connected = |tuned: Result<(), TuneError>| {
        matches!(
            tuned,
            Err(TuneError::Delivery(DeliveryError::NotConnected { .. }))
        )
    };
    assert!(not_connected(nobody));
    let later = Incarnation(2);
    let other_birth = director.gateway().tune(&machine.name, later, tune);
    assert!(not_connected(other_birth));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_does_not_read_is_closed_and_told_why() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let neighbour = Machine::boot(director.settings("demo-w-0", 1), dir.path());
    director.connected(&neighbour).await;
    let me = identity("demo-cp-0", 1);
    director.records.make_current(&me);
    let credentials = agent(&director.ca, &me, Timestamp::now());
    let connection = connect(&director, Some(credentials)).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    frame::write(&mut send, &hello(vec![PROTOCOL]))
        .await
        .unwrap();
    let _: Welcome = frame::expect(&mut recv, FRAME_BYTES_MAX).await.unwrap();
    wait_for("the session", || {
        director
            .gateway()
            .connected()
            .contains_key(&me.machine)
            .then_some(())
    })
    .await;

    // Nothing is read from here on: the stream's window fills, then the queue.
    let large = RenewResponse {
        chain_der: vec![vec![0; 60_000]],
        roots_der: Vec::new(),
    };
    let push = || {
        director
            .gateway()
            .push(&me.machine, Incarnation(1), &large)
            .err()
    };
    let behind = wait_for("the queue to be full", push).await;
    assert!(matches!(behind, DeliveryError::Behind { .. }), "{behind:?}");
    assert_eq!(behind.class(), ErrorClass::Retry);
    let end = closed(&connection).await;
    assert_eq!(Close::of(&end), Some(Close::TimedOut));
    wait_for("the end of the session", || {
        (director.gateway().connected().len() == 1).then_some(())
    })
    .await;
    assert!(director.gateway().connected().contains_key(&neighbour.name));
    wait_for("the counter", || {
        (director.refused(Reason::SlowReader) == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_too_long_for_the_control_stream_is_not_sent() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::boot(director.settings("demo-w-0", 1), dir.path());
    director.connected(&machine).await;
    let huge = RenewResponse {
        chain_der: vec![vec![0; 70_000]],
        roots_der: Vec::new(),
    };
    let pushed = director
        .gateway()
        .push(&machine.name, machine.incarnation, &huge);
    let error = pushed.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Bug);
    // The session goes on: what is pushed next arrives.
    let (name, tune) = (&machine.name, director.config.tune);
    let next = director.gateway().tune(name, machine.incarnation, tune);
    next.unwrap();
    wait_for("the tune", || {
        (machine.steps.tunes.lock().unwrap().len() == 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pace_that_no_agent_keeps_is_neither_sent_nor_obeyed() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::boot(director.settings("demo-w-0", 1), dir.path());
    director.connected(&machine).await;
    let tuned = |heartbeat_interval_ms, report_interval_ms| Tune2 {
        heartbeat_interval_ms,
        report_interval_ms,
        detail: Detail::Full,
    };
    let (name, incarnation) = (&machine.name, machine.incarnation);
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        tuned(49, 500), tuned(60_001, 500), tuned(0, 500), tuned(u32::MAX, 500),
        tuned(50, 499), tuned(50, 600_001), tuned(50, 0),  tuned(50, u32::MAX),
    ];
    for tune in cases {
        let refused = director.gateway().tune(name, incarnation, tune);
        let error = refused.unwrap_err();
        assert!(matches!(error, TuneError::OutOfRange(_)), "{tune:?}");
        assert_eq!(error.class(), ErrorClass::Operator);
        // Behind the director's own check there is the agent's.
        let pushed = director.gateway().push(name, incarnation, &tune);
        pushed.unwrap();
    }
    let last = tuned(60_000, 600_000);
    director.gateway().tune(name, incarnation, last).unwrap();
    wait_for("the one that counts", || {
        (machine.steps.tunes.lock().unwrap().len() >= 2).then_some(())
    })
    .await;
    let first = director.config.tune;
    assert_eq!(*machine.steps.tunes.lock().unwrap(), [first, last]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_protocol_1_is_sent_nothing_newer() {
    // Less than full reports are asked for on connecting, of those that know how.
    let director = Director::start_with(|config| config.tune.detail = Detail::Units).await;
    let me = identity("demo-cp-0", 1);
    director.records.make_current(&me);
    let credentials = agent(&director.ca, &me, Timestamp::now());
    let connection = connect(&director, Some(credentials)).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    frame::write(&mut send, &hello(vec![1])).await.unwrap();
    let welcome: Welcome = frame::expect(&mut recv, FRAME_BYTES_MAX).await.unwrap();
    assert_eq!(welcome.protocol, 1);
    wait_for("the session", || {
        director.gateway().connected().remove(&me.machine)
    })
    .await;

    let less = Tune2 {
        detail: Detail::Units,
        ..Tune2::default()
    };
    let gateway = director.gateway();
    let refused = gateway.tune(&me.machine, Incarnation(1), less);
    let too_old = matches!(
        refused,
        Err(TuneError::Delivery(DeliveryError::TooOld {
            speaks: 1,
            needs: 2,
            ..
        }))
    );
    assert!(too_old, "{refused:?}");
    let slower = Tune2 {
        heartbeat_interval_ms: 10_000,
        ..Tune2::default()
    };
    gateway.tune(&me.machine, Incarnation(1), slower).unwrap();
    // Nothing was in front of it.
    let first: Frame = frame::read(&mut recv, FRAME_BYTES_MAX)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(first.body::<Tune>().unwrap(), slower.intervals());
}
