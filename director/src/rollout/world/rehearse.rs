//! What the drains of a plan are expected to do.

use std::collections::BTreeSet;
use std::time::Duration;

use super::World;
use crate::drain::{DrainPolicy, Rehearsal};
use crate::model::{Action, DrainForecast, Plan};
use crate::planner::{Desired, DesiredState};
use crate::rollout::EffectError;

/// How long a cluster's API may take: somebody waits for the plan.
const REHEARSAL_LIMIT: Duration = Duration::from_secs(10);

impl World {
    /// Rehearses the drains of a plan with the pods and budgets of now, by the policy of what is desired;
    /// `None` when it has none.
    pub async fn forecast(&self, plan: &Plan, desired: &Desired) -> Option<DrainForecast> {
        let policy = match &desired.state {
            DesiredState::Present { drain, .. } => DrainPolicy::from(*drain),
            DesiredState::Absent { .. } => return None,
        };
        let sequence = plan.drain_order();
        if sequence.is_empty() {
            return None;
        }
        let named = |batch: &Vec<_>| batch.iter().map(ToString::to_string).collect();
        let sequence: Vec<Vec<String>> = sequence.iter().map(named).collect();
        let asked = self.rehearse(plan, &sequence, &policy);
        let why = match tokio::time::timeout(REHEARSAL_LIMIT, asked).await {
            Ok(Ok(rehearsal)) => return Some(DrainForecast::Rehearsed { rehearsal }),
            Ok(Err(error)) => error.message,
            Err(_) => format!("no answer within {} s", REHEARSAL_LIMIT.as_secs()),
        };
        Some(DrainForecast::Unknown { why })
    }

    async fn rehearse(
        &self,
        plan: &Plan,
        sequence: &[Vec<String>],
        policy: &DrainPolicy,
    ) -> Result<Rehearsal, EffectError> {
        let context = self.context(&plan.cluster).await?;
        self.kubernetes
            .rehearse(&context, sequence, &joining(plan), policy)
            .await
    }
}

/// Nodes of machines that the plan makes before it drains any.
fn joining(plan: &Plan) -> BTreeSet<String> {
    let drained: BTreeSet<_> = plan
        .steps
        .iter()
        .filter(|step| matches!(step.action, Action::Drain { .. }))
        .filter_map(|step| step.action.machine())
        .collect();
    let joins = |action: &Action| match action {
        Action::AwaitNode { machine, node } if !drained.contains(machine) => Some(node.to_string()),
        _ => None,
    };
    plan.steps.iter().filter_map(|s| joins(&s.action)).collect()
}
