//! What a plan is expected to meet: its drains, and what else is in their way.

use std::collections::BTreeSet;
use std::time::Duration;

use windlass_common::id::ClusterName;

use super::World;
use crate::drain::{Course, DrainPolicy, Rehearsal};
use crate::kubernetes::facts::minor_of;
use crate::model::{Action, Cluster, DrainForecast, Machine, Plan};
use crate::planner::{Desired, DesiredMachine, DesiredState, inputs};
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
        let course = Course {
            sequence: sequence.iter().map(named).collect(),
            joining: joining(plan),
            policy,
            minor: None,
        };
        let asked = self.rehearse(&plan.cluster, desired, course);
        let why = match tokio::time::timeout(REHEARSAL_LIMIT, asked).await {
            Ok(Ok(rehearsal)) => return Some(DrainForecast::Rehearsed { rehearsal }),
            Ok(Err(error)) => error.message,
            Err(_) => format!("no answer within {} s", REHEARSAL_LIMIT.as_secs()),
        };
        Some(DrainForecast::Unknown { why })
    }

    async fn rehearse(
        &self,
        cluster: &ClusterName,
        desired: &Desired,
        course: Course,
    ) -> Result<Rehearsal, EffectError> {
        let context = self.context(cluster).await?;
        let course = Course {
            minor: later_minor(&context.cluster, &context.machines, desired),
            ..course
        };
        self.kubernetes.rehearse(&context, &course).await
    }
}

/// The minor that API servers come to, where any of them is of an earlier one.
fn later_minor(cluster: &Cluster, machines: &[Machine], desired: &Desired) -> Option<u32> {
    let DesiredState::Present {
        machines: wanted, ..
    } = &desired.state
    else {
        return None;
    };
    let servers = wanted.values().filter(|m| m.control_plane());
    let minor = servers.filter_map(DesiredMachine::api_minor).max()?;
    let members = machines.iter().filter(|m| m.role.is_control_plane());
    let runs = members.filter_map(|m| minor_of(&inputs::version(cluster, m)));
    // What emulates an earlier minor still serves what that one does.
    let acts = runs.map(|own| cluster.emulates.map_or(own, |emulated| emulated.min(own)));
    acts.min().filter(|oldest| *oldest < minor).map(|_| minor)
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
