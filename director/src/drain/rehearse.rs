//! Plays a sequence of drains against the budgets, before anything is touched. Pure.
//!
//! # What it assumes
//! A pod with a controller is healthy again before the next node is begun, if a node outside of those
//! that are drained at the same time can take it; one without a controller is lost, and so is counted as
//! missing from then on. Room on the other nodes is not computed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::engine::{keeps, kept, leaves, overlap, relax, remove};
use super::{Budget, DrainPolicy, Escalation, Hazard, Pod, PodRef};

/// What a sequence of drains would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rehearsal {
    /// One entry a node, in the order of the sequence.
    pub nodes: Vec<NodeRehearsal>,
    /// What would stop it, each once.
    pub findings: Vec<Finding>,
    /// What else it would meet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hazards: Vec<Hazard>,
    /// What could not be looked at, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// What draining one node would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeRehearsal {
    /// The node.
    pub node: String,
    /// Pods that leave it.
    pub evicted: Vec<PodRef>,
    /// Pods that stay: of daemon sets, static ones, and those that are over.
    pub stay: u32,
    /// Budgets that let its pods go only one after the other, `namespace/name`.
    pub waits_for: Vec<String>,
}

/// Something that stops a drain, and the command that clears it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The first node at which it stops the sequence.
    pub node: String,
    /// The pod that does not leave.
    pub pod: PodRef,
    /// What keeps it.
    pub why: String,
    /// A command that lets it go.
    pub unblock: String,
    /// Seconds after which the policy deletes it nevertheless; the sequence stops there when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_after_seconds: Option<u64>,
}

impl Rehearsal {
    /// What stops the sequence, whatever time passes.
    pub fn blocked(&self) -> impl Iterator<Item = &Finding> {
        let findings = self.findings.iter();
        findings.filter(|finding| finding.deleted_after_seconds.is_none())
    }
}

/// Budgets as they stand at one point of the sequence.
struct Ledger<'a> {
    budgets: &'a [Budget],
    /// Healthy pods by index of the budget.
    healthy: Vec<u32>,
    lost: BTreeSet<&'a PodRef>,
}

/// Rehearses draining the nodes of `sequence`, those of one batch at the same time. `pods` are all of the
/// cluster, `nodes` all that can take pods.
pub fn rehearse(
    pods: &[Pod],
    budgets: &[Budget],
    nodes: &BTreeSet<String>,
    sequence: &[Vec<String>],
    policy: &DrainPolicy,
) -> Rehearsal {
    let mut ledger = Ledger {
        budgets,
        healthy: budgets.iter().map(|b| b.current_healthy).collect(),
        lost: BTreeSet::new(),
    };
    let mut rehearsal = Rehearsal::default();
    let mut seen = BTreeSet::new();
    for batch in sequence {
        let elsewhere = nodes.iter().any(|node| !batch.contains(node));
        let mut spent: BTreeMap<usize, u32> = BTreeMap::new();
        for node in batch {
            let on: Vec<&Pod> = pods
                .iter()
                .filter(|pod| pod.node.as_ref() == Some(node) && !ledger.lost.contains(&pod.id))
                .collect();
            let leaving: Vec<&Pod> = on.iter().copied().filter(|pod| leaves(pod)).collect();
            let mut entry = NodeRehearsal {
                node: node.clone(),
                evicted: leaving.iter().map(|pod| pod.id.clone()).collect(),
                stay: u32::try_from(on.len() - leaving.len()).unwrap_or(u32::MAX),
                waits_for: Vec::new(),
            };
            let mut findings: Vec<Finding> = kept(policy, &leaving)
                .into_iter()
                .map(|b| finding(node, &b.pod, b.why, b.unblock))
                .collect();
            let told = leaving.iter().filter(|pod| !pod.terminating);
            for pod in told {
                let kept = ledger.evict(node, pod, elsewhere, &mut spent, &mut entry);
                findings.extend(kept.map(|finding| Finding {
                    deleted_after_seconds: deleted_after(policy),
                    ..finding
                }));
            }
            rehearsal.nodes.push(entry);
            let new = |finding: &Finding| seen.insert((finding.pod.clone(), finding.why.clone()));
            rehearsal.findings.extend(findings.into_iter().filter(new));
        }
        // What has a controller is healthy again before the next batch, if it has somewhere to be.
        let stay_away = spent.into_iter().filter(|_| !elsewhere);
        for (budget, pods) in stay_away {
            ledger.healthy[budget] = ledger.healthy[budget].saturating_sub(pods);
        }
        for pod in pods
            .iter()
            .filter(|pod| pod.controller.is_none() && leaves(pod))
        {
            if pod.node.as_ref().is_some_and(|node| batch.contains(node)) {
                ledger.lose(pod);
            }
        }
    }
    rehearsal
}

impl<'a> Ledger<'a> {
    fn evict(
        &self,
        node: &str,
        pod: &Pod,
        elsewhere: bool,
        spent: &mut BTreeMap<usize, u32>,
        entry: &mut NodeRehearsal,
    ) -> Option<Finding> {
        let covering: Vec<usize> = (0..self.budgets.len())
            .filter(|at| self.budgets[*at].covers(pod))
            .collect();
        let at = match covering[..] {
            [] => return None,
            [at] => at,
            [first, second, ..] => {
                let (first, second) = (&self.budgets[first], &self.budgets[second]);
                return Some(finding(
                    node,
                    &pod.id,
                    overlap(first, second),
                    remove(second),
                ));
            }
        };
        let budget = &self.budgets[at];
        let enough = self.healthy[at] >= budget.desired_healthy && budget.desired_healthy > 0;
        if !pod.ready && (budget.unhealthy_may_leave || enough) {
            return None;
        }
        let allowed = self.healthy[at].saturating_sub(budget.desired_healthy);
        let used = spent.entry(at).or_default();
        if *used < allowed {
            *used += 1;
            return None;
        }
        // The evicted ones come back on other nodes, and the next may go: one after the other.
        if allowed > 0 && elsewhere && pod.controller.is_some() {
            let title = budget.title();
            if !entry.waits_for.contains(&title) {
                entry.waits_for.push(title);
            }
            return None;
        }
        let mut now = budget.clone();
        now.current_healthy = self.healthy[at].saturating_sub(*used);
        Some(finding(node, &pod.id, keeps(&now), relax(pod, budget)))
    }

    fn lose(&mut self, pod: &'a Pod) {
        if !self.lost.insert(&pod.id) || !pod.ready {
            return;
        }
        for (at, budget) in self.budgets.iter().enumerate() {
            if budget.covers(pod) {
                self.healthy[at] = self.healthy[at].saturating_sub(1);
            }
        }
    }
}

/// When the policy deletes what a budget keeps, seconds.
fn deleted_after(policy: &DrainPolicy) -> Option<u64> {
    match policy.escalation {
        Escalation::Stop => None,
        Escalation::Delete => Some(policy.deadline_ms / 1000),
    }
}

fn finding(node: &str, pod: &PodRef, why: String, unblock: String) -> Finding {
    Finding {
        node: node.to_owned(),
        pod: pod.clone(),
        why,
        unblock,
        deleted_after_seconds: None,
    }
}
