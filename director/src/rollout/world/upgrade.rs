//! The agent of a machine, replaced by that of a stemcell.

use windlass_common::error::ErrorClass;
use windlass_common::id::MachineName;
use windlass_common::limits::{AGENT_BYTES_MAX, AGENT_TRIAL_DEFAULT_S};
use windlass_common::stemcell::{AGENT, ROOTFS};
use windlass_common::step::{AgentUpgrade, Step};

use super::node::succeeded;
use super::{Done, EffectError, StepOrder, World};
use crate::gateway::DeliveryError;
use crate::model::Machine;

impl World {
    /// Publishes the agent of the stemcell, and has the machine's agent make way for it. The answer comes
    /// from the new agent, or from the old one with the reason.
    pub(super) async fn upgrade_agent(
        &self,
        name: &MachineName,
        stemcell: &str,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let found: Option<Machine> = self.records.get(name.as_str()).await?;
        let machine = found.ok_or_else(|| {
            let message = format!("machine {name} is not in the records any more");
            EffectError::new(ErrorClass::Operator, message)
        })?;
        let record = self
            .stemcells
            .get(stemcell)
            .map_err(|error| EffectError::of(error.class(), &error))?;
        let digest = record.agent.ok_or_else(|| {
            let message = format!("stemcell {stemcell} has no agent; name another one");
            EffectError::new(ErrorClass::Operator, message)
        })?;
        let artifacts = self.artifacts.clone();
        let program = record.path.join(ROOTFS).join(AGENT);
        let publish = move || artifacts.publish(&digest, &program, AGENT_BYTES_MAX);
        let bytes = tokio::task::spawn_blocking(publish)
            .await
            .map_err(|error| EffectError::of(ErrorClass::Bug, &error))?
            .map_err(|error| EffectError::of(error.class(), &error))?;
        let step = Step::AgentUpgrade(AgentUpgrade {
            digest,
            bytes,
            origin: stemcell.to_owned(),
            trial_s: AGENT_TRIAL_DEFAULT_S,
        });
        let result = match self.deliver(&machine, order, "", step).await {
            Ok(result) => succeeded(&machine, result)?,
            // Checked when it was ordered: it is the new agent that is too old to be asked, and the old
            // one comes back.
            Err(error @ DeliveryError::TooOld { .. }) => {
                return Err(EffectError {
                    resend: true,
                    ..EffectError::of(ErrorClass::Retry, &error)
                });
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Done {
            changes: result.changes,
            records: Vec::new(),
        })
    }
}
