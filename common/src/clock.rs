//! The wall clock as a value: the system's, or one that tests move by hand.
//!
//! What depends on the date (is a certificate over, is a token, is a renewal due) asks a [`Clock`]
//! that it was given; how long something may take is measured by the runtime's timers and not here.
//!
//! # Invariants
//! * Clones are one clock: who moves it moves it for all.
//! * The clock may jump, in both directions: a wait looks at it again at least once a minute.

use std::time::Duration;

use jiff::Timestamp;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use tokio::sync::watch;

/// Longest time that a jump of the system's clock goes unnoticed by who waits for a moment.
const LOOK: Duration = Duration::from_secs(60);

/// A wall clock. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Clock(Source);

#[derive(Debug, Clone, Default)]
enum Source {
    #[default]
    System,
    ByHand(watch::Sender<Timestamp>),
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Clock {
        Clock(Source::System)
    }

    /// A clock that stands at `at` until it is set.
    pub fn by_hand(at: Timestamp) -> Clock {
        Clock(Source::ByHand(watch::channel(at).0))
    }

    /// What it shows.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => Timestamp::now(),
            Source::ByHand(hand) => *hand.borrow(),
        }
    }

    /// What it shows, in whole seconds since 1970; a clock before that counts as 1970.
    pub fn unix_seconds(&self) -> u64 {
        u64::try_from(self.now().as_second()).unwrap_or(0)
    }

    /// Moves a clock that is moved by hand.
    ///
    /// # Panics
    /// If it is the system's, which is not ours to move.
    pub fn set(&self, at: Timestamp) {
        match &self.0 {
            Source::System => panic!("the system's clock is not set from here"),
            Source::ByHand(hand) => {
                hand.send_replace(at);
            }
        }
    }

    /// Moves a clock that is moved by hand, forwards.
    ///
    /// # Panics
    /// As [`Clock::set`].
    pub fn advance(&self, by: Duration) {
        self.set(later(self.now(), by));
    }

    /// Waits until the clock shows `at` or later. Dropping the future is safe.
    pub async fn reached(&self, at: Timestamp) {
        match &self.0 {
            Source::System => {
                while let Ok(left @ 1..) =
                    u64::try_from(at.as_millisecond() - Timestamp::now().as_millisecond())
                {
                    tokio::time::sleep(Duration::from_millis(left).min(LOOK)).await;
                }
            }
            Source::ByHand(hand) => {
                // Cannot fail: this clock holds the sender.
                let _ = hand.subscribe().wait_for(|now| *now >= at).await;
            }
        }
    }
}

/// The moment `by` after `at`; the last one there is where that is beyond.
pub fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// TLS verifies certificates by the same clock.
impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let since = Duration::from_secs(self.unix_seconds());
        Some(UnixTime::since_unix_epoch(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[tokio::test]
    async fn who_waits_for_a_moment_goes_on_when_the_clock_is_moved_there() {
        let clock = Clock::by_hand(second(100));
        clock.reached(second(100)).await;
        let waits = clock.reached(second(200));
        tokio::pin!(waits);
        clock.advance(Duration::from_secs(99));
        assert!(futures_poll(waits.as_mut()).await.is_none());
        clock.clone().advance(Duration::from_secs(1));
        waits.await;
        assert_eq!(clock.now(), second(200));
        assert_eq!(clock.current_time().unwrap().as_secs(), 200);
    }

    /// One poll.
    async fn futures_poll<F: Future + Unpin>(future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn the_past_is_reached_at_once_and_time_ends_somewhere() {
        Clock::system().reached(second(0)).await;
        let eternity = Duration::from_secs(u64::MAX);
        assert_eq!(later(second(1), eternity), Timestamp::MAX);
        assert_eq!(Clock::by_hand(second(-5)).unix_seconds(), 0);
    }
}
