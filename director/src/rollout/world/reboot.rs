//! The step that has the provider restart a machine that serves, once its pods have left it.
//!
//! # Invariants
//! * It is restarted once: what was started since it was ordered is not restarted again, whoever did it. One that
//!   is well again when its turn comes is left as it is.
//! * A member of etcd is restarted while those beside it are a majority.
//! * What its kubelet said before does not count for whether its node is back, and the ladder gives the restart time
//!   from when it was carried out, not from when it was ordered.
//!
//! # After a crash
//! The step begins again, and looks how often the machine was started.
//!
//! # Not here
//! What comes before and after (the planner), and machines that are down (`service::repair`).

use std::time::Duration;

use windlass_common::error::ErrorClass;
use windlass_common::id::MachineName;

use super::context::ClusterContext;
use super::{Done, EffectError, RecordChange, StepOrder, World};
use crate::model::{Action, PlanStep, Task};

/// How long a machine that works badly gets to shut down before its power is cut.
const GRACE: Duration = Duration::from_secs(30);

impl World {
    /// Restarts a machine that was started `boots` times when that was ordered.
    pub(super) async fn reboot(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        boots: u64,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        let restarted = RecordChange::Rebooted(name.clone());
        let left = |why: &str| Done {
            changes: vec![format!("{name} is left as it is: {why}")],
            records: vec![restarted.clone()],
        };
        if machine.reboot.is_none_or(|reboot| reboot.boots != boots) {
            return Ok(left("it works again"));
        }
        if self.held().await?.contains(name) {
            return Ok(left("an operator holds it"));
        }
        let view = self.provider.machine(name).await?.ok_or_else(|| {
            let message = format!(
                "machine {name} is not there any more; it is replaced once that is judged, or by `windlass node \
                 recreate {name}`"
            );
            EffectError::new(ErrorClass::Operator, message)
        })?;
        if view.boots > boots {
            return Ok(left("it was started since this was ordered"));
        }
        let _turn = match machine.role.is_control_plane() {
            true => {
                let turn = self.etcd_turns.take(&context.cluster.spec.name).await;
                self.others_serve(context, name, order).await?;
                Some(turn)
            }
            false => None,
        };
        if let Some(before) = self.heartbeat(context, name).await? {
            self.note(before, &machine.cluster).await?;
        }
        let begun = RecordChange::Rebooting(name.clone());
        self.note(begun, &machine.cluster).await?;
        let view = self.provider.reboot_machine(name, GRACE).await?;
        Ok(Done {
            changes: vec![format!("{name} was restarted, its start {}", view.boots)],
            records: vec![restarted],
        })
    }
}

impl World {
    /// Whether a step stands in a plan that has restarted the machine before: its kubelet began anew with it.
    pub(super) async fn rebooted(
        &self,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<bool, EffectError> {
        let task = self.records.get_shared::<Task>(order.task.as_str()).await?;
        let reboots = |step: &PlanStep| match &step.action {
            Action::RebootMachine { machine, .. } => machine == name,
            _ => false,
        };
        Ok(task.is_some_and(|task| task.current().steps.iter().any(reboots)))
    }
}
