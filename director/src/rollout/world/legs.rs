//! Going on from one leg of an upgrade to the next: see [`crate::planner::legs`].
//!
//! # Invariants
//! * A leg begins in one commit: the spec has its version, each machine what it is to become, and new ones their
//!   addresses, or none of that. Nothing of it is carried out before.
//! * A leg leads to the version and the stemcell that were approved, and takes no API down without consent.
//!
//! # After a crash
//! The cluster's record says which leg has begun, and the task's plan which one it carries out: one that has begun
//! without a plan is planned, and not begun twice.

use std::collections::BTreeSet;

use serde_json::json;
use windlass_common::id::{ClusterName, MachineName};

use super::cancel::renamed;
use super::{EffectError, World, agreed, check};
use crate::model::{LegsForecast, Machine, Plan, Revision, Task};
use crate::planner::{self, Observed, legs};
use crate::rollout::LEG;
use crate::service::Drafter;
use crate::store::{Commit, Expect, Kind};

impl World {
    /// Drafts clusters and changes of them.
    pub(crate) fn drafter(&self) -> Drafter<'_> {
        Drafter {
            records: &self.records,
            provider: self.provider.as_ref(),
            stemcells: &self.stemcells,
            host: self.host,
        }
    }

    /// The plan of the leg that comes after the one that a task has carried out; `None` when none does.
    pub(super) async fn plan_leg(&self, task: &Task) -> Result<Option<Plan>, EffectError> {
        let name = &task.cluster;
        let cluster = self.changing(name).await?;
        let (Some(upgrade), Some(shown)) = (&cluster.upgrade, &task.plan.upgrade) else {
            return Ok(None);
        };
        if upgrade.at == shown.at {
            if !upgrade.goes_on() {
                return Ok(None);
            }
            self.begin_leg(task).await?;
        }
        let cluster = self.changing(name).await?;
        let (Some(upgrade), Some(leg)) = (
            &cluster.upgrade,
            cluster.upgrade.as_ref().and_then(|u| u.leg()),
        ) else {
            return Ok(None);
        };
        let machines = self.records.machines_of(name.as_str()).await?;
        let desired = self.desired(&cluster, &machines)?;
        let (observed, _) = self.observe_without(name, &machines).await?;
        let plan = planner::plan(&desired, &observed)
            .map_err(|error| EffectError::of(error.class(), &error))?;
        check(&plan, &desired, &observed)?;
        agreed(task, &plan)?;
        let mut all = shown.legs.clone();
        if let Some(planned) = all.get_mut(upgrade.at) {
            let approved = planned.clone();
            *planned = legs::forecast(leg, &plan, &desired, &observed);
            (planned.seconds, planned.way_back) = (approved.seconds, approved.way_back);
            planned.api_down |= approved.api_down;
        }
        let mut plan = renamed(plan, &format!("{LEG}{}/", upgrade.at + 1));
        // What was approved is the way as a whole.
        plan.hash = task.plan.hash;
        plan.upgrade = Some(LegsForecast {
            at: upgrade.at,
            legs: all,
        });
        Ok(Some(plan))
    }

    /// What there is of a cluster, machines that serve nobody by verdict counting as off, and which those are.
    async fn observe_without(
        &self,
        name: &ClusterName,
        machines: &[Machine],
    ) -> Result<(Observed, BTreeSet<MachineName>), EffectError> {
        let mut observed = self.observe(name).await?;
        let down = self.down(machines).await?;
        for (name, found) in &mut observed.machines {
            found.running &= !down.contains(name);
        }
        Ok((observed, down))
    }

    /// Writes down that the next leg begins, and what each machine is to become in it.
    async fn begin_leg(&self, task: &Task) -> Result<(), EffectError> {
        let name = &task.cluster;
        let cluster = self.changing(name).await?;
        let before = self.records.machines_of(name.as_str()).await?;
        let (observed, down) = self.observe_without(name, &before).await?;
        let drafted = self
            .drafter()
            .next_leg(&cluster, before.clone(), &observed)
            .await;
        let drafted = drafted.map_err(|error| EffectError::of(error.class(), &error))?;
        let Some(mut draft) = drafted else {
            return Ok(());
        };
        let mut commit = Commit::default();
        for machine in &mut draft.machines {
            let condemned = machine.condemned || down.contains(&machine.name);
            machine.condemned = machine.wanted.is_some() && condemned;
            // The leg before it was carried out.
            machine.former = None;
            if before.contains(machine) {
                continue;
            }
            if machine.revision == Revision(0) {
                let address = machine.address.to_string();
                let owner = json!({ "owner": machine.name });
                commit.value(Kind::Address, &address, Expect::Absent, &owner);
            }
            commit.put(machine)?;
        }
        commit.put(&draft.cluster)?;
        if let Some(upgrade) = &draft.cluster.upgrade {
            let subject = format!("cluster/{name}");
            let detail = format!("{} begins {upgrade}", task.id);
            self.records
                .audit(&mut commit, "director", "task.leg", &subject, &detail);
        }
        self.records.commit(commit).await?;
        Ok(())
    }
}
