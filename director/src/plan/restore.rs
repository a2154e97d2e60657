//! Checks the plan of a restore, whoever made it, knowing nothing of how it was made.
//!
//! # Invariants checked
//! * No member's data is made or set aside before every member has ended, and no member ends before every API
//!   server has; a machine that is told neither is shut out before.
//! * All members that etcd begins with are made from one source, agree on who they are, and start after all of
//!   them are made.
//! * Every other machine of the control plane that is to stay joins: its data is set aside before it starts.
//! * Nothing is asked of the API before a member that begins has shown that it answers.
//! * What follows is checked as any plan is: [`super::check`] with what there is by then.

use std::collections::BTreeSet;

use windlass_common::id::MachineName;

use super::Violation;
use super::order::Order;
use crate::model::{Action, Invariant, Plan, StepKey};
use crate::planner::restore::RestoreOrder;

/// Every violation of an invariant in the plan of a restore.
///
/// # Errors
/// All violations.
pub fn check(plan: &Plan, order: &RestoreOrder) -> Result<(), Vec<Violation>> {
    let graph = Order::new(&plan.steps).map_err(|faults| {
        let violation = |fault: super::order::Fault<'_>| Violation {
            step: fault.step.clone(),
            invariant: Invariant::StepEnds,
            problem: fault.problem,
        };
        faults.into_iter().map(violation).collect::<Vec<_>>()
    })?;
    let mut checker = Checker {
        graph,
        order,
        violations: Vec::new(),
    };
    checker.stops();
    checker.makes();
    checker.joins();
    checker.asks();
    if checker.violations.is_empty() {
        Ok(())
    } else {
        Err(checker.violations)
    }
}

struct Checker<'a> {
    graph: Order<'a>,
    order: &'a RestoreOrder,
    violations: Vec<Violation>,
}

impl Checker<'_> {
    fn fail(&mut self, step: usize, invariant: Invariant, problem: impl Into<String>) {
        let step = self.graph.steps()[step].key.clone();
        let problem = problem.into();
        self.violations.push(Violation {
            step,
            invariant,
            problem,
        });
    }

    fn fail_whole(&mut self, invariant: Invariant, problem: impl Into<String>) {
        self.violations.push(Violation {
            step: StepKey("(plan)".into()),
            invariant,
            problem: problem.into(),
        });
    }

    /// Steps with an action of this kind.
    fn all(&self, which: impl Fn(&Action) -> bool) -> Vec<usize> {
        let steps = self.graph.steps().iter().enumerate();
        let of = steps.filter(|(_, step)| which(&step.action));
        of.map(|(at, _)| at).collect()
    }

    fn one(&self, machine: &MachineName, which: impl Fn(&Action) -> bool) -> Option<usize> {
        self.all(|action| which(action) && action.machine() == Some(machine))
            .into_iter()
            .next()
    }

    /// Steps that make data or set it aside.
    fn replacing(&self) -> Vec<usize> {
        self.all(|action| {
            matches!(
                action,
                Action::RestoreMember { .. } | Action::SetMemberAside { .. }
            )
        })
    }

    fn needs(&mut self, step: usize, before: usize, invariant: Invariant) {
        if !self.graph.precedes(before, step) {
            let key = &self.graph.steps()[before].key;
            let problem = format!("it may begin before {key} has ended");
            self.fail(step, invariant, problem);
        }
    }

    /// Everything has ended before any data is touched.
    fn stops(&mut self) {
        let replacing = self.replacing();
        let stopped: BTreeSet<MachineName> = self.order.stopped().into_iter().collect();
        let apis = self.all(|action| matches!(action, Action::StopApi { .. }));
        for name in self.order.members.keys().cloned().collect::<Vec<_>>() {
            let ends = if stopped.contains(&name) {
                let api = self.one(&name, |action| matches!(action, Action::StopApi { .. }));
                let member = self.one(&name, |action| matches!(action, Action::StopMember { .. }));
                if let (Some(_), Some(member)) = (api, member) {
                    for api in &apis {
                        self.needs(member, *api, Invariant::OneIncarnation);
                    }
                }
                api.and(member)
            } else {
                self.one(&name, |action| matches!(action, Action::Fence { .. }))
            };
            let Some(ends) = ends else {
                let problem = format!("{name} may serve on with data that is replaced");
                self.fail_whole(Invariant::OneIncarnation, problem);
                continue;
            };
            for step in &replacing {
                self.needs(*step, ends, Invariant::OneIncarnation);
            }
        }
    }

    /// The members that begin are made alike, and start once all are.
    fn makes(&mut self) {
        let begin = self.order.begin();
        let makes = self.all(|action| matches!(action, Action::RestoreMember { .. }));
        let mut made = Vec::new();
        for at in &makes {
            let Action::RestoreMember {
                machine,
                source,
                members,
            } = &self.graph.steps()[*at].action
            else {
                continue;
            };
            made.push(machine.clone());
            if *source != self.order.source || *members != begin {
                let problem = "it is made otherwise than was ordered";
                self.fail(*at, Invariant::EtcdQuorum, problem);
            }
        }
        made.sort();
        if made != begin || begin.is_empty() {
            let problem = format!("etcd is to begin with {begin:?}, and {made:?} are made");
            self.fail_whole(Invariant::EtcdQuorum, problem);
        }
        let starts = self.all(|action| {
            let starts = matches!(
                action,
                Action::StartComponents { .. }
                    | Action::StartMember { .. }
                    | Action::AddMember { .. }
            );
            starts
                && action
                    .machine()
                    .is_some_and(|machine| self.order.members.contains_key(machine))
        });
        for start in starts {
            for make in &makes {
                self.needs(start, *make, Invariant::EtcdQuorum);
            }
        }
    }

    /// Those that join begin without data.
    fn joins(&mut self) {
        let begin = self.order.begin();
        for start in self.all(|action| matches!(action, Action::StartMember { .. })) {
            let machine = self.graph.steps()[start].action.machine().cloned();
            let Some(machine) = machine else { continue };
            let aside = self.one(&machine, |action| {
                matches!(action, Action::SetMemberAside { .. })
            });
            match aside {
                Some(aside) => self.needs(start, aside, Invariant::EtcdQuorum),
                None => {
                    let problem = "it may have data of a cluster that is no more";
                    self.fail(start, Invariant::EtcdQuorum, problem);
                }
            }
        }
        for name in self.order.members.keys().cloned().collect::<Vec<_>>() {
            let joins = self.one(&name, |action| matches!(action, Action::StartMember { .. }));
            if begin.contains(&name) == joins.is_some() {
                let problem = format!("{name} has to begin or to join, and not both");
                self.fail_whole(Invariant::EtcdQuorum, problem);
            }
        }
    }

    /// The API is asked once it answers.
    fn asks(&mut self) {
        let shows = self.all(|action| matches!(action, Action::AwaitControlPlane { .. }));
        let shows: Vec<usize> = shows
            .into_iter()
            .filter(|at| {
                let machine = self.graph.steps()[*at].action.machine();
                machine.is_some_and(|machine| self.order.begin().contains(machine))
            })
            .collect();
        let asks = self.all(|action| {
            matches!(
                action,
                Action::AwaitApi
                    | Action::ApplyAddons
                    | Action::AwaitNode { .. }
                    | Action::RestartKubelet { .. }
                    | Action::SettleNodes
            )
        });
        for ask in asks {
            if !shows.iter().any(|show| self.graph.precedes(*show, ask)) {
                let problem = "the API does not answer by then";
                self.fail(ask, Invariant::StepEnds, problem);
            }
        }
    }
}
