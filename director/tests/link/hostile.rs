//! Peers that send what they should not. Each is refused, and a neighbour does not notice.

use std::time::Duration;

use jiff::Timestamp;
use quinn::ConnectionError;

use windlass_common::id::Epoch;
use windlass_common::limits::{
    ENROLL_FRAME_BYTES_MAX, FRAME_BYTES_MAX, HANDSHAKES_BEFORE_RETRY, STREAMS_FROM_AGENT_MAX,
};
use windlass_common::pki::gateway_name;
use windlass_common::transport::Close;
use windlass_common::wire::PROTOCOL;
use windlass_common::wire::frame::{self, Frame, OPTIONAL};
use windlass_common::wire::message::{Body, EnrollRequest, Hello, Refusal, RefusalCode, Welcome};
use windlass_common::{tls, transport};

use crate::certificates::{agent, connect};
use crate::world::{Director, Machine, PATIENCE, exec, identity, no_progress, wait_for};

pub(crate) fn hello(protocols: Vec<u16>) -> Hello {
    Hello {
        protocols,
        agent_version: "0".to_owned(),
        capabilities: Vec::new(),
        boot_id: "b".to_owned(),
        epoch: Epoch(0),
        unfinished: Vec::new(),
    }
}

async fn stranger(director: &Director) -> quinn::Connection {
    let tls = tls::enroll_client(director.ca.root_digest()).unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint
        .connect_with(
            transport::client_config(tls).unwrap(),
            director.address,
            &gateway_name(director.ca.director()),
        )
        .unwrap()
        .await
        .unwrap()
}

pub(crate) async fn closed(connection: &quinn::Connection) -> ConnectionError {
    tokio::time::timeout(PATIENCE, connection.closed())
        .await
        .expect("the director closes the connection")
}

/// A header that announces `length` bytes.
fn header(kind: u16, length: u32) -> Vec<u8> {
    [kind.to_be_bytes().as_slice(), &length.to_be_bytes()].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_control_streams_end_the_session_and_no_other() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let neighbour = Machine::boot(director.settings("demo-w-0", 1), dir.path());
    director.connected(&neighbour).await;
    let since = director.gateway().connected()[&neighbour.name].since;
    let me = identity("demo-cp-0", 1);
    director.records.make_current(&me);

    let garbled = {
        let mut bytes = Frame::of(&hello(vec![PROTOCOL])).unwrap().to_bytes();
        bytes.extend(header(0x0020, 3));
        bytes.extend([0xff; 3]);
        bytes
    };
    let unknown = {
        let mut bytes = Frame::of(&hello(vec![PROTOCOL])).unwrap().to_bytes();
        bytes.extend(header(0x0777, 0));
        bytes
    };
    let oversized_later = {
        let mut bytes = Frame::of(&hello(vec![PROTOCOL])).unwrap().to_bytes();
        bytes.extend(header(0x0020, FRAME_BYTES_MAX as u32 + 1));
        bytes
    };
    let truncated = Frame::of(&hello(vec![PROTOCOL])).unwrap().to_bytes()[..9].to_vec();
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("oversized first frame", header(Hello::KIND, FRAME_BYTES_MAX as u32 + 1), Close::Malformed),
        ("longest length",        header(Hello::KIND, u32::MAX),                   Close::Malformed),
        ("not a hello",           header(0x0020, 0),                               Close::Malformed),
        ("body of no hello",      header(Hello::KIND, 0),                          Close::Malformed),
        ("truncated",             truncated,                                       Close::Malformed),
        ("garbled report",        garbled,                                         Close::Malformed),
        ("unknown kind",          unknown,                                         Close::Malformed),
        ("oversized report",      oversized_later,                                 Close::Malformed),
    ];
    for (name, bytes, wanted) in cases {
        let credentials = agent(&director.ca, &me, Timestamp::now());
        let connection = connect(&director, Some(credentials)).await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        send.finish().unwrap();
        assert_eq!(
            Close::of(&closed(&connection).await),
            Some(wanted),
            "{name}"
        );
    }
    wait_for("the hostile sessions to end", || {
        (director.gateway().connected().len() == 1).then_some(())
    })
    .await;
    assert_eq!(director.gateway().connected()[&neighbour.name].since, since);
    let works = director
        .gateway()
        .run_step(
            &neighbour.name,
            neighbour.incarnation,
            exec("t/1", &[]),
            no_progress(),
        )
        .await;
    assert!(works.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_without_a_common_version_is_told_so() {
    let director = Director::start().await;
    let me = identity("demo-cp-0", 1);
    director.records.make_current(&me);
    let credentials = agent(&director.ca, &me, Timestamp::now());
    let connection = connect(&director, Some(credentials)).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    frame::write(&mut send, &hello(vec![99, 98])).await.unwrap();
    let refusal: Refusal = frame::expect(&mut recv, FRAME_BYTES_MAX).await.unwrap();
    assert_eq!(refusal.code, RefusalCode::Version);
    assert!(refusal.message.contains("[99, 98]"), "{}", refusal.message);
    Close::Done.close(&connection);
    assert!(director.gateway().connected().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_datagrams_and_optional_kinds_are_skipped() {
    let director = Director::start().await;
    let me = identity("demo-cp-0", 1);
    director.records.make_current(&me);
    let credentials = agent(&director.ca, &me, Timestamp::now());
    let connection = connect(&director, Some(credentials)).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    frame::write(&mut send, &hello(vec![99, PROTOCOL]))
        .await
        .unwrap();
    let welcome: Welcome = frame::expect(&mut recv, FRAME_BYTES_MAX).await.unwrap();
    assert_eq!(welcome.protocol, PROTOCOL);
    for garbage in [vec![], vec![0], vec![0xff; 900], header(0x0021, 0)] {
        connection.send_datagram(garbage.into()).unwrap();
    }
    let optional = Frame {
        kind: OPTIONAL | 0x42,
        body: vec![7; 100],
    };
    frame::send(&mut send, &optional).await.unwrap();
    let beat = windlass_common::report::Heartbeat {
        sequence: 9,
        at_unix_ms: 0,
        units_unhealthy: 0,
        memory_used_bp: 0,
        disk_used_bp: 0,
        epoch: Epoch(1),
    };
    connection
        .send_datagram(Frame::of(&beat).unwrap().to_bytes().into())
        .unwrap();
    wait_for("the heartbeat after the garbage", || {
        let view = director.gateway().connected().remove(&me.machine)?;
        (view.last_heartbeat?.1.sequence == 9).then_some(())
    })
    .await;
    // One that was overtaken changes nothing; the stream shows that it has been seen.
    let older = windlass_common::report::Heartbeat {
        sequence: 8,
        ..beat
    };
    connection
        .send_datagram(Frame::of(&older).unwrap().to_bytes().into())
        .unwrap();
    let newest = windlass_common::report::Heartbeat {
        sequence: 10,
        ..beat
    };
    connection
        .send_datagram(Frame::of(&newest).unwrap().to_bytes().into())
        .unwrap();
    wait_for("the newest heartbeat", || {
        let view = director.gateway().connected().remove(&me.machine)?;
        let sequence = view.last_heartbeat?.1.sequence;
        assert_ne!(sequence, 8);
        (sequence == 10).then_some(())
    })
    .await;
    assert_eq!(connection.close_reason(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_get_one_small_frame_and_little_time() {
    let director = Director::start().await;
    let connection = stranger(&director).await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&header(
        EnrollRequest::KIND,
        ENROLL_FRAME_BYTES_MAX as u32 + 1,
    ))
    .await
    .unwrap();
    assert_eq!(
        Close::of(&closed(&connection).await),
        Some(Close::Malformed)
    );

    // A second stream is not to be had, and a window of a few frames is all that may be sent.
    let connection = stranger(&director).await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let second = tokio::time::timeout(Duration::from_millis(200), connection.open_bi()).await;
    assert!(second.is_err(), "a stranger got a second stream");
    let flood = vec![0; 4 * ENROLL_FRAME_BYTES_MAX];
    let sent = tokio::time::timeout(Duration::from_millis(200), send.write_all(&flood)).await;
    // Either the window holds it back or the zeros are refused as a frame before.
    assert!(!matches!(sent, Ok(Ok(()))), "a stranger's flood was taken");

    let silent = stranger(&director).await;
    let began = tokio::time::Instant::now();
    assert_eq!(Close::of(&closed(&silent).await), Some(Close::TimedOut));
    assert!(began.elapsed() < Duration::from_secs(8));
    assert!(director.records.redemptions().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_gets_its_streams_once_it_is_known_and_no_more() {
    let director = Director::start().await;
    let me = identity("demo-cp-0", 1);
    director.records.make_current(&me);
    let credentials = agent(&director.ca, &me, Timestamp::now());
    let connection = connect(&director, Some(credentials)).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    frame::write(&mut send, &hello(vec![PROTOCOL]))
        .await
        .unwrap();
    let _: Welcome = frame::expect(&mut recv, FRAME_BYTES_MAX).await.unwrap();
    let mut held = Vec::new();
    for _ in 1..STREAMS_FROM_AGENT_MAX {
        let stream = tokio::time::timeout(PATIENCE, connection.open_bi()).await;
        held.push(stream.expect("a stream of its own").unwrap());
    }
    let further = tokio::time::timeout(Duration::from_millis(200), connection.open_bi()).await;
    assert!(further.is_err());
    assert_eq!(connection.close_reason(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_gets_in_while_strangers_hold_their_handshakes() {
    let director = Director::start().await;
    let me = identity("demo-cp-0", 1);
    director.records.make_current(&me);
    // More than may be under way before addresses have to be proven; none says hello.
    let mut dawdlers = tokio::task::JoinSet::new();
    for _ in 0..HANDSHAKES_BEFORE_RETRY + 8 {
        let credentials = agent(&director.ca, &me, Timestamp::now());
        let connected = connect(&director, Some(credentials)).await;
        dawdlers.spawn(async move { closed(&connected.unwrap()).await });
    }
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::boot(director.settings("demo-w-0", 1), dir.path());
    director.connected(&machine).await;
    // Those who say nothing are gone after a while.
    while let Some(error) = dawdlers.join_next().await {
        assert_eq!(Close::of(&error.unwrap()), Some(Close::TimedOut));
    }
    assert_eq!(director.gateway().connected().len(), 1);
}
