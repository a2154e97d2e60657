//! Usage as it is, at an interval.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use quinn::{RecvStream, SendStream};
use tokio::time::{MissedTickBehavior, interval};

use windlass_common::limits::VITALS_INTERVAL_MS;
use windlass_common::wire::frame::{self, FrameError};
use windlass_common::wire::session::{SessionEnd, VitalsSample, WatchVitals};

use super::{Ended, left, open};
use crate::link::Handler;

pub(super) async fn serve(
    watch: &WatchVitals,
    handler: &Arc<dyn Handler>,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<Ended, FrameError> {
    open(send).await?;
    let pause = watch
        .interval_ms
        .clamp(*VITALS_INTERVAL_MS.start(), *VITALS_INTERVAL_MS.end());
    let mut ticks = interval(Duration::from_millis(pause.into()));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let left = left(recv);
    tokio::pin!(left);
    loop {
        tokio::select! {
            () = &mut left => return Ok(Ended::Left),
            _ = ticks.tick() => {}
        }
        let handler = Arc::clone(handler);
        // Reads files of the kernel: quick, but not for the loop that keeps the link.
        let looked = tokio::task::spawn_blocking(move || handler.vitals()).await;
        let Ok(vitals) = looked else {
            let message = "the look at the machine failed".to_owned();
            return Ok(Ended::Over(SessionEnd::Failed(message)));
        };
        let at_unix_ms = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0);
        frame::write(send, &VitalsSample { at_unix_ms, vitals }).await?;
    }
}
