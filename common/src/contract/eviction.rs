//! The Eviction API.
//!
//! Pods are bare and bound to a node whose kubelet ends none of them, so that one which was told to leave stays and is
//! ending. What a budget allows is known before anything is asked.

use std::collections::{BTreeMap, BTreeSet};

/// A pod that is given.
#[derive(Debug, Clone, Copy)]
pub struct Pod {
    /// Its name, and its label `app`.
    pub name: &'static str,
    /// Its label `app`.
    pub app: &'static str,
    /// How far it is.
    pub is: Is,
}

/// How far a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    /// None of its containers was started.
    Pending,
    /// It runs and is not ready.
    NotReady,
    /// It is ready.
    Ready,
}

/// A PodDisruptionBudget that is given.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Its name.
    pub name: &'static str,
    /// The apps whose pods it covers.
    pub apps: &'static [&'static str],
    /// Pods that have to be healthy.
    pub least: u32,
    /// What holds of pods that are not ready.
    pub unhealthy: Unhealthy,
}

/// `unhealthyPodEvictionPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unhealthy {
    /// They go while enough others are healthy; the default.
    IfHealthyBudget,
    /// They always go.
    AlwaysAllow,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub enum Ask {
    /// That a pod leaves, within its budget.
    Evict(&'static str),
    /// The same of a pod with that name and another uid.
    EvictNamesake(&'static str),
    /// That a pod is deleted, past its budget.
    Delete(&'static str),
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The pod ends.
    Accepted,
    /// Its budget has no disruption left.
    Kept,
    /// More than one budget covers it, which nobody can keep.
    TwoBudgets,
    /// There is no such pod.
    Gone,
    /// The pod of that name is another one.
    Namesake,
}

/// How an answer is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// HTTP status.
    pub status: u16,
    /// What the status says.
    pub message: String,
}

impl Answer {
    /// Whether this is said so.
    fn is(self, said: &Said) -> bool {
        let (status, words) = match self {
            Self::Accepted => (200..=299, ""),
            Self::Kept => (
                429..=429,
                "Cannot evict pod as it would violate the pod's disruption budget.",
            ),
            Self::TwoBudgets => (500..=500, "more than one PodDisruptionBudget"),
            Self::Gone => (404..=404, "not found"),
            Self::Namesake => (409..=409, ""),
        };
        status.contains(&said.status) && said.message.contains(words)
    }
}

/// One case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// What it shows.
    pub name: &'static str,
    /// What there is.
    pub pods: &'static [Pod],
    /// What there is.
    pub budgets: &'static [Budget],
    /// What is asked, one after the other, and answered.
    pub asked: &'static [(Ask, Answer)],
    /// Disruptions that budgets have left then.
    pub left: &'static [(&'static str, u32)],
    /// All pods that are ending then.
    pub ending: &'static [&'static str],
}

/// Whoever is asked.
pub trait Evictions {
    /// Makes these and nothing else, and returns when each budget's own account says what it allows.
    fn given(&mut self, case: &Case);
    /// Asks.
    fn ask(&mut self, ask: Ask) -> Said;
    /// Disruptions that a budget has left.
    fn left(&mut self, budget: &str) -> u32;
    /// Pods that were told to end.
    fn ending(&mut self) -> BTreeSet<String>;
}

const fn pod(name: &'static str, app: &'static str, is: Is) -> Pod {
    Pod { name, app, is }
}

const fn budget(name: &'static str, apps: &'static [&'static str], least: u32) -> Budget {
    Budget {
        name,
        apps,
        least,
        unhealthy: Unhealthy::IfHealthyBudget,
    }
}

/// All cases.
pub const CASES: &[Case] = &[
    Case {
        name: "a pod that no budget covers leaves",
        pods: &[pod("a", "web", Is::Ready), pod("b", "web", Is::Ready)],
        budgets: &[budget("other", &["db"], 1)],
        asked: &[(Ask::Evict("a"), Answer::Accepted)],
        left: &[],
        ending: &["a"],
    },
    Case {
        name: "a budget is charged at once",
        pods: &[pod("a", "web", Is::Ready), pod("b", "web", Is::Ready)],
        budgets: &[budget("web", &["web"], 1)],
        asked: &[
            (Ask::Evict("a"), Answer::Accepted),
            (Ask::Evict("b"), Answer::Kept),
        ],
        left: &[("web", 0)],
        ending: &["a"],
    },
    Case {
        name: "a budget with nothing left keeps its pods",
        pods: &[pod("a", "web", Is::Ready)],
        budgets: &[budget("web", &["web"], 1)],
        asked: &[(Ask::Evict("a"), Answer::Kept)],
        left: &[("web", 0)],
        ending: &[],
    },
    Case {
        name: "a pod that two budgets cover does not leave, whatever they allow",
        pods: &[pod("a", "web", Is::Ready), pod("b", "web", Is::Ready)],
        budgets: &[budget("one", &["web"], 1), budget("two", &["web", "db"], 1)],
        asked: &[
            (Ask::Evict("a"), Answer::TwoBudgets),
            (Ask::Evict("a"), Answer::TwoBudgets),
        ],
        left: &[("one", 1), ("two", 1)],
        ending: &[],
    },
    Case {
        name: "a pod that is not there is gone",
        pods: &[pod("a", "web", Is::Ready)],
        budgets: &[budget("web", &["web"], 1)],
        asked: &[(Ask::Evict("b"), Answer::Gone)],
        left: &[("web", 0)],
        ending: &[],
    },
    Case {
        name: "a namesake is not told",
        pods: &[pod("a", "web", Is::Ready)],
        budgets: &[],
        asked: &[(Ask::EvictNamesake("a"), Answer::Namesake)],
        left: &[],
        ending: &[],
    },
    Case {
        name: "a namesake is not told, and costs its budget a disruption all the same",
        pods: &[pod("a", "web", Is::Ready), pod("b", "web", Is::Ready)],
        budgets: &[budget("web", &["web"], 1)],
        asked: &[
            (Ask::EvictNamesake("a"), Answer::Namesake),
            (Ask::Evict("b"), Answer::Kept),
        ],
        left: &[("web", 0)],
        ending: &[],
    },
    Case {
        name: "a pod that is ending already may be told again, whatever its budget allows",
        pods: &[pod("a", "web", Is::Ready)],
        budgets: &[budget("web", &["web"], 1)],
        asked: &[
            (Ask::Delete("a"), Answer::Accepted),
            (Ask::Evict("a"), Answer::Accepted),
        ],
        left: &[("web", 0)],
        ending: &["a"],
    },
    Case {
        name: "a pod that is ending already may be told again, however many budgets cover it",
        pods: &[pod("a", "web", Is::Ready), pod("b", "web", Is::Ready)],
        budgets: &[budget("one", &["web"], 1), budget("two", &["web"], 1)],
        asked: &[
            (Ask::Evict("a"), Answer::TwoBudgets),
            (Ask::Delete("a"), Answer::Accepted),
            (Ask::Evict("a"), Answer::Accepted),
        ],
        left: &[],
        ending: &["a"],
    },
    Case {
        name: "a pod of which nothing runs yet leaves, whatever its budget allows",
        pods: &[pod("a", "web", Is::Ready), pod("b", "web", Is::Pending)],
        budgets: &[budget("web", &["web"], 2)],
        asked: &[
            (Ask::Evict("b"), Answer::Accepted),
            (Ask::Evict("a"), Answer::Kept),
        ],
        left: &[("web", 0)],
        ending: &["b"],
    },
    Case {
        name: "a pod that is not ready leaves while enough others are, and costs nothing",
        pods: &[
            pod("a", "web", Is::Ready),
            pod("b", "web", Is::Ready),
            pod("c", "web", Is::NotReady),
        ],
        budgets: &[budget("web", &["web"], 2)],
        asked: &[
            (Ask::Evict("c"), Answer::Accepted),
            (Ask::Evict("a"), Answer::Kept),
        ],
        left: &[("web", 0)],
        ending: &["c"],
    },
    Case {
        name: "a pod that is not ready stays while too few others are",
        pods: &[pod("a", "web", Is::Ready), pod("b", "web", Is::NotReady)],
        budgets: &[budget("web", &["web"], 2)],
        asked: &[(Ask::Evict("b"), Answer::Kept)],
        left: &[("web", 0)],
        ending: &[],
    },
    Case {
        name: "a pod that is not ready always leaves where its budget says so, and one that is does not",
        pods: &[pod("a", "web", Is::Ready), pod("b", "web", Is::NotReady)],
        budgets: &[Budget {
            unhealthy: Unhealthy::AlwaysAllow,
            ..budget("web", &["web"], 2)
        }],
        asked: &[
            (Ask::Evict("b"), Answer::Accepted),
            (Ask::Evict("a"), Answer::Kept),
        ],
        left: &[("web", 0)],
        ending: &["b"],
    },
    Case {
        name: "each budget keeps its own pods",
        pods: &[
            pod("a", "web", Is::Ready),
            pod("b", "web", Is::Ready),
            pod("c", "db", Is::Ready),
        ],
        budgets: &[budget("web", &["web"], 1), budget("db", &["db"], 1)],
        asked: &[
            (Ask::Evict("c"), Answer::Kept),
            (Ask::Evict("b"), Answer::Accepted),
            (Ask::Evict("a"), Answer::Kept),
        ],
        left: &[("web", 0), ("db", 0)],
        ending: &["b"],
    },
];

/// Runs one case; what was other than it says.
pub fn run(case: &Case, asked: &mut dyn Evictions) -> Vec<String> {
    let mut faults = Vec::new();
    asked.given(case);
    for (ask, want) in case.asked {
        let said = asked.ask(*ask);
        if !want.is(&said) {
            faults.push(format!(
                "{}: {ask:?}: {} {:?} and not {want:?}",
                case.name, said.status, said.message
            ));
        }
    }
    let want: BTreeMap<_, _> = case.left.iter().copied().collect();
    let left: BTreeMap<_, _> = want
        .keys()
        .map(|budget| (*budget, asked.left(budget)))
        .collect();
    if left != want {
        faults.push(format!("{}: left {left:?} and not {want:?}", case.name));
    }
    let ending = asked.ending();
    if !ending.iter().eq(case.ending) {
        let want = case.ending;
        faults.push(format!("{}: ending {ending:?} and not {want:?}", case.name));
    }
    faults
}
