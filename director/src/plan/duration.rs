//! How long a plan takes, by what steps have taken before: a forecast. Pure.

use std::collections::BTreeMap;

use crate::model::{Plan, StepKey, StepState, Task};

/// What steps of each kind have taken, in milliseconds: the middle one of what was measured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Measured {
    kinds: BTreeMap<&'static str, u64>,
}

impl Measured {
    /// Out of the steps of tasks that succeeded.
    pub fn of<'a>(tasks: impl IntoIterator<Item = &'a Task>) -> Self {
        let mut all: BTreeMap<&'static str, Vec<u64>> = BTreeMap::new();
        for task in tasks {
            for step in &task.current().steps {
                let record = task.steps.get(&step.key);
                let Some(record) = record.filter(|r| r.state == StepState::Succeeded) else {
                    continue;
                };
                let Some(ended) = record.ended_at else {
                    continue;
                };
                let took = ended.ms_since(record.started_at);
                all.entry(step.action.name()).or_default().push(took);
            }
        }
        let middle = all.into_iter().filter_map(|(kind, mut took)| {
            took.sort_unstable();
            Some((kind, *took.get(took.len() / 2)?))
        });
        Self {
            kinds: middle.collect(),
        }
    }

    /// How long a plan takes, in seconds, rounded up: its longest way from a first step to a last one. `None` where
    /// none of its kinds of step that make machines was ever measured.
    pub fn seconds(&self, plan: &Plan) -> Option<u64> {
        let telling = ["create-machine", "start-components"];
        let mut kinds = plan.steps.iter().map(|step| step.action.name());
        if !kinds.any(|kind| telling.contains(&kind) && self.kinds.contains_key(kind)) {
            return None;
        }
        let mut ends: BTreeMap<&StepKey, u64> = BTreeMap::new();
        for step in &plan.steps {
            let begins = step.after.iter().filter_map(|key| ends.get(key));
            let begins = begins.max().copied().unwrap_or(0);
            // Kinds that were never measured are the short ones.
            let takes = self.kinds.get(step.action.name()).copied().unwrap_or(0);
            ends.insert(&step.key, begins + takes);
        }
        let longest = ends.values().max().copied().unwrap_or(0);
        Some(longest.div_ceil(1000))
    }
}
