//! Waiting between attempts: doubled each time, capped, jittered by half.
//!
//! No clock and no random source of its own: the caller sleeps, and brings the seed.

use std::time::Duration;

/// The waits between the attempts of one thing.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    attempt: u32,
    state: u64,
}

impl Backoff {
    /// The first wait is `first`, none is longer than `cap`; both before jitter. Machines with other
    /// seeds wait other times, so that a fleet does not knock all at once.
    pub fn new(first: Duration, cap: Duration, seed: u64) -> Backoff {
        Backoff {
            first,
            cap,
            attempt: 0,
            state: seed,
        }
    }

    /// The next wait: between half and all of the doubled one.
    pub fn next_wait(&mut self) -> Duration {
        let full = self
            .first
            .saturating_mul(1 << self.attempt.min(20))
            .min(self.cap);
        self.attempt = self.attempt.saturating_add(1);
        let half_ns = u64::try_from(full.as_nanos() / 2).unwrap_or(u64::MAX);
        full - Duration::from_nanos(self.random() % (half_ns + 1))
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }

    /// SplitMix64: spreads, and is no secret.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_cap_within_their_jitter() {
        let (first, cap) = (Duration::from_millis(100), Duration::from_secs(15));
        for seed in 0..200 {
            let mut backoff = Backoff::new(first, cap, seed);
            for attempt in 0..70 {
                let full = first.saturating_mul(1 << attempt.min(20)).min(cap);
                let wait = backoff.next_wait();
                assert!(
                    wait >= full / 2 && wait <= full,
                    "{seed} {attempt} {wait:?}"
                );
            }
            backoff.reset();
            assert!(backoff.next_wait() <= first);
        }
    }

    #[test]
    fn machines_do_not_wait_in_step() {
        let first =
            |seed| Backoff::new(Duration::from_secs(1), Duration::from_secs(1), seed).next_wait();
        let mut waits: Vec<_> = (0..100).map(first).collect();
        waits.sort_unstable();
        waits.dedup();
        assert!(waits.len() > 95);
    }
}
