//! Budgets of pods, and the Eviction API that keeps them.
//!
//! # Invariants
//! * Who may leave is decided as an API server decides it, in its order and in its words. The cases that the real one is
//!   run against hold here, too (`windlass_common::contract::eviction`).
//! * A budget is charged before the pod is told. A pod that was not told after all counts as lost for a while, since
//!   nothing takes the charge back sooner.
//!
//! # Not here
//! What a budget does to whom it keeps ([`windlass_director::drain`]). Budgets by shares, and by how many may be missing.

use windlass_common::contract::eviction::Unhealthy;

use super::cluster::Pod;
use super::state::State;

/// How long a pod counts as lost that was to leave and does not end.
const CHARGED_MS: u64 = 120_000;

/// A PodDisruptionBudget.
#[derive(Debug)]
pub struct Budget {
    /// The workloads whose pods it covers, by their place.
    pub covers: Vec<usize>,
    /// Pods that have to be healthy.
    pub least: usize,
    /// What holds of pods that are not ready.
    pub unhealthy: Unhealthy,
}

/// Why a pod does not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is none.
    Gone,
    /// The pod of that name is another one.
    Namesake,
    /// Its budget has no disruption left.
    Kept,
    /// More than one budget covers it.
    TwoBudgets,
}

impl Refusal {
    /// HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::Gone => 404,
            Self::Namesake => 409,
            Self::Kept => 429,
            Self::TwoBudgets => 500,
        }
    }

    /// What an API server says.
    pub fn message(self) -> &'static str {
        match self {
            Self::Gone => "pods not found",
            Self::Namesake => "the UID in the precondition does not match the UID in record",
            Self::Kept => "Cannot evict pod as it would violate the pod's disruption budget.",
            Self::TwoBudgets => {
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
            }
        }
    }
}

impl State {
    /// The Eviction API: tells a pod to leave if its budget lets it.
    pub fn evict(&mut self, name: &str, uid: &str) -> Result<(), Refusal> {
        let pod = self.cluster.pods.get(name).ok_or(Refusal::Gone)?;
        // Nobody misses what has not begun, or ends already.
        let missed = !pod.is_ending() && !pod.is_pending(self.now);
        if missed && let Some(budget) = self.only_budget(pod)? {
            let (healthy, least) = (
                self.healthy_under(budget),
                self.cluster.budgets[budget].least,
            );
            let spared = !self.ready(pod)
                && match self.cluster.budgets[budget].unhealthy {
                    Unhealthy::AlwaysAllow => true,
                    Unhealthy::IfHealthyBudget => healthy >= least && least > 0,
                };
            if !spared {
                if self.cluster.held_until > self.now || healthy <= least {
                    return Err(Refusal::Kept);
                }
                let until = self.now + CHARGED_MS;
                if let Some(pod) = self.cluster.pods.get_mut(name) {
                    pod.charged_until = until;
                }
            }
        }
        if self.cluster.pods[name].uid != uid {
            return Err(Refusal::Namesake);
        }
        self.tell(format!("pod {name} is evicted"));
        self.end_pod(name);
        Ok(())
    }

    /// Deletes a pod, whatever its budget says.
    pub fn delete_pod(&mut self, name: &str) -> bool {
        let Some(pod) = self.cluster.pods.get(name) else {
            return false;
        };
        let lost = usize::from(self.healthy(pod));
        let under = |budget: &usize| self.cluster.budgets[*budget].covers(pod);
        let budgets: Vec<usize> = (0..self.cluster.budgets.len()).filter(under).collect();
        let broken = budgets
            .into_iter()
            .any(|budget| self.healthy_under(budget) < self.cluster.budgets[budget].least + lost);
        if broken {
            self.violated(
                4,
                format!("pod {name} is deleted past its budget, and no policy says so"),
            );
        }
        self.tell(format!("pod {name} is deleted"));
        self.end_pod(name);
        true
    }

    /// Disruptions that a budget has left.
    pub fn disruptions_left(&self, budget: usize) -> usize {
        let healthy = self.healthy_under(budget);
        healthy.saturating_sub(self.cluster.budgets[budget].least)
    }

    /// The budget that covers a pod.
    fn only_budget(&self, pod: &Pod) -> Result<Option<usize>, Refusal> {
        let budgets = self.cluster.budgets.iter().enumerate();
        let mut covering = budgets.filter(|(_, budget)| budget.covers(pod));
        match (covering.next(), covering.next()) {
            (Some(_), Some(_)) => Err(Refusal::TwoBudgets),
            (one, _) => Ok(one.map(|(at, _)| at)),
        }
    }

    /// Pods that count for a budget.
    fn healthy_under(&self, budget: usize) -> usize {
        let budget = &self.cluster.budgets[budget];
        let counts =
            |pod: &&Pod| budget.covers(pod) && pod.charged_until <= self.now && self.healthy(pod);
        self.cluster.pods.values().filter(counts).count()
    }

    fn end_pod(&mut self, name: &str) {
        if let Some(pod) = self.cluster.pods.get_mut(name)
            && pod.ends_at.is_none()
        {
            pod.ends_at = Some(self.now + pod.grace_ms);
        }
    }
}

impl Budget {
    fn covers(&self, pod: &Pod) -> bool {
        self.covers.contains(&pod.workload)
    }
}
