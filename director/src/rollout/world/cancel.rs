//! What is done about a cancelled task.
//!
//! A cancelled create is removed. A cancelled update goes back to service: machines that still are what they
//! were stay so, those whose old incarnation is gone already become what was wanted, and machines that were
//! only about to join are given up.

use std::collections::BTreeMap;

use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, Incarnation, MachineName};

use super::{World, check};
use crate::model::{Cluster, Machine, MachinePhase, Plan, StepKey, Wanted};
use crate::planner::{self, DesiredState, Observed, ObservedMachine, inputs};
use crate::rollout::EffectError;
use crate::store::Commit;

/// Begins the keys of a plan that ends a cancelled task, so that none is taken for a step of the first plan.
const PREFIX: &str = "cancel/";

impl World {
    pub(super) async fn plan_removal(&self, cluster: &ClusterName) -> Result<Plan, EffectError> {
        let observed = self.observe(cluster).await?;
        // The cancel is the order: it names the disks that this create has made.
        let desired = inputs::absent(cluster, observed.disks.keys().cloned().collect());
        let plan = planner::plan(&desired, &observed)
            .map_err(|error| EffectError::of(error.class(), &error))?;
        check(&plan, &desired, &observed)?;
        Ok(plan)
    }

    /// Gives up what was wanted of machines that are not touched yet, and plans the way back to service.
    pub(super) async fn plan_return(&self, name: &ClusterName) -> Result<Plan, EffectError> {
        let cluster: Cluster = self.records.get(name.as_str()).await?.ok_or_else(|| {
            EffectError::new(
                ErrorClass::Bug,
                format!("cluster {name} is not in the store although it is being changed"),
            )
        })?;
        let observed = self.observe(name).await?;
        let mut machines = self.records.machines_of(name.as_str()).await?;
        let mut commit = Commit::default();
        for machine in &mut machines {
            let kept = give_up(machine, &observed);
            if kept != machine.wanted {
                machine.wanted = kept;
                commit.put(machine)?;
            }
        }
        self.records.commit(commit).await?;
        let machines = self.records.machines_of(name.as_str()).await?;
        let (mut desired, observed) = (
            self.desired(&cluster, &machines)?,
            self.observe(name).await?,
        );
        // What is begun is finished, whatever users' gates say: they are there to stop, and it has stopped.
        if let DesiredState::Present { gates, .. } = &mut desired.state {
            gates.clear();
        }
        let plan = planner::plan(&desired, &observed)
            .map_err(|error| EffectError::of(error.class(), &error))?;
        check(&plan, &desired, &observed)?;
        Ok(renamed(plan))
    }
}

/// What is still wanted of a machine when its update is cancelled.
fn give_up(machine: &Machine, observed: &Observed) -> Option<Wanted> {
    let found: &BTreeMap<MachineName, ObservedMachine> = &observed.machines;
    let exists = found
        .get(&machine.name)
        .is_some_and(|found| found.incarnation == machine.incarnation && found.complete)
        // One that was shut out does not come back as it was.
        && !machine.fenced;
    let joined = machine.phase == MachinePhase::Ready || machine.labelled.is_some();
    let joining = machine.incarnation == Incarnation::FIRST && !joined;
    match &machine.wanted {
        _ if joining && !machine.role.is_control_plane() => Some(Wanted::Gone),
        Some(Wanted::Reborn { .. } | Wanted::Gone) if exists => None,
        wanted => wanted.clone(),
    }
}

fn renamed(mut plan: Plan) -> Plan {
    let rename = |key: &mut StepKey| key.0.insert_str(0, PREFIX);
    for step in &mut plan.steps {
        rename(&mut step.key);
        step.after.iter_mut().for_each(rename);
    }
    plan
}
