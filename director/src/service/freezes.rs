//! Freezes of a whole director: times in which none of its clusters is changed.
//!
//! # Invariants
//! * What a freeze keeps from going on is what a closed maintenance window of a cluster keeps from it, and an operator
//!   goes past both in the same way.
//! * One that is over counts no more, and is forgotten with the next order.
//!
//! # After a crash
//! They are in the store, and counted again before any task goes on.
//!
//! # Not here
//! Whether a cluster may be changed at a moment ([`crate::maintenance`]), and what waits for that (rollout).

use windlass_common::cluster::ClusterSpec;
use windlass_common::id::FreezeName;
use windlass_common::maintenance::{FREEZES_MAX, MaintenanceSpec};

use super::tasks::reason_given;
use super::{Inner, ServiceError, ServiceResult};
use crate::model::{Caller, FieldFault, Freeze, Revision, Timestamp};
use crate::rollout::Rollouts;
use crate::store::{Act, Commit, Records, StoreError};

/// A freeze that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreezeOrder {
    /// Its first moment; now when not given.
    pub from: Option<Timestamp>,
    /// The first moment after it.
    pub to: Timestamp,
    /// Why, for people.
    pub reason: String,
}

/// Has tasks keep to the freezes of the store. Said before any goes on.
pub(super) async fn tell(records: &Records, rollouts: &Rollouts) -> Result<(), StoreError> {
    let freezes: Vec<Freeze> = records.list().await?;
    rollouts.freeze(freezes.iter().map(Freeze::spec).collect());
    Ok(())
}

impl Inner {
    /// The freezes there are, the first ones first.
    pub(super) async fn freezes(&self) -> ServiceResult<Vec<Freeze>> {
        let mut freezes: Vec<Freeze> = self.records.list().await?;
        freezes.sort_by_key(|freeze| freeze.from);
        Ok(freezes)
    }

    /// Orders a freeze, or changes the one of this name.
    pub(super) async fn order_freeze(
        &self,
        name: &FreezeName,
        order: FreezeOrder,
        caller: &Caller,
    ) -> ServiceResult<Freeze> {
        let reason = reason_given("reason", order.reason)?;
        let _order = self.orders.lock().await;
        let now = Timestamp::now();
        let from = order.from.unwrap_or(now);
        if order.to <= from || order.to <= now {
            let allowed = format!("a moment after {}", from.max(now));
            return Err(ServiceError::Invalid {
                faults: vec![FieldFault::new("to", order.to, allowed)],
            });
        }
        let mut commit = Commit::default();
        let mut left = 0;
        let mut revision = Revision(0);
        for freeze in self.freezes().await? {
            if freeze.name == *name {
                revision = freeze.revision;
            } else if freeze.to <= now {
                commit.delete(&freeze);
            } else {
                left += 1;
            }
        }
        if left >= FREEZES_MAX {
            let message =
                format!("there are {left} freezes already; `windlass director thaw` ends one");
            return Err(ServiceError::Conflict { message });
        }
        let mut freeze = Freeze {
            name: name.clone(),
            from,
            to: order.to,
            reason,
            operator: caller.operator.clone(),
            revision,
        };
        commit.put(&freeze)?;
        let act = Act {
            action: "director.freeze",
            subject: &format!("freeze/{name}"),
            detail: &format!("from {from} to {}: {}", freeze.to, freeze.reason),
            outcome: "",
        };
        self.records.audit_caller(&mut commit, caller, act);
        freeze.revision = self.records.commit(commit).await?;
        tell(&self.records, &self.rollouts).await?;
        Ok(freeze)
    }

    /// Ends a freeze, or takes back one that is to come.
    pub(super) async fn end_freeze(
        &self,
        name: &FreezeName,
        caller: &Caller,
    ) -> ServiceResult<Freeze> {
        let _order = self.orders.lock().await;
        let found: Option<Freeze> = self.records.get(name.as_str()).await?;
        let freeze = found.ok_or_else(|| ServiceError::NotFound {
            kind: "freeze",
            name: name.to_string(),
        })?;
        let mut commit = Commit::default();
        commit.delete(&freeze);
        let act = Act {
            action: "director.thaw",
            subject: &format!("freeze/{name}"),
            detail: "",
            outcome: "",
        };
        self.records.audit_caller(&mut commit, caller, act);
        self.records.commit(commit).await?;
        tell(&self.records, &self.rollouts).await?;
        Ok(freeze)
    }

    /// When a cluster may be changed: what its spec says, and the freezes of the director.
    pub(super) fn windows_of(&self, spec: &ClusterSpec) -> MaintenanceSpec {
        spec.maintenance.with_freezes(&self.rollouts.freezes())
    }
}
