//! Objects that make a set of machines a usable cluster: rights, DNS, what Nodes are told, and who is no node
//! any more.
//!
//! # Invariants
//! * Everything here is applied with server-side apply and can be applied again at any time.
//! * [`bootstrap_objects`] needs rights that the director does not keep; it is applied with
//!   [`super::pki::bootstrap_identity`]. What the director itself maintains is
//!   [`maintained_objects`], and `rbac`'s rules allow exactly that.
//! * Nothing here waits for `/readyz`: the bootstrap identity is in `system:masters`, which needs no
//!   role, so the objects can be applied as soon as an API server takes connections.
//! * Nothing is pulled from a registry: images are part of the stemcell.
//!
//! # Not here
//! Applying them: the rollout, with [`super::client`].

mod admission;
mod aggregation;
mod dns;
mod nodes;
mod rbac;

use serde_json::{Value, json};

use super::facts::ClusterFacts;

pub use self::admission::{GONE_NODES, admission_objects, anew_patch, gone_patch};
pub use self::dns::rolled_out;
pub use self::nodes::{POOL_LABEL, node_patch};
pub(crate) use self::rbac::{GATES, GATES_LABEL};

/// Namespace of cluster services.
pub const SYSTEM_NAMESPACE: &str = "kube-system";

/// All objects of a new cluster, in the order in which they are applied.
pub fn bootstrap_objects(cluster: &ClusterFacts) -> Vec<Value> {
    // The API server makes this namespace itself, shortly after it is ready; applying it first means
    // never to wait for that.
    let mut objects = vec![json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": SYSTEM_NAMESPACE},
    })];
    objects.extend(rbac::objects());
    objects.extend(admission_objects());
    objects.extend(aggregation::objects());
    objects.extend(dns::rights());
    objects.extend(dns::objects(cluster));
    objects.extend(rbac::gate_objects(&cluster.spec.gates));
    objects
}

/// The objects that the director changes later on by itself, for example the number of DNS replicas.
pub fn maintained_objects(cluster: &ClusterFacts) -> Vec<Value> {
    dns::objects(cluster)
}

#[cfg(test)]
mod tests;
