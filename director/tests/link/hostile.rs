//! Peers that send what they should not. Each is refused, and a neighbour does not notice.

use std::time::Duration;

use jiff::Timestamp;
use quinn::ConnectionError;

use windlass_common::id::Epoch;
use windlass_common::limits::{
    ENROLL_FRAME_BYTES_MAX, FRAME_BYTES_MAX, HANDSHAKES_BEFORE_RETRY, STREAMS_FROM_AGENT_MAX,
};
use windlass_common::pki::gateway_name;
use windlass_common::report::{Heartbeat, Report};
use windlass_common::step::{Exec, StepResult};
use windlass_common::transport::Close;
use windlass_common::wire::PROTOCOL;
use windlass_common::wire::frame::{self, Frame, OPTIONAL};
use windlass_common::wire::message::{
    ArtifactRequest, Body, EnrollRequest, Hello, Refusal, RefusalCode, RenewRequest, StepHeader,
    Welcome,
};
use windlass_common::{tls, transport};
use windlass_director::gateway::Reason;

use crate::certificates::{agent, connect};
use crate::world::{Director, Machine, Neighbour, PATIENCE, identity, wait_for};

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

/// Kinds that no agent may send on its control stream after hello.
const NOT_ON_CONTROL: &[u16] = &[
    EnrollRequest::KIND,
    Hello::KIND,
    Welcome::KIND,
    Heartbeat::KIND,
    ArtifactRequest::KIND,
    StepHeader::KIND,
    StepResult::KIND,
    Exec::KIND,
];

/// One case of a hostile control stream: its bytes, whether they are all, and the counter.
struct Control {
    name: String,
    bytes: Vec<u8>,
    then: Then,
    reason: Reason,
    close: Close,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Then {
    /// The stream ends after the bytes.
    Finish,
    /// The stream is torn off.
    Reset,
}

fn control_cases() -> Vec<Control> {
    let greeted = |rest: &[u8]| {
        let hello = Frame::of(&hello(vec![PROTOCOL])).unwrap().to_bytes();
        [hello.as_slice(), rest].concat()
    };
    let long = FRAME_BYTES_MAX as u32 + 1;
    let whole_hello = greeted(&[]);
    let garbled = [header(Report::KIND, 3), vec![0xff; 3]].concat();
    let announced = [header(Report::KIND, 100), vec![0; 10]].concat();
    let leftover = {
        let mut frame = Frame::of(&hello(vec![PROTOCOL])).unwrap();
        frame.body.push(0);
        frame.to_bytes()
    };
    // A claim of 2^60 protocols.
    let claim = [
        header(Hello::KIND, 9),
        vec![0xfd, 0, 0, 0, 0, 0, 0, 0, 0x10],
    ]
    .concat();
    let (too_long, unexpected) = (Reason::FrameTooLong, Reason::FrameUnexpected);
    let (truncated, malformed) = (Reason::FrameTruncated, Reason::FrameMalformed);
    use Then::{Finish, Reset};
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("nothing at all",         vec![],                                  Finish, truncated),
        ("half a header",          vec![0, 0x10, 0],                        Finish, truncated),
        ("oversized first frame",  header(Hello::KIND, long),               Finish, too_long),
        ("longest length",         header(Hello::KIND, u32::MAX),           Finish, too_long),
        ("not a hello",            header(Report::KIND, 0),                 Finish, unexpected),
        ("body of no hello",       header(Hello::KIND, 0),                  Finish, malformed),
        ("hello and a byte more",  leftover,                                Finish, malformed),
        ("a hello of 2^60 words",  claim,                                   Finish, malformed),
        ("hello cut short",        whole_hello[..9].to_vec(),               Finish, truncated),
        ("hello torn off",         whole_hello[..9].to_vec(),               Reset,  truncated),
        ("garbled report",         greeted(&garbled),                       Finish, malformed),
        ("report cut short",       greeted(&announced),                     Finish, truncated),
        ("unknown kind",           greeted(&header(0x0777, 0)),             Finish, unexpected),
        ("oversized report",       greeted(&header(Report::KIND, long)),    Finish, too_long),
        ("oversized optional",     greeted(&header(OPTIONAL | 1, long)),    Finish, too_long),
        ("empty renewal",          greeted(&header(RenewRequest::KIND, 0)), Finish, malformed),
    ];
    let misplaced = NOT_ON_CONTROL.iter().map(|kind| {
        let name = format!("kind {kind:#06x} in the wrong place");
        (name, greeted(&header(*kind, 0)), Finish, unexpected)
    });
    let cases = cases.map(|(name, bytes, then, reason)| (name.to_owned(), bytes, then, reason));
    let mut cases: Vec<Control> = cases
        .into_iter()
        .chain(misplaced)
        .map(|(name, bytes, then, reason)| Control {
            name,
            bytes,
            then,
            reason,
            close: Close::Malformed,
        })
        .collect();
    cases.push(Control {
        name: "control stream closed early".to_owned(),
        bytes: whole_hello,
        then: Finish,
        reason: Reason::ControlClosed,
        close: Close::Done,
    });
    cases
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_control_streams_end_the_session_and_no_other() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let neighbour = Neighbour::boot(&director, dir.path()).await;
    let me = identity("demo-cp-0", 1);
    director.records.make_current(&me);
    let (chain, key) = agent(&director.ca, &me, Timestamp::now());
    for case in control_cases() {
        let Control { name, reason, .. } = case;
        let (counted, others) = (
            director.refused(reason),
            director.refused_but_for(Some(reason)),
        );
        let credentials = (chain.clone(), key.clone_key());
        let connection = connect(&director, Some(credentials)).await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(&case.bytes).await.unwrap();
        match case.then {
            Then::Finish => send.finish().unwrap(),
            Then::Reset => send.reset(quinn::VarInt::from_u32(7)).unwrap(),
        }
        let end = Close::of(&closed(&connection).await);
        assert_eq!(end, Some(case.close), "{name}");
        wait_for(&name, || (director.refused(reason) > counted).then_some(())).await;
        assert_eq!(director.refused(reason), counted + 1, "{name}");
        assert_eq!(director.refused_but_for(Some(reason)), others, "{name}");
    }
    wait_for("the hostile sessions to end", || {
        (director.gateway().connected().len() == 1).then_some(())
    })
    .await;
    neighbour.unharmed(&director).await;
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
    wait_for("the counter", || {
        (director.refused(Reason::Version) == 1).then_some(())
    })
    .await;
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
    wait_for("the garbage to be counted", || {
        (director.refused(Reason::DatagramMalformed) == 4).then_some(())
    })
    .await;
    let optional = Frame {
        kind: OPTIONAL | 0x42,
        body: vec![7; 100],
    };
    frame::send(&mut send, &optional).await.unwrap();
    let beat = Heartbeat {
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
    let older = Heartbeat {
        sequence: 8,
        ..beat
    };
    connection
        .send_datagram(Frame::of(&older).unwrap().to_bytes().into())
        .unwrap();
    let newest = Heartbeat {
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
