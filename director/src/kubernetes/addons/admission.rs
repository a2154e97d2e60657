//! Identities of machines whose incarnation is gone are refused when they write.
//!
//! A certificate cannot be revoked at an API server. A kubelet's user is the name of its node, which carries the
//! incarnation; the other clients on a machine (kube-proxy, controller manager, scheduler, and the API server as the
//! caller of kubelets) have users that are the same on every machine, and its node's name in a group
//! ([`MACHINE_GROUP_PREFIX`]). So a list of the newest incarnation that is gone, one entry a machine, and a policy that
//! compares, refuse a machine that comes back after it was replaced. The list is written before a Node is deleted, so
//! that no zombie can make it again. To lead is to write a Lease, and to act as a controller is to ask for the token of
//! its service account, which is a write as well: an old controller manager or scheduler does neither.
//!
//! # Invariants
//! * The list has one entry a machine name, so that it is bounded by the names a cluster ever used.
//! * The policy looks at identities of machines only. A list that is missing bars nobody: without it a cluster works on.
//! * Applying these objects leaves the entries as they are: they are not part of what is applied.
//!
//! # Not here
//! * Reading: admission does not see it. What a node may read follows its pods, and those are gone with its Node. Clients of
//!   control-plane machines, and what calls kubelets, are denied by their certificates (`super::super::pki::Revocations`).
//! * Service accounts. Every controller manager has the one key that signs their tokens, and tokens name no machine: a
//!   token that was given out counts until it expires (an hour for those of controllers), and whoever copied the key
//!   signs more. It is nowhere but on machines of the control plane and in the director.
//! * Certificates that were issued before they named their machine, until they are renewed: their user is that of every
//!   machine.
//!
//! For the last two the remedy is to replace authorities and key, `windlass cluster rotate-ca NAME`, when a machine or its
//! disk came into other hands. One that is merely started again is told to stop, and cannot write.

use serde_json::{Value, json};
use windlass_common::id::MachineName;

use super::super::pki::{DIRECTOR_USER, MACHINE_GROUP_PREFIX};
use super::SYSTEM_NAMESPACE;

/// The ConfigMap with the list: machine and newest incarnation of it that is gone.
pub const GONE_NODES: &str = "windlass-gone-nodes";
/// The policy, its binding, and the role for the list.
const NAME: &str = "windlass:gone-nodes";
/// The policy's own name: policies are not named with colons.
const POLICY: &str = "gone-nodes.windlass.internal";

/// The policy, its list without entries, and the director's right to change that.
pub fn admission_objects() -> Vec<Value> {
    let api = "admissionregistration.k8s.io/v1";
    vec![
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": GONE_NODES, "namespace": SYSTEM_NAMESPACE},
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": NAME, "namespace": SYSTEM_NAMESPACE},
            "rules": [{
                "apiGroups": [""],
                "resources": ["configmaps"],
                "resourceNames": [GONE_NODES],
                "verbs": ["get", "patch"],
            }],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": NAME, "namespace": SYSTEM_NAMESPACE},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": NAME},
            "subjects": [
                {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": DIRECTOR_USER},
            ],
        }),
        policy(api),
        json!({
            "apiVersion": api,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": POLICY},
            "spec": {
                "policyName": POLICY,
                "paramRef": {
                    "name": GONE_NODES,
                    "namespace": SYSTEM_NAMESPACE,
                    "parameterNotFoundAction": "Allow",
                },
                "validationActions": ["Deny"],
            },
        }),
    ]
}

fn policy(api: &str) -> Value {
    let (user, group) = ("system:node:", MACHINE_GROUP_PREFIX);
    let is_kubelet = format!("request.userInfo.username.startsWith('{user}')");
    let kubelet = format!("request.userInfo.username.substring({})", user.len());
    let groups = "(has(request.userInfo.groups) ? request.userInfo.groups : [])";
    let is_group = format!("group.startsWith('{group}')");
    let in_group = format!("group.substring({})", group.len());
    let machine = "node.substring(0, node.lastIndexOf('-i'))";
    let incarnation = "node.substring(node.lastIndexOf('-i') + 2)";
    let is_gone = format!(
        "node.lastIndexOf('-i') >= 0 && {machine} in params.data \
         && int({incarnation}) <= int(params.data[{machine}])"
    );
    json!({
        "apiVersion": api,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": POLICY},
        "spec": {
            "failurePolicy": "Fail",
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConstraints": {"resourceRules": [{
                "apiGroups": ["*"],
                "apiVersions": ["*"],
                "operations": ["CREATE", "UPDATE", "DELETE", "CONNECT"],
                "resources": ["*/*"],
            }]},
            "matchConditions": [{
                "name": "a-machine",
                "expression": format!("{is_kubelet} || {groups}.exists(group, {is_group})"),
            }],
            "variables": [
                {
                    "name": "nodes",
                    "expression": format!(
                        "({is_kubelet} ? [{kubelet}] : []) \
                         + {groups}.filter(group, {is_group}).map(group, {in_group})"
                    ),
                },
                {
                    "name": "gone",
                    "expression": format!(
                        "has(params.data) ? variables.nodes.filter(node, {is_gone}) : []"
                    ),
                },
            ],
            "validations": [{
                "expression": "size(variables.gone) == 0",
                "messageExpression":
                    "variables.gone[0] + ' was replaced: its machine has to be switched off'",
                "reason": "Forbidden",
            }],
        },
    })
}

/// Merge patch of the list: this incarnation of the machine, and those before it, are gone.
pub fn gone_patch(machine: &MachineName, incarnation: u32) -> Value {
    json!({"data": {machine.as_str(): incarnation.to_string()}})
}

/// Merge patch of the list: the machine's name is given anew, beginning with its first incarnation.
pub fn anew_patch(machine: &MachineName) -> Value {
    json!({"data": {machine.as_str(): null}})
}
