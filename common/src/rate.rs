//! How fast bytes may go, and how often something may happen: token buckets as values, and one that
//! waits.
//!
//! # Invariants
//! * In any time `t` at most `burst + rate × t` bytes pass, if no single piece is longer than the burst.
//! * Who always has more to send gets the rate in full, whatever the size of the pieces.
//!
//! # Not here
//! Fairness: pieces pass in the order in which they ask, so whoever shares a bucket asks for small ones.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::limits::CHUNK_BYTES;

/// A token bucket. It never reads a clock: `now` is the time since any fixed moment.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    bytes_per_s: u64,
    burst: Duration,
    /// When the bucket will be full again.
    full_at: Duration,
}

impl TokenBucket {
    /// A full bucket. It holds a sixteenth of a second, and at least four pieces of [`CHUNK_BYTES`].
    /// A rate of 0 is taken for 1.
    pub fn new(bytes_per_s: u64) -> TokenBucket {
        let bytes_per_s = bytes_per_s.max(1);
        let least = cost(4 * CHUNK_BYTES as u64, bytes_per_s);
        TokenBucket {
            bytes_per_s,
            burst: least.max(Duration::from_micros(62_500)),
            full_at: Duration::ZERO,
        }
    }

    /// What passes at once after a rest, in bytes.
    pub fn burst_bytes(&self) -> u64 {
        let bytes = self.burst.as_nanos() * u128::from(self.bytes_per_s) / 1_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Lets `bytes` through; they may be sent once the returned time is over. `now` never goes back.
    pub fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        // A bucket that rested is full and not fuller.
        self.full_at = self.full_at.max(now) + cost(bytes, self.bytes_per_s);
        // Empty one burst before it is full.
        self.full_at.saturating_sub(self.burst).saturating_sub(now)
    }
}

/// Time that `bytes` take, rounded up.
fn cost(bytes: u64, bytes_per_s: u64) -> Duration {
    let nanos = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(bytes_per_s));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// How often something may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Time in which one more is earned.
    pub every: Duration,
    /// How many may come at once after a rest; at least 1.
    pub burst: u32,
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at once and one each {:?}", self.burst, self.every)
    }
}

/// What is left of a [`Rate`]: 16 bytes, so that each of many may have one. It never reads a clock:
/// `now` is the time since any fixed moment, and never goes back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowance {
    /// When all of it is there again.
    full_at: Duration,
}

impl Allowance {
    /// Takes one.
    ///
    /// # Errors
    /// Nothing is left, and nothing was taken; one is earned after this time.
    pub fn take(&mut self, rate: Rate, now: Duration) -> Result<(), Duration> {
        let wait = self.wait(rate, now);
        if wait.is_zero() {
            self.full_at = self.full_at.max(now) + rate.every;
            Ok(())
        } else {
            Err(wait)
        }
    }

    /// How long until one can be taken; zero if it can be now.
    pub fn wait(&self, rate: Rate, now: Duration) -> Duration {
        // All but one of the burst may be missing.
        let missing = rate.every.saturating_mul(rate.burst.max(1) - 1);
        self.full_at.saturating_sub(missing).saturating_sub(now)
    }

    /// Whether all of it is there: then it is worth no memory.
    pub fn is_full(&self, now: Duration) -> bool {
        self.full_at <= now
    }
}

/// A bucket that many senders share and that makes them wait.
#[derive(Debug)]
pub struct Pace {
    since: Instant,
    bucket: Mutex<TokenBucket>,
}

impl Pace {
    /// A full bucket of this rate.
    pub fn new(bytes_per_s: u64) -> Pace {
        Pace {
            since: Instant::now(),
            bucket: Mutex::new(TokenBucket::new(bytes_per_s)),
        }
    }

    /// Returns when `bytes` may be sent. Dropping the future gives nothing back: what was let through
    /// and not sent is lost to the others.
    pub async fn pass(&self, bytes: usize) {
        let wait = self
            .bucket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(self.since.elapsed(), bytes as u64);
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Senders that come at any time with pieces of any size, on virtual time.
        #[test]
        fn no_window_holds_more_than_burst_and_rate(
            rate in 1_u64 << 16..1 << 30,
            asks in proptest::collection::vec((0_u64..50_000_000, 1_u64..CHUNK_BYTES as u64), 1..200),
        ) {
            let mut bucket = TokenBucket::new(rate);
            let burst = bucket.burst_bytes() + 1;
            let mut now = Duration::ZERO;
            let mut sent: Vec<(Duration, u64)> = Vec::new();
            for (gap_ns, bytes) in asks {
                now += Duration::from_nanos(gap_ns);
                let wait = bucket.take(now, bytes);
                sent.push((now + wait, bytes));
            }
            for (first, (from, _)) in sent.iter().enumerate() {
                let mut sum = 0;
                for (at, bytes) in &sent[first..] {
                    sum += bytes;
                    let window = at.saturating_sub(*from).as_nanos();
                    let earned = u128::from(rate) * window / 1_000_000_000;
                    prop_assert!(u128::from(sum) <= u128::from(burst) + earned, "{sum} in {window} ns");
                }
            }
        }

        /// A sender that always has more gets the rate in full.
        #[test]
        fn who_always_sends_gets_the_rate(
            rate in 1_u64 << 16..1 << 30,
            pieces in proptest::collection::vec(1_u64..CHUNK_BYTES as u64, 1..200),
        ) {
            let mut bucket = TokenBucket::new(rate);
            let (mut now, mut sum) = (Duration::ZERO, 0_u64);
            for bytes in pieces {
                now += bucket.take(now, bytes);
                sum += bytes;
            }
            // Rounding up costs at most a nanosecond a piece.
            let longest = cost(sum, rate) + Duration::from_nanos(200);
            prop_assert!(now <= longest, "{sum} bytes took {now:?}");
        }
    }

    proptest! {
        /// Whoever asks whenever: no window holds more than burst and rate, a refusal takes nothing,
        /// and after the wait that it names one is let through.
        #[test]
        fn an_allowance_holds_in_every_window(
            every_ms in 1_u64..500,
            burst in 1_u32..50,
            gaps_ms in proptest::collection::vec(0_u64..400, 1..300),
        ) {
            let rate = Rate { every: Duration::from_millis(every_ms), burst };
            let (mut allowance, mut now, mut taken) = (Allowance::default(), Duration::ZERO, Vec::new());
            for gap in gaps_ms {
                now += Duration::from_millis(gap);
                let before = allowance;
                match allowance.take(rate, now) {
                    Ok(()) => taken.push(now),
                    Err(wait) => {
                        prop_assert!(!wait.is_zero());
                        prop_assert_eq!(allowance, before);
                        prop_assert_eq!(before.clone().take(rate, now + wait), Ok(()));
                        prop_assert!(before.clone().take(rate, now + wait - Duration::from_nanos(1)).is_err());
                    }
                }
            }
            for (first, from) in taken.iter().enumerate() {
                for (number, at) in taken[first..].iter().enumerate() {
                    let earned = (*at - *from).as_millis() / u128::from(every_ms);
                    prop_assert!((number as u128) < u128::from(burst) + earned);
                }
            }
            prop_assert!(allowance.is_full(now + rate.every * burst));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pace_makes_its_senders_wait() {
        let pace = Pace::new(1 << 20);
        let began = Instant::now();
        for _ in 0..10 * (1 << 20) / CHUNK_BYTES {
            pace.pass(CHUNK_BYTES).await;
        }
        let took = began.elapsed().as_secs_f64();
        // Ten seconds' worth, less the burst of a quarter of a second.
        assert!((9.7..=9.8).contains(&took), "{took}");
    }
}
