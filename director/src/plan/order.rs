//! Which steps of a plan come before which, whatever order the rest takes.

use std::collections::BTreeMap;

use crate::model::{PlanStep, StepKey};

/// The steps above each step, as bits: a plan of a thousand steps is a thousand rows of 16 words.
pub(super) struct Order<'a> {
    steps: &'a [PlanStep],
    index: BTreeMap<&'a StepKey, usize>,
    words: usize,
    above: Vec<u64>,
}

/// A plan's graph is none.
pub(super) struct Fault<'a> {
    pub(super) step: &'a StepKey,
    pub(super) problem: String,
}

impl<'a> Order<'a> {
    /// Keys are unique and each step waits only for earlier ones: so there is no cycle.
    pub(super) fn new(steps: &'a [PlanStep]) -> Result<Self, Vec<Fault<'a>>> {
        let words = steps.len().div_ceil(64);
        let mut order = Order {
            steps,
            index: BTreeMap::new(),
            words,
            above: vec![0; words * steps.len()],
        };
        let mut faults = Vec::new();
        for (i, step) in steps.iter().enumerate() {
            for key in &step.after {
                match order.index.get(key) {
                    Some(&before) => order.put_below(i, before),
                    None => faults.push(Fault {
                        step: &step.key,
                        problem: format!("it waits for {key}, which is not an earlier step"),
                    }),
                }
            }
            if order.index.insert(&step.key, i).is_some() {
                faults.push(Fault {
                    step: &step.key,
                    problem: "its key is used twice".to_owned(),
                });
            }
        }
        if faults.is_empty() {
            Ok(order)
        } else {
            Err(faults)
        }
    }

    fn put_below(&mut self, step: usize, before: usize) {
        let (head, tail) = self.above.split_at_mut(step * self.words);
        let from = &head[before * self.words..(before + 1) * self.words];
        for (to, from) in tail[..self.words].iter_mut().zip(from) {
            *to |= from;
        }
        tail[before / 64] |= 1 << (before % 64);
    }

    pub(super) fn index(&self, key: &StepKey) -> usize {
        self.index[key]
    }

    /// Whether step `a` has always ended before step `b` begins.
    pub(super) fn precedes(&self, a: usize, b: usize) -> bool {
        self.above[b * self.words + a / 64] >> (a % 64) & 1 == 1
    }

    /// Number of steps above a step.
    pub(super) fn depth(&self, step: usize) -> usize {
        let row = &self.above[step * self.words..(step + 1) * self.words];
        row.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub(super) fn steps(&self) -> &'a [PlanStep] {
        self.steps
    }
}

/// Something that is the case from the beginning of one step to the end of another: from the first moment on
/// without the one, for good without the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) from: Option<usize>,
    pub(super) to: Option<usize>,
}

impl Span {
    /// Whether this one is always over before the other begins.
    fn before(&self, other: &Span, order: &Order<'_>) -> bool {
        let bounds = self.to.zip(other.from);
        bounds.is_some_and(|(end, begin)| end == begin || order.precedes(end, begin))
    }

    /// Whether both can be the case at one moment.
    pub(super) fn meets(&self, other: &Span, order: &Order<'_>) -> bool {
        !self.before(other, order) && !other.before(self, order)
    }
}

/// The most of these spans that can be the case at one moment, whatever order a rollout takes.
///
/// Spans that exclude each other are ordered, so the answer is the width of a partial order: by Dilworth's
/// theorem the least number of chains that cover it, found by matching each span with one after it.
pub(super) fn most_at_once(spans: &[Span], order: &Order<'_>) -> usize {
    let after = |a: usize, b: usize| spans[a].before(&spans[b], order);
    // Chains laid greedily are often the best there are; matching then confirms it in one pass.
    let mut follower: Vec<Option<usize>> = vec![None; spans.len()];
    let mut leader: Vec<Option<usize>> = vec![None; spans.len()];
    for (b, leads) in leader.iter_mut().enumerate() {
        *leads = (0..b).rev().find(|&a| follower[a].is_none() && after(a, b));
        if let Some(a) = *leads {
            follower[a] = Some(b);
        }
    }
    for start in 0..spans.len() {
        if follower[start].is_none() {
            let mut seen = vec![false; spans.len()];
            augment(start, &after, &mut follower, &mut leader, &mut seen);
        }
    }
    follower.iter().filter(|next| next.is_none()).count()
}

/// Gives `a` a follower, moving others if that helps (Kuhn).
fn augment(
    a: usize,
    after: &impl Fn(usize, usize) -> bool,
    follower: &mut [Option<usize>],
    leader: &mut [Option<usize>],
    seen: &mut [bool],
) -> bool {
    for b in 0..leader.len() {
        if seen[b] || !after(a, b) {
            continue;
        }
        seen[b] = true;
        let free = match leader[b] {
            None => true,
            Some(other) => augment(other, after, follower, leader, seen),
        };
        if free {
            (follower[a], leader[b]) = (Some(b), Some(a));
            return true;
        }
    }
    false
}
