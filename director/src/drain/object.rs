//! Pods and PodDisruptionBudgets, as far as a drain reads them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::PodRef;

/// The part of a Pod that a drain decides on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "PodObject")]
pub struct Pod {
    /// Which.
    pub id: PodRef,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What makes it again.
    pub controller: Option<Controller>,
    /// Whether it is the image of a static pod, which only its kubelet can end.
    pub is_static: bool,
    /// How far it is.
    pub phase: PodPhase,
    /// Whether it was told to end.
    pub terminating: bool,
    /// What has to happen before it is gone, besides its end.
    pub finalizers: Vec<String>,
    /// How long it may take to end, seconds.
    pub grace_seconds: u64,
    /// Whether it has an `emptyDir` volume on disk or in memory.
    pub empty_dir: bool,
    /// Whether it has a claim on a persistent volume.
    pub persistent: bool,
    /// Its priority.
    pub priority: i32,
    /// Whether its `Ready` condition is true.
    pub ready: bool,
    /// The node it runs on.
    pub node: Option<String>,
}

/// The owner that controls a pod.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Controller {
    /// For example `ReplicaSet`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// How far a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum PodPhase {
    /// Not all of its containers were started.
    #[default]
    Pending,
    /// It runs.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, one of them badly.
    Failed,
    /// Its kubelet does not say.
    #[serde(other)]
    Unknown,
}

impl Pod {
    /// Whether all of its containers are over for good.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, PodPhase::Succeeded | PodPhase::Failed)
    }
}

#[derive(Deserialize)]
struct PodObject {
    metadata: PodMetadata,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodMetadata {
    namespace: String,
    name: String,
    uid: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    owner_references: Vec<Owner>,
    #[serde(default)]
    finalizers: Vec<String>,
    deletion_timestamp: Option<String>,
}

#[derive(Deserialize)]
struct Owner {
    kind: String,
    name: String,
    #[serde(default)]
    controller: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    termination_grace_period_seconds: Option<u64>,
    #[serde(default)]
    priority: i32,
    #[serde(default)]
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    empty_dir: Option<serde::de::IgnoredAny>,
    persistent_volume_claim: Option<serde::de::IgnoredAny>,
    ephemeral: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize, Default)]
struct PodStatus {
    #[serde(default)]
    phase: PodPhase,
    #[serde(default)]
    conditions: Vec<PodCondition>,
}

#[derive(Deserialize)]
struct PodCondition {
    r#type: String,
    status: String,
}

/// Kubernetes' own default of `terminationGracePeriodSeconds`.
const GRACE_SECONDS: u64 = 30;
/// The annotation that a kubelet puts on the API's image of a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";

impl From<PodObject> for Pod {
    fn from(object: PodObject) -> Self {
        let PodObject {
            metadata,
            spec,
            status,
        } = object;
        let controller = metadata.owner_references.into_iter().find(|o| o.controller);
        let volumes = &spec.volumes;
        Self {
            id: PodRef {
                namespace: metadata.namespace,
                name: metadata.name,
                uid: metadata.uid,
            },
            labels: metadata.labels,
            controller: controller.map(|owner| Controller {
                kind: owner.kind,
                name: owner.name,
            }),
            is_static: metadata.annotations.contains_key(MIRROR),
            phase: status.phase,
            terminating: metadata.deletion_timestamp.is_some(),
            finalizers: metadata.finalizers,
            grace_seconds: spec
                .termination_grace_period_seconds
                .unwrap_or(GRACE_SECONDS),
            empty_dir: volumes.iter().any(|v| v.empty_dir.is_some()),
            persistent: volumes
                .iter()
                .any(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some()),
            priority: spec.priority,
            ready: status
                .conditions
                .iter()
                .any(|c| c.r#type == "Ready" && c.status == "True"),
            node: spec.node_name,
        }
    }
}

/// The part of a PodDisruptionBudget (`policy/v1`) that a rehearsal reads.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "BudgetObject")]
pub struct Budget {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Which pods it covers.
    selector: Option<Selector>,
    /// Pods that have to be healthy, as its controller counts.
    pub desired_healthy: u32,
    /// Pods that are healthy, as its controller counts.
    pub current_healthy: u32,
    /// Pods it covers, as its controller counts.
    pub expected_pods: u32,
    /// Whether pods that are not Ready may leave whatever the budget says.
    pub unhealthy_may_leave: bool,
}

impl Budget {
    /// Whether it covers this pod.
    pub fn covers(&self, pod: &Pod) -> bool {
        // A budget without a selector covers none, one with an empty selector all of its namespace.
        pod.id.namespace == self.namespace
            && self
                .selector
                .as_ref()
                .is_some_and(|selector| selector.matches(&pod.labels))
    }

    /// Evictions that are allowed now.
    pub fn allowed(&self) -> u32 {
        self.current_healthy.saturating_sub(self.desired_healthy)
    }

    /// `namespace/name`.
    pub fn title(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

#[derive(Deserialize)]
struct BudgetObject {
    metadata: BudgetMetadata,
    #[serde(default)]
    spec: BudgetSpec,
    #[serde(default)]
    status: BudgetStatus,
}

#[derive(Deserialize)]
struct BudgetMetadata {
    namespace: String,
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct BudgetSpec {
    selector: Option<Selector>,
    unhealthy_pod_eviction_policy: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct BudgetStatus {
    #[serde(default)]
    desired_healthy: u32,
    #[serde(default)]
    current_healthy: u32,
    #[serde(default)]
    expected_pods: u32,
}

/// A label selector.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selector {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
    #[serde(default)]
    match_expressions: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Requirement {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let equal = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.match_labels.iter().all(equal)
            && self.match_expressions.iter().all(|r| r.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl From<BudgetObject> for Budget {
    fn from(object: BudgetObject) -> Self {
        let BudgetObject {
            metadata,
            spec,
            status,
        } = object;
        Self {
            namespace: metadata.namespace,
            name: metadata.name,
            selector: spec.selector,
            desired_healthy: status.desired_healthy,
            current_healthy: status.current_healthy,
            expected_pods: status.expected_pods,
            unhealthy_may_leave: spec.unhealthy_pod_eviction_policy.as_deref()
                == Some("AlwaysAllow"),
        }
    }
}
