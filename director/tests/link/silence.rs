//! A machine that falls silent while its connection stands. How soon that is noticed is shown in simulated time, where
//! the gateway looks.

use jiff::Timestamp;
use windlass_common::id::Epoch;
use windlass_common::limits::{FRAME_BYTES_MAX, HEARTBEAT_INTERVAL};
use windlass_common::report::Heartbeat;
use windlass_common::wire::PROTOCOL;
use windlass_common::wire::frame::{self, Frame};
use windlass_common::wire::message::{Hello, Welcome};
use windlass_director::gateway::Event;

use crate::certificates::{agent, connect};
use crate::world::{Director, identity, wait_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_machine_is_suspect_and_recovers_when_it_is_heard() {
    let director = Director::start_with(|config| {
        config.tune.heartbeat_interval_ms = HEARTBEAT_INTERVAL.as_millis() as u32;
    })
    .await;
    let me = identity("demo-w-0", 1);
    director.records.make_current(&me);
    let credentials = agent(&director.ca, &me, Timestamp::now());
    let connection = connect(&director, Some(credentials)).await.unwrap();
    let mut events = director.gateway().subscribe();
    let hello = Hello {
        protocols: vec![PROTOCOL],
        agent_version: "0".to_owned(),
        capabilities: Vec::new(),
        boot_id: "b".to_owned(),
        epoch: Epoch(0),
        unfinished: Vec::new(),
    };
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    frame::write(&mut send, &hello).await.unwrap();
    let _: Welcome = frame::expect(&mut recv, FRAME_BYTES_MAX).await.unwrap();
    let who = me.clone();
    assert_eq!(
        events.recv().await.unwrap(),
        Event::Connected {
            identity: who.clone()
        }
    );
    // A look that comes late sees both at once.
    let mut event = events.recv().await.unwrap();
    if let Event::Late { identity } = &event {
        assert_eq!(*identity, who);
        event = events.recv().await.unwrap();
    }
    assert_eq!(
        event,
        Event::Suspected {
            identity: who.clone()
        }
    );
    let view = wait_for("the session", || {
        director.gateway().connected().remove(&me.machine)
    })
    .await;
    assert!(view.suspect, "{view:?}");

    let heartbeat = Heartbeat {
        sequence: 1,
        at_unix_ms: 1,
        units_unhealthy: 0,
        memory_used_bp: 0,
        disk_used_bp: 0,
        epoch: Epoch(1),
    };
    let datagram = Frame::of(&heartbeat).unwrap().to_bytes();
    connection.send_datagram(datagram.into()).unwrap();
    assert_eq!(
        events.recv().await.unwrap(),
        Event::Recovered { identity: who }
    );
}
