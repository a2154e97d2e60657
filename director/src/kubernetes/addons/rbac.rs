//! Who may do what: the director, the API servers towards kubelets, and cluster administrators.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use windlass_common::gate::{GateCheck, GateSpec, PromqlServer};

use super::super::pki::{
    CLUSTER_ADMINS_GROUP, CLUSTER_VIEWERS_GROUP, DIRECTOR_USER, KUBELET_CALLER_USER, REWRITER_USER,
};
use super::SYSTEM_NAMESPACE;

const API_GROUP: &str = "rbac.authorization.k8s.io";

/// Name of the role that gates need, in each namespace that one names, and of its binding.
pub(crate) const GATES: &str = "windlass:gates";
/// Label of what there is for gates, so that what no gate needs any more is found.
pub(crate) const GATES_LABEL: &str = "windlass.internal/gates";

/// Roles and bindings.
pub(super) fn objects() -> Vec<Value> {
    vec![
        director_role(),
        cluster_binding(DIRECTOR_USER, DIRECTOR_USER, "User", DIRECTOR_USER),
        addons_role(),
        addons_binding(),
        rewriter_role(),
        cluster_binding(REWRITER_USER, REWRITER_USER, "User", REWRITER_USER),
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

/// What the director does in a running cluster: look at nodes, their leases and the volumes attached to them, label,
/// cordon, taint and delete nodes, and drain them with respect for budgets; before that, which webhooks there are and
/// which deprecated APIs were asked for. Nodes whose agents are connected evict their
/// own pods ([`crate::drain`]); the right to it stays here for those whose agents are lost or older, and that to delete
/// pods for machines that are off.
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
                "apiGroups": ["admissionregistration.k8s.io"],
                "resources": ["validatingwebhookconfigurations", "mutatingwebhookconfigurations"],
                "verbs": ["list"],
            },
            {"nonResourceURLs": ["/metrics"], "verbs": ["get"]},
            {
                "apiGroups": ["coordination.k8s.io"],
                "resources": ["leases"],
                "verbs": ["get", "list", "watch"],
            },
        ],
    })
}

/// What writing Secrets again takes: their names, and a patch that changes nothing.
fn rewriter_role() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": REWRITER_USER},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list", "patch"]}],
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

/// What the director may do for the gates of a cluster: ask the Services that they name, look at the CronJobs
/// that they name, and make, follow and remove Jobs beside those. Namespaces that are not there yet are made.
pub(super) fn gate_objects(gates: &[GateSpec]) -> Vec<Value> {
    let mut services: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut cron_jobs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for gate in gates {
        match &gate.check {
            GateCheck::Http(_) => {}
            GateCheck::Promql(promql) => {
                if let PromqlServer::Service(service) = &promql.server {
                    let named = services.entry(&service.namespace).or_default();
                    named.insert(service.proxied());
                }
            }
            GateCheck::Job(job) => {
                let named = cron_jobs.entry(&job.namespace).or_default();
                named.insert(&job.cron_job);
            }
        }
    }
    let namespaces: BTreeSet<&str> = services.keys().chain(cron_jobs.keys()).copied().collect();
    let of_namespace = |namespace: &&str| {
        let mut rules = Vec::new();
        if let Some(names) = services.get(namespace) {
            rules.push(json!({
                "apiGroups": [""],
                "resources": ["services/proxy"],
                "resourceNames": names,
                "verbs": ["get"],
            }));
        }
        if let Some(names) = cron_jobs.get(namespace) {
            rules.push(json!({
                "apiGroups": ["batch"],
                "resources": ["cronjobs"],
                "resourceNames": names,
                "verbs": ["get"],
            }));
            // A Job has no name before it is made, so that roles cannot name it.
            rules.push(json!({
                "apiGroups": ["batch"],
                "resources": ["jobs"],
                "verbs": ["get", "create", "delete"],
            }));
            rules.push(json!({"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]}));
        }
        let metadata = json!({"name": GATES, "namespace": namespace, "labels": {GATES_LABEL: ""}});
        [
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "metadata": metadata,
                "rules": rules,
            }),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": metadata,
                "roleRef": {"apiGroup": API_GROUP, "kind": "Role", "name": GATES},
                "subjects": [{"apiGroup": API_GROUP, "kind": "User", "name": DIRECTOR_USER}],
            }),
        ]
    };
    namespaces.iter().flat_map(of_namespace).collect()
}
