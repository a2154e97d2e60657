//! Whether the director is still heard.
//!
//! QUIC ends a connection on which nothing is heard, but not before three of its own timeouts, which follow from the
//! round trip that it has seen. An agent that waited in line for its turn was answered late, and QUIC takes that for the
//! round trip until enough packets have gone back and forth: for that while a link that is cut would be held for half a
//! minute and more. The agent's keep-alives are answered at once whatever QUIC makes of it.

use std::time::Duration;

use tokio::time::sleep;
use windlass_common::limits::LINK_IDLE_TIMEOUT;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// So many looks in a row that find nothing new are a silence. They are counted, and not the time: a machine that was
/// asleep has not listened.
const LOOKS: u128 = LINK_IDLE_TIMEOUT.as_millis() / LOOK.as_millis();

/// Ends when nothing has been heard for [`LINK_IDLE_TIMEOUT`]. `heard` says how many datagrams have come so far.
pub(super) async fn of(heard: impl Fn() -> u64) {
    let (mut last, mut quiet) = (heard(), 0);
    while quiet < LOOKS {
        sleep(LOOK).await;
        let now = heard();
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_nothing_is_heard_for_as_long_as_an_idle_link_is_kept() {
        let began = Instant::now();
        of(|| 7).await;
        assert_eq!(began.elapsed(), LINK_IDLE_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn it_lasts_while_anything_is_heard() {
        let heard = AtomicU64::new(0);
        let speaks = async {
            for _ in 0..20 {
                sleep(LINK_IDLE_TIMEOUT - LOOK).await;
                heard.fetch_add(1, Ordering::Relaxed);
            }
        };
        tokio::select! {
            () = of(|| heard.load(Ordering::Relaxed)) => panic!("it was heard"),
            () = speaks => {}
        }
        timeout(
            LINK_IDLE_TIMEOUT + LOOK,
            of(|| heard.load(Ordering::Relaxed)),
        )
        .await
        .expect("it is heard no more");
    }
}
