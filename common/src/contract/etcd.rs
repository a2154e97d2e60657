//! How etcd changes its members, with `--strict-reconfig-check`.
//!
//! A member looks at two things before it passes a change on. Of itself it knows since when it is connected to which
//! others: what takes part in a majority has to have been so for the *health interval*, five seconds. Of all it knows
//! who has ever started. Only then the members are asked, of whom a majority has to answer.

/// What a member is asked; members have numbers, in the order in which they are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// To add one as a learner.
    Add(usize),
    /// To give a learner its vote.
    Promote(usize),
    /// To remove one.
    Remove(usize),
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is so now.
    Done,
    /// With the change done, those that have been connected for the health interval would be no majority.
    Unhealthy,
    /// Too few of the others have ever started.
    NotStarted,
    /// There is a learner already.
    TooMany,
    /// The learner has not caught up.
    NotInSync,
    /// It has a vote already.
    NoLearner,
    /// There is no such member.
    Unknown,
    /// A member is at that address already.
    KnownAddress,
    /// No majority answers.
    Silent,
}

impl Answer {
    /// How etcd says it; empty for what it does not say.
    pub fn words(self) -> &'static str {
        match self {
            Self::Done | Self::Silent => "",
            Self::Unhealthy => "etcdserver: unhealthy cluster",
            Self::NotStarted => {
                "etcdserver: re-configuration failed due to not enough started members"
            }
            Self::TooMany => "etcdserver: too many learner members in cluster",
            Self::NotInSync => {
                "etcdserver: can only promote a learner member which is in sync with leader"
            }
            Self::NoLearner => "etcdserver: can only promote a learner member",
            Self::Unknown => "etcdserver: member not found",
            Self::KnownAddress => "etcdserver: Peer URLs already exists",
        }
    }

    /// The answer that is said so.
    pub fn said(text: &str) -> Option<Self> {
        // Whoever waits in vain may give up before etcd does.
        if text.contains("timed out") || text.contains("deadline exceeded") {
            return Some(Self::Silent);
        }
        // Its id follows from its address and the second in which it is asked for.
        if text == "etcdserver: member ID already exist" {
            return Some(Self::KnownAddress);
        }
        let answers = [
            Self::Unhealthy,
            Self::NotStarted,
            Self::TooMany,
            Self::NotInSync,
            Self::NoLearner,
            Self::Unknown,
            Self::KnownAddress,
        ];
        answers.into_iter().find(|answer| text == answer.words())
    }
}

/// What happens in a case.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    /// A member starts, with what it has, or as one that joins, and runs.
    Start(usize),
    /// A member is killed.
    Kill(usize),
    /// Until those that run have been connected for longer than the health interval, those that do not are missed, and
    /// a majority, if one runs, agrees on who leads it.
    Settle,
    /// A member is asked, and answers so.
    Ask(usize, Ask, Answer),
    /// A member is asked again as long as it answers so, and does it in the end.
    Until(usize, Ask, Answer),
}

/// One case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// What it shows.
    pub name: &'static str,
    /// With how many members etcd begins. They start now: the health interval is not over.
    pub members: usize,
    /// What happens, one after the other.
    pub acts: &'static [Act],
}

/// Whoever is asked.
pub trait Members {
    /// Begins with so many members, all of which answer.
    fn begin(&mut self, members: usize);
    /// Does one of [`Act::Start`], [`Act::Kill`] and [`Act::Settle`].
    fn act(&mut self, act: Act);
    /// Asks a member.
    fn ask(&mut self, of: usize, ask: Ask) -> Answer;
    /// Lets a part of the health interval pass; false when there was enough of that.
    fn wait(&mut self) -> bool;
}

/// All cases.
pub const CASES: &[Case] = &[
    Case {
        name: "the only member takes one learner at once, and gives it its vote when it has caught up",
        members: 1,
        acts: &[
            Act::Ask(0, Ask::Add(1), Answer::Done),
            Act::Ask(0, Ask::Add(1), Answer::KnownAddress),
            Act::Ask(0, Ask::Add(2), Answer::TooMany),
            Act::Ask(0, Ask::Promote(1), Answer::NotInSync),
            Act::Ask(0, Ask::Promote(2), Answer::Unknown),
            Act::Start(1),
            Act::Until(0, Ask::Promote(1), Answer::NotInSync),
            Act::Ask(0, Ask::Promote(1), Answer::NoLearner),
            Act::Settle,
            Act::Ask(0, Ask::Add(2), Answer::Done),
            Act::Ask(0, Ask::Remove(2), Answer::Done),
            Act::Ask(0, Ask::Remove(1), Answer::Done),
            Act::Ask(0, Ask::Remove(1), Answer::Unknown),
        ],
    },
    Case {
        name: "the only member stays, and a learner that never came goes",
        members: 1,
        acts: &[
            Act::Ask(0, Ask::Remove(0), Answer::NotStarted),
            Act::Ask(0, Ask::Add(1), Answer::Done),
            Act::Ask(0, Ask::Remove(0), Answer::NotStarted),
            Act::Ask(0, Ask::Remove(1), Answer::Done),
            // Within the second its id may be that of the one that was removed.
            Act::Until(0, Ask::Add(1), Answer::Unknown),
        ],
    },
    Case {
        name: "members that have just found each other are not healthy yet",
        members: 3,
        acts: &[
            Act::Ask(0, Ask::Add(3), Answer::Unhealthy),
            Act::Until(0, Ask::Add(3), Answer::Unhealthy),
            Act::Ask(0, Ask::Remove(3), Answer::Done),
            Act::Settle,
            Act::Ask(0, Ask::Remove(2), Answer::Done),
        ],
    },
    Case {
        name: "with one of three down none joins, none that runs goes, and the one that is down does",
        members: 3,
        acts: &[
            Act::Settle,
            Act::Kill(2),
            Act::Settle,
            Act::Ask(0, Ask::Add(3), Answer::Unhealthy),
            Act::Ask(0, Ask::Remove(1), Answer::Unhealthy),
            Act::Ask(1, Ask::Remove(0), Answer::Unhealthy),
            Act::Ask(0, Ask::Remove(2), Answer::Done),
            Act::Ask(0, Ask::Add(3), Answer::Done),
        ],
    },
    Case {
        name: "one that comes back counts once it has been there for the health interval",
        members: 3,
        acts: &[
            Act::Settle,
            Act::Kill(2),
            Act::Settle,
            Act::Start(2),
            Act::Ask(0, Ask::Add(3), Answer::Unhealthy),
            Act::Until(0, Ask::Add(3), Answer::Unhealthy),
            Act::Ask(0, Ask::Remove(1), Answer::Done),
        ],
    },
    Case {
        name: "without a majority one that is down is not even refused",
        members: 3,
        acts: &[
            Act::Settle,
            Act::Kill(1),
            Act::Kill(2),
            Act::Settle,
            Act::Ask(0, Ask::Add(3), Answer::Unhealthy),
            Act::Ask(0, Ask::Remove(2), Answer::Silent),
        ],
    },
];

/// Runs one case; what was other than it says.
pub fn run(case: &Case, asked: &mut dyn Members) -> Vec<String> {
    let mut faults = Vec::new();
    asked.begin(case.members);
    for act in case.acts {
        let (said, want) = match *act {
            Act::Start(_) | Act::Kill(_) | Act::Settle => {
                asked.act(*act);
                continue;
            }
            Act::Ask(of, ask, want) => (asked.ask(of, ask), want),
            Act::Until(of, ask, before) => {
                let mut said = asked.ask(of, ask);
                while said == before && asked.wait() {
                    said = asked.ask(of, ask);
                }
                (said, Answer::Done)
            }
        };
        if said != want {
            faults.push(format!("{}: {act:?}: {said:?}", case.name));
        }
    }
    faults
}
