//! Peers that send what they should not. Each is refused, and a neighbour does not notice.

use std::time::Duration;

use jiff::Timestamp;
use quinn::ConnectionError;

use windlass_common::id::Epoch;
use windlass_common::limits::{
    ENROLL_FRAME_BYTES_MAX, FRAME_BYTES_MAX, FRAMES_PER_AGENT, HANDSHAKES_BEFORE_RETRY,
    RENEWALS_PER_AGENT, REPORTS_PER_AGENT, SESSIONS_PER_MACHINE, STEPS_IN_FLIGHT_MAX,
    STREAMS_FROM_AGENT_MAX,
};
use windlass_common::pki::{PrivateKey, gateway_name};
use windlass_common::rate::Rate;
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
use windlass_director::gateway::{DeliveryError, Reason};

use crate::certificates::{agent, client, connect};
use crate::log::Log;
use crate::world::{Director, Machine, Neighbour, PATIENCE, exec, identity, no_progress, wait_for};

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

pub(crate) fn heartbeat(sequence: u64) -> Heartbeat {
    Heartbeat {
        sequence,
        at_unix_ms: 0,
        units_unhealthy: 0,
        memory_used_bp: 0,
        disk_used_bp: 0,
        epoch: Epoch(1),
    }
}

pub(crate) async fn stranger(director: &Director) -> quinn::Connection {
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
pub(crate) fn header(kind: u16, length: u32) -> Vec<u8> {
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
    let garbled_kindly = {
        // A scope that no version has, in a report that is one otherwise.
        let mut frame = Frame::of(&crate::world::report(7)).unwrap();
        *frame.body.last_mut().unwrap() = 9;
        frame.to_bytes()
    };
    let unsigned = Frame::of(&RenewRequest {
        request_der: vec![0; 100],
    });
    let unsigned = unsigned.unwrap().to_bytes();
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
        ("unknown variant",        greeted(&garbled_kindly),                Finish, malformed),
        ("report cut short",       greeted(&announced),                     Finish, truncated),
        ("unknown kind",           greeted(&header(0x0777, 0)),             Finish, unexpected),
        ("oversized report",       greeted(&header(Report::KIND, long)),    Finish, too_long),
        ("oversized optional",     greeted(&header(OPTIONAL | 1, long)),    Finish, too_long),
        ("empty renewal",          greeted(&header(RenewRequest::KIND, 0)), Finish, malformed),
        ("renewal of no request",  greeted(&unsigned),                      Finish, Reason::RenewalRefused),
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

// One thread, so that the log is of this test alone.
#[tokio::test]
async fn malformed_control_streams_end_the_session_and_no_other() {
    let (log, _logging) = Log::of_this_thread();
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let neighbour = Neighbour::boot(&director, dir.path()).await;
    let me = identity("demo-cp-0", 1);
    director.records.make_current(&me);
    let (chain, key) = agent(&director.ca, &me, Timestamp::now());
    for case in control_cases() {
        let Control { name, reason, .. } = case;
        let before = director.refusals(&log, reason);
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
        director.refuses_once(&name, &log, reason, before).await;
    }
    wait_for("the hostile sessions to end", || {
        (director.gateway().connected().len() == 1).then_some(())
    })
    .await;
    neighbour.unharmed(&director).await;
}

#[tokio::test]
async fn a_protocol_that_is_not_ours_is_refused_in_the_handshake() {
    let (log, _logging) = Log::of_this_thread();
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let neighbour = Neighbour::boot(&director, dir.path()).await;
    let me = identity("demo-cp-0", 1);
    director.records.make_current(&me);
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("a later one",   vec![b"windlass/99".to_vec()]),
        ("others",        vec![b"h3".to_vec(), b"windlass-peer/1".to_vec()]),
        ("none at all",   vec![]),
    ];
    for (name, protocols) in cases {
        let before = director.refusals(&log, Reason::NoProtocol);
        let (chain, key) = agent(&director.ca, &me, Timestamp::now());
        let mut tls = client(&director, chain, key);
        tls.alpn_protocols = protocols;
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = transport::client_config(tls).unwrap();
        let host = gateway_name(director.ca.director());
        let connecting = endpoint.connect_with(config, director.address, &host);
        let refused = connecting.unwrap().await;
        assert!(refused.is_err(), "{name}");
        director
            .refuses_once(name, &log, Reason::NoProtocol, before)
            .await;
    }
    neighbour.unharmed(&director).await;
}

#[tokio::test]
async fn an_agent_without_a_common_version_is_told_so() {
    let (log, _logging) = Log::of_this_thread();
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
    assert_eq!(log.refusals(Reason::Version), 1);
    assert!(director.gateway().connected().is_empty());
}

#[tokio::test]
async fn garbage_datagrams_and_optional_kinds_are_skipped() {
    let (log, _logging) = Log::of_this_thread();
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
    assert_eq!(log.refusals(Reason::DatagramMalformed), 4);
    let optional = Frame {
        kind: OPTIONAL | 0x42,
        body: vec![7; 100],
    };
    frame::send(&mut send, &optional).await.unwrap();
    let beat = heartbeat(9);
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

#[tokio::test]
async fn strangers_get_one_small_frame_and_little_time() {
    let (log, _logging) = Log::of_this_thread();
    let director = Director::start().await;
    let before = director.refusals(&log, Reason::EnrollmentMalformed);
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
    director
        .refuses_once("oversized", &log, Reason::EnrollmentMalformed, before)
        .await;

    // A second stream is not to be had, and a window of a few frames is all that may be sent.
    let connection = stranger(&director).await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let second = tokio::time::timeout(Duration::from_millis(200), connection.open_bi()).await;
    assert!(second.is_err(), "a stranger got a second stream");
    let flood = vec![0; 4 * ENROLL_FRAME_BYTES_MAX];
    let sent = tokio::time::timeout(Duration::from_millis(200), send.write_all(&flood)).await;
    // Either the window holds it back or the zeros are refused as a frame before.
    assert!(!matches!(sent, Ok(Ok(()))), "a stranger's flood was taken");
    closed(&connection).await;
    let before = director.refusals(&log, Reason::HandshakeTimeout);
    let silent = stranger(&director).await;
    let began = tokio::time::Instant::now();
    assert_eq!(Close::of(&closed(&silent).await), Some(Close::TimedOut));
    assert!(began.elapsed() < Duration::from_secs(8));
    director
        .refuses_once("silent", &log, Reason::HandshakeTimeout, before)
        .await;
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
async fn a_machine_gets_in_while_many_others_say_no_hello() {
    let director = Director::start().await;
    // More than may be under way before addresses have to be proven.
    let mut dawdlers = tokio::task::JoinSet::new();
    for number in 0..HANDSHAKES_BEFORE_RETRY + 8 {
        let me = identity(&format!("dawdler-{number}"), 1);
        director.records.make_current(&me);
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

/// A session of a hostile machine that said hello.
pub(crate) async fn greeted(
    director: &Director,
    machine: &str,
) -> (quinn::Connection, quinn::SendStream, quinn::RecvStream) {
    let me = identity(machine, 1);
    director.records.make_current(&me);
    let credentials = agent(&director.ca, &me, Timestamp::now());
    let connection = connect(director, Some(credentials)).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    frame::write(&mut send, &hello(vec![PROTOCOL]))
        .await
        .unwrap();
    let _: Welcome = frame::expect(&mut recv, FRAME_BYTES_MAX).await.unwrap();
    (connection, send, recv)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_floods_is_told_so_and_its_neighbour_does_not_notice() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let neighbour = Neighbour::boot(&director, dir.path()).await;
    let report = Frame::of(&crate::world::report(7)).unwrap();
    let optional = Frame {
        kind: OPTIONAL | 0x42,
        body: vec![0; 10],
    };
    let request_der = PrivateKey::generate().unwrap().request().unwrap();
    let renewal = Frame::of(&RenewRequest { request_der }).unwrap();
    let over = |rate: Rate| 2 * rate.burst as usize;
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("reports",   &report,   over(REPORTS_PER_AGENT),  Reason::ReportRate),
        ("anything",  &optional, over(FRAMES_PER_AGENT),   Reason::FrameRate),
        ("renewals",  &renewal,  over(RENEWALS_PER_AGENT), Reason::RenewalRate),
    ];
    for (name, frame, count, reason) in cases {
        let (connection, mut send, mut recv) = greeted(&director, "flooder").await;
        // Answers are read, so that it is the flood which ends it.
        let reads = tokio::spawn(async move {
            while frame::read(&mut recv, 1 << 20)
                .await
                .is_ok_and(|f| f.is_some())
            {}
        });
        for _ in 0..count {
            if frame::send(&mut send, frame).await.is_err() {
                break;
            }
        }
        assert_eq!(
            Close::of(&closed(&connection).await),
            Some(Close::Busy),
            "{name}"
        );
        wait_for(name, || (director.refused(reason) == 1).then_some(())).await;
        reads.await.unwrap();
    }

    let (connection, _send, _recv) = greeted(&director, "flooder").await;
    let beat = heartbeat(1);
    let beat = Frame::of(&beat).unwrap().to_bytes();
    let flood = async {
        while connection
            .send_datagram_wait(beat.clone().into())
            .await
            .is_ok()
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, flood)
        .await
        .expect("the flood is ended");
    assert_eq!(Close::of(&closed(&connection).await), Some(Close::Busy));
    wait_for("the counter", || {
        (director.refused(Reason::DatagramRate) == 1).then_some(())
    })
    .await;
    neighbour.unharmed(&director).await;
}

#[tokio::test]
async fn a_machine_that_comes_again_and_again_is_put_off() {
    let (log, _logging) = Log::of_this_thread();
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let neighbour = Neighbour::boot(&director, dir.path()).await;
    let me = identity("demo-cp-0", 1);
    director.records.make_current(&me);
    let (chain, key) = agent(&director.ca, &me, Timestamp::now());
    // Those that say nothing count as well, although they hold no place of the door any more.
    let mut silent = Vec::new();
    let mut put_off = None;
    for _ in 0..3 * SESSIONS_PER_MACHINE.burst {
        let credentials = (chain.clone(), key.clone_key());
        let connection = connect(&director, Some(credentials)).await.unwrap();
        if silent.len() < SESSIONS_PER_MACHINE.burst as usize / 2 {
            silent.push(connection);
            continue;
        }
        let welcomed = async {
            let (mut send, mut recv) = connection.open_bi().await.ok()?;
            frame::write(&mut send, &hello(vec![PROTOCOL])).await.ok()?;
            let answer = frame::read(&mut recv, FRAME_BYTES_MAX).await.ok()??;
            (answer.kind == Welcome::KIND).then_some(())
        };
        if welcomed.await.is_none() {
            put_off = Close::of(&closed(&connection).await);
            break;
        }
    }
    assert_eq!(
        put_off,
        Some(Close::Busy),
        "a machine that never stops is put off"
    );
    wait_for("the counter", || {
        (director.refused(Reason::SessionRate) == 1).then_some(())
    })
    .await;
    assert_eq!(log.refusals(Reason::SessionRate), 1);
    neighbour.unharmed(&director).await;
}

/// Xorshift: the same garbage in each run.
pub(crate) fn garbage(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    })
    .take(bytes)
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_port_is_counted_and_nothing_else() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let neighbour = Neighbour::boot(&director, dir.path()).await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(director.address).await.unwrap();
    let long_header = |version: u32, seed: u64, bytes: usize| {
        let mut packet = garbage(seed, bytes);
        packet[0] = 0xc0 | (packet[0] & 0x0f);
        packet[1..5].copy_from_slice(&version.to_be_bytes());
        // Ids of eight bytes, and no token.
        (packet[5], packet[14], packet[23]) = (8, 8, 0);
        packet
    };
    let short_header = |seed: u64, bytes: usize| {
        let mut packet = garbage(seed, bytes);
        packet[0] = 0x40 | (packet[0] & 0x3f);
        packet
    };
    let reason = Reason::StrayDatagram;
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("nothing",                   vec![]),
        ("a byte",                    vec![0x41]),
        ("a short header cut short",  short_header(1, 20)),
        ("random, small",             short_header(2, 64)),
        ("random, whole",             short_header(3, 1200)),
        ("random, huge",              short_header(4, 60_000)),
        ("another version",           long_header(0xff00_001d, 5, 1200)),
        ("a version nobody has",      long_header(0x6b33_4a11, 6, 1200)),
        ("version negotiation",       long_header(0, 7, 100)),
    ];
    for (name, datagram) in cases {
        let (counted, others) = (
            director.refused(reason),
            director.refused_but_for(Some(reason)),
        );
        socket.send(&datagram).await.unwrap();
        wait_for(name, || (director.refused(reason) > counted).then_some(())).await;
        assert_eq!(director.refused(reason), counted + 1, "{name}");
        assert_eq!(director.refused_but_for(Some(reason)), others, "{name}");
    }
    // A thousand at once, of any length: nobody waits for them.
    for seed in 0..1_000 {
        let bytes = 30 + (seed as usize * 37) % 1_400;
        let _ = socket.send(&garbage(seed, bytes)).await;
    }
    neighbour.unharmed(&director).await;
    assert_eq!(director.gateway().connected().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_leaves_its_steps_unread_holds_nobody_up() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let neighbour = Neighbour::boot(&director, dir.path()).await;
    let (connection, _send, _recv) = greeted(&director, "deaf").await;
    let deaf = identity("deaf", 1);
    // Each fills its stream's window, together they fill the connection's.
    let mut steps = tokio::task::JoinSet::new();
    for number in 0..STEPS_IN_FLIGHT_MAX {
        let (gateway, deaf) = (director.gateway().clone(), deaf.clone());
        steps.spawn(async move {
            let mut step = exec(&format!("deaf/{number}"), &["x".repeat(900_000).as_str()]);
            step.deadline_ms = 600_000;
            gateway
                .run_step(&deaf.machine, deaf.incarnation, step, no_progress())
                .await
                .map(|_| ())
        });
    }
    for _ in 0..3 {
        neighbour.unharmed(&director).await;
    }
    assert!(steps.try_join_next().is_none(), "nothing was answered");
    Close::Done.close(&connection);
    while let Some(ended) = steps.join_next().await {
        assert!(matches!(ended.unwrap(), Err(DeliveryError::Lost { .. })));
    }
}
