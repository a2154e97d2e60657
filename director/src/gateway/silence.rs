//! Who has fallen silent: one look over all sessions, four times in a heartbeat's interval.
//!
//! A machine that is suspect is only that: its connection may stand, and what its silence means is
//! decided elsewhere, with other witnesses. Before it is suspect it is late, which is nothing yet but a reason to ask
//! its provider whether it runs at all.
//!
//! A heartbeat is a datagram that is sent once. Where packets are lost, some do not arrive; but QUIC has the agent ask
//! for the acknowledgement that it misses, again and again. So anything that is received on its connection, while
//! heartbeats are late, shows that the agent lives.

use std::sync::Weak;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use windlass_common::limits::suspect_after;

use super::Event;
use super::server::Shared;

/// How often as long as silence heartbeats alone may be missing: 19.5 intervals. That many are not lost by chance even
/// where every second one is.
const BEATLESS: u32 = 6;

/// Silence from which on a machine is late: of two heartbeats one was missed, and what QUIC asks again for it.
fn late_after(interval: Duration) -> Duration {
    interval + interval / 2
}

/// What a silence amounts to, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Silence {
    /// Nothing.
    None,
    /// It is longer than between two heartbeats.
    Late,
    /// The machine may be dead.
    Suspect,
}

/// Machines that may become late in one look: where it is more, it is the network or the director itself, and nobody
/// is told.
const LATE_MAX: usize = 4;

/// What is heard of one machine.
#[derive(Debug)]
pub(super) struct Pulse {
    /// When its last heartbeat arrived.
    beat: Instant,
    /// When anything was heard of it.
    heard: Instant,
    /// What had been received of it when it was looked at last, while its heartbeat is late.
    received: Option<u64>,
    /// What it was told.
    every: Duration,
    silent: Silence,
}

impl Pulse {
    /// Of a machine that is heard of for the first time, and was told to beat so often.
    pub(super) fn new(now: Instant, every: Duration) -> Pulse {
        Pulse {
            beat: now,
            heard: now,
            received: None,
            every,
            silent: Silence::None,
        }
    }

    /// A heartbeat arrived; returns whether the machine was suspect until now.
    pub(super) fn beat(&mut self, now: Instant) -> bool {
        (self.beat, self.heard, self.received) = (now, now, None);
        std::mem::replace(&mut self.silent, Silence::None) == Silence::Suspect
    }

    /// It was told to beat so often, and goes on as before until it has read this.
    pub(super) fn told(&mut self, now: Instant, every: Duration) {
        self.every = every;
        (self.beat, self.heard, self.received) = (now, now, None);
    }

    /// What its silence amounts to, if that is more than it was before. `received` counts what is received of it, and
    /// is asked while its heartbeat is late.
    pub(super) fn look(&mut self, now: Instant, received: impl FnOnce() -> u64) -> Option<Silence> {
        let beatless = now.saturating_duration_since(self.beat);
        if beatless < self.every + self.every / 4 {
            return None;
        }
        let received = received();
        if self
            .received
            .replace(received)
            .is_some_and(|before| before != received)
        {
            self.heard = now;
        }
        let (silence, limit) = (self.silence(now), suspect_after(self.every));
        let silent = if silence >= limit || beatless >= limit * BEATLESS {
            Silence::Suspect
        } else if silence >= late_after(self.every) {
            Silence::Late
        } else {
            Silence::None
        };
        // A suspect is one until its heartbeats arrive.
        let before = self.silent;
        if before != Silence::Suspect {
            self.silent = silent;
        }
        (silent > before).then_some(silent)
    }

    /// How long ago anything was heard of it.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }

    /// When anything was heard of it.
    pub(super) fn heard(&self) -> Instant {
        self.heard
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.silent == Silence::Suspect
    }

    pub(super) fn is_late(&self) -> bool {
        self.silent == Silence::Late
    }
}

/// When the gateway looked last.
#[derive(Debug)]
struct Looks {
    last: Instant,
    every: Duration,
}

impl Looks {
    fn new(now: Instant, beat: Duration) -> Looks {
        let every = (beat / 4).max(Duration::from_millis(10));
        Looks { last: now, every }
    }

    /// Whether this look counts. A director that was held up itself has heard nobody meanwhile: what waits in its socket
    /// is read first.
    fn counts(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(std::mem::replace(&mut self.last, now));
        since <= self.every * 4
    }
}

/// Looks until the gateway is gone.
pub(super) async fn watch(gateway: Weak<Shared>) {
    let Some(interval_ms) = gateway
        .upgrade()
        .map(|shared| shared.config.tune.heartbeat_interval_ms)
    else {
        return;
    };
    let beat = Duration::from_millis(interval_ms.into());
    let mut looks = Looks::new(Instant::now(), beat);
    let mut ticks = interval(looks.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shared) = gateway.upgrade() else {
            return;
        };
        let now = Instant::now();
        if !looks.counts(now) {
            continue;
        }
        let silent = shared.sessions.silent(now);
        let late = silent.iter().filter(|(_, of)| *of == Silence::Late).count();
        for (identity, silence) in silent {
            match silence {
                Silence::Late if late <= LATE_MAX => shared.sessions.emit(Event::Late { identity }),
                Silence::None | Silence::Late => {}
                Silence::Suspect => {
                    tracing::info!(machine = %identity, "machine is silent");
                    shared.sessions.emit(Event::Suspected { identity });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use windlass_common::limits::HEARTBEAT_INTERVAL;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const LOOK: Duration = Duration::from_millis(125);

    /// What arrives of one agent: when, and whether it is a heartbeat.
    struct Arrivals(Vec<(Duration, bool)>);

    impl Arrivals {
        /// Those from a moment on, counted from there.
        fn since(&self, from: Duration) -> Arrivals {
            let later = self.0.iter().filter(|(at, _)| *at >= from);
            Arrivals(later.map(|(at, beats)| (*at - from, *beats)).collect())
        }

        /// After how long the machine is suspect, if it is by `until`; looks begin at `phase`.
        fn suspected(&self, phase: Duration, until: Duration, by_frames: bool) -> Option<Duration> {
            self.silent(Silence::Suspect, phase, until, by_frames)
        }

        /// After how long its silence amounts to this, if it does by `until`.
        fn silent(
            &self,
            wanted: Silence,
            phase: Duration,
            until: Duration,
            by_frames: bool,
        ) -> Option<Duration> {
            let began = Instant::now();
            let mut pulse = Pulse::new(began, HEARTBEAT_INTERVAL);
            let (mut at, mut next, mut received) = (phase, 0, 0);
            while at <= until {
                while let Some((when, beats)) = self.0.get(next).filter(|(when, _)| *when <= at) {
                    received += u64::from(by_frames);
                    if *beats {
                        pulse.beat(began + *when);
                    }
                    next += 1;
                }
                if pulse.look(began + at, || received) == Some(wanted) {
                    return Some(at);
                }
                at += LOOK;
            }
            None
        }
    }

    /// Heartbeats of an hour where 30 of a hundred packets are lost in each direction, and what QUIC asks again, two
    /// packets at a time, `probes` after what it sent last and twice as long after each that is not acknowledged.
    fn lossy(seed: u64, probes: Duration) -> Arrivals {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut arrives = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) % 100 >= 30
        };
        let mut arrivals = Vec::new();
        let (mut pause, mut timer) = (probes, Duration::MAX);
        let mut beats = (0..7_200)
            .map(|number| HEARTBEAT_INTERVAL * number)
            .peekable();
        while let Some(beat) = beats.peek().copied() {
            let at = timer.min(beat);
            let packets = if timer < beat { 2 } else { 1 };
            let mut acknowledged = false;
            for _ in 0..packets {
                if arrives() {
                    arrivals.push((at, beat <= timer));
                    acknowledged |= arrives();
                }
            }
            if timer < beat {
                pause *= 2;
            } else {
                beats.next();
            }
            (pause, timer) = match acknowledged {
                true => (probes, Duration::MAX),
                false => (pause, at + pause),
            };
        }
        Arrivals(arrivals)
    }

    #[test]
    fn a_dead_machine_is_suspected_within_two_seconds() {
        // It dies at any moment between two heartbeats, looks fall anywhere, and it may have been heard until the end.
        for died in (0..500).step_by(5) {
            for phase in (0..125).step_by(25) {
                for chatty in [false, true] {
                    let died = 10 * HEARTBEAT_INTERVAL + died * MS;
                    let mut all: Vec<_> =
                        (0..=10).map(|n| (HEARTBEAT_INTERVAL * n, true)).collect();
                    if chatty {
                        all.extend(
                            (1..)
                                .map(|n| (n * 10 * MS, false))
                                .take_while(|(at, _)| *at < died),
                        );
                        all.sort();
                    }
                    let limit = died + Duration::from_secs(2);
                    let suspected = Arrivals(all).suspected(phase * MS, limit, true);
                    let suspected =
                        suspected.unwrap_or_else(|| panic!("{died:?} {phase} {chatty}"));
                    assert!(suspected > died, "{suspected:?} {died:?}");
                }
            }
        }
    }

    #[test]
    fn a_dead_machine_is_late_within_a_second_and_one_that_is_heard_never_is() {
        let beats = |until: u32| (0..=until).map(|n| (HEARTBEAT_INTERVAL * n, true));
        for died in (0..500).step_by(5) {
            for phase in (0..125).step_by(25) {
                let died = 10 * HEARTBEAT_INTERVAL + died * MS;
                let all = Arrivals(beats(10).collect());
                let limit = died + Duration::from_secs(1);
                let late = all.silent(Silence::Late, phase * MS, limit, true);
                let late = late.unwrap_or_else(|| panic!("{died:?} {phase}"));
                assert!(late >= 10 * HEARTBEAT_INTERVAL + late_after(HEARTBEAT_INTERVAL));
            }
        }
        // Every fifth heartbeat is lost, and QUIC asks again within 200 ms.
        let lossy = beats(1_000).enumerate().map(|(number, (at, _))| {
            let lost = number % 5 == 4;
            (at + if lost { 200 * MS } else { Duration::ZERO }, !lost)
        });
        let lossy = Arrivals(lossy.collect());
        let end = 1_000 * HEARTBEAT_INTERVAL;
        assert_eq!(lossy.silent(Silence::Late, Duration::ZERO, end, true), None);
        // One that is heard again was late only then.
        let began = Instant::now();
        let mut pulse = Pulse::new(began, HEARTBEAT_INTERVAL);
        let mut look = |ms: u32, received| pulse.look(began + ms * MS, || received);
        assert_eq!(look(625, 1), None);
        assert_eq!(look(750, 1), Some(Silence::Late));
        assert_eq!(look(875, 1), None);
        assert_eq!(look(1_000, 2), None);
        assert!(!pulse.is_late() && !pulse.is_suspect());
    }

    #[test]
    fn heartbeats_that_are_lost_make_hardly_anybody_suspect() {
        // A path of a millisecond, and one of a hundred. Of the few that are left peers say that they live.
        for (probes, most) in [(28 * MS, 3), (225 * MS, 200)] {
            let mut suspects = [0; 2];
            for seed in 0..20 {
                let arrivals = lossy(seed, probes);
                for by_frames in [false, true] {
                    let mut from = Duration::ZERO;
                    // Each minute anew.
                    while from < Duration::from_secs(3_500) {
                        let minute = arrivals.since(from);
                        let suspected = minute.suspected(Duration::ZERO, 59_000 * MS, by_frames);
                        suspects[usize::from(by_frames)] += u32::from(suspected.is_some());
                        from += Duration::from_secs(60);
                    }
                }
            }
            let [by_heartbeats, by_frames] = suspects;
            println!(
                "{probes:?}: {by_heartbeats} minutes by heartbeats alone, {by_frames} by all that is received"
            );
            // Of 1,180 minutes.
            assert!(by_heartbeats > 900, "by heartbeats alone: {by_heartbeats}");
            assert!(by_frames <= most, "{probes:?}: {by_frames}");
        }
    }

    #[test]
    fn an_agent_that_is_slow_is_not_suspect_and_one_that_beats_no_more_is_in_the_end() {
        // Its heartbeats stop, its connection goes on.
        let frames = (1..1_000).map(|number| (number * 200 * MS, false));
        let slow = Arrivals(frames.collect());
        assert_eq!(slow.suspected(Duration::ZERO, 9_000 * MS, true), None);
        let suspected = slow.suspected(Duration::ZERO, 11_000 * MS, true);
        assert_eq!(
            suspected,
            Some(suspect_after(HEARTBEAT_INTERVAL) * BEATLESS)
        );
        // One beat a second late is late.
        let late = (0..100).map(|number| (number * 1_500 * MS, true));
        let late = Arrivals(late.collect());
        assert_eq!(late.suspected(Duration::ZERO, 140_000 * MS, false), None);
    }

    #[test]
    fn a_look_that_comes_late_suspects_nobody() {
        let began = Instant::now();
        let mut looks = Looks::new(began, HEARTBEAT_INTERVAL);
        assert_eq!(looks.every, LOOK);
        #[rustfmt::skip] // one look per line: since the last one, whether it counts
        let cases = [
            (125,    true),
            (500,    true),
            (501,    false),
            (125,    true),
            (60_000, false),
            (125,    true),
        ];
        let mut at = began;
        for (since, counts) in cases {
            at += since * MS;
            assert_eq!(looks.counts(at), counts, "{since} ms");
        }
    }
}
