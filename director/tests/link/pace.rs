//! A fleet that is told to beat less often when it is large, and as before when it is not.

use windlass_common::limits::HEARTBEAT_CPU;
use windlass_common::wire::message::{Detail, Tune2};

use crate::world::{Director, Machine, wait_for};

fn last(machine: &Machine) -> Option<Tune2> {
    machine.steps.tunes.lock().unwrap().last().copied()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_beats_as_often_as_its_size_allows() {
    // Six heartbeats a second, and a hundred milliseconds to begin with.
    let director = Director::start_with(|config| {
        config.heartbeat_budget = Some(HEARTBEAT_CPU * 6);
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let boot = |number: u32| {
        let name = format!("demo-w-{number}");
        Machine::boot(director.settings(&name, 1), &dir.path().join(name))
    };
    let paced = |heartbeat_interval_ms| {
        Some(Tune2 {
            heartbeat_interval_ms,
            // As much slower as heartbeats are.
            report_interval_ms: director.config.tune.report_interval_ms * heartbeat_interval_ms
                / director.config.tune.heartbeat_interval_ms,
            detail: Detail::Units,
        })
    };
    let first = [boot(0), boot(1), boot(2)];
    for machine in &first {
        wait_for("the pace of three", || {
            (last(machine) == paced(500)).then_some(())
        })
        .await;
    }
    // One that comes later is welcomed with it.
    let late = boot(3);
    wait_for("the pace of four", || {
        (last(&late) == paced(750)).then_some(())
    })
    .await;
    let welcomed = late.steps.tunes.lock().unwrap()[0];
    assert_eq!(welcomed.heartbeat_interval_ms, 500);
    let [one, two, three] = first;
    for machine in [two, three, late] {
        machine.stop().await;
    }
    wait_for("the pace of one", || {
        (last(&one) == paced(250)).then_some(())
    })
    .await;
    one.stop().await;
}
