//! The one source of chance of a seed.

use std::ops::RangeInclusive;

/// SplitMix64: small, seeded, good enough to choose.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The same seed, the same throws.
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds differ in one bit only; two rounds spread them.
        let mut dice = Self(seed ^ 0x5851_f42d_4c95_7f2d);
        dice.roll();
        Self(dice.roll())
    }

    /// Any number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of a range.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let width = range.end() - range.start() + 1;
        range.start() + self.roll() % width
    }

    /// True so many times of a thousand.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.roll() % 1000 < u64::from(per_mille)
    }

    /// One of these; `None` when there are none.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        let at = usize::try_from(self.roll() % of.len().max(1) as u64).unwrap_or(0);
        of.get(at).copied()
    }
}
