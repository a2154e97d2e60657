//! Who has fallen silent: one look over all sessions, four times in a heartbeat's interval.
//!
//! A machine that is suspect is only that: its connection may stand, and what its silence means is
//! decided elsewhere, with other witnesses.

use std::sync::Weak;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Event;
use super::server::Shared;

/// Looks until the gateway is gone.
pub(super) async fn watch(gateway: Weak<Shared>) {
    let Some(interval_ms) = gateway
        .upgrade()
        .map(|shared| shared.config.tune.heartbeat_interval_ms)
    else {
        return;
    };
    let beat = Duration::from_millis(interval_ms.into());
    let mut ticks = interval((beat / 4).max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked = Instant::now();
    loop {
        ticks.tick().await;
        let Some(shared) = gateway.upgrade() else {
            return;
        };
        let now = Instant::now();
        // A director that was held up itself has heard nobody meanwhile: what waits in its socket
        // is read first.
        let held_up = now.saturating_duration_since(looked) > beat;
        looked = now;
        if held_up {
            continue;
        }
        for identity in shared.sessions.suspects(now) {
            tracing::info!(machine = %identity, "machine is silent");
            shared.sessions.emit(Event::Suspected { identity });
        }
    }
}
