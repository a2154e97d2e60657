//! What the API servers of a cluster emulate when the task that was to raise them is cancelled.

use windlass_common::id::MachineName;

use super::{EffectError, World};
use crate::model::{Cluster, Machine, StepState, Task};
use crate::planner::{Verb, machine_key};

impl World {
    /// The minor that all API servers of a cluster emulate still, although the cluster is to emulate another or none:
    /// none of them was begun with. `None` when one may have been, or none is to be raised.
    pub(super) fn unraised(
        &self,
        task: &Task,
        cluster: &Cluster,
        machines: &[Machine],
    ) -> Result<Option<u32>, EffectError> {
        let members = machines.iter().filter(|m| m.role.is_control_plane());
        let mut emulated = members.clone().map(|member| member.emulates);
        let Some(Some(minor)) = emulated.next() else {
            return Ok(None);
        };
        if cluster.emulates == Some(minor) || emulated.any(|other| other != Some(minor)) {
            return Ok(None);
        }
        let mut before = cluster.clone();
        before.emulates = Some(minor);
        for member in members {
            // What was written for a start that is not over may be what it runs with.
            let told = self.told(&before, machines, &member.name)?;
            let as_it_was = member.configured == Some(told.whole)
                && member.started == Some(told.components)
                && !begun(task, &member.name);
            if !as_it_was {
                return Ok(None);
            }
        }
        Ok(Some(minor))
    }
}

/// Whether a task has begun to tell a machine what it runs with, or to start it, and nobody knows how far that went.
fn begun(task: &Task, machine: &MachineName) -> bool {
    let keys = [Verb::Configure, Verb::Start].map(|verb| machine_key(machine, verb));
    let mut unfinished = task
        .steps
        .iter()
        .filter(|(_, record)| record.state != StepState::Succeeded);
    unfinished.any(|(begun, _)| keys.iter().any(|key| begun.0.ends_with(&*key.0)))
}
