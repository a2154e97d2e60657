//! Round trips of commands, spread over the fleet at a steady rate.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval};
use windlass_common::id::Epoch;
use windlass_common::pki::MachineIdentity;
use windlass_common::step::{Exec, Step, StepId, StepRequest};

use crate::gateway::{Gateway, unwatched};

use super::protocol::TargetAnswer;

/// Commands under way at most.
const IN_FLIGHT: usize = 64;
const DEADLINE: Duration = Duration::from_secs(20);

/// Sends `count` commands and says how long they took.
pub(super) async fn measure(
    gateway: &Gateway,
    epoch: Epoch,
    count: u32,
    per_second: u32,
) -> TargetAnswer {
    let fleet: Vec<MachineIdentity> = gateway
        .connected()
        .into_values()
        .map(|view| view.identity)
        .collect();
    let mut ticks = interval(Duration::from_secs(1) / per_second.max(1));
    // A tick that comes late is a command that is sent late, not one that is left out.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    let (send, mut trips) = mpsc::unbounded_channel();
    for (number, machine) in (0..count).zip(fleet.iter().cycle()) {
        ticks.tick().await;
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            break;
        };
        let (gateway, machine, send) = (gateway.clone(), machine.clone(), send.clone());
        tokio::spawn(async move {
            let began = Instant::now();
            let request = request(epoch, number);
            let result = gateway
                .run_step(&machine.machine, machine.incarnation, request, unwatched())
                .await;
            if result.is_ok() {
                // The receiver waits for every sender.
                let _ = send.send(began.elapsed());
            }
            drop(place);
        });
    }
    drop(send);
    let mut sorted = Vec::new();
    while let Some(trip) = trips.recv().await {
        sorted.push(u64::try_from(trip.as_micros()).unwrap_or(u64::MAX));
    }
    sorted.sort_unstable();
    let quantile = |permille: usize| {
        let at = sorted.len().saturating_sub(1) * permille / 1000;
        sorted.get(at).copied().unwrap_or(0)
    };
    TargetAnswer::Commands {
        answered: u32::try_from(sorted.len()).unwrap_or(u32::MAX),
        p50_us: quantile(500),
        p99_us: quantile(990),
        max_us: quantile(1000),
    }
}

fn request(epoch: Epoch, number: u32) -> StepRequest {
    StepRequest {
        labels: Default::default(),
        id: StepId(format!("bench/{epoch}/{number}")),
        epoch,
        deadline_ms: u64::try_from(DEADLINE.as_millis()).unwrap_or(u64::MAX),
        step: Step::Exec(Exec {
            argv: vec!["true".to_owned()],
        }),
    }
}
