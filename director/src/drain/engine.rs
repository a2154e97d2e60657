//! Decides, look by look, which pods of a node are asked to leave. Pure: time comes in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{
    Blocked, Budget, DrainPolicy, Drained, EmptyDir, Escalation, Pod, PodRef, Uncontrolled,
};

/// Pause before a pod that its budget kept is asked again; doubles up to [`AGAIN_CAP`].
const AGAIN_FIRST: Duration = Duration::from_millis(500);
/// Longest such pause; `kubectl drain` waits as long.
const AGAIN_CAP: Duration = Duration::from_secs(5);
/// Longest pause that a server is granted; of a budget whose controller has not seen it yet it says 10 s.
const SERVER_CAP: Duration = Duration::from_secs(10);
/// Pods that are named in one line of progress.
const NAMED: usize = 3;
/// How long after its grace a pod may take to disappear: its kubelet kills, unmounts and reports.
const SETTLE: Duration = Duration::from_secs(60);
/// From this priority on a pod is the cluster's own (`system-cluster-critical` and above).
const SYSTEM_PRIORITY: i32 = 2_000_000_000;

/// One drain, from its first look to its end.
#[derive(Debug)]
pub struct Engine {
    policy: DrainPolicy,
    begun: bool,
    asked: BTreeMap<PodRef, Asked>,
    evicted: BTreeSet<PodRef>,
    escalated: BTreeSet<PodRef>,
    held: BTreeSet<PodRef>,
}

#[derive(Debug)]
struct Asked {
    again_at: Duration,
    pause: Duration,
    refusal: Option<String>,
}

/// What the API server answered to an eviction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The pod was told to end.
    Accepted,
    /// There is no such pod any more.
    Gone,
    /// Not now: a budget, or the server.
    NotNow {
        /// In the server's own words.
        why: String,
        /// How long the server wants not to be asked again, if it said so.
        again_after: Option<Duration>,
    },
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Give these orders, then look again.
    Go(Vec<Order>),
    /// The node is empty.
    Done(Drained),
    /// The policy keeps these pods; nothing was evicted.
    Refused(Vec<Blocked>),
    /// The deadline passed and these pods are there.
    Late(Vec<Blocked>),
}

/// Tells one pod to leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The pod.
    pub pod: PodRef,
    /// Whether past its budget.
    pub how: How,
    /// A shorter time to end than its own, seconds.
    pub grace_seconds: Option<u64>,
}

/// How a pod is told to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By eviction: its budget counts.
    Evict,
    /// By deletion: its budget does not.
    Delete,
}

/// When a pod leaves: earlier waves first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wave {
    Stateless,
    Stateful,
    System,
}

impl Engine {
    /// A drain that has not begun.
    pub fn new(policy: DrainPolicy) -> Engine {
        Engine {
            policy,
            begun: false,
            asked: BTreeMap::new(),
            evicted: BTreeSet::new(),
            escalated: BTreeSet::new(),
            held: BTreeSet::new(),
        }
    }

    /// What to do, `now` after the beginning, about the pods that are on the node. `budgets` explain who
    /// blocks; they are not needed while nobody does ([`Engine::is_blocked`]).
    pub fn look(&mut self, now: Duration, pods: &[Pod], budgets: &[Budget]) -> Turn {
        let leaving: Vec<&Pod> = pods.iter().filter(|pod| leaves(pod)).collect();
        if !self.begun {
            let kept = kept(&self.policy, &leaving);
            if !kept.is_empty() {
                return Turn::Refused(kept);
            }
            self.begun = true;
        }
        let there: BTreeSet<&PodRef> = leaving.iter().map(|pod| &pod.id).collect();
        self.asked.retain(|pod, _| there.contains(pod));
        let over = pods.iter().filter(|pod| pod.is_over() && pod.terminating);
        self.held.extend(
            over.filter(|p| !p.finalizers.is_empty())
                .map(|p| p.id.clone()),
        );
        let Some(wave) = leaving.iter().map(|pod| wave_of(pod)).min() else {
            return Turn::Done(self.drained());
        };
        if self.is_late(now, &leaving) {
            let blocked = leaving.iter().map(|pod| self.blocked(pod, budgets));
            return Turn::Late(blocked.collect());
        }
        let past = now >= self.policy.deadline();
        let orders = leaving
            .iter()
            .filter(|pod| !pod.terminating)
            // Past the deadline nobody waits for his wave.
            .filter(|pod| past || wave_of(pod) == wave)
            .filter(|pod| past || self.asked.get(&pod.id).is_none_or(|a| a.again_at <= now))
            .map(|pod| self.order(pod, past))
            .collect();
        Turn::Go(orders)
    }

    /// Takes the answer to an order.
    pub fn answered(&mut self, now: Duration, order: &Order, answer: Answer) {
        let pod = &order.pod;
        match answer {
            Answer::Accepted => {
                match order.how {
                    How::Evict => self.evicted.insert(pod.clone()),
                    How::Delete => self.escalated.insert(pod.clone()),
                };
                self.note(now, pod, None, None);
            }
            Answer::Gone => {
                self.asked.remove(pod);
            }
            Answer::NotNow { why, again_after } => self.note(now, pod, Some(why), again_after),
        }
    }

    /// Whether somebody keeps a pod, so that budgets are worth being looked at.
    pub fn is_blocked(&self) -> bool {
        self.asked.values().any(|asked| asked.refusal.is_some())
    }

    /// The pods that are there and what keeps each, in one line for people, with `told`, which says by whom they were
    /// told. Those that were refused come first, and the line ends with the commands that let them go.
    pub fn waits_for(&self, pods: &[Pod], budgets: &[Budget], told: &str) -> String {
        let leaving: Vec<&Pod> = pods.iter().filter(|pod| leaves(pod)).collect();
        let refused = |pod: &Pod| {
            let asked = self.asked.get(&pod.id);
            !pod.terminating && asked.is_some_and(|asked| asked.refusal.is_some())
        };
        let (kept, others): (Vec<&Pod>, Vec<&Pod>) = leaving.iter().partition(|pod| refused(pod));
        let mut named: Vec<String> = Vec::new();
        let mut unblock: Vec<String> = Vec::new();
        for pod in kept.iter().chain(&others).take(NAMED) {
            let blocked = self.blocked(pod, budgets);
            named.push(format!("{} ({})", blocked.pod, blocked.why));
            // Pods that one budget keeps are let go by one command.
            if refused(pod) && !unblock.contains(&blocked.unblock) {
                unblock.push(blocked.unblock);
            }
        }
        let count = leaving.len();
        let mut line = format!("{count} pods to leave{told}: {}", named.join(", "));
        let more = leaving.len().saturating_sub(NAMED);
        if more > 0 {
            line.push_str(&format!(" and {more} more"));
        }
        if !unblock.is_empty() {
            line.push_str(&format!("; to let them go: {}", unblock.join("; ")));
        }
        line
    }

    fn note(
        &mut self,
        now: Duration,
        pod: &PodRef,
        refusal: Option<String>,
        again_after: Option<Duration>,
    ) {
        let pause = match self.asked.get(pod) {
            Some(asked) => (asked.pause * 2).min(AGAIN_CAP),
            None => AGAIN_FIRST,
        };
        let server = again_after.unwrap_or_default().min(SERVER_CAP);
        let asked = Asked {
            again_at: now + pause.max(server),
            pause,
            refusal,
        };
        self.asked.insert(pod.clone(), asked);
    }

    fn order(&self, pod: &Pod, past: bool) -> Order {
        let own = pod.grace_seconds;
        let most = self.policy.grace_max_ms.map(|ms| ms / 1000);
        Order {
            pod: pod.id.clone(),
            how: if past { How::Delete } else { How::Evict },
            grace_seconds: most.filter(|most| *most < own),
        }
    }

    /// Whether waiting is over: for pods that nobody told to end at the deadline, unless the policy deletes
    /// them; for those that were told, once their grace is over as well.
    fn is_late(&self, now: Duration, leaving: &[&Pod]) -> bool {
        let deadline = self.policy.deadline();
        let waits = leaving.iter().any(|pod| !pod.terminating);
        let longest = leaving.iter().map(|pod| pod.grace_seconds).max();
        let grace = Duration::from_secs(longest.unwrap_or(0));
        match self.policy.escalation {
            Escalation::Stop if waits => now >= deadline,
            Escalation::Stop | Escalation::Delete => now >= deadline + grace + SETTLE,
        }
    }

    fn drained(&self) -> Drained {
        let escalated = self.escalated.clone();
        Drained {
            evicted: self.evicted.difference(&escalated).cloned().collect(),
            escalated: escalated.into_iter().collect(),
            held: self.held.iter().cloned().collect(),
            ..Drained::default()
        }
    }

    fn blocked(&self, pod: &Pod, budgets: &[Budget]) -> Blocked {
        let namespace = &pod.id.namespace;
        let name = &pod.id.name;
        let refusal = self.asked.get(&pod.id).and_then(|a| a.refusal.clone());
        let covering: Vec<&Budget> = budgets.iter().filter(|b| b.covers(pod)).collect();
        let (why, unblock) = match (pod.terminating, refusal, &covering[..]) {
            (true, ..) => (
                format!("it ends (it may take {} s)", pod.grace_seconds),
                format!("kubectl -n {namespace} delete pod {name} --grace-period=0 --force"),
            ),
            (false, None, _) => (
                "its turn has not come".to_owned(),
                format!("kubectl -n {namespace} delete pod {name}"),
            ),
            (false, Some(_), [budget]) => (keeps(budget), relax(pod, budget)),
            (false, Some(_), [first, second, ..]) => (overlap(first, second), remove(second)),
            (false, Some(refusal), []) => {
                (refusal, format!("kubectl -n {namespace} delete pod {name}"))
            }
        };
        Blocked {
            pod: pod.id.clone(),
            why,
            unblock,
        }
    }
}

/// Whether a pod has to leave for its node to be empty.
pub(super) fn leaves(pod: &Pod) -> bool {
    let daemon = pod
        .controller
        .as_ref()
        .is_some_and(|owner| owner.kind == "DaemonSet");
    !daemon && !pod.is_static && !pod.is_over()
}

fn wave_of(pod: &Pod) -> Wave {
    let set = pod
        .controller
        .as_ref()
        .is_some_and(|owner| owner.kind == "StatefulSet");
    if pod.priority >= SYSTEM_PRIORITY {
        Wave::System
    } else if set || pod.persistent {
        Wave::Stateful
    } else {
        Wave::Stateless
    }
}

/// Pods that the policy does not let go.
pub(super) fn kept(policy: &DrainPolicy, leaving: &[&Pod]) -> Vec<Blocked> {
    let blocked = |pod: &Pod, why: &str, unblock: String| Blocked {
        pod: pod.id.clone(),
        why: why.to_owned(),
        unblock,
    };
    let told = leaving.iter().filter(|pod| !pod.terminating);
    told.filter_map(|pod| {
        let delete = || {
            let PodRef {
                namespace, name, ..
            } = &pod.id;
            format!("kubectl -n {namespace} delete pod {name}")
        };
        if policy.uncontrolled == Uncontrolled::Keep && pod.controller.is_none() {
            let why = "nothing makes it again, and the policy keeps such pods";
            Some(blocked(pod, why, delete()))
        } else if policy.empty_dir == EmptyDir::Keep && pod.empty_dir {
            let why = "its emptyDir would be lost, and the policy keeps such pods";
            Some(blocked(pod, why, delete()))
        } else {
            None
        }
    })
    .collect()
}

pub(super) fn keeps(budget: &Budget) -> String {
    format!(
        "PodDisruptionBudget {} needs {} healthy pods and has {} of {}",
        budget.title(),
        budget.desired_healthy,
        budget.current_healthy,
        budget.expected_pods
    )
}

/// The command with which a budget lets this pod go, and of those that are healthy one at a time.
pub(super) fn relax(pod: &Pod, budget: &Budget) -> String {
    let spec = if !pod.ready {
        // However few of the others are healthy.
        "\"unhealthyPodEvictionPolicy\":\"AlwaysAllow\"".to_owned()
    } else if pod.controller.is_none() {
        // Of pods that nothing counts a budget knows a least number alone.
        let least = budget.current_healthy.saturating_sub(1);
        format!("\"minAvailable\":{least},\"maxUnavailable\":null")
    } else {
        // One more than are missing already.
        let missing = budget.expected_pods.saturating_sub(budget.current_healthy);
        format!("\"minAvailable\":null,\"maxUnavailable\":{}", missing + 1)
    };
    format!(
        "kubectl -n {} patch poddisruptionbudget {} --type merge -p '{{\"spec\":{{{spec}}}}}'",
        budget.namespace, budget.name
    )
}

pub(super) fn overlap(first: &Budget, second: &Budget) -> String {
    format!(
        "PodDisruptionBudgets {} and {} both cover it, which the Eviction API refuses",
        first.title(),
        second.title()
    )
}

pub(super) fn remove(budget: &Budget) -> String {
    format!(
        "kubectl -n {} delete poddisruptionbudget {}",
        budget.namespace, budget.name
    )
}
