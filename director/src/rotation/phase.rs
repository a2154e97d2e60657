//! The phases of a rotation, and when one follows the other: pure.
//!
//! ```text
//! Overlap ── every agent that is connected trusts the new root ──▶ Reissue
//! Reissue ── every incarnation that is not abandoned holds a new certificate ──▶ dropped
//! ```
//!
//! Agents verify one another's certificates, so that nobody holds a new one before those who are connected
//! know its root. Who is away then gets both at once when it comes back: the gateway's chain verifies by
//! the old root too. Only the drop waits for everybody.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Agents get both roots; their certificates are still of the old CA.
    Overlap,
    /// Agents get certificates of the new CA.
    Reissue,
}

/// How far one incarnation has followed, by what is on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    /// It knows the old root alone, as far as is known.
    Behind,
    /// It trusts the new root.
    Trusts,
    /// It trusts the new root, and its certificate is of the new CA.
    Renewed,
}

/// One incarnation that is not deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Follower {
    /// How far it is.
    pub(super) progress: Progress,
    /// Whether it is connected and its protocol lets it be told.
    pub(super) reachable: bool,
    /// Whether an operator gave it up.
    pub(super) abandoned: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Wait.
    Stay,
    /// Let the new CA issue certificates.
    Reissue,
    /// Drop the old CA.
    Drop,
}

/// What follows in this phase.
pub(super) fn next<'a>(phase: Phase, followers: impl IntoIterator<Item = &'a Follower>) -> Next {
    let mut awaited = followers.into_iter().filter(|follower| !follower.abandoned);
    match phase {
        Phase::Overlap => {
            let told = |follower: &Follower| follower.progress > Progress::Behind;
            if awaited.all(|follower| !follower.reachable || told(follower)) {
                Next::Reissue
            } else {
                Next::Stay
            }
        }
        Phase::Reissue => {
            if awaited.all(|follower| follower.progress == Progress::Renewed) {
                Next::Drop
            } else {
                Next::Stay
            }
        }
    }
}

/// How far an incarnation is, from what was written down and what its session shows.
///
/// `certificate` is the generation of its certificate, `trusts` whether the new root is on its disk, if it
/// has said so. What a session shows counts more than what was written down: a machine may have been put
/// back to an older disk.
pub(super) fn progress(
    recorded: Progress,
    session: Option<(Option<u32>, Option<bool>)>,
    to: u32,
) -> Progress {
    match session {
        None => recorded,
        // Its roots were on its disk before its certificate was.
        Some((Some(certificate), _)) if certificate >= to => Progress::Renewed,
        Some((_, Some(true))) => Progress::Trusts,
        Some((_, Some(false))) => Progress::Behind,
        Some((_, None)) => recorded.min(Progress::Trusts),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn follower(progress: Progress, reachable: bool, abandoned: bool) -> Follower {
        Follower {
            progress,
            reachable,
            abandoned,
        }
    }

    #[test]
    fn phases_follow_one_another_as_the_table_says() {
        use Next::{Drop, Stay};
        use Phase::{Overlap, Reissue};
        use Progress::{Behind, Renewed, Trusts};
        #[rustfmt::skip]
        let cases = [
            // phase, one follower beside one that has done all: progress, reachable, abandoned
            (Overlap, Behind,  true,  false, Stay),
            (Overlap, Behind,  true,  true,  Next::Reissue),
            (Overlap, Behind,  false, false, Next::Reissue),
            (Overlap, Trusts,  true,  false, Next::Reissue),
            (Overlap, Renewed, true,  false, Next::Reissue),
            (Reissue, Behind,  true,  false, Stay),
            (Reissue, Behind,  false, false, Stay),
            (Reissue, Behind,  false, true,  Drop),
            (Reissue, Trusts,  true,  false, Stay),
            (Reissue, Trusts,  false, false, Stay),
            (Reissue, Renewed, true,  false, Drop),
            (Reissue, Renewed, false, false, Drop),
        ];
        let done = follower(Renewed, true, false);
        for (phase, progress, reachable, abandoned, wanted) in cases {
            let one = follower(progress, reachable, abandoned);
            let found = next(phase, &[done, one]);
            assert_eq!(found, wanted, "{phase:?} {one:?}");
        }
        assert_eq!(next(Overlap, &[]), Next::Reissue);
        assert_eq!(next(Reissue, &[]), Drop);
    }

    #[test]
    fn a_session_counts_more_than_what_was_written_down() {
        use Progress::{Behind, Renewed, Trusts};
        #[rustfmt::skip]
        let cases = [
            (Behind,  None,                        Behind),
            (Renewed, None,                        Renewed),
            (Behind,  Some((Some(2), None)),       Renewed),
            (Behind,  Some((Some(1), Some(true))), Trusts),
            (Trusts,  Some((Some(1), Some(false))),Behind),
            (Renewed, Some((Some(1), Some(true))), Trusts),
            (Trusts,  Some((Some(1), None)),       Trusts),
            (Renewed, Some((Some(1), None)),       Trusts),
        ];
        for (recorded, session, wanted) in cases {
            assert_eq!(
                progress(recorded, session, 2),
                wanted,
                "{recorded:?} {session:?}"
            );
        }
    }

    /// What may happen to a fleet.
    #[derive(Debug, Clone)]
    enum Happening {
        Ack(usize),
        Renew(usize),
        Connect(usize),
        Disconnect(usize),
        Abandon(usize),
        Delete(usize),
        Born,
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let at = 0..6_usize;
        prop_oneof![
            at.clone().prop_map(Happening::Ack),
            at.clone().prop_map(Happening::Renew),
            at.clone().prop_map(Happening::Connect),
            at.clone().prop_map(Happening::Disconnect),
            at.clone().prop_map(Happening::Abandon),
            at.prop_map(Happening::Delete),
            Just(Happening::Born),
        ]
    }

    /// Lets `happening` happen as far as it can: only who is reachable does what it is told, and only in
    /// the phase in which it is told.
    fn apply(fleet: &mut Vec<Follower>, phase: Phase, happening: &Happening) {
        let count = fleet.len().max(1);
        let mut one = |at: usize, act: &dyn Fn(&mut Follower)| {
            if let Some(follower) = fleet.get_mut(at % count) {
                act(follower);
            }
        };
        match *happening {
            Happening::Ack(at) => one(at, &|f| {
                if f.reachable {
                    f.progress = f.progress.max(Progress::Trusts);
                }
            }),
            Happening::Renew(at) => one(at, &|f| {
                if f.reachable && phase == Phase::Reissue && f.progress == Progress::Trusts {
                    f.progress = Progress::Renewed;
                }
            }),
            Happening::Connect(at) => one(at, &|f| f.reachable = true),
            Happening::Disconnect(at) => one(at, &|f| f.reachable = false),
            Happening::Abandon(at) => one(at, &|f| f.abandoned = true),
            Happening::Delete(at) => {
                if !fleet.is_empty() {
                    fleet.remove(at % count);
                }
            }
            Happening::Born => {
                if fleet.len() < 6 {
                    fleet.push(follower(Progress::Behind, false, false));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn nobody_is_left_behind_and_it_ends_when_all_follow(
            happenings in prop::collection::vec(happening(), 0..60),
            size in 0..5_usize,
        ) {
            let mut fleet = vec![follower(Progress::Behind, true, false); size];
            let mut phase = Phase::Overlap;
            let mut dropped = false;
            for happening in &happenings {
                apply(&mut fleet, phase, happening);
                match next(phase, &fleet) {
                    Next::Stay => {}
                    Next::Reissue => phase = Phase::Reissue,
                    Next::Drop => {
                        let left = fleet.iter().any(|f| !f.abandoned && f.progress != Progress::Renewed);
                        prop_assert!(!left, "dropped with {fleet:?}");
                        dropped = true;
                        break;
                    }
                }
            }
            // From wherever that ended: all come back, and follow.
            for _ in 0..3 {
                for at in 0..fleet.len() {
                    for then in [Happening::Connect(at), Happening::Ack(at), Happening::Renew(at)] {
                        apply(&mut fleet, phase, &then);
                    }
                }
                match next(phase, &fleet) {
                    Next::Stay => {}
                    Next::Reissue => phase = Phase::Reissue,
                    Next::Drop => dropped = true,
                }
            }
            prop_assert!(dropped, "stuck in {phase:?} with {fleet:?}");
        }
    }
}
