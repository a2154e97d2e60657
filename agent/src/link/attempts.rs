//! What became of the attempts of a link, counted for whoever measures a fleet.

use std::sync::atomic::{AtomicU64, Ordering};

/// What became of one attempt to get a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A session stood.
    Welcomed,
    /// Nobody answered.
    Silent,
    /// The director answered, and the handshake or the hello was not over in time.
    Unserved,
    /// The director said no, or what it said was of no use.
    Failed,
}

/// Counts of one link, since it began.
#[derive(Debug, Default)]
pub(super) struct Attempts([AtomicU64; 4]);

/// How many attempts of a link ended in which way; see [`LinkHandle::attempts`](super::LinkHandle::attempts).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttemptCounts {
    /// Sessions that stood.
    pub welcomed: u64,
    /// Nobody answered.
    pub silent: u64,
    /// The director answered, and did not come to it in time.
    pub unserved: u64,
    /// The director said no, or what it said was of no use.
    pub failed: u64,
}

impl Attempts {
    pub(super) fn count(&self, outcome: Outcome) {
        self.0[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> AttemptCounts {
        let of = |outcome: Outcome| self.0[outcome as usize].load(Ordering::Relaxed);
        AttemptCounts {
            welcomed: of(Outcome::Welcomed),
            silent: of(Outcome::Silent),
            unserved: of(Outcome::Unserved),
            failed: of(Outcome::Failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_a_count_of_its_own() {
        let attempts = Attempts::default();
        let all = [
            Outcome::Welcomed,
            Outcome::Silent,
            Outcome::Unserved,
            Outcome::Failed,
        ];
        for (at, outcome) in all.into_iter().enumerate() {
            for _ in 0..=at {
                attempts.count(outcome);
            }
        }
        let wanted = AttemptCounts {
            welcomed: 1,
            silent: 2,
            unserved: 3,
            failed: 4,
        };
        assert_eq!(attempts.counts(), wanted);
    }
}
