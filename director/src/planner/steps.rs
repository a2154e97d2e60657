//! Steps of a plan as they are being collected.

use std::collections::BTreeSet;

use windlass_common::id::{MachineName, NodeName};

use crate::model::{Action, Disruption, Invariant, PlanStep, StepKey};

/// Steps in the order in which they were added; what a step waits for is dropped when it is not planned.
#[derive(Debug, Default)]
pub(super) struct Steps {
    pub(super) list: Vec<PlanStep>,
    keys: BTreeSet<StepKey>,
}

impl Steps {
    pub(super) fn add(
        &mut self,
        key: StepKey,
        action: Action,
        why: &str,
        guard: Invariant,
        disrupts: Disruption,
        after: impl IntoIterator<Item = StepKey>,
    ) {
        let after: BTreeSet<_> = after
            .into_iter()
            .filter(|key| self.keys.contains(key))
            .collect();
        self.keys.insert(key.clone());
        self.list.push(PlanStep {
            key,
            action,
            why: why.to_owned(),
            guard,
            disrupts,
            after: after.into_iter().collect(),
        });
    }

    /// Takes over a step of another plan.
    pub(super) fn take(&mut self, step: PlanStep) {
        self.keys.insert(step.key.clone());
        self.list.push(step);
    }

    /// A place where the steps `after` meet; not added when none of them is planned.
    pub(super) fn checkpoint(
        &mut self,
        of: &str,
        why: &str,
        guard: Invariant,
        after: impl IntoIterator<Item = StepKey>,
    ) {
        let after: Vec<_> = after.into_iter().filter(|key| self.has(key)).collect();
        if after.is_empty() {
            return;
        }
        let action = Action::Checkpoint { of: of.to_owned() };
        self.add(
            checkpoint_key(of),
            action,
            why,
            guard,
            Disruption::Nothing,
            after,
        );
    }

    pub(super) fn has(&self, key: &StepKey) -> bool {
        self.keys.contains(key)
    }
}

pub(crate) fn machine_key(machine: &MachineName, verb: &str) -> StepKey {
    StepKey(format!("machine/{machine}/{verb}"))
}

pub(super) fn drop_node_key(node: &NodeName) -> StepKey {
    StepKey(format!("node/{node}/drop"))
}

pub(super) fn checkpoint_key(of: &str) -> StepKey {
    StepKey(format!("checkpoint/{of}"))
}

pub(super) fn endpoint_key() -> StepKey {
    StepKey("endpoint/ensure".to_owned())
}

pub(super) fn api_key() -> StepKey {
    StepKey("api/await".to_owned())
}

pub(super) fn addons_key() -> StepKey {
    StepKey("addons/apply".to_owned())
}
