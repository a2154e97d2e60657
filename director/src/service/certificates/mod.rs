//! Renewal of the certificates of machines: by rule, and on order.
//!
//! # Invariants
//! * Certificates are renewed once two thirds of their life have passed, without an order: no cluster dies of its
//!   age. A cluster that a task works on waits for the next look.
//! * What could not be renewed is tried again after [`AGAIN`], and not more often: the reason is in the task.
//! * Machines whose agents are away are left for later, the others do not wait for them.
//!
//! # After a crash
//! A look is made of records alone; the task that it ordered is resumed like any other.

mod held;

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::id::{ClusterName, Digest, MachineName};
use windlass_common::step::StepId;

use super::agents::chosen;
use super::draft::random_u32;
use super::rotate::RotationOrder;
use super::shown::Planned;
use super::{Inner, ServiceError, ServiceResult};
use crate::kubernetes::pki::{Certificates, Validity};
use crate::model::{
    Caller, Certified, Cluster, ClusterPhase, Machine, MachinePhase, Plan, Role, RotationKind,
    Task, TaskKind, Timestamp,
};
use crate::planner::renewal;
use crate::rollout::world;
use crate::store::{Commit, Kind};

pub use held::{RenewalHeld, held_back};

/// Between two looks. Certificates live for months.
const PERIOD: Duration = Duration::from_secs(60);
/// After a renewal by rule, how long until the next one of the same cluster, whatever came of it.
const AGAIN: Duration = Duration::from_secs(3600);
/// Who orders by rule, as audit log and tasks show it.
const ACTOR: &str = "renewal";

/// Which certificates to renew, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateOrder {
    /// Only of these machines; of all when empty.
    pub machines: BTreeSet<MachineName>,
    /// The plan that was shown: another one is not carried out.
    pub plan: Option<Digest>,
}

/// When the first of something expires, over all clusters; absent while there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expiries {
    /// Certificates of machines.
    pub machines: Option<Timestamp>,
    /// Authorities of clusters.
    pub authorities: Option<Timestamp>,
}

impl Inner {
    /// What an order would do.
    pub(super) async fn plan_certificates(
        &self,
        name: &ClusterName,
        order: &CertificateOrder,
    ) -> ServiceResult<Plan> {
        self.shown(self.drafted_renewal(name, order).await?).await
    }

    async fn drafted_renewal(
        &self,
        name: &ClusterName,
        order: &CertificateOrder,
    ) -> ServiceResult<Planned> {
        let cluster = self.cluster(name).await?;
        let machines = self.records.machines_of(name.as_str()).await?;
        let chosen = chosen(name, &machines, &order.machines)?;
        let sessions = self.gateway.connected();
        let away: Vec<&str> = chosen
            .iter()
            .filter(|machine| !sessions.contains_key(&machine.name))
            .map(|machine| machine.name.as_str())
            .collect();
        if !away.is_empty() {
            return Err(ServiceError::Conflict {
                message: format!(
                    "the agents of {} are not connected; name the machines whose certificates are to be \
                     renewed, without these",
                    away.join(", ")
                ),
            });
        }
        let (desired, observed) = self.state(&cluster, &machines).await?;
        let names: Vec<MachineName> = chosen.iter().map(|m| m.name.clone()).collect();
        let plan = renewal::plan(&desired, &observed, &names);
        world::check(&plan, &desired, &observed)?;
        Ok(Planned {
            plan,
            desired,
            observed,
        })
    }

    /// Orders it.
    pub(super) async fn renew_certificates(
        &self,
        name: &ClusterName,
        order: &CertificateOrder,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let _order = self.orders.lock().await;
        let mut cluster = self.cluster(name).await?;
        if let Some(task) = self.unfinished(&cluster).await? {
            let message = format!(
                "cluster {name} is being worked on by {} ({}); wait for it, or cancel it",
                task.id, task.kind
            );
            return Err(ServiceError::Conflict { message });
        }
        let Planned { plan, desired, .. } = self.drafted_renewal(name, order).await?;
        self.same_plan(&plan, &desired, order.plan)?;
        let task = self
            .new_task(TaskKind::RenewCertificates, plan, caller)
            .await?;
        let mut commit = Commit::default();
        if caller.operator == ACTOR {
            cluster.renewal_tried_at = Some(Timestamp::now());
        }
        let phase = cluster.phase;
        self.order_existing(&mut commit, cluster, &task, phase)?;
        self.place_order(commit, task, "cluster.renew-certificates", caller)
            .await
    }

    /// When the first certificate and the first authority expire.
    pub(super) async fn expiries(&self) -> ServiceResult<Expiries> {
        let clusters: Vec<Cluster> = self.records.list().await?;
        let machines: Vec<Machine> = self.records.list().await?;
        let expiry = |machine: &Machine| machine.certified.map(|certified| certified.expires_at);
        Ok(Expiries {
            machines: machines.iter().filter_map(expiry).min(),
            authorities: clusters
                .iter()
                .filter_map(|c| c.authorities_expire_at)
                .min(),
        })
    }

    /// Completes what an older director did not write down: how long what it issued is valid.
    async fn complete(&self, mut cluster: Cluster, machines: &mut [Machine]) -> ServiceResult<()> {
        let mut commit = Commit::default();
        let mut missing = false;
        if cluster.authorities_expire_at.is_none() {
            let pki = self.cluster_pki(&cluster.spec.name).await?;
            if let Some(at) = pki.authorities_expire_at() {
                cluster.authorities_expire_at = Some(at.into());
                commit.put(&cluster)?;
                missing = true;
            }
        }
        for machine in machines {
            if machine.certified.is_some() || machine.configured.is_none() {
                continue;
            }
            let issued: Option<(_, (u32, Certificates))> = self
                .records
                .value(Kind::Certificates, machine.name.as_str())
                .await?;
            let validity = issued
                .filter(|(_, (incarnation, _))| *incarnation == machine.incarnation.0)
                .and_then(|(_, (_, certificates))| Validity::of(&certificates));
            if let Some(validity) = validity {
                machine.certified = Some(Certified::from(validity));
                commit.put(machine)?;
                missing = true;
            }
        }
        if missing {
            self.records.commit(commit).await?;
        }
        Ok(())
    }

    /// One look at a cluster: renews what is due.
    async fn keep_certified(&self, name: &ClusterName) -> ServiceResult<()> {
        {
            let _no_order_meanwhile = self.orders.lock().await;
            let cluster = self.cluster(name).await?;
            if cluster.task.is_some() {
                return Ok(());
            }
            let mut machines = self.records.machines_of(name.as_str()).await?;
            self.complete(cluster, &mut machines).await?;
        }
        let cluster = self.cluster(name).await?;
        let machines = self.records.machines_of(name.as_str()).await?;
        let serves = serves(cluster.phase) && cluster.task.is_none();
        if serves {
            let (high, low) = (random_u32()?, random_u32()?);
            let id = StepId(format!("refuses/{high:08x}{low:08x}"));
            self.world.keep_refusing(name, id).await?;
        }
        let due = due(
            serves,
            cluster.renewal_tried_at,
            &machines,
            Timestamp::now(),
        );
        if let Some(order) = tokens_due(&cluster, &machines, Timestamp::now()) {
            let task = self.rotate(name, &order, &actor()).await?;
            tracing::info!(cluster = %name, task = %task.id, "the former key for tokens goes");
            return Ok(());
        }
        let sessions = self.gateway.connected();
        let (due, away): (BTreeSet<_>, BTreeSet<_>) = due
            .into_iter()
            .partition(|machine| sessions.contains_key(machine));
        if !away.is_empty() {
            tracing::warn!(cluster = %name, machines = ?away, "certificates are due, and the agents are away");
        }
        if due.is_empty() {
            return Ok(());
        }
        let order = CertificateOrder {
            machines: due,
            plan: None,
        };
        let task = self.renew_certificates(name, &order, &actor()).await?;
        tracing::info!(cluster = %name, task = %task.id, machines = ?order.machines, "certificates are renewed by rule");
        Ok(())
    }
}

/// The rule as somebody who orders.
fn actor() -> Caller {
    Caller {
        operator: ACTOR.to_owned(),
        role: Role::Operator,
        request: String::new(),
    }
}

/// The order that ends a rotation of authorities, once no token of the former key is in use. A control plane of one
/// machine would be down for it, which an operator has to want.
fn tokens_due(cluster: &Cluster, machines: &[Machine], now: Timestamp) -> Option<RotationOrder> {
    let until = cluster.rotation.as_ref()?.tokens_until()?;
    let members = machines.iter().filter(|m| m.role.is_control_plane());
    let serves = cluster.phase == ClusterPhase::Ready && cluster.task.is_none();
    (now >= until && serves && members.count() > 1).then_some(RotationOrder {
        kind: RotationKind::Authorities,
        prepare: false,
        plan: None,
        accept_downtime: false,
    })
}

/// Machines whose certificates are to be renewed now.
fn due(
    serves: bool,
    tried_at: Option<Timestamp>,
    machines: &[Machine],
    now: Timestamp,
) -> Vec<MachineName> {
    if !serves || tried_at.is_some_and(|tried| rests(tried, now)) {
        return Vec::new();
    }
    let old = |machine: &&Machine| machine.certified.is_some_and(|c| now >= c.renew_at);
    let machines = machines
        .iter()
        .filter(|machine| stands(machine))
        .filter(old);
    machines.map(|machine| machine.name.clone()).collect()
}

/// Whether it is too soon after a renewal by rule for the next one.
fn rests(tried: Timestamp, now: Timestamp) -> bool {
    now.ms_since(tried) < u64::try_from(AGAIN.as_millis()).unwrap_or(u64::MAX)
}

/// Whether a machine is there to stay as it is.
fn stands(machine: &Machine) -> bool {
    let here = matches!(
        machine.phase,
        MachinePhase::Configured | MachinePhase::Ready
    );
    here && machine.wanted.is_none() && !machine.fenced
}

/// Whether a cluster serves and nothing changes it.
pub(super) fn serves(phase: ClusterPhase) -> bool {
    match phase {
        ClusterPhase::Ready | ClusterPhase::Degraded => true,
        ClusterPhase::Creating
        | ClusterPhase::Updating
        | ClusterPhase::Failed
        | ClusterPhase::Deleting => false,
    }
}

/// Starts the looks; they end with the director.
pub(super) fn start(director: Weak<Inner>) {
    tokio::spawn(async move {
        let mut rounds = interval(PERIOD);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            let Some(director) = director.upgrade() else {
                return;
            };
            round(&director).await;
        }
    });
}

async fn round(director: &Arc<Inner>) {
    let clusters: Vec<Cluster> = match director.records.list().await {
        Ok(clusters) => clusters,
        Err(error) => {
            tracing::warn!(error = %ErrorChain(&error), "the clusters cannot be read");
            return;
        }
    };
    for cluster in clusters {
        let name = cluster.spec.name;
        if let Err(error) = director.keep_certified(&name).await
            && error.class() != ErrorClass::Retry
        {
            tracing::warn!(cluster = %name, error = %ErrorChain(&error), "certificates cannot be looked after");
        }
    }
}

#[cfg(test)]
mod tests;
