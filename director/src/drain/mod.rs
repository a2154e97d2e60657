//! Draining a node: who has to leave it, in which order, and what keeps them.
//!
//! Three parts. [`rehearse()`] is pure and asked before anything begins: it plays PodDisruptionBudgets
//! through a whole sequence of nodes, since the API's dry run answers for one eviction at a time and
//! takes nothing off the budget; what else a change would meet is a [`Hazard`]. [`rehearse_now`] asks the API server
//! what both need. [`Engine`] is pure as well and decides, look by look, which pods are
//! evicted now. [`drain`] is the shell around it, which asks the API server: through the node itself ([`OwnNode`])
//! where its agent can be asked, as the director where it cannot.
//!
//! # Invariants
//! * Pods leave by the Eviction API, so that the API server keeps every budget (invariant 4). Only after
//!   the deadline of a [`DrainPolicy`] that says so are pods deleted past their budget, and each one is
//!   named in [`Drained::escalated`].
//! * A pod is told to leave by the identity of its own node where that is possible, and by the director's role only
//!   where it is not. What a node may not do (cordons, taints, reading budgets) the director does.
//! * A node is cordoned before its first pod is evicted. [`uncordon`] opens only what [`cordon`] closed:
//!   a mark on the node says so.
//! * Load balancers outside are told before the first eviction: kube-proxy's health check fails on a node
//!   with the taint of a node that goes, while it still forwards what arrives.
//! * Pods of daemon sets and static pods stay; pods that are over stay as well.
//! * Stateless pods leave first, then those with state, then what the cluster itself needs. A wave begins
//!   when the one before it has gone.
//! * A node is said to be out of service only by [`release_volumes`], which is called after the proof that its
//!   machine is off.
//!
//! # After a crash
//! Nothing is kept. Cordoning and evicting again is harmless, and the deadline begins anew.
//!
//! # Not here
//! When a node is drained (planner), and what becomes of its machine. Pods of a node whose kubelet is dead
//! never end; they go with their Node once the machine is fenced.

mod api;
mod ask;
mod engine;
mod hazard;
mod object;
mod rehearse;
mod system;
#[cfg(test)]
mod tests;
mod volumes;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::cluster::{DrainSpec, OnTimeout};
use windlass_common::error::ErrorClass;
use windlass_common::id::NodeName;

use crate::kubernetes::client::ApiError;

pub use api::{cordon, drain, is_reached_from_outside, remove_pods, uncordon};
pub use ask::{Course, rehearse_now};
pub use engine::{Answer, Engine, How, Order, Turn};
pub use hazard::{Hazard, HazardKind};
pub use object::{Budget, Controller, Pod, PodPhase};
pub use rehearse::{Finding, NodeRehearsal, Rehearsal, rehearse};
pub use system::{SystemPodsError, await_system_pods};
pub use volumes::{DETACH_LIMIT, Released, release_volumes};

/// What is allowed in order to get a node empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrainPolicy {
    /// How long budgets are waited for, milliseconds, 1 s to 24 h.
    pub deadline_ms: u64,
    /// What happens then.
    pub escalation: Escalation,
    /// Pods that nothing makes again.
    pub uncontrolled: Uncontrolled,
    /// Pods whose `emptyDir` volumes are lost.
    pub empty_dir: EmptyDir,
    /// How long load balancers outside of the cluster get to notice that the node takes no new connections,
    /// milliseconds, at most 10 min; nobody waits when no Service has a NodePort. Set it above the time
    /// after which yours drops a node whose health check fails.
    pub load_balancer_ms: u64,
    /// Longest time a pod gets to end, milliseconds; its own `terminationGracePeriodSeconds` when absent.
    pub grace_max_ms: Option<u64>,
}

impl Default for DrainPolicy {
    /// That of a spec that says nothing.
    fn default() -> Self {
        DrainSpec::default().into()
    }
}

impl From<DrainSpec> for DrainPolicy {
    fn from(spec: DrainSpec) -> Self {
        Self {
            deadline_ms: u64::from(spec.timeout_seconds) * 1000,
            escalation: match spec.on_timeout {
                OnTimeout::Fail => Escalation::Stop,
                OnTimeout::Delete => Escalation::Delete,
            },
            uncontrolled: if spec.evict_unmanaged {
                Uncontrolled::Evict
            } else {
                Uncontrolled::Keep
            },
            empty_dir: if spec.delete_empty_dir_data {
                EmptyDir::Lose
            } else {
                EmptyDir::Keep
            },
            load_balancer_ms: u64::from(spec.load_balancer_seconds) * 1000,
            grace_max_ms: spec
                .grace_period_max_seconds
                .map(|seconds| u64::from(seconds) * 1000),
        }
    }
}

impl DrainPolicy {
    pub(super) fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }
}

/// What happens to pods that are still there at the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Escalation {
    /// The drain fails and says who blocks it; the node stays cordoned.
    Stop,
    /// They are deleted past their budgets, and each one is recorded.
    Delete,
}

/// What happens to pods without a controller, which nothing makes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Uncontrolled {
    /// The drain does not begin.
    Keep,
    /// They are evicted and lost.
    Evict,
}

/// What happens to pods with `emptyDir` volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum EmptyDir {
    /// The drain does not begin.
    Keep,
    /// They are evicted, and what is in the volumes is lost.
    Lose,
}

/// Names a pod; the uid tells it from a later one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A node is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drained {
    /// Pods that left by eviction.
    pub evicted: Vec<PodRef>,
    /// Pods that were deleted past their budget, because the policy says so.
    pub escalated: Vec<PodRef>,
    /// Pods that were told to end and are held by their finalizers; they end with their machine.
    pub held: Vec<PodRef>,
    /// Those of them that their own node has told; the director has told the others.
    pub by_node: BTreeSet<PodRef>,
    /// Why the director has told pods itself, the last time that it did.
    pub not_by_node: Option<String>,
}

/// A node that is drained, whose agent tells its pods to leave with the identity of its kubelet.
pub trait OwnNode: Send + Sync {
    /// Tells these pods to leave; what the API server said of each, in their order. An error says in words why
    /// the node could not: nothing, or nothing that is known, has become of that pod.
    fn tell<'a>(&'a self, orders: &'a [Order]) -> BoxFuture<'a, Vec<Result<Answer, String>>>;
}

/// A pod that does not leave, and what keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// The pod.
    pub pod: PodRef,
    /// What keeps it.
    pub why: String,
    /// A command that lets it go.
    pub unblock: String,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}; to let it go: {}",
            self.pod, self.why, self.unblock
        )
    }
}

/// Why a node is not empty.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// The API server cannot be asked, or refuses.
    #[error("node {node}: cannot {doing}")]
    Api {
        /// What was asked.
        doing: &'static str,
        /// The node.
        node: NodeName,
        /// Cause.
        #[source]
        source: ApiError,
    },
    /// The policy keeps some pods where they are.
    #[error("node {node} cannot be drained: {}", list(blocked))]
    Refused {
        /// The node.
        node: NodeName,
        /// The pods, with what keeps them.
        blocked: Vec<Blocked>,
    },
    /// Volumes stay attached.
    #[error(
        "node {node} has no pods left, and volumes {} are still attached; look at the driver that has to \
         detach them: kubectl describe volumeattachment", volumes.join(", ")
    )]
    Attached {
        /// The node.
        node: NodeName,
        /// Names of the VolumeAttachments.
        volumes: Vec<String>,
    },
    /// The deadline passed.
    #[error("node {node} is not empty after {} s: {}", after.as_secs(), list(blocked))]
    Deadline {
        /// The node.
        node: NodeName,
        /// The deadline.
        after: Duration,
        /// The pods that are left, with what keeps them.
        blocked: Vec<Blocked>,
    },
}

impl DrainError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            DrainError::Api { source, .. } => source.class(),
            DrainError::Refused { .. }
            | DrainError::Attached { .. }
            | DrainError::Deadline { .. } => ErrorClass::Operator,
        }
    }
}

/// Most pods that are named in one message.
const NAMED_MAX: usize = 10;

fn list(blocked: &[Blocked]) -> String {
    let mut text: Vec<String> = blocked
        .iter()
        .take(NAMED_MAX)
        .map(ToString::to_string)
        .collect();
    if blocked.len() > NAMED_MAX {
        text.push(format!("and {} more", blocked.len() - NAMED_MAX));
    }
    text.join("; ")
}
