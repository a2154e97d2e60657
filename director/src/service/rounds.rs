//! Rounds: what a director looks at again and again, unasked.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::Inner;

/// Makes a round at once and then every `period`, one after the other, until the director ends. One that is on hold
/// after a restore makes none: its records are not to be trusted, and another director may be the one that works.
pub(super) async fn every(
    director: Weak<Inner>,
    period: Duration,
    round: impl AsyncFn(&Arc<Inner>),
) {
    let mut rounds = interval(period);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        let Some(director) = director.upgrade() else {
            return;
        };
        if !director.hold.is_on() {
            round(&director).await;
        }
    }
}
