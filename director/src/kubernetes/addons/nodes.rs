//! What the director says about a node: role, pool, zone and pod network.
//!
//! The director sets labels, not the kubelet: labels decide where pods go, and a machine must not
//! choose its own.

use serde_json::{Map, Value, json};

use super::super::facts::{ClusterFacts, MachineFacts, Role};
use super::super::render::CONTROL_PLANE_TAINT;

/// Label with the name of a worker's pool.
pub const POOL_LABEL: &str = "windlass.internal/pool";
/// Label with the name of the machine, the same through all its incarnations.
const MACHINE_LABEL: &str = "windlass.internal/machine";
/// Label with the zone of a machine, where its provider has some; Kubernetes' own
/// (<https://kubernetes.io/docs/reference/labels-annotations-taints/#topologykubernetesiozone>).
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Merge patch of the Node of `machine`.
pub fn node_patch(cluster: &ClusterFacts, machine: &MachineFacts) -> Value {
    let mut labels = Map::new();
    match &machine.role {
        Role::ControlPlane => {
            labels.insert(CONTROL_PLANE_TAINT.to_owned(), json!(""));
        }
        Role::Worker { pool } => {
            let own = cluster.spec.pools.get(pool).map(|pool| &pool.labels);
            labels.extend(
                own.into_iter()
                    .flatten()
                    .map(|(k, v)| (k.clone(), json!(v))),
            );
            labels.insert(POOL_LABEL.to_owned(), json!(pool));
        }
    }
    labels.insert(MACHINE_LABEL.to_owned(), json!(machine.name));
    if let Some(zone) = &machine.zone {
        labels.insert(ZONE_LABEL.to_owned(), json!(zone));
    }
    let cidr = machine.pod_cidr;
    json!({"metadata": {"labels": labels}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}})
}
