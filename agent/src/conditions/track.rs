//! From single looks to states that hold: pure, time is passed in.

use std::collections::BTreeMap;

use windlass_common::condition::{BAD_AFTER_MS, Condition, State, shown};
use windlass_common::report::Scope;

/// What one look saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// All is well, and what shows it.
    Good(String),
    /// Something is not, and what.
    Bad(String),
    /// Nobody can tell, and why.
    Unknown(String),
}

/// One look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) name: &'static str,
    pub(super) subject: String,
    pub(super) source: String,
    pub(super) scope: Scope,
    pub(super) seen: Seen,
}

/// What is remembered of earlier looks.
#[derive(Debug, Default)]
pub(super) struct Tracks(BTreeMap<(&'static str, String), Track>);

#[derive(Debug)]
struct Track {
    state: State,
    since_ms: u64,
    /// Since when every look has failed.
    failing_ms: Option<u64>,
}

impl Tracks {
    /// Takes the looks of one round. What is not looked at any more is forgotten.
    pub(super) fn take(&mut self, looks: Vec<Look>, now_ms: u64) -> Vec<Condition> {
        let mut kept = BTreeMap::new();
        let mut conditions = Vec::with_capacity(looks.len());
        for look in looks {
            let key = (look.name, look.subject.clone());
            let track = self.0.remove(&key).unwrap_or(Track {
                state: State::Unknown,
                since_ms: now_ms,
                failing_ms: None,
            });
            let (track, says) = track.saw(look.seen, now_ms);
            conditions.push(Condition {
                name: look.name.to_owned(),
                subject: look.subject,
                state: track.state,
                says: shown(&says),
                source: look.source,
                scope: look.scope,
                at_unix_ms: now_ms,
                since_unix_ms: track.since_ms,
            });
            kept.insert(key, track);
        }
        self.0 = kept;
        conditions
    }
}

impl Track {
    fn saw(mut self, seen: Seen, now_ms: u64) -> (Track, String) {
        let (state, says) = match seen {
            Seen::Good(says) => {
                self.failing_ms = None;
                (State::Good, says)
            }
            Seen::Unknown(why) => {
                self.failing_ms = None;
                (State::Unknown, why)
            }
            Seen::Bad(why) => {
                let since = *self.failing_ms.get_or_insert(now_ms);
                // A clock that was set back begins anew.
                let lasts = now_ms.saturating_sub(since) >= BAD_AFTER_MS;
                (if lasts { State::Bad } else { self.state }, why)
            }
        };
        if state != self.state {
            (self.state, self.since_ms) = (state, now_ms);
        }
        (self, says)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(seen: Seen) -> Vec<Look> {
        vec![Look {
            name: "kubelet",
            subject: String::new(),
            source: "its port".to_owned(),
            scope: Scope::Machine,
            seen,
        }]
    }

    #[test]
    fn only_what_fails_for_long_is_bad() {
        let good = || Seen::Good("ok".to_owned());
        let bad = || Seen::Bad("no answer".to_owned());
        let unknown = || Seen::Unknown("who knows".to_owned());
        #[rustfmt::skip] // one look per line: when, what is seen, what it comes to, since when
        let looks = [
            (0,      good(),    State::Good,    0),
            (5_000,  bad(),     State::Good,    0),
            (15_000, bad(),     State::Good,    0),
            (16_000, good(),    State::Good,    0),
            (20_000, bad(),     State::Good,    0),
            (34_999, bad(),     State::Good,    0),
            (35_000, bad(),     State::Bad,     35_000),
            (40_000, bad(),     State::Bad,     35_000),
            (41_000, good(),    State::Good,    41_000),
            (42_000, unknown(), State::Unknown, 42_000),
            (43_000, bad(),     State::Unknown, 42_000),
            (60_000, bad(),     State::Bad,     60_000),
        ];
        let mut tracks = Tracks::default();
        for (at, seen, state, since) in looks {
            let condition = tracks.take(look(seen), at).remove(0);
            assert_eq!(
                (condition.state, condition.since_unix_ms),
                (state, since),
                "at {at}"
            );
        }
    }

    #[test]
    fn what_is_not_looked_at_any_more_begins_anew() {
        let mut tracks = Tracks::default();
        let bad = || look(Seen::Bad("no".to_owned()));
        tracks.take(bad(), 0);
        tracks.take(Vec::new(), 10_000);
        let condition = tracks.take(bad(), 20_000).remove(0);
        assert_eq!(condition.state, State::Unknown);
    }
}
