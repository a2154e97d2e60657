//! Figures, not assertions:
//! `cargo test --release -p windlass-director --test link measure -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::certificates::{agent, connect};
use crate::world::{Director, Machine, exec, identity, no_progress, wait_for};

/// CPU time of this process, both ends included.
fn cpu() -> Duration {
    // utime and stime in clock ticks of 10 ms are too coarse for one handshake, not for hundreds.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn quantile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn measure() {
    let director = Director::start().await;

    let mut enrolls = Vec::new();
    for number in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let settings = director.settings(&format!("demo-w-{number}"), 1);
        let began = Instant::now();
        let machine = Machine::boot(settings, dir.path());
        director.connected(&machine).await;
        enrolls.push(began.elapsed());
        machine.stop().await;
    }
    enrolls.sort();
    println!(
        "enroll and connect: p50 {:?}, max {:?} (n=20, both ends here, key made and synced to disk)",
        quantile(&enrolls, 50),
        quantile(&enrolls, 100)
    );

    let me = identity("demo-cp-0", 1);
    director.records.make_current(&me);
    let (count, before, began) = (500, cpu(), Instant::now());
    for _ in 0..count {
        let (chain, key) = agent(&director.ca, &me, Timestamp::now());
        let connection = connect(&director, Some((chain, key))).await.unwrap();
        drop(connection);
    }
    println!(
        "mutual handshake: {:?} CPU for both ends and for issuing, {:?} wall (n={count}, one at a time)",
        (cpu() - before) / count,
        began.elapsed() / count
    );

    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::boot(director.settings("demo-w-99", 1), dir.path());
    director.connected(&machine).await;
    let mut trips = Vec::new();
    let before = cpu();
    for number in 0..2000 {
        let began = Instant::now();
        let request = exec(&format!("t/{number}"), &[]);
        director
            .gateway()
            .run_step(&machine.name, machine.incarnation, request, no_progress())
            .await
            .unwrap();
        trips.push(began.elapsed());
    }
    let spent = (cpu() - before) / 2000;
    trips.sort();
    println!(
        "step round trip: p50 {:?}, p99 {:?}, {spent:?} CPU for both ends (n=2000)",
        quantile(&trips, 50),
        quantile(&trips, 99)
    );

    let content = vec![7u8; 64 << 20];
    let digest = windlass_common::id::Digest::of(&content);
    let path = dir.path().join("artifact");
    std::fs::write(&path, &content).unwrap();
    director
        .records
        .artifacts
        .lock()
        .unwrap()
        .insert(digest, path);
    let began = Instant::now();
    let mut stream = machine.link.fetch(digest, 0).await.unwrap();
    let mut bytes = 0;
    while let Some(chunk) = stream.chunk().await.unwrap() {
        bytes += chunk.len();
    }
    let rate = bytes as f64 / began.elapsed().as_secs_f64() / f64::from(1 << 20);
    println!("artifact: {rate:.0} MiB/s ({bytes} bytes)");

    // A restart with everybody told.
    let began = Instant::now();
    let mut director = director;
    director.gateway().shutdown(Duration::from_secs(5)).await;
    director.start_again(windlass_common::id::Epoch(2)).await;
    director.connected(&machine).await;
    println!(
        "restart of the gateway until the agent is back: {:?}",
        began.elapsed()
    );
    wait_for("a heartbeat", || {
        director
            .gateway()
            .connected()
            .remove(&machine.name)?
            .last_heartbeat
    })
    .await;
}
