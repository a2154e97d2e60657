//! A node that is drained tells its own pods to leave: its agent does so with the identity of its kubelet.
//!
//! # Invariants
//! * Only an agent that is heard of is asked, and it is not waited for: where it cannot be asked, the director does
//!   what it would have done.
//! * What an agent has said of a pod counts, however its step ended; of what it has not said nothing is known.
//!
//! # After a crash
//! The drain begins anew, and its step is sent again under the same name with what is due then.
//!
//! # Not here
//! Who is told to leave, and when ([`crate::drain::Engine`]).

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use windlass_common::error::ErrorChain;
use windlass_common::id::MachineName;
use windlass_common::limits::EVICTIONS_MAX;
use windlass_common::step::{Evict, EvictAnswer, EvictHow, EvictOutcome, EvictPod, Step};

use super::context::ClusterContext;
use super::node::succeeded;
use super::{Done, EffectError, StepOrder, World, ask};
use crate::drain::{Answer, How, Order, OwnNode};
use crate::kubernetes::render;
use crate::model::Machine;

/// How long an agent may take for one step: sixty pods at a second each, where webhooks look at each.
const EVICT_LIMIT: Duration = Duration::from_secs(60);

/// The node of a machine that is drained.
struct Kubelet<'a> {
    world: &'a World,
    machine: &'a Machine,
    order: &'a StepOrder,
    /// What is the same in each step.
    step: Evict,
}

impl World {
    /// Closes a node and has its pods leave it; see [`super::KubeApi::drain`].
    pub(super) async fn empty(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        let own = Kubelet {
            world: self,
            machine,
            order,
            step: render::evict_step(&context.facts, context.machine_facts(name)?),
        };
        let (node, progress) = (&machine.node_name, &order.progress);
        self.kubernetes.drain(context, node, &own, progress).await
    }
}

impl OwnNode for Kubelet<'_> {
    fn tell<'a>(&'a self, orders: &'a [Order]) -> BoxFuture<'a, Vec<Result<Answer, String>>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(orders.len());
            for some in orders.chunks(EVICTIONS_MAX) {
                let (said, fault) = self.ask(some).await;
                answers.extend(understood(some, &said, fault));
            }
            answers
        })
    }
}

impl Kubelet<'_> {
    /// Has the agent tell some pods; what it said, and what went wrong.
    async fn ask(&self, orders: &[Order]) -> (Vec<u8>, Option<String>) {
        let (agents, machine) = (&self.world.agents, self.machine);
        if !agents.is_heard(&machine.name, machine.incarnation) {
            return (Vec::new(), Some("its agent is not heard of".to_owned()));
        }
        let step = Step::Evict(Evict {
            pods: orders.iter().map(named).collect(),
            ..self.step.clone()
        });
        let left = self.order.limit.min(EVICT_LIMIT);
        let request = self.world.request(self.order, "/evict", step, left);
        let (result, said) = ask(&**agents, machine, request).await;
        let fault = match result {
            Ok(result) => succeeded(machine, result).err().map(|error| error.message),
            Err(error) => Some(ErrorChain(&error).to_string()),
        };
        (said, fault)
    }
}

fn named(order: &Order) -> EvictPod {
    EvictPod {
        namespace: order.pod.namespace.clone(),
        name: order.pod.name.clone(),
        uid: order.pod.uid.clone(),
        grace_seconds: order.grace_seconds,
        how: match order.how {
            How::Evict => EvictHow::Evict,
            How::Delete => EvictHow::Delete,
        },
    }
}

/// What the lines that an agent said mean for each order.
fn understood(
    orders: &[Order],
    said: &[u8],
    fault: Option<String>,
) -> impl Iterator<Item = Result<Answer, String>> {
    let lines = said.split(|byte| *byte == b'\n');
    let answers = lines.filter_map(|line| serde_json::from_slice::<EvictAnswer>(line).ok());
    let mut outcomes: BTreeMap<String, EvictOutcome> =
        answers.map(|answer| (answer.uid, answer.outcome)).collect();
    let fault = fault.unwrap_or_else(|| "its agent said nothing of it".to_owned());
    orders.iter().map(move |order| {
        let outcome = outcomes.remove(&order.pod.uid);
        outcome.map_or_else(|| Err(fault.clone()), answered)
    })
}

fn answered(outcome: EvictOutcome) -> Result<Answer, String> {
    match outcome {
        EvictOutcome::Accepted => Ok(Answer::Accepted),
        // The next look at the pods of the node shows what is so.
        EvictOutcome::Gone | EvictOutcome::Elsewhere => Ok(Answer::Gone),
        EvictOutcome::Kept {
            message,
            retry_after_seconds,
        } => Ok(Answer::NotNow {
            why: message,
            again_after: retry_after_seconds.map(|s| Duration::from_secs(s.into())),
        }),
        // Two budgets cover the pod, or the server is in trouble, whoever asks.
        EvictOutcome::Failed {
            status: Some(500),
            message,
        } => Ok(Answer::NotNow {
            why: message,
            again_after: None,
        }),
        EvictOutcome::Forbidden { message } => Err(format!("the node may not: {message}")),
        EvictOutcome::Failed { status, message } => Err(match status {
            Some(status) => format!("the node was answered {status}: {message}"),
            None => format!("the node was not answered: {message}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::PodRef;

    fn order(name: &str) -> Order {
        Order {
            pod: PodRef {
                namespace: "shop".to_owned(),
                name: name.to_owned(),
                uid: format!("uid-{name}"),
            },
            how: How::Evict,
            grace_seconds: None,
        }
    }

    fn line(name: &str, outcome: EvictOutcome) -> String {
        let uid = format!("uid-{name}");
        serde_json::to_string(&EvictAnswer { uid, outcome }).unwrap() + "\n"
    }

    #[test]
    fn what_an_agent_did_not_say_is_the_directors_to_do() {
        let text = |text: &str| text.to_owned();
        let not_now = |why: &str, again_after| Answer::NotNow {
            why: text(why),
            again_after,
        };
        let failed = |status, why: &str| EvictOutcome::Failed {
            status,
            message: text(why),
        };
        let kept = EvictOutcome::Kept {
            message: text("budget"),
            retry_after_seconds: Some(10),
        };
        let forbidden = EvictOutcome::Forbidden {
            message: text("no"),
        };
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("ended",     Some(EvictOutcome::Accepted),    Ok(Answer::Accepted)),
            ("gone",      Some(EvictOutcome::Gone),        Ok(Answer::Gone)),
            ("elsewhere", Some(EvictOutcome::Elsewhere),   Ok(Answer::Gone)),
            ("kept",      Some(kept),                      Ok(not_now("budget", Some(Duration::from_secs(10))))),
            ("two",       Some(failed(Some(500), "two")),  Ok(not_now("two", None))),
            ("forbidden", Some(forbidden),                 Err(text("the node may not: no"))),
            ("odd",       Some(failed(Some(418), "odd")),  Err(text("the node was answered 418: odd"))),
            ("broken",    Some(failed(None, "cut")),       Err(text("the node was not answered: cut"))),
            ("silent",    None,                            Err(text("the link broke"))),
        ];
        let orders: Vec<Order> = cases.iter().map(|(name, ..)| order(name)).collect();
        // In another order, among what is no answer.
        let said: String = cases
            .iter()
            .rev()
            .filter_map(|(name, outcome, _)| Some(line(name, outcome.clone()?)))
            .collect();
        let said = format!(
            "no JSON\n{said}{}{{\"uid\":",
            line("stranger", EvictOutcome::Gone)
        );
        let got: Vec<_> =
            understood(&orders, said.as_bytes(), Some(text("the link broke"))).collect();
        let want: Vec<_> = cases.into_iter().map(|(.., want)| want).collect();
        assert_eq!(got, want);
        let unsaid: Vec<_> = understood(&orders[..1], b"", None).collect();
        assert_eq!(unsaid, [Err(text("its agent said nothing of it"))]);
    }
}
