//! Reading the Lease of one node: a short look through machines that are known to answer.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, select_ok};
use serde::Deserialize;
use windlass_common::error::ErrorClass;
use windlass_common::id::{Incarnation, MachineName, NodeName};

use super::World;
use super::context::ClusterContext;
use super::kube::{KubeClient, Tunnels};
use crate::kubernetes::client::{ApiError, Client, Resource};
use crate::kubernetes::pki::{AuthorityName, director_identity};
use crate::model::Machine;
use crate::rollout::EffectError;

/// Namespace of the Leases that kubelets renew.
const NAMESPACE: &str = "kube-node-lease";
/// How long one read may take: a healthy API server answers in tens of milliseconds.
const READ_DEADLINE: Duration = Duration::from_secs(2);
/// Control-plane machines that are asked at once.
const READERS_MAX: usize = 3;

/// What changes whenever a kubelet renews its Lease. Never read as a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseMark {
    /// Another one after the Lease was deleted and made again.
    pub uid: String,
    /// What the kubelet wrote, as it is.
    pub renewed: String,
}

#[derive(Debug, Deserialize)]
struct Lease {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    uid: String,
}

#[derive(Debug, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    holder_identity: Option<String>,
    #[serde(default)]
    renew_time: Option<String>,
}

impl Lease {
    /// Its mark, if `node` itself holds it and has renewed it.
    fn mark(self, node: &NodeName) -> Option<LeaseMark> {
        let held = self.spec.holder_identity.as_deref() == Some(node.as_str());
        let renewed = self.spec.renew_time.filter(|_| held)?;
        Some(LeaseMark {
            uid: self.metadata.uid,
            renewed,
        })
    }
}

impl World {
    /// The Lease of a machine's node as it is, read through control-plane machines of its cluster that
    /// are among `live`; `None` if the node holds none.
    pub async fn lease(
        &self,
        machine: &Machine,
        live: &[(MachineName, Incarnation)],
    ) -> Result<Option<LeaseMark>, EffectError> {
        let context = self.context(&machine.cluster).await?;
        let through: Vec<_> = context
            .machines
            .iter()
            .filter(|member| member.role.is_control_plane())
            .map(|member| (member.name.clone(), member.incarnation))
            .filter(|member| live.contains(member))
            .take(READERS_MAX)
            .collect();
        self.kubernetes
            .lease(&context, &machine.node_name, &through)
            .await
    }
}

/// See [`super::KubeApi::lease`].
pub(super) async fn read(
    kube: &KubeClient,
    context: &ClusterContext,
    node: &NodeName,
    through: &[(MachineName, Incarnation)],
) -> Result<Option<LeaseMark>, EffectError> {
    if through.is_empty() {
        let why = "no control-plane machine of the cluster is heard of";
        return Err(EffectError::new(ErrorClass::Retry, why.to_owned()));
    }
    let now = jiff::Timestamp::now();
    let identity = director_identity(&context.pki, &context.cluster.spec.name, now)
        .map_err(|error| EffectError::of(error.class(), &error))?;
    let mut reads: Vec<BoxFuture<'_, Result<Option<LeaseMark>, ApiError>>> = Vec::new();
    for member in through {
        let tunnels = Tunnels {
            agents: kube.agents.clone(),
            machines: vec![member.clone()],
            turn: AtomicUsize::new(0),
        };
        let authority = &context.pki.trusted(AuthorityName::Kubernetes);
        // A client of its own, so that no connection is waited for that has died with a machine.
        let client = Client::new(
            Arc::new(tunnels),
            &context.facts.endpoint,
            authority,
            &identity,
        )
        .map_err(|error| EffectError::of(error.class(), &error))?
        .with_deadline(READ_DEADLINE);
        reads.push(get(client, node).boxed());
    }
    match select_ok(reads).await {
        Ok((mark, _)) => Ok(mark),
        Err(error) => Err(EffectError::of(error.class(), &error)),
    }
}

async fn get(client: Client, node: &NodeName) -> Result<Option<LeaseMark>, ApiError> {
    let lease = client.get::<Lease>(&Resource::LEASE, Some(NAMESPACE), node.as_str());
    match lease.await {
        Ok(lease) => Ok(lease.mark(node)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_if_its_own_node_holds_it() {
        let node = NodeName::new("demo-w-0-1").unwrap();
        let mark =
            |lease: serde_json::Value| serde_json::from_value::<Lease>(lease).unwrap().mark(&node);
        let renewed = "2030-01-31T12:00:00.000000Z";
        let held = serde_json::json!({
            "metadata": {"uid": "u1", "name": "demo-w-0-1"},
            "spec": {"holderIdentity": "demo-w-0-1", "renewTime": renewed, "leaseDurationSeconds": 40},
        });
        let wanted = LeaseMark {
            uid: "u1".to_owned(),
            renewed: renewed.to_owned(),
        };
        assert_eq!(mark(held), Some(wanted));
        for other in [
            serde_json::json!({"metadata": {"uid": "u1"}}),
            serde_json::json!({"metadata": {"uid": "u1"}, "spec": {"holderIdentity": "demo-w-0-1"}}),
            serde_json::json!({
                "metadata": {"uid": "u1"},
                "spec": {"holderIdentity": "somebody", "renewTime": renewed},
            }),
        ] {
            assert_eq!(mark(other.clone()), None, "{other}");
        }
    }
}
