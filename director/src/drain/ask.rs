//! Asks API servers for what a rehearsal needs.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;

use super::hazard::{Service, WebhookConfiguration, removed_apis, webhooks};
use super::{Budget, DrainPolicy, Pod, Rehearsal, rehearse};
use crate::kubernetes::client::{ApiError, Client, Node, Resource};

/// What is to be rehearsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Course {
    /// Nodes in the order in which they are drained, those of one batch at the same time.
    pub sequence: Vec<Vec<String>>,
    /// Nodes that will be there before the first one is drained.
    pub joining: BTreeSet<String>,
    /// How they are drained.
    pub policy: DrainPolicy,
    /// The minor that API servers come to, where it is a later one.
    pub minor: Option<u32>,
}

/// Rehearses the course of a change with what there is now. `servers` are the API servers, each of which knows by itself
/// what it was asked for; they are asked where the course comes to a later minor.
///
/// # Errors
/// [`ApiError`]. What a director may not look at before the add-ons of its release are applied is said to be unknown.
pub async fn rehearse_now(
    client: &Client,
    servers: &[Client],
    course: &Course,
) -> Result<Rehearsal, ApiError> {
    let nodes: Vec<Node> = client.list(&Resource::NODE, None, None).await?;
    let pods: Vec<Pod> = client.list(&Resource::POD, None, None).await?;
    let budgets: Vec<Budget> = client
        .list(&Resource::POD_DISRUPTION_BUDGET, None, None)
        .await?;
    let services: Vec<Service> = client.list(&Resource::SERVICE, None, None).await?;
    let open = nodes.into_iter().filter(takes_pods).map(|node| node.name);
    let nodes = open.chain(course.joining.iter().cloned()).collect();
    let sequence = &course.sequence;
    let mut rehearsal = rehearse(&pods, &budgets, &nodes, sequence, &course.policy);
    for kind in [&Resource::VALIDATING_WEBHOOKS, &Resource::MUTATING_WEBHOOKS] {
        match looked(client.list(kind, None, None).await)? {
            None => rehearsal.unknown.push(unknown(kind.plural)),
            Some(found) => {
                let found: Vec<WebhookConfiguration> = found;
                let kind = kind.plural.trim_end_matches('s');
                let lost = webhooks(kind, &found, &services, &pods, sequence);
                rehearsal.hazards.extend(lost);
            }
        }
    }
    if let Some(minor) = course.minor {
        let mut metrics = Vec::new();
        for server in servers {
            match looked(server.metrics().await)? {
                None => rehearsal.unknown.push(unknown("which APIs are in use")),
                Some(said) => metrics.push(said),
            }
        }
        rehearsal.hazards.extend(removed_apis(&metrics, minor));
    }
    rehearsal.unknown.dedup();
    Ok(rehearsal)
}

/// What was found; `None` where the right to look is missing.
fn looked<T: DeserializeOwned>(found: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match found {
        Err(error) if error.code() == Some(403) => Ok(None),
        found => found.map(Some),
    }
}

fn unknown(what: &str) -> String {
    format!(
        "{what}: the right to look is one of the add-ons, which the next change or `windlass cluster apply` brings"
    )
}

/// Whether pods without tolerations may come.
fn takes_pods(node: &Node) -> bool {
    let keeps_out = |effect: &str| matches!(effect, "NoSchedule" | "NoExecute");
    !node.unschedulable && !node.taints.iter().any(|taint| keeps_out(&taint.effect))
}
