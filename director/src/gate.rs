//! How much strangers may write into the log: a bounded number of lines in each interval, and the number of
//! the rest.

use std::time::Instant;

use windlass_common::limits::{LOG_INTERVAL, LOG_LINES_PER_REASON};

/// Lets a number of lines through in each interval, and counts the rest.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Gate {
    /// When the interval began.
    since: Option<Instant>,
    lines: u32,
    held: u64,
}

impl Gate {
    /// Whether the line of what happens now is written.
    pub(crate) fn admit(&mut self, now: Instant) -> bool {
        let fresh = self
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= LOG_INTERVAL);
        if fresh {
            self.since = Some(now);
            self.lines = 0;
        }
        if self.lines < LOG_LINES_PER_REASON {
            self.lines += 1;
            return true;
        }
        self.held += 1;
        false
    }

    /// How many had no line since this was last asked.
    pub(crate) fn take_held(&mut self) -> u64 {
        std::mem::take(&mut self.held)
    }

    /// Counts one that has no line of its own.
    pub(crate) fn hold(&mut self) {
        self.held += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever comes when: each refusal has a line or is in a summary, and lines are bounded.
        #[test]
        fn nothing_is_lost_and_no_interval_has_too_many_lines(
            gaps in prop::collection::vec(0u64..3_000, 1..400),
        ) {
            let start = Instant::now();
            let (mut gate, mut at, mut lines, mut held) = (Gate::default(), 0, Vec::new(), 0);
            for gap in &gaps {
                at += gap;
                let now = start + Duration::from_millis(*gap) + Duration::from_millis(at - gap);
                if gate.admit(now) {
                    lines.push(at);
                }
                if at % 7 == 0 {
                    held += gate.take_held();
                }
            }
            held += gate.take_held();
            prop_assert_eq!(lines.len() as u64 + held, gaps.len() as u64);
            let interval = LOG_INTERVAL.as_millis() as u64;
            for first in &lines {
                let within = lines.iter().filter(|line| (*first..first + interval).contains(line));
                // Two intervals may touch in any span of that length.
                prop_assert!(within.count() <= 2 * LOG_LINES_PER_REASON as usize);
            }
        }
    }
}
