//! When a worker that nobody hears ends its own pods: a pure decision.

use std::time::Duration;

/// What is known at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Silence {
    /// How long both have to be silent; `None` where this is not wanted.
    pub(super) after: Option<Duration>,
    /// How long nothing was heard of the director.
    pub(super) director: Duration,
    /// How long no API server finished a handshake.
    pub(super) api: Duration,
    /// It has done so since it last heard of one of them: nothing has come back that could be ended.
    pub(super) done: bool,
}

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

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing.
    Wait,
    /// Peers have to be asked.
    Ask,
    /// This machine alone is cut off: its pods have to end.
    Fence,
}

/// Whether peers are to be asked; costs nothing while one of the two is heard.
pub(super) fn before(silence: Silence) -> Decision {
    let long = |after| silence.director >= after && silence.api >= after;
    if silence.done || !silence.after.is_some_and(long) {
        Decision::Wait
    } else {
        Decision::Ask
    }
}

/// What follows from what peers say. One that is cut off as well, and one that says nothing, is no reason: a network
/// that fell apart, or a director that is away, must not end the pods of a cluster.
pub(super) fn after(silence: Silence, peers: &[Peer]) -> Decision {
    match before(silence) {
        Decision::Ask if peers.contains(&Peer::HearsDirector) => Decision::Fence,
        Decision::Ask | Decision::Wait | Decision::Fence => Decision::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how long it is wanted, seconds of silence of the director and of API servers, whether it was done, what
    /// peers say, and what follows.
    type Case<'a> = (Option<Duration>, u64, u64, bool, &'a [Peer], Decision);

    #[test]
    fn only_a_worker_that_is_cut_off_alone_and_for_long_ends_its_pods() {
        use Peer::{HearsDirector as Yes, HearsNobody as No, Silent};
        let s = Duration::from_secs;
        let on = Some(s(60));
        #[rustfmt::skip] // one case per line
        let cases: [Case<'_>; 13] = [
            // wanted, director, API, done, peers, decision
            (None, 9999, 9999, false, &[Yes],             Decision::Wait),
            (on,      0,    0, false, &[Yes],             Decision::Wait),
            (on,   9999,    0, false, &[Yes],             Decision::Wait), // the API server is reached
            (on,      0, 9999, false, &[Yes],             Decision::Wait), // the director is heard
            (on,     59,   60, false, &[Yes],             Decision::Wait),
            (on,     60,   59, false, &[Yes],             Decision::Wait),
            (on,     60,   60, false, &[],                Decision::Wait), // alone in the world
            (on,     60,   60, false, &[Silent, Silent],  Decision::Wait), // peers are cut off, too
            (on,     60,   60, false, &[No, No, Silent],  Decision::Wait), // the director is away
            (on,     60,   60, false, &[Yes],             Decision::Fence),
            (on,     60,   60, false, &[No, Silent, Yes], Decision::Fence),
            (on,   9999, 9999, true,  &[Yes],             Decision::Wait), // it has done so
            (on,   9999, 9999, false, &[Yes, No],         Decision::Fence),
        ];
        for (wanted, director, api, done, peers, decision) in cases {
            let silence = Silence {
                after: wanted,
                director: s(director),
                api: s(api),
                done,
            };
            assert_eq!(after(silence, peers), decision, "{silence:?} {peers:?}");
        }
    }

    #[test]
    fn peers_are_asked_only_when_their_answer_counts() {
        let silence = Silence {
            after: Some(Duration::from_secs(60)),
            director: Duration::from_secs(60),
            api: Duration::from_secs(60),
            done: false,
        };
        assert_eq!(before(silence), Decision::Ask);
        let heard = Silence {
            api: Duration::ZERO,
            ..silence
        };
        assert_eq!(before(heard), Decision::Wait);
        let done = Silence {
            done: true,
            ..silence
        };
        assert_eq!(before(done), Decision::Wait);
    }
}
