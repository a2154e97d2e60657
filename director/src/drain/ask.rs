//! Asks an API server for what a rehearsal needs.

use std::collections::BTreeSet;

use super::{Budget, DrainPolicy, Pod, Rehearsal, rehearse};
use crate::kubernetes::client::{ApiError, Client, Node, Resource};

/// Rehearses draining the nodes of `sequence`, those of one batch at the same time, with the pods and the
/// budgets that there are now. `joining` are nodes that will be there before the first one is drained.
///
/// # Errors
/// [`ApiError`].
pub async fn rehearse_now(
    client: &Client,
    sequence: &[Vec<String>],
    joining: &BTreeSet<String>,
    policy: &DrainPolicy,
) -> Result<Rehearsal, ApiError> {
    let nodes: Vec<Node> = client.list(&Resource::NODE, None, None).await?;
    let pods: Vec<Pod> = client.list(&Resource::POD, None, None).await?;
    let budgets: Vec<Budget> = client
        .list(&Resource::POD_DISRUPTION_BUDGET, None, None)
        .await?;
    let open = nodes.into_iter().filter(takes_pods).map(|node| node.name);
    let nodes = open.chain(joining.iter().cloned()).collect();
    Ok(rehearse(&pods, &budgets, &nodes, sequence, policy))
}

/// Whether pods without tolerations may come.
fn takes_pods(node: &Node) -> bool {
    let keeps_out = |effect: &str| matches!(effect, "NoSchedule" | "NoExecute");
    !node.unschedulable && !node.taints.iter().any(|taint| keeps_out(&taint.effect))
}
