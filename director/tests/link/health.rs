//! Health is never queued behind work.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use windlass_common::id::{Digest, Incarnation};
use windlass_common::limits::{ARTIFACTS_PER_AGENT_MAX, STEPS_IN_FLIGHT_MAX};
use windlass_common::wire::message::{Detail, Tune2, TunnelTarget};

use crate::world::{Director, Machine, exec, wait_for};

const TUNNELS: usize = 24;

/// Waits until a count has stopped growing: what it counts is held up.
async fn held_up(what: &str, count: impl Fn() -> u64) {
    let (mut last, mut looks) = (0, 0);
    wait_for(what, || {
        let now = count();
        looks = if now == last && now > 0 { looks + 1 } else { 0 };
        last = now;
        (looks >= 40).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_reports_and_settings_pass_streams_that_nobody_reads() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    // What listens behind the tunnels talks without end.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let api_server = listener.local_addr().unwrap();
    let mut talkers = JoinSet::new();
    talkers.spawn(async move {
        let mut held = JoinSet::new();
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            held.spawn(async move { while tcp.write_all(&[7; 65_536]).await.is_ok() {} });
        }
    });
    let settings = director.settings("demo-w-0", 1);
    let machine = Machine::boot_with(settings, &dir.path().join("id"), api_server);
    director.connected(&machine).await;

    // Down: artifacts that the machine does not read.
    let path = dir.path().join("artifact");
    std::fs::write(&path, vec![9; 4 << 20]).unwrap();
    let digest = Digest::of(b"by name, which is all that counts here");
    let artifacts = &director.records.artifacts;
    artifacts.lock().unwrap().insert(digest, path);
    let mut transfers = Vec::new();
    for _ in 0..ARTIFACTS_PER_AGENT_MAX {
        transfers.push(machine.link.fetch(digest, 0).await.unwrap());
    }
    // Up: output of steps and bytes of tunnels that the director does not read.
    let mut unread = Vec::new();
    let mut runs = JoinSet::new();
    for number in 0..STEPS_IN_FLIGHT_MAX {
        let (sender, receiver) = mpsc::channel(1);
        unread.push(receiver);
        let (gateway, name) = (director.gateway().clone(), machine.name.clone());
        runs.spawn(async move {
            let request = exec(&format!("t1/{number}"), &["flood"]);
            gateway
                .run_step(&name, Incarnation(1), request, sender)
                .await
        });
    }
    let mut tunnels = Vec::new();
    for _ in 0..TUNNELS {
        let gateway = director.gateway();
        let open = gateway.open_tunnel(&machine.name, Incarnation(1), TunnelTarget::ApiServer);
        tunnels.push(open.await.unwrap());
    }
    held_up("the output to be held up", || {
        *machine.steps.flooded.lock().unwrap()
    })
    .await;

    let view = || director.gateway().connected().remove(&machine.name);
    let before = view().unwrap();
    machine.steps.report(78);
    wait_for("a report past the work", || {
        (view()?.report?.1.uptime_s == 78).then_some(())
    })
    .await;
    let first = before.last_heartbeat.unwrap().1.sequence;
    wait_for("heartbeats past the work", || {
        (view()?.last_heartbeat?.1.sequence >= first + 5).then_some(())
    })
    .await;
    let tune = Tune2 {
        heartbeat_interval_ms: 50,
        report_interval_ms: 500,
        detail: Detail::Units,
    };
    let gateway = director.gateway();
    gateway
        .tune(&machine.name, machine.incarnation, tune)
        .unwrap();
    wait_for("settings past the work", || {
        (machine.steps.tunes.lock().unwrap().last() == Some(&tune)).then_some(())
    })
    .await;
    assert_eq!(view().unwrap().since, before.since);
    assert!(runs.try_join_next().is_none(), "the work goes on");
    gateway.shutdown(Duration::from_secs(1)).await;
}
