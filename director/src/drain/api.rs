//! The shell of a drain: cordons, asks, looks, and tells.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use windlass_common::id::NodeName;

use super::engine::{Answer, Engine, How, Order, Turn};
use super::volumes::detached;
use super::{Budget, DrainError, DrainPolicy, Drained, OwnNode, Pod, PodRef};
use crate::kubernetes::client::{ApiError, Client, Node, Resource};

/// Pause between two looks at the pods of a node. A look costs the API server about a millisecond, and a
/// rollout waits for the last pod to go.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// After so long the same is said again: somebody may have come since, who has not heard it.
const SAID_AGAIN: Duration = Duration::from_secs(3);
/// Says that it was us who cordoned a node.
const CORDONED: &str = "windlass.internal/cordoned";
/// kube-proxy's `/healthz` answers 503 on a node with this taint (Kubernetes enhancement 3836).
const LEAVING: &str = "ToBeDeletedByClusterAutoscaler";
/// Attempts to change taints that others change as well.
const TAINT_ATTEMPTS: usize = 5;

/// Closes a node to new pods; one that is closed already is left as it is, and not ours to open.
///
/// # Errors
/// [`DrainError::Api`].
pub async fn cordon(client: &Client, node: &NodeName) -> Result<(), DrainError> {
    match cordon_patch(&look_at(client, node).await?) {
        Some(patch) => change(client, node, "cordon", &patch).await,
        None => Ok(()),
    }
}

/// What closes a node; nothing where somebody has closed it.
pub(super) fn cordon_patch(node: &Node) -> Option<Value> {
    let patch = json!({
        "metadata": {"annotations": {CORDONED: "true"}},
        "spec": {"unschedulable": true},
    });
    (!node.unschedulable).then_some(patch)
}

/// Opens a node that [`cordon`] closed, to pods and to load balancers; any other is left as it is.
///
/// # Errors
/// [`DrainError::Api`].
pub async fn uncordon(client: &Client, node: &NodeName) -> Result<(), DrainError> {
    set_leaving(client, node, false).await?;
    match uncordon_patch(&look_at(client, node).await?) {
        Some(patch) => change(client, node, "uncordon", &patch).await,
        None => Ok(()),
    }
}

/// What opens a node that we closed; nothing where it was not us.
pub(super) fn uncordon_patch(node: &Node) -> Option<Value> {
    let patch = json!({
        "metadata": {"annotations": {CORDONED: null}},
        "spec": {"unschedulable": null},
    });
    node.annotations.contains_key(CORDONED).then_some(patch)
}

/// Cordons a node and has its pods leave, then waits until its volumes are detached. A node that does not
/// exist is empty. Pods are told by `own`, the node itself, and by `client` where that is not possible. `progress` hears
/// who is waited for and who tells them, when that changes and every few seconds.
///
/// Dropping the future stops asking; pods that were told to end do so, and the node stays cordoned.
///
/// # Errors
/// [`DrainError`]; nothing was evicted when it is [`DrainError::Refused`].
pub async fn drain(
    client: &Client,
    node: &NodeName,
    own: &dyn OwnNode,
    policy: &DrainPolicy,
    progress: impl Fn(String),
) -> Result<Drained, DrainError> {
    match cordon(client, node).await {
        Err(DrainError::Api { source, .. }) if source.is_not_found() => {
            return Ok(Drained::default());
        }
        cordoned => cordoned?,
    }
    let notice = Duration::from_millis(policy.load_balancer_ms);
    if !notice.is_zero() && is_reached_from_outside(client, node).await? {
        set_leaving(client, node, true).await?;
        progress("load balancers get time to notice".to_owned());
        // What watches from outside cannot be asked whether it has noticed.
        sleep(notice).await;
    }
    let began = Instant::now();
    let mut engine = Engine::new(*policy);
    let mut tellers = Tellers::default();
    let mut told = (String::new(), began);
    loop {
        let pods = pods_of(client, node).await?;
        let blocked = engine.is_blocked();
        let mut budgets = match blocked {
            true => budgets_of(client, node).await?,
            false => Vec::new(),
        };
        let orders = match engine.look(began.elapsed(), &pods, &budgets) {
            Turn::Go(orders) => orders,
            Turn::Done(drained) => {
                detached(client, node, began + policy.deadline()).await?;
                return Ok(Drained {
                    by_node: tellers.by_node,
                    not_by_node: tellers.not_by_node,
                    ..drained
                });
            }
            Turn::Refused(blocked) => {
                // Nothing was begun, so the node serves on.
                uncordon(client, node).await?;
                let node = node.clone();
                return Err(DrainError::Refused { node, blocked });
            }
            Turn::Late(blocked) => {
                return Err(DrainError::Deadline {
                    node: node.clone(),
                    after: policy.deadline(),
                    blocked,
                });
            }
        };
        let said = match orders.is_empty() {
            true => Vec::new(),
            false => own.tell(&orders).await,
        };
        let mut said = said.into_iter();
        for order in &orders {
            let silent = || Err("its agent said nothing of it".to_owned());
            let answer = match said.next().unwrap_or_else(silent) {
                Ok(answer) => {
                    tellers.node(order, &answer);
                    answer
                }
                Err(why) => {
                    tellers.director(order, why);
                    tell(client, node, order).await?
                }
            };
            engine.answered(began.elapsed(), order, answer);
        }
        if engine.is_blocked() && !blocked {
            // Whose they are has to be known to say what lets the pods go.
            budgets = budgets_of(client, node).await?;
        }
        let line = engine.waits_for(&pods, &budgets, &tellers.last);
        let now = Instant::now();
        if line != told.0 || now >= told.1 + SAID_AGAIN {
            told = (line.clone(), now);
            progress(line);
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// Removes the pods that are bound to a node without waiting for its kubelet: for a node that is proven off,
/// and whose Node object is deleted, so that nothing new is bound to it. Returns those it removed.
///
/// # Errors
/// [`DrainError::Api`]; what was removed by then stays removed.
pub async fn remove_pods(client: &Client, node: &NodeName) -> Result<Vec<PodRef>, DrainError> {
    let mut removed = Vec::new();
    for pod in pods_of(client, node).await? {
        let options = json!({"preconditions": {"uid": pod.id.uid}, "gracePeriodSeconds": 0});
        let namespace = Some(pod.id.namespace.as_str());
        let deleted = client
            .delete_with(&Resource::POD, namespace, &pod.id.name, &options)
            .await;
        match deleted {
            Ok(true) => removed.push(pod.id),
            Ok(false) => {}
            // The name is another pod's by now.
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(failed("remove the pods", node)(error)),
        }
    }
    Ok(removed)
}

/// Who has told pods to leave.
#[derive(Debug, Default)]
struct Tellers {
    by_node: BTreeSet<PodRef>,
    not_by_node: Option<String>,
    /// Of the last round in which somebody was told, in words.
    last: String,
}

impl Tellers {
    fn node(&mut self, order: &Order, answer: &Answer) {
        if *answer == Answer::Accepted {
            self.by_node.insert(order.pod.clone());
        }
        self.last = ", told by the node itself".to_owned();
    }

    fn director(&mut self, order: &Order, why: String) {
        self.by_node.remove(&order.pod);
        self.last = format!(", told by the director, since {why}");
        self.not_by_node = Some(why);
    }
}

async fn tell(client: &Client, node: &NodeName, order: &Order) -> Result<Answer, DrainError> {
    let result = match order.how {
        How::Evict => client
            .create_under(
                &Resource::POD,
                Some(&order.pod.namespace),
                &order.pod.name,
                "eviction",
                &eviction(order),
            )
            .await
            .map(drop),
        How::Delete => client
            .delete_with(
                &Resource::POD,
                Some(&order.pod.namespace),
                &order.pod.name,
                &delete_options(order),
            )
            .await
            .map(drop),
    };
    match result {
        Ok(()) => Ok(Answer::Accepted),
        Err(error) => match error.code() {
            // 409: the name is another pod's by now.
            Some(404 | 409) => Ok(Answer::Gone),
            // 429: a budget. 500: two budgets cover the pod, or the server is in trouble; in both cases
            // the drain's deadline decides.
            Some(429 | 500) => Ok(Answer::NotNow {
                why: error.to_string(),
                again_after: None,
            }),
            _ => Err(failed("evict the pods", node)(error)),
        },
    }
}

fn eviction(order: &Order) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": order.pod.name, "namespace": order.pod.namespace},
        "deleteOptions": delete_options(order),
    })
}

fn delete_options(order: &Order) -> Value {
    let mut options = json!({"preconditions": {"uid": order.pod.uid}});
    if let Some(seconds) = order.grace_seconds {
        options["gracePeriodSeconds"] = seconds.into();
    }
    options
}

async fn pods_of(client: &Client, node: &NodeName) -> Result<Vec<Pod>, DrainError> {
    let selector = format!("spec.nodeName={node}");
    client
        .list_by_field(&Resource::POD, None, &selector)
        .await
        .map_err(failed("list the pods", node))
}

async fn budgets_of(client: &Client, node: &NodeName) -> Result<Vec<Budget>, DrainError> {
    client
        .list(&Resource::POD_DISRUPTION_BUDGET, None, None)
        .await
        .map_err(failed("list the budgets for the pods", node))
}

/// Whether something outside may send connections to nodes, `node` among them.
///
/// # Errors
/// [`DrainError::Api`].
pub async fn is_reached_from_outside(client: &Client, node: &NodeName) -> Result<bool, DrainError> {
    let services: Vec<Value> =
        client
            .list(&Resource::SERVICE, None, None)
            .await
            .map_err(failed(
                "list the Services that may be reached through it",
                node,
            ))?;
    let outside = |service: &Value| {
        let kind = service.pointer("/spec/type").and_then(Value::as_str);
        matches!(kind, Some("NodePort" | "LoadBalancer"))
    };
    Ok(services.iter().any(outside))
}

/// Sets or removes the taint of a node that goes; other taints stay as they are.
async fn set_leaving(client: &Client, node: &NodeName, leaves: bool) -> Result<(), DrainError> {
    change_taints(client, node, |node| leaving_patch(node, leaves)).await
}

/// Changes the taints of a node as `patch` says of what it is, if anything, again when others change it meanwhile.
///
/// # Errors
/// [`DrainError::Api`], also when there is no such node.
pub(super) async fn change_taints(
    client: &Client,
    node: &NodeName,
    patch: impl Fn(&Value) -> Option<Value>,
) -> Result<(), DrainError> {
    let mut attempt = 1;
    loop {
        let found: Value = client
            .get(&Resource::NODE, None, node.as_str())
            .await
            .map_err(failed("look at the Node", node))?;
        let Some(patch) = patch(&found) else {
            return Ok(());
        };
        match change(client, node, "set the taints", &patch).await {
            Err(DrainError::Api { source, .. })
                if source.is_conflict() && attempt < TAINT_ATTEMPTS =>
            {
                attempt += 1;
            }
            changed => return changed,
        }
    }
}

pub(super) fn leaving_patch(node: &Value, leaves: bool) -> Option<Value> {
    let mut taints = taints_of(node);
    let before = taints.len();
    let there = taints.iter().any(|taint| taint["key"] == LEAVING);
    if leaves && !there {
        taints.push(json!({"key": LEAVING, "effect": "NoSchedule"}));
    } else if !leaves {
        taints.retain(|taint| taint["key"] != LEAVING);
    }
    (taints.len() != before).then(|| taints_patch(node, &taints))
}

/// The taints of a node; one without any has no list of them.
pub(super) fn taints_of(node: &Value) -> Vec<Value> {
    let taints = node.pointer("/spec/taints").and_then(Value::as_array);
    taints.cloned().unwrap_or_else(Vec::new)
}

/// The list of taints is replaced as a whole, and only if nobody else has changed the node meanwhile.
pub(super) fn taints_patch(node: &Value, taints: &[Value]) -> Value {
    json!({
        "metadata": {"resourceVersion": node["metadata"]["resourceVersion"]},
        "spec": {"taints": taints},
    })
}

async fn look_at(client: &Client, node: &NodeName) -> Result<Node, DrainError> {
    client
        .get(&Resource::NODE, None, node.as_str())
        .await
        .map_err(failed("look at the Node", node))
}

async fn change(
    client: &Client,
    node: &NodeName,
    doing: &'static str,
    patch: &Value,
) -> Result<(), DrainError> {
    client
        .merge_patch(&Resource::NODE, None, node.as_str(), patch)
        .await
        .map(drop)
        .map_err(failed(doing, node))
}

pub(super) fn failed(doing: &'static str, node: &NodeName) -> impl FnOnce(ApiError) -> DrainError {
    let node = node.clone();
    move |source| DrainError::Api {
        doing,
        node,
        source,
    }
}
