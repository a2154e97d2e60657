//! Orders to rotate a cluster's encryption key or its authorities.
//!
//! # Invariants
//! * A rotation begins on a cluster that is as it should be: what machines are told in a stage is then told for
//!   the rotation alone.
//! * One rotation at a time; one that was cancelled or has failed is gone on with, never taken back: old and new
//!   are trusted side by side meanwhile.

use windlass_common::id::{ClusterName, Digest};

use super::certificates::serves;
use super::clusters::{ChangeOrder, make_plan};
use super::shown::Planned;
use super::{Inner, ServiceError, ServiceResult};
use crate::model::{
    Caller, Cluster, ClusterPhase, Plan, Rotation, RotationKind, Stage, Task, TaskKind,
};
use crate::rollout::world::Turn;
use crate::store::Commit;

/// What to rotate, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotationOrder {
    /// What.
    pub kind: RotationKind,
    /// Only have both generations of authorities trusted: clients get theirs anew before it goes on.
    pub prepare: bool,
    /// The plan of the first stage that was shown: another one is not carried out.
    pub plan: Option<Digest>,
    /// The operator knows that the cluster's API will be down in between.
    pub accept_downtime: bool,
}

impl Inner {
    /// What the first stage that an order carries out would do.
    pub(super) async fn plan_rotation(
        &self,
        name: &ClusterName,
        order: &RotationOrder,
        caller: &Caller,
    ) -> ServiceResult<Plan> {
        let cluster = self.cluster(name).await?;
        let (_, planned) = self.turned(&cluster, order, caller).await?;
        self.shown(planned).await
    }

    /// Orders it.
    pub(super) async fn rotate(
        &self,
        name: &ClusterName,
        order: &RotationOrder,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let _order = self.orders.lock().await;
        let cluster = self.cluster(name).await?;
        if let Some(task) = self.unfinished(&cluster).await? {
            let message = format!(
                "cluster {name} is being worked on by {} ({}); wait for it, or cancel it",
                task.id, task.kind
            );
            return Err(ServiceError::Conflict { message });
        }
        let (turn, planned) = self.turned(&cluster, order, caller).await?;
        let Planned { plan, desired, .. } = planned;
        let held = ChangeOrder {
            plan: order.plan,
            accept_downtime: order.accept_downtime,
            ..ChangeOrder::default()
        };
        self.held(&plan, &desired, &held)?;
        if cluster.spec.control_plane.count == 1 && !order.accept_downtime {
            return Err(ServiceError::Conflict {
                message: format!(
                    "the API of cluster {name} will be down for some seconds in each stage: its control plane is \
                     one machine; order it with --accept-downtime"
                ),
            });
        }
        let task = self.new_task(TaskKind::RotateSecrets, plan, caller).await?;
        let mut commit = Commit::default();
        // The record of the cluster is written with its task.
        let written = turn.cluster.clone();
        self.world.put_turn(&mut commit, &written, &turn)?;
        self.order_existing(&mut commit, turn.cluster, &task, ClusterPhase::Updating)?;
        self.place_order(commit, task, "cluster.rotate", caller)
            .await
    }

    /// The rotation as it goes on, and what has to be carried out first.
    async fn turned(
        &self,
        cluster: &Cluster,
        order: &RotationOrder,
        caller: &Caller,
    ) -> ServiceResult<(Turn, Planned)> {
        let name = &cluster.spec.name;
        if !serves(cluster.phase) {
            return Err(ServiceError::Conflict {
                message: format!(
                    "cluster {name} is {}; what it proves itself with is rotated in service",
                    cluster.phase
                ),
            });
        }
        let mut turn = match &cluster.rotation {
            Some(rotation) if rotation.stage.kind() != order.kind => {
                let begun = rotation.stage.kind().command();
                return Err(ServiceError::Conflict {
                    message: format!(
                        "another rotation of cluster {name} is not over: {}; finish it first (`windlass \
                         cluster {begun} {name}`){}",
                        rotation.stage.says(),
                        resting(rotation)
                    ),
                });
            }
            Some(_) => {
                let mut cluster = cluster.clone();
                if let Some(rotation) = &mut cluster.rotation {
                    rotation.prepare = order.prepare;
                }
                self.world.continue_rotation(cluster).await?
            }
            None => {
                self.as_it_should_be(cluster).await?;
                let operator = caller.operator.clone();
                let rotation = Rotation::new(order.kind, order.prepare, operator);
                self.world.begin_rotation(cluster.clone(), rotation).await?
            }
        };
        match turn.plan.take() {
            Some(plan) => {
                let machines = self.records.machines_of(name.as_str()).await?;
                let (desired, observed) = self.state(&turn.cluster, &machines).await?;
                let planned = Planned {
                    plan,
                    desired,
                    observed,
                };
                Ok((turn, planned))
            }
            None => Err(ServiceError::Conflict {
                message: match &turn.cluster.rotation {
                    Some(rotation) if rotation.stage == Stage::RestartDns => format!(
                        "cluster {name} is prepared: clients get their credentials anew now; then order it without \
                         --prepare"
                    ),
                    Some(rotation) => format!(
                        "nothing is to be done now: {}{}",
                        rotation.stage.says(),
                        resting(rotation)
                    ),
                    None => format!("the rotation of cluster {name} is over"),
                },
            }),
        }
    }

    /// Refuses a cluster of which something else is left to be done.
    async fn as_it_should_be(&self, cluster: &Cluster) -> ServiceResult<()> {
        let name = &cluster.spec.name;
        let machines = self.records.machines_of(name.as_str()).await?;
        let (desired, observed) = self.state(cluster, &machines).await?;
        let left = make_plan(&desired, &observed)?;
        let Some(step) = left.steps.first() else {
            return Ok(());
        };
        Err(ServiceError::Conflict {
            message: format!(
                "cluster {name} is not as it should be: {} steps are left, the first is {} ({}); `windlass cluster \
                 plan {name}` shows them, `windlass cluster apply` carries them out",
                left.steps.len(),
                step.key,
                step.why
            ),
        })
    }
}

/// Until when a rotation waits by itself, for people.
fn resting(rotation: &Rotation) -> String {
    rotation.tokens_until().map_or_else(String::new, |until| {
        format!("; tokens of the former key are in use until {until}")
    })
}
