//! Plans that were shown, so that an order that holds to one can be told what became of it.
//!
//! In memory only: after a restart an old plan is still told from a new one by its hash, not by its steps.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use windlass_common::id::Digest;

use crate::model::{Plan, StepKey};

/// Plans kept; a plan is used within minutes of being shown.
const KEPT: usize = 64;
/// Steps named in one message.
const NAMED: usize = 8;

/// The last plans that were shown.
#[derive(Debug, Default)]
pub(super) struct Shown {
    plans: Mutex<VecDeque<(Digest, BTreeSet<StepKey>)>>,
}

impl Shown {
    pub(super) fn remember(&self, plan: &Plan) {
        let keys = plan.steps.iter().map(|step| step.key.clone()).collect();
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.retain(|(hash, _)| *hash != plan.hash);
        plans.push_back((plan.hash, keys));
        if plans.len() > KEPT {
            plans.pop_front();
        }
    }

    /// Says how `now` differs from the plan that was shown as `hash`.
    pub(super) fn difference(&self, hash: &Digest, now: &Plan) -> String {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = plans.iter().find(|(found, _)| found == hash);
        let what = match shown {
            None => "it was not shown by this director, or long ago".to_owned(),
            Some((_, before)) => {
                let after: BTreeSet<_> = now.steps.iter().map(|s| s.key.clone()).collect();
                let added = list("new", after.difference(before));
                let gone = list("not needed any more", before.difference(&after));
                let parts: Vec<_> = [added, gone].into_iter().flatten().collect();
                if parts.is_empty() {
                    "the same steps in another order or with other versions".to_owned()
                } else {
                    parts.join("; ")
                }
            }
        };
        format!(
            "the plan is {} now, not {hash}: {what}; look at the new one",
            now.hash
        )
    }
}

fn list<'a>(what: &str, keys: impl Iterator<Item = &'a StepKey>) -> Option<String> {
    let keys: Vec<_> = keys.map(ToString::to_string).collect();
    let more = keys.len().saturating_sub(NAMED);
    let tail = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    let named = keys.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
    (!named.is_empty()).then(|| format!("{what}: {named}{tail}"))
}
