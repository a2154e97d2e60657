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
    /// none of its kinds of step was ever measured; of a plan that brings machines into service, none of those that do.
    pub fn seconds(&self, plan: &Plan) -> Option<u64> {
        let making = ["create-machine", "start-components"];
        let kinds = || plan.steps.iter().map(|step| step.action.name());
        let makes = kinds().any(|kind| making.contains(&kind));
        let telling = |kind: &&str| !makes || making.contains(kind);
        if !kinds()
            .filter(telling)
            .any(|kind| self.kinds.contains_key(kind))
        {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Steps of one machine, each after the one before it.
    fn plan(kinds: &[&str]) -> Plan {
        let step = |(at, kind): (usize, &&str)| {
            let before = at.checked_sub(1).map(|at| at.to_string());
            json!({
                "key": at.to_string(),
                "action": {"kind": kind, "machine": "w-1", "node": "w-1-i1"},
                "why": "",
                "guard": "step-ends",
                "disrupts": "nothing",
                "after": Vec::from_iter(before),
            })
        };
        let steps: Vec<_> = kinds.iter().enumerate().map(step).collect();
        let hash = format!("sha256:{}", "0a".repeat(32));
        let plan = json!({"cluster": "c", "goal": "present", "hash": hash, "steps": steps});
        serde_json::from_value(plan).unwrap()
    }

    #[test]
    fn a_plan_that_makes_nothing_is_told_by_what_it_does_and_another_by_what_it_makes() {
        let measured = |kinds: &[(&'static str, u64)]| Measured {
            kinds: kinds.iter().copied().collect(),
        };
        let down = plan(&["drain", "deleteMachine"]);
        let up = plan(&["drain", "createMachine"]);
        #[rustfmt::skip]
        let cases = [
            ("nothing is known",        measured(&[]),                                            None,    None),
            ("what it makes is not",    measured(&[("drain", 7_001)]),                            Some(8), None),
            ("all is",                  measured(&[("drain", 7_000), ("create-machine", 5_000)]), Some(7), Some(12)),
            ("another kind is",         measured(&[("mount-disk", 1_000)]),                       None,    None),
        ];
        for (name, measured, smaller, larger) in cases {
            assert_eq!(measured.seconds(&down), smaller, "{name}");
            assert_eq!(measured.seconds(&up), larger, "{name}");
        }
    }
}
