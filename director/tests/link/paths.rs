//! Which connection of a machine counts, and that it outlives its path.

use std::net::UdpSocket;

use jiff::Timestamp;

use windlass_common::id::{Epoch, Incarnation};
use windlass_common::limits::FRAME_BYTES_MAX;
use windlass_common::pki::gateway_name;
use windlass_common::report::Heartbeat;
use windlass_common::transport::{self, Close};
use windlass_common::wire::PROTOCOL;
use windlass_common::wire::frame::{self, Frame};
use windlass_common::wire::message::{StepHeader, Welcome};

use crate::certificates::{agent, client, connect};
use crate::hostile::{closed, hello};
use crate::world::{Director, exec, identity, no_progress, wait_for};

fn beat(sequence: u64) -> Vec<u8> {
    let beat = Heartbeat {
        sequence,
        at_unix_ms: 0,
        units_unhealthy: 0,
        memory_used_bp: 0,
        disk_used_bp: 0,
        epoch: Epoch(1),
    };
    Frame::of(&beat).unwrap().to_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_older_connection_is_told_why_it_ends_and_takes_nothing_with_it() {
    let director = Director::start().await;
    let me = identity("demo-w-0", 1);
    director.records.make_current(&me);
    let mut held = Vec::new();
    for number in 1..=3_u64 {
        let credentials = agent(&director.ca, &me, Timestamp::now());
        let connection = connect(&director, Some(credentials)).await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        frame::write(&mut send, &hello(vec![PROTOCOL]))
            .await
            .unwrap();
        let _: Welcome = frame::expect(&mut recv, FRAME_BYTES_MAX).await.unwrap();
        connection.send_datagram(beat(number).into()).unwrap();
        wait_for("the heartbeat of the newest", || {
            let view = director.gateway().connected().remove(&me.machine)?;
            (view.last_heartbeat?.1.sequence == number).then_some(())
        })
        .await;
        held.push((connection, send, recv));
    }
    let (newest, _send, _recv) = held.pop().unwrap();
    for (older, ..) in &held {
        assert_eq!(Close::of(&closed(older).await), Some(Close::Superseded));
    }
    newest.send_datagram(beat(4).into()).unwrap();
    wait_for("a further heartbeat", || {
        let view = director.gateway().connected().remove(&me.machine)?;
        (view.last_heartbeat?.1.sequence == 4).then_some(())
    })
    .await;
    assert_eq!(newest.close_reason(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_port_changes_keeps_its_connection() {
    let director = Director::start().await;
    let me = identity("demo-w-0", 1);
    director.records.make_current(&me);
    let (chain, key) = agent(&director.ca, &me, Timestamp::now());
    let config = transport::client_config(client(&director, chain, key)).unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let name = gateway_name(director.ca.director());
    let connecting = endpoint.connect_with(config, director.address, &name);
    let connection = connecting.unwrap().await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    frame::write(&mut send, &hello(vec![PROTOCOL]))
        .await
        .unwrap();
    let _: Welcome = frame::expect(&mut recv, FRAME_BYTES_MAX).await.unwrap();
    let view = || director.gateway().connected().remove(&me.machine);
    let before = wait_for("the session", view).await;

    let mut sequence = 0;
    let mut from = before.address;
    for _ in 0..3 {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let now = socket.local_addr().unwrap();
        assert_ne!(now, from);
        endpoint.rebind(socket).unwrap();
        let view = wait_for("a heartbeat from the new port", || {
            sequence += 1;
            connection.send_datagram(beat(sequence).into()).unwrap();
            let view = view()?;
            (view.address == now && view.last_heartbeat.is_some()).then_some(view)
        })
        .await;
        assert_eq!(view.since, before.since, "another session took its place");
        from = now;
    }
    assert_eq!(connection.close_reason(), None);
    // The director reaches it there.
    let (gateway, machine) = (director.gateway().clone(), me.machine.clone());
    let asking = tokio::spawn(async move {
        let order = exec("t/1", &["print", "1"]);
        gateway
            .run_step(&machine, Incarnation(1), order, no_progress())
            .await
    });
    let (_answer, mut order) = connection.accept_bi().await.unwrap();
    let header: StepHeader = frame::expect(&mut order, FRAME_BYTES_MAX).await.unwrap();
    assert_eq!(header.id.0, "t/1");
    asking.abort();
}
