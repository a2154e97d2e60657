//! How often agents beat: less often the more of them there are, so that heartbeats never take more than
//! their part of the director, and as rarely as may be while a fleet comes back, whose handshakes take that part.
//!
//! # Invariants
//! * No more heartbeats than the budget pays for, up to the longest interval; no shorter an interval than
//!   the configuration's.
//! * A fleet that shrinks by less than a fifth and grows again is told nothing on its way back, unless it comes back all
//!   at once.
//! * Only machines that have shown who they are slow it down: strangers at the door do not count.
//! * An agent is told with its welcome, and again with each change; one that connects while the pace
//!   changes is told afterwards.
//!
//! # Not here
//! When silence is suspicious ([`super::silence`]): in intervals, whatever they are.

use std::sync::Weak;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use windlass_common::limits::{
    ARRIVAL_CPU, HEARTBEAT_CPU, HEARTBEAT_INTERVAL_PACED_MAX, REPORT_INTERVAL_MS,
};
use windlass_common::wire::message::{Detail, Tune2};

use super::server::Shared;

/// Between two looks at the size of the fleet.
const LOOK: Duration = Duration::from_secs(2);
/// Looks in a row in which next to nobody arrives, until a fleet counts as being back.
const WAVE_LOOKS: u32 = 5;
/// Within this a fleet beats at its pace that is back.
pub(crate) const SETTLES_WITHIN: Duration = LOOK.saturating_mul(WAVE_LOOKS + 2);
/// Intervals are multiples of this, milliseconds: a fleet that comes back is told a few times, not with
/// each agent.
const STEP_MS: u64 = 250;

/// How a fleet of this many agents reports that reports like `now`. `base` is the fastest; `budget` the CPU
/// time that heartbeats may take in a second.
fn pace(base: Tune2, now: Tune2, fleet: usize, budget: Duration) -> Tune2 {
    let needed = interval_ms(base, fleet, budget);
    // Faster only where a fleet larger by a quarter would be as fast.
    let roomy = interval_ms(base, fleet.saturating_add(fleet / 4), budget);
    let chosen = if needed > now.heartbeat_interval_ms {
        needed
    } else {
        roomy.min(now.heartbeat_interval_ms)
    };
    at(base, chosen)
}

/// Whether a fleet is coming back: so many machines arrive that what heartbeats may take is needed for them.
///
/// It is over once next to nobody has arrived for a while, and not as soon as nobody arrives: on a host that is too busy
/// with heartbeats nobody does.
#[derive(Debug, Default)]
struct Wave {
    /// Looks that are left until it counts as over.
    left: u32,
}

impl Wave {
    /// `arrived` machines since the last look.
    fn see(&mut self, arrived: usize, budget: Duration) -> bool {
        let arrived = u32::try_from(arrived).unwrap_or(u32::MAX);
        let spent = ARRIVAL_CPU.saturating_mul(arrived);
        let paid = budget.saturating_mul(LOOK.as_secs() as u32);
        let few = if self.left == 0 { paid / 4 } else { paid / 50 };
        if spent > few {
            self.left = WAVE_LOOKS;
        } else {
            self.left = self.left.saturating_sub(1);
        }
        self.left > 0
    }
}

/// What agents are told, look by look.
#[derive(Debug, Default)]
struct Pacer {
    /// The pace of a fleet that stays as it is.
    settled: Option<Tune2>,
    wave: Wave,
    /// How many there were at the last look.
    before: usize,
}

impl Pacer {
    /// The pace of now, for a fleet of this many agents.
    fn look(&mut self, base: Tune2, fleet: usize, budget: Duration) -> Tune2 {
        let settled = pace(base, self.settled.unwrap_or(base), fleet, budget);
        let arrived = fleet.saturating_sub(self.before);
        (self.settled, self.before) = (Some(settled), fleet);
        if !self.wave.see(arrived, budget) {
            return settled;
        }
        let longest = HEARTBEAT_INTERVAL_PACED_MAX.as_millis() as u32;
        at(base, longest.max(settled.heartbeat_interval_ms))
    }
}

/// Heartbeats at this interval, and reports in the same measure.
fn at(base: Tune2, chosen: u32) -> Tune2 {
    if chosen <= base.heartbeat_interval_ms {
        return base;
    }
    let scaled = u64::from(base.report_interval_ms) * u64::from(chosen)
        / u64::from(base.heartbeat_interval_ms.max(1));
    Tune2 {
        heartbeat_interval_ms: chosen,
        report_interval_ms: u32::try_from(scaled)
            .unwrap_or(u32::MAX)
            .min(*REPORT_INTERVAL_MS.end()),
        detail: Detail::Units,
    }
}

/// The shortest interval that the budget pays for, in the bounds there are.
fn interval_ms(base: Tune2, fleet: usize, budget: Duration) -> u32 {
    let longest = HEARTBEAT_INTERVAL_PACED_MAX.as_millis() as u64;
    let cost_us = (fleet as u128).saturating_mul(HEARTBEAT_CPU.as_micros());
    let needed = (cost_us * 1000).div_ceil(budget.as_micros().max(1));
    let stepped = u64::try_from(needed)
        .unwrap_or(u64::MAX)
        .min(longest)
        .next_multiple_of(STEP_MS);
    u32::try_from(stepped.min(longest))
        .unwrap_or(u32::MAX)
        .max(base.heartbeat_interval_ms)
}

/// What heartbeats may take of a director's host: half of its cores, the rest is for what a director is there
/// for.
pub(crate) fn host_budget() -> Duration {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    Duration::from_secs(1) * u32::try_from(cores).unwrap_or(1) / 2
}

/// Paces the fleet until the gateway is gone.
pub(super) async fn keep(gateway: Weak<Shared>, budget: Duration) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pacer = Pacer::default();
    loop {
        looks.tick().await;
        let Some(shared) = gateway.upgrade() else {
            return;
        };
        let (now, fleet) = (shared.pace(), shared.sessions.len());
        let next = pacer.look(shared.config.tune, fleet, budget);
        if next == now {
            continue;
        }
        // Who is welcomed from here on is told, so that each session has heard of it by one way or the other.
        shared.set_pace(next);
        let (was_ms, is_ms) = (now.heartbeat_interval_ms, next.heartbeat_interval_ms);
        tracing::info!(
            fleet,
            was_ms,
            is_ms,
            "agents are told to beat at another pace"
        );
        for session in shared.sessions.all() {
            if let Err(error) = session.pace(next) {
                tracing::debug!(machine = %session.identity, %error, "it is not told");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use windlass_common::limits::{LINK_IDLE_TIMEOUT, SESSIONS_MAX, suspect_after};

    use super::*;

    const CORE: Duration = Duration::from_secs(1);

    fn noticed_after(tune: Tune2) -> Duration {
        let interval = Duration::from_millis(tune.heartbeat_interval_ms.into());
        // As `silence` looks.
        suspect_after(interval) + interval / 4
    }

    #[test]
    fn a_large_fleet_beats_less_often() {
        let base = Tune2::default();
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            // One core pays for 20 000 heartbeats a second.
            (0,      CORE,     500,  2000, Detail::Full),
            (10_000, CORE,     500,  2000, Detail::Full),
            (10_001, CORE,     750,  3000, Detail::Units),
            (15_000, CORE,     750,  3000, Detail::Units),
            (20_000, CORE,     1000, 4000, Detail::Units),
            (10_000, CORE / 2, 1000, 4000, Detail::Units),
            (20_000, CORE / 4, 1500, 6000, Detail::Units),
            (1,      Duration::ZERO, 1500, 6000, Detail::Units),
        ];
        for (fleet, budget, heartbeat_interval_ms, report_interval_ms, detail) in cases {
            let wanted = Tune2 {
                heartbeat_interval_ms,
                report_interval_ms,
                detail,
            };
            assert_eq!(
                pace(base, base, fleet, budget),
                wanted,
                "{fleet} {budget:?}"
            );
        }
        let slow = Tune2 {
            heartbeat_interval_ms: 10_000,
            ..base
        };
        assert_eq!(
            pace(slow, slow, SESSIONS_MAX, CORE),
            slow,
            "slower than need be"
        );
    }

    #[test]
    fn a_death_is_suspected_in_time_at_any_pace() {
        let base = Tune2::default();
        assert!(noticed_after(base) < Duration::from_secs(2));
        let slowest = pace(base, base, usize::MAX, Duration::ZERO);
        assert!(noticed_after(slowest) < LINK_IDLE_TIMEOUT);
        let large = pace(base, base, 20_000, CORE);
        assert!(noticed_after(large) <= Duration::from_millis(3500));
    }

    #[test]
    fn a_fleet_that_comes_back_is_a_wave_until_nobody_arrives_any_more() {
        let mut wave = Wave::default();
        // Half a core for arrivals in two seconds begins it; machines that are made one by one do not.
        for few in [0, 100, 500, 0] {
            assert!(!wave.see(few, CORE), "{few}");
        }
        assert!(wave.see(501, CORE));
        // Nobody arrives for a moment, since all are too busy.
        for arrived in [1500, 0, 0, 41, 0, 0, 0, 0] {
            assert!(wave.see(arrived, CORE), "{arrived}");
        }
        assert!(!wave.see(40, CORE), "it is over");
        assert!(!wave.see(500, CORE));
    }

    #[test]
    fn a_fleet_beats_rarely_from_its_first_wave_until_it_is_there() {
        let base = Tune2::default();
        let mut pacer = Pacer::default();
        let mut look = |fleet| pacer.look(base, fleet, CORE).heartbeat_interval_ms;
        assert_eq!(look(300), 500, "a few clusters");
        for fleet in [1500, 4000, 7350, 7350, 7350, 9900] {
            assert_eq!(look(fleet), 1500, "{fleet}");
        }
        let quiet: Vec<u32> = (0..WAVE_LOOKS).map(|_| look(10_000)).collect();
        assert_eq!(quiet, [1500, 1500, 1500, 1500, 1500]);
        assert_eq!(look(10_000), 500, "as a fleet of this size, and no slower");
    }

    #[test]
    fn it_goes_back_when_there_is_room() {
        let base = Tune2::default();
        let slow = pace(base, base, 12_000, CORE);
        assert_eq!(slow.heartbeat_interval_ms, 750);
        assert_eq!(
            pace(base, slow, 10_000, CORE),
            slow,
            "it would come back soon"
        );
        assert_eq!(pace(base, slow, 8_000, CORE), base);
    }

    proptest! {
        #[test]
        fn what_is_chosen_is_paid_for_and_stays(
            before in 0usize..30_000,
            fleet in 0usize..SESSIONS_MAX,
            drift in prop::collection::vec(0usize..100, 1..50),
            budget_ms in 1u64..4_000,
        ) {
            let (base, budget) = (Tune2::default(), Duration::from_millis(budget_ms));
            let was = pace(base, base, before, budget);
            let chosen = pace(base, was, fleet, budget);
            prop_assert!(chosen.check().is_ok());
            let ms = u64::from(chosen.heartbeat_interval_ms);
            let (shortest, longest) = (500, HEARTBEAT_INTERVAL_PACED_MAX.as_millis() as u64);
            prop_assert!((shortest..=longest).contains(&ms));
            let cost_us = fleet as u64 * 1000 * HEARTBEAT_CPU.as_micros() as u64 / ms;
            prop_assert!(ms == longest || cost_us <= budget_ms * 1000);
            prop_assert_eq!(pace(base, chosen, fleet, budget), chosen, "it does not settle");
            // Between nine tenths of a fleet and all of it no agent is told to beat less often again.
            let mut tune = chosen;
            for part in drift {
                let next = pace(base, tune, fleet - fleet / 10 * part / 100, budget);
                prop_assert!(next.heartbeat_interval_ms <= tune.heartbeat_interval_ms);
                tune = next;
            }
        }
    }
}
