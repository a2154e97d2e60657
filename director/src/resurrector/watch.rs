//! Whether the director can trust its own eyes: it stands still when its host does, and its clock may be set.

use std::time::Duration;

/// What the wall clock may differ from the steady one, between two looks, before the director distrusts
/// what it measures: corrections of a clock are smaller.
pub const JUMP: Duration = Duration::from_secs(5);
/// A director that did not come to look for this long was held up, with all that it watches. It looks once a second.
pub const HELD_UP: Duration = Duration::from_secs(10);

/// Sees when the director was held up, or its clock was set.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    steady: Duration,
    wall_ms: u64,
}

/// Why what was measured before says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distrust {
    /// The wall clock went another way than the steady one.
    ClockSet,
    /// Nothing ran.
    HeldUp,
}

impl Distrust {
    /// It in words.
    pub fn why(self) -> &'static str {
        match self {
            Distrust::ClockSet => "its clock was set",
            Distrust::HeldUp => "it was held up itself",
        }
    }
}

impl Watch {
    /// Begins at these readings of a clock that only goes forward, and of the wall's.
    pub fn new(steady: Duration, wall_ms: u64) -> Watch {
        Watch { steady, wall_ms }
    }

    /// Why what was measured since the last look says nothing, if it does not.
    pub fn look(&mut self, steady: Duration, wall_ms: u64) -> Option<Distrust> {
        let passed = steady.saturating_sub(self.steady);
        let shown = Duration::from_millis(wall_ms.saturating_sub(self.wall_ms));
        let back = wall_ms < self.wall_ms;
        (self.steady, self.wall_ms) = (steady, wall_ms);
        if back || shown.abs_diff(passed) > JUMP {
            Some(Distrust::ClockSet)
        } else if passed > HELD_UP {
            Some(Distrust::HeldUp)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_comes_late_or_a_clock_that_was_set_is_seen_once() {
        const DAY: i64 = 86_400_000;
        let (held_up, jump) = (HELD_UP.as_millis() as u64, JUMP.as_millis() as i64);
        #[rustfmt::skip] // one case per line: what passed, what the wall clock shows beyond it
        let cases = [
            ("a second",              1_000,       0,        None),
            ("a slow round",          held_up,     0,        None),
            ("it stood still",        held_up + 1, 0,        Some(Distrust::HeldUp)),
            ("a correction",          1_000,       jump,     None),
            ("it was set forward",    1_000,       jump + 1, Some(Distrust::ClockSet)),
            ("it was set far ahead",  1_000,       365 * DAY, Some(Distrust::ClockSet)),
            ("it was set back",       1_000,       -1_001,   Some(Distrust::ClockSet)),
            ("back by a day",         1_000,       -DAY,     Some(Distrust::ClockSet)),
            ("the host was asleep",   held_up * 9, -(held_up as i64 * 9), Some(Distrust::ClockSet)),
        ];
        let (steady, wall_ms) = (Duration::from_secs(3600), 1_700_000_000_000);
        for (what, passed, beyond, wanted) in cases {
            let mut watch = Watch::new(steady, wall_ms);
            let (then, shows) = (steady + Duration::from_millis(passed), wall_ms + passed);
            let shows = shows.checked_add_signed(beyond).unwrap();
            assert_eq!(watch.look(then, shows), wanted, "{what}");
            let next = Duration::from_secs(1);
            assert_eq!(
                watch.look(then + next, shows + 1000),
                None,
                "{what}, afterwards"
            );
        }
    }
}
