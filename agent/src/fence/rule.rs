//! When a worker that nobody hears ends its own pods: a pure decision.
//!
//! Being alone has to hold, not only silence: what is counted is the time over which each look has found neither the
//! director nor an API server, and a peer that hears the director ([`Alone::after`]). Time in which everybody was cut
//! off does not count, so that a machine which comes back after its peers has as long as any other.

use std::time::Duration;

use windlass_common::limits::{HELLO_TIMEOUT, RECONNECT_CAP};

/// Whatever is configured, an agent that could reach its director has had time to come back to it: its longest wait
/// between two attempts, and an attempt.
pub(super) const COMES_BACK: Duration = RECONNECT_CAP.saturating_add(HELLO_TIMEOUT);
/// No more than this passes between two looks that count as one stretch. What is longer was slept through, by the
/// agent or the whole machine, and nobody has looked in it.
pub(super) const PASSES: Duration = Duration::from_secs(15);

/// What another machine of the cluster says when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// It hears the director: the director judges this machine, and others take over from it.
    HearsDirector,
    /// It does not either: nobody judges anybody.
    HearsNobody,
    /// It did not answer, or is of a release that knows no such question.
    Silent,
}

/// What one look finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look<'a> {
    /// The director or an API server answers this machine, or nobody wants to know.
    Heard,
    /// Neither answers; this is what peers say.
    Unheard(&'a [Peer]),
}

/// For how long this machine has been alone, as far as looks without a gap have shown: nothing when the last look found
/// otherwise, zero when it was the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Alone(Option<Duration>);

impl Alone {
    /// After another look, so long after the one before. Peers that are cut off as well, and peers that say nothing,
    /// end the count: a network that fell apart, or a director that is away, must not end the pods of a cluster.
    pub(super) fn after(self, passed: Duration, look: Look<'_>) -> Alone {
        let Look::Unheard(peers) = look else {
            return Alone(None);
        };
        if !peers.contains(&Peer::HearsDirector) {
            return Alone(None);
        }
        match self.0 {
            Some(before) if passed <= PASSES => Alone(Some(before.saturating_add(passed))),
            Some(_) | None => Alone(Some(Duration::ZERO)),
        }
    }

    /// In how long the pods have to end, if that is wanted after so long alone and every look until then finds the same;
    /// nothing when it is not counted.
    pub(super) fn left(self, wanted: Duration) -> Option<Duration> {
        let alone = self.0?;
        Some(wanted.max(COMES_BACK).saturating_sub(alone))
    }

    /// How long that is.
    pub(super) fn time(self) -> Duration {
        self.0.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a look finds, and how many seconds after the one before.
    type Seen<'a> = (u64, Look<'a>);

    fn alone(looks: &[Seen<'_>]) -> Alone {
        looks
            .iter()
            .fold(Alone::default(), |alone, (passed, look)| {
                alone.after(Duration::from_secs(*passed), *look)
            })
    }

    #[test]
    fn only_looks_in_a_row_that_find_this_machine_alone_count() {
        use Peer::{HearsDirector as Yes, HearsNobody as No, Silent};
        let heard = Look::Heard;
        let yes = Look::Unheard(&[Yes]);
        let one = Look::Unheard(&[No, Silent, Yes]);
        let none = Look::Unheard(&[No, No, Silent]);
        let silent = Look::Unheard(&[Silent, Silent]);
        let nobody = Look::Unheard(&[]);
        #[rustfmt::skip] // one case per line
        let cases: [(&[Seen<'_>], Option<u64>); 14] = [
            (&[],                                             None),
            (&[(5, heard)],                                   None),
            (&[(5, nobody)],                                  None), // alone in the world
            (&[(5, silent)],                                  None), // peers are cut off, too
            (&[(5, none)],                                    None), // the director is away
            (&[(5, yes)],                                     Some(0)), // what was before it nobody knows
            (&[(5, one)],                                     Some(0)),
            (&[(5, yes), (5, one), (6, yes)],                 Some(11)),
            (&[(5, yes), (5, yes), (5, none)],                None),
            (&[(5, yes), (5, yes), (5, silent), (5, yes)],    Some(0)),
            (&[(5, yes), (5, yes), (5, heard), (5, yes)],     Some(0)),
            // All were cut off for a minute, and peers are back first.
            (&[(5, none), (30, none), (30, silent), (5, yes), (5, yes)], Some(5)),
            (&[(5, yes), (15, yes)],                          Some(15)),
            (&[(5, yes), (5, yes), (16, yes)],                Some(0)), // it was asleep
        ];
        for (looks, expected) in cases {
            let expected = Alone(expected.map(Duration::from_secs));
            assert_eq!(alone(looks), expected, "{looks:?}");
        }
    }

    #[test]
    fn pods_end_once_it_was_alone_for_as_long_as_wanted() {
        let s = Duration::from_secs;
        #[rustfmt::skip] // one case per line
        let cases = [
            // alone, wanted, in how long
            (None,       30, None),
            (Some(0),    30, Some(30)),
            (Some(29),   30, Some(1)),
            (Some(30),   30, Some(0)),
            (Some(9999), 30, Some(0)),
            (Some(5),     1, Some(15)), // an agent that could may still come back
            (Some(19),    1, Some(1)),
            (Some(20),    1, Some(0)),
        ];
        for (alone, wanted, left) in cases {
            let alone = Alone(alone.map(s));
            assert_eq!(alone.left(s(wanted)), left.map(s), "{alone:?} {wanted}");
        }
    }

    #[test]
    fn a_machine_that_comes_back_after_its_peers_keeps_its_pods() {
        // Whenever its agent is back, at the latest: the looks before that end nothing.
        let yes = Look::Unheard(&[Peer::HearsDirector]);
        let none = Look::Unheard(&[Peer::HearsNobody]);
        let mut storm = Alone::default();
        for _ in 0..1000 {
            storm = storm.after(Duration::from_secs(5), none);
        }
        let mut since = Duration::ZERO;
        while since < COMES_BACK {
            storm = storm.after(Duration::from_secs(5), yes);
            assert_ne!(
                storm.left(Duration::ZERO),
                Some(Duration::ZERO),
                "{since:?}"
            );
            since += Duration::from_secs(5);
        }
    }
}
