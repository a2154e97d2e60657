//! Plans that were shown, so that an order that holds to one can be told what became of it.
//!
//! In memory only: after a restart an old plan is still told from a new one by its hash, not by what it decides.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use windlass_common::id::Digest;

use crate::model::{Plan, StepKey};
use crate::planner::{Desired, Observed};

/// Plans kept; a plan is used within minutes of being shown.
const KEPT: usize = 64;
/// Steps, and things that are wanted, named in one message.
const NAMED: usize = 8;
/// How much of a value is told: a gate may be long.
const TOLD_CHARS: usize = 60;

/// A plan, and what it was made from.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub(super) plan: Plan,
    pub(super) desired: Desired,
    pub(super) observed: Observed,
}

/// What a plan's hash covers, by name.
#[derive(Debug)]
struct Decisions {
    steps: BTreeSet<StepKey>,
    /// Versions, budgets and all else that is wanted, for example `machines.demo-w-0.stemcell`.
    wanted: BTreeMap<String, Value>,
}

impl Decisions {
    fn of(plan: &Plan, desired: &Desired) -> Self {
        let mut wanted = BTreeMap::new();
        // Ordered maps and plain values: serialising cannot fail.
        let state = serde_json::to_value(&desired.state).unwrap_or_default();
        for fields in state.as_object().into_iter().flat_map(|of| of.values()) {
            name_all("", fields, &mut wanted);
        }
        let legs = plan.upgrade.iter().flat_map(|upgrade| &upgrade.legs);
        for (at, leg) in legs.enumerate() {
            let leg = serde_json::json!({
                "kubernetes_version": leg.kubernetes_version,
                "stemcell": leg.stemcell,
                "emulates": leg.emulates,
                "plan": leg.hash,
            });
            name_all(&format!("leg.{}", at + 1), &leg, &mut wanted);
        }
        Self {
            steps: plan.steps.iter().map(|step| step.key.clone()).collect(),
            wanted,
        }
    }

    /// How what is decided now differs from what was decided before.
    fn differs(&self, before: &Self) -> String {
        let names = |steps: Vec<&StepKey>| steps.iter().map(ToString::to_string).collect();
        let added = names(self.steps.difference(&before.steps).collect());
        let gone = names(before.steps.difference(&self.steps).collect());
        let wanted: BTreeSet<&String> = before.wanted.keys().chain(self.wanted.keys()).collect();
        let changed = wanted.into_iter().filter_map(|name| {
            let (was, is) = (before.wanted.get(name), self.wanted.get(name));
            (was != is).then(|| format!("{name} is {}, and was {}", told(is), told(was)))
        });
        let parts: Vec<_> = [
            list("new", added),
            list("not needed any more", gone),
            list("wanted otherwise", changed.collect()),
        ]
        .into_iter()
        .flatten()
        .collect();
        match parts.is_empty() {
            true => "the same steps in another order".to_owned(),
            false => parts.join("; "),
        }
    }
}

/// Names the values in a value by where they are.
fn name_all(at: &str, value: &Value, named: &mut BTreeMap<String, Value>) {
    let Value::Object(fields) = value else {
        named.insert(at.to_owned(), value.clone());
        return;
    };
    for (field, value) in fields {
        let at = match at {
            "" => field.clone(),
            _ => format!("{at}.{field}"),
        };
        name_all(&at, value, named);
    }
}

/// The last plans that were shown.
#[derive(Debug, Default)]
pub(super) struct Shown {
    plans: Mutex<VecDeque<(Digest, Decisions)>>,
}

impl Shown {
    pub(super) fn remember(&self, plan: &Plan, desired: &Desired) {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.retain(|(hash, _)| *hash != plan.hash);
        plans.push_back((plan.hash, Decisions::of(plan, desired)));
        if plans.len() > KEPT {
            plans.pop_front();
        }
    }

    /// Says how `now`, which leads to `desired`, differs from the plan that was shown as `hash`.
    pub(super) fn difference(&self, hash: &Digest, now: &Plan, desired: &Desired) -> String {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = plans.iter().find(|(found, _)| found == hash);
        let what = match shown {
            None => "it was not shown by this director, or long ago".to_owned(),
            Some((_, before)) => Decisions::of(now, desired).differs(before),
        };
        format!(
            "the plan is {} now, not {hash}: {what}; look at the new one",
            now.hash
        )
    }
}

/// A value for people, cut where it is long.
fn told(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => return "not there".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    match text.char_indices().nth(TOLD_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn list(what: &str, mut names: Vec<String>) -> Option<String> {
    let more = names.len().saturating_sub(NAMED);
    let tail = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    names.truncate(NAMED);
    (!names.is_empty()).then(|| format!("{what}: {}{tail}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use windlass_common::id::{ClusterName, DiskName, Incarnation, MachineName, PoolName};

    use super::*;
    use crate::planner::{Budget, DesiredMachine, DesiredState, plan};

    fn machine(name: &str, pool: Option<&str>) -> (MachineName, DesiredMachine) {
        let name = MachineName::new(name).unwrap();
        let machine = DesiredMachine {
            pool: pool.map(|pool| PoolName::new(pool).unwrap()),
            incarnation: Incarnation::FIRST,
            node: name.node_name(Incarnation::FIRST).unwrap(),
            stemcell: "s1".into(),
            kubernetes_version: "1.37.2".into(),
            emulates: None,
            disk: pool.is_none().then(|| DiskName::new("data").unwrap()),
            configuration: Digest::of(b"configuration"),
            components: Digest::of(b"components"),
            labels: Digest::of(b"labels"),
            refit: None,
            because: None,
            reboot: None,
        };
        (name, machine)
    }

    struct Wanted {
        machines: BTreeMap<MachineName, DesiredMachine>,
        budgets: BTreeMap<PoolName, Budget>,
    }

    fn wanted(change: impl Fn(&mut Wanted)) -> Desired {
        let mut wanted = Wanted {
            machines: [machine("c-cp-0", None), machine("c-w-0", Some("w"))].into(),
            budgets: BTreeMap::new(),
        };
        change(&mut wanted);
        Desired {
            cluster: ClusterName::new("c").unwrap(),
            state: DesiredState::Present {
                endpoint: ("10.0.0.2".parse().unwrap(), 6443),
                machines: wanted.machines,
                budgets: wanted.budgets,
                addons: Digest::of(b"addons"),
                drain: Default::default(),
                gates: Vec::new(),
            },
        }
    }

    /// What is said of a change after the plan without it was shown.
    fn said(change: impl Fn(&mut Wanted)) -> String {
        let (shown, nothing) = (Shown::default(), Observed::default());
        let (before, after) = (wanted(|_| {}), wanted(change));
        let (old, new) = (
            plan(&before, &nothing).unwrap(),
            plan(&after, &nothing).unwrap(),
        );
        assert_ne!(old.hash, new.hash);
        shown.remember(&old, &before);
        let said = shown.difference(&old.hash, &new, &after);
        let begins = format!("the plan is {} now, not {}: ", new.hash, old.hash);
        let said = said.strip_prefix(&begins).unwrap();
        said.strip_suffix("; look at the new one")
            .unwrap()
            .to_owned()
    }

    #[test]
    fn versions_that_differ_are_named_with_what_they_were() {
        let said = said(|wanted| {
            for machine in wanted.machines.values_mut().filter(|m| m.pool.is_some()) {
                machine.kubernetes_version = "1.37.3".into();
                machine.stemcell = "s2".into();
            }
        });
        assert_eq!(
            said,
            "wanted otherwise: machines.c-w-0.kubernetes_version is 1.37.3, and was 1.37.2, \
             machines.c-w-0.stemcell is s2, and was s1"
        );
    }

    #[test]
    fn a_budget_that_was_not_there_is_named() {
        let said = said(|wanted| {
            let budget = Budget {
                max_unavailable: 2,
                canaries: 0,
            };
            wanted.budgets.insert(PoolName::new("w").unwrap(), budget);
        });
        assert_eq!(
            said,
            "wanted otherwise: budgets.w.canaries is 0, and was not there, budgets.w.max_unavailable is 2, and was \
             not there"
        );
    }

    #[test]
    fn steps_that_are_new_come_first_and_long_lists_are_cut() {
        let said = said(|wanted| wanted.machines.extend([machine("c-w-1", Some("w"))]));
        assert!(said.starts_with("new: machine/c-w-1/"), "{said}");
        let wanted = said.split("; wanted otherwise: ").nth(1).unwrap();
        assert!(wanted.starts_with("machines.c-w-1."), "{said}");
        assert_eq!(wanted.matches(", and was ").count(), NAMED, "{said}");
        assert!(wanted.ends_with(" more"), "{said}");
    }

    #[test]
    fn a_plan_that_nobody_was_shown_is_said_to_be_that() {
        let desired = wanted(|_| {});
        let now = plan(&desired, &Observed::default()).unwrap();
        let said = Shown::default().difference(&Digest::of(b"x"), &now, &desired);
        assert!(said.contains("was not shown by this director"), "{said}");
    }
}
