//! Pools whose replacements die: nothing of them is replaced any more, and what the dead have in common is said.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::ClusterName;

use crate::model::{Machine, MachineRole};
use crate::resurrector::{ACTOR, Cause, CauseKind, Fleet, GuardPolicy, Refusal, Role, poisoned};
use crate::service::{Director, Inner, ServiceResult};
use crate::store::Commit;

/// A pool, or a control plane, that is left to an operator since its replacements die young.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoppedPool {
    /// Its cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// Which of its pools.
    pub role: MachineRole,
    /// Replacements that died within `poison_s` of their making, in a row.
    pub died: u32,
    /// What sort of thing they have in common.
    pub kind: CauseKind,
    /// What happened, what they have in common and what to do, for people.
    pub why: String,
}

/// The pools that are stopped, by cluster and pool.
pub(super) fn pools(fleet: &Fleet, policy: &GuardPolicy) -> Vec<StoppedPool> {
    let stopped = poisoned(fleet, policy).into_iter();
    let pool = |(pool, count): ((ClusterName, Role), u32)| {
        let cause = fleet.causes.get(&pool).cloned().unwrap_or_default();
        let (cluster, role) = pool;
        StoppedPool {
            cluster,
            role: match role {
                Role::ControlPlane => MachineRole::ControlPlane,
                Role::Worker(pool) => MachineRole::Worker { pool },
            },
            died: count,
            kind: cause.kind(),
            why: Refusal::Poison { count, cause }.to_string(),
        }
    };
    stopped.map(pool).collect()
}

/// Writes down that the pool of a machine is stopped with its last death, and why.
pub(super) fn tell(
    director: &Inner,
    commit: &mut Commit,
    machine: &Machine,
    count: u32,
    cause: &Cause,
) {
    let subject = format!("cluster/{}", machine.cluster);
    let cause = cause.clone();
    let said = format!("{}: {}", machine.role, Refusal::Poison { count, cause });
    tracing::warn!(cluster = %machine.cluster, pool = %machine.role, why = said, "a pool is stopped");
    director
        .records
        .audit(commit, ACTOR, "pool.stop", &subject, &said);
}

impl Inner {
    /// The pools of a cluster that are stopped, as the last round saw it.
    pub(in crate::service) fn stopped_pools(&self, cluster: &ClusterName) -> Vec<StoppedPool> {
        let board = self.repairs.board();
        let stopped = board.stopped.iter();
        let of_cluster = stopped.filter(|pool| pool.cluster == *cluster);
        of_cluster.cloned().collect()
    }
}

impl Director {
    /// The pools of a cluster that are left to an operator since their replacements die young.
    pub async fn stopped_pools(&self, cluster: &ClusterName) -> ServiceResult<Vec<StoppedPool>> {
        let cluster = self.inner.cluster(cluster).await?;
        Ok(self.inner.stopped_pools(&cluster.spec.name))
    }

    /// How many pools are stopped, by what their dead have in common; every sort is there.
    pub fn stopped_pool_counts(&self) -> BTreeMap<CauseKind, u64> {
        let mut counts: BTreeMap<_, _> = CauseKind::ALL.map(|kind| (kind, 0)).into();
        for pool in &self.inner.repairs.board().stopped {
            *counts.entry(pool.kind).or_insert(0) += 1;
        }
        counts
    }
}
