//! Node identities whose incarnation is gone are refused when they write.
//!
//! A kubelet's certificate cannot be revoked at an API server. Its user is the name of its node, which carries
//! the incarnation: so a list of the newest incarnation that is gone, one entry a machine, and a policy that
//! compares, refuse a machine that comes back after it was replaced. The list is written before a Node is
//! deleted, so that no zombie can make it again.
//!
//! # Invariants
//! * The list has one entry a machine name, so that it is bounded by the names a cluster ever used.
//! * The policy looks at node identities only. A list that is missing bars nobody: without it a cluster works on.
//! * Applying these objects leaves the entries as they are: they are not part of what is applied.
//!
//! # Not here
//! Reading: admission does not see it. What a node may read follows its pods, and those are gone with its Node.

use serde_json::{Value, json};
use windlass_common::id::MachineName;

use super::super::pki::DIRECTOR_USER;
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
    let machine = "variables.node.substring(0, variables.at)";
    let incarnation = "variables.node.substring(variables.at + 2)";
    let current = format!(
        "variables.at < 0 || !has(params.data) || !({machine} in params.data) \
         || int({incarnation}) > int(params.data[{machine}])"
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
                "name": "a-node",
                "expression": "request.userInfo.username.startsWith('system:node:')",
            }],
            "variables": [
                {"name": "node", "expression": "request.userInfo.username.substring(12)"},
                {"name": "at", "expression": "variables.node.lastIndexOf('-i')"},
            ],
            "validations": [{
                "expression": current,
                "messageExpression":
                    "variables.node + ' was replaced: its machine has to be switched off'",
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
