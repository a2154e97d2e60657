//! Pods of the system on one node, which have to be Ready before the next node is begun.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use windlass_common::error::ErrorClass;
use windlass_common::id::NodeName;

use super::{Pod, PodRef};
use crate::kubernetes::addons::SYSTEM_NAMESPACE;
use crate::kubernetes::client::{ApiError, Client, Resource};

/// Pause between two looks at pods that are not Ready yet: a look costs the API server about a millisecond.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Pods that are named in one message.
const NAMED: usize = 5;

/// Why pods of the system were not seen Ready.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SystemPodsError {
    /// The API server does not say.
    #[error("cannot list the pods of {SYSTEM_NAMESPACE} on node {node}")]
    Api {
        /// The node.
        node: NodeName,
        /// Why.
        source: ApiError,
    },
    /// They are not, and time is up.
    #[error(
        "node {node} is Ready, and pods of {SYSTEM_NAMESPACE} on it are not: {}; `kubectl -n {SYSTEM_NAMESPACE} \
         describe pod {}` says why",
        named(pods),
        pods.first().map_or("", |pod| pod.name.as_str())
    )]
    NotReady {
        /// The node.
        node: NodeName,
        /// The pods.
        pods: Vec<PodRef>,
    },
}

impl SystemPodsError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Api { source, .. } => source.class(),
            Self::NotReady { .. } => ErrorClass::Operator,
        }
    }
}

fn named(pods: &[PodRef]) -> String {
    let names: Vec<&str> = pods.iter().take(NAMED).map(|p| p.name.as_str()).collect();
    match pods.len().saturating_sub(NAMED) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

/// Waits until the pods of the system that are on a node are Ready: those of daemon sets and deployments, and static
/// ones. Looks at least once.
///
/// # Errors
/// [`SystemPodsError`].
pub async fn await_system_pods(
    client: &Client,
    node: &NodeName,
    deadline: Instant,
) -> Result<(), SystemPodsError> {
    let selector = format!("spec.nodeName={node}");
    loop {
        let pods: Vec<Pod> = client
            .list_by_field(&Resource::POD, Some(SYSTEM_NAMESPACE), &selector)
            .await
            .map_err(|source| SystemPodsError::Api {
                node: node.clone(),
                source,
            })?;
        let pods = not_ready(&pods);
        if pods.is_empty() {
            return Ok(());
        }
        if Instant::now() + LOOK_INTERVAL >= deadline {
            let node = node.clone();
            return Err(SystemPodsError::NotReady { node, pods });
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// Pods that have to be Ready and are not. One that ends, is over or works off a Job never will be.
pub(super) fn not_ready(pods: &[Pod]) -> Vec<PodRef> {
    let serves = |pod: &&Pod| {
        let job = pod.controller.as_ref().is_some_and(|of| of.kind == "Job");
        !pod.terminating && !pod.is_over() && !job
    };
    let pods = pods.iter().filter(serves).filter(|pod| !pod.ready);
    pods.map(|pod| pod.id.clone()).collect()
}
