//! Kinds of objects the director handles, their paths, and the few it reads as typed values.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::ApiError;

/// One kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource {
    /// Group and version as in `apiVersion`, for example `apps/v1`.
    pub api_version: &'static str,
    /// Kind, for example `Deployment`.
    pub kind: &'static str,
    /// Name in paths, for example `deployments`.
    pub plural: &'static str,
    /// Whether it lives in a namespace.
    pub namespaced: bool,
}

const fn cluster_wide(
    api_version: &'static str,
    kind: &'static str,
    plural: &'static str,
) -> Resource {
    Resource {
        api_version,
        kind,
        plural,
        namespaced: false,
    }
}

const fn namespaced(
    api_version: &'static str,
    kind: &'static str,
    plural: &'static str,
) -> Resource {
    Resource {
        api_version,
        kind,
        plural,
        namespaced: true,
    }
}

const RBAC: &str = "rbac.authorization.k8s.io/v1";
const ADMISSION: &str = "admissionregistration.k8s.io/v1";

impl Resource {
    /// Nodes.
    pub const NODE: Resource = cluster_wide("v1", "Node", "nodes");
    /// Namespaces.
    pub const NAMESPACE: Resource = cluster_wide("v1", "Namespace", "namespaces");
    /// Pods.
    pub const POD: Resource = namespaced("v1", "Pod", "pods");
    /// Services.
    pub const SERVICE: Resource = namespaced("v1", "Service", "services");
    /// ConfigMaps.
    pub const CONFIG_MAP: Resource = namespaced("v1", "ConfigMap", "configmaps");
    /// Secrets.
    pub const SECRET: Resource = namespaced("v1", "Secret", "secrets");
    /// Service accounts.
    pub const SERVICE_ACCOUNT: Resource = namespaced("v1", "ServiceAccount", "serviceaccounts");
    /// Deployments.
    pub const DEPLOYMENT: Resource = namespaced("apps/v1", "Deployment", "deployments");
    /// Jobs.
    pub const JOB: Resource = namespaced("batch/v1", "Job", "jobs");
    /// CronJobs.
    pub const CRON_JOB: Resource = namespaced("batch/v1", "CronJob", "cronjobs");
    /// Leases; a node's is in `kube-node-lease` under its name.
    pub const LEASE: Resource = namespaced("coordination.k8s.io/v1", "Lease", "leases");
    /// PodDisruptionBudgets.
    pub const POD_DISRUPTION_BUDGET: Resource =
        namespaced("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets");
    /// Volumes that are attached to nodes.
    pub const VOLUME_ATTACHMENT: Resource =
        cluster_wide("storage.k8s.io/v1", "VolumeAttachment", "volumeattachments");
    /// Roles.
    pub const ROLE: Resource = namespaced(RBAC, "Role", "roles");
    /// Role bindings.
    pub const ROLE_BINDING: Resource = namespaced(RBAC, "RoleBinding", "rolebindings");
    /// Cluster roles.
    pub const CLUSTER_ROLE: Resource = cluster_wide(RBAC, "ClusterRole", "clusterroles");
    /// Cluster role bindings.
    pub const CLUSTER_ROLE_BINDING: Resource =
        cluster_wide(RBAC, "ClusterRoleBinding", "clusterrolebindings");
    /// Admission policies that API servers evaluate themselves.
    pub const ADMISSION_POLICY: Resource = cluster_wide(
        ADMISSION,
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
    );
    /// Where such policies hold.
    pub const ADMISSION_POLICY_BINDING: Resource = cluster_wide(
        ADMISSION,
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
    );
    /// Webhooks that may refuse what is written.
    pub const VALIDATING_WEBHOOKS: Resource = cluster_wide(
        ADMISSION,
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
    );
    /// Webhooks that may change or refuse what is written.
    pub const MUTATING_WEBHOOKS: Resource = cluster_wide(
        ADMISSION,
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
    );
    /// What the caller itself may do.
    pub const SELF_SUBJECT_ACCESS_REVIEW: Resource = cluster_wide(
        "authorization.k8s.io/v1",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
    );

    const ALL: [&'static Resource; 22] = [
        &Self::NODE,
        &Self::NAMESPACE,
        &Self::POD,
        &Self::SERVICE,
        &Self::CONFIG_MAP,
        &Self::SECRET,
        &Self::SERVICE_ACCOUNT,
        &Self::DEPLOYMENT,
        &Self::JOB,
        &Self::CRON_JOB,
        &Self::LEASE,
        &Self::POD_DISRUPTION_BUDGET,
        &Self::VOLUME_ATTACHMENT,
        &Self::ROLE,
        &Self::ROLE_BINDING,
        &Self::CLUSTER_ROLE,
        &Self::CLUSTER_ROLE_BINDING,
        &Self::ADMISSION_POLICY,
        &Self::ADMISSION_POLICY_BINDING,
        &Self::VALIDATING_WEBHOOKS,
        &Self::MUTATING_WEBHOOKS,
        &Self::SELF_SUBJECT_ACCESS_REVIEW,
    ];

    /// Path of one object, or of all when `name` is `None`. Namespaced kinds without a namespace are
    /// those of all namespaces.
    pub fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let root = if self.api_version.contains('/') {
            "/apis"
        } else {
            "/api"
        };
        let mut path = format!("{root}/{}", self.api_version);
        if self.namespaced
            && let Some(namespace) = namespace
        {
            path.push_str("/namespaces/");
            path.push_str(&encode(namespace));
        }
        path.push('/');
        path.push_str(self.plural);
        if let Some(name) = name {
            path.push('/');
            path.push_str(&encode(name));
        }
        path
    }
}

/// Path of an object that carries its kind and name.
pub(super) fn path_of(object: &Value) -> Result<String, ApiError> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let missing = |what: &str| ApiError::Object {
        what: format!("it has no {what}"),
    };
    let api_version = text("/apiVersion").ok_or_else(|| missing("apiVersion"))?;
    let kind = text("/kind").ok_or_else(|| missing("kind"))?;
    let name = text("/metadata/name").ok_or_else(|| missing("metadata.name"))?;
    let namespace = text("/metadata/namespace");
    let resource = Resource::ALL
        .into_iter()
        .find(|r| r.api_version == api_version && r.kind == kind)
        .ok_or_else(|| ApiError::Object {
            what: format!("{kind} of {api_version} is not a known kind"),
        })?;
    if resource.namespaced && namespace.is_none() {
        return Err(missing("metadata.namespace"));
    }
    Ok(resource.path(namespace, Some(name)))
}

/// Percent-encodes a path segment or query value (RFC 3986, section 2.3). `:` stays: it is part of the
/// names of roles and legal in a segment that is not the first.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// The part of a Node that the director decides on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "NodeObject")]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Cordoned.
    pub unschedulable: bool,
    /// Addresses of its pods.
    pub pod_cidr: Option<String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Its conditions.
    pub conditions: Vec<NodeCondition>,
    /// Version of its kubelet, for example `v1.37.2`.
    pub kubelet_version: String,
}

/// A taint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Effect.
    pub effect: String,
}

/// A condition, for example `Ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCondition {
    /// Which.
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Why, for people.
    #[serde(default)]
    pub message: String,
    /// When its kubelet said so last, by the machine's clock (RFC 3339). A kubelet says it when it starts, when
    /// something changes, and every `nodeStatusReportFrequency`.
    #[serde(default, rename = "lastHeartbeatTime")]
    pub last_heartbeat: Option<String>,
}

impl Node {
    /// Its `Ready` condition.
    pub fn ready(&self) -> Option<&NodeCondition> {
        self.conditions.iter().find(|c| c.r#type == "Ready")
    }

    /// When its kubelet last said whether it is Ready, as it wrote it.
    pub fn heartbeat(&self) -> Option<&str> {
        self.ready()?.last_heartbeat.as_deref()
    }

    /// Whether its `Ready` condition is true.
    pub fn is_ready(&self) -> bool {
        self.ready().is_some_and(|ready| ready.status == "True")
    }
}

#[derive(Deserialize)]
struct NodeObject {
    metadata: Metadata,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
struct NodeSpec {
    #[serde(default)]
    unschedulable: bool,
    #[serde(default, rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(default)]
    taints: Vec<Taint>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct NodeStatus {
    #[serde(default)]
    conditions: Vec<NodeCondition>,
    #[serde(default)]
    node_info: NodeInfo,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct NodeInfo {
    #[serde(default)]
    kubelet_version: String,
}

impl From<NodeObject> for Node {
    fn from(object: NodeObject) -> Self {
        Self {
            name: object.metadata.name,
            labels: object.metadata.labels,
            annotations: object.metadata.annotations,
            unschedulable: object.spec.unschedulable,
            pod_cidr: object.spec.pod_cidr,
            taints: object.spec.taints,
            conditions: object.status.conditions,
            kubelet_version: object.status.node_info.kubelet_version,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_cannot_be_escaped_from() {
        assert_eq!(
            Resource::NODE.path(None, Some("a/../b?x")),
            "/api/v1/nodes/a%2F..%2Fb%3Fx"
        );
        assert_eq!(
            Resource::CLUSTER_ROLE.path(None, Some("windlass:director")),
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/windlass:director"
        );
        assert_eq!(
            Resource::POD.path(Some("kube-system"), None),
            "/api/v1/namespaces/kube-system/pods"
        );
    }

    #[test]
    fn an_object_knows_its_path_or_says_what_is_missing() {
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"}});
        assert_eq!(
            path_of(&service).unwrap(),
            "/api/v1/namespaces/kube-system/services/kube-dns"
        );
        for (object, what) in [
            (
                json!({"kind": "Service", "metadata": {"name": "a"}}),
                "apiVersion",
            ),
            (
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {}}),
                "metadata.name",
            ),
            (
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}}),
                "metadata.namespace",
            ),
            (
                json!({"apiVersion": "v9", "kind": "X", "metadata": {"name": "a"}}),
                "known kind",
            ),
        ] {
            let error = path_of(&object).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn a_node_is_ready_by_its_condition_only() {
        let node = |status: &str| -> Node {
            serde_json::from_value(json!({
                "metadata": {"name": "n"},
                "status": {"conditions": [
                    {"type": "MemoryPressure", "status": "True"},
                    {"type": "Ready", "status": status},
                ]},
            }))
            .unwrap()
        };
        assert!(node("True").is_ready());
        assert!(!node("False").is_ready());
        assert!(!node("Unknown").is_ready());
    }
}
