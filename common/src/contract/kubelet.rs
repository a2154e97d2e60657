//! What a kubelet makes of its Node and of its pods, and what is known of it while it does not run.
//!
//! A Node says Ready because of two: its kubelet, which has said so, and a controller, which takes it back when the
//! kubelet was not heard of for its *grace period*. What was said is dated, so that it can be told who has said it.

/// What happens in a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// The kubelet starts.
    Start,
    /// The kubelet ends; its pods go on.
    Stop,
    /// No API server answers any more.
    Silence,
    /// API servers answer again.
    Answer,
    /// Until the kubelet has tried to tell of its Node, in vain.
    Miss,
    /// The Node takes no more pods.
    Cordon,
    /// The Node is deleted.
    Drop,
    /// A pod is made that is bound to the Node.
    Run(&'static str),
    /// A pod is told to end.
    Tell(&'static str),
    /// What is seen at once.
    See(Sight),
    /// What is seen in the end.
    Until(Sight),
}

/// What is seen of the Node and of its pods, through an API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// There is a Node of its name, and no other.
    Registered,
    /// There is no Node.
    Absent,
    /// The Node is Ready.
    Ready,
    /// The Node is not Ready.
    NotReady,
    /// What it says was said before the kubelet was started or stopped last.
    OfBefore,
    /// It was said since then.
    OfNow,
    /// It takes no pods.
    Cordoned,
    /// It takes pods.
    Open,
    /// A pod runs, and always has.
    Runs(&'static str),
    /// A pod was told to end, and its grace is over.
    Overdue(&'static str),
    /// There is no such pod.
    Gone(&'static str),
}

/// One case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// What it shows.
    pub name: &'static str,
    /// What happens, one after the other.
    pub acts: &'static [Act],
}

/// Whoever is looked at.
pub trait Kubelet {
    /// Begins with API servers that answer, and with a kubelet that never ran: without Node and pods.
    fn begin(&mut self);
    /// Does what is neither [`Act::See`] nor [`Act::Until`].
    fn act(&mut self, act: Act);
    /// Whether something is seen now.
    fn sees(&mut self, sight: Sight) -> bool;
    /// Lets a little time pass; false when there was enough of that.
    fn wait(&mut self) -> bool;
}

/// All cases.
pub const CASES: &[Case] = &[
    Case {
        name: "a kubelet registers its Node under its own name, and then says that it is Ready",
        acts: &[
            Act::See(Sight::Absent),
            Act::Start,
            Act::Until(Sight::Registered),
            Act::Until(Sight::Ready),
            Act::See(Sight::OfNow),
            Act::See(Sight::Open),
        ],
    },
    Case {
        name: "what a kubelet has said outlives it for its grace period",
        acts: &[
            Act::Start,
            Act::Until(Sight::Ready),
            Act::Stop,
            Act::See(Sight::Ready),
            Act::See(Sight::OfBefore),
            Act::Until(Sight::NotReady),
            Act::See(Sight::Registered),
            Act::Start,
            Act::Until(Sight::OfNow),
            Act::Until(Sight::Ready),
        ],
    },
    Case {
        name: "a kubelet that starts again within it says anew what it is",
        acts: &[
            Act::Start,
            Act::Until(Sight::Ready),
            Act::Stop,
            Act::Start,
            Act::See(Sight::Registered),
            Act::Until(Sight::OfNow),
            Act::Until(Sight::Ready),
        ],
    },
    Case {
        name: "a kubelet that starts again opens no Node that was closed",
        acts: &[
            Act::Start,
            Act::Until(Sight::Ready),
            Act::Cordon,
            Act::See(Sight::Cordoned),
            Act::Stop,
            Act::Start,
            Act::Until(Sight::OfNow),
            Act::Until(Sight::Ready),
            Act::See(Sight::Cordoned),
        ],
    },
    Case {
        name: "a kubelet registers once: one whose Node is deleted makes it anew when it starts again, and open",
        acts: &[
            Act::Start,
            Act::Until(Sight::Ready),
            Act::Cordon,
            Act::Drop,
            Act::Miss,
            Act::See(Sight::Absent),
            Act::Stop,
            Act::See(Sight::Absent),
            Act::Start,
            Act::Until(Sight::Ready),
            Act::See(Sight::Registered),
            Act::See(Sight::OfNow),
            Act::See(Sight::Open),
        ],
    },
    Case {
        name: "a pod that is told to end is gone when its kubelet says so, and stays while that does not run",
        acts: &[
            Act::Start,
            Act::Until(Sight::Ready),
            Act::Run("a"),
            Act::Run("b"),
            Act::Until(Sight::Runs("a")),
            Act::Until(Sight::Runs("b")),
            Act::Tell("a"),
            Act::Until(Sight::Gone("a")),
            Act::Stop,
            Act::Tell("b"),
            Act::Until(Sight::Overdue("b")),
            Act::Start,
            Act::Until(Sight::Gone("b")),
        ],
    },
    Case {
        name: "pods run on without API servers, and without their kubelet",
        acts: &[
            Act::Start,
            Act::Until(Sight::Ready),
            Act::Run("a"),
            Act::Until(Sight::Runs("a")),
            Act::Silence,
            Act::Miss,
            Act::Answer,
            Act::Until(Sight::Ready),
            Act::Until(Sight::Runs("a")),
            Act::Stop,
            Act::Start,
            Act::Until(Sight::OfNow),
            Act::Until(Sight::Ready),
            Act::Until(Sight::Runs("a")),
        ],
    },
];

/// Runs one case; what was other than it says.
pub fn run(case: &Case, kubelet: &mut dyn Kubelet) -> Vec<String> {
    let mut faults = Vec::new();
    kubelet.begin();
    for act in case.acts {
        let seen = match *act {
            Act::See(sight) => kubelet.sees(sight),
            Act::Until(sight) => loop {
                if kubelet.sees(sight) {
                    break true;
                }
                if !kubelet.wait() {
                    break false;
                }
            },
            other => {
                kubelet.act(other);
                true
            }
        };
        if !seen {
            faults.push(format!("{}: {act:?}: it is not so", case.name));
        }
    }
    faults
}
