//! Who may do what: the director, the API servers towards kubelets, and cluster administrators.

use serde_json::{Value, json};

use super::super::pki::{
    CLUSTER_ADMINS_GROUP, CLUSTER_VIEWERS_GROUP, DIRECTOR_USER, KUBELET_CALLER_USER,
};
use super::SYSTEM_NAMESPACE;

const API_GROUP: &str = "rbac.authorization.k8s.io";

/// Roles and bindings.
pub(super) fn objects() -> Vec<Value> {
    vec![
        director_role(),
        cluster_binding(DIRECTOR_USER, DIRECTOR_USER, "User", DIRECTOR_USER),
        addons_role(),
        addons_binding(),
        cluster_binding(
            KUBELET_CALLER_USER,
            "system:kubelet-api-admin",
            "User",
            KUBELET_CALLER_USER,
        ),
        cluster_binding(
            CLUSTER_ADMINS_GROUP,
            "cluster-admin",
            "Group",
            CLUSTER_ADMINS_GROUP,
        ),
        viewer_role(),
        cluster_binding(
            CLUSTER_VIEWERS_GROUP,
            CLUSTER_VIEWERS_GROUP,
            "Group",
            CLUSTER_VIEWERS_GROUP,
        ),
        cluster_binding(
            "windlass:cluster-viewers:view",
            "view",
            "Group",
            CLUSTER_VIEWERS_GROUP,
        ),
    ]
}

/// What Kubernetes' own role `view` leaves out, because it is no namespace's, and holds no secret.
fn viewer_role() -> Value {
    let look = |group: &str, resources: &[&str]| {
        json!({
            "apiGroups": [group],
            "resources": resources,
            "verbs": ["get", "list", "watch"],
        })
    };
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": CLUSTER_VIEWERS_GROUP},
        "rules": [
            look("", &["nodes", "namespaces", "persistentvolumes"]),
            look("storage.k8s.io", &["storageclasses"]),
            look("metrics.k8s.io", &["nodes", "pods"]),
        ],
    })
}

/// What the director does in a running cluster: look at nodes and their leases, label, cordon and
/// delete nodes, and drain them with respect for budgets.
fn director_role() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": DIRECTOR_USER},
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["nodes"],
                "verbs": ["get", "list", "watch", "patch", "delete"],
            },
            {
                "apiGroups": [""],
                "resources": ["pods"],
                "verbs": ["get", "list", "watch", "delete"],
            },
            {"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]},
            {"apiGroups": [""], "resources": ["services"], "verbs": ["get", "list", "watch"]},
            {
                "apiGroups": ["policy"],
                "resources": ["poddisruptionbudgets"],
                "verbs": ["get", "list", "watch"],
            },
            {
                "apiGroups": ["storage.k8s.io"],
                "resources": ["volumeattachments"],
                "verbs": ["get", "list", "watch"],
            },
            {
                "apiGroups": ["apps"],
                "resources": ["daemonsets"],
                "verbs": ["get", "list", "watch"],
            },
            {
                "apiGroups": ["coordination.k8s.io"],
                "resources": ["leases"],
                "verbs": ["get", "list", "watch"],
            },
        ],
    })
}

/// The cluster services the director keeps as they should be: these objects by name, and no right to
/// make new ones.
fn addons_role() -> Value {
    let named = |group: &str, resource: &str, name: &str| {
        json!({
            "apiGroups": [group],
            "resources": [resource],
            "resourceNames": [name],
            "verbs": ["get", "patch"],
        })
    };
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "windlass:addons", "namespace": SYSTEM_NAMESPACE},
        "rules": [
            named("apps", "deployments", "coredns"),
            named("", "configmaps", "coredns"),
            named("", "serviceaccounts", "coredns"),
            named("", "services", "kube-dns"),
        ],
    })
}

fn addons_binding() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "windlass:addons", "namespace": SYSTEM_NAMESPACE},
        "roleRef": {"apiGroup": API_GROUP, "kind": "Role", "name": "windlass:addons"},
        "subjects": [{"apiGroup": API_GROUP, "kind": "User", "name": DIRECTOR_USER}],
    })
}

fn cluster_binding(name: &str, role: &str, kind: &str, subject: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": API_GROUP, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": API_GROUP, "kind": kind, "name": subject}],
    })
}
