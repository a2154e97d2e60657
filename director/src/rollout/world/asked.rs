//! What steps ask of a cluster's API: the border between rollouts and Kubernetes, simulated in tests.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use windlass_common::gate::ServicePort;
use windlass_common::id::{ClusterName, Incarnation, MachineName, NodeName};

use super::context::ClusterContext;
use super::gates::JobOrder;
use super::lease::LeaseMark;
use crate::backup::record::Census;
use crate::drain::{Course, OwnNode, Rehearsal};
use crate::rollout::{Done, EffectError, ProgressSink};

/// What steps ask of a cluster's API.
pub trait KubeApi: Send + Sync + fmt::Debug {
    /// Applies all add-ons.
    fn apply_addons<'a>(
        &'a self,
        context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>>;

    /// Sets the labels of a machine's node and waits until it is Ready, and the pods of the system on it.
    fn await_node<'a>(
        &'a self,
        context: &'a ClusterContext,
        machine: &'a MachineName,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Done, EffectError>>;

    /// When the kubelet of a machine last said whether its node is Ready, in its own words; `None` when it never
    /// did.
    fn heartbeat<'a>(
        &'a self,
        context: &'a ClusterContext,
        machine: &'a MachineName,
    ) -> BoxFuture<'a, Result<Option<String>, EffectError>>;

    /// Whether something outside of the cluster may send connections to a machine's node.
    fn reached_from_outside<'a>(
        &'a self,
        context: &'a ClusterContext,
        machine: &'a MachineName,
    ) -> BoxFuture<'a, Result<bool, EffectError>>;

    /// Reads what there is of a cluster, as somebody who may read all of it.
    fn census<'a>(
        &'a self,
        context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Census, EffectError>>;

    /// Has API servers refuse an incarnation that is off, and its volumes detached, then deletes its Node object and
    /// the pods that were bound to it. `limit` is the whole step's.
    fn drop_node<'a>(
        &'a self,
        context: &'a ClusterContext,
        machine: &'a MachineName,
        node: &'a NodeName,
        limit: Duration,
        progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<Done, EffectError>>;

    /// Deletes the Node objects of machines that there are no more, with their pods, and has API servers refuse
    /// them and all earlier incarnations of the machines that there are.
    fn settle_nodes<'a>(
        &'a self,
        context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>>;

    /// Waits until an API server of the cluster is ready.
    fn await_api<'a>(
        &'a self,
        context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>>;

    /// What a change would meet in this course.
    fn rehearse<'a>(
        &'a self,
        context: &'a ClusterContext,
        course: &'a Course,
    ) -> BoxFuture<'a, Result<Rehearsal, EffectError>>;

    /// Which nodes of the cluster's machines say that they are Ready and take pods, with when the kubelet of each has
    /// said so last, as [`KubeApi::heartbeat`] tells it. What one says that is not heard any more is stale for up to
    /// a minute.
    fn serving<'a>(
        &'a self,
        context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<BTreeMap<NodeName, String>, EffectError>>;

    /// Cordons a node and has its pods leave it, told by the node itself where that is possible.
    fn drain<'a>(
        &'a self,
        context: &'a ClusterContext,
        node: &'a NodeName,
        own: &'a dyn OwnNode,
        progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<Done, EffectError>>;

    /// Opens a node that we closed.
    fn uncordon<'a>(
        &'a self,
        context: &'a ClusterContext,
        machine: &'a MachineName,
        node: &'a NodeName,
    ) -> BoxFuture<'a, Result<Done, EffectError>>;

    /// The Lease of a node as it is, read through these control-plane machines, all at once: the first that
    /// answers counts. Nothing else is gone through, since a machine that hangs may be one of the others.
    fn lease<'a>(
        &'a self,
        context: &'a ClusterContext,
        node: &'a NodeName,
        through: &'a [(MachineName, Incarnation)],
    ) -> BoxFuture<'a, Result<Option<LeaseMark>, EffectError>>;

    /// Has an API server ask a Service of the cluster, as a gate names it; why that failed, in words.
    fn ask_service<'a>(
        &'a self,
        context: &'a ClusterContext,
        service: &'a ServicePort,
        path: &'a str,
    ) -> BoxFuture<'a, Result<Vec<u8>, String>>;

    /// Runs a gate's Job under this name to its end, or goes on with the one that there is; why the gate stays
    /// shut, in words.
    fn run_job<'a>(
        &'a self,
        context: &'a ClusterContext,
        job: &'a JobOrder,
        progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<(), String>>;

    /// Has every Secret written again, with the encryption key that writes now. None is read.
    fn rewrite_secrets<'a>(
        &'a self,
        context: &'a ClusterContext,
        progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<Done, EffectError>>;

    /// Fails for now while cluster DNS does not run as it was applied last.
    fn await_dns<'a>(
        &'a self,
        context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>>;

    /// Drops what is kept in memory about a cluster.
    fn forget(&self, cluster: &ClusterName);
}
